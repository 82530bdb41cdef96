import json
from dataclasses import replace

import pytest

from pipeline.compare import compare, slug
from pipeline.comparison.table import Row, markdown
from stages import cache_teacher, init_student
from stages.config import ConfigError
from stages.context import Silent
from stages.errors import InputError, Interrupted
from storage import CacheReader

RANDOM = {"architecture": "distilbert", "initialise": "random", "layers": 1, "dropout": 0.0, "seed": 0}
RUNS = {
    "through the head": {},
    "MLM only": {"weights": {"kd": 0.0, "cos": 0.0}},
    "random weights": {"student": "other"},
}


@pytest.fixture
def cached(make_project):
    """A project with a cache and initial weights, two seeds and three runs."""
    project = make_project(students={"other": RANDOM}, train={"steps": 4}, compare={"seeds": [0, 1], "runs": RUNS})
    project.run(cache_teacher)
    project.run(init_student, "half")
    return project


def result(project):
    return json.loads(project.artefacts.comparison.read_text())


class Recorder(Silent):
    """Remembers what was shown, and asks to stop after so many messages about runs."""

    def __init__(self, stop_after=None):
        self.messages, self.tables, self.summaries, self.stop_after = [], [], [], stop_after

    def message(self, text):
        self.messages.append(text)

    def summary(self, title, _rows):
        self.summaries.append(title)

    def table(self, title, columns, rows):
        self.tables.append((title, columns, rows))

    def should_stop(self):
        return self.stop_after is not None and len(self.messages) >= self.stop_after


def test_every_run_is_trained_for_every_seed_and_stands_beside_teacher_and_untrained_student(cached):
    shown = Recorder()
    compare(cached.config, replace(cached.context, progress=shown))
    found = result(cached)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["teacher", "student before training", *RUNS]
    assert rows["teacher"]["values"]["kl_masked"] == [0.0]
    assert all(len(rows[name]["values"]["kl_masked"]) == len(rows[name]["seconds"]) == 2 for name in RUNS)
    assert found["seeds"] == [0, 1]
    assert [rows[name]["steps"] for name in RUNS] == [4, 4, 4]
    assert all(seconds > 0 for name in RUNS for seconds in rows[name]["seconds"])
    assert found["cache_root_digest"] == CacheReader(cached.artefacts.cache).root_digest
    [(title, columns, cells)] = shown.tables
    assert "test split" in title
    assert [row[0] for row in cells] == list(rows)
    assert all(len(row) == len(columns) for row in cells)
    assert shown.summaries == []
    assert cached.artefacts.comparison.with_suffix(".md").read_text().count("\n| ") == 2 + len(rows)


def test_the_project_s_own_student_is_left_alone(cached):
    compare(cached.config, cached.context)
    assert not cached.artefacts.student.exists()
    assert not (cached.artefacts.runs / "train.json").exists()


def test_seeds_draw_other_random_weights_and_another_order(cached):
    compare(cached.config, cached.context)
    weights = {file.read_bytes() for file in (cached.folder / "models" / "comparison").rglob("model.safetensors")}
    assert len(weights) == 1 + 2 * len(RUNS)
    first, second = (cached.artefacts.student_init(name) for name in ("other", "other-seed-1"))
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


def test_a_stopped_comparison_goes_on_where_it_was_and_comes_to_the_same_figures(cached, make_project):
    shown = Recorder(stop_after=2)
    with pytest.raises(Interrupted):
        compare(cached.config, replace(cached.context, progress=shown, should_stop=shown.should_stop))
    assert not cached.artefacts.comparison.exists()
    resumed = Recorder()
    compare(cached.config, replace(cached.context, progress=resumed))
    assert any("resuming from checkpoint-4" in message for message in resumed.messages)
    first = result(cached)
    compare(cached.config, cached.context)
    assert result(cached) == first  # the times that training took included


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kd_sauce": "hidden"}, r"compare.runs.wrong: unknown key train.kd_sauce; did you mean kd_source\?"),
        ({"student": "none"}, r"compare.runs.wrong: train.student is 'none', which is not in students"),
    ],
)
def test_a_run_with_a_mistyped_parameter_is_refused_before_any_training(cached, changes, message):
    cached.set(compare={"seeds": [0], "runs": {"wrong": changes}})
    with pytest.raises(ConfigError, match=message):
        compare(cached.config, cached.context)
    assert not (cached.folder / "models" / "comparison").exists()


def test_a_run_that_the_cache_cannot_serve_is_refused_before_any_training(cached):
    runs = {"through the head": {}, "hot": {"kd_source": "top_k", "temperature": 3.0}}
    cached.set(compare={"seeds": [0], "runs": runs})
    with pytest.raises(
        ConfigError, match=r"compare.runs.hot: train.temperature is 3.0; allowed: one of cache.temperatures"
    ):
        compare(cached.config, cached.context)
    assert not (cached.folder / "models" / "comparison").exists()


def test_two_names_for_one_folder_are_refused(cached):
    cached.set(compare={"seeds": [0], "runs": {"MLM only": {}, "mlm-only": {}}})
    with pytest.raises(ConfigError, match=r"'MLM only' and 'mlm-only'.*rename one"):
        compare(cached.config, cached.context)


def test_without_initial_weights_the_command_is_named(make_project):
    project = make_project()
    project.run(cache_teacher)
    with pytest.raises(InputError, match="run: pipeline init-student half"):
        compare(project.config, project.context)


def test_a_later_run_that_cannot_start_is_refused_before_the_first_one_trains(cached):
    cached.set(
        students={"wide": {**RANDOM, "initialise": "teacher"}},
        compare={"seeds": [0], "runs": {"z": {"student": "wide"}}},
    )
    with pytest.raises(InputError, match="run: pipeline init-student wide"):
        compare(cached.config, cached.context)
    assert not (cached.folder / "models" / "comparison").exists()


def test_initial_weights_left_from_other_parameters_are_refused(cached):
    cached.set(students={"half": {"dropout": 0.5}})
    with pytest.raises(InputError, match=r"students.half.dropout: 0.5.*run: pipeline init-student half"):
        compare(cached.config, cached.context)


@pytest.mark.parametrize("name", ["学生", "teacher", "student before training", "Before training"])
def test_a_name_that_gives_no_folder_or_is_taken_is_refused(cached, name):
    cached.set(compare={"seeds": [0], "runs": {name: {}}})
    with pytest.raises(ConfigError, match="allowed: names with Latin letters or digits"):
        compare(cached.config, cached.context)


def test_a_run_published_again_keeps_the_commit_and_the_time_of_its_training(cached):
    first = replace(cached.context, commit="aaa")
    compare(cached.config, first)
    file = cached.artefacts.of_run("through-the-head/0").runs / "provenance.json"
    trained = file.read_text()
    assert json.loads(trained)["commit"] == "aaa"
    compare(cached.config, replace(cached.context, commit="bbb"))
    assert file.read_text() == trained


def test_the_markdown_table_gives_mean_and_half_range_and_says_so():
    row = Row(name="a|b", trained=True, values={"kl_masked": [0.1, 0.2], "kl_all": [9e-5], "mlm_loss": [3.0]})
    text = markdown("test split", [row], "masked")
    assert "| a\\|b | 0.150 ± 0.050 | 9.0e-05 | - | - | 3.000 | - | - |\n" in text
    assert text.startswith("test split\n")
    assert "Mean over the seeds ± half the distance" in text


def test_a_name_becomes_a_folder():
    assert slug("Top-k, and the rest!") == "top-k-and-the-rest"
