"""The commands for several teachers, as the recipe's dvc.yaml has them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import cli
from storage import CacheReader
from tests.pipeline.repository import Repository
from tests.stages.ensembles import with_second
from tests.storage.damage import chunk_file, flip_a_bit
from tests.tiny import ROOT, tiny_params, write_project

RECIPE = ROOT / "recipes" / "ensemble"


def pipeline(folder: Path, *arguments: str):
    """Run a command in this process."""
    return CliRunner().invoke(cli, [*arguments, "--project", str(folder)])


def stages_of(parameters) -> dict[str, dict]:
    """The recipe's stages with their `${...}` filled in, in the order in which they stand there."""
    found = {}
    for name, stage in yaml.safe_load((RECIPE / "dvc.yaml").read_text())["stages"].items():
        for key in parameters[stage["foreach"][2:-1]] if "foreach" in stage else [None]:
            text = json.dumps(stage.get("do", stage)).replace("${key}", str(key))
            text = text.replace("${train.student}", parameters["train"]["student"])
            found[name if key is None else f"{name}@{key}"] = json.loads(text)
    return found


def paths(entries) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project in which every command of the recipe was run; before and after each, what it reads and writes was there."""
    folder = write_project(tmp_path_factory.mktemp("recipe") / "project", **with_second())
    for name, stage in stages_of(tiny_params(**with_second())).items():
        assert all((folder / dep).exists() for dep in paths(stage.get("deps", ()))), name
        done = pipeline(folder, *stage["cmd"].split()[1:])
        assert done.exit_code == 0, f"{name}: {done.output}"
        written = paths([*stage.get("outs", ()), *stage.get("metrics", ()), *stage.get("plots", ())])
        assert all((folder / path).exists() for path in written), name
    return folder


@pytest.fixture
def project(made, tmp_path):
    return shutil.copytree(made, tmp_path / "project")


def test_the_recipes_commands_go_from_text_to_an_evaluated_student_of_both_teachers(made):
    trained = json.loads((made / "runs" / "train.json").read_text())
    assert trained["further_cache_root_digests"].keys() == {"second"}
    assert trained["last"]["kd"] > 0
    teachers = [json.loads((made / "runs" / f"{name}.json").read_text()) for name in ("teacher", "teacher-second")]
    assert teachers[0]["parameters"] < teachers[1]["parameters"]
    assert json.loads((made / "runs" / "evaluation.json").read_text())["kl_masked"] > 0


def test_a_further_teachers_cache_is_looked_at_and_verified_by_name(made):
    info = json.loads(pipeline(made, "cache", "info", "--json", "--teacher", "second").stdout)
    assert info["spec"]["teacher"]["train"]["layers"] == 3
    found = json.loads(
        pipeline(made, "cache", "verify", "--json", "--teacher", "second", "--against-teacher", "4").stdout
    )
    assert found["problems"] == []
    assert found["against_teacher"]["within"]


def test_a_further_teachers_cache_is_repaired_by_name(project):
    cache = project / "cache" / "teachers" / "second" / "current"
    before = CacheReader(cache).root_digest
    flip_a_bit(chunk_file(cache, "hidden"), 100)
    assert pipeline(project, "cache", "verify", "--teacher", "second").exit_code == 1
    assert pipeline(project, "cache", "verify").exit_code == 0
    done = pipeline(project, "cache", "repair", "--teacher", "second")
    assert done.exit_code == 0, done.output
    assert CacheReader(cache).root_digest == before


def test_a_finished_cache_of_a_further_teacher_is_left_alone_and_pushed_and_pulled_by_name(project, tmp_path):
    done = pipeline(project, "cache-teacher", "--teacher", "second")
    assert re.search("cache/teachers/second/current already holds this cache", done.stderr)
    cache, root = project / "cache" / "teachers" / "second" / "current", f"file://{tmp_path / 'root'}"
    digest = CacheReader(cache).root_digest
    assert pipeline(project, "cache", "push", root, "--teacher", "second").exit_code == 0
    shutil.rmtree(cache)
    assert pipeline(project, "cache", "pull", root, "--teacher", "second").exit_code == 0
    assert CacheReader(cache).root_digest == digest


def test_both_caches_are_read_at_a_root(project, tmp_path):
    root = f"file://{tmp_path / 'root'}"
    before = (project / "models" / "student" / "model.safetensors").read_bytes()
    for name in (["--teacher", "second"], []):
        done = pipeline(project, "cache-teacher", "--root", root, *name)
        assert done.exit_code == 0, done.output
    for gone in ("cache/current", "cache/teachers/second/current", "checkpoints", "models/student"):
        shutil.rmtree(project / gone)
    done = pipeline(project, "train-student", "--root", root)
    assert done.exit_code == 0, done.output
    assert (project / "models" / "student" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("command", [["teacher", "secnd"], ["cache-teacher", "--teacher", "secnd"]])
def test_a_teacher_that_is_not_declared_is_refused_with_the_one_that_is(made, command):
    done = pipeline(made, *command)
    assert done.exit_code == 2
    assert "error: teacher 'secnd' is not in teachers; did you mean second?" in done.stderr


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_teacher_without_a_cache_that_is_not_declared_either_is_refused_where_no_parameters_are_needed(made, command):
    for name, hint in (("secnd", r"did you mean second\?"), ("../..", "known: second")):
        done = pipeline(made, "cache", command, "--teacher", name)
        assert done.exit_code == 2
        assert re.search(
            rf"error: teacher '{name}' has no cache in .*cache/teachers and is not in teachers; {hint}", done.stderr
        )


def test_a_further_teachers_cache_is_looked_at_where_no_parameters_are(project):
    (project / "params.yaml").unlink()
    assert pipeline(project, "cache", "info", "--teacher", "second").exit_code == 0
    shutil.rmtree(project / "cache" / "teachers")
    done = pipeline(project, "cache", "info", "--teacher", "second")
    assert done.exit_code == 2
    assert "is not in teachers; there is none" in done.stderr


@pytest.mark.parametrize("lost", ["", "manifest.json", "cache.json"])
def test_where_a_further_teachers_cache_is_not_there_the_commands_that_make_it_are_named(project, tmp_path, lost):
    cache = project / "cache" / "teachers" / "second" / "current"
    (cache / lost).unlink() if lost else shutil.rmtree(cache)
    commands = [["info"], ["push", f"file://{tmp_path}"], *([] if lost else [["verify"], ["repair"]])]
    for command in commands:
        done = pipeline(project, "cache", *command, "--teacher", "second")
        assert done.exit_code == 1, command
        assert "`pipeline cache-teacher --teacher second`" in done.stderr, command
        assert "`pipeline cache-teacher`" not in done.stderr


def test_a_further_teachers_cache_is_planned_by_name(project):
    planned = {}
    for name in ([], ["--teacher", "second"]):
        done = pipeline(project, "plan", "--json", "-", "--sample-tokens", "64", *name)
        assert done.exit_code == 0, done.output
        planned[len(name)] = json.loads(done.stdout)
    cache = project / "cache" / "teachers" / "second" / "current"
    assert planned[2]["fingerprint"] == CacheReader(cache).description.fingerprint != planned[0]["fingerprint"]
    assert planned[2]["teacher"]["parameters"] > planned[0]["teacher"]["parameters"]
    shutil.rmtree(project / "models" / "teachers")
    done = pipeline(project, "plan", "--teacher", "second")
    assert done.exit_code == 1
    assert re.search("models/teachers/second .*pipeline teacher second", done.stderr)


def test_a_folder_and_a_teacher_are_two_caches_unless_the_teacher_is_to_be_run_on_it(made):
    cache = str(made / "cache" / "teachers" / "second" / "current")
    for command in ("info", "verify"):
        done = pipeline(made, "cache", command, cache, "--teacher", "second")
        assert done.exit_code == 2
        assert "CACHE and --teacher both say which cache: give one" in done.stderr
    assert pipeline(made, "cache", "verify", cache, "--teacher", "second", "--against-teacher", "2").exit_code == 0


def test_what_its_stage_refuses_is_called_as_in_the_parameters(made):
    done = pipeline(made, "teacher", "second", "-S", "teachers.second.train.batch_size=1000")
    assert done.exit_code == 2
    assert "error: teachers.second.train.batch_size is 1000; allowed: at most the" in done.stderr


def test_dvc_makes_the_assistant_before_what_it_teaches(tmp_path):
    repository = Repository(tmp_path / "both")
    for project, files in (("assistant", ROOT), ("student", ROOT / "recipes" / "teacher-assistant")):
        (repository.folder / project).mkdir(parents=True)
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(files / name, repository.folder / project / name)
    repository.git("init", "-q")
    repository.dvc("init", "-q")
    graph = repository.dvc("dag", "--mermaid", "student/dvc.yaml:evaluate").stdout
    number = {name: node for node, name in re.findall(r'(node\d+)\["([^"]+)"\]', graph)}
    after = {tuple(arrow) for arrow in re.findall(r"(node\d+)-->(node\d+)", graph)}
    for stage in ("tokenize", "teacher"):
        assert (number["assistant/dvc.yaml:train-student"], number[f"student/dvc.yaml:{stage}"]) in after
