"""Which device does what next, whatever is lost or comes back."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from hurricane.profiler.scheduler import (
    Finished,
    MeasureBatch,
    RowScheduler,
    State,
    TimeLoops,
    Wait,
)

ROOM = 10**9
DEVICES = ("a", "b", "c")
ENDED = (State.DONE, State.FAILED)


def scheduler(
    rows: str = "", measured: str = "", devices: str = "a", most: int = 99, **sizes: int
) -> RowScheduler[str]:
    """A scheduler of rows of one letter, one byte each, and devices of one letter."""
    found = RowScheduler(rows, measured, lambda row: sizes.get(row, 1), most)
    for device in devices:
        found.on_joined(device, ROOM)
    return found


def activated(found: RowScheduler[str], device: str = "a") -> str:
    work = found.suggest(device)
    assert isinstance(work, MeasureBatch)
    return "".join(work.activated)


def test_a_row_is_measured_then_looped_then_done():
    found = scheduler("xy")
    assert activated(found) == "xy"
    assert found.rows(State.ACTIVE, "a") == ("x", "y")
    found.on_batch("a", "x", "")
    assert found.suggest("a") == MeasureBatch(())  # y stays active; x is looped afterwards
    found.on_batch("a", "y", "")
    assert found.suggest("a") == TimeLoops(("x", "y"))
    assert not found.finished
    found.on_loops("a", "xy")
    assert found.suggest("a") == Finished()
    assert found.rows(State.DONE) == ("x", "y")


def test_a_row_that_fails_is_not_looped():
    found = scheduler("xy")
    activated(found)
    found.on_batch("a", "x", "y")
    assert found.suggest("a") == TimeLoops(("x",))
    found.on_loops("a", "x")
    assert found.finished
    assert found.rows(State.FAILED) == ("y",)


def test_rows_whose_loops_alone_are_missing_are_looped():
    found = scheduler("", measured="xy")
    assert found.suggest("a") == TimeLoops(("x", "y"))


def test_rows_are_given_out_in_their_order_as_others_end():
    found = scheduler("uvwxyz", most=2)
    assert activated(found) == "uv"
    found.on_batch("a", "v", "")
    assert activated(found) == "w"
    found.on_batch("a", "", "")
    assert activated(found) == ""


def test_devices_share_evenly_and_begin_with_half():
    rows = "abcdefghijklmnop"
    found = scheduler(rows, devices="abcd")
    assert [len(activated(found, device)) for device in "abcd"] == [2, 2, 2, 2]
    found.on_batch("a", "", "")
    assert len(activated(found, "a")) == 2  # a quarter of all
    assert len(found.rows(State.ACTIVE, "a")) == 4
    alone = scheduler(rows)
    assert activated(alone) == rows


def test_memory_limits_the_rows_in_work_and_the_first_one_always_has_room():
    found = RowScheduler("wxyz", "", lambda row: {"w": 3, "x": 4, "y": 3, "z": 1}[row], 99)
    found.on_joined("a", 7)
    assert activated(found) == "wx"
    found.on_batch("a", "w", "")
    assert activated(found) == "y"
    found.on_batch("a", "y", "")
    assert activated(found) == "z"
    found.on_batch("a", "z", "x")
    small = RowScheduler("xyz", "", lambda row: 5, 99)
    small.on_joined("a", 1)
    assert activated(small) == "x"
    small.on_batch("a", "x", "")
    assert activated(small) == "y"


def test_loops_are_shared_out_too():
    found = scheduler("", measured="vwxyz", devices="ab", most=2)
    assert found.suggest("a") == TimeLoops(("v", "w"))
    assert found.suggest("b") == TimeLoops(("x", "y"))
    found.on_loops("a", "vw")
    assert found.suggest("a") == TimeLoops(("z",))
    assert found.suggest("a") == Wait()


def test_a_device_with_nothing_to_do_waits_for_what_others_may_lose():
    found = scheduler("xy", devices="ab")
    assert (activated(found, "a"), activated(found, "b")) == ("x", "y")
    found.on_batch("a", "x", "")
    assert found.suggest("a") == TimeLoops(("x",))
    found.on_loops("a", "x")
    assert found.suggest("a") == Wait()
    found.on_lost("b")
    assert activated(found, "a") == "y"


def test_what_a_lost_device_had_in_work_goes_back_and_is_first_in_line():
    found = scheduler("wxyz", devices="ab", most=1)
    assert (activated(found, "a"), activated(found, "b")) == ("w", "x")
    found.on_lost("b")
    found.on_batch("a", "w", "")
    assert activated(found, "a") == "x"
    looping = scheduler("", measured="xyz", devices="ab", most=1)
    assert looping.suggest("a") == TimeLoops(("x",))
    looping.on_lost("a")
    assert looping.rows(State.MEASURED) == ("x", "y", "z")  # it was measured
    assert looping.suggest("b") == TimeLoops(("x",))


def test_a_device_that_comes_back_begins_with_half_again():
    found = scheduler("abcdefgh", devices="ab")
    assert activated(found, "a") == "ab"
    found.on_batch("a", "", "")
    found.on_lost("a")
    found.on_joined("a", ROOM)
    assert activated(found, "a") == "ab"


def test_a_device_that_is_lost_twice_loses_nothing_more():
    found = scheduler("x")
    activated(found)
    found.on_lost("a")
    found.on_lost("a")
    assert found.rows(State.PENDING) == ("x",)


def test_a_device_that_comes_back_works_again():
    found = scheduler("xy")
    activated(found)
    found.on_lost("a")
    assert found.devices == 0
    assert found.rows(State.PENDING) == ("x", "y")
    found.on_joined("a", ROOM)
    assert activated(found) == "xy"


@pytest.mark.parametrize("who", ["b", "nobody"])
def test_rows_that_a_device_does_not_hold_are_not_taken_from_it(who):
    found = scheduler("x", devices="ab")
    activated(found, "a")
    with pytest.raises(ValueError, match="x is active, not active here"):
        found.on_batch(who, "x", "")
    with pytest.raises(ValueError, match="x is active, not looping here"):
        found.on_loops("a", "x")


def test_what_comes_too_late_from_a_lost_device_is_not_taken():
    found = scheduler("x", devices="ab")
    activated(found, "a")
    found.on_lost("a")
    activated(found, "b")
    with pytest.raises(ValueError, match="here"):
        found.on_batch("a", "x", "")
    assert found.rows(State.ACTIVE, "b") == ("x",)


def test_progress_goes_from_nothing_to_all():
    found = scheduler("xy")
    assert found.progress == 0
    activated(found)
    found.on_batch("a", "x", "y")
    assert found.progress == 0.75
    found.suggest("a")
    found.on_loops("a", "x")
    assert found.progress == 1
    assert scheduler("").progress == 1
    assert scheduler("").suggest("a") == Finished()


class Devices(RuleBasedStateMachine):
    """Devices that time what they are given, are lost in the midst of it, and come back."""

    @initialize(
        rows=st.integers(0, 12),
        measured=st.integers(0, 4),
        most=st.integers(1, 5),
        sizes=st.lists(st.integers(1, 9), min_size=16, max_size=16),
        capacity=st.integers(1, 30),
    )
    def begin(self, rows: int, measured: int, most: int, sizes: list[int], capacity: int) -> None:
        self.rows = range(rows)
        self.measured = range(rows, rows + measured)
        self.most, self.sizes, self.capacity = most, sizes, capacity
        self.scheduler = RowScheduler(self.rows, self.measured, sizes.__getitem__, most)
        self.work: dict[str, MeasureBatch[int] | TimeLoops[int] | Wait | Finished | None] = {}
        self.active: dict[str, set[int]] = {}  # as each device knows them
        self.ends: Counter[int] = Counter()
        self.known = set(self.measured)

    def is_held(self, row: int) -> bool:
        loops = [work.rows for work in self.work.values() if isinstance(work, TimeLoops)]
        return any(row in rows for rows in (*self.active.values(), *loops))

    @rule(device=st.sampled_from(DEVICES))
    def join(self, device: str) -> None:
        if device not in self.work:
            self.scheduler.on_joined(device, self.capacity)
            self.work[device], self.active[device] = None, set()

    @rule(device=st.sampled_from(DEVICES))
    def lose(self, device: str) -> None:
        self.scheduler.on_lost(device)
        self.work.pop(device, None)
        self.active.pop(device, None)

    @precondition(lambda self: any(work is None for work in self.work.values()))
    @rule(data=st.data())
    def suggest(self, data: st.DataObject) -> None:
        free = sorted(device for device, work in self.work.items() if work is None)
        self.ask(data.draw(st.sampled_from(free)))

    def ask(self, device: str) -> None:
        work = self.scheduler.suggest(device)
        if isinstance(work, MeasureBatch):
            assert not any(map(self.is_held, work.activated)), "two devices hold a row"
            self.active[device].update(work.activated)
            active = self.active[device]
            assert active
            assert active == set(self.scheduler.rows(State.ACTIVE, device))
            assert len(active) <= self.most
            held = sum(self.sizes[row] for row in active)
            assert len(active) == 1 or held <= self.capacity
        elif isinstance(work, TimeLoops):
            assert work.rows
            assert len(work.rows) <= self.most
            assert not self.active[device]
            assert not any(map(self.is_held, work.rows)), "two devices hold a row"
        elif isinstance(work, Wait):
            # A device does nothing only where all that is left is in others' work.
            assert not self.scheduler.finished
            assert not self.scheduler.rows(State.PENDING)
            assert not self.scheduler.rows(State.MEASURED)
        else:
            assert all(self.ends[row] == 1 for row in (*self.rows, *self.measured))
        self.work[device] = work if isinstance(work, MeasureBatch | TimeLoops) else None

    @precondition(lambda self: any(self.work.values()))
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        busy = sorted(device for device, work in self.work.items() if work is not None)
        device = data.draw(st.sampled_from(busy))
        fates: dict[int, str] = {}
        if isinstance(self.work[device], MeasureBatch):
            fate = st.sampled_from(["measured", "failed", "active"])
            fates = {row: data.draw(fate) for row in sorted(self.active[device])}
        self.tell(device, fates)

    def tell(self, device: str, fates: dict[int, str]) -> None:
        work, self.work[device] = self.work[device], None
        if isinstance(work, TimeLoops):
            self.scheduler.on_loops(device, work.rows)
            self.ends.update(work.rows)
            return
        measured = [row for row, fate in fates.items() if fate == "measured"]
        failed = [row for row, fate in fates.items() if fate == "failed"]
        self.scheduler.on_batch(device, measured, failed)
        self.active[device] -= {*measured, *failed}
        self.known.update(measured)
        self.ends.update(failed)

    @invariant()
    def every_row_is_somewhere_once(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        there = [row for state in State for row in self.scheduler.rows(state)]
        assert sorted(there) == [*self.rows, *self.measured]
        assert max(self.ends.values(), default=0) <= 1, "a row ends twice"
        assert sorted(self.ends) == sorted(
            row for state in ENDED for row in self.scheduler.rows(state)
        )
        for state in (State.MEASURED, State.LOOPING, State.DONE):
            assert self.known.issuperset(self.scheduler.rows(state)), "it is not measured"
        for state in (State.ACTIVE, State.LOOPING):
            assert all(map(self.is_held, self.scheduler.rows(state))), "nobody holds a row"
        assert self.scheduler.finished == (len(self.ends) == len(there))
        assert self.scheduler.devices == len(self.work)

    def teardown(self) -> None:
        """Whatever happened: devices that go on measuring end every row, and all take part."""
        if not hasattr(self, "scheduler"):
            return
        if not self.work:
            self.join("a")
        for _ in range(4 * (len(self.rows) + len(self.measured)) + 4):
            for device in sorted(self.work):
                if self.work[device] is None:
                    self.ask(device)
            for device, work in sorted(self.work.items()):
                if work is not None:
                    self.tell(device, dict.fromkeys(self.active[device], "measured"))
            self.every_row_is_somewhere_once()
            if self.scheduler.finished:
                break
        assert self.scheduler.finished, "it does not end"
        assert {type(self.scheduler.suggest(device)) for device in self.work} == {Finished}


TestDevices = Devices.TestCase
TestDevices.settings = settings(max_examples=60, stateful_step_count=40)
