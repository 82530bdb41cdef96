import threading

import pytest

from stages.batches.ahead import made_ahead


def nothing():
    pass


@pytest.fixture(autouse=True)
def no_thread_is_left(threads_left):
    yield
    assert not threads_left()


@pytest.mark.parametrize("count", [1, 3])
def test_all_items_come_in_their_order(count):
    with made_ahead(range(100), count, nothing) as items:
        assert list(items) == list(range(100))


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_are_made_than_are_to_lie_ready_and_one_more(count):
    started = [threading.Event() for _ in range(20)]

    def numbers():
        for number, event in enumerate(started):
            event.set()
            yield number

    with made_ahead(numbers(), count, nothing) as items:
        for number in range(5):
            assert next(items) == number
            # `count` in the queue, one that waits for room; the next one is not begun.
            assert started[number + count + 1].wait(10)
            assert not started[number + count + 2].wait(0.02)


def test_an_error_comes_after_the_items_that_were_made_before_it():
    def numbers():
        yield 0
        yield 1
        raise OSError("the disk is gone")

    with made_ahead(numbers(), 3, nothing) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)


def test_leaving_early_interrupts_what_the_making_waits_for():
    comes_never = threading.Event()

    def numbers():
        yield 0
        assert comes_never.wait(60)
        raise OSError("interrupted")

    with made_ahead(numbers(), 1, comes_never.set) as items:
        assert next(items) == 0


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_leaving_early_ends_a_thread_that_waits_for_room(taken):
    with made_ahead(iter(int, 1), 2, nothing) as items:
        for _ in range(taken):
            next(items)
