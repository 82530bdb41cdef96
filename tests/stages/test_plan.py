"""The plan's figures against the cache that then came out, and what a plan leaves behind: nothing."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import cache_teacher, corpus, plan, tokenize_corpus
from stages.context import Context
from stages.errors import ConfigError, InputError, Interrupted
from stages.models import load_tokenizer
from storage.cache_info import cache_info
from storage.manifest import MANIFEST_FILE
from tests.stages.conftest import Project
from tests.stages.tiny_models import tiny_bert
from tests.stages.tiny_tasks import finetuning
from tests.tiny import tiny_text, write_project

ALL = {"shard_tokens": 4096, "top_k": None, "sequences": {"train": None, "validation": None, "test": None}}
SAMPLE = 6000


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Some 75,000 tokens of training text: a sample is a small part of them."""
    project = Project(write_project(tmp_path_factory.mktemp("larger")))
    (project.folder / "text" / "stories.txt").write_text(tiny_text(lines=2000), encoding="utf-8")
    project.run(corpus)
    project.run(tokenize_corpus)
    tokenizer = load_tokenizer(project.artefacts.tokens / "tokenizer")
    tiny_bert(vocabulary=len(tokenizer), hidden=32, layers=2, positions=16).save_pretrained(project.artefacts.teacher)
    return project.folder


def everything_below(folder):
    """All paths, and when each file was written last; folders take a probe and give it back."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns if path.is_file() else None
        for path in folder.rglob("*")
    }


def made(project):
    """Bytes of the whole cache, by split, and positions by split, as they came out."""
    project.run(cache_teacher)
    info = cache_info(project.artefacts.cache)
    manifests = dict.fromkeys(info["splits"], 0)
    for path in (project.artefacts.cache / "manifest").iterdir():
        manifests[path.name.partition("-")[0]] += path.stat().st_size
    total = info["bytes"] + (project.artefacts.cache / MANIFEST_FILE).stat().st_size
    sizes = {split: found["bytes"] + manifests[split] for split, found in info["splits"].items()}
    return total, sizes, {split: found["positions"] for split, found in info["splits"].items()}


@pytest.mark.parametrize(
    ("cache", "train"),
    [
        ({"preset": "balanced", "attention_vectors": ["queries", "keys"], "attention_layers": [1, 2]}, {}),
        (
            {"preset": "small", "positions": "masked"},
            {"kd_source": "draws", "temperature": 2.0, "weights": {"kd": 5.0, "mlm": 2.0, "cos": 0.0}},
        ),
        (
            {
                "preset": "exact",
                "selection": "threshold",
                "threshold": 0.01,
                "positions": "sampled",
                "position_fraction": 0.25,
            },
            {},
        ),
    ],
    ids=["balanced", "small, masked", "threshold, sampled"],
)
def test_the_planned_bytes_and_positions_are_those_of_the_cache_within_five_percent(larger, tmp_path, cache, train):
    project = Project(shutil.copytree(larger, tmp_path / "project"), cache={**ALL, **cache}, train=train)
    planned = plan.run(project.config, project.context, sample_tokens=SAMPLE)
    total, sizes, positions = made(project)
    assert planned["sample_tokens"]["train"] < planned["splits"]["train"]["tokens"] / 5
    assert planned["bytes"] == pytest.approx(total, rel=0.05)
    for split, found in planned["splits"].items():
        assert found["bytes"] == pytest.approx(sizes[split], rel=0.05)
        assert found["positions"] == pytest.approx(positions[split], rel=0.02)
        assert sum(found["bytes_per_position"].values()) == pytest.approx(found["bytes"] / found["positions"], rel=1e-3)


def test_the_bytes_of_a_preset_are_those_of_a_cache_made_with_it(larger, tmp_path):
    project = Project(
        shutil.copytree(larger, tmp_path / "project"),
        cache={**ALL, "preset": "balanced", "top_k": 5, "hidden_group": 8},
    )
    planned = plan.run(project.config, project.context, sample_tokens=SAMPLE)
    assert planned["presets"].keys() == {"lossless", "exact", "balanced", "small"}
    project.set(cache={**ALL, "preset": "exact"})
    assert planned["presets"]["exact"]["bytes"] == pytest.approx(made(project)[0], rel=0.05)


def test_shards_and_tokens_are_those_of_the_cache_with_every_mask_variant_counted(make_project):
    project = make_project(masking={"variants": 3})
    planned = plan.run(project.config, project.context, sample_tokens=400)
    project.run(cache_teacher)
    info = cache_info(project.artefacts.cache)
    assert planned["fingerprint"] == info["fingerprint"]
    for split, found in info["splits"].items():
        assert planned["splits"][split]["shards"] == found["shards"]
        assert planned["splits"][split]["positions"] == found["positions"]
    tokens = {split: found["tokens"] * found["variants"] for split, found in planned["splits"].items()}
    assert planned["teacher"]["tokens_to_run"] == sum(tokens.values())


def test_times_follow_from_the_measured_speeds(make_project):
    project = make_project()
    planned = plan.run(project.config, project.context, workers=[3], sample_tokens=400)
    teacher, hours = planned["teacher"], planned["hours"]
    assert hours.keys() == {"1", "3"}
    seconds = teacher["tokens_to_run"] / teacher["tokens_per_second"]
    assert 3600 * hours["1"] == pytest.approx(max(seconds, 3600 * planned["write_hours"]), abs=0.01)
    assert hours["3"] >= planned["write_hours"]
    assert teacher["slowest"] <= teacher["tokens_per_second"] <= teacher["fastest"]
    assert planned["disk"]["needed_bytes"] == planned["disk"]["copies"] * planned["bytes"]


def test_a_cache_at_a_root_takes_no_room_here_and_its_speed_is_not_guessed(make_project, tmp_path):
    from stages.context import Artefacts

    project = make_project()
    context = Context(artefacts=Artefacts(project=project.folder, root=f"file://{tmp_path}/root"))
    planned = plan.run(project.config, context, sample_tokens=400)
    assert planned["disk"]["needed_bytes"] == 0
    assert planned["disk"]["write_bytes_per_second"] is None
    assert planned["write_hours"] is None


def test_without_tokens_or_teacher_the_command_that_makes_them_is_named(make_project):
    project = make_project()
    before = everything_below(project.artefacts.cache_work)
    shutil.rmtree(project.artefacts.teacher)
    with pytest.raises(InputError, match="run: pipeline teacher"):
        plan.run(project.config, project.context, sample_tokens=400)
    shutil.rmtree(project.artefacts.tokens)
    with pytest.raises(InputError, match="run: pipeline tokenize"):
        plan.run(project.config, project.context, sample_tokens=400)
    assert everything_below(project.artefacts.cache_work) == before


def test_a_plan_leaves_the_project_as_it_was_done_or_stopped(make_project):
    project = make_project()
    before = everything_below(project.folder)
    plan.run(project.config, project.context, sample_tokens=400)
    assert everything_below(project.folder) == before
    for asked in (0, 3, 8):
        answers = iter([False] * asked + [True] * 99)
        with pytest.raises(Interrupted, match="keeps nothing"):
            plan.run(
                project.config,
                Context(artefacts=project.artefacts, should_stop=lambda answers=answers: next(answers)),
                sample_tokens=400,
            )
        assert everything_below(project.folder) == before


def test_a_teacher_that_gives_nan_is_refused_and_nothing_stays(make_project):
    project = make_project()
    weights = project.artefacts.teacher / "model.safetensors"
    tensors = load_file(weights)
    tensors["cls.predictions.bias"] = torch.full_like(tensors["cls.predictions.bias"], float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    before = everything_below(project.folder)
    with pytest.raises(InputError, match="not finite"):
        plan.run(project.config, project.context, sample_tokens=400)
    assert everything_below(project.folder) == before


def test_caches_of_tasks_are_not_planned_and_it_is_said_what_is(make_project):
    project = make_project(cache={"targets": "task"}, finetune=finetuning({"SST-2": {}}))
    with pytest.raises(
        ConfigError, match=r"cache.targets is task, and only .* run: pipeline plan -S cache.targets=language_model"
    ):
        plan.run(project.config, project.context, sample_tokens=100)
