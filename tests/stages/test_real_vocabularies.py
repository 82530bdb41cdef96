"""The published vocabularies: their tokenizers, four languages in a small multilingual BERT, and models of full size.

`pytest -m slow -s` on this file shows what the models of full size take.
"""

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, set_seed

from stages import cache_teacher, corpus, evaluate, init_student, teacher, tokenize_corpus, train_student
from stages.models import count_parameters, load_language_model, load_tokenizer
from stages.sequences import TokenStore
from storage import CacheReader
from tests.stages.conftest import Project
from tests.stages.real_data import TOKENIZERS, needs_data, paragraphs
from tests.stages.tiny_models import tiny_model
from tests.tiny import ROOT, write_project

pytestmark = needs_data

GIVEN = {"path": "given"}
LOADED = {"tokenize": {"tokenizer": "load", "load": GIVEN}, "teacher": {"source": "load", "load": GIVEN}}


@pytest.mark.parametrize(
    ("name", "size", "ids"),
    [
        ("bert", 30_522, [101, 7592, 2088, 102]),
        ("bert-multilingual", 119_547, [101, 31178, 11356, 102]),
        ("roberta", 50_265, [0, 31414, 232, 2]),
        ("gpt2", 50_257, [15496, 995]),
    ],
)
def test_the_published_vocabularies_give_the_ids_of_the_published_models(name, size, ids):
    tokenizer = TOKENIZERS[name]()
    assert len(tokenizer) == size
    assert tokenizer("Hello world")["input_ids"] == ids


def test_four_languages_go_through_a_small_multilingual_bert_to_its_student(tmp_path):
    project = Project(
        write_project(tmp_path / "project"),
        **LOADED,
        cache={"preset": "exact", "top_k": 16, "sequences": {"train": 48, "validation": 4, "test": 4}},
        students={"half": {"layers": 2, "layer_map": None}},
        train={"steps": 3},
    )
    text = project.folder / "text"
    (text / "stories.txt").unlink()
    for language in ("fr", "de", "es", "en"):
        (text / f"{language}.txt").write_text("\n".join(paragraphs(language, 12)), encoding="utf-8")
    tokenizer = TOKENIZERS["bert-multilingual"]()
    tokenizer.save_pretrained(project.folder / "given")
    tiny_model("bert", vocabulary=len(tokenizer)).save_pretrained(project.folder / "given")
    for stage in (corpus, tokenize_corpus, teacher, cache_teacher):
        project.run(stage)
    store = TokenStore.open(project.artefacts.tokens)
    _, ids = store.split("train").read(0, len(store.split("train")))
    assert ids.dtype == np.uint32
    assert np.mean(ids > 65_535) > 0.01
    assert np.mean(ids == store.special_tokens["unk"]) < 0.01
    read = load_tokenizer(store.tokenizer_folder).decode(ids)
    for character in "àèçéüößñáÉ":
        assert character in read, character
    project.run(init_student, "half")
    project.run(train_student)
    project.run(evaluate)
    figures = json.loads((project.artefacts.runs / "evaluation.json").read_text())
    assert figures["masked_tokens"] > 0
    assert load_language_model(project.artefacts.student, objective="masked").config.vocab_size == 119_547


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """A published teacher, and how many million parameters it and its student are said to have."""

    settings: dict
    teacher: float
    student: float
    architecture: str = "same"
    causal: bool = False


FULL_SIZE = {
    "bert": FullSize(settings={"model_type": "bert"}, teacher=110, student=66, architecture="distilbert"),
    "bert-multilingual": FullSize(
        settings={"model_type": "bert", "vocab_size": 119_547}, teacher=178, student=135, architecture="distilbert"
    ),
    "roberta": FullSize(
        settings={"model_type": "roberta", "vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1},
        teacher=125,
        student=82,
    ),
    "gpt2": FullSize(settings={"model_type": "gpt2"}, teacher=124, student=82, causal=True),
}

STAGE = """
import json, sys, yaml
from importlib import import_module
from pathlib import Path
from stages.config import load_config
from stages.context import Artefacts, Context

def most_resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder, stage = Path(sys.argv[1]), import_module("stages." + sys.argv[2])
config = load_config(yaml.safe_load((folder / "params.yaml").read_text()))
before = most_resident()
stage.run(config, Context(artefacts=Artefacts(project=folder)))
print(json.dumps([before, most_resident()]))
"""


def memory_of(project, stage):
    """Bytes that were resident at most in a process of its own: with its libraries loaded, and after the stage."""
    done = subprocess.run(
        [sys.executable, "-c", STAGE, str(project.folder), stage],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.campaign  # minutes per model, and gigabytes
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_model_of_full_size_is_cached_and_its_student_trained_in_little_more_than_they_take(name, tmp_path):
    family = FULL_SIZE[name]
    objective = "causal" if family.causal else "masked"
    weights = {"mlm": 0.0, "clm": 2.0} if family.causal else {}
    project = Project(
        write_project(tmp_path / "project"),
        tokenize={**LOADED["tokenize"], "sequence_tokens": 128, "min_sequence_tokens": 16, "packing": "full"},
        teacher={**LOADED["teacher"], "objective": objective},
        cache={
            "preset": "balanced",
            "top_k": None,
            "shard_tokens": 4096,
            "batch_tokens": 1024,
            "sequences": {"train": 64, "validation": 4, "test": 4},
        },
        students={
            "half": {"architecture": family.architecture, "layers": 6, "layer_map": [0, 2, 4, 7, 9, 11], "dropout": 0.1}
        },
        train={"weights": weights, "steps": 3, "checkpoint_steps": 3, "log_steps": 1, "warmup_steps": 0},
    )
    (project.folder / "text" / "stories.txt").write_text("\n".join(paragraphs("en", 120)), encoding="utf-8")
    tokenizer = TOKENIZERS[name]()
    tokenizer.save_pretrained(project.folder / "given")
    set_seed(0)
    auto = AutoModelForCausalLM if family.causal else AutoModelForMaskedLM
    model = auto.from_config(AutoConfig.for_model(**family.settings))
    assert model.config.vocab_size == len(tokenizer)
    parameters = count_parameters(model)
    assert parameters / 1e6 == pytest.approx(family.teacher, abs=1)
    head_bytes = 4 * model.get_output_embeddings().weight.numel()
    model.save_pretrained(project.artefacts.teacher)
    tokenizer.save_pretrained(project.artefacts.teacher)
    del model
    project.run(corpus)
    project.run(tokenize_corpus)

    libraries, cached = memory_of(project, "cache_teacher")
    sys.stdout.write(f"{name}: {parameters:,} parameters, cache-teacher {(cached - libraries) / 1e9:.2f} GB\n")
    assert len(CacheReader(project.artefacts.cache).shards("train")) == 2
    # The teacher's weights, and their file, which is mapped while they are put into place; its head, as it is written.
    assert cached - libraries < 2 * 4 * parameters + head_bytes + 0.3e9

    init_student.write_initial_weights(project.config, project.context, "half")
    student = load_language_model(project.artefacts.student_init("half"), objective=objective)
    smaller = count_parameters(student)
    assert smaller / 1e6 == pytest.approx(family.student, abs=1)
    del student
    libraries, trained = memory_of(project, "train_student")
    sys.stdout.write(f"its student: {smaller:,} parameters, train-student {(trained - libraries) / 1e9:.2f} GB\n")
    # Weights, gradients and AdamW's two moments, the gradient of the projection that the loss makes, and, to be validated, the
    # student as it was saved; activations and rows of the cache besides. It leaves no room for the teacher.
    assert trained - libraries < 4 * 4 * smaller + head_bytes + 2 * 4 * smaller + 0.5e9
    figures = json.loads((project.artefacts.runs / "train.json").read_text())
    assert figures["steps"] == 3
    assert figures["parameters"] == smaller
