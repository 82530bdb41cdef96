import copy
import json
from pathlib import Path

import pytest
import yaml

from stages.config import Config, ConfigError, cache_spec, load_config, to_plain
from tests.tiny import tiny_params

ROOT = Path(__file__).parents[3]
PARAMETER_FILES = sorted((ROOT / "recipes").glob("*/params.yaml"))


def changed(values, key, value):
    values = copy.deepcopy(values)
    *path, last = key.split(".")
    section = values
    for name in path:
        section = section[name]
    section[last] = value
    return values


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.parent.name)
def test_every_parameter_file_is_valid_and_comes_back_from_json_as_it_was(path):
    config = load_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert load_config(json.loads(json.dumps(to_plain(config)))) == config


def test_the_distilbert_recipe_has_the_published_values():
    config = load_config(yaml.safe_load((ROOT / "recipes" / "distilbert" / "params.yaml").read_text(encoding="utf-8")))
    assert (config.train.weights.kd, config.train.weights.mlm, config.train.weights.cos) == (5.0, 2.0, 1.0)
    assert config.train.temperature == 2.0
    assert config.student.layer_map == (0, 2, 4, 7, 9, 11)
    assert (config.masking.probability, config.masking.smoothing) == (0.15, 0.7)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.temprature", 2.0, r"unknown key train.temprature; did you mean temperature\?"),
        ("trian", {}, r"unknown key trian; did you mean train\?"),
        ("train.steps", "many", "train.steps is 'many'; allowed: an integer"),
        ("machine.local_shards_gb", 0, "machine.local_shards_gb is 0.0; allowed: more than 0"),
        ("train.steps", True, "train.steps is true; allowed: an integer"),
        ("train.steps", 0, "train.steps is 0; allowed: 1 or more"),
        ("train.epochs", 3, "train.steps is 8; allowed: an integer where train.epochs is null"),
        ("train.kd_source", "logits", r"train.kd_source is 'logits'; allowed: hidden, top_k"),
        ("train.micro_batch_size", 3, r"train.micro_batch_size is 3; allowed: a divisor of train.batch_size \(8\)"),
        ("train.student", "hlaf", r"train.student is 'hlaf', which is not in students; did you mean half\?"),
        ("train.weights", {"kd": 0, "mlm": 0, "cos": 0}, "train.weights is 'all 0'"),
        ("masking.probability", 1.5, "masking.probability is 1.5; allowed: 0 < x < 1"),
        ("masking.mask", 0.95, r"masking.mask \+ masking.random is 1.05; allowed: at most 1"),
        (
            "tokenize.sequence_tokens",
            99,
            r"tokenize.sequence_tokens is 99; allowed: at most the teacher's positions .*= 16",
        ),
        ("cache.top_k", 5000, r"cache.top_k is 5000; allowed: at most the vocabulary .*= 120"),
        ("cache.hidden", "none", "train.weights.cos is 1.0; allowed: 0, as cache.hidden is none"),
        ("cache.temperatures", [0.0], "cache.temperatures is 0.0; allowed: numbers above 0"),
        ("cache.preset", "tiny", "cache.preset is 'tiny'; allowed: lossless, exact, balanced"),
        (
            "students.half.layer_map",
            [7],
            r"students.half.layer_map is \[7\]; allowed: blocks of the teacher, which has 2",
        ),
        ("students", {}, "students is {}; allowed: at least one student"),
        (
            "corpus.source",
            "hub",
            r"corpus.hub is null; allowed: its settings \(name, .*text_column\), as corpus.source is hub",
        ),
        ("teacher.source", "load", r"teacher.load is null; allowed: its settings \(some of path, hub_id, .*\), as"),
        (
            "tokenize.load",
            {"path": "a", "package": "b"},
            r"tokenize.load is {.*}; allowed: one of path .*, the others null",
        ),
        (
            "corpus",
            "source:docstrings",
            r"corpus is .*; allowed: a mapping .* \(YAML wants a space after the colon: source: docstrings\)",
        ),
        ("corpus.files", {"paths": [], "document": "line"}, r"corpus.files.paths is \(\); allowed: at least one"),
        ("teacher.train.attention_heads", 3, r"teacher.train.hidden_size is 32; allowed: a multiple of .*\(3\)"),
        ("train.learning_rate", float("inf"), "train.learning_rate is inf; allowed: a finite number"),
        ("train.learning_rate", "nan", "train.learning_rate is 'nan'; allowed: a finite number"),
        ("train.learning_rate", "fast", "train.learning_rate is 'fast'; allowed: a finite number"),
        pytest.param("train.temperature", 10**400, "temperature is 10+; allowed: a finite number", id="overflow"),
        ("train.weights.kd", float("nan"), "train.weights.kd is nan; allowed: a finite number"),
        ("cache.temperatures", [float("inf")], r"cache.temperatures\[0\] is inf; allowed: a finite number"),
        ("train.weight_decay", -0.1, "train.weight_decay is -0.1; allowed: 0 or more"),
        ("teacher.train.weight_decay", -0.1, "teacher.train.weight_decay is -0.1; allowed: 0 or more"),
        ("train.adam_betas", [0.9], r"train.adam_betas is \[0.9\]; allowed: two numbers, each 0 <= x < 1"),
        ("train.adam_betas", [0.9, 1], r"train.adam_betas is \[0.9, 1.0\]; allowed: two numbers, each 0 <= x < 1"),
        ("train.adam_betas", [-0.1, 0.9], r"train.adam_betas is \[-0.1, 0.9\]; allowed: two numbers, each 0 <= x < 1"),
        ("train.adam_epsilon", 0, "train.adam_epsilon is 0.0; allowed: more than 0"),
        ("train.max_grad_norm", 0, "train.max_grad_norm is 0.0; allowed: more than 0"),
    ],
)
def test_a_bad_value_is_refused_naming_key_value_and_what_is_allowed(key, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(changed(tiny_params(), key, value))


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("section", ["corpus", "tokenize", "masking", "teacher.train", "students.half", "train"])
def test_a_seed_that_a_generator_would_not_take_is_refused(section, seed):
    key = f"{section}.seed"
    load_config(changed(tiny_params(), key, 2**32 - 1))
    with pytest.raises(
        ConfigError, match=rf"{section.replace('half', '.*')}.seed is {seed}; allowed: 0 <= x < 2\*\*32"
    ):
        load_config(changed(tiny_params(), key, seed))


def test_a_missing_key_is_named_with_what_it_holds():
    values = tiny_params()
    del values["train"]["temperature"]
    with pytest.raises(ConfigError, match=r"missing key train.temperature; expected a number"):
        load_config(values)


def test_distillation_through_the_head_without_cached_hidden_states_is_refused():
    values = tiny_params(cache={"hidden": "none"}, train={"weights": {"cos": 0.0}})
    with pytest.raises(ConfigError, match=r"train.kd_source is 'hidden'; allowed: top_k, as cache.hidden is none"):
        load_config(values)


def test_a_temperature_that_is_not_declared_is_refused_for_top_k_and_fine_through_the_head():
    load_config(tiny_params(train={"temperature": 3.0}))
    with pytest.raises(ConfigError, match=r"train.temperature is 3.0; allowed: one of cache.temperatures \(1.0, 2.0\)"):
        load_config(tiny_params(train={"temperature": 3.0, "kd_source": "top_k"}))


def test_a_cosine_loss_between_different_widths_is_refused():
    students = {"half": {"initialise": "random", "layer_map": None, "hidden_size": 16}}
    with pytest.raises(ConfigError, match=r"students.half.hidden_size is 16; allowed: 32 \(the teacher's\)"):
        load_config(tiny_params(students=students))


def test_a_hub_id_without_a_pinned_revision_is_refused():
    with pytest.raises(ConfigError, match=r"load.revision is null; allowed: a commit or tag"):
        load_config(tiny_params(teacher={"source": "load", "load": {"hub_id": "bert-base-uncased"}}))


def spec(**overrides):
    return cache_spec(load_config(tiny_params(**overrides)))


@pytest.mark.parametrize(
    "change",
    [
        {"cache": {"top_k": 8}},
        {"cache": {"temperatures": [4.0]}},
        {"cache": {"preset": "lossless"}},
        {"cache": {"precision": "bfloat16"}},
        {"masking": {"seed": 1}},
        {"tokenize": {"min_sequence_tokens": 5}},
        {"tokenize": {"packing": "full"}},
        {"teacher": {"train": {"seed": 3}}},
        {"corpus": {"seed": 3}},
    ],
)
def test_what_changes_the_targets_changes_the_spec(change):
    assert spec(**change) != spec()


@pytest.mark.parametrize(
    "change",
    [
        {"cache": {"batch_tokens": 99}},
        {"machine": {"threads": 2}},
        {"machine": {"local_shards_gb": 0.5}},
        {"train": {"temperature": 4.0}},
        {"corpus": {"files": {"paths": ["elsewhere"]}}},
        {"evaluate": {"batch_size": 3}},
    ],
)
def test_speed_paths_and_training_are_not_part_of_the_spec(change):
    assert spec(**change) == spec()


def test_a_key_that_joined_changes_nothing_at_the_value_that_older_files_mean():
    older, spelled_out = (load_config(tiny_params(tokenize=section)) for section in ({}, {"packing": "document"}))
    assert older == spelled_out
    assert "packing" not in to_plain(spelled_out)["tokenize"]
    assert cache_spec(spelled_out) == cache_spec(older)
    packed = load_config(tiny_params(tokenize={"packing": "full"}))
    assert load_config(to_plain(packed)) == packed


def test_a_preset_is_only_a_name_for_its_values():
    assert spec(cache={"preset": "balanced"}) == spec(cache={"preset": "exact", "hidden": "int8", "logits": "grid"})


def test_a_config_cannot_be_changed():
    config: Config = load_config(tiny_params())
    with pytest.raises(AttributeError):
        config.train.seed = 3


RANDOM = {"architecture": "distilbert", "initialise": "random", "layers": 1, "dropout": 0.0, "seed": 0}


def test_a_run_of_the_comparison_is_train_with_its_changes_and_the_seed():
    runs = {"MLM only": {"weights": {"kd": 0.0, "cos": 0}}}
    config = load_config(tiny_params(compare={"seeds": [7], "runs": runs}))
    run = config.of_run("MLM only", 7)
    assert (run.train.weights.kd, run.train.weights.mlm, run.train.weights.cos) == (0.0, 2.0, 0.0)
    assert run.train.seed == 7
    assert run.train.steps == config.train.steps
    assert cache_spec(run) == cache_spec(config)


def test_a_random_student_of_the_comparison_is_another_one_for_each_seed_but_its_own():
    runs = {"random": {"student": "other"}}
    config = load_config(tiny_params(students={"other": RANDOM}, compare={"seeds": [0, 1], "runs": runs}))
    assert config.of_run("random", 0).train.student == "other"
    second = config.of_run("random", 1)
    assert second.train.student == "other-seed-1"
    assert second.student.seed == 1


def test_the_seed_of_a_run_is_not_its_own_to_set():
    with pytest.raises(ConfigError, match=r"compare.runs.a.seed is 3; allowed: nothing: set compare.seeds"):
        load_config(tiny_params(compare={"seeds": [0], "runs": {"a": {"seed": 3}}}))


def test_the_comparison_can_be_left_out():
    values = tiny_params()
    del values["compare"]
    assert load_config(values).compare is None


def test_the_embedded_default_and_the_recipe_of_a_real_encoder_compare_the_same_runs():
    files = [ROOT / "params.yaml", ROOT / "recipes" / "minilm" / "params.yaml"]
    default, recipe = (load_config(yaml.safe_load(file.read_text(encoding="utf-8"))).compare for file in files)
    assert default == recipe


CAUSAL = {"source": "load", "load": {"path": "gpt"}, "objective": "causal"}
NEXT_TOKEN = {"weights": {"mlm": 0.0, "clm": 2.0}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"teacher": {"objective": "causal"}},
            r"teacher.source is 'train'; allowed: load, as teacher.objective is causal",
        ),
        (
            {"teacher": CAUSAL, "train": NEXT_TOKEN, "cache": {"positions": "masked"}},
            "cache.positions is 'masked'; allowed: all or sampled, as teacher.objective is causal: nothing is masked",
        ),
        (
            {"teacher": CAUSAL, "train": NEXT_TOKEN, "masking": {"variants": 2}},
            "masking.variants is 2; allowed: 1, as teacher.objective is ca",
        ),
        (
            {"machine": {"max_memory": {"cpu": "1GiB"}}},
            "machine.max_memory is .*; allowed: null, as machine.device_map is",
        ),
        (
            {"machine": {"device_map": "auto", "max_memory": {"cpu": "9"}}},
            "machine.max_memory.cpu is '9'; allowed: a size w",
        ),
        ({"machine": {"device_map": "auto", "max_memory": {"tpu": "1GiB"}}}, "allowed: devices by number .* and cpu"),
        ({"machine": {"device_map": "all"}}, "machine.device_map is 'all'; allowed: auto, balanced"),
    ],
)
def test_what_does_not_go_with_a_teacher_or_its_devices_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_params(**changes))


def test_the_objective_of_a_masked_teacher_leaves_identities_as_they_were_before_there_was_another():
    values = tiny_params(teacher={"objective": "masked"})
    assert cache_spec(load_config(values)) == cache_spec(load_config(tiny_params()))
    assert "objective" not in cache_spec(load_config(values))["teacher"]
    causal = load_config(tiny_params(teacher=CAUSAL, train=NEXT_TOKEN))
    assert cache_spec(causal)["teacher"]["objective"] == "causal"


def test_where_a_large_teacher_is_put_is_no_part_of_the_identity():
    spread = {"device_map": "auto", "max_memory": {"0": "20GiB", "cpu": "60GiB"}}
    assert cache_spec(load_config(tiny_params(machine=spread))) == cache_spec(load_config(tiny_params()))
