"""Between the agent's values and the messages of agent.proto.

What comes from an agent is checked where it becomes a value: numbers are finite and in range,
counts are as asked for, text is printable and short. A breach is a `BadAnswer` that says what was
sent; the client adds by whom.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

import numpy as np

from .backends.base import Availability, TargetInfo
from .conditions import Conditions
from .errors import AgentError, BadAnswer, BadRequest, error_of
from .machine import DeviceInfo
from .proto import agent_pb2 as pb
from .redaction import redact
from .results import (
    Activity,
    ArtifactResult,
    BatchConditions,
    Event,
    Finished,
    Progress,
    Protocol,
    Queued,
    summarise,
)
from .sandbox import Isolation
from .text import printable

PROTOCOL_VERSION = 1
CHUNK_BYTES = 1024 * 1024
# Requests and answers of `Run` carry whole tensors.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
TOKEN_METADATA = "authorization"

# No runtime returns from a call in less than 100 ns: entering and leaving it takes longer.
MIN_WALL_MS = 1e-4
# A year. No time of ours comes near it, and sums of such times stay finite.
MAX_TIME_MS = 366 * 24 * 3.6e6
# How much longer something may seem to one clock than to another, as a share and in ms: clocks
# differ by parts per million, but are read with a delay, and not at the same moments.
CLOCK_SHARE = 0.05
CLOCK_MS = 1000.0
# What a table can hold; beyond, the unit is another one or the sensor is broken.
_TEMPERATURES_C = (-90.0, 200.0)
_FREQUENCIES_MHZ = (0.0, 20_000.0)
_MAX_LOAD = 1e6
# Kernels count in ticks, and count some of them twice: a share may be a little over 1.
_MAX_SHARE = 1.5
_MAX_COUNT = 2**53
_MAX_MEMORY_BYTES = 2**60
_MAX_CORES = 2**20
_MAX_THREADS = 2**16
_MAX_ENTRIES = 256
_MAX_DIMENSIONS = 32
# Characters kept of a text, by how much of it somebody wants to read.
_NAME_CHARS = 200
_WORD_CHARS = 60
_SENTENCE_CHARS = 1000
_NOT_IN_FLAGS = re.compile(r"[^A-Za-z0-9_.:=/+-]+")
_NOT_AT_THEIR_START = "_.:=/+-"

_DTYPES = {
    "bool",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
}


def error_to_wire(error: AgentError) -> pb.Error:
    """An error, without what its words may tell of this machine."""
    return pb.Error(kind=pb.ErrorKind.Name(int(error.kind)), message=redact(str(error)))


def error_from_wire(error: pb.Error) -> AgentError:
    return error_of(int(error.kind), sentence(error.message) or "the agent does not say why")


def sentence(text: str) -> str:
    """A message of an agent's, fit to be printed."""
    return printable(text, _SENTENCE_CHARS)


def word(text: str) -> str:
    """A name or a version of an agent's, fit to be printed."""
    return printable(text, _NAME_CHARS)


def device_to_wire(device: DeviceInfo) -> pb.Device:
    return pb.Device(**vars(device))


def device_from_wire(device: pb.Device) -> DeviceInfo:
    fields = _fields(device, DeviceInfo)
    in_range("a number of cores", device.cores, 0, _MAX_CORES)
    in_range("a memory in bytes", device.memory_bytes, 0, _MAX_MEMORY_BYTES)
    return DeviceInfo(**_printable_fields(fields))


def target_to_wire(target: TargetInfo) -> pb.Target:
    fields = dict(vars(target))
    fields["availability"] = pb.Availability.Name(int(target.availability))
    fields["reason"] = redact(target.reason)
    return pb.Target(**fields)


def target_from_wire(target: pb.Target) -> TargetInfo:
    fields = _fields(target, TargetInfo)
    try:
        fields["availability"] = Availability(target.availability)
    except ValueError:  # of a newer agent
        fields["availability"] = Availability.UNAVAILABLE
    if not target.name or target.name != printable(target.name, _NAME_CHARS):
        raise BadAnswer(f"the malformed target name {_shown(target.name)}")
    in_range("a highest number of threads", target.max_threads, 1, _MAX_THREADS)
    fields["formats"] = _texts("formats", target.formats)
    fields["options"] = _texts("options", target.options)
    fields["defaults"] = _texts("defaults", target.defaults)
    fields["reason"] = sentence(target.reason)
    return TargetInfo(**_printable_fields(fields, ("reason",)))


def isolation_to_wire(isolation: Isolation) -> pb.Isolation:
    return pb.Isolation(means=isolation.means, missing=isolation.missing)


def isolation_from_wire(isolation: pb.Isolation) -> Isolation:
    return Isolation(
        _texts("means of isolation", isolation.means),
        _texts("missing means of isolation", isolation.missing),
    )


def activity_to_wire(activity: Activity) -> pb.Activity:
    return pb.Activity(**vars(activity))


def activity_from_wire(activity: pb.Activity) -> Activity:
    fields = _printable_fields(_fields(activity, Activity))
    fields["done"] = min(activity.done, activity.total)
    in_range("a time in work in s", activity.elapsed_s, 0, MAX_TIME_MS / 1e3)
    return Activity(**fields)


def protocol_to_wire(protocol: Protocol) -> pb.Protocol:
    return pb.Protocol(**vars(protocol))


def protocol_from_wire(protocol: pb.Protocol) -> Protocol:
    """The protocol of a request.

    Raises:
        BadRequest: it measures nothing, and leaves nothing loaded.
    """
    if not protocol.calls_per_visit or not (protocol.rounds or protocol.keep_loaded):
        raise BadRequest(
            "a protocol needs at least one round and one call a visit; none only loads, and is "
            "for keep_loaded"
        )
    if not 0 <= protocol.artifact_timeout_s < float("inf"):
        raise BadRequest(f"artifact_timeout_s is {protocol.artifact_timeout_s}, not a time")
    fields = _fields(protocol, Protocol)
    fields["artifact_timeout_s"] = protocol.artifact_timeout_s or Protocol.artifact_timeout_s
    return Protocol(**fields)


def event_to_wire(event: Event) -> pb.BenchmarkEvent:
    if isinstance(event, Queued):
        return pb.BenchmarkEvent(queued=pb.Queued(ahead=event.ahead))
    if isinstance(event, Progress):
        return pb.BenchmarkEvent(progress=pb.Progress(**vars(event)))
    if isinstance(event, Finished):
        return pb.BenchmarkEvent(finished=pb.Finished(elapsed_ms=event.elapsed_ms))
    if isinstance(event, BatchConditions):
        conditions = pb.BatchConditions(
            before=conditions_to_wire(event.before),
            after=conditions_to_wire(event.after),
            flags=event.flags,
        )
        return pb.BenchmarkEvent(conditions=conditions)
    return pb.BenchmarkEvent(result=_result_to_wire(event))


def event_from_wire(event: pb.BenchmarkEvent, protocol: Protocol) -> Optional[Event]:
    """The event, or None for one that this version does not know.

    Raises:
        AgentError: the batch as a whole failed.
        BadAnswer: it cannot be right.
    """
    kind = event.WhichOneof("event")
    if kind == "queued":
        return Queued(event.queued.ahead)
    if kind == "progress":
        progress = event.progress
        step = printable(progress.step, _WORD_CHARS)
        return Progress(step, min(progress.done, progress.total), progress.total)
    if kind == "conditions":
        return BatchConditions(
            before=conditions_from_wire(event.conditions.before),
            after=conditions_from_wire(event.conditions.after),
            flags=_flags_from_wire(event.conditions.flags),
        )
    if kind == "result":
        return _result_from_wire(event.result, protocol)
    if kind == "finished":
        if event.finished.HasField("error"):
            raise error_from_wire(event.finished.error)
        elapsed_ms = event.finished.elapsed_ms
        return Finished(in_range("an elapsed time in ms", elapsed_ms, 0, MAX_TIME_MS))
    return None


def _result_to_wire(result: ArtifactResult) -> pb.ArtifactResult:
    if result.error is not None:
        return pb.ArtifactResult(sha256=result.sha256, error=error_to_wire(result.error))
    return pb.ArtifactResult(
        sha256=result.sha256,
        wall=None if result.wall is None else pb.Statistics(**vars(result.wall)),
        wall_ms=result.wall_ms.ravel().tolist(),
        device_ms=[] if result.device_ms is None else result.device_ms.ravel().tolist(),
        load_ms=result.load_ms,
        first_call_ms=result.first_call_ms,
        compute_unit=result.compute_unit,
        flags=result.flags,
    )


def _result_from_wire(result: pb.ArtifactResult, protocol: Protocol) -> ArtifactResult:
    if result.HasField("error"):
        return ArtifactResult(result.sha256, error=error_from_wire(result.error))
    wall_ms = _times_from_wire("wall", result.wall_ms, MIN_WALL_MS, protocol)
    device_ms = None
    if result.device_ms:
        # 0 is a counter that did not tick: it is coarser than the call was long.
        device_ms = _times_from_wire("device", result.device_ms, 0.0, protocol)
    return ArtifactResult(
        sha256=result.sha256,
        wall=summarise(wall_ms) if wall_ms.size else None,
        wall_ms=wall_ms,
        device_ms=device_ms,
        load_ms=in_range("a loading time in ms", result.load_ms, 0, MAX_TIME_MS),
        first_call_ms=in_range("a first call in ms", result.first_call_ms, 0, MAX_TIME_MS),
        compute_unit=printable(result.compute_unit, _WORD_CHARS),
        flags=_flags_from_wire(result.flags),
    )


def _times_from_wire(
    clock: str, times_ms: Sequence[float], least_ms: float, protocol: Protocol
) -> np.ndarray:
    """Timed calls [rounds, calls_per_visit] in ms, as many as asked for and none impossible."""
    shape = (protocol.rounds, protocol.calls_per_visit)
    if len(times_ms) != shape[0] * shape[1]:
        raise BadAnswer(f"{len(times_ms)} {clock} times instead of {shape[0]} x {shape[1]}")
    found = np.array(times_ms, float).reshape(shape)
    possible = (found >= least_ms) & (found <= MAX_TIME_MS)  # NaN is neither
    if not possible.all():
        raise BadAnswer(f"a {clock} time of {found[~possible][0]:g} ms")
    # Agents end a visit that takes longer, on whichever clock.
    limit_ms = later(1e3 * protocol.artifact_timeout_s)
    longest_ms = float(found.sum(axis=1).max(initial=0.0))
    if longest_ms > limit_ms:
        raise BadAnswer(
            f"{clock} times of {longest_ms:g} ms in one visit, which may take "
            f"{protocol.artifact_timeout_s:g} s"
        )
    return found


def _flags_from_wire(flags: Sequence[str]) -> tuple[str, ...]:
    """Flags as a table can hold them: words without spaces."""
    if len(flags) > _MAX_ENTRIES:
        raise BadAnswer(f"{len(flags)} flags of one result")
    words = (_NOT_IN_FLAGS.sub("-", printable(flag, _WORD_CHARS)) for flag in flags)
    words = (word.lstrip(_NOT_AT_THEIR_START).rstrip("-") for word in words)
    return tuple(dict.fromkeys(filter(None, words)))


def conditions_to_wire(conditions: Conditions) -> pb.Conditions:
    fields = dict(vars(conditions))
    del fields["ticks"]
    return pb.Conditions(**fields)


def conditions_from_wire(conditions: pb.Conditions) -> Conditions:
    in_range("a temperature in °C", conditions.temperature_c, *_TEMPERATURES_C)
    in_range("a frequency in MHz", conditions.frequency_mhz, *_FREQUENCIES_MHZ)
    in_range("a load average", conditions.load_1m, 0, _MAX_LOAD)
    in_range("a share of steal time", conditions.steal_share, 0, _MAX_SHARE)
    in_range("a share of other work", conditions.busy_share, 0, _MAX_SHARE)
    in_range("a number of throttling events", conditions.throttle_events, 0, _MAX_COUNT)
    names = [field.name for field in pb.Conditions.DESCRIPTOR.fields]
    fields = {name: getattr(conditions, name) for name in names}
    fields["unwatched"] = _texts("unwatched conditions", conditions.unwatched)
    return Conditions(**_printable_fields(fields))


def tensors_to_wire(tensors: Mapping[str, np.ndarray]) -> list[pb.Tensor]:
    """Named arrays as messages, little endian."""
    messages = []
    for name, array in tensors.items():
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        messages.append(
            pb.Tensor(name=name, dtype=array.dtype.name, shape=array.shape, data=little.tobytes())
        )
    return messages


def tensors_from_wire(messages: Iterable[pb.Tensor]) -> dict[str, np.ndarray]:
    """Named arrays of messages.

    Raises:
        BadRequest: an unknown dtype, data that do not fill the shape, or a name that is there
            twice or cannot be printed.
    """
    tensors: dict[str, np.ndarray] = {}
    for message in messages:
        name = _shown(message.name)
        if not message.name.isprintable() or len(message.name) > _SENTENCE_CHARS:
            raise BadRequest(f"{name} is no name of a tensor")
        if message.name in tensors:
            raise BadRequest(f"tensor {name} is there twice")
        if message.dtype not in _DTYPES:
            raise BadRequest(f"tensor {name} has the unknown dtype {_shown(message.dtype)}")
        dtype = np.dtype(message.dtype)
        if len(message.shape) > _MAX_DIMENSIONS:
            raise BadRequest(f"tensor {name} has {len(message.shape)} dimensions")
        shape = tuple(message.shape)
        size = extent = dtype.itemsize
        for length in shape:
            size *= length
            extent *= max(1, length)
        # An array without elements may not have other dimensions of any length either.
        if size != len(message.data) or extent > MAX_MESSAGE_BYTES:
            raise BadRequest(
                f"tensor {name} has {len(message.data)} bytes; "
                f"{message.dtype}{list(shape)} takes {size}"
            )
        little = np.frombuffer(message.data, dtype.newbyteorder("<"))
        tensors[message.name] = little.astype(dtype).reshape(shape)
    return tensors


def outputs_from_wire(answer: pb.RunResponse) -> dict[str, np.ndarray]:
    """Outputs of `Run`.

    Raises:
        AgentError: it failed on the agent.
        BadAnswer: they cannot be right.
    """
    if answer.HasField("error"):
        raise error_from_wire(answer.error)
    try:
        return tensors_from_wire(answer.outputs)
    except BadRequest as error:
        raise BadAnswer(f"wrong outputs: {error}") from error


def in_range(what: str, value: float, least: float, most: float) -> Any:
    """The value, if it lies between the two; `what` it is stands in the error.

    Raises:
        BadAnswer: it does not, or is no number.
    """
    if not least <= value <= most:  # nor does NaN
        raise BadAnswer(f"{what} of {value:g}")
    return value


def later(ms: float) -> float:
    """The most that another clock may show where one shows this, in ms."""
    return ms * (1 + CLOCK_SHARE) + CLOCK_MS


def _texts(what: str, texts: Sequence[str]) -> tuple[str, ...]:
    if len(texts) > _MAX_ENTRIES:
        raise BadAnswer(f"{len(texts)} {what}")
    return tuple(printable(text, _NAME_CHARS) for text in texts)


def _printable_fields(fields: Mapping[str, Any], but: Sequence[str] = ()) -> dict[str, Any]:
    """Values by name, with text as it can be printed."""
    return {
        name: printable(value, _NAME_CHARS) if isinstance(value, str) and name not in but else value
        for name, value in fields.items()
    }


def _shown(text: str) -> str:
    """A text of somebody else's in an error message."""
    return f"'{printable(text, _WORD_CHARS)}'"


def _fields(message: Any, cls: type) -> dict[str, Any]:
    """The message's values for the fields of a dataclass of the same names."""
    return {name: getattr(message, name) for name in cls.__dataclass_fields__}
