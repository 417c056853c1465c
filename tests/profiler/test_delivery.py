"""Graphs on their way to a device, and the threads that they go through."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hurricane.agents.errors import DeviceLost
from hurricane.profiler.delivery import LOADED_AT_ONCE, MADE_AHEAD, deliver
from hurricane.profiler.device_log import DeviceLog
from hurricane.profiler.outcomes import Series
from hurricane.profiler.pool import ahead

from .stand_in import StandIn, digest, limited, planned, timing

GRAPHS: list[Series] = [(row.alone, 0) for row in planned("*", "digits32")]
HELD: list[Series] = [(row.alone, 1) for row in planned("*", "digits32:0")]
PROTOCOL = timing().batch(0)
LOAD = replace(PROTOCOL, rounds=0)


class Waiting(StandIn):
    """Notes what it is asked to load, and what it was sent by then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loaded: list[list[str]] = []

    def time(self, digests, protocol, on_progress=None):
        assert protocol == LOAD
        assert set(digests) <= set(self._known)
        self.loaded.append(list(digests))
        return {}


def test_all_is_sent_and_what_is_wanted_is_loaded_in_parts_that_grow():
    device = Waiting()
    limited(lambda: deliver(device, GRAPHS, HELD, PROTOCOL))
    wanted = [digest(*one) for one in GRAPHS]
    assert len(wanted) > LOADED_AT_ONCE
    assert set(device._known) == {digest(*one) for one in (*GRAPHS, *HELD)}
    assert device.loaded[-1] == wanted
    before: list[str] = []
    for part in device.loaded:
        assert part[: len(before)] == before
        assert len(part) - len(before) >= LOADED_AT_ONCE or part == wanted
        before = part
    assert all(len(part) > 0 for part in device.loaded)


def test_a_device_that_keeps_nothing_loaded_is_only_sent_graphs():
    device = Waiting(resident=False)
    limited(lambda: deliver(device, GRAPHS, HELD, PROTOCOL))
    assert device.loaded == []
    assert len(device._known) == len(GRAPHS) + len(HELD)


def test_a_device_that_is_lost_meanwhile_is_told():
    class Lost(StandIn):
        def time(self, digests, protocol, on_progress=None):
            raise DeviceLost("gone")

    class Unsendable(StandIn):
        def made(self, series, make):
            if series == GRAPHS[5]:
                raise DeviceLost("gone")
            return super().made(series, make)

    for device in (Lost(), Unsendable()):
        with pytest.raises(DeviceLost):
            limited(lambda device=device: deliver(device, GRAPHS, HELD, PROTOCOL))


def test_seconds_of_what_goes_side_by_side_add_up_to_the_time_that_passed(monkeypatch):
    clock = iter((0.0, 100.0))
    monkeypatch.setattr("hurricane.profiler.device_log.time.perf_counter", lambda: next(clock))
    log = DeviceLog()
    log.seconds["make"] = 7.0
    with log.side_by_side():
        log.seconds["make"] += 60.0
        log.seconds["upload"] += 90.0
    assert log.seconds["overlap"] == -50.0
    assert sum(log.seconds.values()) == 107.0


# Threads.


def test_all_items_come_in_their_order():
    for most in (0, 1, 3):
        found = limited(lambda most=most: [list(part) for part in ahead(range(50), most)])
        assert [item for part in found for item in part] == list(range(50))
        assert all(found)


def test_no_more_items_wait_than_may():
    made: list[int] = []
    first = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == MADE_AHEAD:
                first.set()
            yield number

    parts = ahead(items(), MADE_AHEAD)
    assert limited(lambda: next(parts))[0] == 0
    assert first.wait(60)
    assert len(made) <= 2 * MADE_AHEAD + 2
    parts.close()


def test_what_fails_in_the_thread_is_raised_after_what_was_made():
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("a defect")

    found: list[int] = []

    def take() -> None:
        for part in ahead(items()):
            found.extend(part)

    with pytest.raises(ValueError, match="a defect"):
        limited(take)
    assert found == [1]


def test_a_thread_whose_items_nobody_wants_ends():
    ended = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    parts = ahead(items(), 1)
    next(parts)
    parts.close()
    assert ended.wait(60)
