import pytest

from stages.config import DocstringsConfig
from stages.context import Artefacts, Context
from stages.documents.docstrings import docstring_documents
from stages.errors import InputError


def documents(tmp_path, *packages, threads=1):
    config = DocstringsConfig(packages=packages, max_seen_share=0.4)
    return list(docstring_documents(config, Context(artefacts=Artefacts(project=tmp_path), threads=threads)))


def test_a_package_gives_one_document_of_prose_per_file(tmp_path):
    found = documents(tmp_path, "click")
    names = [document.document_id for document in found]
    assert names == sorted(names)
    assert "click/core.py" in names
    assert all(name.startswith("click/") and name.endswith(".py") for name in names)
    core = next(document.text for document in found if document.document_id == "click/core.py")
    assert len(core.split("\n\n")) > 100
    assert ">>>" not in core
    assert "::" not in core
    paragraphs = [paragraph for document in found for paragraph in document.text.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)


def test_neither_the_number_of_processes_nor_the_order_of_packages_changes_the_documents(tmp_path):
    assert documents(tmp_path, "click", "numcodecs", threads=2) == documents(tmp_path, "numcodecs", "click")


def test_tests_of_a_package_are_left_out(tmp_path):
    assert not [d for d in documents(tmp_path, "numcodecs") if "/tests/" in d.document_id]


def test_a_missing_package_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"names not-there-at-all, which is not installed; run `pip install not-there"):
        documents(tmp_path, "click", "not-there-at-all")
