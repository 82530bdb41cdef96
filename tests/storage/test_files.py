import errno
import hashlib
from pathlib import Path

import pytest

from storage.files import (
    discard,
    has_other_names,
    link_tree,
    move_folder,
    remove_temporaries,
    sha256_file,
    write_durably,
)


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(b"abc")
    return source


def test_writing_replaces_a_file_and_leaves_nothing_else(tmp_path):
    write_durably(tmp_path / "file", b"old")
    write_durably(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_digest_of_a_file_is_that_of_its_bytes(folder):
    read = []
    assert sha256_file(folder / "inner" / "file") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_file(folder / "inner" / "file", read.append) == hashlib.sha256(b"abc").hexdigest()
    assert read == [3]


def test_moving_makes_the_parents_of_the_target(folder, tmp_path):
    move_folder(folder, tmp_path / "new" / "target")
    assert (tmp_path / "new" / "target" / "inner" / "file").read_bytes() == b"abc"
    assert not folder.exists()


def test_moving_between_file_systems_copies_and_removes(folder, tmp_path, monkeypatch):
    rename = Path.rename

    def within_a_folder_only(self, target):
        if Path(target).parent != self.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", within_a_folder_only)
    (folder / "inner" / "file").chmod(0o444)
    move_folder(folder, tmp_path / "other" / "target")
    assert (tmp_path / "other" / "target" / "inner" / "file").read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["target"]


def test_other_errors_of_moving_are_not_hidden(folder, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").touch()
    with pytest.raises(OSError, match="not empty"):
        move_folder(folder, tmp_path / "target")


def test_discarding_takes_files_folders_and_links_but_not_what_they_point_to(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    discard(link)
    assert folder.exists()
    discard(folder / "inner" / "file")
    discard(folder)
    discard(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_linked_folder_has_the_same_files_and_takes_the_place_of_an_older_one(folder, tmp_path):
    (tmp_path / "kept" / "older").mkdir(parents=True)
    assert not has_other_names(folder)
    assert link_tree(folder, tmp_path / "kept")
    assert has_other_names(folder)
    assert (tmp_path / "kept" / "inner" / "file").samefile(folder / "inner" / "file")
    assert not (tmp_path / "kept" / "older").exists()
    discard(folder)
    assert (tmp_path / "kept" / "inner" / "file").read_bytes() == b"abc"
    assert not has_other_names(tmp_path / "kept")


def test_where_there_are_no_hard_links_nothing_is_left(folder, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    assert not link_tree(folder, tmp_path / "kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_only_temporaries_of_the_given_name_are_removed(tmp_path):
    (tmp_path / ".tmp-a").mkdir()
    (tmp_path / ".tmp-b").touch()
    (tmp_path / "a").touch()
    remove_temporaries(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-b", "a"]
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
