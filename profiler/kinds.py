"""Kinds of device: agents sorted by what their numbers speak of, one table filled for each."""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agents.client import AgentClient
from ..agents.errors import AgentError
from ..lookup_tables.journal import read_journal
from ..lookup_tables.table import LookupTable, Target
from ..ops.errors import BadRequest, HurricaneError
from .boards import Answer, Board, Boards, ask
from .measuring import Bench, MeasuringSettings, TargetRequest, connect
from .plan import PlannedRow
from .profile import (
    ProfileProgress,
    ProfileResult,
    missing_rows,
    prepare_artifacts,
    profile,
    speed_of,
)

_CONNECT_S = 5.0
_END_S = 5.0
_THIS_MACHINE = "this machine"
_STRANGE = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Kind:
    """Agents whose numbers go into one table.

    Attributes:
        target: the table's target.
        benches: one for each agent.
        places: where they measure; two kinds with a common place would disturb each other.
    """

    target: Target
    benches: tuple[Bench, ...]
    places: frozenset[str]


@dataclass(frozen=True)
class Found:
    """What was found for some targets.

    Attributes:
        kinds: at least one; every target asked for is among them.
        silent: boards of a whole file that did not answer, and why.
        unused: agents that have none of the targets.
    """

    kinds: tuple[Kind, ...]
    silent: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a kind's table.

    Attributes:
        kind: of device.
        path: the table.
        seconds: spent on it.
        result: None where it failed.
        error: why it failed; what was measured before is in the journal.
    """

    kind: Kind
    path: Path
    seconds: float
    result: ProfileResult | None = None
    error: Exception | None = None


@contextmanager
def find_kinds(
    agents: Sequence[str | Board] | Boards, requests: Sequence[TargetRequest], **credentials: Any
) -> Iterator[Found]:
    """Connects to agents and sorts them by the targets asked for.

    Without agents each target gets a private one on this machine. An agent may lack a target
    that another has. Agents that are named have to answer; of a whole file of boards, those that
    do not are told in `Found.silent`.

    Raises:
        AgentError: an agent that is named does not answer.
        BadRequest: no agent takes one of the targets.
        HurricaneError: no board of the file answers.
    """
    with ExitStack() as stack:
        if not agents:
            # What is computed for one would disturb what is measured for another.
            shared = not all(request.simulated_device for request in requests)
            benches = []
            for request in requests:
                (client,) = stack.enter_context(connect((), request))
                place = _THIS_MACHINE if shared else client.address
                benches.append((Bench.open(client, request), place))
            yield Found(_sorted_by_kind(benches))
            return
        boards = [agent if isinstance(agent, Board) else Board.at(agent) for agent in agents]
        answers = ask(boards, _CONNECT_S, **credentials)
        silent = [answer for answer in answers if answer.error is not None]
        lost: dict[str, AgentError] = {}  # after that, by address
        if isinstance(agents, Boards):
            if len(silent) == len(answers):
                raise HurricaneError(
                    f"no board of {agents.path} answers; the first, {_reason(silent[0])}"
                )
        elif silent and silent[0].error is not None:
            raise silent[0].error
        clients = [
            stack.enter_context(answer.board.open(**credentials))
            for answer in answers
            if answer.error is None
        ]
        benches = [
            (bench, bench.client.address) for r in requests for bench in _open(clients, r, lost)
        ]
        benches = [(bench, place) for bench, place in benches if place not in lost]
        if lost and (not isinstance(agents, Boards) or not benches):
            raise next(iter(lost.values()))
        silent += [
            Answer(answer.board, error=lost[answer.board.address])
            for answer in answers
            if answer.board.address in lost
        ]
        used = {place for _, place in benches}
        unused = tuple(c.address for c in clients if c.address not in used | lost.keys())
        yield Found(_sorted_by_kind(benches), tuple(_reason(a) for a in silent), unused)


def _reason(answer: Answer) -> str:
    return f"{answer.board.name}: {answer.error}"


def _open(
    clients: Sequence[AgentClient], request: TargetRequest, lost: dict[str, AgentError]
) -> list[Bench]:
    """The target on every agent that has it; agents that do not answer are added to `lost`."""
    benches: list[Bench] = []
    refusals: list[BadRequest] = []
    for client in clients:
        try:
            benches.append(Bench.open(client, request))
        except BadRequest as error:
            refusals.append(error)
        except AgentError as error:
            lost[client.address] = error
    if not benches and lost:
        return []
    if not benches and len(refusals) == 1:
        raise refusals[0]
    if not benches:
        words = "; ".join(dict.fromkeys(map(str, refusals)))
        raise BadRequest(f"no agent takes the target {request.name!r}: {words}")
    return benches


def _sorted_by_kind(benches: Sequence[tuple[Bench, str]]) -> tuple[Kind, ...]:
    sorted_out: dict[Target, list[tuple[Bench, str]]] = {}
    for bench, place in benches:
        sorted_out.setdefault(bench.target, []).append((bench, place))
    return tuple(
        Kind(target, tuple(b for b, _ in found), frozenset(p for _, p in found))
        for target, found in sorted_out.items()
    )


def table_paths(folder: str | Path, kinds: Sequence[Kind]) -> list[Path]:
    """A table for each kind, ``<device>-<target name>.csv``.

    Where two kinds have that in common (another version of a runtime, other options), the later
    one's name says more. A kind goes on with the file that holds it already, whatever other kinds
    take part this time.

    Raises:
        TableError: a file there is no table.
    """
    taken: set[Path] = set()
    paths = []
    for kind in kinds:
        there = [path for path in _candidates(Path(folder), kind.target) if path not in taken]
        own = [path for path in there if kind.target in _held(path)]
        free = [path for path in there if not _held(path)]
        paths.append((own or free or there[-1:])[0])
        taken.add(paths[-1])
    return paths


def _candidates(folder: Path, target: Target) -> list[Path]:
    """Names for a target's table; the last is no other target's."""
    digest = hashlib.sha256(repr(target).encode()).hexdigest()[:12]
    parts = [f"{target.device}-{target.name}", target.runtime_version, target.options, digest]
    words = [_STRANGE.sub("-", part).strip("-.")[:100] for part in parts]
    names = ["-".join(filter(None, words[:count])) for count in range(1, len(words) + 1)]
    return [folder / f"{name}.csv" for name in dict.fromkeys(names)]


def _held(path: Path) -> set[Target]:
    targets = set(LookupTable.load_with_journal(path).targets())
    begun = read_journal(path).target
    return targets | {begun} if begun else targets


def lanes(kinds: Sequence[Kind]) -> list[list[int]]:
    """Kinds that may be measured at the same time, as lists of their indices.

    Those of one list have places in common, and are measured one after another.
    """
    found: list[list[int]] = []
    for index, kind in enumerate(kinds):
        joined = [lane for lane in found if any(kinds[i].places & kind.places for i in lane)]
        found = [lane for lane in found if lane not in joined]
        found.append(sorted([*(i for lane in joined for i in lane), index]))
    return found


def fill(
    kinds: Sequence[Kind],
    paths: Sequence[Path],
    rows: Sequence[PlannedRow],
    settings: MeasuringSettings,
    retry: bool = False,
    on_progress: ProfileProgress | None = None,
    references: Sequence[Path | None] | None = None,
) -> list[Outcome]:
    """Fills the tables of all kinds, at the same time where they do not disturb each other.

    One kind that fails does not stop the others. An interrupt ends all of them; what they have
    finished is in their journals.

    Args:
        kinds: of device.
        paths: the table of each.
        rows: the plan, the same for all.
        settings, retry: as `profile` takes them.
        on_progress: called with (what, share of the whole), by one thread at a time.
        references: an earlier table for each kind, or None, as `profile` takes it.

    Returns:
        One outcome for each kind, in their order.

    Raises:
        BadRequest: a reference does not tell how fast its target was.
    """
    note = on_progress or (lambda what, share: None)
    references = references or [None] * len(kinds)
    for kind, reference in zip(kinds, references, strict=True):
        if reference is not None:
            speed_of(reference, kind.target)  # before anything is measured
    shares = [0.0] * len(kinds)
    outcomes: dict[int, Outcome] = {}
    mutex = threading.Lock()
    stopped = threading.Event()

    def reporter(index: int) -> ProfileProgress:
        def report(what: str, share: float) -> None:
            with mutex:
                shares[index] = max(shares[index], share)
                note(what, sum(shares) / len(shares))

        return report

    def work(lane: Sequence[int]) -> None:
        for index in lane:
            if stopped.is_set():
                return
            kind, path, started = kinds[index], paths[index], time.monotonic()
            result, failure = None, None
            report = reporter(index)
            try:
                result = profile(
                    kind.benches,
                    rows,
                    path,
                    settings,
                    retry=retry,
                    on_progress=report,
                    reference=references[index],
                )
            except Exception as error:
                failure = error
            report("done", 1.0)
            seconds = time.monotonic() - started
            outcomes[index] = Outcome(kind, path, seconds, result, failure)

    together = lanes(kinds)
    if len(together) == 1:
        work(together[0])
    else:
        _prepare(kinds, paths, rows, retry, lambda what, share: note(what, 0.0))
        ended = [threading.Event() for _ in together]

        def work_and_tell(lane: Sequence[int], event: threading.Event) -> None:
            try:
                work(lane)
            finally:
                event.set()

        try:
            for pair in zip(together, ended, strict=True):
                threading.Thread(target=work_and_tell, args=pair, daemon=True).start()
            _wait(ended)
        except KeyboardInterrupt:
            stopped.set()
            for kind in kinds:  # what runs on their agents is cancelled
                for bench in kind.benches:
                    bench.client.close()
            _wait(ended, _END_S)
            raise
    return [outcomes[index] for index in range(len(kinds))]


def _wait(events: Sequence[threading.Event], timeout_s: float = math.inf) -> None:
    """Waits for all of them. An interrupted `Thread.join` would take its thread for ended."""
    deadline = time.monotonic() + timeout_s
    for event in events:
        while time.monotonic() < deadline and not event.wait(0.2):
            pass


def _prepare(
    kinds: Sequence[Kind],
    paths: Sequence[Path],
    rows: Sequence[PlannedRow],
    retry: bool,
    on_progress: ProfileProgress,
) -> None:
    """Makes what any of the kinds needs: torch traces, and quantisers work, one graph at a time
    in a process."""
    for kind, path in zip(kinds, paths, strict=True):
        table = LookupTable.load_with_journal(path)
        missing = missing_rows(rows, table, kind.target, retry)
        prepare_artifacts(kind.benches[0], missing, on_progress)


def rows_done(kinds: Sequence[Kind], paths: Sequence[Path], rows: Sequence[PlannedRow]) -> int:
    """Rows of the plan that the kinds' tables and journals hold, over all kinds."""
    return sum(
        len(rows) - len(missing_rows(rows, LookupTable.load_with_journal(path), kind.target))
        for kind, path in zip(kinds, paths, strict=True)
    )
