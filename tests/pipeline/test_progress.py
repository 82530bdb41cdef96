"""Progress on a terminal, in a log, and on ranks that say nothing."""

from __future__ import annotations

import pytest

from pipeline.progress import (
    LINE_SECONDS,
    SIGN_OF_LIFE_SECONDS,
    LineReporter,
    PlainReporter,
    Task,
    counted,
    duration,
    make_reporter,
    rate,
    show,
)
from tests.pipeline.clock import Clock
from tests.pipeline.terminal import run_on_terminal, run_piped

STAGE = """
from pipeline.progress import make_reporter
with make_reporter("teacher") as progress:
    progress.message("from caf\\xe9")
    progress.begin("train", 1, "steps")
    progress.advance()
    progress.summary("teacher", {"loss": "2.5 \\xb1 0.1"})
"""


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
    assert len(lines) == 1
    assert lines[0].startswith("cache-teacher: shards: 30 shards in 3.0 s")
    assert lines[0].endswith(", loss 2.5")


def test_a_task_of_minutes_writes_about_a_line_per_tenth(plain, lines, clock):
    plain.begin("train", 2000, "steps")
    for _ in range(2000):
        clock.now += 0.15  # 300 s in all
        plain.advance()
    assert 8 <= len(lines) <= 10
    assert lines[0] == "cache-teacher: train: 10% (200 of 2,000 steps, 6.7 steps/s, 4 min 30 s left)"


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
    assert lines == ["cache-teacher: read: 1,234 documents in 1 min 00 s, 21 documents/s"]


def test_lines_of_one_task_never_come_closer_than_the_interval(plain, lines, clock):
    plain.begin("train", 10, "steps")
    for _ in range(9):
        clock.now += LINE_SECONDS / 2
        plain.advance()
    assert len(lines) == 4


def test_a_new_task_closes_the_one_before_and_messages_carry_the_stage(plain, lines):
    plain.begin("read", 2, "files")
    plain.advance(1)
    plain.message("one file is large")
    plain.begin("write", 2, "files")
    assert lines == ["cache-teacher: one file is large", "cache-teacher: read: 1 file in 0.0 s"]


def test_a_task_cut_short_by_an_error_is_not_reported_as_done(plain, lines):
    plain.begin("read", 2, "files")
    plain.__exit__(ValueError, ValueError("broken"), None)
    assert lines == []


def test_a_long_task_tells_its_rate(plain, lines, clock):
    plain.begin("cache the teacher", 640_000, "tokens")
    clock.now = 100
    plain.advance(640_000)
    plain.begin("next", 1, "steps")
    assert lines[-1] == "cache-teacher: cache the teacher: 640,000 tokens in 1 min 40 s (6,400 tokens/s)"


def test_what_an_earlier_run_did_counts_for_the_share_and_not_for_the_speed(plain, lines, clock):
    plain.begin("train", 2000, "steps", done=1500)
    clock.now = SIGN_OF_LIFE_SECONDS
    plain.advance(300)
    assert lines == ["cache-teacher: train: 90% (1,800 of 2,000 steps, 5.0 steps/s, 40 s left)"]
    clock.now += 40
    plain.advance(200)
    plain.begin("next", 1, "steps")
    assert lines[-1] == "cache-teacher: train: 2,000 steps, the last 500 in 1 min 40 s (5.0 steps/s)"


def advanced(task, *advances):
    """What is said of it after some (seconds since the start, units)."""
    for now, amount in advances:
        task.advance(amount, {}, now)
    return task.amount(advances[-1][0])


def test_the_time_until_the_first_unit_slows_nothing_down_once_there_are_others():
    task = Task("cache the teacher", 1000, "tokens", started=0.0)
    assert advanced(task, (110.0, 100)) == "100 of 1,000 tokens, 1.1 s per token, 16 min 30 s left"
    assert advanced(task, (130.0, 100)) == "200 of 1,000 tokens, 5.0 tokens/s, 2 min 40 s left"
    assert advanced(task, (140.0, 50)) == "250 of 1,000 tokens, 5.0 tokens/s, 2 min 30 s left"


def test_first_units_that_workers_bring_together_are_no_sign_of_speed():
    task = Task("cache the teacher", 1600, "tokens", started=0.0)
    together = [(20.0 + 0.1 * worker, 100) for worker in range(4)]
    assert advanced(task, *together) == "400 of 1,600 tokens, 20 tokens/s, 1 min 01 s left"
    assert advanced(task, (24.0, 100)) == "500 of 1,600 tokens, 27 tokens/s, 41 s left"


def test_a_rate_is_shown_only_after_seconds():
    task = Task("train", 100, "steps", started=0.0)
    assert advanced(task, (0.5, 1), (1.5, 1)) == "2 of 100 steps, 1 min 38 s left"
    assert advanced(task, (3.5, 2)) == "4 of 100 steps, 1.0 steps/s, 1 min 36 s left"


def test_tables_go_to_stdout_after_the_line_of_the_task(plain, lines, capsys):
    plain.begin("read", 1, "files")
    plain.advance()
    plain.summary("student", {"loss": 3.77312})
    assert lines == ["cache-teacher: read: 1 file in 0.0 s"]
    plain.table("test split", ["run", "loss"], [["half", 3.77312]])
    assert capsys.readouterr().out == (
        "student\n  loss  3.773\ntest split\n  run    loss\n  -----------\n  half  3.773\n"
    )


def test_progress_goes_to_stderr_and_figures_to_stdout():
    done = run_piped(STAGE, PYTHONIOENCODING="ascii")
    assert done.stdout == "teacher\n  loss  2.5 +/- 0.1\n"
    message, task = done.stderr.splitlines()
    assert message == "teacher: from caf\\xe9"
    assert task.startswith("teacher: train: 1 step in ")


def test_a_terminal_that_cannot_redraw_gets_plain_lines():
    code, written = run_on_terminal(STAGE, 80, TERM="dumb")
    assert code == 0
    assert "\x1b" not in written
    assert "teacher: train: 1 step in " in written


def test_nothing_is_drawn_before_there_is_something_to_show():
    program = (
        "import sys\nfrom pipeline.progress import make_reporter\nmake_reporter('x')\nprint('rich' in sys.modules)"
    )
    assert run_piped(program).stdout == "False\n"


def test_only_the_first_rank_reports(capsys):
    for rank in (0, 1):
        with make_reporter("teacher", rank) as progress:
            progress.message(f"rank {rank}")
            progress.table("ranks", ["rank"], [[rank]])
    shown = capsys.readouterr()
    assert shown.err == "teacher: rank 0\n"
    assert "0" in shown.out
    assert "1" not in shown.out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (4.25, "4.2 s"), (59.0, "59 s"), (291.4, "4 min 51 s"), (11220, "3 h 07 min")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (30522, "30,522"),
        (0.00012345, "0.0001234"),
        (12345.6, "12,346"),
        (-0.5, "-0.5"),
        (float("nan"), "nan"),
        (True, "True"),
        ("bf16", "bf16"),
    ],
)
def test_figures_are_readable(figure, text):
    assert show(figure) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 steps"), (1, "1 step"), (2000, "2,000 steps")])
def test_one_unit_is_said_in_the_singular(number, text):
    assert counted(number, "steps") == text


@pytest.mark.parametrize(
    ("number", "seconds", "text"),
    [
        (640_233, 50, "12,805 tokens/s"),
        (160, 50, "3.2 tokens/s"),
        (10, 42, "4.2 s per token"),
        (50, 50, "1.0 tokens/s"),
    ],
)
def test_a_rate_is_a_number_above_one(number, seconds, text):
    assert rate(number, "tokens", seconds) == text


def test_a_message_comes_below_the_line_of_a_task_that_is_done():
    lines = []
    progress = LineReporter("compare", write=lines.append, clock=Clock())
    progress.begin("evaluate on test", 2, "sequences")
    progress.advance(1)
    progress.message("still at it")
    progress.advance(1)
    progress.message("the next run")
    assert [line.removeprefix("compare: ").split(":")[0] for line in lines] == [
        "still at it",
        "evaluate on test",
        "the next run",
    ]
