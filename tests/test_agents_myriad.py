"""The Myriad X's target with a stand-in for its plugin, in both of OpenVINO's interfaces."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from hurricane.agents.backends import _myriad_usb as usb
from hurricane.agents.backends import myriad_vpu
from hurricane.agents.backends._openvino_legacy import Counter
from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.errors import (
    AgentError,
    BadRequest,
    Busy,
    DeviceLost,
    OutOfMemory,
    UnsupportedOperator,
)
from hurricane.ops.export import export_operator
from hurricane.ops.shapes import LayerShape

from .agents_artifacts import SHAPE, convolutions, onnx_of
from .fake_myriad import NAME, STICK, FakeOpenvino, true_ms

TARGET = myriad_vpu.TARGET
LAYER = LayerShape(28, 28, 64, 64, 1)
OUT_OF_MEMORY = "Failed to allocate graph: NC_OUT_OF_MEMORY"


def _modules() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in ("openvino", "fake_myriad")]


@pytest.fixture(params=[2021, 2022])
def plugin(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeOpenvino]:
    """A stand-in of each generation in this process, as if the genuine one were not there."""
    fake = FakeOpenvino(tmp_path / "fake", request.param)
    genuine = {name: sys.modules.pop(name) for name in _modules()}
    monkeypatch.syspath_prepend(fake.folder)
    monkeypatch.chdir(tmp_path)
    yield fake
    for name in _modules():
        del sys.modules[name]
    sys.modules.update(genuine)


def opened(**options: str) -> myriad_vpu.MyriadSession:
    return myriad_vpu.open_target(Context(), TARGET, options, 1)


def loaded(session: myriad_vpu.MyriadSession, operator: str = "SEP_3") -> myriad_vpu.MyriadGraph:
    return session.load(export_operator(operator, LAYER), "onnx")


def reason() -> str:
    (target,) = myriad_vpu.targets(Context())
    assert (target.availability == Availability.UNAVAILABLE) == bool(target.reason)
    assert "\n" not in target.reason
    return target.reason


# What there is.


def test_a_stand_in_says_so_and_its_numbers_are_simulated(plugin: FakeOpenvino) -> None:
    (target,) = myriad_vpu.targets(Context(device_name="desk"))
    assert (target.name, target.reason) == (TARGET, "")
    assert (target.availability, target.device) == (Availability.SIMULATED, NAME)
    assert target.runtime_version == {2021: "2021.4.2", 2022: "2022.3.1"}[plugin.generation]
    graph = loaded(opened())
    assert (graph.flags, graph.compute_unit) == (("simulated",), "simulated:MYRIAD")


def test_without_a_plugin_or_libusb_the_reason_says_what_to_do(plugin: FakeOpenvino) -> None:
    plugin.be(plugin="missing")
    assert reason() == "OpenVINO as it is installed here has no MYRIAD plugin; see docs/ncs2.md"
    with pytest.raises(BadRequest, match="no MYRIAD plugin"):
        opened()
    plugin.be(plugin="no libusb")
    assert reason() == (
        "the MYRIAD plugin needs libusb, which is not there; run: pip install libusb-package"
    )


def test_todays_openvino_is_not_asked_for_a_stick() -> None:
    assert "and this target takes 2021.4, or an archive of 2022.1 to 2022.3" in reason()


def test_several_sticks_are_told_apart_by_name(plugin: FakeOpenvino) -> None:
    plugin.be(sticks=("1.2-ma2480", "3.1-ma2480"))
    for options in ({"device": "3.1-ma2480"}, {}):
        graph = loaded(opened(**options))
        assert graph.timed_calls(1)
        graph.close()
        del graph
    with pytest.raises(BadRequest, match=r"option 'device' is one of 1\.2-ma2480, 3\.1-ma2480"):
        opened(device="the left one")
    with pytest.raises(DeviceLost, match="stick 7-ma2480 is not there; there are 1"):
        opened(device="7-ma2480")
    (target,) = myriad_vpu.targets(Context())
    assert target.defaults == ("device=1.2-ma2480",)  # each stick fills a table of its own
    plugin.be(sticks=("1.2-ma2480",))
    (target,) = myriad_vpu.targets(Context())
    assert target.defaults == ()


# Times.


@pytest.mark.parametrize("operator", ["SEP_3", "MB_7_6", "Choice_3_SE"])
def test_device_time_is_that_of_the_layers_and_wall_time_the_hosts(
    plugin: FakeOpenvino, operator: str
) -> None:
    samples = loaded(opened(), operator).timed_calls(50)
    truth = true_ms(export_operator(operator, LAYER))
    assert np.mean([s.device_ms for s in samples]) == pytest.approx(truth, rel=0.01)
    assert all(s.device_ms is not None and s.wall_ms > s.device_ms + 1.2 for s in samples)


def test_outputs_are_those_of_the_graph_and_leave_the_timed_inputs_alone(
    plugin: FakeOpenvino,
) -> None:
    content = convolutions()
    graph = opened().load(content, "onnx")
    x = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
    (found,) = graph.outputs({"input": x}).values()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"input": x})
    assert np.allclose(found, wanted, atol=1e-5)
    (again,) = graph.outputs(graph._preset).values()
    assert np.array_equal(graph._ready().outputs()["output"], again)
    assert not np.array_equal(again, found)


@given(
    own=st.lists(st.floats(0.001, 1e3), max_size=20),
    extra=st.lists(st.floats(0, 1e3), max_size=3),
)
def test_what_belongs_to_no_layer_is_left_out(own: list[float], extra: list[float]) -> None:
    counters = [Counter(f"n{i}", "Convolution", "MyriadXHwOp", ms) for i, ms in enumerate(own)]
    counters += [Counter("<Extra>", "<Extra>", "Copy", ms) for ms in extra]
    counters += [Counter("in@convert", "<Extra>", "Convert", ms) for ms in extra]
    found = myriad_vpu.device_time_ms(counters)
    assert found == (pytest.approx(sum(own)) if own else None)


def test_the_stick_gets_warm_with_work(plugin: FakeOpenvino) -> None:
    session = opened()
    graph = loaded(session, "MB_7_6")
    before = session.conditions()
    graph.timed_calls(2000)
    after = session.conditions()
    assert 38.0 <= before.temperature_c < after.temperature_c < 68.0
    assert after.frequency_mhz == 0.0  # of the host's processor: no word about the stick


# Graphs that a stick keeps.


@pytest.mark.parametrize("full", ["Can not init Myriad device: NC_ERROR", OUT_OF_MEMORY])
def test_how_many_graphs_a_stick_keeps_is_found_by_trying(plugin: FakeOpenvino, full: str) -> None:
    plugin.be(most_graphs=2, full=full)
    session = opened()
    operators = ("SEP_3", "MB_3_3", "SEP_5", "Choice_3")
    graphs = [loaded(session, operator) for operator in operators]
    for _ in range(2):
        for operator, graph in zip(operators, graphs, strict=True):
            samples = graph.timed_calls(20)
            truth = true_ms(export_operator(operator, LAYER))
            assert np.mean([s.device_ms for s in samples]) == pytest.approx(truth, rel=0.02)
    assert len(session._placed) == 2
    for graph in graphs:
        graph.close()
    assert not session._placed


def test_a_graph_that_fits_no_empty_stick_is_out_of_memory(plugin: FakeOpenvino) -> None:
    plugin.be(most_graphs=0, full=OUT_OF_MEMORY)
    with pytest.raises(OutOfMemory, match="the stick has no memory left"):
        loaded(opened())


def test_a_stick_left_by_a_program_that_died_is_reset_once(plugin: FakeOpenvino) -> None:
    plugin.be(stalled=True)
    session = opened()
    assert all(loaded(session, name).timed_calls(1) for name in ("SEP_3", "SEP_5"))


# Graphs that it does not take.


def test_an_opset_that_would_be_read_wrong_is_refused(plugin: FakeOpenvino) -> None:
    model = onnx.load_from_string(convolutions())
    model.opset_import[0].version = 14
    with pytest.raises(UnsupportedOperator, match=r"opset 14.* reads up to 13"):
        opened().load(model.SerializeToString(), "onnx")


def test_a_layer_that_it_does_not_take_is_named(plugin: FakeOpenvino) -> None:
    nodes = [
        helper.make_node("Relu", ["input"], ["r"], "relu"),
        helper.make_node("Acosh", ["r"], ["output"], "acosh"),
    ]
    with pytest.raises(UnsupportedOperator, match=r"MYRIAD does not take Acosh 'output'$"):
        opened().load(onnx_of(nodes, [], SHAPE), "onnx")


def test_an_operator_that_does_not_exist_is_unsupported(plugin: FakeOpenvino) -> None:
    model = onnx.load_from_string(convolutions())
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(UnsupportedOperator, match="Nonsense"):
        opened().load(model.SerializeToString(), "onnx")


# Sticks that are not there, or no longer.


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts sticks on this machine's USB, as the kernel shows them."""
    devices, nodes = tmp_path / "sys", tmp_path / "dev"
    monkeypatch.setattr(usb, "DEVICES", devices)
    monkeypatch.setattr(usb, "NODES", nodes)
    devices.mkdir()

    def plug(port: str = "1-4", product: str = "2485", speed: str = "480", node: bool = True):
        folder = devices / port
        folder.mkdir(exist_ok=True)
        number = len(list(devices.iterdir()))
        facts = {"idVendor": "03e7", "idProduct": product, "speed": speed}
        for name, text in {**facts, "busnum": "1", "devnum": str(number)}.items():
            (folder / name).write_text(text + "\n")
        (nodes / "001").mkdir(parents=True, exist_ok=True)
        if node:
            (nodes / "001" / f"{number:03}").touch()
        return folder

    (devices / "usb1").mkdir()
    (devices / "usb1" / "idVendor").write_text("1d6b\n")
    return plug


def test_no_stick(plugin: FakeOpenvino, bus: Any) -> None:
    plugin.be(sticks=())
    assert reason() == "no stick is plugged in: USB shows no device of vendor 03e7"
    with pytest.raises(DeviceLost, match="no stick is plugged in"):
        opened()


def test_a_machine_that_shows_no_usb(
    plugin: FakeOpenvino, bus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.be(sticks=())
    monkeypatch.setattr(usb, "DEVICES", tmp_path / "none")
    assert "a container must be given it" in reason()


def test_a_stick_without_the_udev_rule(plugin: FakeOpenvino, bus: Any) -> None:
    bus(node=False)
    assert "the stick in port 1-4 may not be opened" in reason()
    assert "install the udev rule (docs/ncs2.md)" in reason()
    with pytest.raises(DeviceLost, match="udev rule"):
        opened()


def test_a_stick_that_another_program_has(plugin: FakeOpenvino, bus: Any) -> None:
    bus(product="f63b", speed="5000")
    plugin.be(in_use=True)
    assert "in use by another program" in reason()
    with pytest.raises(Busy, match="in use by another program"):
        opened()


def test_a_stick_of_the_first_generation(plugin: FakeOpenvino, bus: Any) -> None:
    bus(product="2150")
    plugin.be(sticks=())
    assert "the stick in port 1-4 is no Myriad X" in reason()
    plugin.be(sticks=("1.4-ma2450",))
    assert "the stick 1.4-ma2450 is no Myriad X" in reason()
    with pytest.raises(DeviceLost, match="is needed"):
        opened()


def test_a_stick_that_openvino_does_not_find(plugin: FakeOpenvino, bus: Any) -> None:
    bus()
    plugin.be(sticks=())
    assert "OpenVINO does not find the stick that USB shows" in reason()


def test_loading_is_tried_again_where_the_stick_is_still_there(
    plugin: FakeOpenvino, bus: Any
) -> None:
    bus()
    plugin.be(fail_loads=2)
    assert loaded(opened()).timed_calls(1)
    plugin.be(fail_loads=99)
    with pytest.raises(DeviceLost, match=r"does not answer \(Can not init Myriad device: NC_ERROR"):
        loaded(opened())


def test_lost_while_loading(plugin: FakeOpenvino, bus: Any) -> None:
    plugin.be(lost_at_load=2)
    session = opened()
    first = loaded(session)
    with pytest.raises(DeviceLost, match="it is gone from USB; plug it in again"):
        loaded(session, "SEP_5")
    with pytest.raises(DeviceLost, match="Failed to queue inference: NC_ERROR"):
        first.timed_calls(1)
    assert session.conditions().temperature_c == 0.0


def test_lost_while_measuring(plugin: FakeOpenvino, bus: Any) -> None:
    plugin.be(lost_at_call=5)
    graph = loaded(opened())
    with pytest.raises(DeviceLost, match="Failed to queue inference: NC_ERROR") as caught:
        graph.timed_calls(10)
    assert "\n" not in str(caught.value)


def test_gone_before_the_first_graph(plugin: FakeOpenvino, bus: Any) -> None:
    session = opened()
    plugin.be(sticks=())
    with pytest.raises(DeviceLost, match="no stick is plugged in"):
        loaded(session)


@pytest.mark.parametrize(
    ("ports", "name", "speed"),
    [
        ({"2-4": "5000"}, STICK, 5000.0),
        ({"1-4": "480"}, "1.4-ma2480", 480.0),
        ({"1-4": "480", "2-1.2": "5000"}, "1.2-ma2480", 5000.0),
        ({"1-4": "480", "2-1.2": "5000"}, "2.1.2-ma2480", 5000.0),
        ({"1-4": "480", "2-1": "5000"}, "", 480.0),
        ({"1-4": "480", "2-1": "5000"}, "7.7-ma2480", 480.0),
        ({"1-4": ""}, STICK, 0.0),
        ({}, STICK, 0.0),
    ],
)
def test_the_speed_of_a_link(bus: Any, ports: dict[str, str], name: str, speed: float) -> None:
    for port, text in ports.items():
        bus(port, "f63b", text)
    bus("1-9", "2485", "12")  # not booted: its speed says nothing
    assert usb.slowest_mbps(name, usb.usb_sticks()) == speed


def test_a_slow_link_is_a_flag(plugin: FakeOpenvino, bus: Any) -> None:
    folder = bus(product="f63b", speed="480")
    session = opened()
    assert loaded(session).flags == ("simulated", "usb:480")
    (folder / "speed").write_text("5000\n")
    assert loaded(session, "SEP_5").flags == ("simulated",)


def test_every_message_of_the_plugin_has_its_kind() -> None:
    kinds: dict[str, type[AgentError]] = {
        "Can not init Myriad device: NC_ERROR": DeviceLost,
        "Failed to queue inference: NC_ERROR": DeviceLost,
        "Failed to read output from FIFO: NC_TIMEOUT": DeviceLost,
        OUT_OF_MEMORY: OutOfMemory,
        "Myriad device: 1.4-ma2480 not found.": DeviceLost,
        "there is no available devices with platform 2480": DeviceLost,
        'Device with "MYRIAD" name is not registered in the InferenceEngine': BadRequest,
    }
    for text, kind in kinds.items():
        found = myriad_vpu._typed(RuntimeError(text))
        assert type(found) is kind, text
        assert text in str(found)
