"""The public surface explains itself: every exported function, class, method and property has a docstring.

Public is what a subpackage lists in ``__all__``. A method may take its docstring from the class that it overrides, or
from the protocol that its class fulfils.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import lcdd_lens

_ROOMS = sorted(module.name for module in pkgutil.iter_modules(lcdd_lens.__path__) if module.ispkg)
PACKAGES = ["lcdd_lens", *(f"lcdd_lens.{room}" for room in _ROOMS)]


def exported(package: str) -> dict[str, Any]:
    """Name -> object, for the functions and classes of this library that a package exports."""
    module = importlib.import_module(package)
    found = {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in found.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("lcdd_lens")
    }


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public functions and properties that the class defines itself."""
    for name, value in vars(cls).items():
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            yield name, value


def documented_by_protocols(cls: type) -> set[str]:
    """Members that an exported protocol documents, of the protocols whose methods the class has."""
    classes = {value for package in PACKAGES for value in exported(package).values() if inspect.isclass(value)}
    documented = set()
    for protocol in (one for one in classes if getattr(one, "_is_protocol", False)):
        methods = [name for name, value in members(protocol) if inspect.isfunction(value)]
        if methods and all(hasattr(cls, name) for name in methods):
            documented |= {name for name, value in members(protocol) if inspect.getdoc(value)}
    return documented


def test_every_package_names_what_is_public() -> None:
    assert [package for package in PACKAGES if not hasattr(importlib.import_module(package), "__all__")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package: str) -> None:
    assert importlib.import_module(package).__doc__
    bare = [name for name, value in exported(package).items() if not (value.__doc__ or "").strip()]
    # A dataclass without one gets its signature from Python.
    bare += [name for name, value in exported(package).items() if (value.__doc__ or "").startswith(f"{name}(")]
    assert bare == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_method_has_a_docstring_of_its_own_or_of_its_protocol(package: str) -> None:
    bare = []
    for name, cls in exported(package).items():
        if inspect.isclass(cls):
            elsewhere = documented_by_protocols(cls) if cls.__dict__.get("_is_protocol") is not True else set()
            bare += [
                f"{name}.{member}"
                for member, value in members(cls)
                if member not in elsewhere and not inspect.getdoc(getattr(cls, member, value))
            ]
    assert bare == []


@pytest.mark.parametrize("package", PACKAGES)
def test_documented_arguments_are_arguments(package: str) -> None:
    """A section ``Args:`` names what the function takes and nothing else."""
    wrong = []
    for name, value in exported(package).items():
        functions = [(name, value)] if inspect.isfunction(value) else [(f"{name}.{n}", f) for n, f in members(value)]
        for called, function in functions:
            text = inspect.getdoc(function) or ""
            if not inspect.isfunction(function) or "Args:\n" not in text:
                continue
            section = text.split("Args:\n")[1].split("\n\n")[0]
            named = {
                one for line in re.findall(r"^    (\*{0,2}\w[\w, *]*):", section, re.M) for one in line.split(", ")
            }
            wrong += [
                f"{called}({one})" for one in named if one.strip("*") not in inspect.signature(function).parameters
            ]
    assert wrong == []
