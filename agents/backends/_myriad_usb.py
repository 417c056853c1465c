"""Myriad X sticks on this machine's USB, as the kernel shows them; nothing is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ..conditions import read_text

DEVICES, NODES = Path("/sys/bus/usb/devices"), Path("/dev/bus/usb")
SUPER_SPEED_MBPS = 5000.0
"""USB 3; a stick on USB 2 has 480, which a call's wall time shows."""

_VENDOR = "03e7"
_UNBOOTED, _BOOTED, _FIRST_GENERATION = "2485", "f63b", "2150"
_CHIP = "ma2480"


@dataclass(frozen=True)
class UsbStick:
    """A stick in a port.

    Args:
        port: bus and ports on the way to it, such as ``1-4.2``.
        product: of vendor 03e7, in four hexadecimal digits.
        speed_mbps: of its link now, in Mbit/s; 0: unknown. One whose firmware is not loaded yet
            has the speed of USB 2 in any port.
        node: the file that programs open.
        allowed: this process may open it.
    """

    port: str
    product: str
    speed_mbps: float
    node: str
    allowed: bool

    @property
    def booted(self) -> bool:
        """Whether its firmware runs: a program has it, or had it."""
        return self.product == _BOOTED

    @property
    def is_myriad_x(self) -> bool:
        """Whether it is a Neural Compute Stick 2, and not the first one."""
        return self.product in (_UNBOOTED, _BOOTED)


def usb_sticks() -> Optional[tuple[UsbStick, ...]]:
    """All sticks, by their ports; None: the kernel shows no USB here."""
    if not DEVICES.is_dir():
        return None
    return tuple(
        _stick(folder)
        for folder in sorted(DEVICES.iterdir())
        if read_text(folder / "idVendor") == _VENDOR
    )


def _stick(folder: Path) -> UsbStick:
    numbers = (read_text(folder / name) for name in ("busnum", "devnum"))
    bus, device = (int(text) if text.isdigit() else 0 for text in numbers)
    node = NODES / f"{bus:03}" / f"{device:03}"
    speed = read_text(folder / "speed")
    return UsbStick(
        port=folder.name,
        product=read_text(folder / "idProduct"),
        speed_mbps=float(speed) if speed.replace(".", "", 1).isdigit() else 0.0,
        node=str(node),
        allowed=os.access(node, os.R_OK | os.W_OK),
    )


def is_myriad_x(name: str) -> bool:
    """Whether a name that OpenVINO gives, such as ``1.4-ma2480``, is that of a Myriad X."""
    return name.endswith(_CHIP)


@dataclass(frozen=True)
class Obstacle:
    """Why no stick can be used, and what to do.

    Args:
        words: the reason and the remedy; empty where there is none.
        in_use: another program has the stick, or had it.
        passing: it may be gone at the next try.
    """

    words: str = ""
    in_use: bool = False
    passing: bool = True


def obstacle(names: Sequence[str], sticks: Optional[Sequence[UsbStick]]) -> Obstacle:
    """What is between a program and a stick.

    Args:
        names: of sticks that OpenVINO finds.
        sticks: that the kernel shows; None: it shows no USB.
    """
    seen = [stick for stick in sticks or () if stick.is_myriad_x]
    if seen and not any(stick.allowed for stick in seen):
        return Obstacle(
            f"the stick in port {seen[0].port} may not be opened ({seen[0].node}); install the "
            "udev rule (docs/ncs2.md) and plug it in again",
            passing=False,
        )
    if any(map(is_myriad_x, names)):
        return Obstacle()
    others = [*names, *(f"in port {stick.port}" for stick in sticks or () if stick not in seen)]
    if others and not seen:
        return Obstacle(
            f"the stick {others[0]} is no Myriad X; a Neural Compute Stick 2 ({_CHIP}) is needed",
            passing=False,
        )
    if sticks is None:
        return Obstacle(
            "no stick is found: this machine shows no USB; a container must be given it "
            "(docs/ncs2.md)",
            passing=False,
        )
    if not seen:
        return Obstacle(
            f"no stick is plugged in: USB shows no device of vendor {_VENDOR}", passing=False
        )
    if any(stick.booted for stick in seen):
        return Obstacle(
            "the stick is in use by another program, or was left by one that died; end it, or "
            "plug the stick in again",
            in_use=True,
        )
    return Obstacle("OpenVINO does not find the stick that USB shows; plug it in again")


def slowest_mbps(name: str, sticks: Optional[Sequence[UsbStick]]) -> float:
    """Speed of the link of a stick whose firmware runs; 0: unknown.

    Args:
        name: that OpenVINO gives the stick, such as ``1.4-ma2480``; empty: any. Where it is that
            of no port, or there is none, the slowest of all sticks counts.
    """
    booted = [stick for stick in sticks or () if stick.booted]
    ports = name.rpartition("-")[0]
    # The name may or may not begin with the bus, which changes when the firmware starts.
    own = [s for s in booted if ports and ports in (s.port.replace("-", "."), s.port[2:])]
    return min((stick.speed_mbps for stick in own or booted), default=0.0)
