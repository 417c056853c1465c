"""``hurricane table``: look at lookup tables, check, compare, merge and convert them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import emit, json_option
from ..ops.errors import BadRequest, HurricaneError
from ..ops.jsonfile import without_nan
from .calibration import Calibration, load_calibrations
from .convert import SIDECARS, convert_table
from .diff import MATCHES, RowPair, compare
from .runs import Run, load_runs, save_runs
from .shipped import open_table, shipped_tables
from .support import SupportReport, is_support_report
from .support_grid import MARKS, shape_heading, show_support, support_facts
from .table import LookupTable, Row, TableError, Target, count_and_example, describe
from .verdict import AdditivityCheck

if TYPE_CHECKING:
    from rich.console import Console

_HEAT = ("bold green", "green", "yellow", "red")
_WARM_AT = (1.15, 2.0, 4.0)
"""Ratios to a column's fastest from which the next colour is used."""

SHOWN_RUNS = 3
"""Runs behind a table that are shown, the latest."""


@click.group("table")
def table_group() -> None:
    """Shows, checks, compares, merges and converts lookup tables.

    A table is given as a CSV file or by the name of a shipped one (hurricane table list).

    \b
    Examples:
      hurricane table list
      hurricane table show table.csv
      hurricane table diff monday.csv friday.csv
    """


@table_group.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """Lists the tables that come with the package.

    \b
    Examples:
      hurricane table list
      hurricane table list --json
    """
    tables = {name: open_table(name) for name in shipped_tables()}
    if as_json:
        listed = [{"name": name, **_facts(table)} for name, table in tables.items()]
        emit({"tables": listed}, as_json)
        return
    for name, table in tables.items():
        targets = "; ".join(str(target) for target in table.targets())
        click.echo(f"{name}: {len(table)} rows, {targets}")
    if not tables:
        click.echo("no tables are shipped with this installation")


@table_group.command("show")
@click.argument("table")
@click.option("--target", help="One target of the table, such as cpu-onnxruntime-fp32.")
@click.option("--operators", metavar="PATTERNS", help="Names or patterns, such as 'MB_*,Choice_3'.")
@click.option("--fastest", type=click.IntRange(1), help="Only the N fastest at each layer shape.")
@json_option
def show_command(
    table: str, target: str | None, operators: str | None, fastest: int | None, as_json: bool
) -> None:
    """Shows latencies, or a support report: operators against layer shapes.

    Latencies are marginal, in ms; green is within 15% of the fastest in its column. A star
    marks a row with flags that not all rows have; they are listed below.

    For a support report (hurricane support) the grid has the signal-to-quantisation-noise ratio
    (SQNR) against fp32 in dB; a star marks what falls back to another unit.

    \b
    Examples:
      hurricane table show table.csv
      hurricane table show my-board.support.csv
      hurricane table show table.csv --fastest 4
      hurricane table show imagenet224-sim-hexagon685-dsp --operators 'SEP_*,Choice_*'
      hurricane table show table.csv --target cpu-onnxruntime-fp32 --json
    """
    if is_support_report(table):
        if fastest is not None:
            raise BadRequest(f"{table} is a support report, which has no latencies for --fastest")
        report = SupportReport.load(table).select(target, operators)
        if as_json:
            emit({**support_facts(report), "rows": [asdict(row) for row in report.rows]}, as_json)
        else:
            show_support(_console(), report)
        return
    full = open_table(table)
    chosen = full.select(full.target(target) if target else None, operators)
    if not chosen.rows:
        asked = f" that match {operators!r}" if operators else ""
        raise BadRequest(f"{table} has no rows{asked}")
    if as_json:
        emit(
            {
                "table": table,
                **_facts(chosen),
                "verdicts": _verdicts(full, chosen.targets()),
                "runs": [without_nan(asdict(run)) for run in _runs(full, chosen.targets())],
                "rows": [_as_dict(r) for r in chosen.rows],
            },
            as_json,
        )
        return
    console = _console()
    for one in chosen.targets():
        part = chosen.select(one)
        _show_heading(console, part, one)
        _show_verdicts(console, full, one)
        _show_runs(console, full, one)
        _show_fastest(console, part, fastest) if fastest else _show_matrix(console, part)


@table_group.command("validate")
@click.argument("tables", nargs=-1, required=True)
@json_option
def validate_command(tables: tuple[str, ...], as_json: bool) -> None:
    """Checks tables and support reports, and lists every line that is wrong.

    \b
    Examples:
      hurricane table validate table.csv
      hurricane table validate tables/*.csv --json
    """
    results: list[dict[str, Any]] = []
    for name in tables:
        try:
            if is_support_report(name):
                facts = support_facts(SupportReport.load(name))
            else:
                facts = _facts(open_table(name))
            results.append({"table": name, "problems": [], **facts})
        except TableError as error:
            results.append({"table": name, "problems": list(error.problems)})
    if as_json:
        emit({"tables": results}, as_json)
    else:
        for result in results:
            for problem in result["problems"]:
                click.echo(problem)
            if not result["problems"]:
                click.echo(f"{result['table']}: ok, {result['rows_total']} rows")
    broken = [result for result in results if result["problems"]]
    if broken:
        count = sum(len(result["problems"]) for result in broken)
        names = ", ".join(result["table"] for result in broken)
        raise HurricaneError(f"{count} {'problem' if count == 1 else 'problems'} in {names}")


@table_group.command("diff")
@click.argument("first")
@click.argument("second")
@click.option(
    "--match",
    type=click.Choice(MATCHES),
    default=MATCHES[0],
    show_default=True,
    help="Rows to compare: of the same target whatever the runtime's version, of exactly the "
    "same target, or of the same operator and shape on any target.",
)
@click.option("--target", help="Take only this target of both tables.")
@click.option("--operators", metavar="PATTERNS", help="Names or patterns, such as 'MB_*,Choice_3'.")
@click.option("--top", default=10, show_default=True, help="Largest changes to list; 0 for all.")
@json_option
def diff_command(
    first: str,
    second: str,
    match: str,
    target: str | None,
    operators: str | None,
    top: int,
    as_json: bool,
) -> None:
    """Compares two tables: ratios are SECOND over FIRST.

    \b
    Examples:
      hurricane table diff monday.csv friday.csv
      hurricane table diff monday.csv friday.csv --match exact --top 0
      hurricane table diff cpu.csv dsp.csv --match shape --json
    """
    a, b = (
        full.select(full.target(target) if target else None, operators)
        for full in (open_table(first), open_table(second))
    )
    difference = compare(a, b, match)
    largest = sorted(difference.compared, key=_size_of_change, reverse=True)
    if as_json:
        emit(
            {
                "first": first,
                "second": second,
                "match": match,
                "summary": difference.summary(),
                "ratios": [_pair_as_dict(pair) for pair in difference.compared],
                "status_changes": [_pair_as_dict(pair) for pair in difference.status_changes],
                "only_first": [_as_dict(row) for row in difference.only_first],
                "only_second": [_as_dict(row) for row in difference.only_second],
            },
            as_json,
        )
        return
    for pair in difference.status_changes:
        click.echo(f"{describe(pair.second)}: {pair.first.status} -> {pair.second.status}")
    for rows, name in ((difference.only_first, first), (difference.only_second, second)):
        for row in rows[: top or None]:
            click.echo(f"only in {name}: {describe(row)}")
        if top and len(rows) > top:
            click.echo(f"only in {name}: {len(rows) - top} more (--top 0 lists all)")
    for pair in largest[: top or None]:
        if pair.ratio != 1:
            mark = "  intervals apart" if pair.apart else ""
            click.echo(
                f"{pair.first.operator:<14} {pair.first.shape!s:<20} "
                f"{pair.first.latency_ms:>9.4g} -> {pair.second.latency_ms:<9.4g} ms "
                f"x{pair.ratio:.3f}{mark}"
            )
    if not difference.compared:
        click.echo(f"no row is ok in both; {_other_match(match)}")
        return
    click.echo(
        f"{len(difference.compared)} rows compared: median ratio {difference.median_ratio:.4f}, "
        f"95% of rows within {difference.within_95:.2%} ({difference.within_95_of_median:.2%} once "
        f"the median is divided out), intervals apart in {difference.apart}; "
        f"{len(difference.status_changes)} status changes, {len(difference.only_first)} only in "
        f"the first, {len(difference.only_second)} only in the second"
    )


@table_group.command("merge")
@click.argument("tables", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="The table to write; may be one of TABLES.")
@click.option(
    "--prefer",
    type=click.Choice(["first", "last"]),
    help="Where tables differ in a row: the first named table that has it wins, or the last.",
)
@json_option
def merge_command(tables: tuple[str, ...], output: str, prefer: str | None, as_json: bool) -> None:
    """Puts the rows of several tables into one.

    Tables that differ in a row are refused, unless --prefer says which one wins.

    \b
    Examples:
      hurricane table merge cpu.csv dsp.csv -o all.csv
      hurricane table merge all.csv retest.csv --prefer last -o all.csv
    """
    _check_output(output)
    merged, sources = LookupTable(), [open_table(name) for name in tables]
    for name, source in zip(tables, sources, strict=True):
        try:
            merged = merged.merged(source, prefer)
        except TableError as error:
            raise TableError(f"merging {name}: {error}") from error
    beside = [(sidecar, sidecar.find(merged, sources)) for sidecar in SIDECARS]
    runs = {run for source in sources if source.path is not None for run in load_runs(source.path)}
    merged.save(output)
    for sidecar, entries in beside:
        sidecar.replace(output, entries)
    save_runs(output, sorted(runs, key=lambda run: (run.ended_at, run.target)))
    if as_json:
        emit({"table": output, **_facts(merged)}, as_json)
    else:
        click.echo(f"{output}: {len(merged)} rows of {len(merged.targets())} targets")


@table_group.command("convert")
@click.argument("table")
@click.option("-o", "--output", required=True, help="The table to write; may be TABLE itself.")
@json_option
def convert_command(table: str, output: str, as_json: bool) -> None:
    """Writes a table of an earlier version, and the files beside it, as this version does.

    Latencies stay as they are: columns, names of flags and the formats of files beside the table
    change.

    \b
    Examples:
      hurricane table convert old.csv -o new.csv
      hurricane table convert table.csv -o table.csv
    """
    _check_output(output)
    found = convert_table(table, output)
    if as_json:
        changes = {"renamed": found.renamed, "beside": list(found.beside)}
        emit({"table": output, **_facts(found.table), **changes}, as_json)
    else:
        beside = f", with {', '.join(found.beside)}" if found.beside else ""
        click.echo(
            f"{output}: {len(found.table)} rows of {table}{beside}; flags renamed in "
            f"{found.renamed} rows"
        )


def _check_output(output: str) -> None:
    if output in shipped_tables():
        raise BadRequest(f"{output} is the name of a shipped table; give -o a file name")


def _facts(table: LookupTable) -> dict[str, Any]:
    statuses = [row.status for row in table.rows]
    return {
        "path": str(table.path) if table.path is not None else None,
        "sha256": table.sha256(),
        "rows_total": len(table),
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        "targets": [{"name": target.name, **asdict(target)} for target in table.targets()],
    }


def _as_dict(row: Row) -> dict[str, Any]:
    return {"target": row.target.name, **{k: v for k, v in asdict(row).items() if v is not None}}


def _pair_as_dict(pair: RowPair) -> dict[str, Any]:
    return {
        "operator": pair.first.operator,
        "shape": asdict(pair.first.shape),
        "first_status": pair.first.status,
        "second_status": pair.second.status,
        "first_ms": pair.first.latency_ms,
        "second_ms": pair.second.latency_ms,
        "ratio": pair.ratio,
        "intervals_apart": pair.apart,
    }


def _size_of_change(pair: RowPair) -> float:
    ratio = pair.ratio or 1.0
    return max(ratio, 1 / ratio)


def _other_match(match: str) -> str:
    wider = {"exact": "version", "version": "shape"}.get(match)
    return f"--match {wider} matches more" if wider else "the tables share no cell"


def _console() -> Console:
    from rich.console import Console

    # Into a file or a pipe nothing may be cut to the width of a screen that is not there.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 240)


def _show_heading(console: Console, part: LookupTable, target: Target) -> None:
    from rich.markup import escape

    ok = sum(row.ok for row in part.rows)
    console.print(f"[bold]{escape(str(target))}[/]: {ok} of {len(part)} rows ok, latency in ms")


def _verdicts(full: LookupTable, targets: Sequence[Target]) -> list[dict[str, Any]]:
    """The additivity checks of targets, one for each backbone that a target was verified with."""
    return [
        {
            "target": str(known.target),
            "backbone": known.backbone,
            **asdict(check),
            "remedy": check.remedy,
            "current": known.fits(full),
        }
        for known, check in _checks(full, targets)
    ]


def _checks(
    full: LookupTable, targets: Sequence[Target]
) -> list[tuple[Calibration, AdditivityCheck]]:
    found = load_calibrations(full.path) if full.path is not None else ()
    return [(k, k.check) for k in found if k.check is not None and k.target in targets]


def _show_verdicts(console: Console, full: LookupTable, target: Target) -> None:
    from rich.markup import escape

    found = _checks(full, [target])
    for known, check in found:
        state = "verified" if check.verdict.verified else "not verified"
        words = f"; {check.remedy}" if check.remedy else ""
        if not known.fits(full):
            state, words = "not verified", "; its rows have changed since, verify it again"
        networks = f" with {known.backbone} networks" if known.backbone else ""
        console.print(escape(f"{state}{networks}: {check.text()}{words}"))
    if not found:
        console.print("not verified: hurricane verify checks whether its sums can be trusted")


def _show_runs(console: Console, full: LookupTable, target: Target) -> None:
    from rich.markup import escape

    runs = _runs(full, [target])
    for run in runs[-SHOWN_RUNS:]:
        words = f"{run.rows} rows in {run.batches} batches ({run.batches_rejected} rejected)"
        console.print(escape(", ".join(filter(None, (f"{run.ended_at}: {words}", run.text())))))


def _runs(full: LookupTable, targets: Sequence[Target]) -> list[Run]:
    """The runs of some targets of a table."""
    names = {str(target) for target in targets}
    found = load_runs(full.path) if full.path is not None else []
    return [run for run in found if run.target in names]


def _show_matrix(console: Console, part: LookupTable) -> None:
    """Operators down, layer shapes across, coloured by the ratio to the column's fastest."""
    from rich.table import Table

    body = [row for row in part.rows if not (row.is_stem or row.is_head)]
    shapes = list(dict.fromkeys((row.shape, row.batch) for row in body))
    names = list(dict.fromkeys(row.operator for row in body))
    cells = {(row.operator, row.shape, row.batch): row for row in body}
    common = _common_flags(part)
    if body:
        grid = Table(box=None, pad_edge=False)
        grid.add_column("operator", no_wrap=True)
        for shape, batch in shapes:
            more = f" b{batch}" if batch != 1 else ""
            grid.add_column(shape_heading(shape) + more, justify="right", no_wrap=True)
        best = {
            place: min(
                (r.latency_ms for r in body if (r.shape, r.batch) == place and r.latency_ms),
                default=0.0,
            )
            for place in shapes
        }
        for name in names:
            grid.add_row(
                name, *(_paint(cells.get((name, *place)), best[place], common) for place in shapes)
            )
        console.print(grid)
    _show_rest(console, part)


def _show_fastest(console: Console, part: LookupTable, count: int) -> None:
    """For each layer shape the fastest operators, with the ratio to the first."""
    from rich.markup import escape

    body = [row for row in part.rows if not (row.is_stem or row.is_head)]
    for shape, batch in dict.fromkeys((row.shape, row.batch) for row in body):
        here = [r for r in body if (r.shape, r.batch) == (shape, batch) and r.latency_ms]
        here.sort(key=_latency)
        console.print(f"[bold]{shape}[/]" + (f" batch {batch}" if batch != 1 else ""))
        for row in here[:count]:
            ratio = _latency(row) / _latency(here[0])
            line = f"  {row.operator:<14} {_latency(row):>9.4g}  x{ratio:.2f}  {escape(row.flags)}"
            console.print(line.rstrip())
        if not here:
            console.print("  no operator has a latency here")
    _show_rest(console, part)


def _show_rest(console: Console, part: LookupTable) -> None:
    from rich.markup import escape

    for row in part.rows:
        if row.is_stem or row.is_head:
            value = f"{row.latency_ms:.4g}" if row.latency_ms else row.status
            console.print(f"{row.operator} at {row.shape}: {value}")
    prices = [row.call_ms for row in part.rows if row.call_ms is not None]
    if prices:
        console.print(f"price of a call, median: {median(prices):.4g}")
    common = _common_flags(part)
    for word in sorted({word for row in part.rows for word in row.flag_words}):
        rows = [row for row in part.rows if word in row.flag_words]
        if word in common:
            console.print(f"flag of all rows: {escape(word)}")
        else:
            console.print(f"* {escape(word)}: {count_and_example(rows)}")


def _common_flags(part: LookupTable) -> set[str]:
    """Flags that every ok row has, such as ``simulated``: they tell no row from another."""
    flags = [set(row.flag_words) for row in part.rows if row.ok]
    return set.intersection(*flags) if flags else set()


def _latency(row: Row) -> float:
    assert row.latency_ms is not None
    return row.latency_ms


def _paint(row: Row | None, best_ms: float, common: set[str]) -> str:
    if row is None:
        return "[dim]·[/]"
    if row.latency_ms is None:
        return f"[dim]{MARKS[row.status]}[/]"
    heat = sum(row.latency_ms / best_ms >= ratio for ratio in _WARM_AT)
    star = "*" if set(row.flag_words) - common else ""
    return f"[{_HEAT[heat]}]{row.latency_ms:.4g}{star}[/]"
