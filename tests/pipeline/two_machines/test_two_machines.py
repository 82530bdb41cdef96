"""The teacher's machine and the student's: git, DVC and a store that speaks S3 between them, and nothing else."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.pipeline.repository import Repository
from tests.pipeline.two_machines.store import BUCKET
from tests.tiny import ROOT, write_params

CACHES = f"s3://{BUCKET}/caches"
WEIGHTS = "models/student-init/half"
AFTERWARDS = ("train-student", "evaluate", "report")


def copy_up_to_the_cache(source, target):
    """A project as `dvc repro cache-teacher init-student` leaves it, made of one that was run to its end."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(".git", "checkpoints"))
    lock = yaml.safe_load((target / "dvc.lock").read_text())
    for stage in AFTERWARDS:
        for out in map(Path, (out["path"] for out in lock["stages"].pop(stage)["outs"])):
            shutil.rmtree(target / out) if (target / out).is_dir() else (target / out).unlink()
    (target / "dvc.lock").write_text(yaml.safe_dump(lock))


@pytest.fixture(scope="module")
def place(reproduced, new_place):
    """What the teacher's machine made is in git and in the store, in both forms (a branch each), and it is switched off."""
    place = new_place("two-machines")
    project = place.teacher.at("project")
    copy_up_to_the_cache(reproduced.folder, project.folder)
    with (project.folder / ".gitignore").open("a", encoding="utf-8") as ignored:
        ignored.write("/text/\n")
    project.git("init", "-q")
    project.git("remote", "add", "origin", str(place.hub))
    project.dvc("remote", "add", "-q", "-f", "-d", "storage", f"s3://{BUCKET}/dvc")
    project.commit("the default form")
    project.dvc("push")
    project.git("checkout", "-q", "-b", "manifest-only")
    shutil.copy(ROOT / "recipes" / "manifest-only" / "dvc.yaml", project.folder)
    assert "Running stage 'cache-teacher'" in project.dvc("repro", "cache-teacher", "init-student").stdout
    project.run("pipeline", "cache", "push", CACHES)
    project.commit("the manifest-only form")
    project.dvc("push")
    project.git("push", "-q", "origin", "main", "manifest-only")
    with place.teacher.switched_off():
        yield place


def by_dvc_pull(place, name):
    """The default form: DVC has the whole cache."""
    clone = place.student.clone(place.hub, name)
    clone.dvc("pull", "cache/current", WEIGHTS)
    return clone


def by_cache_pull(place, name):
    """The manifest-only form: DVC has the list of the cache's files, a root the files."""
    clone = place.student.clone(place.hub, name, branch="manifest-only")
    clone.dvc("pull", "cache/manifest.json", WEIGHTS)
    clone.run("pipeline", "cache", "pull", CACHES)
    return clone


def from_the_root(place, name):
    """The same form, and nothing is fetched beforehand."""
    clone = place.student.clone(place.hub, name, branch="manifest-only")
    clone.dvc("pull", "cache/manifest.json", WEIGHTS)
    clone.environment["TEACHER_CACHE_ROOT"] = CACHES
    return clone


@pytest.mark.parametrize("way", [by_dvc_pull, by_cache_pull, from_the_root])
def test_whichever_way_the_cache_comes_the_student_is_that_of_the_teachers_machine_bit_for_bit(way, place, reproduced):
    clone = way(place, way.__name__)
    assert (clone.folder / "cache" / "current").exists() == (way is not from_the_root)
    shown = clone.dvc("repro", "-s", "train-student").stdout
    assert "Running stage 'train-student'" in shown
    assert clone.student() == reproduced.student()
    assert {path.name for path in (clone.folder / "models").iterdir()} == {"student", "student-init"}
    assert not (clone.folder / "data").exists()
    assert not (clone.folder / "text").exists()


def test_what_is_on_the_students_machine_is_its_own(place):
    clone = place.student.clone(place.hub, "own")
    mine = str(place.student.folder)
    for line in ("import pipeline as p", "import stages as p", "import storage as p"):
        assert clone.run("python", "-c", f"{line}; print(p.__file__)").stdout.startswith(mine)
    assert clone.run("sh", "-c", "command -v pipeline; command -v dvc").stdout.count(mine) == 2
    assert clone.dvc("remote", "list").stdout.split() == ["storage", f"s3://{BUCKET}/dvc", "(default)"]
    assert not place.teacher.folder.exists()
    assert str(place.teacher.folder) not in str(clone.environment)


@pytest.fixture(scope="module")
def fresh(place):
    """A clone in the manifest-only form, with the manifest and the first weights and no cache."""
    clone = place.student.clone(place.hub, "fresh", branch="manifest-only")
    clone.dvc("pull", "cache/manifest.json", WEIGHTS)
    return clone


def refusal(clone, *command, **changes):
    """The one line that a command ends in, with these changes of the environment."""
    done = Repository(clone.folder, clone.environment | changes).run(*command, check=False)
    assert done.returncode == 1, done.stdout
    [line] = done.stdout.splitlines()
    assert line.startswith("error: ")
    return line


def credentials(place, kind):
    """Variables with which the store does not let anybody in."""
    key = place.store.keys["student"]["aws_access_key_id"]
    return {
        "of nobody": {"AWS_ACCESS_KEY_ID": "AKIANOBODY", "AWS_SECRET_ACCESS_KEY": "no secret"},
        "with a wrong secret": {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "no secret"},
        "none": {"AWS_SHARED_CREDENTIALS_FILE": "nowhere"},
    }[kind]


@pytest.mark.parametrize("kind", ["of nobody", "with a wrong secret", "none"])
def test_credentials_that_do_not_let_in_are_told_apart_from_a_missing_cache(kind, place, fresh):
    said = refusal(fresh, "pipeline", "cache", "pull", CACHES, **credentials(place, kind))
    assert CACHES in said
    assert "was refused" in said
    assert "check the URL and the credentials" in said
    assert said.endswith("`pipeline cache pull` goes on from here")


def test_a_training_from_a_root_that_does_not_let_in_says_so(place, fresh):
    wrong = credentials(place, "of nobody")
    said = refusal(fresh, "pipeline", "train-student", TEACHER_CACHE_ROOT=CACHES, **wrong)
    assert "check the URL and the credentials" in said
    assert said.endswith("then run the same command again")


def test_a_bucket_that_does_not_exist_is_told_apart_from_a_root_without_the_cache(fresh):
    said = refusal(fresh, "pipeline", "cache", "pull", "s3://no-such-bucket/caches")
    assert "bucket does not exist; check the URL" in said
    said = refusal(fresh, "pipeline", "cache", "pull", f"s3://{BUCKET}/elsewhere")
    assert "no finished cache is there" in said
    assert "`pipeline cache push`" in said


def test_a_cache_that_has_not_arrived_is_named_with_the_ways_to_fetch_it(place, fresh):
    said = fresh.dvc("repro", "-s", "train-student", check=False).stdout
    assert "fetch it (pipeline cache pull URL), read it where it is (TEACHER_CACHE_ROOT=URL)" in " ".join(said.split())
    clone = place.student.clone(place.hub, "not-pulled")
    said = refusal(clone, "pipeline", "train-student")
    assert "fetch one with `dvc pull` or `pipeline cache pull URL`" in said


def test_changed_teacher_parameters_are_refused_with_the_fields_and_the_command(place):
    clone = place.student.clone(place.hub, "changed")
    write_params(clone.folder, teacher={"train": {"seed": 5}}, masking={"smoothing": 0.5})
    done = clone.dvc("repro", "--pull", "--downstream", "train-student", check=False)
    assert done.returncode != 0
    for text in ("teacher.train.seed: 5", "masking.smoothing: 0.5", "dvc repro cache-teacher"):
        assert text in done.stdout
    assert "Traceback" not in done.stdout
