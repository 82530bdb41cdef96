import numpy as np
import pytest
import torch

from stages.errors import InputError
from stages.sequences import TokenStore
from stages.speed.sentences import Sentences, cached_sentences, read_sentences
from storage import CacheReader
from tests.stages.tiny_tokenizers import bert_like, gpt2_like

PAIRS = 'index\tsentence1\tsentence2\tscore\n0\talpha "beta\tgamma\t5.0\n1\tdelta\tepsilon zeta\t1.0\n'


def written(folder, name, text):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_pairs_of_a_glue_table_are_read_as_one_sequence_each(tmp_path):
    tokenizer = bert_like()
    found = read_sentences(written(tmp_path, "dev.tsv", PAIRS), tokenizer, None)
    assert [tokenizer.decode(ids) for ids in found.ids] == [
        "[CLS] alpha [UNK] beta [SEP] gamma [SEP]",  # a quotation mark is a character as any other
        "[CLS] delta [SEP] epsilon zeta [SEP]",
    ]
    assert (found.source, found.tokens, found.longest) == ("dev.tsv", 13, 7)


def test_the_columns_are_those_of_the_task(tmp_path):
    mrpc = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t10\t11\talpha\tbeta gamma\r\n"
    found = read_sentences(written(tmp_path, "dev.tsv", mrpc), bert_like(), None)
    assert [bert_like().decode(ids) for ids in found.ids] == ["[CLS] alpha [SEP] beta gamma [SEP]"]
    qnli = "index\tquestion\tsentence\tlabel\n0\talpha\tbeta\tentailment\n"
    found = read_sentences(written(tmp_path, "dev.tsv", qnli), bert_like(), None)
    assert [bert_like().decode(ids) for ids in found.ids] == ["[CLS] alpha [SEP] beta [SEP]"]


def test_single_sentences_come_from_a_table_or_from_lines(tmp_path):
    from_table = read_sentences(
        written(tmp_path, "dev.tsv", "sentence\tlabel\nalpha beta\t1\ngamma\t0\n"), bert_like(), None
    )
    from_lines = read_sentences(written(tmp_path, "some.txt", "alpha beta\n\ngamma\n"), bert_like(), None)
    assert from_table.ids == from_lines.ids
    assert len(from_lines) == 2


def test_sentences_are_cut_to_what_the_models_read(tmp_path):
    found = read_sentences(written(tmp_path, "some.txt", "alpha beta gamma delta\n"), bert_like(), 4)
    assert [len(ids) for ids in found.ids] == [4]


def test_a_tokenizer_that_adds_nothing_serves_too(tmp_path):
    found = read_sentences(written(tmp_path, "dev.tsv", PAIRS), gpt2_like(), None)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.txt", "\n\n", "holds no sentence"),
        ("empty.tsv", "sentence\tlabel\n", "holds no sentence"),
        (
            "other.tsv",
            "question\tanswer\na\tb\n",
            "columns question, answer; expected those of a task of GLUE: .*sentence1 and sentence2; ",
        ),
        ("torn.tsv", "sentence1\tsentence2\nalpha\tbeta\ngamma\n", "line 3: 1 columns; expected 2"),
        ("nothing.tsv", "", "holds no sentence"),
    ],
)
def test_a_file_without_sentences_is_refused_saying_what_was_expected(tmp_path, name, text, said):
    with pytest.raises(InputError, match=said):
        read_sentences(written(tmp_path, name, text), bert_like(), None)


def test_sentences_of_which_no_token_is_left_are_none(tmp_path):
    with pytest.raises(InputError, match="holds no sentence"):
        read_sentences(written(tmp_path, "dev.tsv", "sentence\tlabel\n\t1\n"), gpt2_like(), None)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match=r"no sentences could be read from .*expected a text file"):
        read_sentences(file, bert_like(), None)


def test_batches_hold_every_sentence_once_and_pad_little():
    sentences = Sentences(source="here", ids=((1,) * 5, (2,), (3,) * 4, (4,) * 2, (5,)), pad_id=9)
    batches = sentences.batches(2)
    assert batches == [(1, 4), (3, 2), (0,)]
    input_ids, attention_mask = sentences.batch(batches[1])
    assert input_ids.tolist() == [[4, 4, 9, 9], [3, 3, 3, 3]]
    assert attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert input_ids.dtype == attention_mask.dtype == torch.int64


def test_the_sentences_of_a_cached_split_are_its_sequences_before_masking(cached):
    found = cached_sentences(CacheReader(cached.artefacts.cache), "test")
    offsets, ids = TokenStore.open(cached.artefacts.tokens).split("test").read(0, len(found))
    expected = [tuple(row.tolist()) for row in np.split(ids, offsets[1:-1])]
    assert list(found.ids) == expected
    assert len(found) == cached.config.cache.sequences.test
