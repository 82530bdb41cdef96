import pytest

from stages.errors import ConfigError, InputError
from stages.tasks import TASKS
from stages.tasks.data import read_task
from stages.tasks.zero_shot import check_zero_shot, read_zero_shot
from tests.stages.tasks.files import CAT, DOG, write_files, write_glue, write_phrases
from tests.stages.tasks.test_data import config


def test_the_examples_of_another_task_are_those_that_it_is_scored_on(tmp_path):
    write_phrases(tmp_path / "tasks" / "SST-2")
    one_pair = f"Quality\t#1 String\t#2 String\n1\t{CAT}\t{DOG}\n"
    write_files(tmp_path / "tasks" / "MRPC", {"dev.tsv": one_pair})  # and no train.tsv
    mine = {"kind": "SST-2", "folder": "tasks/SST-2", "held_out": 0.1, "zero_shot": ["SST-2"]}
    settings = config({"SST-2": {"zero_shot": ["MRPC", "mine"]}, "mine": mine})
    check_zero_shot(settings, "SST-2", tmp_path)
    others = read_zero_shot(settings, "SST-2", tmp_path, print)
    assert {name: (task.kind, len(sets[""])) for name, (task, sets) in others.items()} == {
        "MRPC": ("MRPC", 1),
        "mine": ("SST-2", 9),
    }
    assert others["mine"][1] == read_task(settings, "mine", TASKS["SST-2"], tmp_path, print).evaluation


def test_where_none_is_named_nothing_is_asked(tmp_path):
    settings = config({"SST-2": {}})
    check_zero_shot(settings, "SST-2", tmp_path)
    assert read_zero_shot(settings, "SST-2", tmp_path, print) == {}


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("SST-2", "STS-B", "names STS-B, which asks for a score; .* SST-2, which asks for one of 2"),
        ("SST-2", "MNLI", "names MNLI, which asks for one of 3 classes"),
        ("SST-2", "SQuAD", "names SQuAD, which asks for places in a text"),
        ("SST-2", "SST-2", "expected another task"),
        ("STS-B", "RTE", "names RTE, which asks for one of 2 classes; .* STS-B, which asks for a score"),
    ],
)
def test_a_task_that_asks_for_something_else_is_refused(name, other, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        check_zero_shot(config({name: {"zero_shot": [other]}}), name, tmp_path)


def test_its_files_are_looked_for_before_anything_is_read(tmp_path):
    write_glue(tmp_path / "tasks" / "SST-2", "SST-2")
    with pytest.raises(InputError, match="MRPC is no folder; expected the files of MRPC"):
        check_zero_shot(config({"SST-2": {"zero_shot": ["MRPC"]}}), "SST-2", tmp_path)
