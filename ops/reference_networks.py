"""Published networks as torch modules, from their papers' tables.

A table here has the paper's rows; what widths do to them is the paper's own rule, too, and stands
in the function that reads the table. Weights are torch's usual random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .blocks import Gate, SqueezeExcitation, conv_bn

Strides = tuple[int, int]
"""Of the first two places where a layout halves the image: 2, or 1 for small images."""


def build_reference(
    name: str, multiplier: float, channels: int, classes: int, small: bool
) -> nn.Module:
    """The module of a published network (`reference.ReferenceNetwork` has what these mean)."""
    stride = 1 if small else 2
    return _BUILDERS[name](multiplier, channels, classes, (stride, stride))


def scaled(channels: float, multiplier: float, divisor: int = 8) -> int:
    """Channels at a width: the nearest multiple of the divisor that loses no more than a tenth.

    Source: MobileNetV2's published code (`_make_divisible`).
    """
    wanted = channels * multiplier
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * wanted else rounded


def _conv(
    c_in: int,
    c_out: int,
    kernel: int = 1,
    stride: int = 1,
    activation: str = "relu",
    depthwise: bool = False,
) -> nn.Sequential:
    """`conv_bn`, whose activation may be h-swish as well."""
    if activation != "h-swish":
        return conv_bn(
            c_in, c_out, kernel, stride=stride, depthwise=depthwise, activation=activation
        )
    plain = conv_bn(c_in, c_out, kernel, stride=stride, depthwise=depthwise, activation="none")
    return nn.Sequential(*plain, Gate("h-swish"))


class _Residual(nn.Module):
    """A body with a shortcut where it keeps the shape."""

    def __init__(self, body: Sequence[nn.Module], shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.shortcut else y


def _bottleneck(
    c_in: int,
    middle: int,
    c_out: int,
    kernel: int,
    stride: int,
    activation: str = "relu6",
    squeeze: int = 0,
) -> _Residual:
    """Inverted bottleneck; nothing is expanded where there are as many channels in the middle."""
    body: list[nn.Module] = []
    if middle != c_in:
        body.append(_conv(c_in, middle, activation=activation))
    body.append(_conv(middle, middle, kernel, stride, activation, depthwise=True))
    if squeeze:
        body.append(SqueezeExcitation(middle, "hard-sigmoid", squeeze))
    body.append(_conv(middle, c_out, activation="none"))
    return _Residual(body, stride == 1 and c_in == c_out)


class _Classifier(nn.Module):
    """Global average pool, what follows it before flattening and after, dropout, linear."""

    def __init__(
        self,
        channels: int,
        classes: int,
        dropout: float = 0.0,
        pooled: nn.Module | None = None,
        flat: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.pooled = pooled or nn.Identity()
        self.flat = flat or nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flat(self.pooled(self.pool(x)).flatten(1))
        return self.classifier(self.dropout(x))


# --- MobileNetV2 and EfficientNet-Lite: rows are (expansion, kernel, channels, repeats, stride) ---

_V2 = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 3, 32, 3, 2),
    (6, 3, 64, 4, 2),
    (6, 3, 96, 3, 1),
    (6, 3, 160, 3, 2),
    (6, 3, 320, 1, 1),
)
_LITE = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


def _stages(
    rows: Sequence[tuple[int, int, int, int, int]],
    stem: int,
    last: int,
    multiplier: float,
    channels: int,
    classes: int,
    strides: Strides,
) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(channels, stem, 3, strides[0], "relu6")]
    c = stem
    for number, (expansion, kernel, out, repeats, stride) in enumerate(rows):
        stride = strides[1] if number == 1 else stride
        for repeat in range(repeats):
            wide = scaled(out, multiplier)
            first = stride if repeat == 0 else 1
            layers.append(_bottleneck(c, expansion * c, wide, kernel, first))
            c = wide
    head = _conv(c, last, activation="relu6")
    return nn.Sequential(*layers, head, _Classifier(last, classes, 0.2))


def _mobilenet_v2(m: float, channels: int, classes: int, strides: Strides) -> nn.Module:
    """Widths below 1 leave the last convolution as it is (section 6.1)."""
    stem, last = scaled(32, m), scaled(1280, max(1.0, m))
    return _stages(_V2, stem, last, m, channels, classes, strides)


def _efficientnet_lite0(m: float, channels: int, classes: int, strides: Strides) -> nn.Module:
    """Stem and last convolution keep their size (EfficientNet-Lite's published description)."""
    return _stages(_LITE, 32, 1280, m, channels, classes, strides)


# --- MobileNetV3: rows are (kernel, middle, channels, squeeze-and-excitation, activation, stride) -

_V3_LARGE = (
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "h-swish", 2),
    (3, 200, 80, False, "h-swish", 1),
    (3, 184, 80, False, "h-swish", 1),
    (3, 184, 80, False, "h-swish", 1),
    (3, 480, 112, True, "h-swish", 1),
    (3, 672, 112, True, "h-swish", 1),
    (5, 672, 160, True, "h-swish", 2),
    (5, 960, 160, True, "h-swish", 1),
    (5, 960, 160, True, "h-swish", 1),
)
_V3_SMALL = (
    (3, 16, 16, True, "relu", 2),
    (3, 72, 24, False, "relu", 2),
    (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "h-swish", 2),
    (5, 240, 40, True, "h-swish", 1),
    (5, 240, 40, True, "h-swish", 1),
    (5, 120, 48, True, "h-swish", 1),
    (5, 144, 48, True, "h-swish", 1),
    (5, 288, 96, True, "h-swish", 2),
    (5, 576, 96, True, "h-swish", 1),
    (5, 576, 96, True, "h-swish", 1),
)


def _mobilenet_v3(
    rows: Sequence[tuple[int, int, int, bool, str, int]],
    last: int,
    m: float,
    channels: int,
    classes: int,
    strides: Strides,
) -> nn.Module:
    """All channels are scaled, those in the middle too; squeeze to a quarter of the middle.

    The last convolution has six times the channels before it.
    """
    c = scaled(16, m)
    layers: list[nn.Module] = [_conv(channels, c, 3, strides[0], "h-swish")]
    second = next(number for number, row in enumerate(rows) if row[-1] == 2)
    for number, (kernel, middle, out, excited, activation, stride) in enumerate(rows):
        middle, out = scaled(middle, m), scaled(out, m)
        squeeze = scaled(middle // 4, 1) if excited else 0
        stride = strides[1] if number == second else stride
        layers.append(_bottleneck(c, middle, out, kernel, stride, activation, squeeze))
        c = out
    hidden = scaled(last, m)
    flat = nn.Sequential(nn.Linear(6 * c, hidden), Gate("h-swish"))
    head = _Classifier(hidden, classes, 0.2, flat=flat)
    return nn.Sequential(*layers, _conv(c, 6 * c, activation="h-swish"), head)


def _mobilenet_v3_large(m: float, channels: int, classes: int, strides: Strides) -> nn.Module:
    return _mobilenet_v3(_V3_LARGE, 1280, m, channels, classes, strides)


def _mobilenet_v3_small(m: float, channels: int, classes: int, strides: Strides) -> nn.Module:
    return _mobilenet_v3(_V3_SMALL, 1024, m, channels, classes, strides)


# --- MobileNetV4: rows are (first kernel, second kernel, middle, channels, stride) ----------------

_V4_UIB = (
    (5, 5, 192, 96, 2),
    (0, 3, 192, 96, 1),
    (0, 3, 192, 96, 1),
    (0, 3, 192, 96, 1),
    (0, 3, 192, 96, 1),
    (3, 0, 384, 96, 1),
    (3, 3, 576, 128, 2),
    (5, 5, 512, 128, 1),
    (0, 5, 512, 128, 1),
    (0, 5, 384, 128, 1),
    (0, 3, 512, 128, 1),
    (0, 3, 512, 128, 1),
)


def _universal(
    c_in: int, first: int, second: int, middle: int, c_out: int, stride: int
) -> _Residual:
    """Universal inverted bottleneck: a depthwise before the expansion, in the middle, or both."""
    body: list[nn.Module] = []
    if first:
        early = 1 if second else stride
        body.append(_conv(c_in, c_in, first, early, "none", depthwise=True))
    body.append(_conv(c_in, middle))
    if second:
        body.append(_conv(middle, middle, second, stride, depthwise=True))
    body.append(_conv(middle, c_out, activation="none"))
    return _Residual(body, stride == 1 and c_in == c_out)


def _mobilenet_v4_conv_small(m: float, channels: int, classes: int, strides: Strides) -> nn.Module:
    """The paper scales no widths; all channels are scaled but for the 1280 behind the pool."""
    c = scaled(32, m)
    layers: list[nn.Module] = [_conv(channels, c, 3, strides[0])]
    for middle, out, stride in ((32, 32, strides[1]), (96, 64, 2)):  # fused bottlenecks
        middle, out = scaled(middle, m), scaled(out, m)
        layers += [_conv(c, middle, 3, stride), _conv(middle, out)]
        c = out
    for first, second, middle, out, stride in _V4_UIB:
        middle, out = scaled(middle, m), scaled(out, m)
        layers.append(_universal(c, first, second, middle, out, stride))
        c = out
    wide = scaled(960, m)
    head = _Classifier(1280, classes, 0.2, pooled=_conv(wide, 1280))
    return nn.Sequential(*layers, _conv(c, wide), head)


# --- ShuffleNetV2: rows are (channels, repeats) ---------------------------------------------------

_SHUFFLE = ((116, 4), (232, 8), (464, 4))


class _ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit (figure 3c and d): half the channels pass, or both branches halve."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.branch = c_out // 2
        self.split = stride == 1
        c = self.branch if self.split else c_in
        self.left = (
            nn.Identity()
            if self.split
            else nn.Sequential(
                _conv(c, c, 3, stride, "none", depthwise=True), _conv(c, self.branch)
            )
        )
        self.right = nn.Sequential(
            _conv(c, self.branch),
            _conv(self.branch, self.branch, 3, stride, "none", depthwise=True),
            _conv(self.branch, self.branch),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.split(self.branch, dim=1) if self.split else (x, x)
        y = torch.cat([self.left(left), self.right(right)], dim=1)
        height, width = int(y.shape[2]), int(y.shape[3])
        grouped = y.reshape(-1, 2, self.branch, height, width)
        return grouped.transpose(1, 2).reshape(-1, 2 * self.branch, height, width)


def _shufflenet_v2(m: float, channels: int, classes: int, strides: Strides) -> nn.Module:
    """Channels in fours, as 116 is one; the stem stays, the last convolution grows from 1 on.

    Small images have neither the stem's stride nor the max pool.
    """
    c = 24
    layers: list[nn.Module] = [_conv(channels, c, 3, strides[0])]
    if strides[1] == 2:
        layers.append(nn.MaxPool2d(3, 2, 1))
    for out, repeats in _SHUFFLE:
        wide = scaled(out, m, 4)
        for repeat in range(repeats):
            layers.append(_ShuffleUnit(c, wide, 1 if repeat else 2))
            c = wide
    last = scaled(1024, max(1.0, m))
    return nn.Sequential(*layers, _conv(c, last), _Classifier(last, classes))


_BUILDERS: dict[str, Callable[[float, int, int, Strides], nn.Module]] = {
    "mobilenet-v2": _mobilenet_v2,
    "mobilenet-v3-small": _mobilenet_v3_small,
    "mobilenet-v3-large": _mobilenet_v3_large,
    "mobilenet-v4-conv-small": _mobilenet_v4_conv_small,
    "shufflenet-v2": _shufflenet_v2,
    "efficientnet-lite0": _efficientnet_lite0,
}
