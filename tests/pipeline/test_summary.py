"""Tables on a terminal, in a pipe, and where neither colours nor letters beyond ASCII are welcome."""

from __future__ import annotations

import sys

import pytest

from pipeline.summary import print_descriptions, print_summary, print_table
from tests.pipeline.terminal import LOOKS, Screen, run_piped, visible

CACHE = {
    "fingerprint": "bdb4367fdf3e",
    "positions": "test: 31,093, train: 593,573, validation: 15,567",
    "retained mass": "0.839 at T = 1.0, 0.266 at T = 2.0",
    "bytes": 204_100_322,
}
FIGURES = (
    "KL, masked",
    "KL, all",
    "agreement, masked",
    "agreement, all",
    "MLM loss",
    "masked accuracy",
    "hidden cosine",
)
RUNS = ("teacher", "student before training", "through the head", "top-k with the rest")
CYAN = "\x1b[36m"


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal of so many columns."""

    def make(columns=80, encoding="utf-8", **environment):
        for name in LOOKS:
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), **environment}.items():
            monkeypatch.setenv(name, value)
        screen = Screen(encoding)
        monkeypatch.setattr(sys, "stdout", screen)
        return screen

    return make


def comparison(value):
    return "test split", ["run", *FIGURES], [[run, *[value] * len(FIGURES)] for run in RUNS]


def lines_of_frame(screen):
    lines = visible(screen.written()).splitlines()
    assert len({len(line) for line in lines}) == 1, "the frame is a rectangle"
    return lines


def test_a_pipe_gets_a_row_a_line_in_two_columns(capsys):
    print_summary("teacher cache", CACHE)
    assert capsys.readouterr().out == (
        "teacher cache\n"
        "  fingerprint                                        bdb4367fdf3e\n"
        "  positions      test: 31,093, train: 593,573, validation: 15,567\n"
        "  retained mass                0.839 at T = 1.0, 0.266 at T = 2.0\n"
        "  bytes                                               204,100,322\n"
    )


def test_a_pipe_never_wraps_or_cuts_a_value(capsys):
    value = "word " * 100 + "end"
    print_summary("student", {"long": value})
    assert capsys.readouterr().out == f"student\n  long  {value}\n"


def test_markup_in_a_name_or_a_value_is_text(capsys):
    print_summary("[bold]", {"[red]": ":smile: [/]"})
    assert capsys.readouterr().out == "[bold]\n  [red]  :smile: [/]\n"


def test_a_pipe_of_ascii_gets_ascii_and_no_escape_codes_even_where_colours_are_forced():
    program = "from pipeline.summary import print_summary; print_summary('élève', {'loss': '1.5 ± 0.1'})"
    done = run_piped(program, PYTHONIOENCODING="ascii", FORCE_COLOR="1", COLUMNS="10")
    assert done.stdout == "?l?ve\n  loss  1.5 +/- 0.1\n"


def test_a_terminal_of_ascii_gets_a_frame_of_ascii(terminal):
    screen = terminal(encoding="ascii")
    print_summary("teacher cache", CACHE)
    assert lines_of_frame(screen)[0].startswith("+- teacher cache -")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_gets_a_frame_that_fits_with_every_word_whole(terminal, columns):
    screen = terminal(columns)
    print_summary("teacher cache", CACHE)
    lines = lines_of_frame(screen)
    assert lines[0].startswith("╭─ teacher cache ──")
    assert len(lines[0]) <= columns
    words = {word for value in CACHE.values() if isinstance(value, str) for word in value.split()}
    assert words <= set(" ".join(lines).split())


def test_a_value_wider_than_the_terminal_is_folded_and_not_cut(terminal):
    screen, digest = terminal(60), "0123456789abcdef" * 4
    print_summary("student", {"root": digest})
    lines = lines_of_frame(screen)
    assert len(lines[0]) <= 60
    assert "".join(line.replace("root", "").strip("│ ") for line in lines[1:-1]) == digest


def test_a_terminal_gets_colours_unless_they_are_unwanted(terminal):
    sober = terminal(NO_COLOR="1")
    print_summary("teacher cache", CACHE)
    assert CYAN not in sober.written()
    coloured = terminal()
    print_summary("teacher cache", CACHE)
    assert CYAN in coloured.written()


RECIPES = {
    "default": "The [embedded] default: no download.",
    "distilbert-cased": "DistilBERT cased: 12 -> 6 layers. " * 3,
}


def test_a_pipe_gets_a_name_and_what_it_stands_for_on_a_line(capsys):
    print_descriptions("recipes", {"default": RECIPES["default"], "bilstm": "A BiLSTM."})
    assert capsys.readouterr().out == (
        "recipes\n  default  The [embedded] default: no download.\n  bilstm   A BiLSTM.\n"
    )


def test_a_terminal_keeps_names_whole_and_wraps_what_they_stand_for(terminal):
    screen = terminal(60)
    print_descriptions("recipes", RECIPES)
    lines = lines_of_frame(screen)
    assert len(lines[0]) <= 60
    inside = [line.strip("│ ") for line in lines[1:-1]]
    assert inside[0] == "default           The [embedded] default: no download."
    assert sum("distilbert-cased" in line for line in inside) == 1
    assert " ".join(" ".join(inside).split()).count("12 -> 6 layers.") == 3


def test_results_stand_side_by_side_with_headers_wrapped_to_the_values(capsys):
    print_table("test split", ["run", "masked accuracy", "steps"], [["teacher", 0.35, 2000], ["untrained", "-", 0]])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "test split",
        "               masked",
        "  run        accuracy  steps",
        "  --------------------------",
        "  teacher        0.35  2,000",
        "  untrained         -      0",
    ]


def test_eight_columns_of_figures_fit_into_a_hundred(capsys):
    print_table(*comparison(0.18012))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.count("0.1801") for line in lines if "0.1801" in line] == [len(FIGURES)] * len(RUNS)


def test_a_pipe_keeps_a_run_of_a_comparison_on_one_line(capsys):
    print_table(*comparison("0.180 ± 0.002"))
    rows = [line for line in capsys.readouterr().out.splitlines() if "±" in line]
    assert [row.count("0.180 ± 0.002") for row in rows] == [len(FIGURES)] * len(RUNS)


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 160])
def test_a_terminal_breaks_values_of_a_comparison_before_the_spread_only(terminal, columns):
    screen = terminal(columns)
    print_table(*comparison("0.180 ± 0.002"))
    lines = lines_of_frame(screen)
    assert len(lines[0]) <= max(columns, 82), "seven stacked figures are not to be had in less than 82"
    shown = "\n".join(lines)
    assert shown.count("0.180") == shown.count("± 0.002") == len(FIGURES) * len(RUNS)
    assert ("0.180 ± 0.002" in shown) == (columns >= 120)


def test_a_comparison_of_nothing_has_its_headers(capsys):
    print_table("test split", ["run", "loss"], [])
    assert capsys.readouterr().out.split() == ["test", "split", "run", "loss", "---------"]
