"""Published networks by name, at any width: what people take who do not search."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .counting import ConvolutionCost, count_module
from .errors import BadRequest
from .shapes import LayerShape

if TYPE_CHECKING:
    from torch import nn

REFERENCES: dict[str, str] = {
    "mobilenet-v2": "Sandler et al. 2018, arXiv 1801.04381, table 2",
    "mobilenet-v3-small": "Howard et al. 2019, arXiv 1905.02244, table 2",
    "mobilenet-v3-large": "Howard et al. 2019, arXiv 1905.02244, table 1",
    "mobilenet-v4-conv-small": "Qin et al. 2024, arXiv 2404.10518, table of MNv4-Conv-S",
    "shufflenet-v2": "Ma et al. 2018, arXiv 1807.11164, table 5, column 1x",
    "efficientnet-lite0": "Tan and Le 2019, arXiv 1905.11946, table 1, without "
    "squeeze-and-excitation and with ReLU6, as EfficientNet-Lite has it",
}
"""From a network's name to where its layout was published."""

SMALL_IMAGE = 32
"""Images up to this size are not halved in the layout's first two places, as is usual on CIFAR: of
32x32, five halvings would leave one pixel."""


@dataclass(frozen=True)
class ReferenceNetwork:
    """A published network at one width.

    Attributes:
        name: one of `REFERENCES`.
        multiplier: of the channels that its paper scales; 1: as in the table.
        classes: outputs.
        channels, height, width: of the image.
    """

    name: str
    multiplier: float
    classes: int
    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.name not in REFERENCES:
            raise BadRequest(
                f"no published network is called {self.name!r}; there are {', '.join(REFERENCES)}"
            )
        if not 0 < self.multiplier <= 16:
            raise BadRequest(f"a width multiplier lies above 0 and up to 16, not {self.multiplier}")

    @property
    def label(self) -> str:
        """Its name with its multiplier."""
        return f"{self.name} x{self.multiplier:g}"

    @property
    def small(self) -> bool:
        """Whether the image is so small that the first two strides are 1."""
        return max(self.height, self.width) <= SMALL_IMAGE

    def build(self) -> nn.Module:
        """The torch module, from images [N, channels, height, width] to logits [N, classes]."""
        from .reference_networks import build_reference

        return build_reference(self.name, self.multiplier, self.channels, self.classes, self.small)

    @functools.cached_property
    def convolutions(self) -> list[ConvolutionCost]:
        """Convolutions and linears that run for one image."""
        shape = LayerShape(self.height, self.width, self.channels, self.classes, 1)
        return count_module(self.build(), shape)

    @property
    def macs(self) -> int:
        """MACs for one image."""
        return sum(c.macs for c in self.convolutions)

    @property
    def params(self) -> int:
        """Convolution and linear weights, as `Backbone.params` counts them."""
        return sum(c.params for c in self.convolutions)

    def export(self) -> bytes:
        """ONNX as `export.export_architecture` makes it, with seeded weights.

        Equal request, equal bytes.
        """
        return _exported(self)


@functools.lru_cache(maxsize=8)  # making an artefact asks for a graph more than once
def _exported(network: ReferenceNetwork) -> bytes:
    from .graph import seeded_graph

    image = (network.channels, network.height, network.width)
    return seeded_graph(repr(network), network.build, image)
