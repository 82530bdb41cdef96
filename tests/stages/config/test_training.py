import dataclasses
import math
import re

import pytest
import yaml

from stages.config import ConfigError, LossWeights, TrainConfig, load_config, to_plain
from tests.tiny import ROOT, tiny_params

CAUSAL = {"source": "load", "load": {"path": "gpt"}, "objective": "causal"}
NO_MLM = {"mlm": 0.0, "clm": 2.0}


def load(**train):
    return load_config(tiny_params(train=train)).train


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"weights": {"clm": 1.0}}}, r"train.weights.clm is 1.0; allowed: 0, as teacher.objective is masked"),
        (
            {"teacher": CAUSAL},
            r"train.weights.mlm is 2.0; allowed: 0, as teacher.objective is causal: nothing is masked; .* train.weights.clm",
        ),
        (
            {"teacher": CAUSAL, "train": {"weights": NO_MLM, "kd_positions": "masked"}},
            "train.kd_positions is 'masked'; allowed: all, as teacher.objective is causal: nothing is masked",
        ),
        (
            {"teacher": CAUSAL, "train": {"weights": NO_MLM, "cos_positions": "masked"}},
            "train.cos_positions is 'masked'; allowed: all, as teacher.objective is causal",
        ),
        (
            {"train": {"weights": {"mse": 1.0}, "kd_source": "top_k"}},
            r"train.weights.mse is 1.0; allowed: 0, as train.kd_source is top_k: only hidden gives",
        ),
        (
            {"train": {"weights": {"kd": 0.0, "cos": 0.0, "mse": 1.0}}, "cache": {"hidden": "none"}},
            r"train.weights.mse is 1.0; allowed: 0, as cache.hidden is none",
        ),
        ({"train": {"weights": {"mse": -1.0}}}, r"train.weights.mse is -1.0; allowed: 0 or more"),
        ({"train": {"kd_positions": "some"}}, r"train.kd_positions is 'some'; allowed: all, masked"),
        ({"train": {"schedule": "step"}}, r"train.schedule is 'step'; allowed: linear, cosine, constant"),
        (
            {"train": {"warmup_fraction": 0.1}},
            r"train.warmup_steps is 2; allowed: an integer where train.warmup_fraction is null, else null",
        ),
        ({"train": {"warmup_steps": None}}, r"train.warmup_steps is null; allowed: an integer where train.warmup_frac"),
        (
            {"train": {"warmup_steps": None, "warmup_fraction": 1.0}},
            r"train.warmup_fraction is 1.0; allowed: null or 0 <= x < 1",
        ),
        ({"train": {"warmup_steps": -1}}, r"train.warmup_steps is -1; allowed: 0 or more"),
        ({"train": {"precision": "float8"}}, r"train.precision is 'float8'; allowed: auto, float32, bfloat16, float16"),
        ({"machine": {"report_to": ["comet"]}}, r"machine.report_to\[0\] is 'comet'; allowed: tensorboard, wandb"),
        ({"machine": {"report_to": "wandb"}}, r"machine.report_to is 'wandb'; allowed: a list, each item tensorboard"),
    ],
)
def test_what_a_training_cannot_do_is_refused_with_the_reason(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_params(**changes))


@pytest.mark.parametrize("metric", ["kl_masked", "mlm_loss", "agreement_masked"])
def test_figures_of_masked_tokens_are_refused_where_nothing_is_masked(metric):
    train = {"weights": NO_MLM, "validation": {"steps": 2, "metric": metric}}
    message = rf"train.validation.metric is '{metric}'; allowed: kl_all, clm_loss, agreement_all, as teacher.objective is causal"
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_params(teacher=CAUSAL, train=train))
    train["validation"]["metric"] = "clm_loss"
    assert load_config(tiny_params(teacher=CAUSAL, train=train)).train.validation.lower_is_better


def test_a_figure_of_the_next_token_is_refused_where_a_masked_one_is_predicted():
    message = r"metric is 'clm_loss'; allowed: kl_masked, kl_all, mlm_loss, .*as teacher.objective is masked"
    with pytest.raises(ConfigError, match=message):
        load(validation={"steps": 2, "metric": "clm_loss"})


def test_a_causal_teacher_is_taken_with_the_prediction_of_the_next_token():
    weights = load_config(tiny_params(teacher=CAUSAL, train={"weights": NO_MLM})).train.weights
    assert weights.used == ("kd", "clm", "cos")


@pytest.mark.parametrize(("steps", "fraction", "expected"), [(7000, 0.05, 350), (10, 0.05, 1), (3, 0.0, 0)])
def test_a_fraction_of_the_steps_is_rounded_up_as_the_original_does(steps, fraction, expected):
    assert load(warmup_steps=None, warmup_fraction=fraction).warmup(steps) == expected == math.ceil(steps * fraction)


def test_a_number_of_steps_is_taken_as_it_is():
    assert load(warmup_steps=3).warmup(1000) == 3


def test_a_cosine_or_squared_differences_alone_are_distillation_and_tokens_alone_are_not():
    none = {"kd": 0.0, "mlm": 0.0, "cos": 0.0}
    assert load(weights={**none, "cos": 1.0}).distils
    assert load(weights={**none, "mse": 1.0}).distils
    assert not load(weights={**none, "mlm": 1.0}).distils


def test_older_parameter_files_mean_what_they_meant_and_identities_stay_what_they_were():
    older = load()
    joined = {
        "kd_positions": "all",
        "cos_positions": "all",
        "warmup_fraction": None,
        "schedule": "linear",
        "freeze_token_type_embeddings": False,
        "gradient_checkpointing": False,
        "compile": False,
    }
    spelled_out = load(**joined, weights={"clm": 0.0, "mse": 0.0})
    assert spelled_out == older
    assert to_plain(spelled_out) == tiny_params()["train"]
    changed = load(schedule="cosine", kd_positions="masked", compile=True, weights={"mse": 1.0})
    assert load_config(tiny_params(train=to_plain(changed))).train == changed


ORIGINAL = """
alpha_ce alpha_mlm alpha_clm alpha_mse alpha_cos temperature mlm mlm_mask_prop word_mask word_keep word_rand mlm_smoothing token_counts
restrict_ce_to_mask freeze_pos_embs freeze_token_type_embds n_epoch batch_size group_by_size gradient_accumulation_steps warmup_prop
weight_decay learning_rate adam_epsilon max_grad_norm initializer_range fp16 fp16_opt_level n_gpu local_rank seed log_interval
checkpoint_interval force dump_path data_file student_type student_config student_pretrained_weights teacher_type teacher_name
"""
"""Flags of the original distiller's train.py."""

DOCUMENT = (ROOT / "docs" / "training-parameters.md").read_text(encoding="utf-8")


def test_the_document_names_every_flag_of_the_original_distiller():
    assert not [flag for flag in ORIGINAL.split() if f"`--{flag}`" not in DOCUMENT]


def value_of(parameters, dotted):
    value = parameters["train"]
    for name in dotted.split("."):
        value = value[name]
    return value


def test_the_document_has_every_parameter_with_the_values_of_the_parameter_files():
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| ([^|]*?) \| ([^|]*?) \|$", DOCUMENT, re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(TrainConfig)} - {"weights"}
    weights = {f"weights.{field.name}" for field in dataclasses.fields(LossWeights)}
    assert sorted(name for name, *_ in rows) == sorted(fields | weights)
    default, recipe = (
        yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
        for file in ("params.yaml", "recipes/distilbert/params.yaml")
    )
    for name, *shown in rows:
        found = [yaml.safe_load(value) for value in shown]
        assert found == [value_of(default, name), value_of(recipe, name)], name
