import numpy as np
import pytest

from stages.batch_plan import BatchPlan
from stages.errors import ConfigError

SHARDS = (7, 5, 9, 3, 8, 6, 4)


def epoch_of(plan, epoch):
    return np.concatenate([plan.batch(epoch * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)])


def test_an_epoch_visits_every_sequence_once():
    plan = BatchPlan(SHARDS, batch_size=6, seed=0, variants=1)
    seen = [tuple(row) for row in epoch_of(plan, 0)]
    assert sorted(seen) == [(s, i) for s, count in enumerate(SHARDS) for i in range(count)]


def test_what_does_not_fill_a_batch_is_left_out_and_nothing_comes_twice():
    plan = BatchPlan(SHARDS, batch_size=8, seed=0, variants=1)
    seen = [tuple(row) for row in epoch_of(plan, 3)]
    assert plan.steps_per_epoch == 5
    assert len(seen) == len(set(seen)) == 40


def test_any_step_can_be_sought_without_the_ones_before():
    one, other = (BatchPlan(SHARDS, batch_size=6, seed=1, variants=2) for _ in range(2))
    forward = [one.batch(step) for step in range(20)]
    for step in reversed(range(20)):
        np.testing.assert_array_equal(other.batch(step), forward[step])


def test_epochs_and_seeds_differ_in_order():
    plan = BatchPlan(SHARDS, batch_size=6, seed=0, variants=1)
    assert not np.array_equal(epoch_of(plan, 0), epoch_of(plan, 1))
    assert not np.array_equal(epoch_of(plan, 0), epoch_of(BatchPlan(SHARDS, batch_size=6, seed=1, variants=1), 0))


def test_epochs_take_the_mask_variants_in_turn():
    plan = BatchPlan(SHARDS, batch_size=6, seed=0, variants=3)
    assert [plan.variant(epoch * plan.steps_per_epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]


def test_a_batch_larger_than_the_cache_is_refused():
    with pytest.raises(ConfigError, match=r"train.batch_size is 100; allowed: at most the 42"):
        BatchPlan(SHARDS, batch_size=100, seed=0, variants=1)


@pytest.mark.parametrize("batch_size", [1, 6, 8, 11])
@pytest.mark.parametrize(("first", "last"), [(0, 20), (3, 4), (7, 13), (5, 5)])
def test_the_windows_are_the_groups_of_shards_that_the_steps_visit_and_no_others(batch_size, first, last):
    plan = BatchPlan(SHARDS, batch_size=batch_size, seed=2, variants=3)
    windows = {number: (variant, shards) for number, variant, shards in plan.windows(first, last)}
    seen = set()
    for step in range(first, last):
        batch, numbers = plan.batch_and_windows(step)
        assert len(batch) == len(numbers)
        assert np.all(np.diff(numbers) >= 0)
        for (shard, _), number in zip(batch, numbers, strict=True):
            variant, shards = windows[number]
            assert variant == plan.variant(step)
            assert shard in shards
            seen.add(number)
    assert list(windows) == sorted(seen)
    assert all(len(shards) <= plan.window_shards for _, shards in windows.values())
