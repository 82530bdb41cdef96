import pytest

from stages.report_page.closeness import comparison_runs
from stages.report_page.run_files import Record
from stages.report_page.variation import variation_part
from tests.stages.finished_run import comparison
from tests.stages.report_page.further_files import ablation
from tests.stages.report_page.page import rows


def part(values, folder, against=None):
    runs = comparison_runs(Record(folder / "comparison.json", "pipeline compare", values))
    return variation_part(runs, folder, "masked", against)


def test_every_trained_run_stands_with_its_difference_from_the_first(tmp_path):
    shown = part(comparison(), tmp_path)
    assert shown.plots == []
    assert rows(shown.tables[0]) == {
        "through the head": ["0.2100", "3.990"],
        "top-k & the rest": ["+0.0420, 0.2520", "0, 3.990"],
        "MLM only": ["+0.6300, 0.8400", "0, 3.990"],
    }


def test_the_differences_are_from_the_run_that_the_comparison_has_them_from(tmp_path):
    shown = part(comparison(), tmp_path, "MLM only")
    assert list(rows(shown.tables[0])) == ["MLM only", "through the head", "top-k & the rest"]
    assert rows(shown.tables[0])["through the head"] == ["−0.6300, 0.2100", "0, 3.990"]


def test_scores_on_tasks_stand_beside_with_the_papers_ablation_below(tmp_path):
    [table] = part(ablation(), tmp_path).tables
    assert [column.label for column in table.columns[3:]] == ["Tasks", "MRPC", "SST\N{NON-BREAKING HYPHEN}2"]
    found = rows(table)
    assert found["through the head"][2:] == ["88.0", "86.0 ± 1.0", "90.0"]
    assert found["top-k & the rest"][2:] == ["−2.00", "−3.0, 83.0 ± 1.0", "−1.0, 89.0"]
    assert found["MLM only"][2:] == ["–", "−6.0, 80.0", "–"]
    assert found["no KD, DistilBERT paper"] == ["–", "–", "−2.96, GLUE, 9 tasks", "–", "–"]


def test_scores_are_means_over_the_students_as_in_the_comparison(tmp_path):
    values = ablation()
    values["rows"][3]["scores"]["MRPC"] = [0.80, 0.80, 0.86]
    [table] = part(values, tmp_path).tables
    assert rows(table)["top-k & the rest"][3] == "−4.0, 82.0 ± 3.0"


def test_scores_on_other_examples_are_shown_and_have_no_difference(tmp_path):
    values = ablation()
    for row in values["rows"]:
        row["evaluation_digests"] = dict.fromkeys(row.get("scores", {}), "others" if row["name"] == "MLM only" else "d")
    [table] = part(values, tmp_path).tables
    assert rows(table)["MLM only"][3] == "–, 80.0"
    assert rows(table)["top-k & the rest"][3] == "−3.0, 83.0 ± 1.0"


def test_the_plot_has_a_line_for_each_run_and_for_each_of_the_papers(tmp_path):
    [plot] = part(ablation(), tmp_path).plots
    assert plot.name == "variation-tasks"
    shown = ("MLM only", "−6.00", "no cosine (DistilBERT paper)", "−1.46", "random initial weights (DistilBERT paper)")
    assert all(words in plot.svg for words in shown)
    assert "through the head" in plot.svg  # on the axis


@pytest.mark.parametrize("keep", [2, 3])
def test_one_trained_run_has_nothing_to_differ_from(tmp_path, keep):
    values = comparison()
    values["rows"] = values["rows"][:keep]
    assert part(values, tmp_path) is None
