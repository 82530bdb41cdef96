"""Held-out figures as a training takes them: in part, shared, and leaving the student as it was."""

import pytest
import torch

from stages.held_out import SUMS, held_out_sums, means
from stages.models import load_masked_lm
from storage import CacheReader
from tests.stages.tiny_models import tiny_bert


@pytest.fixture
def reader(cached):
    return CacheReader(cached.artefacts.cache)


@pytest.fixture
def student(cached):
    return load_masked_lm(cached.artefacts.student_init("half"))


def sums(student, reader, **settings):
    return held_out_sums(
        student, reader, "test", **{"batch_size": 3, "device": "cpu", "done": lambda _: None, **settings}
    )


def test_the_sums_do_not_depend_on_the_batches_and_those_of_ranks_add_up(student, reader):
    whole = sums(student, reader, batch_size=100)
    torch.testing.assert_close(sums(student, reader, batch_size=1), whole, rtol=1e-5, atol=1e-5)
    shared = sum(sums(student, reader, rank=rank, world_size=3) for rank in range(3))
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-5)


def test_the_first_sequences_are_a_part_of_all(student, reader):
    counted = []
    part = sums(student, reader, sequences=5, done=counted.append)
    assert sum(counted) == 5
    whole = sums(student, reader)
    assert 0 < part[SUMS.index("rows")] < whole[SUMS.index("rows")]
    assert 0 < part[SUMS.index("kl")] < whole[SUMS.index("kl")]


def test_the_teacher_itself_is_at_no_distance(cached, reader):
    figures = means(sums(load_masked_lm(cached.artefacts.teacher), reader).tolist(), "masked")
    assert figures["agreement_all"] == 1.0
    assert figures["kl_all"] == pytest.approx(0, abs=2e-5)
    assert figures["mlm_loss"] == pytest.approx(figures["teacher_mlm_loss"], abs=1e-3)  # hidden states in float16
    assert figures["masked_accuracy"] == figures["teacher_masked_accuracy"]


def test_a_student_of_another_width_has_no_cosine(reader):
    narrow = tiny_bert(vocabulary=reader.description.vocabulary_size, hidden=16, layers=1, positions=16)
    assert "hidden_cosine" not in means(sums(narrow, reader).tolist(), "masked")


def test_a_student_that_is_trained_goes_on_as_if_nothing_had_been(student, reader):
    class Stop(Exception):
        pass

    def stop(_):
        raise Stop

    student.train()
    before = torch.get_rng_state()
    sums(student, reader)
    with pytest.raises(Stop):
        sums(student, reader, done=stop)
    assert student.training
    assert torch.equal(torch.get_rng_state(), before)
    student(torch.tensor([[1, 2, 3]])).logits.sum().backward()
