import json

import pyarrow.parquet as pq
import pytest

from stages import corpus
from stages.config import load_config
from stages.context import Artefacts, Context
from stages.documents import read_files
from stages.errors import InputError, Interrupted
from stages.sharing import InProcess
from tests.stages.runners import AfterCalls, Backwards, Counting, Processes
from tests.tiny import tiny_params, tiny_text

STORIES = tiny_text()
SPLITS = ("train", "validation", "test")


@pytest.fixture
def run(tmp_path):
    """Runs the stage on lines of text; returns split -> (id, text) pairs."""

    def run(text=STORIES, folder="project", should_stop=lambda: False, runner=None, **section):
        project = tmp_path / folder
        (project / "text").mkdir(parents=True, exist_ok=True)
        for name, content in (text if isinstance(text, dict) else {"stories.txt": text}).items():
            file = project / "text" / name
            if not file.exists() or file.read_text() != content:
                file.write_text(content)
        config = load_config(tiny_params(corpus=section))
        context = Context(artefacts=Artefacts(project=project), should_stop=should_stop, runner=runner or InProcess())
        corpus.run(config, context)
        tables = {split: pq.read_table(project / f"data/documents/{split}.parquet").to_pylist() for split in SPLITS}
        return {split: [(row["document_id"], row["text"]) for row in rows] for split, rows in tables.items()}

    return run


def test_every_document_is_in_exactly_one_split_and_in_the_order_of_the_source(run):
    splits = run()
    together = sorted((pair for split in SPLITS for pair in splits[split]), key=lambda p: int(p[0].split(":")[1]))
    assert together == [(f"text/stories.txt:{n}", line) for n, line in enumerate(STORIES.splitlines(), start=1)]
    for pairs in splits.values():
        numbers = [int(name.split(":")[1]) for name, _ in pairs]
        assert numbers == sorted(numbers)


def test_the_split_of_a_document_does_not_depend_on_the_others(run):
    whole, half = run(), run(folder="half", max_documents=120)
    for split in SPLITS:
        assert half[split] == [pair for pair in whole[split] if int(pair[0].split(":")[1]) <= 120]


def test_the_seed_changes_the_split_and_nothing_else_does(run):
    assert run() == run(folder="again")
    assert run()["test"] != run(folder="other", seed=1)["test"]


def test_the_split_is_pinned():
    """Another split of the same documents would silently mix train and test of older caches."""
    config = load_config(tiny_params(corpus={"validation_fraction": 0.2, "test_fraction": 0.2})).corpus
    assert "".join(corpus.split_of(f"a.txt:{n}", config)[0] for n in range(24)) == "ttttttvttvttttttvtttvttt"


def test_the_resolved_parameters_lie_beside_the_documents(run, tmp_path):
    run(max_documents=200)
    resolved = json.loads((tmp_path / "project/data/documents/resolved-config.json").read_text())
    assert list(resolved) == ["corpus"]
    assert load_config(tiny_params(**resolved)) == load_config(tiny_params(corpus={"max_documents": 200}))


def test_an_empty_split_is_refused_and_nothing_is_written(run, tmp_path):
    with pytest.raises(InputError, match=r"the validation split is empty: none of 3 documents"):
        run("One.\nTwo.\nThree.\n", validation_fraction=1e-9)
    assert not list((tmp_path / "project").glob("data/*"))


def test_a_corpus_without_documents_is_refused(run):
    with pytest.raises(InputError, match=r"the corpus has no documents"):
        run("\n\n", empty_documents="skip")


def test_a_failed_run_leaves_the_earlier_documents_alone(run, tmp_path):
    before = run()
    with pytest.raises(InputError, match=r"document 2: it is empty"):
        run("One.\n\nThree.\n")
    assert len(pq.read_table(tmp_path / "project/data/documents/train.parquet")) == len(before["train"])


def test_it_stops_when_asked_and_writes_nothing(run, tmp_path):
    with pytest.raises(Interrupted):
        run(should_stop=lambda: True)
    assert not list((tmp_path / "project").glob("data/*"))


def test_large_splits_are_written_in_row_groups(run, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_ROW_GROUP_CHARACTERS", 2000)
    splits = run()
    file = pq.ParquetFile(tmp_path / "project/data/documents/train.parquet")
    assert file.num_row_groups > 3
    assert file.metadata.num_rows == len(splits["train"])


MANY = {f"{n:02}.txt": tiny_text(12, seed=n) for n in range(20)}


@pytest.mark.parametrize("runner", [Backwards(), Processes(2)], ids=["backwards", "processes"])
def test_the_files_do_not_depend_on_who_reads_the_sources_and_when(run, tmp_path, monkeypatch, runner):
    monkeypatch.setattr(corpus, "_ROW_GROUP_CHARACTERS", 2000)
    expected = run(MANY, folder="together")
    monkeypatch.setattr(read_files, "GROUP_BYTES", 1)
    assert run(MANY, folder="apart", runner=runner) == expected
    for split in SPLITS:
        one, other = (tmp_path / folder / f"data/documents/{split}.parquet" for folder in ("together", "apart"))
        assert one.read_bytes() == other.read_bytes()


def test_only_what_holds_the_first_documents_is_read(run, monkeypatch):
    monkeypatch.setattr(read_files, "GROUP_BYTES", 1)
    fractions = {"validation_fraction": 0.3, "test_fraction": 0.3}
    names = {name for pairs in run(MANY, max_documents=30, **fractions).values() for name, _ in pairs}
    assert names == {f"text/{n // 12:02}.txt:{n % 12 + 1}" for n in range(30)}
    broken = {**MANY, "19.txt": "\n"}  # empty documents are refused, where they are read
    assert sum(map(len, run(broken, folder="broken", max_documents=30, **fractions).values())) == 30


def test_a_stopped_run_goes_on_with_what_was_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr(read_files, "GROUP_BYTES", 1)
    expected = run(MANY, folder="undisturbed")
    with pytest.raises(Interrupted, match="what is done is kept in"):
        run(MANY, should_stop=AfterCalls(100))
    runner = Counting()
    assert run(MANY, runner=runner) == expected
    assert 1 < len(runner.items) < 20
    assert not list((tmp_path / "project/.cache-work").glob("corpus-*/"))


def test_a_file_that_changed_is_read_again(run, monkeypatch):
    monkeypatch.setattr(read_files, "GROUP_BYTES", 1)
    with pytest.raises(Interrupted):
        run(MANY, should_stop=AfterCalls(100))
    changed = {**MANY, "00.txt": tiny_text(12, seed=99)}
    assert run(changed) == run(changed, folder="undisturbed")


def test_docstrings_are_documents(run, tmp_path):
    fractions = {"validation_fraction": 0.3, "test_fraction": 0.3}
    splits = run(source="docstrings", docstrings={"packages": ["click"], "max_seen_share": 0.4}, **fractions)
    assert all(name.startswith("click/") for pairs in splits.values() for name, _ in pairs)
