"""The host trusts no agent: what one sends that cannot be right is refused with its address, and
text is stripped of what a terminal would obey. The agents are those of agents_rogue.py."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hurricane.agents import client as module
from hurricane.agents import wire
from hurricane.agents.client import AgentClient, Progress, Protocol, check_artifact
from hurricane.agents.errors import (
    AgentError,
    BadAnswer,
    BadRequest,
    ErrorKind,
    Internal,
    Unreachable,
)
from hurricane.agents.proto import agent_pb2 as pb
from hurricane.agents.results import ArtifactResult, Finished, summarise
from hurricane.agents.text import printable

from .agents_rogue import SIMULATED, TARGET, Rogue, description, events

pytestmark = pytest.mark.process

DIGESTS = ["a" * 64, "b" * 64]
ROUNDS, CALLS = 3, 2
PROTOCOL = Protocol(rounds=ROUNDS, calls_per_visit=CALLS)
NAN, INF = float("nan"), float("inf")
ESCAPED = "\x1b[2J\x1b]0;owned\x07\u202ered\u2066\x9b31m\r\nand more\x00\x7f\u200b"
HARMLESS = "red and more"
DEADLINE_S = 20.0

Events = list[Any]
Change = Callable[[Events], Events]


def measured(address: str, target: str = TARGET) -> dict[str, ArtifactResult]:
    with AgentClient(address) as agent:
        return agent.benchmark(DIGESTS, target, protocol=PROTOCOL)


def changing(change: Change) -> Rogue:
    """An agent that is honest up to what is changed in its answers to a batch."""
    return Rogue(benchmark=lambda request: change(events(request)))


def result(**fields: Any) -> Change:
    """The first result with other fields; a list is taken as the whole field."""

    def change(told: Events) -> Events:
        found = next(event.result for event in told if event.HasField("result"))
        for name, value in fields.items():
            if isinstance(value, list):
                found.ClearField(name)
                getattr(found, name).extend(value)
            else:
                setattr(found, name, value)
        return told

    return change


def one(field: str, value: float) -> Change:
    """One call of the first result with another time."""

    def change(told: Events) -> Events:
        getattr(next(e.result for e in told if e.HasField("result")), field)[ROUNDS] = value
        return told

    return change


def every(field: str, value: float) -> Change:
    """All calls of all results with another time."""

    def change(told: Events) -> Events:
        for event in told:
            if event.HasField("result"):
                getattr(event.result, field)[:] = [value] * (ROUNDS * CALLS)
        return told

    return change


def conditions(**fields: Any) -> Change:
    def change(told: Events) -> Events:
        after = next(e.conditions for e in told if e.HasField("conditions")).after
        after.MergeFrom(pb.Conditions(**fields))
        return told

    return change


def finished(**fields: Any) -> Change:
    def change(told: Events) -> Events:
        return [*told[:-1], pb.BenchmarkEvent(finished=pb.Finished(**fields))]

    return change


def endless(event: pb.BenchmarkEvent) -> Change:
    return lambda told: itertools.repeat(event)


def digest(text: str) -> Change:
    return result(sha256=text)


# What an agent answers to a batch, and what is said of it.
WRONG_BATCHES: dict[str, tuple[Change, str]] = {
    "negative": (one("wall_ms", -3.0), "a wall time of -3 ms"),
    "zero": (one("wall_ms", 0.0), "a wall time of 0 ms"),
    "minus zero": (one("wall_ms", -0.0), "a wall time of -0 ms"),
    "not a number": (one("wall_ms", NAN), "a wall time of nan ms"),
    "infinite": (one("wall_ms", INF), "a wall time of inf ms"),
    "minus infinite": (one("wall_ms", -INF), "a wall time of -inf ms"),
    "far too small": (one("wall_ms", 0.9e-4), "a wall time of 9e-05 ms"),
    "denormal": (one("wall_ms", 5e-324), "a wall time of 4.94066e-324 ms"),
    "beyond all time": (one("wall_ms", 1e300), r"a wall time of 1e\+300 ms"),
    "longer than it may take": (one("wall_ms", 9e4), "wall times of 90000 ms in one visit"),
    "all at their limits": (every("wall_ms", 150.0), "wall times of 1800 ms in a batch"),
    "longer than was waited": (one("wall_ms", 5e4), "wall times of 50000.1 ms in a batch"),
    "all wrong": (every("wall_ms", -1.0), "a wall time of -1 ms"),
    "device not a number": (one("device_ms", NAN), "a device time of nan ms"),
    "device negative": (one("device_ms", -1e-9), "a device time of -1e-09 ms"),
    "device infinite": (one("device_ms", INF), "a device time of inf ms"),
    "device longer than was waited": (every("device_ms", 700.0), "device times of 4200 ms in"),
    "device times of some calls": (result(device_ms=[0.01] * 5), "5 device times instead of 3 x 2"),
    "too many device times": (result(device_ms=[0.01] * 7), "7 device times instead of 3 x 2"),
    "one call too few": (result(wall_ms=[0.01] * 5), "5 wall times instead of 3 x 2"),
    "one call too many": (result(wall_ms=[0.01] * 7), "7 wall times instead of 3 x 2"),
    "no calls": (result(wall_ms=[]), "0 wall times instead of 3 x 2"),
    "a million calls": (result(wall_ms=[0.01] * 10**6), "1000000 wall times instead of 3 x 2"),
    "negative loading": (result(load_ms=-1.0), "a loading time in ms of -1"),
    "loading not a number": (result(load_ms=NAN), "a loading time in ms of nan"),
    "negative first call": (result(first_call_ms=-1.0), "a first call in ms of -1"),
    "endless first call": (result(first_call_ms=INF), "a first call in ms of inf"),
    "negative elapsed": (finished(elapsed_ms=-1.0), "an elapsed time in ms of -1"),
    "elapsed not a number": (finished(elapsed_ms=NAN), "an elapsed time in ms of nan"),
    "elapsed more than was waited": (finished(elapsed_ms=6e4), "an elapsed time of 60000 ms in a"),
    "temperature not a number": (conditions(temperature_c=NAN), "a temperature in °C of nan"),
    "hot as the sun": (conditions(temperature_c=5778.0), "a temperature in °C of 5778"),
    "negative frequency": (conditions(frequency_mhz=-1.0), "a frequency in MHz of -1"),
    "frequency in Hz": (conditions(frequency_mhz=1e9), r"a frequency in MHz of 1e\+09"),
    "endless load": (conditions(load_1m=INF), "a load average of inf"),
    "steal not a number": (conditions(steal_share=NAN), "a share of steal time of nan"),
    "more than all stolen": (conditions(steal_share=7.0), "a share of steal time of 7"),
    "negative other work": (conditions(busy_share=-0.5), "a share of other work of -0.5"),
    "a thousand unwatched": (conditions(unwatched=["x"] * 1000), "1000 unwatched conditions"),
    "throttled without end": (conditions(throttle_events=2**63), "a number of throttling events"),
    "a thousand flags": (result(flags=["x"] * 1000), "1000 flags of one result"),
    "missing": (lambda told: [*told[:2], *told[3:]], "a batch without 1 of 2 results"),
    "all missing": (lambda told: told[-1:], "a batch without 2 of 2 results"),
    "doubled": (lambda told: [*told[:3], *told[2:]], "a second result of aaaa"),
    "doubled as an error": (
        lambda told: [
            *told[:3],
            pb.BenchmarkEvent(
                result=pb.ArtifactResult(sha256=DIGESTS[0], error=pb.Error(kind=pb.BUSY))
            ),
            *told[3:],
        ],
        "a second result of aaaa",
    ),
    "foreign": (digest("c" * 64), "a result of 'cccc.*', which was not asked for"),
    "shouted": (digest("A" * 64), "a result of 'AAAA.*', which was not asked for"),
    "without a digest": (digest(""), "a result of '', which was not asked for"),
    "escaped digest": (digest(ESCAPED), f"a result of '{HARMLESS}', which was not asked for"),
    "a result after the end": (lambda told: [*told, told[2]], "'result' after the end"),
    "another end": (lambda told: [*told, told[-1]], "'finished' after the end of a batch"),
    "progress after the end": (lambda told: [*told, told[0]], "'progress' after the end"),
    "an early end": (lambda told: told[:-1], "the end of a batch without 0 of 2 results"),
    "an early end with one result": (lambda told: told[:3], "without 1 of 2 results"),
    "no conditions": (lambda told: [told[0], *told[2:]], "a result without the conditions"),
    "nothing": (lambda told: [], "the end of a batch without 2 of 2 results"),
    "bytes that are none": (lambda told: [b"\xff" * 40, *told], "bytes that are no BenchmarkEvent"),
    "cut off": (
        lambda told: [told[2].SerializeToString()[:-3], *told[3:]],
        "bytes that are no BenchmarkEvent",
    ),
    "text that is no text": (
        lambda told: [told[2].SerializeToString().replace(b"fallback:cpu", b"fallback:\xff\xfe!")],
        "bytes that are no BenchmarkEvent",
    ),
    "a message too large": (
        lambda told: [bytes(wire.MAX_MESSAGE_BYTES + 1)],
        f"a message of more than {wire.MAX_MESSAGE_BYTES} bytes",
    ),
    "progress without end": (
        endless(pb.BenchmarkEvent(progress=pb.Progress(step="load", done=1, total=2))),
        "news without end",
    ),
    "places in a queue without end": (
        endless(pb.BenchmarkEvent(queued=pb.Queued(ahead=3))),
        "news without end",
    ),
    "unknown events without end": (endless(pb.BenchmarkEvent()), "news without end"),
}


@pytest.mark.parametrize(("change", "words"), WRONG_BATCHES.values(), ids=WRONG_BATCHES)
def test_what_cannot_be_right_is_refused_and_names_the_agent(
    change: Change, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with changing(change).serving() as address:
        with pytest.raises(BadAnswer, match=words) as caught:
            measured(address)
        with pytest.raises(BadAnswer):  # also the first time that it is asked anything
            measured(address)
    check_named(caught.value, address)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def check_named(error: AgentError, address: str) -> None:
    """One printable line that says who, with status 1."""
    assert str(error).startswith(f"the agent at {address} sent ")
    assert str(error).isprintable()
    assert len(str(error)) < 1200
    assert (error.kind, error.exit_status) == (ErrorKind.INTERNAL, 1)


def test_an_honest_agent_is_believed() -> None:
    with Rogue().serving() as address:
        for target in (TARGET, SIMULATED):
            results = measured(address, target)
            assert list(results) == DIGESTS
            for found in results.values():
                assert found.wall == summarise(np.full((ROUNDS, CALLS), 0.01))
                assert found.device_ms is not None
                assert found.device_ms.shape == found.wall_ms.shape == (ROUNDS, CALLS)


def test_the_smallest_times_there_are_pass() -> None:
    def change(told: Events) -> Events:
        return every("device_ms", 0.0)(every("wall_ms", wire.MIN_WALL_MS)(told))

    with changing(change).serving() as address:
        found = measured(address)[DIGESTS[0]]
    assert found.device_ms is not None
    assert (found.wall_ms == 1e-4).all()
    assert not found.device_ms.any()


@pytest.mark.parametrize("word", ["wall_ms", "device_ms"])
def test_a_simulated_device_has_a_clock_of_its_own(word: str) -> None:
    def change(told: Events) -> Events:
        return finished(elapsed_ms=1e9)(every(word, 20_000.0)(told))

    with changing(change).serving() as address:
        assert len(measured(address, SIMULATED)) == 2
        with pytest.raises(BadAnswer, match="in a batch"):
            measured(address)
        # What an agent says of a target counts, whatever the target is called.
        with AgentClient(address) as agent:
            assert agent.describe().target(TARGET).availability.name == "AVAILABLE"
            with pytest.raises(BadAnswer, match="in a batch"):
                agent.benchmark(DIGESTS, TARGET, protocol=PROTOCOL)


@pytest.mark.parametrize("availability", ["EMULATED", "ESTIMATED", "COMPILED"])
def test_an_emulator_and_an_estimate_have_a_clock_of_their_own(availability: str) -> None:
    def told(request: Any) -> pb.DescribeResponse:
        answer = description()
        answer.targets[0].availability = pb.Availability.Value(availability)
        return answer

    rogue = changing(every("wall_ms", 20_000.0))
    rogue.describe = told
    with rogue.serving() as address, AgentClient(address) as agent:
        agent.describe()
        assert len(agent.benchmark(DIGESTS, TARGET, protocol=PROTOCOL)) == 2


def test_what_an_agent_says_of_its_samples_counts_for_nothing() -> None:
    def change(told: Events) -> Events:
        for event in told:
            if event.HasField("result"):
                event.result.wall.CopyFrom(pb.Statistics(median_ms=-1, samples=10**6, min_ms=NAN))
        return told

    with changing(change).serving() as address:
        found = measured(address)[DIGESTS[0]]
    assert found.wall == summarise(np.full((ROUNDS, CALLS), 0.01))


def test_kinds_of_events_and_errors_of_a_newer_agent_are_no_breach() -> None:
    unknown = b"\xf2\x01\x03abc"  # field 30
    failed = pb.ArtifactResult(sha256=DIGESTS[1], error=pb.Error(message="of the future"))
    raw = failed.SerializeToString() + b"\x12\x02\x08\x63"  # error { kind: 99 }

    def change(told: Events) -> Events:
        event = b"\x1a" + bytes([len(raw)]) + raw
        return [unknown, *told[:3], event, b"", told[-1], unknown]

    with changing(change).serving() as address:
        results = measured(address)
    assert results[DIGESTS[0]].error is None
    error = results[DIGESTS[1]].error
    assert type(error) is Internal
    assert str(error) == "of the future"


@pytest.mark.parametrize("kind", [0, *ErrorKind, 99])
def test_an_end_with_an_error_is_a_typed_error(kind: int) -> None:
    error = pb.Error(kind=kind, message=ESCAPED)
    with changing(finished(error=error)).serving() as address, pytest.raises(AgentError) as caught:
        measured(address)
    assert caught.value.kind == (kind if kind in list(ErrorKind) else ErrorKind.INTERNAL)
    assert str(caught.value) == HARMLESS


def test_text_is_stripped_before_anybody_sees_it() -> None:
    def change(told: Events) -> Events:
        told[0].progress.step = ESCAPED
        told[0].progress.done = 10**6
        told[3].result.error.CopyFrom(pb.Error(kind=pb.TIMED_OUT, message=ESCAPED * 10**4))
        return conditions(governor=ESCAPED)(
            result(compute_unit=ESCAPED, flags=[ESCAPED, "-fallback: cpu-", "", "\x00", "ok"])(told)
        )

    steps = []
    with changing(change).serving() as address, AgentClient(address) as agent:
        results = agent.benchmark(DIGESTS, TARGET, protocol=PROTOCOL, on_event=steps.append)
    first, second = results.values()
    assert (first.compute_unit, first.after.governor) == (HARMLESS, HARMLESS)
    assert first.flags == ("red-and-more", "fallback:-cpu", "ok")
    assert str(second.error).isprintable()
    assert len(str(second.error)) <= 1000
    assert Progress(HARMLESS, 2, 2) in steps


@pytest.mark.parametrize("status", list(grpc.StatusCode)[1:])
def test_every_status_is_a_typed_error_in_one_harmless_line(status: grpc.StatusCode) -> None:
    def abort(request: Any) -> Any:
        raise _Abort(status)

    rogue = Rogue(describe=abort, missing=abort, run=abort, benchmark=abort)
    with _aborting(rogue).serving() as address, AgentClient(address) as agent:
        for ask in (
            agent.describe,
            lambda: agent.missing(DIGESTS),
            lambda: agent.run(DIGESTS[0], TARGET, {}),
            lambda: agent.benchmark(DIGESTS, TARGET),
        ):
            with pytest.raises(AgentError) as caught:
                ask()
            assert str(caught.value).isprintable()
            if caught.value.kind is ErrorKind.INTERNAL:
                assert address in str(caught.value)


class _Abort(Exception):
    pass


def _aborting(rogue: Rogue) -> Rogue:
    """The same agent, whose `_Abort` ends a call with a status and hostile details."""
    handlers = rogue._handlers()

    def wrap(behaviour: Callable[..., Any], streams: bool) -> Callable[..., Any]:
        @functools.wraps(behaviour)
        def guarded(request: Any, context: Any) -> Any:
            try:
                answer = behaviour(request, context)
                return iter(list(answer)) if streams else answer
            except _Abort as abort:
                context.abort(abort.args[0], ESCAPED)

        return guarded

    for name, handler in handlers.items():
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        if not handler.request_streaming:
            handlers[name] = handler._replace(
                **{kind: wrap(getattr(handler, kind), handler.response_streaming)}
            )
    rogue._handlers = lambda: handlers
    return rogue


# Silence.


def test_an_agent_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENCE_S", 0.3)
    monkeypatch.setattr(module, "_SILENT_STEPS", 0)
    ended = threading.Event()

    def silent(request: Any) -> Iterator[Any]:
        yield from events(request)[:2]
        ended.wait(DEADLINE_S)

    with Rogue(benchmark=silent).serving() as address:
        try:
            with pytest.raises(Unreachable, match=f"{address} has said nothing for 0.3 s"):
                measured(address)
        finally:
            ended.set()


def test_an_agent_that_does_not_hang_up_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST_WORD_S", 0.2)
    ended = threading.Event()

    def holds(request: Any) -> Iterator[Any]:
        yield from events(request)
        while not ended.wait(0.01):
            yield b""  # news of a kind that nobody knows

    with Rogue(benchmark=holds).serving() as address:
        try:
            assert len(measured(address)) == 2
        finally:
            ended.set()


def test_a_place_in_the_queue_is_waited_for_and_so_is_whoever_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SILENCE_S", 0.1)
    monkeypatch.setattr(module, "_SILENT_STEPS", 0)
    turn = threading.Event()

    def queued(request: Any) -> Iterator[Any]:
        yield pb.BenchmarkEvent(queued=pb.Queued(ahead=1))
        turn.wait(DEADLINE_S)
        yield from events(request)

    with Rogue(benchmark=queued).serving() as address, AgentClient(address) as agent:
        told = agent.benchmark_events(DIGESTS, TARGET, protocol=PROTOCOL)
        next(told)
        threading.Timer(0.3, turn.set).start()
        next(told)  # after more than an agent may be silent
        threading.Event().wait(0.3)  # the caller is busy
        assert isinstance(list(told)[-1], Finished)


@contextmanager
def cable(address: str) -> Iterator[tuple[str, threading.Event]]:
    """A way to an agent that can be cut: once the event is set, nothing arrives any more."""
    host, _, port = address.rpartition(":")
    cut, ended = threading.Event(), threading.Event()

    def carry(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not cut.is_set() and (data := one.recv(65536)):
                if cut.is_set():
                    break
                other.sendall(data)
            ended.wait(DEADLINE_S)

    with socket.create_server(("127.0.0.1", 0)) as plug, contextlib.ExitStack() as ends:

        def connect() -> None:
            near = ends.enter_context(plug.accept()[0])
            far = ends.enter_context(socket.create_connection((host, int(port))))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

        threading.Thread(target=connect, daemon=True).start()
        try:
            yield f"127.0.0.1:{plug.getsockname()[1]}", cut
        finally:
            ended.set()


def test_a_board_whose_cable_is_pulled_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._KEEPALIVE_S + module._KEEPALIVE_TIMEOUT_S <= 15
    monkeypatch.setattr(module, "_KEEPALIVE_S", 0.3)
    monkeypatch.setattr(module, "_KEEPALIVE_TIMEOUT_S", 0.3)
    ended = threading.Event()

    def measures(request: Any) -> Iterator[Any]:
        yield events(request)[0]
        ended.wait(DEADLINE_S)

    with (
        Rogue(benchmark=measures).serving() as address,
        cable(address) as (near, cut),
        AgentClient(near) as agent,
    ):
        told = agent.benchmark_events(DIGESTS, TARGET, protocol=PROTOCOL)
        next(told)
        cut.set()
        late = threading.Timer(DEADLINE_S, agent.close)
        late.start()
        try:
            with pytest.raises(Unreachable, match=near):
                next(told)
        finally:
            late.cancel()
            ended.set()


# The other calls.


def tensor(**fields: Any) -> pb.RunResponse:
    common = {"name": "y", "dtype": "float32", "shape": [2], "data": bytes(8)}
    return pb.RunResponse(outputs=[pb.Tensor(**{**common, **fields})])


WRONG_OUTPUTS: dict[str, tuple[Any, str]] = {
    "no dtype": (tensor(dtype=""), "tensor 'y' has the unknown dtype ''"),
    "objects": (tensor(dtype="object"), "the unknown dtype 'object'"),
    "records": (tensor(dtype="f4,f4"), "the unknown dtype 'f4,f4'"),
    "escaped dtype": (tensor(dtype=ESCAPED), f"the unknown dtype '{HARMLESS}'"),
    "too short": (tensor(data=bytes(4)), r"has 4 bytes; float32\[2\] takes 8"),
    "too long": (tensor(data=bytes(12)), r"has 12 bytes; float32\[2\] takes 8"),
    "without data": (tensor(data=b""), "has 0 bytes"),
    "a shape that overflows": (tensor(shape=[2**63, 2, 2]), "has 8 bytes"),
    "a shape that overflows to its size": (tensor(shape=[2**62 + 2], dtype="uint8"), "has 8 bytes"),
    "empty, and endless": (tensor(shape=[0, 2**60], data=b""), "has 0 bytes"),
    "seventy dimensions": (tensor(shape=[1] * 70, data=bytes(4)), "has 70 dimensions"),
    "a million dimensions": (tensor(shape=[2**62] * 10**6), "has 1000000 dimensions"),
    "an escaped name": (tensor(name=ESCAPED), f"'{HARMLESS}' is no name of a tensor"),
    "an endless name": (tensor(name="n" * 10**6), "is no name of a tensor"),
    "twice": (pb.RunResponse(outputs=[*tensor().outputs] * 2), "tensor 'y' is there twice"),
    "bytes that are none": (b"\xff\xff\xff", "bytes that are no RunResponse"),
    "a message too large": (bytes(wire.MAX_MESSAGE_BYTES + 1), "a message of more than"),
}


@pytest.mark.parametrize(("answer", "words"), WRONG_OUTPUTS.values(), ids=WRONG_OUTPUTS)
def test_wrong_outputs_are_refused(answer: Any, words: str) -> None:
    with (
        Rogue(run=lambda request: answer).serving() as address,
        AgentClient(address) as agent,
        pytest.raises(BadAnswer, match=words) as caught,
    ):
        agent.run(DIGESTS[0], TARGET, {})
    check_named(caught.value, address)


def test_outputs_that_are_right_arrive() -> None:
    answer = tensor(data=np.array([1.5, -2.0], "<f4").tobytes())
    with Rogue(run=lambda request: answer).serving() as address, AgentClient(address) as agent:
        outputs = agent.run(DIGESTS[0], TARGET, {})
    assert outputs["y"].tolist() == [1.5, -2.0]


def test_an_error_of_a_run_is_typed_and_harmless() -> None:
    answer = pb.RunResponse(error=pb.Error(kind=pb.OUT_OF_MEMORY, message=ESCAPED))
    with (
        Rogue(run=lambda request: answer).serving() as address,
        AgentClient(address) as agent,
        pytest.raises(AgentError) as caught,
    ):
        agent.run(DIGESTS[0], TARGET, {})
    assert (caught.value.kind, str(caught.value)) == (ErrorKind.OUT_OF_MEMORY, HARMLESS)


def said(change: Callable[[pb.DescribeResponse], Any]) -> pb.DescribeResponse:
    answer = description()
    change(answer)
    return answer


def setting(path: str, value: Any) -> pb.DescribeResponse:
    *way, name = path.split(".")
    answer = place = description()
    for word in way:
        place = place.targets[0] if word == "target" else getattr(place, word)
    setattr(place, name, value)
    return answer


WRONG_DESCRIPTIONS: dict[str, tuple[Any, str]] = {
    "empty": (pb.DescribeResponse(), "a max_artifact_bytes of 0"),
    "bytes that are none": (b"\x99" * 30, "bytes that are no DescribeResponse"),
    "a message too large": (bytes(wire.MAX_MESSAGE_BYTES + 1), "a message of more than"),
    "takes no artefacts": (setting("max_artifact_bytes", 0), "a max_artifact_bytes of 0"),
    "holds nothing": (setting("max_resident_bytes", 0), "a max_resident_bytes of 0"),
    "no chunks": (setting("chunk_bytes", 0), "a chunk_bytes of 0"),
    "no threads": (setting("target.max_threads", 0), "a highest number of threads of 0"),
    "billions of threads": (setting("target.max_threads", 2**32 - 1), "number of threads of 4.29"),
    "billions of cores": (setting("device.cores", 2**32 - 1), "a number of cores of 4.29"),
    "endless memory": (setting("device.memory_bytes", 2**64 - 1), "a memory in bytes of 1.8"),
    "a target without a name": (setting("target.name", ""), "the malformed target name ''"),
    "an escaped target": (setting("target.name", ESCAPED), f"target name '{HARMLESS}'"),
    "an endless target": (setting("target.name", "n" * 10**6), "the malformed target name 'nnn"),
    "two targets of one name": (
        setting("target.name", SIMULATED),
        f"two targets of the name '{SIMULATED}'",
    ),
    "too many targets": (
        said(lambda a: a.targets.extend([pb.Target(name=str(n)) for n in range(2000)])),
        "2002 targets",
    ),
    "too many options": (
        said(lambda a: a.targets[0].options.extend(["o"] * 10**5)),
        "100000 options",
    ),
    "too many formats": (said(lambda a: a.targets[0].formats.extend(["o"] * 500)), "501 formats"),
    "too many means": (
        said(lambda a: a.isolation.missing.extend(["o"] * 500)),
        "500 missing means of isolation",
    ),
    "works since ever": (setting("activity.elapsed_s", INF), "a time in work in s of inf"),
    "works for no number": (setting("activity.elapsed_s", NAN), "a time in work in s of nan"),
    "works for less than no time": (setting("activity.elapsed_s", -1.0), "in work in s of -1"),
    "a load that is no number": (setting("conditions.load_1m", NAN), "a load average of nan"),
    "colder than cold": (
        setting("conditions.temperature_c", -300.0),
        "a temperature in °C of -300",
    ),
}


@pytest.mark.parametrize(("answer", "words"), WRONG_DESCRIPTIONS.values(), ids=WRONG_DESCRIPTIONS)
def test_a_description_that_cannot_be_right_is_refused(answer: Any, words: str) -> None:
    with (
        Rogue(describe=lambda request: answer).serving() as address,
        AgentClient(address) as agent,
        pytest.raises(BadAnswer, match=words) as caught,
    ):
        agent.describe()
    check_named(caught.value, address)


def test_the_text_of_a_description_is_stripped() -> None:
    answer = description()
    for message in (answer.device, answer.targets[0], answer.activity, answer.conditions):
        for field in message.DESCRIPTOR.fields:
            if field.cpp_type == field.CPPTYPE_STRING and field.name != "formats":
                many = field.name in ("options", "defaults", "unwatched")
                value = [ESCAPED] if many else ESCAPED * 1000
                message.ClearField(field.name)
                getattr(message, field.name).extend(value) if many else setattr(
                    message, field.name, value
                )
    answer.targets[0].name = TARGET
    answer.targets[0].availability = 77
    answer.agent_version = ESCAPED
    answer.isolation.means.append(ESCAPED)
    with Rogue(describe=lambda request: answer).serving() as address, AgentClient(address) as agent:
        told = agent.describe()
    assert told.agent_version == HARMLESS
    assert told.isolation is not None
    assert told.isolation.means == (HARMLESS,)
    assert told.targets[0].availability.name == "UNAVAILABLE"
    assert told.targets[0].options == (HARMLESS,)
    for text in strings(asdict(told)):
        assert text.isprintable()
        assert len(text) <= 1000


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


@pytest.mark.parametrize(
    "answer",
    [
        pb.MissingResponse(sha256=["c" * 64]),
        pb.MissingResponse(sha256=[DIGESTS[0]] * 2),
        pb.MissingResponse(sha256=[*DIGESTS, ESCAPED]),
        b"\xff\xff",
    ],
)
def test_what_is_missing_was_asked_for(answer: Any) -> None:
    with (
        Rogue(missing=lambda request: answer).serving() as address,
        AgentClient(address) as agent,
        pytest.raises(BadAnswer) as caught,
    ):
        agent.missing([*DIGESTS, DIGESTS[0]])
    check_named(caught.value, address)


def test_an_upload_that_is_answered_with_nonsense_is_no_upload() -> None:
    with (
        Rogue(upload=lambda requests: b"\xff").serving() as address,
        AgentClient(address) as agent,
        pytest.raises(BadAnswer, match="no UploadResponse"),
    ):
        agent.upload(b"content")


def test_three_thousand_mutated_messages_are_values_or_typed_errors() -> None:
    draw = random.Random(19)
    request = pb.BenchmarkRequest(sha256=DIGESTS, protocol=wire.protocol_to_wire(PROTOCOL))
    honest: list[tuple[type, bytes]] = [
        *((pb.BenchmarkEvent, event.SerializeToString()) for event in events(request)),
        (pb.DescribeResponse, description().SerializeToString()),
        (pb.RunResponse, tensor().SerializeToString()),
    ]
    refused: list[str] = []
    for _ in range(3000):
        kind, content = draw.choice(honest)
        mutated = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(mutated) + 1)
            if draw.random() < 0.5:
                mutated[at:at] = draw.randbytes(draw.randint(1, 9))
            else:
                mutated[at : at + draw.randint(1, 9)] = draw.randbytes(draw.randint(0, 9))
        try:
            parsed = module._parsed(kind, bytes(mutated))
            if kind is pb.BenchmarkEvent:
                value = module._Batch(DIGESTS, PROTOCOL, False).take(parsed)
            elif kind is pb.DescribeResponse:
                value = module._description(parsed)
            else:
                value = wire.outputs_from_wire(parsed)
            if isinstance(value, ArtifactResult) and value.error is None:
                assert (value.wall_ms >= wire.MIN_WALL_MS).all()
        except AgentError as error:
            refused.append(str(error))
    assert 1000 < len(refused) < 3000
    assert all(message.isprintable() for message in refused)


# Text.


@given(st.text(), st.integers(1, 40))
def test_printable_text_is_one_short_line_that_stays_as_it_is(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert shown == shown.strip()
    assert printable(shown, limit) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, with accents é and 漢字", "plain text, with accents é and 漢字"),
        ("\x1b[31;1mred\x1b[0m", "red"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x07", "link"),
        ("\x1bP+q544e\x1b\\x\x1b_G\x1b\\y", "xy"),
        ("\x9b2Ja\x9d0;title\x9cb\x90q\x9cc", "abc"),
        ("a\x1b]0;without an end", "a"),
        ("a\x1bcb\x1b(0c\x1b", "abc"),
        ("moc.\u202elive\u202c\u200e\u2066x\u2069", "moc.livex"),
        (" two\n lines\tand\u2028more\u00a0\r\n", "two lines and more"),
        ("nul\x00 del\x7f soft\xadhyphen \ud800 \ue000", "nul del softhyphen"),
        ("\x1b[2J", ""),
        ("x" * 100, "x" * 49 + "…"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out(text: str, shown: str) -> None:
    assert printable(text, 50) == shown


# What goes to an agent.


@pytest.mark.parametrize("address", ["board:50051", "10.0.0.5:50051", "[fe80::1]:50051"])
def test_a_token_goes_over_no_network_as_plain_text_unasked(address: str) -> None:
    with pytest.raises(BadRequest, match=r"--tls-ca.*SSH.*--insecure") as caught:
        AgentClient(address, token="secret")
    assert address in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with AgentClient(address, token="secret", insecure=True) as agent:
        assert agent.warning == f"the token for {address} goes over the network as plain text"
    for more in ({"tls": module.TlsFiles(), "token": "secret"}, {}):
        with AgentClient(address, **more) as agent:
            assert not agent.warning


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.3.2.1:1", "[::1]:1"])
def test_a_token_may_go_over_loopback(address: str) -> None:
    with AgentClient(address, token="secret") as agent:
        assert not agent.warning


def test_an_artefact_that_breaks_its_format_is_not_sent() -> None:
    sent = []
    with (
        Rogue(upload=sent.append).serving() as address,
        AgentClient(address) as agent,
        pytest.raises(AgentError),
    ):
        agent.upload(b"no onnx", format="onnx")
    assert not sent
    check_artifact(b"no onnx", "")  # nobody knows what it is
    check_artifact(b"no onnx", "of-the-future")


def test_a_format_that_is_not_named_is_the_agents_choice() -> None:
    formats = []

    def benchmark(request: Any) -> Any:
        formats.append(request.format)
        return events(request)

    def run(request: Any) -> pb.RunResponse:
        formats.append(request.format)
        return pb.RunResponse()

    with Rogue(benchmark=benchmark, run=run).serving() as address, AgentClient(address) as agent:
        agent.benchmark(DIGESTS, TARGET, protocol=PROTOCOL)
        agent.run(DIGESTS[0], TARGET, {})
        agent.run(DIGESTS[0], TARGET, {}, format="onnx")
    assert formats == ["", "", "onnx"]
