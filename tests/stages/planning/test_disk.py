import os

import pytest

from stages.planning.disk import Disk, probe_disk


def disk(**values):
    return Disk(
        **{
            "at_root": False,
            "free_bytes": 1,
            "write_bytes_per_second": None,
            "reflinks": False,
            "hard_links": False,
            **values,
        }
    )


@pytest.mark.parametrize(
    ("values", "copies"),
    [({}, 2), ({"reflinks": None}, 2), ({"reflinks": True}, 1), ({"hard_links": True}, 1), ({"at_root": True}, 0)],
)
def test_dvcs_copy_takes_room_of_its_own_where_it_shares_neither_files_nor_blocks(values, copies):
    assert disk(**values).copies == copies


def test_that_dvc_links_is_seen_by_what_it_tracks_already(tmp_path):
    (tmp_path / "tokens").mkdir()
    file = tmp_path / "tokens" / "train.parquet"
    file.write_bytes(b"abc")
    assert not probe_disk(tmp_path, at_root=True, tracked=tmp_path / "tokens").hard_links
    os.link(file, tmp_path / "in the store")
    assert probe_disk(tmp_path, at_root=True, tracked=tmp_path / "tokens").hard_links
