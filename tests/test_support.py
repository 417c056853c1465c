"""The support report: what a target takes, where, and how exactly; and spaces that heed it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from hurricane.agents.backends.base import Availability
from hurricane.agents.errors import AgentError
from hurricane.agents.proto import agent_pb2 as pb
from hurricane.lookup_tables.cli import table_group
from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.support import (
    MAX_REASON,
    SUPPORT_COLUMNS,
    SupportReport,
    SupportRow,
    SupportSummary,
    is_support_report,
)
from hurricane.lookup_tables.table import LookupTable, Row, TableError, Target
from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.edges import Edge
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.pool import GATES, POOL
from hurricane.ops.shapes import LayerShape
from hurricane.profiler import support as asking
from hurricane.profiler.deviation import deviation
from hurricane.profiler.plan import PlannedRow, parse_layers, plan_row, plan_rows
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.support import SupportSettings, ask_support
from hurricane.profiler.target import parse_target
from hurricane.search.cli import cli
from hurricane.search.space import SearchSpace
from hurricane.search.supported import keep_supported

from .agents_partial_backend import TARGET as PARTIAL
from .agents_rogue import Rogue, events
from .search_backbone import BACKBONE, BUDGET

BACKEND = Path(__file__).parent / "agents_partial_backend.py"
SHAPE = LayerShape(8, 8, 96, 96, 1)
STRIDED = LayerShape(16, 16, 48, 96, 2)
NAMES = ("SEP_3", "Choice_3", "MB_3_3_SE")  # with no, with Split, with Clip and a global pool
SPLIT, POOLED = "Split", "GlobalAveragePool"
ROWS = tuple(plan_row(name, SHAPE) for name in NAMES)
NPU = Target("board", "npu", "qnn", "2.51", precision="int8")
DSP = "sim-hexagon685-dsp"


def row(
    operator: str = "SEP_3", shape: LayerShape = SHAPE, target: Target = NPU, **values
) -> SupportRow:
    known = {"relative_error": 0.01, "sqnr_db": 35.0}
    values = {"status": "ok", **(known if values.get("status", "ok") == "ok" else {}), **values}
    if values["status"] != "ok":
        values.setdefault("reason", "no kernel")
    return SupportRow.of(target, operator, shape, **values)


def ask(
    target: str, *options: str, rows: Sequence[PlannedRow] = ROWS, timeout_s: float = 60.0
) -> dict[str, SupportRow]:
    """What a private agent's target says, by operator."""
    request = parse_target(target, options)
    with connect((), request) as clients:
        info = {t.name: t for t in clients[0].describe().targets}.get(request.name)
        if info is None or info.availability is Availability.UNAVAILABLE:
            pytest.skip(f"{target} is not here: {info.reason if info else 'no such backend'}")
        session = TargetSession.open(clients[0], request)
        found = list(ask_support(session, rows, SupportSettings(timeout_s=timeout_s)))
    assert sorted(r.operator for r in found) == sorted(r.name for r in rows)
    return {r.operator: r for r in found}


@pytest.fixture
def partial(monkeypatch: pytest.MonkeyPatch) -> str:
    """A target that lacks what its options name."""
    monkeypatch.setenv("HURRICANE_BACKENDS", str(BACKEND))
    return PARTIAL


# Asking


@pytest.mark.process
def test_fp32_is_as_exact_as_fp32_can_be() -> None:
    for found in ask("cpu-onnxruntime-fp32").values():
        assert found.ok
        assert found.compute_unit == "CPU"
        assert found.relative_error is not None
        assert found.relative_error < 1e-5


@pytest.mark.process
@pytest.mark.parametrize("target", ["cpu-onnxruntime-int8", "cpu-openvino-int8", "cpu-litert-int8"])
def test_int8_is_as_exact_as_eight_bits_can_be(target: str) -> None:
    rows = (*ROWS, plan_row("Choice_5", STRIDED))
    for found in ask(target, rows=rows).values():
        assert found.ok, found.reason
        assert found.exactness_db is not None
        assert 25 < found.exactness_db < 60
        assert found.graph_sha256 != found.artifact_sha256
        assert found.calibration
        assert found.converter
        assert found.agent_version
        assert found.checked_at


def _halves_exchanged(values: np.ndarray) -> np.ndarray:
    return np.roll(values, values.shape[1] // 2, axis=1)


@pytest.mark.process
@pytest.mark.parametrize(
    "mistake", [_halves_exchanged, lambda values: np.swapaxes(values, 2, 3), np.negative]
)
def test_a_wrong_graph_is_seen(monkeypatch: pytest.MonkeyPatch, mistake) -> None:
    """Branches, or height and width, exchanged: far below what eight bits give."""
    real = asking._reference
    monkeypatch.setattr(
        asking, "_reference", lambda *a: [[mistake(v) for v in outs] for outs in real(*a)]
    )
    (found,) = ask("cpu-onnxruntime-fp32", rows=ROWS[1:2]).values()
    assert found.sqnr_db is not None
    assert found.sqnr_db < 6


@pytest.mark.process
def test_nhwc_taken_for_nchw_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def reshaped(edge: Edge, values: np.ndarray) -> np.ndarray:
        flat = replace(edge, channels_last=False)
        return decode(flat, values).reshape(1, values.shape[3], *values.shape[1:3])

    decode = Edge.decode
    monkeypatch.setattr(Edge, "decode", reshaped)
    (found,) = ask("cpu-litert-int8", rows=ROWS[:1]).values()
    assert found.sqnr_db is not None
    assert found.sqnr_db < 6


@pytest.mark.process
def test_the_graphs_of_a_whole_backbone_have_stem_and_head() -> None:
    rows = plan_rows(parse_layers("digits32"), [op for op in POOL if op.name == "SEP_3"])
    with connect((), request := parse_target("cpu-onnxruntime-fp32")) as clients:
        session = TargetSession.open(clients[0], request)
        found = list(ask_support(session, rows, SupportSettings()))
    assert [r.operator for r in found] == [r.name for r in rows]
    assert all(r.ok and r.exactness_db is not None and r.exactness_db > 100 for r in found)


def test_inputs_are_not_the_calibration_samples() -> None:
    """Those would lie within the quantisation's ranges, as no other image does."""
    from hurricane.ops.calibration import random_samples

    calibration = random_samples((96, 8, 8))
    inputs = asking._inputs(ROWS[0], 4, seed=0)
    assert inputs.shape == (4, 96, 8, 8)
    assert not any(np.array_equal(a, b) for a in inputs for b in calibration)
    assert np.array_equal(inputs, asking._inputs(ROWS[0], 4, seed=0))
    with pytest.raises(BadRequest, match="seed"):
        SupportSettings(seed=-1)


@pytest.mark.process
def test_a_simulated_target_has_no_numbers_and_says_why() -> None:
    found = ask(DSP)
    assert all(r.ok and r.relative_error is None and r.sqnr_db is None for r in found.values())
    assert {r.reason for r in found.values()} == {"no numbers: simulated, and nothing is computed"}
    assert {r.target.origin for r in found.values()} == {"simulated"}


@pytest.mark.process
def test_what_a_simulated_device_refuses_is_unsupported() -> None:
    found = ask(DSP, f"unsupported_ops={SPLIT}")
    assert found["Choice_3"].status == "unsupported"
    assert SPLIT in found["Choice_3"].reason
    assert found["SEP_3"].ok


@pytest.mark.process
@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("unsupported", "unsupported", "no kernel for Split"),
        ("crash", "failed", "runtime crashed: "),
        ("refuse", "failed", "the runtime says no"),
        ("gone", "failed", "SIGSEGV"),
        ("nan", "failed", "its output has values that are not finite"),
        ("shape", "failed", "its output has the shape [1, 96, 8, 7], not [1, 96, 8, 8]"),
        ("name", "failed", "its outputs are called another"),
        ("lost", "failed", "device lost: "),
    ],
)
def test_a_fault_costs_the_row_that_has_it(
    partial: str, fault: str, status: str, reason: str
) -> None:
    found = ask(partial, f"{fault}={SPLIT}")
    assert found["Choice_3"].status == status
    assert reason in found["Choice_3"].reason
    assert "127.0.0.1" not in found["Choice_3"].reason
    assert found["Choice_3"].relative_error is None
    for name in ("SEP_3", "MB_3_3_SE"):
        assert found[name].ok
        assert found[name].exactness_db is not None


@pytest.mark.process
def test_a_graph_that_hangs_is_a_timeout(partial: str) -> None:
    found = ask(partial, f"hang={SPLIT}", timeout_s=2.0)
    assert found["Choice_3"].status == "timeout"
    assert found["SEP_3"].ok


@pytest.mark.process
def test_a_fallback_is_supported_and_flagged(partial: str) -> None:
    found = ask(partial, f"fallback={SPLIT}")
    assert found["Choice_3"].ok
    assert found["Choice_3"].falls_back
    assert (found["Choice_3"].compute_unit, found["SEP_3"].compute_unit) == ("CPU", "NPU")
    assert not found["SEP_3"].falls_back


@pytest.mark.process
def test_a_device_that_is_lost_at_every_graph_is_no_answer(partial: str) -> None:
    with pytest.raises(AgentError, match="pulled out"):
        ask(partial, "lost=Conv")


@pytest.mark.process
def test_what_cannot_be_converted_is_unsupported_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A format that cannot express a node, and a quantiser that fails, cost that row alone."""
    from hurricane.ops import artifacts
    from hurricane.ops.artifacts import onnx_file
    from hurricane.ops.errors import UnsupportedNode

    def convert(model: bytes, precision: str, samples: object) -> bytes:
        if b"Split" in model:
            raise UnsupportedNode("Split", "here", "nobody splits")
        if b"GlobalAveragePool" in model:
            raise HurricaneError("the graph cannot be quantised")
        return model

    monkeypatch.setattr(onnx_file, "convert", convert)
    assert artifacts.formats()
    found = ask("cpu-onnxruntime-fp32")
    assert found["SEP_3"].ok
    assert found["Choice_3"].status == "unsupported"
    assert "nobody splits" in found["Choice_3"].reason
    assert found["MB_3_3_SE"].status == "failed"
    assert "cannot be quantised" in found["MB_3_3_SE"].reason
    assert found["MB_3_3_SE"].artifact_sha256 == ""


def test_flags_of_times_are_not_kept() -> None:
    def benchmark(request: pb.BenchmarkRequest) -> list[pb.BenchmarkEvent]:
        told = events(request)
        for event in told:
            if event.HasField("result"):
                event.result.flags.extend(["busy", "steal", "throttled"])
        return told

    request = parse_target("sim-rogue")
    with Rogue(benchmark=benchmark).serving() as address, connect([address], request) as clients:
        session = TargetSession.open(clients[0], request)
        (found,) = ask_support(session, ROWS[:1], SupportSettings())
    assert found.flags == "fallback:cpu"


# Numbers


def test_the_deviation_is_what_its_definition_says() -> None:
    reference = np.array([3.0, -4.0, 0.0])
    found = deviation(reference, reference + np.array([0.1, 0.0, -0.4]))
    assert found.relative_error == pytest.approx(0.1)
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 0.17))
    assert deviation(reference, reference).sqnr_db is None
    assert deviation(reference, reference).relative_error == 0
    with pytest.raises(ValueError, match="zero everywhere"):
        deviation(np.zeros(3), reference)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(1e-4, 0.5))
def test_the_deviation_does_not_depend_on_scale(seed: int, scale: float, noise: float) -> None:
    random = np.random.default_rng(seed)
    reference = random.normal(size=200)
    values = reference + noise * random.normal(size=200)
    one, other = deviation(reference, values), deviation(scale * reference, scale * values)
    assert other.relative_error == pytest.approx(one.relative_error)
    assert other.sqnr_db == pytest.approx(one.sqnr_db)
    assert one.sqnr_db == pytest.approx(-20 * math.log10(noise), abs=2.5)


# The file


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        row("MB_3_3", flags="fallback:cpu", compute_unit="CPU"),
        row("SEP_3", relative_error=0.0, sqnr_db=None),
        row("Choice_3", status="unsupported", reason='no "kernel", none'),
        row("stem", LayerShape(32, 32, 1, 8, 1)),
        row("SEP_3", target=replace(NPU, origin="emulated"), graph_sha256="a" * 64),
    ]
    report = SupportReport(rows)
    report.save(tmp_path / "a.csv")
    read = SupportReport.load(tmp_path / "a.csv")
    assert read.rows == report.rows
    assert [r.operator for r in read.of(NPU).rows] == ["stem", "SEP_3", "MB_3_3", "Choice_3"]
    assert read.sha256() == report.sha256() == SupportReport(reversed(rows)).sha256()
    assert is_support_report(tmp_path / "a.csv")


def test_rows_that_are_asked_again_replace_those_of_before() -> None:
    old = SupportReport([row("SEP_3"), row("MB_3_3")])
    new = old.with_rows([row("SEP_3", status="failed")])
    assert [(r.operator, r.status) for r in new.rows] == [("SEP_3", "failed"), ("MB_3_3", "ok")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"status": "maybe"}, "status is 'maybe'"),
        ({"relative_error": -0.1}, "relative_error is -0.1"),
        ({"relative_error": math.nan}, "relative_error is nan"),
        ({"relative_error": None}, "sqnr_db is filled and relative_error is empty"),
        ({"sqnr_db": None}, "sqnr_db is empty where relative_error is 0, and only there"),
        ({"relative_error": 0.0}, "sqnr_db is empty where relative_error is 0, and only there"),
        ({"relative_error": None, "sqnr_db": None}, "reason is empty"),
        ({"status": "failed", "sqnr_db": 3.0}, "sqnr_db is filled though status is failed"),
        ({"status": "failed", "reason": ""}, "reason is empty though status is failed"),
        ({"reason": "a\nb"}, "reason is 'a\\\\nb'"),
        ({"reason": "x" * (MAX_REASON + 1)}, "reason has 301 characters"),
        ({"flags": "a;a"}, "flags is 'a;a'"),
        ({"graph_sha256": "12"}, "graph_sha256 is '12'"),
        ({"checked_at": "yesterday"}, "checked_at is 'yesterday'"),
    ],
)
def test_a_row_that_cannot_be_is_refused(values: dict, message: str) -> None:
    with pytest.raises(TableError, match=message):
        row(**values)


def test_a_broken_report_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    SupportReport([row("SEP_3"), row("MB_3_3"), row("Choice_3")]).save(path)
    good = path.read_text()
    head, first, *_ = good.splitlines()

    def problem(text: str) -> str:
        path.write_text(text)
        with pytest.raises(TableError) as found:
            SupportReport.load(path)
        return str(found.value)

    assert problem(good.replace(",35,", ",soon,", 1)).startswith(f"{path}:2: sqnr_db is 'soon'")
    assert "(and 2 more" in problem(good.replace(",35,", ",soon,"))
    assert problem(good + first + "\n").startswith(f"{path}:5: SEP_3 at 8x8x96->96 s1")
    assert "was cut off" in problem(good[:-1])
    assert "lacks reason" in problem(good.replace("reason", "why", 1))
    assert is_support_report(path)
    assert f"{path}:1: the file is empty" in problem("")
    assert "is not UTF-8" not in problem(head + "\nx\n")
    with pytest.raises(TableError, match=r"hurricane support -o .* fills one"):
        SupportReport.load(tmp_path / "none.csv")


def test_tables_and_reports_are_told_apart(tmp_path: Path) -> None:
    SupportReport([row()]).save(tmp_path / "support.csv")
    LookupTable(
        [Row.of(NPU, "SEP_3", SHAPE, status="ok", latency_ms=1.0, estimator="made up")]
    ).save(tmp_path / "table.csv")
    assert not is_support_report(tmp_path / "table.csv")
    assert not is_support_report(tmp_path / "none.csv")
    assert not is_support_report(tmp_path)
    with pytest.raises(TableError, match=r"support.csv:1: this is a support report"):
        LookupTable.load(tmp_path / "support.csv")
    with pytest.raises(TableError, match=r"table.csv:1: this is a lookup table"):
        SupportReport.load(tmp_path / "table.csv")


def test_a_summary_counts_and_takes_the_worst_and_the_median() -> None:
    rows = [
        row("SEP_3", sqnr_db=40.0),
        row("SEP_5", sqnr_db=30.0, flags="fallback:cpu"),
        row("SEP_7", relative_error=0.0, sqnr_db=None),
        row("MB_3_3", status="unsupported"),
    ]
    summary = SupportSummary.of(rows)
    assert summary.statuses == {"ok": 3, "unsupported": 1}
    assert summary.falls_back == 1
    assert summary.worst == rows[1]
    assert summary.median_db == 40.0
    assert summary.text() == (
        "3 of 4 supported, 1 of them fall back, 1 unsupported; "
        "SQNR worst 30.0 dB (SEP_5 at 8x8x96->96 s1), median 40.0 dB"
    )
    json.dumps(summary.to_dict(), allow_nan=False)
    json.dumps(SupportSummary.of(rows[2:3]).to_dict(), allow_nan=False)
    nothing = row("SEP_3", relative_error=None, sqnr_db=None, reason="simulated")
    assert "no numerical check" in SupportSummary.of([nothing]).text()


def test_every_column_is_documented() -> None:
    document = (Path(__file__).parent.parent / "docs" / "table-format.md").read_text("utf-8")
    described = document.split("## The support report")[1].split("\n## ")[0]
    own = SUPPORT_COLUMNS[SUPPORT_COLUMNS.index("stride") :]
    assert [name for name in own if f"`{name}`" not in described] == []


# hurricane table


def call(command, *words: object, status: int = 0) -> Result:
    result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=True)
    code = getattr(result.exception, "exit_status", result.exit_code)
    assert code == status, (result.output, result.exception)
    return result


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    SupportReport(
        [
            row("SEP_3", sqnr_db=41.26),
            row("SEP_3", STRIDED, flags="fallback:cpu"),
            row("MB_3_3", status="unsupported", reason="no kernel for Clip"),
            row("MB_3_3", STRIDED, status="timeout", reason="it hung"),
            row("head:96", LayerShape(4, 4, 96, 10, 1)),
            row("SEP_3", target=replace(NPU, device="another")),
        ]
    ).save(tmp_path / "a.support.csv")
    return tmp_path / "a.support.csv"


def test_show_has_a_grid_a_summary_and_the_reasons(shown: Path) -> None:
    lines = call(table_group, "show", shown).stdout.splitlines()
    cells = [line.split() for line in lines]
    assert ["SEP_3", "35.0*", "41.3"] in cells
    assert ["MB_3_3", "timeout", "unsup."] in cells
    assert "head:96 at 4x4x96->10 s1: 35.0" in lines
    assert "* fallback:cpu: SEP_3 at 16x16x48->96 s2" in lines
    assert "MB_3_3 at 8x8x96->96 s1: unsupported: no kernel for Clip" in lines
    assert "MB_3_3 at 16x16x48->96 s2: timeout: it hung" in lines
    assert any(line.startswith("npu-qnn-int8 (another, qnn 2.51): 1 of 1") for line in lines)
    assert any("3 of 5 supported, 1 of them fall back, 1 unsupported" in line for line in lines)


def test_show_filters_and_prints_json(shown: Path) -> None:
    words = [
        "show",
        shown,
        "--operators",
        "MB_*",
        "--target",
        "npu-qnn-int8,device=board",
        "--json",
    ]
    found = json.loads(call(table_group, *words).stdout)
    assert found["kind"] == "support"
    assert [r["status"] for r in found["rows"]] == ["timeout", "unsupported"]
    assert found["targets"][0]["statuses"] == {"unsupported": 1, "timeout": 1}
    assert "no rows" in str(call(table_group, *words[:2], "--target", "x", status=2).exception)
    refused = call(table_group, "show", shown, "--fastest", 3, status=2)
    assert "has no latencies" in str(refused.exception)


def test_validate_takes_reports_too(shown: Path) -> None:
    assert call(table_group, "validate", shown).stdout == f"{shown}: ok, 6 rows\n"
    shown.write_text(shown.read_text().replace(",timeout,", ",late,"))
    result = call(table_group, "validate", shown, status=1)
    assert result.stdout.startswith(f"{shown}:4: status is 'late'")


# hurricane support

LAYERS = ("--layers", "digits32:4", "--operators", ",".join(NAMES))


@pytest.mark.process
def test_the_command_writes_a_report_and_tells_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    target = ("--target", "cpu-onnxruntime-fp32")
    result = json.loads(call(cli, "support", *LAYERS, *target, "-o", path, "--json").stdout)
    assert result["statuses"] == {"ok": 3}
    assert result["rows"] == 3
    assert result["origin"] == "measured"
    assert [r.operator for r in SupportReport.load(path).rows] == list(NAMES)
    words = call(cli, "support", *LAYERS, "--target", DSP, "-o", path).stdout
    assert "3 of 3 supported; no numerical check" in words
    assert [t.name for t in SupportReport.load(path).targets()] == [
        "cpu-onnxruntime-fp32",
        DSP,
    ]


@pytest.mark.process
def test_another_gate_is_in_the_graphs_and_in_the_targets_options(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    words = ("support", *LAYERS, "--target", "cpu-onnxruntime-fp32", "-o", path)
    call(cli, *words)
    call(cli, *words, "--gate", GATES[1])
    plain, other = (SupportReport.load(path).of(t) for t in SupportReport.load(path).targets())
    assert other.targets()[0].options == f"gate={GATES[1]}"
    assert plain.rows[-1].operator == other.rows[-1].operator == "MB_3_3_SE"
    assert plain.rows[-1].graph_sha256 != other.rows[-1].graph_sha256


@pytest.mark.process
def test_unsupported_is_an_answer_and_failed_is_not(partial: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    words = ("support", *LAYERS, "--target", partial, "-o", path)
    result = call(cli, *words, "--option", f"unsupported={SPLIT}")
    assert "2 of 3 supported, 1 unsupported" in result.stdout
    assert "Choice_3 at 8x8x96->96 s1: unsupported: no kernel for Split" in result.stdout
    result = call(cli, *words, "--option", f"crash={SPLIT}", "--json", status=1)
    assert json.loads(result.stdout)["statuses"] == {"ok": 2, "failed": 1}
    assert "1 of its rows failed" in str(result.exception)
    result = call(cli, *words, "--option", f"hang={SPLIT}", "--timeout", 2, status=1)
    assert "1 timeout" in result.stdout


@pytest.mark.process
def test_a_broken_report_and_a_wrong_target_are_told_before_anything_is_done(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("no report\n")
    words = ("support", *LAYERS, "-o", path)
    result = call(cli, *words, "--target", "cpu-onnxruntime-fp32", status=2)
    assert f"{path}:1:" in str(result.exception)
    path.unlink()
    result = call(cli, *words, "--target", "npu-nobody-int8", status=2)
    assert "npu-nobody-int8" in str(result.exception)
    assert not path.exists()
    several = ("--agent", "127.0.0.1:1", "--agent", "127.0.0.1:2")
    result = call(cli, *words, *several, "--target", "cpu-onnxruntime-fp32", status=2)
    assert "name one with --agent" in str(result.exception)


def test_a_report_that_cannot_be_written_is_told_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(asking, "ask_support", lambda *arguments: pytest.fail("asked"))
    words = ("support", *LAYERS, "--target", "cpu-onnxruntime-fp32")
    result = call(cli, *words, "-o", tmp_path / "nowhere" / "a.csv", status=2)
    assert f"the folder {tmp_path / 'nowhere'} does not exist" in str(result.exception)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    result = call(cli, *words, "-o", tmp_path / "a.csv", status=1)
    assert "may not be written to" in str(result.exception)


@pytest.mark.process
def test_rows_that_another_run_wrote_meanwhile_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, path = asking.ask_support, tmp_path / "a.csv"

    def slow(*arguments) -> Iterator[SupportRow]:
        yield from real(*arguments)
        SupportReport([row()]).save(path)

    monkeypatch.setattr(asking, "ask_support", slow)
    call(cli, "support", *LAYERS, "--target", "cpu-onnxruntime-fp32", "-o", path)
    assert len(SupportReport.load(path)) == 1 + len(NAMES)


def test_of_runs_that_write_at_once_all_rows_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [row(op.name, shape) for op in POOL[:20] for shape in (SHAPE, STRIDED)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: SupportReport.update(path, [one]), rows))
    assert SupportReport.load(path).rows == SupportReport(rows).rows


@pytest.mark.process
@pytest.mark.parametrize(
    ("end", "status"), [(KeyboardInterrupt(), 130), (AgentError("the board is gone"), 1)]
)
def test_a_run_that_ends_early_writes_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: BaseException, status: int
) -> None:
    real = asking.ask_support

    def interrupted(*arguments) -> Iterator[SupportRow]:
        yield next(iter(real(*arguments)))
        raise end

    monkeypatch.setattr(asking, "ask_support", interrupted)
    path = tmp_path / "a.csv"
    words = ("support", *LAYERS, "--target", "cpu-onnxruntime-fp32", "-o", path)
    result = call(cli, *words, status=status)
    assert str(end) in str(result.exception)
    assert f"1 of 3 rows are in {path}" in str(result.exception)
    assert len(SupportReport.load(path)) == 1


@pytest.mark.process
def test_an_agent_that_says_nothing_leaves_no_report(partial: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    words = ("support", *LAYERS, "--target", partial, "-o", path)
    call(cli, *words, "--option", "lost=Conv", status=1)
    assert not path.exists()


# hurricane space


class Place:
    """A folder with a small backbone, its table, and its report."""

    def __init__(self, folder: Path) -> None:
        (folder / "tiny.toml").write_text(BACKBONE)
        self.backbone: Backbone = load_backbone(folder / "tiny.toml")
        self.table, self.report = folder / "tiny.csv", folder / "tiny.support.csv"
        self.output = folder / "space.json"
        self.words = (
            "--table", self.table, "--backbone", folder / "tiny.toml", "--latency", BUDGET,
        )  # fmt: skip
        rows = [
            Row.of(NPU, name, shape, status="ok", latency_ms=ms, call_ms=0.01, estimator="made up")
            for name, shape, ms in self.cells()
        ]
        LookupTable(rows).save(self.table)
        self.write()

    def cells(self) -> Iterator[tuple[str, LayerShape, float]]:
        yield self.backbone.stem_name, self.backbone.stem_shape, 0.05
        yield self.backbone.head_name, self.backbone.head_shape, 0.05
        for shape in self.backbone.distinct_shapes:
            for index, op in enumerate(POOL):
                ms = 0.02 + op.macs(shape) / 3e6 + op.se * 0.02 + 0.001 * index
                yield op.name, shape, ms

    def write(self, *other: SupportRow, target: Target = NPU, skip: str = "") -> None:
        """A report of which some rows are others."""
        rows = [row(name, shape, target) for name, shape, _ in self.cells() if name != skip]
        SupportReport([*rows, *other]).save(self.report)

    def space(self, *words: object, status: int = 0) -> Result:
        return call(
            cli, "space", *self.words, "--support", self.report, *words, "-o", self.output,
            status=status,
        )  # fmt: skip

    def load(self) -> SearchSpace:
        return SearchSpace.load(self.output)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_report_that_speaks_against_nothing_changes_nothing(place: Place) -> None:
    call(cli, "space", *place.words, "-o", place.output)
    plain = place.load()
    result = place.space("--min-sqnr", 30)
    found = place.load()
    assert found.candidates == plain.candidates
    assert found.alpha == plain.alpha
    assert plain.support is None
    assert found.support is not None
    assert found.support.left_out == ()
    assert "all candidates are supported with at least 30 dB" in result.stdout


@pytest.mark.parametrize(
    ("values", "words", "reason"),
    [
        ({"status": "unsupported"}, (), "unsupported"),
        ({"status": "failed"}, (), "failed"),
        ({"status": "timeout"}, (), "timeout"),
        ({"flags": "fallback:TRANSPOSE+GATHER"}, (), "fallback:TRANSPOSE+GATHER"),
        ({"sqnr_db": 19.96}, ("--min-sqnr", 20), "20.0 dB"),
    ],
)
def test_what_is_not_taken_is_no_candidate_where_it_is_not(
    place: Place, values: dict, words: tuple, reason: str
) -> None:
    call(cli, "space", *place.words, "-o", place.output)
    plain = place.load()
    name, shape = plain.candidates[0][0], place.backbone.layers[0]
    place.write(row(name, shape, **values))
    result = place.space(*words)
    found = place.load()
    for layer, names in enumerate(found.candidates):
        if place.backbone.layers[layer] == shape:
            assert name not in names
            assert len(names) == len(plain.candidates[layer])
    assert any(name in names for names in found.candidates) == any(
        name in names
        for layer, names in enumerate(plain.candidates)
        if place.backbone.layers[layer] != shape
    )
    assert found.support is not None
    assert [(o.operator, o.shape, o.reason) for o in found.support.left_out] == [
        (name, str(shape), reason)
    ]
    assert "1 candidate" in result.stdout
    assert f"{name}: {shape} ({reason})" in result.stdout


def test_an_inexact_candidate_stays_where_no_sqnr_is_asked_for(place: Place) -> None:
    place.write(row("SEP_3", place.backbone.layers[0], sqnr_db=3.0))
    place.space()
    assert place.load().support.left_out == ()  # type: ignore[union-attr]


def test_what_has_no_error_at_all_meets_any_sqnr(place: Place) -> None:
    place.write(row("SEP_3", place.backbone.layers[0], relative_error=0.0, sqnr_db=None))
    place.space("--min-sqnr", 35)
    assert place.load().support.left_out == ()  # type: ignore[union-attr]


def test_a_left_out_operator_does_not_explore_either(place: Place) -> None:
    """Exploring operators are taken by capacity, beside the scored ones."""
    call(cli, "space", *place.words, "-o", place.output)
    explored = place.load().exploring[-1]
    assert explored is not None
    place.write(row(explored, place.backbone.layers[-1], flags="fallback:cpu"))
    place.space()
    assert explored not in place.load().candidates[-1]


def test_the_reachable_range_is_that_of_what_is_left(place: Place) -> None:
    model = LatencyModel(LookupTable.load(place.table), place.backbone)
    shape = place.backbone.layers[0]
    slowest = model.operators[int(np.nanargmax(model.latency_ms[0]))]
    place.write(row(slowest, shape, status="unsupported"))
    place.space()
    assert place.load().reachable_ms[1] < model.bounds()[1]


def test_the_space_file_says_by_which_report(place: Place) -> None:
    place.space("--min-sqnr", 25)
    source = place.load().support
    assert source is not None
    assert source.path == str(place.report)
    assert source.sha256 == SupportReport.load(place.report).sha256()
    assert source.min_sqnr_db == 25
    assert place.load().to_dict() == json.loads(place.output.read_text())
    content = json.loads(place.output.read_text())
    content["support"]["min_sqnr_db"] = "much"
    place.output.write_text(json.dumps(content))
    with pytest.raises(BadRequest, match=r"space.json: support: min_sqnr_db must be a number"):
        place.load()
    del content["support"]  # as an earlier version wrote it
    place.output.write_text(json.dumps(content))
    assert place.load().support is None


@pytest.mark.parametrize(
    "change",
    [
        {"device": "another board"},
        {"runtime": "litert"},
        {"precision": "fp16"},
        {"processor": "gpu"},
        {"options": "gate=sigmoid"},
        {"threads": 2},
    ],
)
def test_a_report_of_another_target_is_refused(place: Place, change: dict) -> None:
    place.write(target=replace(NPU, **change))
    error = str(place.space(status=2).exception)
    assert "of another target: the table is of npu-qnn-int8 (board, qnn 2.51)" in error
    assert not place.output.exists()


def test_another_version_of_the_runtime_is_told(place: Place) -> None:
    place.write(target=replace(NPU, runtime_version="3"))
    result = place.space()
    assert "qnn 3), the table of npu-qnn-int8 (board, qnn 2.51)" in result.stderr


WITHOUT_DEVICE = {"device": "npu-x", "runtime": "qnn_compiler", "options": "soc=X1"}


@pytest.mark.parametrize("origin", ["emulated", "compiled"])
def test_a_report_that_was_made_without_the_device_is_taken_and_told(
    place: Place, origin: str
) -> None:
    other = replace(NPU, origin=origin, **WITHOUT_DEVICE)
    name, shape = "SEP_3", place.backbone.layers[0]
    place.write(row(name, shape, other, status="unsupported"), target=other)
    result = place.space()
    assert "is of npu-qnn_compiler-int8 (npu-x, qnn_compiler 2.51, soc=X1" in result.stderr
    assert [(out.operator, out.reason) for out in place.load().support.left_out] == [  # type: ignore[union-attr]
        (name, "unsupported")
    ]


@pytest.mark.parametrize("change", [{"precision": "fp16"}, {"processor": "gpu"}])
def test_a_compilers_report_for_another_kind_of_processor_is_refused(
    place: Place, change: dict
) -> None:
    other = replace(NPU, **{"origin": "compiled", **WITHOUT_DEVICE, **change})
    place.write(target=other)
    assert "of another target" in str(place.space(status=2).exception)


def test_of_several_versions_the_tables_own_is_taken(place: Place) -> None:
    older = [row(n, s, replace(NPU, runtime_version="3")) for n, s, _ in place.cells()]
    newer = [row(n, s, replace(NPU, runtime_version="4")) for n, s, _ in place.cells()]
    place.write(*older)
    assert "qnn" not in place.space().stderr
    SupportReport([*older, *newer]).save(place.report)
    assert "several versions (3, 4)" in str(place.space(status=2).exception)


def test_operators_that_the_report_lacks_are_named(place: Place) -> None:
    place.write(skip="MB_3_3")
    error = str(place.space(status=2).exception)
    assert "lacks MB_3_3 at 8x8x8->16 s2, MB_3_3 at" in error
    assert "--operators 'MB_3_3' --target npu-qnn-int8" in error


def test_an_sqnr_that_nobody_knows_is_refused_and_not_taken_for_good(place: Place) -> None:
    unknown = {"relative_error": None, "sqnr_db": None, "reason": "no numbers: simulated"}
    place.write(row("SEP_3", place.backbone.layers[0], **unknown))
    place.space()
    error = str(place.space("--min-sqnr", 20, status=2).exception)
    assert "has no SQNR of SEP_3 at" in error
    assert "no numbers: simulated" in error


def test_a_layer_without_any_operator_left_is_named(place: Place) -> None:
    shape = place.backbone.layers[0]
    place.write(*(row(op.name, shape, status="unsupported") for op in POOL))
    error = str(place.space(status=2).exception)
    assert f"leaves no operator for layer 0 ({shape})" in error


def test_a_stem_that_is_not_taken_is_told(place: Place) -> None:
    name, shape = place.backbone.stem_name, place.backbone.stem_shape
    place.write(row(name, shape, flags="fallback:cpu"))
    assert f"{name}, which every network has: fallback:cpu" in place.space().stderr


def test_wrong_use_is_refused(place: Place) -> None:
    result = call(cli, "space", *place.words, "--min-sqnr", 3, status=2)
    assert "--support" in str(result.exception)
    result = call(cli, "space", *place.words, "--support", place.table, status=2)
    assert "this is a lookup table" in str(result.exception)
    place.space()
    words = ("search", "--space", place.output, "--support", place.report, "-o", "runs/x")
    assert "already settles --support" in str(call(cli, *words, status=2).exception)


@pytest.mark.parametrize("least", ["nan", "inf"])
def test_an_sqnr_that_is_no_number_is_refused_and_filters_nothing(place: Place, least: str) -> None:
    result = place.space("--min-sqnr", least, status=2)
    assert "give a finite number" in str(result.exception)


def test_a_model_is_left_as_it_was(place: Place) -> None:
    model = LatencyModel(LookupTable.load(place.table), place.backbone)
    place.write(row("SEP_3", place.backbone.layers[0], status="failed"))
    kept = keep_supported(model, SupportReport.load(place.report), "here")
    assert np.isnan(kept.latency_ms).sum() == np.isnan(model.latency_ms).sum() + 1
    assert kept.fixed_ms == model.fixed_ms
