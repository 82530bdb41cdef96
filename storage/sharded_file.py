"""One array as one file: the `sharding_indexed` codec of Zarr v3, written in one pass and decoded chunk by chunk.

zarr-python writes the metadata (zarr.json) and can read the files; this module moves the bytes. It makes the file that
zarr-python would make, bit for bit, without its copies, and decodes into memory that is already there: each chunk of about
1 MiB is read, checked against its crc32c and decompressed while it is in the processor's cache.

    file  = chunk 0 | chunk 1 | ... | index | crc32c of the index
    chunk = compressed rows | crc32c of these          index = (offset u8, bytes u8) of each chunk

`tests/storage/test_sharded_file.py` holds both directions against zarr-python.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

Compressor = Literal["zstd", "blosc"]
Shape = tuple[int, ...]
Bytes = NDArray[np.uint8]
Check = Callable[[NDArray[Any]], bool]

ZSTD_LEVEL = 1
_CRC_BYTES = 4
_INDEX_ENTRY = 16
_ABSENT = 2**64 - 1
"""Offset and size of a chunk that is not in the file: all of it is the fill value."""


class DamagedFileError(Exception):
    """The file is not what the index, a crc32c or the array's shape say. The message has no subject."""


@dataclass(frozen=True)
class Chunking:
    """How the rows of an array are cut: `rows` in each chunk, the last one filled up to that with fill values."""

    shape: Shape
    dtype: np.dtype[Any]
    rows: int
    compressor: Compressor

    @property
    def chunks(self) -> int:
        """In the file."""
        return max(1, -(-self.shape[0] // self.rows))

    @property
    def index_bytes(self) -> int:
        """Of the index and its crc32c, at the end of the file."""
        return self.chunks * _INDEX_ENTRY + _CRC_BYTES

    def parts(self) -> Iterator[slice]:
        """The rows of each chunk."""
        for start in range(0, self.shape[0], self.rows):
            yield slice(start, min(start + self.rows, self.shape[0]))

    @classmethod
    def of(cls, metadata: bytes) -> Chunking | None:
        """That of an array's zarr.json; None for one that this module does not decode, and zarr-python may.

        Known are one outer chunk, inner chunks of whole rows, the codecs `bytes`, zstd or blosc, and crc32c, and the index at the end.
        """
        try:
            value = json.loads(metadata)
            shape = tuple(int(length) for length in value["shape"])
            (sharding,) = value["codecs"]
            configuration = sharding["configuration"]
            inner = tuple(int(length) for length in configuration["chunk_shape"])
            outer = tuple(int(length) for length in value["chunk_grid"]["configuration"]["chunk_shape"])
            first, compressor, last = configuration["codecs"]
            known = (
                sharding["name"] == "sharding_indexed"
                and configuration["index_location"] == "end"
                and [codec["name"] for codec in configuration["index_codecs"]] == ["bytes", "crc32c"]
                and inner[1:] == outer[1:] == shape[1:]
                and min(shape, default=-1) >= 0
                and 1 <= inner[0] <= max(1, shape[0])
                and outer[0] == max(1, -(-shape[0] // inner[0])) * inner[0]
                and (first["name"], last["name"]) == ("bytes", "crc32c")
                and first.get("configuration", {}).get("endian", "little") == "little"
                and compressor["name"] in ("zstd", "blosc")
                and value["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
                and not value.get("storage_transformers")
            )
            dtype = np.dtype(value["data_type"]).newbyteorder("<")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError):
            return None
        return cls(shape, dtype, inner[0], compressor["name"]) if known else None


def file_of(array: Path, dimensions: int) -> Path:
    """Where the one outer chunk of the array in the folder `array` lies."""
    return array.joinpath("c", *["0"] * dimensions)


def write_array(
    file: Path, data: NDArray[Any], rows: int, compressor: Compressor, fill_value: float
) -> tuple[int, str]:
    """Write a contiguous, not empty array as a new file, chunks of `rows` rows; its size and SHA-256 (hex).

    Every byte is written once and hashed on its way. Durability is the caller's.
    """
    chunking = Chunking(data.shape, data.dtype, rows, compressor)
    sha256, size = hashlib.sha256(), 0
    index = np.empty((chunking.chunks, 2), "<u8")
    file.parent.mkdir(parents=True)
    with file.open("xb", buffering=0) as out:

        def write(content: bytes) -> None:
            nonlocal size
            view = memoryview(content)
            while view:  # a raw file may take less than it is given
                view = view[out.write(view) :]
            sha256.update(content)
            size += len(content)

        for number, part in enumerate(chunking.parts()):
            chunk = data[part]
            if len(chunk) < rows:
                whole = np.full((rows, *data.shape[1:]), fill_value, data.dtype)
                whole[: len(chunk)] = chunk
                chunk = whole
            compressed = _compress(chunk, compressor)
            index[number] = size, len(compressed) + _CRC_BYTES
            write(compressed)
            write(_crc32c(compressed))
        table = index.tobytes()
        write(table + _crc32c(table))
    return size, sha256.hexdigest()


def read_array(file: Path, chunking: Chunking, out: NDArray[Any], holds_only_data: Check) -> None:
    """Decode the array in `file` into `out`, contiguous and of its shape and dtype.

    `holds_only_data(rows)` says whether decoded rows may be data: it is asked chunk by chunk. Raises `DamagedFileError`.
    """
    if not file.exists():
        raise DamagedFileError("is missing: it has no chunk file")
    buffer = np.empty(0, np.uint8)
    with file.open("rb", buffering=0) as source:
        index = _read_index(source.fileno(), chunking)
        for number, part in enumerate(chunking.parts()):
            offset, size = (int(entry) for entry in index[number])
            if len(buffer) < size:
                buffer = np.empty(size + size // 8, np.uint8)
            content = buffer[:size]
            _read_exactly(source.fileno(), content, offset, f"chunk {number}")
            _check_crc32c(content, f"chunk {number}")
            _decode_chunk(content[:-_CRC_BYTES], chunking, out[part], number)
            if not holds_only_data(out[part]):
                raise DamagedFileError("holds fill values or values out of range: a chunk is missing")


def _decode_chunk(compressed: Bytes, chunking: Chunking, rows: NDArray[Any], number: int) -> None:
    whole = rows
    if len(rows) < chunking.rows:  # the last chunk is longer than what is left of the array
        whole = np.empty((chunking.rows, *chunking.shape[1:]), chunking.dtype)
    target = whole.reshape(-1).view(np.uint8)
    found = _decoded_bytes(compressed, chunking.compressor)
    if found != target.nbytes:  # less would leave what was in `out` before
        shown = "unknown length" if found is None else f"{found} bytes"
        raise DamagedFileError(f"has a chunk {number} of {shown}; expected {target.nbytes} bytes")
    decompress = zstd.decompress if chunking.compressor == "zstd" else blosc.decompress
    try:
        decompress(compressed, target)
    except (RuntimeError, ValueError) as error:
        raise DamagedFileError(f"has a chunk {number} that does not decompress ({error})") from error
    if whole is not rows:
        rows[...] = whole[: len(rows)]


def _decoded_bytes(compressed: Bytes, compressor: Compressor) -> int | None:
    """What the header of a compressed chunk says of its decoded size; None where it does not."""
    header = bytes(compressed[:18])
    if compressor == "blosc":
        # The library believes the header's own length and reads on behind a shorter chunk.
        whole = len(header) >= 16 and int.from_bytes(header[12:16], "little") == len(compressed)
        return int.from_bytes(header[4:8], "little") if whole else None
    # RFC 8878, section 3.1.1.1: magic number, descriptor, perhaps a window byte and a dictionary id, the content size.
    if len(header) < 6 or header[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = header[4]
    single_segment = descriptor >> 5 & 1
    width = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if width == 0 or len(header) < start + width:
        return None
    return int.from_bytes(header[start : start + width], "little") + (256 if width == 2 else 0)


def _compress(chunk: NDArray[Any], compressor: Compressor) -> bytes:
    if compressor == "zstd":
        return zstd.compress(chunk, ZSTD_LEVEL)  # type: ignore[no-any-return]
    return blosc.compress(chunk, b"zstd", 1, blosc.SHUFFLE, 0, chunk.itemsize)  # type: ignore[no-any-return]


def _crc32c(content: bytes | Bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(_CRC_BYTES, "little")


def _check_crc32c(content: Bytes, what: str) -> None:
    if content[-_CRC_BYTES:].tobytes() != _crc32c(content[:-_CRC_BYTES]):
        raise DamagedFileError(f"has another crc32c than its own in {what}")


def _read_index(descriptor: int, chunking: Chunking) -> NDArray[np.uint64]:
    """u8 (chunks, 2): offset and size of each chunk, all of them inside the file."""
    size = os.fstat(descriptor).st_size
    start = size - chunking.index_bytes
    if start < 0:
        raise DamagedFileError(f"holds {size} bytes; its index alone has {chunking.index_bytes}")
    table = np.empty(chunking.index_bytes, np.uint8)
    _read_exactly(descriptor, table, start, "the index")
    _check_crc32c(table, "the index")
    index = table[:-_CRC_BYTES].view("<u8").reshape(-1, 2)
    if np.any(index == _ABSENT):
        raise DamagedFileError("lacks a chunk")
    offsets, sizes = index[:, 0], index[:, 1]
    if np.any(sizes <= _CRC_BYTES) or np.any(offsets > start) or np.any(sizes > start - np.minimum(offsets, start)):
        raise DamagedFileError("has an index that points outside of it")
    return index


def _read_exactly(descriptor: int, target: Bytes, offset: int, what: str) -> None:
    while len(target):
        count = os.preadv(descriptor, [target.data], offset)
        if count == 0:
            raise DamagedFileError(f"ends within {what}")
        target, offset = target[count:], offset + count
