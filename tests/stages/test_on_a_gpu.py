"""Both stages on a GPU, and their results beside those of the CPU. Skipped where there is none."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stages import cache_teacher, evaluate, init_student, train_student
from stages.context import Context
from storage import CacheReader
from tests.stages.ensembles import give_second, with_second

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def trained(make_project):
    """`trained(device, train={...})`: a project through caches, student and evaluation on that device."""

    def make(device, **overrides):
        project = make_project(**overrides)
        context = Context(artefacts=project.artefacts, device=device)
        project.run(cache_teacher, context=context)
        for name in project.config.teachers or {}:
            give_second(project)
            cache_teacher.run(project.config.of_teacher(name), context.of_teacher(name))
        project.run(init_student, "half", context=context)
        project.run(train_student, context=context)
        project.run(evaluate, context=context)
        return project

    return make


def figures(project):
    return json.loads((project.artefacts.runs / "evaluation.json").read_text())


NARROW = {"initialise": "random", "layer_map": None, "hidden_size": 16, "attention_heads": 2, "feed_forward_size": 32}
LOSSES = {
    "draws": {
        "cache": {"preset": "small", "top_k": None},
        "train": {"kd_source": "draws", "weights": {"cos": 0.0}},
    },
    "relations": {
        "cache": {"attention_vectors": ["queries", "keys", "values"]},
        "train": {"weights": {"kd": 0.0, "cos": 0.0, "relations": 1.0}, "relations": {"heads": 4}},
    },
    "hidden_projection": {
        "students": {"half": NARROW},
        "train": {"weights": {"cos": 1.0, "hidden": 1.0}, "hidden_projection": True},
    },
    "bilstm": {"students": {"half": {"architecture": "bilstm", "layer_map": None, "lstm_size": 16}}},
    "ensemble": with_second(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_kind_of_student_is_trained_on_a_gpu_as_on_the_cpu(trained, name):
    steps = {"steps": 30, "precision": "float32"}
    overrides = {**LOSSES[name], "train": {**LOSSES[name].get("train", {}), **steps}}
    on_gpu, on_cpu = (figures(trained(device, **overrides)) for device in ("cuda:0", "cpu"))
    for figure in ("kl_all", "mlm_loss"):
        assert on_gpu[figure] == pytest.approx(on_cpu[figure], rel=2e-3)


@pytest.mark.parametrize(
    "train",
    [
        {"kd_source": "hidden"},
        {"kd_source": "top_k"},
        {"kd_source": "hidden", "gradient_checkpointing": True},
        {"kd_source": "hidden", "precision": "bfloat16"},
        {"kd_source": "top_k", "precision": "float16"},
    ],
    ids=lambda train: " ".join(map(str, train.values())),
)
def test_a_student_trained_on_a_gpu_is_as_good_as_one_of_the_cpu(trained, train):
    settings = {"precision": "float32", **train, "steps": 30}
    on_gpu = figures(trained("cuda:0", train=settings))
    on_cpu = figures(trained("cpu", train={**settings, "precision": "float32"}))
    for name in ("kl_all", "mlm_loss", "hidden_cosine"):
        assert on_gpu[name] == pytest.approx(on_cpu[name], rel=1e-3 if settings["precision"] == "float32" else 0.05)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_student_is_trained_on_a_gpu(trained):
    project = trained("cuda:0", train={"compile": True, "steps": 3})
    weights = load_file(project.artefacts.student / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_cache_made_on_a_gpu_holds_what_one_of_the_cpu_holds(make_project):
    found = []
    for device in ("cuda:0", "cpu"):
        project = make_project(cache={"preset": "lossless"})
        project.run(cache_teacher, context=Context(artefacts=project.artefacts, device=device))
        reader = CacheReader(project.artefacts.cache)
        found.append(reader.load(reader.shards("train", 0)[0]))
    one, other = found
    assert (one.input_ids == other.input_ids).all()
    torch.testing.assert_close(
        torch.from_numpy(one.hidden["hidden"].copy()),
        torch.from_numpy(other.hidden["hidden"].copy()),
        rtol=1e-4,
        atol=1e-5,
    )
