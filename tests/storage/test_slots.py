import numpy as np
import pytest

from storage.slots import Slots

BYTES, WORDS = np.dtype("u1"), np.dtype("u4")


def test_a_slot_refuses_more_than_it_holds():
    slots = Slots(2, 256)
    with pytest.raises(MemoryError, match="a slot has 256 bytes; the arrays need 384"):
        slots.allocator(0)([((100,), BYTES), ((200,), BYTES)])
    slots.close()


def test_the_same_shapes_get_the_same_memory_each_time_and_slots_do_not_overlap():
    slots, wanted = Slots(2, 256), [((3,), BYTES), ((32,), WORDS)]
    first, second = slots.allocator(0), slots.allocator(1)
    for allocate, value in ((first, 1), (second, 2)):
        for array in allocate(wanted):
            array[...] = value
    for allocate, value in ((first, 1), (second, 2)):
        assert [set(array.tolist()) for array in allocate(wanted)] == [{value}, {value}]
    slots.close()


def test_arrays_without_rows_take_no_room():
    slots = Slots(1, 64)
    empty, full = slots.allocator(0)([((0, 5), WORDS), ((16,), WORDS)])
    assert (empty.shape, full.shape) == ((0, 5), (16,))
    slots.close()
