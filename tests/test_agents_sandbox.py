"""A worker in the hands of whoever wrote its graph: what it reaches, and what it can tell the
agent."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hurricane.agents.client import AgentClient, Protocol
from hurricane.agents.errors import AgentError, RuntimeCrashed

from .agents_hostile_backend import TARGET
from .agents_support import AGENT, DEADLINE_S, Agent, serving

pytestmark = pytest.mark.process

BACKEND = Path(__file__).with_name("agents_hostile_backend.py")
OLD_KERNEL = Path(__file__).with_name("old_kernel.py")
TOKEN = "canary-token-canary-token"
CANARY = "canary-of-the-environment"
ONCE = Protocol(rounds=1, calls_per_visit=1, warmup_calls=1)
REFUSALS = ("Operation not permitted", "Permission denied")


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("private") / "token.txt"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture(scope="module")
def agent(token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    environment = {
        "HURRICANE_BACKENDS": str(BACKEND),
        "CANARY": CANARY,
        "https_proxy": f"http://{CANARY}@localhost",
        "PYTHONSTARTUP": CANARY,
    }
    store = tmp_path_factory.mktemp("store")
    with serving(
        "--token-file", str(token_file), "--store", str(store), environment=environment
    ) as agent:
        yield agent


@pytest.fixture
def client(agent: Agent) -> Iterator[AgentClient]:
    with AgentClient(agent.address, token=TOKEN) as client:
        client.describe()
        yield client


_salt = iter(range(10**9))


def put(client: AgentClient, name: str, **arguments: object) -> str:
    return client.upload(json.dumps({"name": name, "salt": next(_salt), **arguments}).encode())


def said(client: AgentClient, name: str, **arguments: object) -> str:
    """What came of an attempt inside the worker."""
    outputs = client.run(put(client, name, **arguments), TARGET, {})
    return outputs["said"].tobytes().decode()


def missing(client: AgentClient, means: str) -> bool:
    """Whether the agent says that this system lacks a means; the test then expects just that."""
    isolation = client.describe().isolation
    assert isolation is not None
    on = any(text.startswith(means) for text in isolation.means)
    assert on != any(text.startswith(means) for text in isolation.missing)
    return not on


def needs(client: AgentClient, means: str) -> None:
    if missing(client, means):
        pytest.skip(f"this system has no {means}, as the agent says")


@pytest.mark.parametrize(
    "name",
    ["fork", "execute", "trace", "read-memory", "signal", "lower-priority", "reschedule"],
)
def test_other_processes_are_out_of_reach(client: AgentClient, name: str) -> None:
    needs(client, "seccomp")
    assert said(client, name).removeprefix("refused: ") in REFUSALS


@pytest.mark.parametrize("command", ["F_SETOWN", "F_SETSIG"])
def test_no_file_sends_signals_to_others(client: AgentClient, command: str) -> None:
    needs(client, "seccomp")
    answer = said(client, "signal-by-file", command=command)
    assert answer.removeprefix("refused: ") in REFUSALS


def test_a_fork_bomb_has_no_child(client: AgentClient, agent: Agent) -> None:
    needs(client, "seccomp")
    assert said(client, "fork-bomb", children=1000) == "0 born, 1000 refused"
    assert len(agent.workers()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"family": "AF_INET"},
        {"family": "AF_INET6"},
        {"family": "AF_UNIX"},
        {"family": "AF_INET", "kind": "SOCK_DGRAM"},
        {"family": "AF_NETLINK", "kind": "SOCK_RAW"},
    ],
    ids=lambda value: "-".join(value.values()),
)
def test_no_socket_can_be_opened(client: AgentClient, arguments: dict[str, str]) -> None:
    needs(client, "seccomp")
    assert said(client, "socket", **arguments).removeprefix("refused: ") in REFUSALS


def test_not_even_the_agent_can_be_connected_to(client: AgentClient, agent: Agent) -> None:
    needs(client, "seccomp")
    answer = said(client, "connect", address=agent.address)
    assert answer.removeprefix("refused: ") in REFUSALS
    assert said(client, "socket-pair").removeprefix("refused: ") in REFUSALS


def test_threads_of_a_runtime_are_inside_too(client: AgentClient) -> None:
    needs(client, "seccomp")
    assert said(client, "threads").removeprefix("refused: ") in REFUSALS


@pytest.mark.parametrize("folder", ["", "/tmp", "/dev/shm", "/var/tmp"])
def test_nothing_can_be_written(client: AgentClient, folder: str) -> None:
    answer = said(client, "fill", folder=folder, size=1 << 30)
    # Where there is no Landlock, a file may be there, but nothing is in it.
    assert answer.removeprefix("refused: ") in (*REFUSALS, "File too large")
    if not missing(client, "landlock"):
        answer = said(client, "many-files", folder=folder)
        assert answer.removeprefix("refused: ") in REFUSALS


def test_no_file_in_memory_holds_anything(client: AgentClient) -> None:
    assert said(client, "fill-memory-file") == "refused: File too large"


@pytest.mark.parametrize(
    "path",
    [
        "TOKEN_FILE",
        "/etc/hostname",
        "/etc/passwd",
        "/proc/PARENT/environ",
        "/proc/PARENT/cmdline",
        "/proc/PARENT/mem",
        "/proc/1/cmdline",
    ],
)
def test_no_file_of_the_board_can_be_read(client: AgentClient, token_file: Path, path: str) -> None:
    needs(client, "landlock")
    path = path.replace("TOKEN_FILE", str(token_file))
    assert said(client, "read", path=path).removeprefix("refused: ") in REFUSALS


@pytest.mark.parametrize("path", ["/", "/tmp", "/home", "/etc", "/proc", "/proc/PARENT/fd"])
def test_no_folder_of_the_board_can_be_listed(client: AgentClient, path: str) -> None:
    needs(client, "landlock")
    assert said(client, "list", path=path).removeprefix("refused: ") in REFUSALS


def test_other_artefacts_are_out_of_reach(client: AgentClient, agent: Agent) -> None:
    needs(client, "landlock")
    command = Path(f"/proc/{agent.process.pid}/cmdline").read_text().split("\0")
    store = command[command.index("--store") + 1]
    digest = put(client, "nothing")
    assert (Path(store) / digest).is_file()
    assert said(client, "read", path=f"{store}/{digest}").removeprefix("refused: ") in REFUSALS
    assert said(client, "list", path=store).removeprefix("refused: ") in REFUSALS


def test_a_worker_is_handed_the_artefacts_of_its_request_and_no_others(client: AgentClient) -> None:
    other = put(client, "nothing")
    with pytest.raises(RuntimeCrashed, match="not in the request"):
        said(client, "steal", digest=other)
    mine = put(client, "nothing")
    stolen = client.upload(json.dumps({"name": "steal", "digest": mine}).encode())
    result = client.benchmark([mine, stolen], TARGET, protocol=ONCE)[stolen]
    assert result.error is None


def test_the_environment_tells_nothing(client: AgentClient) -> None:
    answer = said(client, "environment")
    assert "PATH=" in answer
    for secret in (CANARY, TOKEN, "PYTHON", "proxy", "HURRICANE_BACKENDS"):
        assert secret not in answer


def test_the_agents_descriptors_are_not_inherited(client: AgentClient) -> None:
    open_files = said(client, "descriptors").split("\n")
    for name, most in {
        "socket": 1,
        "pipe": 2,
        "/dev/null": 1,
        "/memfd:heartbeat (deleted)": 1,
    }.items():
        assert open_files.count(name) <= most
        open_files = [file for file in open_files if file != name]
    # What remains are facts about the machine, which the sandbox keeps in reach.
    assert [file for file in open_files if not file.startswith("/proc")] == []
    assert not any(file.endswith(("/mem", "/environ", "/fd")) for file in open_files)


def test_the_working_directory_is_its_own_and_empty(client: AgentClient) -> None:
    folder, on_path = said(client, "where").split()
    assert "hurricane-worker-" in folder
    assert list(Path(folder).iterdir()) == []
    assert on_path == "[]"


@pytest.mark.parametrize(
    ("name", "arguments"), [("chmod", {"path": "/tmp"}), ("mount", {}), ("unshare", {})]
)
def test_settings_of_the_system_stay(client: AgentClient, name: str, arguments: dict) -> None:
    needs(client, "seccomp")
    assert said(client, name, **arguments).removeprefix("refused: ") in REFUSALS


def test_limits_are_on_and_stay(client: AgentClient) -> None:
    limits = json.loads(said(client, "limits"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory <= limits["RLIMIT_AS"] <= memory + (8 << 30)
    assert limits["RLIMIT_FSIZE"] == 0
    assert 0 < limits["RLIMIT_NOFILE"] <= 1024
    assert 0 < limits["RLIMIT_CPU"] <= 24 * 3600
    assert limits["RLIMIT_NPROC"] > 0
    if not missing(client, "seccomp"):
        assert said(client, "allocate", size=100 << 30) == "refused: MemoryError"


def test_a_gigabyte_of_complaints_costs_the_agent_no_memory(
    client: AgentClient, agent: Agent
) -> None:
    assert said(client, "flood", size=1 << 30) == "done"
    assert agent.peak_bytes() < 300 << 20


def test_the_heartbeat_cannot_be_cut_short(client: AgentClient) -> None:
    assert said(client, "shrink-heartbeat") in ("refused: Operation not permitted",)


NONSENSE = [
    "zeros", "noise", "huge-header", "huge-payload", "half", "no-json", "deep-json",
    "long-number", "list", "empty", "object-array", "negative-shape", "endless-shape",
    "more-array-than-data", "less-array-than-data", "foreign-need", "path-need", "list-need",
    "foreign-result", "bad-conditions", "no-object", "two-conditions", "no-conditions",
    "endless-load", "negative-load", "many-flags",
    "two-results", "texts-for-numbers", "integers", "more-samples", "no-arrays", "negative-time",
    "no-number", "done-already", "error-of-no-kind",
]  # fmt: skip


@pytest.mark.parametrize("what", NONSENSE)
def test_whatever_a_worker_says_costs_only_what_it_worked_on(
    client: AgentClient, agent: Agent, what: str
) -> None:
    good, other = put(client, "nothing"), put(client, "nothing")
    # While it loads the second one, it answers for the first.
    bad = put(client, "say", what=what, digest=good, other=other)
    results = client.benchmark([good, bad], TARGET, protocol=ONCE)
    error = results[bad].error
    assert isinstance(error, RuntimeCrashed)
    assert "no sense" in str(error)
    if what != "two-results":  # the first of them could be right
        assert np.all(results[good].wall_ms == 1.0)
    assert agent.peak_bytes() < 300 << 20


@pytest.mark.parametrize("what", ["lost-far-away", "lost-nowhere", "error-of-many-words"])
def test_what_a_worker_says_of_itself_is_told_in_a_few_printable_words(
    client: AgentClient, what: str
) -> None:
    with pytest.raises(AgentError) as caught:
        client.benchmark([put(client, "say", what=what)], TARGET, protocol=ONCE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 3000
    assert said(client, "nothing") == "done"


def test_an_open_file_is_taken_from_no_worker(client: AgentClient) -> None:
    with pytest.raises(RuntimeCrashed, match="no sense"):
        client.run(put(client, "hand-over"), TARGET, {})
    assert said(client, "nothing") == "done"


LANDLOCK, SECCOMP = "444,445,446", "277" if platform.machine() == "aarch64" else "317"


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="other numbers of system calls"
)
@pytest.mark.parametrize(
    ("lacking", "numbers"),
    [("landlock", LANDLOCK), ("seccomp", SECCOMP), ("landlock seccomp", f"{LANDLOCK},{SECCOMP}")],
)
def test_what_a_kernel_lacks_is_told_and_the_rest_holds(lacking: str, numbers: str) -> None:
    command = (sys.executable, str(OLD_KERNEL), numbers, *AGENT)
    environment = {"HURRICANE_BACKENDS": str(BACKEND)}
    with (
        serving(command=command, environment=environment) as agent,
        AgentClient(agent.address) as client,
    ):
        for means in ("landlock", "seccomp"):
            assert missing(client, means) == (means in lacking)
        # What is open then, and what holds without.
        hostname = said(client, "read", path="/proc/1/cmdline")
        assert ("refused" in hostname) == ("landlock" not in lacking)
        assert ("refused" in said(client, "fork")) == ("seccomp" not in lacking)
        assert said(client, "fill", folder="/tmp", size=1 << 20).startswith("refused")
        assert "HURRICANE_BACKENDS" not in said(client, "environment")
    info = subprocess.run(
        [*command, "info"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=True,
        timeout=DEADLINE_S,
    ).stdout
    for means in lacking.split():
        assert f"  no {means} (Function not implemented)" in info or f"no {means} (the" in info


# What a backend asks for, and what stays closed all the same.


def tried(needs: str, code: str, *arguments: str) -> str:
    """What Python code prints in a sandbox with these needs, which are code as well."""
    code = (
        "import errno, fcntl, os, socket, sys\n"
        "from hurricane.agents.sandbox import Needs, enter\n"
        f"print(enter({needs}).missing)\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        check=True,
    )
    missing, _, found = done.stdout.partition("\n")
    if "seccomp" in missing:
        pytest.skip(f"the sandbox is not whole here: {missing}")
    return found.strip()


OPENING = """
family, protocol = getattr(socket, sys.argv[1]), int(sys.argv[2])
try:
    is_netlink = family == socket.AF_NETLINK
    kind = socket.SOCK_RAW if is_netlink or protocol else socket.SOCK_STREAM
    opened = socket.socket(family, kind, protocol)
    if is_netlink:
        opened.bind((0, 1))
    print("opened")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
DEVICE_EVENTS, ROUTES, ANY = "15", "0", "0"  # protocols


@pytest.mark.parametrize(
    ("needs", "family", "protocol", "came_of_it"),
    [
        ("Needs(netlink=True)", "AF_NETLINK", DEVICE_EVENTS, "opened"),
        ("Needs(netlink=True)", "AF_NETLINK", ROUTES, "EPERM"),
        ("Needs(netlink=True)", "AF_INET", ANY, "EPERM"),
        ("Needs(netlink=True)", "AF_INET", DEVICE_EVENTS, "EPERM"),
        ("Needs(netlink=True)", "AF_INET6", ANY, "EPERM"),
        ("Needs(netlink=True)", "AF_UNIX", ANY, "EPERM"),
        ("Needs()", "AF_NETLINK", DEVICE_EVENTS, "EPERM"),
        ("Needs(network=True)", "AF_INET", ANY, "opened"),
    ],
)
def test_news_of_devices_need_no_network(
    needs: str, family: str, protocol: str, came_of_it: str
) -> None:
    assert tried(needs, OPENING, family, protocol) == came_of_it


STARTING = """
try:
    child = os.fork()
except OSError as error:
    print("no copy:", errno.errorcode[error.errno])
    sys.exit()
if not child:
    try:
        os.execv("/bin/true", ["true"])
    except OSError as error:
        os._exit(error.errno)
print(os.waitpid(child, 0)[1] >> 8)
"""


@pytest.mark.parametrize(
    ("needs", "came_of_it"),
    [
        ("Needs()", "no copy: EPERM"),
        ("Needs(forks=True)", str(errno.EPERM)),
        ("Needs(processes=True, read=('/bin', '/usr/bin'))", "0"),
    ],
)
def test_copies_of_a_process_need_no_programs(needs: str, came_of_it: str) -> None:
    assert tried(needs, STARTING) == came_of_it


LOCKING = """
with open(sys.argv[1]) as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("went on")
    except BlockingIOError:
        print("had to wait")
"""


@pytest.mark.parametrize(("no_locks", "came_of_it"), [(True, "went on"), (False, "had to wait")])
def test_locks_may_do_nothing(tmp_path: Path, no_locks: bool, came_of_it: str) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        needs = f"Needs(write=(sys.argv[1],), no_locks={no_locks})"
        assert tried(needs, LOCKING, str(path)) == came_of_it
