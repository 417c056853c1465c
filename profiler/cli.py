"""The command ``profile-ops``."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import EXIT_INTERRUPTED, emit, json_option, run_command
from ..ops.errors import BadRequest, HurricaneError
from ..ops.pool import GATES, select_operators
from .options import LAYERS_HELP, credentials, plugin_option, share_bar, target_options

if TYPE_CHECKING:
    from .kinds import Kind, Outcome
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


@click.command("profile-ops", help=_PROFILE_HELP)
@click.option("--layers", required=True, metavar="BACKBONE[:0-7,12]", help=LAYERS_HELP)
@click.option(
    "--target",
    "targets",
    required=True,
    multiple=True,
    metavar="NAME[-tN]",
    help="Target, as agent info lists it, with -tN for N threads (repeatable).",
)
@click.option(
    "--operators", metavar="PATTERNS", help="Names or patterns, such as 'MB_*,Choice_3' [all]."
)
@click.option(
    "--gate",
    type=click.Choice(GATES),
    default=GATES[0],
    show_default=True,
    help="Activation of squeeze-and-excitation blocks.",
)
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
    "--interval",
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
    help="Time a row in at most so many passes.",
)
@click.option(
    "--time-budget",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="SECONDS",
    help="Limit for each agent; after it, rows left get half of the fewest passes [no limit].",
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
    interval: float,
    rounds: int,
    time_budget: float | None,
    seed: int,
    plugins: tuple[str, ...],
    as_json: bool,
) -> int:
    from ..lookup_tables.table import LookupTable
    from .kinds import fill, find_kinds, rows_done, table_paths
    from .measuring import MeasuringSettings, TargetRequest, parse_target
    from .plan import parse_layers, plan_rows

    started = time.monotonic()
    rows = plan_rows(parse_layers(layers), select_operators(operators), gate)
    requests: list[TargetRequest] = []
    for name in targets:
        request = parse_target(name, (*runtime_options, *gate_option(gate)))
        if request not in requests:
            requests.append(request)
    folder = output.endswith("/") or Path(output).is_dir()
    if not folder:
        LookupTable.load_with_journal(output)  # a broken one is told before anything else
    keys = credentials(agents, token_file, tls_ca, tls_cert, tls_key, insecure)
    with find_kinds(agents, requests, **keys) as found:
        kinds = found.kinds
        if len(kinds) > 1 and not folder:
            raise BadRequest(
                f"these are {len(kinds)} kinds of device, each with a table of its own: "
                f"{'; '.join(str(kind.target) for kind in kinds)}\n"
                f"give a folder for them: -o {Path(output).with_suffix('')}/"
            )
        paths = table_paths(output, kinds) if folder else [Path(output)]
        if check:
            status = _check(kinds, paths, rows, retry, as_json)
            _complain_of([], found.silent)
            return status
        if folder:
            Path(output).mkdir(parents=True, exist_ok=True)
        references = None
        if reference is not None:
            there = Path(reference)
            references = table_paths(there, kinds) if there.is_dir() else [there] * len(kinds)
        settings = MeasuringSettings(
            interval=interval,
            max_rounds=rounds,
            time_budget_s=time_budget or math.inf,
            seed=seed,
        )
        try:
            with share_bar("profile") as note:
                outcomes = fill(kinds, paths, rows, settings, retry, note, references)
        except KeyboardInterrupt:
            done = rows_done(kinds, paths, rows)
            raise Interrupted(
                f"interrupted; {done} of {len(kinds) * len(rows)} rows are safe, the same command "
                "goes on from there"
            ) from None
    if len(outcomes) == 1:
        if outcomes[0].error is not None:
            raise outcomes[0].error
        # With all that came before, as whoever waits for it sees it.
        outcomes = [replace(outcomes[0], seconds=time.monotonic() - started)]
    summaries = [_summary(outcome, len(rows)) for outcome in outcomes]
    summary = summaries[0] if len(summaries) == 1 else {"tables": summaries}
    lines = [line for outcome in outcomes for line in _lines(outcome, len(rows))]
    lines += [f"{address} has none of these targets and took no part" for address in found.unused]
    emit(summary, as_json, "\n".join(lines))
    _complain_of(outcomes, found.silent)
    return 0


def _summary(outcome: Outcome, rows: int) -> dict[str, Any]:
    """One table for ``--json``."""
    target, result = outcome.kind.target, outcome.result
    summary = {"table": str(outcome.path), "target": target.name, "origin": target.origin}
    if result is None:
        return {**summary, "rows": rows, "error": str(outcome.error)}
    return {
        **summary,
        "rows": rows,
        "measured": result.measured,
        "kept": result.kept,
        "not_ok": dict(result.not_ok),
        "disturbed": result.disturbed,
        "unstable": result.unstable,
        "throttled": result.throttled,
        "lost_agents": list(result.lost),
        "left_out": list(result.left_out),
        "referred_to": result.referred_to or None,
        "level": result.level if result.referred_to else None,
        "runs": [asdict(run) for run in result.runs],
        "seconds": round(outcome.seconds, 2),
    }


def _lines(outcome: Outcome, rows: int) -> list[str]:
    """One table for people."""
    from .rotation import DRIFT

    path, result = outcome.path, outcome.result
    if result is None:
        return [f"{path}: not finished"]
    lines = [
        f"{path}: {rows} rows on {result.target}; "
        f"{result.measured} {result.target.origin} now, {result.kept} kept, "
        f"in {outcome.seconds:.1f} s"
    ]
    if result.referred_to:
        lines.append(
            f"the device took {result.level:.3f} times as long as for the {result.referred_to}: "
            "divided out"
        )
        if abs(result.level - 1) > DRIFT:
            lines.append(
                "that is more than a clock wanders: look at load, cooling and governor, or make "
                "a new table of its own"
            )
    if result.not_ok:
        words = ", ".join(f"{n} {status}" for status, n in sorted(result.not_ok.items()))
        lines.append(f"without a latency: {words} (see: hurricane table show {path})")
    if result.disturbed:
        lines.append(
            f"{result.disturbed} rows were taken in a slow time and are flagged disturbed; "
            "--retry measures them again"
        )
    if result.unstable:
        lines.append(
            f"{result.unstable} rows kept wide intervals and are flagged unstable; "
            "--retry measures them again"
        )
    if result.throttled:
        lines.append(
            f"{result.throttled} rows were taken after the device had lowered its clock and are "
            "flagged throttled; cool it and --retry"
        )
    if repeated := sum(run.laps_repeated for run in result.runs):
        laps = sum(run.laps for run in result.runs)
        lines.append(f"{repeated} of {laps} laps were disturbed and made up for")
    if len(result.runs) == 1 and (words := result.runs[0].text()):
        lines.append(f"the machine meanwhile: {words}")
    lines += [f"an agent dropped out, the others did its work: {words}" for words in result.lost]
    lines += [f"left out, {words}" for words in result.left_out]
    return lines


def _check(
    kinds: Sequence[Kind],
    paths: Sequence[Path],
    rows: Sequence[PlannedRow],
    retry: bool,
    as_json: bool,
) -> int:
    """Tells what the tables lack; the exit status."""
    from ..lookup_tables.table import LookupTable
    from .profile import failed_rows, missing_rows

    found, lines = [], []
    for kind, path in zip(kinds, paths, strict=True):
        table = LookupTable.load_with_journal(path)
        lacking = missing_rows(rows, table, kind.target, retry)
        # With --retry these are among those that are to be measured.
        failed = [] if retry else failed_rows(rows, table, kind.target)
        found.append({"rows": len(rows), "missing": len(lacking), "failed": len(failed)})
        lines.append(f"{path} holds {len(rows) - len(lacking)} of {len(rows)} rows")
        lines += [f"  lacks {row.name} at {row.shape}" for row in lacking[:10]]
        lines += [f"  failed: {row.name} at {row.shape}" for row in failed[:10]]
        if failed:
            lines.append(f"  {failure_words(len(failed), kind.target.origin)}")
    named = [
        {"table": str(path), "target": kind.target.name, **facts}
        for kind, path, facts in zip(kinds, paths, found, strict=True)
    ]
    emit(found[0] if len(found) == 1 else {"tables": named}, as_json, "\n".join(lines))
    return 1 if any(facts["missing"] or facts["failed"] for facts in found) else 0


def failure_words(count: int, origin: str) -> str:
    """What to say and to do about rows of a table that have no latency."""
    rows = "1 of its rows has" if count == 1 else f"{count} of its rows have"
    # A calculation gives the same answer again.
    remedy = "searches leave them out" if origin == "estimated" else "--retry measures again"
    return f"{rows} no latency (see the column flags); {remedy}"


def _complain_of(outcomes: Sequence[Outcome], silent: Sequence[str]) -> None:
    """Raises HurricaneError where not all was done; what could be done is done."""
    complaints = []
    if unfinished := [outcome for outcome in outcomes if outcome.error is not None]:
        words = "; ".join(f"{outcome.path}: {outcome.error}" for outcome in unfinished)
        complaints.append(f"{len(unfinished)} of {len(outcomes)} tables are not finished: {words}")
    for outcome in outcomes:
        if outcome.result is not None and outcome.result.failed:
            words = failure_words(outcome.result.failed, outcome.result.target.origin)
            complaints.append(f"{outcome.path}: {words}")
    if silent:
        complaints.append(f"boards that did not answer took no part: {'; '.join(silent)}")
    if complaints:
        raise HurricaneError("\n".join(complaints))


def gate_option(gate: str) -> tuple[str, ...]:
    from .measuring import GATE_OPTION

    return () if gate == GATES[0] else (f"{GATE_OPTION}={gate}",)


def main() -> None:
    """The console script ``profile-ops``."""
    run_command(profile_ops, "profile-ops")


if __name__ == "__main__":
    main()
