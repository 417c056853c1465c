"""A loaded graph for tests of what is around it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hurricane.agents.backends.base import Loaded, Sample, TensorInfo


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
