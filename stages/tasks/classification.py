"""Tasks that ask for a label or a score of a text or of two: GLUE's, and IMDb."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.config.finetune import TaskKind, TaskTraining
from stages.errors import InputError
from stages.tasks.metrics import METRICS, Metric
from stages.tasks.reading import TABLES, read_glue_tsv, read_lines, read_table
from stages.tasks.task import ENCODED_AT_ONCE, Encoded, Heads, Layout, Outputs, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_NO_LABEL = 0
"""Of an example that has none: nobody reads it."""


class LabelledText(NamedTuple):
    """One example."""

    texts: tuple[str, ...]
    """One, or two."""
    label: int | float
    """Number of the class, or the score."""


@dataclass(frozen=True, kw_only=True)
class Tsv:
    """The columns of a task's TSV files in GLUE, where they differ from those on the hub."""

    texts: tuple[str, ...]
    label: str
    header: tuple[str, ...] | None = None
    """For files that have no line for it."""
    skip_short: bool = False
    """The file is known to have broken rows, which everybody leaves out."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A `Task` with a label (an integer on the hub) or, without `labels`, a score."""

    kind: TaskKind
    layout: Layout
    texts: tuple[str, ...]
    """Columns on the hub, and in CSV and Parquet files; the label is in `label` there."""
    labels: tuple[str, ...] | None
    measures: tuple[Metric, ...]
    tsv: Tsv | None = None

    @property
    def head(self) -> Heads:
        return "classification"

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(
            f"{metric}_{name}" if name else metric for name in self.layout.evaluation for metric in self.measures
        )

    @property
    def scored_by(self) -> tuple[str, ...]:
        return self.metrics

    def read(self, path: Path, message: Callable[[str], None]) -> list[LabelledText]:
        return self._read(path, message, labelled=True)

    def read_unlabelled(self, path: Path, message: Callable[[str], None]) -> list[LabelledText]:
        if path.suffix == ".txt" and len(self.texts) == 1:
            return [LabelledText((line,), _NO_LABEL) for line in read_lines(path)]
        return self._read(path, message, labelled=False)

    def _read(self, path: Path, message: Callable[[str], None], *, labelled: bool) -> list[LabelledText]:
        if path.suffix not in TABLES:
            raise InputError(f"{path} is no table that {self.kind} can be read from; expected {', '.join(TABLES)}")
        if path.suffix == ".tsv" and self.tsv is not None:
            texts, label = self.tsv.texts, self.tsv.label if labelled else None
            rows: Iterable[Mapping[str, Any]] = read_glue_tsv(
                path,
                texts if label is None else (*texts, label),
                header=self.tsv.header,
                skip_short=self.tsv.skip_short,
                message=message,
            )
            return self._examples(rows, texts, label, str(path))
        label = "label" if labelled else None
        rows = read_table(path, self.texts if label is None else (*self.texts, label))
        return self._examples(rows, self.texts, label, str(path))

    def from_rows(self, rows: Iterable[Mapping[str, Any]], where: str) -> list[LabelledText]:
        return self._examples(rows, self.texts, "label", where)

    def unit(self, example: LabelledText) -> str:
        return "\0".join(example.texts)  # the same text twice is one

    def asks(self, example: LabelledText) -> tuple[str, ...]:
        return example.texts

    def check(self, tokenizer: PreTrainedTokenizerBase, training: TaskTraining, name: str) -> None:
        """Nothing: any length will do."""

    def encode(
        self,
        examples: Sequence[LabelledText],
        tokenizer: PreTrainedTokenizerBase,
        training: TaskTraining,
        *,
        learning: bool,
        done: Callable[[int], None],
    ) -> Encoded:
        number = np.float32 if self.labels is None else np.int64
        rows: list[Row] = []
        for start in range(0, len(examples), ENCODED_AT_ONCE):
            some = examples[start : start + ENCODED_AT_ONCE]
            columns = [[example.texts[place] for example in some] for place in range(len(self.texts))]
            encoding = tokenizer(*columns, truncation=True, max_length=training.max_tokens, return_attention_mask=False)
            for place, example in enumerate(some):
                row: Row = {"input_ids": np.asarray(encoding["input_ids"][place], np.uint32)}
                if "token_type_ids" in encoding:
                    row["token_type_ids"] = np.asarray(encoding["token_type_ids"][place], np.uint8)
                if learning:
                    row["labels"] = np.asarray(example.label, number)
                rows.append(row)
            done(len(some))
        return Encoded(rows=rows, example=list(range(len(rows))))

    def figures(
        self, sets: Mapping[str, tuple[Sequence[LabelledText], Encoded, Sequence[Outputs]]]
    ) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, (examples, _, outputs) in sets.items():
            logits = np.stack([output[0] for output in outputs])
            found = logits[:, 0] if self.labels is None else logits.argmax(axis=1)
            expected = np.array([example.label for example in examples])
            for metric in self.measures:
                figures[f"{metric}_{name}" if name else metric] = METRICS[metric](expected, found)
        return figures

    def _examples(
        self, rows: Iterable[Mapping[str, Any]], texts: Sequence[str], label: str | None, where: str
    ) -> list[LabelledText]:
        """From rows with these columns; `label` None: they are to have no label."""
        columns = texts if label is None else (*texts, label)
        examples = []
        for number, row in enumerate(rows, start=1):
            try:
                given = tuple(str(row[column]) for column in texts)
                value = None if label is None else row[label]
            except KeyError as error:
                raise InputError(
                    f"{where} has no column {error}; expected {', '.join(columns)}; found {', '.join(map(str, row))}"
                ) from None
            known = label is not None
            examples.append(
                LabelledText(given, self._label(value, f"{where}, example {number}") if known else _NO_LABEL)
            )
        return examples

    def _label(self, value: object, where: str) -> int | float:
        text = str(value).strip()
        if self.labels is not None and text in self.labels:
            return self.labels.index(text)
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if self.labels is None and np.isfinite(number):
            return number
        if self.labels is not None and number in range(len(self.labels)):
            return int(number)
        allowed = (
            "a number"
            if self.labels is None
            else f"one of {', '.join(self.labels)}, or its number from 0 to {len(self.labels) - 1}"
        )
        raise InputError(
            f"{where}: the label is {text!r}; expected {allowed} (a test set without labels cannot be scored here)"
        )
