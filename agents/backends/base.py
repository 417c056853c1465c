"""What a backend is: the part of the agent that drives one runtime.

A backend is one Python file with two functions::

    def targets(context: Context) -> list[TargetInfo]: ...
    def open_target(context, target, options, threads) -> Session: ...

Both are called in a child process that the agent can kill, never in the agent itself, so a
runtime may crash, hang or exhaust memory without costing more than the graph that caused it. The
child is in a sandbox (`agents.sandbox`): it reads its own code, shared libraries and facts about
the machine, writes nothing, and opens no socket. A runtime that needs more says so:

    NEEDS = Needs(write=("/dev/adsprpc-smd",))
    def needs(context: Context) -> Needs     # instead, where it depends on that

and a format that is not in `agents.formats` comes with its own check, which raises `BadRequest`
for whatever is not safe to be given to the runtime:

    CHECKS = {"my-format": check}          # check(content: bytes) -> None

The child opens one target, loads artefacts and asks for timed calls; a backend raises one of
`agents.errors` where it can tell what went wrong (any other exception is reported as
RUNTIME_CRASHED with its text, `MemoryError` as OUT_OF_MEMORY).
"""

from __future__ import annotations

import abc
import enum
import importlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np

from ..conditions import Conditions, read_conditions
from ..errors import BadRequest
from ..sandbox import Needs as Needs
from ..sandbox import advice

EIGHT_BITS = ("int8", "uint8")
"""Numpy's names of the types that inputs of an int8 graph have."""


class Availability(enum.IntEnum):
    """Whether a target can be used; names and numbers are those of agent.proto."""

    AVAILABLE = 1
    EMULATED = 2
    SIMULATED = 3
    UNAVAILABLE = 4
    ESTIMATED = 5
    COMPILED = 6

    @property
    def computed(self) -> bool:
        """Whether this machine's own processor works it out, by an emulator or a compiler."""
        return self in (Availability.EMULATED, Availability.ESTIMATED, Availability.COMPILED)

    @property
    def timed(self) -> bool:
        """Whether calls have times: those of emulators, and of compilers alone, have none."""
        return self not in (Availability.EMULATED, Availability.COMPILED, Availability.UNAVAILABLE)


@dataclass(frozen=True)
class Context:
    """How the agent was started, for backends.

    Args:
        device_name: name of the device that real targets run on.
        simulate: names of the simulated devices asked for (``("all",)``: every one there is).
        seed: seed of simulated devices.
        pace: ``virtual`` (a batch takes no longer than computing it) or ``real`` (simulated
            devices wait as a board would).
        user: name of the user that child processes run as; empty: the agent's own.
        read: paths that their sandbox leaves open for reading, beside what backends need.
        adb: serial of a phone that this machine's adb reaches, on which commands are run; empty:
            they are run on this machine.
        cache: folder for what takes time to make and may be lost; empty: nothing is kept.
    """

    device_name: str = ""
    simulate: tuple[str, ...] = ()
    seed: int = 0
    pace: str = "virtual"
    user: str = ""
    read: tuple[str, ...] = ()
    adb: str = ""
    cache: str = ""


@dataclass(frozen=True)
class TargetInfo:
    """One target as `Describe` reports it; fields are those of ``Target`` in agent.proto.

    Args:
        name: ``<processor>-<runtime>-<precision>`` or ``sim-…``, without ``-tN``.
        device: the device the numbers speak of.
        processor: cpu, dsp, vpu, npu or gpu.
        reason: why it is not available and what to do; empty where it is.
        formats: artefact formats it takes (``onnx``, …).
        resident: keeps many graphs loaded, so that rounds can be interleaved.
        device_time: samples carry ``device_ms``.
        options: names of the options that `open_target` understands.
        max_threads: highest number of threads it takes.
        defaults: ``key=value`` of options that a table names even where they were not asked for,
            as they hold then: what else changes the numbers must stand in no other place.
    """

    name: str
    device: str
    processor: str
    runtime: str
    runtime_version: str
    precision: str
    availability: Availability
    reason: str = ""
    formats: tuple[str, ...] = ("onnx",)
    resident: bool = True
    device_time: bool = False
    options: tuple[str, ...] = ()
    max_threads: int = 1
    defaults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One timed call: wall time on the session's clock, and the runtime's own counter if any."""

    wall_ms: float
    device_ms: Optional[float] = None


@dataclass(frozen=True)
class TensorInfo:
    """Name, numpy dtype name and shape of an input or output of a loaded graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Loaded(abc.ABC):
    """One artefact, ready to be called; its inputs are preset (`random_inputs`).

    Attributes:
        compute_unit: where it really runs (``CPU``, ``HTP``, ``SHAVE`` …), as the runtime tells.
        flags: what the reader of its numbers must know (``fallback:cpu``, ``precision:bf16`` …).
    """

    compute_unit: str = ""
    flags: tuple[str, ...] = ()

    @abc.abstractmethod
    def timed_calls(self, count: int) -> list[Sample]:
        """Calls the graph `count` times back to back on its preset inputs.

        A real runtime returns ``time_calls(self._run, count)``, or what it says itself of the
        wall time of each call; a simulated one returns what its virtual clock says, without
        waiting unless the pace is ``real``.
        """

    @abc.abstractmethod
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The graph's inputs."""

    @abc.abstractmethod
    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs for given inputs (numerical checks; not timed).

        Raises:
            BadRequest: an input is missing, unknown, or has the wrong shape or dtype.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what it holds. Called once."""


class Session(abc.ABC):
    """One target, opened in this process with its options and threads.

    Attributes:
        timed: whether calls can be timed; those of an emulator or a compiler are not.
        warms_up: whether calls make the next ones faster; not where `timed_calls` starts a
            program, which has warmed up itself or never does.
        ahead: how many artefacts it loads side by side, where it is told of them by `expect`.
    """

    timed: bool = True
    warms_up: bool = True
    ahead: int = 0

    @abc.abstractmethod
    def load(self, content: bytes, format: str) -> Loaded:
        """Loads an artefact that passed the check of its format.

        The runtime must be told the format: it is not to guess another one from the bytes.

        Raises:
            UnsupportedOperator: the runtime cannot read or run this graph.
            OutOfMemory, DeviceLost, BadRequest: as their names say.
        """

    def begin(self, seed: int) -> None:  # noqa: B027 - a hook, most backends need none
        """Called before each batch with the protocol's seed; simulated noise restarts here."""

    def expect(self, content: bytes, format: str) -> None:  # noqa: B027 - a hook
        """Called with each of the next `ahead` artefacts that `load` will be called with.

        Where loading takes long and waits for most of it, it may begin here; what goes wrong is
        raised by `load`.
        """

    def renew(self) -> None:  # noqa: B027 - a hook, most backends need none
        """Called between passes of a batch, unless it takes too large a share of the time: memory
        kept between calls is to be placed anew.

        Where buffers lie decides what meets in the caches, and stays the same for as long as they
        are kept: passes over different places tell what a graph takes in any of them. Must not
        raise.
        """

    def elapsed_ms(self) -> float:
        """The device's clock, in ms since some fixed moment (simulated: its virtual clock)."""
        return time.perf_counter() * 1e3

    def conditions(self) -> Conditions:
        """Temperature, frequency and load of the device now."""
        return read_conditions()

    def close(self) -> None:  # noqa: B027 - a hook, most backends need none
        """Frees the target. Called once, after everything loaded was closed."""


def time_calls(run: Callable[[], object], count: int) -> list[Sample]:
    """Times `count` calls of `run` back to back (a real runtime's `timed_calls`)."""
    clock = time.perf_counter_ns
    marks = [0] * (2 * count)
    for i in range(0, 2 * count, 2):
        marks[i] = clock()
        run()
        marks[i + 1] = clock()
    return [Sample((marks[i + 1] - marks[i]) / 1e6) for i in range(0, 2 * count, 2)]


def random_inputs(inputs: Sequence[TensorInfo], seed: int = 0) -> dict[str, np.ndarray]:
    """Fixed inputs for timing: uniform in [0.1, 1) for floats, so neither zeros nor denormals
    (both can be faster or far slower than real data); all values that 8 bits have; else small
    non-negative integers."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for tensor in inputs:
        dtype = np.dtype(tensor.dtype)
        if dtype.kind == "f":
            array = generator.uniform(0.1, 1.0, tensor.shape).astype(dtype)
        elif tensor.dtype in EIGHT_BITS:
            limits = np.iinfo(dtype)
            array = generator.integers(limits.min, limits.max, tensor.shape, dtype, endpoint=True)
        else:
            array = generator.integers(0, 2 if dtype.kind == "b" else 100, tensor.shape)
            array = array.astype(dtype)
        arrays[tensor.name] = array
    return arrays


def check_inputs(expected: Sequence[TensorInfo], given: Mapping[str, np.ndarray]) -> None:
    """Says which input is missing, unknown, or of the wrong shape or dtype.

    Raises:
        BadRequest: the inputs do not fit the graph.
    """
    names = {tensor.name for tensor in expected}
    unknown = sorted(set(given) - names)
    if unknown:
        raise BadRequest(f"the graph has no input '{unknown[0]}'; it has {', '.join(names)}")
    for tensor in expected:
        if tensor.name not in given:
            raise BadRequest(f"input '{tensor.name}' is missing")
        array = given[tensor.name]
        if tuple(array.shape) != tensor.shape or array.dtype != np.dtype(tensor.dtype):
            raise BadRequest(
                f"input '{tensor.name}' must be {tensor.dtype}{list(tensor.shape)}, "
                f"not {array.dtype}{list(array.shape)}"
            )


def check_options(target: str, known: Sequence[str], options: Mapping[str, str]) -> None:
    """Refuses an option that the target does not understand.

    Raises:
        BadRequest: an unknown option.
    """
    for name in options:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise BadRequest(f"target '{target}' has no option '{name}'; {takes}")


def check_threads(target: str, threads: int, max_threads: int) -> None:
    """Refuses a number of threads that the target cannot run.

    Raises:
        BadRequest: below one or above what the target has.
    """
    if not 1 <= threads <= max_threads:
        raise BadRequest(f"target '{target}' takes 1 to {max_threads} threads, not {threads}")


def check_format(target: str, formats: Sequence[str], format: str) -> None:
    """Refuses an artefact format that the target does not take.

    Raises:
        BadRequest: another format.
    """
    if format not in formats:
        raise BadRequest(f"target '{target}' takes {', '.join(formats)}, not '{format}'")


def check_eight_bits(target: str, inputs: Sequence[TensorInfo]) -> None:
    """Refuses a graph that is not quantised, for a target of precision int8.

    Raises:
        BadRequest: an input is not of 8 bits, or there is none.
    """
    if not inputs:
        raise BadRequest(
            f"target '{target}' takes graphs quantised to 8 bits, and this one has no input"
        )
    for tensor in inputs:
        if tensor.dtype not in EIGHT_BITS:
            raise BadRequest(
                f"target '{target}' takes graphs quantised to 8 bits, "
                f"and input '{tensor.name}' is {tensor.dtype}"
            )


def precision_flags(precisions: Sequence[str], expected: Sequence[str]) -> tuple[str, ...]:
    """Flags for convolutions and matrix products that run in another precision.

    Args:
        precisions: of each, as the runtime tells it.
        expected: those that the target's precision stands for.

    Returns:
        ``precision:f32-2/5`` where 2 of 5 run in f32; one flag for each other precision.
    """
    others = sorted(set(precisions) - set(expected))
    count = len(precisions)
    return tuple(f"precision:{other}-{precisions.count(other)}/{count}" for other in others)


def choice_of(options: Mapping[str, str], name: str, values: Sequence[str]) -> str:
    """The value of an option; the first of the possible ones where it is not given.

    Raises:
        BadRequest: a value that is not possible.
    """
    value = options.get(name, values[0])
    if value not in values:
        raise BadRequest(f"option '{name}' is one of {', '.join(values)}, not '{value}'")
    return value


def runtime_version(module: str, extra: str) -> tuple[str, str]:
    """Imports a runtime to see whether it works.

    Args:
        module: name of the runtime's module.
        extra: the extra of this distribution that brings it.

    Returns:
        Its version and "", or "" and why it cannot be used.
    """
    try:
        return str(importlib.import_module(module).__version__), ""
    except ModuleNotFoundError as error:
        if error.name != module:
            return "", f"{module} does not import: {error}"
        return "", f"{module} is not installed; run: pip install 'hurricane-nas[{extra}]'"
    except Exception as error:  # a broken installation may raise anything
        return "", f"{module} does not import: {error}{advice(error)}"


def cpu_targets(
    context: Context,
    runtime: str,
    version: str,
    reason: str,
    formats: Mapping[str, tuple[str, ...]],
    options: Mapping[str, tuple[str, ...]],
) -> list[TargetInfo]:
    """The targets of a runtime on this machine's CPU, one for each precision.

    Args:
        context: how the agent was started.
        runtime: its name.
        version: empty where it cannot be used.
        reason: why it cannot be used; empty where it can.
        formats, options: by precision.
    """
    return [
        TargetInfo(
            name=f"cpu-{runtime}-{precision}",
            device=context.device_name,
            processor="cpu",
            runtime=runtime,
            runtime_version=version,
            precision=precision,
            availability=Availability.UNAVAILABLE if reason else Availability.AVAILABLE,
            reason=reason,
            formats=taken,
            options=options[precision],
            max_threads=len(allowed_cores()),
        )
        for precision, taken in formats.items()
    ]


def precision_of_target(target: str) -> str:
    """The precision in a target's name."""
    return target.rpartition("-")[2]


def allowed_cores() -> list[int]:
    """The cores this process may run on, in ascending order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(threads: int) -> list[int]:
    """Keeps this process on as many cores as it has threads, and returns them.

    The highest numbers are taken: interrupts prefer core 0, and on most boards with unequal
    cores the fast ones come last. To be called before a runtime makes its threads. Where the
    system cannot pin, the cores are returned as they would have been.
    """
    cores = allowed_cores()[-threads:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    return cores


def one_line(text: str, limit: int = 400) -> str:
    """A runtime's message as one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
