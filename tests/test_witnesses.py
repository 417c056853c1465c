"""A device that is slower than when its table was made: told by witnesses, and divided out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hurricane.agents import devices
from hurricane.agents.client import private_agent
from hurricane.agents.errors import DeviceLost
from hurricane.agents.results import ArtifactResult
from hurricane.lookup_tables.anchors import anchors_path, load_anchors, save_anchors
from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.backbone import load_backbone
from hurricane.ops.export import sha256
from hurricane.ops.pool import select_operators
from hurricane.profiler import witnesses as witnesses_module
from hurricane.profiler.measuring import Bench, MeasuringSettings, connect, parse_target
from hurricane.profiler.networks import random_networks
from hurricane.profiler.plan import anchor_graphs, graph_bytes, parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.verification import Verification, verify_table
from hurricane.profiler.witnesses import find_witnesses

DEVICE = "hexagon685-dsp"
TARGET = parse_target(f"sim-{DEVICE}")
SLOWER = 1.12
ROWS = plan_rows(parse_layers("digits32"), select_operators("SEP_3,MB_3_3,Choice_3"))
SETTINGS = MeasuringSettings(rounds=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LatencyModel:
    """Of a table that was made while the device was as fast as it can be."""
    path = tmp_path_factory.mktemp("table") / "t.csv"
    with connect([], TARGET) as clients:
        profile([Bench.open(clients[0], TARGET)], ROWS, path, MeasuringSettings())
    return LatencyModel(LookupTable.load(path), load_backbone("digits32"))


def device_file(folder: Path, **changes: object) -> str:
    """A copy of the device that differs in some lines."""
    text = (Path(devices.__path__[0]) / f"{DEVICE}.toml").read_text("utf-8")
    for key, value in changes.items():
        if key == "slower":
            text = text.replace("[disturbances]", f"[disturbances]\nslower = {value}")
        else:
            lines = [f"{key} = {value}" if x.startswith(key) else x for x in text.splitlines()]
            text = "\n".join(lines)
    (path := folder / f"{DEVICE}.toml").write_text(text)
    return str(path)


def verified(model: LatencyModel, device: str) -> Verification:
    """Twelve networks on a device, against the table."""
    with private_agent(simulate=(device,)) as client:
        bench = Bench.open(client, TARGET)
        return verify_table(bench, model, random_networks(model, 12, seed=0), SETTINGS)


def test_a_device_that_got_slower_is_told_and_divided_out(model, tmp_path):
    found = verified(model, device_file(tmp_path, slower=SLOWER))
    assert found.level == pytest.approx(SLOWER, rel=0.01)
    assert abs(found.groups[0].prediction.bias) < 0.02
    for check in found.networks:
        assert check.as_timed_ms == pytest.approx(SLOWER * check.predicted_ms, rel=0.04)
    assert "times as long as when the table was made" in found.text()
    assert "divided out (random networks as timed: bias -1" in found.text()


def test_a_device_that_is_as_it_was_keeps_its_times(model):
    found = verified(model, DEVICE)
    assert found.level == pytest.approx(1.0, abs=0.01)
    assert abs(found.groups[0].prediction.bias) < 0.02


def test_without_anchors_times_stand_as_they_are(model, tmp_path):
    kept = anchors_path(model.table_path)
    content = kept.read_bytes()
    kept.unlink()
    try:
        found = verified(model, device_file(tmp_path, slower=SLOWER))
    finally:
        kept.write_bytes(content)
    assert found.level == 1.0
    assert found.groups[0].prediction.bias < -0.08
    assert "times as long" not in found.text()


def test_anchors_tell_it_where_nothing_else_is_known(model, tmp_path):
    kept = anchors_path(model.table_path)
    content = kept.read_bytes()
    known = load_anchors(model.table_path, model.target)
    anchors = {sha256(graph_bytes(graph)) for graph in anchor_graphs(ROWS)}
    save_anchors(model.table_path, model.target, {d: known[d] for d in anchors})
    try:
        found = verified(model, device_file(tmp_path, slower=SLOWER))
    finally:
        kept.write_bytes(content)
    assert len(anchors) < len(known)
    assert found.level == pytest.approx(SLOWER, rel=0.01)


def test_a_target_that_keeps_one_graph_has_no_witnesses(model, tmp_path):
    with private_agent(simulate=(device_file(tmp_path, resident="false"),)) as client:
        assert find_witnesses(model, Bench.open(client, TARGET)) is None


def test_witnesses_are_drawn_from_all_rows_and_not_the_cheapest(model, monkeypatch):
    monkeypatch.setattr(witnesses_module, "ROWS", 4)
    with connect([], TARGET) as clients:
        found = find_witnesses(model, Bench.open(clients[0], TARGET))
    assert found is not None
    drawn = {graph[1] for graph in found.company_ms}  # behind the neighbour
    assert len(drawn) == 4
    blocks = [row for row in model.rows if row.latency_ms and row.operator in model.operators]
    cheapest = sorted(blocks, key=lambda row: row.latency_ms)[:4]
    assert {(p.name, p.shape) for p in drawn} != {(row.operator, row.shape) for row in cheapest}


def test_an_agent_with_little_memory_has_fewer_witnesses_or_none(model):
    with connect([], TARGET) as clients:
        bench = Bench.open(clients[0], TARGET)
        found = find_witnesses(model, bench)
        assert found is not None
        bench.max_bytes = 4 * found.bytes
        assert find_witnesses(model, bench) == found
        bench.max_bytes -= 1
        fewer = find_witnesses(model, bench)
        assert fewer is not None
        assert fewer.anchors_ms == found.anchors_ms
        assert 0 < len(fewer.company_ms) < len(found.company_ms)
        bench.max_bytes = 0
        assert find_witnesses(model, bench) is None


def test_networks_are_dealt_out_among_witnesses_and_within_memory(model, monkeypatch):
    requests: list[int] = []
    real = Bench.time

    def time(bench, digests, protocol, on_progress=None):
        requests.append(len(digests))
        return real(bench, digests, protocol, on_progress)

    with connect([], TARGET) as clients:
        bench = Bench.open(clients[0], TARGET)
        found = find_witnesses(model, bench)
        assert found is not None
        monkeypatch.setattr(Bench, "time", time)
        verify_table(bench, model, random_networks(model, 12, seed=0), SETTINGS)
    along = len(found.digests(bench))
    assert found.networks == 4
    assert [n - along for n in requests] == [4, 4, 4] * 2


def test_the_graphs_of_rows_tell_the_level_with_the_anchors(model):
    with connect([], TARGET) as clients:
        bench = Bench.open(clients[0], TARGET)
        found = find_witnesses(model, bench)
        assert found is not None
        assert 2 * len(found.anchors_ms) < len(found.company_ms)
        timed = bench.time(found.digests(bench), SETTINGS.lap(True, 0))
        of_rows = {bench.digest_of(graph) for graph in found.company_ms}
        slower = {d: _slower(r, SLOWER if d in of_rows else 1.0) for d, r in timed.items()}
        assert found.level(bench, slower) == pytest.approx(SLOWER, rel=0.02)


def _slower(result: ArtifactResult, factor: float) -> ArtifactResult:
    assert result.device_ms is not None
    return replace(result, wall_ms=result.wall_ms * factor, device_ms=result.device_ms * factor)


@pytest.mark.parametrize(("slow", "flags"), [((2,), ()), ((2, 6), ("disturbed",))])
def test_networks_of_a_slow_time_are_timed_again(model, monkeypatch, slow, flags):
    requests: list[tuple[str, ...]] = []
    real = Bench.time

    def time(bench, digests, protocol, on_progress=None):
        factor = 1.3 if len(requests) in slow else 1.0
        requests.append(tuple(digests))
        timed = real(bench, digests, protocol, on_progress)
        return {digest: _slower(r, factor) for digest, r in timed.items()}

    with connect([], TARGET) as clients:
        bench = Bench.open(clients[0], TARGET)
        monkeypatch.setattr(Bench, "time", time)
        found = verify_table(bench, model, random_networks(model, 12, seed=0), SETTINGS)
    assert len(requests) == 7
    assert requests[6] == requests[2]
    told = [check.flags for check in found.networks]
    assert sum("disturbed" in some for some in told) == (4 if flags else 0)
    for check in found.networks:
        assert check.measured_ms == pytest.approx(check.predicted_ms, rel=0.04)
        assert check.second_ms == pytest.approx(check.first_ms, rel=0.03)


def test_what_fails_when_it_is_timed_again_keeps_its_first_times(model, monkeypatch):
    requests = 0
    real = Bench.time

    def time(bench, digests, protocol, on_progress=None):
        nonlocal requests
        requests += 1
        if requests == 7:
            raise DeviceLost("it is gone")
        timed = real(bench, digests, protocol, on_progress)
        return {d: _slower(r, 1.3 if requests == 3 else 1.0) for d, r in timed.items()}

    with connect([], TARGET) as clients:
        bench = Bench.open(clients[0], TARGET)
        monkeypatch.setattr(Bench, "time", time)
        found = verify_table(bench, model, random_networks(model, 12, seed=0), SETTINGS)
    assert requests == 7
    assert not any(check.error for check in found.networks)
    assert sum("disturbed" in check.flags for check in found.networks) == 4


def test_witnesses_are_many_graphs_besides_the_anchors(model):
    with connect([], TARGET) as clients:
        bench = Bench.open(clients[0], TARGET)
        found = find_witnesses(model, bench)
        assert found is not None
        operators = len(model.operators) * len(model.backbone.distinct_shapes)
        assert len(found.company_ms) == 2 * operators
        assert np.isfinite(list(found.company_ms.values())).all()
        assert len(found.digests(bench)) > len(found.company_ms) + len(found.anchors_ms)
        assert found.level(bench, bench.time(found.digests(bench), SETTINGS.lap(True, 0))) == (
            pytest.approx(1.0, abs=0.02)
        )
