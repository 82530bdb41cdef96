"""What a stage is told about the place it runs in. A stage knows nothing else of its surroundings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from stages.errors import Interrupted
from stages.sharing import InProcess, Place, Runner, never
from storage.part import Part

Figure = str | int | float


class Progress(Protocol):
    """Where a stage reports what it does. The terminal, a log file and a test implement it."""

    def begin(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        """Start a task of `total` units (None: unknown), of which an earlier run has `done` some.

        `unit` is a plural in -s: it is shown without the s where there is one.
        """

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """`amount` more units are done; `figures` are shown beside the bar (loss, bytes)."""

    def message(self, text: str) -> None:
        """One line worth reading."""

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """The result of the stage: a small table of names and values."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Figure]]) -> None:
        """Several results side by side: a row each, its name first, with a figure for every other column."""


class Silent:
    """A `Progress` that shows nothing."""

    def begin(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        """Show nothing."""

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """Show nothing."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Figure]]) -> None:
        """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class Artefacts:
    """Where each stage's files lie, below the project folder. The names are the ones in dvc.yaml."""

    project: Path
    kept_in: Path | None = None
    """The project folder that holds `.cache-work` and `checkpoints`, where `project` is a passing copy of it."""
    run: str | None = None
    """Name of one run of a comparison: its student and figures lie in folders of their own, all else is shared."""
    further_teacher: str | None = None
    """Name in `teachers` of the teacher whose model and cache are meant; None: the main one's. All else is shared."""
    task: str | None = None
    """Name in `finetune.tasks` of the task whose fine-tuned teacher and cache are meant; None: those of language modelling."""
    task_seed: int | None = None
    """Seed of that fine-tuned teacher, once it is chosen (`stages.task_cache.teacher`)."""
    root: str | None = None
    """URL of the remote root that holds the cache at `<root>/<fingerprint>`; None: it is in `cache/current`."""

    def of_run(self, name: str) -> Artefacts:
        """The same project with the student and the figures of the run `name` kept apart."""
        return replace(self, run=name)

    def of_teacher(self, name: str) -> Artefacts:
        """The same project with the model, the cache and the figures of the further teacher `name`."""
        return replace(self, further_teacher=name)

    def of_task(self, name: str) -> Artefacts:
        """The same project with the fine-tuned teacher, the encoded examples, the cache and the figures of the task `name`."""
        return replace(self, task=name)

    def shown(self, path: Path) -> str:
        """How a message calls a path of the project."""
        return (path.relative_to(self.project) if path.is_relative_to(self.project) else path).as_posix()

    @property
    def documents(self) -> Path:
        return self.project / "data" / "documents"

    @property
    def tokens(self) -> Path:
        data = self.project / "data"
        return data / "tokens" if self.task is None else data / "tasks" / self.task

    @property
    def teacher(self) -> Path:
        if self.task is not None:
            seeds = self.finetuned("teacher", self.task)
            return seeds if self.task_seed is None else seeds / str(self.task_seed)
        models, name = self.project / "models", self.further_teacher
        return models / "teacher" if name is None else models / "teachers" / name

    @property
    def teacher_figures(self) -> Path:
        """What the stage `teacher` says of the teacher; its learning curve has the same name and ends in `.csv`."""
        name = self.further_teacher
        return self.project / "runs" / ("teacher.json" if name is None else f"teacher-{name}.json")

    @property
    def teacher_command(self) -> str:
        """What makes the teacher, for messages."""
        if self.task is not None:
            return f"pipeline finetune {self.task} --model teacher"
        return "pipeline teacher" if self.further_teacher is None else f"pipeline teacher {self.further_teacher}"

    @property
    def teacher_key(self) -> str:
        """Where the teacher's parameters stand, for messages."""
        return "teacher" if self.further_teacher is None else f"teachers.{self.further_teacher}"

    def student_init(self, name: str) -> Path:
        """Folder of the initial weights of the student called `name`."""
        return self.project / "models" / "student-init" / name

    @property
    def student(self) -> Path:
        models = self.project / "models"
        return models / "student" if self.run is None else models / "comparison" / self.run

    @property
    def cache_work(self) -> Path:
        return (self.kept_in or self.project) / ".cache-work"

    @property
    def cache(self) -> Path:
        return self._of_cache / "current"

    @property
    def cache_command(self) -> str:
        """What makes the cache, for messages."""
        if self.task is not None:
            return f"pipeline cache-teacher --task {self.task}"
        name = self.further_teacher
        return "pipeline cache-teacher" if name is None else f"pipeline cache-teacher --teacher {name}"

    @property
    def tracked_manifest(self) -> Path:
        """A cache's manifest.json, where that stands for the cache: DVC tracks it instead of shards at a remote root."""
        return self._of_cache / "manifest.json"

    @property
    def local_shards(self) -> Path:
        """Shards of a cache at the root that are being read; a folder for each teacher's and each task's."""
        if self.task is not None:
            return self.cache_work / f"task-shards-{self.task}"
        return self.cache_work / ("shards" if self.further_teacher is None else f"shards-{self.further_teacher}")

    @property
    def cache_run(self) -> Path:
        return self._of_cache / "run.json"

    def cache_metrics(self, part: Part | None = None) -> Path:
        """The log of the teacher's pass; that of one part, where the cache is made in parts."""
        return self._of_cache / ("metrics.jsonl" if part is None else f"metrics-{part.name}.jsonl")

    @property
    def checkpoints(self) -> Path:
        return (self.kept_in or self.project) / "checkpoints"

    @property
    def runs(self) -> Path:
        runs = self.project / "runs"
        return runs if self.run is None else runs / "comparison" / self.run

    @property
    def report(self) -> Path:
        return self.project / "report"

    @property
    def cache_figures(self) -> Path:
        return self._of_cache / "figures.json"

    @property
    def cache_distributions(self) -> Path:
        return self._of_cache / "distributions.csv"

    @property
    def _of_cache(self) -> Path:
        """Folder of a teacher's or a task's cache and of what stands beside it."""
        cache, name = self.project / "cache", self.further_teacher
        if self.task is not None:
            return cache / "tasks" / self.task
        return cache if name is None else cache / "teachers" / name

    @property
    def comparison(self) -> Path:
        return self.project / "runs" / "comparison.json"

    @property
    def finetuning(self) -> Path:
        """Folder of the results of `pipeline finetune`, with a folder for each model, and their summary."""
        return self.project / "runs" / "finetune"

    @property
    def finetuning_summary(self) -> Path:
        """All these results side by side; beside it the same as a table (`.md`) and as a picture (`.png`)."""
        return self.finetuning / "summary.json"

    def finetuned(self, model: str, task: str) -> Path:
        """Folder of the models that came of fine-tuning a model on a task: one for each seed that is kept."""
        return self.project / "models" / "finetuned" / model / task

    def tracker(self, name: str) -> Path:
        """Folder of what trainings, of a comparison too, report to the tracker called `name`."""
        return self.project / "runs" / name

    def speed(self, name: str) -> Path:
        """File with size and speed of the student called `name`, and of the teacher beside it."""
        return self.project / "runs" / f"speed-{name}.json"

    @property
    def speed_on_text(self) -> Path:
        """File with the speed of the trained student and of its teacher on sentences."""
        return self.runs / "speed.json"

    @property
    def student_onnx(self) -> Path:
        """Folder of the trained student as ONNX files."""
        return self.project / "models" / "onnx"


@dataclass(frozen=True, kw_only=True)
class Node:
    """This process among those of the same launch on the same machine."""

    rank: int = 0
    size: int = 1
    launch: str = ""
    """What they have in common, and no other launch on this machine."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The place a stage runs in: folders, device, rank, and the way to report and to be stopped."""

    artefacts: Artefacts
    device: str = "cpu"
    """A torch device: `cpu`, `cuda`, `cuda:1`."""
    threads: int = 1
    """Threads of this process for tensor work; changing it may change the last bits of a result."""
    rank: int = 0
    world_size: int = 1
    node: Node = field(default_factory=Node)
    should_stop: Callable[[], bool] = never
    progress: Progress = field(default_factory=Silent)
    runner: Runner = field(default_factory=InProcess)
    """In which processes a stage's work is done, where it can be shared out."""
    commit: str | None = None
    """Git commit of the project folder, ` (modified)` added where files differ from it; None outside of git."""

    def of_teacher(self, name: str) -> Context:
        """The same place, where the model and the cache are those of the further teacher `name`."""
        return replace(self, artefacts=self.artefacts.of_teacher(name))

    def of_task(self, name: str) -> Context:
        """The same place, where teacher and cache are those of the task `name`."""
        return replace(self, artefacts=self.artefacts.of_task(name))

    @property
    def place(self) -> Place:
        """What this process computes with."""
        return Place(device=self.device, threads=self.threads, should_stop=self.should_stop)

    def stop_if_asked(self, kept: str) -> None:
        """Raise `Interrupted` if a stop was asked for; `kept` says what is safe on disk."""
        if self.should_stop():
            raise Interrupted(f"stopped as asked; {kept}; run the same command again to resume")
