"""A folder of JPEGs larger than memory: does training stay small, and does reading keep up?

- Memory: the highest resident size of this process while it loads a folder of N images (a thousand
  different ones, each under many names), trains on it for some steps and scores the network. In
  memory the images would take `decoded_gib`.
- Reading: images a second that batches read ahead give, over those that as many processes as there
  are decoding threads get when they do nothing but decode; both in turns, medians of rounds. Once
  for whole images, as networks are scored on, and once for random crops, as they are trained on.

    python benchmarks/large_folder.py                  # a few minutes, 200 MB of disk
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from hurricane.ops.backbone import parse_backbone
from hurricane.search.crops import RandomResizedCrop
from hurricane.search.data import load_data
from hurricane.search.images import DECODERS, StoredImages, read_ahead
from hurricane.search.retrain import train_architecture
from hurricane.search.training import TrainingSettings

SIDE = 224
CLASSES = 10
DIFFERENT = 1000
BATCH = 64

BACKBONE = f"""
classes = {CLASSES}
split = 1
exploring_layers = 1
[input]
channels = 3
height = {SIDE}
width = {SIDE}
[[stem]]
channels = 16
kernel = 3
stride = 2
[[stages]]
channels = 16
repeats = 1
stride = 2
[[stages]]
channels = 32
repeats = 1
stride = 2
[head]
channels = 64
"""


def make_folder(folder: Path, images: int) -> None:
    """Class folders in train/, validation/ and test/ of smooth noise, as JPEGs of 10 to 20 kB."""
    rng = np.random.default_rng(0)
    sources = folder / "sources"
    sources.mkdir()
    for number in range(DIFFERENT):
        coarse = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((256, SIDE), Image.Resampling.BICUBIC)
        image.save(sources / f"{number}.jpg", quality=85)
    for part, count in (("train", images), ("validation", 200), ("test", 200)):
        for label in range(CLASSES):
            (folder / "data" / part / f"{label}").mkdir(parents=True)
        for number in range(count):
            place = folder / "data" / part / f"{number % CLASSES}" / f"{number:07d}.jpg"
            os.link(sources / f"{number % DIFFERENT}.jpg", place)


def decode(paths: Sequence[Path]) -> None:
    """What reading cannot do without: files to pixels of the right size."""
    for path in paths:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        np.asarray(ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BILINEAR))


def decode_crops(paths: Sequence[Path]) -> None:
    """The same for random crops."""
    crops = RandomResizedCrop()
    drawn = crops.draw(len(paths), torch.Generator().manual_seed(0)).tolist()
    for path, numbers in zip(paths, drawn, strict=True):
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        box = crops.place(numbers, *image.size).box(image.size)
        np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))


def read_whole(images: StoredImages) -> None:
    """Reads images ahead as a network is scored on them."""
    for _batch in images.split(BATCH):
        continue


def read_crops(images: StoredImages) -> None:
    """Reads images ahead as a network is trained on them."""
    crops, drawn = RandomResizedCrop(), torch.Generator().manual_seed(0)
    chosen = torch.arange(len(images)).split(BATCH)
    for _batch in read_ahead(lambda numbers: crops.show(images, numbers, drawn), chosen):
        continue


def reading(images: StoredImages, paths: Sequence[Path], rounds: int = 5) -> dict[str, Any]:
    """Images a second of as many processes as there are decoders, and of batches read ahead."""
    kinds = {"whole": (decode, read_whole), "crops": (decode_crops, read_crops)}
    alone: dict[str, list[float]] = {kind: [] for kind in kinds}
    ahead: dict[str, list[float]] = {kind: [] for kind in kinds}
    some = images.take(torch.arange(len(paths)))
    with ProcessPoolExecutor(DECODERS, get_context("spawn")) as processes:
        shares = [paths[first::DECODERS] for first in range(DECODERS)]
        list(processes.map(decode, shares))  # starts them
        for _ in range(rounds):
            for kind, (decoding, read) in kinds.items():
                begun = time.perf_counter()
                list(processes.map(decoding, shares))
                alone[kind].append(len(paths) / (time.perf_counter() - begun))
                begun = time.perf_counter()
                read(some)
                ahead[kind].append(len(paths) / (time.perf_counter() - begun))
    return {
        kind: {
            "decoding_images_per_s": median(alone[kind]),
            "read_ahead_images_per_s": median(ahead[kind]),
            "share_of_decoding": median(
                a / b for a, b in zip(ahead[kind], alone[kind], strict=True)
            ),
        }
        for kind in kinds
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    backbone = parse_backbone(BACKBONE, "large", "large.toml")
    with tempfile.TemporaryDirectory(prefix="large-folder-") as place:
        make_folder(Path(place), arguments.images)
        begun = time.perf_counter()
        data = load_data(f"folder:{place}/data", backbone)
        loaded = time.perf_counter() - begun
        settings = TrainingSettings(
            epochs=arguments.steps * BATCH / arguments.images,
            batch=BATCH,
            learning_rate=0.1,
            device="cpu",
        )
        begun = time.perf_counter()
        train_architecture(backbone, ["SEP_3", "SEP_3"], data, settings)
        trained = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        images = data.train.images
        stored = isinstance(images, StoredImages)
        found = {}
        if isinstance(images, StoredImages):
            files = sorted(Path(place, "data", "train").glob("*/*"))[: 16 * BATCH]
            found = reading(images, files)
    print(
        json.dumps(
            {
                "benchmark": "large_folder",
                "images": arguments.images,
                "side": SIDE,
                "on_the_disk": stored,
                "decoded_gib": arguments.images * 3 * SIDE**2 / 2**30,
                "peak_resident_gib": peak,
                "load_s": loaded,
                "steps": arguments.steps,
                "training_and_scoring_s": trained,
                "decoding_threads": DECODERS,
                "reading": found,
            }
        )
    )


if __name__ == "__main__":
    main()
