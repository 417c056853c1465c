"""The operators of NAS-Bench-Macro, as a plugin: a search space that is not the paper's.

Source: Su et al., *Prioritized Architecture Sampling with Monto-Carlo Tree Search*, CVPR 2021,
arXiv 2103.11922: an identity and two inverted bottlenecks. `backbone.toml` beside this file has
the layers.

    profile-ops --plugin operators.py --layers backbone.toml \\
        --operators Identity,MB3_K3,MB6_K5 --target cpu-onnxruntime-fp32 -o table.csv
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from hurricane.ops.pool import register_operator
from hurricane.ops.shapes import LayerShape


def _convolution(
    channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [nn.Sequential(convolution, nn.BatchNorm2d(out))]
    return [*layers, nn.ReLU()] if relu else layers


class InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution, projection; a shortcut where the shape stays."""

    def __init__(self, shape: LayerShape, expansion: int, kernel: int) -> None:
        super().__init__()
        inner = shape.in_channels * expansion
        self.body = nn.Sequential(
            *_convolution(shape.in_channels, inner),
            *_convolution(inner, inner, kernel, shape.stride, groups=inner),
            *_convolution(inner, shape.out_channels, relu=False),
        )
        self.shortcut = shape.keeps_shape

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.shortcut else y


def bottleneck(shape: LayerShape, gate: str, expansion: int, kernel: int) -> nn.Module:
    """`gate` is of squeeze-and-excitation, which no operator here has."""
    return InvertedBottleneck(shape, expansion, kernel)


def identity(shape: LayerShape, gate: str) -> nn.Module:
    """Nothing; where the shape changes, the 1×1 convolution that it takes."""
    if shape.keeps_shape:
        return nn.Identity()
    return nn.Sequential(
        *_convolution(shape.in_channels, shape.out_channels, 1, shape.stride, relu=False)
    )


register_operator("Identity", identity)
register_operator("MB3_K3", partial(bottleneck, expansion=3, kernel=3))
register_operator("MB6_K5", partial(bottleneck, expansion=6, kernel=5))
