"""The weight-sharing network that holds every operator of a search space.

One path at a time, after Single Path One-Shot (Guo et al. 2020, arXiv 1904.00420).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.backbone import Backbone
from ..ops.blocks import build_head, build_operator, build_stem
from ..ops.errors import BadRequest
from ..ops.pool import GATES, parse_operator

Candidates = tuple[tuple[str, ...], ...]
"""For each learnable layer, the names of the operators that may be chosen there."""


class Supernet(nn.Module):
    """Stem, every candidate of every layer, head; a code picks one candidate a layer.

    BatchNorm has no scale and shift here (SPOS): paths that share a layer would pull them
    apart, and its statistics are recalibrated for each path that is evaluated.

    Args:
        backbone: the frame.
        candidates: for each layer, one or more operator names.
        gate: of squeeze-and-excitation.

    Raises:
        BadRequest: a layer has no candidate, or one that does not apply there.
    """

    def __init__(
        self, backbone: Backbone, candidates: Sequence[Sequence[str]], gate: str = GATES[0]
    ) -> None:
        super().__init__()
        if len(candidates) != len(backbone.layers):
            raise BadRequest(
                f"{backbone.name} has {len(backbone.layers)} layers, "
                f"the space has candidates for {len(candidates)}"
            )
        for number, names in enumerate(candidates):
            if not names or len(set(names)) != len(names):
                raise BadRequest(f"layer {number}: candidates must be different, and at least one")
        self.backbone = backbone
        self.candidates: Candidates = tuple(tuple(names) for names in candidates)
        self.gate = gate
        self.stem = build_stem(backbone, affine=False)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                build_operator(parse_operator(name), shape, gate, affine=False) for name in names
            )
            for names, shape in zip(candidates, backbone.layers, strict=True)
        )
        self.head = build_head(backbone, affine=False)

    def operator(self, layer: int, choice: int) -> nn.Module:
        """The module of one candidate of a layer."""
        operators = self.layers[layer]
        assert isinstance(operators, nn.ModuleList)
        return operators[choice]

    def forward(self, x: Tensor, code: Sequence[int], dropout: bool = True) -> Tensor:
        """Runs one path.

        Args:
            x: images [N, C, H, W].
            code: for each layer, the index of its candidate.
            dropout: whether the head drops, in training.

        Returns:
            Logits [N, classes].
        """
        x = self.stem(x)
        for layer, choice in enumerate(code):
            x = self.operator(layer, int(choice))(x)
        self.head.dropout.train(self.training and dropout)
        return self.head(x)

    def largest(self) -> tuple[int, ...]:
        """The path with most multiply-accumulates."""
        return tuple(max(range(len(c)), key=c.__getitem__) for c in self._macs())

    def smallest(self) -> tuple[int, ...]:
        """The path with fewest multiply-accumulates."""
        return tuple(min(range(len(c)), key=c.__getitem__) for c in self._macs())

    def _macs(self) -> list[list[int]]:
        return [
            [parse_operator(name).macs(shape) for name in names]
            for names, shape in zip(self.candidates, self.backbone.layers, strict=True)
        ]

    @torch.no_grad()
    def inherit(self, other: Supernet) -> int:
        """Copies stem, head, and every operator that stands in the same layer of both.

        Returns:
            How many operators were copied.

        Raises:
            BadRequest: the supernets stand on different backbones or have different gates.
        """
        if (self.backbone, self.gate) != (other.backbone, other.gate):
            raise BadRequest(
                "weights can only be inherited on the same backbone with the same gate"
            )
        self.stem.load_state_dict(other.stem.state_dict())
        self.head.load_state_dict(other.head.state_dict())
        copied = 0
        for layer, names in enumerate(self.candidates):
            for choice, name in enumerate(names):
                if name in other.candidates[layer]:
                    source = other.operator(layer, other.candidates[layer].index(name))
                    self.operator(layer, choice).load_state_dict(source.state_dict())
                    copied += 1
        return copied
