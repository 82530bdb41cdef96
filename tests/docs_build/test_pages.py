"""The pages of docs/reference that are written from the code."""

import re

import click
import pytest
import yaml

from docs_build import command_line, pages, parameters
from docs_build.tables import linked, table
from pipeline.cli import cli
from stages.config import load_config, to_plain
from tests.tiny import ROOT

WRITTEN = pages.written_from_code()
PARAMETERS = WRITTEN[ROOT / "docs" / "reference" / "parameters.md"]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_a_page_that_is_written_from_the_code_says_what_the_code_says(path):
    assert path.read_text(encoding="utf-8") == WRITTEN[path], "it is out of date: `make docs` writes it anew"


def rows(page):
    """Cells of every row of the tables of a page, without their heads."""
    lines = [re.split(r"(?<!\\) ?\| ?", line.strip("|").strip()) for line in page.splitlines() if line.startswith("|")]
    return [cells for cells in lines if cells[0] not in {"---", "key", "option"}]


def test_every_parameter_says_what_it_is():
    assert [cells[0] for cells in rows(PARAMETERS) if len(cells) != 5 or not cells[4]] == []


def test_every_parameter_of_the_default_is_there():
    sections = dict(re.findall(r"^##+ (\S+)\n(.*?)(?=^##|\Z)", PARAMETERS, re.MULTILINE | re.DOTALL))
    values = to_plain(load_config(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))))
    for section in ("corpus", "tokenize", "masking", "cache", "train", "evaluate", "machine"):
        leaves = {key for key, value in values[section].items() if f"{section}.{key}" not in sections}
        assert leaves <= {cells[0].strip("`") for cells in rows(sections[section])}


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("corpus.files.paths", "`corpus`"),
        ("masking.seed", "`teacher`"),
        ("cache.sequences.train", "`cache-teacher`"),
        ("cache.batch_tokens", "-"),
        ("students.NAME.layers", "`init-student`"),
        ("train.weights.kd", "`train-student`"),
        ("machine.threads", "-"),
    ],
)
def test_a_parameter_names_the_first_stage_that_it_makes_run_again(key, stage):
    section, name = key.rsplit(".", 1)
    part = PARAMETERS.split(f"# {section}\n")[1].split("\n#")[0]
    [found] = [cells[3] for cells in rows(part) if cells[0] == f"`{name}`"]
    assert found == stage


def test_every_command_and_option_is_there():
    page = command_line.page(cli)
    context = click.Context(cli)
    for name in cli.list_commands(context):
        assert f"\n## pipeline {name}\n" in page
        for option in cli.get_command(context, name).get_params(context):
            if isinstance(option, click.Option) and option.name != "help":
                assert option.opts[0] in page


def test_options_that_all_stages_have_are_listed_once():
    assert command_line.page(cli).count("`--params PATH`") == 1


def test_a_bar_within_a_cell_ends_no_cell():
    assert table(("a", "b"), [("`x | y`", "z")]) == "| a | b |\n| --- | --- |\n| `x \\| y` | z |"


def test_pages_that_the_code_names_become_links():
    assert linked("see docs/speed.md.") == "see [speed.md](../speed.md)."
    assert linked("(storage/FORMAT.md, section 4)") == "([storage/FORMAT.md](../../storage/FORMAT.md), section 4)"


def test_a_default_that_stands_in_no_file_is_in_brackets():
    page = parameters.page("machine: {device: cpu}", "stages: {}")
    assert "| `device` | text | `cpu` | - |" in page
    assert "| `threads` | integer, null | (`null`) | - |" in page
