"""params.yaml and `-S`."""

from __future__ import annotations

import pytest

from pipeline.params import override, read_config, read_params
from stages.errors import ConfigError, InputError
from tests.tiny import tiny_params, write_params


@pytest.fixture
def params_file(tmp_path):
    write_params(tmp_path)
    return tmp_path / "params.yaml"


def test_values_of_an_override_are_yaml(params_file):
    settings = [
        "train.steps=50",
        "train.learning_rate=1e-4",
        "train.weights={kd: 1, mlm: 0, cos: 0}",
        "cache.temperatures=[1.0, 4.0]",
        "train.temperature=4",
        "corpus.max_documents=null",
        "tokenize.train.lowercase=false",
    ]
    config = read_config(params_file, settings)
    assert config.train.steps == 50
    assert config.train.learning_rate == 1e-4
    assert (config.train.weights.kd, config.train.weights.mlm) == (1.0, 0.0)
    assert config.cache.temperatures == (1.0, 4.0)
    assert config.corpus.max_documents is None
    assert config.tokenize.train is not None
    assert config.tokenize.train.lowercase is False


def test_an_override_can_add_a_student_and_a_section_that_was_not_there(params_file):
    student = "{architecture: distilbert, initialise: random, layers: 2, dropout: 0.0, seed: 0}"
    config = read_config(
        params_file,
        [f"students.other={student}", "train.student=other", "teacher.load.path=there", "teacher.source=load"],
    )
    assert config.student.layers == 2
    assert config.teacher.load is not None


def test_the_last_override_of_a_key_wins_and_the_file_stays_as_it_is(params_file):
    before = params_file.read_bytes()
    assert read_config(params_file, ["train.seed=1", "train.seed=2"]).train.seed == 2
    assert params_file.read_bytes() == before


def test_overriding_leaves_the_values_it_was_given_alone():
    values = tiny_params()
    assert override(values, ["train.weights.kd=9"])["train"]["weights"]["kd"] == 9
    assert values["train"]["weights"]["kd"] == 5.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.stepz=3", r"unknown key train\.stepz; did you mean steps\?"),
        ("trian.steps=3", r"unknown key trian; did you mean train\?"),
        ("train.steps", r"-S train\.steps is not understood; expected -S key=value"),
        ("=3", "not understood"),
        ("train..steps=3", "not understood"),
        ("train.steps.more=3", r"train\.steps is 8, not a section"),
        ("train.steps=[3", r"-S train\.steps, line 1"),
        ("train.steps=many", r"train\.steps is 'many'; allowed: an integer"),
        ("cache.preset=tiny", r"cache\.preset is 'tiny'; allowed: lossless, exact, balanced"),
    ],
)
def test_a_wrong_override_is_refused_by_name(params_file, setting, message):
    with pytest.raises(ConfigError, match=message):
        read_config(params_file, [setting])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n  steps: 1\n  seed: 0\n  steps: 2\n",
            "params.yaml, line 4, column 3: the key 'steps' is given twice",
        ),
        ("train:\n  steps: [1, 2\nseed: 0\n", "params.yaml, line 3"),
        ("a: &x {b: 1}\na: 2\n", "params.yaml, line 2, column 1: the key 'a' is given twice"),
        ("", "holds nothing; expected a mapping"),
        ("- a\n- b\n", "holds a list; expected a mapping"),
        ("a: \x00\n", "expected valid YAML"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_params(path)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"no parameters at .*params\.yaml; run in a project folder"):
        read_params(tmp_path / "params.yaml")


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"train: \xff\xfe\n")
    with pytest.raises(InputError, match=r"params\.yaml cannot be read: .*expected YAML in UTF-8"):
        read_params(tmp_path / "params.yaml")


def test_yaml_builds_plain_data_only(tmp_path):
    (tmp_path / "params.yaml").write_text("a: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        read_params(tmp_path / "params.yaml")
