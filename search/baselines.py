"""Baselines: what one would have had without this search, beside the network that it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..lookup_tables.architecture import Accuracy, Architecture, read_accuracy
from ..ops.backbone import load_backbone
from ..ops.errors import BadRequest
from ..ops.jsonfile import Fields, write_json
from ..ops.reference import REFERENCES
from .baseline_searches import SEARCHES
from .measuring import Measurement

FORMAT_VERSION = 1

BASELINES = (*SEARCHES, *REFERENCES)
"""Names of all baselines, in the order in which they are shown."""


def parse_baselines(text: str) -> tuple[str, ...]:
    """Names separated by commas, ``all`` or ``none``, in the order of `BASELINES`.

    Raises:
        BadRequest: there is no such baseline, or none is named.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names in (["all"], ["none"]):
        return BASELINES if names == ["all"] else ()
    choice = f"there are all, none, {', '.join(BASELINES)}"
    if not names:
        raise BadRequest(f"{text!r} names no baseline; {choice}")
    if not {"all", "none"}.isdisjoint(names):
        raise BadRequest(f"all and none are given alone, not as in {text!r}; {choice}")
    for name in names:
        if name not in BASELINES:
            raise BadRequest(f"no baseline is called {name!r}; {choice}")
    return tuple(name for name in BASELINES if name in names)


@dataclass(frozen=True)
class Baseline:
    """One baseline and what is known of it.

    Attributes:
        name: one of `BASELINES`.
        detail: how its network was come by, in words.
        operators: of its network; none for a published one.
        multiplier: of a published network's width.
        macs, params: of the whole network, for one image; None: there is no network.
        predicted_ms: by the table; None for a published one.
        measured: on the target, in the same rounds as all others and the winner.
        accuracy: figures, each with how it was obtained.
        tried: width multipliers that were timed, with what was compared with the budget, in ms;
            None: the target could not run it.
        problem: why there is no network, or what else is missing; empty: nothing.
    """

    name: str
    detail: str = ""
    operators: tuple[str, ...] = ()
    multiplier: float | None = None
    macs: int | None = None
    params: int | None = None
    predicted_ms: float | None = None
    measured: Measurement | None = None
    accuracy: tuple[Accuracy, ...] = ()
    tried: tuple[tuple[float, float | None], ...] = ()
    problem: str = ""

    @property
    def label(self) -> str:
        """Its name; a published network's with its multiplier."""
        return self.name if self.multiplier is None else f"{self.name} x{self.multiplier:g}"

    @property
    def found(self) -> bool:
        """Whether there is a network."""
        return self.macs is not None

    @property
    def trained(self) -> bool:
        """Whether it has figures of a training from scratch."""
        return any(not figure.inherited for figure in self.accuracy)

    def test(self, inherited: bool) -> Accuracy | None:
        """Its accuracy on the test split, with a supernet's weights or trained by itself."""
        figures = (a for a in self.accuracy if a.split == "test" and a.inherited == inherited)
        return next(figures, None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "detail": self.detail,
            "operators": list(self.operators),
            "multiplier": self.multiplier,
            "macs": self.macs,
            "params": self.params,
            "predicted_ms": self.predicted_ms,
            "measured": asdict(self.measured) if self.measured else None,
            "accuracy": [figure.to_dict() for figure in self.accuracy],
            "tried": [{"multiplier": width, "ms": ms} for width, ms in self.tried],
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Comparison:
    """The baselines of a run.

    Attributes:
        budget_ms: that they were to meet, as the winner.
        origin: of the latencies measured.
        baselines: in the order of `BASELINES`.
        winner: its latency in the same rounds; None: nothing was timed.
    """

    budget_ms: float
    origin: str
    baselines: tuple[Baseline, ...] = ()
    winner: Measurement | None = None

    def get(self, name: str) -> Baseline | None:
        """The baseline of a name, if it is there."""
        return next((b for b in self.baselines if b.name == name), None)

    def found(self, winner: Architecture) -> Baseline:
        """The network found, as a line beside the baselines."""
        backbone = load_backbone(winner.backbone)
        return Baseline(
            "network found",
            operators=winner.operators,
            macs=backbone.macs(winner.operators),
            params=backbone.params(winner.operators),
            predicted_ms=winner.predicted_ms,
            measured=self.winner,
            accuracy=winner.accuracy,
        )

    def with_baselines(self, changed: Sequence[Baseline]) -> Comparison:
        """A copy with baselines added, or put in the place of those of their names."""
        every = {b.name: b for b in (*self.baselines, *changed)}
        return replace(self, baselines=tuple(every[n] for n in BASELINES if n in every))

    def to_dict(self) -> dict[str, Any]:
        """The content of `baselines.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "budget_ms": self.budget_ms,
            "origin": self.origin,
            "winner": asdict(self.winner) if self.winner else None,
            "baselines": [baseline.to_dict() for baseline in self.baselines],
        }

    def save(self, path: Path) -> None:
        """Writes the file atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Reads the file.

        Raises:
            BadRequest: a field is missing or wrong.
        """
        fields = Fields.load(path, "baselines file", FORMAT_VERSION)
        return cls(
            budget_ms=fields.number("budget_ms"),
            origin=fields.text("origin"),
            baselines=tuple(_read_baseline(item) for item in fields.objects("baselines")),
            winner=_read_measurement(fields.optional_object("winner")),
        )


def _read_baseline(fields: Fields) -> Baseline:
    multiplier = fields.optional_number("multiplier")
    if multiplier == 0:
        raise fields.fail("multiplier", "more than 0")
    return Baseline(
        name=fields.choice("name", BASELINES),
        detail=fields.text("detail") if fields.get("detail") else "",
        operators=fields.texts("operators"),
        multiplier=multiplier,
        macs=fields.optional_integer("macs"),
        params=fields.optional_integer("params"),
        predicted_ms=fields.optional_number("predicted_ms"),
        measured=_read_measurement(fields.optional_object("measured")),
        accuracy=tuple(read_accuracy(item) for item in fields.objects("accuracy")),
        tried=tuple(
            (item.number("multiplier"), item.optional_number("ms"))
            for item in fields.objects("tried")
        ),
        problem=fields.text("problem") if fields.get("problem") else "",
    )


def _read_measurement(fields: Fields | None) -> Measurement | None:
    if fields is None:
        return None
    values = (fields.number(key) for key in ("ms", "first_ms", "second_ms"))
    return Measurement.read(fields.where, *values)
