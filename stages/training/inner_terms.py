"""The terms of the loss on what lies inside of student and teacher: states of layers, and the vectors of self-attention.

Each term says what it reads of the student, which then comes from the one forward pass, and gives sums with their counts: reduction
is the distiller's (stages/losses.py says how).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from stages.attention_vectors import AttentionTaps, attention_widths
from stages.batches import Batch, TargetDecoder, labelled_rows
from stages.blocks import blocks_of
from stages.config import TrainConfig
from stages.config.base import require
from stages.hidden_losses import squared_difference_sum
from stages.losses import cosine_loss_sum
from stages.relations import attention_loss_sum, laid_out, relation_loss_sum
from stages.training.teachers import Teachers
from storage import PartName

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sum:
    """A term over a micro-batch: it is to be divided by `count`, which is that of the whole optimizer step."""

    value: Tensor
    count: Tensor


class Counts(NamedTuple):
    """Of the whole optimizer step, over all processes."""

    positions: Tensor
    labelled: Tensor

    def of_rows(self, positions: str, batch: Batch) -> tuple[Batch, Tensor]:
        """The rows that a term over `all` or `masked` positions is a sum over, and what it is divided by."""
        return (labelled_rows(batch), self.labelled) if positions == "masked" else (batch, self.positions)


@dataclass(frozen=True)
class Inside:
    """What a forward pass of the student left, and the decoded last hidden states of its teachers."""

    rows: Tensor
    """(R, H): the last layer's state, which the head reads, at the rows of the batch."""
    states: Mapping[int, Tensor]
    """(R, H) of each layer that a term asked for."""
    vectors: AttentionTaps | None
    """Queries, keys or values (S, L, W) by part and block, counted from 1; None where no term asked for any."""
    teacher_hidden: Sequence[Tensor | None]
    """f4 (R, H') of each teacher; None where no loss reads it."""


class Term(ABC):
    """One or several parts of the loss."""

    layers: tuple[int, ...] = ()
    """Of the student, whose states are read beside the last one's."""
    vectors: tuple[tuple[PartName, int], ...] = ()
    """Parts and blocks of the student's self-attention that are read."""

    @abstractmethod
    def sums(self, batch: Batch, inside: Inside, counts: Counts) -> dict[str, Sum]:
        """By the names of `distiller.PARTS`."""


class StatesTerm(Term):
    """`cos` and `hidden`: the cosine and the squared difference of hidden states, both means over pairs of layers."""

    def __init__(
        self,
        config: TrainConfig,
        decoder: TargetDecoder,
        student: PreTrainedModel,
        projection: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self._config, self._decoder, self._projection = config, decoder, projection
        # The last layers are there without being asked for: the student's is what its head reads.
        self._pairs: list[tuple[int | None, int | None]] = [(None, None)]
        if config.layer_map is not None:
            last, their_last = len(blocks_of(student)), decoder.layout.hidden_layers[-1]
            self._pairs = [
                (None if ours == last else ours, None if theirs == their_last else theirs)
                for ours, theirs in config.layer_map
            ]
        self.layers = tuple(sorted({ours for ours, _ in self._pairs if ours is not None}))

    def sums(self, batch: Batch, inside: Inside, counts: Counts) -> dict[str, Sum]:
        """As `Term.sums`."""
        weights = self._config.weights
        found: dict[str, list[Tensor]] = {"cos": [], "hidden": []}
        of_cos, cos_count = counts.of_rows(self._config.cos_positions, batch)
        for ours, theirs in self._pairs:
            student = inside.rows if ours is None else inside.states[ours]
            teacher = inside.teacher_hidden[0] if theirs is None else self._decoder.hidden(batch, theirs)
            assert teacher is not None
            if self._projection is not None:
                with torch.autocast(student.device.type, enabled=False):
                    student = self._projection(student.float())
            if weights.cos > 0:
                rows = len(of_cos["row_index"])
                found["cos"].append(cosine_loss_sum(student[:rows], teacher[:rows], self._decoder.row_weights(of_cos)))
            if weights.hidden > 0:
                found["hidden"].append(squared_difference_sum(student, teacher, self._decoder.row_weights(batch)))
        count = {"cos": cos_count, "hidden": counts.positions}
        return {name: Sum(_added(values), count[name] * len(values)) for name, values in found.items() if values}


class EnsembleCosineTerm(Term):
    """`cos` of several teachers: by their shares, the cosines with those whose last hidden states have the student's width."""

    def __init__(self, config: TrainConfig, decoder: TargetDecoder, teachers: Teachers) -> None:
        self._config, self._decoder, self._teachers = config, decoder, teachers

    def sums(self, batch: Batch, inside: Inside, counts: Counts) -> dict[str, Sum]:
        """As `Term.sums`."""
        of_cos, count = counts.of_rows(self._config.cos_positions, batch)
        rows = inside.rows[: len(of_cos["row_index"])]
        row_weights = self._decoder.row_weights(of_cos)
        values = [
            share * cosine_loss_sum(rows, hidden[: len(rows)], row_weights)
            for share, hidden in self._teachers.with_width(inside.teacher_hidden, rows.shape[-1])
        ]
        return {"cos": Sum(_added(values), count)}


class RelationsTerm(Term):
    """`relations`: MiniLMv2's, of one block of each side, summed over the parts."""

    def __init__(self, config: TrainConfig, decoder: TargetDecoder, student: PreTrainedModel) -> None:
        """Raises `ConfigError` where the heads do not divide the student's vectors."""
        assert config.relations is not None
        self._heads, self._decoder = config.relations.heads, decoder
        block, parts = config.relations.student_block or len(blocks_of(student)), config.relations.compared
        self._teacher_block = config.relations.teacher_block or decoder.layout.attention_layers[-1]
        self.vectors = tuple((part, block) for part in parts)
        for part, width in zip(parts, attention_widths(student, [block], parts), strict=True):
            require(
                width % self._heads == 0,
                "train.relations.heads",
                self._heads,
                f"a divisor of the width of the student's {part}, {width}",
            )

    def sums(self, batch: Batch, inside: Inside, counts: Counts) -> dict[str, Sum]:
        """As `Term.sums`."""
        assert inside.vectors is not None
        real = batch["attention_mask"]
        values = [
            relation_loss_sum(
                inside.vectors[part, block],
                _of_teacher(self._decoder, batch, part, self._teacher_block),
                real,
                heads=self._heads,
                causal=self._decoder.objective == "causal",
            )
            for part, block in self.vectors
        ]
        return {"relations": Sum(_added(values), counts.positions)}


class AttentionTerm(Term):
    """`attention`: TinyBERT's, a mean over pairs of blocks."""

    def __init__(self, config: TrainConfig, decoder: TargetDecoder, student: PreTrainedModel) -> None:
        assert config.attention_map is not None
        self._decoder, self._pairs = decoder, config.attention_map
        self._heads = int(student.config.num_attention_heads)
        blocks = sorted({ours for ours, _ in self._pairs})
        self.vectors = tuple((part, block) for block in blocks for part in _SCORED)

    def sums(self, batch: Batch, inside: Inside, counts: Counts) -> dict[str, Sum]:
        """As `Term.sums`."""
        assert inside.vectors is not None
        real = batch["attention_mask"]
        values = []
        for ours, theirs in self._pairs:
            queries, keys = (inside.vectors[part, ours] for part in _SCORED)
            their_queries, their_keys = (_of_teacher(self._decoder, batch, part, theirs) for part in _SCORED)
            values.append(
                attention_loss_sum(
                    (queries, keys),
                    (their_queries, their_keys),
                    real,
                    heads=self._heads,
                    causal=self._decoder.objective == "causal",
                )
            )
        return {"attention": Sum(_added(values), counts.positions * len(values))}


_SCORED: tuple[PartName, PartName] = ("queries", "keys")


def new_projection(student_width: int, teacher_width: int, seed: int) -> nn.Linear:
    """The map from the student's states to the teacher's, W x + b: at first the identity, or orthogonal where the widths differ.

    Drawn from `seed` alone: no other random number of the training depends on it.
    """
    projection: nn.Linear = nn.Linear(student_width, teacher_width, device="meta").to_empty(device="cpu")
    if student_width == teacher_width:
        nn.init.eye_(projection.weight)
    else:
        nn.init.orthogonal_(projection.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(projection.bias)
    return projection


def _of_teacher(decoder: TargetDecoder, batch: Batch, part: PartName, block: int) -> Tensor:
    """The teacher's vectors at their places in the padded batch, f4 (S, L, W)."""
    sequences, length = batch["input_ids"].shape
    return laid_out(decoder.attention(batch, part, block), batch["row_index"], (sequences, length))


def _added(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
