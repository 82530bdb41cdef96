"""Exported models say what the model says, whatever the batch and the length."""

import importlib.util

import pytest
import torch

from stages.errors import InputError
from stages.speed import onnx_files
from stages.speed.onnx_files import (
    ENCODER,
    ENCODER_INT8,
    MODEL,
    MODEL_INT8,
    PACKAGES,
    OnnxSession,
    WithHidden,
    export_onnx,
    require_onnx,
)
from tests.stages.speed.onnx_packages import needs_onnx
from tests.stages.test_bilstm import tiny_lstm
from tests.stages.tiny_models import tiny_model

VOCABULARY = 600
FAMILIES = ["bert", "distilbert", "roberta", "gpt2"]
SHAPES = [(1, 1), (1, 24), (5, 17)]

_EXPORTED = {}


def of_one_block(kind, seed=0):
    return tiny_model(kind, vocabulary=VOCABULARY, seed=seed, num_hidden_layers=1, hidden_size=32, intermediate_size=64)


@pytest.fixture
def exported(tmp_path_factory):
    """`exported("gpt2")`: a model of that family and the folder of its files, made once."""

    def make(kind):
        if kind not in _EXPORTED:
            model = of_one_block(kind)
            folder = tmp_path_factory.mktemp(kind)
            export_onnx(model, folder, "the student")
            _EXPORTED[kind] = model, folder
        return _EXPORTED[kind]

    return make


def inputs(rows, length):
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(ids)
    if rows > 1:
        attention_mask[1, length // 2 :] = 0
    return ids, attention_mask


@needs_onnx
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_file_gives_hidden_states_and_logits_of_any_batch_and_length(exported, kind):
    model, folder = exported(kind)
    session, encoder = (OnnxSession(folder / name, threads=1) for name in (MODEL, ENCODER))
    for shape in SHAPES:
        ids, attention_mask = inputs(*shape)
        real = attention_mask.bool()
        with torch.inference_mode():
            hidden, logits = WithHidden(model)(ids, attention_mask)
        found_hidden, found_logits = session(ids, attention_mask)
        assert torch.allclose(hidden[real], found_hidden[real], atol=1e-4)
        assert torch.allclose(logits[real], found_logits[real], atol=1e-4)
        [alone] = encoder(ids, attention_mask)
        assert torch.equal(alone, found_hidden)


@needs_onnx
@pytest.mark.parametrize("kind", FAMILIES)
def test_int8_files_are_smaller_and_close(exported, kind):
    model, folder = exported(kind)
    for whole, int8 in ((MODEL, MODEL_INT8), (ENCODER, ENCODER_INT8)):
        assert (folder / int8).stat().st_size < 0.8 * (folder / whole).stat().st_size
    ids, attention_mask = inputs(5, 17)
    real = attention_mask.bool()
    with torch.inference_mode():
        hidden, _ = WithHidden(model)(ids, attention_mask)
    found, _ = OnnxSession(folder / MODEL_INT8, threads=1)(ids, attention_mask)
    assert torch.cosine_similarity(hidden[real], found[real], dim=-1).mean() > 0.98
    assert not torch.equal(hidden[real], found[real])


@needs_onnx
def test_an_output_matrix_that_is_the_embeddings_is_written_once(exported):
    model, folder = exported("distilbert")
    assert model.config.tie_word_embeddings
    table = 4 * model.get_output_embeddings().weight.numel()
    assert (folder / MODEL).stat().st_size - (folder / ENCODER).stat().st_size < table


@needs_onnx
def test_a_family_that_cannot_be_exported_is_refused_with_the_reason(tmp_path):
    with pytest.raises(
        InputError, match=r"the student \(BiLstmForMaskedLM\) cannot be exported to ONNX .*without --onnx"
    ) as refused:
        export_onnx(tiny_lstm(num_hidden_layers=1), tmp_path, "the student")
    assert "\n" not in str(refused.value)


@needs_onnx
def test_a_model_larger_than_an_onnx_file_can_be_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"the teacher takes .* GB in float32 and an ONNX file ends at"):
        export_onnx(tiny_model("bert"), tmp_path, "the teacher")


@needs_onnx
def test_an_exported_model_that_does_something_else_is_refused(exported):
    _, folder = exported("bert")
    other = of_one_block("bert", seed=1)
    with pytest.raises(InputError, match="gives other outputs as an ONNX file: last_hidden_state differs by"):
        onnx_files._check(other, OnnxSession(folder / MODEL, threads=1), "the student")


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(InputError, match=r'onnx, onnxruntime, onnxscript .* pip install "teacher-cache\[onnx\]"'):
        require_onnx()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(InputError, match="the package onnx that ONNX files need is not installed"):
        require_onnx()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    require_onnx()
    assert len(PACKAGES) == 3
