import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.compare import compare, gather, only, slug
from pipeline.comparison.table import Row, markdown
from stages import cache_teacher, init_student
from stages.config import ConfigError
from stages.context import Silent
from stages.errors import InputError, Interrupted
from stages.finetuning.results import write_model
from storage import CacheReader
from tests.stages.finetuning.scored import write_results

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


@pytest.fixture
def one_by_one(cached):
    """Two runs of one seed, each done by itself, and the initial weights evaluated."""
    cached.set(
        students={"other": RANDOM},
        train={"steps": 2},
        compare={"seeds": [0], "against": "through the head", "runs": RUNS},
    )
    for name in ("before-training", *cached.config.compare.runs):
        only(cached.config, cached.context, name)
    return cached


def test_runs_that_are_done_one_by_one_are_gathered_into_the_same_table_without_cache_checkpoints_and_students(
    one_by_one,
):
    compare(one_by_one.config, one_by_one.context)
    expected, table = result(one_by_one), one_by_one.artefacts.comparison.with_suffix(".md").read_text()
    one_by_one.artefacts.comparison.unlink()
    for folder in ("cache/current", "checkpoints", "models"):
        shutil.rmtree(one_by_one.folder / folder)
    gather(one_by_one.config, one_by_one.context)
    assert result(one_by_one) == expected
    assert one_by_one.artefacts.comparison.with_suffix(".md").read_text() == table


def test_without_a_run_json_on_stdout_is_what_was_found_and_nothing_else(one_by_one, tmp_path):
    def invoke(*arguments):
        done = CliRunner().invoke(cli, ["compare", *arguments, "--project", str(one_by_one.folder)])
        assert done.exit_code == 0, done.output
        return done

    assert json.loads(invoke("--json", "-").stdout) == result(one_by_one)
    assert "difference from" in invoke("--gather", "--json", str(tmp_path / "there.json")).stdout
    assert json.loads((tmp_path / "there.json").read_text()) == result(one_by_one)
    one = json.loads(invoke("--only", "MLM only", "--json", "-").stdout)
    assert (one["run"], one["seeds"], one["figures"][0]["steps"]) == ("MLM only", [0], 2)
    assert json.loads(invoke("--only", "before-training", "--json", "-").stdout)["figures"][0]["split"] == "test"


def test_the_differences_are_from_the_named_run(one_by_one):
    shown = Recorder()
    gather(one_by_one.config, replace(one_by_one.context, progress=shown))
    found = result(one_by_one)
    rows = {row["name"]: row["values"] for row in found["rows"]}
    assert found["variation"]["from"] == "through the head"
    assert list(found["variation"]["runs"]) == ["MLM only", "random weights"]
    difference = rows["MLM only"]["mlm_loss"][0] - rows["through the head"]["mlm_loss"][0]
    assert found["variation"]["runs"]["MLM only"]["mlm_loss"] == pytest.approx(difference)
    assert [title for title, _, _ in shown.tables][1] == "difference from through the head"
    assert "\nDifference from through the head\n" in one_by_one.artefacts.comparison.with_suffix(".md").read_text()


def test_scores_of_a_run_stand_in_its_row_while_they_are_of_its_weights(one_by_one):
    fine_tuned(one_by_one, "mlm-only", {0: 0.7, 1: 0.8})
    gather(one_by_one.config, one_by_one.context)
    rows = {row["name"]: row for row in result(one_by_one)["rows"]}
    assert rows["MLM only"]["scores"] == {"MRPC": [0.75]}
    assert "scores" not in rows["through the head"]
    assert "| MRPC |" in one_by_one.artefacts.comparison.with_suffix(".md").read_text()
    fine_tuned(one_by_one, "mlm-only", {0: 0.7}, weights="before")
    shown = Recorder()
    gather(one_by_one.config, replace(one_by_one.context, progress=shown))
    assert all("scores" not in row for row in result(one_by_one)["rows"])
    assert any(
        "run: pipeline finetune --replace --model models/comparison/mlm-only/0" in said for said in shown.messages
    )


def fine_tuned(project, run, scores, *, weights=None, **settings):
    """Write results of the student of a run; `weights` None: those that it has."""
    weights = weights or f"{result_of(project, f'{run}/0', 'train.json')['weights']}..."
    folder, name = project.artefacts.finetuning, f"comparison-{run}-0"
    write_results(folder, name, "MRPC", scores, weights=weights, **settings)
    described = {"path": f"models/comparison/{run}/0", "weights": weights, "kind": "distilbert"}
    write_model(folder / name, described)


def test_scores_on_other_examples_are_shown_and_not_subtracted_and_it_is_said(one_by_one):
    fine_tuned(one_by_one, "through-the-head", {0: 0.8})
    fine_tuned(one_by_one, "mlm-only", {0: 0.7})
    fine_tuned(one_by_one, "random-weights", {0: 0.6}, data="others")
    shown = Recorder()
    gather(one_by_one.config, replace(one_by_one.context, progress=shown))
    found = result(one_by_one)["variation"]["runs"]
    assert found["MLM only"]["MRPC"] == pytest.approx(-0.1)
    assert "MRPC" not in found["random weights"]
    said = "random weights and through the head were scored on different examples of MRPC"
    assert shown.messages == [said]
    assert f"\n- {said}\n" in one_by_one.artefacts.comparison.with_suffix(".md").read_text()


def result_of(project, run, file):
    return json.loads((project.artefacts.of_run(run).runs / file).read_text())


def test_gathering_refuses_what_is_missing_of_other_parameters_or_of_another_cache(one_by_one):
    def refused(message):
        with pytest.raises(InputError, match=message):
            gather(one_by_one.config, one_by_one.context)

    same = one_by_one.config
    one_by_one.set(
        students={"other": RANDOM}, train={"steps": 3}, compare={"seeds": [0], "runs": RUNS},
    )  # fmt: skip
    refused(r'runs/comparison/through-the-head/0 was made with other parameters: train.steps: 3 expected, 2 in that run; run: '
            r'pipeline compare --only "through the head"')  # fmt: skip
    one_by_one.config = replace(same, evaluate=replace(same.evaluate, split="validation"))
    refused(r"before-training has no figures .* on validation; run: pipeline compare --only before-training")
    one_by_one.config = same
    file = one_by_one.artefacts.of_run("mlm-only/0").runs / "train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "cache_root_digest": "ab" * 32}))
    refused("the runs are not all of one cache.*MLM only abababababab")
    file.unlink()
    refused(
        'mlm-only/0 has no figures of a trained and evaluated student, seed 0 of MLM only; run: pipeline compare --only "MLM only"'
    )


def test_a_run_that_the_parameters_do_not_name_is_refused(cached):
    with pytest.raises(ConfigError, match=r"run 'MLM onyl' is not in compare.runs; did you mean MLM only\?"):
        only(cached.config, cached.context, "MLM onyl")


def test_differences_from_a_run_that_there_is_not_are_refused(cached):
    with pytest.raises(
        ConfigError, match=r"compare.against is 'fall'; allowed: null or one of compare.runs: through the head"
    ):
        cached.set(compare={"against": "fall"})


def test_the_markdown_table_gives_mean_and_half_range_and_says_so():
    row = Row(name="a|b", trained=True, values={"kl_masked": [0.1, 0.2], "kl_all": [9e-5], "mlm_loss": [3.0]})
    text = markdown("test split", [row], "masked")
    assert "| a\\|b | 0.150 ± 0.050 | 9.0e-05 | - | - | 3.000 | - | - |\n" in text
    assert text.startswith("test split\n")
    assert "Mean over the seeds ± half the distance" in text


def test_a_name_becomes_a_folder():
    assert slug("Top-k, and the rest!") == "top-k-and-the-rest"
