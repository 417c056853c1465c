"""Finds the backends: files in this folder, entry points ``hurricane.backends``, and files
named in the environment variable HURRICANE_BACKENDS (paths, separated like PATH)."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
from types import ModuleType

from ..errors import Internal

ENTRY_POINT_GROUP = "hurricane.backends"
ENVIRONMENT_VARIABLE = "HURRICANE_BACKENDS"
_NOT_BACKENDS = {"base"}


def backend_names() -> list[str]:
    """Names of all backends, without importing them.

    A name is a module (``hurricane.agents.backends.openvino_cpu``, or what an entry point
    names) or the path of a Python file; `load_backend` imports it.
    """
    names = [
        f"{__name__}.{module.name}"
        for module in pkgutil.iter_modules(__path__)
        if module.name not in _NOT_BACKENDS and not module.name.startswith("_")
    ]
    entry_points = importlib.metadata.entry_points()
    if hasattr(entry_points, "select"):
        chosen = entry_points.select(group=ENTRY_POINT_GROUP)
    else:  # Python 3.9
        chosen = entry_points.get(ENTRY_POINT_GROUP, ())
    names += sorted({entry_point.value for entry_point in chosen})
    files = os.environ.get(ENVIRONMENT_VARIABLE, "")
    names += [os.path.abspath(path) for path in files.split(os.pathsep) if path]
    return names


def load_backend(name: str) -> ModuleType:
    """Imports a backend by its name.

    Raises:
        Internal: it cannot be imported, or is no backend.
    """
    try:
        module = _import_file(name) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:
        raise Internal(f"backend {name} cannot be imported: {error}") from error
    for function in ("targets", "open_target"):
        if not callable(getattr(module, function, None)):
            raise Internal(f"backend {name} has no function {function}()")
    return module


def _import_file(path: str) -> ModuleType:
    name = "hurricane_backend_" + os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python file at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
