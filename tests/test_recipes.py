"""Every recipe is one that the code can run: parameters, stages, revisions, and the published values.

`pipeline init` writes each into a folder of one repository, and DVC itself says which stages it sees there.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pytest
import yaml

from pipeline.init import RECIPES, initialise, recipes
from pipeline.params import read_config
from stages.config import CacheConfig, Config, cache_spec
from tests.pipeline.repository import Repository
from tests.test_docs import unknown_parts

NAMES = list(recipes())
OF_SPEED = {"batch_tokens", "compile", "targets"}
"""Of `cache`, what changes no target of the main cache."""
READ_BY_DVC = """
import json
from dvc.repo import Repo

def plain(stage):
    parameters = [name for dep in stage.deps if hasattr(dep, "params") for name in dep.params]
    deps = [dep.def_path for dep in stage.deps if not hasattr(dep, "params")]
    outs = [out.def_path for out in stage.outs]
    commands = [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd
    return {"commands": commands, "deps": deps, "outs": outs, "parameters": parameters}

found = {}
for stage in Repo().index.stages:
    found.setdefault(stage.path_in_repo.split("/")[0], {})[stage.name] = plain(stage)
print(json.dumps(found))
"""


class Stage(NamedTuple):
    """A stage as DVC sees it, with all its `${...}` filled in."""

    commands: list[str]
    deps: list[str]
    outs: list[str]
    parameters: list[str]


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[str, dict[str, Stage]]:
    """Recipe -> name -> stage."""
    repository = Repository(tmp_path_factory.mktemp("recipes") / "all")
    for name in NAMES:
        initialise(name, repository.folder / name)
    repository.git("init", "-q")
    repository.dvc("init", "-q")
    found = json.loads(repository.run(sys.executable, "-c", READ_BY_DVC).stdout.splitlines()[-1])
    return {recipe: {name: Stage(**stage) for name, stage in of_one.items()} for recipe, of_one in found.items()}


def config_of(name: str) -> Config:
    return read_config(recipes()[name].files["params.yaml"])


def values_of(name: str) -> dict[str, Any]:
    return yaml.safe_load(recipes()[name].files["params.yaml"].read_text(encoding="utf-8"))


def holds(values: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def sources(values: Any):
    """Every mapping that names something of the hub."""
    if isinstance(values, dict):
        if "hub_id" in values or "revision" in values:
            yield values
        for value in values.values():
            yield from sources(value)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_in_one_line_what_it_is(name):
    text = recipes()[name].description
    assert text.endswith(".")
    assert 30 < len(text) < 120


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_recipe_is_one_that_there_is(stages, name):
    commands = [command for stage in stages[name].values() for command in stage.commands]
    ours = [command for command in commands if command.startswith("pipeline ")]
    assert len(ours) == len(stages[name])
    assert {command: unknown for command in ours if (unknown := unknown_parts(command))} == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_stage_reads_another_one_of_the_same_recipe_writes(stages, name):
    written = [out for stage in stages[name].values() for out in stage.outs]
    assert len(written) == len(set(written))
    folders = {parent.as_posix() for out in written for parent in PurePosixPath(out).parents}
    read = {dep for stage in stages[name].values() for dep in stage.deps}
    assert {dep for dep in read if not dep.startswith("../")} <= {*written, *folders}  # .. is another project


@pytest.mark.parametrize("name", NAMES)
def test_every_student_is_built_and_the_chosen_one_is_trained(stages, name):
    config = config_of(name)
    built = {stage.removeprefix("init-student@") for stage in stages[name] if stage.startswith("init-student@")}
    assert built == set(config.students)
    assert f"models/student-init/{config.train.student}" in stages[name]["train-student"].deps


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_that_a_stage_depends_on_is_in_the_file(stages, name):
    """DVC ends with an error at the first one that is not, even where null is what its absence means."""
    values = values_of(name)
    listed = {parameter for stage in stages[name].values() for parameter in stage.parameters}
    assert {parameter for parameter in listed if not holds(values, parameter)} == set()


@pytest.mark.parametrize("name", NAMES)
def test_caches_and_the_training_depend_on_all_that_a_caches_identity_covers(stages, name):
    sections = set(cache_spec(config_of(name))) - {"algorithms", "cache", "teacher"}
    fields = {f"cache.{field.name}" for field in dataclasses.fields(CacheConfig) if field.name not in OF_SPEED}
    for stage in stages[name].values():
        trains = stage.commands[-1] == "pipeline train-student" or stage.outs[0].startswith("models/comparison/")
        if (trains and "before-training" not in stage.outs[0]) or stage.commands[0].startswith(
            "pipeline cache-teacher"
        ):
            assert sections | fields <= set(stage.parameters), stage.commands
            assert [parameter for parameter in stage.parameters if parameter.split(".")[0] in {"teacher", "teachers"}]


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_of_the_default_depend_on_no_fewer_parameters_in_another_recipe(stages, name):
    for stage in ("corpus", "tokenize", "teacher", "cache-teacher", "train-student", "evaluate", "report"):
        theirs, ours = ({*of[stage].parameters} for of in (stages["default"], stages[name]))
        assert {parameter for parameter in theirs if not parameter.startswith("students.")} <= ours, stage


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_from_the_hub_is_pinned_to_a_commit(name):
    for source in sources(values_of(name)):
        if source.get("hub_id") is not None or "revision" in source:
            assert re.fullmatch(r"[0-9a-f]{40}", source["revision"]), source


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_is_the_teachers_own(name):
    config = config_of(name)
    if config.teacher.load is not None:
        assert config.tokenize.load == config.teacher.load


def test_no_recipe_repeats_a_file_of_the_default():
    default = recipes()["default"].files
    for name in NAMES[1:]:
        own = {file: RECIPES / name / file for file in default if (RECIPES / name / file).is_file()}
        assert own, name
        assert not [file for file, path in own.items() if path.read_bytes() == default[file].read_bytes()], name


@pytest.mark.parametrize("name", ["distilbert", "distilbert-cased", "distilmbert", "distilroberta", "distilgpt2"])
def test_the_published_command_is_the_same_for_all_of_the_distilled_family(name):
    train, student = config_of(name).train, config_of(name).student
    assert (train.weights.kd, train.weights.cos, train.weights.mse, train.temperature) == (5.0, 1.0, 0.0, 2.0)
    assert (train.weights.mlm, train.weights.clm) == ((0.0, 2.0) if name == "distilgpt2" else (2.0, 0.0))
    assert (train.epochs, train.batch_size, train.learning_rate, train.warmup_fraction) == (3, 4096, 5e-4, 0.05)
    assert (train.adam_betas, train.adam_epsilon, train.weight_decay) == ((0.9, 0.98), 1e-6, 0.0)
    assert (train.max_grad_norm, train.seed, train.freeze_position_embeddings) == (5.0, 56, True)
    assert (student.layers, student.layer_map, student.dropout) == (6, (0, 2, 4, 7, 9, 11), 0.1)


@pytest.mark.parametrize("name", ["distilbert", "distilbert-cased", "distilmbert", "distilroberta"])
def test_the_published_masks_are_the_same_for_all_of_the_masked_ones_and_new_in_every_epoch(name):
    config = config_of(name)
    masking = config.masking
    assert (masking.probability, masking.mask, masking.random, masking.smoothing) == (0.15, 0.8, 0.1, 0.7)
    assert masking.variants == config.train.epochs


def test_the_relations_recipe_has_the_published_values():
    config = config_of("relations")
    train, relations = config.train, config.train.relations
    assert train.weights.used == ("relations",)
    assert (relations.heads, relations.compared) == (48, ("queries", "keys", "values"))
    assert (train.steps, train.batch_size, train.learning_rate, train.warmup_steps) == (400_000, 256, 6e-4, 4_000)
    assert (train.weight_decay, train.adam_betas, train.schedule) == (0.01, (0.9, 0.999), "linear")
    assert (config.student.layers, config.student.dropout, config.tokenize.sequence_tokens) == (6, 0.1, 512)


def test_the_ablation_leaves_out_one_thing_at_a_time_and_has_the_cache_and_the_training_of_the_recipe_minilm():
    config, minilm = config_of("ablation"), config_of("minilm")
    assert cache_spec(config) == cache_spec(minilm)
    assert config.train == minilm.train
    assert config.compare is not None
    runs = {name: config.of_run(name, 0) for name in config.compare.runs}
    used = {name: set(run.train.weights.used) for name, run in runs.items()}
    assert used == {
        "full": {"kd", "mlm", "cos"},
        "no-kd": {"mlm", "cos"},
        "no-cosine": {"kd", "mlm"},
        "no-mlm": {"kd", "cos"},
        "random-weights": {"kd", "mlm", "cos"},
    }
    assert [name for name, run in runs.items() if run.student.initialise == "random"] == ["random-weights"]
    assert {run.train.student for run in runs.values()} == {"half", "half-random"}
    assert config.compare.against == "full"
