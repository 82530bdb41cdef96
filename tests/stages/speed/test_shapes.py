import pytest
import torch

from stages.config import StudentConfig
from stages.context import Artefacts, Context
from stages.errors import Interrupted
from stages.models import count_parameters
from stages.speed.shapes import BATCH_SIZE, MIN_ROUNDS, compare_speed
from stages.students import build_student
from tests.stages.tiny_models import tiny_bert


@pytest.fixture
def compare(tmp_path):
    """`compare(device=...)`: a student of one block beside its teacher of three."""
    teacher = tiny_bert()
    shape = StudentConfig(architecture="distilbert", initialise="random", layers=1, dropout=0.1, seed=0)
    student = build_student(shape, "half", teacher.config.to_dict())

    def run(**context):
        return compare_speed(
            student,
            teacher,
            student_bytes=300,
            teacher_bytes=1200,
            sequence_tokens=12,
            context=Context(artefacts=Artefacts(project=tmp_path), **context),
        )

    return run, student, teacher


def test_student_and_teacher_stand_side_by_side_with_their_ratio(compare):
    run, student, teacher = compare
    speed = run()
    assert speed["student"]["parameters"] == count_parameters(student)
    assert speed["teacher"]["parameters"] == count_parameters(teacher)
    assert speed["ratio"]["parameters"] == pytest.approx(
        count_parameters(student) / count_parameters(teacher), abs=1e-4
    )
    assert (speed["student"]["bytes"], speed["teacher"]["bytes"], speed["ratio"]["bytes"]) == (300, 1200, 0.25)
    assert (speed["sequence_tokens"], speed["batch_size"], speed["threads"]) == (
        12,
        BATCH_SIZE,
        torch.get_num_threads(),
    )
    assert speed["rounds"] >= MIN_ROUNDS
    cpu = {name: speed[name]["cpu"] for name in ("student", "teacher")}
    assert speed["ratio"]["cpu"]["latency"] == pytest.approx(
        cpu["student"]["latency_ms"] / cpu["teacher"]["latency_ms"], rel=0.02
    )
    assert speed["ratio"]["cpu"]["throughput"] == pytest.approx(
        cpu["student"]["sequences_per_second"] / cpu["teacher"]["sequences_per_second"], rel=0.02
    )
    assert "cuda" not in speed["ratio"]


def test_measuring_leaves_the_weights_as_they_are_and_draws_no_random_numbers(compare):
    run, student, teacher = compare
    before = [parameter.clone() for model in (student, teacher) for parameter in model.parameters()]
    state = torch.get_rng_state()
    run()
    after = [parameter for model in (student, teacher) for parameter in model.parameters()]
    assert all(map(torch.equal, before, after))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_request_to_stop_ends_it_between_two_rounds(compare):
    run, _, _ = compare
    with pytest.raises(Interrupted, match="initial weights are written"):
        run(should_stop=lambda: True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_measured_beside_the_cpu(compare):
    run, _, _ = compare
    speed = run(device="cuda:0")
    for part in (speed["student"], speed["teacher"], speed["ratio"]):
        assert part["cuda"].keys() == part["cpu"].keys()
        assert all(value > 0 for value in part["cuda"].values())
