from stages.documents.novelty import Novelty

TEXT = "one two three four five six seven eight nine ten"


def test_a_duplicate_is_old_whatever_its_case_and_punctuation():
    novelty = Novelty(0.4)
    assert novelty.is_new(TEXT)
    assert not novelty.is_new(TEXT.upper() + ".")


def test_a_paragraph_is_old_when_more_than_the_share_of_its_6_grams_was_seen():
    nearly = TEXT + " a b c d e"  # 5 of 10 grams are those of TEXT
    assert Novelty(0.5).is_new(TEXT)
    strict, lenient = Novelty(0.4), Novelty(0.5)
    for novelty in (strict, lenient):
        novelty.is_new(TEXT)
    assert not strict.is_new(nearly)
    assert lenient.is_new(nearly)


def test_short_paragraphs_are_compared_as_a_whole():
    novelty = Novelty(0.4)
    assert novelty.is_new("one two three")
    assert novelty.is_new("one two four")
    assert not novelty.is_new("one two three")
