"""What operators cost: convolutions and linears, counted by running a torch module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .shapes import LayerShape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ConvolutionCost:
    """One convolution or linear node: weights and the pixels they are applied to."""

    params: int
    pixels: int

    @property
    def macs(self) -> int:
        return self.params * self.pixels


def count_module(module: nn.Module, shape: LayerShape) -> list[ConvolutionCost]:
    """Convolutions and linears that a module runs for one image of this layer shape."""
    import torch
    from torch import Tensor, nn

    costs: list[ConvolutionCost] = []

    def record(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
        pixels = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
        costs.append(ConvolutionCost(layer.weight.numel(), pixels))

    counted = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_hook(record) for m in counted]
    was_training = module.training
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros(1, shape.in_channels, shape.height, shape.width))
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return costs
