import shutil

import pytest

from tests.pipeline.dry_run.looking import dry, pipeline, results_of_dry_run
from tests.stages.tiny_tasks import finetuning, write_tasks


@pytest.fixture
def project(make_project):
    """A project with a student that is as its teacher, and two tasks."""
    made = make_project(finetune=finetuning({"SST-2": {}, "STS-B": {}}, seeds=[0, 1]))
    write_tasks(made.folder / "tasks")
    shutil.copytree(made.artefacts.teacher, made.artefacts.student)
    return made


def test_of_each_task_it_says_which_seeds_are_there_and_which_results_are_of_other_parameters(project):
    before = dry(project.folder, "finetune", "SST-2")
    assert before == {
        "reads models/student": "there",
        "reads tasks/SST-2": "there",
        "writes runs/finetune/student/SST-2": "missing",
        "seeds there": "0 of 2",
        "seeds missing": 2,
        "would train": "2 seeds, 2 epochs each, in batches of 4",
    }
    pipeline(project, "finetune", "SST-2", "-S", "finetune.seeds=[1]")
    half, untouched = results_of_dry_run(project.folder, "finetune")
    assert (half["title"], half["rows"]["seeds there"]) == ("dry run of finetune SST-2", "1 of 2")
    assert (untouched["title"], untouched["rows"]["seeds there"]) == ("dry run of finetune STS-B", "0 of 2")
    changed = ("finetune", "SST-2", "-S", "finetune.training.epochs=3")
    others = "results of other parameters or weights"
    refused, replaced = dry(project.folder, *changed), dry(project.folder, *changed, "--replace")
    assert (refused["seeds there"], replaced["seeds there"]) == ("0 of 2", "0 of 2")
    assert refused[others].startswith("1, refused: give another --name, or --replace them (training.epochs: 3")
    assert replaced[others].startswith("1, would be removed")


def test_what_is_missing_is_said_for_each_task_and_ends_well(project):
    shutil.rmtree(project.folder / "tasks" / "STS-B")
    no_cache, no_data = results_of_dry_run(project.folder, "finetune", "--distil")
    assert no_cache["rows"]["reads cache/tasks/SST-2/current"] == "missing; run: pipeline cache-teacher --task SST-2"
    assert "run: pipeline cache-teacher --task SST-2" in no_cache["rows"]["cannot begin"]
    assert no_data["rows"]["reads tasks/STS-B"] == "missing"
    shutil.rmtree(project.artefacts.student)
    said = dry(project.folder, "finetune", "SST-2")
    assert said["reads models/student"] == "missing; run: pipeline train-student"
    assert "run: pipeline train-student" in said["cannot begin"]
