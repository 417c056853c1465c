"""A Myriad X on a Neural Compute Stick 2, by OpenVINO's MYRIAD plugin: target ``vpu-myriad-fp16``.

The plugin is in OpenVINO 2021.4 from the package index, and in archives of 2022.1 to 2022.3. Calls
are synchronous, one request at a time. Wall time is that on the host, with the way over USB; device
time is the sum of the plugin's counters of layers. How many graphs a stick keeps nothing tells:
where it takes no more, the one that was called least recently makes room, and is loaded again
before its next visit.

Written after OpenVINO's documentation and the plugin's messages; it has met no stick.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

import numpy as np

from ..conditions import Conditions, read_conditions
from ..errors import (
    AgentError,
    BadRequest,
    Busy,
    DeviceLost,
    OutOfMemory,
    RuntimeCrashed,
    UnsupportedOperator,
)
from ..sandbox import Needs
from ._myriad_plugin import (
    DEVICE,
    LOCK,
    layer_not_taken,
    load_libusb,
    lock_problem,
    make_lock,
    open_plugin,
)
from ._myriad_usb import (
    SUPER_SPEED_MBPS,
    Obstacle,
    is_myriad_x,
    obstacle,
    slowest_mbps,
    usb_sticks,
)
from ._openvino_legacy import (
    LARGEST_FILE_BYTES,
    Compiled,
    Counter,
    Engine,
    read_graph,
    reason_of,
)
from ._openvino_release import openvino_version
from .base import (
    Availability,
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    check_format,
    check_inputs,
    check_options,
    check_threads,
    one_line,
    random_inputs,
)

TARGET = "vpu-myriad-fp16"
SIMULATED = "Simulated "
"""What the name of the device begins with where the plugin is a stand-in that simulates one."""

_FORMATS = ("onnx",)
_OPTIONS = ("device",)
_FIRST, _LAST = (2021, 4), (2022, 3)
_REMEDY = "see docs/ncs2.md"

_SETTINGS = {
    "PERF_COUNT": "YES",
    # The whole chip for one request, and not half of it for each of two.
    "MYRIAD_THROUGHPUT_STREAMS": "1",
}
_RESET = {"MYRIAD_ENABLE_FORCE_RESET": "YES"}
"""A stick whose program was killed stays as it was, and would take no graph."""

_TRIES = 3
_WARM_UP = 2  # calls of a graph that was loaded anew
# Messages of the plugin, from its own text.
_GONE = (
    "Can not init Myriad device",
    "Failed to queue inference",
    "Failed to read output",
    "Failed to allocate graph",
    "Failed to init graph",
    "Failed to get thermal stats",
    "NC_ERROR",
    "NC_MYRIAD_ERROR",
    "NC_TIMEOUT",
    "NC_DEVICE_NOT_FOUND",
)
_FULL = ("NC_OUT_OF_MEMORY", "bad_alloc")
_MISSING = ("is not registered", "Cannot load library")
_OTHER_STICK = re.compile(r"no available devices with platform|Myriad device: \S+ not found")


def needs(context: Context) -> Needs:
    """USB, with the kernel's news of it; a folder for graphs; the plugin's lock."""
    read = ["/sys/bus/usb", "/run/udev"]
    if usb_sticks():
        make_lock()  # what is not there cannot be left open
        read.append(LOCK)
    write = ("/dev/bus/usb",)
    # Without that news libusb does not start.
    return Needs(tuple(read), write, scratch_bytes=LARGEST_FILE_BYTES, netlink=True)


def targets(context: Context) -> list[TargetInfo]:
    """The one target, with the reason where there is no plugin, or no stick."""
    names: list[str] = []
    wanted = "2021.4, or an archive of 2022.1 to 2022.3"
    version, reason = openvino_version(_FIRST, _LAST, wanted, _REMEDY)
    device = ""
    if not reason:
        try:
            engine = _open()
            names = _names(engine)
            sticks = usb_sticks()
            reason = obstacle(names, sticks).words or (lock_problem() if sticks else "")
            device = "" if reason else _full_name(engine, names)
        except AgentError as error:
            reason = str(error)
    several = [name for name in names if is_myriad_x(name)]
    simulated = device.startswith(SIMULATED)
    found = Availability.SIMULATED if simulated else Availability.AVAILABLE
    return [
        TargetInfo(
            name=TARGET,
            device=device or "Myriad X",
            processor="vpu",
            runtime="myriad",
            runtime_version=version,
            precision="fp16",
            availability=Availability.UNAVAILABLE if reason else found,
            reason=reason,
            formats=_FORMATS,
            resident=True,
            device_time=True,
            options=_OPTIONS,
            # Each stick fills a table of its own.
            defaults=(f"device={several[0]}",) if len(several) > 1 else (),
        )
    ]


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> MyriadSession:
    """Opens a stick; nothing is loaded on it yet.

    Args:
        options: ``device``: the name that OpenVINO gives a stick, such as ``1.4-ma2480``; else
            the first.

    Raises:
        BadRequest: an unknown option, no such stick, more than one thread, or no plugin.
        DeviceLost, Busy: there is no stick that can be used.
    """
    check_options(target, _OPTIONS, options)
    check_threads(target, threads, 1)
    engine = _open()
    names = [name for name in _names(engine) if is_myriad_x(name)]
    asked = options.get("device")
    if asked is not None and names and asked not in names:
        if is_myriad_x(asked):
            raise DeviceLost(f"the stick {asked} is not there; there are {', '.join(names)}")
        raise BadRequest(f"option 'device' is one of {', '.join(names)}, not '{asked}'")
    found = obstacle(names, usb_sticks())
    if found.words:
        raise _absent(found)
    simulated = _full_name(engine, names).startswith(SIMULATED)
    several = names[0] if len(names) > 1 else ""
    return MyriadSession(engine, asked or several, simulated)


def _open() -> Engine:
    """The core, with libusb there before its plugin looks for it.

    Raises:
        BadRequest: there is no plugin, or it does not load.
    """
    with contextlib.suppress(OSError):  # else the plugin says so
        load_libusb()
    return open_plugin()


def _names(engine: Engine) -> list[str]:
    """Names of all sticks that OpenVINO finds."""
    try:
        return sorted(engine.fact(DEVICE, "AVAILABLE_DEVICES"))
    except Exception as error:
        raise _typed(error) from error


def _full_name(engine: Engine, names: Sequence[str]) -> str:
    """What a stick calls itself; empty: it does not tell."""
    with contextlib.suppress(Exception):
        return one_line(str(engine.fact(f"{DEVICE}.{names[0]}", "FULL_DEVICE_NAME")), 80)
    return ""


class MyriadSession(Session):
    """One stick, and the graphs that are on it."""

    def __init__(self, engine: Engine, name: str, simulated: bool) -> None:
        self.simulated = simulated
        self._engine = engine
        self._name = name
        self._device = f"{DEVICE}.{name}" if name else DEVICE
        self._reset = True
        self._placed: dict[MyriadGraph, Compiled] = {}  # the latest call at the end

    def load(self, content: bytes, format: str) -> MyriadGraph:
        check_format(TARGET, _FORMATS, format)
        return MyriadGraph(self, read_graph(self._engine, content))

    def place(self, graph: MyriadGraph, model: Any) -> tuple[Compiled, bool]:
        """Has a graph on the stick, and makes room for it where there is none.

        Returns:
            The graph there, and whether it was brought there just now.
        """
        placed = self._placed.pop(graph, None)
        fresh = placed is None
        if placed is None:
            placed = self._bring(model)
        self._placed[graph] = placed
        return placed, fresh

    def remove(self, graph: MyriadGraph) -> None:
        """Takes a graph off the stick."""
        self._placed.pop(graph, None)

    def conditions(self) -> Conditions:
        """Temperature of the stick; load and the like of the host, whose calls are timed."""
        heat = self._temperature_c()
        if self.simulated:  # on a clock of its own, which the host does not disturb
            return Conditions(temperature_c=heat)
        return replace(read_conditions(), temperature_c=heat, frequency_mhz=0.0)

    def flags(self) -> tuple[str, ...]:
        """What the reader of times must know of the stick."""
        found = ["simulated"] if self.simulated else []
        speed = slowest_mbps(self._name, usb_sticks())
        if 0 < speed < SUPER_SPEED_MBPS:
            found.append(f"usb:{speed:g}")
        return tuple(found)

    def close(self) -> None:
        self._placed.clear()
        del self._engine

    def _bring(self, model: Any) -> Compiled:
        """Loads a graph.

        Raises:
            DeviceLost, Busy: the stick does not answer, after some tries.
            OutOfMemory: the graph is too large for an empty stick.
        """
        left = _TRIES
        while True:
            settings = {**_SETTINGS, **(_RESET if self._reset else {})}
            try:
                compiled = self._engine.load(model, self._device, settings)
                self._reset = False  # it would take the graphs off that are there
                return compiled
            except Exception as error:
                problem = _typed(error, UnsupportedOperator)
                if not isinstance(problem, (DeviceLost, OutOfMemory)):
                    raise problem from error
                if self._placed and self._answers():  # so it is full
                    del self._placed[next(iter(self._placed))]
                    continue
                if self._placed or isinstance(problem, OutOfMemory):
                    raise problem from error
                left -= 1
                found = obstacle(self._found(), usb_sticks())
                if not left or not found.passing:
                    raise (_absent(found) if found.words else problem) from error

    def _answers(self) -> bool:
        """Whether the stick still computes what is on it."""
        newest = next(reversed(self._placed))
        try:
            self._placed[newest].call()
        except Exception:
            return False
        return True

    def _found(self) -> list[str]:
        try:
            return _names(self._engine)
        except AgentError:
            return []

    def _temperature_c(self) -> float:
        for compiled in self._placed.values():
            with contextlib.suppress(Exception):
                return float(compiled.fact("DEVICE_THERMAL"))
        return 0.0


class MyriadGraph(Loaded):
    """One graph, on the stick or about to be."""

    def __init__(self, session: MyriadSession, model: Any) -> None:
        self._session, self._model = session, model
        compiled, _ = session.place(self, model)
        try:
            self._inputs = compiled.inputs()
            self._preset = random_inputs(self._inputs)
            compiled.preset(self._preset)
        except Exception as error:
            session.remove(self)
            raise _typed(error) from error
        self.compute_unit = f"simulated:{DEVICE}" if session.simulated else DEVICE
        self.flags = session.flags()

    def timed_calls(self, count: int) -> list[Sample]:
        compiled = self._ready()
        try:
            return [_sample(compiled) for _ in range(count)]
        except Exception as error:
            raise _typed(error) from error

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_inputs(self._inputs, inputs)
        compiled = self._ready()
        try:
            compiled.preset(inputs)
            compiled.call()
            found = compiled.outputs()
            compiled.preset(self._preset)
        except Exception as error:
            raise _typed(error) from error
        return found

    def close(self) -> None:
        self._session.remove(self)
        del self._model

    def _ready(self) -> Compiled:
        """The graph on the stick, with its inputs in place and not called for the first time."""
        compiled, fresh = self._session.place(self, self._model)
        if fresh:
            try:
                compiled.preset(self._preset)
                for _ in range(_WARM_UP):
                    compiled.call()
            except Exception as error:
                raise _typed(error) from error
        return compiled


def _sample(compiled: Compiled) -> Sample:
    wall_ms = compiled.call()
    return Sample(wall_ms, device_time_ms(compiled.counters()))


def device_time_ms(counters: Sequence[Counter]) -> Optional[float]:
    """Time of all layers on the device, in ms; None: the plugin tells none.

    What belongs to no layer is called ``<Extra>`` or the like, and left out.
    """
    own = [c for c in counters if not c.name.startswith("<") and not c.kind.startswith("<")]
    return sum(counter.real_ms for counter in own) or None


def _absent(found: Obstacle) -> AgentError:
    """No stick can be used."""
    return Busy(found.words) if found.in_use else DeviceLost(found.words)


def _lost(text: str) -> DeviceLost:
    """The stick that was there does not answer."""
    sticks = usb_sticks()
    gone = "it is gone from USB; " if sticks == () else ""
    return DeviceLost(f"the stick does not answer ({text}): {gone}plug it in again")


def _typed(error: Exception, otherwise: type[AgentError] = RuntimeCrashed) -> AgentError:
    """The error of a kind that an exception of the plugin stands for.

    Args:
        otherwise: of one whose text is not known.
    """
    if isinstance(error, AgentError):
        return error
    text = reason_of(error)
    if not_taken := layer_not_taken(text):
        return UnsupportedOperator(not_taken)
    if isinstance(error, MemoryError) or any(words in text for words in _FULL):
        return OutOfMemory(f"the stick has no memory left: {text}")
    if any(words in text for words in _MISSING):
        return BadRequest(f"openvino: {text}")
    if _OTHER_STICK.search(text):
        return DeviceLost(f"there is no such stick: {text}; agent info lists those that there are")
    if any(words in text for words in _GONE):
        return _lost(text)
    return otherwise(f"openvino: {text}")
