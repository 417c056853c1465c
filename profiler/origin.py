"""What a table calls the numbers of a target: measured, emulated, simulated or estimated."""

from __future__ import annotations

from typing import Any

from ..agents.backends.base import Availability
from ..agents.results import Protocol
from ..lookup_tables.table import EMULATED

ORIGIN = {
    Availability.AVAILABLE: "measured",
    Availability.EMULATED: EMULATED,
    Availability.SIMULATED: "simulated",
    Availability.ESTIMATED: "estimated",
}


def keeping(origin: str, **settings: Any) -> Protocol:
    """Graphs are loaded and stay so for calls whose outputs count; one timed call if there can be.

    Args:
        origin: of the target; in an emulator nothing is timed.
        settings: other arguments of `Protocol`.
    """
    rounds = 0 if origin == EMULATED else 1
    return Protocol(rounds, calls_per_visit=1, keep_loaded=True, **settings)
