"""Real faults: flipped bits at random places, full and read-only disks, folders that were tampered with.

Whatever happens, no wrong value is returned, what is wrong is named, and the message says what to do. `make campaign` runs the
long form.
"""

import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import CacheError, CacheReader, CacheWork, ShardId, verify_cache
from storage.cache_check import NEXT, CacheCheck
from storage.errors import WriteError
from tests.storage.build import LAYOUTS, build_cache, make_description, publish
from tests.storage.writer_process import description

PROJECT = Path(__file__).parents[2]
NEXT_COMMAND = "`pipeline cache|`dvc |update teacher-cache"


def read_everything(cache):
    """What a training run that reads the whole cache does."""
    reader = CacheReader(cache)
    assert reader.counts
    for shard in reader.description.shard_ids():
        reader.load(shard)


def refusal(read, where):
    """What `read` is refused with; a test that it is not refused fails and says which place it is about."""
    try:
        read()
    except CacheError as error:
        return str(error)
    return pytest.fail(f"nobody sees {where}")


def places(cache, count, seed):
    """`count` times a file, a byte and a bit: a kind of file first, so that small ones are not left out."""
    choose = random.Random(seed)
    kinds = [sorted(cache.glob(pattern)) for pattern in KINDS]
    for number in range(count):
        file = choose.choice([path for path in kinds[number % len(kinds)] if path.is_file() and path.stat().st_size])
        yield file, choose.randrange(file.stat().st_size), choose.randrange(8)


KINDS = (
    "shards/*/*/c/**/*",
    "shards/**/zarr.json",
    "manifest/*.json",
    "manifest.json",
    "cache.json",
    "head.*",
    "tokenizer/*",
    "shards/*/hidden*/c/**/*",
)


@pytest.mark.parametrize(
    ("layout", "count"),
    [
        ("masked", 24),
        ("threshold", 16),
        *(pytest.param(name, 200, marks=pytest.mark.campaign, id=f"{name}-campaign") for name in LAYOUTS),
    ],
)
def test_every_flipped_bit_is_found_by_verify_and_by_a_reader_that_reads_the_place(caches, tmp_path, layout, count):
    cache = shutil.copytree(caches(layout), tmp_path / "current")
    for file, offset, bit in places(cache, count, seed=count):
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << bit
        file.write_bytes(damaged)
        name = file.relative_to(cache).as_posix()
        where = f"bit {bit} of byte {offset} of {name}"
        assert re.search(NEXT_COMMAND, refusal(lambda: verify_cache(cache, deep=True), where))
        check = CacheCheck(cache)
        check.structure()
        check.digests()
        assert name in [problem.file for problem in check.problems], where
        assert re.search(NEXT_COMMAND, refusal(lambda: read_everything(cache), where))
        file.write_bytes(whole)
    assert verify_cache(cache, deep=True)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer"])
@pytest.mark.parametrize("pattern", KINDS[:-1])
def test_a_file_that_is_missing_or_of_another_size_is_found_without_reading_it(cache, pattern, damage):
    file = next(path for path in sorted(cache.glob(pattern)) if path.is_file())
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "truncated": data[:-2], "longer": data + b"\0"}[damage])
    check = CacheCheck(cache)
    check.structure()
    assert file.relative_to(cache).as_posix() in [problem.file for problem in check.problems]
    with pytest.raises(CacheError, match=NEXT_COMMAND):
        read_everything(cache)


def test_the_next_command_stands_in_what_verify_says(cache):
    (cache / "head.json").unlink()
    with pytest.raises(CacheError) as raised:
        verify_cache(cache)
    assert str(raised.value).endswith(NEXT)
    assert "\n" not in str(raised.value)


def publish_all(work, shards):
    for shard in shards:
        publish(work, shard)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, small enough to be filled. Skips where the tests may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=300k", "-t", "tmpfs", "tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def mount(folder, options, *arguments):
    try:
        done = subprocess.run(
            ["mount", "-o", options, *arguments, str(folder)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"the tests may not mount here: {done.stderr.strip()}")


def test_a_full_disk_ends_the_shard_and_with_room_again_the_cache_comes_out_the_same(small_disk, tmp_path):
    expected = CacheReader(build_cache(tmp_path / "elsewhere", description())).root_digest
    filler = small_disk / "someone-elses.bin"
    shards = description().shard_ids()
    with CacheWork.open(small_disk / "work", description()) as work:
        publish(work, shards[0])
        free = os.statvfs(small_disk)
        filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 20_000))
        with pytest.raises(
            WriteError, match=r"shard train-v0-\d{6} could not be written .* No space left .* make room"
        ):
            publish_all(work, shards[1:])
        kept = len(shards) - len(work.missing())
        assert 1 <= kept < len(shards)
        assert not list(work.folder.glob(".tmp-*"))
    filler.unlink()
    mount(small_disk, "remount,size=20m")
    with CacheWork.open(small_disk / "work", description()) as work:
        assert len(shards) - len(work.missing()) == kept
    cache = build_cache(small_disk, description())
    assert verify_cache(cache, deep=True).root_digest == expected


def test_a_write_that_the_system_cuts_off_in_the_middle_leaves_nothing_half_and_resumes(tmp_path):
    """A limit on the size of files stands in for a full disk where no disk can be mounted."""
    expected = CacheReader(build_cache(tmp_path / "elsewhere", description())).root_digest
    command = [sys.executable, "-m", "tests.storage.writer_process", str(tmp_path / "limited")]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500)),
    )
    assert done.returncode == 1
    assert "WriteError: shard train-v0-" in done.stderr
    assert (
        "File too large; make room there, then run the same command again: every finished shard is kept" in done.stderr
    )
    assert not (tmp_path / "limited" / "current").exists()
    assert verify_cache(build_cache(tmp_path / "limited", description()), deep=True).root_digest == expected


def test_a_read_only_file_system_is_named_before_anything_is_computed_and_can_be_read(small_disk):
    cache = build_cache(small_disk, make_description(shards=1))
    mount(small_disk, "remount,ro")
    with (
        pytest.raises(
            WriteError, match=r"the work folder could not be written .* Read-only .* make that folder writable"
        ),
        CacheWork.open(small_disk / "work", make_description(shards=1, seed=1)),
    ):
        pass
    assert verify_cache(cache, deep=True)
    mount(small_disk, "remount,rw")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: chmod has no effect")
def test_a_folder_without_permission_to_write_is_named(tmp_path):
    (tmp_path / "work").mkdir(mode=0o500)
    with (
        pytest.raises(WriteError, match=r"Permission denied .* make that folder writable"),
        CacheWork.open(tmp_path / "work", make_description(shards=1)),
    ):
        pass


def test_files_that_are_hard_linked_elsewhere_are_never_changed_in_place(tmp_path):
    """DVC may link the files of a checkout into its own cache: writing through such a link would damage that."""
    planned = make_description(shards=2)
    cache = build_cache(tmp_path, planned)
    shutil.copytree(cache, tmp_path / "dvc-cache", copy_function=os.link)
    before = {path: path.read_bytes() for path in (tmp_path / "dvc-cache").rglob("*") if path.is_file()}
    (cache / "shards" / "train-v0-000001.zarr" / "hidden" / "zarr.json").unlink()
    for name in ("cache.json", "manifest.json", "head.json", "tokenizer/vocab.txt", "manifest/train-v0-000000.json"):
        (cache / name).unlink()
        (cache / name).write_bytes(b"damaged")
    with CacheWork.open(tmp_path / "work", planned) as work:
        assert work.take_back(cache)
    build_cache(tmp_path, planned)
    assert verify_cache(tmp_path / "current", deep=True)
    assert {path: path.read_bytes() for path in before} == before


def test_a_killed_repair_knows_all_that_it_knew_before(tmp_path):
    planned = make_description(shards=2)
    digest = CacheReader(build_cache(tmp_path, planned)).root_digest
    shutil.rmtree(tmp_path / "current" / "shards" / "train-v0-000001.zarr")
    with CacheWork.open(tmp_path / "work", planned) as work:
        assert work.take_back(tmp_path / "current")
        assert work.missing() == [ShardId("train", 0, 1)]
    assert not (tmp_path / "current").exists()
    build_cache(tmp_path, planned)
    assert CacheReader(tmp_path / "current").root_digest == digest
    assert {path.suffix for path in (tmp_path / "work").iterdir()} == {".lock"}
