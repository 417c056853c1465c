"""Pages of the docs that scripts in `tools/` write."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import pytest

from hurricane.profiler.protocol import TimingProtocol

TOOLS = Path(__file__).resolve().parent.parent / "tools"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["protocol_page", "results_page"])
def test_the_page_in_the_docs_is_current(name):
    tool = load(name)
    assert tool.PAGE.read_text() == tool.page(), f"make {name.replace('_', '-')}"


def test_every_tunable_has_its_default_its_unit_and_its_reason_on_the_page():
    page = load("protocol_page").page()
    for item in fields(TimingProtocol):
        assert f"| `{item.name}` | " in page
        assert item.metadata["reason"] in page
    assert "| `baseline_replicas` | 6 replicas | 1 replica | " in page
    assert "| `control_row_bytes` | 8 MiB |  | " in page
    assert "| `timeout_s` | 60 s |  | " in page


def test_every_number_of_the_statistics_is_on_the_page_with_its_reason():
    lines = load("protocol_page").page().splitlines()
    assert any(line.startswith("| `profiler/timing/drift.py` | `MIN_SPREAD` |") for line in lines)
    assert not any(line.startswith("| `") and line.endswith("|  |") for line in lines)


RESULT = {
    "benchmark": "python benchmarks/some.py",
    "machine": "a machine",
    "commit": "abc1234",
    "date": "2026-01-31",
    "note": "A note.",
    "figures": {"first": {"time, s": 1.25, "bias, %": -0.5}, "second": {"bias, %": 12345.6}},
}


def test_results_stand_by_benchmark_with_every_measure_that_one_of_them_has(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(RESULT))
    (tmp_path / "b.json").write_text(json.dumps(RESULT | {"benchmark": "a first one"}))
    page = load("results_page").page(tmp_path)
    assert page.index("## `a first one`") < page.index("## `python benchmarks/some.py`")
    assert "a machine; commit abc1234, 2026-01-31. A note." in page
    assert "| | time, s | bias, % |\n|---|---|---|\n" in page
    assert "| first | 1.25 | -0.5 |\n| second |  | 1.235e+04 |\n" in page


@pytest.mark.parametrize("change", [{"commit": None}, {"more": 1}])
def test_a_result_that_lacks_a_key_or_has_another_is_refused(tmp_path, change):
    kept = {key: value for key, value in (RESULT | change).items() if value is not None}
    (tmp_path / "a.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="a result has benchmark, commit"):
        load("results_page").page(tmp_path)
