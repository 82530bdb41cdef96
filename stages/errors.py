"""The errors of the stages, in one tree.

    StageError               a stage cannot go on; exit code 1
    ├── ConfigError          a parameter is wrong; exit code 2
    ├── InputError           an input file, model or cache is missing or unusable
    └── Interrupted          asked to stop (SIGTERM, SIGINT); what is finished is kept; exit code 143 or 130

Every message names the thing, what was found, what was expected and the next command.
"""

from __future__ import annotations


class StageError(Exception):
    """A stage cannot go on. The message is meant for the user, on one line."""


class ConfigError(StageError):
    """A parameter has a value that is not allowed, or parameters contradict each other."""


class InputError(StageError):
    """A file, a model or a cache that a stage reads is missing or cannot be used."""


class Interrupted(StageError):
    """The stage stopped because it was asked to; everything it finished is on disk and the next start resumes."""
