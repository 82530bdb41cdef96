"""The fine-tuned teacher's pass over one shard of a task's inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.draws import ShardUniforms
from stages.errors import Interrupted
from stages.forward_pass import keeps_keys_and_values
from stages.quantise import CODED, as_stored, encode_vectors
from stages.sequences import TokenStore
from stages.sharing import never
from stages.task_cache.examples import TaskExamples
from stages.teacher_batches import Batch, Columns, batches, filled, padded, sent
from stages.teacher_targets import SeenSequences
from storage import Layout, ShardId, ShardTargets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = {"classification": ("logits",), "answers": ("start_logits", "end_logits")}
"""What a model with such a head says, in the order of the columns of `task_logits`."""


@dataclass(frozen=True, kw_only=True)
class SeenExamples(SeenSequences):
    """The inputs of a shard with their labels. Nothing is masked."""

    token_types: npt.NDArray[np.uint8] | None  # (N,)
    labelled: npt.NDArray[np.uint8]  # (S,)
    label: npt.NDArray[np.float32]  # (S, 1 or 2)


def read_examples(tokens: TokenStore, examples: TaskExamples, shard: ShardId, span: tuple[int, int]) -> SeenExamples:
    """The sequences of a shard; `span` is first id and count."""
    offsets, ids = tokens.split(shard.split).read(*span)
    token_types, labelled, label = examples.read(*span)
    return SeenExamples(
        offsets=offsets.astype(np.uint32),
        original_ids=ids,
        input_ids=ids,
        masked=np.zeros(len(ids), np.uint8),
        start=span[0],
        uniforms=ShardUniforms(0, shard.split, shard.variant),
        token_types=token_types,
        labelled=labelled,
        label=label,
    )


@dataclass(frozen=True)
class ComputedTask:
    """What the teacher said about a shard: on its way from the device, perhaps."""

    seen: SeenExamples
    layout: Layout
    columns: dict[str, Tensor]
    """`task_logits` f4, and coded hidden states as the layout has them; there once `copied` has happened."""
    copied: list[torch.cuda.Event]

    def targets(self) -> ShardTargets:
        """The targets, ready to be checked and stored. Waits for the device."""
        for event in self.copied:
            event.synchronize()
        arrays = {name: as_stored(self.layout, name, column.numpy()) for name, column in self.columns.items()}
        seen = self.seen
        return ShardTargets(
            sequence_offsets=seen.offsets,
            original_ids=seen.original_ids,
            input_ids=seen.input_ids,
            masked=seen.masked,
            row_token=None,
            stat=np.empty((len(seen.original_ids), 0), np.float32),
            top_ids=None,
            top_logits=None,
            hidden=None,
            encoded={name: array for name, array in arrays.items() if name in CODED},
            token_types=seen.token_types,
            task_labelled=seen.labelled,
            task_label=seen.label,
            task_logits=arrays["task_logits"],
        )


class TaskComputer:
    """A fine-tuned teacher, ready to turn a task's inputs into `ShardTargets`. To be used by one thread.

    `hidden` says whether it will be asked for hidden states: its base model is listened to then, from now on.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        *,
        layers: int,
        pad_id: int,
        batch_tokens: int,
        hidden: bool,
        compiled: bool = False,
    ) -> None:
        self._teacher, self._layers = teacher, layers
        self._device = next(teacher.parameters()).device
        # Once, and before it is compiled: a hook that comes or goes between shards would have it compiled anew.
        self._base = _LastOutput(teacher) if hidden else None
        if compiled:
            teacher.base_model.compile(dynamic=True)  # batches differ in shape
        self._settings: dict[str, Any] = {"use_cache": False} if keeps_keys_and_values(teacher.forward) else {}
        self._pad_id, self._batch_tokens = pad_id, batch_tokens

    @torch.inference_mode()
    def compute(self, seen: SeenExamples, layout: Layout, should_stop: Callable[[], bool] = never) -> ComputedTask:
        """Answers to all inputs of one shard in their order, and hidden states of all tokens where the layout has them.

        The layout has hidden states where this was made for them.

        Raises `Interrupted` where `should_stop`, asked before each batch, says so.
        """
        tokens = len(seen.original_ids)
        answers = layout.task == "answers"
        logits, hidden = Columns(tokens if answers else len(seen.labelled)), Columns(tokens)
        for batch in batches(seen.offsets, self._batch_tokens):
            if should_stop():
                raise Interrupted("the shard in hand was dropped")
            said = self._said(seen, batch, layout)
            values = torch.stack(said, -1) if answers else said[0]
            places, rows = sent(batch.places, self._device), sent(batch.tokens, self._device)
            if answers:
                logits.put(rows, {"task_logits": values.flatten(0, 1)[places]})
            else:
                logits.put(sent(batch.sequences, self._device), {"task_logits": values})
            if self._base is not None:
                states = [self._base.state(layer, self._layers) for layer in layout.hidden_layers]
                vectors = torch.stack([state.flatten(0, 1)[places] for state in states], 1)
                hidden.put(rows, encode_vectors(layout, "hidden", vectors))
        if self._base is not None:
            self._base.forget()
        gathered = [logits] if self._base is None else [logits, hidden]
        columns, copied = {}, []
        for some in gathered:
            found, event = some.in_memory()
            columns.update(found)
            copied += [] if event is None else [event]
        return ComputedTask(seen, layout, columns, copied)

    def _said(self, seen: SeenExamples, batch: Batch, layout: Layout) -> list[Tensor]:
        """Logits f4 (sequences, classes), or twice (sequences, tokens)."""
        ids, mask = padded(seen.input_ids, batch, pad_id=self._pad_id, device=self._device)
        settings = dict(self._settings)
        if seen.token_types is not None:
            settings["token_type_ids"] = filled(seen.token_types, batch, 0, self._device)
        if any(layer != self._layers for layer in layout.hidden_layers):
            settings["output_hidden_states"] = True
        output = self._teacher(input_ids=ids, attention_mask=mask, **settings)
        return [getattr(output, name).float() for name in LOGITS[layout.task]]


class _LastOutput:
    """What the base model of a model with a head gave last."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._output: Any = None
        model.base_model.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, given: Any, output: Any) -> None:
        del module, given
        self._output = output

    def forget(self) -> None:
        """Hold it no longer."""
        self._output = None

    def state(self, layer: int, last: int) -> Tensor:
        """(sequences, tokens, H): 0 is what the first block reads, n what the n-th writes, the last one after a final norm."""
        state: Tensor = self._output.last_hidden_state if layer == last else self._output.hidden_states[layer]
        return state
