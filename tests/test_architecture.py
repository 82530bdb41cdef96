"""The house rules that a review cannot be trusted to see: who may import whom."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("pipeline", "stages", "storage")  # each may import itself and those after it
FORBIDDEN = {
    "pipeline": {"numpy", "safetensors", "tensorstore", "torch", "transformers", "datasets", "zarr"},
    "stages": {"click", "dask", "distributed", "dvc", "dvclive", "rich"},
    "storage": {"accelerate", "click", "dask", "datasets", "distributed", "dvc", "rich", "torch", "transformers"},
}
STAGES = {
    "corpus",
    "tokenize_corpus",
    "teacher",
    "cache_teacher",
    "plan",
    "init_student",
    "train_student",
    "evaluate",
    "finetune",
    "report",
}
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, wherever in the file; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; this project writes absolute ones"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_from_pipeline_to_stages_to_storage_only(path):
    layer = layer_of(path)
    above = set(LAYERS[: LAYERS.index(layer)])
    roots = {name.split(".")[0] for name in imported_modules(path)}
    assert not roots & above, f"{layer} must not import {roots & above}"
    assert not roots & FORBIDDEN[layer], f"{layer} must not know {roots & FORBIDDEN[layer]}"


@pytest.mark.parametrize("path", [p for p in FILES if layer_of(p) == "stages"], ids=lambda path: path.stem)
def test_stages_meet_through_files_and_read_no_environment(path):
    modules = set(imported_modules(path))
    others = {f"stages.{name}" for name in STAGES - {path.stem}}
    assert not modules & others, "a stage imports another one; what they share belongs into a module beside them"
    environment = {"environ", "getenv", "putenv"}
    used = {
        node.attr for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)
    }
    assert not used & environment
    assert not modules & {f"os.{name}" for name in environment}


def test_every_stage_module_is_there():
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} >= STAGES


@pytest.mark.parametrize("arguments", [["--help"], ["train-student", "--help"], ["--version"]])
def test_help_loads_no_heavy_library(arguments):
    program = (
        "import json, sys\n"
        "from pipeline.cli import cli\n"
        f"cli.main({arguments!r}, standalone_mode=False)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    heavy = {"torch", "transformers", "datasets", "numpy", "pyarrow", "zarr", "dask", "rich", "stages", "storage"}
    assert not loaded & heavy
