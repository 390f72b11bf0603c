"""Configuration files: YAML or JSON onto the library's frozen dataclasses, strictly.

A file names only what differs from the defaults, in the shape of the dataclasses:

    seed: 1
    lcdd:
      settle_steps: 150
      budget: {ratio: 0.2, floor: 0.02}

A key that no dataclass has is refused with the nearest that one has, and a value of another type with the type that was
expected: a setting that is silently ignored is worse than an error.
"""

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lcdd_lens.errors import ConfigError

Config = TypeVar("Config")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The content of a YAML (or JSON) file as a mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, names a key twice, or is no mapping.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration {path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"the configuration {path} holds a {_kind(content)}: expected settings as 'name: value'.")
    return content


def build(cls: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A dataclass from a mapping; what is not named keeps its default.

    Args:
        cls: the dataclass.
        values: field name -> value, nested for nested dataclasses.
        where: path of the mapping for messages, such as ``lcdd``.

    Raises:
        ConfigError: a key is unknown, a required one is missing, or a value has another type or is out of range.
    """
    given = _converted(cls, values, where)
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    missing = [_path(where, name) for name in required if name not in given]
    if missing:
        raise ConfigError(f"the setting {', '.join(missing)} is missing: it has no default.")
    return cls(**given)


def updated(default: Config, values: Mapping[str, Any], where: str = "") -> Config:
    """The same dataclass with some of its fields, nested ones too, replaced.

    Raises:
        ConfigError: a key is unknown, or a value has another type or is out of range.
    """
    _refuse_unknown(type(default), values, where)
    nested = {
        name: updated(getattr(default, name), value, _path(where, name))
        for name, value in values.items()
        if isinstance(value, Mapping) and is_dataclass(getattr(default, name))
    }
    plain = {name: value for name, value in values.items() if name not in nested}
    changed: Config = replace(default, **nested, **_converted(type(default), plain, where))  # type: ignore[type-var]
    return changed


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """ " Did you mean 'x'?" where a known name is near, else an empty text."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{found[0]}'?" if found else ""


def _converted(cls: Any, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    _refuse_unknown(cls, values, where)
    hints = typing.get_type_hints(cls)
    return {name: _convert(value, hints[name], _path(where, name)) for name, value in values.items()}


def _refuse_unknown(cls: Any, values: Mapping[str, Any], where: str) -> None:
    known = [field.name for field in fields(cls)]
    for name in values:
        if name not in known:
            place = f" in '{where}'" if where else ""
            raise ConfigError(
                f"unknown setting '{name}'{place}.{nearest(str(name), known)} Known there: {', '.join(known)}."
            )


def _convert(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotation wants it: whole numbers serve as floats, lists as tuples, mappings as dataclasses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is typing.Literal:
        if value in arguments:
            return value
        expected = ", ".join(map(repr, arguments))
        raise ConfigError(
            f"the setting {where} is {value!r}: expected one of {expected}.{nearest(str(value), arguments)}"
        )
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(entry, arguments[0], f"{where}[{index}]") for index, entry in enumerate(value))
    if is_dataclass(hint) and isinstance(value, Mapping):
        return build(typing.cast(type[Any], hint), value, where)
    if hint is float:
        return _as_float(value, where)
    plain = origin or hint
    if isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"the setting {where} is {value!r}, a {_kind(value)}: expected {_named(hint)}.")


def _convert_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [argument for argument in arguments if argument is not type(None)]
    if len(choices) == 1:
        return _convert(value, choices[0], where)
    for choice in choices:
        try:
            return _convert(value, choice, where)
        except ConfigError:
            continue
    raise ConfigError(f"the setting {where} is {value!r}: expected {' or '.join(map(_named, choices))}.")


def _as_float(value: Any, where: str) -> float:
    """YAML reads 1e-3 (without a point) as text; it is meant as a number."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise ConfigError(f"the setting {where} is {value!r}, a {_kind(value)}: expected a number.")


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _named(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, "a list" if typing.get_origin(hint) is tuple else "settings as 'name: value'")


def _kind(value: Any) -> str:
    for kinds, name in (
        ((bool,), "true/false value"),
        ((int, float), "number"),
        ((str,), "text"),
        ((list, tuple), "list"),
        ((Mapping,), "mapping"),
    ):
        if isinstance(value, kinds):
            return name
    return "null" if value is None else type(value).__name__


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML's safe loader that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping
