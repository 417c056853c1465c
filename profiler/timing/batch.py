"""What goes into a batch besides the active rows: graphs that keep the caches under pressure.

A graph is called once a round. Inside a network many megabytes of weights pass between two calls
of the same operator; so they must here, also when few rows are left.
"""

from __future__ import annotations

from collections.abc import Iterable


def choose_background(
    candidates: Iterable[tuple[str, int]], held_bytes: int, min_bytes: int, max_bytes: int
) -> list[str]:
    """Picks background rows until a batch holds enough weights.

    Args:
        candidates: rows by key, with the bytes of weights of their graphs, in the order in which
            they are taken: the largest first, of which the fewest do.
        held_bytes: of the batch without them.
        min_bytes: of a batch.
        max_bytes: that a batch may hold.
    """
    chosen = []
    for key, size in candidates:
        if held_bytes >= min_bytes:
            break
        if held_bytes + size <= max_bytes:
            chosen.append(key)
            held_bytes += size
    return chosen
