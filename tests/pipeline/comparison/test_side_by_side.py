import json

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.comparison.places import find
from pipeline.comparison.record import record_of
from pipeline.comparison.side_by_side import markdown, side_by_side, tables_of
from stages.context import Artefacts
from tests.pipeline.comparison.written import write_cache_figures, write_run
from tests.stages.finetuning.scored import write_results
from tests.stages.finished_run import write_json
from tests.tiny import write_params

NO_KD = {"train": {"weights": {"kd": 0.0}}}
RUNS = {"full": {}, "no-kd": {"weights": {"kd": 0.0}}}


@pytest.fixture
def project(tmp_path):
    """Two runs of two seeds each, from one cache, one of them scored on a task; and a teacher."""
    write_params(tmp_path, compare={"seeds": [0, 1], "against": "full", "runs": RUNS})
    for seed in (0, 1):
        folder = tmp_path / "runs" / "comparison"
        write_run(
            folder / "full" / str(seed), seed=seed, weights=f"f{seed}", evaluation={"kl_masked": 0.2 + 0.02 * seed}
        )
        write_run(folder / "no-kd" / str(seed), seed=seed, weights=f"n{seed}", evaluation={"kl_masked": 0.5}, **NO_KD)
    write_cache_figures(tmp_path)
    speed = {"parameters": 1000, "bytes": 4000, "cpu": {"latency_ms": 2.5, "sequences_per_second": 800.0}}
    teacher = {"parameters": 2000, "bytes": 8000, "cpu": {"latency_ms": 5.0, "sequences_per_second": 400.0}}
    write_json(tmp_path / "runs" / "speed-half.json", {"student": speed, "teacher": teacher, "sequence_tokens": 16})
    write_json(tmp_path / "runs" / "teacher.json", {"parameters": 2000, "bytes": 8000, "seconds": 60.0, "steps": 8})
    return tmp_path


def scored(project, run, score, *, weights, data="d", task="MRPC"):
    """Results of fine-tuning the student of a run's first seed."""
    name = f"comparison-{run}-0"
    write_results(project / "runs" / "finetune", name, task, {0: score, 1: score}, data=data, weights=weights)
    file = project / "runs" / "finetune" / name / "model.json"
    write_json(file, {"path": f"models/comparison/{run}/0", "weights": weights, "kind": "bert"})


def compared(project, *names):
    runs = {name: name for name in RUNS}
    artefacts = Artefacts(project=project)
    return side_by_side([record_of(find(name, runs, artefacts)) for name in names])


def cells(content, title):
    [table] = [table for table in tables_of(content) if table.title.startswith(title)]
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


def test_held_out_figures_stand_side_by_side_with_their_seeds_and_their_difference_from_the_first(project):
    content = compared(project, "full", "no-kd")
    assert content["runs"][0]["held_out"]["values"]["kl_masked"] == [0.2, 0.22]
    assert content["differences"]["from"] == "full"
    assert content["differences"]["runs"]["no-kd"]["kl_masked"] == pytest.approx(0.29)
    assert cells(content, "held-out figures, test split")["full"]["KL, masked"] == "0.210 ± 0.010"
    assert cells(content, "difference from full")["no-kd"]["KL, masked"] == "+0.290"
    assert content["notes"] == []


def test_only_parameters_that_differ_are_shown(project):
    content = compared(project, "full", "no-kd")
    assert content["parameters"] == {"train.weights.kd": {"full": 5.0, "no-kd": 0.0}}
    assert cells(content, "parameters that differ") == {"train.weights.kd": {"full": "5.0", "no-kd": "0.0"}}


def test_size_speed_training_time_and_the_cache_are_shown(project):
    content = compared(project, "teacher", "full")
    speed, training = cells(content, "size and speed"), cells(content, "training and cache")
    assert speed["teacher"] == {
        "parameters": "2,000", "size": "8.000 kB", "CPU, one sequence, ms": "5.00", "CPU, sequences/s": "400.00",
    }  # fmt: skip
    assert speed["full"]["CPU, one sequence, ms"] == "2.50"
    assert training["full"]["seeds"] == "0, 1"
    assert training["full"]["training, median"] == "12 s"
    assert training["full"]["its size"] == "224.8 MB"
    assert training["teacher"]["its size"] == "-"


def test_the_teacher_has_its_own_losses_and_is_at_no_distance_from_itself(project):
    values = compared(project, "teacher", "full")["runs"][0]["held_out"]["values"]
    assert values["kl_masked"] == [0.0]
    assert values["mlm_loss"] == [3.70155]


def test_scores_stand_beside_the_runs_that_were_fine_tuned(project):
    scored(project, "full", 0.8, weights="f0...")
    scored(project, "no-kd", 0.75, weights="n0...")
    content = compared(project, "full", "no-kd")
    assert cells(content, "fine-tuned")["full"] == {"MRPC": "80.0"}
    assert content["differences"]["runs"]["no-kd"]["MRPC"] == pytest.approx(-0.05)
    assert cells(content, "difference from full")["no-kd"]["MRPC"] == "-5.0"


def test_a_mean_is_subtracted_where_both_have_the_same_tasks_and_says_how_many_it_is_of(project):
    for task in ("MRPC", "RTE"):
        scored(project, "full", 0.8, weights="f0...", task=task)
    scored(project, "no-kd", 0.7, weights="n0...")
    content = compared(project, "full", "no-kd")
    assert cells(content, "fine-tuned")["no-kd"]["GLUE, mean"] == "70.0 (1 of 2 tasks)"
    assert "macro" not in content["differences"]["runs"]["no-kd"]
    scored(project, "no-kd", 0.6, weights="n0...", task="RTE")
    assert compared(project, "full", "no-kd")["differences"]["runs"]["no-kd"]["macro"] == pytest.approx(-0.15)


def test_scores_of_weights_that_are_gone_and_on_other_examples_are_not_compared_and_it_is_said(project):
    scored(project, "full", 0.8, weights="f0...")
    scored(project, "no-kd", 0.7, weights="n0...", data="others")
    content = compared(project, "full", "no-kd")
    assert "MRPC" not in content["differences"]["runs"]["no-kd"]
    assert content["notes"] == ["no-kd and full were scored on different examples of MRPC"]
    scored(project, "no-kd", 0.7, weights="of before")
    content = compared(project, "full", "no-kd")
    assert "scores" not in content["runs"][1]
    assert "run: pipeline finetune --replace --model models/comparison/no-kd/0" in content["notes"][0]


def test_held_out_figures_of_another_text_are_shown_and_not_subtracted(project, tmp_path):
    write_run(tmp_path / "other" / "runs", evaluation={"masked_tokens": 17})
    content = compared(project, "full", "other")
    assert content["differences"]["runs"]["other"] == {}
    assert "cannot be compared" in content["notes"][0]
    assert content["runs"][1]["cache"] == {
        "root_digest": content["runs"][0]["cache"]["root_digest"]
    }  # its costs are not here


def test_figures_of_two_codings_of_one_text_can_be_compared(project, tmp_path):
    write_run(
        tmp_path / "other" / "runs", evaluation={"teacher_mlm_loss": 3.7019}, training={"cache_root_digest": "ab" * 32}
    )
    assert "kl_masked" in compared(project, "full", "other")["differences"]["runs"]["other"]


def test_an_evaluation_of_another_student_is_left_out_and_it_is_said(project, tmp_path):
    write_run(tmp_path / "other" / "runs", evaluation={"weights": "before"})
    content = compared(project, "full", "other")
    assert "held_out" not in content["runs"][1]
    assert "is of another student than train.json; run: pipeline evaluate" in content["notes"][0]


def run(project, *arguments):
    return CliRunner().invoke(cli, ["compare", "--project", str(project), *map(str, arguments)])


def test_the_command_writes_tables_json_and_markdown_and_trains_nothing(project, tmp_path):
    done = run(project, "full", "no-kd", "--json", tmp_path / "out.json", "--markdown", tmp_path / "out.md")
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "out.json").read_text())
    assert [found["name"] for found in content["runs"]] == ["full", "no-kd"]
    text = (tmp_path / "out.md").read_text()
    assert text == markdown(tables_of(content), content["notes"])
    assert "| no-kd | 0.500 ± 0.000 |" in text
    assert "difference from full" in done.output
    assert not (project / "checkpoints").exists()


def test_json_on_stdout_is_json_and_nothing_else(project):
    done = run(project, "full", "teacher", "--json", "-")
    assert [found["name"] for found in json.loads(done.stdout)["runs"]] == ["full", "teacher"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("full", "--gather"), "RUN, --only and --gather exclude each other"),
        (("--only", "full", "--gather"), "RUN, --only and --gather exclude each other"),
        (("--markdown", "there.md"), "--markdown is for RUN: without, runs/comparison.md is written"),
        (("--only", "fall"), "run 'fall' is not in compare.runs; did you mean full?"),
    ],
)
def test_wrong_usage_ends_with_code_2(project, arguments, message):
    done = run(project, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")


def test_a_run_that_is_not_known_ends_in_one_line(project):
    done = run(project, "full", "fall")
    assert done.exit_code == 1
    assert (
        "run 'fall' is not known: did you mean full? expected student, teacher, through the head, MLM only, full, no-kd, or a folder"
        in done.stderr
    )
