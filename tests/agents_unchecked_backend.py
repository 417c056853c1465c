"""The real runtimes without the check of what they load, for tests of the sandbox alone: the
format `unchecked` is ONNX that nobody has looked at. Loaded through HURRICANE_BACKENDS."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hurricane.agents.backends import onnxruntime_cpu, openvino_cpu
from hurricane.agents.backends.base import Availability, Context, Loaded, Session, TargetInfo

CHECKS = {"unchecked": lambda content: None}
_REAL = {"onnxruntime": onnxruntime_cpu, "openvino": openvino_cpu}


def _name(runtime: str) -> str:
    return f"cpu-unchecked-{runtime}-fp32"


def targets(context: Context) -> list[TargetInfo]:
    found = (target for real in _REAL.values() for target in real.targets(context))
    return [
        dataclasses.replace(target, name=_name(target.runtime), formats=("unchecked",))
        for target in found
        if target.availability == Availability.AVAILABLE and target.precision == "fp32"
    ]


def open_target(context: Context, target: str, options: Mapping[str, str], threads: int) -> Session:
    runtime = next(name for name in _REAL if _name(name) == target)
    return Unchecked(_REAL[runtime].open_target(context, target, options, threads))


class Unchecked(Session):
    def __init__(self, real: Session) -> None:
        self._real = real

    def load(self, content: bytes, format: str) -> Loaded:
        return self._real.load(content, "onnx")
