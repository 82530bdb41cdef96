"""Progress on a terminal, in a log, and on ranks that say nothing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.live_progress import LiveReporter
from pipeline.progress import LINE_SECONDS, SIGN_OF_LIFE_SECONDS, PlainReporter, duration, make_reporter, show


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def plain(lines, clock):
    return PlainReporter("cache-teacher", lines.append, clock)


def test_a_quick_task_writes_one_line_when_it_is_over(plain, lines, clock):
    with plain:
        plain.begin("shards", 30, "shards")
        for _ in range(30):
            clock.now += 0.1
            plain.advance(loss=2.5)
    assert lines == ["cache-teacher: shards: 30 shards in 3.0 s, loss 2.5"]


def test_a_task_of_minutes_writes_about_a_line_per_tenth(plain, lines, clock):
    plain.begin("train", 2000, "steps")
    for _ in range(2000):
        clock.now += 0.15  # 300 s in all
        plain.advance()
    assert 8 <= len(lines) <= 10
    assert lines[0] == "cache-teacher: train: 10% (200 of 2,000 steps, 4 min 30 s left)"


def test_a_task_of_hours_shows_that_it_lives_and_does_not_flood(plain, lines, clock):
    plain.begin("train", 1_000_000, "steps")
    for _ in range(4 * 3600):
        clock.now += 1
        plain.advance()
    assert len(lines) == 4 * 3600 / SIGN_OF_LIFE_SECONDS


def test_a_task_of_unknown_length_counts(plain, lines, clock):
    plain.begin("read", None, "documents")
    clock.now = SIGN_OF_LIFE_SECONDS
    plain.advance(1234)
    assert lines == ["cache-teacher: read: 1,234 documents in 1 min 00 s"]


def test_lines_of_one_task_never_come_closer_than_the_interval(plain, lines, clock):
    plain.begin("train", 10, "steps")
    for _ in range(9):
        clock.now += LINE_SECONDS / 2
        plain.advance()
    assert len(lines) == 4


def test_a_new_task_closes_the_one_before_and_messages_carry_the_stage(plain, lines):
    plain.begin("read", 2, "files")
    plain.advance(2)
    plain.message("one file is large")
    plain.begin("write", 2, "files")
    assert lines == ["cache-teacher: one file is large", "cache-teacher: read: 2 files in 0.0 s"]


def test_a_task_cut_short_by_an_error_is_not_reported_as_done(plain, lines):
    plain.begin("read", 2, "files")
    plain.__exit__(ValueError, ValueError("broken"), None)
    assert lines == []


def test_the_summary_goes_to_stdout_in_columns(plain, capsys):
    plain.summary("student", {"parameters": 1234567, "loss": 3.77312, "from": "half"})
    assert capsys.readouterr().out == (
        "student\n  parameters  1,234,567\n  loss            3.773\n  from             half\n"
    )


def test_a_terminal_gets_a_live_line_that_gives_way_to_plain_ones(capsys):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, highlight=False)
    with LiveReporter("teacher", console) as live:
        live.begin("train", 10, "steps")
        live.advance(3, loss=2.5)
        live._bar.refresh()
        live.message("[brackets] are no markup")
        live.summary("teacher", {"loss": 2.5})
    shown = screen.getvalue()
    assert "3 of 10 steps" in shown
    assert "teacher: [brackets] are no markup" in shown
    assert "teacher: train: 3 steps in" in shown
    assert capsys.readouterr().out == "teacher\n  loss  2.5\n"


def test_only_the_first_rank_reports(capsys):
    for rank in (0, 1):
        with make_reporter("teacher", rank) as progress:
            progress.message(f"rank {rank}")
    assert capsys.readouterr().err == "teacher: rank 0\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (4.25, "4.2 s"), (59.0, "59 s"), (291.4, "4 min 51 s"), (11220, "3 h 07 min")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("figure", "text"), [(30522, "30,522"), (0.00012345, "0.0001234"), ("bf16", "bf16")])
def test_figures_are_readable(figure, text):
    assert show(figure) == text
