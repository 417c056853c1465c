"""Tables of targets that take other formats than ONNX: the host makes what they run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.conditions import Conditions
from hurricane.agents.errors import UnsupportedOperator
from hurricane.agents.results import ArtifactResult, Finished, Protocol
from hurricane.agents.supervisor import discover
from hurricane.lookup_tables.table import STATUSES, WITHOUT_LATENCY, LookupTable, Row, Target
from hurricane.ops.artifacts import Recipe, cache, prepare
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest, UnsupportedNode
from hurricane.ops.export import export_operator, sha256
from hurricane.ops.pool import select_operators
from hurricane.profiler import session as session_module
from hurricane.profiler.coverage import missing_rows
from hurricane.profiler.networks import WholeNetwork, time_networks
from hurricane.profiler.plan import graph_bytes, parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.target import parse_target

SHORT = TimingProtocol(min_rounds=3, max_rounds=3, network_rounds=4)
BACKBONE = load_backbone("digits32")
ROWS = plan_rows(parse_layers("digits32:1"), select_operators("SEP_3,Choice_3"))
TARGETS = {
    "cpu-onnxruntime-fp32": Recipe("onnx", "fp32"),
    "cpu-onnxruntime-int8": Recipe("onnx-qdq", "int8"),
    "cpu-openvino-int8": Recipe("onnx-qdq", "int8"),
    "cpu-litert-fp32": Recipe("tflite", "fp32"),
    "cpu-litert-int8": Recipe("tflite", "int8"),
}
ORIGINS = {
    Availability.AVAILABLE: "measured",
    Availability.EMULATED: "emulated",
    Availability.SIMULATED: "simulated",
    Availability.ESTIMATED: "estimated",
    Availability.COMPILED: "compiled",
}
LITERT_TORCH = importlib.util.find_spec("litert_torch") is not None
KNOWN = {target.name: target for target in discover(Context()).targets}

STRANGE = """
from torch import nn
from hurricane.ops.pool import register_operator

def build(shape, gate):
    return nn.Sequential(
        nn.Conv2d(shape.in_channels, shape.out_channels, 3, shape.stride, 1, bias=False),
        nn.BatchNorm2d(shape.out_channels),
        nn.Softplus(),
    )

register_operator("Strange_3", build)
"""


class Agent:
    """An agent that holds what it is sent, times nothing, and remembers what it was asked."""

    address = "board:1"

    def __init__(self, target: str, held: tuple[str, ...] = (), **changes: Any) -> None:
        changes = {"device": "board", "availability": Availability.AVAILABLE, **changes}
        self.targets = (replace(KNOWN[target], **changes),)
        self.max_resident_bytes = 1 << 30
        self.agent_version = "1"
        self.held = list(held)
        self.looked_for: list[str] = []
        self.uploaded: list[str] = []
        self.batches: list[tuple[list[str], dict[str, Any]]] = []

    def describe(self) -> Agent:
        return self

    def missing(self, digests: list[str]) -> list[str]:
        self.looked_for += digests
        return [digest for digest in digests if digest not in self.held]

    def upload(self, content: bytes, digest: str) -> None:
        assert digest == sha256(content)
        self.uploaded.append(digest)

    def benchmark(self, digests: list[str], *, on_event: Any, **request: Any) -> dict:
        self.batches.append((list(digests), request))
        number = len(self.batches)
        on_event(Finished(100.0 * number))
        before = Conditions(temperature_c=20.0 + number)
        after = Conditions(temperature_c=30.0 + number, busy_share=0.1 * number)
        return {digest: ArtifactResult(digest, before=before, after=after) for digest in digests}


def session_of(agent: Any, name: str, *options: str) -> TargetSession:
    return TargetSession.open(agent, parse_target(name, options))


def usable(name: str) -> None:
    if KNOWN[name].availability == Availability.UNAVAILABLE:
        pytest.skip(KNOWN[name].reason)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.process
def test_a_row_names_the_graph_and_what_ran(name: str, tmp_path: Path) -> None:
    usable(name)
    recipe, request = TARGETS[name], parse_target(name)
    with connect([], request) as clients:
        session = TargetSession.open(clients[0], request)
        assert session.recipe == recipe
        result = profile([session], ROWS, tmp_path / "t.csv", SHORT)
        networks = [WholeNetwork("given", "a", ("SEP_3",) * len(BACKBONE.layers))]
        (time,) = time_networks(session, BACKBONE, networks, SHORT)
    assert time.error == ""
    assert time.measured_ms > 0
    assert missing_rows(ROWS, result.table, result.target) == []
    for row in result.table:
        graph = export_operator(row.operator, row.shape)
        artifact = prepare(graph, recipe)
        assert row.ok
        assert row.precision == recipe.precision
        assert row.graph_sha256 == sha256(graph)
        assert row.artifact_sha256 == sha256(artifact.content)
        assert row.converter == artifact.info.converter
        assert row.calibration == ("16 random samples" if recipe.precision == "int8" else "")
        if name.startswith("cpu-litert"):
            assert row.compute_unit.startswith("XNNPACK")


@pytest.mark.process
def test_a_run_goes_on_with_artefacts_that_another_made(tmp_path: Path) -> None:
    usable("cpu-onnxruntime-int8")
    path, request = tmp_path / "t.csv", parse_target("cpu-onnxruntime-int8")
    for rows, measured in ((ROWS[:1], 1), (ROWS, 1), (ROWS, 0)):
        with connect([], request) as clients:
            result = profile([TargetSession.open(clients[0], request)], rows, path, SHORT)
        assert result.measured == measured
        assert result.speed.reference == ("rows from before" if rows is ROWS and measured else "")


def profile_strange(target: str, folder: Path) -> tuple[Any, dict[str, Row]]:
    """What `profile-ops` says of a target, and its rows, with an operator of a user's own."""
    usable(target)
    (folder / "mine.py").write_text(STRANGE)
    words = ["--layers", "digits32:1", "--operators", "SEP_3,Strange_3", "--rounds", "3"]
    words += ["--plugin", str(folder / "mine.py"), "-o", str(folder / "t.csv"), "--json"]
    found = subprocess.run(
        [sys.executable, "-m", "hurricane.profiler.cli", "--target", target, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    rows = {row.operator: row for row in LookupTable.load(folder / "t.csv")}
    return json.loads(found.stdout.splitlines()[-1]), rows


def without_latency(said: dict[str, Any]) -> dict[str, int]:
    """Rows that hold no latency, by status; what `profile-ops` counts besides are flags."""
    return {word: count for word, count in said["counts"].items() if word in STATUSES}


@pytest.mark.skipif(LITERT_TORCH, reason="litert-torch is installed, and converts it")
@pytest.mark.process
def test_what_a_format_cannot_express_is_unsupported_and_the_rest_is_measured(
    tmp_path: Path,
) -> None:
    said, rows = profile_strange("cpu-litert-fp32", tmp_path)
    assert without_latency(said) == {"unsupported": 1}
    assert rows["SEP_3"].ok
    assert rows["Strange_3"].status == "unsupported"


@pytest.mark.skipif(not LITERT_TORCH, reason="litert-torch is not installed")
@pytest.mark.parametrize("target", ["cpu-litert-fp32", "cpu-litert-int8"])
@pytest.mark.process
def test_what_only_litert_torch_can_express_is_measured_and_says_so(
    target: str, tmp_path: Path
) -> None:
    said, rows = profile_strange(target, tmp_path)
    assert without_latency(said) == {}
    assert rows["SEP_3"].ok
    assert rows["Strange_3"].ok
    assert "litert-torch" in rows["Strange_3"].converter
    assert "litert-torch" not in rows["SEP_3"].converter


@pytest.mark.process
def test_a_target_that_nothing_can_be_made_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with connect([], parse_target("cpu-onnxruntime-fp32")) as (client,):
        description = client.describe()
    (target,) = (t for t in description.targets if t.name == "cpu-onnxruntime-fp32")
    other = replace(target, formats=("dlc",))
    told = replace(description, targets=(other,))
    client: Any = SimpleNamespace(address="board:1", describe=lambda: told)
    with pytest.raises(BadRequest, match=r"cpu-onnxruntime-fp32 cannot be measured.*as dlc"):
        TargetSession.open(client, parse_target("cpu-onnxruntime-fp32"))


@pytest.mark.parametrize(("availability", "origin"), ORIGINS.items())
def test_a_session_is_what_its_agent_says_of_the_target(
    availability: Availability, origin: str
) -> None:
    version = {"runtime_version": "1.2", "defaults": ("spinning=1",)}
    agent = Agent("cpu-onnxruntime-int8", availability=availability, resident=False, **version)
    if origin in WITHOUT_LATENCY:
        with pytest.raises(BadRequest, match=f"is {origin} here, and {WITHOUT_LATENCY[origin]}"):
            session_of(agent, "cpu-onnxruntime-int8")
        return
    session = session_of(agent, "cpu-onnxruntime-int8")
    assert session.target == Target(
        "board", "cpu", "onnxruntime", "1.2", "spinning=1", "int8", 1, origin
    )
    assert (session.resident, session.max_bytes, session.agent_version) == (False, 1 << 30, "1")


@pytest.mark.parametrize(("name", "recipe"), TARGETS.items())
def test_artefacts_are_of_the_targets_format_and_precision(name: str, recipe: Recipe) -> None:
    assert session_of(Agent(name), name).recipe == recipe


def test_a_target_that_is_not_available_is_refused_with_its_reason() -> None:
    name = "cpu-onnxruntime-fp32"
    agent = Agent(name, availability=Availability.UNAVAILABLE, reason="no driver")
    with pytest.raises(BadRequest, match=f"{name} is not available: no driver"):
        session_of(agent, name)


def test_what_was_made_ahead_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, graph = Agent("cpu-onnxruntime-int8"), export_operator("SEP_3", ROWS[0].shape)
    session = session_of(agent, "cpu-onnxruntime-int8")
    monkeypatch.setenv("HURRICANE_CACHE", str(tmp_path))
    session.prepare([lambda: graph])
    monkeypatch.setattr(cache, "prepare", None)
    assert agent.uploaded == []
    digest = session.send("mine", lambda: graph)
    assert agent.uploaded == [digest]


@pytest.mark.parametrize("held", [False, True])
def test_a_graph_is_made_and_sent_once_and_only_where_the_agent_lacks_it(held: bool) -> None:
    name = "cpu-onnxruntime-int8"
    graph = export_operator("SEP_3", ROWS[0].shape)
    digest = prepare(graph, TARGETS[name]).info.artifact_sha256
    agent, made = Agent(name, (digest,) if held else ()), []
    session = session_of(agent, name)
    for _ in range(2):
        assert session.send("mine", lambda: made.append(graph) or graph) == digest
    assert len(made) == 1
    assert agent.looked_for == [digest]
    assert agent.uploaded == ([] if held else [digest])


@pytest.mark.parametrize("name", ["cpu-onnxruntime-fp32", "cpu-onnxruntime-int8"])
def test_every_replica_of_a_graph_has_an_artefact_of_its_own_and_is_sent_when_it_is_to_be_timed(
    name: str,
) -> None:
    agent = Agent(name)
    session, graph = session_of(agent, name), ROWS[0].alone
    known = [session.info_of(graph, replica) for replica in range(3)]
    assert agent.looked_for == []
    assert [info.graph_sha256 for info in known] == [
        sha256(graph_bytes(graph, replica)) for replica in range(3)
    ]
    sent = [session.digest_of(graph, replica) for replica in range(3)]
    assert sent == agent.uploaded == [info.artifact_sha256 for info in known]
    assert len(set(sent)) == 3


def test_a_batch_is_asked_of_the_target_with_its_format_threads_and_options() -> None:
    agent = Agent("cpu-onnxruntime-int8", max_threads=8)
    session = session_of(agent, "cpu-onnxruntime-int8-t3", "x64_exact=1", "gate=hard-sigmoid")
    assert (session.target.options, session.target.threads) == ("gate=hard-sigmoid;x64_exact=1", 3)
    protocol = Protocol(rounds=2)
    session.time(["b", "a", "b"], protocol)  # each once
    assert agent.batches == [
        (
            ["b", "a"],
            {
                "target": "cpu-onnxruntime-int8",
                "threads": 3,
                "options": {"x64_exact": "1"},
                "protocol": protocol,
                "format": "onnx-qdq",
            },
        )
    ]


def test_a_session_adds_up_what_its_batches_took() -> None:
    session = session_of(Agent("cpu-onnxruntime-fp32"), "cpu-onnxruntime-fp32")
    session.time(["a"], Protocol())  # takes 100 ms, a tenth of them for other processes
    session.time(["a"], Protocol())  # takes 200 ms, a fifth of them
    assert session.log.spent_ms == 300
    assert session.log.busy_share == pytest.approx((10 + 40) / 300)
    assert session.log.before == Conditions(temperature_c=21.0)
    assert session.log.after == Conditions(temperature_c=32.0, busy_share=0.2)


def test_what_a_format_cannot_express_is_known_by_its_graph_and_never_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(make: Any, recipe: Recipe) -> Any:
        raise UnsupportedNode("Softplus", "strange", "is not known")

    monkeypatch.setattr(session_module, "cached", cannot)
    agent, graph = Agent("cpu-onnxruntime-int8"), ROWS[0].alone
    session = session_of(agent, "cpu-onnxruntime-int8")
    info = session.info_of(graph)
    assert info.graph_sha256 == info.artifact_sha256 == sha256(graph_bytes(graph))
    assert info.converter == session.recipe.converter
    digest = session.digest_of(graph)
    results = session.time([digest, "other"], Protocol())
    assert isinstance(results[digest].error, UnsupportedOperator)
    assert results["other"].error is None
    assert session.log.busy_share == pytest.approx(0.1)  # as the one that was timed says
    assert [digests for digests, _ in agent.batches] == [["other"]]
    assert agent.looked_for == agent.uploaded == []


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cpu-onnxruntime-fp32-t9", (), "takes 1 to 8 threads, not 9"),
        ("cpu-onnxruntime-fp32", ("x64_exact=1",), "has no option 'x64_exact'; it takes graph_"),
        ("dsp-qnn-int8", (), "does not know the target 'dsp-qnn-int8'; it has cpu-onnxruntime"),
    ],
)
def test_what_a_target_does_not_take_is_refused_before_anything_is_asked(
    name: str, options: tuple[str, ...], words: str
) -> None:
    agent = Agent("cpu-onnxruntime-fp32", max_threads=8)
    with pytest.raises(BadRequest, match=words):
        session_of(agent, name, *options)
    assert agent.looked_for == agent.batches == []


def test_what_the_user_asks_for_stands_before_what_the_target_does_by_default() -> None:
    agent = Agent("cpu-onnxruntime-fp32", defaults=("graph_optimization=all", "spinning=1"))
    session = session_of(agent, "cpu-onnxruntime-fp32", "spinning=0")
    assert session.target.options == "graph_optimization=all;spinning=0"
