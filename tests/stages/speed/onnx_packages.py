"""Tests of ONNX files need the packages of the extra `onnx`."""

import importlib.util

import pytest

from stages.speed.onnx_files import PACKAGES

MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

needs_onnx = pytest.mark.skipif(
    bool(MISSING), reason=f'not installed: {", ".join(MISSING)} (pip install "teacher-cache[onnx]")'
)
