"""The recipe `ablation` with real DVC on a tiny project: a stage for each run, all from one cache."""

import shutil

import pytest

from pipeline.init import recipes
from tests.pipeline.repository import Repository
from tests.pipeline.test_dvc import stages_run
from tests.stages.tasks.files import write_files
from tests.tiny import PARAMS, write_params

RUNS = {"full": {}, "no-kd": {"weights": {"kd": 0.0}}}
FINETUNE = {
    "source": "files",
    "folder": "tasks",
    "seeds": [0],
    "keep": "none",
    "training": {"epochs": 1, "learning_rate": 1.0e-3, "batch_size": 4, "max_tokens": 16, "warmup_fraction": 0.1, "weight_decay": 0.01},
    "tasks": {"RTE": {}},
}  # fmt: skip
ROW = "\tthe teacher\ta student\tentailment\n"


def write_ablation(repository, **runs):
    """The parameters, with these runs changed."""
    write_params(
        repository.folder, compare={"seeds": [0], "against": "full", "runs": {**RUNS, **runs}}, finetune=FINETUNE
    )


@pytest.fixture
def repository(reproduced, tmp_path, monkeypatch):
    """A copy of the reproduced project with the stages of the recipe and a downstream task: the road up to the cache is done."""
    monkeypatch.setitem(PARAMS["compare"], "runs", {})
    shutil.copytree(reproduced.folder, tmp_path / "project", symlinks=True)
    repository = Repository(tmp_path / "project")
    shutil.copy(recipes()["ablation"].files["dvc.yaml"], repository.folder / "dvc.yaml")
    rows = "".join(f"{n}{ROW}" for n in range(8))
    text = f"index\tsentence1\tsentence2\tlabel\n{rows}"
    write_files(repository.folder / "tasks" / "RTE", {"train.tsv": text, "dev.tsv": text})
    write_ablation(repository)
    return repository


def test_one_cache_serves_all_runs_and_a_changed_one_is_trained_again_alone(repository):
    digest = repository.root_digest()
    first = stages_run(repository.dvc("repro", "run", "before-training").stdout)
    assert set(first) == {"run@full", "run@no-kd", "before-training"}
    of_cache = {name: repository.json(f"runs/comparison/{name}/0/train.json")["cache_root_digest"] for name in RUNS}
    assert set(of_cache.values()) == {digest} == {repository.root_digest()}
    kept = (repository.folder / "models" / "comparison" / "full" / "0" / "model.safetensors").read_bytes()
    write_ablation(repository, **{"no-kd": {"weights": {"kd": 0.0, "mlm": 1.0}}})
    assert stages_run(repository.dvc("repro", "run", "before-training").stdout) == ["run@no-kd"]
    assert repository.json("runs/comparison/no-kd/0/provenance.json")["parameters"]["train"]["weights"]["mlm"] == 1.0
    assert (repository.folder / "models" / "comparison" / "full" / "0" / "model.safetensors").read_bytes() == kept


@pytest.mark.campaign
def test_the_whole_recipe_ends_with_a_table_that_has_scores_and_runs_nothing_twice(repository):
    ran = stages_run(repository.dvc("repro").stdout)
    assert set(ran) == {
        *(f"{stage}@{run}" for stage in ("run", "finetune") for run in RUNS), "before-training", "compare", "report",
    }  # fmt: skip
    rows = {row["name"]: row for row in repository.json("runs/comparison.json")["rows"]}
    assert all(list(rows[name]["scores"]) == ["RTE"] for name in RUNS)
    assert repository.json("runs/comparison.json")["variation"]["from"] == "full"
    assert stages_run(repository.dvc("repro").stdout) == []
    write_ablation(repository, **{"no-kd": {"weights": {"kd": 0.0, "mlm": 1.0}}})
    assert stages_run(repository.dvc("repro").stdout) == ["run@no-kd", "finetune@no-kd", "compare", "report"]
    assert stages_run(repository.dvc("repro").stdout) == []
    shown = repository.run("pipeline", "compare", "teacher", "full", "no-kd").stdout
    assert "difference from teacher" in shown
    assert "fine-tuned" in shown
