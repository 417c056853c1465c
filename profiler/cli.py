"""The command ``profile-ops``."""

from __future__ import annotations

import time

import click

from ..agents.console import emit, json_option, run_command
from ..ops.pool import GATES, select_operators
from .options import credentials, plugin_option, share_bar, target_options

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


def main() -> None:
    """The console script ``profile-ops``."""
    run_command(profile_ops, "profile-ops")


if __name__ == "__main__":
    main()
