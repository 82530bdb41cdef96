"""Our own writing and decoding of `sharding_indexed` files, held against zarr-python."""

import json

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from storage.manifest import FileRecord
from storage.sharded_file import Chunking, DamagedFileError, file_of, read_array, write_array

DTYPES = ["<u2", "<u4", "u1", "i1", "<f2", "<f4"]
FILL = {"u": 1, "i": -128, "f": float("nan")}


def codec(compressor, dtype):
    if compressor == "zstd":
        return ZstdCodec(level=1)
    return BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=np.dtype(dtype).itemsize)


def create(folder, data, rows, compressor):
    """The array's metadata, made by zarr-python."""
    chunks = max(1, -(-len(data) // rows))
    return zarr.create_array(
        LocalStore(folder),
        shape=data.shape,
        dtype=data.dtype,
        chunks=(rows, *data.shape[1:]),
        shards=(rows * chunks, *data.shape[1:]),
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[codec(compressor, data.dtype), Crc32cCodec()],
        fill_value=FILL[data.dtype.kind],
    )


def make(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(2, 100, shape).astype(dtype)


def anything(rows):
    return True


def decode(folder, data, check=anything):
    chunking = Chunking.of((folder / "zarr.json").read_bytes())
    out = np.empty(data.shape, data.dtype)
    read_array(file_of(folder, data.ndim), chunking, out, check)
    return out


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 40),
    row=st.sampled_from([(), (3,), (2, 5)]),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 45),
    compressor=st.sampled_from(["zstd", "blosc"]),
)
def test_the_file_is_the_one_that_zarr_python_writes_and_both_read_it(
    tmp_path_factory, length, row, dtype, rows, compressor
):
    folder, rows = tmp_path_factory.mktemp("array"), min(rows, length)
    data = make((length, *row), dtype)
    array = create(folder / "theirs", data, rows, compressor)
    array[...] = data
    create(folder / "ours", data, rows, compressor)
    file = file_of(folder / "ours", data.ndim)
    size, sha256 = write_array(file, data, rows, compressor, FILL[data.dtype.kind])
    assert file.read_bytes() == file_of(folder / "theirs", data.ndim).read_bytes()
    assert FileRecord(size, sha256) == FileRecord.of_file(file)
    np.testing.assert_array_equal(decode(folder / "theirs", data), data)
    np.testing.assert_array_equal(zarr.open_array(folder / "ours", mode="r")[...], data)


@pytest.fixture
def array(tmp_path):
    """An array of several chunks, the last one longer than what is left of the array."""
    data = make((50, 1, 16), "i1")
    create(tmp_path, data, 8, "zstd")
    write_array(file_of(tmp_path, 3), data, 8, "zstd", -128)
    return tmp_path, data


def test_every_flipped_bit_and_every_truncation_is_noticed(array):
    folder, data = array
    file = file_of(folder, 3)
    whole = file.read_bytes()
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            decode(folder, data)
    for size in range(0, len(whole), 7):
        file.write_bytes(whole[:size])
        with pytest.raises(DamagedFileError):
            decode(folder, data)
    file.write_bytes(whole + whole[-20:])
    with pytest.raises(DamagedFileError):
        decode(folder, data)


@pytest.mark.parametrize("compressor", ["zstd", "blosc"])
def test_a_chunk_of_another_size_leaves_nothing_of_what_was_in_the_memory_before(tmp_path, compressor):
    data = make((8, 300), "<u2")
    create(tmp_path, data, 8, compressor)
    write_array(file_of(tmp_path, 2), data[:, :200].copy(), 8, compressor, 1)  # a valid file of another array
    with pytest.raises(DamagedFileError, match=r"chunk 0 of 3200 bytes; expected 4800 bytes"):
        decode(tmp_path, data)


def test_a_chunk_that_zarr_python_left_out_because_it_is_all_fill_value_is_noticed(tmp_path):
    data = make((16, 4), "u1")
    array = create(tmp_path, data, 4, "zstd")
    data[4:8] = 1
    array[...] = data
    with pytest.raises(DamagedFileError, match="lacks a chunk"):
        decode(tmp_path, data)


def test_decoded_values_are_judged_chunk_by_chunk(array):
    folder, data = array
    asked = []

    def judge(rows):
        asked.append(len(rows))
        return len(asked) < 3

    with pytest.raises(DamagedFileError, match="holds fill values"):
        decode(folder, data, judge)
    assert asked == [8, 8, 8]


def cut(value, rows):
    """Inner and outer chunks of so many rows: nonsense that must not be believed."""
    value["codecs"][0]["configuration"]["chunk_shape"][0] = value["chunk_grid"]["configuration"]["chunk_shape"][0] = (
        rows
    )


def test_a_chunk_that_is_shorter_than_its_own_header_says_is_not_decompressed(tmp_path):
    """Blosc would read on behind it; a crc32c is right in a file that somebody made so."""
    data = make((64, 300), "<u2")
    create(tmp_path, data, 64, "blosc")
    file = file_of(tmp_path, 2)
    write_array(file, data, 64, "blosc", 1)
    short = file.read_bytes()[:40]
    crc = google_crc32c.value(short).to_bytes(4, "little")
    index = np.array([[0, len(short) + 4]], "<u8").tobytes()
    file.write_bytes(short + crc + index + google_crc32c.value(index).to_bytes(4, "little"))
    with pytest.raises(DamagedFileError, match="chunk 0 of unknown length; expected 38400 bytes"):
        decode(tmp_path, data)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(data_type="no such type"),
        lambda value: value.update(shape=[51, 1, 16]),
        lambda value: value["codecs"].append({"name": "crc32c"}),
        lambda value: value["codecs"][0]["configuration"].update(index_location="start"),
        lambda value: value["codecs"][0]["configuration"]["codecs"][1].update(name="gzip"),
        lambda value: value["codecs"][0]["configuration"]["codecs"].pop(),
        lambda value: value.update(storage_transformers=[{"name": "unknown"}]),
        lambda value: value.pop("chunk_grid"),
        lambda value: cut(value, 0),
        lambda value: cut(value, float("inf")),
        lambda value: cut(value, 10**15),
    ],
)
def test_an_array_that_another_writer_cut_or_coded_otherwise_is_left_to_zarr_python(array, change):
    folder, _ = array
    value = json.loads((folder / "zarr.json").read_bytes())
    change(value)
    # 51 rows fit into the same outer chunk: only the number of inner chunks decides.
    expected = Chunking((51, 1, 16), np.dtype("i1"), 8, "zstd") if value.get("shape") == [51, 1, 16] else None
    assert Chunking.of(json.dumps(value).encode()) == expected


def test_metadata_that_is_no_json_is_left_to_zarr_python():
    assert Chunking.of(b"{") is None
    assert Chunking.of(b"[]") is None
