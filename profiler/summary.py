"""What a run did, for a terminal and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..ops.errors import BadRequest, HurricaneError
from .failures import first_of_each_kind
from .warnings import doubts_of_predictions, warnings_of

if TYPE_CHECKING:
    from ..lookup_tables.model import LatencyModel
    from ..ops.backbone import Backbone
    from .groups import Outcome


def summary_of(outcome: Outcome, rows: int, backbone: Backbone) -> dict[str, Any]:
    """One table for ``--json``.

    Args:
        outcome: of its group.
        rows: of the plan.
        backbone: of the plan.
    """
    target, result = outcome.group.target, outcome.result
    summary = {"table": str(outcome.path), "target": target.name, "origin": target.origin}
    if result is None:
        return {**summary, "rows": rows, "error": str(outcome.error)}
    return {
        **summary,
        "rows": rows,
        "measured": result.measured,
        "kept": result.kept,
        "counts": dict(sorted(result.counts.items())),
        "failures": [
            {
                "status": first.status,
                "kind": first.kind,
                "rows": count,
                "operator": first.row.name,
                "shape": str(first.row.shape),
                "reason": first.reason,
            }
            for first, count in first_of_each_kind(result.failures)
        ],
        "lost_agents": list(result.exclusions.lost.values()),
        "left_out": list(result.exclusions.left_out),
        "reference": result.speed.reference or None,
        "slowdown": result.speed.slowdown if result.speed.reference else None,
        "predictions": _predictions(outcome, backbone),
        "runs": [asdict(run) for run in result.runs],
        "seconds": round(outcome.seconds, 2),
    }


def _predictions(outcome: Outcome, backbone: Backbone) -> dict[str, Any] | None:
    """What the networks that were timed among the rows say of predictions."""
    model = _model(outcome, backbone)
    if model is None or outcome.result is None or not model.spread.networks:
        return None
    doubts = doubts_of_predictions(outcome.result, model.spread)
    return {
        "networks": len(model.spread.networks),
        "sums_rmspe": model.additivity_error,
        "median_over_quiet": model.spread.ratio("median"),
        "p90_over_quiet": model.spread.ratio("p90"),
        "conclusive": not doubts,
        "doubts": doubts,
    }


def _model(outcome: Outcome, backbone: Backbone) -> LatencyModel | None:
    """The latency model of a finished table; None where it holds no whole backbone."""
    from ..lookup_tables.model import LatencyModel

    result = outcome.result
    if result is None or result.target.origin == "estimated":
        return None
    try:
        return LatencyModel(result.table, backbone, result.target)
    except BadRequest:
        return None


def lines_of(outcome: Outcome, summary: Mapping[str, Any]) -> list[str]:
    """One table for people.

    Args:
        outcome: of its group.
        summary: of the outcome, by `summary_of`.
    """
    path, result = outcome.path, outcome.result
    if result is None:
        return [f"{path}: not finished"]
    lines = [
        f"{path}: {summary['rows']} rows on {result.target}; "
        f"{result.measured} {result.target.origin} now, {result.kept} kept, "
        f"in {outcome.seconds:.1f} s"
    ]
    if found := summary["predictions"]:
        lines.append(
            f"{found['networks']} networks timed among the rows: sums within "
            f"{found['sums_rmspe']:.1%} (RMSPE) of their quiet times, median "
            f"{found['median_over_quiet'] - 1:+.1%} and p90 {found['p90_over_quiet'] - 1:+.1%} "
            "beyond these"
        )
        if found["doubts"]:
            lines.append(
                f"inconclusive: {', '.join(found['doubts'])}; predicted medians and percentiles "
                "may not hold: see `agent doctor` and measure on a quiet device"
            )
    lines += [warning.text() for warning in warnings_of(result, path)]
    if len(result.runs) == 1 and (words := result.runs[0].text()):
        lines.append(f"the machine meanwhile: {words}")
    return lines


def failure_words(count: int, origin: str) -> str:
    """Cause and remedy of rows of a table that have no latency."""
    rows = "1 of its rows has" if count == 1 else f"{count} of its rows have"
    # A calculation gives the same answer again.
    remedy = "searches leave them out" if origin == "estimated" else "--retry measures again"
    return f"{rows} no latency (see the column flags); {remedy}"


def complain_of(outcomes: Sequence[Outcome], silent: Sequence[str]) -> None:
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
