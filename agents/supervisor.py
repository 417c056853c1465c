"""Runs worker processes: starts, watches and kills them, and carries a batch past their death."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from .backends import backend_names
from .backends.base import Availability, Context, TargetInfo
from .conditions import Conditions
from .errors import (
    AgentError,
    Busy,
    DeviceLost,
    Internal,
    OutOfMemory,
    RuntimeCrashed,
    TimedOut,
    error_of,
)
from .results import (
    Activity,
    ArtifactResult,
    Event,
    Finished,
    Progress,
    Protocol,
    Queued,
    summarise,
)
from .worker import (
    STEP_LOAD,
    STEP_MEASURE,
    Artifact,
    Heartbeat,
    tensors_from_json,
    tensors_to_json,
)

log = logging.getLogger(__name__)

# Importing a runtime and opening a target; a slow board takes many seconds.
OPEN_TIMEOUT_S = 120.0
# A worker that nobody uses is ended after this time.
IDLE_S = 60.0
# Requests that may wait for one processor.
MAX_WAITING = 16
_POLL_S = 0.1
_END_S = 2.0
_PROGRESS_EVERY_S = 0.25
_STDERR_LINES = 20
_STEP_NAMES = {STEP_LOAD: "load", STEP_MEASURE: "measure"}
_DOING = {STEP_LOAD: "loading", STEP_MEASURE: "measuring"}

# A child is told by the kernel to die with its parent *thread*, so every child is started by
# this one thread, which lives as long as the process.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

Cancelled = Callable[[], bool]


class RequestCancelled(Exception):
    """The caller went away; there is nobody to answer."""


class _WorkerDied(Exception):
    """The child process ended by itself."""

    def __init__(self, error: AgentError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Opening:
    """What a worker has opened; two requests with equal openings can share one."""

    backend: str
    target: str
    options: tuple[tuple[str, str], ...]
    threads: int

    @property
    def name(self) -> str:
        """The target's name for messages, with its threads."""
        return self.target if self.threads == 1 else f"{self.target}-t{self.threads}"


class Worker:
    """One child process; `call` sends a request and waits for its answer."""

    def __init__(self) -> None:
        self._answers: queue.Queue[Optional[str]] = queue.Queue()
        self._stderr: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        with tempfile.TemporaryFile() as memory:
            memory.truncate(Heartbeat.SIZE)
            self.heartbeat = Heartbeat(memory.fileno())
            self._oom_kills = _oom_kills()
            self._process = _SPAWNER.submit(_start_process, memory.fileno()).result()
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._read_answers, self._read_stderr)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    def send(self, request: Mapping[str, Any]) -> None:
        """Sends a request.

        Raises:
            _WorkerDied: there is nobody to read it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise _WorkerDied(self._cause_of_death()) from error

    def answer(self, timeout_s: float) -> Optional[dict[str, Any]]:
        """The next answer, or None if there is none within the time.

        Raises:
            _WorkerDied: the child ended instead.
        """
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if line is None:
            raise _WorkerDied(self._cause_of_death())
        return json.loads(line)

    def call(
        self, request: Mapping[str, Any], timeout_s: float, cancelled: Cancelled
    ) -> dict[str, Any]:
        """Sends a request and returns its answer.

        Raises:
            AgentError: the answer is an error, none came in time, or the child died.
            RequestCancelled: nobody waits for the answer any more.
        """
        try:
            self.send(request)
            deadline = time.monotonic() + timeout_s
            while True:
                answer = self.answer(_POLL_S)
                if answer is not None:
                    break
                if cancelled():
                    raise RequestCancelled
                if time.monotonic() > deadline:
                    raise TimedOut(f"no answer from the runtime within {timeout_s:g} s")
        except _WorkerDied as death:
            raise death.error from death
        if "error" in answer:
            raise error_of(answer["error"]["kind"], answer["error"]["message"])
        return answer

    def end(self) -> None:
        """Lets the child close its target, and kills it if it takes too long."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_S)
        self.kill()

    def kill(self) -> None:
        """Kills the child and whatever it started."""
        # Its process group outlives it where it started others.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        for thread in self._threads:
            thread.join(timeout=_END_S)
        self.heartbeat.close()

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._answers.put(line)
        self._answers.put(None)

    def _read_stderr(self) -> None:
        # Always drained, and only its end is kept: some runtimes flood it.
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                if line.strip():
                    self._stderr.append(line.strip()[:400])

    def _cause_of_death(self) -> AgentError:
        status = self._process.wait()
        self._threads[1].join(timeout=_END_S)
        how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        last_words = self._stderr[-1] if self._stderr else ""
        message = f"the runtime's process died ({how})" + (f": {last_words}" if last_words else "")
        out_of_memory = status == -signal.SIGKILL and _oom_kills() > self._oom_kills
        if out_of_memory or "bad_alloc" in last_words or last_words.startswith("MemoryError"):
            return OutOfMemory(message)
        return RuntimeCrashed(message)


def _start_process(heartbeat: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hurricane.agents.worker", str(os.getpid()), str(heartbeat)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(heartbeat,),
        encoding="utf-8",
        errors="replace",
        # A group of its own: Ctrl-C reaches the agent, which ends its children itself, and
        # whatever the child starts (adb, a vendor's tool) is killed with it.
        start_new_session=True,
    )


def _oom_kills() -> int:
    """How often the kernel killed a process for memory since boot."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def discover(context: Context) -> dict[TargetInfo, str]:
    """Every target of every backend, with the backend's name.

    Each backend is asked in a child process of its own: a runtime that dies when it is
    imported shows as an unavailable target, and costs nothing else.
    """
    names = backend_names()
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        answers = list(pool.map(lambda name: _targets_of(name, context), names))
    found: dict[TargetInfo, str] = {}
    taken: dict[str, str] = {}
    for name, targets in zip(names, answers):
        for target in targets:
            if target.name in taken:
                log.warning(
                    "%s of %s is left out: %s has it", target.name, name, taken[target.name]
                )
                continue
            taken[target.name] = name
            found[target] = name
    return found


def _targets_of(backend: str, context: Context) -> list[TargetInfo]:
    worker = Worker()
    try:
        answer = worker.call(
            {"op": "targets", "backend": backend, "context": asdict(context)},
            OPEN_TIMEOUT_S,
            lambda: False,
        )
    except AgentError as error:
        short = Path(backend).stem if backend.endswith(".py") else backend.rpartition(".")[2]
        return [
            TargetInfo(
                name=short,
                device=context.device_name,
                processor="",
                runtime="",
                runtime_version="",
                precision="",
                availability=Availability.UNAVAILABLE,
                reason=f"the backend failed when asked for its targets: {error}",
                formats=(),
            )
        ]
    finally:
        worker.end()
    return [_target_from_json(target) for target in answer["targets"]]


def _target_from_json(fields: dict[str, Any]) -> TargetInfo:
    return TargetInfo(
        **{
            **fields,
            "availability": Availability(fields["availability"]),
            "formats": tuple(fields["formats"]),
            "options": tuple(fields["options"]),
        }
    )


@dataclass(eq=False)
class Ticket:
    """A place in a processor's line, and how far its request is.

    Args:
        target: with its threads; empty where no request stands in line, but housekeeping.
        started: when its turn came, on the monotonic clock; None: it waits.
        progress: of a batch; of a run there is none.
    """

    target: str = ""
    started: Optional[float] = None
    progress: Progress = field(default_factory=lambda: Progress("", 0, 0))


class Lane:
    """One processor: requests take turns on it, and it keeps one worker between them."""

    def __init__(self, context: Context, idle_s: float = IDLE_S) -> None:
        self._context = context
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._line: collections.deque[Ticket] = collections.deque()
        self._worker: Optional[Worker] = None
        self._opening: Optional[Opening] = None
        self._timer: Optional[threading.Timer] = None

    def enter(self, target: str) -> Ticket:
        """Takes a place in the line; to be given back with `leave`.

        Raises:
            Busy: too many wait already.
        """
        ticket = Ticket(target)
        with self._changed:
            if len(self._line) > MAX_WAITING:
                raise Busy(f"{len(self._line)} requests wait for this processor; try later")
            self._line.append(ticket)
        return ticket

    def ahead(self, ticket: Ticket, wait_s: float = 0.0) -> int:
        """How many come before; waits up to `wait_s` for it to become zero."""
        deadline = time.monotonic() + wait_s
        with self._changed:
            while True:
                place = self._line.index(ticket)
                left_s = deadline - time.monotonic()
                if place == 0 and ticket.started is None:
                    ticket.started = time.monotonic()
                if place == 0 or left_s <= 0:
                    return place
                self._changed.wait(left_s)

    def leave(self, ticket: Ticket) -> None:
        """Gives the place in the line back."""
        with self._changed:
            self._line.remove(ticket)
            self._changed.notify_all()

    def requests(self) -> list[Ticket]:
        """The requests in line, in order."""
        with self._changed:
            return [ticket for ticket in self._line if ticket.target]

    def worker(self, opening: Opening, cancelled: Cancelled) -> Worker:
        """The worker that has opened a target: the one kept, or a new one.

        To be called only when it is one's turn.

        Raises:
            AgentError: the target cannot be opened.
        """
        self._stop_timer()
        if self._worker is not None and self._opening == opening and self._worker.alive():
            return self._worker
        self.end_worker()
        worker = self._worker = Worker()
        try:
            worker.call(
                {
                    "op": "open",
                    "backend": opening.backend,
                    "context": asdict(self._context),
                    "target": opening.target,
                    "options": dict(opening.options),
                    "threads": opening.threads,
                },
                OPEN_TIMEOUT_S,
                cancelled,
            )
        except BaseException:
            self.kill_worker()
            raise
        self._opening = opening
        return worker

    def keep_worker(self) -> None:
        """Leaves the worker for a following request, for a while."""
        self._stop_timer()
        self._timer = threading.Timer(self._idle_s, self._end_idle_worker)
        self._timer.daemon = True
        self._timer.start()

    def end_worker(self) -> None:
        """Ends the worker in good order."""
        self._stop_timer()
        worker, self._worker, self._opening = self._worker, None, None
        if worker is not None:
            worker.end()

    def kill_worker(self) -> None:
        """Kills the worker."""
        self._stop_timer()
        worker, self._worker, self._opening = self._worker, None, None
        if worker is not None:
            worker.kill()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_idle_worker(self) -> None:
        with self._changed:
            if self._line:
                return
            ticket = Ticket()
            self._line.append(ticket)
        try:
            self.end_worker()
        finally:
            self.leave(ticket)


def activity(lanes: Sequence[Lane]) -> Activity:
    """What an agent with these processors is busy with."""
    tickets = [ticket for lane in lanes for ticket in lane.requests()]
    running = [(t.started, t) for t in tickets if t.started is not None]
    waiting = len(tickets) - len(running)
    if not running:
        return Activity(waiting=waiting)
    started, first = min(running, key=lambda pair: pair[0])
    return Activity(
        measuring=True,
        waiting=waiting,
        target=first.target,
        **vars(first.progress),
        elapsed_s=time.monotonic() - started,
    )


def wait_for_turn(lane: Lane, ticket: Ticket, cancelled: Cancelled) -> Iterator[Queued]:
    """Waits until it is the ticket's turn; yields whenever its place changes.

    Raises:
        RequestCancelled: the caller went away.
    """
    told = 0
    while True:
        ahead = lane.ahead(ticket, _POLL_S)
        if ahead == 0:
            return
        if cancelled():
            raise RequestCancelled
        if ahead != told:
            told = ahead
            yield Queued(ahead)


def benchmark(
    lane: Lane,
    opening: Opening,
    artifacts: Sequence[Artifact],
    format: str,
    protocol: Protocol,
    resident: bool,
    cancelled: Cancelled,
) -> Iterator[Event]:
    """Measures a batch when it is its turn, and yields its events.

    An artefact that kills or blocks its worker costs that artefact: the rest of the batch is
    measured from the start by a new worker, so that no result mixes two of them.

    Raises:
        AgentError: the batch as a whole failed.
        RequestCancelled: the caller went away; the worker is dead.
    """
    ticket = lane.enter(opening.name)
    try:
        yield from wait_for_turn(lane, ticket, cancelled)
        try:
            finished = yield from _benchmark_now(
                lane, ticket, opening, artifacts, format, protocol, resident, cancelled
            )
        except BaseException:
            lane.kill_worker()
            raise
    finally:
        lane.leave(ticket)
    # Said last, with the processor free: who hears it may go away at once.
    yield finished


def _benchmark_now(
    lane: Lane,
    ticket: Ticket,
    opening: Opening,
    artifacts: Sequence[Artifact],
    format: str,
    protocol: Protocol,
    resident: bool,
    cancelled: Cancelled,
) -> Generator[Event, None, Finished]:
    remaining = list(artifacts)
    answer: dict[str, Any] = {"results": [], "elapsed_ms": 0.0}
    died_idle = False
    while remaining:
        worker = lane.worker(opening, cancelled)
        request = {
            "op": "batch",
            "artifacts": [asdict(artifact) for artifact in remaining],
            "format": format,
            "protocol": asdict(protocol),
            "resident": resident,
        }
        failure: Optional[_Failure] = None
        for outcome in _watch(worker, request, protocol, cancelled):
            if isinstance(outcome, _Failure):
                failure = outcome
            elif isinstance(outcome, Progress):
                ticket.progress = outcome
                yield outcome
            else:
                answer = outcome
        if failure is None:
            break
        lane.kill_worker()
        if failure.index is None:
            # A worker kept from before may have died meanwhile; a new one has no excuse.
            if died_idle:
                raise failure.error
            died_idle = True
            continue
        culprit = remaining.pop(failure.index)
        log.warning("%s: artefact %s: %s", opening.name, culprit.sha256[:12], failure.error)
        yield ArtifactResult(culprit.sha256, error=failure.error)
        answer = {"results": [], "elapsed_ms": 0.0}
    for result in answer["results"]:
        yield _result_from_json(result, protocol)
    if protocol.keep_loaded:
        lane.keep_worker()
    else:
        lane.end_worker()
    return Finished(answer["elapsed_ms"])


@dataclass(frozen=True)
class _Failure:
    """A worker is lost, and with it the artefact of that index (None: it was at none)."""

    index: Optional[int]
    error: AgentError


def _watch(
    worker: Worker, request: Mapping[str, Any], protocol: Protocol, cancelled: Cancelled
) -> Iterator[Any]:
    """Sends a batch; yields `Progress`, and last the worker's answer or a `_Failure`."""
    timeout_s = protocol.artifact_timeout_s
    try:
        worker.send(request)
        last_beats, last_change = -1, time.monotonic()
        told, told_at = None, -math.inf
        while True:
            answer = worker.answer(_POLL_S)
            if answer is not None:
                break
            if cancelled():
                raise RequestCancelled
            now = time.monotonic()
            beats, step, index, done, total = worker.heartbeat.read()
            if beats != last_beats:
                last_beats, last_change = beats, now
            elif now - last_change > timeout_s:
                doing = _DOING.get(step, "waiting for the runtime")
                error = TimedOut(f"{doing} took longer than {timeout_s:g} s")
                yield _Failure(index if step else None, error)
                return
            if step and (step, done) != told and now - told_at >= _PROGRESS_EVERY_S:
                told, told_at = (step, done), now
                yield Progress(_STEP_NAMES[step], done, total)
    except _WorkerDied as death:
        _, step, index, _, _ = worker.heartbeat.read()
        error = death.error
        if step:
            error = type(error)(f"{error} while {_DOING[step]}")
        yield _Failure(index if step else None, error)
        return
    if "lost" in answer:
        error = error_of(answer["error"]["kind"], answer["error"]["message"])
        yield _Failure(answer["lost"], error)
    elif "error" in answer:
        raise error_of(answer["error"]["kind"], answer["error"]["message"])
    else:
        yield answer


def _result_from_json(result: dict[str, Any], protocol: Protocol) -> ArtifactResult:
    if "error" in result:
        error = error_of(result["error"]["kind"], result["error"]["message"])
        return ArtifactResult(result["sha256"], error=error)
    shape = (protocol.rounds, protocol.calls_per_visit)
    if len(result["wall_ms"]) != shape[0] * shape[1]:
        raise Internal(
            f"artefact {result['sha256'][:12]} has {len(result['wall_ms'])} samples, "
            f"not {shape[0]} x {shape[1]}"
        )
    wall_ms = np.array(result["wall_ms"]).reshape(shape)
    return ArtifactResult(
        sha256=result["sha256"],
        wall=summarise(wall_ms),
        wall_ms=wall_ms,
        device_ms=np.array(result["device_ms"]).reshape(shape) if result["device_ms"] else None,
        load_ms=result["load_ms"],
        first_call_ms=result["first_call_ms"],
        compute_unit=result["compute_unit"],
        flags=tuple(result["flags"]),
        before=_conditions(result["before"]),
        after=_conditions(result["after"]),
    )


def _conditions(fields: dict[str, Any]) -> Conditions:
    return Conditions(**{**fields, "ticks": tuple(fields["ticks"])})


def run(
    lane: Lane,
    opening: Opening,
    artifact: Artifact,
    format: str,
    inputs: dict[str, np.ndarray],
    timeout_s: float,
    cancelled: Cancelled,
) -> tuple[dict[str, np.ndarray], str]:
    """Outputs for given inputs, and the compute unit, when it is its turn.

    Raises:
        AgentError: it failed, or took longer than `timeout_s` (waiting for a turn included).
        RequestCancelled: the caller went away.
    """
    deadline = time.monotonic() + timeout_s
    ticket = lane.enter(opening.name)
    try:
        for queued in wait_for_turn(lane, ticket, lambda: cancelled() or _past(deadline)):
            log.info("%s: a run waits for %d requests", opening.name, queued.ahead)
        worker = lane.worker(opening, cancelled)
        request = {
            "op": "run",
            "artifact": asdict(artifact),
            "format": format,
            "inputs": tensors_to_json(inputs),
        }
        try:
            answer = worker.call(request, max(_POLL_S, deadline - time.monotonic()), cancelled)
        except TimedOut:
            lane.kill_worker()
            raise TimedOut(f"no outputs within {timeout_s:g} s") from None
        except (RuntimeCrashed, OutOfMemory, DeviceLost, RequestCancelled):
            lane.kill_worker()
            raise
        lane.keep_worker()
    except RequestCancelled:
        if not cancelled():
            raise Busy(f"the processor was busy for {timeout_s:g} s; try later") from None
        raise
    finally:
        lane.leave(ticket)
    return tensors_from_json(answer["outputs"]), answer["compute_unit"]


def _past(deadline: float) -> bool:
    return time.monotonic() > deadline
