"""A language model's head as a list of steps (storage/FORMAT.md, section 6), taken from a model or read from a cache.

Teacher and student use the same form: the teacher's frozen head rebuilds its logits from a cached hidden state, and the
student's loss reads features and projection apart, so that it never holds (tokens, V) logits for a whole batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from stages.errors import InputError
from stages.head_parts import head_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def row_chunks(rows: int, vocabulary_size: int, at_least: int = 64) -> Iterator[slice]:
    """Slices that cover `rows` rows of logits, 8 MiB of float32 at a time: the processor's caches hold that.

    `at_least` rows come together where the work per chunk does not depend on its size (a gradient of the projection).
    """
    step = max(at_least, (1 << 21) // vocabulary_size)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def filled(x: Tensor, multiple: int = 64) -> Tensor:
    """(rows, H) with rows of zeros added up to a multiple.

    On a CPU, oneDNN compiles and keeps a kernel for each shape it meets: batches of ragged sequences give a new one each step.
    """
    return F.pad(x, (0, 0, 0, -len(x) % multiple))


@dataclass(frozen=True)
class Head:
    """Steps from a hidden state to logits; `tensors` maps the names that `steps` uses to (live) tensors."""

    steps: tuple[dict[str, Any], ...]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a model; its tensors are the model's own parameters (copies where it is spread over devices).

        Raises `InputError` for a model whose head is not known.
        """
        return cls(*head_parts(model))

    @classmethod
    def load(cls, folder: Path) -> Head:
        """The head stored in a cache, in float32 whatever its dtype on disk."""
        description = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        return cls(tuple(description["steps"]), load_file(folder / "head.safetensors")).float()

    def files(self, dtype: torch.dtype) -> dict[str, bytes]:
        """`head.json` and `head.safetensors` as bytes, the tensors in `dtype`."""
        tensors = {name: tensor.detach().to(dtype).cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        return {"head.json": self.description(dtype), "head.safetensors": save(tensors)}

    def description(self, dtype: torch.dtype) -> bytes:
        """`head.json`, for tensors in `dtype`."""
        description = {
            "steps": list(self.steps),
            "vocabulary_size": self.vocabulary_size,
            "hidden_size": self.hidden_size,
            "dtype": str(dtype).removeprefix("torch."),
        }
        text = json.dumps(description, sort_keys=True, separators=(",", ":")) + "\n"
        return text.encode()

    def to(self, device: torch.device | str) -> Head:
        """The same head with its tensors on `device`."""
        return Head(self.steps, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    def projecting_in(self, dtype: torch.dtype) -> Head:
        """The same head with weight and bias of its projection in `dtype`, which autocast would cast anew at each use."""
        names = next((step["weight"], step["bias"]) for step in self.steps if step["op"] == "projection")
        return Head(self.steps, {name: x.to(dtype) if name in names else x for name, x in self.tensors.items()})

    def float(self) -> Head:
        """The same head in float32, its tensors detached: those that are float32 already stay the ones they were."""
        return Head(self.steps, {name: tensor.detach().float() for name, tensor in self.tensors.items()})

    @property
    def projection(self) -> tuple[Tensor, Tensor | None]:
        """Weight (V, H) and bias (V,) of the last matrix product."""
        step = next(step for step in self.steps if step["op"] == "projection")
        return self.tensors[step["weight"]], self.tensors[step["bias"]] if step["bias"] else None

    @property
    def vocabulary_size(self) -> int:
        return self.projection[0].shape[0]

    @property
    def hidden_size(self) -> int:
        first = next(step for step in self.steps if step["op"] in ("dense", "projection"))
        return self.tensors[first["weight"]].shape[1]

    def features(self, hidden: Tensor) -> Tensor:
        """What the projection reads, (rows, H), from hidden states (rows, H)."""
        for step in self.steps:
            if step["op"] == "projection":
                break
            hidden = self._apply(step, hidden)
        return hidden

    def project(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits (rows, V) from what `features` gives; the matrix product goes into `out` where given."""
        weight, bias = self.projection
        after = next(i for i, step in enumerate(self.steps) if step["op"] == "projection") + 1
        if out is None:
            logits = F.linear(features, weight, bias)
        elif bias is None:
            logits = torch.mm(features, weight.T, out=out)
        else:
            logits = torch.addmm(bias, features, weight.T, out=out)
        for step in self.steps[after:]:
            logits = self._apply(step, logits)
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (rows, V) from hidden states (rows, H)."""
        for step in self.steps:
            hidden = self._apply(step, hidden)
        return hidden

    def _apply(self, step: Mapping[str, Any], x: Tensor) -> Tensor:
        op = step["op"]
        weight = self.tensors[step["weight"]] if "weight" in step else None
        bias = self.tensors[step["bias"]] if step.get("bias") else None
        if op in ("dense", "projection") and weight is not None:
            return F.linear(x, weight, bias)
        if op == "activation":
            return _ACTIVATIONS[step["name"]](x)
        if op == "layer_norm":
            return F.layer_norm(x, (x.shape[-1],), weight, bias, step["eps"])
        if op == "rms_norm":
            return F.rms_norm(x, (x.shape[-1],), weight, step["eps"])
        if op == "softcap":
            return step["cap"] * torch.tanh(x / step["cap"])  # type: ignore[no-any-return]
        if op == "scale":
            return step["factor"] * x  # type: ignore[no-any-return]
        raise InputError(f"head.json has the step {op!r}, which this version does not know; update teacher-cache")
