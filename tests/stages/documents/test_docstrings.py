import subprocess
import sys
from pathlib import Path

import pytest

from stages.config import DocstringsConfig
from stages.context import Artefacts, Context
from stages.documents.docstrings import docstring_documents
from stages.errors import InputError

ROOT = Path(__file__).parents[3]
COMMAND = """
import os, signal, sys, threading
from pathlib import Path
from stages.config import DocstringsConfig
from stages.context import Artefacts, Context
from stages.documents.docstrings import docstring_documents

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)
    context = Context(artefacts=Artefacts(project=Path.cwd()), threads=2)
    found = docstring_documents(DocstringsConfig(packages=("click", "numcodecs"), max_seen_share=0.4), context)
"""
PRESS_CTRL_C_ALL_THE_TIME = """
    done = threading.Event()

    def press():
        while not done.wait(0.02):
            os.killpg(0, signal.SIGINT)

    threading.Thread(target=press).start()
    try:
        print(len(list(found)))
    finally:
        done.set()
"""
END_AT_ONCE = """
    next(found)
    os._exit(3)
"""


def run(tmp_path, body):
    """The script in a process group of its own; returns when every process that holds its output has ended."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND + body)
    return subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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


def test_ctrl_c_does_not_reach_the_workers_whatever_they_are_at(tmp_path):
    result = run(tmp_path, PRESS_CTRL_C_ALL_THE_TIME)
    assert result.stderr == ""
    assert int(result.stdout) == len(documents(tmp_path, "click", "numcodecs"))


def test_the_workers_end_with_a_parent_that_ends_at_once(tmp_path):
    result = run(tmp_path, END_AT_ONCE)
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
