"""What a rogue or broken agent can do to a table: nothing. It makes no row, ends no run of others,
and is named in one line. An agent passes all on to an honest one and meddles with the answers."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hurricane.agents.client import AgentClient, private_agent
from hurricane.agents.errors import AgentError, BadAnswer, Internal
from hurricane.agents.proto import agent_pb2 as pb
from hurricane.lookup_tables.journal import journal_path, read_journal
from hurricane.lookup_tables.table import LookupTable, Row
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.export import sha256
from hurricane.ops.pool import select_operators
from hurricane.profiler import protocol as protocol_module
from hurricane.profiler.boards_cli import boards_command
from hurricane.profiler.cli import profile_ops
from hurricane.profiler.coverage import failed_rows, missing_rows
from hurricane.profiler.plan import graph_bytes, parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.recorder import Recorder
from hurricane.profiler.session import TargetSession
from hurricane.profiler.target import parse_target
from hurricane.profiler.timing.marginal import Estimate
from hurricane.profiler.verify_cli import verify

from .agents_rogue import Meddler, Rogue, description

pytestmark = pytest.mark.process

DSP = "sim-hexagon685-dsp"
OPERATORS = "SEP_3,SEP_5,MB_3_3"
WORDS = ("--layers", "digits32:1", "--operators", OPERATORS, "--target", DSP, "--rounds", "12")
PROTOCOL = TimingProtocol(max_rounds=12, rejoin_timeout_s=0.0)
NAN = float("nan")

Events = list[pb.BenchmarkEvent]
Change = Callable[[Events], Any]


@pytest.fixture(scope="module")
def honest() -> Iterator[AgentClient]:
    with private_agent(("hexagon685-dsp",)) as client:
        yield client


@pytest.fixture(scope="module")
def right(honest: AgentClient, tmp_path_factory: pytest.TempPathFactory) -> LookupTable:
    """The table that is to come out."""
    path = tmp_path_factory.mktemp("right") / "t.csv"
    session = TargetSession.open(honest, parse_target(DSP))
    return profile([session], planned(), path, PROTOCOL).table


def planned(operators: str = OPERATORS, layers: str = "digits32:1"):
    return plan_rows(parse_layers(layers), select_operators(operators))


def run(command: Any, *words: str):
    result = CliRunner().invoke(command, list(words), catch_exceptions=False, standalone_mode=False)
    if isinstance(result.return_value, int):  # as `run_command` takes it
        result.exit_code = result.return_value
    return result


def meddling(honest: AgentClient, change: Change, first: int = 0) -> Meddler:
    """An agent that is honest but for what is changed from a batch on, counted from 0."""

    def meddle(number: int, request: pb.BenchmarkRequest, told: Events) -> Any:
        only_loads = not request.protocol.rounds
        return told if number < first or only_loads else change(copy.deepcopy(told))

    return Meddler(honest.address, honest._metadata, meddle)


def to_results(change: Callable[[pb.ArtifactResult], None]) -> Change:
    def changed(told: Events) -> Events:
        for event in told:
            if event.HasField("result"):
                change(event.result)
        return told

    return changed


def times(field: str, value: float) -> Change:
    """One call of every result with another time."""

    def change(result: pb.ArtifactResult) -> None:
        getattr(result, field)[-1] = value

    return to_results(change)


def after(**fields: Any) -> Change:
    def change(told: Events) -> Events:
        for event in told:
            if event.HasField("conditions"):
                for name, value in fields.items():
                    setattr(event.conditions.after, name, value)
        return told

    return change


def without_one_result(told: Events) -> Events:
    told.remove(next(event for event in told if event.HasField("result")))
    return told


def with_one_twice(told: Events) -> Events:
    return [next(event for event in told if event.HasField("result")), *told]


def with_a_foreign_one(told: Events) -> Events:
    next(event for event in told if event.HasField("result")).result.sha256 = "c" * 64
    return told


def ending_early(told: Events) -> Events:
    return told[:-1]


def with_nonsense(told: Events) -> list[Any]:
    return [*told[:-1], b"\xff" * 20]


def going_on_after_the_end(told: Events) -> Events:
    return [*told, told[-2]]


def with_an_error_of_its_own(told: Events) -> Events:
    error = pb.Error(kind=pb.INTERNAL, message="\x1b[31msomething\x1b[0m went wrong")
    return [pb.BenchmarkEvent(finished=pb.Finished(error=error))]


def crashing(told: Events) -> Any:
    raise RuntimeError("\x1b[31ma defect\x1b[0m of the rogue's own")


KINDS: dict[str, Change] = {
    "negative": times("wall_ms", -0.3),
    "not a number": times("wall_ms", NAN),
    "infinite": times("wall_ms", float("inf")),
    "far too small": times("wall_ms", 1e-5),
    "an hour": times("wall_ms", 3.6e6),
    "device not a number": times("device_ms", NAN),
    "device negative": times("device_ms", -0.3),
    "cold": after(temperature_c=-400.0),
    "no load": after(load_1m=NAN),
    "missing": without_one_result,
    "doubled": with_one_twice,
    "foreign": with_a_foreign_one,
    "an early end": ending_early,
    "nonsense": with_nonsense,
    "after the end": going_on_after_the_end,
    "an error of its own": with_an_error_of_its_own,
    "a crash": crashing,
}


@pytest.fixture(params=KINDS, name="change")
def kind_of_change(request: pytest.FixtureRequest) -> Change:
    return KINDS[request.param]


@pytest.fixture(autouse=True)
def no_wait_for_lost_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = partial(TimingProtocol, rejoin_timeout_s=0.0)
    monkeypatch.setattr(protocol_module, "TimingProtocol", impatient)  # of the commands


def check_same(table: LookupTable, right: LookupTable, share: float = 0.05) -> None:
    """Every row is there once, ok, and as it should be."""
    assert [row.key for row in table] == [row.key for row in right]
    for found, wanted in zip(table, right, strict=True):
        assert found.status == wanted.status == "ok"
        assert found.latency_ms == pytest.approx(wanted.latency_ms, rel=share)
        assert found.cold_ms == pytest.approx(wanted.cold_ms, rel=share)


def check_one_line(error: Exception, address: str) -> None:
    assert address in str(error)
    assert str(error).isprintable()
    assert getattr(error, "exit_status", None) == 1


def rows_of(path: Path) -> tuple[Row, ...]:
    return read_journal(path).rows


def test_a_rogue_makes_no_row_and_is_named(
    honest: AgentClient,
    right: LookupTable,
    change: Change,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "t.csv"
    with meddling(honest, change).serving() as address:
        with pytest.raises((BadAnswer, Internal)) as caught:
            run(profile_ops, *WORDS, "--agent", address, "-o", str(path))
        check_one_line(caught.value, address)
    assert not list(tmp_path.iterdir())  # neither a table nor a journal
    # gRPC's own complaint comes with a traceback.
    assert not [record for record in caplog.records if "deserializ" in record.getMessage()]


@pytest.mark.parametrize("first", [1, 3, 4])
def test_rows_that_were_there_before_the_agent_went_wrong_are_right(
    honest: AgentClient, right: LookupTable, tmp_path: Path, first: int
) -> None:
    """Batches 0 to 3 are of rows, 4 is of their own graphs."""
    path = tmp_path / "t.csv"
    rogue = meddling(honest, KINDS["negative"], first)
    with rogue.serving() as address:
        with pytest.raises(BadAnswer) as caught:
            run(profile_ops, *WORDS, "--agent", address, "-o", str(path))
        check_one_line(caught.value, address)
    assert rogue.batches == first + 1
    wanted = {row.key: row for row in right}
    for row in rows_of(path):
        assert row.latency_ms == pytest.approx(wanted[row.key].latency_ms, rel=0.05)
    session = TargetSession.open(honest, parse_target(DSP))
    check_same(profile([session], planned(), path, PROTOCOL).table, right)
    assert not journal_path(path).exists()


def test_a_table_that_was_there_stays_as_it_was(
    honest: AgentClient, right: LookupTable, change: Change, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    right.save(path)
    before = path.read_bytes()
    words = ("--layers", "digits32:1", "--operators", f"{OPERATORS},MB_5_3", "--target", DSP)
    with meddling(honest, change).serving() as address, pytest.raises(AgentError):
        run(profile_ops, *words, "--agent", address, "-o", str(path))
    assert path.read_bytes() == before
    assert not rows_of(path)


@pytest.mark.parametrize("first", [0, 1])
def test_the_others_do_the_work_of_a_rogue(
    honest: AgentClient, right: LookupTable, change: Change, tmp_path: Path, first: int
) -> None:
    """Batches 0 and 1 compare the boards, the next ones are of rows."""
    path = tmp_path / "t.csv"
    request = parse_target(DSP)
    with meddling(honest, change, first).serving() as address, AgentClient(address) as rogue:
        sessions = [TargetSession.open(client, request) for client in (rogue, honest)]
        result = profile(sessions, planned(), path, PROTOCOL)
    check_same(result.table, right)
    assert not missing_rows(planned(), result.table, result.target)
    assert not journal_path(path).exists()
    (words,) = result.exclusions.lost.values()
    assert address in words
    assert words.isprintable()
    assert not result.exclusions.left_out


def test_the_command_says_it_in_one_line_with_status_1(honest: AgentClient, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for change in (KINDS["negative"], with_nonsense):
        with meddling(honest, change).serving() as address:
            command = [sys.executable, "-m", "hurricane.profiler.cli", *WORDS]
            result = subprocess.run(
                [*command, "--agent", address, "-o", str(path)],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"Error: the agent at {address} sent ")
        assert not result.stdout
        assert not path.exists()


WRONG_DESCRIPTIONS: dict[str, Any] = {
    "nonsense": b"\xff\xff",
    "empty": pb.DescribeResponse(),
    "no number": pb.DescribeResponse.FromString(description().SerializeToString()),
    "no device": description(),
    "a processor of its own": description(),
    "no runtime": description(),
}
WRONG_DESCRIPTIONS["no number"].activity.elapsed_s = NAN
WRONG_DESCRIPTIONS["no device"].targets[0].device = ""
WRONG_DESCRIPTIONS["a processor of its own"].targets[0].processor = "abacus"
WRONG_DESCRIPTIONS["no runtime"].targets[0].runtime = "\x1b[2J"


@pytest.mark.parametrize("answer", WRONG_DESCRIPTIONS.values(), ids=WRONG_DESCRIPTIONS)
def test_an_agent_that_describes_itself_as_none_takes_no_part(answer: Any, tmp_path: Path) -> None:
    words = ("--layers", "digits32:1", "--target", "cpu-rogue-fp32", "-o", str(tmp_path / "t.csv"))
    boards = tmp_path / "boards.toml"
    with (
        Rogue().serving() as fine,
        Rogue(describe=lambda request: answer).serving() as address,
    ):
        with pytest.raises(BadAnswer) as caught:
            run(profile_ops, *words, "--agent", address)
        check_one_line(caught.value, address)
        boards.write_text(f'[boards.a]\nagent = "{address}"\n[boards.b]\nagent = "{fine}"\n')
        with pytest.raises(HurricaneError, match=f"took no part: a: the agent at {address}"):
            run(profile_ops, *words, "--check", "--boards", str(boards))
    assert not (tmp_path / "t.csv").exists()


def test_boards_tells_a_rogue_in_words_and_in_json() -> None:
    escaped = description()
    escaped.device.name = "\x1b[2Jdesk"
    wrong = description()
    wrong.conditions.load_1m = NAN
    with (
        Rogue(describe=lambda request: escaped).serving() as desk,
        Rogue(describe=lambda request: wrong).serving() as rogue,
    ):
        result = run(boards_command, desk, rogue)
        data = run(boards_command, desk, rogue, "--json")
    assert result.exit_code == data.exit_code == 1
    assert "\x1b" not in result.output
    _, first, second, last = result.output.splitlines()
    assert first.split()[2:4] == ["desk", "idle"]
    assert second.split() == [rogue, rogue, "invalid"]
    assert last == f"{rogue}: the agent at {rogue} sent a load average of nan"
    assert [board["state"] for board in json.loads(data.output)["boards"]] == ["idle", "invalid"]


def test_an_agent_that_flips_what_it_says_of_itself_is_no_agent_of_a_file(
    honest: AgentClient, tmp_path: Path
) -> None:
    """The first `Describe` asks who is there, the second for the target."""
    rogue = meddling(honest, KINDS["negative"])
    described, real = [], rogue.describe

    def describe(request: Any) -> Any:
        described.append(real(request))
        return described[-1] if len(described) == 1 else b"\xff"

    rogue.describe = describe
    boards = tmp_path / "boards.toml"
    words = ("--layers", "digits32:1", "--target", DSP, "-o", str(tmp_path / "t.csv"))
    said = "sent bytes that are no DescribeResponse"
    with (
        Rogue().serving() as fine,
        meddling(honest, lambda told: told).serving() as helper,
        rogue.serving() as address,
    ):
        boards.write_text(f'[boards.a]\nagent = "{address}"\n[boards.b]\nagent = "{fine}"\n')
        with pytest.raises(BadAnswer, match=f"{address} {said}"):
            run(profile_ops, *words, "--boards", str(boards))
        described.clear()
        boards.write_text(boards.read_text() + f'[boards.c]\nagent = "{helper}"\n')
        with pytest.raises(HurricaneError, match=f"took no part: a: .*{address} {said}"):
            run(profile_ops, *words, "--operators", "SEP_3", "--boards", str(boards))
    assert len(LookupTable.load(tmp_path / "t.csv")) == 1


def test_verify_believes_no_rogue(honest: AgentClient, right: LookupTable, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    session = TargetSession.open(honest, parse_target(DSP))
    protocol = TimingProtocol(min_rounds=3, max_rounds=3)
    profile([session], planned("SEP_*", "digits32"), path, protocol)
    words = ("--table", str(path), "--backbone", "digits32", "--random", "3", "--rounds", "4")
    with meddling(honest, KINDS["negative"]).serving() as address:
        with pytest.raises(BadAnswer) as caught:
            run(verify, *words, "--agent", address)
        check_one_line(caught.value, address)
    assert not list(tmp_path.glob("*.calibration.json"))


def test_text_from_an_agent_reaches_a_table_without_its_escapes(
    honest: AgentClient, tmp_path: Path
) -> None:
    def change(result: pb.ArtifactResult) -> None:
        result.compute_unit = "\x1b]0;x\x07HTP \u202e "
        result.flags[:] = ["\x1b[31msimulated\x1b[0m", "odd flag;x", ""]

    def governor(told: Events) -> Events:
        for event in to_results(change)(told):
            if event.HasField("conditions"):
                event.conditions.after.governor = "a\nb\x9b2J"
                event.conditions.before.governor = "a\nb\x9b2J"
        return told

    path = tmp_path / "t.csv"
    with meddling(honest, governor).serving() as address:
        result = run(profile_ops, *WORDS, "--agent", address, "-o", str(path))
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    for row in LookupTable.load(path):
        assert row.compute_unit == "HTP"
        assert set(row.flag_words) >= {"simulated", "odd-flag-x"}


# What went wrong with a graph.


def failing(honest: AgentClient, kind: int, operator: str) -> Meddler:
    """An agent on which the graphs of one operator's row fail."""
    graphs = next(row for row in planned() if row.name == operator).with_operator
    wanted = {sha256(graph_bytes(graph)) for graph in graphs}

    def meddle(number: int, request: pb.BenchmarkRequest, told: Events) -> Events:
        for event in told:
            if event.HasField("result") and event.result.sha256 in wanted:
                digest = event.result.sha256
                event.result.Clear()
                event.result.sha256 = digest
                event.result.error.kind = kind
                event.result.error.message = "it fell over"
        return told

    return Meddler(honest.address, honest._metadata, meddle)


@pytest.mark.parametrize(
    ("kind", "status"),
    [(pb.RUNTIME_CRASHED, "failed"), (pb.TIMED_OUT, "timeout"), (99, "failed"), (0, "failed")],
)
def test_a_row_that_went_wrong_is_told_by_status_and_last_line_until_it_is_measured(
    honest: AgentClient, right: LookupTable, tmp_path: Path, kind: int, status: str
) -> None:
    path = tmp_path / "t.csv"
    words = (*WORDS, "--precision", "0.1", "-o", str(path))  # which no row falls short of
    advice = f"{path}: 1 of its rows has no latency.*--retry measures again"
    with failing(honest, kind, "SEP_5").serving() as address:
        for _ in range(2):  # it is kept, and told again
            with pytest.raises(HurricaneError, match=advice) as caught:
                run(profile_ops, *words, "--agent", address)
            assert caught.value.exit_status == 1
        found = {row.operator: row.status for row in LookupTable.load(path)}
        assert found == {"SEP_3": "ok", "SEP_5": status, "MB_3_3": "ok"}
        result = run(profile_ops, *words, "--check", "--agent", address)
        assert result.exit_code == 1
        assert "holds 3 of 3 rows" in result.output
        assert result.output.splitlines()[-1].strip().startswith("1 of its rows has no latency")
        result = run(profile_ops, *words, "--check", "--json", "--agent", address)
        assert json.loads(result.output) == {"rows": 3, "missing": 0, "failed": 1}
        result = run(profile_ops, *words, "--check", "--retry", "--json", "--agent", address)
        assert json.loads(result.output) == {"rows": 3, "missing": 1, "failed": 0}
    with meddling(honest, lambda told: told).serving() as address:
        result = run(profile_ops, *words, "--retry", "--agent", address)
        assert result.exit_code == 0
        result = run(profile_ops, *words, "--check", "--agent", address)
        assert result.exit_code == 0
    check_same(LookupTable.load(path), right)


def test_what_a_device_cannot_run_is_told_and_no_failure(
    honest: AgentClient, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    words = (*WORDS, "-o", str(path))
    with failing(honest, pb.UNSUPPORTED_OPERATOR, "SEP_5").serving() as address:
        result = run(profile_ops, *words, "--agent", address)
        assert result.exit_code == 0
        assert "without a latency: 1 unsupported" in result.output
        assert run(profile_ops, *words, "--check", "--agent", address).exit_code == 0
    table = LookupTable.load(path)
    assert not failed_rows(planned(), table, table.target())


# A token over a network.


def test_a_token_goes_over_no_network_unasked_and_whoever_asks_is_warned(tmp_path: Path) -> None:
    token = tmp_path / "token.txt"
    token.write_text("a token that nobody guesses\n")
    board = "192.0.2.1:50051"  # nobody's address
    words = ("--token-file", str(token))
    with pytest.raises(AgentError, match=r"192\.0\.2\.1:50051.*--tls-ca.*SSH.*--insecure") as told:
        run(profile_ops, *WORDS, "--agent", board, *words, "-o", str(tmp_path / "t.csv"))
    assert told.value.exit_status == 2
    with pytest.raises(AgentError, match="--insecure"):
        run(boards_command, board, *words)
    boards = tmp_path / "boards.toml"
    boards.write_text(f'[boards.a]\nagent = "{board}"\ntoken_file = "token.txt"\n')
    with pytest.raises(AgentError, match="--insecure"):
        run(boards_command, "--boards", str(boards))
    boards.write_text(boards.read_text() + "insecure = true\n")
    warning = f"Warning: the token for {board} goes over the network as plain text\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hurricane.profiler.boards.ANSWER_S", 0.1)
        patch.setattr("hurricane.profiler.boards_cli.ask", lambda boards, **keys: [])
        for given in ((board, *words, "--insecure"), ("--boards", str(boards)), (board, board)):
            result = run(boards_command, *given)
            assert result.stderr == (warning if "--" in given[0] + given[-1] else "")
    boards.write_text('[boards.a]\nagent = "h:1"\ninsecure = "yes"\n')
    with pytest.raises(BadRequest, match=r"boards\.a\.insecure must be true or false"):
        run(boards_command, "--boards", str(boards))


# What no table can hold, should it pass all checks.


@pytest.mark.parametrize("what", ["rows", "loops"])
def test_what_no_table_can_hold_is_the_agents_fault_and_costs_no_row(
    honest: AgentClient,
    right: LookupTable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
) -> None:
    """Of a row, or of the timings of its own graph alone."""
    record, record_loops = Recorder.record, Recorder.record_loops
    endless = Estimate(1e12, 1e12, 1e12, 12)
    with meddling(honest, lambda told: told).serving() as address, AgentClient(address) as rogue:
        sessions = [TargetSession.open(client, parse_target(DSP)) for client in (honest, rogue)]

        def rows(recorder: Recorder, session: TargetSession, run: int, fit: Any, found: Any) -> Any:
            if session.client is rogue and what == "rows":
                found = [replace(outcome, estimate=endless) for outcome in found]
            return record(recorder, session, run, fit, found)

        def loops(recorder: Recorder, session: TargetSession, results: Any) -> None:
            if session.client is rogue and what == "loops":
                results = {row: replace(r, wall_ms=1e12 * r.wall_ms) for row, r in results.items()}
            record_loops(recorder, session, results)

        monkeypatch.setattr(Recorder, "record", rows)
        monkeypatch.setattr(Recorder, "record_loops", loops)
        path = tmp_path / "t.csv"
        with pytest.raises(BadAnswer, match=f"the agent at {address} sent what no table can hold"):
            profile(sessions[1:], planned(), tmp_path / "alone.csv", PROTOCOL)
        result = profile(sessions, planned(), path, PROTOCOL)
    check_same(result.table, right)
    assert list(result.exclusions.lost) == [address]
