"""What tables and reports call what a target tells: measured, emulated, simulated, …"""

from __future__ import annotations

from typing import Any

from ..agents.backends.base import Availability
from ..agents.results import Protocol
from ..lookup_tables.table import COMPILED, EMULATED, WITHOUT_LATENCY

ORIGIN = {
    Availability.AVAILABLE: "measured",
    Availability.EMULATED: EMULATED,
    Availability.COMPILED: COMPILED,
    Availability.SIMULATED: "simulated",
    Availability.ESTIMATED: "estimated",
}


def keeping(origin: str, **settings: Any) -> Protocol:
    """Graphs are loaded and stay so for calls whose outputs count; one timed call if there can be.

    Args:
        origin: of the target; in an emulator, or where it only compiles, nothing is timed.
        settings: other arguments of `Protocol`.
    """
    rounds = 0 if origin in WITHOUT_LATENCY else 1
    return Protocol(rounds, calls_per_visit=1, keep_loaded=True, **settings)
