import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch

from stages.batch_plan import BatchPlan
from stages.batches import PlannedBatches, Wanted, slots_for
from stages.config import ConfigError
from storage import CacheReader, CorruptError, ShardLoader, SharedBy, decoded_bytes
from tests.stages.batches.conftest import EVERYTHING
from tests.storage.build import LAYOUTS, build_cache, make_description
from tests.storage.damage import flip_a_bit

TOKENS_ONLY = Wanted(hidden=False, logits=False)


def plan_of(reader, batch_size=8):
    return BatchPlan(tuple(n for _, n in reader.description.splits["train"].shards), batch_size, 0, 1)


def test_ranks_share_every_batch_without_overlap(reader):
    def sequences(rank, world_size):
        batches = PlannedBatches(
            reader, plan_of(reader), wanted=Wanted(hidden=False, logits=False), micro_batch_size=8 // world_size,
            first_step=0, last_step=4, rank=rank, world_size=world_size,
        )  # fmt: skip
        return [
            sorted(map(tuple, batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 0).tolist()))
            for batch in batches
        ]

    def strip(rows):
        return sorted(tuple(token for token in row if token) for row in rows)

    whole = [strip(rows) for rows in sequences(0, 1)]
    halves = [strip(one + other) for one, other in zip(sequences(0, 2), sequences(1, 2), strict=True)]
    assert halves == whole


def test_batches_from_a_later_step_are_those_of_the_whole_run(reader):
    def batches(first):
        return list(
            PlannedBatches(
                reader, plan_of(reader), wanted=EVERYTHING, micro_batch_size=4, first_step=first, last_step=6
            )
        )

    for one, other in zip(batches(0)[6:], batches(3), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("seed", range(4))
def test_ranks_that_take_nothing_from_a_window_read_on_with_the_least_memory(tmp_path, seed):
    """More ranks than the last window of an epoch has sequences, and no slot to spare."""
    cached = CacheReader(build_cache(tmp_path, make_description(shards=5)))
    plan = BatchPlan(tuple(count for _, count in cached.description.splits["train"].shards), 8, seed, 1)
    least = 4 * decoded_bytes(cached, cached.shards("train"))
    shared_by = tmp_path / "socket"

    def batches(rank, shared):
        return list(
            PlannedBatches(
                cached, plan, wanted=EVERYTHING, micro_batch_size=1, first_step=0, last_step=9, rank=rank, world_size=8,
                memory_bytes=least, shared_by=SharedBy(rank=rank, size=8, address=shared_by) if shared else None,
            )
        )  # fmt: skip

    alone = [batches(rank, shared=False) for rank in range(8)]
    with ThreadPoolExecutor(8) as ranks:
        together = list(ranks.map(lambda rank: batches(rank, shared=True), range(8)))
    for one, other in zip(alone, together, strict=True):
        for expected, found in zip(one, other, strict=True):
            assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_least_memory_that_a_refusal_names_is_enough(reader):
    plan = plan_of(reader)
    with pytest.raises(ConfigError) as refused:
        slots_for(reader, plan, EVERYTHING, 5000)
    least = float(re.search(r"allowed: (\S+) or more", str(refused.value))[1])
    assert slots_for(reader, plan, EVERYTHING, int(least * 2**30))[0] >= plan.window_shards


def test_the_batches_do_not_depend_on_how_much_memory_there_is(reader):
    def batches(**memory):
        return list(
            PlannedBatches(
                reader, plan_of(reader), wanted=EVERYTHING, micro_batch_size=4, first_step=1, last_step=9, **memory
            )
        )

    least = 4 * decoded_bytes(reader, reader.shards("train"))
    for one, other in zip(batches(), batches(memory_bytes=least), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_memory_that_does_not_hold_the_shards_of_a_window_is_refused(reader):
    batches = PlannedBatches(
        reader, plan_of(reader), wanted=EVERYTHING, micro_batch_size=4, first_step=0, last_step=1, memory_bytes=5000
    )
    with pytest.raises(ConfigError, match=r"machine.shard_memory_gb is 4.66e-06; allowed: 0.\d+ or more, as 4 shards"):
        next(iter(batches))


def ids_of(batch):
    """The tokens of each sequence."""
    return [
        tuple(row[real == 1].tolist()) for row, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


@pytest.mark.parametrize(("micro_batch_size", "world_size"), [(12, 1), (3, 1), (2, 3)])
def test_micro_batches_of_any_size_and_any_number_of_ranks_make_up_the_steps_of_the_plan(
    tmp_path, micro_batch_size, world_size
):
    cached = CacheReader(build_cache(tmp_path, make_description(LAYOUTS["masked"], variants=2, shards=7)))
    plan = BatchPlan(tuple(count for _, count in cached.description.splits["train"].shards), 12, 3, 2)
    steps = range(1, 2 * plan.steps_per_epoch + 1)  # into a third epoch, back to the first variant
    per_step = 12 // micro_batch_size // world_size
    ranks = [
        iter(
            PlannedBatches(
                cached, plan, wanted=TOKENS_ONLY, micro_batch_size=micro_batch_size, first_step=steps.start,
                last_step=steps.stop, rank=rank, world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]  # fmt: skip
    loaded = [[cached.load(shard) for shard in cached.shards("train", variant)] for variant in range(2)]
    for step in steps:
        found = []
        for _ in range(per_step):
            of_ranks = [ids_of(next(rank)) for rank in ranks]
            assert [len(ids) for ids in of_ranks] == [micro_batch_size] * world_size
            found += list(itertools.chain(*of_ranks))
        shards = loaded[plan.variant(step)]
        expected = [ids_of_one(shards[shard], place) for shard, place in plan.batch(step)]
        assert sorted(found) == sorted(expected)
    for rank in ranks:
        assert next(rank, None) is None


def ids_of_one(arrays, place):
    begin, end = arrays.sequence_offsets[place : place + 2]
    return tuple(arrays.input_ids[begin:end].tolist())


def test_micro_batches_hold_sequences_of_similar_length_the_longest_first(tmp_path):
    cached = CacheReader(build_cache(tmp_path, make_description(shards=3, sequences_per_shard=16)))
    plan = BatchPlan((16, 16, 16), 48, 0, 1)  # one window, one step
    batches = PlannedBatches(cached, plan, wanted=TOKENS_ONLY, micro_batch_size=4, first_step=0, last_step=1)
    lengths = [[len(ids) for ids in ids_of(batch)] for batch in batches]
    for some, after in itertools.pairwise(lengths):
        assert min(some) >= max(after)


def test_a_training_on_logits_neither_decodes_hidden_states_nor_holds_them(tmp_path):
    folder = build_cache(tmp_path, make_description(LAYOUTS["balanced"], shards=5))
    cached = CacheReader(folder)
    plan = BatchPlan((5,) * 5, 5, 0, 1)
    logits, both = Wanted(hidden=False, logits=True), Wanted(hidden=True, logits=True)

    def batches(wanted, **memory):
        return list(
            PlannedBatches(cached, plan, wanted=wanted, micro_batch_size=5, first_step=0, last_step=5, **memory)
        )

    assert slots_for(cached, plan, logits, 1 << 20)[1] < slots_for(cached, plan, both, 1 << 20)[1]
    enough = 4 * decoded_bytes(cached, cached.shards("train"), {"logits"})
    expected = batches(both)
    flip_a_bit(folder / "shards/train-v0-000003.zarr/hidden/c/0/0/0", 20)
    for one, other in zip(batches(logits, memory_bytes=enough), expected, strict=True):
        assert one.keys() == other.keys() - {"hidden", "hidden_scale"}
        assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(CorruptError, match=r"shard train-v0-000003: hidden .* crc32c"):
        batches(both)
    (folder / "shards/train-v0-000003.zarr/hidden/c/0/0/0").write_bytes(b"")  # that it is whole is checked all the same
    with pytest.raises(CorruptError, match=r"train-v0-000003.zarr/hidden/c/0/0/0"):
        batches(logits)


def test_batches_before_a_damaged_shard_still_come(tmp_path, threads_left):
    folder = build_cache(tmp_path, make_description(LAYOUTS["balanced"], shards=9))
    cached = CacheReader(folder)
    plan = BatchPlan((5,) * 9, 5, 0, 1)
    first_of_second_window = list(plan.windows(0, 9))[1][2][0]
    flip_a_bit(folder / f"shards/train-v0-{first_of_second_window:06}.zarr/hidden/c/0/0/0", 20)
    batches = iter(PlannedBatches(cached, plan, wanted=EVERYTHING, micro_batch_size=5, first_step=0, last_step=9))
    assert len(list(itertools.islice(batches, 4))) == 4
    with pytest.raises(CorruptError, match=f"shard train-v0-{first_of_second_window:06}"):
        next(batches)
    assert not threads_left()


def test_one_that_is_left_early_leaves_no_thread_though_it_waits_for_a_shard_that_never_comes(tmp_path, threads_left):
    """The other rank of the node joins, and never comes to the second window."""
    cached = CacheReader(build_cache(tmp_path, make_description(shards=8)))
    plan = BatchPlan((5,) * 8, 5, 0, 1)
    memory = slots_for(cached, plan, EVERYTHING, 4 * decoded_bytes(cached, cached.shards("train")))
    address = tmp_path / "socket"
    batches = iter(
        PlannedBatches(
            cached, plan, wanted=EVERYTHING, micro_batch_size=5, first_step=0, last_step=8,
            memory_bytes=memory[0] * memory[1], shared_by=SharedBy(rank=0, size=2, address=address),
        )
    )  # fmt: skip
    order = [(window, cached.shards("train")[i]) for window, _, numbers in plan.windows(0, 8) for i in numbers]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, batches)
        other = ShardLoader(
            cached, order, slots=memory[0], slot_bytes=memory[1], shared_by=SharedBy(rank=1, size=2, address=address)
        )
        assert len(first.result(60)["input_ids"]) == 5
        for _ in range(3):
            next(batches)
        (thread,) = threads_left()
        left = pool.submit(batches.close)
        thread.join(60)
        assert not thread.is_alive()
        other.close()  # the loader's process ends with the last of its users
        left.result(60)


def test_the_time_that_was_waited_grows_with_the_batches_that_are_taken(tmp_path):
    cached = CacheReader(build_cache(tmp_path))
    plan = plan_of(cached, batch_size=5)
    planned = PlannedBatches(cached, plan, wanted=EVERYTHING, micro_batch_size=5, first_step=0, last_step=3)
    assert planned.waited_s == 0
    with closing(iter(planned)) as batches:
        next(batches)
        waited = planned.waited_s
        assert waited > 0  # for the first shards, at least
        next(batches)
        assert planned.waited_s > waited


def test_a_batch_that_the_ranks_cannot_share_is_refused(reader):
    with pytest.raises(ValueError, match="batches of 8 sequences; expected a multiple of 3 x 1"):
        PlannedBatches(reader, plan_of(reader), wanted=EVERYTHING, micro_batch_size=3, first_step=0, last_step=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_are_the_same(reader):
    def batches(pin_memory):
        return PlannedBatches(
            reader, plan_of(reader), wanted=EVERYTHING, micro_batch_size=4, first_step=0, last_step=3,
            pin_memory=pin_memory,
        )  # fmt: skip

    for one, other in zip(batches(pin_memory=True), batches(pin_memory=False), strict=True):
        for name, tensor in one.items():
            assert tensor.is_pinned()
            assert torch.equal(tensor.to("cuda", non_blocking=True).cpu(), other[name])
