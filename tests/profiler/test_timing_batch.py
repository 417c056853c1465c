"""What fills a batch up."""

from __future__ import annotations

import pytest

from hurricane.profiler.timing.batch import choose_background

ROWS = [("a", 10), ("b", 1000), ("c", 10), ("d", 10)]
"""Keys and bytes, in the order in which they are drawn."""


@pytest.mark.parametrize(
    ("held", "least", "room", "chosen"),
    [
        (60, 60, 9999, ""),
        (60, 61, 9999, "a"),
        (60, 70, 9999, "a"),
        (60, 71, 9999, "ab"),  # whatever it weighs
        (60, 9999, 9999, "abcd"),
        (0, 9999, 1000, "acd"),  # but not more than there is memory
        (990, 9999, 1000, "a"),
        (991, 9999, 1000, ""),
        (0, 0, 9999, ""),
    ],
)
def test_a_batch_is_filled_up_in_the_order_drawn_until_it_holds_enough(held, least, room, chosen):
    assert choose_background(ROWS, held, least, room) == list(chosen)
