"""Plans, estimates and whole runs of the profiler, on simulated devices and the real CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hurricane.agents.client import private_agent
from hurricane.agents.errors import AgentError
from hurricane.lookup_tables.calibration import find_calibration
from hurricane.lookup_tables.journal import Journal, journal_path, read_journal
from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable, Target
from hurricane.ops.backbone import is_stem, load_backbone, row_costs
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.export import export_operator, sha256
from hurricane.ops.pool import POOL, select_operators
from hurricane.profiler import delivery
from hurricane.profiler import protocol as protocol_module
from hurricane.profiler.accuracy import compare, kendall_tau
from hurricane.profiler.additivity import check_networks
from hurricane.profiler.cli import profile_ops
from hurricane.profiler.coverage import missing_rows
from hurricane.profiler.draws import random_networks, uniform_networks
from hurricane.profiler.networks import time_networks
from hurricane.profiler.plan import (
    ESTIMATED,
    HEAVY,
    baseline_graphs,
    graph_bytes,
    parse_layers,
    plan_row,
    plan_rows,
)
from hurricane.profiler.profile import profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.recorder import Recorder
from hurricane.profiler.runner import Runner
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.summary import failure_words
from hurricane.profiler.target import parse_target
from hurricane.profiler.timing.location import quiet_error_ms, quiet_ms
from hurricane.profiler.timing.marginal import Estimate, combine
from hurricane.profiler.verify_cli import verify

DSP = "sim-hexagon685-dsp"
FEW = "SEP_3,SEP_5,MB_3_3,Choice_3,Choice_3_SE"
QUICK = TimingProtocol(network_rounds=16, max_rounds=12)
SHORT = TimingProtocol(min_rounds=3, max_rounds=3)


def run(command, *words: str):
    result = CliRunner().invoke(command, list(words), catch_exceptions=False, standalone_mode=False)
    if isinstance(result.return_value, int):  # as `run_command` takes it
        result.exit_code = result.return_value
    return result


def test_layers_of_equal_shape_share_rows():
    rows = plan_rows(parse_layers("imagenet224"), POOL)
    assert len(rows) == 32 * 8 + 2
    assert len({(r.name, r.shape) for r in rows}) == len(rows)


def test_some_layers_can_be_named():
    assert parse_layers("imagenet224:0-7,12").indices == (0, 1, 2, 3, 4, 5, 6, 7, 12)
    assert not parse_layers("imagenet224:0").whole
    for wrong in ("imagenet224:20", "imagenet224:3-1", "imagenet224:x"):
        with pytest.raises(BadRequest, match="--layers"):
            parse_layers(wrong)


@pytest.mark.parametrize("backbone", ["imagenet224", "proxyless224", "digits32"])
def test_the_graphs_of_a_network_sum_to_the_network(backbone):
    """The rows' differences, added up over a network with its call, leave exactly its pieces."""
    frame = load_backbone(backbone)
    operators = [POOL[i % 3].name for i in range(len(frame.layers))]
    names = [frame.stem_name, *operators, frame.head_name]
    shapes = [frame.stem_shape, *frame.layers, frame.head_shape]
    count: dict[object, Fraction] = {}

    def add(graph, weight: Fraction) -> None:
        for piece in graph:
            count[piece] = count.get(piece, Fraction(0)) + weight

    for name, shape in zip(names, shapes, strict=True):
        contexts = plan_row(name, shape).contexts
        for context in contexts:
            add(context.with_operator, Fraction(1, len(contexts)))
            add(context.baseline, -Fraction(1, len(contexts)))
    (image,) = plan_row(frame.stem_name, frame.stem_shape).baselines
    add(image, Fraction(1))  # the price of a call
    expected: dict[object, int] = {}
    for name, shape in zip(names, shapes, strict=True):
        piece = plan_row(name, shape).alone[0]
        expected[piece] = expected.get(piece, 0) + 1
    assert {p: n for p, n in count.items() if n} == expected


def test_a_row_is_known_by_its_canonical_graph():
    row = plan_row("SEP_3", load_backbone("digits32").layers[0])
    assert sha256(graph_bytes(row.alone)) == sha256(export_operator(row.name, row.shape))


def test_an_operator_stands_behind_two_neighbours_where_both_apply():
    inner = load_backbone("digits32").layers[1]
    first = [context.with_operator[0].name for context in plan_row("SEP_5", inner).contexts]
    assert first == ["SEP_3", "Choice_3"]
    rows = plan_rows(parse_layers("digits32"), POOL)
    assert len(baseline_graphs(rows)) < len(rows) / 8
    assert {graph for row in rows for graph in row.baselines} == set(baseline_graphs(rows))


def test_beside_a_heavy_operator_one_neighbour_does_and_each_has_its_turn():
    rows = plan_rows(parse_layers("imagenet224"), POOL)
    heavy = [row for row in rows if row.spare]
    assert len(rows) / 4 < len(heavy) < len(rows) / 2
    turns = Counter(row.contexts[0].baseline[0].name for row in heavy)
    assert min(turns.values()) > len(heavy) / 3
    for row in rows:
        neighbours = [context.with_operator[0].name for context in (*row.contexts, *row.spare)]
        assert is_stem(row.name) or sorted(neighbours) == ["Choice_3", "SEP_3"]
        if row.spare:
            (context,) = row.contexts
            macs = [sum(c.macs for c in row_costs(p.name, p.shape)) for p in context.with_operator]
            assert macs[1] >= HEAVY * macs[0]
    estimated = plan_row("MB_7_6", heavy[0].shape, origin=ESTIMATED)
    assert len(estimated.contexts) == 2
    assert not estimated.spare


def estimate(*graphs: tuple[float, np.ndarray]) -> Estimate:
    """A weighted sum of graphs' quiet times, one call a visit."""
    calls = np.stack([calls for _, calls in graphs])
    weights = np.array([weight for weight, _ in graphs])
    return combine(
        weights, quiet_ms(calls, axis=1), quiet_error_ms(calls[..., None]), samples=calls.size
    )


def test_the_marginal_latency_is_the_mean_difference_and_its_interval_holds_it():
    random = np.random.default_rng(0)

    def calls(ms: float) -> np.ndarray:
        return ms + random.exponential(0.02, 400)

    found = estimate(
        (0.5, calls(2.4)),
        (-0.5, calls(2.0)),
        (0.5, calls(3.6)),
        (-0.25, calls(2.9)),  # two replicas
        (-0.25, calls(3.1)),
    )
    assert found.latency_ms == pytest.approx(0.5, abs=0.004)
    assert found.ci_low_ms <= found.latency_ms <= found.ci_high_ms
    assert found.ci_high_ms - found.ci_low_ms < 0.02
    assert found.samples == 5 * 400
    assert found.flags == ()


def test_bursts_of_other_work_do_not_move_the_quiet_time():
    quiet = np.full(24, 1.0)
    disturbed = quiet.copy()
    disturbed[:14] = 5.0
    assert quiet_ms(disturbed) == quiet_ms(quiet)


def test_the_quiet_time_is_the_mean_of_the_fastest_quarter_less_half_a_call():
    calls = np.random.default_rng(0).permutation([1.0, 2.0, 3.0, *[9.0] * 7])
    assert quiet_ms(calls) == pytest.approx((1.0 + 2.0) / 2)  # 10 / 4 - 1/2: two calls
    twelve = [1.0, 2.0, 4.0, *[9.0] * 9]
    assert quiet_ms(twelve) == pytest.approx((1.0 + 2.0 + 0.5 * 4.0) / 2.5)
    assert quiet_ms(np.array([2.0, 3.0])) == 2.0
    both = quiet_ms(np.stack([twelve, twelve[::-1]], axis=1), axis=0)
    np.testing.assert_allclose(both, quiet_ms(twelve))


def test_the_quiet_time_does_not_depend_on_how_often_a_graph_was_called():
    random = np.random.default_rng(0)
    means = [
        np.mean(quiet_ms(1 + 0.1 * random.normal(size=(40_000, count)), axis=1))
        for count in (6, 9, 12, 18, 24, 60)
    ]
    assert max(means) - min(means) < 0.005  # without the half call: 0.02


def test_a_difference_below_the_noise_is_flagged_and_never_negative():
    random = np.random.default_rng(1)
    same = 2.0 + random.normal(0, 0.05, 24)
    found = estimate((1.0, same[::-1] - 0.005), (-1.0, same))
    assert found.flags == ("below-noise",)
    assert 0 < found.latency_ms == found.ci_high_ms


@given(
    st.lists(st.floats(0.1, 10), min_size=2, max_size=12),
    st.lists(st.floats(0.1, 10), min_size=2, max_size=12),
)
@settings(max_examples=50)
def test_kendalls_tau_is_that_of_scipy(a: list[float], b: list[float]):
    from scipy.stats import kendalltau

    n = min(len(a), len(b))
    ours = kendall_tau(np.array(a[:n]), np.array(b[:n]))
    assert ours == pytest.approx(kendalltau(a[:n], b[:n]).statistic, nan_ok=True)


def test_error_figures_are_fractions():
    figures = compare([1.1, 2.2, 2.7], [1.0, 2.0, 3.0])
    assert figures.bias == pytest.approx(0.1 / 3)
    assert figures.rmspe == pytest.approx(0.1)
    assert figures.within_5 == 0
    assert figures.kendall_tau == 1


@pytest.fixture(scope="module")
def dsp_table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "dsp.csv"
    result = run(profile_ops, "--layers", "digits32", "--target", DSP, "-o", str(path))
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.process
def test_a_whole_backbone_is_filled_and_a_second_run_measures_nothing(dsp_table: Path):
    table = LookupTable.load(dsp_table)
    assert len(table) == 4 * 32 + 2
    assert {row.status for row in table} == {"ok"}
    assert {row.origin for row in table} == {"simulated"}
    assert not journal_path(dsp_table).exists()
    before = dsp_table.read_bytes()
    result = run(
        profile_ops, "--layers", "digits32", "--target", DSP, "-o", str(dsp_table), "--json"
    )
    assert '"measured": 0' in result.output
    assert dsp_table.read_bytes() == before


@pytest.mark.process
def test_sums_hold_on_a_simulated_device_whatever_a_call_costs(tmp_path):
    backbone = load_backbone("digits32")
    request = parse_target(DSP, ["call_ms=1.0"])
    rows = plan_rows(parse_layers("digits32"), select_operators(FEW))
    with connect([], request) as clients:
        session = TargetSession.open(clients[0], request)
        profile([session], rows, tmp_path / "t.csv", QUICK)
        model = LatencyModel(LookupTable.load(tmp_path / "t.csv"), backbone)
        networks = random_networks(model, 12, seed=1) + uniform_networks(model)
        times = time_networks(session, backbone, networks, QUICK)
    groups, _ = check_networks(model, times)
    assert [g.group for g in groups] == ["random", "uniform"]
    for group in groups:
        assert abs(group.prediction.bias) < 0.03
        assert group.prediction.rmspe < 0.03
    assert model.call_ms == pytest.approx(1.0, rel=0.2)


@pytest.mark.process
def test_the_price_of_a_call_leaves_the_ranking_of_operators_as_it_is(tmp_path):
    shape_rows = plan_rows(parse_layers("imagenet224:1,5"), select_operators(FEW))
    ranks = []
    for price in ("0.0", "1.0"):
        request = parse_target(DSP, [f"call_ms={price}"])
        with connect([], request) as clients:
            session = TargetSession.open(clients[0], request)
            table = profile([session], shape_rows, tmp_path / f"{price}.csv", QUICK).table
        found: dict[object, list[tuple[float, str]]] = {}
        for row in table:
            found.setdefault(row.shape, []).append((row.latency_ms or 0.0, row.operator))
        ranks.append({shape: [name for _, name in sorted(v)] for shape, v in found.items()})
    assert ranks[0] == ranks[1]


@pytest.mark.process
def test_random_networks_cover_the_latency_range(dsp_table: Path):
    model = LatencyModel(LookupTable.load(dsp_table), load_backbone("digits32"))
    networks = random_networks(model, 20, seed=0)
    latencies = np.array([model.latency_of(n.operators) for n in networks])
    low, high = model.bounds()
    covered = (latencies.max() - latencies.min()) / (high - low)
    assert len({n.operators for n in networks}) == 20
    assert covered > 0.6
    assert networks == random_networks(model, 20, seed=0)


@pytest.mark.process
def test_verify_prints_the_noise_floor_beside_each_error(dsp_table: Path):
    result = run(verify, "--table", str(dsp_table), "--backbone", "digits32", "--random", "4")
    assert result.exit_code == 3, result.output
    assert "random" in result.output
    assert "noise floor" in result.output
    assert "split-half difference" in result.output
    assert "sim-hexagon685-dsp" in result.output
    assert "random, median as timed" in result.output
    assert "random, p90 as timed" in result.output
    result = run(verify, "--table", str(dsp_table), "--random", "4", "--no-store", "--json")
    found = json.loads(result.stdout)["statistics"]
    assert {name: figures["count"] for name, figures in found.items()} == {"median": 4, "p90": 4}
    assert all(abs(figures["bias"]) < 0.05 for figures in found.values())


@pytest.mark.process
def test_the_real_cpu_fills_a_few_rows(tmp_path):
    path = tmp_path / "cpu.csv"
    words = ("--layers", "digits32:1", "--operators", "SEP_3,MB_3_6")
    result = run(profile_ops, *words, "--target", "cpu-onnxruntime-fp32", "-o", str(path), "--json")
    assert result.exit_code == 0, result.output
    rows = {row.operator: row for row in LookupTable.load(path)}
    assert {r.origin for r in rows.values()} == {"measured"}
    assert (rows["MB_3_6"].latency_ms or 0) > (rows["SEP_3"].latency_ms or 0) > 0
    assert rows["SEP_3"].compute_unit == "CPU"


@pytest.mark.process
def test_another_gate_is_in_the_graphs_and_in_the_tables_options(tmp_path):
    path = tmp_path / "gate.csv"
    words = ("--layers", "digits32:1", "--operators", "SEP_3_SE", "--target", DSP)
    result = run(profile_ops, *words, "--gate", "hard-sigmoid", "-o", str(path))
    assert result.exit_code == 0, result.output
    (row,) = LookupTable.load(path)
    assert row.options == "gate=hard-sigmoid"
    shape = load_backbone("digits32").layers[1]
    assert row.graph_sha256 == sha256(export_operator("SEP_3_SE", shape, "hard-sigmoid"))
    assert row.graph_sha256 != sha256(export_operator("SEP_3_SE", shape))


@pytest.mark.process
def test_a_calibration_is_kept_beside_the_table(dsp_table: Path, tmp_path):
    path = tmp_path / "copy.csv"
    path.write_bytes(dsp_table.read_bytes())
    words = ("--table", str(path), "--backbone", "digits32", "--calibrate")
    result = run(verify, *words, "--random", "5")
    assert result.exit_code == 3, result.output
    found = find_calibration(path, LookupTable.load(path).target())
    assert found is not None
    assert found.networks == 5
    assert found.scale == pytest.approx(1.0, abs=0.05)
    for wrong, message in (
        (("--random", "2", *words), "--random 3 or more"),
        (
            ("--random", "5", "--calibrate", "--table", "imagenet224-sim-hexagon685-dsp"),
            "shipped",
        ),
    ):
        with pytest.raises(BadRequest, match=message):
            run(verify, *wrong)


@pytest.mark.process
def test_check_tells_what_is_missing_and_measures_nothing(tmp_path):
    path = tmp_path / "none.csv"
    result = run(profile_ops, "--layers", "digits32:1", "--target", DSP, "-o", str(path), "--check")
    assert result.exit_code == 1
    assert "holds 0 of 32 rows" in result.output
    assert "lacks 22 more" in result.output  # ten are named
    assert not path.exists()


@pytest.mark.process
def test_two_agents_share_one_plan_and_lose_or_double_no_row(tmp_path):
    rows = plan_rows(parse_layers("digits32:0,1,4"), select_operators("SEP_*,MB_3_*"))
    request = parse_target(DSP)
    simulate = ("hexagon685-dsp",)
    with private_agent(simulate) as a, private_agent(simulate) as b:
        sessions = [TargetSession.open(client, request) for client in (a, b)]
        result = profile(sessions, rows, tmp_path / "t.csv", SHORT)
    assert not missing_rows(rows, result.table, result.target)
    assert len(result.table) == len(rows)
    assert not result.exclusions.lost
    assert not result.exclusions.left_out
    assert all(row.cold_ms and row.warm_ms for row in result.table)
    assert [run.device_s > 0 for run in result.runs] == [True, True]
    assert sum(run.rows for run in result.runs) == len(rows)


WORDS = ("--layers", "digits32", "--operators", "SEP_*,Choice_*", "--target", DSP)


@pytest.mark.process
def test_a_killed_run_is_finished_by_the_next_one(tmp_path):
    path = tmp_path / "killed.csv"
    command = [sys.executable, "-m", "hurricane.profiler.cli", *WORDS, "-o", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            journal = journal_path(path)
            if journal.exists() and journal.read_bytes().count(b"\n") > 5:
                break
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not path.exists()
    kept = len({row.key for row in read_journal(path).rows})
    result = run(profile_ops, *WORDS, "-o", str(path), "--json")
    assert result.exit_code == 0, result.output
    table = LookupTable.load(path)
    rows = plan_rows(parse_layers("digits32"), select_operators("SEP_*,Choice_*"))
    assert len(table) == len(rows)
    assert f'"kept": {kept}' in result.output


def serve(folder: Path, name: str) -> tuple[subprocess.Popen[bytes], str]:
    """An agent as a process of its own, and its address."""
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", "hurricane.agents.cli", "serve", "--listen", "127.0.0.1:0"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--simulate", "hexagon685-dsp"], stdout=output, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("agent on "):
                return process, line.split()[2].rstrip(":")
    raise AssertionError(log.read_text())


@pytest.mark.process
def test_a_killed_agent_costs_no_finished_row_and_the_next_run_completes_the_table(
    tmp_path, monkeypatch
):
    path = tmp_path / "t.csv"
    agent, address = serve(tmp_path, "first")
    real, kept = Recorder.record, []

    def record(recorder, *words):
        measured, failed = real(recorder, *words)
        kept.extend(measured)
        if kept:
            agent.kill()
        return measured, failed

    impatient = partial(TimingProtocol, max_active_rows=8, rejoin_timeout_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record", record)
        patch.setattr(protocol_module, "TimingProtocol", impatient)
        with pytest.raises(AgentError) as complaint:
            run(profile_ops, *WORDS, "-o", str(path), "--agent", address)
    agent.wait()
    assert complaint.value.exit_status == 1
    assert f"{len(kept)} rows are safe, the same command goes on" in str(complaint.value)
    assert len(str(complaint.value).splitlines()) <= 2
    first = {row.key: row for row in read_journal(path).rows}
    assert len(first) == len(kept) <= 8
    agent, address = serve(tmp_path, "second")
    try:
        result = run(profile_ops, *WORDS, "-o", str(path), "--agent", address, "--json")
    finally:
        agent.terminate()
        agent.wait()
    assert result.exit_code == 0, result.output
    rows = plan_rows(parse_layers("digits32"), select_operators("SEP_*,Choice_*"))
    table = LookupTable.load(path)
    assert len(table) == len(rows)
    assert f'"kept": {len(kept)}' in result.output
    for key, row in first.items():  # the timings of its own graph are filled in
        found = table.get(key)
        assert found is not None
        assert (found.samples, found.measured_at) == (row.samples, row.measured_at)
        assert found.latency_ms == pytest.approx(row.latency_ms, rel=0.01)  # at the table's speed
        assert found.cold_ms is not None


@pytest.mark.process
def test_a_wrong_request_leaves_no_journal_that_blocks_the_right_one(tmp_path):
    path = tmp_path / "t.csv"
    words = ("--layers", "digits32:1", "--operators", "SEP_3", "-o", str(path))
    for wrong in (("--target", f"{DSP}-t99"), ("--target", DSP, "--option", "nonesuch=1")):
        with pytest.raises(BadRequest):
            run(profile_ops, *words, *wrong)
        assert not journal_path(path).exists()
    with Journal.open(path, Target("another", "cpu", "onnxruntime")):
        pass
    result = run(profile_ops, *words, "--target", DSP)
    assert result.exit_code == 0, result.output


@pytest.mark.process
def test_a_graph_that_the_runtime_refuses_costs_its_own_row_only(tmp_path, monkeypatch):
    real = delivery.graph_bytes
    broken = plan_row("SEP_5", load_backbone("digits32").layers[1]).with_operator
    monkeypatch.setattr(
        delivery,
        "graph_bytes",
        lambda graph, replica=0: b"no onnx" if graph in broken else real(graph, replica),
    )
    words = ("--layers", "digits32:1", "--operators", "SEP_*")
    path = tmp_path / "t.csv"
    with pytest.raises(HurricaneError, match="1 of its rows has no latency"):
        run(profile_ops, *words, "--target", "cpu-onnxruntime-fp32", "-o", str(path))
    statuses = {row.operator: row.status for row in LookupTable.load(path)}
    assert statuses.pop("SEP_5") in ("failed", "unsupported")
    assert set(statuses.values()) == {"ok"}


@pytest.mark.process
def test_an_unexpected_error_in_one_agent_ends_the_run(tmp_path, monkeypatch):
    real = Runner._measure_batch
    rows = plan_rows(parse_layers("digits32:1,4"), select_operators(FEW))
    request = parse_target(DSP)
    simulate = ("hexagon685-dsp",)
    with private_agent(simulate) as a, private_agent(simulate) as b:
        sessions = [TargetSession.open(client, request) for client in (a, b)]

        def fails(runner, device, session, *words):
            if session is sessions[0]:
                raise ValueError("a defect")
            return real(runner, device, session, *words)

        monkeypatch.setattr(Runner, "_measure_batch", fails)
        with pytest.raises(ValueError, match="a defect"):
            profile(sessions, rows, tmp_path / "t.csv", SHORT)


@pytest.mark.process
def test_an_agent_that_drops_out_is_named_and_the_others_do_its_work(tmp_path, monkeypatch):
    real = Runner._measure_batch
    rows = plan_rows(parse_layers("digits32:1,4"), select_operators("SEP_*,MB_3_*"))
    request = parse_target(DSP)
    simulate = ("hexagon685-dsp",)
    with private_agent(simulate) as a, private_agent(simulate) as b:
        sessions = [TargetSession.open(client, request) for client in (a, b)]

        def gone(*words):
            raise AgentError("the board is gone")

        def measure(runner, device, session, *words):
            return gone() if session is sessions[0] else real(runner, device, session, *words)

        monkeypatch.setattr(Runner, "_measure_batch", measure)
        monkeypatch.setattr(TargetSession, "open", gone)  # it does not come back
        result = profile(sessions, rows, tmp_path / "t.csv", SHORT)
    assert not missing_rows(rows, result.table, result.target)
    assert len(result.table) == len(rows)
    assert result.exclusions.lost == {a.address: f"{a.address}: the board is gone"}


@pytest.mark.process
def test_a_calibration_from_another_device_is_refused(dsp_table: Path, tmp_path):
    path = tmp_path / "renamed.csv"
    path.write_text(dsp_table.read_text().replace("hexagon685-dsp", "other-dsp"))
    words = ("--table", str(path), "--backbone", "digits32", "--random", "4", "--calibrate")
    with pytest.raises(BadRequest):
        run(verify, *words)
    assert not list(tmp_path.glob("*.calibration.json"))


@pytest.mark.process
def test_an_unreachable_agent_is_one_line_and_leaves_nothing(tmp_path):
    path = tmp_path / "t.csv"
    command = [sys.executable, "-m", "hurricane.profiler.cli", *WORDS, "-o", str(path)]
    result = subprocess.run(
        [*command, "--agent", "127.0.0.1:1"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) <= 2
    assert "127.0.0.1:1" in result.stderr
    assert not path.exists()
    assert not journal_path(path).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layers", "nonesuch", "--target", DSP), "nonesuch"),
        (("--layers", "digits32", "--target", DSP, "--operators", "SEP_9"), "did you mean"),
        (("--layers", "digits32", "--target", "cpu-none-fp32"), "does not know the target"),
        (("--layers", "digits32", "--target", DSP, "--option", "x"), "key=value"),
    ],
)
@pytest.mark.process
def test_a_wrong_request_is_refused_with_status_2(tmp_path, words, message):
    command = [
        sys.executable,
        "-m",
        "hurricane.profiler.cli",
        *words,
        "-o",
        str(tmp_path / "t.csv"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.process
def test_a_broken_table_is_told_before_anything_is_measured(tmp_path, dsp_table):
    path = tmp_path / "broken.csv"
    path.write_bytes(dsp_table.read_bytes()[:-40])
    before = path.read_bytes()
    command = [sys.executable, "-m", "hurricane.profiler.cli", *WORDS, "-o", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "broken.csv" in result.stderr
    assert path.read_bytes() == before


def test_the_commands_time_with_the_protocol_s_defaults():
    defaults = {option.name: option.default for option in profile_ops.params}
    assert defaults["rounds"] == TimingProtocol().max_rounds
    assert defaults["precision"] == TimingProtocol().precision
    assert {o.name: o.default for o in verify.params}["rounds"] == TimingProtocol().network_rounds


@pytest.mark.parametrize(("origin", "again"), [("measured", True), ("estimated", False)])
def test_measuring_again_is_not_the_remedy_for_an_estimate(origin: str, again: bool) -> None:
    assert ("--retry" in failure_words(1, origin)) is again
