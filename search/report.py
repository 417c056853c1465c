"""The report: one self-contained HTML page of one run, or of several side by side.

`gather_run` reads a run's directory into frozen values and never writes there; the template
beside this file turns them into a page. What a directory does not hold is left out with a
sentence that says so. A report of unchanged runs has equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..lookup_tables.architecture import (
    Accuracy,
    Architecture,
    ArtifactAccuracy,
    TableSource,
    read_table_source,
)
from ..lookup_tables.calibration import Calibration
from ..lookup_tables.model import LatencyModel, fill_command
from ..lookup_tables.shipped import open_table, shipped_tables
from ..lookup_tables.table import MAX_LATENCY_MS, LookupTable, Row, Target
from ..lookup_tables.verdict import Cause, Verdict, noise_floor
from ..ops.atomic import write_atomically
from ..ops.backbone import Backbone, load_backbone
from ..ops.errors import BadRequest
from ..ops.files import MAX_MODEL_BYTES, read_bytes, read_json
from ..ops.jsonfile import Fields
from ..ops.pool import applies, parse_operator
from ..ops.shapes import LayerShape, format_ranges
from .baselines import Baseline, Comparison
from .pipeline import SearchSettings, open_latency
from .rundir import BASELINES, EVALUATED_COLUMNS, evaluated_rows, read_config
from .space import SearchSpace

BASELINE = "baseline"
"""Folder of the network trained for comparison: in the run's directory, or beside it."""

VERIFICATION = "verify.json"
"""What ``hurricane verify --json`` printed, kept in the run's directory."""

HEAT_STEPS_PER_OCTAVE = 2
HEAT_LEVELS = 11
"""Colours of the heat map: half octaves of the ratio to the fastest, up to 32 times and over."""

SHADES = 3
"""Colours of evaluated architectures, from early to late generations."""

_SAME_MS = 1e-6  # a table keeps six digits: sums that differ by more come from other rows
_LOG_FROM = 12.0  # an axis whose ends differ by this factor is logarithmic


@dataclass(frozen=True)
class NetworkFigures:
    """A network's figures on a run's target.

    Attributes:
        label: what it is, e.g. ``uniform Choice_3``.
        operators: one for each layer.
        macs, params: of the whole network, for one image.
        layer_ms: latency of each layer by the table; None where the table is not at hand.
        predicted_ms: the table's sum.
        predicted_interval_ms: of `predicted_ms`, 90%; None: not known.
        whole_ms: the whole network timed on the target.
        halves_ms: over the first and the second half of the rounds.
        accuracy: figures with how they were obtained.
        artifact: accuracy of the target's artefact in its runtime; None: not measured.
    """

    label: str
    operators: tuple[str, ...]
    macs: int
    params: int
    layer_ms: tuple[float, ...] | None = None
    predicted_ms: float | None = None
    whole_ms: float | None = None
    halves_ms: tuple[float, float] | None = None
    accuracy: tuple[Accuracy, ...] = ()
    predicted_interval_ms: tuple[float, float] | None = None
    artifact: ArtifactAccuracy | None = None

    @property
    def test(self) -> Accuracy | None:
        """The figure of the trained network on the test split."""
        found = (a for a in reversed(self.accuracy) if a.split == "test" and not a.inherited)
        return next(found, None)

    @property
    def inherited_test(self) -> Accuracy | None:
        """The figure with a supernet's weights on the test split."""
        return next((a for a in self.accuracy if a.split == "test" and a.inherited), None)

    @property
    def validation(self) -> Accuracy | None:
        """The latest figure on the validation split."""
        return next((a for a in reversed(self.accuracy) if a.split == "validation"), None)

    @property
    def split_half(self) -> float | None:
        """Split-half difference: how far the halves are apart, as a share of the second."""
        return None if self.halves_ms is None else abs(self.halves_ms[0] / self.halves_ms[1] - 1)

    @property
    def noise_floor(self) -> float | None:
        """Error of `whole_ms` as the halves show it, a fraction."""
        return None if self.split_half is None else noise_floor(self.split_half)


@dataclass(frozen=True)
class HeatCell:
    """An operator at a layer shape.

    Attributes:
        operator, shape: where.
        status: a table's status, ``absent`` (no row) or ``inapplicable``.
        ms: marginal latency, with the ends of its interval where the row has them.
        ratio: to the fastest operator at this shape.
        flags: of the row, but for the word that its origin says already.
    """

    operator: str
    shape: LayerShape
    status: str
    ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    ratio: float | None = None
    flags: tuple[str, ...] = ()

    @property
    def level(self) -> int:
        """The colour, from 0."""
        octaves = math.log2(self.ratio or 1.0)
        return min(HEAT_LEVELS - 1, int(octaves * HEAT_STEPS_PER_OCTAVE + 1e-9))


@dataclass(frozen=True)
class HeatMap:
    """Latency by operator and layer shape on one target.

    Attributes:
        target: where.
        backbone: its name.
        shapes: distinct layer shapes in layer order.
        layers: for each shape, its layers as ``1–2, 5``.
        rows: an operator and its cells, in the order of the table.
        fixed: name and ms of stem, head and the price of a call.
        flags: every flag that occurs, with the number of cells.
    """

    target: Target
    backbone: str
    shapes: tuple[LayerShape, ...]
    layers: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    fixed: tuple[tuple[str, float], ...]
    flags: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class EvaluatedPoint:
    """One evaluated architecture: what it was worth and what it costs."""

    generation: int
    accuracy: float
    predicted_ms: float


@dataclass(frozen=True)
class Stage:
    """A stage of the search.

    Attributes:
        number: from 1.
        points: in the order of evaluation.
        winner: what it found; None where it is not finished.
        figure: the winner's accuracy among them, with its number of images.
    """

    number: int
    points: tuple[EvaluatedPoint, ...]
    winner: EvaluatedPoint | None
    figure: Accuracy | None = None

    @property
    def within_noise(self) -> tuple[EvaluatedPoint, ...]:
        """Those whose accuracy lies in the winner's 95% interval, the fastest first."""
        if self.figure is None or self.figure.interval is None:
            return ()
        low, _ = self.figure.interval
        alike = (point for point in self.points if point.accuracy >= low)
        return tuple(sorted(alike, key=lambda point: point.predicted_ms))

    @property
    def best_so_far(self) -> tuple[tuple[int, float], ...]:
        """Evaluations (from 1) that improved on all before, with their accuracy."""
        steps: list[tuple[int, float]] = []
        for number, point in enumerate(self.points, 1):
            if not steps or point.accuracy > steps[-1][1]:
                steps.append((number, point.accuracy))
        return tuple(steps)


@dataclass(frozen=True)
class ErrorFigures:
    """One line of ``hurricane verify``; fractions, None where there are too few networks."""

    count: int
    bias: float | None
    rmspe: float | None
    within_5: float | None
    within_10: float | None
    kendall_tau: float | None


@dataclass(frozen=True)
class GroupErrors:
    """A group of networks: the prediction's errors, and the split-half difference."""

    group: str
    prediction: ErrorFigures
    split_half: ErrorFigures
    failed: int

    @property
    def noise_floor(self) -> float | None:
        """RMSPE that a perfect prediction would show, a fraction."""
        return None if self.split_half.rmspe is None else noise_floor(self.split_half.rmspe)


@dataclass(frozen=True)
class VerifiedNetwork:
    """An end-to-end network: the table's sum and the time it took."""

    group: str
    label: str
    predicted_ms: float
    whole_ms: float


@dataclass(frozen=True)
class Verification:
    """What ``hurricane verify --json`` found."""

    measured_on: str
    groups: tuple[GroupErrors, ...]
    networks: tuple[VerifiedNetwork, ...]


@dataclass(frozen=True)
class TableFacts:
    """A lookup table as it was found for a report.

    Attributes:
        path: where it was found.
        rows: of the run's target.
        statuses: each with its number of rows.
        flagged: rows that carry a flag.
        measured_at: first and last time stamp; empty where rows have none.
        agent_versions: of the rows.
        calibration: of the table's sums, which searches use; None where there is none.
    """

    path: str
    rows: int
    statuses: tuple[tuple[str, int], ...]
    flagged: int
    measured_at: tuple[str, ...]
    agent_versions: tuple[str, ...]
    calibration: Calibration | None


@dataclass(frozen=True)
class Run:
    """Everything a report says about one run.

    Attributes:
        folder: of the run.
        config: as it was run.
        backbone: of its networks.
        backbone_name: what `load_backbone` takes to give it again.
        source: the table that the run names.
        target: the table's; None where the table is not at hand.
        table: what was found of it.
        fixed_ms: stem, head and the price of a call, by the table.
        space, winner, baseline, stages, heat, verification: what there is of them.
        baseline_folder: where the baseline was found.
        same_training: how the baseline's training compares with the winner's, in words.
        finalists: networks trained from scratch to choose the winner; none where it was one.
        comparison: of the search with baselines.
        beside: the network found and these baselines, one line of the comparison each.
        versions, seed: of the winner.
        model: size in bytes and SHA-256 of ``model.onnx``.
        gaps: for a part of the report, why it is not there or what is odd about it.
    """

    folder: Path
    config: Mapping[str, Any]
    backbone: Backbone
    backbone_name: str
    source: TableSource | None = None
    target: Target | None = None
    table: TableFacts | None = None
    fixed_ms: float | None = None
    space: SearchSpace | None = None
    winner: NetworkFigures | None = None
    baseline: NetworkFigures | None = None
    baseline_folder: Path | None = None
    same_training: str = ""
    stages: tuple[Stage, ...] = ()
    heat: HeatMap | None = None
    verification: Verification | None = None
    finalists: tuple[NetworkFigures, ...] = ()
    comparison: Comparison | None = None
    beside: tuple[Baseline, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    seed: int | None = None
    model: tuple[int, str] | None = None
    gaps: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def device(self) -> str:
        if self.target is not None:
            return self.target.device
        return self.source.target if self.source is not None else self.name

    @property
    def target_name(self) -> str:
        if self.target is not None:
            return self.target.name
        return self.source.target if self.source is not None else ""

    @property
    def origin(self) -> str:
        """Where the run's latencies come from; never ``measured`` unless the table says so."""
        return self.target.origin if self.target is not None else "origin unknown"

    @property
    def whole_word(self) -> str:
        """What a whole network's time is called: only a real device's is *measured*."""
        timed = ("measured", "simulated", "estimated")
        return self.origin if self.origin in timed else "timed"

    @property
    def verdict(self) -> Verdict | None:
        """Of the table's additivity check when the run began; None: there was none."""
        known = self.source.verdict if self.source is not None else None
        return None if known is None else Verdict(known)

    @property
    def verified(self) -> bool:
        """Whether predictions were found to be good."""
        return self.source is not None and self.source.verified

    @property
    def statistic(self) -> str | None:
        """What predictions and the budget are of, one of `spread.STATISTICS`; None: not known."""
        return self.source.statistic if self.source is not None else None

    @property
    def budget_ms(self) -> float | None:
        if self.space is not None:
            return self.space.budget_ms
        value = self.config.get("latency_ms")
        return float(value) if isinstance(value, int | float) else None


# --- Gathering ------------------------------------------------------------------------------


def gather_run(folder: str | Path) -> Run:
    """Reads a run's directory.

    Raises:
        BadRequest: the directory holds no run, or a file of it is broken.
    """
    path = Path(folder)
    config = read_config(path)
    searched = config.get("command") == "search"
    gaps: dict[str, str] = {}
    space = _optional(path / "space.json", SearchSpace.load)
    found = _optional(path / "architecture.json", Architecture.load)
    if found is None:
        gaps["winner"] = f"{path} holds no architecture.json yet: the run is not finished."
    if space is None:
        gaps["space"] = (
            f"{path} holds no space.json."
            if searched
            else f"{path} trained a given network: there was no search space."
        )
    source = (space.table if space else None) or (found.table if found else None)
    if source is None and config.get("table") is not None:
        where = f"run configuration {path / 'config.json'}: table"
        source = read_table_source(Fields(config["table"], where))
    named = space.backbone if space else found.backbone if found else config.get("backbone")
    if not isinstance(named, str):
        raise BadRequest(f"{path / 'config.json'}: backbone must be a text")
    backbone = load_backbone(named)
    run = Run(path, config, backbone, named, source=source, space=space)

    table, target, model = _find_table(path, source, named, gaps)
    if table is not None and target is not None:
        heat = heat_map(table, target, backbone, model)
        run = replace(run, target=target, table=_table_facts(table, target, model), heat=heat)
    if model is not None:
        run = replace(run, fixed_ms=model.fixed_ms)
    if found is not None:
        winner = network_figures("winner", found, backbone, model)
        if model is not None and found.predicted_ms is not None:
            now = sum(winner.layer_ms or ()) + model.fixed_ms
            if abs(now / found.predicted_ms - 1) > _SAME_MS:
                gaps["changed"] = (
                    f"By the table as it is now the network takes {ms(now)} ms, not the "
                    f"{ms(found.predicted_ms)} ms that the run predicted."
                )
        run = replace(run, winner=winner, seed=found.seed, versions=tuple(found.versions.items()))
        files = sorted(path.glob("finalist-*/architecture.json"))
        finalists = [
            network_figures(f.parent.name, Architecture.load(f), backbone, model) for f in files
        ]
        run = replace(run, finalists=tuple(finalists))
    run = _with_baseline(run, model, gaps)
    comparison = _optional(path / BASELINES, Comparison.load) if found is not None else None
    if found is not None and comparison is not None:
        beside = (comparison.found(found), *comparison.baselines)
        run = replace(run, comparison=comparison, beside=beside)
        gaps.pop("baseline", None)
    if searched:
        run = replace(run, stages=_read_stages(path, config, gaps))
    else:
        gaps["stages"] = f"{path} trained a given network: nothing was searched."
    run = replace(run, verification=_optional(path / VERIFICATION, read_verification))
    if run.verification is None:
        gaps["verification"] = (
            f"{path} holds no {VERIFICATION}: predictions were not checked against "
            f"end-to-end networks. `hurricane verify --json … > {path / VERIFICATION}` does it."
        )
    onnx = path / "model.onnx"
    if onnx.is_file():
        content = read_bytes(onnx, "model", MAX_MODEL_BYTES)
        run = replace(run, model=(len(content), hashlib.sha256(content).hexdigest()))
    return replace(run, gaps=gaps)


def heat_map(
    table: LookupTable, target: Target, backbone: Backbone, model: LatencyModel | None = None
) -> HeatMap:
    """The latencies of a target at a backbone's layers.

    Args:
        table: with rows of the target.
        target: one of the table's.
        backbone: gives the shapes and their order.
        model: of this table, for the price of a call.
    """
    shapes = backbone.distinct_shapes
    rows = {(r.operator, r.shape): r for r in table if r.target == target and r.batch == 1}
    names = list(
        dict.fromkeys(
            r.operator for (_, shape), r in rows.items() if shape in shapes and not _is_frame(r)
        )
    )
    fastest = {
        shape: min((rows[n, shape].latency_ms or math.inf) for n in names if _ok(rows, n, shape))
        for shape in shapes
        if any(_ok(rows, n, shape) for n in names)
    }
    cells = tuple((n, tuple(_cell(rows, n, s, fastest.get(s)) for s in shapes)) for n in names)
    words = [word for _, line in cells for cell in line for word in cell.flags]
    frame = [
        (label, rows.get(key))
        for label, key in (
            ("stem", (backbone.stem_name, backbone.stem_shape)),
            ("head", (backbone.head_name, backbone.head_shape)),
        )
    ]
    fixed = [(label, row.latency_ms) for label, row in frame if row and row.latency_ms is not None]
    if model is not None:
        fixed.append(("a call", model.call_ms))
    return HeatMap(
        target=target,
        backbone=backbone.name,
        shapes=shapes,
        layers=tuple(
            format_ranges(
                (i for i, shape in enumerate(backbone.layers) if shape == wanted),
                dash="–",
                comma=", ",
            )
            for wanted in shapes
        ),
        rows=cells,
        fixed=tuple(fixed),
        flags=tuple((word, words.count(word)) for word in sorted(set(words))),
    )


def read_verification(path: str | Path) -> Verification:
    """Reads what ``hurricane verify --json`` printed.

    Raises:
        BadRequest: it is not that; the message names file and field.
    """
    content = Fields(read_json(path, "verification"), f"verification {path}")
    networks = []
    for item in content.objects("networks"):
        if item.optional_number("measured_ms") is not None:
            networks.append(
                VerifiedNetwork(
                    item.text("group"),
                    item.text("label"),
                    item.number("predicted_ms"),
                    item.number("measured_ms"),
                )
            )
    if not all(0 < v <= MAX_LATENCY_MS for n in networks for v in (n.predicted_ms, n.whole_ms)):
        raise content.fail("networks", "timed with more than 0 ms and less than an hour")
    groups = tuple(
        GroupErrors(
            item.text("group"),
            _errors(item.object("prediction")),
            _errors(item.object("split_half" if "split_half" in item.as_dict() else "retest")),
            item.integer("failed"),
        )
        for item in content.objects("groups")
    )
    return Verification(content.text("measured_on"), groups, tuple(networks))


def reductions(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run's configuration does less of than the defaults, which are a full run."""
    defaults = SearchSettings()
    found = []
    for name, words in (
        ("evaluations", "{now:,} architectures evaluated in each stage at most, not {full:,}"),
        ("population", "{now} architectures in a generation, not {full}"),
        ("stages", "stage 1 alone: the first layers are not searched"),
        ("training", "all trainings {now:g} times as long as the preset's"),
    ):
        now, full = config.get(name), getattr(defaults, name)
        matters = config.get("command") == "search" or name == "training"
        matters = matters and (name != "stages" or config.get("split") != 0)
        if matters and isinstance(now, int | float) and now < full:
            found.append(words.format(now=now, full=full))
    if config.get("preset") is not None:
        found.append("trainings with settings of their own, not the data's preset")
    return tuple(found)


def commands(run: Run) -> tuple[str, ...]:
    """The commands that give a run again, in order."""
    lines = []
    source, space = run.source, run.space
    if source is not None and run.target is not None and source.path not in shipped_tables():
        lines.append(fill_command(source.path, run.backbone, run.target))
    settings = {
        f.name: run.config[f.name]
        for f in fields(SearchSettings)
        if f.name in run.config and run.config[f.name] != f.default
    }
    calibration = run.table.calibration if run.table is not None else None
    if calibration is not None and source is not None:
        words = ["hurricane", "verify", "--table", source.path, "--target", source.target]
        words += ["--backbone", run.backbone_name]
        words += ["--random", str(calibration.networks + calibration.held_out)]
        words += ["--uniform"] if any(g.group == "uniform" for g in calibration.groups) else []
        few = calibration.check is None or calibration.check.cause is Cause.TOO_FEW
        lines.append(shlex.join([*words, *(["--store"] if few else [])]))
    if space is not None and source is not None:
        words = ["hurricane", "space", "--table", source.path, "--target", source.target]
        words += ["--backbone", space.backbone, "--latency", f"{space.budget_ms:.12g}"]
        words += ["--method", space.method, "--top", str(space.top), "--split", str(space.split)]
        if space.alpha is not None and space.score_latency is not None:
            words += ["--alpha", "auto" if space.alpha_mode == "auto" else repr(space.alpha)]
            explores = [i for i, name in enumerate(space.exploring) if name is not None]
            words += ["--exploring-layers", str(space.layers - min(explores, default=space.layers))]
            words += ["--score-latency", space.score_latency]
        file = f"{run.name}.space.json"
        words += ["--statistic", source.statistic]
        words += ["--accept-table"] if source.verdict == Verdict.NOT_ADDITIVE else []
        words += ["-o", file]
        lines.append(shlex.join(words))
        words = ["hurricane", "search", "--space", file]
        lines.append(shlex.join([*words, *_options(settings), "-o", str(run.folder)]))
    trained = {k: v for k, v in settings.items() if k in ("data", "seed", "device", "training")}
    if run.config.get("command") == "train":
        words = ["hurricane", "train", str(run.folder / "architecture.json"), *_options(trained)]
        lines.append(shlex.join([*words, "-o", f"{run.folder}-again"]))
    if run.baseline is not None and run.baseline_folder is not None:
        words = ["hurricane", "train", str(run.baseline_folder / "architecture.json")]
        place = ["-o", str(run.baseline_folder)]
        lines.append(shlex.join([*words, *_options(trained), *place]))
    if run.verification is not None and source is not None:
        counts = [n.group for n in run.verification.networks]
        words = ["hurricane", "verify", "--table", source.path, "--target", source.target]
        words += ["--backbone", run.backbone_name]
        words += ["--random", str(counts.count("random"))] if "random" in counts else []
        words += ["--uniform"] if "uniform" in counts else []
        words += [str(run.folder / "architecture.json")] if "given" in counts else []
        target = shlex.quote(str(run.folder / VERIFICATION))
        words += ["--no-store"] if calibration is not None else []
        lines.append(f"{shlex.join([*words, '--json'])} > {target}")
    return tuple(lines)


def _optional(path: Path, read: Callable[[Path], Any]) -> Any:
    return read(path) if path.exists() else None


def _find_table(
    path: Path, source: TableSource | None, backbone: str, gaps: dict[str, str]
) -> tuple[LookupTable | None, Target | None, LatencyModel | None]:
    """The run's table: where the run says, or by its name in the run's folder or above it."""
    if source is None:
        gaps["heat"] = f"{path} names no lookup table."
        return None, None, None
    name = Path(source.path).name
    places = [source.path, path / name, path.parent / name]
    place = next((p for p in places if p in shipped_tables() or os.path.isfile(p)), None)
    if place is None:
        gaps["heat"] = (
            f"The lookup table {source.path} was not found here, so there are no latencies by "
            "operator, and nothing tells whether they were measured or simulated."
        )
        return None, None, None
    table = open_table(place)
    if table.sha256() != source.sha256:
        gaps["table"] = (
            f"The lookup table {place} has changed since the run: latencies by operator and "
            "by layer are those of the table as it is now."
        )
    try:
        target = table.target(source.target)
    except BadRequest as error:
        gaps["heat"] = f"There are no latencies by operator: {error}."
        return None, None, None
    try:
        latency = open_latency(
            place, backbone, source.target, accept_table=True, statistic=source.statistic
        )
        return table, target, latency.model
    except BadRequest as error:
        gaps["layers"] = f"The table gives no latency of layers: {error}."
        return table, target, None


def _table_facts(table: LookupTable, target: Target, model: LatencyModel | None) -> TableFacts:
    rows = [row for row in table if row.target == target]
    statuses = [row.status for row in rows]
    times = sorted(row.measured_at for row in rows if row.measured_at)
    return TableFacts(
        path=str(table.path),
        rows=len(rows),
        statuses=tuple((s, statuses.count(s)) for s in dict.fromkeys(sorted(statuses))),
        flagged=sum(any(word != row.origin for word in row.flag_words) for row in rows),
        measured_at=tuple(dict.fromkeys((times[0], times[-1]))) if times else (),
        agent_versions=tuple(sorted({row.agent_version for row in rows if row.agent_version})),
        calibration=model.calibration if model is not None else None,
    )


def network_figures(
    label: str, found: Architecture, backbone: Backbone, model: LatencyModel | None
) -> NetworkFigures:
    """A network's figures, with the latency of each layer by a table where that is at hand."""
    layer_ms = None
    if model is not None and all(name in model.operators for name in found.operators):
        codes = [model.operators.index(name) for name in found.operators]
        cells = [float(model.latency_ms[layer, code]) for layer, code in enumerate(codes)]
        layer_ms = tuple(cells) if all(map(math.isfinite, cells)) else None
    return NetworkFigures(
        label=label,
        operators=found.operators,
        macs=backbone.macs(found.operators),
        params=backbone.params(found.operators),
        layer_ms=layer_ms,
        predicted_ms=found.predicted_ms,
        whole_ms=found.measured_ms,
        halves_ms=found.measured_halves_ms,
        accuracy=found.accuracy,
        predicted_interval_ms=found.predicted_interval_ms,
        artifact=found.artifact_accuracy,
    )


def _with_baseline(run: Run, model: LatencyModel | None, gaps: dict[str, str]) -> Run:
    """The run with the network it is compared with, if there is one."""
    places = (run.folder / BASELINE, run.folder.parent / BASELINE)
    place = next((p for p in places if (p / "architecture.json").is_file()), None)
    if run.folder.name == BASELINE or place is None:
        gaps["baseline"] = (
            f"No network to compare with was found: {places[0]} holds none. `hurricane train` "
            "of a uniform network, with the run's data and seed, makes one there."
        )
        return run
    found = Architecture.load(place / "architecture.json")
    if load_backbone(found.backbone).layers != run.backbone.layers:
        gaps["baseline"] = f"The network in {place} has another backbone and is left out."
        return run
    if found.table is None or run.source is None or not _same_table(found.table, run.source):
        found = replace(
            found,
            predicted_ms=None,
            predicted_interval_ms=None,
            measured_ms=None,
            measured_halves_ms=None,
            artifact_accuracy=None,
        )
    one = set(found.operators)
    label = f"uniform {found.operators[0]}" if len(one) == 1 else "baseline"
    figures = network_figures(label, found, run.backbone, model)
    if figures.layer_ms is not None and model is not None:
        figures = replace(
            figures,
            predicted_ms=model.latency_of(found.operators),
            predicted_interval_ms=model.interval_of(found.operators),
        )
    compared = _compare_training(run.config, place)
    return replace(run, baseline=figures, baseline_folder=place, same_training=compared)


def _same_table(a: TableSource, b: TableSource) -> bool:
    return (a.sha256, a.target) == (b.sha256, b.target)


def _compare_training(config: Mapping[str, Any], baseline: Path) -> str:
    if not (baseline / "config.json").is_file():
        return "how it was trained is not recorded"
    other = read_config(baseline)
    keys = ("data", "seed", "training", "preset")
    differing = [key for key in keys if config.get(key) != other.get(key)]
    if not differing:
        return "trained the same way (data, seed, length and settings)"
    words = ", ".join(
        f"{key} {json.dumps(other.get(key))} where the winner has {json.dumps(config.get(key))}"
        for key in differing
        if key != "preset"
    )
    return "trained in another way: " + (words or "other training settings")


def _read_stages(path: Path, config: Mapping[str, Any], gaps: dict[str, str]) -> tuple[Stage, ...]:
    wanted = 1 if config.get("split") == 0 else config.get("stages", 2)
    stages = []
    for number in range(1, (wanted if isinstance(wanted, int) else 2) + 1):
        file = path / f"evaluated-{number}.csv"
        points = read_evaluated(file) if file.exists() else ()
        if not points:
            gaps["stages"] = f"Stage {number} has evaluated nothing yet."
            break
        found = _optional(path / f"winner-{number}.json", Architecture.load)
        accuracy = found.accuracy if found else ()
        figure = next((a for a in accuracy if a.split == "validation"), None)
        winner = None
        if figure is not None and found.predicted_ms is not None:
            winner = EvaluatedPoint(-1, figure.value, found.predicted_ms)
        stages.append(Stage(number, points, winner, figure))
    return tuple(stages)


def read_evaluated(path: Path) -> tuple[EvaluatedPoint, ...]:
    """What a stage evaluated; a last line that is being written is not read."""
    content = read_bytes(path, "list of evaluated architectures")
    points = []
    rows = evaluated_rows(path, content[: content.rfind(b"\n") + 1])
    for line, row in enumerate(rows, 2):
        try:
            values = dict(zip(EVALUATED_COLUMNS, row, strict=True))
            point = EvaluatedPoint(
                int(values["generation"]), float(values["accuracy"]), float(values["predicted_ms"])
            )
        except ValueError as error:
            raise BadRequest(f"{path} line {line} is broken: {error}") from error
        if not (0 <= point.accuracy <= 1 and 0 < point.predicted_ms < math.inf):
            raise BadRequest(f"{path} line {line}: accuracy or predicted_ms is out of range")
        points.append(point)
    return tuple(points)


def _errors(item: Fields) -> ErrorFigures:
    def optional(key: str) -> float | None:
        return None if item.get(key) is None else item.number(key, -math.inf)

    return ErrorFigures(
        item.integer("count"),
        *(optional(k) for k in ("bias", "rmspe", "within_5", "within_10", "kendall_tau")),
    )


def _cell(
    rows: Mapping[tuple[str, LayerShape], Row], name: str, shape: LayerShape, fastest: float | None
) -> HeatCell:
    row = rows.get((name, shape))
    if row is None:
        return HeatCell(
            name, shape, "absent" if applies(name, shape, unknown=True) else "inapplicable"
        )
    flags = tuple(word for word in row.flag_words if word != row.origin)
    if row.latency_ms is None or fastest is None:
        return HeatCell(name, shape, row.status, flags=flags)
    return HeatCell(
        name,
        shape,
        row.status,
        row.latency_ms,
        row.ci_low_ms,
        row.ci_high_ms,
        row.latency_ms / fastest,
        flags,
    )


def _ok(rows: Mapping[tuple[str, LayerShape], Row], name: str, shape: LayerShape) -> bool:
    row = rows.get((name, shape))
    return row is not None and row.ok


def _is_frame(row: Row) -> bool:
    return row.is_stem or row.is_head


def _options(settings: Mapping[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def family(name: str) -> str:
    """An operator's family as a word for its colour: ``sep``, ``mb``, ``choice`` or ``own``."""
    try:
        found = parse_operator(name)
    except BadRequest:
        return "own"
    return "own" if found.custom is not None else found.family.lower()


# --- Numbers in words -----------------------------------------------------------------------


def ms(value: float | None, digits: int = 4) -> str:
    """Milliseconds with a fixed number of significant digits."""
    if value is None:
        return "–"
    if value >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−") if value else "0"


def interval(ends: tuple[float, float]) -> str:
    """The two ends of an interval, in milliseconds."""
    return f"{ms(ends[0])}–{ms(ends[1])}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def share(figure: Accuracy | ArtifactAccuracy | None) -> str:
    """An accuracy with its 95% interval and number of images, where they are known."""
    if figure is None or figure.interval is None:
        return percent(figure.value if figure else None)
    return f"{percent(figure.value)} ({ends(figure)}, {figure.images:,} images)"


def ends(figure: Accuracy | ArtifactAccuracy) -> str:
    """The ends of an accuracy's 95% interval; empty where they are not known."""
    if figure.interval is None:
        return ""
    low, high = figure.interval
    return f"{100 * low:.1f}–{percent(high)}"


def signed(value: float, form: str = ".1f") -> str:
    """A number that always shows its sign."""
    text = f"{value:+{form}}"
    return text.replace("-", "−") if float(text) else text[1:]


def signed_percent(value: float | None) -> str:
    """A share as a percentage that always shows its sign."""
    return "–" if value is None else f"{signed(100 * value)} %"


def count(value: int) -> str:
    """A whole number; large ones as a power of ten."""
    if value < 10_000_000:
        return f"{value:,}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    powers = str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{powers}"


def millions(value: int) -> str:
    """A count in millions with three significant digits."""
    return f"{ms(value / 1e6, 3)} M"


# --- Plots ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """From values to places in a picture.

    Attributes:
        low, high: values at the two ends.
        start, end: their places, in pixels; a vertical axis has the larger one first.
        log: whether equal ratios take equal room.
        percent: whether ticks are written as percentages.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    percent: bool = False

    @classmethod
    def over(
        cls,
        values: Iterable[float],
        start: float,
        end: float,
        log: bool = False,
        percent: bool = False,
    ) -> Axis:
        """An axis that holds all values, with a little room at both ends."""
        found = list(values)
        low, high = min(found), max(found)
        if log:
            room = (high / low) ** 0.05 if high > low else 1.1
            return cls(low / room, high * room, start, end, True, percent)
        room = 0.06 * (high - low) or 0.02 * abs(high) or 0.02
        if percent:  # a share ends at 100%, and so does its axis
            return cls(max(0.0, low - room), min(1.0, high + room), start, end, False, True)
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        """The place of a value."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @cached_property
    def ticks(self) -> tuple[tuple[str, float], ...]:
        """Label and place of each tick."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            decades = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
            inside = [v for v in decades if self.low <= v <= self.high]
            return tuple((f"{v:g}", self.at(v)) for v in inside)
        unit = 100 if self.percent else 1
        low, high = self.low * unit, self.high * unit
        step = _nice_step((high - low) / 6)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        return tuple((f"{n * step:.{digits}f}", self.at(n * step / unit)) for n in numbers)


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


@dataclass(frozen=True)
class Mark:
    """A network in the plot of latencies: predicted, and timed with its two halves."""

    label: str
    predicted: float | None
    whole: float | None
    halves: tuple[float, float] | None


@dataclass(frozen=True)
class LatencyPlot:
    """Winner and baseline against the budget; places in pixels along `x`."""

    x: Axis
    budget: float | None
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class StagePlot:
    """A stage's architectures (accuracy over latency) and its best so far (over evaluations).

    Attributes:
        shades: SVG paths of dots, from early to late generations.
        winner: its place; None where the stage is not finished.
        budget: its place; None where it is not known.
        number, best_y: axes of the best so far.
        best: SVG path of it.
    """

    x: Axis
    y: Axis
    shades: tuple[str, ...]
    winner: tuple[float, float] | None
    budget: float | None
    number: Axis
    best_y: Axis
    best: str


@dataclass(frozen=True)
class VerificationPlot:
    """End-to-end networks: the table's sum against the time taken; equal axes.

    Attributes:
        groups: each group with the SVG path of its dots.
        identity: ends of the line of equality, and of the lines 5% beside it.
    """

    x: Axis
    y: Axis
    groups: tuple[tuple[str, str], ...]
    identity: tuple[tuple[float, float, float, float], ...]


def latency_plot(run: Run) -> LatencyPlot | None:
    """Winner and baseline against the budget; None where there is no latency."""
    networks = [n for n in (run.winner, run.baseline) if n is not None]
    values = [v for n in networks for v in (n.predicted_ms, n.whole_ms, *(n.halves_ms or ())) if v]
    if not values:
        return None
    budget = run.budget_ms
    x = Axis.over([*values, *([budget] if budget else [])], 14, 346)
    marks = tuple(
        Mark(
            n.label,
            None if n.predicted_ms is None else x.at(n.predicted_ms),
            None if n.whole_ms is None else x.at(n.whole_ms),
            None if n.halves_ms is None else (x.at(min(n.halves_ms)), x.at(max(n.halves_ms))),
        )
        for n in networks
    )
    return LatencyPlot(x, None if budget is None else x.at(budget), marks)


def range_axis(space: SearchSpace) -> Axis:
    """The axis on which a space lies within the reachable range."""
    low, high = space.reachable_ms
    values = (low, high, space.budget_ms, space.lowest_ms, space.highest_ms)
    return Axis.over(values, 8, 352, log=high / low >= _LOG_FROM)


def stage_plot(stage: Stage, run: Run) -> StagePlot:
    """A stage in pictures; the latency axis is the same in all stages of a run."""
    every = [p.predicted_ms for s in run.stages for p in s.points]
    budget = run.budget_ms
    x = Axis.over([*every, *([budget] if budget else [])], 46, 350)
    accuracies = [p.accuracy for p in stage.points]
    y = Axis.over(accuracies, 196, 14, percent=True)
    generations = max(p.generation for p in stage.points) + 1
    shades = [
        dots(
            (x.at(p.predicted_ms), y.at(p.accuracy))
            for p in stage.points
            if p.generation * SHADES // generations == shade
        )
        for shade in range(SHADES)
    ]
    steps = stage.best_so_far
    number = Axis(0, len(stage.points), 46, 350)
    best_y = Axis.over([a for _, a in steps], 96, 14, percent=True)
    path = f"M{number.at(steps[0][0])} {best_y.at(steps[0][1])}" + "".join(
        f"H{number.at(n)}V{best_y.at(a)}" for n, a in steps[1:]
    )
    winner = stage.winner
    return StagePlot(
        x=x,
        y=y,
        shades=tuple(shades),
        winner=(x.at(winner.predicted_ms), y.at(winner.accuracy)) if winner else None,
        budget=None if budget is None else x.at(budget),
        number=number,
        best_y=best_y,
        best=path + f"H{number.at(len(stage.points))}",
    )


def verification_plot(found: Verification) -> VerificationPlot | None:
    """Predicted against timed; None where no network was timed."""
    values = [v for n in found.networks for v in (n.predicted_ms, n.whole_ms)]
    if not values:
        return None
    log = max(values) / min(values) >= _LOG_FROM
    x, y = Axis.over(values, 52, 350, log), Axis.over(values, 308, 10, log)
    lines = []
    for factor in (1.0, 0.95, 1.05):
        low, high = max(x.low, x.low / factor), min(x.high, x.high / factor)
        lines.append((x.at(low), y.at(low * factor), x.at(high), y.at(high * factor)))
    groups = tuple(
        (
            group,
            dots(
                (x.at(n.whole_ms), y.at(n.predicted_ms)) for n in found.networks if n.group == group
            ),
        )
        for group in dict.fromkeys(n.group for n in found.networks)
    )
    return VerificationPlot(x, y, groups, tuple(lines))


def dots(places: Iterable[tuple[float, float]]) -> str:
    """Dots as one path: lines of no length with round ends, a tenth of a circle's bytes."""
    return "".join(f"M{x:g} {y:g}h0" for x, y in places)


# --- The page and the command -----------------------------------------------------------------


def write_report(
    run_folders: Sequence[str | Path],
    output: str | Path,
    title: str,
    notes: Sequence[str] = (),
) -> Path:
    """Writes the report of one run, or of several side by side.

    Args:
        run_folders: the runs' directories, in the order in which they are shown.
        output: the HTML file.
        title: of the page.
        notes: sentences that stand under the title, such as how a run was cut short.

    Raises:
        BadRequest: no directory is given, or one holds no run or a broken file.
        HurricaneError: the file cannot be written.
    """
    runs = [gather_run(folder) for folder in run_folders]
    if not runs:
        raise BadRequest("name at least one run directory")
    write_atomically(output, render_report(runs, title, notes).encode(), make_folder=True)
    return Path(output)


def render(template: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: its file's name, beside this module.
        values: that it shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ms=ms,
        percent=percent,
        share=share,
        ends=ends,
        signed_percent=signed_percent,
        signed_ms=lambda value: signed(value, ".3g"),
        count=count,
        millions=millions,
        family=family,
        interval=interval,
        tau=lambda value: "–" if value is None else f"{value:.3f}".replace("-", "−"),
        json=lambda value: json.dumps(value, ensure_ascii=False),
    )
    page = environment.get_template(template).render(**values)
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


def render_report(runs: Sequence[Run], title: str, notes: Sequence[str] = ()) -> str:
    """The page of runs as text."""
    together: dict[tuple[LayerShape, ...], list[Run]] = {}
    for run in runs:
        together.setdefault(run.backbone.layers, []).append(run)
    heats = list(dict.fromkeys(run.heat for run in runs if run.heat is not None))
    return render(
        "report.html.j2",
        title=title,
        notes=notes,
        runs=runs,
        groups=list(together.values()),
        heats=heats,
        calibrated=any(
            run.table and run.table.calibration and run.table.calibration.applied for run in runs
        ),
        heat_levels=HEAT_LEVELS,
        plots={
            "latency": latency_plot,
            "range": range_axis,
            "stage": stage_plot,
            "verification": verification_plot,
        },
        commands=commands,
        report_line=shlex.join(["hurricane", "report", *(str(r.folder) for r in runs)])
        + " -o report.html",
        reductions=reductions,
    )
