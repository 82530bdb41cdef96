"""`pipeline cache info`, `verify` and `repair` as a user calls them, on caches with real damage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from pipeline.cache_repair import Found, as_it_was_computed
from pipeline.cli import cli
from stages import cache_teacher
from stages.against_teacher import language_model
from stages.against_teacher.agreement import hardware
from storage import CacheDescription, CacheReader, CacheWork, ShardId, verify_cache
from storage.manifest import FileRecord, RootManifest
from tests.storage.damage import vouch_for_what_is_there
from tests.tiny import ROOT

SHARD = ShardId("train", 0, 1)


@pytest.fixture(scope="session")
def made(tokenized, tmp_path_factory):
    """A project with its cache, never changed by a test."""
    from tests.stages.conftest import Project

    folder = tmp_path_factory.mktemp("made") / "project"
    project = Project(shutil.copytree(tokenized, folder), cache={"preset": "balanced"})
    project.run(cache_teacher)
    return project


@pytest.fixture
def project(made, tmp_path):
    """A copy of it."""
    from tests.stages.conftest import Project

    return Project(shutil.copytree(made.folder, tmp_path / "project"), cache={"preset": "balanced"})


def pipeline(project, *arguments):
    """Run a command in this process."""
    return CliRunner().invoke(cli, ["cache", *arguments, "--project", str(project.folder)])


def one_line(done):
    """The error that a command ended with."""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def digest(project):
    return CacheReader(project.artefacts.cache).root_digest


def chunk(project, array, shard=SHARD):
    files = (project.artefacts.cache / "shards" / f"{shard}.zarr" / array / "c").rglob("*")
    return next(path for path in files if path.is_file())


def flip(path, offset=20):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.unlink()  # as a checkout of DVC may have linked it elsewhere
    path.write_bytes(data)


def inodes(project, *without):
    """Inode of every file that is not below a name in `without`."""
    cache = project.artefacts.cache
    files = {path.relative_to(cache).as_posix(): path.stat().st_ino for path in cache.rglob("*") if path.is_file()}
    return {name: inode for name, inode in files.items() if not any(part in name for part in without)}


def test_info_says_in_tables_what_the_cache_holds(made):
    done = pipeline(made, "info")
    assert done.exit_code == 0, done.stderr
    for text in (
        "cache.top_k",
        digest(made),
        "train v0",
        "hidden_scale",
        "int8",
        "entropy",
        "train, masked",
    ):
        assert text in done.stdout


def test_info_as_json_is_one_object_and_nothing_else(made):
    done = pipeline(made, "info", "--json")
    info = json.loads(done.stdout)
    figures = json.loads(made.artefacts.cache_figures.read_text())
    assert done.stderr == ""
    assert info["root_digest"] == figures["root_digest"]
    assert info["splits"]["train"]["positions"] == figures["positions"]["train"]
    assert info["splits"]["train"]["masked"]["entropy"]["1.0"] == pytest.approx(
        figures["masked"]["entropy"]["1.0"], abs=1e-4
    )
    assert info["splits"]["train"]["bytes_per_position"].keys() == figures["bytes_per_position"].keys()


def test_info_needs_neither_parameters_nor_teacher(made, tmp_path):
    cache = shutil.copytree(made.artefacts.cache, tmp_path / "elsewhere")
    done = CliRunner().invoke(cli, ["cache", "info", str(cache), "--json", "--project", str(tmp_path)])
    assert json.loads(done.stdout)["fingerprint"]


def test_verify_returns_0_only_for_a_good_cache(project):
    good = pipeline(project, "verify", "--deep")
    assert good.exit_code == 0, good.stderr
    assert "the cache is whole" in good.stdout
    flip(chunk(project, "hidden"))
    bad = pipeline(project, "verify")
    assert bad.exit_code == 1
    assert f"{SHARD}: shards/{SHARD}.zarr/hidden/c/0/0/0 has SHA-256" in bad.stdout
    assert "run `pipeline cache repair`" in one_line(bad)


def test_verify_as_json_lists_every_problem_with_file_and_shard(project):
    chunk(project, "stat").unlink()
    (project.artefacts.cache / "head.json").unlink()
    done = pipeline(project, "verify", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["good"]) == (1, False)
    assert {problem["file"]: problem["shard"] for problem in found["problems"]} == {
        f"shards/{SHARD}.zarr/stat/c/0/0": str(SHARD),
        "head.json": None,
    }
    assert "pipeline cache repair" in found["next"]


def test_the_cache_agrees_with_its_teacher_within_limits_that_are_worked_out(made):
    done = pipeline(made, "verify", "--against-teacher", "12", "--json", "--device", "cpu")
    found = json.loads(done.stdout)["against_teacher"]
    assert done.exit_code == 0, done.stderr
    assert (found["sequences"], found["within"], found["same_hardware"]) == (12, True, True)
    figures = {(figure["split"], figure["name"]): figure for figure in found["figures"]}
    assert figures["train", "top-1 agreement"]["found"] == 1.0
    assert 0 < figures["train", "KL through the head, nats"]["found"] < 1e-3
    assert figures["test", "largest difference of logsumexp, nats"]["limit"] < 1e-3


def test_a_cache_of_other_values_is_told_by_its_teacher_though_every_byte_is_vouched_for(project):
    group = zarr.open_group(project.artefacts.cache / "shards" / f"{SHARD}.zarr", mode="r+")
    group["hidden_scale"][...] = (group["hidden_scale"][...] * np.float16(1.5)).astype(np.float16)
    group["stat"][...] = group["stat"][...] + np.float32(0.1)
    vouch_for_what_is_there(project.artefacts.cache)
    assert verify_cache(project.artefacts.cache, deep=True)
    done = pipeline(project, "verify", "--against-teacher", "30", "--device", "cpu")
    assert done.exit_code == 1
    assert "does not say what its teacher says: train: " in one_line(done)
    assert "largest difference of logsumexp" in one_line(done)


def test_another_teacher_is_refused_with_the_field(project):
    flip(project.artefacts.teacher / "model.safetensors", -3)
    done = pipeline(project, "verify", "--against-teacher", "2")
    assert done.exit_code == 1
    assert "is not the teacher of this cache: content.teacher is" in one_line(done)


def test_a_whole_cache_is_left_alone(project):
    before = inodes(project)
    done = pipeline(project, "repair")
    assert done.exit_code == 0, done.stderr
    assert "there is nothing to repair" in done.stderr
    assert inodes(project) == before


def damage_shard(cache):
    file = cache / "shards" / f"{SHARD}.zarr" / "hidden" / "zarr.json"
    flip(file)


DAMAGES = {
    "a flipped bit": damage_shard,
    "a shard that is gone": lambda cache: shutil.rmtree(cache / "shards" / f"{SHARD}.zarr"),
    "figures in a shard's manifest": lambda cache: replace(
        cache / "manifest" / f"{SHARD}.json", b'"threads":1', b'"threads":3'
    ),
    "a head that is gone": lambda cache: (cache / "head.safetensors").unlink(),
    "a tokenizer that is gone": lambda cache: shutil.rmtree(cache / "tokenizer"),
    "a description that is no JSON": lambda cache: flip(cache / "cache.json", 0),
    "a description of another version": lambda cache: replace(
        cache / "cache.json", b'"format_version":1', b'"format_version":3'
    ),
    "an extra shard": lambda cache: shutil.copytree(
        cache / "shards" / f"{SHARD}.zarr", cache / "shards" / "train-v0-000099.zarr"
    ),
    "a manifest that is no JSON": lambda cache: flip(cache / "manifest.json", 0),
    "no manifest": lambda cache: (cache / "manifest.json").unlink(),
}


def replace(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.unlink()
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_gives_the_same_bytes_and_touches_no_good_shard(project, damage):
    before, report = digest(project), project.artefacts.cache_run.read_text()
    good = inodes(project, str(SHARD), "cache.json", "manifest.json", "head", "tokenizer")
    DAMAGES[damage](project.artefacts.cache)
    done = pipeline(project, "repair")
    assert done.exit_code == 0, done.stderr
    assert before in done.stdout
    known = damage not in ("a manifest that is no JSON", "no manifest")
    assert ("the same as before" if known else "nothing was left to compare it with") in done.stdout
    assert verify_cache(project.artefacts.cache, deep=True).root_digest == before
    assert inodes(project, str(SHARD), "cache.json", "manifest.json", "head", "tokenizer") == good
    if known:
        assert project.artefacts.cache_run.read_text() == report


def test_a_shard_that_was_wrong_when_it_was_written_is_replaced_and_the_other_root_digest_said(project):
    right = digest(project)
    group = zarr.open_group(project.artefacts.cache / "shards" / f"{SHARD}.zarr", mode="r+")
    group["top_ids"][0, 0] = 60_000
    vouch_for_what_is_there(project.artefacts.cache)
    done = pipeline(project, "repair")
    assert done.exit_code == 1
    assert "is whole now, but its root digest was" in one_line(done)
    assert verify_cache(project.artefacts.cache, deep=True).root_digest == right


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cache": {"preset": "balanced", "top_k": 8}}, "spec.cache.top_k: 16 expected, 8 here"),
        ({"cache": {"preset": "balanced"}, "masking": {"seed": 5}}, "spec.masking.seed: 0 expected, 5 here"),
    ],
)
def test_other_parameters_are_refused_with_the_fields_and_nothing_is_changed(project, changes, field):
    damage_shard(project.artefacts.cache)
    before = inodes(project)
    project.set(**changes)
    done = pipeline(project, "repair")
    assert done.exit_code == 1
    assert field in one_line(done)
    assert inodes(project) == before


def test_another_teacher_cannot_repair_a_cache(project):
    damage_shard(project.artefacts.cache)
    flip(project.artefacts.teacher / "model.safetensors", -3)
    done = pipeline(project, "repair")
    assert done.exit_code == 1
    assert "content.teacher: " in one_line(done)


def as_if_computed_with(project, **changes):
    """Say in every manifest that the shards were computed otherwise; the cache stays whole."""
    cache = project.artefacts.cache
    for path in (cache / "manifest").iterdir():
        value = json.loads(path.read_bytes())
        value["computed_with"].update(changes)
        path.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n")
    root = RootManifest.from_bytes((cache / "manifest.json").read_bytes())
    files = {name: FileRecord.of_file(cache / name) for name in root.files}
    whole = RootManifest(fingerprint=root.fingerprint, counts=root.counts, files=files)
    (cache / "manifest.json").write_bytes(whole.to_bytes())


def test_a_cache_from_another_device_is_repaired_only_where_that_is_allowed(project):
    as_if_computed_with(project, device="cuda")
    damage_shard(project.artefacts.cache)
    before = inodes(project)
    refused = pipeline(project, "repair")
    assert refused.exit_code == 1
    assert 'another device: "cuda" expected, "cpu" here; its 1 bad shards' in one_line(refused)
    assert inodes(project) == before
    allowed = pipeline(project, "repair", "--inexact")
    assert allowed.exit_code == 0, allowed.stderr
    assert "another than before" in allowed.stdout
    assert verify_cache(project.artefacts.cache, deep=True)


def test_the_teacher_of_a_comparison_is_spread_as_the_parameters_say_unless_a_device_is_named(project, monkeypatch):
    models, load = [], language_model.load_language_model
    monkeypatch.setattr(
        language_model,
        "load_language_model",
        lambda *what, **how: models.append(load(*what, **how)) or models[-1],
    )
    size = (project.artefacts.teacher / "model.safetensors").stat().st_size
    spread = {"device": "cpu", "device_map": "auto", "max_memory": {"cpu": f"{size / 1500:.1f}KB"}}
    for machine, device in ((spread, "auto"), (spread, "cpu"), (None, "cpu")):
        params = project.folder / "params.yaml"
        params.unlink() if machine is None else params.write_text(json.dumps({"machine": machine}))
        done = pipeline(project, "verify", "--against-teacher", "4", "--device", device)
        assert done.exit_code == 0, done.stderr
    assert [set(getattr(model, "hf_device_map", {}).values()) for model in models] == [{"cpu", "disk"}, set(), set()]
    (project.folder / "params.yaml").write_text("machine: {device: cpu, device_map: everywhere}")
    refused = pipeline(project, "verify", "--against-teacher", "4")
    assert refused.exit_code == 2
    assert "machine.device_map is 'everywhere'; allowed: auto" in one_line(refused)


def test_the_batch_size_of_the_cache_is_used_for_the_repair(project):
    right = digest(project)
    project.set(cache={"preset": "balanced", "batch_tokens": 32})
    damage_shard(project.artefacts.cache)
    done = pipeline(project, "repair")
    assert done.exit_code == 0, done.stderr
    assert digest(project) == right


@pytest.mark.parametrize("recorded", [{"compiled": 1}, {}])
def test_a_repair_compiles_the_teacher_where_and_only_where_the_cache_was_computed_so(project, recorded):
    project.set(cache={"preset": "balanced", "compile": not recorded})
    found = Found(unfit=[], bad=1, computed_with={**hardware(project.context), "batch_tokens": 64, **recorded})
    config, _ = as_it_was_computed(project.config, project.context, found, inexact=False)
    assert (config.cache.compile, config.cache.batch_tokens) == (bool(recorded), 64)


def test_a_repair_while_another_process_writes_the_cache_is_kept_out(project):
    damage_shard(project.artefacts.cache)
    description = CacheDescription.from_bytes((project.artefacts.cache / "cache.json").read_bytes())
    with CacheWork.open(project.artefacts.cache_work, description):
        done = pipeline(project, "repair")
    assert done.exit_code == 75
    assert "another process works on the cache" in one_line(done)


def test_where_there_is_no_cache_the_commands_that_make_one_are_named(project):
    shutil.rmtree(project.artefacts.cache)
    for command in ("info", "verify", "repair"):
        done = pipeline(project, command)
        assert done.exit_code == 1
        assert "`pipeline cache-teacher`" in one_line(done)
        assert "`dvc pull`" in one_line(done)


def test_a_repair_that_was_killed_goes_on_to_the_same_root_digest(project):
    before = digest(project)
    for shard in list(project.artefacts.cache.glob("shards/*.zarr"))[1:]:
        shutil.rmtree(shard)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline", "cache", "repair", "--project", str(project.folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(project.artefacts.cache_work.glob("*/shards/*.zarr"))) < 2:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    if project.artefacts.cache.exists():
        pytest.skip("the repair was done before it could be killed")
    done = pipeline(project, "repair")
    assert done.exit_code == 0, done.stderr
    assert "going on with the cache in" in done.stderr
    assert "the same as before" in done.stdout
    assert digest(project) == before
