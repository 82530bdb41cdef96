"""Commands on one of `teachers`: whether there is such a one, and errors that name its parameters and its command."""

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
    """Errors that speak of the main teacher speak of `artefacts.further_teacher`, and are otherwise the same."""
    try:
        yield
    except ConfigError as error:
        raise moved(error, "teacher", artefacts.teacher_key) from error
    except (StageError, CacheError) as error:
        error.args = (str(error).replace(_OF_THE_MAIN_ONE, f"`{artefacts.cache_command}`"), *error.args[1:])
        raise


def require_known(project: Path, name: str) -> None:
    """Refuse a teacher that has no cache in the project and is not in its params.yaml, which need not be there.

    Raises `ConfigError` with those that are known, and what `read_params` raises.
    """
    cached = [path.name for path in (project / "cache" / "teachers").glob("*") if path.is_dir()]
    if name in cached:
        return
    params = project / "params.yaml"
    section = read_params(params).get("teachers") if params.is_file() else None
    declared = section if isinstance(section, dict) else {}
    if name not in declared:
        known = sorted({*cached, *map(str, declared)})
        raise ConfigError(
            f"teacher {name!r} has no cache in {project / 'cache' / 'teachers'} and is not in teachers; "
            + (suggest(name, known) if known else "there is none")
        )
