"""Whether a cache holds its teacher's head already: seen from the teacher's files, without loading it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from stages.errors import InputError
from stages.figures import Objective
from stages.heads import Head
from stages.models import model_without_weights


def holds_head(cache: Path, teacher: Path, *, objective: Objective, precision: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether head.json and head.safetensors in `cache` are what `Head.files(dtype)` gives of the teacher in `precision`.

    Steps and shapes are those of its configuration, and every tensor stands in its files, under whatever name it has there. Not
    so, they are missing or damaged, or the teacher is of a kind whose weights are put together while it is loaded.
    """
    try:
        steps, data = (cache / "head.json").read_bytes(), (cache / "head.safetensors").read_bytes()
        kept = load(data)
        expected = Head.of(model_without_weights(teacher, objective))
    except (OSError, SafetensorError, InputError, RuntimeError):
        return False
    return (
        steps == expected.description(dtype)
        and data == save(kept)
        and {name: (tensor.dtype, tensor.shape) for name, tensor in kept.items()}
        == {name: (dtype, tensor.shape) for name, tensor in expected.tensors.items()}
        and all(
            any(torch.equal(tensor, found.to(precision).to(dtype)) for found in _of_shape(teacher, tensor.shape))
            for tensor in kept.values()
        )
    )


def _of_shape(teacher: Path, shape: torch.Size) -> Iterator[Tensor]:
    """The tensors of a shape in the files of a model, one at a time."""
    for path in sorted(teacher.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                if file.get_slice(name).get_shape() == list(shape):
                    yield file.get_tensor(name)
