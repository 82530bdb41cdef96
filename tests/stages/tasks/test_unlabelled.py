"""Texts without labels, in all layouts that the tasks have."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.base import build
from stages.config.finetune import FinetuneConfig
from stages.errors import InputError
from stages.tasks import TASKS
from stages.tasks.data import read_evaluation, read_task, read_unlabelled
from tests.stages.tasks.files import CAT, DOG, GLUE_FILES, squad_json, write_files, write_glue
from tests.stages.tiny_tasks import finetuning


def unlabelled(task, path):
    return TASKS[task].read_unlabelled(path, print)


@pytest.mark.parametrize("task", GLUE_FILES)
def test_a_tasks_own_file_is_read_without_its_labels(task, tmp_path):
    folder = write_glue(tmp_path, task)
    labelled = TASKS[task].read(folder / "train.tsv", print)
    assert [example.texts for example in unlabelled(task, folder / "train.tsv")] == [
        example.texts for example in labelled
    ]


def test_a_table_needs_no_column_of_labels_and_one_with_labels_that_are_none_is_read(tmp_path):
    write_files(tmp_path, {"a.tsv": f"sentence\n{CAT}\n", "b.csv": f"sentence,label\n{CAT},unknown\n"})
    pq.write_table(pa.table({"sentence": [DOG]}), tmp_path / "c.parquet")
    found = [unlabelled("SST-2", tmp_path / name)[0].texts for name in ("a.tsv", "b.csv", "c.parquet")]
    assert found == [(CAT,), (CAT,), (DOG,)]


def test_single_texts_stand_one_a_line_in_a_text_file(tmp_path):
    write_files(tmp_path, {"more.txt": f"{CAT}\n\n  {DOG}\n"})
    assert [example.texts for example in unlabelled("IMDb", tmp_path / "more.txt")] == [(CAT,), (DOG,)]
    with pytest.raises(InputError, match=r"more\.txt is no table that MRPC can be read from; expected \.tsv"):
        unlabelled("MRPC", tmp_path / "more.txt")


def test_reviews_that_nobody_labelled_are_a_folder_of_files(tmp_path):
    write_files(tmp_path / "unsup", {"0_0.txt": CAT, "1_0.txt": DOG})
    assert [example.texts for example in unlabelled("IMDb", tmp_path / "unsup")] == [(CAT,), (DOG,)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no \.txt files; expected one for each review"):
        unlabelled("IMDb", tmp_path / "empty")


def test_questions_need_no_answers(tmp_path):
    whole = json.loads(squad_json({"t": [(CAT, [("who", ["cat"])])]}))
    for paragraph in whole["data"][0]["paragraphs"]:
        for question in paragraph["qas"]:
            del question["answers"], question["id"]
    write_files(tmp_path, {"more.json": json.dumps(whole)})
    pq.write_table(pa.table({"context": [DOG], "question": ["what"]}), tmp_path / "more.parquet")
    assert [unlabelled("SQuAD", tmp_path / name)[0][2:] for name in ("more.json", "more.parquet")] == [
        (CAT, "who", ()),
        (DOG, "what", ()),
    ]


def settings(**changes):
    return build(FinetuneConfig, finetuning({"SST-2": changes}), "finetune")


def test_files_that_are_not_there_or_empty_are_refused_with_the_key_that_names_them(tmp_path):
    write_glue(tmp_path / "tasks" / "SST-2", "SST-2")
    write_files(tmp_path / "tasks" / "SST-2", {"empty.txt": "\n", "more.txt": f"{CAT}\n"})

    def read(*files):
        return read_unlabelled(settings(unlabelled=list(files)), "SST-2", TASKS["SST-2"], tmp_path, print)

    assert [example.texts for example in read("more.txt", "dev.tsv")] == [(CAT,), (DOG,)]
    with pytest.raises(InputError, match=r"absent\.txt is not there; expected what finetune\.tasks\.SST-2\.unlabelled"):
        read("absent.txt")
    with pytest.raises(InputError, match=r"empty\.txt has no examples"):
        read("empty.txt")
    assert read_unlabelled(settings(), "SST-2", TASKS["SST-2"], tmp_path, print) == []


def test_the_evaluation_is_read_without_the_training_unless_it_is_taken_from_it(tmp_path):
    folder = write_glue(tmp_path / "tasks" / "SST-2", "SST-2")
    held_out = read_evaluation(settings(held_out=0.5), "SST-2", TASKS["SST-2"], tmp_path, print)
    assert held_out == read_task(settings(held_out=0.5), "SST-2", TASKS["SST-2"], tmp_path, print).evaluation
    whole = read_task(settings(), "SST-2", TASKS["SST-2"], tmp_path, print).evaluation
    (folder / "train.tsv").unlink()
    assert read_evaluation(settings(), "SST-2", TASKS["SST-2"], tmp_path, print) == whole
