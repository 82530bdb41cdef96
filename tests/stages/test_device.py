"""The choice of device and precision."""

from __future__ import annotations

import pytest
import torch

from stages.device import resolve_device, resolve_precision, set_up, torch_dtype
from stages.errors import ConfigError

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def settings_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_auto_is_a_gpu_only_where_there_is_one():
    assert resolve_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", ""])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ConfigError, match=rf"machine\.device is '{name}'; allowed: auto, cpu, cuda"):
        resolve_device(name)


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"machine\.device is 'cuda:99': GPU 99, but torch sees \d+"):
        resolve_device("cuda:99")


def test_one_gpu_by_name_is_refused_to_several_processes():
    with pytest.raises(ConfigError, match=r"'cuda:1' for 2 processes on this node; expected auto or cuda"):
        resolve_device("cuda:1", local_rank=1, local_size=2)


@gpu
def test_a_process_of_a_launch_takes_its_own_gpu():
    assert resolve_device("cuda", local_rank=0) == "cuda:0"


def test_a_precision_that_is_named_is_kept():
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_an_arithmetic_has_the_dtype_of_its_name(name):
    assert str(torch_dtype(name)) == f"torch.{name}"


def test_automatic_precision_follows_what_the_processor_can_do():
    able = torch.cpu.get_capabilities()
    expected = "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"
    assert resolve_precision("auto", "cpu") == expected


@pytest.mark.usefixtures("settings_restored")
def test_setting_up_says_how_many_threads_are_in_use():
    assert set_up("cpu", 1) == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
