import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config import FilesConfig
from stages.documents.files import file_documents, listed_files
from stages.errors import InputError


@pytest.fixture
def read(tmp_path):
    def read(*paths, document="file", text_column=None, refuse_empty=True, project=tmp_path):
        config = FilesConfig(paths=paths, document=document, text_column=text_column)
        files = listed_files(config, project).files
        found = (file_documents(name, file, config, refuse_empty=refuse_empty) for name, file in files.items())
        return [tuple(document) for documents in found for document in documents]

    return read


def test_a_text_file_is_one_document_or_one_per_paragraph_or_line(tmp_path, read):
    (tmp_path / "a.txt").write_text("One\ntwo.\n \n\nThree.\n")
    assert read("a.txt") == [("a.txt", "One\ntwo.\n \n\nThree.")]
    assert read("a.txt", document="paragraph") == [("a.txt:1", "One\ntwo."), ("a.txt:2", "Three.")]
    assert read("a.txt", document="line", refuse_empty=False) == [
        ("a.txt:1", "One"),
        ("a.txt:2", "two."),
        ("a.txt:5", "Three."),
    ]


def test_folders_and_patterns_are_read_in_the_order_of_names_and_each_file_once(tmp_path, read):
    for name in ("text/b.txt", "text/deep/a.md", "text/c.bin", "text/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    everything = [(name, name) for name in ("text/a.txt", "text/b.txt", "text/deep/a.md")]
    assert read("text") == everything
    assert read("text", "text/*.txt", "text/a.txt") == everything
    assert read("text/**/*.md") == everything[2:]
    assert read("text/c.bin") == [("text/c.bin", "text/c.bin")]


def test_ids_do_not_say_where_the_files_lie(tmp_path, read):
    for home in ("one", "two"):
        (tmp_path / home / "books").mkdir(parents=True)
        (tmp_path / home / "books" / "a.txt").write_text("A book.")
    project = tmp_path / "project"
    found = [read(str(tmp_path / home / "books"), project=project) for home in ("one", "two")]
    assert found == [[("books/a.txt", "A book.")]] * 2
    with pytest.raises(InputError, match=r"are both called books/a.txt"):
        read(str(tmp_path / "one/books"), str(tmp_path / "two/books"), project=project)


def test_rows_of_json_lines_and_parquet_are_documents(tmp_path, read):
    rows = [{"id": 1, "body": "One."}, {"id": 2, "body": "Two."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert read("a.jsonl", text_column="body") == [("a.jsonl:1", "One."), ("a.jsonl:2", "Two.")]
    assert read("b.parquet", text_column="body") == [("b.parquet:1", "One."), ("b.parquet:2", "Two.")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_missing_text_column_names_those_that_exist(tmp_path, read, name):
    rows = [{"id": 1, "body": "One."}]
    if name.endswith("jsonl"):
        (tmp_path / name).write_text(json.dumps(rows[0]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    with pytest.raises(InputError, match=r"no column 'text', .* its columns are id, body"):
        read(name, text_column="text")
    with pytest.raises(InputError, match=rf"text_column is null; .* column of {name} .*, one of: id, body"):
        read(name)


def test_missing_paths_and_folders_without_text_are_refused(tmp_path, read):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"nowhere.txt is not there"):
        read("nowhere.txt")
    with pytest.raises(InputError, match=r"no text in empty; expected files named"):
        read("empty")


def test_a_file_that_is_no_text_at_all_is_not_to_be_converted(tmp_path, read):
    (tmp_path / "a.txt").write_bytes(b"%PDF-1.7\0\xe2\xe3")
    with pytest.raises(InputError, match=r"a.txt is no text: it has a NUL byte; expected text in UTF-8"):
        read("a.txt")


def test_a_file_that_is_not_utf_8_is_refused_with_the_byte(tmp_path, read):
    (tmp_path / "a.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"a.txt is not UTF-8: byte 8 is 0xe9"):
        read("a.txt")


def test_a_byte_order_mark_is_no_text(tmp_path, read):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne.")
    assert read("a.txt") == [("a.txt", "One.")]


def test_files_of_a_folder_that_are_no_text_are_counted_by_how_they_end(tmp_path, read):
    folder = tmp_path / "text" / "deep"
    folder.mkdir(parents=True)
    for name in ("a.txt", "b.pdf", "c.pdf", "d.docx", "LICENSE", "notes.bin"):
        (folder / name).write_text(name)
    listed = listed_files(
        FilesConfig(paths=("text", "text/deep/notes.bin"), document="file", text_column=None), tmp_path
    )
    assert list(listed.files) == ["text/deep/a.txt", "text/deep/notes.bin"]
    assert listed.says_left_out().startswith(
        "4 files are left out: .pdf (2), no suffix (1), .docx (1); of a folder *.json, "
    )
    (folder / "b.pdf").unlink()
    only = listed_files(FilesConfig(paths=("text/deep/a.txt",), document="file", text_column=None), tmp_path)
    assert not only.left_out
    assert only.says_left_out() == ""


def test_an_empty_file_is_refused_as_a_file_or_skipped(tmp_path, read):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.jsonl").write_text("")
    for name, changes in (("a.txt", {"document": "line"}), ("b.jsonl", {"text_column": "text"})):
        with pytest.raises(InputError, match=rf"^{name} is empty; .* corpus.empty_documents to skip"):
            read(name, **changes)
        assert read(name, refuse_empty=False, **changes) == []


@pytest.mark.parametrize("content", [" \n", "\n"])
def test_empty_documents_are_refused_with_file_and_number_or_skipped(tmp_path, read, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(InputError, match=r"a.txt, document 1: it is empty; .* corpus.empty_documents"):
        read("a.txt", document="line")
    assert read("a.txt", document="line", refuse_empty=False) == []
    (tmp_path / "b.jsonl").write_text('{"text": "One."}\n{"text": null}\n')
    with pytest.raises(InputError, match=r"b.jsonl, document 2: it is empty"):
        read("b.jsonl", text_column="text")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", "line 1: expected a JSON object, found list"),
        ('{"text": ', "line 1: expected a JSON object, found '{"),
        ('{"text": 3}', "document 1: expected text, found int"),
    ],
)
def test_rows_that_are_no_text_are_refused(tmp_path, read, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(InputError, match=f"a.jsonl, {message}"):
        read("a.jsonl", text_column="text")


def test_a_broken_parquet_file_is_refused(tmp_path, read):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(InputError, match=r"a.parquet is no readable Parquet file"):
        read("a.parquet", text_column="text")
