import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import token_parts
from stages.randomness import words
from stages.token_parts import PartId, Shuffled, read_figures, write_part
from storage.ragged import offsets_of

U2 = np.dtype("u2")


def write(work, contents, seed=0):
    """Part n holds the sequences `contents[n]`, each a list of ids."""
    parts = []
    work.mkdir(exist_ok=True)
    for number, sequences in enumerate(contents):
        part = PartId(split="train", number=number, first_group=number, end_group=number + 1)
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        ids = np.array([token for sequence in sequences for token in sequence], dtype=U2)
        parts.append((part, write_part(work, part, seed, len(sequences), lengths, ids)))
    return parts


def merged(shuffled, rows):
    found = []
    for lengths, ids in shuffled.groups(rows):
        assert len(lengths) <= rows
        found += [part.tolist() for part in np.split(ids, offsets_of(lengths)[1:-1])]
    assert [len(sequence) for sequence in found] == np.concatenate(list(shuffled.lengths())).tolist()
    return found


PARTS = st.lists(st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=5), max_size=12), min_size=1, max_size=5)


@settings(deadline=None, max_examples=30)
@given(PARTS, st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 60), st.integers(1, 7))
def test_the_merge_has_all_sequences_in_the_order_of_their_keys(tmp_path_factory, contents, seed, span, held, rows):
    work = tmp_path_factory.mktemp("work")
    keys = [words(f"tokenize/{seed}/train", number, len(part)).tolist() for number, part in enumerate(contents)]
    pairs = [(key, sequence) for part in zip(keys, contents, strict=True) for key, sequence in zip(*part, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_parts, "_RANGE_TOKENS", span)
        shuffled = Shuffled(work, write(work, contents, seed), U2)
        groups = [[part.tolist() for part in group] for group in shuffled.groups(rows)]
        patch.setattr(token_parts, "_HELD_TOKENS", held)
        assert [[part.tolist() for part in group] for group in shuffled.groups(rows)] == groups
        found = merged(shuffled, rows)
    assert found == [sequence for _, sequence in sorted(pairs, key=lambda pair: pair[0])]


def test_what_the_merge_holds_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(token_parts, "_RANGE_TOKENS", 10_000)
    monkeypatch.setattr(token_parts, "_HELD_TOKENS", 20_000)

    def peak(name, parts):
        contents = [[[7] * 20] * 1000] * parts
        shuffled = Shuffled(tmp_path / name, write(tmp_path / name, contents), U2)
        tracemalloc.start()
        tokens = sum(len(ids) for _, ids in shuffled.groups(100))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert tokens == 20_000 * parts
        return held

    small, large = peak("small", 4), peak("large", 16)
    assert large < 1.3 * small


def test_a_part_is_recognised_until_a_byte_of_it_changes(tmp_path):
    ((part, figures),) = write(tmp_path, [[[1, 2, 3], [4, 5]]])
    assert read_figures(tmp_path, part) == figures
    assert (figures.documents, figures.sequences, figures.tokens) == (2, 2, 5)
    file = tmp_path / str(part) / "sequences"
    file.write_bytes(file.read_bytes()[::-1])
    assert read_figures(tmp_path, part) is None
    file.unlink()
    assert read_figures(tmp_path, part) is None
    (tmp_path / str(part) / "part.json").write_text("[]")
    assert read_figures(tmp_path, part) is None


def test_the_merge_lets_go_of_what_it_has_given_before_it_reads_on(tmp_path, monkeypatch):
    monkeypatch.setattr(token_parts, "_RANGE_TOKENS", 50_000)
    monkeypatch.setattr(token_parts, "_HELD_TOKENS", 100_000)
    shuffled = Shuffled(tmp_path / "work", write(tmp_path / "work", [[[7] * 100] * 1000] * 4), U2)
    tracemalloc.start()
    tokens = sum(len(ids) for _, ids in shuffled.groups(10))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tokens == 400_000
    assert held < 1.5 * 100_000 * U2.itemsize
