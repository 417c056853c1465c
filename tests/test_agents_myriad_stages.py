"""The stage lists of the MYRIAD compiler: every stage of a dump, and none of a damaged one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hurricane.agents.tools.myriad import Stage, StageList, Unit, read_stages
from hurricane.agents.tools.text import BadOutput

from .myriad_dumps import Dump, example

TEXT = example()
LINES = TEXT.split("\n")
READ = read_stages(TEXT)
HALF = 14 * 12 * 8 * 2
MAP = 7 * 6 * 32 * 2


def test_stages_are_read_in_the_order_of_execution() -> None:
    assert [(stage.type, stage.unit, stage.injected) for stage in READ.stages] == [
        ("Convert", Unit.SHAVE, False),
        ("Split", Unit.VIRTUAL, False),
        ("MyriadXHwOp", Unit.HARDWARE, False),
        ("Copy", Unit.DMA, True),
        ("MyriadXHwOp", Unit.HARDWARE, False),
        ("StubConcat", Unit.VIRTUAL, False),
        ("Prod", Unit.SHAVE, False),
        ("Copy", Unit.DMA, False),
        ("Convert", Unit.SHAVE, False),
    ]
    assert (READ.cmx_bytes, READ.ddr_bytes, READ.blob_bytes) == (407552, 91136, 61184)


def test_a_stage_has_the_bytes_of_its_own_tensors_by_where_they_lie() -> None:
    first, copy = READ.stages[2:4]
    # Half of the map, two vectors of 32 weights, and a tensor that is none.
    assert (first.ddr_bytes, first.cmx_bytes) == (HALF + 2 * 64, MAP)
    assert (copy.ddr_bytes, copy.cmx_bytes) == (HALF, HALF)
    assert (READ.stages[1].ddr_bytes, READ.stages[1].cmx_bytes) == (0, 0)
    assert READ.stages[6] == Stage(
        READ.stages[6].name, "Prod", Unit.SHAVE, "0/body/Conv_output_0", 0, 2 * MAP, 4 * MAP, False
    )


def test_cycles_are_cost_times_pixels_of_convolutions_in_hardware() -> None:
    assert [stage.cycles for stage in READ.of(Unit.HARDWARE)] == [57 * 42, 114 * 42]
    assert READ.cycles == 171 * 42
    assert read_stages(example(cost=3)).cycles == 9 * 42


@st.composite
def written(draw: st.DrawFn) -> tuple[str, list[tuple[str, Unit, int]]]:
    """A dump of some stages in a row, and these with their cycles."""
    dump = Dump(draw(st.integers(1, 2**40)))
    width, height = draw(st.integers(1, 224)), draw(st.integers(1, 224))
    dims = f"W : {width}, H : {height}, C : 16, N : 1"
    last = dump.tensor(dims, "Input", "FP32", "Input")
    wanted: list[tuple[str, Unit, int]] = []
    kinds = st.sampled_from(("conv", "conv with copy", "Copy", "Reshape", "Clamp", "Power", "New"))
    for kind in draw(st.lists(kinds, max_size=12)):
        if kind.startswith("conv"):
            cost = draw(st.integers(1, 10_000))
            key, end = dump.convolution(last, dims, cost)
            wanted.append(("MyriadXHwOp", Unit.HARDWARE, cost * width * height))
            if kind != "conv":
                dump.stage("Copy", [last], [dump.tensor(dims)], inside=key)
                wanted.append(("Copy", Unit.DMA, 0))
        else:
            end = dump.tensor(dims)
            shaves = 0 if kind in ("Copy", "Reshape") else draw(st.integers(1, 16))
            dump.stage(kind, [last], [end], shaves, executed=kind != "Reshape")
            units = {"Copy": Unit.DMA, "Reshape": Unit.VIRTUAL}
            wanted.append((kind, units.get(kind, Unit.SHAVE), 0))
        last = end
    end = dump.tensor(dims, "Output", "FP32", "Output")
    dump.stage("Convert", [last], [end], 7)
    wanted.append(("Convert", Unit.SHAVE, 0))
    return dump.text(), wanted


@given(written())
def test_what_was_written_is_read(case: tuple[str, list[tuple[str, Unit, int]]]) -> None:
    text, wanted = case
    found = read_stages(text)
    assert [(stage.type, stage.unit, stage.cycles) for stage in found.stages] == wanted


@given(st.integers(0, len(TEXT) - 1))
def test_a_dump_that_is_cut_off_is_none(end: int) -> None:
    with pytest.raises(BadOutput):
        read_stages(TEXT[:end])


def same_or_none(text: str) -> None:
    """Nothing but what stands in the whole dump is ever read."""
    try:
        found = read_stages(text)
    except BadOutput:
        return
    assert found == READ


@given(st.data())
def test_of_a_dump_with_a_hole_nothing_wrong_is_read(data: Any) -> None:
    first = data.draw(st.integers(0, len(LINES) - 2))
    end = data.draw(st.integers(first + 1, len(LINES) - 1))
    same_or_none("\n".join(LINES[:first] + LINES[end:]))


@given(st.data())
def test_lines_that_stand_twice_or_elsewhere_change_nothing(data: Any) -> None:
    first = data.draw(st.integers(0, len(LINES) - 2))
    end = data.draw(st.integers(first + 1, min(first + 12, len(LINES) - 1)))
    place = data.draw(st.integers(0, len(LINES) - 1))
    moved = LINES[first:end]
    same_or_none("\n".join(LINES[:place] + moved + LINES[place:]))


OTHER = example(0x7F3310, cost=91)


@given(st.integers(5, len(LINES) - 3), st.integers(5, OTHER.count("\n") - 2))
def test_two_dumps_are_not_taken_for_one(end: int, first: int) -> None:
    text = "\n".join(LINES[:end] + OTHER.split("\n")[first:])
    try:
        found = read_stages(text)
    except BadOutput:
        return
    assert found in (READ, read_stages(OTHER))


@given(st.text(max_size=200), st.integers(0, len(LINES) - 1))
def test_what_is_not_known_is_refused(line: str, place: int) -> None:
    if not line.strip() or "\n" in line:
        return
    with pytest.raises(BadOutput):
        read_stages("\n".join([*LINES[:place], line, *LINES[place:]]))


def changed(old: str, new: str, count: int = 1) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, count)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is cut off"),
        (TEXT + "}\n", "goes on after its end"),
        (TEXT[:-2], "is cut off"),
        (changed("type = MyriadXHwOp", "type = MyriadXHwOp2"), "'MyriadXHwOp2' that is not known"),
        (changed("numSHAVEs = 7", "numSHAVEs = 0"), "'Convert' that is not known"),
        (changed("numSHAVEs = 5", "numSHAVEs = five"), "no whole number as 'numSHAVEs': 'five'"),
        (changed("hwOpType = CONV", "hwOpType = GEMM"), "in hardware, GEMM, with other ports"),
        (changed("cost = 57", "cost = inf"), "a cost that is no number: 'inf'"),
        (changed("cost = 57", "price = 57"), "lacks 'extraAttrs/tiling/cost'"),
        (changed("type = FP32", "type = BF16"), "a tensor of a kind that is not known"),
        (changed("dataLocation = CMX", "dataLocation = UPA"), "a tensor of a kind that is not"),
        (changed("portInd = 1", "portInd = 2"), "the ports of a stage in disorder"),
        (changed("numInputs = 1", "numInputs = 2"), "1 tensors of usage Input, not as many"),
        (changed("Injected Stage", "Joined Stage"), "an edge that is not known: 'Joined Stage'"),
        (changed("[0 / 0] Stage", "[0 / 9] Stage"), "does not have all of its stages once"),
        (changed("[0 / 0] Stage", "[9 / 0] Stage"), "all of its executed stages once"),
        (changed("[1 / 31] Stage", "[2 / 31] Stage"), "injected into another than it says"),
        (changed("blob = 61184", "blob = "), "no whole number as 'extraAttrs/usedMemory/blob'"),
        (changed("cost = 57\\l", "cost = 57\\l    cost = 58\\l"), "has brackets|twice"),
        (changed("    enable = 0\\l", "    enable = 0]\\l"), "brackets that do not match"),
    ],
)
def test_what_is_wrong_is_told(text: str, words: str) -> None:
    with pytest.raises(BadOutput, match=words) as caught:
        read_stages(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_graph_is_counted_by_unit() -> None:
    found = StageList(READ.stages, 0, 0, 0)
    assert {unit: len(found.of(unit)) for unit in Unit} == {
        Unit.HARDWARE: 2,
        Unit.SHAVE: 3,
        Unit.DMA: 2,
        Unit.VIRTUAL: 2,
    }
