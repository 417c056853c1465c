"""The commands space, search, train and export, and a search that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner, Result

from hurricane.lookup_tables.architecture import Architecture
from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.proportion import wilson_interval
from hurricane.lookup_tables.table import LookupTable, Row, Target
from hurricane.ops.artifacts import prepare
from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.pool import POOL
from hurricane.ops.reference import ReferenceNetwork
from hurricane.ops.shapes import LayerShape
from hurricane.profiler.networks import WholeNetwork
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.target import parse_target
from hurricane.search.baselines import BASELINES
from hurricane.search.cli import cli
from hurricane.search.measuring import Measurement, NotMeasurable, TargetMeasurer
from hurricane.search.space import SearchSpace

from .search_backbone import BACKBONE, BUDGET

TARGET = Target("test-board", "dsp", "qnn", "1.0", precision="int8")
PROGRAM = "from hurricane.search.cli import main; main()"
FAST = ["--training", "0.05", "--evaluations", "12", "--population", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small backbone and a table of a board that is not here."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.toml").write_text(BACKBONE)
    write_table(load_backbone(folder / "tiny.toml"), folder / "tiny.csv")
    return folder


def write_table(backbone: Backbone, path: Path) -> None:
    def row(name: str, shape: LayerShape, ms: float) -> Row:
        values = {"latency_ms": ms, "call_ms": 0.01, "estimator": "made up"}
        return Row.of(TARGET, name, shape, status="ok", **values)

    rows = [row(backbone.stem_name, backbone.stem_shape, 0.05)]
    rows.append(row(backbone.head_name, backbone.head_shape, 0.05))
    for shape in backbone.distinct_shapes:
        for index, op in enumerate(POOL):
            ms = 0.02 + op.macs(shape) / 3e6 + op.se * 0.02 + 0.001 * index
            rows.append(row(op.name, shape, ms))
    LookupTable(rows).save(path)


def call(bench: Path, *arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=True)
    code = getattr(result.exception, "exit_status", result.exit_code)
    assert code == status, (result.output, result.exception)
    return result


def make(bench: Path) -> list[str]:
    return [
        "--table", str(bench / "tiny.csv"), "--backbone", str(bench / "tiny.toml"),
        "--latency", BUDGET,
    ]  # fmt: skip


def test_space_prints_a_summary_and_writes_the_file(bench: Path, tmp_path: Path) -> None:
    result = call(bench, "space", *make(bench), "-o", str(tmp_path / "space.json"))
    space = SearchSpace.load(tmp_path / "space.json")
    assert f"method pareto, {space.price_per_ms:.4g} of log(F·P) for a ms" in result.stdout
    assert f"{space.lowest_ms:.4g} to {space.highest_ms:.4g} ms" in result.stdout
    for names in space.candidates:
        assert all(name in result.stdout for name in names)
    assert space.table is not None
    assert space.table.sha256 == LookupTable.load(bench / "tiny.csv").sha256()


def test_space_as_json_is_one_object(bench: Path) -> None:
    words = ["--method", "hurricane", "--alpha", "0.2", "--top", "3", "--json"]
    content = json.loads(call(bench, "space", *make(bench), *words).stdout)
    assert content["method"] == "hurricane"
    assert content["alpha"] == 0.2
    assert content["alpha_mode"] == "fixed"
    assert [len(layer["operators"]) for layer in content["layers"]] == [3, 3, 3, 4]


def test_an_option_of_the_other_method_is_refused(bench: Path) -> None:
    result = call(bench, "space", *make(bench), "--alpha", "0.2", status=2)
    assert "--method hurricane" in str(result.exception)


def test_a_space_with_next_to_nothing_to_choose_from_is_said_to_be_one(bench: Path) -> None:
    table, backbone = LookupTable.load(bench / "tiny.csv"), load_backbone(bench / "tiny.toml")
    low, _ = LatencyModel(table, backbone).bounds()
    result = call(bench, "space", *make(bench)[:-1], str(low + 0.001))
    assert "Note: next to nothing to choose from" in result.stderr


@pytest.mark.parametrize("option", [["--alpha", "much"], ["--latency", "soon"], ["--top", "0"]])
def test_wrong_options_are_wrong_usage(bench: Path, option: list[str]) -> None:
    call(bench, "space", *make(bench), *option, status=2)


def test_a_space_needs_a_table_and_a_budget(bench: Path) -> None:
    result = call(bench, "space", "--latency", "3", status=2)
    assert "--table" in str(result.exception)


@pytest.mark.process
def test_an_impossible_budget_ends_before_torch_is_loaded(bench: Path, tmp_path: Path) -> None:
    program = (
        "import atexit, sys\n"
        "from hurricane.search.cli import main\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'pandas' in sys.modules))\n"
        "main()\n"
    )
    run = tmp_path / "run"
    arguments = [*make(bench)[:-1], "0.05", "-o", str(run)]
    done = subprocess.run(
        [sys.executable, "-c", program, "search", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: a budget of 0.05 ms cannot be met")
    table, backbone = LookupTable.load(bench / "tiny.csv"), load_backbone(bench / "tiny.toml")
    low, _ = LatencyModel(table, backbone).bounds()
    assert f"the fastest network takes {low:.4g} ms" in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert done.stdout.split() == ["False", "False"]
    assert not run.exists()


def search(bench: Path, run: Path, method: str = "hurricane") -> list[str]:
    """The words of a search, by default of one with two stages."""
    return [
        "search", *make(bench), "--method", method, *FAST, "--no-measure", "-o", str(run),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a search that nobody disturbed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    call(bench, *search(bench, run))
    return run


@pytest.mark.process
def test_a_run_holds_everything_that_was_made(bench: Path, finished: Path) -> None:
    winner = Architecture.load(finished / "architecture.json")
    assert winner.predicted_ms is not None
    assert winner.predicted_ms <= float(BUDGET) + 1e-9
    assert winner.measured_ms is None
    assert winner.method == "hurricane"
    assert winner.operators == Architecture.load(finished / "winner-2.json").operators
    assert {(f.split, f.how.split(" ")[0]) for f in winner.accuracy} == {
        ("validation", "supernet"),
        ("test", "supernet"),
        ("validation", "trained"),
        ("test", "trained"),
    }
    onnx.checker.check_model(onnx.load(str(finished / "model.onnx")))
    assert SearchSpace.load(finished / "space.json").budget_ms == float(BUDGET)
    assert json.loads((finished / "config.json").read_text())["evaluations"] == 12
    for stage in (1, 2):
        lines = (finished / f"evaluated-{stage}.csv").read_text().splitlines()
        assert 2 <= len(lines) <= 13


@pytest.mark.process
def test_a_search_lists_the_networks_within_noise_of_its_winners(
    bench: Path, finished: Path
) -> None:
    content = json.loads(call(bench, *search(bench, finished), "--json").stdout)
    assert len(content["stages"]) == 2
    for stage in content["stages"]:
        best, *others = stage["within_noise"]
        assert best["operators"] == stage["operators"]
        assert best["accuracy"] == stage["accuracy"]
        low, _ = wilson_interval(round(stage["accuracy"] * 300), stage["images"])
        assert stage["images"] == 300
        assert all(low <= other["accuracy"] <= stage["accuracy"] for other in others)
    for figure in content["architecture"]["accuracy"]:
        assert figure["images"] == {"validation": 300, "test": 360}[figure["split"]]
        assert figure["low"] <= figure["value"] <= figure["high"]


@pytest.mark.process
def test_a_search_is_compared_with_baselines(bench: Path, finished: Path) -> None:
    result = call(bench, *search(bench, finished), "--json")
    comparison = json.loads(result.stdout)["comparison"]
    assert comparison == json.loads((finished / "baselines.json").read_text())
    found = {item["name"]: item for item in comparison["baselines"]}
    assert tuple(found) == BASELINES
    assert len(set(found["uniform"]["operators"])) == 1
    for name in ("random", "macs", "uniform"):
        assert found[name]["macs"] > 0
        assert found[name]["predicted_ms"] <= float(BUDGET) + 1e-9
        assert found[name]["measured"] is None
    assert "nothing was to be measured" in found["mobilenet-v2"]["problem"]
    text = call(bench, *search(bench, finished)).stdout
    assert "\nnetwork found " in text
    assert "\nmobilenet-v2 " in text
    shown = call(bench, *search(bench, finished), "--baselines", "none").stdout
    assert "network found" not in shown


def test_a_baseline_that_is_not_there_is_wrong_usage(bench: Path, tmp_path: Path) -> None:
    words = [*search(bench, tmp_path / "run"), "--baselines", "random,resnet"]
    assert "'resnet'" in str(call(bench, *words, status=2).exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_published_networks_are_timed_on_the_target_of_a_table(simulated: Target) -> None:
    backbone = load_backbone("digits32")
    one = ReferenceNetwork("mobilenet-v2", 0.25, 10, 1, 32, 32)
    chain = ("SEP_3",) * len(backbone.layers)
    networks = [
        WholeNetwork("baseline", "winner", chain),
        WholeNetwork("baseline", one.name, (), reference=one),
        WholeNetwork("baseline", "wide", (), reference=replace(one, multiplier=1.0)),
    ]
    found = TargetMeasurer(simulated, rounds=8).together(backbone, networks, "h-swish")
    winner, narrow, wide = (m.ms for m in found if isinstance(m, Measurement))
    assert 0 < narrow < wide
    alone = TargetMeasurer(simulated, rounds=8)(backbone, chain, "h-swish")
    assert alone.ms == pytest.approx(winner, rel=0.1)


@pytest.mark.process
def test_a_search_of_all_layers_at_once_has_one_stage(bench: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    call(bench, *search(bench, run, "pareto"))
    winner = Architecture.load(run / "architecture.json")
    assert winner.method == SearchSpace.load(run / "space.json").method == "pareto"
    assert winner.operators == Architecture.load(run / "winner-1.json").operators
    assert len((run / "evaluated-1.csv").read_text().splitlines()) == 13
    assert not list(run.glob("*-2.*"))
    assert "one stage" in (run / "report.html").read_text()


@pytest.mark.process
def test_a_search_killed_half_way_resumes_to_the_same_result(
    bench: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *search(bench, run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    deadline = time.monotonic() + 120
    while not (run / "evaluated-1.csv").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "architecture.json").exists()
    call(bench, *search(bench, run))
    for name in ("architecture.json", "evaluated-1.csv", "evaluated-2.csv", "winner-1.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.process
def test_a_finished_run_is_not_done_again(bench: Path, finished: Path) -> None:
    before = {f.name: f.stat().st_mtime_ns for f in finished.glob("*.pt")}
    model = (finished / "model.onnx").read_bytes()
    (finished / "model.onnx").unlink()
    result = call(bench, *search(bench, finished), "--json")
    assert json.loads(result.stdout)["directory"] == str(finished)
    assert {f.name: f.stat().st_mtime_ns for f in finished.glob("*.pt")} == before
    assert (finished / "model.onnx").read_bytes() == model


@pytest.mark.process
def test_resuming_with_other_options_is_refused(bench: Path, finished: Path) -> None:
    result = call(bench, *search(bench, finished), "--seed", "7", status=2)
    assert "seed=0, not seed=7" in str(result.exception)


@pytest.mark.process
def test_a_space_file_replaces_the_options_that_build_one(
    bench: Path, finished: Path, tmp_path: Path
) -> None:
    space = str(finished / "space.json")
    result = call(
        bench, "search", "--space", space, "--top", "3", "-o", str(tmp_path / "a"), status=2
    )
    assert "already settles --top" in str(result.exception)
    run = tmp_path / "b"
    call(bench, "search", "--space", space, *FAST, "--no-measure", "-o", str(run))
    found = Architecture.load(run / "architecture.json")
    assert found.operators == Architecture.load(finished / "architecture.json").operators


@pytest.mark.process
def test_train_gives_an_architecture_its_figures(
    bench: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    call(
        bench, "train", str(finished / "winner-1.json"), "--training", "0.1", "--device", "cpu",
        "--no-measure", "-o", str(run),
    )  # fmt: skip
    trained = Architecture.load(run / "architecture.json")
    assert trained.operators == Architecture.load(finished / "winner-1.json").operators
    assert [f.split for f in trained.accuracy] == ["validation", "test"]
    assert (run / "model.onnx").exists()


@pytest.mark.process
def test_a_board_that_is_not_here_is_said_not_to_be_measured(
    bench: Path, finished: Path, tmp_path: Path
) -> None:
    result = call(
        bench, "train", str(finished / "winner-1.json"), "--training", "0.1", "--device", "cpu",
        "-o", str(tmp_path / "run"),
    )  # fmt: skip
    assert "not measured: " in result.stdout
    assert "--agent" in result.stdout
    assert Architecture.load(tmp_path / "run" / "architecture.json").measured_ms is None


@pytest.fixture(scope="module")
def simulated() -> Target:
    """A simulated stick, as a private agent names it."""
    request = parse_target("sim-myriadx-vpu")
    with connect((), request) as clients:
        return TargetSession.open(clients[0], request).target


@pytest.mark.process
def test_a_network_is_measured_on_the_target_of_its_table(
    simulated: Target, finished: Path
) -> None:
    winner = Architecture.load(finished / "architecture.json")
    found = TargetMeasurer(simulated, rounds=8)(
        winner.load_backbone(),
        winner.operators,
        winner.gate,
        lambda recipe: prepare((finished / "model.onnx").read_bytes(), recipe),
    )
    assert found.ms > 0
    assert found.first_ms == pytest.approx(found.ms, rel=0.2)
    assert found.second_ms == pytest.approx(found.ms, rel=0.2)


@pytest.mark.process
def test_another_device_than_the_tables_is_not_measured(simulated: Target, finished: Path) -> None:
    with pytest.raises(NotMeasurable, match="name the board's agent with --agent"):
        TargetMeasurer(replace(simulated, precision="fp32")).check()


@pytest.mark.process
def test_export_takes_the_trained_weights_where_there_are_any(
    bench: Path, finished: Path, tmp_path: Path
) -> None:
    trained, seeded = tmp_path / "trained.onnx", tmp_path / "seeded.onnx"
    fp32 = ["--precision", "fp32", "--json"]
    call(bench, "export", str(finished / "architecture.json"), "-o", str(trained), *fp32)
    Architecture.load(finished / "architecture.json").save(tmp_path / "architecture.json")
    result = call(bench, "export", str(tmp_path / "architecture.json"), "-o", str(seeded), *fp32)
    assert trained.read_bytes() == (finished / "model.onnx").read_bytes()
    assert seeded.read_bytes() != trained.read_bytes()
    assert json.loads(result.stdout)["weights"] is None
    assert json.loads(result.stdout)["bytes"] == seeded.stat().st_size


def test_export_does_not_give_a_network_the_weights_of_another(
    bench: Path, finished: Path, tmp_path: Path
) -> None:
    winner = Architecture.load(finished / "architecture.json")
    others = ("SEP_3", *winner.operators[1:])
    if others == winner.operators:
        others = ("SEP_5", *winner.operators[1:])
    (tmp_path / "weights.pt").write_bytes((finished / "weights.pt").read_bytes())
    other, output = tmp_path / "winner-1.json", tmp_path / "other.onnx"
    replace(winner, operators=others).save(other)
    fp32 = ["--precision", "fp32", "--json"]
    result = call(bench, "export", str(other), "-o", str(output), *fp32)
    assert json.loads(result.stdout)["weights"] is None
    (line,) = result.stderr.splitlines()
    assert "another network's weights" in line
    onnx.checker.check_model(onnx.load(str(output)))
    wanted = ["--weights", str(tmp_path / "weights.pt"), "-o", str(tmp_path / "none.onnx")]
    refused = call(bench, "export", str(other), *wanted, status=2)
    assert "another network's" in str(refused.exception)
    assert "--weights" in str(refused.exception)
    assert not (tmp_path / "none.onnx").exists()


@pytest.mark.process
def test_the_group_lists_all_commands_without_importing_them() -> None:
    program = (
        "import sys; from hurricane.search.cli import cli; cli(['--help'], standalone_mode=False); "
        "print({'torch', 'pandas', 'rich', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    for name in (
        "agent",
        "profile-ops",
        "table",
        "space",
        "search",
        "train",
        "export",
        "verify",
        "support",
    ):
        assert f"\n  {name} " in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
