"""From `agent serve` to `search` with a stand-in for the MYRIAD plugin, through real agents."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hurricane.agents.client import AgentClient, Protocol
from hurricane.agents.errors import AgentError, ErrorKind
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.export import export_operator
from hurricane.ops.pool import select_operators
from hurricane.ops.shapes import LayerShape
from hurricane.profiler.plan import graph_bytes, parse_layers, plan_rows

from .agents_support import Agent, serving, wait_until
from .fake_myriad import HELD, FakeOpenvino, true_ms

pytestmark = pytest.mark.process

TARGET = "vpu-myriad-fp16"
ONCE = Protocol(rounds=1, calls_per_visit=4, warmup_calls=1)
LAYER = LayerShape(28, 28, 64, 64, 1)
COMMAND_S = 900


@dataclass(frozen=True)
class Bench:
    """An agent with a stand-in for the plugin."""

    plugin: FakeOpenvino
    agent: Agent
    client: AgentClient

    def measure(self, *operators: str, **protocol: Any) -> list[Any]:
        digests = [self.client.upload(export_operator(o, LAYER)) for o in operators]
        settings = dataclasses.replace(ONCE, **protocol)
        results = self.client.benchmark(digests, TARGET, protocol=settings)
        return [results[digest] for digest in digests]

    def host(self, module: str, *arguments: str) -> dict[str, Any]:
        """A command of the host, and the JSON object that it printed."""
        done = self.command(module, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def command(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", f"from {module} import main; main()", *arguments, "--json"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )


@pytest.fixture(scope="module", params=[2021, 2022])
def generation(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def shared(generation: int, tmp_path_factory: Any) -> Iterator[Bench]:
    plugin = FakeOpenvino(tmp_path_factory.mktemp("fake") / str(generation), generation)
    with (
        serving(command=plugin.agent()) as agent,
        AgentClient(agent.address) as client,
    ):
        yield Bench(plugin, agent, client)


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    shared.plugin.be()
    yield shared
    shared.plugin.be()


def test_the_conformance_suite_runs_over_it(bench: Bench) -> None:
    suite = Path(__file__).with_name("test_agents_conformance.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", str(suite), "-k", TARGET],
        env={**os.environ, "HURRICANE_TEST_AGENT": bench.agent.address},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        cwd=suite.parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") > 10
    assert "SKIPPED" not in done.stdout


def test_more_graphs_than_a_stick_keeps_are_one_batch(bench: Bench) -> None:
    bench.plugin.be(most_graphs=2)
    operators = ("SEP_3", "MB_3_3", "SEP_5", "Choice_3", "MB_7_6")
    for operator, result in zip(operators, bench.measure(*operators, rounds=8), strict=True):
        assert result.error is None
        truth = true_ms(export_operator(operator, LAYER))
        assert np.mean(result.device_ms) == pytest.approx(truth, rel=0.02)
        assert result.flags == ("simulated",)
        assert result.after.temperature_c > 38.0


def test_a_stick_that_is_lost_costs_the_graph_that_was_on_it(bench: Bench) -> None:
    bench.plugin.be(lost_at_call=13)  # the second graph is being measured then
    first, second, third = bench.measure("SEP_3", "SEP_5", "SEP_7", rounds=2)
    errors = [r.error for r in (first, second, third) if r.error is not None]
    assert errors
    assert {error.kind for error in errors} == {ErrorKind.DEVICE_LOST}
    assert all("plug it in again" in str(error) for error in errors)
    bench.plugin.be()
    assert all(result.error is None for result in bench.measure("SEP_3", "SEP_5", "SEP_7"))


def test_a_stick_that_is_lost_while_loading(bench: Bench) -> None:
    bench.plugin.be(lost_at_load=2)
    errors = [result.error for result in bench.measure("SEP_3", "SEP_5")]
    assert [error.kind for error in errors if error is not None] == [ErrorKind.DEVICE_LOST]


def test_a_call_that_does_not_return_times_out_and_the_next_one_works(bench: Bench) -> None:
    bench.plugin.be(hang_at_call=4)
    (result,) = bench.measure("SEP_3", artifact_timeout_s=3.0)
    assert result.error.kind == ErrorKind.TIMED_OUT
    bench.plugin.be(stalled=True)  # as the killed process left it
    assert bench.measure("SEP_3")[0].error is None


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ({"sticks": ()}, ErrorKind.DEVICE_LOST),
        ({"sticks": ("1.4-ma2450",)}, ErrorKind.DEVICE_LOST),
        ({"plugin": "missing"}, ErrorKind.BAD_REQUEST),
        ({"plugin": "no libusb"}, ErrorKind.BAD_REQUEST),
    ],
)
def test_what_is_no_longer_there_is_said_in_one_line(
    bench: Bench, state: dict[str, Any], kind: ErrorKind
) -> None:
    bench.plugin.be(**state)
    with pytest.raises(AgentError) as caught:
        bench.measure("SEP_3")
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)
    bench.plugin.be()
    assert bench.measure("SEP_3")[0].error is None


# From a stick to a network: nothing here depends on the generation but the table.

ONE = pytest.mark.parametrize("generation", [2021], indirect=True)


def profiling(bench: Bench, table: Path) -> tuple[str, ...]:
    """The command that makes a table of two rows."""
    words = ("--layers", "digits32:1", "--operators", "SEP_3,MB_3_3", "--target", TARGET)
    return ("hurricane.profiler.cli", *words, "--agent", bench.agent.address, "-o", str(table))


def losing(bench: Bench, table: Path, pulled: bool) -> subprocess.CompletedProcess[str]:
    """The same, but that its first worker loses the stick at its 150th call.

    Args:
        pulled: none finds it from then on; else the next worker does.
    """
    bench.plugin.be(held_at_call=150)

    def held() -> list[int]:
        return [w for w in bench.agent.workers() if Path(f"/proc/{w}/cwd", HELD).exists()]

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(bench.command, *profiling(bench, table))
        wait_until(lambda: done.done() or bool(held()))
        (worker,) = held()
        bench.plugin.be(lost_at_call=150, loser=worker, pulled=pulled)
        return done.result()


@ONE
def test_a_stick_that_comes_back_ends_no_run(bench: Bench, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    done = losing(bench, table, pulled=False)
    assert done.returncode == 0, done.stderr
    assert {row.status for row in LookupTable.load(table)} == {"ok"}


@ONE
def test_a_run_ends_where_the_stick_is_pulled_out_and_the_same_command_goes_on(
    bench: Bench, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    done = losing(bench, table, pulled=True)
    assert done.returncode == 1
    assert "no stick is" in done.stderr
    bench.plugin.be()
    made = bench.host(*profiling(bench, table))
    assert made["rows"] == 2
    assert {row.status for row in LookupTable.load(table)} == {"ok"}


@pytest.fixture(scope="module")
def table(shared: Bench, tmp_path_factory: Any) -> Path:
    """The table of all operators of a backbone."""
    path = tmp_path_factory.mktemp("table") / "stick.csv"
    words = ["--layers", "digits32", "--target", TARGET, "-o", str(path)]
    shared.plugin.be()
    made = shared.host("hurricane.profiler.cli", *words, "--agent", shared.agent.address)
    assert (made["rows"], made["measured"], made["origin"]) == (130, 130, "simulated")
    assert made["target"] == TARGET
    return path


def test_a_complete_table_is_within_3_percent_of_the_truth(table: Path) -> None:
    by_row = {(row.operator, row.shape): row for row in LookupTable.load(table)}
    for planned in plan_rows(parse_layers("digits32"), select_operators("*")):
        row = by_row[(planned.name, planned.shape)]
        truth = [
            true_ms(graph_bytes(c.with_operator)) - true_ms(graph_bytes(c.baseline))
            for c in planned.contexts
        ]
        assert row.latency_ms == pytest.approx(np.mean(truth), rel=0.03), planned.name
        assert (row.status, row.origin) == ("ok", "simulated")
        assert row.flag_words == ("simulated",)
        assert row.temperature_after_c > 38.0


@ONE
def test_a_table_is_verified_and_searched_with(bench: Bench, table: Path, tmp_path: Path) -> None:
    cli, there = "hurricane.search.cli", ("--agent", bench.agent.address)
    found = bench.host(cli, "verify", "--table", str(table), "--random", "20", *there)
    assert found["verdict"] == "additive"
    budget = ("--table", str(table), "--backbone", "digits32", "--latency", "3")
    effort = ("--evaluations", "4", "--population", "4", "--training", "0.002")
    bench.host(cli, "search", *budget, *effort, "-o", str(tmp_path / "run"), *there)
    made = json.loads((tmp_path / "run" / "architecture.json").read_text())
    assert made["measured_ms"] == pytest.approx(made["predicted_ms"], rel=0.05)
    assert made["measured_ms"] <= 3.0
