import json
import shutil

import pytest

from stages import cache_teacher, init_student
from stages.config import ConfigError
from stages.context import Context, Silent
from stages.errors import InputError
from stages.models import count_parameters, load_masked_lm, load_tokenizer


def test_the_folder_holds_weights_tokenizer_and_the_parameters_used(make_project):
    project = make_project()
    project.run(init_student, "half")
    folder = project.artefacts.student_init("half")
    assert load_masked_lm(folder).config.n_layers == 1
    assert load_tokenizer(folder).mask_token == "[MASK]"
    assert json.loads((folder / "resolved-config.json").read_text())["students"]["half"]["layer_map"] == [0]


def test_a_mistyped_name_is_refused_with_the_right_one(make_project):
    with pytest.raises(ConfigError, match=r"student 'hlaf' is not in students; did you mean half\?"):
        make_project().run(init_student, "hlaf")


def test_a_missing_teacher_names_the_command(make_project):
    project = make_project()
    shutil.rmtree(project.artefacts.teacher)
    with pytest.raises(InputError, match="run: pipeline teacher"):
        project.run(init_student, "half")


def test_a_random_student_without_teacher_and_cache_says_where_to_get_one(make_project):
    project = make_project(students={"half": {"initialise": "random", "layer_map": None}})
    shutil.rmtree(project.artefacts.teacher)
    with pytest.raises(InputError, match="dvc pull cache-teacher"):
        project.run(init_student, "half")


def test_size_and_speed_of_student_and_teacher_are_those_of_the_folders(make_project):
    project = make_project()
    project.run(init_student, "half")
    speed = json.loads(project.artefacts.speed("half").read_text())
    for who, folder in (("student", project.artefacts.student_init("half")), ("teacher", project.artefacts.teacher)):
        assert speed[who]["parameters"] == count_parameters(load_masked_lm(folder))
        assert speed[who]["bytes"] == (folder / "model.safetensors").stat().st_size
        assert speed[who]["cpu"]["latency_ms"] > 0
    assert speed["sequence_tokens"] == 16  # the corpus and both models have no more


def test_a_student_made_from_the_cache_alone_is_measured_beside_a_teacher_of_the_same_size(make_project):
    project = make_project(students={"half": {"initialise": "random", "layer_map": None}})
    project.run(cache_teacher)
    project.run(init_student, "half")
    beside = json.loads(project.artefacts.speed("half").read_text())
    weights = (project.artefacts.student_init("half") / "model.safetensors").read_bytes()
    shutil.rmtree(project.artefacts.teacher)
    project.run(init_student, "half")
    alone = json.loads(project.artefacts.speed("half").read_text())
    for who in ("student", "teacher"):
        assert (alone[who]["parameters"], alone[who]["bytes"]) == (beside[who]["parameters"], beside[who]["bytes"])
    assert (project.artefacts.student_init("half") / "model.safetensors").read_bytes() == weights


def test_the_initial_weights_alone_are_those_of_the_stage_and_nothing_is_measured(make_project):
    project = make_project()
    init_student.write_initial_weights(project.config, project.context, "half")
    assert not project.artefacts.speed("half").exists()
    weights = project.artefacts.student_init("half") / "model.safetensors"
    alone = weights.read_bytes()
    project.run(init_student, "half")
    assert weights.read_bytes() == alone


def test_the_summary_says_what_the_student_is_of_its_teacher(make_project):
    project, shown = make_project(), {}

    class Shown(Silent):
        def summary(self, title, rows):
            shown[title] = rows

    project.run(init_student, "half", context=Context(artefacts=project.artefacts, progress=Shown()))
    rows = shown["student half"]
    assert rows["blocks"] == "1 of the teacher's 2"
    assert rows["parameters"].endswith("% of the teacher's)")
    assert rows["CPU latency"].endswith("times the teacher's speed")
    assert rows["weights from"] == "the teacher's embeddings, head and block 0"


def test_a_tokenizer_with_more_entries_than_the_teachers_vocabulary_is_refused(make_project):
    project = make_project()
    tokenizer = load_tokenizer(project.artefacts.teacher)
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(project.artefacts.teacher)
    with pytest.raises(
        InputError, match=r"has \d+ entries and the student's vocabulary, its teacher's, \d+; .*pipeline tokenize"
    ):
        project.run(init_student, "half")


def test_a_student_of_the_teachers_own_class_keeps_its_token_types(make_project):
    project = make_project(students={"half": {"architecture": "same"}})
    project.run(init_student, "half")
    student = load_masked_lm(project.artefacts.student_init("half"))
    teacher = load_masked_lm(project.artefacts.teacher)
    assert student.config.model_type == "bert"
    ours, theirs = (model.bert.embeddings.token_type_embeddings.weight for model in (student, teacher))
    assert ours.equal(theirs)
