"""Devices of one kind are compared before they share a table; those that disagree are left out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..agents.errors import AgentError, Busy
from ..ops.errors import HurricaneError
from .consistency import common_times, disagreement
from .devices import time_baselines
from .plan import Graph
from .pool import on_every
from .protocol import TimingProtocol
from .session import TargetSession


@dataclass
class Exclusions:
    """Devices that do not take part, or not to the end.

    Attributes:
        lost: by address, with the reason; the others did their work.
        left_out: that disagree with the others, with by how much.
        absent: that could not be compared; an error that is raised when their work begins.
    """

    lost: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    absent: dict[str, AgentError] = field(default_factory=dict)


class DeviceComparison:
    """Compares devices by what their baselines take.

    Attributes:
        exclusions: devices that were lost or left out.

    Args:
        baselines: of the plan.
        protocol: as it was asked for.
    """

    def __init__(self, baselines: Sequence[Graph], protocol: TimingProtocol) -> None:
        self.exclusions = Exclusions()
        self._baselines = baselines
        self._protocol = protocol
        self._common_ms: Mapping[Graph, float] = {}  # empty: nothing is compared

    def compare(self, sessions: Sequence[TargetSession]) -> list[TargetSession]:
        """Times the baselines on every device, and leaves out those that disagree.

        A device on which others measure meanwhile is not waited for: it is compared when it is
        free, as one that comes back is.

        Raises:
            HurricaneError: no device is left.
        """
        answers: dict[int, dict[Graph, float] | Exception] = {}
        started, deadline = time.monotonic(), math.inf
        least_s = self._protocol.compare_timeout_s

        def time_one(index: int) -> None:
            try:
                answers[index] = self._time_baselines(sessions[index])
            except Exception as error:
                answers[index] = error

        def late() -> bool:
            nonlocal deadline
            elapsed = time.monotonic() - started
            some = any(isinstance(answer, dict) for answer in list(answers.values()))
            if some and 2 * len(answers) >= len(sessions):
                deadline = min(deadline, elapsed + max(least_s, elapsed))
            return elapsed > deadline

        on_every(len(sessions), time_one, late)
        found: dict[int, dict[Graph, float]] = {}
        for index, session in enumerate(sessions):
            answer = answers.get(index, Busy("it is busy with other work"))
            if isinstance(answer, AgentError):
                self.exclusions.absent[session.client.address] = answer
            elif isinstance(answer, Exception):
                raise answer
            else:
                found[index] = answer
        # Only to compare devices by: alone, baselines take less than among rows.
        self._common_ms = common_times([found[index] for index in sorted(found)])
        left = [
            session
            for index, session in enumerate(sessions)
            if index not in found or self._agrees(session, found[index])
        ]
        if not left:
            words = "; ".join(self.exclusions.left_out)
            raise HurricaneError(
                f"no two devices agree how fast they are ({words}); name one with --agent"
            )
        return left

    def admits(self, session: TargetSession) -> bool:
        """Whether a device that comes later is as fast as the others; if not, it is named.

        Raises:
            AgentError: it is lost, or busy.
        """
        return not self._common_ms or self._agrees(session, self._time_baselines(session))

    def _time_baselines(self, session: TargetSession) -> dict[Graph, float]:
        return time_baselines(session, self._baselines, self._protocol)

    def _agrees(self, session: TargetSession, baselines_ms: Mapping[Graph, float]) -> bool:
        differs = disagreement(baselines_ms, self._common_ms, self._protocol.max_device_spread)
        if differs is None:
            return True
        words = f"{abs(differs):.0%} {'slower' if differs > 0 else 'faster'}"
        self.exclusions.left_out.append(
            f"{session.client.address}: its baselines are {words} than the others'"
        )
        return False
