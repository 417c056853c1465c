"""Snapdragon chips with a Hexagon tensor processor (HTP), by name, Qualcomm's number and version.

QNN's compiler takes any name and compiles for the oldest processor where it knows none, and it
knows numbers of chips that have no HTP at all: so what may be asked for stands here, and what came
of it is read from the binary.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from .errors import BadRequest

FP16_FROM = 69
"""The first version that computes in fp16; before it QNN's emulator answers in fp32."""


@dataclass(frozen=True)
class Soc:
    """A chip.

    Attributes:
        name: Qualcomm's.
        number: by which QNN knows it as well.
        htp: version of its HTP's instruction set.
        marketed: as it is sold.
    """

    name: str
    number: int
    htp: int
    marketed: str


SOCS = (
    Soc("SM8350", 30, 68, "Snapdragon 888"),
    Soc("SM7325", 35, 68, "Snapdragon 778G"),
    Soc("SC8280X", 37, 68, "Snapdragon 8cx Gen 3"),
    Soc("SA8295", 39, 68, "SA8295P"),
    Soc("QCS6490", 93, 68, "QCS6490"),
    Soc("SM8450", 36, 69, "Snapdragon 8 Gen 1"),
    Soc("SXR2230P", 53, 69, "Snapdragon XR2 Gen 2"),
    Soc("SM8550", 43, 73, "Snapdragon 8 Gen 2"),
    Soc("SA8255", 52, 73, "SA8255P"),
    Soc("SC8380XP", 60, 73, "Snapdragon X Elite"),
    Soc("QCS8550", 66, 73, "QCS8550"),
    Soc("QCS9100", 77, 73, "QCS9100"),
    Soc("SM8650", 57, 75, "Snapdragon 8 Gen 3"),
    Soc("QCS8300", 82, 75, "QCS8300"),
    Soc("SM8750", 69, 79, "Snapdragon 8 Elite"),
    Soc("SXR2330P", 75, 79, "Snapdragon XR2+ Gen 3"),
    Soc("SM8850", 87, 81, "Snapdragon 8 Elite Gen 5"),
)
"""Those whose name and version QNN's compiler 2.51 writes into its binaries as they are here."""

WITHOUT_HTP = {
    "SDM845": (1, "Hexagon 685 (v65): dsp-snpe-int8"),
    "SDM670": (6, "Hexagon 685 (v65): dsp-snpe-int8"),
    "SM8150": (12, "Hexagon 690 (v66): dsp-snpe-int8"),
    "SDM710": (13, "Hexagon 685 (v65): dsp-snpe-int8"),
    "SM7150": (17, "Hexagon 688 (v65): dsp-snpe-int8"),
    "SM8250": (21, "Hexagon 698 (v66): dsp-snpe-int8"),
    "SM7250": (25, "Hexagon 696 (v66): dsp-snpe-int8"),
}
"""Well-known chips whose DSP is older, with their numbers, and what to do there."""

_TARGET = re.compile(rb"soc_type=(\w+);arch=(\d+);")


def soc_of(text: str, precision: str = "int8") -> Soc:
    """The chip of a name or a number.

    Args:
        text: as the user gave it.
        precision: in which it is to compute.

    Raises:
        BadRequest: it is none of `SOCS`, or does not compute in that precision.
    """
    found = next((s for s in SOCS if text in (s.name, str(s.number))), None)
    if found is None:
        for name, (number, instead) in WITHOUT_HTP.items():
            if text in (name, str(number)):
                raise BadRequest(f"{name} has no HTP, which QNN compiles for; it has a {instead}")
        near = difflib.get_close_matches(text.upper(), [s.name for s in SOCS], 1)
        like = f"; did you mean {near[0]}?" if near else ""
        names = ", ".join(s.name for s in SOCS)
        raise BadRequest(f"{text!r} is no chip that QNN is known to compile for ({names}){like}")
    if precision == "fp16" and found.htp < FP16_FROM:
        raise BadRequest(
            f"{found.name} (HTP v{found.htp}) does not compute in fp16, which begins with "
            f"v{FP16_FROM}; take int8"
        )
    return found


def check_binary(content: bytes, soc: Soc) -> None:
    """Refuses a context binary that was compiled for another chip.

    Raises:
        BadRequest: it is not for this chip, or does not say for which.
    """
    found = set(_TARGET.findall(content))
    wanted = {(soc.name.encode(), str(soc.htp).encode())}
    if found != wanted:
        names = ", ".join(f"{n.decode()} (v{v.decode()})" for n, v in sorted(found)) or "no chip"
        raise BadRequest(
            f"QNN compiled for {names} and not for {soc.name} (v{soc.htp}); its version and this "
            "one's list of chips differ"
        )
