import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import canonical_json, differing_fields, digest_arrays, fingerprint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=10,
)


def test_canonical_json_sorts_keys_and_keeps_non_ascii_characters_and_no_spaces():
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_what_json_does_not_have(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": value})


def test_fingerprint_is_the_sha256_that_the_format_document_says():
    expected = hashlib.sha256(b'{"content":{"tokens":"ab"},"spec":{"k":1}}').hexdigest()
    assert fingerprint({"k": 1}, {"tokens": "ab"}) == expected


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}, {}) == fingerprint({"b": 2, "a": 1}, {})


def test_digest_of_arrays_is_over_little_endian_bytes_one_after_the_other():
    expected = hashlib.sha256(b"\x01\x00\x02\x00\x07").hexdigest()
    assert digest_arrays(np.array([1, 2], ">u2"), np.array([7], np.uint8)) == expected
    assert digest_arrays(np.array([[1], [2]], "<u2")[:, 0], np.array([7], np.uint8)) == expected


def test_differing_fields_are_dotted_with_both_values():
    expected = {"cache": {"top_k": 64, "positions": "all"}, "seed": 0}
    found = {"cache": {"top_k": 32, "positions": "all"}, "extra": {"x": [1]}}
    assert differing_fields(expected, found) == (
        "cache.top_k: 64 expected, 32 in the cache",
        "extra.x: nothing expected, [1] in the cache",
        "seed: 0 expected, nothing in the cache",
    )


def test_differing_fields_say_where_the_found_values_stand():
    assert differing_fields({"layers": 6}, {"layers": 3}, found_in="in models/student-init/half") == (
        "layers: 6 expected, 3 in models/student-init/half",
    )


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_equal_values_have_no_differing_fields(value):
    assert differing_fields(value, value) == ()
