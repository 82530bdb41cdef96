"""One shard on disk: a Zarr v3 group whose arrays are each written once and read whole (FORMAT.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from storage.arrays import ArraySpec, array_table
from storage.codecs import row_values
from storage.description import CacheDescription
from storage.errors import CorruptError
from storage.identity import digest_arrays
from storage.layout import FORMAT_VERSION, ShardId
from storage.shard_arrays import ShardArrays

_CHUNK_BYTES = 1 << 20
"""Of one inner chunk before compression: the size that reads fastest."""

_READ_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    zarr.errors.BaseZarrError,
)
"""What zarr and numcodecs raise for damaged files: each layer has its own."""


def shard_attributes(description: CacheDescription, shard: ShardId, teacher_saw: str) -> dict[str, Any]:
    """The attributes of a shard's group."""
    sequence_start, sequence_count = description.span(shard)
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": description.fingerprint,
        "shard": str(shard),
        "sequence_start": sequence_start,
        "sequence_count": sequence_count,
        "layout": description.splits[shard.split].layout.to_json(),
        "teacher_saw": teacher_saw,
    }


def digest_of_what_the_teacher_saw(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (hex) of the arrays that align tokens, masks and rows."""
    return digest_arrays(*(arrays[name] for name in ("sequence_offsets", "original_ids", "input_ids", "masked")))


def write_shard(
    folder: Path,
    arrays: Mapping[str, NDArray[Any]],
    table: Iterable[ArraySpec],
    attributes: dict[str, Any],
) -> None:
    """Write encoded arrays as a Zarr group in the new folder `folder`. Durability is the caller's."""
    group = zarr.create_group(LocalStore(folder), zarr_format=3, attributes=attributes)
    for spec in table:
        data = arrays[spec.name]
        chunk_rows, chunks = _chunks(len(data), row_values(data) * data.itemsize)
        array = group.create_array(
            spec.name,
            shape=data.shape,
            dtype=data.dtype,
            chunks=(chunk_rows, *data.shape[1:]),
            shards=(chunk_rows * chunks, *data.shape[1:]),
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=[_compressor(spec), Crc32cCodec()],
            fill_value=spec.fill_value,
        )
        if data.size:
            array[...] = data


def _chunks(rows: int, row_bytes: int) -> tuple[int, int]:
    """(rows per inner chunk, inner chunks): about 1 MiB each, with as little overhang past the last row as can be."""
    wanted = max(1, round(rows * row_bytes / _CHUNK_BYTES))
    chunk_rows = max(1, -(-rows // wanted))
    return chunk_rows, max(1, -(-rows // chunk_rows))


def _compressor(spec: ArraySpec) -> BytesBytesCodec:
    if spec.compressor == "blosc":
        return BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=spec.dtype.itemsize)
    return ZstdCodec(level=1)


def read_shard(
    folder: Path, description: CacheDescription, shard: ShardId, *, counts: Mapping[str, int], teacher_saw: str
) -> ShardArrays:
    """All arrays of the shard in `folder`, checked against the description and its manifest's counts.

    Raises `CorruptError`, naming shard and file, for a chunk that fails its crc32c or is missing (fill values), for
    arrays of another shape or dtype, and for content that contradicts the manifest.
    """
    sequence_start, sequences = description.span(shard)
    arrays: dict[str, NDArray[Any]] = {}
    try:
        group = zarr.open_group(LocalStore(folder, read_only=True), mode="r", zarr_format=3, use_consolidated=False)
        attributes = dict(group.attrs)
    except _READ_ERRORS as error:
        raise _corrupt(shard, "zarr.json", f"cannot be read ({_one_line(error)})") from error
    if attributes != shard_attributes(description, shard, teacher_saw):
        raise _corrupt(shard, "zarr.json", "has attributes that differ from cache.json and the shard's manifest")
    for spec in array_table(description, description.splits[shard.split].layout):
        try:
            array = group[spec.name]
            data = np.asarray(array[...] if isinstance(array, zarr.Array) else None)
        except _READ_ERRORS as error:
            raise _corrupt(shard, spec.name, f"cannot be read ({_one_line(error)})") from error
        try:
            shape = spec.shape({**counts, "sequences": sequences})
        except KeyError as missing:
            raise _corrupt(shard, "its manifest", f"has no count of {missing}, which {spec.name} needs") from missing
        if data.shape != shape or data.dtype != spec.dtype:
            raise _corrupt(shard, spec.name, f"is {data.dtype} {data.shape}; expected {spec.dtype} {shape}")
        if not spec.holds_only_data(data):
            raise _corrupt(shard, spec.name, "holds fill values or values out of range: a chunk is missing")
        arrays[spec.name] = data
    if digest_of_what_the_teacher_saw(arrays) != teacher_saw:
        raise _corrupt(
            shard, "input_ids", "and its other token arrays have another digest than teacher_saw in the manifest"
        )
    return _assemble(shard, arrays, np.arange(sequence_start, sequence_start + sequences, dtype=np.int64))


def _assemble(shard: ShardId, arrays: dict[str, NDArray[Any]], sequence_ids: NDArray[np.int64]) -> ShardArrays:
    offsets, tokens = arrays["sequence_offsets"], len(arrays["original_ids"])
    if offsets[0] != 0 or offsets[-1] != tokens or np.any(offsets[1:] < offsets[:-1]):
        raise _corrupt(shard, "sequence_offsets", f"does not ascend from 0 to the number of tokens, {tokens}")
    row_token = arrays.get("row_token")
    if row_token is None:
        row_token = np.arange(tokens, dtype=np.uint32)
    elif len(row_token) and (row_token[-1] >= tokens or np.any(row_token[1:] <= row_token[:-1])):
        raise _corrupt(shard, "row_token", f"does not ascend strictly below the number of tokens, {tokens}")
    for counts, entries in (("top_count", "top_ids"), ("draw_count", "draw_ids")):
        if counts in arrays and (found := int(arrays[counts].sum(dtype=np.int64))) != len(arrays[entries]):
            raise _corrupt(shard, counts, f"sums to {found}; expected the length of {entries}, {len(arrays[entries])}")
    return ShardArrays(
        sequence_ids=sequence_ids,
        sequence_offsets=offsets,
        original_ids=arrays["original_ids"],
        input_ids=arrays["input_ids"],
        masked=arrays["masked"],
        row_token=row_token,
        row_offsets=np.searchsorted(row_token, offsets).astype(np.int64),
        stat=arrays["stat"],
        top_ids=arrays.get("top_ids"),
        logits={name: arrays[name] for name in ("top_logits", "top_gap") if name in arrays},
        hidden={name: arrays[name] for name in ("hidden", "hidden_scale") if name in arrays},
        top_count=arrays.get("top_count"),
        draw_count=arrays.get("draw_count"),
        draw_ids=arrays.get("draw_ids"),
        draw_weight=arrays.get("draw_weight"),
    )


def _corrupt(shard: ShardId, file: str, what: str) -> CorruptError:
    return CorruptError(
        f"shard {shard}: {file} {what}; "
        "fetch the cache again (`dvc checkout` or `dvc pull`) or run `pipeline cache-teacher`"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
