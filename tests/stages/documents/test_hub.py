import datasets
import pytest

from stages.config import HubDatasetConfig
from stages.context import Artefacts, Context
from stages.documents.hub import hub_documents
from stages.errors import InputError


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a dataset that lies in a folder: the same call, without the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))
    folder = tmp_path / "hub" / "tales"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "One."}\n{"text": ""}\n{"text": "Three."}\n')

    def read(name=str(folder), split="train", text_column="text", refuse_empty=False):
        config = HubDatasetConfig(name=name, revision="main", split=split, text_column=text_column)
        context = Context(artefacts=Artefacts(project=tmp_path))
        return [tuple(d) for d in hub_documents(config, context, refuse_empty=refuse_empty)]

    return read


def test_rows_are_documents(read):
    assert read() == [("1", "One."), ("3", "Three.")]
    with pytest.raises(InputError, match=r"tales@main, document 2: it is empty"):
        read(refuse_empty=True)


def test_a_missing_column_or_split_or_dataset_is_refused(read):
    with pytest.raises(InputError, match=r"text_column is 'body', .* its columns are text"):
        read(text_column="body")
    with pytest.raises(InputError, match=r"cannot load .*tales@main .*split nosuch"):
        read(split="nosuch")
    with pytest.raises(InputError, match=r"cannot load nobody/nothing@main"):
        read(name="nobody/nothing")
