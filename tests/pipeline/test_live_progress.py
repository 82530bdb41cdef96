"""The live line: drawn on one line, gone when a task is over, and no trace of it where a stage ends badly."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.live_progress import LiveReporter
from tests.pipeline.clock import Clock
from tests.pipeline.terminal import ERASE_LINE, HIDE_CURSOR, SHOW_CURSOR, run_on_terminal, visible

PROGRAM = """
import sys
from pipeline.progress import make_reporter
with make_reporter("teacher") as progress:
    progress.begin("train the teacher", 10, "steps")
    progress.advance(3, loss=2.5)
    progress.message("[brackets] are no markup")
    progress.begin("evaluate the teacher", 1, "sequences")
    progress.advance()
    {end}
"""


@pytest.fixture
def clock():
    return Clock()


def live(clock, width):
    """A reporter on a screen of so many columns, and a function that gives the newest state of its line."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    reporter = LiveReporter("cache-teacher", console, clock)

    def line():
        screen = Console(file=io.StringIO(), force_terminal=True, width=width)
        screen.print(reporter._draw())
        return visible(screen.file.getvalue()).removesuffix("\n")

    return reporter, line


def after_bar(line):
    return line.rpartition("━ ")[2].strip()


def test_the_line_counts_units_and_the_time_left(clock):
    reporter, line = live(clock, 120)
    with reporter:
        reporter.begin("cache the teacher", 640_233, "tokens")
        assert after_bar(line()) == "0 of 640,233 tokens"
        clock.now = 10
        reporter.advance(64_023, shards="4 of 40", megabytes=5.23)
        assert line().startswith("cache the teacher ━")
        assert after_bar(line()) == "64,023 of 640,233 tokens, 6,402 tokens/s, 1 min 30 s left, shards 4 of 40"
        clock.now = 30
        assert "1 min 10 s left" in line(), "time passes between two advances"
        clock.now = 300
        assert "0.0 s left" in line()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_line_never_breaks(clock, width):
    reporter, line = live(clock, width)
    with reporter:
        for task in ("train", "a name that somebody has made " + "very " * 20 + "long"):
            reporter.begin(task, 2000, "steps")
            clock.now += 10
            reporter.advance(200, loss=8.828, kd=0.0456, mlm=3.912, cos=0.0927)
            assert "\n" not in line()
            assert len(line()) <= width
    assert all(len(shown) <= width for shown in visible(reporter._console.file.getvalue()).splitlines())


@pytest.mark.parametrize(
    ("width", "name", "rate"),
    [(120, "cache the teacher ", True), (80, "cache th... ", True), (60, "cach... ", False)],
)
def test_figures_then_the_name_and_then_the_rate_give_way_to_the_counts(clock, width, name, rate):
    reporter, line = live(clock, width)
    with reporter:
        reporter.begin("cache the teacher", 640_233, "tokens")
        clock.now = 10
        reporter.advance(64_023, loss=8.828)
        assert line().startswith(name)
        counts = f"64,023 of 640,233 tokens, {'6,402 tokens/s, ' if rate else ''}1 min 30 s left"
        assert after_bar(line()).startswith(counts)
        assert after_bar(line()) == (f"{counts}, loss 8.828" if width == 120 else counts)


def test_a_task_of_unknown_length_shows_what_is_done(clock):
    reporter, line = live(clock, 80)
    with reporter:
        reporter.begin("read files", None, "files")
        clock.now = 4
        reporter.advance(1)
        assert after_bar(line()) == "1 file in 4.0 s, 4.0 s per file"


def test_on_a_terminal_the_table_comes_after_the_live_line_is_gone():
    code, written = run_on_terminal(PROGRAM.format(end="progress.summary('teacher', {'loss': 2.5})"), 80)
    assert code == 0
    assert "3 of 10 steps" in written
    live_part, _, table = written.rpartition(ERASE_LINE)
    assert HIDE_CURSOR in live_part
    assert HIDE_CURSOR not in table
    assert visible(table).startswith("teacher: evaluate the teacher: 1 sequence in ")
    assert visible(table).splitlines()[1:] == ["╭─ teacher ─╮", "│ loss  2.5 │", "╰───────────╯"]
    assert "teacher: [brackets] are no markup\n" in visible(written)
    assert "teacher: train the teacher: 3 steps in " in visible(written)


@pytest.mark.parametrize(
    "end", ["raise SystemExit('error: no room')", "print('error: no room', file=sys.stderr); raise SystemExit(1)"]
)
def test_a_failure_leaves_the_cursor_and_no_half_line(end):
    code, written = run_on_terminal(PROGRAM.format(end=end), 80)
    assert code == 1
    assert written.rindex(SHOW_CURSOR) > written.rindex(HIDE_CURSOR)
    assert visible(written.rpartition(ERASE_LINE)[2]) in {"", "error: no room\n"}
    assert "error: no room\n" in written
