"""Which OpenVINO is installed: today's, or one of those before it whose plugins are gone since."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from contextlib import suppress
from typing import Optional

from ..sandbox import advice
from .base import one_line

Release = tuple[int, int]
"""Year and number, such as (2021, 4)."""

_PACKAGE = "openvino"
# The module that tells the version, newest first: 2022.x has the one of 2021.x as well.
_TELLING = (_PACKAGE, f"{_PACKAGE}.runtime", f"{_PACKAGE}.inference_engine")


def openvino_version(
    first: Release, last: Optional[Release], wanted: str, remedy: str, elsewhere: str = ""
) -> tuple[str, str]:
    """The version of the OpenVINO that is installed, if it is one of those that a target takes.

    It is imported only where it may be.

    Args:
        first, last: releases that it takes; None: every one from the first on.
        wanted: what these are called in a sentence.
        remedy: what to do where there is none of them.
        elsewhere: what to do where there is another one instead; empty: the same.

    Returns:
        Its version and "", or "" and why it cannot be used.
    """

    def is_taken(version: str) -> bool:
        release = release_of(version)
        return first <= release and (last is None or release <= last)

    version = _recorded()
    if not version or is_taken(version):
        try:
            version = _imported()
        except ModuleNotFoundError as error:
            if error.name != _PACKAGE:
                return "", f"openvino does not import: {error}"
            return "", f"openvino is not installed; {remedy}"
        except Exception as error:  # a broken installation may raise anything
            return "", f"openvino does not import: {one_line(str(error))}{advice(error)}"
    if is_taken(version):
        return version, ""
    mend = elsewhere or remedy
    return "", f"openvino {version} is installed, and this target takes {wanted}; {mend}"


def release_of(version: str) -> Release:
    """Year and number of a version; (0, 0) where it has none."""
    year, _, rest = version.partition(".")
    number = rest.partition(".")[0]
    return (int(year), int(number)) if year.isdigit() and number.isdigit() else (0, 0)


def _recorded() -> str:
    """The version by the metadata of the wheel; empty where what would be imported is no wheel's.

    An archive of OpenVINO has none, nor has a stand-in that is found before the wheel.
    """
    with suppress(importlib.metadata.PackageNotFoundError):
        wheel = importlib.metadata.distribution(_PACKAGE)
        found = importlib.util.find_spec(_PACKAGE)
        folders = (found.submodule_search_locations if found else None) or ()
        if os.path.realpath(str(wheel.locate_file(_PACKAGE))) in map(os.path.realpath, folders):
            return wheel.version
    return ""


def _imported() -> str:
    """The version, without its build: of 2026.4.1-22982-e213a147257 the first part.

    Raises:
        ImportError: there is none, or it is broken.
    """
    importlib.import_module(_PACKAGE)
    for name in _TELLING:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        if hasattr(module, "__version__"):
            return str(module.__version__).partition("-")[0]
    return "of an unknown version"
