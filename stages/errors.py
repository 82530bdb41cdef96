"""The errors of the stages, in one tree.

    StageError               a stage cannot go on; exit code 1
    ├── ConfigError          a parameter is wrong; exit code 2
    ├── InputError           an input file, model or cache is missing or unusable
    ├── ShardError           a shard of the cache cannot be computed, which says nothing of the others
    ├── ItemsError           some of the items that are done one by one could not be done; the others are
    ├── LostWorkersError     the processes that do the work are not there, cannot do it, or are gone
    │   └── KillsWorkersError    an item ended every process that worked on it
    ├── Interrupted          asked to stop (SIGTERM, SIGINT); what is finished is kept; exit code 143 or 130
    └── SaidElsewhere        another process of the same launch ended with an error and says it; this one ends like it, silently

Every message names the thing, what was found, what was expected and the next command.
"""

from __future__ import annotations


class StageError(Exception):
    """A stage cannot go on. The message is meant for the user, on one line."""


class ConfigError(StageError):
    """A parameter has a value that is not allowed, or parameters contradict each other."""


class InputError(StageError):
    """A file, a model or a cache that a stage reads is missing or cannot be used."""


class ShardError(StageError):
    """A shard of the cache cannot be computed (no memory left, damaged tokens), which says nothing of the others."""


class ItemsError(StageError):
    """Some items could not be done; the others are done and kept, and the next start does only those."""


class LostWorkersError(StageError):
    """The processes that do a stage's work are not there, cannot do it, or are gone."""


class KillsWorkersError(LostWorkersError):
    """An item ended every process that worked on it: a crash, or no memory left."""


class Interrupted(StageError):
    """The stage stopped because it was asked to; everything it finished is on disk and the next start resumes."""


class SaidElsewhere(StageError):
    """Another process of the same launch ended with an error of this `kind` and says it: this one need not say it again."""

    def __init__(self, kind: type[Exception] = StageError) -> None:
        super().__init__(f"another process of this launch ended with {kind.__name__} and says why")
        self.kind = kind
