"""A whole search as plain functions: table, model, space, two stages, training, export, measuring.

Torch is imported where it is needed and not before, so that an impossible request fails at once.
Every finished step is found in the run's directory and not done again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..lookup_tables.architecture import (
    SUPERNET,
    Accuracy,
    Architecture,
    ArtifactAccuracy,
    TableSource,
    TrainingData,
    package_versions,
)
from ..lookup_tables.calibration import Calibration, find_calibration
from ..lookup_tables.cells import DOUBTFUL
from ..lookup_tables.model import LatencyModel, guess_backbone
from ..lookup_tables.shipped import open_table
from ..lookup_tables.table import LookupTable
from ..lookup_tables.verdict import Verdict
from ..ops.atomic import write_atomically
from ..ops.backbone import Backbone, load_backbone
from ..ops.errors import BadRequest
from ..profiler.target import gate_of
from .comparison import BaselineSettings, Compared, compare
from .confirm import Candidate, Confirmation, confirm
from .evolution import STRATEGIES, Strategy, best_first
from .measuring import Measurement, NotMeasurable
from .progress import Watch
from .rundir import RunDirectory, leads, wait_for_leader
from .space import SearchSpace
from .trainings import AUTO, PRECISIONS, SUPERNET_TRAININGS
from .two_stage import Candidates, StageResult, TwoStageResult, two_stage_search

if TYPE_CHECKING:
    from ..ops.artifacts import Artifact, Recipe
    from ..ops.blocks import Network
    from .baselines import Comparison
    from .data import ImageData
    from .evaluation import SupernetEvaluator
    from .training import Preset
    from .training_log import TrainingStatus


class Measure(Protocol):
    """Times a network on the target (`measuring.TargetMeasurer`)."""

    def __call__(
        self,
        backbone: Backbone,
        operators: Sequence[str],
        gate: str,
        make: Callable[[Recipe], Artifact] | None = None,
    ) -> Measurement: ...


class MeasureAccuracy(Protocol):
    """Measures the accuracy of the target's artefact (`TargetMeasurer.accuracy`)."""

    def __call__(
        self,
        make: Callable[[Recipe], Artifact],
        data: ImageData,
        count: Callable[[int, int], None] | None = None,
    ) -> ArtifactAccuracy: ...


STEPS = ("searched", "confirmed", "trained", "measured")
"""How far `run_search` can be told to go; each step is kept in the run's directory."""


@dataclass(frozen=True)
class TargetLatency:
    """A latency model with where it came from.

    Attributes:
        model: with the calibration that lies beside the table, if its rows are still those.
        backbone: of the networks.
        gate: of squeeze-and-excitation.
        source: the table, with the verdict of its additivity check.
        outdated: whether check and calibration are of other rows, and not used.
    """

    model: LatencyModel
    backbone: Backbone
    gate: str
    source: TableSource
    outdated: bool = False

    def notes(self) -> list[str]:
        """What a user should know about the latencies, one sentence each."""
        found = []
        missing = self.model.missing()
        if missing:
            first = f"{missing[0]}"
            some = first if len(missing) == 1 else f"{len(missing)}, such as {first}"
            found.append(f"left out, as the table has no latency for it: {some}")
        fallen = self.model.flagged("fallback")
        if fallen:
            found.append(
                f"{len(fallen)} rows ran on another unit than the target's "
                f"(such as {fallen[0].operator} at {fallen[0].shape})"
            )
        shaky = {kind: len(self.model.flagged(kind)) for kind in DOUBTFUL}
        if any(shaky.values()):
            words = ", ".join(f"{n} {kind}" for kind, n in shaky.items() if n)
            found.append(f"rows flagged: {words}; profile-ops --retry measures them again")
        calibration = self.model.calibration
        check = calibration.check if calibration is not None else None
        if check is not None:
            state = "verified" if check.verdict.verified else "not verified"
            remedy = f"; {check.remedy}" if check.verdict is Verdict.INCONCLUSIVE else ""
            found.append(f"{state}: {check.text()}{remedy}")
        elif self.outdated:
            found.append("not verified: the table's rows have changed since hurricane verify")
        else:
            found.append("not verified: hurricane verify checks whether its sums can be trusted")
        if calibration is not None and calibration.applied:
            found.append(f"calibrated: {calibration.text()}")
        return found


@dataclass(frozen=True)
class SearchSettings:
    """What a search does with a space. Defaults are the paper's where it says something.

    Attributes:
        data: what to train on, see `data.load_data`.
        stages: 2, or 1 for the later layers only; a space without a split has but one.
        strategy: ``evolution`` or ``random``.
        evaluations: in each stage, at most (paper: 1,000).
        population: architectures of a generation.
        seed: of everything that is drawn, but for the data's splits, which stay the same.
        device: for training: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        training: length of all trainings, as a multiple of the data's preset.
        epochs: of a supernet and of a network from scratch, instead of the preset's; stage 2 in
            proportion.
        batch: images a step, learning rates in proportion; None: the preset's, larger on a GPU.
        precision: ``fp32``, ``bf16`` or ``auto``: bf16 on a GPU that has it.
        supernet: how a supernet is trained: ``single-path``, ``fair`` or ``sandwich``.
        finalists: best networks that are trained from scratch; of those, the most accurate on
            the validation split is the search's.
    """

    data: str = "digits"
    stages: int = 2
    strategy: str = "evolution"
    evaluations: int = 1000
    population: int = 50
    seed: int = 0
    device: str = "auto"
    training: float = 1.0
    epochs: float | None = None
    batch: int | None = None
    precision: str = AUTO
    supernet: str = "single-path"
    finalists: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (
            ("strategy", tuple(STRATEGIES)),
            ("supernet", SUPERNET_TRAININGS),
            ("precision", (AUTO, *PRECISIONS)),
            ("stages", (1, 2)),
        ):
            if getattr(self, name) not in allowed:
                raise BadRequest(f"{name} must be one of {', '.join(map(str, allowed))}")
        if min(self.evaluations, self.population, self.finalists) < 1:
            raise BadRequest("evaluations, population and finalists must be at least 1")
        if not 0 < self.training < math.inf:
            raise BadRequest("training must be a positive multiple of the preset's length")
        if self.epochs is not None and self.training != 1:
            raise BadRequest("epochs and training both say how long to train: give one of them")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise BadRequest("epochs must be more than 0")
        if self.batch is not None and self.batch < 1:
            raise BadRequest("batch must be at least 1")
        if self.seed < 0:
            raise BadRequest("seed must not be negative")

    def make_strategy(self) -> Strategy:
        return STRATEGIES[self.strategy](self.population)


@dataclass(frozen=True)
class RunOutcome:
    """What a run ends with.

    Attributes:
        directory: of the run.
        architecture: with its figures.
        unmeasured: why there is no measured latency, where measuring was asked for.
        untested: why there is no accuracy of the target's artefact, where there is a latency.
        space: what was searched; None for a training alone.
        stages: what each stage found; None for a training alone.
        comparison: with baselines; None: none were asked for.
    """

    directory: Path
    architecture: Architecture
    unmeasured: str = ""
    untested: str = ""
    space: SearchSpace | None = None
    stages: TwoStageResult | None = None
    comparison: Comparison | None = None

    @property
    def validation_images(self) -> int | None:
        """Images that networks were ranked by; None: an earlier version did not say."""
        figures = self.architecture.accuracy
        return next((a.images for a in figures if a.split == "validation"), None)


def open_latency(
    table: str | Path,
    backbone: str | Path | None = None,
    target: str | None = None,
    accept_table: bool = False,
    statistic: str | None = None,
) -> TargetLatency:
    """The latency model of a table; calibration and additivity check beside it are heeded.

    Args:
        table: path, or name of a shipped table.
        backbone: name or path; None: the one shipped backbone that the table covers.
        target: None where the table holds one.
        accept_table: take a table whose latencies are not additive.
        statistic: what latencies are of, as `LatencyModel` takes it.

    Raises:
        BadRequest: its additivity check failed, and it is not accepted; or there is no such
            table, backbone or target in it.
    """
    opened = open_table(table)
    frame = guess_backbone(opened) if backbone is None else load_backbone(backbone)
    found = opened.target(target)
    known = find_calibration(opened.path, found, frame.name) if opened.path else None
    if not accept_table and (words := _refusal(table, opened, known)):
        raise BadRequest(words)
    calibration = known if known is not None and known.fits(opened) else None
    verdict = calibration.verdict if calibration is not None else None
    model = LatencyModel(opened, frame, found, calibration=calibration, statistic=statistic)
    source = TableSource(
        str(table),
        opened.sha256(),
        target or found.name,
        None if verdict is None else str(verdict),
        found.origin,
        model.statistic,
    )
    return TargetLatency(model, frame, gate_of(found), source, known is not calibration)


def refusal(space: SearchSpace) -> str:
    """Why the table of a space may not be searched any more; empty where it may.

    A table that is not at hand or has changed since says nothing of the space, and one that was
    accepted when the space was built stays so.
    """
    source = space.table
    if source is None or source.verdict == Verdict.NOT_ADDITIVE:
        return ""
    try:
        opened = open_table(source.path)
        target = opened.target(source.target)
    except BadRequest:
        return ""
    if opened.path is None or opened.sha256() != source.sha256:
        return ""
    name = load_backbone(space.backbone).name
    return _refusal(source.path, opened, find_calibration(opened.path, target, name))


def accepted(space: SearchSpace) -> SearchSpace:
    """The space with its table accepted, where that takes saying so."""
    if space.table is None or not refusal(space):
        return space
    return replace(space, table=replace(space.table, verdict=str(Verdict.NOT_ADDITIVE)))


def _refusal(name: str | Path, table: LookupTable, known: Calibration | None) -> str:
    """Why a table may not be searched; empty where it may."""
    check = None if known is None else known.check
    if known is None or check is None or check.verdict is not Verdict.NOT_ADDITIVE:
        return ""
    if not known.fits(table):
        return ""
    return (
        f"{name}: latencies are not additive on {known.target.name}: {check.reason};\n"
        f"{check.remedy}; to search it all the same, give --accept-table"
    )


def predicted_interval(
    space: SearchSpace, operators: Sequence[str], predicted_ms: float
) -> tuple[float, float] | None:
    """The 90% interval of a prediction, from the space's table.

    Returns:
        None where the table is not at hand, gives another latency by now, or has no intervals.
    """
    try:
        model = _model_of(space)
        if model is None or not math.isclose(
            model.latency_of(operators), predicted_ms, rel_tol=1e-6
        ):
            return None
        return model.interval_of(operators)
    except BadRequest:
        return None


def _model_of(space: SearchSpace) -> LatencyModel | None:
    """The latencies of a space's table; None where it names none or the table is not at hand."""
    source = space.table
    if source is None:
        return None
    try:
        return open_latency(
            source.path,
            space.backbone,
            source.target,
            accept_table=True,
            statistic=source.statistic,
        ).model
    except BadRequest:
        return None


def check_request(space: SearchSpace, directory: str | Path) -> None:
    """Refuses what cannot be searched, before torch and the data, which take their time.

    Raises:
        BadRequest: nothing meets the lowest budget, or the table's sums do not hold; a run that
            has begun goes on all the same.
    """
    space.within(space.budgets_ms[0]).stage1_set.require_members()
    begun = (Path(directory) / "config.json").exists()
    if not begun and (words := refusal(space)):
        raise BadRequest(words)


def run_search(
    space: SearchSpace,
    settings: SearchSettings,
    directory: str | Path,
    preset: Preset | None = None,
    measure: Measure | None = None,
    watch: Watch | None = None,
    until: str = STEPS[-1],
    test: MeasureAccuracy | None = None,
    baselines: BaselineSettings | None = None,
) -> RunOutcome:
    """Searches a space, trains the winner, exports it and measures it; resumes a killed run.

    Args:
        space: what to choose from.
        settings: how.
        directory: of the run, see `rundir`.
        preset: of the trainings; by default the data's.
        measure: times networks; with it the winner is one that meets the budget as measured
            (see `confirm`), and the exported winner is measured; None leaves both out.
        watch: is told how far each step is.
        until: the last step to be done, one of `STEPS`.
        test: measures the accuracy of the winner's artefact, where its latency was measured.
        baselines: what the winner is compared with in the end, see `comparison`.

    Raises:
        BadRequest: the directory holds another run, nothing meets the budget, the sums of the
            table do not hold, or the data does not fit; a new run then leaves nothing behind.
    """
    check_request(space, directory)
    config = {"command": "search", **space_facts(space), **settings_facts(settings, preset)}
    with RunDirectory.open(directory, config) as run:
        workshop = open_workshop(run, space.backbone, space.gate, settings, preset, watch)
        run.save_space(space)

        def described(result: StageResult) -> Architecture:
            """A network that a stage found; one whose figures are on the disk, as it is there."""
            known = run.read_winner(result.stage)
            if known is not None and known.operators == result.operators:
                return known
            return found_architecture(space, result, settings, *workshop.figures(result))

        stages = two_stage_search(
            space,
            workshop,
            stages=settings.stages,
            strategy=settings.make_strategy(),
            evaluations=settings.evaluations,
            seed=settings.seed,
            log=run,
            progress=lambda stage, done, total: workshop.tell(
                f"stage {stage}: architectures evaluated", done, total
            ),
            finished=lambda result: run.save_winner(result.stage, described(result)),
        )
        step = STEPS.index(until)
        finalists, unmeasured, untested = _finalists(stages)[: settings.finalists], "", ""
        wanted = step >= STEPS.index("confirmed") and measure is not None
        if run.confirmed_path.exists() or (wanted and not run.training_begun):
            finalists, unmeasured = _confirmed(
                run, workshop, space, stages, measure, settings.finalists
            )
        winner = described(finalists[0])
        if step >= STEPS.index("trained") and len(finalists) > 1:
            winner = _best_finalist(run, workshop, [described(f) for f in finalists], settings)
        known = run.read_architecture()
        if known is not None and known.operators == winner.operators:
            winner = known
        if step >= STEPS.index("trained"):
            timer = measure if step >= STEPS.index("measured") and not unmeasured else None
            winner, problem, untested = _finish(run, workshop, winner, settings, timer, test)
            unmeasured = unmeasured or problem
        comparison = None
        if baselines is not None and baselines.names:
            stage, population = stages.winner, settings.population
            model = _model_of(space)
            contest = Compared(
                run, workshop, space, stage, winner, population, settings.seed, model
            )
            comparison = compare(contest, baselines)
        return RunOutcome(run.path, winner, unmeasured, untested, space, stages, comparison)


def run_training(
    architecture: Architecture,
    settings: SearchSettings,
    directory: str | Path,
    preset: Preset | None = None,
    measure: Measure | None = None,
    watch: Watch | None = None,
    test: MeasureAccuracy | None = None,
) -> RunOutcome:
    """Trains an architecture from scratch, exports and measures it; resumes a killed run.

    Args:
        architecture: any, found by a search or written by hand.
        settings: data, seed, device and length of the training; the rest plays no part.
        directory: of the run.
        preset, measure, watch, test: as in `run_search`.
    """
    config = {
        "command": "train",
        "backbone": architecture.backbone,
        "operators": list(architecture.operators),
        "gate": architecture.gate,
        **settings_facts(settings, preset),
    }
    with RunDirectory.open(directory, config) as run:
        workshop = open_workshop(
            run, architecture.backbone, architecture.gate, settings, preset, watch
        )
        # Figures of an earlier training or measurement are not this run's.
        fresh = replace(
            architecture,
            measured_ms=None,
            measured_halves_ms=None,
            accuracy=(),
            artifact_accuracy=None,
            trained_on=None,
            versions=package_versions(),
        )
        known = run.read_architecture() or fresh
        return RunOutcome(run.path, *_finish(run, workshop, known, settings, measure, test))


def _confirmed(
    run: RunDirectory,
    workshop: Workshop,
    space: SearchSpace,
    stages: TwoStageResult,
    measure: Measure | None,
    wanted: int,
) -> tuple[list[StageResult], str]:
    """The most accurate architectures that meet the budget as measured.

    Candidates are what the last stage evaluated, and after those what the stage before did: the
    accuracies of two supernets do not compare. What was chosen once stays chosen, also for a
    run that goes on without measuring.

    Args:
        wanted: how many there are to be.

    Returns:
        Their stages' results with these architectures, and why nothing could be measured.
    """
    origin = {Candidate(f.operators, f.fitness, f.latency_ms): f for f in _finalists(stages)}
    problem = ""
    if measure is not None and leads() and not run.confirmed_path.exists():
        problem = confirm_on_target(
            workshop, "winner timed", list(origin), space, measure, wanted, run.confirmed_path
        )
    wait_for_leader()
    if not run.confirmed_path.exists():
        return list(origin.values())[:wanted], problem
    chosen = Confirmation.of_search(run.confirmed_path, origin).finalists
    return [origin[candidate] for candidate in chosen], problem


def confirm_on_target(
    workshop: Workshop,
    label: str,
    candidates: Sequence[Candidate],
    space: SearchSpace,
    measure: Measure,
    wanted: int,
    path: Path,
) -> str:
    """Times candidates, best first, until enough meet the budget, and writes which do.

    Args:
        workshop: of the run.
        label: of what is being done.
        candidates: best first.
        space: has the budget and the gate.
        measure: times networks.
        wanted: how many are to meet the budget.
        path: of the confirmation.

    Returns:
        Why the target cannot be measured; empty where it can.
    """

    def timed(candidate: Candidate) -> Measurement:
        return measure(workshop.backbone, candidate.operators, space.gate)

    workshop.tell(label, 0, 1)
    try:
        confirm(candidates, space.budget_ms, timed, wanted).save(path)
    except NotMeasurable as error:
        return str(error)
    finally:
        workshop.tell(label, 1, 1)
    return ""


def _finalists(stages: TwoStageResult) -> list[StageResult]:
    """All that was evaluated, the last stage's first, best first, each as what its stage found."""
    found: dict[tuple[str, ...], StageResult] = {}
    for stage in reversed(stages.stages):
        for e in best_first(stage.evaluated):
            names = stage.names(e.codes)
            one = replace(stage, operators=names, fitness=e.fitness, latency_ms=e.latency_ms)
            found.setdefault(names, one)
    return list(found.values())


def _best_finalist(
    run: RunDirectory,
    workshop: Workshop,
    finalists: Sequence[Architecture],
    settings: SearchSettings,
) -> Architecture:
    """Trains finalists from scratch, each in a folder of its own, and takes the most accurate.

    By the validation split; of equals the faster. Its weights are put in the run's folder.
    """
    trained: list[Architecture] = []
    for number, finalist in enumerate(finalists, 1):
        folder = run.finalist_path(number)
        file = folder / "architecture.json"
        if not file.exists():
            label = f"finalist {number} of {len(finalists)} trained"
            done, _ = _train(workshop, finalist, settings, folder, label, len(finalists))
            if leads():
                done.save(file)
        wait_for_leader()
        trained.append(Architecture.load(file))

    def order(number: int) -> tuple[float, float]:
        scratch = [a for a in trained[number].accuracy if not a.inherited]
        validation = next(a.value for a in scratch if a.split == "validation")
        return -validation, trained[number].predicted_ms or math.inf

    best = min(range(len(trained)), key=order)
    if leads() and not run.weights_path.exists():
        weights = (run.finalist_path(best + 1) / run.weights_path.name).read_bytes()
        write_atomically(run.weights_path, weights)
    wait_for_leader()
    return trained[best]


def found_architecture(
    space: SearchSpace, result: StageResult, settings: SearchSettings, *accuracy: Accuracy
) -> Architecture:
    """A network that a stage found, with its figures there."""
    return Architecture(
        backbone=space.backbone,
        operators=result.operators,
        gate=space.gate,
        table=space.table,
        budget_ms=space.budget_ms,
        predicted_ms=result.latency_ms,
        predicted_interval_ms=predicted_interval(space, result.operators, result.latency_ms),
        accuracy=accuracy,
        method=space.method,
        seed=settings.seed,
        versions=package_versions(),
    )


def space_facts(space: SearchSpace) -> dict[str, Any]:
    """What a run's configuration keeps of its space: the essentials, and a digest of all.

    All but the verdict on its table, which changes nothing of what the run does.
    """
    table = asdict(space.table) if space.table else None
    if table is not None:
        del table["verdict"]
    content = json.dumps({**space.to_dict(), "table": table}, sort_keys=True).encode()
    return {
        "backbone": space.backbone,
        "latency_ms": space.budget_ms,
        "table": table,
        "method": space.method,
        "alpha": space.alpha,
        "split": space.split,
        "space_sha256": hashlib.sha256(content).hexdigest(),
    }


def settings_facts(settings: SearchSettings, preset: Preset | None) -> dict[str, Any]:
    """What a run's configuration keeps of its settings."""
    facts = asdict(settings)
    for name in ("finalists", "epochs", "batch", "precision"):
        if facts[name] == getattr(SearchSettings, name):
            del facts[name]  # as in runs of earlier versions, which can be carried on
    return {**facts, "preset": asdict(preset) if preset else None}


def open_workshop(run: RunDirectory, *request: Any) -> Workshop:
    """The workshop of a run; a new run whose data or device does not fit leaves nothing behind.

    Args:
        run: just opened.
        request: the rest of what `Workshop` takes.
    """
    try:
        workshop = Workshop(run, *request)
        if not run.resumed:
            workshop.check()
    except BaseException:
        run.discard()
        raise
    return workshop


class Workshop:
    """Everything that needs torch and data, set up when first used."""

    def __init__(
        self,
        run: RunDirectory,
        backbone: str,
        gate: str,
        settings: SearchSettings,
        preset: Preset | None,
        watch: Watch | None,
    ) -> None:
        self._run = run
        self.backbone = load_backbone(backbone)
        self._gate = gate
        self._settings = settings
        self._wanted_preset = preset
        self._watch = watch
        self._data: ImageData | None = None
        self._label = ""

    def check(self) -> None:
        """Loads the data and looks for the device, so that what is wrong with them shows first.

        Raises:
            BadRequest: the data does not fit, or the device is not there.
        """
        from .distributed import choose_device, join_world

        choose_device(self._settings.device, join_world())
        _ = self.data

    @property
    def data(self) -> ImageData:
        if self._data is None:
            from .data import load_data

            self._data = load_data(self._settings.data, self.backbone, self._settings.seed)
        return self._data

    @property
    def preset(self) -> Preset:
        """The trainings' settings, with this run's length, seed, device, batch and precision."""
        return self._settled

    @functools.cached_property
    def _settled(self) -> Preset:
        from .training import preset_for

        s = self._settings
        preset = (self._wanted_preset or preset_for(self.data)).scaled(s.training)
        if s.epochs is not None:
            preset = preset.lasting(s.epochs)
        preset = preset.adjusted(seed=s.seed, device=s.device)
        preset = replace(
            preset,
            supernet=replace(preset.supernet, strategy=s.supernet),
            stage_2=replace(preset.stage_2, strategy=s.supernet),
        )
        return self._suited(preset)

    def _suited(self, preset: Preset) -> Preset:
        """The preset with batch and precision as asked for, or as suits where the run began."""
        from .distributed import choose_device, join_world
        from .hardware import Choice

        world, path = join_world(), self._run.trainings_path
        device, images = choose_device(self._settings.device, world), len(self.data.train)
        if leads() and not path.exists():
            choice = Choice.of(
                preset,
                device,
                images,
                world.size,
                self._settings.batch,
                self._settings.precision,
                keep_batch=self._wanted_preset is not None,
            )
            choice.save(path, choice.apply(preset, images), device)
        world.wait()
        return Choice.load(path).apply(preset, images)

    def tell(self, label: str, done: int, total: int, detail: str = "") -> None:
        if self._watch is not None:
            self._watch(label, done, total, detail)

    def trained(self, label: str) -> Callable[[TrainingStatus], None]:
        """A training's progress function under a label."""
        return lambda status: self.tell(label, status.step, status.steps, status.text())

    def prepare(self, stage: int, candidates: Any, sampler: Any, previous: Any = None) -> None:
        """Trains a stage's supernet (`two_stage.StageEvaluator`)."""
        self._label = f"stage {stage}: supernet trained"
        self._supernets.prepare(stage, candidates, sampler, previous)

    def evaluate(self, codes: Any) -> list[float]:
        """Scores paths of the stage's supernet (`two_stage.StageEvaluator`)."""
        return self._supernets.evaluate(codes)

    def reuse(self, weights: Path, candidates: Any) -> None:
        """Searches with a supernet that was trained before (`evaluation.SupernetEvaluator`)."""
        self._supernets.reuse(weights, candidates)

    def reopen(self, stage: int, candidates: Candidates) -> None:
        """Makes ready to score a stage that is done (`comparison.Workshop`)."""
        self._supernets.reopen(stage, candidates)

    def figures(self, result: StageResult) -> list[Accuracy]:
        """Accuracies of a network with its stage's weights, each with what its images chose."""
        how = f"{SUPERNET} {result.stage}, BatchNorm recalibrated, on {self._settings.data}"
        ranked = f"{how}; the images that {len(result.evaluated):,} networks were ranked by"
        ranked = ranked if len(result.evaluated) > 1 else how
        found = [Accuracy(result.fitness, "validation", ranked, len(self.data.validation))]
        codes = [n.index(o) for n, o in zip(result.candidates, result.operators, strict=True)]
        tested = self._supernets.test(result.stage, result.candidates, [codes])
        if tested is not None:
            unseen = f"{how}; images that chose nothing"
            found.append(Accuracy(tested[0], "test", unseen, len(self.data.test)))
        return found

    @functools.cached_property
    def _supernets(self) -> SupernetEvaluator:
        from .evaluation import SupernetEvaluator

        return SupernetEvaluator(
            self.backbone,
            self.data,
            self._run.path,
            self.preset,
            self._gate,
            self._settings.seed,
            self._settings.device,
            progress=lambda status: self.trained(self._label)(status),
        )


def _finish(
    run: RunDirectory,
    workshop: Workshop,
    architecture: Architecture,
    settings: SearchSettings,
    measure: Measure | None,
    test: MeasureAccuracy | None,
) -> tuple[Architecture, str, str]:
    """Trains, exports and measures, as far as the run's directory does not hold it.

    Returns:
        The architecture with its figures, why it could not be measured, and why its artefact
        could not be tested.
    """
    from ..ops.artifacts import Recipe
    from .deployment import training_data

    network: Network | None = None
    run.save_architecture(architecture)
    how = f"trained from scratch on {settings.data}"
    known = any(f.split == "test" and f.how.startswith(how) for f in architecture.accuracy)
    if not (known and run.weights_path.exists()):
        architecture, network = _train(workshop, architecture, settings, run.path, "winner trained")
        run.save_architecture(architecture)
    trained_on = architecture.trained_on
    outdated = trained_on is None  # trained by an earlier version
    if trained_on is None:
        trained_on = training_data(workshop.data)
        architecture = replace(architecture, trained_on=trained_on)
        run.save_architecture(architecture)
    finished = architecture

    @functools.cache
    def deploy(recipe: Recipe) -> Artifact:
        model = export_trained(finished, workshop.backbone, run.weights_path, network)
        return _deploy(run, workshop, trained_on, model, recipe)

    if network is not None or outdated or not run.model_path.exists():
        deploy(Recipe("onnx", "fp32"))
    unmeasured = untested = ""
    if measure is not None and leads() and architecture.measured_ms is None:
        workshop.tell("winner measured", 0, 1)
        try:
            found = measure(
                workshop.backbone,
                architecture.operators,
                architecture.gate,
                deploy,
            )
        except NotMeasurable as error:
            unmeasured = str(error)
        else:
            architecture = replace(
                architecture,
                measured_ms=found.ms,
                measured_halves_ms=found.halves_ms,
            )
            run.save_architecture(architecture)
        workshop.tell("winner measured", 1, 1)
    timed = architecture.measured_ms is not None
    if test is not None and leads() and timed and architecture.artifact_accuracy is None:
        try:
            accuracy = test(
                deploy,
                workshop.data,
                lambda done, total: workshop.tell("winner's test images", done, total),
            )
        except NotMeasurable as error:
            untested = str(error)
        else:
            architecture = replace(architecture, artifact_accuracy=accuracy)
            run.save_architecture(architecture)
    return architecture, unmeasured, untested


def _train(
    workshop: Workshop,
    architecture: Architecture,
    settings: SearchSettings,
    folder: Path,
    label: str,
    finalists: int = 1,
) -> tuple[Architecture, Network]:
    """Trains an architecture from scratch; gives it with its figures, and the network."""
    from .deployment import training_data
    from .retrain import scratch_accuracies, train_architecture

    trained = train_architecture(
        workshop.backbone,
        architecture.operators,
        workshop.data,
        workshop.preset.retrain,
        folder,
        architecture.gate,
        workshop.trained(label),
    )
    figures = scratch_accuracies(
        settings.data,
        trained.settings,
        (trained.validation_accuracy, trained.validation_images),
        (trained.test_accuracy, trained.test_images),
        finalists,
    )
    known = architecture.with_accuracy(*figures)
    known = replace(known, artifact_accuracy=None, trained_on=training_data(workshop.data))
    return known, trained.network


def _deploy(
    run: RunDirectory,
    workshop: Workshop,
    trained_on: TrainingData,
    model: bytes,
    recipe: Recipe,
) -> Artifact:
    """Makes an artefact of the trained network and puts it into the run's directory.

    Args:
        model: the network's ONNX graph.
    """
    from .deployment import calibration_samples, file_name, make_artifact, write_artifact

    samples = calibration_samples(workshop.data) if recipe.calibrated else None
    artifact = make_artifact(model, recipe, workshop.backbone, trained_on, samples)
    if leads():
        path = run.path / file_name(recipe)
        write_artifact(path, artifact, recipe, workshop.backbone, trained_on)
    return artifact


def export_trained(
    architecture: Architecture,
    backbone: Backbone,
    weights: Path | None,
    network: Network | None = None,
) -> bytes:
    """The ONNX file of an architecture.

    Args:
        architecture: what to export.
        backbone: its backbone.
        weights: file that `train_architecture` saved; None for seeded, untrained weights.
        network: the network with its weights, where it is at hand.
    """
    from ..ops.export import export_architecture

    if network is None and weights is not None:
        from .retrain import load_network

        network = load_network(backbone, architecture.operators, weights, architecture.gate)
    return export_architecture(backbone, architecture.operators, network, architecture.gate)
