"""What lies about where a command is started, and who else uses the machine, changes nothing."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

import hurricane.agents
from hurricane.agents.client import AgentClient, Protocol, private_agent

from .agents_hostile_backend import TARGET
from .agents_support import DEADLINE_S, serving

pytestmark = pytest.mark.process

BACKEND = Path(__file__).with_name("agents_hostile_backend.py")
COMMANDS = Path(sysconfig.get_path("scripts"))
MODULES = ("onnxruntime", "openvino", "numpy", "random", "grpc", "json", "onnx", "hurricane")
ONCE = Protocol(rounds=1, calls_per_visit=1, warmup_calls=1)
NOBODY = "nobody"


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder with files that are called like modules, and leave a mark when they are run."""
    folder = tmp_path / "trap"
    folder.mkdir()
    mark = tmp_path / "mark"
    for name in MODULES:
        program = f"open({str(mark)!r}, 'a').write({name!r})\n__version__ = '666'\n"
        (folder / f"{name}.py").write_text(program)
    return folder


def test_files_called_like_modules_are_not_run(trap: Path, tmp_path: Path) -> None:
    info = subprocess.run(
        [COMMANDS / "agent", "info", "--json"],
        cwd=trap,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    versions = {t["name"]: t["runtime_version"] for t in json.loads(info.stdout)["targets"]}
    assert "666" not in versions.values()
    assert {"cpu-onnxruntime-fp32", "cpu-openvino-fp32"} <= set(versions)
    with (
        serving(cwd=trap, command=(str(COMMANDS / "agent"),)) as agent,
        AgentClient(agent.address) as client,
    ):
        assert {t.name: t.runtime_version for t in client.describe().targets} == versions
    table = tmp_path / "table.csv"
    options = ("--layers", "digits32:0", "--operators", "SEP_3", "--rounds", "3")
    for target in ("cpu-onnxruntime-fp32", "sim-hexagon685-dsp"):  # by a private agent
        done = subprocess.run(
            [COMMANDS / "profile-ops", *options, "--target", target, "-o", table],
            cwd=trap,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mark").exists()


def test_a_notebook_in_a_folder_with_such_files_starts_a_clean_agent(
    trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where Python itself searches the current folder, as in a notebook or with python -m.
    monkeypatch.chdir(trap)
    monkeypatch.setattr(sys, "path", ["", str(trap), *sys.path])
    with private_agent() as client:
        assert "666" not in {target.runtime_version for target in client.describe().targets}
    assert not (tmp_path / "mark").exists()


def test_a_backend_of_the_operator_is_found_from_any_folder(trap: Path) -> None:
    with (
        serving(cwd=trap, environment={"HURRICANE_BACKENDS": str(BACKEND)}) as agent,
        AgentClient(agent.address) as client,
    ):
        assert client.describe().target(TARGET)


# --- another user on the same machine -------------------------------------------------------


@pytest.fixture(scope="module")
def for_everybody(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """A command `agent` that every user of this machine can run, and its environment."""
    if os.getuid() != 0:
        pytest.skip("only root can be two users")
    base = Path(tmp_path_factory.mktemp("everybody"))
    for folder in (base, *base.parents):
        if folder.stat().st_uid == 0 and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    # An installation that is not editable, beside the libraries of this one.
    rooms = base / "lib" / "hurricane"
    for package in hurricane.agents.__path__:
        shutil.copytree(package, rooms / "agents", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(BACKEND, base / "backend.py")
    version = "{}.{}".format(*sys.version_info)
    site = sysconfig.get_path("purelib")
    environment = {"PYTHONPATH": f"{base / 'lib'}:{site}", "HOME": "/nonexistent"}
    for python in (sys.executable, f"/usr/bin/python{version}", "/usr/bin/python3"):
        command = [python, "-c", "from hurricane.agents.cli import main; main()"]
        try:
            tried = subprocess.run(
                [*command, "--version"],
                user=NOBODY,
                group=pwd.getpwnam(NOBODY).pw_gid,
                env=environment,
                cwd="/",
                capture_output=True,
                timeout=DEADLINE_S,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if tried.returncode == 0:
            shared = base / "tmp"
            shared.mkdir()
            shared.chmod(0o1777)
            backends = {"HURRICANE_BACKENDS": str(base / "backend.py"), "TMPDIR": str(shared)}
            return command, {**environment, **backends}
    pytest.skip("no Python of this version that another user can run")
    raise AssertionError


def measured(address: str) -> None:
    with AgentClient(address) as client:
        client.describe()
        digest = client.upload(b'{"name": "nothing"}')
        assert client.benchmark([digest], TARGET, protocol=ONCE)[digest].error is None


def test_two_users_share_a_temporary_folder(
    for_everybody: tuple[list[str], Mapping[str, str]],
) -> None:
    command, environment = for_everybody
    shared = Path(environment["TMPDIR"])
    nobody = pwd.getpwnam(NOBODY)
    # Left over by either of them, and closed to the other.
    for owner in (0, nobody.pw_uid):
        for name in ("hurricane-agent-private", "hurricane-worker-1-private"):
            folder = shared / f"{name}-{owner}"
            folder.mkdir(mode=0o700)
            os.chown(folder, owner, owner)
    as_nobody = {"user": NOBODY, "group": nobody.pw_gid, "extra_groups": []}
    plain = {"command": tuple(command), "environment": environment, "cwd": "/"}
    with serving(**plain) as first, serving(**plain, **as_nobody) as second:  # type: ignore[arg-type]
        for agent in (first, second):
            measured(agent.address)
    info = subprocess.run(
        [*command, "info", "--json"],
        env=dict(environment),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        **as_nobody,  # type: ignore[call-overload]
    )
    assert info.returncode == 0, info.stderr
    assert TARGET in info.stdout
    assert len(list(shared.glob("*-private-*"))) == 4


def test_an_installation_for_one_user_is_found(
    for_everybody: tuple[list[str], Mapping[str, str]], tmp_path: Path
) -> None:
    command, environment = for_everybody
    # As pip install --user --editable leaves it: a folder that is found by a .pth file alone.
    version = "{}.{}".format(*sys.version_info)
    folder = tmp_path / "lib" / f"python{version}" / "site-packages"
    folder.mkdir(parents=True)
    library = environment["PYTHONPATH"].partition(":")[0]
    hook = f"import sys; sys.path.append({library!r}) if {library!r} not in sys.path else None"
    (folder / "ours.pth").write_text(f"{hook}\n{sysconfig.get_path('purelib')}\n")
    personal = {"PYTHONUSERBASE": str(tmp_path), "PYTHONPATH": ""}
    for cwd in ("/", library):
        info = subprocess.run(
            [*command, "info", "--json"],
            env={**environment, **personal},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert info.returncode == 0, info.stderr
        assert {t["availability"] for t in json.loads(info.stdout)["targets"]} >= {"simulated"}


def test_graphs_run_as_another_user(for_everybody: tuple[list[str], Mapping[str, str]]) -> None:
    command, environment = for_everybody
    account = pwd.getpwnam(NOBODY)
    with (
        serving(
            "--user", NOBODY, command=tuple(command), environment=environment, cwd="/"
        ) as agent,
        AgentClient(agent.address) as client,
    ):
        digest = client.upload(b'{"name": "who"}')
        said = client.run(digest, TARGET, {})["said"].tobytes().decode()
        assert said == f"{account.pw_uid} {account.pw_gid} [{account.pw_gid}]"
        (worker,) = agent.workers()
        assert os.stat(f"/proc/{worker}").st_uid == account.pw_uid
        measured(agent.address)


@pytest.mark.parametrize(
    ("user", "words"), [("no-such-user", "no user 'no-such-user'"), (NOBODY, "cannot read")]
)
def test_a_user_that_cannot_be_is_refused(user: str, words: str) -> None:
    if os.getuid() != 0:
        words = "started as root"
    elif user == NOBODY:
        try:
            subprocess.run([sys.executable, "-c", ""], user=NOBODY, check=True)
            pytest.skip("every user can run this Python")
        except OSError:
            pass
    done = subprocess.run(
        [COMMANDS / "agent", "serve", "--listen", "127.0.0.1:0", "--user", user],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
