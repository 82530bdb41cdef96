import pytest

from stages.config import load_config
from stages.planning.break_even import StudentRun, stage_one_hours
from stages.planning.teacher_probe import Online, TeacherMemory
from tests.storage.build import make_description
from tests.tiny import tiny_params

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


@pytest.mark.parametrize(
    ("train", "encoder", "share_of_head", "keeps_head"),
    [
        ({}, True, 1.0, True),
        ({"kd_positions": "masked"}, True, 0.3, True),
        ({"kd_source": "top_k", "kd_positions": "masked"}, True, 0.3, False),
        ({"weights": {"kd": 0.0, "cos": 0.0, "mse": 1.0}}, True, 1.0, True),
        ({"weights": {"kd": 0.0}}, True, 0.0, False),
        ({"weights": {"kd": 0.0, "cos": 0.0}}, False, 0.0, False),
    ],
)
def test_a_run_pays_for_what_its_losses_read(train, encoder, share_of_head, keeps_head):
    config, description = load_config(tiny_params(train=train)), make_description()
    plan = description.splits["train"]
    tokens = 8 * 8 * plan.tokens / plan.sequences  # 8 steps of 8 sequences
    memory = TeacherMemory(**dict.fromkeys(TeacherMemory.__dataclass_fields__, 0))
    online = Online(encoder_seconds_per_token=2.0, head_seconds_per_row=3.0, memory=memory)
    run = StudentRun.of(config, description, online, 0.5)
    assert run.encoder_seconds == pytest.approx(encoder * tokens * 2)
    assert run.head_seconds == pytest.approx(share_of_head * tokens * 3)
    assert run.keeps_head is keeps_head
    assert run.read_seconds == pytest.approx(tokens * 0.5)
