import pytest

from storage import CacheReader, CorruptError, IncompleteError, verify_cache
from tests.storage.damage import chunk_file, flip_a_bit, vouch_for_what_is_there


def test_verify_finds_nothing_wrong_with_a_whole_cache_and_reports_every_file(caches):
    seen = []
    verified = verify_cache(caches("masked"), deep=True, progress=lambda name, size: seen.append((name, size)))
    files = [path for path in caches("masked").rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert verified.files == len(files)
    assert verified.bytes == sum(path.stat().st_size for path in files) == sum(size for _, size in seen)
    assert verified.root_digest == CacheReader(caches("masked")).root_digest
    assert [name for name, _ in seen][-3:] == [
        f"shards/{name}.zarr" for name in ("train-v0-000000", "train-v0-000001", "validation-v0-000000")
    ]


def test_what_its_progress_raises_ends_it_also_before_any_file_is_read(caches):
    def stop(_name, size):
        raise InterruptedError(size)

    with pytest.raises(InterruptedError, match="0"):
        verify_cache(caches("masked"), progress=stop)


def test_verify_counts_and_names_everything_that_is_damaged(cache):
    flip_a_bit(chunk_file(cache, "hidden"), 3)
    chunk_file(cache, "stat").unlink()
    flip_a_bit(cache / "head.safetensors", 1)
    with pytest.raises(
        CorruptError, match=r"3 problems in \d+ files: .*stat.* is missing; .*hidden.* SHA-256 .*; head.* SHA-256"
    ):
        verify_cache(cache)


def test_deep_verification_decodes_too(cache):
    chunk_file(cache, "hidden").unlink()
    vouch_for_what_is_there(cache)
    verify_cache(cache)
    with pytest.raises(CorruptError, match="hidden is missing: it has no chunk file"):
        verify_cache(cache, deep=True)


def test_without_a_root_manifest_there_is_no_finished_cache(tmp_path):
    with pytest.raises(IncompleteError, match=r"has no manifest\.json"):
        verify_cache(tmp_path)
