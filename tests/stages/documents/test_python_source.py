from stages.documents.python_source import file_paragraphs


def write(tmp_path, source, encoding="utf-8"):
    path = tmp_path / "module.py"
    path.write_text(source, encoding=encoding)
    return path


def test_docstrings_of_modules_classes_functions_and_attributes_are_found(tmp_path):
    source = '''
"""The module is what this is about."""
try:
    class A:
        """The class is what this is about."""
        x = 1
        """The attribute is what this is about."""
        async def f(self):
            if True:
                def g():
                    """The inner function is what this is about."""
finally:
    pass
'''
    found = file_paragraphs(write(tmp_path, source))
    assert [line.removeprefix("The ").split(" is ")[0] for line in found] == [
        "module",
        "class",
        "attribute",
        "inner function",
    ]


def test_strings_given_to_documenting_calls_and_names_are_found_and_others_are_not(tmp_path):
    source = '''
add_docstr(f, r"""This is the text that is added to a function that is written in C.""".format(**shared))
_shared_docs["f"] = """This is the text that is shared by the functions of a kind."""
message = """This is a text that is shown to the user and not a part of the documentation."""
raise_error("""This is a text that is shown to the user when the program has to stop.""")
'''
    assert file_paragraphs(write(tmp_path, source)) == [
        "This is the text that is added to a function that is written in C.",
        "This is the text that is shared by the functions of a kind.",
    ]


def test_comments_of_three_lines_and_more_are_prose(tmp_path):
    source = "x = 1\n# This comment is long enough\n# to be taken as the prose\n# that it is.\ny = 2\n# This one is\n# not long.\n"
    assert file_paragraphs(write(tmp_path, source)) == [
        "This comment is long enough to be taken as the prose that it is."
    ]


def test_files_that_cannot_be_parsed_or_decoded_are_empty_and_invalid_escapes_do_not_warn(tmp_path):
    assert file_paragraphs(write(tmp_path, '"""This is the start of it."""\nclass:')) == []
    assert file_paragraphs(write(tmp_path, '"""This is the café of it all."""', "latin-1")) == []
    assert file_paragraphs(write(tmp_path, '"""This is the start of it all."""\nx = "\\d"')) == [
        "This is the start of it all."
    ]
