"""The pure parts of `benchmarks/outsider.py` and `wall_time.py`, and the outsider's ignorance."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hurricane.ops.backbone import load_backbone
from hurricane.ops.export import export_operator
from hurricane.ops.shapes import LayerShape

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # for what benchmarks share
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outsider():
    return load("outsider")


@pytest.fixture(scope="module")
def wall_time():
    return load("wall_time")


@pytest.mark.process
def test_the_outsider_imports_nothing_of_the_project_and_tells_every_call(tmp_path):
    file = tmp_path / "graph.onnx"
    file.write_bytes(export_operator("SEP_3", LayerShape(8, 8, 16, 16, 1)))
    script = BENCHMARKS / "outsider_timing.py"
    code = (
        "import os, runpy, sys\n"
        f"sys.argv[1:] = ['--runtime', 'onnxruntime', '--core', str(max(os.sched_getaffinity(0))),"
        f" '--loop', '0.01', '--rounds', '4', {str(file)!r}, {str(file)!r}]\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'hurricane'))\n"
        "print(len(os.sched_getaffinity(0)))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    times, imported, cores = done.stdout.splitlines()
    found = json.loads(times)
    assert [len(calls) for calls in found["rounds"]] == [4, 4]
    assert all(calls and min(calls) > 0 for way in found.values() for calls in way)
    assert (imported, cores) == ("[]", "1")
    assert len(script.read_text().splitlines()) <= 80


def test_statistics_of_one_part_are_the_usual_ones(outsider):
    found = outsider.statistics_ms([np.random.default_rng(0).permutation(np.arange(1.0, 1001.0))])
    assert found["median"] == pytest.approx(500.5)
    assert found["p90"] == pytest.approx(900.5)
    assert found["quiet"] == pytest.approx(np.mean(np.arange(1, 251)))


def test_parts_count_for_as_much_however_many_calls_they_hold(outsider):
    found = outsider.statistics_ms([[1.0] * 900, [2.0] * 10])
    even = outsider.statistics_ms([[1.0] * 10, [2.0] * 10])
    assert found["p90"] == even["p90"] == 2.0
    assert found["quiet"] == even["quiet"] == pytest.approx(1.0)


def test_ways_hold_the_calls_of_both_passes(outsider):
    before = {"loop": [[1.0] * 9], "rounds": [[3.0]]}
    after = {"loop": [[2.0] * 9], "rounds": [[4.0]]}
    found = outsider.measured_ms([before, after])
    medians = {way: statistics["median"] for way, statistics in found.items()}
    assert medians["loop"] == pytest.approx([1.5], abs=0.1)
    assert medians["rounds"] == pytest.approx([3.5])
    assert 2.0 < medians["pooled"][0] < 3.0
    assert outsider.slowdown(before, after) == {"loop": 2.0, "rounds": pytest.approx(4 / 3)}


def test_errors_are_fractions_of_what_was_measured(outsider):
    found = outsider.figures([1.1, 2.2, 3.3], [1.0, 2.0, 3.0])
    assert found["bias"] == pytest.approx(0.1)
    assert found["rmspe"] == pytest.approx(0.1)
    assert found["rmspe_after_one_factor"] == pytest.approx(0.0, abs=1e-9)
    assert found["kendall_tau"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bias", "rmspe", "measured", "within"),
    [
        (-0.03, 0.04, "median", True),
        (-0.031, 0.035, "median", False),
        (0.0, 0.05, "median", False),
        (0.0, 0.05, "p90", True),
        (0.0, 0.07, "p90", False),
    ],
)
def test_limits_are_those_of_the_statistic(outsider, bias, rmspe, measured, within):
    assert outsider.is_within({"bias": bias, "rmspe": rmspe}, measured) is within


@pytest.mark.parametrize("names", [("quiet",), ("quiet", "median", "p90")])
def test_each_statistic_that_a_model_knows_is_asked_for(outsider, monkeypatch, names):
    times: dict[str, float] = {"quiet": 1.0, "median": 2.0, "p90": 3.0}

    class OneFigure:
        def __init__(self, table, backbone):
            pass

        def encode(self, operators):
            return np.zeros(len(operators), dtype=int)

        def predict(self, codes):
            return np.full(len(codes), times["quiet"])

    class Several(OneFigure):
        def predict(self, codes, statistic="median"):
            return np.full(len(codes), times[statistic])

    monkeypatch.setattr(outsider, "LatencyModel", OneFigure if len(names) == 1 else Several)
    monkeypatch.setattr(outsider.LookupTable, "load", lambda path: None)
    found = outsider.predicted_ms(Path("table.csv"), load_backbone("digits32"), [["SEP_3"]] * 2)
    assert found == {name: [times[name]] * 2 for name in names}


def test_a_single_figure_stands_beside_all_and_several_each_beside_its_own(outsider):
    measured = {"loop": {name: [1.0, 2.0] for name in outsider.STATISTICS}}
    alone = outsider.compare_all({"quiet": [1.0, 2.0]}, measured)
    assert set(alone) == {"quiet/quiet", "quiet/median", "quiet/p90"}
    every = outsider.compare_all({name: [1.0, 2.0] for name in outsider.STATISTICS}, measured)
    assert set(every) == {"quiet/quiet", "median/median", "p90/p90"}


@pytest.mark.parametrize(
    ("biases", "inconclusive", "within", "shown"),
    [
        ([0.0, 0.0, 0.0, 0.0, 0.0], [], 5, True),
        ([0.0, 0.0, 0.0, 0.0, 0.2], [], 4, False),
        ([0.0, 0.0, 0.0, 0.0, 0.2], [4], 4, True),
        ([0.0, 0.0, 0.0, None, 0.0], [3], 4, True),
        ([0.0, 0.0, 0.0, 0.2, 0.2], [3, 4], 3, False),
    ],
)
def test_four_of_five_hold_and_the_other_was_said_to_be_inconclusive(
    outsider, biases, inconclusive, within, shown
):
    repeats = [
        {
            "profile": {"inconclusive": number in inconclusive},
            "figures": {}  # the table was not finished
            if bias is None
            else {"median/median": {"loop": {"bias": bias, "rmspe": abs(bias)}}},
        }
        for number, bias in enumerate(biases)
    ]
    found = outsider.summarise(repeats)["median/median"]["loop"]
    assert (found["within"], found["shown"]) == (within, shown)
    assert found["repeats"] == 5


def test_networks_are_distinct_and_spread_over_their_macs(outsider):
    backbone = load_backbone("digits32")
    networks = outsider.draw_networks(backbone, 12, seed=1)
    assert len(set(networks)) == 12
    macs = np.array([backbone.macs(operators) for operators in networks])
    assert (np.diff(macs) > 0).all()
    drawn = [backbone.macs(n) for n in outsider.draw_networks(backbone, 1000, seed=1)]
    assert macs.max() - macs.min() > 0.7 * (max(drawn) - min(drawn))


def test_wall_time_goes_to_the_step_that_both_ends_tell_of(wall_time):
    events = [(2.0, "export"), (5.0, "export"), (6.0, "load"), (6.5, "load"), (8.0, "measure")]
    found = wall_time.by_step([*events, (9.0, "load"), (9.25, "load")], begun=1.0, ended=9.5)
    assert found == {
        wall_time.BEFORE: 1.0,
        "export": 3.0,
        "export to load": 1.0,
        "load": 0.75,
        "load to measure": 1.5,
        "measure to load": 1.0,
        wall_time.AFTER: 0.25,
    }
    assert sum(found.values()) == 8.5
