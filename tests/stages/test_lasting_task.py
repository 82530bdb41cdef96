"""What a stage reads back before it begins: a stop is seen in it, and it is shown only where it lasts."""

import pytest

from stages.context import Artefacts, Context, Silent
from stages.errors import Interrupted
from stages.lasting_task import LastingTask


class Shown(Silent):
    """Remembers what was begun, and how much was done of it."""

    def __init__(self):
        self.begun, self.advanced = [], 0

    def begin(self, task, total, unit, done=0):
        self.begun.append((task, total, unit, done))

    def advance(self, amount=1, **_figures):
        self.advanced += amount


@pytest.fixture
def shown():
    return Shown()


@pytest.fixture
def make_task(shown, tmp_path):
    def make(times, *, after=3.0, should_stop=lambda: False):
        context = Context(artefacts=Artefacts(project=tmp_path), progress=shown, should_stop=should_stop)
        clock = iter(times).__next__
        return LastingTask(context, "read", 4, "shards", kept="all is kept", after=after, clock=clock)

    return make


def test_what_is_over_soon_is_not_shown(make_task, shown):
    task = make_task([0.0, 0.0, 0.5, 1.0, 2.9])
    for _ in range(3):
        task()
    assert (shown.begun, shown.advanced) == ([], 0)


def test_what_lasts_is_shown_from_then_on_with_what_was_done_before(make_task, shown):
    task = make_task([0.0, 0.0, 1.0, 3.0])
    for _ in range(4):
        task()
    assert shown.begun == [("read", 4, "shards", 2)]
    assert shown.advanced == 2


def test_what_is_to_be_shown_at_once_is_shown_before_anything_is_done(make_task, shown):
    make_task([0.0, 0.0], after=0)
    assert shown.begun == [("read", 4, "shards", 0)]


def test_a_stop_is_seen_after_each_piece_and_says_what_is_kept(make_task):
    answers = iter([False, True])
    task = make_task([0.0] * 4, should_stop=lambda: next(answers))
    task()
    with pytest.raises(Interrupted, match="stopped as asked; all is kept; run the same command again"):
        task()
