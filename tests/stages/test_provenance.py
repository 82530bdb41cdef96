import json
import platform

import torch

from stages import cache_teacher
from stages.config import load_config, to_plain
from stages.context import Context
from stages.provenance import package_versions, provenance_of, write_resolved
from storage import CacheReader
from tests.tiny import tiny_params


def test_resolved_sections_load_as_the_same_parameters(tmp_path):
    config = load_config(tiny_params())
    write_resolved(tmp_path, config, "corpus", "tokenize")
    resolved = json.loads((tmp_path / "resolved-config.json").read_text())
    assert set(resolved) == {"corpus", "tokenize"}
    assert load_config(tiny_params(**resolved)) == config


def test_one_entry_of_a_section_can_be_written_to_a_file_of_any_name(tmp_path):
    config = load_config(tiny_params())
    write_resolved(tmp_path / "used.json", config, "train", "students.half")
    resolved = json.loads((tmp_path / "used.json").read_text())
    assert resolved == {"train": to_plain(config.train), "students": {"half": to_plain(config.students["half"])}}


def test_provenance_names_commit_versions_cache_and_every_parameter(make_project):
    project = make_project()
    project.run(cache_teacher)
    reader = CacheReader(project.artefacts.cache)
    context = Context(artefacts=project.artefacts, commit="abc (modified)")
    provenance = json.loads(json.dumps(provenance_of(project.config, context, reader, "f00d")))
    assert provenance["commit"] == "abc (modified)"
    assert provenance["run_fingerprint"] == "f00d"
    assert provenance["cache"] == {"fingerprint": reader.description.fingerprint, "root_digest": reader.root_digest}
    assert load_config(provenance["parameters"]) == project.config


def test_versions_are_those_that_run():
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert {"transformers", "tokenizers", "zarr", "numcodecs", "numpy", "datasets", "pyarrow"} <= versions.keys()
