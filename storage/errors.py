"""The errors of the cache, in one tree.

    CacheError                    anything wrong with a cache; exit code 1
    ├── FormatError               a format version or feature that this reader does not know
    ├── IncompleteError           not finished: no root manifest, or shards are missing
    ├── CorruptError              a file is missing, truncated, changed, or holds fill values
    ├── MismatchError             another cache than the one expected; `fields` says in what
    ├── InvalidTargetsError       what is to be stored is not fit to be stored (NaN, too large, wrong shape)
    ├── WriteError                the disk is full, or nothing may be written there
    ├── LockedError               another process writes this cache; exit code 75
    └── RemoteError               a remote root does not answer, refuses, or lacks what was asked for

Every message names the file or shard, what was found, what was expected and the next command.
"""

from __future__ import annotations

FETCH_AGAIN = "fetch its folder again (`dvc checkout --force FOLDER` or `dvc pull --force FOLDER`)"
"""What to do first about a file that is damaged here, and whole where DVC keeps it."""
FETCH_OR_MAKE_AGAIN = f"{FETCH_AGAIN} or run `pipeline cache-teacher`"


def make_or_fetch(command: str = "pipeline cache-teacher") -> str:
    """What to do where there is no cache; `command` makes the one that is meant."""
    return f"make one with `{command}` or fetch one with `dvc pull` or `pipeline cache pull URL`"


class CacheError(Exception):
    """Anything wrong with a cache. The message is meant for the user, on one line."""


class FormatError(CacheError):
    """The cache needs a newer reader."""


class IncompleteError(CacheError):
    """The cache is not finished."""


class CorruptError(CacheError):
    """A file of the cache is not what its manifest says."""


class MismatchError(CacheError):
    """The cache is another one than expected."""

    def __init__(self, message: str, fields: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.fields = fields


class InvalidTargetsError(CacheError):
    """Targets that must not be stored; nothing was published."""


class WriteError(CacheError):
    """The system refused to write; nothing half-written is left in place of anything."""


class LockedError(CacheError):
    """Another process holds the work folder."""


class RemoteError(CacheError):
    """A remote root does not answer, refuses, or lacks what was asked for; what was copied before is kept."""
