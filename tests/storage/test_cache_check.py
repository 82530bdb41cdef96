import json
import shutil

import pytest

from storage import CacheReader, FormatError, IncompleteError, canonical_json
from storage.cache_check import CacheCheck
from storage.manifest import FileRecord, RootManifest
from tests.storage.build import LAYOUTS, build_cache, make_description
from tests.storage.damage import GROUP, SHARD, chunk_file, flip_a_bit, vouch_for_what_is_there

MANIFEST = f"manifest/{SHARD}.json"


def problems(cache, *, deep=True, description=None):
    """What is wrong, as `file what`."""
    check = CacheCheck(cache, description=description, workers=2)
    check.structure()
    check.digests()
    if deep:
        check.contents()
    return [str(problem) for problem in check.problems]


def rewrite_root(cache, **changes):
    """Change keys of manifest.json; its root digest stays that of its files."""
    value = json.loads((cache / "manifest.json").read_bytes())
    (cache / "manifest.json").write_bytes(canonical_json({**value, **changes}) + b"\n")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_cache_of_any_layout_has_no_problem(caches, layout):
    assert problems(caches(layout)) == []


def test_deep_verification_reads_what_digests_cannot_judge(cache):
    chunk_file(cache, "hidden").unlink()
    vouch_for_what_is_there(cache)
    assert problems(cache, deep=False) == []
    assert problems(cache) == [f"{GROUP} cannot be used: hidden is missing: it has no chunk file"]


def test_nothing_hides_anything_else(cache):
    chunk_file(cache, "hidden").unlink()
    with chunk_file(cache, "stat").open("r+b") as file:
        file.truncate(9)
    chunk_file(cache, "masked").write_bytes(b"")
    flip_a_bit(cache / "tokenizer" / "vocab.txt", 2)
    flip_a_bit(cache / "shards" / "train-v0-000000.zarr" / "zarr.json", 5)
    (cache / "notes.txt").write_text("mine")
    found = "\n".join(problems(cache))
    assert f"{GROUP}/hidden/c/0/0/0 is missing" in found
    assert f"{GROUP}/stat/c/0/0 holds 9 bytes; expected " in found
    assert f"{GROUP}/masked/c/0 holds 0 bytes; expected " in found
    assert "tokenizer/vocab.txt has SHA-256" in found
    assert "shards/train-v0-000000.zarr/zarr.json has SHA-256" in found
    assert "notes.txt is not part of this cache" in found
    assert len(found.splitlines()) == 6


def test_structure_alone_reads_no_array_and_finds_what_names_and_sizes_show(cache):
    chunk_file(cache, "hidden").unlink()
    flip_a_bit(chunk_file(cache, "stat"), 1)
    check = CacheCheck(cache)
    check.structure()
    assert [str(problem) for problem in check.problems] == [f"{GROUP}/hidden/c/0/0/0 is missing"]
    assert check.bad_shards == [SHARD]


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_shard_that_is_named_but_gone_is_one_problem(cache, with_manifest):
    shutil.rmtree(cache / GROUP)
    if not with_manifest:
        (cache / MANIFEST).unlink()
    gone = [] if with_manifest else [f"{MANIFEST} is missing"]
    assert problems(cache) == [f"{GROUP} is missing: the whole shard is gone", *gone]


def test_a_shard_that_is_not_planned_is_one_problem(cache):
    shutil.copytree(cache / GROUP, cache / "shards" / "train-v0-000009.zarr")
    assert problems(cache) == ["shards/train-v0-000009.zarr is a shard that is not in the plan of this cache"]


def test_the_manifests_of_another_cache_are_noticed(cache, tmp_path):
    other = build_cache(tmp_path / "other", make_description(LAYOUTS["masked"], shards=2, seed=1))
    shutil.copy(cache / MANIFEST, tmp_path / "own.json")
    shutil.copy(other / MANIFEST, cache / MANIFEST)
    assert any(problem.startswith(f"{MANIFEST} has SHA-256") for problem in problems(cache))
    shutil.copy(other / "manifest.json", cache / "manifest.json")
    shutil.copy(tmp_path / "own.json", cache / MANIFEST)
    (found,) = problems(cache)
    assert found.startswith("manifest.json is of another cache: fingerprint")


def test_a_whole_shard_of_another_cache_is_noticed_though_all_manifests_agree(cache, tmp_path):
    other = build_cache(tmp_path / "other", make_description(LAYOUTS["masked"], shards=2, seed=1))
    shutil.rmtree(cache / GROUP)
    shutil.copytree(other / GROUP, cache / GROUP)
    vouch_for_what_is_there(cache)
    assert problems(cache) == [
        f"{GROUP} cannot be used: zarr.json has attributes that differ from cache.json and the shard's manifest"
    ]


def test_manifests_that_disagree_about_a_file_are_noticed(cache):
    root = RootManifest.from_bytes((cache / "manifest.json").read_bytes())
    files = {**root.files, f"{GROUP}/zarr.json": FileRecord(7, "0" * 64)}
    changed = RootManifest(fingerprint=root.fingerprint, counts=root.counts, files=files)
    (cache / "manifest.json").write_bytes(changed.to_bytes())
    assert f"{MANIFEST} and manifest.json disagree about the shard's files" in problems(cache)


def test_counts_that_the_shards_do_not_add_up_to_are_noticed(cache):
    counts = json.loads((cache / "manifest.json").read_bytes())["counts"]
    counts["train"]["masked"] += 1
    rewrite_root(cache, counts=counts)
    assert problems(cache) == ["manifest.json has other counts than the shards' manifests add up to"]


def test_a_manifest_that_is_written_otherwise_is_noticed(cache):
    value = json.loads((cache / "manifest.json").read_bytes())
    (cache / "manifest.json").write_text(json.dumps(value))
    assert problems(cache) == ["manifest.json is not canonical JSON: it was changed"]


def test_without_its_root_manifest_the_shards_are_verified_by_their_own(cache):
    (cache / "manifest.json").unlink()
    assert problems(cache) == ["manifest.json is missing"]
    flip_a_bit(chunk_file(cache, "hidden"), 3)
    assert len(problems(cache)) == 2


def test_a_damaged_description_does_not_condemn_the_shards(cache):
    description = CacheReader(cache).description
    flip_a_bit(cache / "cache.json", 40)
    (found,) = problems(cache)
    assert found.startswith("cache.json has SHA-256")
    (found,) = problems(cache, description=description)
    assert found.startswith("cache.json has SHA-256")


def test_a_newer_cache_is_not_called_damaged(cache):
    data = (cache / "cache.json").read_bytes().replace(b'"required_features":[', b'"required_features":["tomorrow",')
    (cache / "cache.json").write_bytes(data)
    root = RootManifest.from_bytes((cache / "manifest.json").read_bytes())
    files = {**root.files, "cache.json": FileRecord.of_bytes(data)}
    changed = RootManifest(fingerprint=root.fingerprint, counts=root.counts, files=files)
    (cache / "manifest.json").write_bytes(changed.to_bytes())
    with pytest.raises(FormatError, match=r"tomorrow.*update teacher-cache"):
        problems(cache)


def test_a_folder_without_a_cache_names_the_commands_to_get_one(tmp_path):
    with pytest.raises(IncompleteError, match=r"holds no cache; make one with `pipeline cache-teacher`"):
        CacheCheck(tmp_path)


def test_what_the_progress_raises_ends_the_verification(cache):
    class Stop(Exception):
        pass

    def stop(name, size):
        raise Stop

    check = CacheCheck(cache, workers=2)
    check.structure()
    with pytest.raises(Stop):
        check.digests(stop)


def test_a_problem_knows_its_shard(cache):
    chunk_file(cache, "hidden").unlink()
    (cache / "head.json").unlink()
    check = CacheCheck(cache)
    check.structure()
    assert {problem.file: problem.shard for problem in check.problems} == {
        f"{GROUP}/hidden/c/0/0/0": str(SHARD),
        "head.json": None,
    }
