"""Which architectures meet a latency budget: how many, which, and uniform samples of them.

A network's predicted latency is a fixed part plus one number for each layer, so the
architectures within a budget can be counted exactly without listing them: the layers are
cut into two halves, the distinct sums of each half are kept sorted with the number of ways
to reach them, and every left sum meets all right sums that still fit (meet in the middle).
Walking the same counts backwards draws architectures uniformly, with no rejection.

Sums are taken in whole femtoseconds (1e-12 ms), so they are exact and do not depend on the
order of the layers: an architecture is *feasible* when the rounded latencies add up to no
more than the rounded budget. This agrees with `LatencyModel.predict(...) <= budget` to
within `TOLERANCE_MS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops.errors import BadRequest

TOLERANCE_MS = 1e-9
"""How far a feasible architecture's floating-point latency may lie above the budget."""

MAX_SUMS = 4_000_000
"""Distinct sums of one half up to which counting is exact (32 MB for each array)."""

GRID_CELLS = 20_000
"""Cells of the latency grid beyond that; a layer's latency is rounded up to whole cells."""

_FEMTOSECONDS_PER_MS = 10**12
_LONGEST_MS = 9e6  # what int64 holds in femtoseconds, two and a half hours
_LARGEST_COUNT = 2**62  # counts stay within int64


class FeasibleSet:
    """The architectures of a space that meet a budget.

    Codes are integer arrays [architectures × layers]; a code indexes its layer's candidates.

    Args:
        latency_ms: for each layer, the latencies of its candidates.
        fixed_ms: latency of stem, head and the price of a call; below 0 where a calibration's
            offset outweighs them.
        budget_ms: latency that a feasible architecture does not exceed.
        max_sums: size of a half up to which counting is exact; beyond it a grid is used.

    Raises:
        BadRequest: a layer has no candidates, a candidate's latency is not a finite number of
            at least 0, or the budget or the fixed latency is not finite.
    """

    def __init__(
        self,
        latency_ms: Sequence[ArrayLike],
        fixed_ms: float,
        budget_ms: float,
        max_sums: int = MAX_SUMS,
    ) -> None:
        layers = [np.asarray(layer, dtype=np.float64) for layer in latency_ms]
        for index, layer in enumerate(layers):
            if layer.ndim != 1 or layer.size == 0:
                raise BadRequest(f"layer {index} has no candidates")
            if not (np.isfinite(layer).all() and (layer >= 0).all() and layer.max() < _LONGEST_MS):
                raise BadRequest(
                    f"layer {index} has a candidate whose latency is not a number of ms from 0 to "
                    f"{_LONGEST_MS:g}"
                )
        if not math.isfinite(budget_ms):
            raise BadRequest(f"the budget must be a finite number of ms, not {budget_ms}")
        if not abs(fixed_ms) < _LONGEST_MS:
            raise BadRequest(
                f"the fixed latency must be a number of ms below {_LONGEST_MS:g}, not {fixed_ms}"
            )
        self.layers_ms: tuple[NDArray[np.float64], ...] = tuple(layers)
        self.fixed_ms = float(fixed_ms)
        self.budget_ms = float(budget_ms)
        self._max_sums = max_sums
        ticks = [_ticks(layer) for layer in layers]
        self._surplus = [layer - layer.min() for layer in ticks]
        # All layers' candidates end to end, so that architectures are summed in one look-up.
        self._sizes = np.array([layer.size for layer in layers], dtype=np.uint64)
        self._starts = np.cumsum([0, *(layer.size for layer in layers[:-1])])
        self._flat_ms = np.concatenate(layers)
        self._flat_surplus = np.concatenate(self._surplus)
        lowest = int(_ticks(self.fixed_ms)) + sum(int(layer.min()) for layer in ticks)
        self._slack = int(_ticks(min(self.budget_ms, _LONGEST_MS))) - lowest

    @property
    def lowest_ms(self) -> float:
        """Latency of the fastest architecture, feasible or not."""
        return self.fixed_ms + math.fsum(layer.min() for layer in self.layers_ms)

    @property
    def highest_ms(self) -> float:
        """Latency of the slowest architecture, feasible or not."""
        return self.fixed_ms + math.fsum(layer.max() for layer in self.layers_ms)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of candidates of each layer."""
        return tuple(layer.size for layer in self.layers_ms)

    @property
    def total(self) -> int:
        """Number of architectures, feasible or not."""
        return math.prod(self.sizes)

    @property
    def count(self) -> int:
        """Number of feasible architectures.

        Exact when `exact`; otherwise slightly too low, as latencies are rounded up to a grid
        of `GRID_CELLS` cells between the fastest architecture and the budget.
        """
        return 0 if self._slack < 0 else int(self._pairing.total)

    @property
    def exact(self) -> bool:
        """Whether `count` is exact (a set with no feasible member always is)."""
        return self._slack < 0 or self._pairing.exact

    def restrict(self, fixed: Mapping[int, int]) -> FeasibleSet:
        """The same budget with some layers fixed.

        Args:
            fixed: from layer index to the code it is fixed to.

        Returns:
            A set in which a fixed layer has that one candidate, with code 0.
        """
        layers = [
            layer[fixed[i] : fixed[i] + 1] if i in fixed else layer
            for i, layer in enumerate(self.layers_ms)
        ]
        return FeasibleSet(layers, self.fixed_ms, self.budget_ms, self._max_sums)

    def latency_ms(self, codes: NDArray[np.integer]) -> NDArray[np.float64]:
        """Predicted latency of architectures [N × layers] -> [N]."""
        return self.fixed_ms + self._flat_ms[self._places(codes)].sum(axis=1)

    def contains(self, codes: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether architectures [N × layers] are feasible -> [N]."""
        return self._flat_surplus[self._places(codes)].sum(axis=1) <= self._slack

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Draws architectures uniformly, with replacement, from the feasible ones.

        Returns:
            Codes [count × layers].

        Raises:
            BadRequest: nothing meets the budget.
        """
        self.require_members()
        pairing = self._pairing
        codes = np.empty((count, len(self.layers_ms)), dtype=np.int64)
        left = _pick(rng, pairing.cumulative, count)
        ways = pairing.right_cumulative[pairing.fitting[left] - 1]
        right = np.searchsorted(pairing.right_cumulative, _draw(rng, ways), side="right")
        pairing.left.walk_back(rng, left, codes)
        pairing.right.walk_back(rng, right, codes)
        return codes

    def enumerate(self, limit: int) -> NDArray[np.int64] | None:
        """All feasible architectures in lexicographic order, or None if more than `limit`.

        Exact in every case. A prefix is followed only if the fastest completion fits, so no
        more prefixes are held than there are feasible architectures.
        """
        if self._slack < 0:
            return np.empty((0, len(self.layers_ms)), dtype=np.int64)
        codes = np.empty((1, 0), dtype=np.int64)
        sums = np.zeros(1, dtype=np.int64)
        for surplus in self._surplus:
            extended = sums[:, None] + surplus[None, :]
            prefix, code = np.nonzero(extended <= self._slack)
            if prefix.size > limit:
                return None
            codes = np.column_stack([codes[prefix], code])
            sums = extended[prefix, code]
        return codes

    def _places(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Where the candidates of architectures [N × layers] stand among all layers'."""
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != len(self.layers_ms):
            raise ValueError(f"codes must be [N × {len(self.layers_ms)}], not {codes.shape}")
        codes = codes.astype(np.int64, copy=False)
        # Without its sign a negative code is larger than any size.
        if (codes.view(np.uint64) >= self._sizes).any():
            raise ValueError("a code lies outside its layer's candidates")
        return codes + self._starts

    def require_members(self) -> None:
        """Raises BadRequest when nothing meets the budget."""
        if self._slack < 0:
            raise BadRequest(
                f"no architecture meets {self.budget_ms:g} ms: "
                f"the fastest takes {self.lowest_ms:.4g} ms"
            )

    @cached_property
    def _pairing(self) -> _Pairing:
        if self.total <= _LARGEST_COUNT:
            halves = _build_halves(self._surplus, self._slack, np.int64, self._max_sums)
            if halves is not None:
                return _pair(*halves, self._slack, exact=True)
        cell = max(1, -(-self._slack // GRID_CELLS))
        surplus = [-(-layer // cell) for layer in self._surplus]
        halves = _build_halves(surplus, self._slack // cell, np.float64, None)
        assert halves is not None
        return _pair(*halves, self._slack // cell, exact=cell == 1)


class _Half:
    """Distinct sums over some layers, with the number of ways to each, layer by layer."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self.layers: list[tuple[int, NDArray[np.int64]]] = []
        self.sums: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
        self.ways: list[NDArray] = [np.ones(1, dtype=dtype)]

    def add(self, index: int, surplus: NDArray[np.int64], slack: int) -> None:
        """Adds a layer; sums beyond the slack are dropped."""
        sums = (surplus[:, None] + self.sums[-1][None, :]).ravel()
        ways = np.tile(self.ways[-1], surplus.size)
        keep = sums <= slack
        sums, ways = sums[keep], ways[keep]
        order = np.argsort(sums, kind="stable")  # timsort: the rows are sorted runs already
        sums, ways = sums[order], ways[order]
        starts = np.flatnonzero(np.diff(sums, prepend=-1))
        self.layers.append((index, surplus))
        self.sums.append(sums[starts])
        self.ways.append(np.add.reduceat(ways, starts))

    def walk_back(
        self, rng: np.random.Generator, chosen: NDArray[np.int64], codes: NDArray[np.int64]
    ) -> None:
        """Fills in codes of this half's layers, uniformly among the ways to the chosen sums."""
        target = self.sums[-1][chosen]
        for step in range(len(self.layers) - 1, -1, -1):
            index, surplus = self.layers[step]
            sums, ways = self.sums[step], self.ways[step]
            before = target[None, :] - surplus[:, None]
            at = np.minimum(np.searchsorted(sums, before), sums.size - 1)
            reach = np.cumsum(np.where(sums[at] == before, ways[at], 0), axis=0)
            code = np.sum(reach <= _draw(rng, reach[-1]), axis=0)
            codes[:, index] = code
            target = target - surplus[code]


@dataclass(frozen=True)
class _Pairing:
    """Two halves, and for each left sum how many right sums still fit."""

    left: _Half
    right: _Half
    fitting: NDArray[np.int64]
    cumulative: NDArray
    right_cumulative: NDArray
    exact: bool

    @property
    def total(self) -> int | float:
        return self.cumulative[-1]


def _build_halves(
    surplus: Sequence[NDArray[np.int64]],
    slack: int,
    dtype: type[np.generic],
    max_sums: int | None,
) -> tuple[_Half, _Half] | None:
    """Grows two halves from both ends, the smaller first; None where one exceeds max_sums."""
    left, right = _Half(dtype), _Half(dtype)
    first, last = 0, len(surplus) - 1
    while first <= last:
        half = left if left.sums[-1].size <= right.sums[-1].size else right
        index = first if half is left else last
        if max_sums is not None and half.sums[-1].size * surplus[index].size > 4 * max_sums:
            return None
        half.add(index, surplus[index], slack)
        if max_sums is not None and half.sums[-1].size > max_sums:
            return None
        first, last = (first + 1, last) if half is left else (first, last - 1)
    return left, right


def _pair(left: _Half, right: _Half, slack: int, exact: bool) -> _Pairing:
    fitting = np.searchsorted(right.sums[-1], slack - left.sums[-1], side="right")
    right_cumulative = np.cumsum(right.ways[-1])
    ways = left.ways[-1] * right_cumulative[fitting - 1]  # the right sum 0 always fits
    return _Pairing(left, right, fitting, np.cumsum(ways), right_cumulative, exact)


def _ticks(ms: ArrayLike) -> NDArray[np.int64]:
    return np.rint(np.asarray(ms, dtype=np.float64) * _FEMTOSECONDS_PER_MS).astype(np.int64)


def _draw(rng: np.random.Generator, totals: NDArray) -> NDArray:
    """For each total a uniform number in [0, total): whole for counts, real for the grid."""
    if totals.dtype.kind == "i":
        return rng.integers(0, totals)
    return np.minimum(rng.random(totals.shape) * totals, np.nextafter(totals, 0))


def _pick(rng: np.random.Generator, cumulative: NDArray, count: int) -> NDArray[np.int64]:
    """Indices drawn in proportion to the steps of a cumulative count."""
    draws = _draw(rng, np.full(count, cumulative[-1]))
    return np.searchsorted(cumulative, draws, side="right")
