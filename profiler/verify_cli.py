"""The command ``hurricane verify``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import emit, json_option
from ..ops.errors import BadRequest
from ..ops.pool import GATES
from .options import credentials, plugin_option, share_bar, target_options

if TYPE_CHECKING:
    from ..lookup_tables.table import Target

_VERIFY_HELP = """Measures whole networks and compares them with a table's sums.

Beside each error stands the networks' own retest: no prediction can be better than that.

\b
Examples:
  hurricane verify --table my-pc.csv --backbone imagenet224 --random 20 --uniform
  hurricane verify runs/NAME/architecture.json --table my-pc.csv
"""


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
