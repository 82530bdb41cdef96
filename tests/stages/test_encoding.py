from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from stages.encoding import Encoder, Framing
from stages.errors import InputError
from storage.ragged import offsets_of
from tests.stages.tiny_tokenizers import KINDS, WORDS, bert_like, gpt2_like

TOKENIZERS = {kind: make() for kind, make in KINDS.items()}
KIND = st.sampled_from(sorted(KINDS))
TEXTS = st.lists(st.lists(st.sampled_from([*WORDS, "unheard", "[SEP]", "</s>"]), max_size=25).map(" ".join), max_size=8)
SHAPE = st.integers(4, 12).flatmap(lambda longest: st.tuples(st.just(longest), st.integers(3, longest)))


def encoder(tokenizer, longest=8, shortest=3, packing="document"):
    return Encoder.of(
        tokenizer, sequence_tokens=longest, min_sequence_tokens=shortest, packing=packing, dtype=np.dtype("u2")
    )


def sequences(tokenizer, batches, *shape, packing="document"):
    made = encoder(tokenizer, *shape, packing=packing)
    backend = made.prepare(tokenizer.backend_tokenizer)
    lengths, ids = made.sequences(backend, batches)
    return [ids[a:b].tolist() for a, b in pairwise(offsets_of(lengths))]


def by_transformers(tokenizer, texts, longest, shortest):
    pieces = tokenizer(texts, truncation=True, max_length=longest, return_overflowing_tokens=True)["input_ids"]
    return [piece for piece in pieces if len(piece) >= shortest]


@settings(deadline=None, max_examples=150)
@given(KIND, TEXTS.filter(bool), SHAPE, st.sampled_from(["right", "left"]))
def test_long_documents_are_cut_as_the_tokenizer_itself_does_it(kind, texts, shape, side):
    tokenizer = TOKENIZERS[kind]
    tokenizer.truncation_side = side
    expected = by_transformers(tokenizer, texts, *shape)
    assert sequences(tokenizer, [texts], *shape) == expected
    assert sequences(tokenizer, [[text] for text in texts], *shape) == expected


@settings(deadline=None, max_examples=150)
@given(KIND, TEXTS, SHAPE, st.integers(1, 8))
def test_packed_sequences_hold_all_documents_in_order_with_a_separator_between_them(kind, texts, shape, batch):
    tokenizer, (longest, shortest) = TOKENIZERS[kind], shape
    framing = Framing.of(tokenizer)
    batches = [texts[start : start + batch] for start in range(0, len(texts), batch)]
    packed = sequences(tokenizer, batches, longest, shortest, packing="full")
    assert packed == sequences(tokenizer, [texts], longest, shortest, packing="full")

    documents = [ids for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if ids] if texts else []
    stream = [token for ids in documents for token in (*ids, framing.separator)][:-1]
    room = longest - framing.size
    bodies = [stream[start : start + room] for start in range(0, len(stream), room)]
    expected = [[*framing.prefix, *body, *framing.suffix] for body in bodies]
    if expected and len(expected[-1]) < shortest:
        expected.pop()
    assert packed == expected
    assert all(len(sequence) == longest for sequence in packed[:-1])


def test_special_tokens_in_a_text_are_taken_apart_where_the_tokenizer_is_set_so():
    tokenizer = KINDS["roberta"]()
    tokenizer.split_special_tokens = True
    assert sequences(tokenizer, [["a </s> b"]], 12) == by_transformers(tokenizer, ["a </s> b"], 12, 3)
    assert len(sequences(tokenizer, [["a </s> b"]], 12)[0]) == 10


def test_padding_and_truncation_left_in_the_tokenizer_do_not_matter():
    tokenizer = bert_like()
    tokenizer.backend_tokenizer.enable_padding(length=30)
    tokenizer.backend_tokenizer.enable_truncation(3)
    assert sequences(tokenizer, [["alpha beta gamma"]]) == [[2, 5, 6, 7, 3]]


def test_what_separates_documents_is_what_the_tokenizer_ends_them_with():
    ends = {
        kind: tokenizer.convert_ids_to_tokens(Framing.of(tokenizer).separator) for kind, tokenizer in TOKENIZERS.items()
    }
    assert ends == {"bert": "[SEP]", "roberta": "</s>", "gpt2": "<|endoftext|>", "t5": "</s>"}


def test_a_tokenizer_without_a_separator_packs_nothing():
    tokenizer = gpt2_like()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"tokenize.packing is full.*neither a separator nor an end-of-text token"):
        encoder(tokenizer, packing="full")
    encoder(tokenizer)


def test_sequences_must_have_room_beside_the_special_tokens():
    tokenizer = bert_like()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] [CLS] $A [SEP] [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(InputError, match=r"sequence_tokens is 4, of which the tokenizer's special tokens take 4"):
        encoder(tokenizer, 4)


def test_special_tokens_in_the_middle_of_a_text_are_refused():
    tokenizer = bert_like()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP] $A", special_tokens=[("[SEP]", 3)]
    )
    with pytest.raises(InputError, match="into the middle of a text"):
        Framing.of(tokenizer)
