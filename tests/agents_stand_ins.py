"""A loaded graph, and a bench, for tests of what is around them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hurricane.agents.backends.base import Loaded, Sample, Session, TensorInfo
from hurricane.agents.worker import Bench, Heartbeat

FORMAT = "test"


def bench_of(session: Session, heartbeat: Heartbeat) -> Bench:
    """Artefacts are named by what is in them, and of a format that checks nothing."""
    return Bench(session, heartbeat, str.encode, {FORMAT: lambda content: None})


class OneMillisecond(Loaded):
    """Takes a millisecond a call, and has neither inputs nor outputs."""

    def timed_calls(self, count: int) -> list[Sample]:
        return [Sample(1.0)] * count

    def inputs(self) -> tuple[TensorInfo, ...]:
        return ()

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {}

    def close(self) -> None:
        pass
