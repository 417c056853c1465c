"""A backend for tests that fails on purpose, loaded through HURRICANE_BACKENDS as an operator's
own would be. An artefact is a JSON object that says what happens:

    {"ms": 1.0, "load": FAULT, "visit": FAULT, "at_visit": 0, "log": PATH, "gate": PATH,
     "gate_at": -1, "salt": 0}

FAULT is one of crash, hang, kill, oom, unsupported, lost, virtual-hang, exception, nan. `log`
gets a line for every load; from visit `gate_at` on (-1: from the first call after loading), calls
wait until the file `gate` is there.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hurricane.agents.backends.base import (
    Availability,
    Context,
    Loaded,
    Needs,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    check_inputs,
    check_options,
)
from hurricane.agents.errors import BadRequest, DeviceLost, UnsupportedOperator

RESIDENT = "dsp-faulty-fp32"
ONE_AT_A_TIME = "npu-faulty-fp32"
BROKEN = "vpu-faulty-fp32"
_OPTIONS = ("refuse", "pid_file", "killed_at_open")
# Tests watch and steer what happens here through files.
NEEDS = Needs(write=(os.environ.get("HURRICANE_BACKEND_FOLDER", ""),), file_bytes=1 << 20)


def check(content: bytes) -> None:
    try:
        json.loads(content)
    except ValueError as error:
        raise BadRequest(f"not a faulty artefact: {error}") from error


CHECKS = {"faulty": check}


def targets(context: Context) -> list[TargetInfo]:
    def target(name: str, processor: str, **other: Any) -> TargetInfo:
        return TargetInfo(
            name=name,
            device=context.device_name,
            processor=processor,
            runtime="faulty",
            runtime_version="1",
            precision="fp32",
            formats=("faulty",),
            options=_OPTIONS,
            max_threads=2,
            **{"availability": Availability.SIMULATED, **other},
        )

    return [
        target(RESIDENT, "dsp", device_time=True),
        target(ONE_AT_A_TIME, "npu", resident=False),
        target(
            BROKEN, "vpu", availability=Availability.UNAVAILABLE, reason="no stick; plug one in"
        ),
    ]


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> FaultySession:
    check_options(target, _OPTIONS, options)
    if options.get("refuse"):
        raise DeviceLost("the device does not answer")
    if options.get("killed_at_open"):
        # As often as the file says, and no more.
        left = Path(options["killed_at_open"])
        count = int(left.read_text())
        left.write_text(str(count - 1))
        if count > 0:
            os.kill(os.getpid(), signal.SIGKILL)
    if options.get("pid_file"):
        Path(options["pid_file"]).write_text(str(os.getpid()))
    return FaultySession(device_time=target == RESIDENT)


class FaultySession(Session):
    def __init__(self, device_time: bool) -> None:
        self.now_ms = 0.0
        self.device_time = device_time

    def elapsed_ms(self) -> float:
        return self.now_ms

    def load(self, content: bytes, format: str) -> FaultyGraph:
        wanted = json.loads(content)
        if "log" in wanted:
            with open(wanted["log"], "a") as file:
                file.write("load\n")
        self.misbehave(wanted.get("load"))
        self.now_ms += 7.0
        return FaultyGraph(self, wanted)

    def misbehave(self, fault: str | None) -> None:
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "hang":
            time.sleep(3600)
        elif fault == "virtual-hang":
            self.now_ms += 1e9
        elif fault == "oom":
            raise MemoryError("9 GiB")
        elif fault == "unsupported":
            raise UnsupportedOperator("no kernel for Nonsense")
        elif fault == "lost":
            raise DeviceLost("the device went away")
        elif fault == "exception-with-path":
            raise ValueError("cannot open '/home/me/my things/secret.bin'")
        elif fault == "exception":
            raise ValueError("something\nunforeseen")


class FaultyGraph(Loaded):
    compute_unit = "FAULTY"
    flags = ("fallback:cpu",)

    def __init__(self, session: FaultySession, content: dict[str, Any]) -> None:
        self._session = session
        self._content = content
        self._visits = 0

    def timed_calls(self, count: int) -> list[Sample]:
        content, session = self._content, self._session
        # The first call belongs to loading.
        visit, self._visits = self._visits - 1, self._visits + 1
        gate = Path(content["gate"]) if "gate" in content else None
        while gate is not None and visit >= content.get("gate_at", -1) and not gate.exists():
            time.sleep(0.01)
        fault = content.get("visit") if visit == content.get("at_visit", 0) else None
        session.misbehave(fault)
        ms = float("nan") if fault == "nan" else float(content.get("ms", 1.0))
        session.now_ms += ms * count
        return [Sample(ms, ms / 2 if session.device_time else None)] * count

    def inputs(self) -> tuple[TensorInfo, ...]:
        return (TensorInfo("x", "float32", (2, 3)),)

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_inputs(self.inputs(), inputs)
        self._session.misbehave(self._content.get("run"))
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        self._content = {}
