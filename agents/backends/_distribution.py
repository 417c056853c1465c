"""Whether a distribution is installed in the one version that a backend knows."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

from .base import one_line


def distribution_version(
    distribution: str, wanted: tuple[int, int], module: str, extra: str, python: tuple[int, int]
) -> tuple[str, str]:
    """Imports a distribution of which a backend uses what is no stable interface.

    Args:
        distribution: its name.
        wanted: the first two parts of the version.
        module: of it that must import.
        extra: the extra of this distribution that brings it.
        python: the lowest version that it is there for.

    Returns:
        Its version and "", or "" and why it cannot be used.
    """
    install = f"run: pip install 'hurricane-nas[{extra}]'"
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        if sys.version_info < python:
            lowest = ".".join(map(str, python))
            return "", f"{distribution} is not installed; it needs Python {lowest} or newer"
        return "", f"{distribution} is not installed; {install}"
    if tuple(version.split(".")[:2]) != tuple(map(str, wanted)):
        known = ".".join(map(str, wanted))
        return "", f"{distribution} {version} is not {known}, which the agent knows; {install}"
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        return "", f"{distribution} does not import: {one_line(str(error))}; {install}"
    return version, ""
