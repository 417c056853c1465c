"""Whether devices of one kind agree how fast they are."""

from __future__ import annotations

import pytest

from hurricane.profiler.consistency import common_times, disagreement

GRAPHS = "abcdef"


def times(factor: float, graphs: str = GRAPHS) -> dict[str, float]:
    """What a device takes that is slower by a factor; no two graphs take as long."""
    return {graph: factor * (1 + number) for number, graph in enumerate(GRAPHS) if graph in graphs}


@pytest.mark.parametrize(
    ("factors", "common"),
    [
        ([1.0], 1.0),
        ([1.2, 1.0], 1.2),  # nobody knows which is right: the first one counts
        ([1.2, 1.0, 1.1], 1.1),
        ([1.2, 1.2, 1.0, 1.0], 1.0),  # not between two halves
        ([1.0, 1.1, 1.2, 1.3], 1.1),
    ],
)
def test_what_most_devices_take_counts(factors, common):
    assert common_times([times(factor) for factor in factors]) == pytest.approx(times(common))


def test_graphs_that_some_devices_refuse_are_known_by_the_others():
    found = common_times([times(1.0, "ab"), times(1.1, "abc"), times(1.2, "abc")])
    assert found == pytest.approx({"a": 1.1, "b": 2.2, "c": 3 * 1.1})
    assert common_times([]) == {}


@pytest.mark.parametrize(
    ("factor", "differs"),
    [(1.0, None), (1.05, None), (0.95, None), (1.12, 0.12), (0.8, -0.2)],
)
def test_a_device_disagrees_by_the_median_over_its_graphs(factor, differs):
    found = disagreement(times(factor), times(1.0), 0.05 + 1e-9)
    assert found == (None if differs is None else pytest.approx(differs))


def test_one_odd_graph_is_no_disagreement():
    assert disagreement({**times(1.0), "c": 99.0}, times(1.0), 0.05) is None


def test_where_graphs_scatter_more_than_devices_differ_nobody_disagrees():
    scattered = {
        g: ms * factor
        for (g, ms), factor in zip(times(1.0).items(), (0.8, 1.5, 1.0, 1.4, 0.9, 1.3), strict=True)
    }
    assert disagreement(scattered, times(1.0), 0.05) is None
    assert disagreement(times(1.15), times(1.0), 0.05) == pytest.approx(0.15)


def test_a_device_without_a_graph_in_common_is_taken():
    assert disagreement({"other": 1.0}, times(1.0), 0.05) is None
