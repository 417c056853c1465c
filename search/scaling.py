"""Published networks scaled to a latency budget: the widest that meets it, found by timing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..ops.backbone import Backbone
from ..ops.reference import ReferenceNetwork
from .measuring import Measurement

WIDTHS = tuple(float(f"{2 ** (eighth / 8):.3g}") for eighth in range(-26, 17))
"""Width multipliers, an eighth of an octave apart, from 0.105 to 4."""

Times = Callable[[Sequence[ReferenceNetwork]], Sequence["Measurement | str"]]
"""Times networks side by side; for each a latency, or why the target could not run it."""


@dataclass(frozen=True)
class Scaled:
    """A published network at the highest width that meets a budget.

    Attributes:
        network: None where no width meets it.
        measured: its latency.
        tried: widths in the order in which they were timed, with what was compared with the
            budget, in ms; None: the target could not run it.
        problem: why there is no network; empty where there is one.
    """

    network: ReferenceNetwork | None
    measured: Measurement | None
    tried: tuple[tuple[float, float | None], ...]
    problem: str = ""


def scale(
    names: Sequence[str],
    backbone: Backbone,
    budget_ms: float,
    times: Times,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, Scaled]:
    """The widest of some published networks within a budget, by bisection of `WIDTHS`.

    All networks take their next step together, so that each step is one batch on the device.
    Latency grows with the width but for small steps, so a wider one than that found may fit, too.

    Args:
        names: of `reference.REFERENCES`.
        backbone: gives image and classes.
        budget_ms: to be met with the halves' difference to spare, as by a search's winner.
        times: of networks on the target.
        progress: is told the number of the step, from 0.

    Returns:
        By name.
    """
    answers: dict[str, dict[int, Measurement | str]] = {name: {} for name in names}

    def next_of(name: str) -> int | None:
        return next_width({i: _meets(a, budget_ms) for i, a in answers[name].items()}, len(WIDTHS))

    step = 0
    while steps := {name: i for name in names if (i := next_of(name)) is not None}:
        progress(step)
        batch = [reference(name, WIDTHS[i], backbone) for name, i in steps.items()]
        for (name, i), answer in zip(steps.items(), times(batch), strict=True):
            answers[name][i] = answer
        step += 1
    return {name: _scaled(name, answers[name], backbone, budget_ms) for name in names}


def next_width(met: Mapping[int, bool], count: int) -> int | None:
    """The next of some widths to be timed; None when the widest that meets the budget is known.

    Args:
        met: of the widths timed so far, by their number, whether they met it.
        count: of widths.
    """
    low = max((i for i, good in met.items() if good), default=-1)
    high = min((i for i, good in met.items() if not good and i > low), default=count)
    return None if high - low <= 1 else (low + high) // 2


def reference(name: str, multiplier: float, backbone: Backbone) -> ReferenceNetwork:
    """A published network for a backbone's images and classes."""
    return ReferenceNetwork(
        name,
        multiplier,
        backbone.classes,
        backbone.input_channels,
        backbone.input_height,
        backbone.input_width,
    )


def _meets(answer: Measurement | str, budget_ms: float) -> bool:
    return isinstance(answer, Measurement) and answer.careful_ms <= budget_ms


def _scaled(
    name: str, answers: Mapping[int, Measurement | str], backbone: Backbone, budget_ms: float
) -> Scaled:
    tried = tuple(
        (WIDTHS[i], a.careful_ms if isinstance(a, Measurement) else None)
        for i, a in answers.items()
    )
    widest = max((i for i, a in answers.items() if _meets(a, budget_ms)), default=None)
    if widest is not None:
        measured = answers[widest]
        assert isinstance(measured, Measurement)
        return Scaled(reference(name, WIDTHS[widest], backbone), measured, tried)
    narrowest = min(answers)
    found = answers[narrowest]
    if isinstance(found, Measurement):
        problem = f"too slow at every width: x{WIDTHS[narrowest]:g} takes {found.careful_ms:.4g} ms"
    else:
        problem = f"cannot run on the target: {found}"
    return Scaled(None, None, tried, problem)
