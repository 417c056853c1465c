"""Runs worker processes: starts, watches and kills them, and carries a batch past their death."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import functools
import logging
import math
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, Union

import numpy as np

from .backends import backend_names
from .backends.base import Availability, Context, TargetInfo, one_line
from .channel import BadMessage, Channel, ChannelClosed, Message
from .conditions import Conditions
from .errors import (
    AgentError,
    BadRequest,
    Busy,
    DeviceLost,
    OutOfMemory,
    RuntimeCrashed,
    TimedOut,
    error_of,
)
from .processes import python_command, worker_environment
from .results import (
    Activity,
    ArtifactResult,
    BatchConditions,
    Event,
    Finished,
    Progress,
    Protocol,
    Queued,
    summarise,
)
from .sandbox import Isolation
from .store import WORKER_PREFIX
from .worker import STEP_LOAD, STEP_MEASURE, Heartbeat

log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Importing a runtime and opening a target; a slow board takes many seconds.
OPEN_TIMEOUT_S = 120.0
# A worker that nobody uses is ended after this time.
IDLE_S = 60.0
# Requests that may wait for one processor.
MAX_WAITING = 16
_POLL_S = 0.1
_END_S = 2.0
_PROGRESS_EVERY_S = 0.25
_STDERR_CHUNK = 64 * 1024
_STDERR_BYTES = 4096
_STEP_NAMES = {STEP_LOAD: "load", STEP_MEASURE: "measure"}
_DOING = {STEP_LOAD: "loading", STEP_MEASURE: "measuring"}

# A child is told by the kernel to die with its parent *thread*, so every child is started by
# this one thread, which lives as long as the process.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

Cancelled = Callable[[], bool]
HandOver = Callable[[str], int]
"""Opens one of a request's artefacts, by its digest, for the worker."""

# Sent by others: the kernel when memory runs out, a person, a service manager. They say nothing
# of the artefact in work, at least not the first time.
_KILLS = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGKILL,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGXCPU,
}
_MAX_NAME, _MAX_FLAGS = 200, 64  # characters of a worker's names, and how many flags
_DELIVERY_S, _SLOWEST_DELIVERY_BYTES_S = 60.0, 256 * 1024  # of results to a caller
_SAMPLE_BYTES = 16  # wall and device time
_TRIES = 3  # of work on no artefact, where workers are killed


class RequestCancelled(Exception):
    """The caller went away; there is nobody to answer."""


class _WorkerDied(Exception):
    """The child process ended; `killed`: by a signal that others send."""

    def __init__(self, error: AgentError, killed: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.killed = killed


@dataclass(frozen=True)
class Opening:
    """What a worker has opened, and for which connection; requests with equal openings share one.

    Another caller gets a worker that has never seen the first one's graphs.
    """

    backend: str
    target: str
    options: tuple[tuple[str, str], ...]
    threads: int
    caller: str = ""

    @property
    def name(self) -> str:
        """The target's name for messages, with its threads."""
        return self.target if self.threads == 1 else f"{self.target}-t{self.threads}"


class Worker:
    """One child process; `call` sends a request and waits for its answer.

    Args:
        user: whom it runs as; empty: this process's own.

    Raises:
        AgentError: no process can be started.
    """

    def __init__(self, user: str = "") -> None:
        self._stderr = b""
        try:
            with contextlib.ExitStack() as opened:
                # Its working directory: nothing can be made there, but by backends that need to.
                self._folder = tempfile.mkdtemp(prefix=f"{WORKER_PREFIX}{os.getpid()}-")
                opened.callback(os.rmdir, self._folder)
                if user:
                    shutil.chown(self._folder, user)
                os.chmod(self._folder, 0o555)
                memory = _heartbeat_memory()
                opened.callback(os.close, memory)
                self.heartbeat = Heartbeat(memory)
                self._channel, theirs = Channel.pair()
                opened.callback(theirs.close)
                self._oom_kills = _oom_kills()
                start = functools.partial(_start_process, memory, theirs.fileno(), self._folder)
                self._process = _SPAWNER.submit(start, user).result()
                opened.pop_all()
                theirs.close()
                os.close(memory)
        except OSError as error:
            raise Busy(f"no worker can be started: {error.strerror}") from error
        self._reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    def send(
        self,
        request: Mapping[str, Any],
        arrays: Optional[Mapping[str, np.ndarray]] = None,
        descriptor: Optional[int] = None,
    ) -> None:
        """Sends a request.

        Raises:
            _WorkerDied: there is nobody to read it.
        """
        try:
            self._channel.send(request, arrays, descriptor)
        except ChannelClosed as error:
            raise self._death() from error

    def answer(self, timeout_s: float) -> Optional[Message]:
        """The next answer, or None if there is none within the time.

        Raises:
            _WorkerDied: the child ended instead, or says what makes no sense.
        """
        try:
            return self._channel.receive(timeout_s)
        except ChannelClosed as error:
            raise self._death() from error
        except BadMessage as error:
            raise _nonsense(error) from error

    def call(
        self,
        request: Mapping[str, Any],
        timeout_s: float,
        cancelled: Cancelled,
        arrays: Optional[Mapping[str, np.ndarray]] = None,
        hand_over: Optional[HandOver] = None,
    ) -> Message:
        """Sends a request and returns its answer.

        Args:
            hand_over: opens the artefacts that the child asks for.

        Raises:
            AgentError: the answer is an error, or none came in time.
            _WorkerDied: the child did.
            RequestCancelled: nobody waits for the answer any more.
        """
        self.send(request, arrays)
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.answer(_POLL_S)
            if answer is not None and not self.served(answer, hand_over):
                break
            if cancelled():
                raise RequestCancelled
            if time.monotonic() > deadline:
                raise TimedOut(f"no answer from the runtime within {timeout_s:g} s")
        if "error" in answer.header:
            raise _error_of(answer.header)
        return answer

    def served(self, answer: Message, hand_over: Optional[HandOver]) -> bool:
        """Whether a message asked for an artefact, which the child then has.

        Raises:
            _WorkerDied: it asked for one that it was not given to work on.
        """
        if answer.descriptor is not None:
            os.close(answer.descriptor)
            raise _nonsense("an open file")
        if "need" not in answer.header:
            return False
        if hand_over is None:
            raise _nonsense("an artefact is asked for")
        descriptor = hand_over(answer.header["need"])
        try:
            self.send({}, descriptor=descriptor)
        finally:
            os.close(descriptor)
        return True

    def end(self) -> None:
        """Lets the child close its target, and kills it if it takes too long."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_S)
        self.kill()

    def kill(self) -> None:
        """Kills the child and whatever it started."""
        # Its process group outlives it where it started others.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()
        self._reader.join(timeout=_END_S)
        self.heartbeat.close()
        _end_what_runs_in(self._folder)
        with contextlib.suppress(OSError):
            os.chmod(self._folder, 0o700)
            shutil.rmtree(self._folder)

    def _read_stderr(self) -> None:
        # Always drained, and only its end is kept: some runtimes flood it.
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while chunk := os.read(stream.fileno(), _STDERR_CHUNK):
                self._stderr = (self._stderr + chunk)[-_STDERR_BYTES:]

    def _death(self) -> _WorkerDied:
        """How the child died; one that stays without a word is killed."""
        try:
            status = self._process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return _nonsense("nothing, in the middle of a message")
        self._reader.join(timeout=_END_S)
        how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        lines = self._stderr.decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if not line.startswith("INFO")]  # as LiteRT does
        last_words = next(filter(None, reversed(said)), "")
        message = f"the runtime's process died ({how})"
        message += f": {one_line(last_words)}" if last_words else ""
        out_of_memory = status == -signal.SIGKILL and _oom_kills() > self._oom_kills
        if out_of_memory or "bad_alloc" in last_words or last_words.startswith("MemoryError"):
            return _WorkerDied(OutOfMemory(message), killed=status == -signal.SIGKILL)
        return _WorkerDied(RuntimeCrashed(message), killed=-status in _KILLS)


def _end_what_runs_in(folder: str) -> None:
    """Ends what a worker has started and left: such a program has a session of its own, but works
    in the worker's folder."""
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if f"{os.readlink(entry)}/".startswith(f"{folder}/"):
                os.kill(int(entry.parent.name), signal.SIGKILL)


def _nonsense(what: object) -> _WorkerDied:
    """For a child that is no longer what it was started as."""
    return _WorkerDied(RuntimeCrashed(f"the runtime's process sent what makes no sense: {what}"))


def _error_of(header: Mapping[str, Any]) -> AgentError:
    try:
        kind, message = int(header["error"]["kind"]), str(header["error"]["message"])
    except (KeyError, TypeError, ValueError) as error:
        raise _nonsense("an error") from error
    return error_of(kind, one_line(message, 2000))


def _heartbeat_memory() -> int:
    """A file in memory of the heartbeat's size, which the child cannot cut short."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.truncate(Heartbeat.SIZE)
            return os.dup(file.fileno())
    memory = os.memfd_create("heartbeat", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, Heartbeat.SIZE)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return memory


def _start_process(heartbeat: int, channel: int, folder: str, user: str) -> subprocess.Popen[bytes]:
    descriptors = (heartbeat, channel)
    arguments = (str(number) for number in (os.getpid(), *descriptors))
    # Who the child is to be is its own business: for that, this process would be copied whole
    # (fork), and gRPC's threads do not outlive that in good order.
    return subprocess.Popen(
        python_command("hurricane.agents.worker", *arguments, user),
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        cwd=folder,
        env=worker_environment(folder),
        # A group of its own: Ctrl-C reaches the agent, which ends its children itself, and
        # whatever the child starts (adb, a vendor's tool) is killed with it.
        start_new_session=True,
    )


def find_user(name: str) -> pwd.struct_passwd:
    """The account that workers are to run as.

    Raises:
        BadRequest: there is none, or this process may not become anybody else.
    """
    if os.geteuid() != 0:
        raise BadRequest("--user needs an agent that is started as root")
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise BadRequest(f"there is no user '{name}' on this machine") from None


def _oom_kills() -> int:
    """How often the kernel killed a process for memory since boot."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


@dataclass(frozen=True)
class Discovery:
    """What a machine can measure.

    Args:
        backend_of: every target, with the name of its backend.
        isolation: of the workers.
    """

    backend_of: Mapping[TargetInfo, str]
    isolation: Isolation

    @property
    def targets(self) -> tuple[TargetInfo, ...]:
        """Every target."""
        return tuple(self.backend_of)


def discover(context: Context) -> Discovery:
    """Every target of every backend.

    Each backend is asked in a child process of its own: a runtime that dies when it is
    imported shows as an unavailable target, and costs nothing else.
    """
    names = backend_names()
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        answers = list(pool.map(lambda name: _targets_of(name, context), names))
    found: dict[TargetInfo, str] = {}
    taken: dict[str, str] = {}
    for name, (targets, _) in zip(names, answers):
        for target in targets:
            if target.name in taken:
                log.warning(
                    "%s of %s is left out: %s has it", target.name, name, taken[target.name]
                )
                continue
            taken[target.name] = name
            found[target] = name
    known = [isolation for _, isolation in answers if isolation is not None]
    return Discovery(found, known[0] if known else Isolation())


def _targets_of(backend: str, context: Context) -> tuple[list[TargetInfo], Optional[Isolation]]:
    request = {"op": "targets", "backend": backend, "context": _context_to_json(context)}

    def ask() -> dict[str, Any]:
        worker = Worker(context.user)
        try:
            return worker.call(request, OPEN_TIMEOUT_S, lambda: False).header
        finally:
            worker.end()

    try:
        answer = _again_if_killed(ask)
    except BadRequest:  # of the agent's own settings
        raise
    except AgentError as error:
        short = Path(backend).stem if backend.endswith(".py") else backend.rpartition(".")[2]
        unavailable = TargetInfo(
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
        return [unavailable], None
    isolation = {name: tuple(texts) for name, texts in answer["isolation"].items()}
    return [_target_from_json(target) for target in answer["targets"]], Isolation(**isolation)


def _again_if_killed(work: Callable[[], _T]) -> _T:
    """Does a worker's work, and again where somebody killed it.

    Raises:
        AgentError: whatever it raised, or why the worker died.
    """
    for left in reversed(range(_TRIES)):
        try:
            return work()
        except _WorkerDied as death:
            if not (death.killed and left):
                raise death.error from death
            log.warning("once more: %s", death.error)
    raise AssertionError


def _context_to_json(context: Context) -> dict[str, Any]:
    # A worker has a folder of its own: paths are those seen from here.
    files = (os.path.abspath(n) if n.endswith(".toml") else n for n in context.simulate)
    return {**asdict(context), "simulate": tuple(files)}


def _target_from_json(fields: dict[str, Any]) -> TargetInfo:
    return TargetInfo(
        **{
            **fields,
            "availability": Availability(fields["availability"]),
            "formats": tuple(fields["formats"]),
            "options": tuple(fields["options"]),
            "defaults": tuple(fields["defaults"]),
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
        return _again_if_killed(lambda: self._open(opening, cancelled))

    def _open(self, opening: Opening, cancelled: Cancelled) -> Worker:
        self.end_worker()
        worker = self._worker = Worker(self._context.user)
        try:
            worker.call(
                {
                    "op": "open",
                    "backend": opening.backend,
                    "context": _context_to_json(self._context),
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


@dataclass(frozen=True)
class Batch:
    """What is to be measured.

    Args:
        artifacts: digests.
        format: of all of them.
        resident: the target keeps them all loaded.
        limit_s: what is not measured in this time has timed out.
    """

    artifacts: Sequence[str]
    format: str
    protocol: Protocol
    resident: bool
    limit_s: float = math.inf


def benchmark(
    lane: Lane, opening: Opening, batch: Batch, hand_over: HandOver, cancelled: Cancelled
) -> Iterator[Event]:
    """Measures a batch when it is its turn, and yields its events.

    An artefact that kills or blocks its worker costs that artefact: the rest of the batch is
    measured from the start by a new worker, so that no result mixes two of them. A worker that
    was killed by a signal that others send is replaced, once for each artefact.

    Args:
        hand_over: opens the artefacts, when the worker needs them.

    Raises:
        AgentError: the batch as a whole failed.
        RequestCancelled: the caller went away; the worker is dead.
    """
    ticket = lane.enter(opening.name)
    try:
        yield from wait_for_turn(lane, ticket, cancelled)
        try:
            finished = yield from _benchmark_now(lane, ticket, opening, batch, hand_over, cancelled)
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
    batch: Batch,
    hand_over: HandOver,
    cancelled: Cancelled,
) -> Generator[Event, None, Finished]:
    remaining = list(batch.artifacts)
    excused: set[str] = set()
    deadline = time.monotonic() + batch.limit_s
    idle_deaths, elapsed_ms = 0, 0.0
    while remaining:
        worker = lane.worker(opening, cancelled)
        failure: Optional[_Failure] = None
        for outcome in _watch(worker, batch, remaining, deadline, hand_over, cancelled):
            if isinstance(outcome, _Failure):
                failure = outcome
            elif isinstance(outcome, Finished):
                elapsed_ms = outcome.elapsed_ms
            elif isinstance(outcome, ArtifactResult):
                remaining.remove(outcome.sha256)
                yield outcome
            else:
                if isinstance(outcome, Progress):
                    ticket.progress = outcome
                yield outcome
        if failure is None:
            break
        lane.kill_worker()
        if failure.index is None:
            # A worker kept from before may have died meanwhile.
            idle_deaths += 1
            if idle_deaths > (_TRIES if failure.killed else 1):
                raise failure.error
            continue
        culprit = remaining[failure.index]
        log.warning("%s: artefact %s: %s", opening.name, culprit[:12], failure.error)
        if failure.killed and culprit not in excused:
            excused.add(culprit)
            continue
        remaining.remove(culprit)
        yield ArtifactResult(culprit, error=failure.error)
    if batch.protocol.keep_loaded:
        lane.keep_worker()
    else:
        lane.end_worker()
    return Finished(elapsed_ms)


@dataclass(frozen=True)
class _Failure:
    """A worker is lost, and with it the artefact of that index (None: it was at none).

    `killed`: by a signal that others send, so it need not be the artefact's fault.
    """

    index: Optional[int]
    error: AgentError
    killed: bool = False


def _watch(
    worker: Worker,
    batch: Batch,
    artifacts: Sequence[str],
    deadline: float,
    hand_over: HandOver,
    cancelled: Cancelled,
) -> Iterator[Union[Event, _Failure]]:
    """Has a worker measure artefacts; the last thing it yields is `Finished` or a `_Failure`."""
    timeout_s = batch.protocol.artifact_timeout_s
    open_ = _only(artifacts, hand_over)
    try:
        worker.send(
            {
                "op": "batch",
                "artifacts": artifacts,
                "format": batch.format,
                "protocol": asdict(batch.protocol),
                "resident": batch.resident,
            }
        )
        unanswered = set(artifacts)
        last_beats, last_change = -1, time.monotonic()
        told, told_at = None, -math.inf
        conditions: Optional[BatchConditions] = None
        while True:
            answer = worker.answer(_POLL_S)
            if answer is not None and not worker.served(answer, open_):
                if "conditions" in answer.header and conditions is None:
                    conditions = _batch_conditions_of(answer.header)
                    yield conditions
                    continue
                if "result" not in answer.header:
                    break
                if conditions is None:
                    raise _nonsense("a result without conditions")
                result = _result_of(answer, batch.protocol)
                if result.sha256 not in unanswered:
                    raise _nonsense("a result that nobody asked for")
                if len(unanswered) == len(artifacts):
                    # A caller who takes results slower than any network does not keep the device.
                    deadline = min(deadline, time.monotonic() + _delivery_s(batch))
                unanswered.remove(result.sha256)
                yield result
                last_change = time.monotonic()
            if cancelled():
                raise RequestCancelled
            now = time.monotonic()
            if now > deadline:
                raise TimedOut("the batch took longer than this agent allows; send smaller ones")
            beats, step, index, done, total = worker.heartbeat.read()
            if beats != last_beats:
                last_beats, last_change = beats, now
            elif now - last_change > timeout_s:
                doing = _DOING.get(step, "waiting for the runtime")
                error = TimedOut(f"{doing} took longer than {timeout_s:g} s")
                yield _Failure(_index(step, index, artifacts), error)
                return
            if step in _STEP_NAMES and (step, done) != told and now - told_at >= _PROGRESS_EVERY_S:
                told, told_at = (step, done), now
                yield Progress(_STEP_NAMES[step], done, total)
        yield from _end_of_batch(answer, artifacts, unanswered)
    except _WorkerDied as death:
        _, step, index, _, _ = worker.heartbeat.read()
        error = death.error
        if step in _DOING:
            error = type(error)(f"{error} while {_DOING[step]}")
        yield _Failure(_index(step, index, artifacts), error, death.killed)


def _delivery_s(batch: Batch) -> float:
    """How long a caller may take over the results of a batch."""
    samples = len(batch.artifacts) * batch.protocol.rounds * batch.protocol.calls_per_visit
    return _DELIVERY_S + samples * _SAMPLE_BYTES / _SLOWEST_DELIVERY_BYTES_S


def _end_of_batch(
    answer: Message, artifacts: Sequence[str], unanswered: Collection[str]
) -> Iterator[Union[Finished, _Failure]]:
    header = answer.header
    if "lost" in header:
        yield _Failure(_index(STEP_LOAD, header["lost"], artifacts), _error_of(header))
    elif "error" in header:
        raise _error_of(header)
    elif unanswered:
        raise _nonsense("an end without all results")
    else:
        yield Finished(_time_ms(header.get("elapsed_ms")))


def _only(artifacts: Collection[str], hand_over: HandOver) -> HandOver:
    """Hands over these artefacts and no others."""
    allowed = frozenset(artifacts)

    def checked(digest: str) -> int:
        if not isinstance(digest, str) or digest not in allowed:
            raise _nonsense("an artefact is asked for that is not in the request")
        return hand_over(digest)

    return checked


def _index(step: int, index: object, artifacts: Sequence[str]) -> Optional[int]:
    """The index of the artefact in work, if the worker names one."""
    if step in _DOING and isinstance(index, int) and 0 <= index < len(artifacts):
        return index
    return None


def _result_of(answer: Message, protocol: Protocol) -> ArtifactResult:
    """A worker's result, which may be anything where a graph has taken the worker over.

    Raises:
        _WorkerDied: it cannot be a result.
    """
    try:
        result = answer.header["result"]
        sha256 = str(result["sha256"])
        if "error" in result:
            return ArtifactResult(sha256, error=_error_of(result))
        shape = (protocol.rounds, protocol.calls_per_visit)
        wall_ms = _times_ms(answer.arrays["wall_ms"]).reshape(shape)
        device_ms = _times_ms(answer.arrays["device_ms"])
        return ArtifactResult(
            sha256=sha256,
            wall=summarise(wall_ms) if wall_ms.size else None,
            wall_ms=wall_ms,
            device_ms=device_ms.reshape(shape) if device_ms.size else None,
            load_ms=_time_ms(result["load_ms"]),
            first_call_ms=_time_ms(result["first_call_ms"]),
            compute_unit=one_line(str(result["compute_unit"]), _MAX_NAME),
            flags=_flags_of(result),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _nonsense("a result that is none") from error


def _batch_conditions_of(header: dict[str, Any]) -> BatchConditions:
    """A worker's account of a batch, which may be anything as well.

    Raises:
        _WorkerDied: it cannot be one.
    """
    try:
        told = header["conditions"]
        before, after = _conditions(told["before"]), _conditions(told["after"])
        return BatchConditions(before, after, _flags_of(told))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _nonsense("conditions that are none") from error


def _flags_of(told: dict[str, Any]) -> tuple[str, ...]:
    return tuple(one_line(str(flag), _MAX_NAME) for flag in told["flags"][:_MAX_FLAGS])


def _times_ms(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.float64 or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError("not times")
    return values


def _time_ms(value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise _nonsense("a time that is none")
    return float(value)


def _conditions(fields: dict[str, Any]) -> Conditions:
    # As it goes over the wire: without the ticks, which shares were made of.
    known = {
        "temperature_c": float, "frequency_mhz": float, "load_1m": float, "steal_share": float,
        "busy_share": float, "throttle_events": int, "governor": str,
    }  # fmt: skip
    conditions = Conditions(**{name: kind(fields[name]) for name, kind in known.items()})
    numbers = (v for v in vars(conditions).values() if isinstance(v, (int, float)))
    if not all(math.isfinite(number) for number in numbers) or conditions.throttle_events < 0:
        raise ValueError("not conditions")
    return replace(
        conditions,
        governor=one_line(conditions.governor, _MAX_NAME),
        unwatched=tuple(one_line(str(n), _MAX_NAME) for n in fields["unwatched"][:_MAX_FLAGS]),
    )


def run(
    lane: Lane,
    opening: Opening,
    artifact: str,
    format: str,
    inputs: dict[str, np.ndarray],
    timeout_s: float,
    hand_over: HandOver,
    cancelled: Cancelled,
) -> tuple[dict[str, np.ndarray], str]:
    """Outputs for given inputs, and the compute unit, when it is its turn.

    Args:
        artifact: its digest.
        hand_over: opens it, when the worker needs it.

    Raises:
        AgentError: it failed, or took longer than `timeout_s` (waiting for a turn included).
        RequestCancelled: the caller went away.
    """
    deadline = time.monotonic() + timeout_s
    ticket = lane.enter(opening.name)
    try:
        for queued in wait_for_turn(lane, ticket, lambda: cancelled() or _past(deadline)):
            log.info("%s: a run waits for %d requests", opening.name, queued.ahead)

        def outputs() -> Message:
            worker = lane.worker(opening, cancelled)
            request = {"op": "run", "artifact": artifact, "format": format}
            left_s = max(_POLL_S, deadline - time.monotonic())
            try:
                return worker.call(request, left_s, cancelled, inputs, _only([artifact], hand_over))
            except (_WorkerDied, TimedOut, OutOfMemory, DeviceLost, RequestCancelled):
                lane.kill_worker()
                raise

        try:
            answer = _again_if_killed(outputs)
        except TimedOut:
            raise TimedOut(f"no outputs within {timeout_s:g} s") from None
        lane.keep_worker()
    except RequestCancelled:
        if not cancelled():
            raise Busy(f"the processor was busy for {timeout_s:g} s; try later") from None
        raise
    finally:
        lane.leave(ticket)
    return answer.arrays, one_line(str(answer.header.get("compute_unit", "")), _MAX_NAME)


def _past(deadline: float) -> bool:
    return time.monotonic() > deadline
