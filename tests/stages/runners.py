"""Other ways of doing a stage's items than one after the other in this process: what comes out must not depend on it."""

from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from stages.context import Silent
from stages.sharing import Done, Failed, InProcess, Place


class Backwards(InProcess):
    """Does the last item first."""

    def run(self, job, items, place):
        return super().run(job, list(items)[::-1], place)


class Counting(InProcess):
    """Remembers what it was given to do."""

    def __init__(self):
        self.items = []

    def run(self, job, items, place):
        self.items = list(items)
        return super().run(job, self.items, place)


class Processes:
    """Does the items in processes of their own, and gives the outcomes as they come."""

    def __init__(self, count):
        self.count = count

    def run(self, job, items, place):
        elsewhere = Place(device=place.device, threads=1)
        begin = (job, elsewhere)
        with ProcessPoolExecutor(self.count, get_context("spawn"), initializer=_begin, initargs=begin) as pool:
            futures = {pool.submit(_do, item): item for item in items}
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    yield Done(futures[future], future.result()) if error is None else Failed(futures[future], error)
            finally:
                pool.shutdown(cancel_futures=True)


def _begin(job, place):
    global _context, _do_item  # noqa: PLW0603  what a worker process holds
    _context = job.begin(place)
    _do_item = _context.__enter__()


def _do(item):
    return _do_item(item)


class StopsIn(Silent):
    """Shows nothing, and asks to stop once a task is begun."""

    def __init__(self, task):
        self.task, self.begun = task, False

    def begin(self, task, _total, _unit, done=0):  # noqa: ARG002  as `Progress` has it
        self.begun = self.begun or task == self.task

    def should_stop(self):
        return self.begun


class AfterCalls:
    """Asks to stop from the nth time on that it is asked."""

    def __init__(self, count):
        self.count = count

    def __call__(self):
        self.count -= 1
        return self.count < 0
