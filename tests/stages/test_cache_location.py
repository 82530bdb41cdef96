"""Stage two from a remote root: the same student as from a folder, in bounded room, and never from another cache."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stages import cache_teacher, evaluate, init_student, train_student
from stages.batch_plan import RESIDENT_SHARDS
from stages.cache_location import open_cache
from stages.context import Artefacts, Context, Silent
from stages.errors import InputError
from stages.training.run import batch_plan
from storage import CacheError, CacheReader, MismatchError, ShardId, decoded_bytes
from storage.errors import RemoteError
from storage.remote import pull, push
from tests.storage.fault_proxy import Fault
from tests.storage.remote_roots import opened
from tests.tiny import ROOT


@pytest.fixture
def project(copy_cached):
    return copy_cached()


def push_to(url, project):
    return push(project.artefacts.cache, opened(url), project.artefacts.cache_work)


def at_root(project, url, progress=None):
    """The context of a command with `--root url`."""
    return Context(artefacts=Artefacts(project=project.folder, root=url), progress=progress or Silent())


def forget(project, *more):
    """Remove what training makes, and `more`."""
    artefacts = project.artefacts
    for folder in (artefacts.student, artefacts.checkpoints, artefacts.runs, *more):
        shutil.rmtree(folder)


def outcome(project):
    """What a training and its evaluation give."""
    figures = json.loads((project.artefacts.runs / "evaluation.json").read_text())
    return load_file(project.artefacts.student / "model.safetensors"), figures


def bytes_below(folder):
    sizes = []
    for parent, _, names in os.walk(folder):  # forgives folders that another process removes meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append(Path(parent, name).stat().st_size)
    return sum(sizes)


class Watch(Silent):
    """Notes how much lies in a folder whenever a stage reports."""

    def __init__(self, folder):
        self.folder, self.most = folder, 0

    def advance(self, _amount=1, **_figures):
        self.most = max([self.most, *(bytes_below(shards) for shards in self.folder.glob("*/shards"))])


def test_a_student_trained_from_a_root_is_that_of_the_local_cache_bit_for_bit_in_the_room_that_is_allowed(project, s3):
    url, _ = s3
    project.run(train_student)
    project.run(evaluate)
    weights, figures = outcome(project)
    shards = CacheReader(project.artefacts.cache).description.shard_ids()
    largest = max(bytes_below(project.artefacts.cache / f"shards/{shard}.zarr") for shard in shards)
    limit = 3 * largest
    assert limit < bytes_below(project.artefacts.cache / "shards")
    push_to(url, project)
    forget(project, project.artefacts.cache, project.artefacts.teacher, project.artefacts.tokens)
    project.set(machine={"local_shards_gb": limit / 2**30})
    watch = Watch(project.artefacts.local_shards)
    for stage in (train_student, evaluate):
        project.run(stage, context=at_root(project, url, watch))
    found, found_figures = outcome(project)
    assert found_figures == figures
    assert found.keys() == weights.keys()
    assert all(found[name].equal(weights[name]) for name in weights)
    assert 0 < watch.most <= limit
    assert not project.artefacts.cache.exists()


def small_room(project, **train):
    """Parameters with room for three shards on disk and for one window of the plan in memory; the bytes allowed on disk."""
    reader = CacheReader(project.artefacts.cache)
    limit = 3 * max(bytes_below(project.artefacts.cache / f"shards/{s}.zarr") for s in reader.description.shard_ids())
    shards = reader.shards("train")
    assert len(shards) > RESIDENT_SHARDS
    machine = {
        "local_shards_gb": limit / 2**30,
        "shard_memory_gb": (RESIDENT_SHARDS + 0.5) * decoded_bytes(reader, shards) / 2**30,
    }
    project.set(machine=machine, train={"validation": {"steps": 4}, "log_steps": 1, **train})
    return limit


def texts_and_weights(project):
    """The curves and the weights of a training."""
    texts = [(project.artefacts.runs / name).read_text() for name in ("train.csv", "validation.csv")]
    return texts, {n: x.tolist() for n, x in load_file(project.artefacts.student / "model.safetensors").items()}


def test_a_training_from_a_root_that_is_killed_resumes_within_its_room_to_the_student_of_the_local_cache(project, s3):
    url, _ = s3
    limit = small_room(project, steps=14, checkpoint_steps=2)
    project.run(train_student)
    expected = texts_and_weights(project)
    push_to(url, project)
    forget(project, project.artefacts.cache, project.artefacts.teacher, project.artefacts.tokens)
    command = [sys.executable, "-m", "tests.stages.training.train_process", str(project.folder), url]
    watch = Watch(project.artefacts.local_shards)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(project.artefacts.checkpoints.glob("*/checkpoint-4")):
            watch.advance()
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not project.artefacts.student.exists()
    project.run(train_student, context=at_root(project, url, watch))
    assert texts_and_weights(project) == expected
    assert 0 < watch.most <= limit
    assert not project.artefacts.cache.exists()


def test_a_root_that_stays_away_in_the_middle_ends_the_training_with_the_shards_name_and_a_checkpoint(project, s3):
    url, proxy = s3
    small_room(project, steps=14, checkpoint_steps=2)
    project.run(train_student)
    expected = texts_and_weights(project)
    plan = batch_plan(project.config, CacheReader(project.artefacts.cache))
    first, second = (numbers for _, _, numbers in plan.windows(0, plan.steps_per_epoch))
    survived, missed = (ShardId("train", 0, numbers[-1]) for numbers in (first, second))
    push_to(url, project)
    forget(project, project.artefacts.cache)
    proxy.reset()
    proxy.faults.append(Fault("drop", "GET", f"{survived}.zarr/hidden/"))
    proxy.faults.append(Fault("500", "GET", f"{missed}.zarr/hidden/", times=1000))
    with pytest.raises(RemoteError, match=rf"{url}/.*/{missed}.zarr/hidden/.* failed 4 times"):
        project.run(train_student, context=at_root(project, url))
    assert proxy.asked("GET", f"{survived}.zarr/hidden/") > 1
    assert list(project.artefacts.checkpoints.glob("*/checkpoint-*/run.json"))
    proxy.reset()
    project.run(train_student, context=at_root(project, url))
    assert texts_and_weights(project) == expected


def test_a_student_trained_from_a_pulled_cache_is_that_of_the_cache_that_was_pushed(project, memory):
    project.run(train_student)
    expected = texts_and_weights(project)
    done = push_to(memory, project)
    forget(project, project.artefacts.cache, project.artefacts.teacher, project.artefacts.tokens)
    pull(opened(memory), done.fingerprint, project.artefacts.cache, project.artefacts.cache_work)
    project.run(train_student)
    assert texts_and_weights(project) == expected


def test_random_initial_weights_take_the_teachers_shape_from_a_root(project, memory):
    project.set(students={"half": {"initialise": "random", "layer_map": None}})
    project.run(init_student, "half")
    push_to(memory, project)
    init = project.artefacts.student_init("half")
    before = load_file(init / "model.safetensors")
    shutil.rmtree(project.artefacts.cache)
    shutil.rmtree(project.artefacts.teacher)
    init_student.write_initial_weights(project.config, at_root(project, memory), "half")
    assert all(load_file(init / "model.safetensors")[name].equal(before[name]) for name in before)


def test_the_tracked_manifest_says_which_cache_is_read_and_another_root_digest_is_refused(
    project, make_project, memory
):
    other = make_project(cache={"batch_tokens": 64})  # other bytes in the shards' manifests
    other.run(cache_teacher)
    push_to(memory, other)
    shutil.copy(other.artefacts.cache / "manifest.json", project.artefacts.tracked_manifest)
    assert (
        open_cache(project.config, at_root(project, memory)).root_digest
        == CacheReader(other.artefacts.cache).root_digest
    )
    shutil.copy(project.artefacts.cache / "manifest.json", project.artefacts.tracked_manifest)
    with pytest.raises(MismatchError, match=r"has root digest .*; expected .*cache/manifest.json.*git checkout"):
        project.run(train_student, context=at_root(project, memory))
    assert not project.artefacts.student.exists()


def test_a_cache_at_the_root_that_was_made_with_other_parameters_is_refused_by_name(project, memory):
    push_to(memory, project)
    project.set(cache={"top_k": 8})
    with pytest.raises(MismatchError, match=f"the cache at {memory} was made with other parameters: cache.top_k"):
        project.run(train_student, context=at_root(project, memory))


def test_a_bound_that_is_too_small_names_the_parameter(project, memory):
    push_to(memory, project)
    project.set(machine={"local_shards_gb": 1e-6})
    with pytest.raises(CacheError, match=r"machine\.local_shards_gb"):
        project.run(train_student, context=at_root(project, memory))


def test_shards_of_the_cache_that_was_read_before_make_room(project, memory):
    push_to(memory, project)
    first = open_cache(project.config, at_root(project, memory))
    first.load(first.shards("train")[0])
    assert list((first.folder / "shards").iterdir())
    project.set(cache={"top_k": 8})
    project.run(cache_teacher)
    push_to(memory, project)
    second = open_cache(project.config, at_root(project, memory))
    assert second.root_digest != first.root_digest
    assert not list((first.folder / "shards").iterdir())
    first.load(first.shards("train")[0])  # who reads it still fetches it again


def test_several_caches_that_fit_are_listed_with_what_helps_while_a_root_is_set(project, make_project, memory):
    push_to(memory, project)
    other = make_project(masking={"seed": 1})
    other.run(cache_teacher)
    push_to(memory, other)
    third = make_project(masking={"seed": 2})
    with pytest.raises(InputError, match=r"holds 2 caches.*--fingerprint F.*without --root and TEACHER_CACHE_ROOT"):
        open_cache(third.config, at_root(third, memory))


def test_a_cache_without_the_split_that_is_needed_says_what_to_do(project, memory):
    done = push_to(memory, project)
    pull(
        opened(memory), done.fingerprint, project.artefacts.cache, project.artefacts.cache_work,
        splits=["train", "validation"],
    )  # fmt: skip
    open_cache(project.config, project.context, "train", "validation")
    with pytest.raises(InputError, match=r"holds train, validation and no test; .*pipeline cache pull"):
        open_cache(project.config, project.context, "test")
