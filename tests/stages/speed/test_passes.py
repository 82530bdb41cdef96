from collections import Counter

import pytest

from stages.context import Artefacts, Context
from stages.errors import Interrupted
from stages.speed.passes import ROUNDS, Pass, full_pass, throughput, times_as_fast
from stages.speed.sentences import Sentences

NAMES = [("student", "torch"), ("teacher", "torch"), ("student", "onnx")]


class Recorder:
    """Contenders that write down what they are given."""

    def __init__(self):
        self.seen = []

    def contenders(self):
        return {name: self._of(name) for name in NAMES}

    def _of(self, name):
        return lambda input_ids, _: self.seen.append((name, input_ids.tolist()))


def sentences(count):
    return Sentences(source="here", ids=tuple((number + 1,) * (1 + number % 3) for number in range(count)), pad_id=0)


@pytest.fixture
def context(tmp_path):
    return Context(artefacts=Artefacts(project=tmp_path))


@pytest.mark.parametrize("count", [3, 40])
def test_a_full_pass_times_every_sentence_once_in_every_contender(context, count):
    recorder = Recorder()
    passes = full_pass(recorder.contenders(), sentences(count), context)
    for name in NAMES:
        assert sum(len(taken) for taken in passes[name].rounds) == count
        given = Counter(rows[0][0] for seen, rows in recorder.seen if seen == name)
        assert set(given) == set(range(1, count + 1))
        assert all(len(rows) == 1 for seen, rows in recorder.seen if seen == name)


def test_contenders_take_turns_within_a_pass(context):
    recorder = Recorder()
    full_pass(recorder.contenders(), sentences(40), context)
    turns = [name for name, _ in recorder.seen]
    changes = [after for before, after in zip([None, *turns], turns, strict=False) if before != after]
    assert changes == NAMES * ROUNDS


def test_batches_are_whole_where_they_can_be_and_the_same_for_all(context):
    recorder = Recorder()
    found = throughput(recorder.contenders(), sentences(7), 3, context)
    assert found.sentences == 6
    assert all(len(taken.rounds) == 2 for taken in found.passes.values())
    given = [[rows for seen, rows in recorder.seen if seen == name] for name in NAMES]
    assert given[0] == given[1] == given[2]
    assert all(found.per_second(name) > 0 for name in NAMES)


def test_fewer_sentences_than_a_batch_make_one_batch(context):
    assert throughput(Recorder().contenders(), sentences(2), 32, context).sentences == 2


def test_figures_of_a_pass_are_its_sum_its_median_and_its_ninth_tenth():
    taken = Pass(((0.001, 0.002, 0.003, 0.004, 0.005), (0.006, 0.007, 0.008, 0.009, 0.1)))
    assert taken.figures() == {"pass_seconds": 0.145, "latency_ms": 5.5, "latency_ms_p90": 9.0}


def test_a_ratio_is_taken_round_by_round():
    student, teacher = Pass(((1.0, 1.0), (2.0,), (1.0,))), Pass(((4.0, 4.0), (2.0,), (2.0,)))
    assert times_as_fast(student, teacher) == {"median": 2.0, "low": 1.0, "high": 4.0}


def test_a_request_to_stop_ends_it_between_two_turns(tmp_path):
    context = Context(artefacts=Artefacts(project=tmp_path), should_stop=lambda: True)
    for measure in (
        lambda: full_pass(Recorder().contenders(), sentences(4), context),
        lambda: throughput(Recorder().contenders(), sentences(4), 2, context),
    ):
        with pytest.raises(Interrupted, match="nothing was written"):
            measure()
