"""The page of all parameters, from the dataclasses that check them, params.yaml and dvc.yaml."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from docs_build.tables import linked, table
from stages.config import Config

HEAD = """# Parameters

Written from the code by `make docs`: names, types and meanings from the dataclasses in `stages/config`, which refuse everything
else; defaults from the project's own `params.yaml`, where all values stand, or, in round brackets, what counts for a key that is
left out. `-S KEY=VALUE` sets one for a single command.

**Runs again** is the first stage of `dvc.yaml` that a change of the value makes run again, and with it all that reads what it
writes; a dash means that nothing does. What reaches up to `cache-teacher` is part of the cache's identity, so that a change asks
for another cache; paths are not, as digests of what lies there stand for them. What comes later changes students and figures
alone. What original flags those of `train` replace: [training-parameters.md](../training-parameters.md).

`teachers.NAME` has the keys of `teacher`, `compare.runs.NAME` any of `train`, `finetune.tasks.NAME.training` any of
`finetune.training`.
"""
WHOLE = {"students": "students.NAME", "teachers": "teachers.NAME", "finetune.tasks": "finetune.tasks.NAME"}
"""Maps of names of the user's own: how an entry is called here."""


def page(params_yaml: str, dvc_yaml: str) -> str:
    """The Markdown of all parameters. Arguments are the content of the two files."""
    values, stages = yaml.safe_load(params_yaml), yaml.safe_load(dvc_yaml)["stages"]
    parts = [HEAD]
    for title, cls, present in _sections(Config, values):
        keys = list(_leaves(cls, title, present, stages))
        if not keys:
            continue
        level = "##" if "." not in title.replace(".NAME", "") else "###"
        parts += [f"{level} {title}\n", linked(inspect.cleandoc(cls.__doc__ or "")) + "\n"]
        parts.append(table(("key", "type", "default", "runs again", "what it is"), keys) + "\n")
    return "\n".join(parts)


def _sections(cls: type, values: Any, at: str = "") -> Iterator[tuple[str, type, Any]]:
    """Dotted key, dataclass, and the values in params.yaml of every mapping, parents first.

    Of `teachers` only the name is given: each is what `teacher` is.
    """
    for name, hint in typing.get_type_hints(cls).items():
        key = f"{at}.{name}" if at else name
        inner, of_names = _dataclass_in(hint)
        if inner is None or key == "teachers":
            continue
        present = values.get(name) if isinstance(values, Mapping) else None
        if of_names:
            key, present = WHOLE[key], next(iter(present.values()), None) if present else None
        yield key, inner, present
        yield from _sections(inner, present, key)


def _leaves(cls: type, at: str, present: Any, stages: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for every key of a mapping whose value is no mapping with keys of its own."""
    hints, said = typing.get_type_hints(cls), _docstrings(cls)
    for field in dataclasses.fields(cls):
        if _dataclass_in(hints[field.name])[0] is not None:
            continue
        yield (
            f"`{field.name}`",
            _type(hints[field.name]),
            _default(field, present),
            _first_stage(f"{at}.{field.name}", stages),
            linked(said.get(field.name, "")),
        )


def _default(field: dataclasses.Field[Any], present: Any) -> str:
    if isinstance(present, Mapping) and field.name in present:
        return _code(present[field.name])
    return "" if field.default is dataclasses.MISSING else f"({_code(field.default)})"


def _code(value: object) -> str:
    """A value as params.yaml writes it; of a long one only that it stands there."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).removesuffix("...\n").strip()
    return f"`{text}`" if len(text) <= 60 else "see params.yaml"


def _first_stage(key: str, stages: Mapping[str, Any]) -> str:
    """The first stage whose `params` in dvc.yaml list the key or a parent of it."""
    plain = key.replace(".NAME", "")
    for name, stage in stages.items():
        for listed in (stage.get("do") or stage).get("params", ()):
            parent = listed.split(".${")[0]
            if plain == parent or plain.startswith(f"{parent}."):
                return f"`{name}`"
    return "-"


def _docstrings(cls: type) -> dict[str, str]:
    """What is said below each field of a dataclass and of those that it inherits from."""
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        [definition] = ast.parse(inspect.cleandoc(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                said[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return said


def _dataclass_in(hint: Any) -> tuple[type | None, bool]:
    """The dataclass that a field holds, perhaps null, and whether it holds several by name."""
    for option in _options(hint):
        if typing.get_origin(option) is dict:
            inner = typing.get_args(option)[1]
            if dataclasses.is_dataclass(inner):
                return typing.cast("type", inner), True
        elif dataclasses.is_dataclass(option):
            return typing.cast("type", option), False
    return None, False


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _type(hint: Any) -> str:
    """A type as a user of YAML says it."""
    options = _options(hint)
    if len(options) > 1:
        return ", ".join(_type(option) for option in options)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"names to {_type(arguments[1])}"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", types.NoneType: "null", Any: "any"}
    return names[hint]
