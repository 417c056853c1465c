"""The committed stubs are those of agent.proto, and the agent's errors and values fit them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor

import hurricane.agents.proto
from hurricane.agents import wire
from hurricane.agents.backends.base import Availability, TargetInfo
from hurricane.agents.errors import AgentError, BadRequest, ErrorKind, Internal, error_of
from hurricane.agents.proto import agent_pb2 as pb
from hurricane.agents.proto import agent_pb2_grpc as pb_grpc
from hurricane.agents.results import ArtifactResult, Protocol, summarise

PROTO = Path(hurricane.agents.proto.__file__).with_name("agent.proto")
_TYPE_NAMES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def proto_text() -> str:
    return re.sub(r"//[^\n]*", "", PROTO.read_text())


def written_messages() -> dict[str, set[tuple[str, str, int]]]:
    """{message: {(type, field, number)}} as agent.proto says."""
    messages = {}
    for name, body in re.findall(r"message (\w+) \{((?:[^{}]|\{[^{}]*\})*)\}", proto_text()):
        fields = re.findall(r"((?:repeated )?(?:map<[^>]+>|\w+)) (\w+) = (\d+);", body)
        messages[name] = {
            (re.sub(r"\s", "", kind), field, int(number)) for kind, field, number in fields
        }
    return messages


def generated_type(field: FieldDescriptor) -> str:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = (generated_type(message.fields_by_name[name]) for name in ("key", "value"))
        return f"map<{key},{value}>"
    named = message or field.enum_type
    kind = named.name if named is not None else _TYPE_NAMES[field.type]
    return f"repeated{kind}" if field.is_repeated else kind


def test_stubs_have_the_messages_and_fields_of_the_proto() -> None:
    generated = {
        name: {(generated_type(field), field.name, field.number) for field in message.fields}
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }
    assert len(generated) > 20
    assert generated == written_messages()


def test_stubs_have_the_enums_of_the_proto() -> None:
    written = {
        name: {(value, int(number)) for value, number in re.findall(r"(\w+) = (\d+);", body)}
        for name, body in re.findall(r"enum (\w+) \{([^}]*)\}", proto_text())
    }
    generated = {
        name: {(value.name, value.number) for value in enum.values}
        for name, enum in pb.DESCRIPTOR.enum_types_by_name.items()
    }
    assert generated == written


def test_stubs_have_the_calls_of_the_proto() -> None:
    pattern = r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\);"
    written = {
        (name, request, bool(sends), response, bool(returns))
        for name, sends, request, returns, response in re.findall(pattern, proto_text())
    }
    service = pb.DESCRIPTOR.services_by_name["Agent"]
    generated = {
        (
            method.name,
            method.input_type.name,
            method.client_streaming,
            method.output_type.name,
            method.server_streaming,
        )
        for method in service.methods
    }
    assert service.full_name == "hurricane.agent.v1.Agent"
    assert generated == written
    assert all(hasattr(pb_grpc.AgentServicer, method.name) for method in service.methods)


def test_type_stubs_name_every_message() -> None:
    text = PROTO.with_name("agent_pb2.pyi").read_text()
    for name in pb.DESCRIPTOR.message_types_by_name:
        assert f"class {name}(_message.Message):" in text


def test_error_kinds_and_availabilities_have_the_wires_numbers() -> None:
    assert {kind.name: int(kind) for kind in ErrorKind} == {
        name: number for name, number in pb.ErrorKind.items() if number
    }
    assert {value.name: int(value) for value in Availability} == {
        name: number for name, number in pb.Availability.items() if number
    }


@pytest.mark.parametrize("kind", ErrorKind)
def test_every_kind_of_error_survives_the_wire(kind: ErrorKind) -> None:
    error = error_of(kind, "what, where, what to do")
    back = wire.error_from_wire(wire.error_to_wire(error))
    assert type(back) is type(error)
    assert (back.kind, str(back)) == (kind, "what, where, what to do")


def test_an_error_of_a_newer_agent_is_still_an_error() -> None:
    assert isinstance(error_of(99, "from the future"), Internal)


def test_values_survive_the_wire() -> None:
    target = TargetInfo(
        name="dsp-x-int8",
        device="d",
        processor="dsp",
        runtime="x",
        runtime_version="1.2",
        precision="int8",
        availability=Availability.EMULATED,
        reason="why",
        formats=("onnx-qdq", "dlc"),
        resident=False,
        device_time=True,
        options=("a", "b"),
        max_threads=3,
        defaults=("a=1",),
    )
    assert wire.target_from_wire(wire.target_to_wire(target)) == target
    protocol = Protocol(5, 4, 3, 2**63, 1.5, True)
    assert wire.protocol_from_wire(wire.protocol_to_wire(protocol)) == protocol
    wall_ms = np.arange(1.0, 21.0).reshape(5, 4)
    result = ArtifactResult(
        sha256="ab",
        wall=summarise(wall_ms),
        wall_ms=wall_ms,
        device_ms=wall_ms / 3,
        load_ms=2.5,
        first_call_ms=9.0,
        compute_unit="HTP",
        flags=("fallback:cpu",),
    )
    back = wire.event_from_wire(wire.event_to_wire(result), protocol)
    assert isinstance(back, ArtifactResult)
    for field in dataclasses.fields(ArtifactResult):
        ours, theirs = getattr(result, field.name), getattr(back, field.name)
        assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs


def test_a_timeout_of_zero_means_the_default() -> None:
    protocol = wire.protocol_from_wire(pb.Protocol(rounds=1, calls_per_visit=1))
    assert protocol.artifact_timeout_s == 60.0


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_tensors_survive_the_wire(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    back = wire.tensors_from_wire(wire.tensors_to_wire({"x": array}))["x"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    "tensor",
    [
        pb.Tensor(name="x", dtype="object", shape=[1], data=b"12345678"),
        pb.Tensor(name="x", dtype="float32", shape=[2], data=b"1234"),
        pb.Tensor(name="x", dtype="float32", shape=[2**62, 2**62], data=b"1234"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(tensor: pb.Tensor) -> None:
    with pytest.raises(BadRequest, match="'x'"):
        wire.tensors_from_wire([tensor])


def test_every_error_has_an_exit_status() -> None:
    statuses = {kind: error_of(kind, "").exit_status for kind in ErrorKind}
    assert statuses.pop(ErrorKind.BAD_REQUEST) == 2
    assert set(statuses.values()) == {AgentError.exit_status} == {1}
