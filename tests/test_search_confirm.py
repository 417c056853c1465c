"""The loop that measures before it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.search.confirm import (
    ATTEMPTS,
    Candidate,
    Confirmation,
    confirm,
)
from hurricane.search.measuring import Measurement, background_networks

CANDIDATES = [
    Candidate((f"op{i}",), fitness=0.9 - i / 100, predicted_ms=10.0 - i / 4) for i in range(20)
]


def device(factor: float, spread: float = 0.0, log: list | None = None):
    def measure(candidate: Candidate) -> Measurement:
        if log is not None:
            log.append(candidate)
        ms = candidate.predicted_ms * factor
        return Measurement(ms, ms * (1 + spread / 2), ms * (1 - spread / 2))

    return measure


def test_a_winner_that_meets_the_budget_is_taken_at_once():
    found = confirm(CANDIDATES, 10.0, device(0.99))
    assert found.candidate == CANDIDATES[0]
    assert len(found.attempts) == 1


def test_a_miss_corrects_the_predictions_and_the_next_best_that_fits_is_taken():
    found = confirm(CANDIDATES, 10.0, device(1.1))
    assert not found.attempts[0].met
    assert found.attempts[-1].met
    chosen = found.candidate
    assert chosen.predicted_ms * 1.1 <= 10.0
    better = [c for c in CANDIDATES if c.fitness > chosen.fitness]
    assert all(c.predicted_ms * 1.1 > 10.0 for c in better)
    assert len(found.attempts) == 2


def test_the_retests_spread_must_fit_in_too():
    assert confirm(CANDIDATES[:1], 10.0, device(0.99)).attempts[0].met
    assert not confirm(CANDIDATES[:1], 10.0, device(0.99, spread=0.05)).attempts[0].met


def test_where_nothing_fits_the_fastest_measured_one_is_kept_and_said_to_miss():
    log: list[Candidate] = []
    found = confirm(CANDIDATES, 10.0, device(3.0, log=log))
    assert not any(a.met for a in found.attempts)
    assert found.attempts[found.chosen].measured.ms == min(a.measured.ms for a in found.attempts)
    assert len(log) <= ATTEMPTS
    assert len(set(log)) == len(log)


def test_as_many_as_are_wanted_must_meet_the_budget():
    found = confirm(CANDIDATES, 10.0, device(1.1), wanted=3)
    assert [a.met for a in found.attempts] == [False, True, True, True]
    assert found.finalists == [a.candidate for a in found.attempts[1:]]
    assert found.candidate == found.finalists[0]
    best = [c for c in CANDIDATES if c.predicted_ms * 1.1 <= 10.0]
    assert found.finalists == best[:3]


def test_fewer_than_wanted_meet_the_budget_where_there_are_no_more():
    fast = 1.001 * 10.0 / CANDIDATES[-1].predicted_ms
    found = confirm(CANDIDATES, 10.0, device(fast), wanted=3)
    assert not any(a.met for a in found.attempts)
    assert found.finalists == [found.candidate]
    close = 0.999 * 10.0 / CANDIDATES[-2].predicted_ms
    found = confirm(CANDIDATES, 10.0, device(close), wanted=3)
    assert found.finalists == CANDIDATES[-2:]
    assert len(confirm(CANDIDATES, 10.0, device(0.5), wanted=50).finalists) == len(CANDIDATES)


@pytest.mark.parametrize("wanted", [1, 2])
def test_timing_ends_after_so_many_attempts(wanted: int):
    """Each misses a little more than was learnt from those before."""
    log: list[Candidate] = []

    def measure(candidate: Candidate) -> Measurement:
        log.append(candidate)
        ms = 10.0 + 0.001 * len(log)
        return Measurement(ms, ms, ms)

    few = [Candidate((f"op{i}",), 0.9, 9.99 * 0.999**i) for i in range(40)]
    confirm(few, 10.0, measure, wanted)
    assert len(log) == ATTEMPTS * wanted


def test_of_networks_that_all_miss_the_fastest_as_measured_is_taken():
    """Which is not the one that was predicted to be, and timed last."""
    candidates = [Candidate(("a",), 0.9, 10.0), Candidate(("b",), 0.8, 9.5)]
    times = {"a": 11.0, "b": 12.0}

    def measure(candidate: Candidate) -> Measurement:
        ms = times[candidate.operators[0]]
        return Measurement(ms, ms, ms)

    found = confirm(candidates, 10.0, measure)
    assert [a.candidate for a in found.attempts] == candidates
    assert found.candidate == candidates[0]


def test_a_network_at_the_budget_meets_it():
    assert confirm(CANDIDATES[:1], 10.0, device(1.0)).attempts[0].met


def test_nothing_to_measure_is_an_error():
    with pytest.raises(HurricaneError, match="nothing"):
        confirm([], 1.0, device(1.0))


def test_what_was_measured_can_be_read_back(tmp_path: Path):
    found = confirm(CANDIDATES, 10.0, device(1.1, spread=0.01))
    found.save(tmp_path / "confirmed.json")
    assert Confirmation.load(tmp_path / "confirmed.json") == found
    content = json.loads((tmp_path / "confirmed.json").read_text())
    content["attempts"][-1]["measured_ms"] = 0
    (tmp_path / "confirmed.json").write_text(json.dumps(content))
    with pytest.raises(BadRequest, match="more than 0"):
        Confirmation.load(tmp_path / "confirmed.json")
    (tmp_path / "confirmed.json").write_text('{"format_version": 1, "chosen": 0, "attempts": []}')
    with pytest.raises(BadRequest, match="chosen"):
        Confirmation.load(tmp_path / "confirmed.json")


@pytest.mark.parametrize("name", ["digits32", "proxyless224"])
def test_background_networks_are_the_same_every_time_and_fits_the_backbone(name: str):
    backbone = load_backbone(name)
    background = background_networks(backbone, 12)
    assert background == background_networks(backbone, 12)
    assert len(set(background)) == 12
    for names in background:
        backbone.check(names)
