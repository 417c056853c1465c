"""Finding devices: agents that share a target, by the targets asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ..agents.client import AgentClient
from ..agents.errors import AgentError
from ..lookup_tables.table import Target
from ..ops.errors import BadRequest, HurricaneError
from .boards import Answer, Board, Boards, ask
from .session import TargetSession, connect
from .target import TargetRequest

_CONNECT_S = 5.0
_THIS_MACHINE = "this machine"


@dataclass(frozen=True)
class DeviceGroup:
    """Agents whose numbers go into one table.

    Attributes:
        target: the table's target.
        sessions: one for each agent.
        places: where they measure; two groups with a common place would disturb each other.
    """

    target: Target
    sessions: tuple[TargetSession, ...]
    places: frozenset[str]


@dataclass(frozen=True)
class DiscoveredGroups:
    """What was found for some targets.

    Attributes:
        groups: at least one; every target asked for is among them.
        silent: boards of a whole file that did not answer, and why.
        unused: agents that have none of the targets.
    """

    groups: tuple[DeviceGroup, ...]
    silent: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@contextmanager
def find_groups(
    agents: Sequence[str | Board] | Boards, requests: Sequence[TargetRequest], **credentials: Any
) -> Iterator[DiscoveredGroups]:
    """Connects to agents and sorts them by the targets asked for.

    Without agents each target gets a private one on this machine. An agent may lack a target
    that another has. Agents that are named have to answer; of a whole file of boards, those that
    do not are told in `DiscoveredGroups.silent`.

    Raises:
        AgentError: an agent that is named does not answer.
        BadRequest: no agent takes one of the targets.
        HurricaneError: no board of the file answers.
    """
    with ExitStack() as stack:
        if not agents:
            # What is computed for one would disturb what is measured for another.
            shared = not all(request.simulated_device for request in requests)
            sessions = []
            for request in requests:
                (client,) = stack.enter_context(connect((), request))
                place = _THIS_MACHINE if shared else client.address
                sessions.append((TargetSession.open(client, request), place))
            yield DiscoveredGroups(_grouped(sessions))
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
        sessions = [
            (session, session.client.address)
            for r in requests
            for session in _open(clients, r, lost)
        ]
        sessions = [(session, place) for session, place in sessions if place not in lost]
        if lost and (not isinstance(agents, Boards) or not sessions):
            raise next(iter(lost.values()))
        silent += [
            Answer(answer.board, error=lost[answer.board.address])
            for answer in answers
            if answer.board.address in lost
        ]
        used = {place for _, place in sessions}
        unused = tuple(c.address for c in clients if c.address not in used | lost.keys())
        yield DiscoveredGroups(_grouped(sessions), tuple(_reason(a) for a in silent), unused)


def _reason(answer: Answer) -> str:
    return f"{answer.board.name}: {answer.error}"


def _open(
    clients: Sequence[AgentClient], request: TargetRequest, lost: dict[str, AgentError]
) -> list[TargetSession]:
    """The target on every agent that has it; agents that do not answer are added to `lost`."""
    sessions: list[TargetSession] = []
    refusals: list[BadRequest] = []
    for client in clients:
        try:
            sessions.append(TargetSession.open(client, request))
        except BadRequest as error:
            refusals.append(error)
        except AgentError as error:
            lost[client.address] = error
    if not sessions and lost:
        return []
    if not sessions and len(refusals) == 1:
        raise refusals[0]
    if not sessions:
        words = "; ".join(dict.fromkeys(map(str, refusals)))
        raise BadRequest(f"no agent takes the target {request.name!r}: {words}")
    return sessions


def _grouped(sessions: Sequence[tuple[TargetSession, str]]) -> tuple[DeviceGroup, ...]:
    sorted_out: dict[Target, list[tuple[TargetSession, str]]] = {}
    for session, place in sessions:
        sorted_out.setdefault(session.target, []).append((session, place))
    return tuple(
        DeviceGroup(target, tuple(b for b, _ in found), frozenset(p for _, p in found))
        for target, found in sorted_out.items()
    )
