"""The commands ``profile-ops`` and ``hurricane verify``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import emit, json_option, progress_bar, run_command
from ..ops.errors import BadRequest
from ..ops.pool import GATES, PLUGIN_VARIABLE, select_operators

if TYPE_CHECKING:
    from ..agents.client import TlsFiles
    from ..lookup_tables.table import Target

_PROGRESS_STEPS = 1000

_PROFILE_HELP = """Measures every operator at every layer shape into a lookup table.

Without --agent, a private agent on this machine is used. Rows that the table holds are kept;
an interrupted run goes on where it was.

\b
Examples:
  profile-ops --layers imagenet224 --target cpu-onnxruntime-fp32 -o my-pc.csv
  profile-ops --layers imagenet224 --target cpu-openvino-fp32 --agent board:50051 -o board.csv
  profile-ops --layers imagenet224:0-7,12 --operators 'MB_*,Choice_3' \\
      --target sim-hexagon685-dsp -o part.csv
"""

_VERIFY_HELP = """Measures whole networks and compares them with a table's sums.

Beside each error stands the networks' own retest: no prediction can be better than that.

\b
Examples:
  hurricane verify --table my-pc.csv --backbone imagenet224 --random 20 --uniform
  hurricane verify runs/NAME/architecture.json --table my-pc.csv
"""


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that measures: agents, credentials, runtime options."""
    options = [
        click.option(
            "--agent",
            "agents",
            multiple=True,
            metavar="HOST:PORT",
            help="An agent to measure on [a private one on this machine]; profile-ops shares work "
            "out to several.",
        ),
        click.option(
            "--option",
            "runtime_options",
            multiple=True,
            metavar="KEY=VALUE",
            help="An option of the target's runtime (repeatable).",
        ),
        click.option("--token-file", type=click.Path(dir_okay=False), help="The agents' token."),
        click.option("--tls-ca", type=click.Path(dir_okay=False), help="Turns TLS on."),
        click.option("--tls-cert", type=click.Path(dir_okay=False), help="Your certificate."),
        click.option("--tls-key", type=click.Path(dir_okay=False), help="Its key."),
        click.option(
            "--rounds",
            type=click.IntRange(min=4),
            default=24,
            show_default=True,
            help="Passes over each batch; more of them narrow the intervals.",
        ),
        click.option("--seed", default=0, show_default=True, help="Of orders and draws."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    callback=lambda ctx, param, value: use_plugins(value),
    help="A Python file that registers operators of your own (repeatable).",
)


def use_plugins(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Makes users' operator files known to this process and its children."""
    if paths:
        there = os.environ.get(PLUGIN_VARIABLE, "")
        every = [*filter(None, there.split(os.pathsep)), *(str(Path(p).resolve()) for p in paths)]
        os.environ[PLUGIN_VARIABLE] = os.pathsep.join(dict.fromkeys(every))
    return paths


def credentials(
    token_file: str | None, tls_ca: str | None, tls_cert: str | None, tls_key: str | None
) -> dict[str, Any]:
    """Keyword arguments of `AgentClient` from a command's options."""
    from ..agents.client import TlsFiles

    token = None
    if token_file:
        try:
            lines = Path(token_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"--token-file {token_file} cannot be read: {error}") from error
        if not lines or not lines[0].strip():
            raise BadRequest(f"{token_file} is empty; its first line is the agent's token")
        token = lines[0].strip()
    tls: TlsFiles | None = None
    if tls_ca or tls_cert:
        tls = TlsFiles(*(Path(p) if p else None for p in (tls_ca, tls_cert, tls_key)))
    return {"token": token, "tls": tls}


@contextmanager
def share_bar(label: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar that takes (what is going on, share of the whole)."""
    with progress_bar(_PROGRESS_STEPS, label) as bar:
        yield lambda what, share: bar.update(_PROGRESS_STEPS * share, f"{label}: {what:<8}")


@click.command("profile-ops", help=_PROFILE_HELP)
@click.option(
    "--layers", required=True, metavar="BACKBONE[:0-7,12]", help="A backbone, or some layers of it."
)
@click.option("--target", required=True, metavar="NAME[-tN]", help="What to measure on.")
@click.option("--operators", metavar="PATTERNS", help="Names or patterns, with commas [all].")
@click.option("--gate", type=click.Choice(GATES), default=GATES[0], show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The table.")
@click.option("--check", is_flag=True, help="Only tell what the table lacks; status 1 if anything.")
@click.option(
    "--retry",
    is_flag=True,
    help="Measure rows again that hold no latency or were taken in a slow time.",
)
@target_options
@plugin_option
@json_option
def profile_ops(
    layers: str,
    target: str,
    operators: str | None,
    gate: str,
    output: str,
    check: bool,
    retry: bool,
    agents: tuple[str, ...],
    runtime_options: tuple[str, ...],
    token_file: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    rounds: int,
    seed: int,
    plugins: tuple[str, ...],
    as_json: bool,
) -> int:
    from ..lookup_tables.table import LookupTable
    from .measuring import Bench, MeasuringSettings, connect, parse_target
    from .plan import parse_layers, plan_rows
    from .profile import missing_rows, profile

    started = time.monotonic()
    chosen = parse_layers(layers)
    rows = plan_rows(chosen, select_operators(operators), gate)
    request = parse_target(target, (*runtime_options, *_gate_option(gate)))
    table = LookupTable.load_with_journal(output)  # a broken one is told before measuring
    keys = credentials(token_file, tls_ca, tls_cert, tls_key)
    with connect(agents, request, **keys) as clients:
        benches = [Bench.open(client, request) for client in clients]
        if check:
            lacking = missing_rows(rows, table, benches[0].target, retry)
            text = f"{output} holds {len(rows) - len(lacking)} of {len(rows)} rows" + "".join(
                f"\n  lacks {row.name} at {row.shape}" for row in lacking[:10]
            )
            emit({"rows": len(rows), "missing": len(lacking)}, as_json, text)
            return 1 if lacking else 0
        with share_bar("profile") as note:
            result = profile(
                benches,
                rows,
                output,
                MeasuringSettings(rounds=rounds, seed=seed),
                retry=retry,
                on_progress=note,
            )
    seconds = time.monotonic() - started
    summary = {
        "table": output,
        "target": result.target.name,
        "origin": result.target.origin,
        "rows": len(rows),
        "measured": result.measured,
        "kept": result.kept,
        "not_ok": dict(result.not_ok),
        "disturbed": result.disturbed,
        "lost_agents": list(result.lost),
        "seconds": round(seconds, 2),
    }
    lines = [
        f"{output}: {len(rows)} rows on {result.target}; "
        f"{result.measured} {result.target.origin} now, {result.kept} kept, in {seconds:.1f} s"
    ]
    if result.not_ok:
        words = ", ".join(f"{n} {status}" for status, n in sorted(result.not_ok.items()))
        lines.append(f"without a latency: {words} (see: hurricane table show {output})")
    if result.disturbed:
        lines.append(
            f"{result.disturbed} rows were taken in a slow time and are flagged disturbed; "
            "--retry measures them again"
        )
    lines += [f"an agent dropped out, the others did its work: {words}" for words in result.lost]
    emit(summary, as_json, "\n".join(lines))
    return 0


def _gate_option(gate: str) -> tuple[str, ...]:
    from .measuring import GATE_OPTION

    return () if gate == GATES[0] else (f"{GATE_OPTION}={gate}",)


@click.command("verify", help=_VERIFY_HELP)
@click.argument("architectures", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--table", "table_name", required=True, help="A table's path, or a shipped one's name."
)
@click.option("--target", metavar="NAME[-tN]", help="Which of the table's targets [the only one].")
@click.option("--backbone", "backbone_name", help="[that of the architectures or the table]")
@click.option(
    "--random",
    "random_count",
    type=click.IntRange(0, 1000),
    default=0,
    help="Random networks, stratified over latency.",
)
@click.option("--uniform", is_flag=True, help="Networks with one operator in all layers.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Fit a line to the random networks and keep it beside the table, for searches.",
)
@target_options
@plugin_option
@json_option
def verify(
    architectures: tuple[str, ...],
    table_name: str,
    target: str | None,
    backbone_name: str | None,
    random_count: int,
    uniform: bool,
    calibrate: bool,
    agents: tuple[str, ...],
    runtime_options: tuple[str, ...],
    token_file: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    rounds: int,
    seed: int,
    plugins: tuple[str, ...],
    as_json: bool,
) -> int:
    from ..lookup_tables.calibration import save_calibration
    from ..lookup_tables.model import LatencyModel, guess_backbone
    from ..lookup_tables.shipped import open_table
    from ..lookup_tables.table import parse_options
    from ..ops.backbone import load_backbone
    from .measuring import (
        GATE_OPTION,
        Bench,
        MeasuringSettings,
        TargetRequest,
        connect,
        parse_target,
    )
    from .networks import MIN_CALIBRATION, WholeNetwork, random_networks
    from .networks import uniform_networks as all_uniform
    from .verification import verify_table

    if calibrate and random_count < MIN_CALIBRATION:
        raise BadRequest(
            f"--calibrate needs --random {MIN_CALIBRATION} or more; 10 is a good number"
        )
    table = open_table(table_name)
    if calibrate and not Path(table_name).exists():
        raise BadRequest(
            f"--calibrate writes beside the table, and {table_name} is a shipped one; "
            f"copy {table.path} to a place of yours first"
        )
    given = _read_architectures(architectures)
    frames = {backbone for backbone, _ in given}
    if backbone_name:
        frames.add(backbone_name)
    if len(frames) > 1:
        raise BadRequest(f"these networks are of several backbones: {', '.join(sorted(frames))}")
    backbone = load_backbone(frames.pop()) if frames else guess_backbone(table)
    model = LatencyModel(table, backbone, target)
    wanted = model.target
    named = parse_target(wanted.name, runtime_options)
    known_options = parse_options(wanted.options)
    gate = known_options.pop(GATE_OPTION, GATES[0])
    request = TargetRequest(named.name, named.threads, {**known_options, **named.options})
    networks: list[WholeNetwork] = []
    if random_count:
        networks += random_networks(model, random_count, seed)
    if uniform:
        networks += all_uniform(model)
    networks += [network for _, network in given]
    if not networks:
        raise BadRequest("nothing to verify: name architecture.json files, --random N or --uniform")
    if gate != GATES[0]:
        networks = [WholeNetwork(n.group, n.label, n.operators, gate) for n in networks]
    keys = credentials(token_file, tls_ca, tls_cert, tls_key)
    with connect(agents, request, **keys) as clients, share_bar("verify") as note:
        bench = Bench.open(clients[0], request)
        same = _same_place(bench.target, wanted)
        if calibrate and not same:
            raise BadRequest(
                f"the table is of {wanted}, the agent has {bench.target}; "
                "a calibration needs the same: name its agent with --agent"
            )
        found = verify_table(
            bench,
            model,
            networks,
            MeasuringSettings(rounds=rounds, seed=seed),
            on_progress=note,
        )
    text = found.text()
    if not same:
        text += f"\nnote: the table is of another target, {wanted}"
    if calibrate:
        calibration = found.fit(table)
        path = save_calibration(table.path or table_name, calibration)
        text += (
            f"\ncalibration {calibration.scale:.4f} × sum {calibration.offset_ms:+.4f} ms, "
            f"{_left_out(calibration.rmspe)}; kept in {path}"
        )
    emit(found.to_dict(table_name), as_json, text)
    return 1 if any(c.error for c in found.networks) else 0


def _same_place(measured_on: Target, table: Target) -> bool:
    """Whether both are the same target; the gate is in the networks, not in the target."""
    from ..lookup_tables.table import format_options, parse_options
    from .measuring import GATE_OPTION

    options = parse_options(table.options)
    options.pop(GATE_OPTION, None)
    return measured_on == replace(table, options=format_options(options))


def _left_out(rmspe: float | None) -> str:
    if rmspe is None:
        return "too few networks to tell its error"
    return f"RMSPE {rmspe:.1%} on networks left out"


def _read_architectures(paths: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Backbone and network of each architecture file."""
    if not paths:
        return []
    from ..search.architecture import Architecture
    from .networks import WholeNetwork

    found = []
    for path in paths:
        a = Architecture.load(path)
        found.append((a.backbone, WholeNetwork("given", path, tuple(a.operators), a.gate)))
    return found


def main() -> None:
    """The console script ``profile-ops``."""
    run_command(profile_ops, "profile-ops")


if __name__ == "__main__":
    main()
