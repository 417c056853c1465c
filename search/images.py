"""Images that stay on the disk, where there are too many for memory, and reading them ahead.

Decoding is a function of the image alone; all that is drawn is drawn by whoever asks for it. So it
does not matter how far ahead images are read, and a training that resumes sees what it would have.

Threads read ahead, not processes: decoders let go of the interpreter's lock, and a program that
speaks gRPC or holds a GPU must not fork.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

AHEAD = 4
"""Batches that are read before they are asked for."""

AT_ONCE = 2
"""Batches that are read side by side, so that no decoder waits for a batch's last image."""

DECODERS = min(16, os.cpu_count() or 1)
"""Threads that decode images."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class StoredImages:
    """Images by their numbers; indexing decodes them, as if they were a tensor [N, C, H, W].

    Attributes:
        fetch: from numbers int64 [n] to uint8 [n, channels, height, width].
        numbers: int64 [N], what `fetch` knows the images by.
        crop: the same from numbers and what was drawn for each (`crops.RandomResizedCrop`); None
            where images have no other size than that of `fetch`.
    """

    fetch: Callable[[Tensor], Tensor]
    numbers: Tensor
    crop: Callable[[Tensor, Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        return self.fetch(self.numbers[chosen])

    def take(self, chosen: Tensor) -> StoredImages:
        """Some of the images, not decoded yet."""
        return StoredImages(self.fetch, self.numbers[chosen], self.crop)

    def cropped(self, chosen: Tensor, drawn: Tensor) -> Tensor:
        """Some of the images, of each the part that was drawn."""
        if self.crop is None:
            raise TypeError("these images cannot be cropped")
        return self.crop(self.numbers[chosen], drawn)

    def split(self, size: int) -> Iterator[Tensor]:
        """Batches in order, decoded ahead; the last may be smaller."""
        return read_ahead(self.fetch, self.numbers.split(size))


Images = Tensor | StoredImages
"""uint8 [N, channels, height, width], in memory or on the disk."""


def take(images: Images, chosen: Tensor) -> Images:
    """Some images; those on the disk stay there."""
    return images.take(chosen) if isinstance(images, StoredImages) else images[chosen]


def pick(images: Images, chosen: Tensor) -> Tensor:
    """Pixels of some images, int64 [n], in memory where the images are, or decoded."""
    return images[to_device(chosen, images.device) if isinstance(images, Tensor) else chosen]


def held(images: Images, limit: int) -> Images:
    """Images in memory where they take at most `limit` bytes there; else as they are."""
    if isinstance(images, Tensor) or not len(images):
        return images
    return images[:] if images[:1].nbytes * len(images) <= limit else images


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; the program does not wait for a GPU to be done with what it does."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@functools.cache
def decoders() -> ThreadPoolExecutor:
    """The threads that decode the images of all batches."""
    return ThreadPoolExecutor(DECODERS)


def read_ahead(fetch: Callable[[T], R], wanted: Iterable[T], depth: int = AHEAD) -> Iterator[R]:
    """Results of a slow function in order, made in threads up to `depth` before they are used."""
    executor = ThreadPoolExecutor(AT_ONCE)
    waiting: deque[Future[R]] = deque()
    try:
        for item in wanted:
            waiting.append(executor.submit(fetch, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
