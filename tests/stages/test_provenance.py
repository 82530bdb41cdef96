import json

from stages.config import load_config, to_plain
from stages.provenance import write_resolved
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
