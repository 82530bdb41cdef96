"""Shell completion: the script that a shell sources, and the names that a project declares.

A shell asks at every press of the key, so nothing but click and PyYAML is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

RECIPES = Path(__file__).parents[1] / "recipes"
PROGRAM, VARIABLE = "pipeline", "_PIPELINE_COMPLETE"
"""The variable is click's: by it the shell asks the program for what may come next."""

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options and names.

    It is sourced by the shell: for bash `eval "$(pipeline completion bash)"` in ~/.bashrc, for zsh the same with zsh in
    ~/.zshrc, for fish `pipeline completion fish | source` in ~/.config/fish/config.fish. Names of students, teachers, tasks
    and runs, and keys after -S, are those of params.yaml.
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(click.get_current_context().find_root().command, {}, PROGRAM, VARIABLE).source())


def declared(key: str) -> Completer:
    """Completes the names below the dotted `key` of the project's parameters."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        section: Any = _parameters(context)
        for part in key.split("."):
            section = section.get(part) if isinstance(section, dict) else None
        return _beginning(map(str, section if isinstance(section, dict) else ()), incomplete)

    return complete


def parameter_keys(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes `train.steps=` for -S; a value is not completed."""
    return _beginning((f"{key}=" for key in _leaves(_parameters(context))), incomplete)


def recipe_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the names of recipes."""
    return _beginning((folder.parent.name for folder in RECIPES.glob("*/*.yaml")), incomplete)


def _parameters(context: click.Context) -> Any:
    """What params.yaml of the project that the line names holds; nothing where there is none to be read."""
    import yaml

    project, file = context.params.get("project") or ".", context.params.get("params_file") or "params.yaml"
    try:
        return yaml.safe_load((Path(project) / file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the command itself says what is wrong with it
        return None


def _leaves(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{prefix}.{name}" if prefix else str(name))
    elif prefix:
        yield prefix


def _beginning(names: Iterator[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(incomplete)]
