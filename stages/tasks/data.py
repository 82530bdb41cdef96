"""The examples of a task: read from files or the hub, split and cut down as its parameters say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from stages.config import FinetuneConfig
from stages.errors import InputError
from stages.randomness import permutation
from stages.tasks.reading import hub_rows
from stages.tasks.task import Task

E = TypeVar("E")

HELD_OUT = "held out"
"""Purpose of the random order that takes examples for the evaluation, and then for the validation, from those of the training."""


@dataclass(frozen=True, kw_only=True)
class TaskData(Generic[E]):
    """What a task is learned from, and the sets that it is scored on, by name (empty where there is one)."""

    train: Sequence[E]
    evaluation: dict[str, Sequence[E]]
    validation: dict[str, Sequence[E]] = field(default_factory=dict)
    """As `evaluation`, of examples that are there to choose by; empty where none were asked for."""

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the examples, for `train`, `evaluation` and, where there is one, `validation`.

        The same ones give the same, wherever they were read from.
        """
        everything = {"train": {"": self.train}, "evaluation": self.evaluation, "validation": self.validation}
        return {part: examples_digest(sets) for part, sets in everything.items() if sets}


def examples_digest(sets: Mapping[str, Sequence[Any]]) -> str:
    """SHA-256 of examples, set by set."""
    digest = hashlib.sha256()
    for name, examples in sets.items():
        digest.update(f"{name}\0{len(examples)}\0".encode())
        for example in examples:
            digest.update(repr(tuple(example)).encode())
    return digest.hexdigest()


def check_task(config: FinetuneConfig, name: str, task: Task[Any], project: Path, *, learning: bool = True) -> None:
    """Refuse files that are not there, without reading any; unless `learning`, those of the evaluation. Raises `InputError`."""
    if config.source == "files":
        _Files(config, name, task, project, lambda _: None).check(learning=learning)


def read_task(
    config: FinetuneConfig, name: str, task: Task[E], project: Path, message: Callable[[str], None]
) -> TaskData[E]:
    """The data of the task called `name` in the parameters. Raises `InputError` for what is not there or not as expected."""
    settings = config.settings_of(name)
    source = _Files(config, name, task, project, message) if config.source == "files" else _Hub(config, task)
    shares = settings.held_out or 0.0, settings.validation or 0.0
    train, held_out, kept_back = hold_out(source.train(), task.unit, *shares)
    sets = task.layout.evaluation
    evaluation = source.evaluation() if settings.held_out is None else dict.fromkeys(sets, held_out)
    validation = {} if settings.validation is None else dict.fromkeys(sets, kept_back)
    counts = {"training": len(train), "evaluation": min(map(len, evaluation.values()))}
    if validation:
        counts["validation"] = len(kept_back)
    if not all(counts.values()):
        found = ", ".join(f"{count} for the {part}" for part, count in counts.items())
        raise InputError(
            f"{name}: of the examples there are {found}; expected some of each (finetune.tasks.{name}: files, held_out, validation)"
        )
    return TaskData(
        train=_drawn(train, settings.train_examples),
        evaluation={part: _drawn(examples, settings.evaluation_examples) for part, examples in evaluation.items()},
        validation={part: _drawn(examples, settings.evaluation_examples) for part, examples in validation.items()},
    )


def read_evaluation(
    config: FinetuneConfig, name: str, task: Task[E], project: Path, message: Callable[[str], None]
) -> dict[str, Sequence[E]]:
    """The evaluation sets of `read_task` alone; examples to learn from are read only where those are taken from them."""
    settings = config.settings_of(name)
    if settings.held_out is not None:
        return read_task(config, name, task, project, message).evaluation
    source = _Files(config, name, task, project, message) if config.source == "files" else _Hub(config, task)
    evaluation = {part: _drawn(some, settings.evaluation_examples) for part, some in source.evaluation().items()}
    if not all(evaluation.values()):
        raise InputError(
            f"{name}: there are no examples for the evaluation; expected at least one (finetune.tasks.{name}: evaluation, held_out)"
        )
    return evaluation


def read_unlabelled(
    config: FinetuneConfig, name: str, task: Task[E], project: Path, message: Callable[[str], None]
) -> list[E]:
    """The examples without labels in the files that `unlabelled` names, in this order. Raises `InputError`."""
    folder = project / config.folder_of(name) if config.source == "files" else project
    examples: list[E] = []
    for file in config.tasks[name].unlabelled or ():
        if not (folder / file).exists():
            raise InputError(f"{folder / file} is not there; expected what finetune.tasks.{name}.unlabelled names")
        found = task.read_unlabelled(folder / file, message)
        if not found:
            raise InputError(
                f"{folder / file} has no examples; expected at least one (finetune.tasks.{name}.unlabelled)"
            )
        examples += found
    return examples


def hold_out(examples: Sequence[E], unit: Callable[[E], str], *shares: float) -> list[list[E]]:
    """The examples that are left, and for each share at least that part of all examples, drawn; those of one unit stay together."""
    units: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        units.setdefault(unit(example), []).append(place)
    groups = list(units.values())
    order = iter(permutation(HELD_OUT, 0, len(groups)))
    part_of: dict[int, int] = {}
    for part, share in enumerate(shares, start=1):
        end = min(len(part_of) + share * len(examples), len(examples))
        while len(part_of) < end:
            part_of.update(dict.fromkeys(groups[next(order)], part))
    parts: list[list[E]] = [[] for _ in (0, *shares)]
    for place, example in enumerate(examples):
        parts[part_of.get(place, 0)].append(example)
    return parts


def _drawn(examples: Sequence[E], count: int | None) -> Sequence[E]:
    """So many of the examples, in their order; files are often sorted by label."""
    if count is None or count >= len(examples):
        return examples
    return [examples[place] for place in sorted(permutation("drawn examples", 0, len(examples))[:count])]


class _Files:
    """A task's folder."""

    def __init__(
        self, config: FinetuneConfig, name: str, task: Task[Any], project: Path, message: Callable[[str], None]
    ) -> None:
        self._settings, self._name, self._task, self._message = config.settings_of(name), name, task, message
        self._folder = project / config.folder_of(name)
        if not self._folder.is_dir():
            raise InputError(
                f"{self._folder} is no folder; expected the files of {task.kind}; set finetune.tasks.{name}.folder, or "
                "finetune.folder for all tasks, or finetune.source: hub"
            )

    def check(self, *, learning: bool) -> None:
        if learning or self._settings.held_out is not None:
            self._files("train")
        if self._settings.held_out is None:
            self._files("evaluation")

    def train(self) -> list[Any]:
        return self._read(self._files("train")[""])

    def evaluation(self) -> dict[str, Sequence[Any]]:
        return {part: self._read(paths) for part, paths in self._files("evaluation").items()}

    def _read(self, paths: Sequence[Path]) -> list[Any]:
        return [example for path in paths for example in self._task.read(path, self._message)]

    def _files(self, key: Literal["train", "evaluation"]) -> dict[str, list[Path]]:
        """The files of each set: all that are named, else the first of the layout that is there."""
        layout = {"": self._task.layout.train} if key == "train" else self._task.layout.evaluation
        given = getattr(self._settings, key)
        at = f"finetune.tasks.{self._name}.{key}"
        if given is None:
            return {part: [self._first_of(names, key)] for part, names in layout.items()}
        if len(layout) > 1 and len(given) != len(layout):
            raise InputError(
                f"{at} names {len(given)} files; expected one for each of {', '.join(layout)}, in this order"
            )
        paths = [self._folder / name for name in given]
        for path in paths:
            if not path.exists():
                raise InputError(f"{path} is not there; expected the files that {at} names")
        return dict(zip(layout, [[path] for path in paths], strict=True)) if len(layout) > 1 else {"": paths}

    def _first_of(self, names: Sequence[str], key: str) -> Path:
        for name in names:
            if (self._folder / name).exists():
                return self._folder / name
        others = f"finetune.tasks.{self._name}.{key}" + (" or .held_out" if key == "evaluation" else "")
        raise InputError(
            f"{self._folder} has none of {', '.join(names)}; expected the {key} examples of {self._task.kind} in one of them; "
            f"else set {others}"
        )


class _Hub:
    """A task in a dataset of the hub."""

    def __init__(self, config: FinetuneConfig, task: Task[Any]) -> None:
        assert config.hub is not None
        self._task, self._key = task, f"finetune.hub.{task.layout.hub}"
        self._dataset = getattr(config.hub, task.layout.hub)

    def train(self) -> list[Any]:
        return self._read("train")

    def evaluation(self) -> dict[str, Sequence[Any]]:
        return {part: self._read(split) for part, split in self._task.layout.evaluation_splits.items()}

    def _read(self, split: str) -> list[Any]:
        configuration = self._task.layout.configuration
        rows = hub_rows(self._dataset.name, configuration, split, self._dataset.revision, self._key)
        return self._task.from_rows(rows, f"{self._dataset.name}, {configuration}, {split}")
