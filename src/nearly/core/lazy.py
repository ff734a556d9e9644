"""Public names that load on first use (PEP 562), so that importing the library costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attach(module: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """`__getattr__` and `__all__` of a module whose public names live elsewhere.

    **Arguments:**

    - `module`: the module's `__name__`.
    - `names`: public name -> `"package.module:attribute"`, or `"package.module"` for a module.
    """

    def getattr_(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = load(names[name])
        setattr(sys.modules[module], name, value)
        return value

    return getattr_, sorted(names)


def load(target: str) -> Any:
    """The object at `"package.module:attribute"` (or the module itself, without a colon)."""
    path, _, attribute = target.partition(":")
    value: Any = importlib.import_module(path)
    for part in attribute.split(".") if attribute else ():
        value = getattr(value, part)
    return value
