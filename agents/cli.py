"""The command ``agent``: `serve` a board's runtimes, `info` about an agent, and `doctor`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import click

from ..ops.cached_files import cache_folder
from .backends.base import Availability, Context, TargetInfo
from .client import Activity, AgentClient, TlsFiles
from .commands import start_adb_server
from .console import EXIT_FAILED, EXIT_INTERRUPTED, emit, json_option, run_command
from .doctor import Finding, State, Verdict, examine, verdict_of
from .errors import BadRequest
from .machine import DeviceInfo, hide_memory, read_device
from .sandbox import Isolation
from .security import Security, read_token, split_address
from .server import AgentServer, Limits
from .supervisor import discover
from .version import agent_version

DEFAULT_LISTEN = "127.0.0.1:50051"
_PARENT_POLL_S = 1.0

_SERVE_HELP = """Serves this machine's runtimes to profile-ops and hurricane.

Listens on loopback by default; an address that the network can reach needs TLS, and should have
a token.

\b
Examples:
  agent serve
  agent serve --listen 0.0.0.0:50051 --token-file token.txt --tls-cert c.pem --tls-key k.pem
  agent serve --simulate hexagon685-dsp --simulate myriadx-vpu
"""

_INFO_HELP = """Lists the targets of an agent, or of this machine.

\b
Examples:
  agent info
  agent info board:50051 --token-file token.txt --tls-ca ca.pem
  agent info 127.0.0.1:50051 --json
"""

_DOCTOR_HELP = """Looks at this machine before its latencies are trusted.

Answers READY, DEGRADED or NOT READY, and says of each check what was found, why it matters for
latencies, and what mends it. It changes nothing. What cannot be read is unknown, and DEGRADED.

\b
Status: 0 READY or DEGRADED (with --strict: READY only), 1 otherwise.

\b
Examples:
  agent doctor
  agent doctor --strict && agent serve
  agent doctor --store /var/lib/agent --json
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(agent_version(), prog_name="agent")
def cli() -> None:
    """The part of Hurricane that runs on the board."""


def _file_option(name: str, help: str) -> Any:
    return click.option(name, type=click.Path(dir_okay=False, path_type=Path), help=help)


_simulate_option = click.option(
    "--simulate",
    multiple=True,
    metavar="NAME|FILE",
    help="Simulated device to add: a name, a device file (.toml), or 'all' shipped ones "
    "(repeatable).",
)


@cli.command(help=_SERVE_HELP)
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, metavar="HOST:PORT")
@click.option("--device-name", default="", help="Name of this device in tables [its model].")
@_simulate_option
@click.option("--seed", default=0, show_default=True, help="Seed of simulated devices.")
@click.option(
    "--pace",
    type=click.Choice(["virtual", "real"]),
    default="virtual",
    show_default=True,
    help="Simulated devices answer at once (virtual), or after the time that a board takes.",
)
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps artefacts between starts [a temporary one].",
)
@_file_option("--token-file", "File whose first line is the token that callers must send.")
@_file_option("--tls-cert", "PEM file of this agent's certificate.")
@_file_option("--tls-key", "PEM file of its key.")
@_file_option("--tls-client-ca", "PEM file of an authority whose certificate callers must have.")
@click.option("--insecure", is_flag=True, help="Listen off loopback without TLS.")
@click.option("--user", default="", help="Run graphs as this user; start the agent as root.")
@click.option(
    "--allow-read",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True, resolve_path=True),
    help="Let runtimes read this path too, such as a library outside the system's (repeatable).",
)
@click.option(
    "--adb",
    default="",
    metavar="SERIAL",
    help="Serve the DSP of a phone that adb on this machine reaches ('adb devices' lists it).",
)
@click.option("--private", is_flag=True, hidden=True)
def serve(
    listen: str,
    device_name: str,
    simulate: tuple[str, ...],
    seed: int,
    pace: str,
    store: Optional[Path],
    token_file: Optional[Path],
    tls_cert: Optional[Path],
    tls_key: Optional[Path],
    tls_client_ca: Optional[Path],
    insecure: bool,
    user: str,
    allow_read: tuple[str, ...],
    adb: str,
    private: bool,
) -> int:
    # Private: the token comes on stdin, the address goes to stdout as JSON, and the agent ends
    # with the process that started it.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    stopped = _Stopped()
    token = sys.stdin.readline().strip() if private else _token(token_file)
    if adb:
        start_adb_server()  # a worker's sandbox would end with it
    context = Context(device_name, simulate, seed, pace, user, allow_read, adb, _cache(user))
    security = Security(token, tls_cert, tls_key, tls_client_ca, insecure)
    hide_memory()
    server = AgentServer(listen, context, security, Limits(), store)
    if warning := security.warning(split_address(listen)[0]):
        click.echo(f"Warning: {warning}", err=True)
    try:
        _check_simulated(simulate, server.targets)
        server.start()
        if private:
            click.echo(json.dumps({"address": server.address}))
            _stop_with_parent(stopped)
        else:
            click.echo(f"agent on {server.address}: {_target_list(server.targets)}")
        signal_number = stopped.wait()
    finally:
        server.stop()
    return EXIT_INTERRUPTED if signal_number == signal.SIGINT else 0


@cli.command(help=_INFO_HELP)
@click.argument("address", required=False, metavar="[HOST:PORT]")
@_simulate_option
@_file_option("--token-file", "File with the agent's token.")
@_file_option("--tls-ca", "PEM file of the authority of the agent's certificate; turns TLS on.")
@_file_option("--tls-cert", "PEM file of your own certificate.")
@_file_option("--tls-key", "PEM file of its key.")
@click.option("--insecure", is_flag=True, help="Send the token off loopback without TLS.")
@json_option
def info(
    address: Optional[str],
    simulate: tuple[str, ...],
    token_file: Optional[Path],
    tls_ca: Optional[Path],
    tls_cert: Optional[Path],
    tls_key: Optional[Path],
    insecure: bool,
    as_json: bool,
) -> None:
    result: dict[str, Any]
    if address is None:
        device = read_device()
        found = discover(Context(device.name, simulate))
        targets, activity, isolation = found.targets, None, found.isolation
        _check_simulated(simulate, targets)
        version = agent_version()
        result = {"address": None, "agent_version": version}
    else:
        if simulate:
            raise click.UsageError(
                f"--simulate is for this machine: what {address} offers was settled when it was "
                "started (agent serve --simulate)"
            )
        tls = TlsFiles(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert else None
        token = _token(token_file) or None
        with AgentClient(address, token=token, tls=tls, insecure=insecure) as client:
            if client.warning:
                click.echo(f"Warning: {client.warning}", err=True)
            description = client.describe()
        device, targets = description.device, description.targets
        activity, isolation = description.activity, description.isolation
        version = description.agent_version
        result = {
            "address": address,
            "agent_version": version,
            "protocol_version": description.protocol_version,
            "max_artifact_bytes": description.max_artifact_bytes,
            "max_resident_bytes": description.max_resident_bytes,
            "activity": asdict(activity) if activity else None,
        }
    result["device"] = asdict(device)
    result["isolation"] = asdict(isolation) if isolation else None
    result["targets"] = [
        {**asdict(target), "availability": target.availability.name.lower()} for target in targets
    ]
    emit(result, as_json, _info_text(version, device, targets, activity, isolation))


@cli.command(help=_DOCTOR_HELP)
@click.option("--strict", is_flag=True, help="Status 1 for DEGRADED as well.")
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that the agent is to keep artefacts in [a temporary one].",
)
@json_option
def doctor(strict: bool, store: Optional[Path], as_json: bool) -> int:
    device = read_device()
    found = examine(lambda: discover(Context(device.name)), store)
    verdict = verdict_of(found)
    result = {
        "verdict": verdict.value,
        "agent_version": agent_version(),
        "device": asdict(device),
        "findings": [{**asdict(finding), "state": finding.state.value} for finding in found],
    }
    head = _device_lines(agent_version(), device)
    emit(result, as_json, "\n".join([*head, "", *_finding_lines(found), "", _summary(found)]))
    passed = (Verdict.READY,) if strict else (Verdict.READY, Verdict.DEGRADED)
    return 0 if verdict in passed else EXIT_FAILED


def _finding_lines(found: Sequence[Finding]) -> list[str]:
    states = max(len(finding.state.value) for finding in found)
    checks = max(len(finding.check) for finding in found)
    lines = []
    for finding in found:
        lines.append(f"{finding.state.value:<{states}}  {finding.check:<{checks}}  {finding.found}")
        for label, text in (("why", finding.why), ("do", finding.remedy)):
            if text:
                lines.append(f"{'':<{states + checks + 2}}  {label + ':':<4} {text}")
    return lines


def _summary(found: Sequence[Finding]) -> str:
    counts = [
        f"{count} {state.value}"
        for state in (State.FAILED, State.WARNING, State.UNKNOWN)
        if (count := sum(finding.state is state for finding in found))
    ]
    return f"{verdict_of(found).value}: {', '.join(counts) or 'all was read and is good'}"


# In the order of `agent info`: what can be used, from hardware to none.
_LISTED = (
    Availability.AVAILABLE,
    Availability.EMULATED,
    Availability.COMPILED,
    Availability.ESTIMATED,
    Availability.SIMULATED,
    Availability.UNAVAILABLE,
)


def _info_text(
    version: str,
    device: DeviceInfo,
    targets: tuple[TargetInfo, ...],
    activity: Optional[Activity],
    isolation: Optional[Isolation],
) -> str:
    lines = [
        *_device_lines(version, device),
        *([f"{activity}; {activity.waiting} waiting"] if activity else []),
        *_isolation_lines(isolation),
        "",
    ]
    width = max((len(target.name) for target in targets), default=0)
    for target in sorted(targets, key=lambda target: _LISTED.index(target.availability)):
        runtime = f"{target.runtime} {target.runtime_version}".strip()
        facts = target.reason or ", ".join(
            [runtime, target.device, _threads(target.max_threads), *target.defaults]
        )
        lines.append(f"{target.name:<{width}}  {target.availability.name.lower():<11}  {facts}")
    return "\n".join(lines)


def _threads(most: int) -> str:
    return "1 thread" if most == 1 else f"up to {most} threads"


def _device_lines(version: str, device: DeviceInfo) -> list[str]:
    gib = device.memory_bytes / 2**30
    return [
        f"{device.name}: {device.model}, {device.cores} cores, {gib:.1f} GiB, {device.machine}",
        f"{device.system}, Python {device.python}, agent {version}",
    ]


def _isolation_lines(isolation: Optional[Isolation]) -> list[str]:
    if isolation is None:
        return []
    means = ", ".join(isolation.means) or "none"
    return [f"sandbox: {means}", *(f"  no {text}" for text in isolation.missing)]


def _target_list(targets: tuple[TargetInfo, ...]) -> str:
    return ", ".join(f"{target.name} ({target.availability.name.lower()})" for target in targets)


def _check_simulated(simulate: tuple[str, ...], targets: tuple[TargetInfo, ...]) -> None:
    known = [target for target in targets if target.name.startswith("sim-")]
    names = {target.name for target in known}
    for given in simulate:
        name = Path(given).stem if given.endswith(".toml") else given
        if given != "all" and f"sim-{name}" not in names and name not in names:
            raise BadRequest(f"there is no simulated device '{given}'")
    broken = [target for target in known if target.availability == Availability.UNAVAILABLE]
    if broken:
        raise BadRequest(f"'{broken[0].name}' cannot be simulated: {broken[0].reason}")


def _cache(user: str) -> str:
    """A folder in which workers may keep what takes time to make; empty: there is none."""
    if user:  # who may not write there
        return ""
    try:
        folder = cache_folder().resolve() / "agent"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # such as a user without a home
        return ""
    return str(folder)


def _token(path: Optional[Path]) -> str:
    return "" if path is None else read_token(path, "--token-file")


class _Stopped:
    """Waits for SIGINT, SIGTERM or `set`.

    The interpreter writes signal numbers into a pipe. Waiting for an event that a handler sets
    would now and then miss a signal that arrives just before the wait.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: None)

    def set(self) -> None:
        os.write(self._write, b"\0")

    def wait(self) -> int:
        """The number of the signal that ended the wait, or 0."""
        return os.read(self._read, 1)[0]


def _stop_with_parent(stopped: _Stopped) -> None:
    parent = os.getppid()

    def read_to_the_end() -> None:
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.readline():
                pass
        stopped.set()

    def watch_parent() -> None:
        # Should a child of the parent hold on to the pipe, its end would never be seen.
        waiting = threading.Event()
        while os.getppid() == parent:
            waiting.wait(_PARENT_POLL_S)
        stopped.set()

    for target in (read_to_the_end, watch_parent):
        threading.Thread(target=target, daemon=True).start()


def main() -> None:
    """The console script ``agent``."""
    run_command(cli, "agent")


if __name__ == "__main__":
    main()
