import json

import pytest

from stages.context import Artefacts, Context, Silent
from stages.errors import InputError
from stages.finetuning.summary import means_of, publish_summary
from tests.stages.finetuning.scored import write_results


class Tables(Silent):
    """Keeps what it is shown."""

    def __init__(self):
        self.shown, self.said = [], []

    def table(self, title, columns, rows):
        self.shown.append((title, columns, rows))

    def message(self, text):
        self.said.append(text)


@pytest.fixture
def summary(tmp_path):
    """`summary()`: publish it; the JSON, the table's rows by name, and what was said."""
    tables = Tables()
    artefacts = Artefacts(project=tmp_path)

    def publish():
        publish_summary(Context(artefacts=artefacts, progress=tables))
        content = json.loads((artefacts.finetuning / "summary.json").read_text(encoding="utf-8"))
        _, _, rows = tables.shown[-1]
        return content, {row[0]: row[1:] for row in rows}, tables.said

    publish.folder = artefacts.finetuning
    return publish


def test_a_task_has_the_median_of_its_seeds_and_their_spread(summary):
    write_results(summary.folder, "student", "RTE", {0: 0.5, 1: 0.9, 2: 0.6})
    content, rows, said = summary()
    task = content["models"]["student"]["tasks"]["RTE"]
    assert (task["score"], task["lowest"], task["highest"], task["seeds"]) == (0.6, 0.5, 0.9, [0, 1, 2])
    assert rows["RTE, accuracy"] == ["60.0 ± 20.0"]
    assert said == ["seeds 0, 1, 2 for all"]
    assert content["retention"] == {}


def test_a_task_with_several_figures_has_a_row_for_each_and_one_for_its_score(summary):
    write_results(summary.folder, "student", "MRPC", {0: {"accuracy": 0.8, "f1": 0.9}})
    _, rows, _ = summary()
    assert list(rows) == ["MRPC", "- F1", "- accuracy", "GLUE, mean of 1 of 9"]
    assert rows["MRPC"] == ["85.0"]
    assert rows["- F1"] == ["90.0"]


def test_the_macro_score_is_of_glue_with_and_without_wnli_and_all_tasks_stand_beside_it(summary):
    for task, score in {"RTE": 0.6, "WNLI": 0.5, "CoLA": 0.4, "IMDb": 0.9}.items():
        write_results(summary.folder, "student", task, {0: score})
    content, rows, _ = summary()
    means = content["models"]["student"]["means"]
    assert means == pytest.approx({"macro": 0.5, "macro_without_wnli": 0.5, "all": 0.6})
    assert content["models"]["student"]["glue_tasks"] == ["CoLA", "RTE", "WNLI"]
    assert list(rows)[-3:] == ["GLUE, mean of 3 of 9", "GLUE without WNLI", "all tasks"]


def test_a_task_that_is_not_glues_own_by_its_name_is_not_in_the_macro_score():
    assert means_of({"SST-2-merged": 0.9, "RTE": 0.5}) == {"macro": 0.5, "macro_without_wnli": 0.5, "all": 0.7}
    assert means_of({"WNLI": 0.5}) == {"macro": 0.5, "all": 0.5}


def test_what_a_student_keeps_of_the_teacher_is_measured_on_the_tasks_that_both_have(summary):
    write_results(summary.folder, "teacher", "RTE", {0: 0.8})
    write_results(summary.folder, "teacher", "QNLI", {0: 0.9})
    write_results(summary.folder, "student", "RTE", {0: 0.6})
    write_results(summary.folder, "student", "IMDb", {0: 0.7})
    content, rows, _ = summary()
    kept = content["retention"]["student"]
    assert kept == pytest.approx({"RTE": 0.75, "macro": 0.75, "macro_without_wnli": 0.75, "all": 0.75})
    assert rows["RTE, accuracy"] == ["80.0", "60.0", "75.0%"]
    assert rows["QNLI, accuracy"] == ["90.0", "-", "-"]
    assert rows["GLUE, mean of 2 of 9"] == ["85.0", "60.0 (of 1)", "75.0%"]


def test_scores_on_other_examples_are_not_compared(summary):
    write_results(summary.folder, "teacher", "RTE", {0: 0.8}, data="these")
    write_results(summary.folder, "student", "RTE", {0: 0.6}, data="those")
    content, rows, said = summary()
    assert content["retention"] == {"student": {}}
    assert rows["RTE, accuracy"][-1] == "-"
    assert "student and the teacher were scored on different examples of RTE: no share is given" in said


def test_a_teacher_without_a_score_above_zero_gives_no_share(summary):
    write_results(summary.folder, "teacher", "CoLA", {0: 0.0})
    write_results(summary.folder, "student", "CoLA", {0: 0.1})
    assert summary()[0]["retention"] == {"student": {}}


def test_what_was_asked_beside_the_evaluation_stands_below_it_and_in_no_mean(summary):
    beside = {
        seed: {
            "validation": {"score": 0.9 + seed / 10, "figures": {}},
            "zero_shot": {
                "MRPC": {
                    "figures": {"accuracy": 0.3 + seed / 10, "f1": 0.2},
                    "majority": {"accuracy": 0.7, "f1": 0.8},
                }
            },
        }
        for seed in (0, 1)
    }
    write_results(summary.folder, "teacher", "SST-2", {0: 0.8})
    write_results(summary.folder, "student", "SST-2", {0: 0.6, 1: 0.6}, beside=beside)
    content, rows, said = summary()
    task = content["models"]["student"]["tasks"]["SST-2"]
    assert task["validation"] == pytest.approx(0.95)
    assert task["zero_shot"]["MRPC"]["figures"] == pytest.approx({"f1": 0.2, "accuracy": 0.35})
    assert task["zero_shot"]["MRPC"]["majority"] == {"accuracy": 0.7, "f1": 0.8}
    assert rows["- validation"] == ["-", "95.0 ± 5.0", ""]
    assert rows["- zero-shot on MRPC, accuracy"] == ["-", "35.0 ± 5.0 (70.0)", ""]
    assert list(rows)[1:4] == ["- validation", "- zero-shot on MRPC, F1", "- zero-shot on MRPC, accuracy"]
    assert content["models"]["student"]["means"]["all"] == pytest.approx(0.6)
    assert any(note.startswith("zero-shot: answers to a task that was not learned") for note in said)


def test_seeds_that_differ_are_said(summary):
    write_results(summary.folder, "teacher", "RTE", {0: 0.8, 1: 0.7})
    write_results(summary.folder, "student", "RTE", {0: 0.6, 1: 0.7})
    write_results(summary.folder, "student", "QNLI", {5: 0.6})
    assert summary()[2] == ["seeds 5: student on QNLI", "seeds 0, 1: all others"]


def test_seeds_of_different_parameters_are_not_put_together(summary):
    write_results(summary.folder, "student", "RTE", {0: 0.6}, training={"epochs": 3})
    write_results(summary.folder, "student", "RTE", {1: 0.7}, training={"epochs": 2})
    with pytest.raises(InputError, match="of student on RTE are of different parameters or data, seed by seed"):
        summary()


def test_the_table_is_also_markdown_and_a_picture(summary):
    write_results(
        summary.folder, "teacher", "STS-B", {0: {"pearson": 0.8, "spearman": 0.9}, 1: {"pearson": 0.7, "spearman": 0.9}}
    )
    write_results(summary.folder, "student", "WNLI", {0: 0.5})
    summary()
    text = (summary.folder / "summary.md").read_text(encoding="utf-8")
    assert "| STS-B | 82.5 ± 2.5 | - | - |\n| - Pearson | 75.0 ± 5.0 | - |  |\n" in text
    assert "Median over the seeds" in text
    assert (summary.folder / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_no_summary_without_results(tmp_path):
    folder = Artefacts(project=tmp_path).finetuning
    folder.mkdir(parents=True)
    publish_summary(Context(artefacts=Artefacts(project=tmp_path)))
    assert list(folder.iterdir()) == []
