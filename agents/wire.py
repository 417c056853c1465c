"""Between the agent's values and the messages of agent.proto."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional

import numpy as np

from .backends.base import Availability, TargetInfo
from .conditions import Conditions
from .errors import AgentError, BadRequest, error_of
from .machine import DeviceInfo
from .proto import agent_pb2 as pb
from .results import (
    Activity,
    ArtifactResult,
    Event,
    Finished,
    Progress,
    Protocol,
    Queued,
    Statistics,
)

PROTOCOL_VERSION = 1
CHUNK_BYTES = 1024 * 1024
# Requests and answers of `Run` carry whole tensors.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
TOKEN_METADATA = "authorization"

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
    return pb.Error(kind=pb.ErrorKind.Name(int(error.kind)), message=str(error))


def error_from_wire(error: pb.Error) -> AgentError:
    return error_of(int(error.kind), error.message)


def device_to_wire(device: DeviceInfo) -> pb.Device:
    return pb.Device(**vars(device))


def device_from_wire(device: pb.Device) -> DeviceInfo:
    return DeviceInfo(**_fields(device, DeviceInfo))


def target_to_wire(target: TargetInfo) -> pb.Target:
    fields = dict(vars(target))
    fields["availability"] = pb.Availability.Name(int(target.availability))
    return pb.Target(**fields)


def target_from_wire(target: pb.Target) -> TargetInfo:
    fields = _fields(target, TargetInfo)
    try:
        fields["availability"] = Availability(target.availability)
    except ValueError:  # of a newer agent
        fields["availability"] = Availability.UNAVAILABLE
    fields["formats"] = tuple(target.formats)
    fields["options"] = tuple(target.options)
    return TargetInfo(**fields)


def activity_to_wire(activity: Activity) -> pb.Activity:
    return pb.Activity(**vars(activity))


def activity_from_wire(activity: pb.Activity) -> Activity:
    return Activity(**_fields(activity, Activity))


def protocol_to_wire(protocol: Protocol) -> pb.Protocol:
    return pb.Protocol(**vars(protocol))


def protocol_from_wire(protocol: pb.Protocol) -> Protocol:
    """The protocol of a request.

    Raises:
        BadRequest: it measures nothing.
    """
    if not protocol.rounds or not protocol.calls_per_visit:
        raise BadRequest("a protocol needs at least one round and one call a visit")
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
    return pb.BenchmarkEvent(result=_result_to_wire(event))


def event_from_wire(event: pb.BenchmarkEvent, protocol: Protocol) -> Optional[Event]:
    """The event, or None for one that this version does not know.

    Raises:
        AgentError: the batch as a whole failed.
    """
    kind = event.WhichOneof("event")
    if kind == "queued":
        return Queued(event.queued.ahead)
    if kind == "progress":
        return Progress(event.progress.step, event.progress.done, event.progress.total)
    if kind == "result":
        return _result_from_wire(event.result, protocol)
    if kind == "finished":
        if event.finished.HasField("error"):
            raise error_from_wire(event.finished.error)
        return Finished(event.finished.elapsed_ms)
    return None


def _result_to_wire(result: ArtifactResult) -> pb.ArtifactResult:
    if result.error is not None or result.wall is None:
        error = result.error or AgentError("nothing was measured")
        return pb.ArtifactResult(sha256=result.sha256, error=error_to_wire(error))
    return pb.ArtifactResult(
        sha256=result.sha256,
        wall=pb.Statistics(**vars(result.wall)),
        wall_ms=result.wall_ms.ravel().tolist(),
        device_ms=[] if result.device_ms is None else result.device_ms.ravel().tolist(),
        load_ms=result.load_ms,
        first_call_ms=result.first_call_ms,
        compute_unit=result.compute_unit,
        flags=result.flags,
        before=conditions_to_wire(result.before),
        after=conditions_to_wire(result.after),
    )


def _result_from_wire(result: pb.ArtifactResult, protocol: Protocol) -> ArtifactResult:
    if result.HasField("error"):
        return ArtifactResult(result.sha256, error=error_from_wire(result.error))
    shape = (protocol.rounds, protocol.calls_per_visit)
    device_ms = np.array(result.device_ms).reshape(shape) if result.device_ms else None
    return ArtifactResult(
        sha256=result.sha256,
        wall=Statistics(**_fields(result.wall, Statistics)),
        wall_ms=np.array(result.wall_ms).reshape(shape),
        device_ms=device_ms,
        load_ms=result.load_ms,
        first_call_ms=result.first_call_ms,
        compute_unit=result.compute_unit,
        flags=tuple(result.flags),
        before=conditions_from_wire(result.before),
        after=conditions_from_wire(result.after),
    )


def conditions_to_wire(conditions: Conditions) -> pb.Conditions:
    fields = dict(vars(conditions))
    del fields["ticks"]
    return pb.Conditions(**fields)


def conditions_from_wire(conditions: pb.Conditions) -> Conditions:
    names = [field.name for field in pb.Conditions.DESCRIPTOR.fields]
    return Conditions(**{name: getattr(conditions, name) for name in names})


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
        BadRequest: an unknown dtype, or data that do not fill the shape.
    """
    tensors = {}
    for message in messages:
        if message.dtype not in _DTYPES:
            raise BadRequest(f"tensor '{message.name}' has the unknown dtype '{message.dtype}'")
        dtype = np.dtype(message.dtype)
        shape = tuple(message.shape)
        size = dtype.itemsize
        for length in shape:
            size *= length
        if size != len(message.data):
            raise BadRequest(
                f"tensor '{message.name}' has {len(message.data)} bytes; "
                f"{message.dtype}{list(shape)} takes {size}"
            )
        little = np.frombuffer(message.data, dtype.newbyteorder("<"))
        tensors[message.name] = little.astype(dtype).reshape(shape)
    return tensors


def _fields(message: Any, cls: type) -> dict[str, Any]:
    """The message's values for the fields of a dataclass of the same names."""
    return {name: getattr(message, name) for name in cls.__dataclass_fields__}
