"""A task's cache as the inputs of a student's fine-tuning: neither the teacher nor the task's training data is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

import numpy as np
import numpy.typing as npt

from stages.cache_location import cache_name, open_cache
from stages.config import Config, DistillationConfig
from stages.config.task_cache import task_spec
from stages.context import Context
from stages.errors import InputError
from stages.finetuning.batches import CLASS_LOGITS, HIDDEN, LABELLED, TOKEN_LOGITS
from stages.model_config import ModelShape
from stages.models import load_model_config, load_tokenizer
from stages.task_models import BaseModel, tokenizer_digest
from stages.tasks.task import Row, Task
from storage import CacheReader, ShardArrays, decode_vectors, differing_fields
from storage.arrays import Target


@dataclass(frozen=True, kw_only=True)
class CachedTask:
    """The cache that a student learns a task from, and how."""

    reader: CacheReader
    distillation: DistillationConfig

    @property
    def examples(self) -> str:
        """Digest of the labelled examples."""
        return str(self.reader.description.content["examples"])

    @property
    def shards(self) -> int:
        """How many there are to be read."""
        return len(self.reader.shards("train"))

    def rows(self, read: Callable[[], None]) -> CachedRows:
        """All inputs; what is not wanted of the cache is not read. `read` is called after each shard, and may raise."""
        return CachedRows(self.reader, hidden=self.distillation.weights.hidden > 0, read=read)


def open_task(config: Config, context: Context, name: str, task: Task[Any], base: BaseModel) -> CachedTask:
    """The cache of the task `name`, for a student that is `base`.

    Raises `InputError` where there is none, where it was made with other parameters, where its tokenizer is not the
    student's, or where it lacks what the losses read; and what `open_cache` raises.
    """
    assert config.finetune is not None
    there = context.of_task(name)
    artefacts = there.artefacts
    if artefacts.root is None and not artefacts.cache.is_dir():
        raise InputError(
            f"{artefacts.cache} is missing: what the fine-tuned teacher says of {name}; run: {artefacts.cache_command} where "
            f"that teacher is, then bring {artefacts.shown(artefacts.cache)} here"
        )
    reader = open_cache(config, there, "train")
    description = reader.description
    shown = cache_name(artefacts)
    if description.task is None or description.task["head"] != task.head:
        raise InputError(f"{shown} is not the cache of a task such as {name}; run: {artefacts.cache_command}")
    differences = differing_fields(task_spec(config, name)["task"], description.spec["task"])
    if differences:
        raise InputError(
            f"{shown} was made with other parameters: {'; '.join(differences)}; put these back in params.yaml, or run: "
            f"{artefacts.cache_command}"
        )
    if tokenizer_digest(load_tokenizer(reader.folder / "tokenizer")) != base.tokenizer_digest:
        raise InputError(
            f"the tokenizer in {base.folder} is not that of {shown}: the same id would mean different words; expected a "
            "student that has the fine-tuned teacher's tokenizer"
        )
    layout = description.splits["train"].layout
    if base.token_types and not layout.token_types:
        raise InputError(
            f"the model in {base.folder} tells two texts apart by token types, and {shown} has none, as its teacher looks at none; "
            "expected a student without them, such as a DistilBERT, or a teacher with them"
        )
    distillation = config.finetune.distillation_of(name)
    if distillation.weights.hidden > 0:
        _check_hidden(reader, base, f"finetune.distillation.weights.hidden is {distillation.weights.hidden}", shown)
    return CachedTask(reader=reader, distillation=distillation)


def _check_hidden(reader: CacheReader, base: BaseModel, why: str, shown: str) -> None:
    description = reader.description
    layout = description.splits["train"].layout
    last = ModelShape.of(description.teacher_config).layers
    if layout.hidden == "none" or layout.hidden_layers[-1] != last:
        raise InputError(
            f"{why}, and {shown} does not hold the teacher's last hidden states; set it to 0, or set cache.hidden (and leave "
            f"cache.hidden_layers null) and run: pipeline cache-teacher --task {(description.task or {}).get('name')}"
        )
    size = ModelShape.of(load_model_config(base.folder)).hidden_size
    if size != description.hidden_size:
        raise InputError(
            f"{why}, and hidden states of the model in {base.folder} have {size} values where the teacher's have "
            f"{description.hidden_size}; expected the same size, or a weight of 0"
        )


class CachedRows(Sequence[Row]):
    """The inputs of a task's cache in the order of their ids, with the teacher's answers. All shards are held in memory, coded.

    A row has what one that is encoded from the data has, `labelled` f4 (), and `class_logits` f4 (C,) or `token_logits` f4 (L, 2);
    with `hidden` also `teacher_hidden` f4 (L, H), the last layer's. A label that is not there is 0.
    """

    def __init__(self, reader: CacheReader, *, hidden: bool, read: Callable[[], None] = lambda: None) -> None:
        description = reader.description
        assert description.task is not None
        self._layout = description.splits["train"].layout
        self._labels: type[np.generic] = np.float32 if description.task["labels"] is None else np.int64
        shards, wanted = reader.shards("train"), frozenset[Target]({"hidden"} if hidden else ())
        self._parts: list[ShardArrays] = []
        for shard in shards:
            self._parts.append(reader.load(shard, targets=wanted))
            read()
        reader.close()
        self._hidden = hidden
        self._starts = np.cumsum([0, *(len(part.sequence_ids) for part in self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each input, i8 (rows,)."""
        return np.concatenate([np.diff(part.sequence_offsets.astype(np.int64)) for part in self._parts])

    @property
    def labelled(self) -> int:
        """Inputs that have a label."""
        return int(sum(int(_there(part.task_labelled).sum()) for part in self._parts))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"input {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._row(self._parts[number], index - int(self._starts[number]))

    def _row(self, part: ShardArrays, place: int) -> Row:
        tokens = slice(int(part.sequence_offsets[place]), int(part.sequence_offsets[place + 1]))
        label, logits = _there(part.task_label)[place], _there(part.task_logits)
        labelled = _there(part.task_labelled)[place]
        row: Row = {"input_ids": part.input_ids[tokens], LABELLED: np.asarray(labelled, np.float32)}
        if part.token_types is not None:
            row["token_type_ids"] = part.token_types[tokens]
        if self._layout.task == "answers":
            row["start_positions"], row["end_positions"] = (np.asarray(number, np.int64) for number in label)
            row[TOKEN_LOGITS] = logits[tokens]
        else:
            row["labels"] = np.asarray(label[0], self._labels)
            row[CLASS_LOGITS] = logits[place]
        if self._hidden:
            coded = {name: array[tokens, -1:] for name, array in part.hidden.items()}
            row[HIDDEN] = decode_vectors(self._layout, "hidden", coded)[:, 0]
        return row


def _there(array: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    return cast("npt.NDArray[Any]", array)  # a task's cache has it
