"""Hugging Face models and tokenizers: the only caller of `from_pretrained`, and what the stages need to know of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    set_seed,
)

import stages.bilstm  # noqa: F401  it enters the BiLSTM into transformers' registers
from stages.errors import InputError
from stages.figures import Objective
from stages.model_config import IN_WORDS, refuse_unsupported
from storage.files import BLOCK_BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How accelerate spreads a model over devices: GPUs first, then main memory, then the disk."""

    strategy: Literal["auto", "balanced", "balanced_low_0", "sequential"]
    max_memory: Mapping[str, str] | None
    """Device (`0`, `1`, `cpu`) -> what the model may take of it, as in `20GiB`; None: what is free."""
    offload_folder: Path
    """For what fits nowhere else."""


def load_masked_lm(
    name: str | Path,
    *,
    revision: str | None = None,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> PreTrainedModel:
    """A masked language model on `device`, in eval mode, from a local folder or a hub id. Raises as `load_language_model`."""
    return load_language_model(
        name, objective="masked", revision=revision, attention=attention, dtype=dtype, device=device
    )


def load_language_model(
    name: str | Path,
    *,
    objective: Objective,
    revision: str | None = None,
    attention: str | None = "sdpa",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    device: str = "cpu",
    spread: Spread | None = None,
) -> PreTrainedModel:
    """A masked or causal language model in eval mode, on `device` or spread over several, from a local folder or a hub id.

    `attention`: None is the best kernel that the family has. `dtype`: `auto` is that of the files. Raises `InputError`
    where there is none, where its files are damaged, where it is of a kind that is not supported, or where its weights are
    not those that its configuration describes or lack the base model or the head (transformers would fill those with
    random numbers and only warn).
    """
    model, missing = _load(name, objective, revision=revision, attention=attention, dtype=dtype, spread=spread)
    if missing:
        head, bare = ("masked-LM head", "encoder") if objective == "masked" else ("language-model head", "decoder")
        raise InputError(
            f"the weights in {name} lack {len(missing)} tensors of {type(model).__name__} ({missing[0]}, ...); "
            f"expected a model with its {head}, not a bare {bare}"
        )
    if spread is None:
        torch.nn.Module.to(model, device)  # transformers hides the signature of model.to
    model.train(False)
    return model


def language_model_from_config(config: Mapping[str, Any], objective: Objective) -> PreTrainedModel:
    """A language model of this shape (from `load_model_config`) with random weights: float32, CPU, eval mode.

    With the best attention kernel that its family has. Raises `ValueError` for a shape that the family refuses.
    """
    model: PreTrainedModel = _CLASSES[objective].from_config(
        AutoConfig.for_model(**deepcopy(dict(config))), dtype=torch.float32
    )
    model.train(False)
    return model


def model_without_weights(folder: Path, objective: Objective) -> PreTrainedModel:
    """The modules of the model in `folder`, on the device `meta`: shapes and settings, no numbers. Raises as `load_model_config`."""
    with _refused("model configuration", folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model: PreTrainedModel = _CLASSES[objective].from_config(config)
    return model


def load_encoder(name: str | Path, *, revision: str | None = None, seed: int) -> tuple[PreTrainedModel, bool]:
    """A pretrained encoder as a masked language model, and whether it brought its head; else that has random weights.

    In float32 on the CPU, with eager attention, which trains fastest there on short sequences. Raises `InputError` as
    `load_masked_lm` does, and where tensors of the encoder itself are missing.
    """
    set_seed(seed)
    model, missing = _load(name, "masked", revision=revision, attention="eager", dtype=torch.float32)
    encoder = [tensor for tensor in missing if tensor.startswith(f"{model.base_model_prefix}.")]
    if encoder:
        raise InputError(
            f"the weights in {name} lack {len(encoder)} tensors of the encoder ({encoder[0]}, ...); expected a whole encoder"
        )
    head = {tensor for tensor in model.state_dict() if not tensor.startswith(f"{model.base_model_prefix}.")}
    head -= set(model.all_tied_weights_keys)  # stored under their other name
    if missing and not head <= set(missing):
        raise InputError(
            f"the weights in {name} lack {len(missing)} tensors of the masked-LM head ({missing[0]}, ...) and have the others; "
            "expected a whole head, or none"
        )
    return model, not missing


_CLASSES: dict[Objective, Any] = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}


def _load(
    name: str | Path,
    objective: Objective,
    *,
    revision: str | None,
    attention: str | None,
    dtype: torch.dtype | Literal["auto"],
    spread: Spread | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of the tensors that the files lack. Tensors of another shape are refused."""
    with _refused(IN_WORDS[objective], name):
        raw, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    refuse_unsupported(raw, str(name), objective)
    placement: dict[str, Any] = {}
    if spread is not None:
        memory = {
            int(device) if device.isdigit() else device: size for device, size in (spread.max_memory or {}).items()
        }
        placement = {
            "device_map": spread.strategy,
            "max_memory": memory or None,
            "offload_folder": str(spread.offload_folder),
        }
    model, missing, mismatched = from_files(
        _CLASSES[objective],
        IN_WORDS[objective],
        name,
        revision=revision,
        attn_implementation=attention,
        dtype=dtype,
        **placement,
    )
    refuse_unfit(name, mismatched)
    return model, missing


def from_files(
    model_class: Any, what: str, name: str | Path, **settings: Any
) -> tuple[PreTrainedModel, list[str], list[tuple[str, Any, Any]]]:
    """A model of an `AutoModel...` class, which errors call `what`, with further settings of `from_pretrained`.

    Beside it the names of the tensors that the files lack, and those that are there in another shape (name, found, expected):
    both have random values. Raises `InputError` where there is no model, or its files are damaged.
    """
    with _refused(what, name), _attention_refused(name, settings.get("attn_implementation")):
        # Sizes that do not match are let through here to be refused by the caller: transformers' own error names none of them.
        model, info = model_class.from_pretrained(
            name,
            trust_remote_code=False,  # not even asked for: transformers would wait for an answer on the terminal
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **settings,
        )
    return model, sorted(info["missing_keys"]), sorted(info["mismatched_keys"])


def refuse_unfit(name: str | Path, mismatched: Sequence[tuple[str, Any, Any]]) -> None:
    """Raise `InputError` where tensors in the files have another shape than the model's configuration says."""
    if mismatched:
        tensor, found, expected = mismatched[0]
        raise InputError(
            f"the weights in {name} do not fit its config.json: {len(mismatched)} tensors of another shape ({tensor} is "
            f"{tuple(found)}, ...); expected {tuple(expected)}"
        )


def require_model(folder: Path, what: str, command: str) -> None:
    """Raise `InputError`, naming the command that makes it, where a model folder of ours is missing."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is missing or holds no model: {what}; run: {command}")


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, inputs: list[str] | None = None
) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a local folder or a hub id; `inputs` names what it prepares for a model, if not its default.

    Raises `InputError` where there is none, or where its files are damaged.
    """
    settings: dict[str, Any] = {} if inputs is None else {"model_input_names": inputs}
    with _refused("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, use_fast=True, trust_remote_code=False, **settings
        )
    # Where it was loaded from would make the files of one and the same tokenizer differ between machines.
    for key in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def load_model_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder, as plain JSON without what a version of transformers adds of itself.

    Raises `InputError` where there is none, or where it is damaged.
    """
    with _refused("model configuration", folder):
        config: dict[str, Any] = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    for key in ("transformers_version", "_name_or_path", "torch_dtype", "dtype"):
        config.pop(key, None)
    return config


DIGEST_SHOWN = 12
"""Characters of a digest that stand beside figures: enough to tell models apart."""


def weights_digest(folder: Path, read: Callable[[int], None] | None = None) -> str:
    """SHA-256 over names and bytes of the weights and the configuration in a model folder.

    `read` is told the bytes of each block; what it raises ends it.
    """
    digest = hashlib.sha256()
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    if len(files) < 2:
        raise InputError(
            f"{folder} holds no model; expected config.json and *.safetensors; run the command that makes it, or bring it from where "
            "it was made"
        )
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                if read is not None:
                    read(len(block))
    return digest.hexdigest()


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def folder_bytes(folder: Path) -> int:
    """Bytes of a model folder's weights on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@contextmanager
def _attention_refused(name: str | Path, attention: str | None) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "does not support an attention implementation" not in str(error):
            raise
        raise InputError(
            f"the family of the model {name} has no attention kernel {attention!r} in transformers; expected cache.attention: eager"
        ) from error


@contextmanager
def _refused(what: str, name: str | Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"no {what} could be loaded from {name}: {_short(error).rstrip('.')}; expected a folder with its files (config.json, "
            "weights, tokenizer), or an id of the hub and a network (HF_HUB_OFFLINE not set); fetch it where there is one: hf download ID"
        ) from error
    except Exception as error:
        # For damaged content there is no common class: safetensors has one of its own, the tokenizers library raises
        # plain Exception, and JSON of another structure is whatever transformers stumbles over.
        raise InputError(
            f"no {what} could be loaded from {name}: its files are damaged, or of another version of transformers "
            f"({type(error).__name__}: {_short(error)}); fetch or make it anew"
        ) from error


def _short(error: Exception) -> str:
    """The first line of the message; where that only announces the next one, both."""
    first, *rest = str(error).strip().split("\n")
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first
