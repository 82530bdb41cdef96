"""The device that a process computes on: its choice, its settings, and the arithmetic it is good at."""

from __future__ import annotations

import re
from typing import Literal

import torch

from stages.errors import ConfigError

Precision = Literal["float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def torch_dtype(name: Precision) -> torch.dtype:
    """Torch's dtype of an arithmetic as `cache.precision` and `cache.head_dtype` name it."""
    return _DTYPES[name]


def resolve_device(name: str, local_rank: int = 0, local_size: int = 1) -> str:
    """The torch device for `machine.device`: `auto` is a GPU if there is one; `cuda` is this process's own GPU.

    Raises `ConfigError` for another name or a device that is not there; all `local_size` processes of a node do.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"machine.device is {name!r}; allowed: auto, cpu, cuda, cuda:1 and so on")
    if match[1] and local_size > 1:
        raise ConfigError(
            f"machine.device is {name!r} for {local_size} processes on this node; expected auto or cuda: each has its own GPU"
        )
    index = int(match[1] or local_rank)
    count = torch.cuda.device_count()
    if local_size > count > 0:
        raise ConfigError(
            f"there are {local_size} processes on this node, but torch sees {count} GPUs; start one for each"
        )
    if index >= count:
        raise ConfigError(f"machine.device is {name!r}: GPU {index}, but torch sees {count}; expected auto or cpu")
    return f"cuda:{index}"


def gpu_count() -> int:
    """GPUs that torch sees."""
    return torch.cuda.device_count()


def set_up(device: str, threads: int | None) -> int:
    """Settings for repeatable results on `device` from `resolve_device`; returns the number of threads in use.

    `threads` None leaves torch's choice: one per physical core, or OMP_NUM_THREADS. On a GPU, deterministic kernels are
    not forced: they cost speed, and another GPU would differ in the last bits all the same.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cpu":
        # The same as use_deterministic_algorithms(True), which also imports torch's compiler: three seconds per command.
        torch.set_deterministic_debug_mode("error")
        # That mode also fills every new buffer to expose reads of unset memory: a debugging aid, and slow.
        # torch defines the setting on a module class, which mypy cannot see.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    else:
        torch.cuda.set_device(device)
    return torch.get_num_threads()


def resolve_precision(name: Precision | Literal["auto"], device: str) -> Precision:
    """The arithmetic of forward passes: `auto` is bfloat16 where the hardware has it, else float32.

    Decided by what the processor or GPU can do, never by timing it: a run on the same machine must come out the same.
    """
    if name != "auto":
        return name
    return "bfloat16" if _has_bfloat16(device) else "float32"


def _has_bfloat16(device: str) -> bool:
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
