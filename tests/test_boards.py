"""Boards: the file, `hurricane boards`, and tables for several device groups at once."""

from __future__ import annotations

import _thread
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from hurricane.agents.backends.base import Context
from hurricane.agents.client import AgentClient
from hurricane.agents.errors import AgentError, Unreachable
from hurricane.agents.server import AgentServer, Security
from hurricane.lookup_tables.journal import Journal, journal_path
from hurricane.lookup_tables.raw import RawRow
from hurricane.lookup_tables.table import LookupTable, Row, Target
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.profiler import discovery
from hurricane.profiler import groups as module
from hurricane.profiler.boards import Board, Boards, ask
from hurricane.profiler.boards_cli import boards_command
from hurricane.profiler.cli import Interrupted, profile_ops
from hurricane.profiler.discovery import DeviceGroup, find_groups
from hurricane.profiler.groups import fill, lanes, table_paths
from hurricane.profiler.plan import parse_layers
from hurricane.profiler.profile import ProfileResult
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.runner import Exclusions
from hurricane.profiler.session import connect
from hurricane.profiler.target import parse_target

from .agents_rogue import Rogue, description

DSP, VPU, CPU = "sim-hexagon685-dsp", "sim-myriadx-vpu", "cpu-onnxruntime-fp32"
TOKEN = "a token that nobody guesses"
DEADLINE_S = 20.0
WORDS = ("--layers", "digits32:1", "--operators", "SEP_3,SEP_5", "--rounds", "4")
DEAD = "127.0.0.1:1"


@contextmanager
def serving(
    *simulate: str, token: str = "", backends: tuple[str, ...] = ("simulated",)
) -> Iterator[AgentServer]:
    """An agent in this process, with simulated devices and few backends."""
    names = [f"hurricane.agents.backends.{name}" for name in backends]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hurricane.agents.supervisor.backend_names", lambda: names)
        server = AgentServer("127.0.0.1:0", Context("board", simulate), Security(token))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def dsp() -> Iterator[str]:
    with serving("hexagon685-dsp") as server:
        yield server.address


@pytest.fixture(scope="module")
def vpu() -> Iterator[str]:
    with serving("myriadx-vpu", token=TOKEN) as server:
        yield server.address


@pytest.fixture(scope="module")
def both() -> Iterator[str]:
    with serving("hexagon685-dsp", "myriadx-vpu") as server:
        yield server.address


def write_boards(folder: Path, **agents: str) -> Path:
    """A file of boards; one whose name is `vpu` gets the token."""
    (folder / "vpu.token").write_text(TOKEN + "\n")
    lines = []
    for name, address in agents.items():
        lines += [f"[boards.{name}]", f'agent = "{address}"']
        lines += ['token_file = "vpu.token"'] if name == "vpu" else []
    path = folder / "boards.toml"
    path.write_text("\n".join(lines))
    return path


def run(command, *words: str):
    result = CliRunner().invoke(command, list(words), catch_exceptions=False, standalone_mode=False)
    if isinstance(result.return_value, int):  # as `run_command` takes it
        result.exit_code = result.return_value
    return result


# The file


def test_files_that_a_board_names_are_seen_from_the_boards_file(tmp_path):
    for name in ("desk.token", "ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("  a secret of 23 characters \nmore\n")
    path = tmp_path / "boards.toml"
    path.write_text(
        '[boards.desk]\nagent = "10.0.0.5:50051"\ntoken_file = "desk.token"\n'
        f'tls_ca = "ca.pem"\ntls_cert = "{tmp_path}/cert.pem"\ntls_key = "key.pem"\n'
        '[boards.pi-5]\nagent = "[::1]:50051"\n'
    )
    boards = Boards.load(path)
    desk, pi = boards
    assert (desk.name, desk.address, desk.token) == (
        "desk",
        "10.0.0.5:50051",
        "a secret of 23 characters",
    )
    assert desk.tls is not None
    assert desk.tls.ca == tmp_path / "ca.pem"
    assert desk.tls.key == tmp_path / "key.pem"
    assert "secret" not in repr(boards)
    assert (pi.name, pi.address, pi.token, pi.tls) == ("pi-5", "[::1]:50051", None, None)
    assert boards.get("pi-5") is pi
    with pytest.raises(BadRequest, match="did you mean desk"):
        boards.get("dek")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("boards = [", "not TOML"),
        ("", r"write \[boards.NAME\]"),
        ("[boards]", r"write \[boards.NAME\]"),
        ("[board.a]\nagent = '10.0.0.5:1'", "unknown key board; did you mean boards"),
        ("boards = 3", "boards must be a table"),
        ("[boards]\na = '10.0.0.5:1'", r"boards.a must be a table, \[boards.a\]"),
        ("[boards.a]", "lacks the key boards.a.agent"),
        ("[boards.a]\nagent = 5", "boards.a.agent must be a text"),
        ("[boards.a]\nagent = ''", "boards.a.agent must be a text"),
        ("[boards.a]\nagent = '10.0.0.5'", "boards.a.agent: '10.0.0.5' is no address"),
        ("[boards.a]\nagent = '10.0.0.5:99999'", "no address; give HOST:PORT"),
        ("[boards.a]\nagent = '10.0.0.5:1'\ntokenfile = 'x'", "a.tokenfile; did you mean token_f"),
        (
            "[boards.a]\nagent = '10.0.0.5:1'\ntoken_file = 'x'",
            "boards.a.token_file .*x does not exist",
        ),
        (
            "[boards.a]\nagent = '10.0.0.5:1'\ntoken_file = 'e'",
            "boards.a.token_file .*e is no token",
        ),
        ("[boards.a]\nagent = '10.0.0.5:0'", "boards.a.agent: .* has no port"),
        ("[boards.a]\nagent = '10.0.0.5:1'\ntls_ca = 'x'", "boards.a.tls_ca: there is no file"),
        ("[boards.a]\nagent = '10.0.0.5:1'\ntls_cert = 'e'", "belong together"),
        ("[boards.'a b']\nagent = '10.0.0.5:1'", "'a b' is no name"),
        ("[boards.a]\nagent = 'h:1'\n[boards.b]\nagent = 'h:1'", "boards.a and boards.b have"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(tmp_path, text, words):
    (tmp_path / "e").write_text("")
    path = tmp_path / "boards.toml"
    path.write_text(text)
    with pytest.raises(BadRequest, match=words) as caught:
        Boards.load(path)
    assert "boards.toml" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BadRequest, match=r"nothing\.toml does not exist"):
        run(boards_command, "--boards", str(tmp_path / "nothing.toml"))


# Asking boards


@pytest.mark.process
def test_the_state_of_every_board_is_told_and_the_status_says_if_one_is_missing(tmp_path, dsp, vpu):
    path = write_boards(tmp_path, desk=dsp, vpu=vpu)
    result = run(boards_command, "--boards", str(path), "--json")
    assert result.exit_code == 0
    desk, stick = json.loads(result.output)["boards"]
    assert (desk["board"], desk["agent"], desk["state"]) == ("desk", dsp, "idle")
    assert desk["activity"]["waiting"] == 0
    assert desk["targets"] == {DSP: "simulated"}
    assert desk["conditions"].keys() == {"temperature_c", "frequency_mhz", "load_1m"}
    assert stick["targets"] == {VPU: "simulated"}

    (tmp_path / "vpu.token").write_text("another token, quite long")
    path = write_boards(tmp_path, desk=dsp, gone=DEAD)
    path.write_text(path.read_text() + f'\n[boards.locked]\nagent = "{vpu}"\n')
    result = run(boards_command, "--boards", str(path))
    assert result.exit_code == 1
    header, *rows = result.output.splitlines()
    assert header.split()[:4] == ["board", "agent", "device", "state"]
    assert rows[0].split()[:5] == ["desk", dsp, "board", "idle", "0"]
    assert f"{DSP} (simulated)" in rows[0]
    assert rows[1].split() == ["gone", DEAD, "unreachable"]
    assert rows[2].split() == ["locked", vpu, "unauthorised"]
    assert rows[3].startswith("gone: no agent answers")
    assert "token" in rows[4]


@pytest.mark.process
def test_boards_can_be_named_and_agents_given_by_address(tmp_path, dsp, vpu):
    path = write_boards(tmp_path, desk=dsp, vpu=vpu)
    result = run(boards_command, "vpu", "--boards", str(path), "--json")
    assert [b["board"] for b in json.loads(result.output)["boards"]] == ["vpu"]
    result = run(boards_command, vpu, "--token-file", str(tmp_path / "vpu.token"), "--json")
    assert [b["state"] for b in json.loads(result.output)["boards"]] == ["idle"]
    for words, message in (
        ((), "whom to ask"),
        (("desk",), "'desk' is no address; give HOST:PORT, or the file"),
        (("other", "--boards", str(path)), "names no board 'other'; it has desk, vpu"),
    ):
        with pytest.raises(BadRequest, match=message):
            run(boards_command, *words)


@pytest.mark.process
def test_a_board_that_hangs_costs_the_others_nothing(dsp):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        hung = f"127.0.0.1:{silent.getsockname()[1]}"
        answers = ask([Board.at(hung), Board.at(dsp)], timeout_s=0.5)
    assert [answer.state for answer in answers] == ["unreachable", "idle"]
    assert isinstance(answers[0].error, Unreachable)


@pytest.mark.process
def test_what_an_older_agent_does_not_tell_is_a_question_mark():
    older = description()
    older.ClearField("activity")
    older.ClearField("conditions")
    with Rogue(describe=lambda request: older).serving() as address:
        text = run(boards_command, address)
        data = run(boards_command, address, "--json")
    assert text.exit_code == data.exit_code == 0
    assert text.output.splitlines()[1].split()[:6] == [address] * 2 + ["rogue", *"???"]
    (found,) = json.loads(data.output)["boards"]
    assert (found["state"], found["activity"], found["conditions"]) == (None, None, None)


@pytest.mark.process
def test_of_a_whole_file_a_command_takes_the_boards_that_have_the_target(tmp_path, dsp, vpu):
    boards = Boards.load(write_boards(tmp_path, vpu=vpu, gone=DEAD, desk=dsp))
    with connect(boards, parse_target(DSP)) as clients:
        assert [client.address for client in clients] == [dsp]
    with (
        pytest.raises(BadRequest, match=f"vpu {VPU}; gone unreachable; desk {DSP}"),
        connect(boards, parse_target(CPU)),
    ):
        pass
    with connect([boards.get("vpu"), dsp], parse_target(VPU)) as clients:
        assert [client.address for client in clients] == [vpu, dsp]
        assert clients[0].describe().target(VPU)


# Groups


def group(target: Target, *places: str) -> DeviceGroup:
    return DeviceGroup(target, (), frozenset(places))


def a_target(device: str = "Board, rev. 2/B", **other: str) -> Target:
    return Target(device, "cpu", "onnxruntime", **other)


def test_groups_that_share_a_board_take_turns():
    target = a_target()
    found = lanes([group(target, p) for p in ("a", "b", "c")])
    assert sorted(found) == [[0], [1], [2]]
    groups = [group(target, "a"), group(target, "b"), group(target, "c"), group(target, "b", "a")]
    assert sorted(lanes(groups)) == [[0, 1, 3], [2]]


def row_of(target: Target) -> Row:
    layer = parse_layers("digits32:1").shapes[0]
    return Row.of(target, "SEP_3", layer, status="ok", latency_ms=1.0, estimator="x")


def test_every_group_has_a_table_of_its_own_and_finds_it_again(tmp_path):
    old, new = a_target(runtime_version="1.1"), a_target(runtime_version="1.2")
    tuned = a_target(runtime_version="1.2", options="a=1")
    odd = a_target("Board -- rev. 2 B", runtime_version="1.2", options="a=1")
    groups = [group(target) for target in (old, new, tuned, odd)]
    paths = table_paths(tmp_path, groups)
    assert paths[0] == tmp_path / "Board-rev.-2-B-cpu-onnxruntime-fp32.csv"
    assert paths[1] == tmp_path / "Board-rev.-2-B-cpu-onnxruntime-fp32-1.2.csv"
    assert len(set(paths)) == 4
    assert all(path.name.isascii() and " " not in path.name for path in paths)

    LookupTable([row_of(old)]).save(paths[0])
    with Journal.open(paths[1], new) as journal:  # killed after its first rows
        journal.append([RawRow(row_of(new))])
    assert table_paths(tmp_path, groups[1:2]) == paths[1:2]
    assert table_paths(tmp_path, groups[1::-1]) == paths[1::-1]


@pytest.mark.process
def test_agents_are_sorted_by_group_and_may_lack_what_others_have(dsp, both, vpu):
    requests = [parse_target(DSP), parse_target(VPU)]
    stick = Board("stick", vpu, TOKEN)
    with find_groups([dsp, both, stick], requests) as found:
        assert [g.target.name for g in found.groups] == [DSP, VPU]
        assert [g.places for g in found.groups] == [{dsp, both}, {both, vpu}]
    with find_groups([dsp, stick], requests[:1]) as found:
        assert [g.places for g in found.groups] == [{dsp}]
        assert found.unused == (vpu,)
    with (
        pytest.raises(BadRequest, match=f"no agent takes the target '{CPU}'.*{DSP}.*{VPU}"),
        find_groups([dsp, stick], [*requests, parse_target(CPU)]),
    ):
        pass
    with pytest.raises(Unreachable, match=DEAD), find_groups([dsp, DEAD], requests[:1]):
        pass


@pytest.mark.process
def test_private_agents_share_this_machine_where_one_of_them_measures(monkeypatch):
    @contextmanager
    def private(agents, request):
        assert agents == ()
        with AgentClient(servers.pop().address) as client:
            yield [client]

    monkeypatch.setattr(discovery, "connect", private)
    real = serving("myriadx-vpu", backends=("simulated", "onnxruntime_cpu"))
    with serving("hexagon685-dsp") as one, real as another:
        servers = [another, one]
        with find_groups((), [parse_target(DSP), parse_target(CPU)]) as found:
            assert lanes(found.groups) == [[0, 1]]
        servers = [another, one]
        with find_groups((), [parse_target(DSP), parse_target(VPU)]) as found:
            assert lanes(found.groups) == [[0], [1]]


def finished(sessions, path) -> ProfileResult:
    return ProfileResult(LookupTable(path=path), sessions[0].target, 1, 0, {}, Exclusions())


@pytest.mark.process
def test_groups_on_different_boards_are_measured_at_the_same_time(monkeypatch, tmp_path, dsp, vpu):
    meeting = threading.Barrier(2)

    def profile(sessions, rows, path, protocol, *, retry, on_progress, reference, networks):
        meeting.wait(DEADLINE_S)  # breaks where one waits for the other to end
        on_progress("measure", 0.5)
        return finished(sessions, path)

    monkeypatch.setattr(module, "profile", profile)
    requests = [parse_target(DSP), parse_target(VPU)]
    shares: list[float] = []
    with find_groups([dsp, Board("stick", vpu, TOKEN)], requests) as found:
        paths = table_paths(tmp_path, found.groups)
        note = lambda what, share: shares.append(share)  # noqa: E731
        outcomes = fill(found.groups, paths, [], TimingProtocol(), on_progress=note)
    assert [o.error for o in outcomes] == [None, None]
    assert [o.path for o in outcomes] == paths
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.process
def test_groups_on_one_board_are_measured_one_after_another(monkeypatch, tmp_path, both):
    busy = threading.Lock()

    def profile(sessions, rows, path, protocol, *, retry, on_progress, reference, networks):
        assert busy.acquire(blocking=False), "two groups at once on one board"
        try:
            sessions[0].client.describe()
        finally:
            busy.release()
        return finished(sessions, path)

    monkeypatch.setattr(module, "profile", profile)
    with find_groups([both], [parse_target(DSP), parse_target(VPU)]) as found:
        paths = table_paths(tmp_path, found.groups)
        outcomes = fill(found.groups, paths, [], TimingProtocol())
    assert [o.error for o in outcomes] == [None, None]


@pytest.mark.process
def test_an_interrupt_ends_every_group(monkeypatch, tmp_path, dsp, vpu):
    meeting = threading.Barrier(2)
    ended: list[str] = []

    def profile(sessions, rows, path, protocol, *, retry, on_progress, reference, networks):
        if meeting.wait(DEADLINE_S) == 0:
            _thread.interrupt_main()
        try:
            until = time.monotonic() + DEADLINE_S
            while time.monotonic() < until:  # or until its connection is closed
                sessions[0].client.describe()
        finally:
            ended.append(path.name)

    monkeypatch.setattr(module, "profile", profile)
    requests = [parse_target(DSP), parse_target(VPU)]
    with find_groups([dsp, Board("stick", vpu, TOKEN)], requests) as found:
        paths = table_paths(tmp_path, found.groups)
        with pytest.raises(KeyboardInterrupt):
            fill(found.groups, paths, [], TimingProtocol())
    assert sorted(ended) == sorted(path.name for path in paths)


# profile-ops


@pytest.mark.process
def test_profile_ops_fills_a_table_for_each_group(tmp_path, dsp, vpu):
    boards = write_boards(tmp_path, desk=dsp, vpu=vpu)
    folder = tmp_path / "tables"
    words = (*WORDS, "--target", DSP, "--target", VPU, "--boards", str(boards))
    result = run(profile_ops, *words, "-o", f"{folder}/", "--check")
    assert result.exit_code == 1
    assert result.output.count("holds 0 of 2 rows") == 2
    assert not folder.exists()

    result = run(profile_ops, *words, "-o", f"{folder}/", "--json")
    assert result.exit_code == 0, result.output
    names = [f"hexagon685-dsp-{DSP}.csv", f"myriadx-vpu-{VPU}.csv"]
    tables = json.loads(result.output)["tables"]
    assert [table["table"] for table in tables] == [str(folder / name) for name in names]
    assert [table["target"] for table in tables] == [DSP, VPU]
    assert [(table["measured"], table["kept"]) for table in tables] == [(2, 0)] * 2
    assert sorted(path.name for path in folder.glob("*.csv")) == names
    for name, target in zip(names, (DSP, VPU), strict=True):
        rows = list(LookupTable.load(folder / name))
        assert {row.operator for row in rows} == {"SEP_3", "SEP_5"}
        assert {row.target.name for row in rows} == {target}

    result = run(profile_ops, *words, "-o", str(folder))
    assert result.exit_code == 0
    assert result.output.count("0 simulated now, 2 kept") == 2
    # One board of the file, and so one group: what is printed is as without a folder.
    result = run(profile_ops, *words[:-4], "--boards", str(boards), "-o", str(folder), "--json")
    assert json.loads(result.output)["table"] == str(folder / names[0])


@pytest.mark.process
def test_several_groups_want_a_folder(tmp_path, dsp, both):
    path = tmp_path / "t.csv"
    words = (*WORDS, "--target", DSP, "--target", VPU, "--agent", dsp, "--agent", both)
    with pytest.raises(BadRequest, match=r"2 kinds of device.*\n.*-o .*/t/"):
        run(profile_ops, *words, "-o", str(path))
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_group_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, both):
    real = module.profile

    def profile(sessions, *words, **others):
        if sessions[0].target.name == DSP:
            raise AgentError("the board is gone")
        return real(sessions, *words, **others)

    monkeypatch.setattr(module, "profile", profile)
    words = (*WORDS, "--target", DSP, "--target", VPU, "--agent", both, "-o", f"{tmp_path}/")
    with pytest.raises(HurricaneError, match=r"1 of 2 tables.*the board is gone") as caught:
        run(profile_ops, *words)
    assert caught.value.exit_status == 1
    assert [path.name for path in tmp_path.glob("*.csv")] == [f"myriadx-vpu-{VPU}.csv"]


@pytest.mark.process
def test_a_board_of_the_file_that_is_off_is_told_at_the_end(tmp_path, dsp):
    boards = write_boards(tmp_path, gone=DEAD, desk=dsp)
    path = tmp_path / "t.csv"
    words = (*WORDS, "--target", DSP, "--boards", str(boards), "-o", str(path))
    for more in ((), ("--check",)):
        with pytest.raises(HurricaneError, match="took no part: gone: no agent answers"):
            run(profile_ops, *words, *more)
    assert len(LookupTable.load(path)) == 2
    with pytest.raises(Unreachable):  # one that is named has to be there
        run(profile_ops, *words, "--agent", "gone")
    boards = write_boards(tmp_path, gone=DEAD)
    with pytest.raises(HurricaneError, match=r"no board of .*boards\.toml answers"):
        run(profile_ops, *words)


@pytest.mark.process
def test_ctrl_c_tells_that_rows_are_safe_and_how_to_go_on(monkeypatch, tmp_path, dsp):
    def profile(sessions, rows, path, protocol, *, retry, on_progress, reference, networks):
        with Journal.open(path, sessions[0].target) as journal:
            values = {"status": "ok", "latency_ms": 1.0, "estimator": "x"}
            row = Row.of(sessions[0].target, rows[0].name, rows[0].shape, **values)
            journal.append([RawRow(row)])
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "profile", profile)
    path = tmp_path / "t.csv"
    words = (*WORDS, "--target", DSP, "--agent", dsp, "-o", str(path))
    with pytest.raises(Interrupted, match="1 of 2 rows are safe, the same command goes on") as told:
        run(profile_ops, *words)
    assert told.value.exit_status == 130
    monkeypatch.undo()
    result = run(profile_ops, *words, "--json")
    assert json.loads(result.output)["kept"] == 1
    assert not journal_path(path).exists()
