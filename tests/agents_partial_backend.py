"""onnxruntime as a device that lacks something, loaded through HURRICANE_BACKENDS as an operator's
own backend would be. An option names a fault, its value the operator of the graphs that have it:

    crash, hang, unsupported, lost      while it is loaded
    refuse, gone                        when outputs are asked for: an exception; the worker dies
    nan, shape, name                    in the outputs
    fallback                            a flag, and another compute unit
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Mapping

import numpy as np

from hurricane.agents.backends import onnxruntime_cpu
from hurricane.agents.backends.base import (
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    check_options,
)
from hurricane.agents.errors import DeviceLost, RuntimeCrashed, UnsupportedOperator
from hurricane.agents.formats.onnx_file import operators_of

TARGET = "npu-partial-fp32"
_REAL = "cpu-onnxruntime-fp32"
_FAULTS = (
    "crash", "hang", "unsupported", "lost", "refuse", "gone", "nan", "shape", "name", "fallback",
)  # fmt: skip


def targets(context: Context) -> list[TargetInfo]:
    (real,) = (t for t in onnxruntime_cpu.targets(context) if t.name == _REAL)
    partial = dataclasses.replace(
        real, name=TARGET, processor="npu", runtime="partial", options=_FAULTS
    )
    return [partial]


def open_target(context: Context, target: str, options: Mapping[str, str], threads: int) -> Session:
    check_options(target, _FAULTS, options)
    return PartialSession(onnxruntime_cpu.open_target(context, _REAL, {}, threads), options)


class PartialSession(Session):
    def __init__(self, real: Session, options: Mapping[str, str]) -> None:
        self._real = real
        self._options = options

    def load(self, content: bytes, format: str) -> Loaded:
        operators = operators_of(content)
        faults = {fault for fault, op_type in self._options.items() if op_type in operators}
        if "crash" in faults:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in faults:
            time.sleep(3600)
        if "unsupported" in faults:
            raise UnsupportedOperator(f"no kernel for {self._options['unsupported']}")
        if "lost" in faults:
            raise DeviceLost("the stick was pulled out")
        return PartialGraph(self._real.load(content, format), faults)


class PartialGraph(Loaded):
    def __init__(self, real: Loaded, faults: set[str]) -> None:
        self._real = real
        self._faults = faults
        self.compute_unit = "CPU" if "fallback" in faults else "NPU"
        self.flags = ("fallback:cpu",) if "fallback" in faults else ()

    def timed_calls(self, count: int) -> list[Sample]:
        return self._real.timed_calls(count)

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._real.inputs()

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "refuse" in self._faults:
            raise RuntimeCrashed("the runtime says no")
        if "gone" in self._faults:
            os.kill(os.getpid(), signal.SIGSEGV)
        outputs = self._real.outputs(inputs)
        for name, values in list(outputs.items()):
            if "nan" in self._faults:
                values.flat[0] = np.nan
            if "shape" in self._faults:
                outputs[name] = values[..., :-1]
            if "name" in self._faults:
                outputs["another"] = outputs.pop(name)
        return outputs

    def close(self) -> None:
        self._real.close()
