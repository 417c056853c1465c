"""End-to-end networks drawn for a check of a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..lookup_tables.model import LatencyModel
from .networks import WholeNetwork

DRAWS = 20_000
"""Random architectures among which the stratified ones are picked."""


def leaning_draws(
    costs: Sequence[NDArray[np.float64]], random: np.random.Generator
) -> NDArray[np.int64]:
    """Architectures of which each leans towards cheap or dear operators, by a random amount.

    Args:
        costs: for each layer, those of its operators; at least 0.
        random: for all draws.

    Returns:
        Codes [`DRAWS` × layers] into the layers' operators.
    """
    lean = random.uniform(-4.0, 4.0, (DRAWS, 1))
    codes = np.empty((DRAWS, len(costs)), dtype=np.int64)
    for layer, own in enumerate(costs):
        logits = -lean * (own / max(float(own.mean()), 1e-12))
        codes[:, layer] = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
    return codes


def random_networks(model: LatencyModel, count: int, seed: int) -> list[WholeNetwork]:
    """Random architectures, one in each of `count` equal steps of the latency range drawn.

    Architectures drawn uniformly crowd around the mean; here each draw leans towards fast or
    slow operators by a random amount, and one is picked from each stratum.
    """
    random = np.random.default_rng(seed)
    present = [np.flatnonzero(np.isfinite(row)) for row in model.latency_ms]
    costs = [row[known] for row, known in zip(model.latency_ms, present, strict=True)]
    drawn = leaning_draws(costs, random)
    codes = np.stack([known[drawn[:, i]] for i, known in enumerate(present)], axis=1)
    predicted = model.predict(codes)
    edges = np.linspace(predicted.min(), predicted.max(), count + 1)
    stratum = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, count - 1)
    chosen: list[int] = []
    for number in range(count):
        members = np.flatnonzero(stratum == number)
        if members.size:
            chosen.append(int(random.choice(members)))
    taken = set(chosen)
    rest = [i for i in random.permutation(DRAWS) if i not in taken]
    chosen += [int(i) for i in rest[: count - len(chosen)]]
    return [
        WholeNetwork("random", f"random-{n}", tuple(model.decode(codes[i])))
        for n, i in enumerate(chosen)
    ]


def uniform_networks(model: LatencyModel) -> list[WholeNetwork]:
    """The networks with one operator in all layers, of those with a latency in every layer."""
    layers = model.latency_ms.shape[0]
    everywhere = [bool(column.all()) for column in np.isfinite(model.latency_ms).T]
    return [
        WholeNetwork("uniform", name, (name,) * layers)
        for name, there in zip(model.operators, everywhere, strict=True)
        if there
    ]
