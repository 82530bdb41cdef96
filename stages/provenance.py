"""What a stage leaves beside its output: the parameters that it used, and all that a trained student came from."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stages.config import Config, to_plain
from stages.context import Context
from stages.errors import InputError
from stages.outputs import write_json
from storage import CacheReader

RESOLVED = "resolved-config.json"
PROVENANCE = "provenance.json"

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "zarr",
    "numcodecs",
    "numpy",
    "datasets",
    "pyarrow",
    "teacher-cache",
)
"""Distributions whose versions can change what a run computes."""


def record_provenance(folder: Path, provenance: dict[str, Any], *, trains: bool) -> dict[str, Any]:
    """Keep in `folder` (a run's checkpoints) where the run comes from, as it was when it started; returns that.

    A run that is only published again, or resumed, does not take over the commit and versions of that moment. Those that
    trained a part of it (`trains`) stand in `resumed_with`.
    """
    file = folder / PROVENANCE
    if not file.is_file():
        write_json(file, provenance)
        return provenance
    started: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    now = {name: provenance[name] for name in ("commit", "packages")}
    resumed = started.get("resumed_with", [])
    if trains and now != {name: (resumed or [started])[-1][name] for name in now}:
        started["resumed_with"] = [*resumed, now]
        write_json(file, started)
    return started


def write_resolved(folder_or_file: Path, config: Config, *sections: str) -> None:
    """Write the named sections of the parameters as JSON, in the form and under the keys of params.yaml.

    A section is the name of a field of `Config`, or a dotted key into one of its maps (`students.half`). Given a
    folder that exists, the file in it is `resolved-config.json`; any other path is the file itself.
    """
    file = folder_or_file / RESOLVED if folder_or_file.is_dir() else folder_or_file
    resolved: dict[str, Any] = {}
    for section in sections:
        name, _, key = section.partition(".")
        value = getattr(config, name)
        if key:
            resolved.setdefault(name, {})[key] = to_plain(value[key])
        else:
            resolved[name] = to_plain(value)
    write_json(file, resolved)


def read_resolved(folder: Path, command: str) -> dict[str, Any]:
    """The parameters that the output in `folder` was made with.

    Raises `InputError`, naming the `command` that makes it anew, where they are missing or damaged.
    """
    try:
        resolved: dict[str, Any] = json.loads((folder / RESOLVED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / RESOLVED} cannot be read ({error}); run: {command}") from None
    return resolved


def provenance_of(
    config: Config,
    context: Context,
    cache: CacheReader,
    run_fingerprint: str,
    further: Mapping[str, CacheReader] | None = None,
) -> dict[str, Any]:
    """The content of `runs/provenance.json`: what a student was trained from, and with; `further` are caches of other teachers."""
    return {
        "commit": context.commit,
        "packages": package_versions(),
        "run_fingerprint": run_fingerprint,
        "cache": _identity(cache),
        **({"further_caches": {name: _identity(other) for name, other in further.items()}} if further else {}),
        "parameters": to_plain(config),
    }


def _identity(cache: CacheReader) -> dict[str, str]:
    return {"fingerprint": cache.description.fingerprint, "root_digest": cache.root_digest}


def package_versions() -> dict[str, str]:
    """Versions of Python and of `PACKAGES`; one that runs without being installed (a source folder) is left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
