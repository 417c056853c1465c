"""What a table calls the numbers of a target: measured, emulated, simulated or estimated."""

from ..agents.backends.base import Availability

ORIGIN = {
    Availability.AVAILABLE: "measured",
    Availability.EMULATED: "emulated",
    Availability.SIMULATED: "simulated",
    Availability.ESTIMATED: "estimated",
}
