import json
import shutil

import pytest

from stages import init_student
from stages.config import ConfigError
from stages.errors import InputError
from stages.models import load_masked_lm, load_tokenizer


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
