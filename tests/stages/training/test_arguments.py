"""What transformers.Trainer makes of the parameters."""

import dataclasses
import math

import pytest
import torch
from transformers import Trainer

from stages.config import ConfigError
from stages.context import Context
from stages.training.arguments import training_arguments
from stages.training.run import plan_run
from storage import CacheReader
from tests.stages.tiny_models import tiny_model

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def planned(copy_cached):
    """`planned(train={...})`: the run of these parameters and its arguments."""
    project = copy_cached()
    reader = CacheReader(project.artefacts.cache)

    def plan(context=None, **train):
        project.set(train=train)
        context = context or project.context
        run = plan_run(project.config, context, reader)
        return run, training_arguments(project.config, context, run, project.folder / "run")

    plan.context = project.context
    return plan


def rates(arguments):
    """The learning rate of each step, after Trainer's own scheduler."""
    trainer = Trainer(model=tiny_model("distilbert"), args=arguments)
    trainer.create_optimizer_and_scheduler(arguments.max_steps)
    found = []
    for _ in range(arguments.max_steps):
        found.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_rises_and_then_goes_as_the_schedule_says(planned, schedule):
    _, arguments = planned(
        steps=10, warmup_steps=None, warmup_fraction=0.35, schedule=schedule, learning_rate=1.0, checkpoint_steps=10
    )
    warm = math.ceil(10 * 0.35)
    left = [(10 - step) / (10 - warm) for step in range(warm, 10)]
    after = {
        "linear": left,
        "cosine": [0.5 * (1 + math.cos(math.pi * (1 - x))) for x in left],
        "constant": [1.0] * len(left),
    }
    expected = [step / warm for step in range(warm)] + after[schedule]
    assert rates(arguments) == pytest.approx(expected)


def test_biases_and_norms_are_left_out_of_weight_decay(planned):
    _, arguments = planned(weight_decay=0.1)
    trainer = Trainer(model=tiny_model("distilbert"), args=arguments)
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed, left_out = (
        {names[id(parameter)] for parameter in group["params"]} for group in trainer.optimizer.param_groups
    )
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    assert {"distilbert.embeddings.word_embeddings.weight", "vocab_transform.weight"} <= decayed
    assert all(name.endswith("bias") or "norm" in name.lower() for name in left_out)
    assert {"distilbert.transformer.layer.0.sa_layer_norm.weight", "vocab_layer_norm.weight"} <= left_out


def test_what_changes_the_weights_changes_the_run_and_what_does_not_does_not(planned):
    run, _ = planned()
    for changes in ({"schedule": "cosine"}, {"kd_positions": "masked"}, {"compile": True}, {"weights": {"mse": 0.1}}):
        assert planned(**changes)[0].fingerprint != run.fingerprint, changes
    for changes in ({"gradient_checkpointing": True}, {"log_steps": 3}, {"checkpoint_steps": 2}):
        assert planned(**changes)[0].fingerprint == run.fingerprint, changes


def test_a_run_is_called_by_its_student_or_its_place_in_a_comparison(planned):
    run, arguments = planned()
    assert run.name == arguments.run_name == f"half-{run.fingerprint[:8]}"
    context = dataclasses.replace(planned.context, artefacts=planned.context.artefacts.of_run("mlm-only"))
    assert planned(context)[0].name == f"mlm-only-{run.fingerprint[:8]}"


def test_float16_is_refused_on_a_cpu(planned):
    with pytest.raises(ConfigError, match=r"train.precision is 'float16'; allowed: auto, float32 or bfloat16 on a CPU"):
        planned(precision="float16")


@gpu
def test_on_a_gpu_float16_is_trained_with_scaled_gradients(planned):
    context = Context(artefacts=planned.context.artefacts, device="cuda:0")
    _, arguments = planned(context, precision="float16")
    assert Trainer(model=tiny_model("distilbert"), args=arguments).accelerator.scaler.is_enabled()
