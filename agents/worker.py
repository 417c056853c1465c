"""The child process that measures; its arguments: PARENT_PID HEARTBEAT_FD CHANNEL_FD USER.

It holds one session of one backend, in a sandbox, and may crash, hang or be killed at any moment.
It gets requests, and each artefact when it needs it, over a `Channel`, and answers there. What it
is working on stands in a small shared memory (`Heartbeat`), which its parent polls, so that
nothing has to be sent, and no process woken, while calls are timed.
"""

from __future__ import annotations

import contextlib
import gc
import math
import mmap
import os
import random
import signal
import socket
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from types import ModuleType
from typing import Any, Callable, Optional

import numpy as np

from .backends import load_backend
from .backends.base import Context, Loaded, Sample, Session, one_line
from .channel import Channel, ChannelClosed
from .conditions import BUSY_LIMIT, STEAL_LIMIT, Conditions, since
from .errors import (
    AgentError,
    BadRequest,
    BoardNotReady,
    DeviceLost,
    Internal,
    OutOfMemory,
    RuntimeCrashed,
    TimedOut,
)
from .formats import checker_of
from .results import Protocol
from .sandbox import Needs, advice, become, enter, limit_memory
from .sandbox.kernel import PR_SET_PDEATHSIG, prctl
from .telemetry import turn_off_telemetry

Fetch = Callable[[str], bytes]
"""Gives the content of an artefact, by its digest."""
Check = Callable[[bytes], None]
"""Refuses an artefact that is not what its format says; see `formats`."""

MAX_OUTPUT_BYTES = 64 * 1024 * 1024 - 64 * 1024
"""Of the outputs of a graph; a message to the caller holds so much, with names."""
STEP_LOAD = 1
STEP_MEASURE = 2
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
    wall_ms: array[float] = field(default_factory=lambda: array("d"))
    device_ms: array[float] = field(default_factory=lambda: array("d"))
    error: Optional[AgentError] = None
    load_ms: float = 0.0
    first_call_ms: float = 0.0
    compute_unit: str = ""
    flags: tuple[str, ...] = ()

    def add(self, samples: Sequence[Sample]) -> None:
        """Takes the samples of a visit; device times are kept where all calls have one."""
        self.wall_ms.extend(sample.wall_ms for sample in samples)
        self.device_ms.extend(s.device_ms for s in samples if s.device_ms is not None)

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
    """Measures batches on one session; keeps graphs loaded between them where asked.

    Args:
        session: opened.
        heartbeat: told what is in work.
        fetch: gives artefacts when they are loaded.
        checks: of formats that only this backend knows.
    """

    def __init__(
        self,
        session: Session,
        heartbeat: Heartbeat,
        fetch: Fetch,
        checks: Optional[Mapping[str, Check]] = None,
    ) -> None:
        self._session = session
        self._heartbeat = heartbeat
        self._fetch = fetch
        self._checks = checks or {}
        self._kept: dict[str, _Graph] = {}
        self._renewal_due_ms = -math.inf

    def measure(
        self, artifacts: Sequence[str], format: str, protocol: Protocol, resident: bool
    ) -> dict[str, Any]:
        """Measures a batch as the protocol says.

        Args:
            artifacts: digests.

        Returns:
            ``conditions``, ``results``, one for each artefact (see `_result_of`), and
            ``elapsed_ms``.

        Raises:
            _Lost: the device went away while an artefact was in work.
        """
        self._session.begin(protocol.seed)
        started_ms = self._session.elapsed_ms()
        records = [_Record() for _ in artifacts]
        events = self._session.conditions().throttle_events  # loading heats up too
        self._drop_all_but(set(artifacts) if resident else set())
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
        return {
            "conditions": _conditions_of(before, after),
            "results": [_result_of(*one) for one in zip(artifacts, records)],
            "elapsed_ms": elapsed_ms,
        }

    def run(
        self, artifact: str, format: str, inputs: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], str]:
        """Outputs for given inputs, and where they were computed.

        Raises:
            BadRequest: the outputs are too large to be sent.
        """
        self._heartbeat.beat(STEP_LOAD, 0, 0, 1)
        kept = self._kept.get(artifact)
        if kept is None:
            loaded = self._session.load(self._content(artifact, format), format)
        else:
            loaded = kept.loaded
        try:
            outputs = {name: np.asarray(value) for name, value in loaded.outputs(inputs).items()}
            size = sum(array.nbytes for array in outputs.values())
            if size > MAX_OUTPUT_BYTES:
                raise BadRequest(f"the outputs take {size} bytes; at most {MAX_OUTPUT_BYTES}")
            return outputs, loaded.compute_unit
        finally:
            if kept is None:
                _close(loaded)
            self._heartbeat.clear()

    def close(self) -> None:
        """Frees every graph."""
        self._drop_all_but(set())

    def _load_all(
        self,
        artifacts: Sequence[str],
        records: Sequence[_Record],
        format: str,
        protocol: Protocol,
    ) -> None:
        wanted = iter([artifact for artifact in artifacts if artifact not in self._kept])
        self._expect(islice(wanted, self._session.ahead), format)
        for index, (artifact, record) in enumerate(zip(artifacts, records)):
            self._heartbeat.beat(STEP_LOAD, index, index, len(artifacts))
            with _failure_of(record, index):
                graph = self._kept.get(artifact)
                if graph is None:
                    graph = self._load(artifact, format, protocol)
                    self._kept[artifact] = graph
                record.graph = graph
                record.note(graph)
            if self._session.ahead:
                self._expect(islice(wanted, 1), format)

    def _expect(self, artifacts: Iterable[str], format: str) -> None:
        """Tells the session of artefacts that it is about to load."""
        for artifact in artifacts:
            with contextlib.suppress(AgentError):  # loading it says what is wrong
                self._session.expect(self._content(artifact, format), format)

    def _make_rounds(
        self,
        artifacts: Sequence[str],
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
                        record.add(self._visit(graph.loaded, protocol))
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

    def _content(self, artifact: str, format: str) -> bytes:
        """The artefact, if it is what its format says."""
        check = checker_of(format) or self._checks.get(format)
        if check is None:
            raise BadRequest(f"nothing here checks artefacts of the format '{format}'")
        content = self._fetch(artifact)
        check(content)
        return content

    def _load(self, artifact: str, format: str, protocol: Protocol) -> _Graph:
        content = self._content(artifact, format)
        started_ms = self._session.elapsed_ms()
        loaded = self._session.load(content, format)
        del content
        load_ms = self._session.elapsed_ms() - started_ms
        try:
            first_call_ms = 0.0
            if self._session.timed and (self._session.warms_up or not protocol.rounds):
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
    return RuntimeCrashed(f"{type(error).__name__}: {one_line(str(error))}{advice(error)}")


@contextlib.contextmanager
def _failure_of(record: _Record, index: int) -> Iterator[None]:
    try:
        yield
    except DeviceLost as error:
        raise _Lost(index, error) from error
    except BoardNotReady:  # so it is for all graphs
        raise
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


def _conditions_of(before: Conditions, after: Conditions) -> dict[str, Any]:
    """What the device was like around a batch's timed calls, as JSON."""
    flags = {
        "throttled": after.throttle_events > before.throttle_events,
        "steal": after.steal_share > STEAL_LIMIT,
        "busy": after.busy_share > BUSY_LIMIT,
        "unwatched": after.interference_unwatched,
    }
    return {
        "before": asdict(before),
        "after": asdict(after),
        "flags": [flag for flag, holds in flags.items() if holds],
    }


def _result_of(sha256: str, record: _Record) -> dict[str, Any]:
    """What is known of an artefact: JSON, but for the arrays ``wall_ms`` and ``device_ms``."""
    if record.error is not None:
        return {"sha256": sha256, "error": error_to_json(record.error)}
    device_ms = np.array(record.device_ms)
    return {
        "sha256": sha256,
        "wall_ms": np.array(record.wall_ms),
        "device_ms": device_ms if len(device_ms) == len(record.wall_ms) else np.empty(0),
        "load_ms": record.load_ms,
        "first_call_ms": record.first_call_ms,
        "compute_unit": record.compute_unit,
        "flags": list(dict.fromkeys(record.flags)),
    }


def error_to_json(error: AgentError) -> dict[str, Any]:
    """An error as it goes from the child to its parent."""
    return {"kind": int(error.kind), "message": one_line(str(error), 2000)}


class _Server:
    """Answers the parent's requests, one after the other."""

    def __init__(self, channel: Channel, heartbeat: Heartbeat) -> None:
        self._channel = channel
        self._heartbeat = heartbeat
        self._backend: Optional[ModuleType] = None
        self._isolation: dict[str, Any] = {}
        self._session: Optional[Session] = None
        self._bench: Optional[Bench] = None

    def serve(self) -> None:
        """Until the channel is closed, or a device is lost."""
        while True:
            message = self._channel.receive()
            assert message is not None
            try:
                self._answer(message.header, message.arrays)
            except ChannelClosed:
                raise
            except _Lost as error:
                self._channel.send({"lost": error.index, "error": error_to_json(error.error)})
                return
            except Exception as error:
                self._channel.send({"error": error_to_json(as_agent_error(error))})

    def close(self) -> None:
        """Frees the graphs and the target."""
        if self._bench is not None:
            self._bench.close()
        if self._session is not None:
            with contextlib.suppress(Exception):
                self._session.close()

    def _answer(self, request: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        step = request["op"]
        if step == "targets":
            context = _context(request)
            targets = self._enter(request["backend"], context).targets(context)
            answer = {"targets": [asdict(target) for target in targets]}
            self._channel.send({**answer, "isolation": self._isolation})
        elif step == "open":
            self._open(request)
            self._channel.send({"opened": True})
        elif step == "batch":
            self._measure(request)
        elif step == "run":
            assert self._bench is not None
            outputs, unit = self._bench.run(request["artifact"], request["format"], arrays)
            self._channel.send({"compute_unit": unit}, outputs)
        else:
            raise BadRequest(f"the worker knows no '{step}'")

    def _open(self, request: dict[str, Any]) -> None:
        context = _context(request)
        backend = self._enter(request["backend"], context)
        session: Session = backend.open_target(
            context, request["target"], request["options"], request["threads"]
        )
        self._session = session
        checks = getattr(backend, "CHECKS", None)
        self._bench = Bench(session, self._heartbeat, self._fetch, checks)
        limit_memory(_memory_bytes())

    def _measure(self, request: dict[str, Any]) -> None:
        assert self._bench is not None
        protocol = Protocol(**request["protocol"])
        measured = self._bench.measure(
            request["artifacts"], request["format"], protocol, request["resident"]
        )
        self._channel.send({"conditions": measured["conditions"]})
        # One at a time, and only as fast as the caller takes them.
        for result in measured["results"]:
            arrays = {name: result.pop(name) for name in ("wall_ms", "device_ms") if name in result}
            self._channel.send({"result": result}, arrays)
        self._channel.send({"done": True, "elapsed_ms": measured["elapsed_ms"]})

    def _fetch(self, artifact: str) -> bytes:
        self._channel.send({"need": artifact})
        message = self._channel.receive()
        if message is None or message.descriptor is None:
            raise Internal("the agent did not hand over the artefact")
        with os.fdopen(message.descriptor, "rb") as file:
            return file.read()

    def _enter(self, name: str, context: Context) -> ModuleType:
        """Imports the backend and closes the sandbox that it needs."""
        if self._backend is None:
            backend = load_backend(name)
            files = [path for path in context.simulate if os.path.isabs(path)]
            files += context.read
            needs = _needs_of(backend, context)
            self._isolation = asdict(enter(needs, [*_code_of(backend), *files]))
            self._backend = backend  # never without the sandbox
        return self._backend


def _needs_of(backend: ModuleType, context: Context) -> Needs:
    """What the sandbox leaves open for a backend."""
    if hasattr(backend, "needs"):
        return backend.needs(context)
    return getattr(backend, "NEEDS", Needs())


def _code_of(module: ModuleType) -> list[str]:
    """Where the code of a backend lies."""
    package = sys.modules.get(module.__name__.partition(".")[0])
    own = [module.__file__] if module.__file__ else []
    return [*own, *getattr(package, "__path__", ())]


def _memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _context(request: dict[str, Any]) -> Context:
    fields = dict(request["context"])
    fields["simulate"], fields["read"] = tuple(fields["simulate"]), tuple(fields["read"])
    return Context(**fields)


def _die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent dies, even by kill -9."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _be_the_first_to_go() -> None:
    """If memory runs out, this process is to go, and not the agent or its neighbours."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def main() -> None:
    """Serves requests until the channel is closed or a device is lost."""
    parent, heartbeat, descriptor = (int(word) for word in sys.argv[1:4])
    # Runtimes print what they like: it goes where errors go.
    os.dup2(2, 1)
    turn_off_telemetry()
    channel = Channel(socket.socket(fileno=descriptor))
    server = _Server(channel, Heartbeat(heartbeat))
    os.close(heartbeat)
    _be_the_first_to_go()
    try:
        become(sys.argv[4])
        _die_with_parent(parent)
        server.serve()
    except BadRequest as error:
        channel.send({"error": error_to_json(error)})
    except ChannelClosed:
        server.close()
    # A runtime's clean-up at exit may crash or hang, and there is nothing left to save.
    os._exit(0)


if __name__ == "__main__":
    main()
