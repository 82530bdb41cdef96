import re

import pytest

from pipeline.comparison.places import find
from stages.context import Artefacts
from stages.errors import InputError
from tests.pipeline.comparison.written import write_run

RUNS = {"no KD": "no-kd", "full": "full"}


@pytest.fixture
def artefacts(tmp_path):
    """A project with a student, and a comparison of which one run of two seeds is done."""
    project = tmp_path / "here"
    write_run(project / "runs")
    for seed in (10, 2):
        write_run(project / "runs" / "comparison" / "no-kd" / str(seed), seed=seed)
    return Artefacts(project=project)


def folders(place):
    return [folder.name for folder in place.folders]


def test_student_and_teacher_are_those_of_the_project(artefacts):
    student, teacher = (find(name, RUNS, artefacts) for name in ("student", "teacher"))
    assert folders(student) == ["runs"]
    assert student.models == ["models/student"]
    assert teacher.is_teacher
    assert teacher.models == ["models/teacher"]


def test_a_run_of_the_comparison_is_found_by_its_name_and_by_its_folder_with_its_seeds_in_order(artefacts):
    for name in ("no KD", "no-kd"):
        place = find(name, RUNS, artefacts)
        assert folders(place) == ["2", "10"]
        assert place.models == ["models/comparison/no-kd/2", "models/comparison/no-kd/10"]
    assert find("no-kd/10", RUNS, artefacts).models == ["models/comparison/no-kd/10"]


def test_another_project_means_its_student_and_a_folder_of_its_runs_that_run(artefacts, tmp_path):
    other = tmp_path / "other"
    write_run(other / "runs")
    write_run(other / "runs" / "comparison" / "no-kd" / "0")
    student = find("../other", RUNS, artefacts)
    run = find("../other/runs/comparison/no-kd", RUNS, artefacts)
    assert student.models == find("../other/runs", RUNS, artefacts).models == ["models/student"]
    assert run.models == ["models/comparison/no-kd/0"]
    assert run.artefacts.project == student.artefacts.project.resolve() == other


def test_a_folder_above_the_comparison_is_not_taken_for_one_of_its_runs(artefacts, tmp_path):
    write_run(artefacts.project / "runs" / "other")
    write_run(tmp_path / "other" / "runs", weights="theirs")
    assert find("../other", RUNS, artefacts).folders == (artefacts.project / "../other/runs",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("full", r'run \'full\' has no figures in .*runs/comparison/full.*; run: pipeline compare --only "full"'),
        (
            "fall",
            r"run 'fall' is not known: did you mean full\? expected student, teacher, no KD, full, or a folder of another project",
        ),
        ("nothing-like-it", r"run 'nothing-like-it' is not known: expected student, teacher, no KD, full, or a folder"),
        ("../empty", r"run '../empty' has no figures in .*; run in its project: pipeline evaluate"),
        ("../bare", r"bare is in no project: expected a project folder, its runs"),
    ],
)
def test_a_run_that_is_not_there_is_refused_with_what_there_is_or_what_to_run(artefacts, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "bare")
    with pytest.raises(InputError) as refused:
        find(name, RUNS, artefacts)
    assert re.search(message, str(refused.value))


def test_a_student_that_was_never_evaluated_is_named_with_the_command(tmp_path):
    with pytest.raises(InputError, match=r"run 'student' has no figures.*run: pipeline evaluate"):
        find("student", {}, Artefacts(project=tmp_path))
