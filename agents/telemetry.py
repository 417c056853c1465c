"""Runtimes that report to their makers are told not to: it takes time, and leaves files behind."""

from __future__ import annotations

import os
import sys


def turn_off_telemetry() -> None:
    """To be called before a runtime is imported; its children have it from the environment.

    onnxruntime from 1.32 on looks a host up, and leaves a file in the temporary folder and a
    database in the user's cache folder. OpenVINO leaves a number of the user's in the home folder.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO has no setting of its own; where this package cannot be imported it goes without.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
