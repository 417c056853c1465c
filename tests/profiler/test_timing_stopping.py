"""When a row is known well enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hurricane.profiler.timing.stopping import (
    Accept,
    Evidence,
    PrecisionRule,
)

RULE = PrecisionRule(min_rounds=12, max_rounds=60)


@pytest.mark.parametrize(
    ("evidence", "decision"),
    [
        # accepted and rejected rounds, width over the accepted ones and over all, over budget
        (Evidence(12, 0, 1.0, 1.0), Accept()),
        (Evidence(9, 0, 0.1, 0.1), None),
        (Evidence(12, 0, 1.01, 1.01), None),
        (Evidence(60, 0, 1.01, 1.01), Accept(narrow=False)),
        (Evidence(60, 0, 1.0, 1.0), Accept()),
        (Evidence(57, 0, 9.0, 9.0), None),
        # Rejected rounds are made up for, and count for the last.
        (Evidence(9, 9, 0.1, 0.1), None),
        (Evidence(12, 9, 0.1, 9.0), Accept()),
        (Evidence(12, 48, 1.01, 0.1), Accept(narrow=False)),
        # Where there is hardly anything else, they are used.
        (Evidence(9, 51, 0.1, 1.0), Accept(of_all=True)),
        (Evidence(0, 60, float("inf"), 1.1), Accept(narrow=False, of_all=True)),
        # Once the time is spent, half of the fewest rounds do.
        (Evidence(6, 0, 1.0, 1.0, True), Accept()),
        (Evidence(6, 0, 1.1, 1.1, True), Accept(narrow=False)),
        (Evidence(3, 0, 0.1, 0.1, True), None),
        (Evidence(3, 3, 0.1, 0.1, True), Accept(of_all=True)),
        (Evidence(0, 6, float("inf"), 1.1, True), Accept(narrow=False, of_all=True)),
    ],
)
def test_a_row_ends_when_it_is_narrow_or_has_had_all_its_rounds(evidence, decision):
    assert RULE.decide(evidence) == decision


def test_half_of_an_odd_number_of_rounds_is_rounded_up():
    rule = PrecisionRule(5, 15)
    assert rule.decide(Evidence(2, 0, 0.1, 0.1, True)) is None
    assert rule.decide(Evidence(3, 0, 0.1, 0.1, True)) == Accept()


@given(
    st.integers(1, 30),
    st.integers(0, 100),
    st.lists(st.tuples(st.booleans(), st.floats(0, 9)), min_size=60, max_size=60),
)
def test_every_row_ends_by_its_last_round_and_not_before_it_has_enough(least, budget, rounds):
    rule, accepted = PrecisionRule(least, max(least, 20)), 0
    for number, (good, width) in enumerate(rounds, start=1):
        accepted += good
        spent = number > budget
        found = rule.decide(Evidence(accepted, number - accepted, width, width, spent))
        if found is not None:
            assert number >= (least / 2 if spent else least)
            enough = (least + 1) // 2 if spent else least
            assert found.of_all == (accepted < enough)
            assert found.narrow == (width <= 1)
            return
        assert number < max(least, 20)
