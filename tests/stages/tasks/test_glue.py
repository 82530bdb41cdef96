import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config import TaskTraining
from stages.errors import InputError
from stages.tasks import IN_MACRO, TASKS
from stages.tasks.glue import GLUE
from stages.tasks.task import Encoded
from tests.stages.tasks.files import CAT, DOG, GLUE_FILES, write_files, write_glue
from tests.stages.tiny_tokenizers import bert_like

EXPECTED = {
    "CoLA": ([((CAT,), 1), ((DOG,), 0)], {"": [((DOG,), 0)]}),
    "SST-2": ([((CAT,), 1), ((DOG,), 0)], {"": [((DOG,), 0)]}),
    "MRPC": ([((CAT, DOG), 1), ((DOG, CAT), 0)], {"": [((DOG, CAT), 0)]}),
    "STS-B": ([((CAT, DOG), 3.8), ((DOG, CAT), 0.0)], {"": [((DOG, CAT), 5.0)]}),
    "QQP": ([((CAT, DOG), 1), ((DOG, CAT), 0)], {"": [((DOG, CAT), 0)]}),
    "MNLI": (
        [((CAT, DOG), 1), ((DOG, CAT), 2)],
        {"matched": [((CAT, DOG), 0)], "mismatched": [((CAT, DOG), 1)]},
    ),
    "QNLI": ([((CAT, DOG), 0), ((DOG, CAT), 1)], {"": [((DOG, CAT), 1)]}),
    "RTE": ([((CAT, DOG), 1), ((DOG, CAT), 0)], {"": [((DOG, CAT), 0)]}),
    "WNLI": ([((CAT, DOG), 1), ((DOG, CAT), 0)], {"": [((DOG, CAT), 0)]}),
}


def quiet(text):
    raise AssertionError(text)


def test_all_nine_tasks_are_in_the_macro_score_and_the_other_two_beside_it():
    assert len(IN_MACRO) == 9
    assert set(TASKS) - set(IN_MACRO) == {"IMDb", "SQuAD"}


@pytest.mark.parametrize("kind", GLUE)
def test_the_official_files_of_a_task_are_read_as_they_are(kind, tmp_path):
    folder, task, said = write_glue(tmp_path, kind), GLUE[kind], []
    train, evaluation = EXPECTED[kind]
    assert task.read(folder / task.layout.train[0], said.append) == train
    assert {name: task.read(folder / files[0], quiet) for name, files in task.layout.evaluation.items()} == evaluation
    assert said == (["train.tsv: left out 1 rows that have too few columns"] if kind == "QQP" else [])


@pytest.mark.parametrize("kind", GLUE)
def test_a_parquet_file_with_the_columns_of_the_hub_gives_the_same(kind, tmp_path):
    task, (train, _) = GLUE[kind], EXPECTED[kind]
    columns = {name: [texts[place] for texts, _ in train] for place, name in enumerate(task.texts)}
    pq.write_table(pa.table({**columns, "label": [label for _, label in train]}), tmp_path / "train.parquet")
    assert task.read(tmp_path / "train.parquet", quiet) == train


def test_a_csv_file_may_quote(tmp_path):
    (tmp_path / "train.csv").write_text('sentence,label\n"good, really",1\n', encoding="utf-8")
    assert GLUE["SST-2"].read(tmp_path / "train.csv", quiet) == [(("good, really",), 1)]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("SST-2", "sentence\tlabel\ngood\t2\n", "example 1: the label is '2'; expected one of 0, 1"),
        ("SST-2", "sentence\tlabel\ngood\t-1\n", "the label is '-1'.*test set without labels"),
        ("QNLI", "index\tquestion\tsentence\tlabel\n0\ta\tb\tmaybe\n", "expected one of entailment, not_entailment"),
        ("STS-B", "index\tsentence1\tsentence2\tscore\n0\ta\tb\tnan\n", "the label is 'nan'; expected a number"),
        ("SST-2", "sentence\tscore\ngood\t1\n", "has no column 'label' in its first line"),
        ("SST-2", "", "found nothing"),
        ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\n", "line 2: 2 columns; expected 4, separated by tabs"),
    ],
)
def test_a_row_that_is_not_as_the_layout_has_it_is_refused(kind, text, message, tmp_path):
    write_files(tmp_path, {"train.tsv": text})
    with pytest.raises(InputError, match=message):
        GLUE[kind].read(tmp_path / "train.tsv", quiet)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", b"", "no table that SST-2 can be read from"),
        ("train.tsv", b"sentence\tlabel\n\xff\xfe\t1\n", "no table in UTF-8"),
        ("train.parquet", b"nothing", "cannot be read as Parquet"),
        ("train.csv", b"text,label\ngood,1\n", "nothing in the column sentence"),
        ("absent.tsv", None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        GLUE["SST-2"].read(tmp_path / name, quiet)


def training(**changes):
    settings = {
        "epochs": 1,
        "learning_rate": 1e-3,
        "batch_size": 2,
        "max_tokens": 8,
        "warmup_fraction": 0.0,
        "weight_decay": 0.0,
    }
    return TaskTraining(**{**settings, **changes})


def test_two_texts_become_one_input_with_token_types_where_the_tokenizer_gives_them():
    tokenizer, task, counted = bert_like(), GLUE["MRPC"], []
    examples = task.from_rows([{"sentence1": "alpha beta", "sentence2": "gamma", "label": 1}], "here")
    encoded = task.encode(examples, tokenizer, training(), learning=True, done=counted.append)
    (row,) = encoded.rows
    assert tokenizer.decode(row["input_ids"].tolist()) == "[CLS] alpha beta [SEP] gamma [SEP]"
    assert row["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    assert (row["labels"].dtype, int(row["labels"])) == (np.int64, 1)
    assert (encoded.example, counted) == ([0], [1])


def test_a_long_text_is_cut_and_a_score_is_learned_as_a_number():
    task = GLUE["STS-B"]
    examples = task.from_rows([{"sentence1": "alpha " * 9, "sentence2": "gamma", "label": 2.5}], "here")
    (row,) = task.encode(examples, bert_like(), training(), learning=True, done=lambda _: None).rows
    assert len(row["input_ids"]) == 8
    assert (row["labels"].dtype, float(row["labels"])) == (np.float32, 2.5)


def figures(kind, labels, logits):
    task = GLUE[kind]
    examples = [task.from_rows([dict.fromkeys(task.texts, "x") | {"label": label}], "here")[0] for label in labels]
    outputs = [(np.array(row, np.float32),) for row in logits]
    encoded = Encoded(rows=[], example=list(range(len(examples))))
    return task.figures(dict.fromkeys(task.layout.evaluation, (examples, encoded, outputs)))


def test_classes_are_scored_by_their_largest_logit():
    assert figures("MRPC", [1, 1, 0, 0], [[0, 1], [1, 0], [2, 0], [0, 3]]) == {"f1": 0.5, "accuracy": 0.5}
    assert figures("CoLA", [1, 0], [[0, 1], [1, 0]]) == {"matthews": 1.0}


def test_mnli_is_scored_on_both_of_its_sets():
    found = figures("MNLI", [0, 1], [[1, 0, 0], [0, 0, 1]])
    assert found == {"accuracy_matched": 0.5, "accuracy_mismatched": 0.5}
    assert GLUE["MNLI"].scored_by == tuple(found)


def test_scores_are_compared_by_both_correlations():
    found = figures("STS-B", [1.0, 2.0, 5.0], [[10.0], [20.0], [21.0]])
    assert found["spearman"] == pytest.approx(1.0)
    assert 0.7 < found["pearson"] < 0.8


def test_the_files_of_the_test_cover_every_task():
    assert set(GLUE_FILES) == set(GLUE)
