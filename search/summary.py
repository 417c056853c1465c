"""Spaces, runs and architectures in words, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..lookup_tables.architecture import Accuracy, Architecture, TableSource
from ..lookup_tables.proportion import interval_of, interval_text
from ..lookup_tables.verdict import Verdict
from ..ops.backbone import load_backbone
from ..ops.shapes import format_ranges
from .baselines import Baseline, Comparison
from .space import FEW_NETWORKS, SearchSpace
from .two_stage import StageResult

if TYPE_CHECKING:
    from .front import FrontOutcome


def describe_space(space: SearchSpace) -> str:
    """A space: its range, how it was chosen, and the candidates of each stretch of equal layers."""
    shapes = load_backbone(space.backbone).layers
    everything = space.feasible_set
    stage1 = space.stage1_set
    low, high = space.reachable_ms
    place = f" on {space.table.target}" if space.table else ""
    budgets = ", ".join(f"{ms:g}" for ms in space.budgets_ms)
    lines = [
        f"{space.backbone}{place}: budget {budgets} ms{_statistic(space.table)}, "
        f"reachable {low:.4g} to {high:.4g} ms",
        f"method {space.method}, {choice_text(space)}: space of {space.lowest_ms:.4g} to "
        f"{space.highest_ms:.4g} ms, mean {space.mean_ms:.4g} ms",
        f"within the {'highest ' if space.lower_ms else ''}budget: "
        f"{_share(everything.count, everything.total, everything.exact)}"
        + (
            f"; stage 1 (first {space.split} layers at their first candidate): "
            f"{_share(stage1.count, stage1.total, stage1.exact)}"
            if space.split
            else "; all layers are searched in one stage"
        ),
        *([space.support.text()] if space.support else []),
        "",
    ]
    rows = [("layer", "shape", "candidates in ms, the best first; + explores")]
    layers = [
        (shapes[i], space.candidates[i], space.exploring[i], space.latency_ms[i])
        for i in range(space.layers)
    ]
    for alike in _runs(layers):
        shape, names, exploring, latencies = layers[alike[0]]
        cells = [
            f"{'+' if name == exploring else ''}{name} {ms:.3g}"
            for name, ms in zip(names, latencies, strict=True)
        ]
        rows.append((format_ranges(alike), str(shape), ", ".join(cells)))
    return "\n".join([*lines, *_columns(rows)])


def choice_text(space: SearchSpace) -> str:
    """What the method chose the space with."""
    if space.alpha is None:
        return f"{space.price_per_ms:.4g} of log(F·P) for a ms"
    tau = "" if space.score_latency == "operator" else ", score by the latency of architectures"
    return f"alpha {space.alpha:g} ({space.alpha_mode}{tau})"


def describe_stage(result: StageResult, images: int | None = None) -> str:
    """What a stage found, and how many others are as good as far as its images can tell.

    Args:
        result: of the stage.
        images: that its accuracies are of; None: not known.
    """
    best, others = f"{result.fitness:.1%}", ""
    if images is not None:
        best += f" ({interval_text(*interval_of(result.fitness, images), images)})"
        alike = result.within_noise(images)
        fastest = min(alike, key=lambda e: e.latency_ms)
        if len(alike) > 1:
            others = (
                f"; {len(alike):,} of them lie within that interval, the fastest at "
                f"{fastest.latency_ms:.4g} ms with {fastest.fitness:.1%}"
            )
    return (
        f"stage {result.stage}: {len(result.evaluated):,} of {result.feasible:,} architectures "
        f"evaluated, best {best} with inherited weights at "
        f"{result.latency_ms:.4g} ms predicted{others}"
        + ("; next to nothing to choose from" if result.feasible <= FEW_NETWORKS else "")
    )


def describe_front(outcome: FrontOutcome) -> str:
    """The networks of a front, and how to train the one that is picked."""
    evaluated = {e.codes for result in outcome.results for e in result.evaluated}
    origin = outcome.space.table.origin if outcome.space.table else "measured"
    rows = [("budget ms", "predicted ms", f"{origin} ms", "validation", "test", "network")]
    images = set()
    for point, better in zip(outcome.points, outcome.surpassed, strict=True):
        note = "" if better is None else f" ({better.name} is better here too)"
        network = point.architecture
        figures = {a.split: f"{a.value:.1%}" for a in network.accuracy}
        images |= {f"{a.images:,} {a.split} images" for a in network.accuracy if a.images}
        timed = "–" if network.measured_ms is None else f"{network.measured_ms:.4g}"
        rows.append(
            (
                f"{network.budget_ms:g}",
                f"{network.predicted_ms:.4g}",
                timed + ("" if point.met in (None, True) else ", missed"),
                figures.get("validation", "–"),
                figures.get("test", "–"),
                point.file.name + note,
            )
        )
    lines = [
        f"{len(evaluated):,} architectures evaluated for {len(outcome.results)} budgets with one "
        f"supernet; accuracies with its weights, of {' and '.join(sorted(images))}:",
        "",
        *_columns(rows),
        "",
        *([f"not measured: {outcome.unmeasured}"] if outcome.unmeasured else []),
        f"train the one you pick, such as the most accurate: {outcome.train_command}",
        f"everything is in {outcome.directory}",
    ]
    return "\n".join(lines)


def describe_architecture(architecture: Architecture) -> str:
    """An architecture: its latencies, its accuracies, and its operators."""
    shapes = load_backbone(architecture.backbone).layers
    lines = []
    if architecture.predicted_ms is not None:
        statistic = _statistic(architecture.table)
        latency = f"latency{statistic}: {architecture.predicted_ms:.4g} ms predicted"
        known = []
        if architecture.predicted_interval_ms is not None:
            low, high = architecture.predicted_interval_ms
            known.append(f"{low:.4g}–{high:.4g}")
        if architecture.table is None or not architecture.table.verified:
            known.append("not verified")
        latency += f" ({'; '.join(known)})" if known else ""
        if architecture.measured_ms is not None:
            origin = architecture.table.origin if architecture.table else "measured"
            latency += f", {architecture.measured_ms:.4g} ms {origin}"
        if architecture.measured_halves_ms is not None:
            first, second = architecture.measured_halves_ms
            latency += f" (its halves: {first:.4g} and {second:.4g})"
        if architecture.budget_ms is not None:
            latency += f"; budget {architecture.budget_ms:g} ms"
            if (architecture.measured_ms or 0) > architecture.budget_ms:
                latency += ", missed as measured"
        lines.append(latency)
    lines += [f"{f.split} accuracy: {f.text}" for f in architecture.accuracy]
    found = architecture.artifact_accuracy
    if found is not None:
        lines.append(f"test accuracy: {found.value:.1%} ({found.how})")
    pairs = list(zip(shapes, architecture.operators, strict=True))
    if architecture.table is not None and architecture.table.verdict == Verdict.NOT_ADDITIVE:
        lines.append(f"latencies of {architecture.table.path} are not additive; it was accepted")
    rows = [("layer", "shape", "operator")]
    rows += [(format_ranges(r), str(pairs[r[0]][0]), pairs[r[0]][1]) for r in _runs(pairs)]
    return "\n".join([*lines, *_columns(rows)])


def describe_comparison(comparison: Comparison, winner: Architecture) -> str:
    """The baselines beside the network found: latencies, sizes, accuracies, one line each.

    Accuracies with a supernet's weights and of trained networks have a column each, as they do not
    compare.
    """
    timed = comparison.winner is not None
    ms = f"ms {comparison.origin} side by side" if timed else "ms predicted"
    head = ("baseline", ms, "MACs", "weights", "test, supernet's weights", "test, trained", "")
    rows: list[tuple[str, ...]] = [head]
    for one in (comparison.found(winner), *comparison.baselines):
        cells = ("–",) * 5
        if one.macs is not None and one.params is not None:
            cells = (
                _latency(one, timed, comparison.budget_ms),
                f"{one.macs / 1e6:.3g} M",
                f"{one.params / 1e6:.3g} M",
                _share_text(one.test(inherited=True)),
                _share_text(one.test(inherited=False)),
            )
        rows.append((one.label, *cells, "; ".join(filter(None, (one.detail, one.problem)))))
    return "\n".join(line.rstrip() for line in _columns(rows))


def _latency(baseline: Baseline, timed: bool, budget_ms: float) -> str:
    """As measured; as predicted where nothing was."""
    ms = baseline.predicted_ms
    if timed:
        ms = baseline.measured.ms if baseline.measured else None
    if ms is None:
        return "–"
    return f"{ms:.4g}{' missed' if ms > budget_ms else ''}"


def _share_text(figure: Accuracy | None) -> str:
    """An accuracy with its interval, where there is one."""
    if figure is None:
        return "–"
    if figure.interval is None:
        return f"{figure.value:.1%}"
    low, high = figure.interval
    return f"{figure.value:.1%} ({100 * low:.1f}–{high:.1%})"


def _runs(items: Sequence[object]) -> list[range]:
    """Stretches of equal neighbours, by their indices."""
    starts = [i for i in range(len(items)) if i == 0 or items[i] != items[i - 1]]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(items)], strict=True)]


def _share(count: int, total: int, exact: bool) -> str:
    about = "" if exact else "about "
    return f"{about}{_big(count)} of {_big(total)} architectures ({count / total:.2%})"


def _big(number: int) -> str:
    return f"{number:,}" if number < 10_000_000 else f"{number:.3g}"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def _statistic(table: TableSource | None) -> str:
    """What latencies, and a budget of them, are of, where a table says so."""
    return f" ({table.statistic})" if table is not None else ""
