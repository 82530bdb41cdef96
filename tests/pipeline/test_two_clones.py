"""The teacher's machine and the student's machine: two clones, one git remote, one DVC remote."""

import pytest
import yaml

from tests.pipeline.repository import Repository
from tests.tiny import write_params


@pytest.fixture(scope="module")
def clones(reproduced, tmp_path_factory):
    """Clone A, whose cache is on the DVC remote, and clone B as `git clone` leaves it, told to train the student itself."""
    b = Repository(tmp_path_factory.mktemp("clones") / "b")
    reproduced.git("clone", "-q", str(reproduced.folder), str(b.folder))
    lock = yaml.safe_load((b.folder / "dvc.lock").read_text())
    for stage in ("train-student", "evaluate", "report"):  # else --pull fetches A's student
        del lock["stages"][stage]
    (b.folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    return reproduced, b


def test_the_second_machine_trains_the_same_student_without_corpus_and_teacher(clones):
    a, b = clones
    output = b.dvc("repro", "--pull", "--downstream", "train-student").stdout
    assert "Running stage 'train-student'" in output
    assert b.student() == a.student()
    assert b.json("runs/evaluation.json") == a.json("runs/evaluation.json")
    assert not (b.folder / "data").exists()
    assert not (b.folder / "models" / "teacher").exists()


def test_changed_teacher_parameters_are_refused_with_the_fields_and_the_command(clones):
    _, b = clones
    write_params(b.folder, teacher={"train": {"seed": 5}}, masking={"smoothing": 0.5})
    done = b.dvc("repro", "--pull", "--downstream", "train-student", check=False)
    assert done.returncode != 0
    for text in ("teacher.train.seed: 5", "masking.smoothing: 0.5", "dvc repro cache-teacher"):
        assert text in done.stdout
    assert "Traceback" not in done.stdout
