"""The examples at the end of --help, and what a mistyped name is answered with."""

import re
import shlex

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.examples import EXAMPLES

LINES = [(name, line) for name, lines in EXAMPLES.items() for line in lines]


def arguments_of(line):
    """The words after `pipeline`, in whatever a shell wraps around it."""
    words = shlex.split(re.sub(r"^eval \"\$\((.*)\)\"$", r"\1", line).split(" | ")[0])
    return words[words.index("pipeline") + 1 :]


def commands(group, path=()):
    for name, command in group.commands.items():
        yield " ".join((*path, name))
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_every_command_has_examples_and_every_example_a_command():
    assert set(commands(cli)) == set(EXAMPLES)


@pytest.mark.parametrize(("name", "line"), LINES, ids=[line for _, line in LINES])
def test_an_example_is_understood_and_is_of_its_command(name, line):
    arguments, command, path = arguments_of(line), cli, []
    while isinstance(command, click.Group):
        with command.make_context(command.name or "pipeline", list(arguments)) as context:
            child, command, arguments = command.resolve_command(context, arguments)
        path.append(child)
    assert " ".join(path).startswith(name)
    with command.make_context(path[-1], arguments):  # parses; raises UsageError
        pass


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_help_ends_with_the_examples_as_they_are_typed(name):
    shown = CliRunner().invoke(cli, [*name.split(), "--help"]).output
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[lines.index("Examples:") + 1 :] == list(EXAMPLES[name])


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["cache-techer"], "cache-teacher"),
        (["train_student"], "train-student"),
        (["cache", "verfy"], "verify"),
        (["train-student", "--dry-rn"], "--dry-run"),
    ],
)
def test_a_mistyped_command_or_option_is_answered_with_the_one_that_is_meant(arguments, meant):
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert re.search(f"Did you mean .*{meant}", done.output)
