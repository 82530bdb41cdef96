"""A teacher, loaded and tried: what is cached of it must be what it says."""

from __future__ import annotations

import os
import secrets
import shutil
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from stages.config import MachineConfig
from stages.errors import InputError
from stages.figures import Objective
from stages.forward_pass import encoder_states, input_device
from stages.heads import Head
from stages.model_config import ModelShape
from stages.models import Spread, load_language_model
from storage.files import TEMPORARY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TRIED_TOKENS = 8
_READS_AHEAD = 1e-5
"""Change of a hidden state, as a share of the largest value, that is not rounding."""
_ROUNDING = 1e-5
"""Of logits, as a share of the largest one, in float32; in other arithmetic a few units in the last place."""


def load_teacher(
    name: str | Path,
    *,
    objective: Objective,
    revision: str | None = None,
    attention: str | None = "sdpa",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    device: str = "cpu",
    spread: Spread | None = None,
) -> PreTrainedModel:
    """A language model as `load_language_model` loads it, once `check_teacher` has found nothing. Raises as both do.

    What `spread` puts on the disk is removed with the model.
    """
    try:
        model = load_language_model(
            name, objective=objective, revision=revision, attention=attention, dtype=dtype, device=device, spread=spread
        )
    except BaseException:
        if spread is not None:
            shutil.rmtree(spread.offload_folder, ignore_errors=True)
        raise
    if spread is not None:
        weakref.finalize(model, shutil.rmtree, spread.offload_folder, ignore_errors=True)
    check_teacher(model, str(name), objective)
    return model


def spread_of(machine: MachineConfig, work: Path, owner: str = "") -> Spread | None:
    """How `machine.device_map` spreads a teacher; None for one device. What goes to the disk goes below `work`.

    Into a folder of its own, as other processes may do the same. A process that is killed leaves it; named after its `owner`,
    the fingerprint of a cache, it is swept with all else that such a process left of that cache.
    """
    if machine.device_map is None:
        return None
    folder = work / f"{TEMPORARY}{owner or 'teacher'}-offload-{os.getpid()}-{secrets.token_hex(4)}"
    return Spread(strategy=machine.device_map, max_memory=machine.max_memory, offload_folder=folder)


@torch.inference_mode()
def check_teacher(model: PreTrainedModel, name: str, objective: Objective) -> None:
    """Run two short sequences through a model and refuse it, with the reason, if it is not what the cache takes it for.

    Raises `InputError` where it cannot be run on ids and attention mask alone, where its layers are not those of its
    configuration, where it reads ahead and `objective` is causal or the other way round, and where its head's known steps do
    not give its own logits. A model that gives NaN passes: the guards of the cache name the sequence.
    """
    shape, kind = ModelShape.of(model.config.to_dict()), f"models of type {model.config.model_type!r} ({name})"
    head = Head.of(model)
    ids = _sequences(shape, model.config.pad_token_id).to(input_device(model))
    try:
        mask = torch.ones_like(ids)
        hidden, below = encoder_states(model, ids, mask, range(shape.layers))
        logits = model(input_ids=ids, attention_mask=mask).logits
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise InputError(f"{kind} cannot be run on token ids alone: {type(error).__name__}: {first}") from error
    widths = {state.shape[-1] for state in (hidden, *below.values())}
    if widths != {shape.hidden_size} or head.hidden_size != shape.hidden_size:
        raise InputError(
            f"{kind} have hidden states of {', '.join(map(str, sorted(widths | {head.hidden_size})))} values; expected "
            f"{shape.hidden_size} in every layer (hidden_size of its configuration)"
        )
    if not (hidden.isfinite().all() and logits.isfinite().all()):
        return
    reads_ahead = _difference(hidden[0, :-1], hidden[1, :-1]) > _READS_AHEAD
    if reads_ahead and objective == "causal":
        raise InputError(
            f"{kind} read ahead: another last token changed the states before it; expected a causal model, or "
            "teacher.objective: masked"
        )
    if not reads_ahead and objective == "masked":
        raise InputError(
            f"{kind} do not read ahead: another last token changed nothing before it; expected a model that reads in both "
            "directions, or teacher.objective: causal"
        )
    rebuilt = head.logits(hidden)
    if rebuilt.shape[-1] != shape.vocabulary_size:
        raise InputError(
            f"{kind} have {rebuilt.shape[-1]} logits; expected {shape.vocabulary_size} (vocab_size of its configuration)"
        )
    tolerance = max(_ROUNDING, 4 * torch.finfo(rebuilt.dtype).eps)
    found = _difference(rebuilt, logits.to(rebuilt.device))
    if found > tolerance:
        steps = ", ".join(step["op"] for step in head.steps)
        raise InputError(
            f"the head of {kind} is not known: {steps} give other logits than the model, by {found:.1e} of the largest one; "
            f"expected at most {tolerance:.0e}"
        )


def _sequences(shape: ModelShape, pad_id: int | None) -> Tensor:
    """Two sequences, i8 (2, tokens), that differ in the last token and hold no padding."""
    length = min(_TRIED_TOKENS, shape.positions or _TRIED_TOKENS)
    spread_out = {place * (shape.vocabulary_size - 1) // (length + 1) for place in range(length + 2)}
    ids = sorted(spread_out - {pad_id})
    ids = [ids[place % len(ids)] for place in range(length + 1)]
    return torch.tensor([ids[:length], [*ids[: length - 1], ids[length]]])


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    one, other = one.float(), other.float()
    return float((one - other).abs().max() / other.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
