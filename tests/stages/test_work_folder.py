"""Parts that are written twice, as a cluster may have it, and what killed processes leave of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier

import pytest

from stages.context import Artefacts, Context
from stages.errors import Interrupted
from stages.work_folder import kept_part, whole_part, work_folder


@pytest.fixture
def opened(tmp_path):
    """Opens the same work folder every time."""
    return lambda: work_folder("count", "the numbers", {}, {}, Context(artefacts=Artefacts(project=tmp_path)))


def write(part, text, meanwhile=lambda: None):
    with whole_part(part) as (folder, figures):
        (folder / "text").write_text(text)
        meanwhile()
        figures["letters"] = len(text)


def test_a_part_that_two_write_at_the_same_time_is_there_once_and_whole(opened):
    with opened() as work, ThreadPoolExecutor(2) as pool:
        together = Barrier(2)
        for done in [pool.submit(write, work / "part", "abc", together.wait) for _ in range(2)]:
            done.result()
        assert kept_part(work / "part") == {"letters": 3}
        assert [path.name for path in work.iterdir() if path.is_dir()] == ["part"]


def test_a_part_that_is_whole_is_left_alone_by_who_comes_later_and_a_damaged_one_is_replaced(opened):
    with opened() as work:
        write(work / "part", "abc", lambda: write(work / "part", "first"))
        assert (work / "part" / "text").read_text() == "first"
        (work / "part" / "text").write_text("f")
        write(work / "part", "abc")
        assert kept_part(work / "part") == {"letters": 3}


def test_who_comes_after_all_is_done_brings_nothing_back(opened):
    def finish():
        with opened():
            pass

    with suppress(Interrupted), opened() as work:
        raise Interrupted("stopped as asked")
    with pytest.raises(FileNotFoundError):
        write(work / "part", "abc", finish)
    with pytest.raises(FileNotFoundError):
        write(work / "part", "abc")
    assert list(work.parent.glob("*/")) == []
    assert list(work.parent.glob(".tmp-*")) == []


def test_what_killed_processes_left_is_swept_when_the_folder_is_opened(opened):
    with suppress(Interrupted), opened() as work:
        (work / ".tmp-part-0123").mkdir()
        write(work / "part", "abc")
        raise Interrupted("stopped as asked")
    with opened() as again:
        assert again == work
        assert [path.name for path in work.iterdir() if path.is_dir()] == ["part"]
