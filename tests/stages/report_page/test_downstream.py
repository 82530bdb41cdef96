import pytest

from stages.context import Artefacts
from stages.errors import InputError
from stages.report_page.downstream import downstream_part
from stages.report_page.run_files import Record
from tests.stages.finetuning.scored import write_results
from tests.stages.finished_run import change, read_json, write_finished_run, write_json
from tests.stages.report_page.further_files import STUDENT, write_scores
from tests.stages.report_page.page import make_report, rows


@pytest.fixture
def artefacts(tmp_path):
    return Artefacts(project=tmp_path)


def part(artefacts, student=STUDENT):
    """The part of the page, drawn into a folder of its own."""
    folder = artefacts.project / "drawn"
    folder.mkdir(exist_ok=True)
    file = artefacts.finetuning_summary
    return downstream_part(Record(file, "pipeline finetune", read_json(file)), student, folder)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Of the teacher and two students."""
    artefacts = Artefacts(project=tmp_path_factory.mktemp("scores"))
    write_scores(artefacts, {"student": 0.5, "student-distilled": 0.75, "teacher": 1.0})
    return part(artefacts)


def test_models_stand_with_medians_spread_and_what_they_keep_of_the_teacher(shown):
    scores = shown.tables[0]
    assert [column.label for column in scores.columns[:4]] == ["Model", "GLUE", "GLUE", "All"]
    assert [column.unit for column in scores.columns[1:5]] == ["mean, 3 of 9", "without WNLI", "mean of 4", "5 scored"]
    found = rows(scores)
    assert list(found)[:3] == ["teacher, 1,000", "student, 1,000", "student-distilled, 1,000"]
    assert found["teacher, 1,000"][3:] == ["88.0 ± 1.5", "91.5 ± 0.5", "50.0 ± 0.0", "88.0"]
    assert found["student, 1,000"][3] == "44.0 ± 0.8, 50.0 %"
    assert found["student, 1,000"][:3] == ["38.2, 50.0 %", "44.9, 50.0 %", "39.7, 50.0 %"]
    assert "3 for MRPC; 2 for SST-2 and WNLI; 1 for SQuAD" in scores.caption


def test_the_papers_models_stand_below_with_means_over_the_same_tasks(shown):
    found = rows(shown.tables[0])
    assert found["BERT-base, DistilBERT paper"] == ["78.3", "90.7", "80.8", "88.6", "92.7", "53.5", "88.5"]
    assert found["DistilBERT, DistilBERT paper"][3:5] == ["87.5, 98.8 %", "91.3, 98.5 %"]
    assert found["DistilBERT (D), DistilBERT paper"] == ["–", "–", "–", "–", "–", "–", "86.9, 98.2 %"]


def test_tasks_with_several_figures_have_them_in_a_table_of_their_own(shown):
    figures = shown.tables[1]
    assert [(column.label, column.unit) for column in figures.columns[1:]] == [
        ("MRPC", "F1"),
        ("MRPC", "accuracy"),
        ("SQuAD", "exact match"),
        ("SQuAD", "F1"),
    ]
    found = rows(figures)
    assert found["teacher"] == ["90.0", "86.0", "80.0", "88.0"]
    assert found["DistilBERT (D), DistilBERT paper"] == ["–", "–", "79.1", "86.9"]


def test_the_best_student_is_marked_and_never_the_teacher(shown):
    marked = {row[0].text for row in shown.tables[0].rows if any(cell.best for cell in row)}
    assert marked == {"student-distilled"}


def test_every_task_has_a_plot_with_a_line_for_each_model(shown):
    plots = {plot.name: plot for plot in shown.plots}
    assert list(plots) == ["downstream-mrpc", "downstream-sst-2", "downstream-wnli", "downstream-squad"]
    assert all(words in plots["downstream-mrpc"].svg for words in ("teacher", "student-distilled", "88.0"))
    assert "strokes: the teacher's median" in plots["downstream-mrpc"].caption


def test_a_model_with_fewer_tasks_says_over_how_many_its_mean_is(artefacts):
    write_results(artefacts.finetuning, "other", "SST-2", {0: 0.8})
    write_scores(artefacts, {"student": 1.0}, ["SST-2", "WNLI"])
    assert rows(part(artefacts).tables[0])["other, 1,000"] == ["80.0 (of 1)", "80.0", "80.0", "–"]


def test_scores_of_another_student_are_pointed_out(artefacts):
    write_scores(artefacts, {"student": 1.0, "elsewhere": 1.0}, ["WNLI"])
    assert part(artefacts).notes == []
    [note] = part(artefacts, student="ffffffffffff").notes
    assert note.startswith(
        f"The scores of student are of another student (weights {STUDENT}) than this run's (ffffffffffff)."
    )


def test_scores_on_other_examples_than_the_teachers_are_pointed_out(artefacts):
    write_results(artefacts.finetuning, "teacher", "MRPC", {0: 0.9}, data="whole", weights=STUDENT)
    write_results(artefacts.finetuning, "student", "MRPC", {0: 0.8}, data="half", weights=STUDENT)
    write_scores(artefacts, {})
    shown = part(artefacts)
    assert shown.notes == [
        "student and the teacher were scored on different examples of MRPC: no share is given there."
    ]
    assert rows(shown.tables[0])["student, 1,000"] == ["80.0"]


def test_a_summary_of_a_version_without_weights_is_shown_without_a_word_about_them(artefacts):
    write_scores(artefacts, {"student": 1.0}, ["WNLI"])
    values = read_json(artefacts.finetuning_summary)
    del values["models"]["student"]["weights"]
    write_json(artefacts.finetuning_summary, values)
    assert part(artefacts, student="ffffffffffff").notes == []


def test_a_damaged_summary_is_refused_with_the_command_that_makes_it(tmp_path):
    artefacts = write_finished_run(tmp_path / "project")
    write_scores(artefacts, {"student": 1.0}, ["WNLI"])
    change(artefacts.finetuning_summary, retention=None)
    with pytest.raises(InputError, match=r"retention is nothing; expected an object.*run: pipeline finetune$"):
        make_report(artefacts)
