"""params.yaml and `-S key=value`: YAML in, checked `Config` out."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from stages.config import Config, load_config
from stages.errors import ConfigError, InputError


def read_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The parameters in the file `path` with `overrides` ("dotted.key=value", the value in YAML) on top.

    Raises `InputError` for a file that cannot be read, `ConfigError` for YAML that cannot be parsed, a key given twice,
    and whatever `load_config` refuses.
    """
    return load_config(override(read_params(path), overrides))


def read_params(path: Path) -> dict[str, Any]:
    """The content of a parameter file, not yet checked against the configuration."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"no parameters at {path}; run in a project folder, or name one with --project, or "
            "begin one: pipeline init RECIPE --into FOLDER"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected YAML in UTF-8") from error
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {_kind(values)}; expected a mapping of sections such as corpus, cache, train")
    return values


def override(values: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A copy of `values` with each "dotted.key=value" of `settings` set; `load_config` refuses the unknown ones."""
    result = copy.deepcopy(values)
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"-S {setting} is not understood; expected -S key=value, e.g. -S train.steps=50")
        section = result
        for depth, part in enumerate(parts[:-1], start=1):
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                raise ConfigError(f"-S {setting}: {'.'.join(parts[:depth])} is {section!r}, not a section with keys")
        section[parts[-1]] = _parse(text, f"-S {key}")
    return result


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error: PyYAML keeps the last one without a word."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a subclass of SafeLoader: it builds plain data only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise ConfigError(f"{where}: {error.problem}; expected valid YAML with each key once") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow has no mark
        raise ConfigError(f"{source}: {' '.join(str(error).split())}; expected valid YAML") from error


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
