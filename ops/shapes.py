"""What a layer sees: the one description of a tensor-to-tensor place in a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class LayerShape:
    """A place in a network: input size, channels and stride.

    Attributes:
        height: input height in pixels.
        width: input width in pixels.
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: 1 or 2; padding keeps the output at ceil(size / stride).
    """

    height: int
    width: int
    in_channels: int
    out_channels: int
    stride: int

    @property
    def out_height(self) -> int:
        return -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        return -(-self.width // self.stride)

    @property
    def in_pixels(self) -> int:
        return self.height * self.width

    @property
    def out_pixels(self) -> int:
        return self.out_height * self.out_width

    @property
    def keeps_shape(self) -> bool:
        """Whether output and input have equal shapes, so that a block may be chained to itself."""
        return self.stride == 1 and self.in_channels == self.out_channels

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.in_channels}->{self.out_channels} s{self.stride}"


def format_ranges(numbers: Iterable[int], *, dash: str = "-", comma: str = ",") -> str:
    """Numbers of layers, in rising order, as ``--layers`` takes them: ``0-7,12``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return comma.join(str(r[0]) if len(r) == 1 else f"{r[0]}{dash}{r[-1]}" for r in runs)
