"""The command ``profile-ops``."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import EXIT_INTERRUPTED, emit, json_option, run_command
from ..ops.errors import BadRequest, HurricaneError
from ..ops.pool import GATES, select_operators
from .options import (
    credentials,
    layers_option,
    operator_options,
    plugin_option,
    share_bar,
    target_options,
)
from .summary import complain_of, failure_words, lines_of, summary_of

if TYPE_CHECKING:
    from .discovery import DeviceGroup
    from .plan import PlannedRow

_PROFILE_HELP = """Measures every operator at every layer shape into a lookup table.

Without --agent, a private agent on this machine is used. Rows that the table holds are kept;
an interrupted run goes on where it was.

Agents that are of one kind (the same target on equal devices) share the work. Each kind has a
table of its own: where there are several, -o names a folder, and they are measured at the same
time.

\b
Examples:
  profile-ops --layers imagenet224 --target cpu-onnxruntime-fp32 -o my-pc.csv
  profile-ops --layers imagenet224 --target cpu-openvino-fp32 --agent board:50051 -o board.csv
  profile-ops --layers imagenet224:0-7,12 --operators 'MB_*,Choice_3' \\
      --target sim-hexagon685-dsp -o part.csv
  profile-ops --layers imagenet224 --target cpu-onnxruntime-fp32 --target cpu-openvino-fp32 \\
      --boards boards.toml -o tables/
"""


class Interrupted(HurricaneError):
    """Ctrl-C while it was measured."""

    exit_status = EXIT_INTERRUPTED


@click.command(
    "profile-ops", help=_PROFILE_HELP, context_settings={"help_option_names": ["-h", "--help"]}
)
@layers_option
@click.option(
    "--target",
    "targets",
    required=True,
    multiple=True,
    metavar="NAME[-tN]",
    help="Target, as agent info lists it, with -tN for N threads (repeatable).",
)
@operator_options
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(),
    help="Table to write; for several kinds of device a folder of tables, FOLDER/.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Measure nothing; list what the table lacks (status 1 if anything).",
)
@click.option(
    "--retry",
    is_flag=True,
    help="Measure again the rows that have no latency, are unstable, or were taken while "
    "the device was slow or throttled.",
)
@click.option(
    "--reference",
    type=click.Path(exists=True),
    metavar="TABLE",
    help="Earlier table of the same device, or a folder of tables: latencies are scaled to "
    "the speed that the device had then, so that tables of different days compare. A table that "
    "has rows already keeps their speed.",
)
@click.option(
    "--precision",
    type=click.FloatRange(0.001, 1.0),
    default=0.02,
    show_default=True,
    metavar="SHARE",
    help="Time a row until the half-width of its 95% interval is this share of its latency.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=3),
    default=60,
    show_default=True,
    help="Time a row in at most so many rounds.",
)
@click.option(
    "--time-budget",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="SECONDS",
    help="Limit for each agent; after it, rows left get half of the fewest rounds [no limit].",
)
@target_options
@plugin_option
@json_option
def profile_ops(
    layers: str,
    targets: tuple[str, ...],
    operators: str | None,
    gate: str,
    output: str,
    check: bool,
    retry: bool,
    agents: Any,
    runtime_options: tuple[str, ...],
    token_file: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    insecure: bool,
    reference: str | None,
    precision: float,
    rounds: int,
    time_budget: float | None,
    seed: int,
    plugins: tuple[str, ...],
    as_json: bool,
) -> int:
    from ..lookup_tables.journal import load_with_journal
    from .discovery import find_groups
    from .groups import fill, rows_done, table_paths
    from .plan import parse_layers, plan_rows, reference_networks
    from .protocol import TimingProtocol
    from .target import TargetRequest, parse_target

    started = time.monotonic()
    chosen = parse_layers(layers)
    rows = plan_rows(chosen, select_operators(operators), gate)
    networks = reference_networks(chosen, rows, gate)
    requests: list[TargetRequest] = []
    for name in targets:
        request = parse_target(name, (*runtime_options, *gate_option(gate)))
        if request not in requests:
            requests.append(request)
    folder = output.endswith("/") or Path(output).is_dir()
    if not folder:
        load_with_journal(output)  # a broken one shows before anything else
    keys = credentials(agents, token_file, tls_ca, tls_cert, tls_key, insecure)
    with find_groups(agents, requests, **keys) as found:
        groups = found.groups
        if len(groups) > 1 and not folder:
            raise BadRequest(
                f"these are {len(groups)} kinds of device, each with a table of its own: "
                f"{'; '.join(str(group.target) for group in groups)}\n"
                f"give a folder for them: -o {Path(output).with_suffix('')}/"
            )
        paths = table_paths(output, groups) if folder else [Path(output)]
        if check:
            status = _check(groups, paths, rows, retry, as_json)
            complain_of([], found.silent)
            return status
        if folder:
            Path(output).mkdir(parents=True, exist_ok=True)
        references = None
        if reference is not None:
            there = Path(reference)
            references = table_paths(there, groups) if there.is_dir() else [there] * len(groups)
        protocol = TimingProtocol(
            precision=precision,
            max_rounds=rounds,
            time_budget_s=time_budget or math.inf,
            seed=seed,
        )
        try:
            with share_bar("profile") as note:
                outcomes = fill(groups, paths, rows, protocol, retry, note, references, networks)
        except KeyboardInterrupt:
            done = rows_done(groups, paths, rows)
            raise Interrupted(
                f"interrupted; {done} of {len(groups) * len(rows)} rows are safe, the same command "
                "goes on from there"
            ) from None
    if len(outcomes) == 1:
        if outcomes[0].error is not None:
            raise outcomes[0].error
        # With all that came before, as whoever waits for it sees it.
        outcomes = [replace(outcomes[0], seconds=time.monotonic() - started)]
    summaries = [summary_of(outcome, len(rows), chosen.backbone) for outcome in outcomes]
    summary = summaries[0] if len(summaries) == 1 else {"tables": summaries}
    lines = [
        line
        for outcome, told in zip(outcomes, summaries, strict=True)
        for line in lines_of(outcome, told)
    ]
    lines += [f"{address} has none of these targets and took no part" for address in found.unused]
    emit(summary, as_json, "\n".join(lines))
    complain_of(outcomes, found.silent)
    return 0


def _check(
    groups: Sequence[DeviceGroup],
    paths: Sequence[Path],
    rows: Sequence[PlannedRow],
    retry: bool,
    as_json: bool,
) -> int:
    """Tells what the tables lack; the exit status."""
    from ..lookup_tables.journal import load_with_journal
    from .coverage import failed_rows, missing_rows

    found, lines = [], []
    for group, path in zip(groups, paths, strict=True):
        table = load_with_journal(path)
        lacking = missing_rows(rows, table, group.target, retry)
        # With --retry these are among those that are to be measured.
        failed = [] if retry else failed_rows(rows, table, group.target)
        found.append({"rows": len(rows), "missing": len(lacking), "failed": len(failed)})
        lines.append(f"{path} holds {len(rows) - len(lacking)} of {len(rows)} rows")
        lines += [f"  lacks {row.name} at {row.shape}" for row in lacking[:10]]
        if len(lacking) > 10:
            lines.append(f"  lacks {len(lacking) - 10} more")
        lines += [f"  failed: {row.name} at {row.shape}" for row in failed[:10]]
        if failed:
            lines.append(f"  {failure_words(len(failed), group.target.origin)}")
    named = [
        {"table": str(path), "target": group.target.name, **facts}
        for group, path, facts in zip(groups, paths, found, strict=True)
    ]
    emit(found[0] if len(found) == 1 else {"tables": named}, as_json, "\n".join(lines))
    return 1 if any(facts["missing"] or facts["failed"] for facts in found) else 0


def gate_option(gate: str) -> tuple[str, ...]:
    from .target import GATE_OPTION

    return () if gate == GATES[0] else (f"{GATE_OPTION}={gate}",)


def main() -> None:
    """The console script ``profile-ops``."""
    run_command(profile_ops, "profile-ops")


if __name__ == "__main__":
    main()
