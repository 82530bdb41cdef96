"""Where a model or tokenizer that the parameters name is: on the hub, in a folder, in an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stages.config import SourceConfig
from stages.errors import InputError


def resolve_source(source: SourceConfig, project: Path) -> tuple[str, str | None]:
    """What to pass to the loaders of `stages.models`: a folder (relative to the project) or a hub id, and a revision."""
    if source.package is not None:
        return str(_package_folder(source.package)), None
    if source.path is None:
        return str(source.hub_id), source.revision
    folder = project / source.path
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder; expected a Hugging Face model or tokenizer folder (load.path in params.yaml)"
        )
    return str(folder), None


def _package_folder(package: str) -> Path:
    """The folder with the model's files in an installed package, which is not imported."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a dotted name whose first part is absent; no name at all
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the Python package {package} (load.package in params.yaml) is not installed, or is no package with files; install it with pip"
        )
    root = Path(spec.submodule_search_locations[0])
    found = sorted({file.parent for file in root.rglob("*.safetensors") if (file.parent / "config.json").is_file()})
    if len(found) != 1:
        raise InputError(
            f"the Python package {package} has {len(found)} folders with config.json and *.safetensors; expected one; "
            "name the folder itself with load.path in params.yaml"
        )
    return found[0]
