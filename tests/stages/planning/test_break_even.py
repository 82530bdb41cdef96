import pytest

from stages.planning.break_even import StudentRun, stage_one_hours

RUN = StudentRun(tokens=1e6, encoder_seconds=80.0, head_seconds=20.0, read_seconds=1.0, keeps_head=True)


def test_a_run_from_the_cache_saves_the_encoder_and_pays_for_reading_and_the_head_it_keeps():
    assert RUN.online_seconds == 100
    assert RUN.cached_seconds == 21


@pytest.mark.parametrize(("cache_seconds", "runs"), [(79, 1), (80, 2), (158, 2), (1, 1), (800, 11)])
def test_the_cache_pays_from_the_first_run_that_makes_up_for_it(cache_seconds, runs):
    assert RUN.to_break_even(cache_seconds) == runs


def test_without_the_head_it_pays_sooner():
    run = StudentRun(tokens=1e6, encoder_seconds=80.0, head_seconds=20.0, read_seconds=1.0, keeps_head=False)
    assert run.to_break_even(99) == 1


def test_where_reading_takes_as_long_as_the_teacher_it_never_pays():
    slow = StudentRun(tokens=1e6, encoder_seconds=1.0, head_seconds=0.0, read_seconds=1.0, keeps_head=False)
    assert slow.to_break_even(10) is None
    assert slow.to_json(10)["runs_to_break_even"] is None


def test_workers_share_the_teacher_and_not_the_disk():
    assert stage_one_hours(7200, 1800) == 2
    assert stage_one_hours(7200, 1800, 2) == 1
    assert stage_one_hours(7200, 1800, 8) == 0.5
    assert stage_one_hours(7200, None, 8) == 0.25
