"""The official script's figures, on examples of the published data, and on the whole dev set."""

import pytest

from stages.tasks.squad import SQUAD
from stages.tasks.squad_scoring import best, exact_match, f1, normalised
from tests.stages.real_data import DATA

DEV = DATA / "squad" / "dev-v1.1.json"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Denver Broncos", "denver broncos"),
        ("Santa Clara, California.", "santa clara california"),
        ('the "golden anniversary"', "golden anniversary"),
        ("24–10", "24–10"),  # an en dash is not in string.punctuation, and stays
        ("24-10", "2410"),
        ("a  theatre\nan ant", "theatre ant"),
        ("$1.2 billion", "12 billion"),
        ("The", ""),
    ],
)
def test_an_answer_is_normalised_as_by_the_official_script(answer, expected):
    assert normalised(answer) == expected


def test_exact_match_ignores_case_articles_and_punctuation_and_nothing_else():
    assert exact_match("denver broncos!", "The Denver Broncos") == 1.0
    assert exact_match("Denver", "Denver Broncos") == 0.0


def test_f1_counts_shared_words_as_often_as_they_occur():
    # "at Levi's Stadium" -> at levis stadium; shares 2 of 3 words with an answer of 7
    assert f1("at Levi's Stadium", "Levi's Stadium in the San Francisco Bay Area") == pytest.approx(
        2 * (2 / 3) * (2 / 7) / (2 / 3 + 2 / 7)
    )
    assert f1("no no", "no") == pytest.approx(2 / 3)
    assert f1("Carolina", "Denver") == 0.0
    assert f1("", "Denver") == 0.0


def test_the_closest_reference_answer_counts():
    assert best(f1, "gold", ["gold or silver", "gold", "silver"]) == 1.0


@pytest.mark.skipif(
    not DEV.is_file(), reason=f"{DEV} is not there: SQuAD's dev set (TEACHER_CACHE_DATA names the folder)"
)
def test_people_score_on_the_dev_set_about_what_is_published_of_them_on_the_hidden_test_set():
    # SQuAD 1.1's leaderboard, as Rajpurkar et al. 2016 measure it (the second answer is a prediction, the others are the
    # references): EM 82.3, F1 91.2.
    questions = [question for question in SQUAD.read(DEV, print) if len(question.answers) > 1]
    pairs = [
        (question.answers[1].text, [answer.text for place, answer in enumerate(question.answers) if place != 1])
        for question in questions
    ]
    means = [100 * sum(best(score, *pair) for pair in pairs) / len(pairs) for score in (exact_match, f1)]
    assert means == pytest.approx([82.3, 91.2], abs=1.0)
