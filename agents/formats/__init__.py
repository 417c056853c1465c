"""Finds the checks of uploaded artefacts: one module in this folder for each format.

An artefact comes from outside and is checked before a runtime loads it, on the host before it is
sent and on the board before it is loaded. A module has two names::

    NAMES: tuple[str, ...]                 # the formats that it checks, as targets list them
    def check(content: Content) -> None    # raises BadRequest or UnsupportedOperator, in one line

A module imports no runtime, reads nothing but the content, and refuses what it does not know.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Optional, Union

from ..errors import Internal

Content = Union[bytes, memoryview]
Checker = Callable[[Content], None]


def checker_of(format: str) -> Optional[Checker]:
    """The check of a format; None for a format that has none."""
    return _checkers().get(format)


def format_names() -> tuple[str, ...]:
    """All formats that have a check."""
    return tuple(_checkers())


@functools.cache
def _checkers() -> Mapping[str, Checker]:
    checkers: dict[str, Checker] = {}
    for found in pkgutil.iter_modules(__path__):
        if found.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{found.name}")
        for name in _names(module):
            if name in checkers:
                raise Internal(f"two modules check the format '{name}'; one is {module.__name__}")
            checkers[name] = module.check
    return checkers


def _names(module: ModuleType) -> tuple[str, ...]:
    names = getattr(module, "NAMES", ())
    if not names or not callable(getattr(module, "check", None)):
        raise Internal(f"{module.__name__} lacks NAMES or check()")
    return names
