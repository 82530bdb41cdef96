"""`pipeline` and `python -m pipeline`."""

from __future__ import annotations

import sys

import click

from pipeline.cli import cli


def main() -> None:
    """Run the command line and leave with its exit code: see `pipeline.failures` for the codes."""
    try:
        cli.main(prog_name="pipeline", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:  # Ctrl-C before a stage began
        sys.exit(130)


if __name__ == "__main__":
    main()
