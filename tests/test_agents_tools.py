"""Output of board tools: every number with its unit, and none out of a damaged text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hurricane.agents.errors import AgentError, BoardNotReady, UnsupportedOperator
from hurricane.agents.tools import qnn, snpe, tflite
from hurricane.agents.tools.text import BadOutput

from .board_output import (
    DIAGVIEW_2_9,
    DIAGVIEW_2_37,
    DIAGVIEW_CPU,
    QNN_BASIC,
    QNN_DETAILED,
    QNN_VIEWER,
    TFLITE_NONE,
    TFLITE_WHOLE,
    THROUGHPUT,
    THROUGHPUT_402,
)

DIAGVIEW_BASIC = DIAGVIEW_2_37[: DIAGVIEW_2_37.index("\n  Per-Subnet")]
READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "diagview 2.9": (snpe.read_diagview, DIAGVIEW_2_9),
    "diagview 2.37": (snpe.read_diagview, DIAGVIEW_2_37),
    "diagview cpu": (snpe.read_diagview, DIAGVIEW_CPU),
    "diagview basic": (lambda text: snpe.read_diagview(text, False), DIAGVIEW_BASIC),
    "throughput": (snpe.read_throughput, THROUGHPUT),
    "viewer": (qnn.read_viewer, QNN_VIEWER),
    "profile": (qnn.read_profile, QNN_BASIC),
    "detailed profile": (qnn.read_profile, QNN_DETAILED),
    "benchmark_model": (lambda text: tflite.read_benchmark(text, True), TFLITE_WHOLE),
}
each = pytest.mark.parametrize("name", READERS)


def test_both_forms_of_diagview_are_read() -> None:
    older, newer = snpe.read_diagview(DIAGVIEW_2_9), snpe.read_diagview(DIAGVIEW_2_37)
    assert (older.version, newer.version) == ("2.9.0.4462", "2.37.0.250724175447")
    assert (older.total_us, older.forward_us, older.rpc_us, older.accelerator_us) == (
        4021,
        3911,
        2113,
        907,
    )
    assert (newer.total_us, newer.forward_us, newer.rpc_us, newer.accelerator_us) == (
        1741,
        1702,
        613,
        333,
    )
    assert older.layers[1] == snpe.Layer(1, "", 171717, "cycles", "DSP")
    assert newer.layers[1] == snpe.Layer(1, "0/body/Conv:OpId_18 (cycles)", 9191, "cycles", "DSP")
    assert older.runtimes == newer.runtimes == ("DSP",)


def test_a_log_without_times_of_layers_is_read_only_where_none_were_asked_for() -> None:
    found = snpe.read_diagview(DIAGVIEW_BASIC, layers_told=False)
    assert (found.total_us, found.accelerator_us, found.layers) == (1741, 333, ())
    with pytest.raises(BadOutput, match="no times of layers"):
        snpe.read_diagview(DIAGVIEW_BASIC)
    with pytest.raises(BadOutput, match="has times of layers"):
        snpe.read_diagview(DIAGVIEW_2_37, layers_told=False)


def test_where_layers_ran_is_told() -> None:
    assert snpe.read_diagview(DIAGVIEW_CPU).runtimes == ("CPU",)
    mixed = DIAGVIEW_2_37.replace("9191 cycles : DSP", "9191 us : CPU")
    assert snpe.read_diagview(mixed).runtimes == ("CPU", "DSP")


def test_throughput_is_time_over_inferences() -> None:
    found = snpe.read_throughput(THROUGHPUT)
    assert found == snpe.Throughput("dsp_fixed8_tf", 4020, 10_000_000)
    assert found.inference_us == pytest.approx(1e6 / 402)
    with pytest.raises(UnsupportedOperator, match=r"SNPE 402: Network partition has failed; "):
        snpe.read_throughput(THROUGHPUT_402)


def test_qnn_profiles_give_one_entry_for_each_inference() -> None:
    assert qnn.read_profile(QNN_BASIC) == [
        qnn.Execution(1391, 1301, None),
        qnn.Execution(1401, 1307, None),
    ]
    assert qnn.read_profile(QNN_DETAILED) == [qnn.Execution(1393, 1303, 901234)]
    assert qnn.read_viewer(QNN_VIEWER) == qnn.Average(2701, 2691, 2301)


def test_benchmark_model_tells_the_timed_calls_and_what_the_delegate_took() -> None:
    found = tflite.read_benchmark(TFLITE_WHOLE, True)
    assert (found.calls, found.mean_us, found.min_us, found.max_us) == (50, 1193.5, 1137, 1247)
    assert found.placement == tflite.Placement("TfLiteQnnDelegate", 31, 31)
    with pytest.raises(UnsupportedOperator, match="takes nothing of the graph"):
        tflite.read_benchmark(TFLITE_NONE, True)
    part = TFLITE_WHOLE.replace("Replacing 31 out", "Replacing 10 out")
    with pytest.raises(UnsupportedOperator, match="took 10 of 31 nodes"):
        tflite.read_benchmark(part, True)
    silent = re.sub(r"(?m)^.*(?:Replacing|Explicitly).*\n", "", TFLITE_WHOLE)
    with pytest.raises(BadOutput, match="does not say what the delegate took"):
        tflite.read_benchmark(silent, True)
    assert tflite.read_benchmark(silent, False).placement is None


PUSH_IT = "push it to the phone.s folder tflite with .* option 'delegate'"


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("ERROR: Failed to load delegate from libQnn.so\n", BoardNotReady, PUSH_IT),
        ('dlopen failed: library "x.so" not found\n', BoardNotReady, PUSH_IT),
        ("Failed to apply EXTERNAL delegate.\n", UnsupportedOperator, "the whole graph"),
        ('CANNOT LINK EXECUTABLE "b": library "l" not found\n', BoardNotReady, "push that library"),
    ],
)
def test_what_benchmark_model_says_went_wrong_is_told_with_advice(text, kind, words) -> None:
    with pytest.raises(kind, match=words):
        tflite.read_benchmark(text, True)


def test_a_missing_library_of_snpe_is_told_with_what_helps() -> None:
    error = snpe.snpe_error('CANNOT LINK EXECUTABLE "snpe-net-run": library "libSNPE.so" not found')
    assert isinstance(error, BoardNotReady)
    assert "push it to the folder lib of snpe" in str(error)
    assert "on the agent's LD_LIBRARY_PATH" in str(error)
    assert snpe.snpe_error(THROUGHPUT) is None


@each
def test_terminals_and_indentation_change_nothing(name: str) -> None:
    read, text = READERS[name]
    assert read(text.replace("\n", "\r\n")) == read(text)
    if "profile" not in name:
        assert read(re.sub(r"(?m)^(?=.)", "  ", text)) == read(text)


def numbers_of(value: Any) -> list[float]:
    """Every number in a result."""
    if isinstance(value, (list, tuple)):
        return [n for one in value for n in numbers_of(one)]
    if hasattr(value, "__dataclass_fields__"):
        return [n for one in vars(value).values() for n in numbers_of(one)]
    return [value] if isinstance(value, (int, float)) else []


@each
@given(data=st.data())
def test_a_text_that_is_cut_off_gives_an_error_or_what_is_there_whole(name: str, data: Any) -> None:
    read, text = READERS[name]
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    try:
        found = read(cut)
    except AgentError:
        return
    # Only whole entries at the end may be missing: that nothing is, a mark after it tells.
    assert cut.endswith("\n")
    whole = numbers_of(read(text))
    assert all(number in whole for number in numbers_of(found))


@each
@given(data=st.data())
def test_lines_that_are_lost_doubled_or_from_elsewhere_give_no_other_number(
    name: str, data: Any
) -> None:
    read, text = READERS[name]
    lines = text.splitlines(keepends=True)
    others = "".join(other for _, other in READERS.values()).splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(st.sampled_from(("lose", "double", "insert", "break")))
    if how == "lose":
        damaged = lines[:at] + lines[at + 1 :]
    elif how == "double":
        damaged = [*lines[: at + 1], *lines[at:]]
    elif how == "insert":
        damaged = [*lines[:at], data.draw(st.sampled_from(others)), *lines[at:]]
    else:
        middle = data.draw(st.integers(0, len(lines[at])))
        damaged = [*lines[:at], lines[at][:middle], *lines[at + 1 :]]
    try:
        found = read("".join(damaged))
    except AgentError:
        return
    words = [word for line in others for word in re.split(r"[^\d.]+", line)]
    there = {float(word) for word in words if re.fullmatch(r"\d+(\.\d+)?", word)}
    rate = {1e6 / 402}
    assert all(number in there | rate for number in numbers_of(found))


@each
@pytest.mark.parametrize("unit", [" ms", " ns", "", " s"])
def test_times_in_another_unit_are_refused(name: str, unit: str) -> None:
    read, text = READERS[name]
    if name == "throughput":
        changed = text.replace(" microseconds", unit)
    elif "profile" in name:
        changed = text.replace(",US,", f",{unit.strip().upper()},")
    elif name == "benchmark_model":
        changed = text.replace("timings in us", f"timings in{unit}")
    else:
        changed = text.replace(" us", unit)
    assert changed != text
    with pytest.raises(AgentError):
        read(changed)


@each
def test_a_line_that_is_new_is_refused(name: str) -> None:
    read, text = READERS[name]
    if name == "benchmark_model":
        pytest.skip("it tells much else, which changes from version to version")
    with pytest.raises(BadOutput):
        read(text + "Turbo Execute Time: 12 us\n")


def test_nothing_at_all_is_refused() -> None:
    for read, _ in READERS.values():
        for text in ("", "\n", "\n\n", "0\n", "killed\n"):
            with pytest.raises(BadOutput):
                read(text)
