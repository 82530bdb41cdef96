import numpy as np
import pytest

from stages.config import MaskingConfig
from stages.errors import InputError
from stages.masking import Masker, Unmasked, next_tokens

VOCABULARY, MASK = 1000, 4
SPECIAL = [0, 1, 2, 3, 4]


def masker(*, split="train", counts=None, mask_id=MASK, **changes):
    config = {
        "probability": 0.15,
        "evaluation_probability": 0.4,
        "mask": 0.8,
        "random": 0.1,
        "smoothing": 0.7,
        "variants": 2,
        "seed": 0,
    }
    counts = np.full(VOCABULARY, 50) if counts is None else counts
    return Masker(
        MaskingConfig(**{**config, **changes}),
        split=split,
        token_counts=counts,
        special_ids=SPECIAL,
        mask_id=mask_id,
        vocabulary_size=VOCABULARY,
    )


def sequence(index, length=64):
    return np.concatenate([[2], np.random.default_rng(index).integers(5, VOCABULARY, length - 2), [3]]).astype(
        np.uint16
    )


def test_a_mask_is_a_pure_function_of_seed_split_variant_and_sequence():
    ids = sequence(0)
    one, two = masker(), masker()
    two.mask(99, 1, ids)  # what was masked before must not matter
    for first, second in zip(one.mask(7, 0, ids), two.mask(7, 0, ids), strict=True):
        np.testing.assert_array_equal(first, second)
    base = one.mask(7, 0, ids)[0]
    for other in (
        one.mask(8, 0, ids),
        one.mask(7, 1, ids),
        masker(seed=1).mask(7, 0, ids),
        masker(split="test").mask(7, 0, ids),
    ):
        assert not np.array_equal(base, other[0])


def test_the_masks_of_this_version_stay_what_they_are_on_every_machine():
    ids = np.arange(2, 34, dtype=np.uint16)
    _, masked = masker().mask(123, 0, ids)
    assert np.flatnonzero(masked).tolist() == [13, 14, 21, 22]


def test_special_and_unknown_tokens_are_never_chosen():
    ids = np.array([2, 0, 1, 4, 7, 3], np.uint16)
    for index in range(50):
        _, masked = masker(probability=0.9).mask(index, 0, ids)
        assert np.flatnonzero(masked).tolist() == [4]


def test_the_number_of_masked_tokens_is_the_share_rounded_up_or_down_without_bias():
    counts = [int(masker().mask(i, 0, sequence(i))[1].sum()) for i in range(600)]
    assert set(counts) == {9, 10}  # 0.15 * 64 = 9.6
    assert np.mean(counts) == pytest.approx(9.6, abs=0.08)


def test_validation_and_test_use_their_own_share():
    counts = [int(masker(split="test").mask(i, 0, sequence(i))[1].sum()) for i in range(100)]
    assert np.mean(counts) == pytest.approx(0.4 * 64, abs=0.3)


def test_eight_in_ten_chosen_tokens_become_the_mask_and_one_in_ten_a_random_id():
    masks = randoms = total = 0
    for index in range(800):
        ids = sequence(index)
        seen, masked = masker().mask(index, 0, ids)
        np.testing.assert_array_equal(seen[masked == 0], ids[masked == 0])
        chosen = masked == 1
        total += chosen.sum()
        masks += (seen[chosen] == MASK).sum()
        randoms += ((seen[chosen] != MASK) & (seen[chosen] != ids[chosen])).sum()
    assert masks / total == pytest.approx(0.8, abs=0.02)
    assert randoms / total == pytest.approx(0.1, abs=0.02)


def test_rare_tokens_are_chosen_as_much_more_often_as_the_smoothing_says():
    counts = np.full(VOCABULARY, 1)
    counts[500:] = 1000
    ids = np.array([10, 600] * 30, np.uint16)
    chosen = np.zeros(2)
    for index in range(400):
        _, masked = masker(counts=counts, probability=0.02).mask(index, 0, ids)
        chosen += [masked[0::2].sum(), masked[1::2].sum()]
    assert chosen[1] / chosen[0] == pytest.approx(1000**-0.7, rel=0.6)


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(InputError, match="no mask token"):
        masker(mask_id=None)


def test_a_causal_teacher_sees_every_token_and_predicts_the_next_one():
    ids = sequence(0)
    seen, masked = Unmasked().mask(7, 3, ids)
    np.testing.assert_array_equal(seen, ids)
    assert seen is not ids
    assert (masked.dtype, masked.any()) == (np.uint8, False)
    np.testing.assert_array_equal(next_tokens(ids, -100), [*ids[1:].tolist(), -100])
