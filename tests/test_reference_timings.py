"""The pure parts of `benchmarks/reference_timings.py`, and an OpenVINO without telemetry."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hurricane.ops.errors import HurricaneError

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "reference_timings.py"


@pytest.fixture(scope="module")
def timings():
    spec = importlib.util.spec_from_file_location("reference_timings", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    ("line", "ms"),
    [
        ("[ INFO ]    Median:        123.45 us", 0.12345),
        ("[ INFO ]    Median:        2.61 ms", 2.61),
    ],
)
def test_the_median_of_benchmark_app_is_read_in_either_unit(timings, line, ms):
    output = f"[ INFO ] Latency:\n{line}\n[ INFO ]    Average:       9.99 ms\n"
    assert timings.parse_median_ms(output) == pytest.approx(ms)


def test_a_benchmark_app_without_a_median_is_an_error(timings):
    with pytest.raises(HurricaneError, match="no line 'Median"):
        timings.parse_median_ms("[ INFO ]    Average:       9.99 ms\n")


def test_the_retest_is_the_usual_change_between_turns(timings):
    assert timings.retest([1.0, 1.1, 1.1 * 1.02, 1.1 * 1.02 * 0.97]) == pytest.approx(0.03)


def test_turns_are_pooled_by_the_median(timings):
    found = timings.Agreement.of(
        [np.array([1.0, 2.0]), np.array([3.0, 3.0])], [np.array([2.0]), np.array([2.0])]
    )
    assert (found.one_ms, found.other_ms, found.ratio) == (2.5, 2.0, 1.25)
    assert found.one_retest == pytest.approx(1.0)
    assert found.other_retest == 0


@pytest.mark.parametrize(
    ("ratio", "retests", "within"),
    [
        (1.04, (0.0, 0.0), True),
        (0.94, (0.0, 0.0), False),
        (0.94, (0.04, 0.0), True),
        (1.07, (0.0, 0.04), True),
        (1.09, (0.04, 0.04), False),
    ],
)
def test_tools_agree_within_five_percent_or_twice_a_retest(timings, ratio, retests, within):
    found = timings.Agreement(ratio, 1.0, *retests)
    assert found.within is within
    assert found.facts()["within"] is within


def test_the_summary_counts_what_is_off(timings):
    found = [timings.Agreement(r, 1.0, 0.01, 0.04) for r in (1.0, 1.02, 1.07, 1.2)]
    summary = timings.summarise(found)
    assert summary["share_within_5_percent"] == 0.5
    assert summary["share_within_limit"] == 0.75
    assert (summary["ratio_lowest"], summary["ratio_highest"]) == (1.0, 1.2)
    assert summary["ratio"] == pytest.approx(1.045)
    assert summary["rms_deviation"] == pytest.approx(np.sqrt((0.02**2 + 0.07**2 + 0.2**2) / 4))


def test_every_tool_times_every_graph_once_a_repetition_in_small_blocks(timings):
    graphs = [f"graph-{i}" for i in range(2 * timings.BLOCK + 1)]
    turns: list[tuple[str, int]] = []

    def tool(name, factor):
        def time_block(block):
            turns.append((name, len(block)))
            return [np.array([factor * graphs.index(graph)]) for graph in block]

        return time_block

    tools = {"one": tool("one", 1.0), "other": tool("other", 2.0)}
    times = timings.time_in_turns(tools, graphs, repetitions=3, seed=0)
    for name, factor in (("one", 1.0), ("other", 2.0)):
        assert [np.concatenate(t).tolist() for t in times[name]] == [
            [factor * i] * 3 for i in range(len(graphs))
        ]
    for one, other in zip(turns[::2], turns[1::2], strict=True):
        assert {one[0], other[0]} == {"one", "other"}  # in turns, whatever goes first
        assert one[1] == other[1] <= timings.BLOCK
    assert len({name for name, _ in turns[::2]}) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--target", "sim-hexagon685-dsp"),
        ("--target", "cpu-openvino-fp32-t2"),
        ("--repetitions", "1"),
        ("--layers", "imagenet224:99"),
    ],
)
def test_what_cannot_be_met_is_told_in_words(timings, monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["reference_timings.py", *words])
    with pytest.raises(SystemExit) as ended:
        timings.main()
    assert ended.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"Error: {words[0]} ")
    assert complaint.count("\n") <= 2


def test_openvino_is_used_without_its_telemetry():
    pytest.importorskip("openvino_telemetry")
    code = (
        "import sys\n"
        "from hurricane.agents.backends import openvino_cpu\n"
        "from hurricane.agents.backends.base import Availability, Context\n"
        "target = openvino_cpu.targets(Context())[0]\n"
        "assert target.availability is Availability.AVAILABLE, target.reason\n"
        "openvino_cpu.open_target(Context(), target.name, {}, 1)\n"
        "assert 'openvino' in sys.modules\n"
        "print(sum(name.startswith('openvino_telemetry.') for name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "0"
