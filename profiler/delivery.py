"""Graphs on their way to a device: one is made while another is sent and others are loaded."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial

from ..agents.results import Protocol
from .outcomes import Series
from .plan import graph_bytes
from .pool import ahead
from .session import TargetSession

MADE_AHEAD = 8
"""Artefacts that wait to be sent at most: they may be large."""

LOADED_AT_ONCE = 96
"""Artefacts that the agent is asked to load at a time: the list of all that it is to keep goes
with each request."""


def deliver(
    session: TargetSession, loaded: Iterable[Series], held: Iterable[Series], protocol: Protocol
) -> None:
    """Brings graphs to a device before they are timed.

    Failures of single graphs are not told: timing them gives these again.

    Args:
        session: with the device.
        loaded: replicas of graphs that are loaded as well, where the target keeps graphs loaded.
        held: those that the agent is only to hold.
        protocol: how the former will be timed.

    Raises:
        AgentError: sending failed, or loading altogether.
    """
    first = list(loaded)
    makes = (
        session.made(one, partial(graph_bytes, *one)) for one in dict.fromkeys((*first, *held))
    )
    only_load = replace(protocol, rounds=0, keep_loaded=True)
    there: list[str] = []
    asked = 0
    with session.log.side_by_side(), closing(ahead(makes, MADE_AHEAD)) as made:
        sends = (send() for ready in made for send in ready)
        with closing(ahead(sends)) as sent:
            for ready in sent:
                there = [*there, *ready][: len(first)]
                due = len(there) - asked >= LOADED_AT_ONCE or len(there) == len(first)
                if session.resident and due and len(there) > asked:
                    asked = len(there)
                    session.time(there, only_load)
