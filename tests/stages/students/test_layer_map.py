import dataclasses

import pytest

from stages.config import ConfigError, StudentConfig
from stages.students.layer_map import layer_map, spread_layers

STUDENT = StudentConfig(architecture="same", initialise="teacher", layers=2, dropout=0.0, seed=0)


def test_twelve_blocks_are_spread_over_six_as_distilbert_did():
    assert spread_layers(12, 6) == (0, 2, 4, 7, 9, 11)
    assert spread_layers(6, 3) == (0, 2, 5)


def test_blocks_that_the_teacher_lacks_are_refused():
    with pytest.raises(ConfigError, match=r"students.half.layer_map is \[0, 3\]; allowed: blocks 0 to 2"):
        layer_map(dataclasses.replace(STUDENT, layer_map=(0, 3)), "half", 3)
    with pytest.raises(ConfigError, match=r"students.half.layers is 4"):
        layer_map(dataclasses.replace(STUDENT, layers=4), "half", 3)
