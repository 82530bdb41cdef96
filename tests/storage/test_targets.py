import numpy as np
import pytest

from storage import CacheWork, InvalidTargetsError, ShardId
from storage.arrays import array_table
from tests.storage.build import LAYOUTS, make_description, make_targets

SHARD = ShardId("train", 0, 1)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_encoding_gives_the_arrays_of_the_table_with_their_shapes_and_dtypes(layout):
    description = make_description(layout)
    targets = make_targets(description, SHARD)
    arrays = targets.encode(description, layout)
    table = array_table(description, layout)
    assert list(arrays) == [spec.name for spec in table]
    for spec in table:
        assert arrays[spec.name].dtype == spec.dtype
        assert arrays[spec.name].shape == spec.shape(targets.counts)
        assert spec.holds_only_data(arrays[spec.name])


def test_entries_and_draws_are_counted_where_rows_differ_in_them():
    counted = {"sequences", "tokens", "rows", "masked"}
    for name, extra in {"balanced": set(), "threshold": {"entries"}, "draws": {"draws"}}.items():
        assert make_targets(make_description(LAYOUTS[name]), SHARD).counts.keys() == counted | extra
    targets = make_targets(make_description(LAYOUTS["tail"]), SHARD)
    assert targets.counts["entries"] == targets.top_count.sum() == len(targets.top_ids)
    assert targets.counts["draws"] == targets.draw_count.sum() == len(targets.draw_ids)


def test_nothing_is_stored_when_targets_are_refused(tmp_path):
    description = make_description()
    targets = make_targets(description, SHARD)
    targets.stat[0, 0] = np.nan
    with CacheWork.open(tmp_path, description) as work:
        with pytest.raises(InvalidTargetsError):
            work.publish(SHARD, targets, {}, {})
        assert not any((work.folder / "shards").iterdir())
        assert SHARD in work.missing()
