import shutil

from stages.report_page.run_files import Record
from stages.report_page.speed_on_text import speed_part
from stages.speed import on_text
from tests.stages.finished_run import read_json
from tests.stages.report_page.further_files import STUDENT, speed_on_text
from tests.stages.report_page.page import rows


def part(values, folder, student=STUDENT):
    return speed_part(Record(folder / "speed.json", "pipeline evaluate --speed", values), student, folder)


def test_teacher_and_student_stand_side_by_side_for_each_engine(tmp_path):
    found = rows(part(speed_on_text(), tmp_path).tables[0])
    assert found["Parameters"] == ["22,744,506", "17,420,346", "76.6 % of the teacher"]
    assert found["PyTorch, on disk"] == ["90.00 MB", "45.00 MB", "50.0 % of the teacher"]
    assert found["PyTorch, one at a time"] == ["80.0 s, 52.0 ms", "40.0 s, 26.0 ms", "2.00 × faster, 1.60–4.00"]
    assert found["ONNX Runtime, int8, in batches of 8"] == ["80.0 /s", "160 /s", "2.10 × faster, 1.68–4.20"]


def test_the_papers_figures_are_the_last_rows(tmp_path):
    table = part(speed_on_text(), tmp_path).tables[0]
    assert list(rows(table))[-2:] == ["DistilBERT paper, parameters", "DistilBERT paper, one at a time"]
    assert rows(table)["DistilBERT paper, one at a time"] == ["668 s", "410 s", "1.63 × faster"]


def test_outputs_of_onnx_files_are_compared_where_there_are_any(tmp_path):
    values = speed_on_text()
    compared = rows(part(values, tmp_path).tables[1])
    assert compared["ONNX Runtime, int8, student"] == ["0.110", "1.50", "0.9948", "99.1 %"]
    for who in ("teacher", "student"):
        del values[who]["engines"]["onnx_int8"]
    del values["ratio"]["engines"]["onnx_int8"]
    assert [table.name for table in part(values, tmp_path).tables] == ["speed-on-text"]


def test_an_engine_that_the_teacher_has_not_leaves_its_cells_empty(tmp_path):
    values = speed_on_text()
    del values["teacher"]["engines"]["onnx_int8"]
    del values["ratio"]["engines"]["onnx_int8"]
    shown = part(values, tmp_path)
    assert rows(shown.tables[0])["ONNX Runtime, int8, one at a time"] == ["–", "10.0 s, 6.50 ms", "–"]
    assert "int8" not in shown.plots[0].svg


def test_the_plot_shows_each_ratio_beside_the_papers(tmp_path):
    shown = part(speed_on_text(), tmp_path)
    assert shown.notes == []
    [plot] = shown.plots
    assert all(words in plot.svg for words in ("PyTorch, one at a time", "ONNX Runtime, int8, in 32s", "1.63"))


def test_times_of_another_student_are_pointed_out(tmp_path):
    [note] = part(speed_on_text(), tmp_path, student="ffffffffffff").notes
    assert note.startswith(f"These times are of another student (weights {STUDENT}) than this run's (ffffffffffff).")


def test_what_was_really_measured_is_shown_and_a_teacher_of_random_weights_named(copy_cached, tmp_path):
    project = copy_cached()
    shutil.copytree(project.artefacts.student_init("half"), project.artefacts.student)
    shutil.rmtree(project.artefacts.teacher)
    on_text.run(project.config, project.context, batch_sizes=(2,))
    values = read_json(project.artefacts.speed_on_text)
    shown = part(values, tmp_path, student=values["student"]["weights"])
    assert list(rows(shown.tables[0]))[:4] == [
        "Parameters",
        "PyTorch, on disk",
        "PyTorch, one at a time",
        "PyTorch, in batches of 2",
    ]
    assert rows(shown.tables[0])["PyTorch, on disk"][0] == "–"
    assert shown.notes == [
        "The teacher was not at hand: a model of its shape with random weights was timed in its place. It is as fast."
    ]
