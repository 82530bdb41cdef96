import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config import ConfigError, TaskTraining
from stages.errors import InputError
from stages.tasks.squad import ANSWER_TOKENS, SQUAD, answers, best_span
from tests.stages.tasks.files import squad_json
from tests.stages.tiny_tokenizers import bert_like, gpt2_like

CONTEXT = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
ARTICLES = {"Greek": [(CONTEXT, [("beta theta", ["eta theta", "theta"]), ("alpha", ["beta gamma"])])]}


def training(**changes):
    settings = {
        "epochs": 1,
        "learning_rate": 1e-3,
        "batch_size": 2,
        "max_tokens": 12,
        "warmup_fraction": 0.0,
        "weight_decay": 0.0,
    }
    return TaskTraining(**{**settings, "overlap_tokens": 2, **changes})


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "dev-v1.1.json").write_text(squad_json(ARTICLES), encoding="utf-8")
    return SQUAD.read(tmp_path / "dev-v1.1.json", print)


def encode(questions, *, learning=False, tokenizer=None, **changes):
    return SQUAD.encode(
        questions, tokenizer or bert_like(), training(**changes), learning=learning, done=lambda _: None
    )


def test_the_official_json_is_read_with_all_its_answers(questions):
    first, second = questions
    assert (first.id, first.title, first.context, first.question) == ("Greek-0-0", "Greek", CONTEXT, "beta theta")
    assert first.answers == (("eta theta", CONTEXT.index("eta theta")), ("theta", CONTEXT.index("theta")))
    assert second.answers == (("beta gamma", 6),)


def test_a_parquet_file_as_on_the_hub_gives_the_same(questions, tmp_path):
    columns = {
        name: [getattr(question, name) for question in questions] for name in ("id", "title", "context", "question")
    }
    columns["answers"] = [
        {"text": [text for text, _ in question.answers], "answer_start": [start for _, start in question.answers]}
        for question in questions
    ]
    pq.write_table(pa.table(columns), tmp_path / "dev.parquet")
    assert SQUAD.read(tmp_path / "dev.parquet", print) == questions


def test_a_context_is_read_in_windows_that_overlap_and_that_cover_all_of_it(questions):
    tokenizer, encoded = bert_like(), encode(questions)
    texts = [tokenizer.decode(row["input_ids"].tolist()) for row in encoded.rows]
    assert texts[:2] == [
        "[CLS] beta theta [SEP] alpha beta gamma delta epsilon zeta eta [SEP]",
        "[CLS] beta theta [SEP] zeta eta theta iota kappa [SEP]",
    ]
    assert encoded.example == [0, 0, 1, 1]
    spans = encoded.offsets[1]
    assert [None if span is None else CONTEXT[slice(*span)] for span in spans] == [
        *(None,) * 4,
        *("zeta", "eta", "theta", "iota", "kappa"),
        None,
    ]
    assert encoded.rows[1]["token_type_ids"].tolist() == [0] * 4 + [1] * 6


def test_an_answer_is_learned_in_the_windows_where_all_of_it_stands_and_as_the_first_token_elsewhere(questions):
    rows = encode(questions, learning=True).rows
    assert [(int(row["start_positions"]), int(row["end_positions"])) for row in rows] == [
        (0, 0),
        (5, 6),
        (4, 5),
        (0, 0),
    ]


def test_a_question_that_is_too_long_is_cut(questions):
    long = [questions[0]._replace(question="alpha " * 20)]
    first = encode(long).rows[0]
    assert bert_like().decode(first["input_ids"].tolist()).startswith("[CLS] alpha alpha alpha [SEP] alpha beta")


def test_windows_that_would_not_move_on_are_refused():
    with pytest.raises(
        ConfigError, match=r"finetune\.tasks\.mine\.training\.overlap_tokens is 6; allowed: less than 6"
    ):
        SQUAD.check(bert_like(), training(overlap_tokens=6), "mine")
    SQUAD.check(bert_like(), training(overlap_tokens=5), "mine")
    SQUAD.check(bert_like(), training(max_tokens=384, overlap_tokens=128), "mine")


def logits(rows, chosen):
    """Outputs that point at (row, first, last) with a score."""
    outputs = [tuple(np.full(len(row["input_ids"]), -9.0, np.float32) for _ in range(2)) for row in rows]
    for row, first, last, score in chosen:
        outputs[row][0][first], outputs[row][1][last] = score, score
    return outputs


def test_the_best_answer_of_all_windows_counts(questions):
    encoded = encode(questions)
    outputs = logits(encoded.rows, [(0, 4, 5, 1.0), (1, 5, 6, 2.0), (2, 5, 5, 1.0), (3, 5, 5, 0.5)])
    assert answers(questions, encoded, outputs) == ["eta theta", "gamma"]
    found = SQUAD.figures({"": (questions, encoded, outputs)})
    assert found == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}


def test_an_answer_is_never_taken_from_the_question_nor_backwards_nor_too_long():
    spans = [None, (0, 1), *((place, place + 1) for place in range(2, 60))]
    starts, ends = np.zeros(60, np.float32), np.zeros(60, np.float32)
    starts[0] = ends[0] = 9.0  # outside
    starts[50], ends[1] = 5.0, 5.0  # backwards
    starts[2], ends[2 + ANSWER_TOKENS] = 4.0, 4.0  # one token too long
    starts[3], ends[4] = 3.0, 3.0
    assert best_span(starts, ends, spans) == (7.0, 2, 4)
    assert best_span(starts, ends, [None] * 60)[0] == -np.inf


def test_a_window_without_any_answer_gives_an_empty_one(questions):
    encoded = encode(questions[:1])
    nothing = type(encoded)(
        rows=encoded.rows, example=[0, 0], offsets=[[None] * len(spans) for spans in encoded.offsets]
    )
    assert answers(questions[:1], nothing, logits(encoded.rows, [])) == [""]


def test_a_tokenizer_without_tokens_between_texts_gives_windows_too(questions):
    encoded = encode(questions, tokenizer=gpt2_like(), max_tokens=40, overlap_tokens=4, learning=True)
    assert len(encoded.rows) > len(questions)
    assert any(int(row["end_positions"]) > 0 for row in encoded.rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda question: question.update(answers=[]), r"has no answer; expected SQuAD v1\.1"),
        (lambda question: question["answers"][0].update(answer_start=3), "is not at character 3 of its context"),
        (lambda question: question.pop("answers"), "is not SQuAD's JSON .*answers"),
    ],
)
def test_what_is_not_as_in_version_1_1_is_refused(change, message, tmp_path):
    content = json.loads(squad_json(ARTICLES))
    change(content["data"][0]["paragraphs"][0]["qas"][0])
    (tmp_path / "train-v1.1.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        SQUAD.read(tmp_path / "train-v1.1.json", print)


@pytest.mark.parametrize(
    ("name", "message"), [("a.json", "cannot be read"), ("a.tsv", "expected SQuAD's .json, or .parquet")]
)
def test_a_file_that_is_not_there_or_of_another_kind_is_refused(name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        SQUAD.read(tmp_path / name, print)
