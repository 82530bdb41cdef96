import json

import pytest
import torch

from stages.heads import Head
from stages.kept_head import holds_head
from stages.teacher_loading import load_teacher
from tests.stages.test_teacher_loading import every_family, saved
from tests.storage.damage import flip_a_bit


def cached_head(tmp_path, kind, objective, precision, dtype):
    """A tiny teacher, its head as a cache has it, and whether that is seen to be there."""
    folder = saved(tmp_path / "teacher", kind)
    model = load_teacher(folder, objective=objective, attention=None, dtype=precision)
    for name, data in Head.of(model).files(dtype).items():
        (tmp_path / name).write_bytes(data)
    return lambda **other: holds_head(
        tmp_path, folder, **{"objective": objective, "precision": precision, "dtype": dtype} | other
    )


@every_family
def test_the_head_of_every_family_is_recognised_without_loading_it(tmp_path, kind, objective):
    assert cached_head(tmp_path, kind, objective, torch.bfloat16, torch.float16)()


def test_a_head_of_another_teacher_or_another_arithmetic_is_not(tmp_path):
    recognised = cached_head(tmp_path, "bert", "masked", torch.float32, torch.float16)
    assert recognised()
    assert not recognised(dtype=torch.float32)
    assert not recognised(precision=torch.bfloat16)
    torch.manual_seed(5)
    saved(tmp_path / "teacher", "bert", vocabulary=320)
    assert not recognised()


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
def test_a_head_that_is_missing_or_damaged_is_not(tmp_path, name):
    recognised = cached_head(tmp_path, "bert", "masked", torch.float32, torch.float16)
    file = tmp_path / name
    whole = file.read_bytes()
    if name == "head.json":
        file.write_text(json.dumps(json.loads(whole) | {"steps": []}))
    else:
        flip_a_bit(file, len(whole) - 1)
    assert not recognised()
    file.write_bytes(whole)
    assert recognised()
    file.unlink()
    assert not recognised()
