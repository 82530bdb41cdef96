import dataclasses
import importlib.util
import json
import sys

import pytest

from stages import train_student
from stages.config import ConfigError, load_config
from stages.training.run import plan_run
from stages.training.trackers import open_trackers
from storage import CacheReader
from tests.tiny import tiny_params

TRACKERS = ("tensorboard", "wandb", "mlflow", "dvclive")

DVCLIVE = '''
import json, pathlib
class Live:
    """Writes down how it was made and what it was told."""
    def __init__(self, **settings):
        self.step, self.folder = 0, pathlib.Path(settings["dir"])
        self.folder.mkdir(parents=True)
        self.say("made", settings)
    def say(self, what, value):
        with (self.folder / "said.jsonl").open("a") as file:
            file.write(json.dumps([what, value], default=str) + "\\n")
    def log_params(self, values):
        self.say("params", values)
    def log_metric(self, name, value):
        self.say("metric", [name, value, self.step])
    def next_step(self):
        self.step += 1
    def end(self):
        self.say("end", self.step)
'''
PLOTS = "class Metric:\n    could_log = staticmethod(lambda value: isinstance(value, (int, float)))\n"
UTILS = 'def standardize_metric_name(name, framework):\n    return f"train/{name}"\n'


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A package of the name and the interface of DVCLive that writes down what it is told."""
    package = tmp_path / "packages" / "dvclive"
    package.mkdir(parents=True)
    for name, text in (("__init__", DVCLIVE), ("plots", PLOTS), ("utils", UTILS)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(package.parent)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "dvclive"]:
        del sys.modules[name]


def machine(*trackers):
    return {"report_to": list(trackers)}


def test_nothing_is_reported_to_by_default(copy_cached):
    assert load_config(tiny_params()).machine.report_to == ()
    project = copy_cached()
    project.run(train_student)
    assert not [name for name in TRACKERS if project.artefacts.tracker(name).exists()]


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("start", [train_student.run, train_student.check])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_computed(copy_cached, monkeypatch, name, start):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else found(module))
    project = copy_cached()
    project.set(machine=machine(name))
    with pytest.raises(ConfigError, match=rf"machine.report_to is '{name}', which is not .*; run: pip install {name}$"):
        start(project.config, project.context)
    assert not project.artefacts.checkpoints.exists()


@pytest.mark.usefixtures("recorded")
def test_dvclive_gets_the_curve_by_optimizer_step_and_leaves_dvcs_files_alone(copy_cached):
    project = copy_cached()
    before = (project.folder / "dvc.yaml").read_bytes()
    project.run(train_student)
    weights = json.loads((project.artefacts.runs / "train.json").read_text())["weights"]
    run = next(project.artefacts.checkpoints.glob("*/"))
    run.rename(run.with_name("earlier"))
    project.set(machine=machine("dvclive"))
    project.run(train_student)
    (folder,) = project.artefacts.tracker("dvclive").iterdir()
    assert folder.name == f"half-{run.name[:8]}"
    said = [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]
    settings = dict(said)["made"]
    assert (settings["save_dvc_exp"], settings["dvcyaml"], settings["resume"]) == (False, None, False)
    metrics = [value for what, value in said if what == "metric"]
    losses = [step for name, _, step in metrics if name == "train/loss"]
    log = json.loads((run / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == losses == [2, 4, 6, 8]
    assert {"train/kd", "train/mlm", "train/cos", "train/grad_norm"} <= {name for name, *_ in metrics}
    assert said[-1][0] == "end"
    assert (project.folder / "dvc.yaml").read_bytes() == before
    assert json.loads((project.artefacts.runs / "train.json").read_text())["weights"] == weights


@pytest.mark.usefixtures("recorded")
def test_only_the_first_process_reports_and_a_resumed_run_goes_on(copy_cached):
    project = copy_cached()
    project.set(machine=machine("dvclive"))
    run = plan_run(project.config, project.context, CacheReader(project.artefacts.cache))
    other = dataclasses.replace(project.context, rank=1, world_size=2)
    assert open_trackers(project.config, other, run, 0) == []
    assert not project.artefacts.tracker("dvclive").exists()
    assert open_trackers(project.config, project.context, run, 4)
    said = (project.artefacts.tracker("dvclive") / run.name / "said.jsonl").read_text().splitlines()
    assert dict(map(json.loads, said))["made"]["resume"] is True


def installed(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", [pytest.param(name, marks=installed(name)) for name in TRACKERS])
def test_a_tracker_that_is_installed_writes_below_runs_and_nowhere_else(copy_cached, monkeypatch, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    project = copy_cached()
    monkeypatch.chdir(project.folder)
    project.run(train_student)
    expected = (project.artefacts.runs / "train.csv").read_text()
    project.artefacts.checkpoints.rename(project.folder / "earlier")
    stages_file = (project.folder / "dvc.yaml").read_bytes()
    names = {path.name for path in project.folder.iterdir()}
    project.set(machine=machine(name))
    project.run(train_student)
    assert [path for path in project.artefacts.tracker(name).rglob("*") if path.is_file()]
    assert {path.name for path in project.folder.iterdir()} - names == {"checkpoints"}
    assert (project.folder / "dvc.yaml").read_bytes() == stages_file
    assert (project.artefacts.runs / "train.csv").read_text() == expected
