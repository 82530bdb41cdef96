import io
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from stages.config import load_config
from stages.errors import InputError
from stages.report_page.content import LOAD
from tests.stages.ensembles import with_second
from tests.stages.finished_run import (
    COMMIT,
    DIGEST,
    FINGERPRINT,
    RUN,
    change,
    comparison,
    write_finished_run,
    write_json,
    write_rows,
)
from tests.stages.report_page.further_files import write_further_files
from tests.stages.report_page.page import Page, make_report
from tests.stages.tiny_models import tiny_bert
from tests.tiny import tiny_params


@pytest.fixture
def finished(tmp_path):
    return write_finished_run(tmp_path / "project")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Page:
    """Of a run without a comparison."""
    return make_report(write_finished_run(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Page:
    """Of a run with a comparison."""
    artefacts = write_finished_run(tmp_path_factory.mktemp("compared"))
    write_json(artefacts.comparison, comparison())
    return make_report(artefacts)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Page:
    """Of a run with everything that the page can show."""
    artefacts = write_finished_run(tmp_path_factory.mktemp("complete"))
    write_further_files(artefacts)
    return make_report(artefacts)


def test_the_headline_figures_are_those_of_the_files(plain):
    text = plain.text
    for shown in (
        "4.30 million parameters distilled into 2.72 million",
        "0.1750 nats",
        "4,662 masked test tokens",
        "71.2 %",
        "3.738 nats the teacher's is 3.702",
        "63.2 %",
        "1.85 × faster",
        "319.6 bytes per position",
        "593,573",
        "224.8 MB",
        "500 steps",
        "1 min 28 s",
    ):
        assert shown in text


def test_this_runs_table_has_teacher_and_student_on_both_held_out_splits(plain):
    table = plain.tables["this-run"]
    assert table[0][1:4] == ["KL masked, nats ↓ is better", "KL all, nats ↓ is better", "Agreement masked ↑ is better"]
    assert [row[0] for row in table[1:]] == [
        "teacher test",
        "student half test",
        "teacher validation",
        "student half validation",
    ]
    assert table[1][1:] == ["0", "0", "100.0 %", "100.0 %", "3.702", "35.1 %", "1.000"]
    assert table[2][1:] == ["0.1750", "0.0783", "71.2 %", "92.8 %", "3.738", "34.3 %", "0.9359"]
    assert table[4][1] == "0.1811"


def test_the_comparison_shows_means_ranges_and_the_best_trained_run(compared):
    rows = {row[0]: row[1:] for row in compared.tables["comparison"][1:]}
    assert list(rows) == ["teacher", "student before training", "through the head", "top-k & the rest", "MLM only"]
    assert rows["through the head"][0] == "0.2100 0.2000–0.2200"
    assert rows["through the head"][2] == "73.5 % 70.0–77.0"
    assert rows["through the head"][-1] == "1 min 25 s"
    assert rows["student before training"][0] == "4.000"
    assert rows["teacher"][4] == "–"
    marked = re.findall(r'<b class="best">([^<]*)</b>', compared.html)
    assert {"0.2100", "73.5\N{NO-BREAK SPACE}%"} <= set(marked)
    assert "0.0000" not in marked
    assert "on test (4,662 masked tokens): the mean over 2 seeds" in compared.text
    assert "make table" not in compared.text
    assert {"comparison-kl", "comparison-agreement"} <= set(compared.ids)


def test_files_that_are_optional_add_their_parts_to_the_page_and_none_is_missed(plain, complete):
    further = {"comparison", "variation", "task-scores", "task-figures", "speed-on-text", "speed-agreement"}
    assert set(complete.tables) == set(plain.tables) | further
    assert set(plain.tables).isdisjoint(further)
    assert "#downstream" in [value for _, name, value in complete.attributes if name == "href"]
    assert not any("downstream" in name for name in plain.ids)
    assert "arXiv:1910.01108" in complete.text
    assert "paper" not in plain.text


def test_without_a_comparison_the_page_names_the_command_that_makes_it(plain):
    assert "make table ( pipeline compare )" in plain.text
    assert "comparison" not in plain.tables


def test_figures_of_another_cache_are_pointed_out(finished):
    write_json(finished.comparison, comparison(cache_root_digest="ab" * 32))
    change(finished.runs / "train.json", cache_root_digest="cd" * 32)
    text = make_report(finished).text
    assert "made on another cache (abababababab…)" in text
    assert "The student was trained from another cache (cdcdcdcdcdcd…)" in text


def test_provenance_is_complete(plain):
    text = plain.text
    assert all(part in text for part in (COMMIT, RUN, FINGERPRINT, DIGEST, "torch 2.13.0"))
    assert "Files differed" not in text
    shown = re.search(r"<summary>All parameters</summary>\s*<pre[^>]*><code>(.*?)</code>", plain.html, re.DOTALL)
    assert load_config(yaml.safe_load(shown[1])) == load_config(tiny_params())


@pytest.mark.parametrize(
    ("commit", "note"),
    [(f"{COMMIT} (modified)", "Files differed from the git commit"), (None, "No git commit is known")],
)
def test_code_that_git_cannot_name_is_pointed_out(finished, commit, note):
    change(finished.runs / "provenance.json", commit=commit)
    assert note in make_report(finished).text


def test_html_in_parameters_is_text(tmp_path):
    evil = "<script>alert(1)</script>&amp;"
    page = make_report(write_finished_run(tmp_path / "project", corpus={"files": {"paths": [evil]}}))
    assert page.text.count(evil) >= 2  # in the sentence and in the parameters
    assert not any(tag == "script" for tag, _, _ in page.attributes)


def test_nothing_in_the_page_is_loaded_from_anywhere(complete):
    loading = {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}
    outside = {value for _, name, value in complete.attributes if name in loading and value}
    assert {value for value in outside if not value.startswith(("#", "data:,"))} == set()
    assert "@import" not in complete.html
    assert not re.search(r"url\((?!#)", complete.html)
    assert "<script" not in complete.html


def test_ids_are_unique_and_references_lead_to_one(complete):
    assert len(complete.ids) == len(set(complete.ids))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', complete.html))
    assert {one or other for one, other in used} <= set(complete.ids)


def test_plots_of_the_page_take_their_colours_from_it(complete):
    svgs = "".join(re.findall(r"<svg.*?</svg>", complete.html, re.DOTALL))
    assert not re.search(r"(fill|stroke|color)\s*[:=]\s*\"?#", svgs)
    assert "currentColor" in svgs
    assert "var(--first)" in svgs


def test_every_plot_is_a_png_and_an_svg_file_too(complete):
    images, vectors = ({path.stem for path in (complete.folder / name).iterdir()} for name in ("plots", "vector"))
    names = {name for name in complete.ids if name in images}
    assert names == images == vectors
    assert {"student-loss", "student-kd", "teacher-loss", "cache-bytes", "cache-entropy-1"} <= names
    assert (complete.folder / "plots" / "student-loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_held_out_curve_is_drawn_and_says_which_weights_were_kept(tmp_path):
    rules = {"steps": 20, "sequences": 64, "keep": "best", "metric": "mlm_loss"}
    artefacts = write_finished_run(tmp_path / "project", train={"validation": rules})
    change(artefacts.runs / "train.json", kept_step=40)
    page = make_report(artefacts)
    assert "student-validation-kl" in page.ids
    assert "measured on its first 64 sequences" in page.text
    assert "The student has the weights of step 40, the best by MLM loss." in page.text
    assert "Dashed: the same on the validation split." in page.text


def test_one_validation_is_no_curve(finished):
    file = finished.runs / "validation.csv"
    file.write_text("\n".join(file.read_text(encoding="utf-8").splitlines()[:2]) + "\n", encoding="utf-8")
    page = make_report(finished)
    assert "student-validation-kl" not in page.ids
    assert "Dashed" not in page.text


def test_the_same_run_gives_the_same_bytes(finished):
    write_further_files(finished)

    def contents() -> dict[Path, bytes]:
        make_report(finished)
        return {path.relative_to(finished.report): path.read_bytes() for path in finished.report.rglob("*.*")}

    first = contents()
    shutil.rmtree(finished.report)
    assert contents() == first


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("models/student/config.json", "pipeline train-student"),
        ("runs/teacher.json", "pipeline teacher"),
        ("runs/teacher.csv", "pipeline teacher"),
        ("cache/run.json", "pipeline cache-teacher"),
        ("cache/figures.json", "pipeline cache-teacher"),
        ("cache/distributions.csv", "pipeline cache-teacher"),
        ("runs/speed-half.json", "pipeline init-student half"),
        ("runs/provenance.json", "pipeline train-student"),
        ("runs/train.json", "pipeline train-student"),
        ("runs/train.csv", "pipeline train-student"),
        ("runs/validation.csv", "pipeline train-student"),
        ("runs/evaluation.json", "pipeline evaluate"),
    ],
)
def test_a_missing_file_names_the_command_that_makes_it(finished, file, command):
    (finished.project / file).unlink()
    with pytest.raises(InputError, match=rf"is missing.*run: {command}$"):
        make_report(finished)
    assert not finished.report.exists()


def test_a_file_of_another_version_names_the_key_and_the_command(finished):
    change(finished.cache_figures, masked=None)
    with pytest.raises(InputError, match=r"masked is nothing; expected an object.*run: pipeline cache-teacher"):
        make_report(finished)
    change(finished.cache_figures, masked={}, positions={"train": "many"})
    with pytest.raises(InputError, match=r'positions\.train is "many"; expected a number'):
        make_report(finished)


def test_a_damaged_file_is_refused(finished):
    (finished.runs / "train.csv").write_text("step,loss\n1,x\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"train.csv cannot be read \(no column kd\); run: pipeline train-student"):
        make_report(finished)
    (finished.runs / "train.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"train.json cannot be read"):
        make_report(finished)


def test_figures_of_another_student_are_refused(finished):
    change(finished.runs / "train.json", student="third")
    with pytest.raises(InputError, match=r"is of student 'third'; expected 'half'"):
        make_report(finished)


def test_what_a_run_does_not_have_is_said(tmp_path):
    artefacts = write_finished_run(
        tmp_path / "project", train={"weights": {"cos": 0.0}}, cache={"logits": "none", "top_k": 0}
    )
    (artefacts.runs / "teacher.csv").write_text("step,loss,learning_rate\n", encoding="utf-8")
    group = {"positions": 593573, "entropy": {"1.0": 2.0}, "retained_mass": {}}
    change(artefacts.cache_run, retained_mass={})
    change(artefacts.cache_figures, masked=group, unmasked={})
    rows = [{"figure": "entropy", "temperature": "1.0", "positions": "masked", "low": 0, "high": 1, "share": 1}]
    write_rows(artefacts.cache_distributions, rows)
    page = make_report(artefacts)
    assert "No logits are cached" in page.text
    assert "The teacher was loaded, not trained here" in page.text
    assert {"teacher-loss", "student-cos", "cache-retained-mass-1"}.isdisjoint(page.ids)
    assert page.tables["cache-distributions"][1] == ["Entropy, T = 1 nats", "2.000", "–", "2.000"]


def test_size_and_speed_are_shown_for_every_device_that_was_measured(finished):
    speed = finished.speed("half")
    assert [row[0] for row in make_report(finished).tables["speed"][1:]] == [
        "Parameters",
        "Weights on disk",
        "CPU latency one sequence",
        "CPU throughput batches of 8",
    ]
    gpu = {"latency_ms": 1.5, "sequences_per_second": 5000.0}
    change(
        speed,
        teacher={"parameters": 4, "bytes": 16, "cpu": gpu, "cuda": gpu},
        student={"parameters": 4, "bytes": 16, "cpu": gpu, "cuda": gpu},
        ratio={
            "parameters": 1.0,
            "bytes": 1.0,
            "cpu": {"latency": 1.25, "throughput": 0.8},
            "cuda": {"latency": 0.5, "throughput": 2.0},
        },
    )
    table = {row[0]: row[1:] for row in make_report(finished).tables["speed"][1:]}
    assert table["CPU latency one sequence"] == ["1.50 ms", "1.50 ms", "1.25 × slower"]
    assert table["GPU throughput batches of 8"] == ["5,000 /s", "5,000 /s", "2.00 × faster"]


def test_the_code_on_the_page_loads_a_student_and_fills_a_mask(tokenized, tmp_path, monkeypatch):
    folder = tmp_path / "models" / "student"
    tokenizer = AutoTokenizer.from_pretrained(tokenized / "models" / "teacher")
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    tiny_bert(vocabulary=len(tokenizer), positions=64).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(LOAD["masked"], {})
    assert len(printed.getvalue().splitlines()) == 5


def test_figures_of_two_students_are_refused(finished):
    change(finished.runs / "evaluation.json", weights="another")
    with pytest.raises(InputError, match=r"is of another student \(another\) than .*; run: pipeline evaluate$"):
        make_report(finished)


def test_a_comparison_with_other_parameters_says_which(finished):
    values = comparison()
    write_json(finished.comparison, {**values, "train": {**values["train"], "learning_rate": 0.5}})
    assert "train.learning_rate: 0.001" in make_report(finished).text


def test_a_comparison_of_runs_of_different_length_says_how_long_each_was(finished):
    values = comparison()
    values["rows"][2]["steps"] = 20
    write_json(finished.comparison, values)
    assert "Not all were trained alike: through the head for 20 steps" in make_report(finished).text


def test_every_part_of_the_loss_has_its_curve_and_no_other_has_one(tmp_path):
    train = {"weights": {"kd": 0.0, "mse": 0.5}, "kd_positions": "masked", "schedule": "constant"}
    artefacts = write_finished_run(tmp_path / "project", train=train)
    with pytest.raises(InputError, match=r"train.csv cannot be read \(no column mse\); run: pipeline train-student"):
        make_report(artefacts)
    rows = [
        {
            "step": step,
            "loss": 9 / step,
            "mlm": 3.0,
            "cos": 0.1,
            "mse": 7 / step,
            "learning_rate": 0.001,
            "grad_norm": 1.0,
        }
        for step in range(10, 60, 10)
    ]
    write_rows(artefacts.runs / "train.csv", rows)
    page = make_report(artefacts)
    assert {"student-loss", "student-mlm", "student-cos", "student-mse", "student-learning-rate"} <= set(page.ids)
    assert {"student-kd", "student-clm"}.isdisjoint(page.ids)
    assert "What is minimised: 2\N{NO-BREAK SPACE}mlm + 1\N{NO-BREAK SPACE}cos + 0.5\N{NO-BREAK SPACE}mse." in page.html
    assert "summed over the vocabulary, masked tokens only, without its weight" in page.text
    assert "Warm-up to 0.001, then constant." in page.text
    assert "distilled into" in page.text


def test_losses_on_layers_and_self_attention_have_their_curves(tmp_path):
    vectors = {"hidden_layers": [0, 2], "attention_vectors": ["queries", "keys", "values"]}
    inner = {"hidden": 1.0, "relations": 2.0, "attention": 0.5}
    maps = {"layer_map": [[0, 0], [1, 2]], "relations": {"heads": 8}, "attention_map": [[1, 2]]}
    artefacts = write_finished_run(
        tmp_path / "project", train={"weights": {"kd": 0.0, "mlm": 0.0, **inner}, **maps}, cache=vectors
    )
    logged = dict.fromkeys(("loss", "cos", *inner, "learning_rate", "grad_norm"), 0.5)
    write_rows(artefacts.runs / "train.csv", [{"step": step, **logged} for step in range(10, 60, 10)])
    page = make_report(artefacts)
    assert {"student-cos", "student-hidden", "student-relations", "student-attention"} <= set(page.ids)
    assert "hidden states of student and teacher, mean over pairs of layers, without its weight" in page.text


def test_every_teacher_that_the_student_learned_from_is_named(tmp_path):
    third = with_second()["teachers"]["second"]
    overrides = with_second({"teacher": 0.7, "second": 0.3, "third": 0.0}, teachers={"third": third})
    artefacts = write_finished_run(tmp_path / "project", **overrides)
    other = {"fingerprint": FINGERPRINT, "root_digest": "5e" * 32}
    change(artefacts.runs / "provenance.json", further_caches={"second": other})
    text = make_report(artefacts).text
    assert f"Root digest of the cache of second {other['root_digest']}" in text
    assert "4.30 million parameters and 1 more teacher distilled into 2.72 million" in text
    assert (
        "so did the teacher “second”, a BERT of 3 layers and width 32 trained here; 593,573 positions of each" in text
    )
    assert "All figures that compare it with a teacher are of the first." in text
    assert "teacher second a BERT of 3 layers and width 32 trained here 30.0 % of the loss on teachers" in text
    assert "“third”" not in text


def test_a_student_that_learned_nothing_of_the_teacher_is_not_called_distilled(tmp_path):
    artefacts = write_finished_run(tmp_path / "project", train={"weights": {"kd": 0.0, "cos": 0.0}})
    text = make_report(artefacts).text
    assert "distilled into" not in text
    assert "by masked language modelling, in 500 steps" in text
