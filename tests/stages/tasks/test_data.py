import datasets
import pytest

from stages.config.base import build
from stages.config.finetune import FinetuneConfig
from stages.errors import InputError
from stages.tasks import TASKS
from stages.tasks.data import check_task, hold_out, read_task
from tests.stages.tasks.files import CAT, DOG, squad_json, write_files, write_glue, write_phrases

TRAINING = {
    "epochs": 1,
    "learning_rate": 1e-3,
    "batch_size": 2,
    "max_tokens": 8,
    "warmup_fraction": 0.0,
    "weight_decay": 0.0,
}


def config(tasks, **changes):
    return build(
        FinetuneConfig,
        {"source": "files", "folder": "tasks", "seeds": [0], "training": TRAINING, "tasks": tasks, **changes},
        "finetune",
    )


def read(settings, name, project):
    return read_task(settings, name, TASKS[settings.kind_of(name)], project, print)


def test_a_task_lies_in_a_folder_of_its_name(tmp_path):
    write_glue(tmp_path / "tasks" / "MNLI", "MNLI")
    data = read(config({"MNLI": {}}), "MNLI", tmp_path)
    assert [example.label for example in data.train] == [1, 2]
    assert {name: len(examples) for name, examples in data.evaluation.items()} == {"matched": 1, "mismatched": 1}


def test_other_files_may_be_named_and_those_of_the_training_are_read_one_after_the_other(tmp_path):
    write_files(tmp_path / "elsewhere", {"a.csv": "sentence,label\none,1\n", "b.csv": "sentence,label\ntwo,0\n"})
    task = {"kind": "SST-2", "folder": "elsewhere", "train": ["a.csv", "b.csv"], "evaluation": ["b.csv"]}
    data = read(config({"mine": task}), "mine", tmp_path)
    assert data.train == [(("one",), 1), (("two",), 0)]
    assert data.evaluation == {"": [(("two",), 0)]}


def test_a_share_of_the_training_is_held_out_with_whole_articles_on_one_side(tmp_path):
    articles = {f"article {n}": [("the cat sat", [("who", ["cat"]), ("what", ["sat"])])] for n in range(10)}
    write_files(tmp_path / "tasks" / "SQuAD", {"dev-v1.1.json": squad_json(articles)})
    task = {"train": ["dev-v1.1.json"], "held_out": 0.5}
    data = read(config({"SQuAD": task}), "SQuAD", tmp_path)
    ours, theirs = ({question.title for question in some} for some in (data.train, data.evaluation[""]))
    assert (len(data.train), len(data.evaluation[""])) == (10, 10)
    assert not ours & theirs


def test_what_is_held_out_is_a_draw_that_is_always_the_same():
    examples = list(range(100))
    train, held_out = hold_out(examples, str, 0.2)
    assert sorted(train + held_out) == examples
    assert len(held_out) == 20
    assert held_out != examples[-20:]
    assert hold_out(examples, str, 0.2) == [train, held_out]


def test_a_second_part_is_drawn_from_what_the_first_one_leaves_which_stays_as_it_is():
    examples = list(range(100))
    train, held_out, validation = hold_out(examples, str, 0.2, 0.1)
    assert held_out == hold_out(examples, str, 0.2)[1]
    assert sorted(train + held_out + validation) == examples
    assert len(validation) == 10
    assert hold_out(examples[:1], str, 0.5, 0.4) == [[], [0], []]


def test_merged_files_are_split_in_three_with_the_same_phrase_on_one_side(tmp_path):
    write_phrases(tmp_path / "tasks" / "SST-2")
    task = {"train": ["train.tsv", "dev.tsv"], "held_out": 0.1, "validation": 0.1}
    data = read(config({"SST-2": task}), "SST-2", tmp_path)
    parts = [{example.texts for example in some} for some in (data.train, data.evaluation[""], data.validation[""])]
    assert len(data.train) + len(data.evaluation[""]) + len(data.validation[""]) == 100
    assert {len(data.evaluation[""]), len(data.validation[""])} <= {10, 11}
    assert len(set.union(*parts)) == sum(map(len, parts)) == 99
    alone = read(config({"SST-2": {**task, "validation": None}}), "SST-2", tmp_path)
    assert alone.digests["evaluation"] == data.digests["evaluation"]
    assert alone.digests.keys() == {"train", "evaluation"}


def test_a_validation_may_be_taken_from_the_training_where_there_is_a_dev_set(tmp_path):
    write_phrases(tmp_path / "tasks" / "SST-2")
    data = read(config({"SST-2": {"validation": 0.2, "evaluation_examples": 5}}), "SST-2", tmp_path)
    assert (len(data.train), len(data.evaluation[""]), len(data.validation[""])) == (72, 5, 5)


def test_only_so_many_examples_are_drawn_and_not_the_first_ones(tmp_path):
    rows = "".join(f"good {n}\t1\n" for n in range(50)) + "".join(f"bad {n}\t0\n" for n in range(50))
    write_files(tmp_path / "tasks" / "SST-2", dict.fromkeys(("train.tsv", "dev.tsv"), f"sentence\tlabel\n{rows}"))
    task = {"train_examples": 20, "evaluation_examples": 10}
    data = read(config({"SST-2": task}), "SST-2", tmp_path)
    assert (len(data.train), len(data.evaluation[""])) == (20, 10)
    assert 0 < sum(example.label for example in data.train) < 20


def test_digests_say_whether_examples_are_the_same_ones_wherever_they_are_from(tmp_path):
    write_glue(tmp_path / "tasks" / "SST-2", "SST-2")
    table = f"sentence,label\n{CAT},1\n" + '"a ""dog barked",0\n'
    write_files(tmp_path / "csv" / "SST-2", {"train.csv": table, "dev.csv": table})
    one = read(config({"SST-2": {}}), "SST-2", tmp_path).digests
    other = read(config({"SST-2": {}}, folder="csv"), "SST-2", tmp_path).digests
    assert one["train"] == other["train"]
    assert one["evaluation"] != other["evaluation"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"folder": "absent"}, r"absent is no folder; expected the files of SST-2"),
        (
            {"train": ["train.csv"]},
            r"train\.csv is not there; expected the files that finetune\.tasks\.SST-2\.train names",
        ),
        ({}, r"has none of dev\.tsv, dev\.parquet, dev\.csv; .* finetune\.tasks\.SST-2\.evaluation or \.held_out"),
    ],
)
def test_files_that_are_not_there_are_refused_before_anything_is_read(task, message, tmp_path):
    write_files(tmp_path / "tasks" / "SST-2", {"train.tsv": "nothing that could be read"})
    with pytest.raises(InputError, match=message):
        check_task(config({"SST-2": task}), "SST-2", TASKS["SST-2"], tmp_path)


def test_mnli_has_a_file_for_each_of_its_sets(tmp_path):
    write_glue(tmp_path / "tasks" / "MNLI", "MNLI")
    settings = config({"MNLI": {"evaluation": ["dev_matched.tsv"]}})
    with pytest.raises(InputError, match="names 1 files; expected one for each of matched, mismatched"):
        read(settings, "MNLI", tmp_path)


def test_a_share_that_leaves_nothing_is_refused(tmp_path):
    write_files(tmp_path / "tasks" / "SST-2", {"train.tsv": f"sentence\tlabel\n{DOG}\t0\n"})
    with pytest.raises(InputError, match="there are 0 for the training, 1 for the evaluation; expected some of each"):
        read(config({"SST-2": {"held_out": 0.5}}), "SST-2", tmp_path)


HUB = {key: {"name": f"nobody/{key}", "revision": "0" * 40} for key in ("glue", "imdb", "squad")}


def test_a_dataset_of_the_hub_that_cannot_be_had_is_named_with_the_way_out(tmp_path):
    settings = config({"RTE": {}}, source="hub", hub=HUB)
    check_task(settings, "RTE", TASKS["RTE"], tmp_path)
    with pytest.raises(
        InputError, match=r"finetune\.hub\.glue: cannot load nobody/glue@0000.*configuration rte, split train"
    ):
        read(settings, "RTE", tmp_path)


def test_rows_as_the_hub_has_them_are_read():
    rows = datasets.Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [2], "idx": [0]})
    assert TASKS["MNLI"].from_rows(rows, "here") == [(("a", "b"), 2)]
