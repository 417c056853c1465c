"""A device that is slower than when its table was made: told by controls, and divided out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hurricane.agents import devices
from hurricane.agents.client import private_agent
from hurricane.agents.errors import DeviceLost
from hurricane.agents.results import ArtifactResult
from hurricane.lookup_tables.baselines import BASELINES
from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.backbone import load_backbone
from hurricane.ops.export import sha256
from hurricane.ops.pool import select_operators
from hurricane.profiler.controls import Controls, find_controls
from hurricane.profiler.draws import random_networks
from hurricane.profiler.plan import (
    Graph,
    baseline_graphs,
    graph_bytes,
    parse_layers,
    plan_row,
    plan_rows,
)
from hurricane.profiler.profile import profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.target import parse_target
from hurricane.profiler.verification import Verification, verify_table

pytestmark = pytest.mark.process

DEVICE = "hexagon685-dsp"
TARGET = parse_target(f"sim-{DEVICE}")
SLOWER = 1.12
ROWS = plan_rows(parse_layers("digits32"), select_operators("SEP_3,MB_3_3,Choice_3"))
PROTOCOL = TimingProtocol(network_rounds=6, control_graphs_per_network=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LatencyModel:
    """Of a table that was made while the device was as fast as it can be."""
    path = tmp_path_factory.mktemp("table") / "t.csv"
    with connect([], TARGET) as clients:
        profile([TargetSession.open(clients[0], TARGET)], ROWS, path, TimingProtocol())
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


def of_baselines(found: Controls) -> dict[Graph, float]:
    """What baselines among the controls took for the table."""
    baselines = set(baseline_graphs(ROWS))
    return {graph: ms for graph, ms in found.known_ms.items() if graph in baselines}


def of_rows(found: Controls) -> dict[Graph, float]:
    """What graphs of rows among the controls took for the table."""
    baselines = of_baselines(found)
    return {graph: ms for graph, ms in found.known_ms.items() if graph not in baselines}


def digests(found: Controls) -> list[str]:
    """Artefacts that go along."""
    return list(dict.fromkeys(found.series.values()))


def verified(model: LatencyModel, device: str) -> Verification:
    """Twelve networks on a device, against the table."""
    with private_agent(simulate=(device,)) as client:
        session = TargetSession.open(client, TARGET)
        return verify_table(session, model, random_networks(model, 12, seed=0), PROTOCOL)


def test_a_device_that_got_slower_is_told_and_divided_out(model, tmp_path):
    found = verified(model, device_file(tmp_path, slower=SLOWER))
    assert found.slowdown == pytest.approx(SLOWER, rel=0.01)
    assert abs(found.groups[0].prediction.bias) < 0.02
    for check in found.networks:
        assert check.as_timed_ms == pytest.approx(SLOWER * check.predicted_ms, rel=0.04)
    slower = f"device {found.slowdown - 1:.1%} slower than at profiling time (drift-corrected; "
    assert f"{slower}random networks as timed: bias -1" in found.text()


def test_a_device_that_is_as_it_was_keeps_its_times(model):
    found = verified(model, DEVICE)
    assert found.slowdown == pytest.approx(1.0, abs=0.01)
    assert abs(found.groups[0].prediction.bias) < 0.02


def test_without_baselines_times_stand_as_they_are(model, tmp_path):
    kept = BASELINES.path(model.table_path)
    content = kept.read_bytes()
    kept.unlink()
    try:
        found = verified(model, device_file(tmp_path, slower=SLOWER))
    finally:
        kept.write_bytes(content)
    assert found.slowdown == 1.0
    assert found.groups[0].prediction.bias < -0.08
    assert "device speed at profiling time not known: not drift-corrected" in found.text()


def test_baselines_tell_it_where_nothing_else_is_known(model, tmp_path):
    kept = BASELINES.path(model.table_path)
    content = kept.read_bytes()
    known = BASELINES.load(model.table_path)[model.target]
    baselines = {sha256(graph_bytes(graph)) for graph in baseline_graphs(ROWS)}
    BASELINES.save(model.table_path, model.target, {d: known[d] for d in baselines})
    try:
        found = verified(model, device_file(tmp_path, slower=SLOWER))
    finally:
        kept.write_bytes(content)
    assert len(baselines) < len(known)
    assert found.slowdown == pytest.approx(SLOWER, rel=0.01)


def test_a_target_that_keeps_one_graph_has_no_controls(model, tmp_path):
    with private_agent(simulate=(device_file(tmp_path, resident="false"),)) as client:
        assert find_controls(model, TargetSession.open(client, TARGET), PROTOCOL) is None


def test_controls_are_drawn_from_all_rows_and_not_the_cheapest(model):
    four = replace(PROTOCOL, control_rows=4)
    with connect([], TARGET) as clients:
        found = find_controls(model, TargetSession.open(clients[0], TARGET), four)
    assert found is not None
    drawn = {graph[1] for graph in of_rows(found)}  # behind the neighbour
    assert len(drawn) == 4
    blocks = [row for row in model.rows if row.latency_ms and row.operator in model.operators]
    cheapest = sorted(blocks, key=lambda row: row.latency_ms)[:4]
    assert {(p.name, p.shape) for p in drawn} != {(row.operator, row.shape) for row in cheapest}


def test_an_agent_with_little_memory_has_fewer_controls_or_none(model):
    with connect([], TARGET) as clients:
        session = TargetSession.open(clients[0], TARGET)
        found = find_controls(model, session, PROTOCOL)
        assert found is not None
        session.max_bytes = 4 * found.bytes
        assert find_controls(model, session, PROTOCOL) == found
        session.max_bytes -= 1
        fewer = find_controls(model, session, PROTOCOL)
        assert fewer is not None
        assert of_baselines(fewer) == of_baselines(found)
        assert 0 < len(of_rows(fewer)) < len(of_rows(found))
        session.max_bytes = 0
        assert find_controls(model, session, PROTOCOL) is None


def test_networks_are_dealt_out_among_controls_and_within_memory(model, monkeypatch):
    requests: list[int] = []
    real = TargetSession.time

    def time(session, digests, protocol, on_progress=None):
        requests.append(len(digests))
        return real(session, digests, protocol, on_progress)

    with connect([], TARGET) as clients:
        session = TargetSession.open(clients[0], TARGET)
        found = find_controls(model, session, PROTOCOL)
        assert found is not None
        monkeypatch.setattr(TargetSession, "time", time)
        verify_table(session, model, random_networks(model, 12, seed=0), PROTOCOL)
    along = len(digests(found))
    assert found.networks == 4
    assert [n - along for n in requests] == [4, 4, 4] * 2


def test_the_graphs_of_rows_tell_the_slowdown_with_the_baselines(model):
    with connect([], TARGET) as clients:
        session = TargetSession.open(clients[0], TARGET)
        found = find_controls(model, session, PROTOCOL)
        assert found is not None
        assert 2 * len(of_baselines(found)) < len(of_rows(found))
        timed = session.time(digests(found), PROTOCOL.batch(0))
        rows = {session.digest_of(graph) for graph in of_rows(found)}
        slower = {d: _slower(r, SLOWER if d in rows else 1.0) for d, r in timed.items()}
        assert found.slowdown(slower) == pytest.approx(SLOWER, rel=0.02)


def _slower(result: ArtifactResult, factor: float) -> ArtifactResult:
    assert result.device_ms is not None
    return replace(result, wall_ms=result.wall_ms * factor, device_ms=result.device_ms * factor)


@pytest.mark.parametrize(("slow", "flags"), [((2,), ()), ((2, 6), ("interference",))])
def test_networks_of_a_slow_time_are_timed_again(model, monkeypatch, slow, flags):
    requests: list[tuple[str, ...]] = []
    real = TargetSession.time

    def time(session, digests, protocol, on_progress=None):
        factor = 1.3 if len(requests) in slow else 1.0
        requests.append(tuple(digests))
        timed = real(session, digests, protocol, on_progress)
        return {digest: _slower(r, factor) for digest, r in timed.items()}

    with connect([], TARGET) as clients:
        session = TargetSession.open(clients[0], TARGET)
        monkeypatch.setattr(TargetSession, "time", time)
        found = verify_table(session, model, random_networks(model, 12, seed=0), PROTOCOL)
    assert len(requests) == 7
    assert requests[6] == requests[2]
    told = [check.flags for check in found.networks]
    assert sum("interference" in some for some in told) == (4 if flags else 0)
    for check in found.networks:
        assert check.measured_ms == pytest.approx(check.predicted_ms, rel=0.04)
        assert check.second_ms == pytest.approx(check.first_ms, rel=0.03)


def test_what_fails_when_it_is_timed_again_keeps_its_first_times(model, monkeypatch):
    requests = 0
    real = TargetSession.time

    def time(session, digests, protocol, on_progress=None):
        nonlocal requests
        requests += 1
        if requests == 7:
            raise DeviceLost("it is gone")
        timed = real(session, digests, protocol, on_progress)
        return {d: _slower(r, 1.3 if requests == 3 else 1.0) for d, r in timed.items()}

    with connect([], TARGET) as clients:
        session = TargetSession.open(clients[0], TARGET)
        monkeypatch.setattr(TargetSession, "time", time)
        found = verify_table(session, model, random_networks(model, 12, seed=0), PROTOCOL)
    assert requests == 7
    assert not any(check.error for check in found.networks)
    assert sum("interference" in check.flags for check in found.networks) == 4


def test_controls_are_many_graphs_besides_the_baselines(model):
    with connect([], TARGET) as clients:
        session = TargetSession.open(clients[0], TARGET)
        found = find_controls(model, session, PROTOCOL)
        assert found is not None
        planned = [
            plan_row(row.operator, row.shape)
            for row in model.rows
            if row.operator in model.operators
        ]
        assert len(of_rows(found)) == sum(len(row.with_operator) for row in planned)
        assert np.isfinite(list(of_rows(found).values())).all()
        assert len(digests(found)) > len(of_rows(found)) + len(of_baselines(found))
        timed = session.time(digests(found), PROTOCOL.batch(0))
        assert found.slowdown(timed) == pytest.approx(1.0, abs=0.02)
