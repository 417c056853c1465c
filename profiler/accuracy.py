"""How far predictions are from measurements, and the line that corrects them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..lookup_tables.verdict import ErrorFigures
from ..ops.errors import BadRequest
from .intervals import bias_interval, rmspe_interval

MIN_CALIBRATION = 3
"""Networks that a scale and an offset can be fitted to, with one to spare."""

FITTED = 10
"""Networks that a calibration is fitted to where as many are left to check it on."""


def compare(predicted_ms: ArrayLike, measured_ms: ArrayLike) -> ErrorFigures:
    """Error figures of predictions against measurements, both [N] ms."""
    a, b = np.asarray(predicted_ms, float), np.asarray(measured_ms, float)
    error = a / b - 1
    rmspe_low, rmspe_high = rmspe_interval(error)
    bias_low, bias_high = bias_interval(error)
    return ErrorFigures(
        count=len(a),
        bias=float(error.mean()),
        rmspe=float(np.sqrt((error**2).mean())),
        within_5=float((np.abs(error) <= 0.05).mean()),
        within_10=float((np.abs(error) <= 0.10).mean()),
        kendall_tau=kendall_tau(a, b),
        rmspe_low=rmspe_low,
        rmspe_high=rmspe_high,
        bias_low=bias_low,
        bias_high=bias_high,
    )


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b of two series [N]; NaN where one of them does not vary."""
    upper = np.triu_indices(len(a), 1)
    da = np.sign(np.subtract.outer(a, a))[upper]
    db = np.sign(np.subtract.outer(b, b))[upper]
    varied = np.sqrt(float((da != 0).sum()) * float((db != 0).sum()))
    return float((da * db).sum() / varied) if varied else float("nan")


def fit_line(predicted_ms: ArrayLike, measured_ms: ArrayLike) -> tuple[float, float]:
    """Scale and offset (ms) that bring predictions nearest to measurements.

    Relative errors are minimised, so that slow networks do not outweigh fast ones.

    Args:
        predicted_ms, measured_ms: [N], of at least three networks.
    """
    a, b = np.asarray(predicted_ms, float), np.asarray(measured_ms, float)
    if len(a) < MIN_CALIBRATION:
        raise BadRequest(
            f"a calibration needs at least {MIN_CALIBRATION} networks, there are {len(a)}"
        )
    (scale, offset), *_ = np.linalg.lstsq(
        np.column_stack([a / b, 1 / b]), np.ones(len(a)), rcond=None
    )
    return float(scale), float(offset)


@dataclass(frozen=True)
class Fit:
    """A calibration with its error on networks that it was not fitted to.

    Attributes:
        scale: positive.
        offset_ms: may be negative.
        fitted: networks that it was fitted to.
        held_out: other networks that it was checked on; 0: each was left out in turn.
        figures: error of calibrated predictions on those; None: too few networks.
        plain: error of predictions as they are on the same networks.
    """

    scale: float
    offset_ms: float
    fitted: int
    held_out: int
    figures: ErrorFigures | None
    plain: ErrorFigures | None

    @property
    def helps(self) -> bool:
        """Whether it lowers the RMSPE of networks that it was not fitted to."""
        if self.figures is None or self.plain is None:
            return False
        return self.figures.rmspe < self.plain.rmspe

    def apply(self, predicted_ms: ArrayLike) -> np.ndarray:
        """Calibrated predictions [N], in ms."""
        return self.scale * np.asarray(predicted_ms, float) + self.offset_ms


def fit_calibration(predicted_ms: ArrayLike, measured_ms: ArrayLike, seed: int = 0) -> Fit | None:
    """Fits a calibration and checks it on networks that played no part in it.

    From twice `FITTED` networks on, it is fitted to `FITTED` of them, one drawn from each of as
    many strata of latency, and checked on the others. Of fewer it is fitted to all, and checked
    by leaving out each in turn.

    Args:
        predicted_ms, measured_ms: [N], of at least three networks.
        seed: of the draw.

    Returns:
        None where measured networks do not get slower with their predictions.
    """
    a, b = np.asarray(predicted_ms, float), np.asarray(measured_ms, float)
    fitted = np.ones(len(a), dtype=bool)
    if len(a) >= 2 * FITTED:
        fitted = stratified(a, FITTED, np.random.default_rng(seed))
    scale, offset = fit_line(a[fitted], b[fitted])
    if not scale > 0:
        return None
    figures = plain = None
    if not fitted.all():
        figures = compare(scale * a[~fitted] + offset, b[~fitted])
        plain = compare(a[~fitted], b[~fitted])
    elif len(a) > MIN_CALIBRATION:
        figures, plain = leave_one_out(a, b), compare(a, b)
    return Fit(scale, offset, int(fitted.sum()), int((~fitted).sum()), figures, plain)


def stratified(predicted_ms: ArrayLike, count: int, random: np.random.Generator) -> np.ndarray:
    """Picks networks spread over latency: one from each of `count` equal parts in its order.

    Args:
        predicted_ms: [N], at least `count`.
        count: networks to pick.
        random: what is drawn from.

    Returns:
        Whether each is picked [N].
    """
    order = np.argsort(np.asarray(predicted_ms, float))
    picked = np.zeros(len(order), dtype=bool)
    picked[[random.choice(part) for part in np.array_split(order, count)]] = True
    return picked


def leave_one_out(predicted_ms: ArrayLike, measured_ms: ArrayLike) -> ErrorFigures:
    """Error of calibrated predictions where each network is left out of the fit in turn."""
    a, b = np.asarray(predicted_ms, float), np.asarray(measured_ms, float)
    corrected = np.empty_like(a)
    for index in range(len(a)):
        others = np.arange(len(a)) != index
        scale, offset = fit_line(a[others], b[others])
        corrected[index] = scale * a[index] + offset
    return compare(corrected, b)
