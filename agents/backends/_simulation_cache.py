"""The last-level cache of a simulated device: how much of a graph's memory a call still finds."""

from __future__ import annotations

from collections.abc import Hashable


class Cache:
    """Memory of graphs, the least recently called evicted first.

    Args:
        size: in bytes; 0: it holds the graph that was called last, however large.
    """

    def __init__(self, size: float) -> None:
        self._size = size
        self._touched: dict[Hashable, int] = {}  # bytes by graph, the latest call at the end

    def call(self, graph: Hashable, touched: int) -> float:
        """Brings a graph's memory in.

        Args:
            graph: that is called.
            touched: bytes of its weights and buffers.

        Returns:
            The share of them that was in the cache before, 0 to 1.
        """
        share = self._share(graph, touched)
        self._touched.pop(graph, None)
        self._touched[graph] = touched
        return share

    def drop(self, graph: Hashable) -> None:
        """Forgets a graph whose memory is freed."""
        self._touched.pop(graph, None)

    def _share(self, graph: Hashable, touched: int) -> float:
        if graph not in self._touched:
            return 0.0
        newer = 0  # bytes of the graphs that were called since
        for other in reversed(self._touched):
            if other == graph:
                break
            newer += self._touched[other]
            if newer >= self._size:
                return 0.0
        return min(1.0, (self._size - newer) / touched) if self._size and touched else 1.0
