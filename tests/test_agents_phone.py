"""What a phone tells of itself: name, battery, temperature, throttling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hurricane.agents.commands import AdbRunner
from hurricane.agents.conditions import THROTTLING
from hurricane.agents.errors import Busy
from hurricane.agents.phone import Phone

from .adb_support import adb
from .fake_phone import FakePhone

pytestmark = pytest.mark.process


@pytest.fixture
def fake(adb_server: None, tmp_path: Path) -> Iterator[FakePhone]:
    with FakePhone(tmp_path.resolve() / "phone") as there:
        adb("connect", there.serial)
        try:
            yield there
        finally:
            adb("disconnect", there.serial)


@pytest.fixture
def phone(fake: FakePhone) -> Iterator[Phone]:
    runner = AdbRunner(fake.serial)
    yield Phone(runner)
    runner.close()


def test_its_model_is_its_name(phone: Phone) -> None:
    assert phone.name() == "Fake 1"


def test_the_hottest_sensor_that_can_be_is_its_temperature(fake: FakePhone, phone: Phone) -> None:
    assert phone.conditions().temperature_c == 0  # it tells none
    for number, text in enumerate(("41500", "-274000", "255000", "38000", "none")):
        zone = fake.path(f"/sys/class/thermal/thermal_zone{number}")
        zone.mkdir(parents=True)
        (zone / "temp").write_text(f"{text}\n")
    assert phone.conditions().temperature_c == 41.5


def test_throttling_is_counted_where_android_tells_of_it(fake: FakePhone, phone: Phone) -> None:
    assert phone.conditions().throttle_events == 0
    fake.throttle(2)
    assert [phone.conditions().throttle_events for _ in range(2)] == [1, 2]
    fake.throttle(0)
    found = phone.conditions()
    assert found.throttle_events == 3  # until when is not known
    assert phone.conditions().throttle_events == 3
    assert THROTTLING not in found.unwatched
    (fake.folder / "dumpsys-thermalservice").unlink()  # older than Android 10
    assert THROTTLING in phone.conditions().unwatched


def test_a_battery_that_is_low_is_refused_with_what_to_do(fake: FakePhone, phone: Phone) -> None:
    phone.check_battery()
    fake.charge(20)
    phone.check_battery()
    fake.charge(19)
    with pytest.raises(Busy, match=r"at 19%.*charge it to 20% or more"):
        phone.check_battery()
    (fake.folder / "dumpsys-battery").write_text("  level: 19\n")  # of what?
    phone.check_battery()
    (fake.folder / "dumpsys-battery").unlink()
    phone.check_battery()
