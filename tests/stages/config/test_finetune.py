import pytest

from stages.config import ConfigError, load_config, to_plain
from stages.config.base import merged
from tests.tiny import tiny_params

FINETUNE = {
    "source": "files",
    "folder": "tasks",
    "seeds": [0, 1],
    "training": {
        "epochs": 3,
        "learning_rate": 3.0e-5,
        "batch_size": 32,
        "max_tokens": 128,
        "warmup_fraction": 0.1,
        "weight_decay": 0.01,
    },
    "tasks": {"MRPC": {}, "halves": {"kind": "SQuAD", "folder": "squad", "training": {"max_tokens": 384}}},
}


def load(**changes):
    return load_config(tiny_params(finetune=merged(FINETUNE, changes))).finetune


def test_a_task_takes_what_it_does_not_say_from_the_training_of_all():
    config = load()
    assert config.training_of("MRPC") == config.training
    assert config.training_of("halves").max_tokens == 384
    assert config.training_of("halves").epochs == 3
    assert (config.kind_of("MRPC"), config.kind_of("halves")) == ("MRPC", "SQuAD")
    assert (config.folder_of("MRPC"), config.folder_of("halves")) == ("tasks/MRPC", "squad")


def test_a_task_that_is_only_answered_untrained_is_one_by_the_name_of_its_kind():
    config = load(tasks={"MRPC": {"zero_shot": ["RTE"]}})
    assert (config.zero_shot_of("MRPC"), config.folder_of("RTE")) == ({"RTE": "RTE"}, "tasks/RTE")
    assert load(tasks={"MRPC": {"zero_shot": ["halves"]}}).zero_shot_of("MRPC") == {"halves": "SQuAD"}
    with pytest.raises(ConfigError, match=r"task 'RTE' is not in finetune\.tasks"):
        config.kind_of("RTE")


def test_parameters_without_the_section_are_what_they_were():
    config = load_config(tiny_params())
    assert config.finetune is None
    assert "finetune" not in to_plain(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": {"MRCP": {}}},
            r"finetune\.tasks\.MRCP does not say of which kind it is; expected kind: one of CoLA, .*SQuAD",
        ),
        ({"tasks": {"a/b": {"kind": "RTE"}}}, r"finetune\.tasks is 'a/b'; allowed: names for a folder"),
        (
            {"tasks": {"MRPC": {"training": {"epoch": 1}}}},
            r"unknown key finetune\.tasks\.MRPC\.training\.epoch; did you mean epochs",
        ),
        (
            {"tasks": {"MRPC": {"training": {"epochs": 0}}}},
            r"finetune\.tasks\.MRPC: finetune\.training\.epochs is 0; allowed: 1 or more",
        ),
        ({"tasks": {"MRPC": {"held_out": 1.0}}}, r"held_out is 1\.0; allowed: null or 0 < x < 1"),
        (
            {"tasks": {"MRPC": {"held_out": 0.1, "evaluation": ["dev.tsv"]}}},
            r"evaluation is \['dev.tsv'\]; allowed: null, as held_out",
        ),
        ({"tasks": {"MRPC": {"validation": 0.0}}}, r"validation is 0\.0; allowed: null or 0 < x < 1"),
        (
            {"tasks": {"MRPC": {"held_out": 0.5, "validation": 0.5}}},
            r"validation is 0\.5; allowed: a share that leaves something to learn from",
        ),
        ({"tasks": {"MRPC": {"zero_shot": ["RTE", "RTE"]}}}, r"zero_shot is \['RTE', 'RTE'\]; allowed: .* each once"),
        ({"tasks": {"MRPC": {"zero_shot": ["SST2"]}}}, r"task 'SST2' is not in finetune\.tasks; "),
        ({"tasks": {"MRPC": {"train": []}}}, r"train is \[\]; allowed: null or at least one file"),
        ({"folder": None}, r"finetune\.tasks\.MRPC\.folder is null, and so is finetune\.folder"),
        ({"source": "hub"}, r"finetune\.hub is null; allowed: datasets and their revisions"),
        ({"seeds": [1, 1]}, r"finetune\.seeds is \[1, 1\]; allowed: one or more, each once"),
        ({"keep": "some"}, r"finetune\.keep is 'some'; allowed: none, best, all"),
        ({"training": {"warmup_fraction": 1.0}}, r"finetune\.training\.warmup_fraction is 1\.0; allowed: 0 <= x < 1"),
        ({"hub": {"glue": {"name": "x", "revision": ""}}}, r"revision is ''; allowed: a commit or tag"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        load(**changes)


def test_a_task_that_is_not_there_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"task 'MRCP' is not in finetune\.tasks; did you mean MRPC\?"):
        load().kind_of("MRCP")
