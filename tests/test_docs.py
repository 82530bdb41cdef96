"""What README.md and docs/ say can be typed, can be typed.

Every `pipeline` command and option and every `make` target that a document names must exist, wherever it is named. And the
README's commands are run, in their order, in one tiny project. What is run is decided by these rules:

- Only fenced blocks marked `console` or `bash` are run; a block marked `text` (or anything else) is not.
- In a block, a line that starts with `$ ` is a command; all other lines are output, and are not compared.
- Of the commands only those that begin with `pipeline` or `dvc` are run (not `make`, `git`, `pip`, `torchrun`).
- A command ending in `# not run` is skipped: for what needs a second machine or a real remote.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from pipeline.cli import cli
from tests.pipeline.repository import Repository
from tests.tiny import ROOT

README = ROOT / "README.md"
DOCUMENTS = [
    path for path in (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.is_file()
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
NOT_RUN = "# not run"
PROMPT = re.compile(r"\w*\$ ")  # `$ `, or with the name of a machine where there are several


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of every fenced block."""
    for match in FENCE.finditer(text):
        yield match[1], match[2]


def named_commands(text: str) -> Iterator[str]:
    """Every command line that a document names: the lines of fenced blocks that begin with a prompt, and inline code."""
    for _, content in blocks(text):
        yield from (line[prompt.end() :] for line in content.splitlines() if (prompt := PROMPT.match(line)))
    yield from CODE_SPAN.findall(FENCE.sub("", text))


def commands_to_run(text: str) -> list[str]:
    """The commands of a document that the rules above select."""
    lines = [
        line for language, content in blocks(text) if language in {"console", "bash"} for line in content.splitlines()
    ]
    commands = [line.removeprefix("$ ").strip() for line in lines if line.startswith("$ ")]
    return [c for c in commands if c.split()[0] in {"pipeline", "dvc"} and not c.endswith(NOT_RUN)]


def unknown_parts(command_line: str) -> list[str]:
    """Command and option names in a `pipeline ...` line that the command line does not have."""
    words = [word for word in shlex.split(command_line, comments=True) if word not in {"...", "…"}]
    if words[:3] == ["python", "-m", "pipeline"]:
        words = words[2:]
    if not words or words[0] != "pipeline" or len(words) == 1:
        return []
    context = click.Context(cli)
    command: click.Command | None = cli
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, *rest = rest
        command = command.get_command(context, name)
        if command is None:
            return [name]
    assert command is not None
    known = {name for parameter in command.get_params(context) for name in (*parameter.opts, *parameter.secondary_opts)}
    return [word for word in rest if re.match(r"--?[a-zA-Z]", word) and word.split("=")[0] not in known]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_pipeline_command_and_option_that_is_named_exists(path):
    named = [line for line in named_commands(path.read_text(encoding="utf-8")) if "pipeline" in line.split()[:3]]
    wrong = {line: unknown for line in named if (unknown := unknown_parts(line))}
    assert not wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_that_is_named_exists(path):
    lines = named_commands(path.read_text(encoding="utf-8"))
    named = {words[1] for line in lines if (words := line.split())[0] == "make" and len(words) > 1}
    assert {name for name in named if not re.match(r"-|\w+=", name)} <= make_targets()


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("pipeline train-student -S train.steps=3 --debug", []),
        ("pipeline init-student half", []),
        ("python -m pipeline evaluate --project there", []),
        ("pipeline --version", []),
        ("pipeline", []),
        ("dvc repro --pull", []),
        ("pipeline cache verify --deep", []),
        ("pipeline cache", []),
        ("pipeline train", ["train"]),
        ("pipeline cache verfy", ["verfy"]),
        ("pipeline cache info --deep", ["--deep"]),
        ("pipeline corpus --steps 3", ["--steps"]),
    ],
)
def test_an_unknown_command_or_option_is_noticed(line, unknown):
    assert unknown_parts(line) == unknown


def test_what_is_run_follows_the_rules():
    text = (
        "```console\n$ pipeline corpus\nsome output\n$ make demo\n$ dvc push  # not run\n```\n"
        "```text\n$ pipeline evaluate\n```\n```bash\n$ dvc status\n```\n`pipeline tokenize`\n"
    )
    assert commands_to_run(text) == ["pipeline corpus", "dvc status"]


@pytest.mark.skipif(not README.is_file(), reason="there is no README.md")
def test_the_commands_of_the_readme_run_in_a_tiny_project(tmp_path):
    repository = Repository.create(tmp_path / "project")
    repository.dvc("remote", "add", "--default", "shared", str(tmp_path / "remote"))
    commands = commands_to_run(README.read_text(encoding="utf-8"))
    assert commands, "README.md shows no command that this test can run"
    for command in commands:
        repository.run(*shlex.split(command, comments=True))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_place_is_left_to_be_filled_in(path):
    assert not re.findall(r"^[A-Z]{3,}_[A-Z_]+$", path.read_text(encoding="utf-8"), re.MULTILINE)
