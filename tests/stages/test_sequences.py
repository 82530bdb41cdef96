import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.errors import InputError
from stages.sequences import COUNTS, SequenceSplit, SequenceWriter, TokenStore, files_digest
from storage.arrays import id_dtype

LENGTHS = [3, 5, 4, 4, 6, 3, 7]


def write(path, groups=((0, 3), (3, 4), (4, 7)), dtype="u2"):
    """Sequence n holds the ids 100 n, 100 n + 1, ..."""
    with SequenceWriter(path, np.dtype(dtype)) as writer:
        for begin, stop in groups:
            ids = np.concatenate([100 * n + np.arange(LENGTHS[n]) for n in range(begin, stop)])
            writer.write_group(np.array(LENGTHS[begin:stop]), ids.astype(dtype))
    return SequenceSplit(path)


def test_any_range_of_sequences_reads_back_across_row_groups(tmp_path):
    split = write(tmp_path / "train.parquet")
    assert len(split) == len(LENGTHS)
    assert split.lengths.tolist() == LENGTHS
    for start in range(len(LENGTHS) + 1):
        for count in range(len(LENGTHS) - start + 1):
            offsets, ids = split.read(start, count)
            assert np.diff(offsets).tolist() == LENGTHS[start : start + count]
            expected = [100 * n + i for n in range(start, start + count) for i in range(LENGTHS[n])]
            assert ids.tolist() == expected
            assert ids.dtype == np.uint16
            assert offsets.dtype == np.int64


def test_reading_outside_the_split_is_an_error(tmp_path):
    split = write(tmp_path / "train.parquet")
    for start, count in ((-1, 2), (0, 8), (8, 0), (3, -1)):
        with pytest.raises(IndexError):
            split.read(start, count)


def test_ids_of_large_vocabularies_are_four_bytes_wide():
    assert id_dtype(65_535) == np.dtype("<u2")
    assert id_dtype(65_536) == np.dtype("<u4")


def test_the_digest_is_of_the_content_and_not_of_the_file(tmp_path):
    digest = write(tmp_path / "a.parquet").digest()
    assert digest == write(tmp_path / "b.parquet", groups=((0, 7),), dtype="u4").digest()
    other = tmp_path / "c.parquet"
    with SequenceWriter(other, np.dtype("u2")) as writer:
        writer.write_group(np.array([8]), np.arange(8, dtype="u2"))
    joined = SequenceSplit(other).digest()
    with SequenceWriter(other, np.dtype("u2")) as writer:
        writer.write_group(np.array([4, 4]), np.arange(8, dtype="u2"))
    assert SequenceSplit(other).digest() != joined


def test_missing_and_broken_files_name_the_command_that_makes_them(tmp_path):
    path = tmp_path / "train.parquet"
    with pytest.raises(InputError, match=r"train.parquet is not there; run: pipeline tokenize"):
        _ = SequenceSplit(path).lengths
    write(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"train.parquet cannot be read .*; run: pipeline tokenize"):
        _ = SequenceSplit(path).lengths


@pytest.fixture
def tokens(tokenized, tmp_path):
    folder = tmp_path / "tokens"
    shutil.copytree(tokenized / "data" / "tokens", folder)
    return folder


def test_the_store_tells_what_tokenize_wrote(tokens):
    store = TokenStore.open(tokens)
    train = store.split("train")
    _, ids = train.read(0, len(train))
    assert store.longest == max(store.split(s).lengths.max() for s in ("train", "validation", "test"))
    assert store.special_tokens == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert store.special_ids == (0, 1, 2, 3, 4)
    assert store.token_counts.shape == (store.vocabulary_size,)
    assert store.token_counts.dtype == np.int64
    assert store.token_counts.tolist() == np.bincount(ids, minlength=store.vocabulary_size).tolist()
    assert (store.tokenizer_folder / "tokenizer.json").is_file()


def test_digests_are_recomputed_from_the_data(tokens):
    read = []
    digests = TokenStore.open(tokens).content_digests(read.append)
    assert set(digests) == {"tokens", "tokenizer"}
    store = TokenStore.open(tokens)
    assert sum(read) == sum(store.split(split).lengths.sum() for split in ("train", "validation", "test"))
    assert TokenStore.open(tokens).content_digests() == digests
    assert TokenStore.open(tokens).recorded_digest == digests["tokens"]
    shutil.copy(tokens / "validation.parquet", tokens / "test.parquet")
    with pytest.raises(InputError, match=r"test.parquet is no longer what tokenize wrote"):
        TokenStore.open(tokens).content_digests()


def test_the_tokenizer_digest_covers_names_and_bytes(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    first = files_digest(tmp_path)
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert files_digest(tmp_path) != first
    (tmp_path / "b.json").unlink()
    with pytest.raises(InputError, match=r"has no files"):
        files_digest(tmp_path)


def test_a_folder_without_tokens_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there are no tokens in .*; run: pipeline tokenize"):
        TokenStore.open(tmp_path)
    (tmp_path / "tokens.json").write_text(json.dumps({"vocabulary_size": 3}))
    with pytest.raises(InputError, match=r"tokens.json is not what tokenize writes"):
        TokenStore.open(tmp_path)


def test_missing_counts_are_refused(tokens):
    (tokens / COUNTS).unlink()
    with pytest.raises(InputError, match=r"token_counts.parquet cannot be read"):
        _ = TokenStore.open(tokens).token_counts


def test_the_files_are_plain_parquet(tokens):
    table = pq.read_table(tokens / "train.parquet")
    assert table.column_names == ["input_ids", "length"]
    assert [len(row) for row in table["input_ids"].to_pylist()] == table["length"].to_pylist()
