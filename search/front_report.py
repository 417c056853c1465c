"""The report of a front: one HTML page of what `front.run_front` left in a run's directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..lookup_tables.architecture import Accuracy, Architecture
from ..ops.backbone import Backbone, load_backbone
from ..ops.errors import BadRequest
from .front import COMMAND, surpassed_by, train_command
from .measuring import Measurement
from .report import (
    Axis,
    EvaluatedPoint,
    NetworkFigures,
    dots,
    network_figures,
    read_evaluated,
    render,
)
from .rundir import RunDirectory, read_config
from .space import SearchSpace


@dataclass(frozen=True)
class FrontPoint:
    """A network of a front, and the budget that it was found for."""

    file: Path
    budget_ms: float
    network: NetworkFigures

    @property
    def met(self) -> bool | None:
        """Whether the budget is met as measured, as `confirm` has it; None: not measured."""
        ms, halves = self.network.whole_ms, self.network.halves_ms
        if ms is None:
            return None
        careful_ms = ms if halves is None else Measurement(ms, *halves).careful_ms
        return careful_ms <= self.budget_ms

    @property
    def ms(self) -> float:
        """The latency measured, or else predicted."""
        found = self.network.whole_ms or self.network.predicted_ms
        assert found is not None
        return found


@dataclass(frozen=True)
class Front:
    """A front's run, as far as it has come.

    Attributes:
        folder: of the run.
        space: what was searched.
        backbone: of the networks.
        evaluated: for each budget, what was evaluated for it.
        points: the networks, from the lowest budget on.
        reused: whether its supernet was trained by another run.
        data: what accuracies are of.
    """

    folder: Path
    space: SearchSpace
    backbone: Backbone
    evaluated: tuple[tuple[EvaluatedPoint, ...], ...]
    points: tuple[FrontPoint, ...]
    reused: bool
    data: str

    @classmethod
    def read(cls, folder: str | Path) -> Front:
        """Reads a run's directory.

        Raises:
            BadRequest: it holds no front, or a file of it is broken.
        """
        path = Path(folder)
        config = read_config(path)
        if config.get("command") != COMMAND:
            raise BadRequest(f"{path} holds no search for several budgets")
        space = SearchSpace.load(path / "space.json")
        backbone = load_backbone(space.backbone)
        run = RunDirectory(path, config, resumed=True)
        evaluated = [
            read_evaluated(file) if (file := run.evaluated_path(number)).exists() else ()
            for number in range(1, len(space.budgets_ms) + 1)
        ]
        points = []
        while (file := run.point_path(len(points) + 1)).exists():
            found = Architecture.load(file)
            if found.budget_ms is None or found.predicted_ms is None:
                raise BadRequest(f"{file}: it has no budget or no predicted latency")
            network = network_figures(file.name, found, backbone, None)
            points.append(FrontPoint(file, found.budget_ms, network))
        return cls(
            path,
            space,
            backbone,
            tuple(evaluated),
            tuple(points),
            config.get("supernet_sha256") is not None,
            str(config.get("data")),
        )

    @property
    def origin(self) -> str:
        """Origin of its latencies."""
        return self.space.table.origin if self.space.table else "measured"

    @property
    def command(self) -> str:
        """Trains the most accurate network."""
        return train_command(self._networks, self.data)

    @property
    def surpassed(self) -> list[str | None]:
        """For each network, the one of a lower budget that is better here too, if there is one."""
        found = surpassed_by(self._networks, [point.budget_ms for point in self.points])
        return [file and file.name for file in found]

    @property
    def _networks(self) -> list[tuple[Path, tuple[Accuracy, ...]]]:
        return [(point.file, point.network.accuracy) for point in self.points]

    @cached_property
    def plot(self) -> FrontPlot | None:
        """Accuracy over latency; None where nothing was found yet."""
        every = [point for points in self.evaluated for point in points]
        if not every or not self.points:
            return None
        budgets = self.space.budgets_ms
        shown = [p.network.validation for p in self.points]
        x = Axis.over(
            [*(p.predicted_ms for p in every), *budgets, *(p.ms for p in self.points)], 46, 700
        )
        y = Axis.over(
            [*(p.accuracy for p in every), *(a.value for a in shown if a)], 296, 14, percent=True
        )
        return FrontPlot(
            x,
            y,
            dots((x.at(p.predicted_ms), y.at(p.accuracy)) for p in every),
            tuple(x.at(ms) for ms in budgets),
            tuple(
                (x.at(point.ms), y.at(accuracy.value), str(number))
                for number, (point, accuracy) in enumerate(zip(self.points, shown, strict=True), 1)
                if accuracy is not None
            ),
        )


@dataclass(frozen=True)
class FrontPlot:
    """Accuracy on the validation split over latency.

    Attributes:
        x, y: axes.
        evaluated: SVG path of a dot for every network evaluated, at its predicted latency.
        budgets: places of the budgets.
        points: place and number of each network of the front, at its measured latency if known.
    """

    x: Axis
    y: Axis
    evaluated: str
    budgets: tuple[float, ...]
    points: tuple[tuple[float, float, str], ...]


def is_front(folder: str | Path) -> bool:
    """Whether a run's directory holds a front."""
    return read_config(folder).get("command") == COMMAND


def render_fronts(fronts: Sequence[Front], title: str) -> str:
    """The page as text."""
    return render("front.html.j2", fronts=fronts, title=title, heat_levels=0)
