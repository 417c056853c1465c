"""The demo: the whole job in small, and what it refuses before it starts."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hurricane.lookup_tables.calibration import load_calibrations, save_calibration
from hurricane.lookup_tables.verdict import AdditivityCheck, Cause, Verdict
from hurricane.ops.errors import BadRequest
from hurricane.search import demo
from hurricane.search.demo import demo_command
from hurricane.search.pipeline import SearchSettings

pytestmark = pytest.mark.process

TARGET = "sim-hexagon685-dsp"


def run_demo(folder: Path, targets: str, *more: str) -> str:
    arguments = ["-o", str(folder), "--targets", targets, "--evaluations", "4", *more]
    result = CliRunner().invoke(
        demo_command, [*arguments, "--training", "0.05"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_the_demo_leaves_a_whole_run_and_is_carried_on_when_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def few_images(**given) -> SearchSettings:
        return SearchSettings(**{**given, "data": "digits?limit=200"})

    monkeypatch.setattr(demo, "SearchSettings", few_images)
    folder = tmp_path / "demo"
    text = run_demo(folder, f"{TARGET}, {TARGET}")
    run = folder / TARGET
    made = [run / name for name in ("space.json", "architecture.json", "model.onnx")]
    made += [folder / f"{TARGET}.csv", folder / "report.html"]
    assert [file.name for file in made if not file.stat().st_size] == []
    summary = json.loads((folder / "summary.json").read_text())
    (found,) = summary["targets"]  # named twice, run once
    assert found["target"] == TARGET
    assert found["met"] is (found["measured_ms"] <= found["budget_ms"])
    low, high = found["predicted_interval_ms"]
    assert low < found["predicted_ms"] < high
    assert "additivity check: passed (" in text
    rows = [line for line in text.splitlines() if line.startswith(f"{TARGET} ")]
    assert [row.endswith("missed") for row in rows] == [not found["met"]]

    kept = {file: file.read_bytes() for file in made if file.suffix != ".html"}
    run_demo(folder, TARGET)
    assert {file: file.read_bytes() for file in kept} == kept
    again = json.loads((folder / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}

    failed = AdditivityCheck(Verdict.NOT_ADDITIVE, "RMSPE 40%", Cause.ERROR)
    (known,) = load_calibrations(folder / f"{TARGET}.csv")
    save_calibration(folder / f"{TARGET}.csv", replace(known, check=failed))
    with pytest.raises(BadRequest, match="not additive"):
        run_demo(folder, TARGET)
    run_demo(folder, TARGET, "--accept-table")
    assert {file: file.read_bytes() for file in kept if file.name != "space.json"} == {
        file: content for file, content in kept.items() if file.name != "space.json"
    }
    assert '"verdict": "not-additive"' in (run / "space.json").read_text()
    assert "failed its additivity check" in (folder / "report.html").read_text()


@pytest.mark.parametrize("wrong", ["sim-no-such-board", "no-such-target"])
def test_an_unknown_target_is_refused_before_anything_is_profiled(tmp_path: Path, wrong: str):
    folder = tmp_path / "demo"
    with pytest.raises(BadRequest, match="no-such"):
        CliRunner().invoke(
            demo_command,
            ["-o", str(folder), "--targets", f"{TARGET},{wrong}"],
            catch_exceptions=False,
        )
    assert not folder.exists()


def test_workers_end_at_once_when_the_main_process_is_stopped():
    context = demo.get_context("spawn")
    before = demo.active_children()
    works = []

    def stopped() -> None:
        with demo._worker_pool(1, context) as pool:
            works.append(pool.submit(time.sleep, 600))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    (work,) = works
    assert [child for child in demo.active_children() if child not in before] == []
    assert work.cancelled() or work.exception(timeout=10) is not None
