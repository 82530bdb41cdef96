"""From the errors of stages and storage to one line on stderr and an exit code.

    0    done
    1    failed                          StageError, CacheError, OSError (a full disk, a missing permission)
    2    wrong usage or parameters       click.UsageError, ConfigError
    75   another process has the lock    LockedError (EX_TEMPFAIL: try again later)
    130  interrupted by SIGINT           Interrupted; the same command resumes
    143  interrupted by SIGTERM          Interrupted; the same command resumes

Anything else is a bug and keeps its traceback. An interrupt never ends with 0: DVC would record a partial output. The processes
of one launch end with the same code, and one of them says why.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from pipeline.stop import StopRequest
from stages.errors import ConfigError, Interrupted, SaidElsewhere, StageError
from storage.errors import CacheError, LockedError


def exit_code(error: Exception, stop: StopRequest) -> int:
    """The exit code for an error of the table above."""
    kind = error.kind if isinstance(error, SaidElsewhere) else type(error)
    if issubclass(kind, Interrupted):
        return stop.exit_code
    if issubclass(kind, ConfigError):
        return 2
    return 75 if issubclass(kind, LockedError) else 1


@contextmanager
def reported(stop: StopRequest, *, debug: bool) -> Iterator[None]:
    """Leave the process with a line and a code for the errors of the table above; `debug` shows tracebacks too."""
    try:
        yield
    except SaidElsewhere as error:
        raise SystemExit(exit_code(error, stop)) from error
    except (StageError, CacheError, OSError) as error:
        if debug:
            traceback.print_exc()
        click.echo(f"error: {error or type(error).__name__}", err=True)
        raise SystemExit(exit_code(error, stop)) from error
