"""The command ``hurricane verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import emit, json_option
from ..ops.errors import BadRequest, HurricaneError
from ..ops.pool import GATES
from .options import credentials, plugin_option, share_bar, target_options

if TYPE_CHECKING:
    from ..lookup_tables.calibration import Calibration
    from ..lookup_tables.table import LookupTable

_VERIFY_HELP = """Times end-to-end networks and compares them with a table's sums.

Beside each error stands the noise floor, the error of the networks' own times: half the split-half
difference, that of the first half of the rounds against the second. Ten or more random networks
run the additivity check and give a calibration of the sums, which are kept beside the table;
searches heed both.

Ends with status 0 where latencies are additive, 1 where they are not, 3 where the check is
inconclusive; without random networks 0, or 1 where a network failed.

\b
Examples:
  hurricane verify --table my-pc.csv --backbone imagenet224 --random 20 --uniform
  hurricane verify runs/NAME/architecture.json --table my-pc.csv
"""


@click.command("verify", help=_VERIFY_HELP)
@click.argument("architectures", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--table", "table_name", required=True, help="Lookup table: a path, or a shipped table's name."
)
@click.option("--target", metavar="NAME[-tN]", help="One of the table's targets [the only one].")
@click.option(
    "--backbone",
    "backbone_name",
    help="Name or TOML file [that of the architectures or the table].",
)
@click.option(
    "--random",
    "random_count",
    type=click.IntRange(0, 1000),
    default=0,
    help="Number of random networks, spread evenly over latency.",
)
@click.option("--uniform", is_flag=True, help="Add networks with one operator in all layers.")
@click.option(
    "--store/--no-store",
    "--calibrate",
    "store",
    default=None,
    help="Keep check and calibration beside the table, or only print them; --store also keeps "
    "a calibration of 3 to 9 networks [kept with 10 or more].",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=4),
    default=24,
    show_default=True,
    help="Rounds over the networks.",
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
    store: bool | None,
    agents: tuple[str, ...],
    runtime_options: tuple[str, ...],
    token_file: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    insecure: bool,
    rounds: int,
    seed: int,
    plugins: tuple[str, ...],
    as_json: bool,
) -> int:
    from ..lookup_tables.model import LatencyModel, guess_backbone
    from ..lookup_tables.shipped import open_table, shipped_tables
    from ..lookup_tables.table import parse_options
    from ..lookup_tables.verdict import MIN_RANDOM
    from ..ops.backbone import load_backbone
    from .accuracy import MIN_CALIBRATION
    from .draws import random_networks
    from .draws import uniform_networks as all_uniform
    from .networks import WholeNetwork
    from .protocol import TimingProtocol
    from .session import TargetSession, connect
    from .target import TargetRequest, gate_of, parse_target, without_gate
    from .verification import verify_table

    if store and random_count < MIN_CALIBRATION:
        raise BadRequest(
            f"--store needs --random {MIN_CALIBRATION} or more; the additivity check {MIN_RANDOM}"
        )
    table = open_table(table_name)
    shipped = table_name in shipped_tables()
    if store and shipped:
        raise BadRequest(
            f"--store writes beside the table, and {table_name} is a shipped one; "
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
    gate, known_options = gate_of(wanted), parse_options(without_gate(wanted).options)
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
    keys = credentials(agents, token_file, tls_ca, tls_cert, tls_key, insecure)
    with connect(agents, request, **keys) as clients, share_bar("verify") as note:
        session = TargetSession.open(clients[0], request)
        if store and session.target != without_gate(wanted):
            raise BadRequest(
                f"the table is of {wanted}, the agent has {session.target}; "
                "a calibration needs the same: name its agent with --agent"
            )
        found = verify_table(
            session,
            model,
            networks,
            TimingProtocol(network_rounds=rounds, seed=seed),
            on_progress=note,
        )
    check = found.check
    text, kept = [found.text()], None
    if found.same_target and check is not None:
        calibration = found.calibration(table)
        path = None if shipped else table.path
        kept, told = _keep(calibration, path, table, store)
        text += [f"calibration: {calibration.text()}", found.check_text(), told]
    else:
        text.append(found.check_text())
    result = {**found.to_dict(table_name), "stored": None if kept is None else str(kept)}
    emit(result, as_json, "\n".join(text))
    if check is not None:
        return check.exit_status
    return 1 if any(c.error for c in found.networks) else 0


def _keep(
    calibration: Calibration, path: Path | None, table: LookupTable, store: bool | None
) -> tuple[Path | None, str]:
    """Keeps what was found beside the table, unless less is known by it than by what is there.

    Args:
        calibration: what was found, with its additivity check.
        path: of the table; None: it is a shipped one.
        table: for the digest of its rows.
        store: as asked for; None: where there were networks enough.

    Returns:
        The file that was written, or None, and a line about it.

    Raises:
        HurricaneError: it is to be kept, and there is neither an answer nor a calibration.
    """
    from ..lookup_tables.calibration import find_calibration, save_calibration
    from ..lookup_tables.verdict import Cause, Verdict

    few = calibration.check is not None and calibration.check.cause is Cause.TOO_FEW
    if store is False:
        return None, "not kept, as asked"
    if path is None:
        return None, "not kept: the table is a shipped one"
    if store is None and few:
        return None, "not kept: too few networks (--store keeps the calibration)"
    if few and not calibration.networks:
        raise HurricaneError(
            "no calibration fits the few random networks that could be timed; "
            "profile the table again on a quiet device"
        )
    if store is None and calibration.verdict is Verdict.INCONCLUSIVE:
        known = find_calibration(path, calibration.target, calibration.backbone)
        earlier = known.verdict if known is not None and known.fits(table) else None
        if earlier not in (None, Verdict.INCONCLUSIVE):
            return None, f"not kept: an earlier check stays, {earlier.words}"
    return (kept := save_calibration(path, calibration)), f"kept in {kept}"


def _read_architectures(paths: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Backbone and network of each architecture file."""
    if not paths:
        return []
    from ..lookup_tables.architecture import Architecture
    from .networks import WholeNetwork

    found = []
    for path in paths:
        a = Architecture.load(path)
        found.append((a.backbone, WholeNetwork("given", path, tuple(a.operators), a.gate)))
    return found
