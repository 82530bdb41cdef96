"""From a mapping (YAML) to frozen dataclasses, refusing what does not fit.

A key may be left out only where null is a value it can have, or where it joined later and older files mean what they
meant: params.yaml is the one place of values, so nothing else is decided here. Every refusal names the key, what was
found and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from stages.errors import ConfigError

T = TypeVar("T")


def refuse(key: str, found: object, allowed: str) -> ConfigError:
    """The error for a value that is not allowed."""
    return ConfigError(f"{key} is {_show(found)}; allowed: {allowed}")


def require(condition: bool, key: str, found: object, allowed: str) -> None:
    """Raise `ConfigError` unless `condition` holds."""
    if not condition:
        raise refuse(key, found, allowed)


def require_settings(section: object, at: str, chosen_by: str, *names: str) -> None:
    """Raise `ConfigError`, which names their keys, where settings that a choice needs are null.

    `section` is the dataclass at the key `at` with fields `names`, each `Settings | None`; its field `chosen_by` has the choice.
    """
    hints = typing.get_type_hints(type(section))
    for name in names:
        (settings,) = (option for option in typing.get_args(hints[name]) if option is not type(None))
        fields = dataclasses.fields(settings)
        needed = ", ".join(f.name for f in fields if f.default is dataclasses.MISSING)
        needed = needed or f"some of {', '.join(f.name for f in fields)}"
        reason = f"as {at}.{chosen_by} is {getattr(section, chosen_by)}"
        require(getattr(section, name) is not None, f"{at}.{name}", None, f"its settings ({needed}), {reason}")


def require_seed(key: str, seed: int) -> None:
    """Raise `ConfigError` for a seed that one of the generators (Python's, numpy's, torch's) does not take."""
    require(0 <= seed < 2**32, key, seed, "0 <= x < 2**32")


def moved(error: ConfigError, key: str, to: str) -> ConfigError:
    """The same error with `key`, and what is below it, called `to`: of settings that stand in more than one place."""
    return ConfigError(re.sub(rf"(?<![\w./]){re.escape(key)}(?=\.\w| is )", lambda _: to, str(error)))


def suggest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for a mistyped name, or the list of the known ones."""
    known = sorted(known)
    return did_you_mean(name, known) or f"known: {', '.join(known)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`did you mean ...?` for a mistyped name; empty where none of the known ones is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def build(cls: type[T], values: object, at: str = "") -> T:
    """An instance of the dataclass `cls` from a mapping; `at` is the dotted key of the mapping.

    A class that stands in more than one place has a `KEY`, which its own refusals begin with: they come out with `at`.

    Raises `ConfigError` for an unknown key (with a suggestion), a missing key, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        allowed = "a mapping of keys to values"
        if isinstance(values, str) and re.match(r"[\w-]+:\S", values):
            allowed += f" (YAML wants a space after the colon: {values.replace(':', ': ', 1)})"
        raise refuse(at or "the parameters", values, allowed)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown key {_join(at, str(key))}; {suggest(str(key), fields)}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], _join(at, name))
        elif field.default is dataclasses.MISSING:
            raise ConfigError(f"missing key {_join(at, name)}; expected {_describe(hints[name])}")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise moved(error, getattr(cls, "KEY", at), at) from None


def joined(default: T) -> T:
    """The default of a field that joined a config later: at that value `to_plain` leaves it out.

    So identities and resolved parameters from before it stay equal to those of today.
    """
    return dataclasses.field(default=default, metadata={"joined": True})


def to_plain(value: object) -> Any:
    """The JSON form of a config: what `build` turns back into an equal one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not (f.metadata.get("joined") and getattr(value, f.name) == f.default)
        }
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` on top; a mapping within a mapping is merged, anything else replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _convert(hint: Any, value: object, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_one_of(hint, value, at)
    if origin is typing.Literal:
        require(value in arguments, at, value, ", ".join(map(str, arguments)))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise refuse(at, value, _describe(hint))
        return tuple(_convert(arguments[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise refuse(at, value, "a mapping of names to settings")
        return {str(key): _convert(arguments[1], item, _join(at, str(key))) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, at)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3 (no dot) as a string; everybody means the number.
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise refuse(at, value, "a finite number") from None
        require(math.isfinite(number), at, value, "a finite number")
        return number
    if type(value) is not hint:
        raise refuse(at, value, _describe(hint))
    return value


def _convert_one_of(hint: Any, value: object, at: str) -> Any:
    """A value of `X | None`, or of `int | Literal[...]`: an integer or one of a few names."""
    options = typing.get_args(hint)
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _convert(options[0], value, at)
    fits = any(
        value in typing.get_args(option) if typing.get_origin(option) is typing.Literal else type(value) is option
        for option in options
    )
    require(fits, at, value, _describe(hint))
    return value


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if a is type(None) else _describe(a) for a in arguments)
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each item {_describe(arguments[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping"
    return {int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _show(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
