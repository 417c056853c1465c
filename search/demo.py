"""``hurricane demo``: the whole job in small, for this CPU, a simulated DSP and a simulated VPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..agents.console import emit, json_option, progress_bar
from ..lookup_tables.calibration import calibration_path, save_calibration
from ..lookup_tables.model import LatencyModel
from ..lookup_tables.table import LookupTable
from ..ops.backbone import Backbone, load_backbone
from ..ops.errors import BadRequest
from ..ops.pool import POOL
from .architecture import Architecture
from .jsonfile import write_json
from .measuring import TargetMeasurer
from .pipeline import RunOutcome, SearchSettings, open_latency, run_search, run_training
from .report import write_report
from .space import build_space

BACKBONE = "digits32"
TARGETS = ("cpu-onnxruntime-fp32", "sim-hexagon685-dsp", "sim-myriadx-vpu")
BASELINE = "Choice_3"

EVALUATIONS = 120
"""A stage; the default of a real search, and the paper's, is 1,000."""

TRAINING = 0.5
"""Of the preset's epochs."""

BUDGET_QUANTILE = 0.35
"""Where the budget lies between the fastest and the slowest network, on a log scale."""

VERIFIED = 16
"""Random networks that predictions are checked on, and corrected by."""


@dataclass(frozen=True)
class TargetResult:
    """What the demo found on one target."""

    target: str
    origin: str
    device: str
    budget_ms: float
    range_ms: tuple[float, float]
    outcome: RunOutcome
    baseline_ms: float


_HELP = """Runs everything, in small, on this machine.

For this CPU (measured), a simulated Hexagon 685 DSP and a simulated Myriad X VPU: profiles all
32 operators, checks the table's sums on whole networks, builds a space, searches it in two
stages, trains the network found, exports it, measures it, and writes a report.

\b
Examples:
  hurricane demo
  hurricane demo -o runs/small --targets sim-hexagon685-dsp --evaluations 30
"""


@click.command("demo", help=_HELP)
@click.option(
    "-o",
    "--output",
    default="runs/demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory; given again, a demo that was stopped is carried on.",
)
@click.option("--targets", default=",".join(TARGETS), show_default=True, help="With commas.")
@click.option("--evaluations", default=EVALUATIONS, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--training", default=TRAINING, show_default=True, help="Length, as a multiple of the preset."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@json_option
def demo_command(
    output: Path, targets: str, evaluations: int, training: float, seed: int, as_json: bool
) -> None:
    names = [name.strip() for name in targets.split(",") if name.strip()]
    if not names:
        raise BadRequest("--targets is empty; name at least one, such as cpu-onnxruntime-fp32")
    started = time.monotonic()
    settings = SearchSettings(
        data="digits", evaluations=evaluations, training=training, seed=seed, device="cpu"
    )
    say = _quiet if as_json else _say
    say(
        f"Hurricane demo: {BACKBONE}, {len(POOL)} operators, targets {', '.join(names)}\n"
        f"Reduced to be quick: {evaluations} evaluations a stage (a real search: 1000), "
        f"{training:g} of the usual training; the steps are the real ones."
    )
    backbone = load_backbone(BACKBONE)
    say(f"\n[1] {BASELINE} in all layers, for comparison: training on digits")
    baseline = _train_baseline(output / "baseline", backbone, settings)
    results = []
    for number, name in enumerate(names, start=2):
        say(f"\n[{number}] {name}")
        results.append(_run_target(name, output, backbone, baseline, settings, say))
    folders = [output / name for name in names]
    report = write_report(folders, output / "report.html", title="Hurricane demo")
    seconds = time.monotonic() - started
    summary = _summary(results, baseline, report, seconds)
    write_json(output / "summary.json", summary)
    emit(summary, as_json, _summary_text(results, baseline, report, seconds))


def _say(text: str) -> None:
    click.echo(text)


def _quiet(text: str) -> None:
    del text


@contextmanager
def _bar(label: str):
    with progress_bar(1000, label) as bar:
        yield lambda what, share: bar.update(1000 * share, f"    {label}: {what:<8}")


def _train_baseline(folder: Path, backbone: Backbone, settings: SearchSettings) -> Architecture:
    plain = Architecture(BACKBONE, (BASELINE,) * len(backbone.layers), seed=settings.seed)
    with _watching() as watch:
        return run_training(plain, settings, folder, watch=watch).architecture


@contextmanager
def _watching():
    """Progress of a search's steps: a bar for each step, on a terminal."""
    current: list[Any] = ["", None, None]

    def close() -> None:
        if current[2] is not None:
            current[2].__exit__(None, None, None)
        current[:] = ["", None, None]

    def watch(what: str, done: int, total: int) -> None:
        if what != current[0]:
            close()
            manager = progress_bar(max(total, 1), f"    {what}")
            current[:] = [what, manager.__enter__(), manager]
        current[1].update(done)

    try:
        yield watch
    finally:
        close()


def _run_target(
    name: str,
    output: Path,
    backbone: Backbone,
    baseline: Architecture,
    settings: SearchSettings,
    say: Callable[[str], None],
) -> TargetResult:
    folder = output / name
    path = output / f"{name}.csv"
    table = _profile(name, path, backbone, say)
    _verify(name, path, table, backbone, settings.seed, output, say)
    latency = open_latency(path, BACKBONE)
    low, high = latency.model.bounds()
    budget = float(f"{low * (high / low) ** BUDGET_QUANTILE:.3g}")
    space = build_space(latency.model, backbone, budget, table=latency.source)
    say(
        f"    space: budget {budget:g} ms of {low:.3g} to {high:.3g}, alpha {space.alpha:.3g}, "
        f"{space.feasible_set.count:,} of {space.feasible_set.total:,} architectures meet it"
    )
    measure = TargetMeasurer.of_table(latency.source)
    with _watching() as watch:
        outcome = run_search(space, settings, folder, measure=measure, watch=watch)
    found = outcome.architecture
    _place_verification(folder, output / f"{name}.verify.json")
    words = f"    found: {found.predicted_ms:.3g} ms predicted"
    if found.measured_ms is not None:
        words += f", {found.measured_ms:.3g} ms {latency.model.target.origin}"
    say(f"{words}; {_accuracy(found):.1%} on the test split")
    target = latency.model.target
    return TargetResult(
        name,
        target.origin,
        target.device,
        budget,
        (low, high),
        outcome,
        latency.model.latency_of(baseline.operators),
    )


def _profile(name: str, path: Path, backbone: Backbone, say: Callable[[str], None]) -> LookupTable:
    from ..profiler.measuring import Bench, connect, parse_target
    from ..profiler.plan import parse_layers, plan_rows
    from ..profiler.profile import profile

    started = time.monotonic()
    request = parse_target(name)
    rows = plan_rows(parse_layers(backbone.name), POOL)
    path.parent.mkdir(parents=True, exist_ok=True)
    with connect([], request) as clients, _bar("profile") as note:
        bench = Bench.open(clients[0], request)
        result = profile([bench], rows, path, on_progress=note)
    say(
        f"    table: {len(rows)} rows {result.target.origin} on {result.target.device} "
        f"in {time.monotonic() - started:.0f} s"
    )
    return result.table


def _verify(
    name: str,
    path: Path,
    table: LookupTable,
    backbone: Backbone,
    seed: int,
    output: Path,
    say: Callable[[str], None],
) -> None:
    """Checks the table's sums on whole networks; the correction is kept beside the table."""
    from ..profiler.measuring import Bench, MeasuringSettings, connect, parse_target
    from ..profiler.networks import random_networks, uniform_networks
    from ..profiler.verification import verify_table

    kept = output / f"{name}.verify.json"
    if kept.exists() and calibration_path(path).exists():
        return
    model = LatencyModel(table, backbone)
    networks = random_networks(model, VERIFIED, seed) + uniform_networks(model)
    request = parse_target(name)
    with connect([], request) as clients, _bar("verify") as note:
        bench = Bench.open(clients[0], request)
        found = verify_table(bench, model, networks, MeasuringSettings(seed=seed), note)
    calibration = found.fit(table)
    write_json(kept, found.to_dict(str(path)))
    save_calibration(path, calibration)
    for group in found.groups:
        p, r = group.prediction, group.retest
        say(
            f"    sums against {p.count} {group.group} networks: RMSPE {p.rmspe:.1%}, bias "
            f"{p.bias:+.1%}, tau {p.kendall_tau:.3f} (their own retest: {r.rmspe:.1%}, "
            f"{r.kendall_tau:.3f})"
        )
    say(
        f"    calibrated on the random ones: {calibration.scale:.3f} × sum "
        f"{calibration.offset_ms:+.3g} ms, RMSPE {calibration.rmspe or 0:.1%} on those left out"
    )


def _place_verification(folder: Path, kept: Path) -> None:
    from .report import VERIFICATION

    write_json(folder / VERIFICATION, json.loads(kept.read_text("utf-8")))


def _accuracy(architecture: Architecture) -> float:
    """Of the trained network, on the test split."""
    return next(f.value for f in reversed(architecture.accuracy) if f.split == "test")


def _summary(
    results: Sequence[TargetResult], baseline: Architecture, report: Path, seconds: float
) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "report": str(report),
        "baseline": {
            "operators": list(baseline.operators),
            "test_accuracy": _accuracy(baseline),
        },
        "targets": [
            {
                "target": r.target,
                "origin": r.origin,
                "device": r.device,
                "budget_ms": r.budget_ms,
                "range_ms": list(r.range_ms),
                "predicted_ms": r.outcome.architecture.predicted_ms,
                "measured_ms": r.outcome.architecture.measured_ms,
                "measured_halves_ms": r.outcome.architecture.measured_halves_ms,
                "test_accuracy": _accuracy(r.outcome.architecture),
                "operators": list(r.outcome.architecture.operators),
                "baseline_predicted_ms": r.baseline_ms,
            }
            for r in results
        ],
    }


def _summary_text(
    results: Sequence[TargetResult], baseline: Architecture, report: Path, seconds: float
) -> str:
    lines = [
        "",
        f"{'target':<22}{'latencies':<11}{'budget':>8}{'predicted':>11}{'run':>9}"
        f"{'retest':>17}{'test acc.':>11}{'Choice_3':>10}",
    ]
    for r in results:
        a = r.outcome.architecture
        halves = a.measured_halves_ms
        retest = f"{halves[0]:.4g}/{halves[1]:.4g}" if halves else "-"
        measured = f"{a.measured_ms:.4g}" if a.measured_ms is not None else "-"
        lines.append(
            f"{r.target:<22}{r.origin:<11}{r.budget_ms:>8.4g}{a.predicted_ms or 0:>11.4g}"
            f"{measured:>9}{retest:>17}{_accuracy(a):>11.1%}{r.baseline_ms:>10.4g}"
        )
    lines += [
        "All latencies in ms, of the origin named; 'run' is the trained network on the target,",
        "'retest' its two halves, 'Choice_3' the predicted latency of the uniform network,",
        f"which reaches {_accuracy(baseline):.1%} on the test split, trained the same way.",
        "",
        *(f"{r.target}: {' '.join(r.outcome.architecture.operators)}" for r in results),
        "",
        f"report: {report}   ({seconds:.0f} s)",
    ]
    return "\n".join(lines)
