"""``hurricane demo``: the whole job in small, for this CPU, a simulated DSP and a simulated VPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import click

from ..agents.console import emit, json_option, progress_bar
from ..lookup_tables.architecture import Accuracy, Architecture
from ..lookup_tables.calibration import find_calibration, save_calibration
from ..lookup_tables.model import LatencyModel
from ..lookup_tables.proportion import interval_text
from ..lookup_tables.table import LookupTable, Target
from ..ops.backbone import Backbone, load_backbone
from ..ops.errors import BadRequest, HurricaneError
from ..ops.files import read_json
from ..ops.jsonfile import write_json
from ..ops.pool import POOL
from ..ops.processes import ignore_interrupt
from .confirm import Confirmation
from .measuring import TargetMeasurer
from .pipeline import (
    STEPS,
    RunOutcome,
    SearchSettings,
    Watch,
    open_latency,
    run_search,
    run_training,
)
from .report import BASELINE as BASELINE_FOLDER
from .report import VERIFICATION, read_verification, write_report
from .rundir import CONFIRMED
from .space import SearchSpace, build_space
from .summary import choice_text

BACKBONE = "digits32"
TARGETS = ("cpu-onnxruntime-fp32", "cpu-litert-int8", "sim-hexagon685-dsp", "sim-myriadx-vpu")
BASELINE = "Choice_3"

EVALUATIONS = 80
"""The default of a real search is 1,000."""

TRAINING = 0.45
"""Of the preset's epochs."""

BUDGET = 1.25
"""The budget on each target, as a multiple of what the uniform network of comparison takes."""

VERIFIED = 16
"""Random networks that predictions are checked on, and corrected by."""


@dataclass(frozen=True)
class TargetResult:
    """What the demo found on one target."""

    prepared: Prepared
    outcome: RunOutcome

    @property
    def met(self) -> bool | None:
        """Whether the trained network is within the budget as measured; None: not measured."""
        measured = self.outcome.architecture.measured_ms
        return None if measured is None else measured <= self.prepared.space.budget_ms


_HELP = """Runs all steps in small on this machine.

For this CPU (measured, in fp32 by ONNX Runtime and in int8 by LiteRT), a simulated Hexagon 685 DSP
and a simulated Myriad X VPU: profiles all 32 operators, checks the table's sums on end-to-end
networks, builds a space, searches it, trains the network found, exports it, measures it, and
writes a report.

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
    help="Directory of the runs; a demo that was stopped is resumed from it.",
)
@click.option(
    "--targets", default=",".join(TARGETS), show_default=True, help="Targets, separated by commas."
)
@click.option("--evaluations", default=EVALUATIONS, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--training",
    default=TRAINING,
    show_default=True,
    help="Length of training, as a multiple of the preset.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--accept-table", is_flag=True, help="Accept tables whose latencies are not additive."
)
@json_option
def demo_command(
    output: Path,
    targets: str,
    evaluations: int,
    training: float,
    seed: int,
    accept_table: bool,
    as_json: bool,
) -> None:
    names = list(dict.fromkeys(name.strip() for name in targets.split(",") if name.strip()))
    if not names:
        raise BadRequest("--targets is empty; name at least one, such as cpu-onnxruntime-fp32")
    started = time.monotonic()
    settings = SearchSettings(
        data="digits", evaluations=evaluations, training=training, seed=seed, device="cpu"
    )
    _check_targets(names)
    say = _quiet if as_json else _say
    say(
        f"Hurricane demo: {BACKBONE}, {len(POOL)} operators, targets {', '.join(names)}\n"
        f"Reduced to be quick: {evaluations} evaluations (a real search: 1000), "
        f"{training:g} of the usual training; the steps are the real ones.\n"
        f"Budgets: {BUDGET:g} times what {BASELINE} in all layers takes on each target."
    )
    backbone = load_backbone(BACKBONE)
    output.mkdir(parents=True, exist_ok=True)
    say("\n[1/4] Tables: every operator at every layer shape, and their additivity checks")
    prepared = [
        _prepare(name, output, backbone, settings.seed, accept_table, say) for name in names
    ]
    baseline_job = Job(output / BASELINE_FOLDER, settings)
    say("\n[2/4] Search for each target, and the networks found timed on it")
    _in_parallel("search", [Job(output / p.name, settings, p.space, "searched") for p in prepared])
    for p in prepared:
        _run(Job(output / p.name, settings, p.space, "confirmed"), p.measurer())
        say(f"    {_chosen(p, output / p.name)}")
    say(f"\n[3/4] Training from scratch: {BASELINE} in all layers, and the networks found")
    _in_parallel(
        "train",
        [baseline_job, *(Job(output / p.name, settings, p.space, "trained") for p in prepared)],
    )
    say("\n[4/4] The exported networks, timed on their targets")
    results = []
    for p in prepared:
        outcome = _run(Job(output / p.name, settings, p.space), p.measurer())
        write_json(output / p.name / VERIFICATION, p.verification)
        results.append(TargetResult(p, outcome))
    baseline = _run(baseline_job).architecture
    folders = [output / name for name in names]
    report = write_report(folders, output / "report.html", title="Hurricane demo")
    seconds = time.monotonic() - started
    summary = _summary(results, baseline, report, seconds)
    write_json(output / "summary.json", summary)
    emit(summary, as_json, _summary_text(results, baseline, report, seconds))


def _check_targets(names: Sequence[str]) -> None:
    """Raises BadRequest for a target that cannot be measured here, before any is profiled."""
    from ..profiler.session import TargetSession, connect
    from ..profiler.target import parse_target

    for name in names:
        request = parse_target(name)
        with connect([], request) as clients:
            TargetSession.open(clients[0], request)


def _say(text: str) -> None:
    click.echo(text)


def _quiet(text: str) -> None:
    del text


@contextmanager
def _bar(label: str):
    with progress_bar(1000, label) as bar:
        yield lambda what, share: bar.update(1000 * share, f"    {label}: {what:<8}")


@dataclass(frozen=True)
class Prepared:
    """A target that is profiled and checked, with its space."""

    name: str
    target: Target
    space: SearchSpace
    range_ms: tuple[float, float]
    baseline_ms: float
    verification: dict[str, Any]

    def measurer(self) -> TargetMeasurer:
        assert self.space.table is not None
        return TargetMeasurer.of_table(self.space.table)


@dataclass(frozen=True)
class Job:
    """A part of a run; without a space it is the baseline's training."""

    folder: Path
    settings: SearchSettings
    space: SearchSpace | None = None
    until: str = STEPS[-1]


def _run(job: Job, measure: TargetMeasurer | None = None, watch: Watch | None = None) -> RunOutcome:
    """Does a job, or reads what it left where it is done."""
    if job.space is None:
        layers = len(load_backbone(BACKBONE).layers)
        plain = Architecture(BACKBONE, (BASELINE,) * layers, seed=job.settings.seed)
        return run_training(plain, job.settings, job.folder, watch=watch)
    test = None if measure is None else measure.accuracy
    return run_search(job.space, job.settings, job.folder, None, measure, watch, job.until, test)


def _in_parallel(label: str, jobs: Sequence[Job]) -> None:
    """Jobs in processes of their own, one thread each: small networks gain nothing from more."""
    context = get_context("spawn")
    workers = min(len(jobs), os.cpu_count() or 1)
    with context.Manager() as manager, progress_bar(1000, f"    {label}") as bar:
        news = manager.Queue()
        shares = dict.fromkeys((str(job.folder) for job in jobs), 0.0)
        with _worker_pool(workers, context) as pool:
            waiting = {pool.submit(_work, job, news) for job in jobs}
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                while not news.empty():
                    name, share = news.get()
                    shares[name] = max(shares[name], share)
                bar.update(1000 * sum(shares.values()) / len(shares))
                for future in done:
                    future.result()


@contextmanager
def _worker_pool(workers: int, context: SpawnContext) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end at once, with their work, when anything fails or is stopped.

    What they have done is in the runs' directories, from where the next demo goes on.
    """
    others = active_children()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=ignore_interrupt)
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        started = [child for child in active_children() if child not in others]
        for child in started:
            child.terminate()
        for child in started:
            child.join()
        if isinstance(error, BrokenProcessPool):
            raise HurricaneError(
                "a process of the demo was killed, perhaps for lack of memory; "
                "run the same command again to carry on"
            ) from error
        raise
    pool.shutdown()


_SPANS = {
    "stage 1: supernet": (0.0, 0.8),
    "stage 1: arch": (0.8, 1.0),
    "winner trained": (0.0, 1.0),
}
"""About which part of its job a step is."""


def _work(job: Job, news: Any) -> None:
    """A job in a process of its own."""
    import torch

    torch.set_num_threads(1)

    def watch(what: str, done: int, total: int, detail: str = "") -> None:
        for start, (low, high) in _SPANS.items():
            if what.startswith(start):
                news.put((str(job.folder), low + (high - low) * done / max(total, 1)))

    _run(job, None, watch)


def _prepare(
    name: str,
    output: Path,
    backbone: Backbone,
    seed: int,
    accept_table: bool,
    say: Callable[[str], None],
) -> Prepared:
    say(f"  {name}")
    path = output / f"{name}.csv"
    table = _profile(name, path, backbone, say)
    verification = _verify(name, path, table, backbone, seed, output, say)
    latency = open_latency(path, BACKBONE, accept_table=accept_table)
    low, high = latency.model.bounds()
    baseline_ms = latency.model.latency_of((BASELINE,) * len(backbone.layers))
    budget = float(f"{BUDGET * baseline_ms:.3g}")
    space = build_space(latency.model, backbone, budget, table=latency.source)
    say(
        f"    space: budget {budget:g} ms of {low:.3g} to {high:.3g}, {choice_text(space)}, "
        f"{space.feasible_set.count:,} of {space.feasible_set.total:,} architectures meet it"
    )
    return Prepared(name, latency.model.target, space, (low, high), baseline_ms, verification)


def _chosen(prepared: Prepared, folder: Path) -> str:
    """What the loop over measured candidates ended with, in words."""
    confirmation = Confirmation.load(folder / CONFIRMED)
    chosen = confirmation.attempts[confirmation.chosen]
    missed = sum(not a.met for a in confirmation.attempts)
    tail = f"; {missed} more accurate ones missed the budget" if missed else ""
    if not chosen.met:
        tail = f"; none of {missed} met the budget, the fastest is kept"
    return (
        f"{prepared.name}: {chosen.candidate.predicted_ms:.3g} ms predicted, "
        f"{chosen.measured.ms:.3g} ms {prepared.target.origin} untrained, "
        f"budget {prepared.space.budget_ms:g} ms{tail}"
    )


def _profile(name: str, path: Path, backbone: Backbone, say: Callable[[str], None]) -> LookupTable:
    from ..profiler.plan import parse_layers, plan_rows, reference_networks
    from ..profiler.profile import profile
    from ..profiler.session import TargetSession, connect
    from ..profiler.target import parse_target

    started = time.monotonic()
    request = parse_target(name)
    layers = parse_layers(backbone.name)
    rows = plan_rows(layers, POOL)
    path.parent.mkdir(parents=True, exist_ok=True)
    with connect([], request) as clients, _bar("profile") as note:
        session = TargetSession.open(clients[0], request)
        networks = reference_networks(layers, rows)
        result = profile([session], rows, path, on_progress=note, networks=networks)
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
) -> dict[str, Any]:
    """Runs the additivity check of a table; the answer is kept beside it."""
    from ..profiler.draws import random_networks, uniform_networks
    from ..profiler.protocol import TimingProtocol
    from ..profiler.session import TargetSession, connect
    from ..profiler.target import parse_target
    from ..profiler.verification import verify_table

    kept = output / f"{name}.verify.json"
    model = LatencyModel(table, backbone)
    known = find_calibration(path, model.target, backbone.name)
    if kept.exists() and known is not None and known.fits(table):
        try:
            read_verification(kept)
        except BadRequest as error:
            raise BadRequest(f"{error}; delete it, and the table is verified again") from error
        return read_json(kept, "verification")
    networks = random_networks(model, VERIFIED, seed) + uniform_networks(model)
    request = parse_target(name)
    with connect([], request) as clients, _bar("verify") as note:
        session = TargetSession.open(clients[0], request)
        found = verify_table(session, model, networks, TimingProtocol(seed=seed), note)
    calibration = found.calibration(table)
    content = found.to_dict(str(path))
    write_json(kept, content)
    save_calibration(path, calibration)
    for group in found.groups:
        p = group.prediction
        say(
            f"    sums against {p.count} {group.group} networks: RMSPE {p.rmspe:.1%}, noise floor "
            f"{group.noise_floor:.1%}, bias {p.bias:+.1%}, tau {p.kendall_tau:.3f}"
        )
    say(f"    calibration: {calibration.text()}")
    say("    " + found.check_text().replace("\n", "\n    "))
    return content


def _accuracy(architecture: Architecture) -> Accuracy:
    """Of the trained network, on the test split."""
    figures = reversed(architecture.accuracy)
    return next(f for f in figures if f.split == "test" and not f.inherited)


def _interval(architecture: Architecture) -> str:
    """The accuracy with its interval."""
    found = _accuracy(architecture)
    if found.interval is None or found.images is None:
        return f"{found.value:.1%}"
    return f"{found.value:.1%} ({interval_text(*found.interval, found.images)})"


def _summary(
    results: Sequence[TargetResult], baseline: Architecture, report: Path, seconds: float
) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "report": str(report),
        "baseline": {
            "operators": list(baseline.operators),
            "test_accuracy": _accuracy(baseline).value,
            "test_interval": _accuracy(baseline).interval,
        },
        "targets": [
            {
                "target": r.prepared.name,
                "origin": r.prepared.target.origin,
                "device": r.prepared.target.device,
                "budget_ms": r.prepared.space.budget_ms,
                "range_ms": list(r.prepared.range_ms),
                "predicted_ms": r.outcome.architecture.predicted_ms,
                "predicted_interval_ms": r.outcome.architecture.predicted_interval_ms,
                "measured_ms": r.outcome.architecture.measured_ms,
                "met": r.met,
                "measured_halves_ms": r.outcome.architecture.measured_halves_ms,
                "test_accuracy": _accuracy(r.outcome.architecture).value,
                "test_interval": _accuracy(r.outcome.architecture).interval,
                "artifact_accuracy": r.outcome.architecture.artifact_accuracy
                and r.outcome.architecture.artifact_accuracy.to_dict(),
                "operators": list(r.outcome.architecture.operators),
                "baseline_predicted_ms": r.prepared.baseline_ms,
            }
            for r in results
        ],
    }


def _summary_text(
    results: Sequence[TargetResult], baseline: Architecture, report: Path, seconds: float
) -> str:
    missed = any(r.met is False for r in results)
    intervals = [f"{r.prepared.name} {_interval(r.outcome.architecture)}" for r in results]
    lines = [
        "",
        f"{'target':<22}{'latencies':<11}{'budget':>8}{'predicted':>11}{'run':>9}"
        f"{'halves':>17}{'test acc.':>11}{'artefact':>10}{'Choice_3':>10}",
    ]
    for r in results:
        a = r.outcome.architecture
        halves = a.measured_halves_ms
        parts = f"{halves[0]:.4g}/{halves[1]:.4g}" if halves else "-"
        measured = f"{a.measured_ms:.4g}" if a.measured_ms is not None else "-"
        artifact = f"{a.artifact_accuracy.value:.1%}" if a.artifact_accuracy else "-"
        lines.append(
            f"{r.prepared.name:<22}{r.prepared.target.origin:<11}"
            f"{r.prepared.space.budget_ms:>8.4g}{a.predicted_ms or 0:>11.4g}"
            f"{measured:>9}{parts:>17}{_accuracy(a).value:>11.1%}{artifact:>10}"
            f"{r.prepared.baseline_ms:>10.4g}"
            f"{'  missed' if r.met is False else ''}"
        )
    lines += [
        "All latencies in ms, of the origin named, as the median of calls where the table knows",
        "what calls take beyond quiet times; 'run' is the trained network on the target,",
        "'halves' those of its rounds, 'Choice_3' the predicted latency of the uniform network,",
        f"which reaches {_interval(baseline)} on the test split, trained the same way.",
        "'test acc.' is of fp32 in torch, 'artefact' of the target's file in its runtime; the test",
        f"split chose nothing. 95% intervals: {', '.join(intervals)}.",
        *(["'missed': the run takes longer than the budget."] if missed else []),
        "",
        *(f"{r.prepared.name}: {' '.join(r.outcome.architecture.operators)}" for r in results),
        "",
        f"report: {report}   ({seconds:.0f} s)",
    ]
    return "\n".join(lines)
