"""Commands on the cache of one of `teachers` or of a task: whether there is such a one, and errors that name its command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.params import read_params
from stages.config.base import moved, suggest
from stages.context import Artefacts
from stages.errors import ConfigError, StageError
from storage.errors import CacheError

_OF_THE_MAIN_ONE = "`pipeline cache-teacher`"
"""How errors of storage, which knows no teachers, call what makes a cache."""


@contextmanager
def speaking_of(artefacts: Artefacts) -> Iterator[None]:
    """Errors that speak of the main teacher speak of `artefacts.further_teacher` or `artefacts.task`, and are otherwise the same."""
    try:
        yield
    except ConfigError as error:
        if artefacts.task is not None:
            raise
        raise moved(error, "teacher", artefacts.teacher_key) from error
    except (StageError, CacheError) as error:
        error.args = (str(error).replace(_OF_THE_MAIN_ONE, f"`{artefacts.cache_command}`"), *error.args[1:])
        raise


def require_known_task(project: Path, name: str) -> None:
    """Refuse a task that has no cache in the project and is not in its params.yaml, as `require_known` does a teacher."""
    _require_known(project / "cache" / "tasks", name, "task", "finetune.tasks", project / "params.yaml")


def require_known(project: Path, name: str) -> None:
    """Refuse a teacher that has no cache in the project and is not in its params.yaml, which need not be there.

    Raises `ConfigError` with those that are known, and what `read_params` raises.
    """
    _require_known(project / "cache" / "teachers", name, "teacher", "teachers", project / "params.yaml")


def _require_known(caches: Path, name: str, what: str, key: str, params: Path) -> None:
    cached = [path.name for path in caches.glob("*") if path.is_dir()]
    if name in cached:
        return
    section: object = read_params(params) if params.is_file() else None
    for part in key.split("."):
        section = section.get(part) if isinstance(section, dict) else None
    declared = section if isinstance(section, dict) else {}
    if name not in declared:
        known = sorted({*cached, *map(str, declared)})
        raise ConfigError(
            f"{what} {name!r} has no cache in {caches} and is not in {key}; "
            + (suggest(name, known) if known else "there is none")
        )
