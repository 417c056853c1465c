"""A found network on disk: `architecture.json`."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..ops.backbone import Backbone, load_backbone, shipped_backbones
from ..ops.errors import BadRequest
from ..ops.jsonfile import Fields, write_json
from ..ops.pool import GATES
from .proportion import interval_of, interval_text, wilson_interval
from .spread import QUIET, STATISTICS
from .table import COMPUTING, ORIGINS
from .verdict import Verdict

FORMAT_VERSION = 1

SUPERNET = "supernet of stage"
"""How figures with a supernet's weights begin to say how they were obtained."""

_DISTRIBUTIONS = ("hurricane-nas", "numpy", "torch", "onnx")


@dataclass(frozen=True)
class TableSource:
    """The lookup table that latencies came from.

    Attributes:
        path: where it was read.
        sha256: of the file's bytes.
        target: which of the table's targets.
        verdict: of its additivity check when it was read, a `lookup_tables.verdict.Verdict`; None:
            there was none. ``not-additive`` is there only where it was accepted all the same.
        origin: of its latencies, and so of those that its target tells.
        statistic: that latencies are of, one of `spread.STATISTICS`.
    """

    path: str
    sha256: str
    target: str
    verdict: str | None = None
    origin: str = "measured"
    statistic: str = QUIET

    @property
    def verified(self) -> bool:
        """Whether its sums were found to predict end-to-end networks."""
        return self.verdict is not None and Verdict(self.verdict).verified


@dataclass(frozen=True)
class Accuracy:
    """One accuracy figure and where it comes from.

    Attributes:
        value: share of images classified rightly, 0 to 1.
        split: ``validation`` or ``test``.
        how: ``supernet`` (with inherited weights) or ``retrained`` (from scratch), and on what.
        images: of the split; None: an earlier version did not say.
    """

    value: float
    split: str
    how: str
    images: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Between which shares the true one lies, 95%, as far as the number of images goes."""
        if self.images is None:
            return None
        return interval_of(self.value, self.images)

    @property
    def inherited(self) -> bool:
        """Whether it is of a supernet's weights, and not of a network trained by itself."""
        return self.how.startswith(SUPERNET)

    @property
    def text(self) -> str:
        """Value, interval, number of images, and how it was obtained."""
        if self.images is None or self.interval is None:
            return f"{self.value:.1%} ({self.how})"
        return f"{self.value:.1%} ({interval_text(*self.interval, self.images)}; {self.how})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        low, high = self.interval or (None, None)
        return {**asdict(self), "low": low, "high": high}


@dataclass(frozen=True)
class TrainingData:
    """The data that a network was trained on, as far as using the network needs it.

    Attributes:
        spec: the text it was loaded from, see `search.data.load_data`.
        classes: class names, in the order of the network's outputs.
        mean, std: of the training images by channel, in units of 1 (white).
    """

    spec: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ArtifactAccuracy:
    """Accuracy on the test split of the file that a target loads, computed by its runtime.

    Attributes:
        right, images: images classified rightly, and all images of the split.
        data: spec of the data.
        target: name of the target that the file ran on.
        origin: ``measured`` or ``emulated``.
        runtime_version: of the target.
        format: of the file.
        precision: that the target computes in; what the file stores otherwise is in the flags.
        converter: what made the file, with versions; empty: the exported graph itself.
        calibration: source of the calibration data; empty where there was none.
        artifact_sha256: of the file.
        flags: what the runtime said of it, such as ``precision:…``.
    """

    right: int
    images: int
    data: str
    target: str
    origin: str
    runtime_version: str
    format: str
    precision: str
    converter: str
    calibration: str
    artifact_sha256: str
    flags: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """Share of images classified rightly, 0 to 1."""
        return self.right / self.images

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        low, high = self.interval
        return _with_lists({"value": self.value, "low": low, "high": high, **asdict(self)})

    @property
    def interval(self) -> tuple[float, float]:
        """Between which shares the true one lies, 95%, as far as the number of images goes."""
        return wilson_interval(self.right, self.images)

    @property
    def how(self) -> str:
        """How it was obtained, in words."""
        facts = [
            f"{self.precision} {self.format} on {self.target}",
            f"runtime {self.runtime_version}" if self.runtime_version else "",
            "" if self.origin == "measured" else self.origin,
            f"calibrated with {self.calibration}" if self.calibration else "",
            interval_text(*self.interval, self.images),
            *self.flags,
        ]
        return ", ".join(filter(None, facts))


@dataclass(frozen=True)
class Architecture:
    """One operator for each learnable layer of a backbone, with what is known about it.

    Attributes:
        backbone: name of a shipped backbone, or path of a backbone file.
        operators: one name for each layer.
        gate: of squeeze-and-excitation.
        table: what `predicted_ms` was computed from.
        budget_ms: the latency it was searched for.
        predicted_ms: latency by the table.
        predicted_interval_ms: of `predicted_ms`, 90% (`LatencyModel.interval`); None: not known.
        measured_ms: latency on the target; None until measured.
        measured_halves_ms: over the first and the second half of the rounds.
        accuracy: figures, each with how it was obtained; of fp32 networks.
        artifact_accuracy: of the file for the table's target; None until measured.
        trained_on: data of its weights; None until trained.
        method: by which the search chose the operators that could stand at a layer
            (`search.candidates`); None: not searched, or by an earlier version.
        seed: of the search.
        versions: of Python and the packages that made it.
    """

    backbone: str
    operators: tuple[str, ...]
    gate: str = GATES[0]
    table: TableSource | None = None
    budget_ms: float | None = None
    predicted_ms: float | None = None
    predicted_interval_ms: tuple[float, float] | None = None
    measured_ms: float | None = None
    measured_halves_ms: tuple[float, float] | None = None
    accuracy: tuple[Accuracy, ...] = ()
    artifact_accuracy: ArtifactAccuracy | None = None
    trained_on: TrainingData | None = None
    method: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The content of `architecture.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "backbone": self.backbone,
            "operators": list(self.operators),
            "gate": self.gate,
            "table": asdict(self.table) if self.table else None,
            "budget_ms": self.budget_ms,
            "predicted_ms": self.predicted_ms,
            "predicted_interval_ms": list(self.predicted_interval_ms or ()) or None,
            "measured_ms": self.measured_ms,
            "measured_halves_ms": list(self.measured_halves_ms or ()) or None,
            "accuracy": [figure.to_dict() for figure in self.accuracy],
            "artifact_accuracy": self.artifact_accuracy.to_dict()
            if self.artifact_accuracy
            else None,
            "trained_on": _with_lists(asdict(self.trained_on)) if self.trained_on else None,
            "method": self.method,
            "seed": self.seed,
            "versions": dict(self.versions),
        }

    def save(self, path: str | Path) -> None:
        """Writes the file atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        """Reads and validates the file; operators must fit the backbone's layers.

        Raises:
            BadRequest: no such file, a missing or wrong field, an unknown operator, or an
                operator that cannot stand at its layer. The message names file and field.
        """
        fields = Fields.load(path, "architecture file", FORMAT_VERSION)
        table = fields.optional_object("table")
        versions = fields.optional_object("versions")
        architecture = cls(
            backbone=_beside(fields.text("backbone"), Path(path).parent),
            operators=fields.texts("operators"),
            gate=fields.choice("gate", GATES),
            table=read_table_source(table) if table else None,
            budget_ms=fields.optional_number("budget_ms"),
            predicted_ms=_read_latency(fields, "predicted_ms"),
            predicted_interval_ms=_read_interval(fields),
            measured_ms=_read_latency(fields, "measured_ms"),
            measured_halves_ms=_read_halves(fields),
            accuracy=tuple(read_accuracy(item) for item in fields.objects("accuracy")),
            artifact_accuracy=_read_artifact_accuracy(fields.optional_object("artifact_accuracy")),
            trained_on=_read_training_data(fields.optional_object("trained_on")),
            method=fields.optional_text("method"),
            seed=fields.optional_integer("seed"),
            versions={k: str(v) for k, v in versions.as_dict().items()} if versions else {},
        )
        try:
            backbone = architecture.load_backbone()
            _check_training_data(architecture.trained_on, backbone)
        except BadRequest as error:
            raise BadRequest(f"architecture file {path}: {error}") from error
        return architecture

    def load_backbone(self) -> Backbone:
        """The backbone, with the operators checked against its layers."""
        backbone = load_backbone(self.backbone)
        backbone.check(self.operators)
        return backbone

    def with_accuracy(self, *figures: Accuracy) -> Architecture:
        """A copy with figures added; one of the same split and origin is replaced."""
        fresh = {(f.split, f.how) for f in figures}
        kept = tuple(f for f in self.accuracy if (f.split, f.how) not in fresh)
        return replace(self, accuracy=kept + figures)


def read_table_source(fields: Fields) -> TableSource:
    """From a JSON object to the table it names."""
    verdict = None
    if (found := fields.optional_text("verdict")) is not None:
        try:
            verdict = str(Verdict(found))
        except ValueError:
            raise fields.fail("verdict", f"one of {', '.join(Verdict)}") from None
    origin = "measured"  # an earlier version did not say
    if fields.optional_text("origin") is not None:
        origin = fields.choice("origin", ORIGINS)
    statistic = QUIET  # nor did it know others
    if fields.optional_text("statistic") is not None:
        statistic = fields.choice("statistic", STATISTICS)
    return TableSource(
        fields.text("path"),
        fields.text("sha256"),
        fields.text("target"),
        verdict,
        origin,
        statistic,
    )


def backbone_reference(backbone: Backbone) -> str:
    """What `load_backbone` takes to give this backbone again: a shipped name or a path."""
    shipped = backbone.name in shipped_backbones() and backbone.source == f"{backbone.name}.toml"
    return backbone.name if shipped else backbone.source


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that bear on a result."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _beside(backbone: str, folder: Path) -> str:
    """A relative backbone path that does not exist here is looked for beside the file."""
    if backbone in shipped_backbones() or os.path.isfile(backbone):
        return backbone
    candidate = str(folder / backbone)
    return candidate if os.path.isfile(candidate) else backbone


def _read_latency(fields: Fields, key: str) -> float | None:
    value = fields.optional_number(key)
    if value == 0:
        raise fields.fail(key, "a number above 0")
    return value


def _read_halves(fields: Fields) -> tuple[float, float] | None:
    halves = fields.optional_pair("measured_halves_ms")
    if halves is not None and min(halves) == 0:
        raise fields.fail("measured_halves_ms", "two numbers above 0")
    return halves


def _read_interval(fields: Fields) -> tuple[float, float] | None:
    interval = fields.optional_pair("predicted_interval_ms")
    predicted = fields.optional_number("predicted_ms")
    if interval is not None and not (
        predicted is not None and interval[0] <= predicted <= interval[1]
    ):
        raise fields.fail("predicted_interval_ms", "two numbers with predicted_ms between them")
    return interval


def read_accuracy(fields: Fields) -> Accuracy:
    value = fields.number("value")
    if value > 1:
        raise fields.fail("value", "a share between 0 and 1")
    split, how = fields.choice("split", ("validation", "test")), fields.text("how")
    if fields.optional_integer("images") is None:
        return Accuracy(value, split, how)
    images = fields.integer("images", 1)
    if not math.isclose(value * images, round(value * images), abs_tol=1e-6):
        raise fields.fail("value", f"a share of {images} images")
    return Accuracy(value, split, how, images)


def _with_lists(values: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _read_artifact_accuracy(fields: Fields | None) -> ArtifactAccuracy | None:
    if fields is None:
        return None
    images = fields.integer("images", 1)
    right = fields.integer("right")
    if right > images:
        raise fields.fail("right", f"at most {images}, the number of images")
    if not math.isclose(fields.number("value"), right / images, abs_tol=1e-9):
        raise fields.fail("value", "right / images")
    digest = fields.text("artifact_sha256")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise fields.fail("artifact_sha256", "64 hexadecimal digits")
    return ArtifactAccuracy(
        right=right,
        images=images,
        data=fields.text("data"),
        target=fields.text("target"),
        origin=fields.choice("origin", COMPUTING),
        runtime_version=_text_or_empty(fields, "runtime_version"),
        format=fields.text("format"),
        precision=fields.text("precision"),
        converter=_text_or_empty(fields, "converter"),
        calibration=_text_or_empty(fields, "calibration"),
        artifact_sha256=digest,
        flags=fields.texts("flags"),
    )


def _text_or_empty(fields: Fields, key: str) -> str:
    return "" if fields.get(key) == "" else fields.text(key)


def _read_training_data(fields: Fields | None) -> TrainingData | None:
    if fields is None:
        return None
    found = TrainingData(
        fields.text("spec"), fields.texts("classes"), fields.numbers("mean"), fields.numbers("std")
    )
    if not found.std or min(found.std) == 0:
        raise fields.fail("std", "numbers above 0")
    return found


def _check_training_data(found: TrainingData | None, backbone: Backbone) -> None:
    if found is None:
        return
    if len(found.classes) != backbone.classes or len(set(found.classes)) != backbone.classes:
        raise BadRequest(
            f"trained_on has {len(set(found.classes))} classes, the head of {backbone.name} has "
            f"{backbone.classes}"
        )
    if not len(found.mean) == len(found.std) == backbone.input_channels:
        raise BadRequest(
            f"trained_on must have mean and std of {backbone.input_channels} channels, as "
            f"{backbone.name} takes them"
        )
