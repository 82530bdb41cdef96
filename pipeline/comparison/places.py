"""Where the runs are that `pipeline compare RUN RUN ...` is asked for: in this project, or in another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.comparison.finished import Finished
from pipeline.comparison.table import TEACHER
from stages.config import did_you_mean
from stages.context import Artefacts
from stages.errors import InputError

STUDENT = "student"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A run by the name that it is shown under, and the folders of its figures: one for each seed."""

    name: str
    artefacts: Artefacts
    """Of its project."""
    folders: tuple[Path, ...]
    """None: the teacher of the project, which left no figures of its own."""

    @property
    def is_teacher(self) -> bool:
        """Whether it is no student."""
        return not self.folders

    @property
    def models(self) -> list[str]:
        """The paths of its models in its project, one for each folder."""
        if self.is_teacher:
            return ["models/teacher"]
        below = [folder.resolve().relative_to(self.artefacts.runs.resolve()) for folder in self.folders]
        return ["models/student" if path == Path() else f"models/{path.as_posix()}" for path in below]


def find(name: str, runs: dict[str, str], artefacts: Artefacts) -> Place:
    """The run that `name` means: `student`, `teacher`, one of the comparison, or a folder, relative to the project.

    `runs` are those of `compare.runs`: name -> folder below `runs/comparison`. A folder is another project's, and means its student,
    or has figures of a run itself, or a folder with figures for each seed. Raises `InputError` where there is no such run, or it has
    no figures.
    """
    if name == TEACHER:
        return Place(name=name, artefacts=artefacts, folders=())
    if name == STUDENT:
        return Place(name=name, artefacts=artefacts, folders=_with_figures(artefacts.runs, name, "pipeline evaluate"))
    comparison = artefacts.runs / "comparison"
    folder = comparison / runs.get(name, name)
    if name in runs or (folder.is_dir() and comparison in folder.parents and ".." not in Path(name).parts):
        command = f'pipeline compare --only "{name}"' if name in runs else "pipeline compare"
        return Place(name=name, artefacts=artefacts, folders=_with_figures(folder, name, command))
    path = artefacts.project / name
    if not path.is_dir():
        known = _known(runs, artefacts)
        expected = f"expected {', '.join(known)}, or a folder of another project or of its runs"
        raise InputError(f"run {name!r} is not known: {' '.join(filter(None, (did_you_mean(name, known), expected)))}")
    if (path / "runs").is_dir():
        there = Artefacts(project=path)
        return Place(name=name, artefacts=there, folders=_with_figures(there.runs, name, "pipeline evaluate", "there"))
    folders = _with_figures(path, name, "pipeline evaluate", "in its project")
    return Place(name=name, artefacts=Artefacts(project=_project_of(path)), folders=folders)


def _with_figures(folder: Path, name: str, command: str, where: str = "") -> tuple[Path, ...]:
    """The folder itself, or those of its seeds, in their order. Raises `InputError` where none has figures of a student."""
    if Finished.is_at(folder):
        return (folder,)
    seeds = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    found = tuple(path for path in sorted(seeds, key=lambda path: int(path.name)) if Finished.is_at(path))
    if not found:
        raise InputError(
            f"run {name!r} has no figures in {folder}; expected evaluation.json or train.json there, or in a folder for each seed; run"
            f"{f' {where}' * bool(where)}: {command}"
        )
    return found


def _project_of(folder: Path) -> Path:
    """The project whose `runs` a folder is in or is. Raises `InputError` for one that is nowhere in such a folder."""
    for path in (folder.resolve(), *folder.resolve().parents):
        if path.name == "runs":
            return path.parent
    raise InputError(f"{folder} is in no project: expected a project folder, its runs, or a folder in runs/comparison")


def _known(runs: dict[str, str], artefacts: Artefacts) -> list[str]:
    """What there is to choose from here."""
    there = artefacts.runs / "comparison"
    folders = sorted(path.name for path in there.iterdir() if path.is_dir()) if there.is_dir() else []
    return [STUDENT, TEACHER, *dict.fromkeys([*runs, *(set(folders) - set(runs.values()))])]
