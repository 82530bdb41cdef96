import pytest

from stages.documents.prose import paragraphs


def test_lines_of_a_paragraph_are_joined_and_blank_lines_separate():
    text = """
    Return the sum of the
    values along an axis.

    It is the same as the mean times the count.
    """
    assert paragraphs(text) == [
        "Return the sum of the values along an axis.",
        "It is the same as the mean times the count.",
    ]


@pytest.mark.parametrize(
    "block",
    [
        ">>> this is a line of the doctest\nand this is the output of it that we drop\n",
        "```python\nif this is in a fence then it is code and not prose\n```\n",
        ".. code-block:: python\n\n    this is what the code would say if it were to speak\n",
        ".. math:: this is the sum of the terms that are in it\n",
        "======  =====\nthis is the head of the table\n======  =====\n",
        "| this is the first cell | and this is the second cell |\n",
        "References\n----------\nThis is the book that we used for all of it.\n",
        ".. [1] This is the book that we used for all of it.\n",
    ],
)
def test_what_is_not_prose_is_left_out(block):
    text = f"The first line of it is prose.\n\n{block}\n"
    assert paragraphs(text) == ["The first line of it is prose."]


def test_an_indented_block_after_two_colons_is_code():
    text = (
        "It can be used like this::\n\n    for this in that: it is not a sentence\n\nAnd then it goes on with the text."
    )
    assert paragraphs(text) == ["It can be used like this:", "And then it goes on with the text."]


def test_numpy_parameters_keep_their_descriptions_only():
    text = """
    Parameters
    ----------
    axis : int or tuple of int, optional
        The axis along which the values are taken.
    """
    assert paragraphs(text) == ["The axis along which the values are taken."]


def test_google_and_sphinx_parameters_keep_their_descriptions_only():
    text = """
    Args:
        size (int, *optional*, defaults to 3): The size of the window to be used
            when it is not given.

    :param rate: The rate at which the values are to be taken.
    :type rate: the type of the rate is a float of course
    """
    assert paragraphs(text) == [
        "The size of the window to be used when it is not given.",
        "The rate at which the values are to be taken.",
    ]


def test_each_bullet_is_a_paragraph():
    text = "- The first of the two is a line\n  that goes on here.\n- The second of the two is short."
    assert paragraphs(text) == ["The first of the two is a line that goes on here.", "The second of the two is short."]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("This is what :class:`~a.b.Thing` is for.", "This is what a.b.Thing is for."),
        ("This is ``code`` and *emphasis* and **more** in a line.", "This is code and emphasis and more in a line."),
        ("See `the guide <https://x.org/a>`_ for what it is.", "See the guide for what it is."),
        ("See [the guide](https://x.org/a) for what it is.", "See the guide for what it is."),
        ("It is said in the book [1]_ that we read.", "It is said in the book that we read."),
        ("You can find it at https://x.org/a in the end.", "You can find it at in the end."),
        ("It maps K[x] to a polynomial in the ring.", "It maps K[x] to a polynomial in the ring."),
    ],
)
def test_markup_is_removed_and_its_text_kept(marked, plain):
    assert paragraphs(marked) == [plain]


@pytest.mark.parametrize(
    "line",
    [
        "Too short to be.",
        "Licensed to you under the terms of the licence that is in the file.",
        "The value of it is $x$ and that is the end of it.",
        "The default is {default} if it is not given by the user.",
        "x = foo(a, b) + bar[1:2] - self._thing.of(that) / the_rest",
    ],
)
def test_fragments_formulas_templates_and_boilerplate_are_refused(line):
    assert paragraphs(line) == []
