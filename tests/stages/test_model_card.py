"""The model card of a tiny run: valid by the hub's own library, true to the run, and its code runs."""

import json
import math
import re
import shutil
from itertools import groupby

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, constants
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from transformers.pipelines import SUPPORTED_TASKS

from stages import cache_teacher, init_student, train_student
from stages.config import load_config
from stages.model_card import model_card
from storage import CacheReader
from tests.stages.conftest import Project
from tests.tiny import tiny_params

COMMIT = "0123456789012345678901234567890123456789"
HUB = {
    "corpus": {
        "source": "hub",
        "hub": {
            "name": "wikimedia/wikipedia",
            "configuration": "20231101.en",
            "revision": "b04c8d1",
            "split": "train",
            "text_column": "text",
        },
    },
    "teacher": {"source": "load", "load": {"hub_id": "google-bert/bert-base-uncased", "revision": "86b5e09"}},
}
DOCSTRINGS = {"corpus": {"source": "docstrings", "docstrings": {"packages": ["torch", "numpy"], "max_seen_share": 0.4}}}
WITHOUT_COSINE = {
    "students": {"half": {"initialise": "random", "layer_map": None, "hidden_size": 16}},
    "train": {"weights": {"cos": 0.0}},
}


@pytest.fixture(scope="module")
def trained(tokenized, tmp_path_factory) -> Project:
    """A tiny project with a trained student."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    shutil.copytree(tokenized, folder)
    project = Project(folder)
    project.run(cache_teacher)
    project.run(init_student, "half")
    project.run(train_student)
    return project


@pytest.fixture
def make_card(trained):
    """`make_card(without=("hidden_cosine",), corpus={...})`: the card of the same run with other parameters."""

    def make(*, without=(), not_installed=(), **overrides):
        runs = trained.artefacts.runs
        figures, provenance = (json.loads((runs / name).read_text()) for name in ("train.json", "provenance.json"))
        for name in not_installed:
            del provenance["packages"][name]
        for name in without:
            del figures["validation"][name]
        return model_card(
            load_config(tiny_params(**overrides)),
            CacheReader(trained.artefacts.cache),
            model_id="models/student",
            figures=figures,
            provenance=provenance,
            runs="runs",
        )

    return make


def check_valid(card: ModelCard, folder) -> dict:
    """All that huggingface_hub checks offline, and what its site refuses; returns the header."""
    file = folder / "README.md"
    card.save(file)
    loaded = ModelCard.load(file)  # raises for a header or a model index that it cannot read
    assert str(loaded) == file.read_text(encoding="utf-8") == str(card)
    header = metadata_load(file)
    assert header == yaml.safe_load(loaded.data.to_yaml())
    assert ModelCardData(**header).to_dict() == header
    name, results = model_index_to_eval_results(header["model-index"])
    assert eval_results_to_model_index(name, results) == header["model-index"]
    assert results == loaded.data.eval_results
    assert all(type(result.metric_value) is float and math.isfinite(result.metric_value) for result in results)
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] in SUPPORTED_TASKS
    for repository in (*header.get("datasets", ()), *filter(None, [header.get("base_model")])):
        validate_repo_id(repository)
    assert "license" not in header
    return header


def check_tables(text: str) -> None:
    """Every row of a Markdown table has as many cells as its header, whatever bars its texts contain."""
    lines = text.splitlines()
    tables = [list(rows) for is_table, rows in groupby(lines, lambda line: line.startswith("|")) if is_table]
    assert len(tables) >= 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1, table
        assert set(table[1]) == {"|", "-"}


@pytest.mark.parametrize(
    "overrides", [{}, DOCSTRINGS, HUB, WITHOUT_COSINE], ids=["files", "docstrings", "hub", "without-cosine"]
)
def test_the_card_is_valid_for_every_kind_of_run(make_card, tmp_path, overrides):
    without = ("hidden_cosine",) if overrides is WITHOUT_COSINE else ()
    card = make_card(without=without, **overrides)
    header = check_valid(card, tmp_path)
    check_tables(card.text)
    assert ("base_model" in header, "datasets" in header) == (overrides is HUB, overrides is HUB)
    assert {"distillation", "knowledge-distillation", "teacher-cache", "distilbert"} == set(header["tags"])
    assert not re.search(r"None|Undefined|\{\{|\}\}|\{%|\n\n\n", card.text)


def test_the_published_card_is_the_one_of_the_run(trained, make_card, tmp_path):
    published = ModelCard.load(trained.artefacts.student / "README.md")
    check_valid(published, tmp_path)
    assert str(published) == str(make_card())


def test_every_figure_of_the_run_is_in_header_and_table(trained, make_card):
    figures = json.loads((trained.artefacts.runs / "train.json").read_text())["validation"]
    card = make_card()
    values = [result.metric_value for result in card.data.eval_results]
    shown = {
        name: value
        for name, value in figures.items()
        if not name.startswith("teacher_") and name not in ("positions", "masked_tokens")
    }
    assert sorted(values) == sorted(shown.values())
    for value in (*shown.values(), figures["teacher_mlm_loss"], figures["teacher_masked_accuracy"]):
        assert f"| {value:.4f} |" in card.text
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}


def test_the_code_of_the_card_runs(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    card = ModelCard.load(trained.artefacts.student / "README.md")
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names: dict = {}
        exec(block, names)
    assert names["hidden"].shape[0] == 1
    assert names["hidden"].shape[2] == 32
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_hub_teacher_and_corpus_are_named_with_their_revisions(make_card):
    card = make_card(**HUB)
    assert card.data.base_model == "google-bert/bert-base-uncased"
    assert card.data.datasets == ["wikimedia/wikipedia"]
    assert {(r.dataset_type, r.dataset_config, r.dataset_revision) for r in card.data.eval_results} == {
        ("wikimedia/wikipedia", "20231101.en", "b04c8d1")
    }
    for said in ("`google-bert/bert-base-uncased`, revision `86b5e09`", "`wikimedia/wikipedia`", "`b04c8d1`"):
        assert said in card.text


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (
            {"package": "some_encoder"},
            "the model in the Python package `some_encoder`, given a masked-LM head where it had none",
        ),
        ({"path": "private/place"}, "a local model, given a masked-LM head where it had none, and adapted"),
    ],
)
def test_an_adapted_teacher_is_said_to_be_one_and_local_paths_are_kept_private(make_card, load, said):
    training = {
        name: value
        for name, value in tiny_params()["teacher"]["train"].items()
        if name in ("learning_rate", "warmup_steps", "steps", "float32_steps", "batch_size", "weight_decay")
    }
    adapt = {**training, "precision": "float32", "seed": 0}
    text = make_card(teacher={"source": "adapt", "load": load, "adapt": adapt}).text
    assert said in text
    assert "private/place" not in text


def test_the_recipe_says_where_the_teachers_distribution_and_the_initial_weights_came_from(make_card):
    text = make_card().text
    assert "5 × 2² KL(teacher \\|\\| student) at temperature 2 + 2 × masked-LM cross-entropy + 1 × (1 - cosine" in text
    assert "rebuilt from its cached hidden state" in text
    assert "the teacher's embeddings, head and block 0" in text
    text = make_card(**{**WITHOUT_COSINE, "train": {"kd_source": "top_k", "weights": {"cos": 0.0}}}).text
    assert "its largest cached logits (see below), the rest of the vocabulary as one bucket" in text
    assert "| logits | float16, top 16 |" in text
    assert "random, seed 0" in text
    assert "cosine of the last hidden states" not in text


def test_the_recipe_says_what_differs_from_the_usual_one(make_card):
    weights = {"kd": 0.0, "mse": 0.1}
    train = {
        "weights": weights,
        "kd_positions": "masked",
        "schedule": "cosine",
        "warmup_steps": None,
        "warmup_fraction": 0.3,
    }
    text = make_card(train=train).text
    assert "2 × masked-LM cross-entropy + 1 × (1 - cosine of the last hidden states)" in text
    assert "+ 0.1 × squared difference of the logits of masked tokens |" in text
    assert "rebuilt from its cached hidden state" in text
    assert "| learning rate | 0.001, 3 steps of warm-up, then along a cosine to 0 |" in text  # 30 % of 8, rounded up
    check_tables(text)


def test_the_recipe_names_the_layers_and_blocks_that_were_learned_from(make_card):
    train = {
        "weights": {"kd": 0.0, "hidden": 0.5, "relations": 2.0, "attention": 0.1},
        "layer_map": [[0, 0], [1, 2]],
        "relations": {"heads": 8},
        "attention_map": [[1, 2]],
    }
    cache = {"hidden_layers": [0, 2], "attention_vectors": ["queries", "keys", "values"]}
    text = make_card(train=train, cache=cache).text
    assert "1 × (1 - cosine of hidden states (student's 0, 1 with the teacher's 0, 2))" in text
    assert "+ 0.5 × mean squared difference of hidden states (student's 0, 1 with the teacher's 0, 2)" in text
    assert "+ 2 × KL of self-attention relations" in text
    assert "+ 0.1 × mean squared difference of attention scores (student's 1 with the teacher's 2) |" in text


def test_commit_and_timings_are_not_in_the_card_but_where_they_are_is(trained, make_card):
    text = make_card().text
    assert "`runs/provenance.json`" in text
    assert "`runs/speed-half.json`" in text
    assert "git commit |" not in text
    assert "latency" not in text


def test_a_run_of_a_source_folder_that_is_not_installed_has_a_card(make_card):
    text = str(make_card(not_installed=["teacher-cache"]))
    assert "| transformers |" in text
    assert "| teacher-cache |" not in text


def test_a_student_trained_without_the_teacher_is_not_called_distilled(make_card, tmp_path):
    assert "It was distilled by teacher-cache" in make_card().text
    card = make_card(train={"weights": {"kd": 0.0, "cos": 0.0}})
    assert check_valid(card, tmp_path)["tags"] == ["teacher-cache", "distilbert"]
    assert "It was distilled" not in card.text
    assert "teacher's distribution" not in card.text
