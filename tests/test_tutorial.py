"""docs/tutorial.md is done as its reader does it, with smaller sizes.

- The sizes of `SMALL` take the place of the tutorial's.
- In `console` blocks lines that begin with `$ ` are commands, run one after the other; `cd` counts for what follows. The lines below
  a command are its output: their labels (all before two spaces) have to come in this order, whatever the figures. `...` stands for
  any lines.
- `yaml` blocks begin with the name of a file, and are merged into it.
- `python` blocks are run in the project; a `text` block that follows is what one prints.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import yaml

from stages.config.base import merged
from tests.pipeline.repository import GIT, Repository
from tests.shown import FENCE, labels, missing
from tests.tiny import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"
SMALL = {
    "corpus": {"max_documents": 400},
    "tokenize": {"train": {"vocabulary_size": 300}},
    "teacher": {
        "train": {"steps": 6, "float32_steps": 6, "hidden_size": 32, "feed_forward_size": 64, "warmup_steps": 2}
    },
    "cache": {"sequences": {"train": 64, "validation": 8, "test": 8}},
    "train": {"warmup_steps": 2},
    "machine": {"device": "cpu", "threads": 1},
}
STEPS = {100: 4, 200: 6}
"""Of the student, by those of the tutorial."""


def test_a_line_that_is_shown_has_to_come_in_its_place():
    assert missing("a  1\n...\nc, 20 of them  2\n", "a  3\nb\nc, 7 of them  4\n") == []
    assert missing("c  1\na  1\n", "a  3\nc  4\n") == ["a"]


class Reader:
    """Does what the tutorial says, in a folder."""

    def __init__(self, folder):
        self.shell = Repository(folder)
        self.printed = ""

    def console(self, block):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            words = shlex.split(command)
            if words[0] == "cd":
                self.shell.folder /= words[1]
                continue
            if words[0] == "git":
                words = ["git", *GIT, *words[1:]]
            output = self.shell.run(*words).stdout
            assert missing(shown, output) == [], f"{command} said:\n{output}"

    def yaml(self, block):
        name = block.partition("\n")[0].removeprefix("# ")
        values = merged(self.load(name), yaml.safe_load(block))
        if name == "params.yaml":
            values = merged(values, SMALL)
            values["train"]["steps"] = STEPS[values["train"]["steps"]]
            values["students"].pop("half-random", None)  # the recipe's for `pipeline compare`, which nobody trains here
        (self.shell.folder / name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def load(self, name):
        return yaml.safe_load((self.shell.folder / name).read_text(encoding="utf-8"))

    def python(self, block):
        self.printed = self.shell.run(sys.executable, "-W", "error", "-c", block).stdout

    def text(self, block):
        if self.printed:  # after a library's bar of progress, where there is one
            assert labels(self.printed)[-len(block.splitlines()) :] == labels(block)


def test_the_tutorial_leads_to_two_students(tmp_path):
    tmp_path.joinpath("reader").mkdir()
    reader = Reader(tmp_path / "reader")
    for kind, block in FENCE.findall(TUTORIAL.read_text(encoding="utf-8")):
        getattr(reader, kind)(block)
    project = reader.shell.folder
    assert project.name == "my-student"
    assert (project / "report" / "index.html").is_file()
    log = subprocess.run(["git", "log", "--oneline"], cwd=project, check=True, capture_output=True, text=True).stdout
    assert len(log.splitlines()) == 1
    assert reader.shell.json("runs/train.json")["steps"] == STEPS[200]
