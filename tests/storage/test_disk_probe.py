import multiprocessing
import os
import signal
import time

import pytest

from storage import LockedError
from storage.disk_probe import can_reflink, free_bytes, scratch, write_speed


def test_a_scratch_folder_goes_with_all_that_is_in_it_and_so_does_what_it_needed(tmp_path):
    with scratch(tmp_path / "work", "plan") as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def fill_and_fail(folder):
    (folder / "file").write_bytes(b"x")
    raise KeyboardInterrupt


def test_a_folder_that_was_there_stays_with_what_was_in_it(tmp_path):
    (tmp_path / "kept").write_bytes(b"x")
    with pytest.raises(KeyboardInterrupt), scratch(tmp_path, "plan") as folder:
        fill_and_fail(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_of_two_at_a_time_the_second_is_refused_and_the_first_undisturbed(tmp_path):
    with scratch(tmp_path, "plan") as folder:
        (folder / "file").write_bytes(b"x")
        with pytest.raises(LockedError, match="another process"), scratch(tmp_path, "plan"):
            pass
        assert (folder / "file").exists()


def hold(root):
    with scratch(root, "plan") as folder:
        (folder / "file").write_bytes(b"x")
        time.sleep(60)


def test_what_a_killed_process_left_is_cleared(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path,))
    process.start()
    file = tmp_path / ".tmp-plan" / "file"
    while not file.exists():
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with scratch(tmp_path, "plan") as folder:
        assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_the_speed_is_that_of_files_that_are_gone_afterwards(tmp_path):
    speed = write_speed(tmp_path, probe_bytes=1 << 16)
    assert speed is not None
    assert speed > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_nearly_full_is_not_written_to(tmp_path):
    assert write_speed(tmp_path, probe_bytes=1 << 16, least_free=1 << 62) is None
    assert list(tmp_path.iterdir()) == []


def test_the_room_of_a_folder_to_be_is_that_of_the_disk_it_will_be_on(tmp_path):
    assert free_bytes(tmp_path / "not" / "yet" / "there") == pytest.approx(free_bytes(tmp_path), rel=0.05)


def test_asking_for_reflinks_leaves_nothing(tmp_path):
    assert can_reflink(tmp_path) in (True, False, None)
    assert list(tmp_path.iterdir()) == []
