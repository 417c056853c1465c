"""The child process that measures: ``python -m hurricane.agents.worker PARENT_PID HEARTBEAT_FD``.

It holds one session of one backend, and may crash, hang or be killed at any moment. It reads
requests from stdin and answers on stdout, one JSON object a line. What it is working on stands
in a small shared memory (`Heartbeat`), which its parent polls, so that nothing has to be sent,
and no process woken, while calls are timed.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import json
import math
import mmap
import os
import random
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Optional

import numpy as np

from .backends import load_backend
from .backends.base import Context, Loaded, Sample, Session, one_line
from .conditions import Conditions, since
from .errors import (
    AgentError,
    BadRequest,
    DeviceLost,
    Internal,
    OutOfMemory,
    RuntimeCrashed,
    TimedOut,
)
from .results import Protocol

STEP_LOAD = 1
STEP_MEASURE = 2
# A hypervisor, or other processes, that take more than these shares of the cores spoil timings.
_STEAL_LIMIT = 0.05
_BUSY_LIMIT = 0.10
_RENEWAL_SHARE = 1 / 16  # of the time between two of them that placing memory anew may take


class Heartbeat:
    """Which artefact is in work: beats, step, index, done, total (five 64-bit integers)."""

    SIZE = 40
    _LAYOUT = struct.Struct("=5q")

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, self.SIZE)
        self._beats = 0

    def beat(self, step: int, index: int, done: int, total: int) -> None:
        """Says that work on an artefact begins."""
        self._beats += 1
        self._LAYOUT.pack_into(self._memory, 0, self._beats, step, index, done, total)

    def read(self) -> tuple[int, int, int, int, int]:
        """The parent's view: (beats, step, index, done, total); step 0: nothing in work."""
        return self._LAYOUT.unpack_from(self._memory, 0)

    def clear(self) -> None:
        """Says that nothing is in work."""
        self.beat(0, -1, 0, 0)

    def close(self) -> None:
        """Frees the memory."""
        self._memory.close()


@dataclass(frozen=True)
class Artifact:
    """A file to measure, and its digest."""

    sha256: str
    path: str


@dataclass
class _Graph:
    """A loaded artefact and what its loading took."""

    loaded: Loaded
    load_ms: float
    first_call_ms: float


@dataclass
class _Record:
    """What is known so far of one artefact in the batch."""

    graph: Optional[_Graph] = None
    samples: list[Sample] = field(default_factory=list)
    error: Optional[AgentError] = None
    load_ms: float = 0.0
    first_call_ms: float = 0.0
    compute_unit: str = ""
    flags: tuple[str, ...] = ()

    def note(self, graph: _Graph) -> None:
        """Keeps what outlives the graph; load times are those of the first loading."""
        if not self.load_ms:
            self.load_ms, self.first_call_ms = graph.load_ms, graph.first_call_ms
        self.compute_unit = graph.loaded.compute_unit
        self.flags = tuple(dict.fromkeys(self.flags + tuple(graph.loaded.flags)))


class _Lost(Exception):
    """The device is gone: the parent starts a new child without this artefact."""

    def __init__(self, index: int, error: DeviceLost) -> None:
        super().__init__(str(error))
        self.index = index
        self.error = error


class Bench:
    """Measures batches on one session; keeps graphs loaded between them where asked."""

    def __init__(self, session: Session, heartbeat: Heartbeat) -> None:
        self._session = session
        self._heartbeat = heartbeat
        self._kept: dict[str, _Graph] = {}
        self._renewal_due_ms = -math.inf

    def measure(
        self, artifacts: Sequence[Artifact], format: str, protocol: Protocol, resident: bool
    ) -> dict[str, Any]:
        """Measures a batch as the protocol says; the result is JSON (see `_result_of`).

        Raises:
            _Lost: the device went away while an artefact was in work.
        """
        self._session.begin(protocol.seed)
        started_ms = self._session.elapsed_ms()
        records = [_Record() for _ in artifacts]
        events = self._session.conditions().throttle_events  # loading heats up too
        self._drop_all_but({artifact.sha256 for artifact in artifacts} if resident else set())
        if resident:
            self._load_all(artifacts, records, format, protocol)
        before = replace(self._session.conditions(), throttle_events=events)
        with _no_garbage_collection():
            self._make_rounds(artifacts, records, format, protocol, resident)
        after = since(before, self._session.conditions())
        elapsed_ms = self._session.elapsed_ms() - started_ms
        self._heartbeat.clear()
        if not protocol.keep_loaded:
            self._drop_all_but(set())
        results = [
            _result_of(artifact.sha256, record, before, after)
            for artifact, record in zip(artifacts, records)
        ]
        return {"results": results, "elapsed_ms": elapsed_ms}

    def run(
        self, artifact: Artifact, format: str, inputs: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], str]:
        """Outputs for given inputs, and where they were computed."""
        self._heartbeat.beat(STEP_LOAD, 0, 0, 1)
        kept = self._kept.get(artifact.sha256)
        loaded = kept.loaded if kept else self._session.load(artifact.path, format)
        try:
            return loaded.outputs(inputs), loaded.compute_unit
        finally:
            if kept is None:
                _close(loaded)
            self._heartbeat.clear()

    def close(self) -> None:
        """Frees every graph."""
        self._drop_all_but(set())

    def _load_all(
        self,
        artifacts: Sequence[Artifact],
        records: Sequence[_Record],
        format: str,
        protocol: Protocol,
    ) -> None:
        for index, (artifact, record) in enumerate(zip(artifacts, records)):
            self._heartbeat.beat(STEP_LOAD, index, index, len(artifacts))
            with _failure_of(record, index):
                graph = self._kept.get(artifact.sha256)
                if graph is None:
                    graph = self._load(artifact, format, protocol)
                    self._kept[artifact.sha256] = graph
                record.graph = graph
                record.note(graph)

    def _make_rounds(
        self,
        artifacts: Sequence[Artifact],
        records: Sequence[_Record],
        format: str,
        protocol: Protocol,
        resident: bool,
    ) -> None:
        # The order of a pass depends on the seed and the size of the batch alone, not on
        # which artefacts failed.
        shuffle = random.Random(protocol.seed).shuffle
        order = list(range(len(artifacts)))
        done, total = 0, protocol.rounds * len(artifacts)
        for number in range(protocol.rounds):
            if number:
                self._renew()
            shuffle(order)
            for index in order:
                done += 1
                record = records[index]
                if record.error is not None:
                    continue
                with _failure_of(record, index):
                    if resident:
                        graph = record.graph
                        assert graph is not None
                    else:
                        self._heartbeat.beat(STEP_MEASURE, index, done - 1, total)
                        graph = self._load(artifacts[index], format, protocol)
                        record.note(graph)
                    self._heartbeat.beat(STEP_MEASURE, index, done - 1, total)
                    try:
                        record.samples += self._visit(graph.loaded, protocol)
                        record.note(graph)
                    finally:
                        if not resident:
                            _close(graph.loaded)

    def _renew(self) -> None:
        started_ms = self._session.elapsed_ms()
        if started_ms >= self._renewal_due_ms:
            self._session.renew()
            ended_ms = self._session.elapsed_ms()
            self._renewal_due_ms = ended_ms + (ended_ms - started_ms) / _RENEWAL_SHARE

    def _load(self, artifact: Artifact, format: str, protocol: Protocol) -> _Graph:
        started_ms = self._session.elapsed_ms()
        loaded = self._session.load(artifact.path, format)
        load_ms = self._session.elapsed_ms() - started_ms
        try:
            first_call_ms = loaded.timed_calls(1)[0].wall_ms
            if protocol.warmup_calls > 1:
                loaded.timed_calls(protocol.warmup_calls - 1)
            self._check_time(started_ms, protocol, "loading")
        except BaseException:
            _close(loaded)
            raise
        return _Graph(loaded, load_ms, first_call_ms)

    def _visit(self, loaded: Loaded, protocol: Protocol) -> list[Sample]:
        started_ms = self._session.elapsed_ms()
        samples = loaded.timed_calls(protocol.calls_per_visit)
        self._check_time(started_ms, protocol, "a visit")
        if len(samples) != protocol.calls_per_visit or not all(
            math.isfinite(sample.wall_ms) and sample.wall_ms > 0 for sample in samples
        ):
            raise Internal("the backend returned no valid time for a call")
        return samples

    def _check_time(self, started_ms: float, protocol: Protocol, what: str) -> None:
        # On the device's clock: a simulated hang passes in no time at all. A real one is ended
        # by the parent, which polls the heartbeat.
        took_s = (self._session.elapsed_ms() - started_ms) / 1e3
        if took_s > protocol.artifact_timeout_s:
            raise TimedOut(f"{what} took longer than {protocol.artifact_timeout_s:g} s")

    def _drop_all_but(self, digests: set[str]) -> None:
        for digest in [digest for digest in self._kept if digest not in digests]:
            _close(self._kept.pop(digest).loaded)


def _close(loaded: Loaded) -> None:
    # What cannot be freed now is freed with this process.
    with contextlib.suppress(Exception):
        loaded.close()


def as_agent_error(error: BaseException) -> AgentError:
    """A typed error for whatever a backend raised."""
    if isinstance(error, AgentError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory(f"out of memory: {one_line(str(error)) or 'no details'}")
    return RuntimeCrashed(f"{type(error).__name__}: {one_line(str(error))}")


@contextlib.contextmanager
def _failure_of(record: _Record, index: int) -> Iterator[None]:
    try:
        yield
    except DeviceLost as error:
        raise _Lost(index, error) from error
    except Exception as error:
        record.error = as_agent_error(error)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _result_of(
    sha256: str, record: _Record, before: Conditions, after: Conditions
) -> dict[str, Any]:
    if record.error is not None:
        return {"sha256": sha256, "error": error_to_json(record.error)}
    device_ms = [sample.device_ms for sample in record.samples]
    flags = list(record.flags)
    if after.throttle_events > before.throttle_events:
        flags.append("throttled")
    if after.steal_share > _STEAL_LIMIT:
        flags.append("steal")
    if after.busy_share > _BUSY_LIMIT:
        flags.append("busy")
    return {
        "sha256": sha256,
        "wall_ms": [sample.wall_ms for sample in record.samples],
        "device_ms": [] if None in device_ms else device_ms,
        "load_ms": record.load_ms,
        "first_call_ms": record.first_call_ms,
        "compute_unit": record.compute_unit,
        "flags": list(dict.fromkeys(flags)),
        "before": asdict(before),
        "after": asdict(after),
    }


def error_to_json(error: AgentError) -> dict[str, Any]:
    """An error as it goes from the child to its parent."""
    return {"kind": int(error.kind), "message": str(error)}


def tensors_to_json(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Named arrays as JSON, little endian."""
    encoded = {}
    for name, value in tensors.items():
        array = np.ascontiguousarray(value)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        encoded[name] = {
            "dtype": array.dtype.name,
            "shape": list(np.shape(value)),
            "data": base64.b64encode(array.tobytes()).decode("ascii"),
        }
    return encoded


def tensors_from_json(encoded: dict[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `tensors_to_json`."""
    return {
        name: np.frombuffer(
            base64.b64decode(value["data"]), np.dtype(value["dtype"]).newbyteorder("<")
        )
        .astype(np.dtype(value["dtype"]))
        .reshape(value["shape"])
        for name, value in encoded.items()
    }


def _answer(request: dict[str, Any], state: dict[str, Any], heartbeat: Heartbeat) -> dict[str, Any]:
    step = request["op"]
    if step == "targets":
        context = _context(request)
        found = load_backend(request["backend"]).targets(context)
        return {"targets": [asdict(target) for target in found]}
    if step == "open":
        state["session"] = load_backend(request["backend"]).open_target(
            _context(request), request["target"], request["options"], request["threads"]
        )
        state["bench"] = Bench(state["session"], heartbeat)
        return {"opened": True}
    bench: Bench = state["bench"]
    if step == "batch":
        artifacts = [Artifact(**artifact) for artifact in request["artifacts"]]
        protocol = Protocol(**request["protocol"])
        return bench.measure(artifacts, request["format"], protocol, request["resident"])
    if step == "run":
        outputs, unit = bench.run(
            Artifact(**request["artifact"]), request["format"], tensors_from_json(request["inputs"])
        )
        return {"outputs": tensors_to_json(outputs), "compute_unit": unit}
    raise BadRequest(f"the worker knows no '{step}'")


def _context(request: dict[str, Any]) -> Context:
    fields = dict(request["context"])
    fields["simulate"] = tuple(fields["simulate"])
    return Context(**fields)


def _die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent dies, even by kill -9."""
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # If memory runs out, this process is to go, and not the agent or its neighbours.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def main() -> None:
    """Serves requests until stdin ends or a device is lost."""
    parent, descriptor = (int(word) for word in sys.argv[1:3])
    _die_with_parent(parent)
    # Runtimes print what they like: keep the real channels to ourselves.
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    heartbeat = Heartbeat(descriptor)
    state: dict[str, Any] = {}
    lost = False
    for line in requests:
        try:
            answer = _answer(json.loads(line), state, heartbeat)
        except _Lost as error:
            answer = {"lost": error.index, "error": error_to_json(error.error)}
            lost = True
        except Exception as error:
            answer = {"error": error_to_json(as_agent_error(error))}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if lost:
            break
    if "session" in state and not lost:
        state["bench"].close()
        with contextlib.suppress(Exception):
            state["session"].close()
    # A runtime's clean-up at exit may crash or hang, and there is nothing left to save.
    os._exit(0)


if __name__ == "__main__":
    main()
