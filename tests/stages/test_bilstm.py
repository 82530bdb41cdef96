"""The BiLSTM student: a masked language model as any other to the stages."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, set_seed

from stages import evaluate, init_student, train_student
from stages.bilstm import BiLstmConfig, BiLstmForMaskedLM, copy, reading_orders
from stages.blocks import blocks_of
from stages.config import ConfigError, load_config
from stages.forward_pass import encoder_hidden, encoder_states
from stages.heads import Head
from stages.model_config import ModelShape
from stages.models import load_masked_lm
from tests.stages.conftest import Project
from tests.stages.tiny_models import tiny_bert
from tests.tiny import ROOT, tiny_params

STUDENTS = {
    "half": {"architecture": "bilstm", "initialise": "random", "layers": 2, "layer_map": None, "lstm_size": 12},
}


def tiny_lstm(seed=0, **changes) -> BiLstmForMaskedLM:
    set_seed(seed)
    settings = {"vocab_size": 60, "hidden_size": 16, "lstm_size": 5, "num_hidden_layers": 2, "initializer_range": 0.3}
    return BiLstmForMaskedLM(BiLstmConfig(**{**settings, **changes})).eval()


def ids(rows=3, length=7, seed=0):
    return torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


def by_torch(model, input_ids):
    """The states after each block by torch's own bidirectional LSTM, for sequences without padding."""
    states = [model.lstm.layer_norm(model.lstm.word_embeddings(input_ids))]
    for block in model.lstm.layers:
        both = torch.nn.LSTM(16, 5, batch_first=True, bidirectional=True)
        for name, tensor in block.ahead.named_parameters():
            getattr(both, name).data.copy_(tensor)
        for name, tensor in block.back.named_parameters():
            getattr(both, f"{name}_reverse").data.copy_(tensor)
        states.append(block.output(both(states[-1])[0]))
    return states


def test_it_computes_what_torchs_bidirectional_lstm_does():
    model = tiny_lstm()
    last, states = encoder_states(model, ids(), torch.ones(3, 7, dtype=torch.long), layers=(0, 1, 2))
    expected = by_torch(model, ids())
    for layer in range(3):
        torch.testing.assert_close(states[layer], expected[layer])
    torch.testing.assert_close(last, expected[-1])


@pytest.mark.parametrize("side", ["right", "left", "both"])
def test_padding_changes_nothing_of_the_tokens_on_whatever_side_it_is(side):
    model, tokens = tiny_lstm(), ids(rows=1)
    alone = model(tokens).logits
    before, after = {"right": (0, 4), "left": (4, 0), "both": (2, 3)}[side]
    padded = torch.nn.functional.pad(tokens, (before, after), value=0)
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (before, after))
    for junk in (0, 9):  # not even what stands there
        found = model(padded.masked_fill(mask == 0, junk), mask).logits
        torch.testing.assert_close(found[:, before : before + 7], alone)


def test_each_direction_reads_the_tokens_first_and_padding_last():
    ahead, back = reading_orders(torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]))
    assert ahead.tolist() == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]]
    assert [row[:count] for row, count in zip(back.tolist(), (3, 4), strict=True)] == [[2, 1, 0], [4, 3, 2, 1]]


def test_every_position_sees_both_sides():
    model, tokens = tiny_lstm(), ids(rows=1)
    before = encoder_hidden(model, tokens, torch.ones_like(tokens))
    for changed in (0, 6):
        other = tokens.clone()
        other[0, changed] += 1
        after = encoder_hidden(model, other % 60, torch.ones_like(tokens))
        assert (before != after).any(-1).all()


def test_saved_and_loaded_by_the_auto_classes_it_is_the_same(tmp_path):
    model = tiny_lstm()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "projection.weight" not in stored  # tied: stored once
    for loaded in (AutoModelForMaskedLM.from_pretrained(tmp_path).eval(), load_masked_lm(tmp_path)):
        assert type(loaded) is BiLstmForMaskedLM
        assert loaded.projection.weight is loaded.lstm.word_embeddings.weight
        torch.testing.assert_close(loaded(ids()).logits, model(ids()).logits, rtol=0, atol=0)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(encoder(ids()).last_hidden_state, model.lstm(ids()).last_hidden_state, rtol=0, atol=0)
    assert AutoConfig.from_pretrained(tmp_path).lstm_size == 5


def test_its_head_and_shape_are_read_like_those_of_any_model():
    model, mask = tiny_lstm(), torch.ones(3, 7, dtype=torch.long)
    logits = Head.of(model).logits(encoder_hidden(model, ids(), mask))
    torch.testing.assert_close(logits, model(ids(), mask).logits)
    shape = ModelShape.of(model.config.to_dict())
    assert (shape.kind, shape.layers, shape.hidden_size, shape.vocabulary_size) == ("bilstm", 2, 16, 60)
    assert len(blocks_of(model)) == 2


def test_labels_give_the_mean_cross_entropy_of_those_that_are_set():
    model, labels = tiny_lstm(), ids(seed=1)
    labels[:, 2:] = -100
    found = model(ids(), labels=labels)
    expected = torch.nn.functional.cross_entropy(found.logits[:, :2].flatten(0, 1), labels[:, :2].flatten())
    torch.testing.assert_close(found.loss, expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_training_steps_repeat_bit_for_bit_with_deterministic_algorithms(autocast):
    def step():
        model = tiny_lstm(dropout=0.2).train()
        set_seed(1)
        mask = torch.ones(3, 7, dtype=torch.long)
        mask[1, 4:] = 0
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(ids(), mask, labels=ids(seed=1)).loss
        loss.backward()
        return [p.grad for p in model.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        one, other = step(), step()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(one, other, strict=True))


def test_embeddings_and_head_are_copied_from_a_teacher_of_its_width():
    teacher = tiny_bert(layers=2)
    same, narrower = tiny_lstm(), tiny_lstm(hidden_size=8)
    copy(same, teacher)
    assert torch.equal(same.lstm.word_embeddings.weight, teacher.bert.embeddings.word_embeddings.weight)
    rows = torch.randn(4, 16)
    torch.testing.assert_close(Head.of(same).logits(rows), Head.of(teacher).logits(rows))
    before = narrower.lstm.word_embeddings.weight.clone()
    copy(narrower, teacher)
    assert torch.equal(narrower.lstm.word_embeddings.weight, before)
    assert torch.equal(narrower.projection.bias, teacher.cls.predictions.bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_map": [0, 1], "initialise": "teacher"}, "layer_map is .*; allowed: null, as architecture is bilstm"),
        ({"attention_heads": 2}, "attention_heads is 2; allowed: null, as architecture is bilstm"),
        ({"feed_forward_size": 8}, "feed_forward_size is 8; allowed: null, as architecture is bilstm"),
        ({"lstm_size": 0}, "lstm_size is 0; allowed: null or 1 and more"),
        ({"architecture": "distilbert"}, "lstm_size is 12; allowed: null, as architecture is distilbert"),
    ],
)
def test_what_an_lstm_does_not_have_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_params(students={"half": {**STUDENTS["half"], **changes}}))


@pytest.fixture(scope="module")
def trained(cached, tmp_path_factory):
    project = Project(shutil.copytree(cached.folder, tmp_path_factory.mktemp("bilstm") / "project"), students=STUDENTS)
    project.run(init_student, "half")
    project.run(train_student)
    project.run(evaluate)
    return project


def test_it_is_trained_from_the_cache_and_evaluated_as_any_student(trained):
    figures = json.loads((trained.artefacts.runs / "evaluation.json").read_text())
    assert figures["kl_masked"] > 0
    assert "hidden_cosine" in figures
    before = load_file(trained.artefacts.student_init("half") / "model.safetensors")
    after = load_file(trained.artefacts.student / "model.safetensors")
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    speed = json.loads(trained.artefacts.speed("half").read_text())
    assert speed["ratio"]["cpu"]["latency"] > 0


def test_it_learns_with_its_teachers_embeddings_too(copy_cached):
    project = copy_cached()
    student = {**STUDENTS["half"], "initialise": "teacher", "layers": 1}
    project.set(students={"half": student})
    project.run(init_student, "half")
    made = load_masked_lm(project.artefacts.student_init("half"))
    teacher = load_masked_lm(project.artefacts.teacher)
    assert torch.equal(made.lstm.word_embeddings.weight, teacher.bert.embeddings.word_embeddings.weight)
    project.run(train_student)
    assert (
        "the teacher's embeddings and head; the LSTMs random" in (project.artefacts.student / "README.md").read_text()
    )


def test_its_card_says_how_to_load_it_and_that_line_is_enough(trained):
    card = (trained.artefacts.student / "README.md").read_text()
    assert "half: a BiLSTM of 2 blocks" in card
    first, *snippets = [block.split("```")[0] for block in card.split("```python\n")[1:]]
    assert first.strip() == "import stages.bilstm"
    code = "\n".join([first, *snippets])
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=trained.folder, env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5  # guesses
