"""Names, costs and backbones: arithmetic without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hurricane.ops.backbone import load_backbone, parse_backbone, parse_stem, shipped_backbones
from hurricane.ops.errors import BadRequest
from hurricane.ops.pool import (
    POOL,
    Operator,
    load_plugin,
    parse_operator,
    register_operator,
    select_operators,
)
from hurricane.ops.shapes import LayerShape

DEFINED_MMACS = {
    "Choice_3": 295.8,
    "Choice_5": 313.7,
    "Choice_7": 340.4,
    "Choice_x": 358.8,
    "SEP_3": 384.2,
    "SEP_5": 410.8,
    "SEP_7": 450.6,
    "MB_3_1": 740,
    "MB_3_3": 2143,
    "MB_3_6": 4247,
    "MB_7_6": 4645,
}


def test_the_pool_has_32_operators_with_distinct_names():
    assert len(POOL) == 32
    assert len({op.name for op in POOL}) == 32
    assert sum(op.se for op in POOL) == 16


@given(st.sampled_from(POOL))
def test_a_name_leads_back_to_its_operator(op: Operator):
    assert parse_operator(op.name) == op


def test_an_unknown_operator_is_refused_with_a_near_name():
    with pytest.raises(BadRequest, match="did you mean MB_5_6"):
        parse_operator("MB_5_66")


@pytest.mark.parametrize(("name", "expected"), DEFINED_MMACS.items())
def test_uniform_networks_have_the_defined_macs(name: str, expected: float):
    backbone = load_backbone("imagenet224")
    macs = backbone.macs([name] * 20) / 1e6
    assert macs == pytest.approx(expected, abs=0.06 if isinstance(expected, float) else 0.6)


def test_imagenet224_is_the_layout_of_spos():
    backbone = load_backbone("imagenet224")
    assert len(backbone.layers) == 20
    assert len(backbone.distinct_shapes) == 8
    assert (backbone.split, backbone.exploring_layers) == (8, 4)
    assert str(backbone.layers[0]) == "112x112x16->64 s2"
    assert str(backbone.layers[-1]) == "7x7x640->640 s1"


@pytest.mark.parametrize("name", shipped_backbones())
def test_stem_and_head_can_be_read_back_from_their_names(name: str):
    backbone = load_backbone(name)
    stem = parse_stem(backbone.stem_name, backbone.stem_shape)
    assert [(c.kernel, c.stride, c.depthwise) for c in stem] == [
        (c.kernel, c.stride, c.depthwise) for c in backbone.stem
    ]
    assert stem[-1].channels == backbone.stem[-1].channels


def test_choice_needs_even_channels_and_more_of_them_where_the_shape_changes():
    choice = parse_operator("Choice_3")
    assert choice.applies_to(LayerShape(8, 8, 16, 16, 1))
    assert not choice.applies_to(LayerShape(8, 8, 15, 15, 1))
    assert not choice.applies_to(LayerShape(8, 8, 16, 16, 2))
    assert not choice.applies_to(LayerShape(8, 8, 32, 16, 1))
    assert choice.applies_to(LayerShape(8, 8, 16, 32, 2))


def test_operators_are_selected_by_name_and_pattern_in_pool_order():
    names = [op.name for op in select_operators("Choice_3,MB_*_6")]
    assert names == ["MB_3_6", "MB_5_6", "MB_7_6", "Choice_3"]
    with pytest.raises(BadRequest, match="unknown"):
        select_operators("MB_9_*")


GOOD = """
classes = 10
split = 1
exploring_layers = 1
[input]
channels = 1
height = 8
width = 8
[[stem]]
channels = 8
kernel = 3
stride = 1
[[stages]]
channels = 8
repeats = 2
stride = 1
[head]
channels = 16
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("height = 8\n", ""), r"mine.toml lacks the key input.height"),
        (("classes = 10", ""), r"lacks the key classes"),
        (("[head]\nchannels = 16", ""), r"lacks the key head"),
        (("repeats = 2", "repeats = -2"), r"stages\[0\].repeats must be a whole number"),
        (("stride = 1\n[head]", "stride = 3\n[head]"), r"stride must be 1 or 2"),
        (("split = 1", "split = 5"), r"split must lie between 1 and 1"),
        (("classes = 10", "classes = "), r"is not TOML"),
        (("[[stages]]", "[stages]"), r"must be a list of tables"),
        (
            ("[head]", "[head]\nactivatoin = 'relu6'"),
            r"key head.activatoin; did you mean activation",
        ),
        (("split = 1", "split = 1\nspilt = 2"), r"unknown key spilt; did you mean split"),
        (("kernel = 3", "kernel = 3\nsomething = 3"), r"key stem\[0\].something; known: channels,"),
        (
            ("kernel = 3", "kernel = 3\ndepthwise = 'no'"),
            r"stem\[0\].depthwise must be true or false",
        ),
        (("kernel = 3", "kernel = 3\ndepthwise = true"), r"stem\[0\].channels must be 1, not 8"),
    ],
)
def test_a_broken_backbone_file_says_what_and_where(change: tuple[str, str], message: str):
    assert change[0] in GOOD
    with pytest.raises(BadRequest, match=message):
        parse_backbone(GOOD.replace(*change), "mine", "mine.toml")


def test_a_depthwise_stem_is_named_apart_from_the_plain_one():
    text = GOOD.replace("channels = 8\nkernel = 3", "channels = 1\ndepthwise = true\nkernel = 3", 1)
    backbone = parse_backbone(text, "mine", "mine.toml")
    assert backbone.stem_name == "stem:dw1k3s1"
    assert parse_stem(backbone.stem_name, backbone.stem_shape) == backbone.stem


def test_a_backbone_that_does_not_exist_lists_the_shipped_ones():
    with pytest.raises(BadRequest, match="imagenet224"):
        load_backbone("imagenet225")


@pytest.mark.process
def test_names_and_costs_need_no_torch():
    code = (
        "import sys; import hurricane.ops.pool, hurricane.ops.backbone as b;"
        "b.load_backbone('imagenet224').macs(['MB_3_6_SE']*20);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PLUGIN = """
from torch import nn
from hurricane.ops.pool import register_operator

def build(shape, gate):
    return nn.Sequential(
        nn.Conv2d(shape.in_channels, shape.out_channels, 3, shape.stride, 1, bias=False),
        nn.BatchNorm2d(shape.out_channels),
        nn.ReLU(),
    )

register_operator("Plain_3", build)
"""


def test_a_users_operator_comes_from_a_file_and_is_counted_and_exported(tmp_path, monkeypatch):
    from hurricane.ops import pool
    from hurricane.ops.export import export_operator

    monkeypatch.setattr(pool, "_CUSTOM", {})
    monkeypatch.setenv("HURRICANE_CACHE", str(tmp_path))
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    load_plugin(file)
    shape = LayerShape(8, 8, 4, 6, 2)
    operator = parse_operator("Plain_3")
    assert operator.params(shape) == 9 * 4 * 6
    assert operator.macs(shape) == 9 * 4 * 6 * 16
    assert export_operator("Plain_3", shape) == export_operator("Plain_3", shape)


def test_a_users_operator_is_built_once_for_a_shape_to_be_counted(monkeypatch):
    from torch import nn

    from hurricane.ops import pool

    monkeypatch.setattr(pool, "_CUSTOM", {})
    built = []

    def build(shape, gate):
        built.append(shape)
        return nn.Conv2d(shape.in_channels, shape.out_channels, 1, shape.stride)

    operator = register_operator("Counted_1", build)
    small, large = LayerShape(8, 8, 4, 6, 2), LayerShape(8, 8, 4, 12, 2)
    for _ in range(3):
        assert operator.params(small) == 4 * 6
        assert operator.params(large) == 4 * 12
        assert operator.macs(small) == 4 * 6 * 16
    assert built == [small, large]


LOOP = """
from functools import partial
from torch import nn
from hurricane.ops.pool import register_operator

class Block(nn.Module):
    def __init__(self, shape, gate):
        super().__init__()

def made(kernel):
    return lambda shape, gate: kernel

register_operator("Mine_class", Block)
for kernel in (3, 5):
    register_operator(f"Mine_partial_{kernel}", partial(Block, kernel))
    register_operator(f"Mine_closure_{kernel}", made(kernel))
"""


def test_a_plugin_may_be_loaded_twice_but_a_name_means_one_thing(tmp_path, monkeypatch):
    from hurricane.ops import pool

    monkeypatch.setattr(pool, "_CUSTOM", {})
    file = tmp_path / "mine.py"
    for content in (PLUGIN, LOOP):
        file.write_text(content)
        load_plugin(file)
        load_plugin(file)
    assert len(pool._CUSTOM) == 6
    for line in ("Mine_class', partial(Block, 3)", "Mine_partial_3', partial(Block, 5)",
                 "Mine_closure_3', made(5)", "Plain_3', Block"):  # fmt: skip
        file.write_text(f"{LOOP}\nregister_operator('{line})")
        with pytest.raises(BadRequest, match=r"already registered .*mine.py, line"):
            load_plugin(file)
    other = tmp_path / "other.py"
    other.write_text(PLUGIN)
    with pytest.raises(BadRequest, match="'Plain_3' is already registered"):
        load_plugin(other)


@pytest.mark.process
def test_names_and_backbones_are_read_where_there_is_no_tomllib():
    code = (
        "import sys; sys.modules['tomllib'] = None; import hurricane.ops.backbone as b;"
        "assert b.is_stem('stem')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_plugin_cannot_take_a_name_of_the_pool_and_says_which_file_failed(tmp_path):
    with pytest.raises(BadRequest, match="already taken"):
        register_operator("SEP_3", lambda shape, gate: None)  # type: ignore[arg-type,return-value]
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    with pytest.raises(BadRequest, match=r"broken.py failed: ZeroDivisionError"):
        load_plugin(file)
