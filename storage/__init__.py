"""The teacher cache on disk: format, codecs, writing and reading. Knows no torch. See FORMAT.md beside this file."""

from __future__ import annotations

from storage.arrays import Target
from storage.cached_sequences import CachedSequences, Column
from storage.codecs import (
    decode_logits,
    decode_vectors,
    encode_hidden,
    encode_logits,
    encode_vectors,
)
from storage.description import CacheDescription, SplitDescription
from storage.errors import (
    CacheError,
    CorruptError,
    FormatError,
    IncompleteError,
    InvalidTargetsError,
    LockedError,
    MismatchError,
)
from storage.identity import canonical_json, differing_fields, digest_arrays, fingerprint
from storage.layout import (
    FORMAT_VERSION,
    PARTS,
    SPLITS,
    DrawFromName,
    HiddenName,
    Layout,
    LogitsName,
    PartName,
    PositionsName,
    SelectionName,
    ShardId,
    Split,
    VectorName,
)
from storage.loader import ShardLoader
from storage.loader_process import SharedBy
from storage.part import Part
from storage.publication import ShardPublisher
from storage.reader import CacheReader
from storage.shard_arrays import ShardArrays
from storage.slots import decoded_bytes
from storage.targets import ShardTargets
from storage.verify import Verified, verify_cache
from storage.work import CacheWork

__all__ = [
    "FORMAT_VERSION",
    "PARTS",
    "SPLITS",
    "CacheDescription",
    "CacheError",
    "CacheReader",
    "CacheWork",
    "CachedSequences",
    "Column",
    "CorruptError",
    "DrawFromName",
    "FormatError",
    "HiddenName",
    "IncompleteError",
    "InvalidTargetsError",
    "Layout",
    "LockedError",
    "LogitsName",
    "MismatchError",
    "Part",
    "PartName",
    "PositionsName",
    "SelectionName",
    "ShardArrays",
    "ShardId",
    "ShardLoader",
    "ShardPublisher",
    "ShardTargets",
    "SharedBy",
    "Split",
    "SplitDescription",
    "Target",
    "VectorName",
    "Verified",
    "canonical_json",
    "decode_logits",
    "decode_vectors",
    "decoded_bytes",
    "differing_fields",
    "digest_arrays",
    "encode_hidden",
    "encode_logits",
    "encode_vectors",
    "fingerprint",
    "verify_cache",
]
