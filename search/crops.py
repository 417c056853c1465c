"""Random resized crops: how photographs are shown in training, after ImageNet's recipe.

A part of the image of random size, shape and place is scaled to the network's input, and half of
them are mirrored (Szegedy et al. 2015, arXiv 1409.4842; as in torchvision's RandomResizedCrop).
What is drawn does not depend on the image, so that drawing and decoding can be apart: `draw` gives
numbers, `place` says which part of an image of some size they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .images import Images, StoredImages

TRIES = 10
"""Sizes and shapes that are tried until one fits into the image."""

NUMBERS = 2 * TRIES + 3
"""Numbers drawn for an image: an area and a shape for each try, two of place, one of mirroring."""


@dataclass(frozen=True)
class Crop:
    """A part of an image, and whether it is mirrored left to right.

    Attributes:
        left, top, width, height: in pixels.
        mirrored: whether it is.
        image: width and height of the image.
    """

    left: int
    top: int
    width: int
    height: int
    mirrored: bool
    image: tuple[int, int]

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom where the image has another size, as if decoded smaller."""
        across, down = size[0] / self.image[0], size[1] / self.image[1]
        left, top = self.left * across, self.top * down
        right, bottom = (self.left + self.width) * across, (self.top + self.height) * down
        return left, top, min(right, size[0]), min(bottom, size[1])


@dataclass(frozen=True)
class RandomResizedCrop:
    """What happens to a training photograph each time it is shown.

    Attributes:
        scale: least and largest share of the image's area.
        ratio: least and largest width over height.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers for the crops of some images: float64 [count, NUMBERS], from 0 to below 1."""
        return torch.rand((count, NUMBERS), generator=generator, dtype=torch.float64)

    def place(self, numbers: Sequence[float], width: int, height: int) -> Crop:
        """The crop that numbers mean in an image.

        Args:
            numbers: of one image, as `draw` gives them.
            width, height: of the image as it is to be seen.

        Returns:
            A part of the image: the first size and shape drawn that fit; if none does, the middle,
            as large as `ratio` allows.
        """
        areas, shapes = numbers[:TRIES], numbers[TRIES : 2 * TRIES]
        across, down, mirror = numbers[2 * TRIES :]
        low, high = self.scale
        first, last = map(math.log, self.ratio)
        for area, shape in zip(areas, shapes, strict=True):
            size = width * height * (low + area * (high - low))
            ratio = math.exp(first + shape * (last - first))
            w, h = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
                return Crop(left, top, w, h, mirror < 0.5, (width, height))
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = min(width, max(1, round(height * ratio)))
        h = min(height, max(1, round(width / ratio)))
        left, top = (width - w) // 2, (height - h) // 2
        return Crop(left, top, w, h, mirror < 0.5, (width, height))

    def show(self, images: Images, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Some of the images, each cropped by a draw of its own.

        Args:
            images: on the disk, where they have their own sizes.
            chosen: int64 [n], which.
            generator: of what is drawn.

        Returns:
            uint8 [n, channels, height, width].
        """
        if not isinstance(images, StoredImages):
            raise TypeError("images in memory have lost what a crop could show")
        return images.cropped(chosen, self.draw(len(chosen), generator))
