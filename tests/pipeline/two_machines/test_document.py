"""docs/two-machines.md is done as its readers do it, each at a machine of their own.

- Each section with `console` blocks begins with two new machines; on the teacher's is the tiny project (`tests/tiny.py`), committed.
- A line that begins with `teacher$ ` or `student$ ` is a command, run there; `cd` and `export` count for what follows. The lines below it
  are its output: their labels have to come in this order, whatever the figures (`tests/shown.py`).
- While the student's machine works, the teacher's is switched off: nothing of it can be reached.
"""

from __future__ import annotations

import re
import shlex
from contextlib import nullcontext

import pytest

from tests.pipeline.repository import Repository
from tests.shown import FENCE, missing
from tests.tiny import ROOT, write_project

DOCUMENT = ROOT / "docs" / "two-machines.md"
URL = "https://git.example.org/me/my-student.git"
"""What the document calls the git repository that both machines reach."""
COMMAND = re.compile(r"^(teacher|student)\$ ", re.MULTILINE)


def sections():
    """The blocks of each section that has commands, by its heading."""
    found = {}
    for section in DOCUMENT.read_text(encoding="utf-8").split("\n## ")[1:]:
        blocks = [block for language, block in FENCE.findall(section) if language == "console"]
        if blocks:
            found[section.partition("\n")[0]] = blocks
    return found


class Reader:
    """Somebody at a machine, in a folder, with the variables that were exported there."""

    def __init__(self, machine, hub):
        self.machine, self.shell = machine, machine.at(".")
        self.shell.run("git", "config", "--global", f"url.{hub}.insteadOf", URL)

    def type(self, command):
        words = shlex.split(command, comments=True)
        match words:
            case ["cd", folder]:
                self.shell.folder /= folder
            case ["export", setting]:
                name, _, value = setting.partition("=")
                self.shell.environment[name] = value
            case _:
                return self.shell.run(*words).stdout
        return ""


def begin(teacher):
    """The project on the teacher's machine, as the tutorial leaves it before the cache; its text stays there."""
    folder = teacher.machine.at("my-student").folder
    write_project(folder)
    with (folder / ".gitignore").open("a", encoding="utf-8") as ignored:
        ignored.write("/text/\n")
    project = Repository(folder, teacher.machine.environment)
    project.git("init", "-q")
    project.git("remote", "add", "origin", URL)
    project.dvc("init", "-q")
    project.commit("a project")
    project.git("push", "-q", "--set-upstream", "origin", "main")
    teacher.type("cd my-student")


def do(blocks, place):
    """Both readers do a section; they end where its commands lead."""
    readers = {"teacher": Reader(place.teacher, place.hub), "student": Reader(place.student, place.hub)}
    begin(readers["teacher"])
    for block in blocks:
        for name, part in zip(*[iter(COMMAND.split(block)[1:])] * 2, strict=True):
            command, _, shown = part.partition("\n")
            with place.teacher.switched_off() if name == "student" else nullcontext():
                output = readers[name].type(command)
            assert missing(shown, output) == [], f"{command} said:\n{output}"
    return readers["teacher"].shell, readers["student"].shell


@pytest.mark.campaign
def test_each_way_of_the_document_leads_to_the_student_that_the_teachers_machine_would_train(new_place):
    students = {}
    for heading, blocks in sections().items():
        teacher, student = do(blocks, new_place("document"))
        students[heading] = student.student()
        assert not (student.folder / "data").exists()
        assert not (student.folder / "text").exists()
        assert not (student.folder / "models" / "teacher").exists()
        if "TEACHER_CACHE_ROOT" not in teacher.environment:
            teacher.run("pipeline", "train-student")
            assert students[heading] == teacher.student()
    assert len(students) == 3
    assert len(set(students.values())) == 1
