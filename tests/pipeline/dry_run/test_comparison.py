import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from tests.pipeline.dry_run.looking import pipeline, results_of_dry_run

FULL = "through the head"


@pytest.fixture
def project(copy_cached):
    made = copy_cached()
    made.set(train={"steps": 2}, compare={"seeds": [0, 1]})
    return made


def test_of_each_run_and_seed_it_says_whether_its_figures_are_there_and_how_far_its_training_is(project):
    pipeline(project, "compare", "--only", FULL)
    summary, table = results_of_dry_run(project.folder, "compare")
    assert summary["rows"] == {
        "reads models/student-init/half": "there, of these parameters",
        "reads cache/current": "there, of these parameters",
        "figures there": "2 of 5",
        "writes runs/comparison.json": "missing",
    }
    assert table["columns"] == ["", "seed", "figures", "steps there", "newest checkpoint"]
    before, *rows = table["rows"]
    assert before[:3] == ["before-training", "-", "missing"]
    done, begun = ([row[:4] for row in rows if row[0] == name] for name in (FULL, "MLM only"))
    assert done == [[FULL, seed, "there, of these parameters", "2 of 2"] for seed in (0, 1)]
    assert begun == [["MLM only", seed, "missing", "0 of 2"] for seed in (0, 1)]
    _, other = results_of_dry_run(project.folder, "compare", "--only", FULL, "-S", "train.temperature=4")
    assert [row[:4] for row in other["rows"]] == [[FULL, seed, "of other parameters", "0 of 2"] for seed in (0, 1)]


def test_what_would_be_gathered_needs_no_cache(project):
    project.artefacts.cache.rename(project.folder / "elsewhere")
    summary, table = results_of_dry_run(project.folder, "compare", "--gather")
    assert "reads cache/current" not in summary["rows"]
    assert [row[2] for row in table["rows"]] == ["missing"] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("full",), "RUN is only looked at, nothing is trained: leave --dry-run out"),
        (("--json", "there.json"), "--dry-run writes nothing: give --json - for JSON on stdout"),
        (("--only", "full", "--gather"), "RUN, --only and --gather exclude each other"),
        (("--only", "MLM onyl"), "run 'MLM onyl' is not in compare.runs; did you mean MLM only?"),
    ],
)
def test_wrong_usage_ends_with_code_2(project, arguments, message):
    done = CliRunner().invoke(cli, ["compare", *arguments, "--dry-run", "--project", str(project.folder)])
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")
