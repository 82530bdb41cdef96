import json

import numpy as np
import pytest

from storage import CacheReader, CacheWork, ShardId
from storage.arrays import ArraySpec
from storage.shard import write_shard
from tests.storage.build import MASKED, add_files, make_description, make_targets

SPEC = ArraySpec("stat", "rows", np.dtype("<f4"), (256,), "blosc", float("nan"), None)


def write(folder, rows):
    write_shard(folder, {"stat": np.ones((rows, 256), np.float32)}, [SPEC], {})
    metadata = json.loads((folder / "stat" / "zarr.json").read_bytes())
    files = [path for path in (folder / "stat").rglob("*") if path.is_file() and path.name != "zarr.json"]
    outer = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    inner = metadata["codecs"][0]["configuration"]["chunk_shape"]
    return files, outer, inner


@pytest.mark.parametrize("rows", [1, 1000, 1024, 5000, 5121])
def test_an_array_is_one_file_of_inner_chunks_of_whole_rows_and_about_a_mebibyte(tmp_path, rows):
    files, outer, inner = write(tmp_path / "shard", rows)
    assert len(files) == 1
    assert outer[0] >= rows
    assert outer[0] % inner[0] == 0
    assert outer[0] - rows < inner[0]
    assert inner[1] == outer[1] == 256
    assert inner[0] * 1024 <= 1.5 * 2**20
    assert rows < 1024 or inner[0] * 1024 >= 0.6 * 2**20


def test_an_array_without_rows_has_no_chunk_file(tmp_path):
    files, _, _ = write(tmp_path / "shard", 0)
    assert files == []


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    values = np.random.default_rng(0).standard_normal((4000, 256)).astype(np.float32)
    for name in ("one", "two"):
        write_shard(tmp_path / name, {"stat": values}, [SPEC], {"a": 1})
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_shard_without_a_masked_token_is_stored_and_read(tmp_path):
    description = make_description(MASKED, shards=1)
    shard = ShardId("train", 0, 0)
    full = make_targets(description, shard)
    with CacheWork.open(tmp_path / "work", description) as work:
        add_files(work, tmp_path)
        for other in work.missing()[1:]:
            work.publish(other, make_targets(description, other), {}, {})
        empty = type(full)(
            sequence_offsets=full.sequence_offsets,
            original_ids=full.original_ids,
            input_ids=full.original_ids,
            masked=np.zeros_like(full.masked),
            row_token=full.row_token[:0],
            stat=full.stat[:0],
            top_ids=full.top_ids[:0],
            top_logits=full.top_logits[:0],
            hidden=full.hidden[:0],
        )
        work.publish(shard, empty, {}, {})
        work.finish(tmp_path / "current")
    arrays = CacheReader(tmp_path / "current").load(shard)
    assert arrays.rows == 0
    assert arrays.decoded_hidden(MASKED).shape == (0, 2, 24)
    assert arrays.decoded_logits(MASKED).shape == (0, 8)
    assert arrays.select(np.array([1, 0])).rows == 0
