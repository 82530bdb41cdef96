"""What all kinds of tasks have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from stages.config.finetune import TaskKind, TaskTraining

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

E = TypeVar("E")

HubKey = Literal["glue", "imdb", "squad"]
"""Which of the datasets in `finetune.hub`."""
Heads = Literal["classification", "answers"]
"""`classification`: a label or score of the whole input. `answers`: where in the input an answer begins and ends."""

Row = dict[str, npt.NDArray[Any]]
"""One input: `input_ids` u4 (L,), `token_type_ids` u1 (L,) where the model has them; to be learned from, also `labels`, or
`start_positions` and `end_positions`, each () i8 or f4."""
Outputs = tuple[npt.NDArray[np.float32], ...]
"""What the model says to one input: logits (labels,), or the logits (L,) of the first and of the last token of an answer."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the examples of a task lie, as its makers hand them out."""

    train: tuple[str, ...]
    """Files or folders in the task's folder; the first of `train` that is there counts, as in `evaluation`."""
    evaluation: Mapping[str, tuple[str, ...]]
    """By the name of the set, which is empty where there is one alone."""
    hub: HubKey
    configuration: str
    evaluation_splits: Mapping[str, str]
    """Set -> split of the dataset on the hub; the training's is `train`."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Examples as a model's inputs. One example may give several."""

    rows: list[Row]
    example: list[int]
    """Of which example each row is."""
    offsets: list[list[tuple[int, int] | None]] | None = None
    """SQuAD: the characters of the context that each token stands for, None for one outside of it."""


class Task(Protocol[E]):
    """A kind of task. `E` is one example: plain text and numbers."""

    @property
    def kind(self) -> TaskKind: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def head(self) -> Heads: ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits; None for a task without."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the official figures, each a fraction of 1, in the order in which they are shown."""

    @property
    def scored_by(self) -> tuple[str, ...]:
        """Those whose mean is the task's score."""

    def read(self, path: Path, message: Callable[[str], None]) -> list[E]:
        """The examples in a file or folder, in their order; `message` is told of rows that are left out.

        Raises `InputError` naming file and row for what is not as the layout has it.
        """

    def read_unlabelled(self, path: Path, message: Callable[[str], None]) -> list[E]:
        """The same without labels or answers: columns of them are not looked at, and need not be there.

        Where an example is one text, also a text file with one a line. The examples are for `encode` without `learning`.
        """

    def from_rows(self, rows: Iterable[Mapping[str, Any]], where: str) -> list[E]:
        """The examples in rows with the columns of the dataset on the hub; `where` is what an error calls it."""

    def unit(self, example: E) -> str:
        """What must not be on both sides of a split: the article that a question is about."""

    def asks(self, example: E) -> tuple[str, ...]:
        """The texts that a model reads of it."""

    def check(self, tokenizer: PreTrainedTokenizerBase, training: TaskTraining, name: str) -> None:
        """Raise `ConfigError` where inputs cannot be made so for the task, which is called `name` in the parameters."""

    def encode(
        self,
        examples: Sequence[E],
        tokenizer: PreTrainedTokenizerBase,
        training: TaskTraining,
        *,
        learning: bool,
        done: Callable[[int], None],
    ) -> Encoded:
        """The inputs, with what is to be learned where `learning`. `done` is told of examples as they come, and may raise."""

    def figures(self, sets: Mapping[str, tuple[Sequence[E], Encoded, Sequence[Outputs]]]) -> dict[str, float]:
        """The official figures (`metrics`) of a model's outputs, in the order of the rows, on every evaluation set."""


ENCODED_AT_ONCE = 1000
"""Examples that a tokenizer is given at a time."""
