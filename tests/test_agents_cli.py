"""The command `agent`, private agents, and what importing the agent costs."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

import hurricane.agents
from hurricane.agents import cli as agent_cli
from hurricane.agents import console
from hurricane.agents.backends.base import Availability, TargetInfo
from hurricane.agents.client import (
    AgentClient,
    Protocol,
    TlsFiles,
    _upload_timeout_s,
    private_agent,
)
from hurricane.agents.errors import AgentError, BadRequest, Unreachable
from hurricane.agents.machine import read_device
from hurricane.agents.server import Security, split_address

from .agents_support import process_gone, wait_until
from .certificates import make_certificates

pytestmark = pytest.mark.process

DEADLINE_S = 30.0
ROOM = Path(hurricane.agents.__file__).parent
BACKEND = Path(__file__).with_name("agents_faulty_backend.py")
TARGET = "dsp-faulty-fp32"
AGENT = [sys.executable, "-m", "hurricane.agents.cli"]
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def board_without_runtimes(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Agents find the test backend, and no runtime installed (which also starts them faster)."""
    monkeypatch.setenv("HURRICANE_BACKENDS", str(BACKEND))
    folder = tmp_path_factory.mktemp("no-runtimes")
    for name in ("onnxruntime", "openvino"):
        program = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        (folder / f"{name}.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def agent_command(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENT, *args],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, **environment},
        check=False,
    )


@contextmanager
def served(*args: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`agent serve` on a free port; yields its address and process."""
    process = subprocess.Popen(
        [*AGENT, "serve", "--listen", "127.0.0.1:0", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("agent on "), process.communicate(timeout=DEADLINE_S)
        yield line.split()[2].rstrip(":"), process
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def errors_of(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("Error: ")]


def test_importing_the_agent_imports_no_host_package() -> None:
    modules = [
        "hurricane.agents." + ".".join(path.relative_to(ROOM).with_suffix("").parts)
        for path in sorted(ROOM.rglob("*.py"))
        if path.name != "__init__.py" and path.name != "agent_pb2_grpc.py"
    ]
    assert "hurricane.agents.server" in modules
    assert "hurricane.agents.backends.onnxruntime_cpu" in modules
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'pandas', 'onnx', 'rich', 'onnxruntime', 'openvino'}\n"
        "ours = ('hurricane.ops', 'hurricane.lookup_tables', 'hurricane.profiler',"
        " 'hurricane.search')\n"
        "print(sorted(heavy & set(sys.modules)),"
        " sorted(name for name in sys.modules if name.startswith(ours)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    ours = ["", ".atomic", ".cached_files", ".errors", ".socs"]
    assert result.stdout.strip() == f"[] {[f'hurricane.ops{name}' for name in ours]}"


@pytest.mark.parametrize(
    "path",
    [*sorted(ROOM.rglob("*.py")), ROOM.parent / "ops" / "errors.py"],
    ids=lambda path: str(path.relative_to(ROOM.parent)),
)
def test_the_agent_is_written_for_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))


def test_info_describes_this_machine_without_a_server() -> None:
    result = agent_command("info", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    info = json.loads(result.stdout)
    assert info["device"]["cores"] == os.cpu_count()
    targets = {target["name"]: target for target in info["targets"]}
    assert targets[TARGET]["availability"] == "simulated"
    assert targets["vpu-faulty-fp32"]["reason"] == "no stick; plug one in"
    for runtime in ("onnxruntime", "openvino"):
        target = targets[f"cpu-{runtime}-fp32"]
        assert target["availability"] == "unavailable"
        assert f"pip install 'hurricane-nas[{runtime}]'" in target["reason"]


def test_info_lists_what_is_measured_first_and_what_is_not_there_last() -> None:
    states = ("UNAVAILABLE", "SIMULATED", "ESTIMATED", "COMPILED", "EMULATED", "AVAILABLE")
    targets = [
        TargetInfo(
            name=f"cpu-{state.lower()}-fp32",
            device="d",
            processor="cpu",
            runtime="r",
            runtime_version="1",
            precision="fp32",
            availability=Availability[state],
            reason="not here" if state == "UNAVAILABLE" else "",
            defaults=("mode=slow",),
        )
        for state in states
    ]
    text = agent_cli._info_text("1", read_device("board"), tuple(targets), None, None)
    lines = text.splitlines()
    listed = [line.split() for line in lines if line.startswith("cpu-")]
    order = ["available", "emulated", "compiled", "estimated", "simulated", "unavailable"]
    assert [words[1] for words in listed] == order
    assert all(words[-1] == "mode=slow" for words in listed[:-1])
    assert listed[-1][2:] == ["not", "here"]


def test_info_asks_an_agent_and_prints_a_line_for_each_target() -> None:
    with served("--device-name", "my board") as (address, _):
        text = agent_command("info", address).stdout
        data = json.loads(agent_command("info", address, "--json").stdout)
    assert text.startswith("my board: ")
    assert "vpu-faulty-fp32" in text
    assert "plug one in" in text
    assert data["address"] == address
    assert data["max_resident_bytes"] > 0


def test_a_backend_that_dies_when_asked_is_shown_and_costs_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "doomed.py"
    broken.write_text("import os\nos.kill(os.getpid(), 11)\n")
    result = agent_command("info", "--json", HURRICANE_BACKENDS=f"{broken}:{BACKEND}")
    targets = {target["name"]: target for target in json.loads(result.stdout)["targets"]}
    assert targets["doomed"]["availability"] == "unavailable"
    assert "SIGSEGV" in targets["doomed"]["reason"]
    assert targets[TARGET]["availability"] == "simulated"


def test_a_backend_whose_threads_would_stay_outside_is_not_used(tmp_path: Path) -> None:
    backend = tmp_path / "early.py"
    backend.write_text(
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def targets(context): raise AssertionError\n"
        "def open_target(*given): raise AssertionError\n"
    )
    result = agent_command("info", "--json", HURRICANE_BACKENDS=str(backend))
    (early,) = (t for t in json.loads(result.stdout)["targets"] if t["name"] == "early")
    assert early["availability"] == "unavailable"
    assert "threads run before the sandbox" in early["reason"]


def test_a_backend_that_the_sandbox_stops_is_told_what_to_ask_for(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    backend = tmp_path / "mine.py"
    backend.write_text(
        "from pathlib import Path\n"
        "def targets(context): return Path(__file__).with_name('settings.json').read_text()\n"
        "def open_target(*given): pass\n"
    )
    result = agent_command("info", "--json", HURRICANE_BACKENDS=str(backend))
    (mine,) = (t for t in json.loads(result.stdout)["targets"] if t["name"] == "mine")
    if "landlock" in str(json.loads(result.stdout)["isolation"]["means"]):
        assert "NEEDS" in mine["reason"]


def test_a_port_in_use_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = agent_command("serve", "--listen", f"127.0.0.1:{port}")
    assert result.returncode == 1
    (line,) = errors_of(result)
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line
    assert "--listen" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:0"], "--insecure"),
        (["--tls-cert", "/nonexistent/c", "--tls-key", "/nonexistent/k"], "/nonexistent/"),
        (["--token-file", "/nonexistent/token"], "/nonexistent/token"),
        (["--token-file", "/dev/null"], "no token"),
        (["--simulate", "abacus"], "abacus"),
        (["--pace", "brisk"], "brisk"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: list[str], words: str) -> None:
    result = agent_command("serve", "--listen", "127.0.0.1:0", *arguments)
    assert result.returncode == 2
    (line,) = errors_of(result)
    assert words in line


def test_a_device_file_may_be_simulated_by_its_path(tmp_path: Path) -> None:
    shipped = ROOM / "devices" / "myriadx-vpu.toml"
    mine = tmp_path / "my-stick.toml"
    mine.write_text(shipped.read_text())
    with served("--simulate", str(mine)) as (address, _), AgentClient(address) as agent:
        assert agent.describe().target("sim-my-stick").processor == "vpu"
    result = agent_command("info", "--simulate", str(mine), "--json")
    assert result.returncode == 0
    assert "sim-my-stick" in {target["name"] for target in json.loads(result.stdout)["targets"]}
    missing = agent_command("info", "--simulate", str(tmp_path / "no-stick.toml"))
    assert missing.returncode == 2
    (line,) = errors_of(missing)
    assert "no-stick" in line


def test_info_of_another_machine_cannot_simulate() -> None:
    result = agent_command("info", "127.0.0.1:1", "--simulate", "myriadx-vpu")
    assert result.returncode == 2
    (line,) = errors_of(result)
    assert "--simulate is for this machine" in line


def test_an_upload_gets_time_by_its_size() -> None:
    assert _upload_timeout_s(0) == 120
    assert _upload_timeout_s(1 << 30) == 120 + 512


@pytest.mark.parametrize(
    "address",
    ["nonsense", "127.0.0.1:99999", ":50051", "host:", "host:x", "::1:50051", "a b:1", "[::1:1"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadRequest, match="HOST:PORT"):
        split_address(address)


def test_an_address_may_be_of_either_internet_protocol() -> None:
    assert split_address("127.0.0.1:50051") == ("127.0.0.1", 50051)
    assert split_address("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize(
    ("security", "host", "words"),
    [
        (Security(), "::", "--token-file"),
        (Security(token=TOKEN), "0.0.0.0", "without TLS.*--insecure"),
        (Security(), "192.168.1.7", "--insecure"),
        (Security(), "board.local", "--insecure"),
        (Security(tls_cert=Path("c")), "127.0.0.1", "--tls-key"),
        (Security(tls_client_ca=Path("c")), "127.0.0.1", "--tls-cert"),
    ],
)
def test_a_machine_is_not_opened_by_accident(security: Security, host: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        security.check(host)


@pytest.mark.parametrize(
    ("security", "host"),
    [
        (Security(), "localhost"),
        (Security(), "127.8.8.8"),
        (Security(), "::1"),
        (Security(token=TOKEN), "127.0.0.1"),
        (Security(token=TOKEN, insecure=True), "0.0.0.0"),
        (Security(tls_cert=Path("c"), tls_key=Path("k")), "0.0.0.0"),
        (Security(insecure=True), "0.0.0.0"),
    ],
)
def test_loopback_or_a_guard_is_enough(security: Security, host: str) -> None:
    security.check(host)


@pytest.mark.parametrize(
    ("security", "host", "words"),
    [
        (Security(token=TOKEN, insecure=True), "0.0.0.0", "plain text"),
        (Security(insecure=True), "board", "anyone"),
        (Security(tls_cert=Path("c"), tls_key=Path("k")), "0.0.0.0", "--token-file"),
        (Security("", Path("c"), Path("k"), Path("a")), "0.0.0.0", ""),
        (Security(TOKEN, Path("c"), Path("k")), "0.0.0.0", ""),
        (Security(), "127.0.0.1", ""),
        (Security(token=TOKEN, insecure=True), "::1", ""),
    ],
)
def test_whoever_opens_a_machine_is_warned(security: Security, host: str, words: str) -> None:
    assert words in security.warning(host)
    assert bool(security.warning(host)) == bool(words)


def test_an_agent_with_a_token_serves_off_loopback_where_it_is_told_to(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    listen = ("--listen", "0.0.0.0:0", "--token-file", str(token_file))
    refused = agent_command("serve", *listen)
    assert refused.returncode == 2
    assert "--insecure" in errors_of(refused)[0]
    assert "Warning" not in refused.stderr
    with served(*listen, "--insecure") as (address, _):
        loopback = address.replace("0.0.0.0", "127.0.0.1")
        with AgentClient(loopback, token=TOKEN) as agent:
            assert agent.describe().targets


def test_info_with_an_unreachable_agent_says_what_to_do() -> None:
    result = agent_command("info", "127.0.0.1:1")
    assert result.returncode == 1
    (line,) = errors_of(result)
    assert "no agent answers at 127.0.0.1:1" in line
    assert "agent serve" in line


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in agent_command("info", "127.0.0.1:1", "--debug").stderr
    assert "Traceback" in agent_command("info", "127.0.0.1:1", HURRICANE_DEBUG="1").stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_the_agent_in_good_order(number: int, status: int, tmp_path: Path) -> None:
    with served() as (address, process), AgentClient(address) as agent:
        pid_file = tmp_path / "pid"
        digest = agent.upload(b"{}")
        keep = Protocol(rounds=1, calls_per_visit=1, keep_loaded=True)
        agent.benchmark([digest], TARGET, options={"pid_file": str(pid_file)}, protocol=keep)
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == status
        assert process_gone(int(pid_file.read_text()))


def test_kill_9_of_the_agent_leaves_no_child(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with served() as (address, process), AgentClient(address) as agent:
        content = json.dumps({"gate": str(tmp_path / "never")}).encode()
        events = agent.benchmark_events(
            [agent.upload(content)], TARGET, options={"pid_file": str(pid_file)}
        )
        next(events)
        process.kill()
        with pytest.raises(Unreachable):
            list(events)
        wait_until(lambda: process_gone(int(pid_file.read_text())), DEADLINE_S)


def test_a_kept_store_holds_artefacts_over_a_restart(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with served("--store", str(store)) as (address, _), AgentClient(address) as agent:
        digest = agent.upload(b'{"ms": 2}')
        second = agent_command("serve", "--listen", "127.0.0.1:0", "--store", str(store))
        assert second.returncode == 2
        assert "in use by another agent" in errors_of(second)[0]
    with served("--store", str(store)) as (address, _), AgentClient(address) as agent:
        assert agent.missing([digest]) == []


def test_a_private_agent_serves_and_leaves_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with private_agent(device_name="here", store=store) as agent:
        description = agent.describe()
        assert description.device.name == "here"
        digest = agent.upload(b'{"ms": 2}')
        result = agent.benchmark([digest], TARGET)[digest]
        assert result.wall is not None
        assert result.wall.median_ms == 2.0
        # Another user of this machine does not have its token.
        with AgentClient(agent.address) as stranger, pytest.raises(AgentError, match="token"):
            stranger.describe()
        address = agent.address
    with AgentClient(address) as gone, pytest.raises(Unreachable):
        gone.describe()


def test_a_private_agent_that_cannot_start_says_why() -> None:
    with pytest.raises(AgentError, match="abacus"), private_agent(simulate=["abacus"]):
        pass


def test_a_private_agent_ends_with_its_owner_even_by_kill_9(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from hurricane.agents.client import private_agent\n"
        "with private_agent() as agent:\n"
        "    print(agent.address, flush=True)\n"
        "    time.sleep(3600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    address = owner.stdout.readline().strip()
    owner.kill()
    owner.communicate(timeout=DEADLINE_S)
    host, _, port = address.rpartition(":")

    def refused() -> bool:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return True
        return False

    wait_until(refused, DEADLINE_S)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, and certificates of it for the agent and a caller."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


def test_tls_lets_in_who_trusts_the_agent(certificates: Path) -> None:
    arguments = [
        *("--tls-cert", str(certificates / "agent.pem")),
        *("--tls-key", str(certificates / "agent.key")),
    ]
    with served(*arguments) as (address, _):
        with AgentClient(address, tls=TlsFiles(ca=certificates / "ca.pem")) as agent:
            assert agent.describe().targets
        stranger = TlsFiles(ca=certificates / "stranger-ca.pem")
        with AgentClient(address, tls=stranger) as agent, pytest.raises(Unreachable, match="TLS"):
            agent.describe()
        with AgentClient(address) as agent, pytest.raises(Unreachable):
            agent.describe()
        result = agent_command("info", address, "--tls-ca", str(certificates / "ca.pem"))
        assert result.returncode == 0


def test_tls_with_a_client_authority_wants_the_callers_certificate(certificates: Path) -> None:
    arguments = [
        *("--tls-cert", str(certificates / "agent.pem")),
        *("--tls-key", str(certificates / "agent.key")),
        *("--tls-client-ca", str(certificates / "ca.pem")),
    ]
    own = TlsFiles(*(certificates / name for name in ("ca.pem", "caller.pem", "caller.key")))
    with served(*arguments) as (address, _):
        with AgentClient(address, tls=own) as agent:
            assert agent.describe().targets
        nameless = TlsFiles(ca=certificates / "ca.pem")
        with AgentClient(address, tls=nameless) as agent, pytest.raises(Unreachable):
            agent.describe()


# The console helpers that all our commands share.


def status_of(command: click.Command, *args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        console.run_command(command, "prog", args)
    return int(ended.value.code or 0)


def failing_with(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (AgentError("it broke; mend it"), 1, "Error: it broke; mend it"),
        (BadRequest("not like this"), 2, "Error: not like this"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.UsageError("no such thing"), 2, "no such thing"),
        (ZeroDivisionError("by zero"), 1, "internal error: ZeroDivisionError: by zero"),
        (ModuleNotFoundError("no torch", name="torch"), 1, "hurricane-nas[host]"),
        (ModuleNotFoundError("no sklearn", name="sklearn.svm"), 1, "hurricane-nas[search]"),
        (ModuleNotFoundError("no x", name="hurricane.x"), 1, "internal error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exceptions_become_words_and_exit_statuses(
    error: BaseException, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(failing_with(error)) == status
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_debug_may_stand_anywhere_and_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    command = failing_with(AgentError("it broke"))
    assert status_of(command, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
    assert status_of(command, "--help") == 0
    assert "--debug" in capsys.readouterr().out


def test_an_old_python_runs_the_boards_command_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def command() -> None:
        click.echo("done")

    monkeypatch.setattr(console.sys, "version_info", (3, 9, 18, "final", 0))
    for name, status in (("hurricane", 1), ("profile-ops", 1), (console.BOARD_COMMAND, 0)):
        with pytest.raises(SystemExit) as ended:
            console.run_command(command, name, [])
        assert ended.value.code == status
        captured = capsys.readouterr()
        assert captured.out == ("" if status else "done\n")
        assert captured.err == (
            "Error: host commands need Python 3.11 or newer (this is 3.9); "
            "the board needs only `agent`\n"
            if status
            else ""
        )


def test_an_int_is_the_exit_status_and_nothing_is_success() -> None:
    @click.command()
    @click.option("--status", type=int)
    def command(status: int | None) -> int | None:
        return status

    assert status_of(command) == 0
    assert status_of(command, "--status", "3") == 3


def test_a_lazy_group_imports_a_command_only_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lazy_works.py").write_text(
        "import click\n@click.command()\ndef go():\n    'Goes.'\n    click.echo('gone')\n"
    )
    (tmp_path / "lazy_lacks.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    group = console.LazyGroup(
        name="group",
        lazy={
            "works": console.LazyCommand("lazy_works:go", "It goes."),
            "lacks": console.LazyCommand("lazy_lacks:go", "It lacks."),
        },
    )
    assert status_of(group, "--help") == 0
    assert "It goes." in capsys.readouterr().out
    assert "lazy_works" not in sys.modules
    assert status_of(group, "works") == 0
    assert capsys.readouterr().out == "gone\n"
    assert status_of(group, "lacks") == 1
    message = capsys.readouterr().err
    assert "'a_package_that_is_not_there'" in message
    assert "pip install 'hurricane-nas[host]'" in message
    assert status_of(group, "absent") == 2


def test_results_are_one_line_of_json_or_words(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit({"a": 1, "b": "ü"}, True, "for people")
    assert capsys.readouterr().out == '{"a": 1, "b": "ü"}\n'
    console.emit({"a": 1}, False, "for people")
    assert capsys.readouterr().out == "for people\n"
    with pytest.raises(ValueError, match="JSON"):
        console.emit({"a": float("nan")}, True)


def test_no_progress_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar(3, "work") as bar:
        bar.update(2, "more work")
    assert capsys.readouterr() == ("", "")


def test_a_progress_bar_on_a_terminal_moves_and_never_goes_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.progress_bar(4, "work") as bar:
        bar.update(3)
        bar.update(1)
        bar.update(4, "done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "75%" in captured.err
    assert "25%" not in captured.err
    assert "100%" in captured.err


def test_threads_may_start_private_agents() -> None:
    """A child is bound to the thread that starts it unless care is taken."""
    found: list[int] = []

    def start() -> None:
        with private_agent() as agent:
            found.append(len(agent.describe().targets))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(DEADLINE_S)
    assert len(found) == 1
