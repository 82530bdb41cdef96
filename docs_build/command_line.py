"""The page of the command line, from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from docs_build.tables import linked, table

HEAD = """# Command line

Written from the code by `make docs`; `--help` of each command says the same.

{help}

## Options of every stage

Each command that runs a stage has these too; `pipeline init` and `pipeline cache` have their own alone.

{shared}
"""


def page(cli: click.Group) -> str:
    """The Markdown of all commands of a group, in its order."""
    commands = dict(_commands(cli, "pipeline"))
    stages = [command for command in commands.values() if _is_stage(command)]
    shared = [option for option in _options(stages[0]) if all(option.name in _names(stage) for stage in stages)]
    parts = [HEAD.format(help=_prose(cli), shared=_table_of(shared))]
    for name, command in commands.items():
        own = [option for option in _options(command) if not (_is_stage(command) and option.name in _of(shared))]
        parts += [f"## {name}\n", f"```text\n{name} {_usage(command)}\n```\n", _prose(command) + "\n"]
        if own:
            parts.append(_table_of(own) + "\n")
    return "\n".join(parts)


def _commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for child in group.list_commands(context):
        command = group.get_command(context, child)
        assert command is not None
        if isinstance(command, click.Group):
            yield f"{name} {child}", command
            yield from _commands(command, f"{name} {child}")
        else:
            yield f"{name} {child}", command


def _is_stage(command: click.Command) -> bool:
    """Whether it takes parameters from params.yaml."""
    return "overrides" in _names(command)


def _options(command: click.Command) -> list[click.Option]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def _of(options: list[click.Option]) -> set[str | None]:
    return {option.name for option in options}


def _names(command: click.Command) -> set[str | None]:
    return _of(_options(command))


def _usage(command: click.Command) -> str:
    return " ".join(command.collect_usage_pieces(click.Context(command)))


def _prose(command: click.Command) -> str:
    """The help text, one line a paragraph."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return linked("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))


def _table_of(options: list[click.Option]) -> str:
    return table(("option", "what it does", "default"), [_row(option) for option in options])


def _row(option: click.Option) -> tuple[str, str, str]:
    names = ", ".join(option.opts)
    if not option.is_flag:
        names += f" {option.make_metavar(click.Context(click.Command('pipeline')))}"
    text = option.help or ""
    if isinstance(option.envvar, str):
        text += f" Or by the environment: `{option.envvar}`."
    shown = option.show_default and option.default is not None and not option.is_flag
    return f"`{names}`", linked(text), f"`{option.default}`" if shown else ""
