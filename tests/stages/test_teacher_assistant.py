"""Teacher assistants (Mirzadeh et al. 2019, arXiv 1902.03393): a distilled student teaches the next one, by parameter alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from stages import cache_teacher, corpus, evaluate, init_student, teacher, tokenize_corpus, train_student
from stages.model_config import ModelShape
from stages.models import load_masked_lm, load_model_config, weights_digest
from storage import CacheReader
from tests.stages.conftest import Project
from tests.tiny import write_project

ASSISTANT = {"path": "../assistant/models/student"}
"""As the second project sees it."""
SMALLER = {
    "distilbert": {"architecture": "distilbert", "initialise": "teacher", "layers": 1, "layer_map": [1]},
    "same": {"architecture": "same", "initialise": "teacher", "layers": 1, "layer_map": [0]},
    "bilstm": {"architecture": "bilstm", "initialise": "teacher", "layers": 1, "layer_map": None, "lstm_size": 8},
}


@pytest.fixture(scope="module")
def chain(cached, tmp_path_factory):
    """The folder of the first project, whose student has two blocks, as its teacher has."""
    folder = tmp_path_factory.mktemp("chain")
    first = Project(
        shutil.copytree(cached.folder, folder / "assistant"), students={"half": {"layers": 2, "layer_map": [0, 1]}}
    )
    first.run(init_student, "half")
    first.run(train_student)
    return folder


@pytest.mark.parametrize("architecture", SMALLER)
def test_a_student_is_the_teacher_of_the_next_by_parameter_alone(chain, architecture):
    second = Project(
        write_project(chain / architecture),
        tokenize={"tokenizer": "load", "train": None, "load": ASSISTANT},
        teacher={"source": "load", "train": None, "load": ASSISTANT},
        students={"half": SMALLER[architecture]},
    )
    for stage in (corpus, tokenize_corpus, teacher, cache_teacher):
        second.run(stage)
    second.run(init_student, "half")
    second.run(train_student)
    second.run(evaluate)

    assistant = load_file(chain / "assistant" / "models" / "student" / "model.safetensors")
    taught = load_file(second.artefacts.teacher / "model.safetensors")
    assert assistant.keys() == taught.keys()
    assert all(torch.equal(assistant[name], taught[name]) for name in assistant)
    description = CacheReader(second.artefacts.cache).description
    assert description.teacher_config["model_type"] == "distilbert"
    assert description.content["teacher"] == weights_digest(second.artefacts.teacher)
    first = CacheReader(chain / "assistant" / "cache" / "current").description
    assert first.content["tokens"] == description.content["tokens"], "the same text and seeds give the same sequences"

    shape = ModelShape.of(load_model_config(second.artefacts.student))
    assert (shape.layers, shape.hidden_size) == (1, 32)
    words = load_masked_lm(second.artefacts.student_init("half")).get_input_embeddings().weight
    assert torch.equal(words, load_masked_lm(second.artefacts.teacher).get_input_embeddings().weight)
    assert json.loads((second.artefacts.runs / "evaluation.json").read_text())["kl_masked"] > 0
    assert "The teacher is a local model." in (second.artefacts.student / "README.md").read_text()
