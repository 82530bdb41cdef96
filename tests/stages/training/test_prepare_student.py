import shutil

import pytest
import torch
from safetensors.torch import load_file

from stages import init_student, train_student
from stages.config import ConfigError, load_config
from stages.training.prepare_student import prepare_student
from tests.stages.tiny_models import tiny_bert, tiny_model
from tests.tiny import tiny_params

of_the_compiler = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)


def config(**changes):
    return load_config(tiny_params(train=changes)).train


def frozen(model):
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("distilbert", "distilbert.embeddings.position_embeddings.weight"),
        ("roberta", "roberta.embeddings.position_embeddings.weight"),
        ("gpt2", "transformer.wpe.weight"),
    ],
)
def test_only_the_position_table_is_frozen(kind, table):
    model = tiny_model(kind)
    prepare_student(model, config(freeze_position_embeddings=True))
    assert frozen(model) == [table]


def test_only_the_token_type_table_is_frozen():
    model = tiny_bert()
    prepare_student(model, config(freeze_token_type_embeddings=True))
    assert frozen(model) == ["bert.embeddings.token_type_embeddings.weight"]


@pytest.mark.parametrize(
    ("kind", "key", "what"),
    [
        ("distilbert", "freeze_token_type_embeddings", "token types"),
        ("gpt2", "freeze_token_type_embeddings", "token types"),
        ("llama", "freeze_position_embeddings", "learned positions"),
    ],
)
def test_a_table_that_the_student_does_not_have_is_refused(kind, key, what):
    message = rf"train.{key} is true; allowed: false, as a {kind} student has no table of {what}"
    with pytest.raises(ConfigError, match=message):
        prepare_student(tiny_model(kind), config(**{key: True}))


def trained(project):
    """Weights and log of a run from its beginning, and the names of its last checkpoint's tensors."""
    artefacts = project.artefacts
    shutil.rmtree(artefacts.checkpoints, ignore_errors=True)
    project.run(train_student)
    last = max(artefacts.checkpoints.glob("*/checkpoint-*/model.safetensors"))
    return (
        load_file(artefacts.student / "model.safetensors"),
        (artefacts.runs / "train.csv").read_text(),
        load_file(last).keys(),
    )


def test_blocks_that_are_computed_again_give_the_same_weights_and_the_same_run(copy_cached):
    project, dropout = copy_cached(), {"half": {"dropout": 0.1}}
    project.set(students=dropout)
    project.run(init_student, "half")
    weights, log, _ = trained(project)
    run = next(project.artefacts.checkpoints.glob("*/")).name
    project.set(students=dropout, train={"gradient_checkpointing": True})
    again, same_log, _ = trained(project)
    assert next(project.artefacts.checkpoints.glob("*/")).name == run
    assert same_log == log
    for name, tensor in weights.items():
        assert torch.equal(again[name], tensor), name


def test_with_checkpointing_a_block_is_computed_once_more_in_the_backward_pass():
    model = tiny_model("distilbert").train()
    prepare_student(model, config(gradient_checkpointing=True))
    calls = []
    model.distilbert.transformer.layer[0].ffn.register_forward_hook(lambda *_: calls.append(1))
    loss = model(input_ids=torch.arange(8)[None]).logits.sum()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2


@of_the_compiler
def test_a_compiled_encoder_keeps_the_names_of_its_weights():
    model, same = tiny_model("distilbert"), tiny_model("distilbert")
    prepare_student(model, config(compile=True))
    assert model.state_dict().keys() == same.state_dict().keys()
    assert [name for name, _ in model.named_modules()] == [name for name, _ in same.named_modules()]


@pytest.mark.campaign  # the compiler takes most of a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@of_the_compiler
def test_a_compiled_encoder_trains_alike(copy_cached):
    project = copy_cached()
    weights, log, names = trained(project)
    project.set(train={"compile": True})
    compiled, compiled_log, compiled_names = trained(project)
    assert compiled.keys() == weights.keys()
    assert compiled_names == names
    for name, tensor in weights.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=1e-4)
    for line, same in zip(log.splitlines()[1:], compiled_log.splitlines()[1:], strict=True):
        assert [float(x) for x in same.split(",")] == pytest.approx([float(x) for x in line.split(",")], rel=1e-3)
