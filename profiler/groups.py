"""Device groups: agents that share a target, with one table filled for each group."""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..lookup_tables.journal import load_with_journal, read_journal
from ..lookup_tables.table import Target
from .coverage import missing_rows
from .discovery import DeviceGroup
from .plan import PlannedNetwork, PlannedRow
from .profile import ProfileResult, prepare_artifacts, profile
from .protocol import TimingProtocol
from .reference import speed_of
from .runner import ProfileProgress

_END_S = 5.0
_STRANGE = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Outcome:
    """What became of a group's table.

    Attributes:
        group: of device.
        path: the table.
        seconds: spent on it.
        result: None where it failed.
        error: why it failed; what was measured before is in the journal.
    """

    group: DeviceGroup
    path: Path
    seconds: float
    result: ProfileResult | None = None
    error: Exception | None = None


def table_paths(folder: str | Path, groups: Sequence[DeviceGroup]) -> list[Path]:
    """A table for each group, ``<device>-<target name>.csv``.

    Where two groups have that in common (another version of a runtime, other options), the later
    one's name says more. A group goes on with the file that holds it already, whatever other groups
    take part this time.

    Raises:
        TableError: a file there is no table.
    """
    taken: set[Path] = set()
    paths = []
    for group in groups:
        there = [path for path in _candidates(Path(folder), group.target) if path not in taken]
        own = [path for path in there if group.target in _held(path)]
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
    targets = set(load_with_journal(path).targets())
    begun = read_journal(path).target
    return targets | {begun} if begun else targets


def lanes(groups: Sequence[DeviceGroup]) -> list[list[int]]:
    """Groups that may be measured at the same time, as lists of their indices.

    Those of one list have places in common, and are measured one after another.
    """
    found: list[list[int]] = []
    for index, group in enumerate(groups):
        joined = [lane for lane in found if any(groups[i].places & group.places for i in lane)]
        found = [lane for lane in found if lane not in joined]
        found.append(sorted([*(i for lane in joined for i in lane), index]))
    return found


def fill(
    groups: Sequence[DeviceGroup],
    paths: Sequence[Path],
    rows: Sequence[PlannedRow],
    protocol: TimingProtocol,
    retry: bool = False,
    on_progress: ProfileProgress | None = None,
    references: Sequence[Path | None] | None = None,
    networks: Sequence[PlannedNetwork] = (),
) -> list[Outcome]:
    """Fills the tables of all groups, at the same time where they do not disturb each other.

    One group that fails does not stop the others. An interrupt ends all of them; what they have
    finished is in their journals.

    Args:
        groups: of device.
        paths: the table of each.
        rows: the plan, the same for all.
        protocol, retry: as `profile` takes them.
        on_progress: called with (what, share of the whole), by one thread at a time.
        references: an earlier table for each group, or None, as `profile` takes it.
        networks: timed among the rows.

    Returns:
        One outcome for each group, in their order.

    Raises:
        BadRequest: the speed of the target at a reference is not known.
    """
    note = on_progress or (lambda what, share: None)
    references = references or [None] * len(groups)
    for group, reference in zip(groups, references, strict=True):
        if reference is not None:
            speed_of(reference, group.target)  # before anything is measured
    shares = [0.0] * len(groups)
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
            group, path, started = groups[index], paths[index], time.monotonic()
            result, failure = None, None
            report = reporter(index)
            try:
                result = profile(
                    group.sessions,
                    rows,
                    path,
                    protocol,
                    retry=retry,
                    on_progress=report,
                    reference=references[index],
                    networks=networks,
                )
            except Exception as error:
                failure = error
            report("done", 1.0)
            seconds = time.monotonic() - started
            outcomes[index] = Outcome(group, path, seconds, result, failure)

    together = lanes(groups)
    if len(together) == 1:
        work(together[0])
    else:
        _prepare(groups, paths, rows, protocol, retry, lambda what, share: note(what, 0.0))
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
            for group in groups:  # what runs on their agents is cancelled
                for session in group.sessions:
                    session.client.close()
            _wait(ended, _END_S)
            raise
    return [outcomes[index] for index in range(len(groups))]


def _wait(events: Sequence[threading.Event], timeout_s: float = math.inf) -> None:
    """Waits for all of them. An interrupted `Thread.join` would take its thread for ended."""
    deadline = time.monotonic() + timeout_s
    for event in events:
        while time.monotonic() < deadline and not event.wait(0.2):
            pass


def _prepare(
    groups: Sequence[DeviceGroup],
    paths: Sequence[Path],
    rows: Sequence[PlannedRow],
    protocol: TimingProtocol,
    retry: bool,
    on_progress: ProfileProgress,
) -> None:
    """Makes what any of the groups needs: torch traces, and quantisers work, one graph at a time
    in a process."""
    for group, path in zip(groups, paths, strict=True):
        table = load_with_journal(path)
        missing = missing_rows(rows, table, group.target, retry)
        prepare_artifacts(group.sessions[0], missing, protocol, on_progress)


def rows_done(
    groups: Sequence[DeviceGroup], paths: Sequence[Path], rows: Sequence[PlannedRow]
) -> int:
    """Rows of the plan that the groups' tables and journals hold, over all groups."""
    return sum(
        len(rows) - len(missing_rows(rows, load_with_journal(path), group.target))
        for group, path in zip(groups, paths, strict=True)
    )
