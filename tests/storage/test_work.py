import dataclasses
import gc
import json
import shutil
import weakref

import pytest

from storage import (
    CacheReader,
    CacheWork,
    CorruptError,
    IncompleteError,
    LockedError,
    MismatchError,
    ShardId,
    verify_cache,
)
from tests.storage.build import BALANCED, add_files, build_cache, fill, make_description, make_targets, publish
from tests.storage.damage import flip_a_bit

SHARD = ShardId("train", 0, 1)


@pytest.fixture
def description():
    return make_description(shards=2)


@pytest.fixture
def work(tmp_path, description):
    """A work folder that holds everything, not finished."""
    with CacheWork.open(tmp_path / "work", description) as opened:
        fill(opened, tmp_path)
        yield opened


def test_a_new_work_folder_misses_every_shard_in_order(tmp_path, description):
    with CacheWork.open(tmp_path, description) as work:
        assert work.folder == tmp_path / description.fingerprint
        assert work.missing() == description.shard_ids()


def test_a_second_writer_is_refused_while_the_first_holds_the_work_folder(work, description):
    with pytest.raises(LockedError, match="wait for it or stop it"), CacheWork.open(work.root, description):
        pass


def test_the_lock_ends_with_the_context_also_after_an_error(tmp_path, description):
    with pytest.raises(KeyError), CacheWork.open(tmp_path, description):
        raise KeyError
    with CacheWork.open(tmp_path, description) as work:
        assert work.missing()


def test_writers_of_different_caches_do_not_meet(work):
    with CacheWork.open(work.root, make_description(seed=1)) as other:
        assert other.folder != work.folder


def test_only_a_missing_shard_is_computed_again(tmp_path, work, description):
    untouched = work.folder / "shards" / "train-v0-000000.zarr" / "zarr.json"
    inode = untouched.stat().st_ino
    shutil.rmtree(work.folder / "shards" / f"{SHARD}.zarr")
    reported = []
    assert work.missing(lambda shard, what: reported.append((shard, what))) == [SHARD]
    assert reported[0][0] == SHARD
    assert "is missing" in reported[0][1]
    publish(work, SHARD)
    assert work.missing() == []
    assert untouched.stat().st_ino == inode


@pytest.mark.parametrize("file", ["shards/{}.zarr/zarr.json", "shards/{}.zarr/hidden/c/0/0/0", "manifest/{}.json"])
def test_a_damaged_shard_is_removed_reported_and_missing(work, file):
    flip_a_bit(work.folder / file.format(SHARD), 1)
    reported = {}
    assert work.missing(reported.__setitem__) == [SHARD]
    assert list(reported) == [SHARD]
    assert not (work.folder / "shards" / f"{SHARD}.zarr").exists()


def test_each_shard_that_was_looked_at_is_told_and_what_that_raises_ends_it(work, description):
    looked = []
    assert work.missing(looked=looked.append) == []
    assert looked == description.shard_ids()

    def stop(shard):
        raise InterruptedError(str(shard))

    with pytest.raises(InterruptedError, match=str(description.shard_ids()[0])):
        work.missing(looked=stop)
    assert work.missing() == []


def test_the_figures_of_a_shard_are_not_kept_in_memory(work):
    manifest = weakref.ref(work.take_in(SHARD))
    gc.collect()
    assert manifest() is None


def test_a_shard_without_its_manifest_is_computed_again(work):
    (work.folder / "manifest" / f"{SHARD}.json").unlink()
    assert work.missing() == [SHARD]
    publish(work, SHARD)
    assert work.missing() == []


def test_a_shard_can_be_published_twice(work):
    assert publish(work, SHARD) == publish(work, SHARD)
    assert work.missing() == []


def test_publish_returns_the_bytes_on_disk(work):
    written = publish(work, SHARD)
    files = [path for path in (work.folder / "shards" / f"{SHARD}.zarr").rglob("*") if path.is_file()]
    files.append(work.folder / "manifest" / f"{SHARD}.json")
    assert written == sum(path.stat().st_size for path in files)


def test_the_manifest_counts_saturated_gaps_where_logits_are_on_the_grid(work):
    targets = make_targets(work.description, SHARD)
    targets.top_logits[3, -1] -= 100
    work.publish(SHARD, targets, {"threads": 2}, {"x": 1})
    manifest = json.loads((work.folder / "manifest" / f"{SHARD}.json").read_bytes())
    assert manifest["figures"] == {"saturated_gaps": 1, "x": 1}
    assert manifest["computed_with"] == {"threads": 2}


def test_rubbish_of_a_killed_writer_is_swept_when_the_folder_is_opened(tmp_path, description):
    folder = tmp_path / description.fingerprint
    for name in (".tmp-train-v0-000000.zarr", "shards/.tmp-x", "manifest/.tmp-y"):
        (folder / name).mkdir(parents=True)
    (tmp_path / f".tmp-{description.fingerprint}").mkdir()
    (tmp_path / ".tmp-of-another").mkdir()
    with CacheWork.open(tmp_path, description):
        assert [path.name for path in tmp_path.rglob(".tmp-*")] == [".tmp-of-another"]


def test_a_folder_begun_with_another_description_of_the_same_identity_is_refused(tmp_path, description):
    with CacheWork.open(tmp_path, description):
        pass
    other = dataclasses.replace(description, teacher_config={"model_type": "roberta"})
    with (
        pytest.raises(
            MismatchError, match=r'teacher_config.model_type: "roberta" expected, "bert" in that folder'
        ) as error,
        CacheWork.open(tmp_path, other),
    ):
        pass
    assert len(error.value.fields) == 1


def test_files_beside_the_shards_can_be_added_again_and_replaced(tmp_path, work):
    add_files(work, tmp_path)
    (tmp_path / "tokenizer-source" / "vocab.txt").write_text("other")
    work.add_folder("tokenizer", tmp_path / "tokenizer-source")
    work.add_file("head.json", b"[]\n")
    assert (work.folder / "tokenizer" / "vocab.txt").read_text() == "other"
    assert (work.folder / "head.json").read_bytes() == b"[]\n"


@pytest.mark.parametrize("name", ["head.json", "head.safetensors", "tokenizer"])
def test_a_cache_without_head_or_tokenizer_is_not_finished(tmp_path, work, name):
    path = work.folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(IncompleteError, match=f"has no {name}"):
        work.finish(tmp_path / "current")


def test_a_cache_that_misses_a_shard_is_not_finished(tmp_path, work):
    (work.folder / "manifest" / f"{SHARD}.json").unlink()
    with pytest.raises(IncompleteError, match=f"has no shard {SHARD}; run `pipeline cache-teacher` to resume"):
        work.finish(tmp_path / "current")
    assert not (tmp_path / "current").exists()


def test_a_shard_that_was_damaged_after_it_was_verified_is_not_vouched_for(tmp_path, work):
    (work.folder / "shards" / f"{SHARD}.zarr" / "zarr.json").write_bytes(b"")
    with pytest.raises(CorruptError, match=r"zarr.json holds 0 bytes"):
        work.finish(tmp_path / "current")


def test_shards_with_another_number_of_tokens_than_planned_are_not_finished(tmp_path):
    description = make_description(shards=2)
    split = dataclasses.replace(description.splits["train"], tokens=1)
    description = dataclasses.replace(description, splits={**description.splits, "train": split})
    with pytest.raises(CorruptError, match=r"the shards of train hold 71 tokens; cache.json plans 1 in each of 1"):
        build_cache(tmp_path, description)


def test_finishing_moves_the_work_folder_and_returns_the_digest_that_readers_see(tmp_path, work):
    digest = work.finish(tmp_path / "a" / "current")
    assert CacheReader(tmp_path / "a" / "current").root_digest == digest
    assert not work.folder.exists()
    assert not list(tmp_path.rglob(".tmp-*"))


def test_the_root_digest_does_not_depend_on_the_order_of_the_shards(tmp_path, description):
    with CacheWork.open(tmp_path / "work", description) as work:
        for shard in reversed(work.missing()):
            publish(work, shard)
        add_files(work, tmp_path)
        digest = work.finish(tmp_path / "current")
    assert digest == CacheReader(build_cache(tmp_path / "in-order", description)).root_digest


def test_another_cache_at_the_destination_goes_back_to_its_work_folder_and_returns_without_computing(tmp_path):
    first, second = make_description(shards=1), make_description(shards=1, seed=1)
    first_digest = CacheReader(build_cache(tmp_path, first)).root_digest
    build_cache(tmp_path, second)
    assert CacheReader(tmp_path / "current").description == second
    assert verify_cache(tmp_path / "work" / first.fingerprint).root_digest == first_digest
    with CacheWork.open(tmp_path / "work", first) as work:
        assert work.missing() == []
        assert work.finish(tmp_path / "current") == first_digest
    assert verify_cache(tmp_path / "work" / second.fingerprint)


def test_the_same_cache_at_the_destination_is_replaced(tmp_path, description):
    build_cache(tmp_path, description)
    flip_a_bit(tmp_path / "current" / "head.safetensors", 0)
    build_cache(tmp_path, description)
    assert verify_cache(tmp_path / "current", deep=True)
    assert {path.suffix for path in (tmp_path / "work").iterdir()} == {".lock"}


def test_a_finished_cache_can_be_taken_back_so_that_only_damage_is_computed_again(tmp_path, description):
    digest = CacheReader(build_cache(tmp_path, description)).root_digest
    flip_a_bit(tmp_path / "current" / "shards" / f"{SHARD}.zarr" / "zarr.json", 1)
    with CacheWork.open(tmp_path / "work", description) as work:
        assert work.take_back(tmp_path / "current")
        assert work.missing() == [SHARD]
        publish(work, SHARD)
        assert work.finish(tmp_path / "current") == digest


def test_another_cache_or_nothing_is_not_taken_back(tmp_path, description):
    build_cache(tmp_path, make_description(seed=1))
    with CacheWork.open(tmp_path / "work", description) as work:
        assert not work.take_back(tmp_path / "current")
        assert not work.take_back(tmp_path / "nothing")
        assert len(work.missing()) == len(description.shard_ids())


def test_shards_in_the_work_folder_and_those_of_a_cache_at_the_destination_complete_each_other(tmp_path, description):
    digest = CacheReader(build_cache(tmp_path, description)).root_digest
    with CacheWork.open(tmp_path / "work", description) as work:
        publish(work, SHARD)
    flip_a_bit(tmp_path / "current" / "shards" / f"{SHARD}.zarr" / "zarr.json", 1)
    with CacheWork.open(tmp_path / "work", description) as work:
        assert work.take_back(tmp_path / "current")
        assert work.missing() == []
        add_files(work, tmp_path)
        assert work.finish(tmp_path / "current") == digest


def test_a_shard_whose_manifest_was_changed_with_it_is_known_by_what_the_root_manifest_said(tmp_path, description):
    digest = CacheReader(build_cache(tmp_path, description)).root_digest
    file = tmp_path / "current" / "manifest" / f"{SHARD}.json"
    file.write_bytes(file.read_bytes().replace(b'"1.0":0.9', b'"1.0":0.8'))
    with CacheWork.open(tmp_path / "work", description) as work:
        assert work.take_back(tmp_path / "current")
    with CacheWork.open(tmp_path / "work", description) as work:  # also after a kill
        reported = {}
        assert work.missing(reported.__setitem__) == [SHARD]
        assert "is not the one that manifest.json vouched for" in reported[SHARD]
        publish(work, SHARD)
        assert work.finish(tmp_path / "current") == digest


def test_a_whole_shard_of_another_cache_is_computed_again(tmp_path, work):
    other = build_cache(tmp_path / "other", make_description(shards=2, seed=1))
    for name in (f"shards/{SHARD}.zarr", f"manifest/{SHARD}.json"):
        shutil.rmtree(work.folder / name) if name.startswith("shards") else (work.folder / name).unlink()
        (other / name).rename(work.folder / name)
    reported = {}
    assert work.missing(reported.__setitem__) == [SHARD]
    assert "is of another shard or another cache" in reported[SHARD]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda cache: flip_a_bit(cache / "cache.json", 30), id="no JSON"),
        pytest.param(
            lambda cache: replace(cache / "cache.json", b'"format_version":1', b'"format_version":3'), id="version"
        ),
        pytest.param(lambda cache: (cache / "cache.json").unlink(), id="gone"),
        pytest.param(
            lambda cache: [flip_a_bit(cache / name, 30) for name in ("cache.json", "manifest.json")], id="with manifest"
        ),
    ],
)
def test_a_cache_with_a_damaged_description_is_known_by_its_manifest_or_its_shards(tmp_path, description, damage):
    digest = CacheReader(build_cache(tmp_path, description)).root_digest
    damage(tmp_path / "current")
    with CacheWork.open(tmp_path / "work", description) as work:
        assert work.take_back(tmp_path / "current")
        assert work.missing() == []
        assert work.finish(tmp_path / "current") == digest


def test_a_cache_of_a_newer_version_is_not_taken_for_a_damaged_one(tmp_path, description):
    cache = build_cache(tmp_path, description)
    for file in (cache / "cache.json", cache / "manifest.json", *cache.glob("shards/*/zarr.json")):
        replace(file, b'"format_version":1', b'"format_version":2')
        replace(file, b'"format_version": 1', b'"format_version": 2')
    with CacheWork.open(tmp_path / "work", description) as work:
        assert not work.take_back(cache)


def test_what_is_no_part_of_the_cache_is_moved_aside_when_it_is_finished(tmp_path, work):
    for name in (
        "notes.txt",
        "shards/train-v0-000009.zarr/zarr.json",
        "manifest/train-v0-000009.json",
        "more/of/it.txt",
    ):
        (work.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (work.folder / name).write_text("a stranger")
    work.finish(tmp_path / "current")
    aside = tmp_path / "work" / f"{work.description.fingerprint}.aside"
    assert (aside / "more/of/it.txt").read_text() == (aside / "notes.txt").read_text() == "a stranger"
    assert {path.name for path in (tmp_path / "current").iterdir()} == {
        "cache.json", "head.json", "head.safetensors", "manifest", "manifest.json", "shards", "tokenizer",
    }  # fmt: skip


def replace(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


def test_an_empty_destination_is_used_and_a_foreign_one_is_refused(tmp_path, work):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    with pytest.raises(MismatchError, match=r"holds no teacher cache .* move it away"):
        work.finish(tmp_path / "foreign")
    assert (tmp_path / "foreign" / "thesis.txt").read_text() == "years of work"
    work.finish(tmp_path / "empty")
    assert CacheReader(tmp_path / "empty")


def test_an_unfinished_cache_at_the_destination_does_not_replace_the_work_folder_of_the_same(tmp_path):
    first, second = make_description(BALANCED, shards=1), make_description(shards=1, seed=1)
    build_cache(tmp_path, first)
    with CacheWork.open(tmp_path / "work", first):
        pass
    (tmp_path / "current" / "manifest.json").unlink()
    with pytest.raises(MismatchError, match=r"is unfinished.*remove one"):
        build_cache(tmp_path, second)
    assert (tmp_path / "current").exists()
    assert (tmp_path / "work" / first.fingerprint).exists()


def test_a_cache_that_another_process_writes_is_not_pushed_aside(tmp_path):
    first, second = make_description(shards=1), make_description(shards=1, seed=1)
    build_cache(tmp_path, first)
    with CacheWork.open(tmp_path / "work", first), pytest.raises(LockedError):
        build_cache(tmp_path, second)
    assert CacheReader(tmp_path / "current").description == first
