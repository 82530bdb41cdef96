import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.batch_plan import BatchPlan, divided
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


PLANS = st.builds(
    BatchPlan,
    st.lists(st.integers(1, 12), min_size=3, max_size=12).map(tuple),
    batch_size=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    variants=st.integers(1, 3),
)


@settings(max_examples=60, deadline=None)
@given(plan=PLANS, epoch=st.integers(0, 5))
def test_an_epoch_of_any_plan_visits_no_sequence_twice_and_leaves_out_less_than_a_batch(plan, epoch):
    seen = {tuple(row) for row in epoch_of(plan, epoch).tolist()}
    assert len(seen) == plan.steps_per_epoch * plan.batch_size
    every = {(s, i) for s, count in enumerate(plan.sequences_per_shard) for i in range(count)}
    assert seen <= every
    assert len(every - seen) < plan.batch_size
    steps = [epoch * plan.steps_per_epoch + within for within in (0, plan.steps_per_epoch - 1)]
    assert {plan.variant(step) for step in steps} == {epoch % plan.variants}


@st.composite
def steps(draw):
    """The lengths that each window gives to a step, and how the step is divided."""
    world_size, micro_batch_size, passes = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    count = world_size * micro_batch_size * passes
    lengths = np.array(draw(st.lists(st.integers(1, 512), min_size=count, max_size=count)))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(lengths) - 1)), max_size=3)))
    return world_size, micro_batch_size, passes, [part for part in np.split(lengths, cuts) if len(part)]


@settings(max_examples=100, deadline=None)
@given(steps())
def test_the_ranks_share_a_step_in_passes_that_do_not_depend_on_how_many_ranks_there_are(step):
    world_size, micro_batch_size, passes, windows = step
    in_pass = world_size * micro_batch_size

    def taken(rank, world_size):
        """By pass: (window, sequence) of each sequence."""
        found, begin = [[] for _ in range(passes)], 0
        for window, lengths in enumerate(windows):
            for number, chosen in divided(lengths, begin, in_pass=in_pass, rank=rank, world_size=world_size):
                found[number] += [(window, int(i)) for i in chosen]
            begin += len(lengths)
        return found

    whole = taken(0, 1)
    ranks = [taken(rank, world_size) for rank in range(world_size)]
    assert sorted(itertools.chain(*whole)) == [(w, i) for w, lengths in enumerate(windows) for i in range(len(lengths))]
    for number in range(passes):
        assert [len(rank[number]) for rank in ranks] == [micro_batch_size] * world_size
        assert sorted(itertools.chain(*(rank[number] for rank in ranks))) == sorted(whole[number])
    for window, lengths in enumerate(windows):
        in_order = [[int(lengths[i]) for w, i in some if w == window] for some in whole]
        flat = list(itertools.chain(*in_order))
        assert flat == sorted(flat, reverse=True)


def test_ranks_get_lengths_that_differ_by_little():
    lengths = np.random.default_rng(0).integers(8, 512, 256)
    totals = [
        sum(int(lengths[chosen].sum()) for _, chosen in divided(lengths, 0, in_pass=64, rank=rank, world_size=8))
        for rank in range(8)
    ]
    assert max(totals) - min(totals) < 512  # less than one sequence, of some 8,000 tokens each
