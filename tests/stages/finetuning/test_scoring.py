import numpy as np
import pytest

from stages.finetuning.scoring import Examination, Questions
from stages.tasks import TASKS
from stages.tasks.classification import LabelledText
from stages.tasks.data import TaskData
from stages.tasks.task import Encoded


def texts(*labels):
    return [LabelledText((f"text {n}",), label) for n, label in enumerate(labels)]


def encode(_, examples):
    """Inputs of one token: the label."""
    rows = [{"input_ids": np.array([example.label], np.uint32)} for example in examples]
    return Encoded(rows=rows, example=list(range(len(rows))))


def says(number):
    """A model that always gives the class of this number."""

    def answer(encoded):
        return [(np.eye(2, dtype=np.float32)[number],)] * len(encoded.rows)

    return answer


def test_an_examination_is_scored_on_its_evaluation_and_has_the_rest_beside():
    data = TaskData(
        train=texts(0, 1),
        evaluation={"": texts(1, 1, 0)},
        validation={"": texts(0, 1, 0, 0)},
    )
    others = {"MRPC": (TASKS["MRPC"], {"": texts(1, 0, 1, 1, 0)})}
    examination = Examination.of(TASKS["SST-2"], data, others, encode)
    assert len(examination) == 12
    assert examination.examples == {"evaluation": 3, "validation": 4, "zero_shot MRPC": 5}
    found = examination.scored(says(1))
    assert found["score"] == pytest.approx(2 / 3)
    assert found["scored_by"] == ["accuracy"]
    assert found["validation"] == {"score": 0.25, "figures": {"accuracy": 0.25}}
    assert found["zero_shot"]["MRPC"]["figures"] == pytest.approx({"f1": 0.75, "accuracy": 0.6})
    assert found["zero_shot"]["MRPC"]["majority"] == found["zero_shot"]["MRPC"]["figures"]
    assert examination.scored(says(0))["zero_shot"]["MRPC"]["score"] == pytest.approx(0.2)


def test_what_was_not_asked_is_not_in_the_result():
    examination = Examination.of(TASKS["SST-2"], TaskData(train=texts(0), evaluation={"": texts(1)}), {}, encode)
    assert examination.scored(says(1)).keys() == {"score", "figures", "scored_by"}


def test_the_majority_is_the_most_frequent_class_of_each_set():
    sets = {"matched": texts(2, 2, 0), "mismatched": texts(1, 0, 0)}
    assert Questions.of(TASKS["MNLI"], sets, encode).majority() == pytest.approx(
        {"accuracy_matched": 2 / 3, "accuracy_mismatched": 2 / 3}
    )
