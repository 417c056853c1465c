"""Finds LiteRT, or its predecessor tflite-runtime, and loads external delegates."""

from __future__ import annotations

import base64
import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Optional

import numpy as np

from ..errors import BadRequest
from ..sandbox import advice
from .base import one_line

_NOT_INSTALLED = (
    "neither ai-edge-litert nor tflite-runtime is installed; run: pip install "
    "'hurricane-nas[litert]' (tflite-runtime for an older board: 'hurricane-nas[tflite-runtime]')"
)
# A file of one RELU on one number, for a look at whether the runtime works.
_SMALLEST = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAA5AAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAM"
    "ABQAEAAMAAgABAAMAAAAEAAAADwAAABAAAAARAAAAAEAAAAQAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAMAAAAAQAAAAEA"
    "AAABAAAAAAAAAAEAAAABAAAAAQAAAAAAAAACAAAAQAAAAAQAAADe////AAAAAQgAAAAMAAAAAQAAAHkAAAABAAAAAQAA"
    "AAAAFgAQAAwAAAAAAAgAAAAAAAAAAAAHABYAAAAAAAABCAAAAAwAAAABAAAAeAAAAAEAAAABAAAAAQAAABAAAAAMAAwA"
    "CwAAAAAABAAMAAAAEwAAAAAAABM="
)
_DELEGATE_OPTION = re.compile(r"([A-Za-z0-9_.-]+):([^,]+)")


class Unavailable(Exception):
    """No runtime works here; the message says why and what to do."""


@dataclass(frozen=True)
class Runtime:
    """The module that has the interpreter, and the version as tables name it."""

    module: Any
    version: str


@dataclass(frozen=True)
class Delegate:
    """An external delegate: its library's path or name, and what it is told."""

    library: str
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        """Never empty, for that is the name of none."""
        file = os.path.basename(self.library)
        return file.partition(".")[0] or file

    def load(self, runtime: Runtime) -> Any:
        """A delegate for one interpreter.

        Raises:
            BadRequest: there is no such library, it is no delegate, or it refuses its options.
        """
        try:
            return runtime.module.load_delegate(self.library, dict(self.options))
        except OSError as error:
            raise BadRequest(self._not_loaded(one_line(str(error)))) from error
        except AttributeError as error:
            raise BadRequest(
                f"option 'delegate': {self.name} is a library without a TFLite delegate (it has no "
                "function tflite_plugin_create_delegate); name the delegate's own library"
            ) from error
        except ValueError as error:
            said = one_line(str(error).partition("\n")[2]) or "it does not say why"
            raise BadRequest(
                f"option 'delegate_options': {self.name} cannot be had with these options ({said});"
                " see the delegate's manual, and whether its device is there"
            ) from error

    def _not_loaded(self, text: str) -> str:
        if "Permission denied" in text:
            return (
                f"option 'delegate': the agent's sandbox, or the file's mode, forbids to read "
                f"{self.name} or what it needs ({text}); start the agent with: agent serve "
                "--allow-read PATH"
            )
        if "No such file" in text and text.startswith(self.library):
            return (
                f"option 'delegate': the board has no library {self.library}; give the path there, "
                "or a name that its loader finds"
            )
        return (
            f"option 'delegate': {self.name} cannot be loaded ({text}); it must be a library for "
            "this board, with all that it needs"
        )


def find_runtime() -> Runtime:
    """The first runtime that works.

    Raises:
        Unavailable: none does.
    """
    reasons = []
    for package in ("ai_edge_litert", "tflite_runtime"):
        try:
            found = importlib.import_module(package)
            module = importlib.import_module(f"{package}.interpreter")
        except ModuleNotFoundError as error:
            if error.name != package:
                reasons.append(f"{package} does not import: {error}")
            continue
        except Exception as error:  # a broken installation may raise anything
            reasons.append(f"{package} does not import: {one_line(str(error))}{advice(error)}")
            continue
        version = str(getattr(found, "__version__", "") or "unknown")
        if package == "tflite_runtime":
            version = f"tflite-runtime {version}"
        if reason := _fault_of(module):
            reasons.append(f"{package} {version.rpartition(' ')[2]} does not work: {reason}")
            continue
        return Runtime(module, version)
    raise Unavailable("; ".join(reasons) or _NOT_INSTALLED)


def _fault_of(module: ModuleType) -> str:
    """Why a runtime cannot make an interpreter; empty if it can."""
    try:
        module.Interpreter(model_content=_SMALLEST).allocate_tensors()
    except SystemError as error:
        if int(np.__version__.partition(".")[0]) >= 2:
            return (
                f"it was built for numpy 1, and here is numpy {np.__version__}; "
                "run: pip install 'numpy<2'"
            )
        return one_line(str(error))
    except Exception as error:
        return one_line(str(error)) + advice(error)
    return ""


def delegate_of(options: Mapping[str, str]) -> Optional[Delegate]:
    told = _delegate_options(options["delegate_options"]) if "delegate_options" in options else {}
    library = options.get("delegate", "")
    if "delegate" not in options:
        if told:
            raise BadRequest("option 'delegate_options' needs option 'delegate'")
        return None
    if not library or (os.sep in library and not os.path.isabs(library)):
        raise BadRequest(
            f"option 'delegate' is the absolute path of a library on the board, not '{library}'"
        )
    return Delegate(library, told)


def _delegate_options(text: str) -> dict[str, str]:
    """``key:value,key:value`` as a dictionary."""
    options: dict[str, str] = {}
    for part in text.split(","):
        match = _DELEGATE_OPTION.fullmatch(part)
        if match is None or match[1] in options:
            raise BadRequest(
                f"option 'delegate_options' is key:value,key:value with each key once; '{part}' is "
                "not like that"
            )
        options[match[1]] = match[2]
    return options
