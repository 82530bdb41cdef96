"""One shard on disk: a Zarr v3 group whose arrays are each written once and read whole (FORMAT.md, section 3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.buffer.cpu import NDBuffer
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from storage.arrays import TARGETS, ArraySpec, Target, array_table
from storage.codecs import row_values
from storage.description import CacheDescription
from storage.errors import FETCH_OR_MAKE_AGAIN, CorruptError
from storage.identity import digest_arrays
from storage.layout import FORMAT_VERSION, PARTS, Layout, ShardId
from storage.manifest import FileRecord, Files
from storage.shard_arrays import ShardArrays
from storage.sharded_file import (
    ZSTD_LEVEL,
    Chunking,
    DamagedFileError,
    file_of,
    read_array,
    write_array,
)

if TYPE_CHECKING:
    from zarr.core.buffer import NDArrayLike

Shapes = Sequence[tuple[tuple[int, ...], np.dtype[Any]]]
Allocate = Callable[[Shapes], Sequence[NDArray[Any]]]
"""Memory for arrays of these shapes and dtypes; called again, it may give the same memory again."""


def allocate_new(wanted: Shapes) -> list[NDArray[Any]]:
    """Memory of its own for each array."""
    return [np.empty(shape, dtype) for shape, dtype in wanted]


Engine = Literal["own", "zarr", "zarrs"]
"""What decodes: this project, zarr-python, or the package zarrs."""

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
    ArithmeticError,
    MemoryError,
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
    seen = ("sequence_offsets", "original_ids", "input_ids", "masked", "token_types")
    return digest_arrays(*(arrays[name] for name in seen if name in arrays))


def write_shard(
    folder: Path,
    arrays: Mapping[str, NDArray[Any]],
    table: Iterable[ArraySpec],
    attributes: dict[str, Any],
) -> Files:
    """Write encoded arrays as a Zarr group in the new folder `folder`; its files by path below that folder.

    Each array is written once and hashed on its way. Durability is the caller's.
    """
    files: Files = {}
    group = zarr.create_group(LocalStore(folder), zarr_format=3, attributes=attributes)
    for spec in table:
        data = arrays[spec.name]
        chunk_rows, chunks = _chunks(len(data), row_values(data) * data.itemsize)
        group.create_array(
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
            file = file_of(folder / spec.name, data.ndim)
            record = FileRecord(*write_array(file, data, chunk_rows, spec.compressor, spec.fill_value))
            files[file.relative_to(folder).as_posix()] = record
    for name in ("zarr.json", *(f"{name}/zarr.json" for name in group.array_keys())):
        files[name] = FileRecord.of_file(folder / name)
    return dict(sorted(files.items()))


def _chunks(rows: int, row_bytes: int) -> tuple[int, int]:
    """(rows per inner chunk, inner chunks): about 1 MiB each, with as little overhang past the last row as can be."""
    wanted = max(1, round(rows * row_bytes / _CHUNK_BYTES))
    chunk_rows = max(1, -(-rows // wanted))
    return chunk_rows, max(1, -(-rows // chunk_rows))


def _compressor(spec: ArraySpec) -> BytesBytesCodec:
    if spec.compressor == "blosc":
        return BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=spec.dtype.itemsize)
    return ZstdCodec(level=ZSTD_LEVEL)


def read_shard(
    folder: Path,
    description: CacheDescription,
    shard: ShardId,
    *,
    counts: Mapping[str, int],
    teacher_saw: str,
    allocate: Allocate = allocate_new,
    targets: Collection[Target] = TARGETS,
    engine: Engine = "own",
) -> ShardArrays:
    """The shard in `folder` with the given targets, checked against the description and its manifest's counts.

    `allocate` gives the memory that the arrays are decoded into, in the order of `array_table`.

    Raises `CorruptError`, naming shard and file, for a chunk that fails its crc32c or is missing (fill values), for
    arrays of another shape or dtype, and for content that contradicts the manifest.
    """
    _check_attributes(folder, description, shard, teacher_saw)
    arrays: dict[str, NDArray[Any]] = {}
    for spec, out in shard_memory(description, shard, counts, targets, allocate):
        try:
            (_read_own if engine == "own" else _read_with_zarr)(folder / spec.name, spec, out, engine)
        except DamagedFileError as damage:
            raise _corrupt(shard, spec.name, str(damage)) from damage
        except _READ_ERRORS as error:
            raise _corrupt(shard, spec.name, f"cannot be read ({_one_line(error)})") from error
        arrays[spec.name] = out
    if digest_of_what_the_teacher_saw(arrays) != teacher_saw:
        raise _corrupt(
            shard, "input_ids", "and its other token arrays have another digest than teacher_saw in the manifest"
        )
    return assemble(description, shard, arrays)


def shard_memory(
    description: CacheDescription,
    shard: ShardId,
    counts: Mapping[str, int],
    targets: Collection[Target],
    allocate: Allocate,
) -> list[tuple[ArraySpec, NDArray[Any]]]:
    """The arrays of a shard, each with its memory: who decodes a shard and who reads it in the same slot agree by this."""
    shapes = shard_shapes(description, shard, counts, targets)
    memory = allocate([(shape, spec.dtype) for spec, shape in shapes])
    return [(spec, array) for (spec, _), array in zip(shapes, memory, strict=True)]


def shard_shapes(
    description: CacheDescription, shard: ShardId, counts: Mapping[str, int], targets: Collection[Target]
) -> list[tuple[ArraySpec, tuple[int, ...]]]:
    """The arrays of a shard with their shapes, in the order of FORMAT.md, from the counts of its manifest: of targets the given ones.

    Raises `CorruptError` where these lack a count that an array needs.
    """
    _, sequences = description.span(shard)
    found: list[tuple[ArraySpec, tuple[int, ...]]] = []
    for spec in array_table(description, description.splits[shard.split].layout):
        if spec.target is not None and spec.target not in targets:
            continue
        try:
            found.append((spec, spec.shape({**counts, "sequences": sequences})))
        except KeyError as missing:
            raise _corrupt(shard, "its manifest", f"has no count of {missing}, which {spec.name} needs") from missing
    return found


def _check_attributes(folder: Path, description: CacheDescription, shard: ShardId, teacher_saw: str) -> None:
    try:
        group = json.loads((folder / "zarr.json").read_bytes())
        attributes = group["attributes"] if (group["zarr_format"], group["node_type"]) == (3, "group") else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(shard, "zarr.json", f"cannot be read ({_one_line(error)})") from error
    if attributes != shard_attributes(description, shard, teacher_saw):
        raise _corrupt(shard, "zarr.json", "has attributes that differ from cache.json and the shard's manifest")


def _read_own(array: Path, spec: ArraySpec, out: NDArray[Any], engine: Engine) -> None:
    """Decode one array into `out`, by zarr-python where its codecs are not the ones that our own writer uses."""
    chunking = Chunking.of((array / "zarr.json").read_bytes())
    if chunking is None:
        _read_with_zarr(array, spec, out, engine)
        return
    _expect(spec, out, chunking.shape, chunking.dtype)
    if out.size:
        read_array(file_of(array, out.ndim), chunking, out, spec.holds_only_data)


def _read_with_zarr(array: Path, spec: ArraySpec, out: NDArray[Any], engine: Engine) -> None:
    """Decode one array into `out` by zarr-python, or by the zarrs package underneath it."""
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"} if engine == "zarrs" else {}):
        stored = zarr.open_array(LocalStore(array, read_only=True), mode="r", zarr_format=3)
        _expect(spec, out, stored.shape, stored.dtype)
        if out.size:
            stored.get_basic_selection(..., out=NDBuffer(cast("NDArrayLike", out)))
    if not spec.holds_only_data(out):
        raise DamagedFileError("holds fill values or values out of range: a chunk is missing")


def _expect(spec: ArraySpec, out: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if shape != out.shape or dtype != spec.dtype:
        raise DamagedFileError(f"is {dtype} {shape}; expected {spec.dtype} {out.shape}")


def assemble(description: CacheDescription, shard: ShardId, arrays: Mapping[str, NDArray[Any]]) -> ShardArrays:
    """The arrays of a shard, by their names on disk, as sequences and rows.

    Raises `CorruptError` for offsets and counts that contradict the lengths of the arrays.
    """
    sequence_start, sequences = description.span(shard)
    sequence_ids = np.arange(sequence_start, sequence_start + sequences, dtype=np.int64)
    return _assemble(shard, arrays, sequence_ids, description.splits[shard.split].layout)


def _assemble(
    shard: ShardId, arrays: Mapping[str, NDArray[Any]], sequence_ids: NDArray[np.int64], layout: Layout
) -> ShardArrays:
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
    stat = arrays.get("stat")
    return ShardArrays(
        sequence_ids=sequence_ids,
        sequence_offsets=offsets,
        original_ids=arrays["original_ids"],
        input_ids=arrays["input_ids"],
        masked=arrays["masked"],
        row_token=row_token,
        row_offsets=np.searchsorted(row_token, offsets).astype(np.int64),
        stat=np.empty((len(row_token), 0), np.float32) if stat is None else stat,
        top_ids=arrays.get("top_ids"),
        logits={name: arrays[name] for name in ("top_logits", "top_gap") if name in arrays},
        hidden={name: arrays[name] for name in ("hidden", "hidden_scale") if name in arrays},
        top_count=arrays.get("top_count"),
        draw_count=arrays.get("draw_count"),
        draw_ids=arrays.get("draw_ids"),
        draw_weight=arrays.get("draw_weight"),
        attention={name: arrays[name] for part in PARTS for name in (part, f"{part}_scale") if name in arrays},
        hidden_layers=layout.hidden_layers,
        attention_layers=layout.attention_layers,
        task=layout.task,
        token_types=arrays.get("token_types"),
        task_labelled=arrays.get("task_labelled"),
        task_label=arrays.get("task_label"),
        task_logits=arrays.get("task_logits"),
    )


def _corrupt(shard: ShardId, file: str, what: str) -> CorruptError:
    return CorruptError(f"shard {shard}: {file} {what}; {FETCH_OR_MAKE_AGAIN}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
