"""The commands on caches of downstream tasks, from a fine-tuned teacher to the table."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from storage import CacheReader
from tests.stages.conftest import Project
from tests.stages.tiny_tasks import finetuning, write_tasks
from tests.storage.damage import chunk_file, flip_a_bit

CACHE = {"shard_tokens": 48}


def pipeline(folder: Path, *arguments: str):
    """Run a command in this process."""
    return CliRunner().invoke(cli, [*arguments, "--project", str(folder)])


def done(folder: Path, *arguments: str):
    """The same, which must go well."""
    result = pipeline(folder, *arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def made(tokenized, tmp_path_factory):
    """A project with the caches of all its tasks; never changed by a test."""
    project = Project(
        shutil.copytree(tokenized, tmp_path_factory.mktemp("tasks") / "project"),
        cache=CACHE,
        finetune=finetuning({"SST-2": {}, "STS-B": {}}),
    )
    write_tasks(project.folder / "tasks")
    shutil.copytree(project.artefacts.teacher, project.artefacts.student)
    done(project.folder, "finetune", "--model", "teacher")
    done(project.folder, "cache-teacher", "-S", "cache.targets=task")
    return project.folder


@pytest.fixture
def project(made, tmp_path):
    return shutil.copytree(made, tmp_path / "project")


def cache_of(folder: Path, task: str) -> Path:
    return folder / "cache" / "tasks" / task / "current"


def test_all_tasks_are_cached_where_the_parameters_say_so_and_the_main_cache_is_left_alone(made):
    for task in ("SST-2", "STS-B"):
        assert CacheReader(cache_of(made, task)).description.task["name"] == task
        assert (cache_of(made, task).parent / "run.json").is_file()
    assert not (made / "cache" / "current").exists()
    assert not (made / "cache" / "run.json").exists()


def test_a_tasks_cache_is_looked_at_and_verified_by_name(made):
    info = json.loads(done(made, "cache", "info", "--json", "--task", "STS-B").stdout)
    assert info["spec"]["task"]["kind"] == "STS-B"
    done(made, "cache", "info", "--task", "STS-B")
    found = json.loads(done(made, "cache", "verify", "--json", "--deep", "--task", "STS-B").stdout)
    assert found["problems"] == []
    said = done(made, "cache", "verify", "--task", "STS-B", "--against-teacher", "2").stdout
    assert "train: largest difference of score" in said
    by_folder = ("cache", "verify", str(cache_of(made, "SST-2")), "--against-teacher", "2", "--json")
    found = json.loads(done(made, *by_folder).stdout)["against_teacher"]
    assert (found["sequences"], found["within"]) == (2, True)


def test_a_tasks_cache_is_repaired_pushed_pulled_and_made_in_parts_by_name(project, tmp_path):
    cache, root = cache_of(project, "STS-B"), f"file://{tmp_path / 'root'}"
    before = CacheReader(cache).root_digest
    flip_a_bit(chunk_file(cache, "task_logits"), 20)
    assert pipeline(project, "cache", "verify", "--task", "STS-B").exit_code == 1
    done(project, "cache", "repair", "--task", "STS-B")
    assert CacheReader(cache).root_digest == before
    done(project, "cache", "push", root, "--task", "STS-B")
    shutil.rmtree(cache)
    done(project, "cache", "pull", root, "--task", "STS-B")
    assert CacheReader(cache).root_digest == before
    shutil.rmtree(cache)
    for part in ("1/2", "2/2"):
        done(project, "cache-teacher", "--task", "STS-B", "--shards", part)
    assert not cache.exists()
    done(project, "cache-teacher", "--task", "STS-B")
    assert CacheReader(cache).root_digest == before
    said = done(project, "cache-teacher", "--task", "STS-B").stderr
    assert "cache/tasks/STS-B/current already holds this cache" in said


def test_a_student_learns_from_the_caches_and_from_one_at_a_root(project, tmp_path):
    done(project, "finetune", "SST-2", "--distil")
    assert (project / "runs" / "finetune" / "student-distilled" / "SST-2" / "0.json").is_file()
    root = f"file://{tmp_path / 'root'}"
    done(project, "cache", "push", root, "--task", "SST-2")
    shutil.rmtree(project / "cache" / "tasks")
    done(project, "finetune", "SST-2", "--distil", "--root", root, "--name", "from-the-root")
    scores = [
        json.loads((project / "runs" / "finetune" / name / "SST-2" / "0.json").read_text())["loss"]
        for name in ("student-distilled", "from-the-root")
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("cache-teacher", "--task", "SST2"), 2, "task 'SST2' is not in finetune.tasks; did you mean SST-2?"),
        (("cache-teacher", "--task", "SST-2", "--teacher", "second"), 2, "--teacher and --task both say which cache"),
        (("cache", "info", "--task", "SST2"), 2, "task 'SST2' has no cache in "),
        (("cache", "push", "file:///nowhere", "--task", "MRPC"), 2, "task 'MRPC' is not in finetune.tasks"),
    ],
)
def test_a_task_that_is_not_there_is_refused(made, arguments, code, message):
    refused = pipeline(made, *arguments)
    assert (refused.exit_code, message in refused.output) == (code, True), refused.output


def test_errors_name_the_tasks_own_command(project):
    cache = cache_of(project, "SST-2")
    (cache / "manifest.json").unlink()
    refused = pipeline(project, "cache", "info", "--task", "SST-2")
    assert refused.exit_code == 1
    assert "`pipeline cache-teacher --task SST-2`" in refused.output
