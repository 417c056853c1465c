"""Backbones: fixed stem, learnable layers, fixed head, read from TOML."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from .counting import ConvolutionCost
from .errors import BadRequest
from .files import MAX_TOML_BYTES, parse_toml, read_bytes
from .pool import parse_operator
from .shapes import LayerShape

_FILES = f"{__package__}.backbones"
ACTIVATIONS = ("relu", "relu6", "none")
_KEYS = ("classes", "split", "exploring_layers", "input", "stem", "stages", "head")

MAX_LAYERS = 1_000
"""Learnable layers of a backbone file, and entries of its lists."""

MAX_NUMBER = 65_536
"""What a backbone file may say of channels, sizes and classes: far more than memory holds."""


@dataclass(frozen=True)
class StemConvolution:
    """One convolution of the stem, followed by BatchNorm and an activation."""

    channels: int
    kernel: int = 3
    stride: int = 1
    depthwise: bool = False
    activation: str = "relu"

    @property
    def code(self) -> str:
        kind = "dw" if self.depthwise else "c"
        tail = "" if self.activation == "relu" else f"-{self.activation}"
        return f"{kind}{self.channels}k{self.kernel}s{self.stride}{tail}"


_STEM_CODE = re.compile(r"(c|dw)(\d+)k(\d+)s(\d+)(?:-(relu6|none))?")


def parse_stem(name: str, shape: LayerShape) -> tuple[StemConvolution, ...]:
    """From a stem's name in a table, and its shape, to its convolutions."""
    if name == "stem":
        return (StemConvolution(shape.out_channels, 3, shape.stride),)
    convolutions = []
    for code in name.removeprefix("stem:").split("."):
        match = _STEM_CODE.fullmatch(code)
        if match is None:
            raise BadRequest(f"stem {name!r} is not understood at {code!r}")
        kind, channels, kernel, stride, activation = match.groups()
        convolutions.append(
            StemConvolution(
                int(channels), int(kernel), int(stride), kind == "dw", activation or "relu"
            )
        )
    return tuple(convolutions)


POOL_NAME = "pool"
"""A global average pool alone: part of measuring contexts, never a row of a table."""


def is_stem(name: str) -> bool:
    """Whether a table's operator name speaks of a stem."""
    return name.partition(":")[0] == "stem"


def is_head(name: str) -> bool:
    """Whether a table's operator name speaks of a head."""
    return name.startswith("head:")


def head_parts(name: str) -> tuple[int, str]:
    """Channels and activation of a head, from its name in a table."""
    channels, _, activation = name.removeprefix("head:").partition(":")
    if not (channels.isascii() and channels.isdigit()) or activation not in ("", *ACTIVATIONS):
        raise BadRequest(f"head {name!r} is not understood; it looks like head:1024")
    return int(channels), activation or "relu"


def row_costs(name: str, shape: LayerShape) -> list[ConvolutionCost]:
    """Convolutions and linears of what a table's row speaks of: operator, stem or head."""
    if is_head(name):
        channels, _ = head_parts(name)
        return [
            ConvolutionCost(shape.in_channels * channels, shape.in_pixels),
            ConvolutionCost(channels * shape.out_channels, 1),
        ]
    if name == POOL_NAME:
        return []
    if not is_stem(name):
        return parse_operator(name).convolutions(shape)
    height, width, channels = shape.height, shape.width, shape.in_channels
    costs = []
    for c in parse_stem(name, shape):
        height, width = -(-height // c.stride), -(-width // c.stride)
        weights = c.kernel * c.kernel * c.channels * (1 if c.depthwise else channels)
        costs.append(ConvolutionCost(weights, height * width))
        channels = c.channels
    return costs


@dataclass(frozen=True)
class Backbone:
    """The frame that candidate operators are put into.

    Attributes:
        name: the file's name without its ending.
        input_channels, input_height, input_width: the image.
        stem: convolutions before the first learnable layer.
        layers: shapes of the learnable layers, in order.
        stage_of: for each layer, the number of its stage, from 0.
        head_channels: channels of the head's 1x1 convolution.
        head_activation: activation after it.
        classes: outputs of the head's linear.
        dropout: before the linear, in training.
        split: t, the first layers that stage 2 searches (paper: 8 of 20).
        exploring_layers: last layers that get an exploring operator.
    """

    name: str
    input_channels: int
    input_height: int
    input_width: int
    stem: tuple[StemConvolution, ...]
    layers: tuple[LayerShape, ...]
    stage_of: tuple[int, ...]
    head_channels: int
    head_activation: str
    classes: int
    dropout: float
    split: int
    exploring_layers: int
    source: str = field(default="", compare=False)

    @cached_property
    def distinct_shapes(self) -> tuple[LayerShape, ...]:
        """Layer shapes without repeats, in order of first use."""
        return tuple(dict.fromkeys(self.layers))

    @property
    def stem_name(self) -> str:
        """The stem's name in a table: ``stem`` for one full 3x3 convolution with ReLU."""
        first = self.stem[0]
        plain = first.kernel == 3 and first.activation == "relu" and not first.depthwise
        if len(self.stem) == 1 and plain:
            return "stem"
        return "stem:" + ".".join(c.code for c in self.stem)

    @property
    def stem_shape(self) -> LayerShape:
        stride = 1
        for convolution in self.stem:
            stride *= convolution.stride
        return LayerShape(
            self.input_height,
            self.input_width,
            self.input_channels,
            self.stem[-1].channels,
            stride,
        )

    @property
    def head_name(self) -> str:
        """The head's name in a table, e.g. ``head:1024``."""
        tail = "" if self.head_activation == "relu" else f":{self.head_activation}"
        return f"head:{self.head_channels}{tail}"

    @property
    def head_shape(self) -> LayerShape:
        """Input of the head; its output channels are the classes."""
        last = self.layers[-1]
        return LayerShape(last.out_height, last.out_width, last.out_channels, self.classes, 1)

    def fixed_convolutions(self) -> list[ConvolutionCost]:
        """Convolutions and linears of stem and head."""
        return [
            *row_costs(self.stem_name, self.stem_shape),
            *row_costs(self.head_name, self.head_shape),
        ]

    def macs(self, operators: Sequence[str]) -> int:
        """MACs of the whole network with these operators, one name a layer."""
        body = sum(parse_operator(o).macs(s) for o, s in self._pairs(operators))
        return body + sum(c.macs for c in self.fixed_convolutions())

    def params(self, operators: Sequence[str]) -> int:
        """Convolution and linear weights of the whole network."""
        body = sum(parse_operator(o).params(s) for o, s in self._pairs(operators))
        return body + sum(c.params for c in self.fixed_convolutions())

    def check(self, operators: Sequence[str]) -> None:
        """Raises BadRequest unless the operators make an architecture of this backbone."""
        for index, (name, shape) in enumerate(self._pairs(operators)):
            if not parse_operator(name).applies_to(shape):
                raise BadRequest(f"layer {index} ({shape}) of {self.name} cannot hold {name}")

    def _pairs(self, operators: Sequence[str]) -> list[tuple[str, LayerShape]]:
        if len(operators) != len(self.layers):
            raise BadRequest(
                f"{self.name} has {len(self.layers)} layers, these are {len(operators)}"
            )
        return list(zip(operators, self.layers, strict=True))


def shipped_backbones() -> tuple[str, ...]:
    """Names of the backbones that come with the package."""
    folder = resources.files(_FILES)
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def load_backbone(name_or_path: str | Path) -> Backbone:
    """Reads a shipped backbone by name, or a user's TOML file by path.

    Raises:
        BadRequest: no such backbone, or the file cannot be read, lacks a key or holds a wrong
            value.
    """
    text = str(name_or_path)
    if text in shipped_backbones():
        content = (resources.files(_FILES) / f"{text}.toml").read_text("utf-8")
        return parse_backbone(content, text, f"{text}.toml")
    if os.path.isfile(text):
        path = Path(text)
        return parse_backbone(
            read_bytes(path, "backbone file", MAX_TOML_BYTES), path.stem, str(path)
        )
    raise BadRequest(
        f"backbone {text!r} is neither shipped ({', '.join(shipped_backbones())}) nor a TOML file"
    )


def parse_backbone(content: str | bytes, name: str, where: str) -> Backbone:
    """From TOML to a backbone; `where` names the file in errors."""
    data = parse_toml(content, f"backbone file {where}")
    read = _Reader(where)
    read.no_others(data, "", _KEYS)
    image = read.table(data, "input")
    read.no_others(image, "input", ("channels", "height", "width"))
    head = read.table(data, "head")
    read.no_others(head, "head", ("channels", "activation", "dropout"))
    channels = read.integer(image, "input.channels")
    height, width = read.integer(image, "input.height"), read.integer(image, "input.width")

    stem = []
    incoming = channels
    for i, item in enumerate(read.tables(data, "stem")):
        at = f"stem[{i}]"
        read.no_others(item, at, tuple(f.name for f in fields(StemConvolution)))
        convolution = StemConvolution(
            read.integer(item, f"{at}.channels"),
            read.integer(item, f"{at}.kernel"),
            read.integer(item, f"{at}.stride"),
            read.flag(item, f"{at}.depthwise", False),
            read.choice(item, f"{at}.activation", ACTIVATIONS, "relu"),
        )
        if convolution.depthwise and convolution.channels != incoming:
            raise BadRequest(
                f"backbone file {where}: {at} is depthwise and keeps the number of channels: "
                f"{at}.channels must be {incoming}, not {convolution.channels}"
            )
        stem.append(convolution)
        incoming = convolution.channels
    if math.prod(convolution.stride for convolution in stem) > MAX_NUMBER:
        raise BadRequest(f"backbone file {where}: the stem's strides leave nothing of an image")
    layers: list[LayerShape] = []
    stage_of: list[int] = []
    h, w, c = height, width, stem[-1].channels
    for convolution in stem:
        h, w = -(-h // convolution.stride), -(-w // convolution.stride)
    for number, stage in enumerate(read.tables(data, "stages")):
        at = f"stages[{number}]"
        read.no_others(stage, at, ("channels", "repeats", "stride"))
        out = read.integer(stage, f"{at}.channels")
        for repeat in range(read.integer(stage, f"{at}.repeats")):
            stride = read.integer(stage, f"{at}.stride") if repeat == 0 else 1
            if stride not in (1, 2):
                raise BadRequest(f"backbone file {where}: {at}.stride must be 1 or 2, not {stride}")
            shape = LayerShape(h, w, c, out, stride)
            layers.append(shape)
            if len(layers) > MAX_LAYERS:
                raise BadRequest(f"backbone file {where}: over {MAX_LAYERS:,} layers")
            stage_of.append(number)
            h, w, c = shape.out_height, shape.out_width, out
    split = read.integer(data, "split")
    exploring = read.integer(data, "exploring_layers", minimum=0)
    if not 0 < split < len(layers):
        raise BadRequest(f"backbone file {where}: split must lie between 1 and {len(layers) - 1}")
    if exploring > len(layers):
        raise BadRequest(
            f"backbone file {where}: exploring_layers exceeds the {len(layers)} layers"
        )
    return Backbone(
        name=name,
        input_channels=channels,
        input_height=height,
        input_width=width,
        stem=tuple(stem),
        layers=tuple(layers),
        stage_of=tuple(stage_of),
        head_channels=read.integer(head, "head.channels"),
        head_activation=read.choice(head, "head.activation", ACTIVATIONS, "relu"),
        classes=read.integer(data, "classes"),
        dropout=read.share(head, "head.dropout", 0.1),
        split=split,
        exploring_layers=exploring,
        source=where,
    )


class _Reader:
    """Takes keys out of parsed TOML, and says which file and key is at fault."""

    def __init__(self, where: str) -> None:
        self.where = where

    def _get(self, table: Mapping[str, Any], path: str) -> Any:
        key = path.rsplit(".", 1)[-1]
        if key not in table:
            raise BadRequest(f"backbone file {self.where} lacks the key {path}")
        return table[key]

    def no_others(self, table: Mapping[str, Any], path: str, known: Sequence[str]) -> None:
        """Refuses keys that mean nothing: a slip of the pen would silently give a default."""
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                name = f"{path}.{key}" if path else key
                raise BadRequest(f"backbone file {self.where}: unknown key {name}; {hint}")

    def table(self, data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = self._get(data, key)
        if not isinstance(value, dict):
            raise BadRequest(f"backbone file {self.where}: {key} must be a table")
        return value

    def tables(self, data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        value = self._get(data, key)
        if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
            raise BadRequest(
                f"backbone file {self.where}: {key} must be a list of tables, [[{key}]]"
            )
        if len(value) > MAX_LAYERS:
            raise BadRequest(f"backbone file {self.where}: {key} has over {MAX_LAYERS:,} entries")
        return value

    def integer(self, table: Mapping[str, Any], path: str, minimum: int = 1) -> int:
        value = self._get(table, path)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise BadRequest(
                f"backbone file {self.where}: {path} must be a whole number of at least {minimum}"
            )
        if value > MAX_NUMBER:
            raise BadRequest(f"backbone file {self.where}: {path} must be at most {MAX_NUMBER:,}")
        return value

    def share(self, table: Mapping[str, Any], path: str, default: float) -> float:
        value = table.get(path.rsplit(".", 1)[-1], default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise BadRequest(f"backbone file {self.where}: {path} must be a number from 0 to 1")
        return float(value)

    def flag(self, table: Mapping[str, Any], path: str, default: bool) -> bool:
        value = table.get(path.rsplit(".", 1)[-1], default)
        if not isinstance(value, bool):
            raise BadRequest(f"backbone file {self.where}: {path} must be true or false")
        return value

    def choice(
        self, table: Mapping[str, Any], path: str, allowed: tuple[str, ...], default: str
    ) -> str:
        value = table.get(path.rsplit(".", 1)[-1], default)
        if value not in allowed:
            raise BadRequest(
                f"backbone file {self.where}: {path} must be one of {', '.join(allowed)}"
            )
        return value
