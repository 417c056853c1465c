"""The operators, stems and heads as torch modules, and whole networks made of them.

ShuffleNetV2's unit (Ma et al. 2018, arXiv 1807.11164), MobileNetV2's inverted bottleneck
(Sandler et al. 2018, arXiv 1801.04381), squeeze-and-excitation (Hu et al. 2018, arXiv
1709.01507) with the gate of MobileNetV3 (arXiv 1905.02244). `docs/operators.md` says where
the paper is silent and this project chose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .backbone import POOL_NAME, Backbone, StemConvolution, head_parts, is_head, is_stem, parse_stem
from .errors import BadRequest
from .pool import GATES, Operator, parse_operator, squeeze_channels
from .shapes import LayerShape


def _activation(name: str) -> list[nn.Module]:
    return {"relu": [nn.ReLU()], "relu6": [nn.ReLU6()], "none": []}[name]


def conv_bn(
    c_in: int,
    c_out: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    depthwise: bool = False,
    activation: str = "relu",
    affine: bool = True,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, activation; padding is kernel // 2."""
    convolution = nn.Conv2d(
        c_in,
        c_out,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=c_in if depthwise else 1,
        bias=False,
    )
    return nn.Sequential(
        convolution, nn.BatchNorm2d(c_out, affine=affine), *_activation(activation)
    )


class Gate(nn.Module):
    """Squeeze-and-excitation's gate, written out so that every runtime reads it.

    h-swish is x * ReLU6(x + 3) / 6 (paper); hard-sigmoid is ReLU6(x + 3) / 6.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in GATES:
            raise BadRequest(f"gate {kind!r} is unknown; choose {' or '.join(GATES)}")
        self.swish = kind == "h-swish"
        self.relu6 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        opened = self.relu6(x + 3.0)
        return x * opened / 6.0 if self.swish else opened / 6.0


class SqueezeExcitation(nn.Module):
    """Scales channels by a gate computed from their global averages.

    Args:
        channels: of input and output.
        gate: one of `GATES`.
        middle: channels squeezed to; None: as the pool's operators have it.
    """

    def __init__(self, channels: int, gate: str, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or squeeze_channels(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, middle, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(middle, channels, 1)
        self.gate = Gate(gate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))


class Separable(nn.Sequential):
    """SEP: depthwise, ReLU, (SE,) pointwise, ReLU."""

    def __init__(self, op: Operator, shape: LayerShape, gate: str, affine: bool) -> None:
        c = shape.in_channels
        excite = [SqueezeExcitation(c, gate)] if op.se else []
        super().__init__(
            conv_bn(c, c, op.kernel, stride=shape.stride, depthwise=True, affine=affine),
            *excite,
            conv_bn(c, shape.out_channels, affine=affine),
        )


class InvertedBottleneck(nn.Module):
    """MB: pointwise to m, ReLU6, depthwise, ReLU6, (SE,) linear pointwise, and a shortcut."""

    def __init__(self, op: Operator, shape: LayerShape, gate: str, affine: bool) -> None:
        super().__init__()
        c, m = shape.in_channels, op.expansion * shape.in_channels
        self.shortcut = shape.keeps_shape
        excite = [SqueezeExcitation(m, gate)] if op.se else []
        self.body = nn.Sequential(
            conv_bn(c, m, activation="relu6", affine=affine),
            conv_bn(
                m,
                m,
                op.kernel,
                stride=shape.stride,
                depthwise=True,
                activation="relu6",
                affine=affine,
            ),
            *excite,
            conv_bn(m, shape.out_channels, activation="none", affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.shortcut else y


class ShuffleUnit(nn.Module):
    """Choice: ShuffleNetV2's unit with a kernel of choice, or three 3x3 (Choice_x)."""

    def __init__(self, op: Operator, shape: LayerShape, gate: str, affine: bool) -> None:
        super().__init__()
        c_in, c_out, stride = shape.in_channels, shape.out_channels, shape.stride
        self.split = shape.keeps_shape
        self.grouped = (2, c_out // 2, shape.out_height, shape.out_width)
        self.whole = (c_out, shape.out_height, shape.out_width)
        branch_in = c_in // 2 if self.split else c_in
        branch_out = c_out // 2 if self.split else c_out - c_in
        middle = c_out // 2

        def depthwise(c: int, kernel: int, s: int) -> nn.Sequential:
            return conv_bn(c, c, kernel, stride=s, depthwise=True, activation="none", affine=affine)

        def pointwise(a: int, b: int) -> nn.Sequential:
            return conv_bn(a, b, affine=affine)

        self.left = (
            nn.Identity()
            if self.split
            else nn.Sequential(depthwise(c_in, op.kernel or 3, stride), pointwise(c_in, c_in))
        )
        if op.kernel:
            right = [
                pointwise(branch_in, middle),
                depthwise(middle, op.kernel, stride),
                pointwise(middle, branch_out),
            ]
        else:
            right = [
                depthwise(branch_in, 3, stride),
                pointwise(branch_in, middle),
                depthwise(middle, 3, 1),
                pointwise(middle, middle),
                depthwise(middle, 3, 1),
                pointwise(middle, branch_out),
            ]
        excite = [SqueezeExcitation(branch_out, gate)] if op.se else []
        self.right = nn.Sequential(*right, *excite)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.split(self.grouped[1], dim=1) if self.split else (x, x)
        y = torch.cat([self.left(left), self.right(right)], dim=1)
        return y.reshape(-1, *self.grouped).transpose(1, 2).reshape(-1, *self.whole)


_BLOCKS = {"SEP": Separable, "MB": InvertedBottleneck, "Choice": ShuffleUnit}


def build_operator(
    operator: Operator, shape: LayerShape, gate: str = GATES[0], affine: bool = True
) -> nn.Module:
    """The operator's torch module at a layer shape.

    Args:
        operator: one of the pool, or a user's own.
        shape: where it stands.
        gate: of squeeze-and-excitation, one of `GATES`.
        affine: whether BatchNorm learns scale and shift (SPOS: not in the supernet).

    Returns:
        A module from [N, in_channels, height, width] to
        [N, out_channels, out_height, out_width].

    Raises:
        BadRequest: the operator does not apply to the shape.
    """
    operator.check(shape)
    if operator.custom is None:
        return _BLOCKS[operator.family](operator, shape, gate, affine)
    module = operator.custom.build(shape, gate)
    if not affine:
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.affine = False
                norm.weight = norm.bias = None  # pyright: ignore[reportAttributeAccessIssue]
    return module


def _stem(convolutions: Sequence[StemConvolution], channels: int, affine: bool) -> nn.Sequential:
    layers = []
    for c in convolutions:
        layers.append(
            conv_bn(
                channels,
                c.channels,
                c.kernel,
                stride=c.stride,
                depthwise=c.depthwise,
                activation=c.activation,
                affine=affine,
            )
        )
        channels = c.channels
    return nn.Sequential(*layers)


class Head(nn.Module):
    """Pointwise convolution, global average pool, dropout, linear without bias (SPOS)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        classes: int,
        activation: str = "relu",
        dropout: float = 0.0,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.body = conv_bn(in_channels, channels, activation=activation, affine=affine)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.pool(self.body(x)).flatten(1)))


def build_stem(backbone: Backbone, affine: bool = True) -> nn.Sequential:
    """The fixed first convolutions of a backbone."""
    return _stem(backbone.stem, backbone.input_channels, affine)


def build_head(backbone: Backbone, affine: bool = True) -> Head:
    """The fixed last part of a backbone, with its dropout."""
    return Head(
        backbone.head_shape.in_channels,
        backbone.head_channels,
        backbone.classes,
        backbone.head_activation,
        backbone.dropout,
        affine,
    )


def build_row(name: str, shape: LayerShape, gate: str = GATES[0]) -> nn.Module:
    """The module of a piece by its name: an operator, a stem, a head, or a pool."""
    if is_stem(name):
        return _stem(parse_stem(name, shape), shape.in_channels, affine=True)
    if is_head(name):
        return Head(shape.in_channels, head_parts(name)[0], shape.out_channels, head_parts(name)[1])
    if name == POOL_NAME:
        return nn.AdaptiveAvgPool2d(1)
    return build_operator(parse_operator(name), shape, gate)


class Network(nn.Module):
    """A whole network: stem, one operator a layer, head."""

    def __init__(self, backbone: Backbone, operators: Sequence[str], gate: str = GATES[0]) -> None:
        super().__init__()
        backbone.check(operators)
        self.stem = build_stem(backbone)
        self.layers = nn.ModuleList(
            build_operator(parse_operator(name), shape, gate)
            for name, shape in zip(operators, backbone.layers, strict=True)
        )
        self.head = build_head(backbone)

    def forward(self, x: Tensor) -> Tensor:
        """From images [N, C, H, W] to logits [N, classes]."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
