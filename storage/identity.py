"""What makes two caches the same: canonical JSON, digests, and the fields in which two identities differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ABSENT = object()


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises `ValueError` for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def fingerprint(spec: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of `{"content": content, "spec": spec}`: the name of a cache."""
    return hashlib.sha256(canonical_json({"content": content, "spec": spec})).hexdigest()


def digest_arrays(*arrays: NDArray[Any]) -> str:
    """SHA-256 (hex) of the little-endian bytes of the arrays, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        little_endian = array.dtype.newbyteorder("<")
        digest.update(np.ascontiguousarray(array, dtype=little_endian).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def differing_fields(
    expected: Mapping[str, Any], found: Mapping[str, Any], *, found_in: str = "in the cache"
) -> tuple[str, ...]:
    """The fields in which two nested mappings differ, dotted, with both values; `found_in` says where `found` stands.

    For example `cache.top_k: 64 expected, 32 in the cache`. Lists are compared as a whole.
    """
    wanted, present = dict(leaves(expected)), dict(leaves(found))
    return tuple(
        f"{key}: {_show(wanted.get(key, _ABSENT))} expected, {_show(present.get(key, _ABSENT))} {found_in}"
        for key in sorted(wanted.keys() | present.keys())
        if _show(wanted.get(key, _ABSENT)) != _show(present.get(key, _ABSENT))
    )


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that is no mapping, or an empty one."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _show(value: object) -> str:
    return "nothing" if value is _ABSENT else canonical_json(value).decode("utf-8")
