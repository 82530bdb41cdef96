"""What fine-tuned teachers of several families say, in batches and one input at a time."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification, set_seed

from stages.draws import ShardUniforms
from stages.errors import Interrupted
from stages.task_cache.targets import SeenExamples, TaskComputer
from storage import Layout
from tests.stages.tiny_models import SIZES

LENGTHS = (5, 9, 2, 9, 7)
LAYERS = (0, 1, 3)


def model_of(kind, classes, **changes):
    set_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, "vocab_size": 40, **changes})
    return classes.from_config(config).eval()


def seen(*, token_types=False):
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.uint32)
    ids = generator.integers(3, 40, offsets[-1], dtype=np.uint16)
    return SeenExamples(
        offsets=offsets,
        original_ids=ids,
        input_ids=ids,
        masked=np.zeros(len(ids), np.uint8),
        start=0,
        uniforms=ShardUniforms(0, "train", 0),
        token_types=generator.integers(0, 2, len(ids), dtype=np.uint8) if token_types else None,
        labelled=np.ones(len(LENGTHS), np.uint8),
        label=np.zeros((len(LENGTHS), 2), np.float32),
    )


def layout(task, width, *, token_types=False, hidden="float32"):
    return Layout(
        positions="all",
        hidden=hidden,
        hidden_layers=LAYERS if hidden != "none" else (),
        logits="none",
        top_k=0,
        task=task,
        task_width=width,
        token_types=token_types,
    )


def one_by_one(model, examples):
    """Logits and hidden states (L, layers, H) of each input alone."""
    for first, last in zip(examples.offsets, examples.offsets[1:], strict=False):
        inputs = {"input_ids": torch.from_numpy(examples.input_ids[first:last].astype(np.int64))[None]}
        if examples.token_types is not None:
            inputs["token_type_ids"] = torch.from_numpy(examples.token_types[first:last].astype(np.int64))[None]
        with torch.inference_mode():
            output = model(**inputs, output_hidden_states=True)
        states = torch.stack([output.hidden_states[layer][0] for layer in LAYERS], 1)
        said = output.logits[0] if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)[0]
        yield said.numpy(), states.numpy()


def computer(model, batch_tokens, *, hidden=True):
    return TaskComputer(model, layers=3, pad_id=0, batch_tokens=batch_tokens, hidden=hidden)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_classes_and_hidden_states_are_those_of_each_input_alone(kind, batch_tokens):
    types = kind == "bert"
    model = model_of(kind, AutoModelForSequenceClassification, num_labels=3)
    examples = seen(token_types=types)
    found = computer(model, batch_tokens).compute(examples, layout("classification", 3, token_types=types)).targets()
    logits, states = zip(*one_by_one(model, examples), strict=True)
    np.testing.assert_allclose(found.task_logits, np.stack(logits), atol=1e-5)
    np.testing.assert_allclose(found.encoded["hidden"], np.concatenate(states), atol=1e-5)
    assert found.stat.shape == (len(examples.input_ids), 0)


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_answers_are_those_of_each_input_alone(batch_tokens):
    model = model_of("distilbert", AutoModelForQuestionAnswering)
    found = computer(model, batch_tokens, hidden=False).compute(seen(), layout("answers", 2, hidden="none")).targets()
    logits, _ = zip(*one_by_one(model, seen()), strict=True)
    np.testing.assert_allclose(found.task_logits, np.concatenate(logits), atol=1e-5)
    assert not found.encoded


def test_a_shard_is_dropped_where_a_stop_is_asked_for():
    model = model_of("distilbert", AutoModelForSequenceClassification, num_labels=3)
    with pytest.raises(Interrupted, match="the shard in hand was dropped"):
        computer(model, 1).compute(seen(), layout("classification", 3), lambda: True)


def test_the_base_model_is_listened_to_once_and_only_where_hidden_states_are_asked_for():
    model = model_of("distilbert", AutoModelForSequenceClassification, num_labels=3)
    computer(model, 1000, hidden=False)
    assert not model.base_model._forward_hooks
    listening = computer(model, 1000)
    for _ in range(2):
        listening.compute(seen(), layout("classification", 3))
        assert len(model.base_model._forward_hooks) == 1
