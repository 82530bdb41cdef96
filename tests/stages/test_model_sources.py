import pytest

from stages.config import SourceConfig
from stages.errors import InputError
from stages.model_sources import resolve_source
from tests.stages.tiny_models import tiny_bert


def test_a_source_is_a_folder_of_the_project_or_a_pinned_hub_id(tmp_path):
    (tmp_path / "bert").mkdir()
    assert resolve_source(SourceConfig(path="bert"), tmp_path) == (str(tmp_path / "bert"), None)
    assert resolve_source(SourceConfig(hub_id="a/b", revision="c0ffee"), tmp_path) == ("a/b", "c0ffee")
    with pytest.raises(InputError, match="is no folder; expected a Hugging Face model"):
        resolve_source(SourceConfig(path="gone"), tmp_path)


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    """An installed package that carries a model and fails when it is imported."""
    folder = tmp_path / "site" / "carrier_of_bert"
    tiny_bert().save_pretrained(folder / "model")
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_a_source_can_be_an_installed_package_which_is_not_imported(carrier, tmp_path):
    assert resolve_source(SourceConfig(package="carrier_of_bert"), tmp_path) == (str(carrier / "model"), None)


def test_a_package_that_is_absent_or_carries_two_models_is_refused(carrier, tmp_path):
    with pytest.raises(InputError, match=r"package not_there \(load.package in params.yaml\) is not installed"):
        resolve_source(SourceConfig(package="not_there"), tmp_path)
    for name in ("not_there.sub", ".", "json.decoder"):
        with pytest.raises(InputError, match=r"is not installed, or is no package with files"):
            resolve_source(SourceConfig(package=name), tmp_path)
    tiny_bert().save_pretrained(carrier / "another")
    with pytest.raises(InputError, match=r"has 2 folders with config.json and \*.safetensors; expected one"):
        resolve_source(SourceConfig(package="carrier_of_bert"), tmp_path)
