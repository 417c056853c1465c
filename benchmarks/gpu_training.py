"""How fast does a GPU train and score a supernet, at the defaults and as small batches in fp32 do?

All in one process and in turns, medians of statuses (20 steps each), on random images in memory:

- *defaults*: a supernet of five operators a layer, at the batch and precision that a search takes
  on this device; *small*: the same with batch 128 in fp32; *network*: one network of the same mean
  MACs at the defaults. The GPU's own utilisation meanwhile, by nvidia-smi.
- Scoring: candidates a second of `PathScorer` at the defaults, and of one path after the other with
  batch 128 in fp32 and BatchNorm's own averages, as a plain program does it.

    python benchmarks/gpu_training.py             # about 4 minutes on a GPU
    python benchmarks/gpu_training.py --tiny      # everything in small, on any machine
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from hurricane.ops.backbone import Backbone, load_backbone, parse_backbone
from hurricane.ops.pool import parse_operator
from hurricane.search.data import Augmentation, ImageData, Split
from hurricane.search.distributed import choose_device
from hurricane.search.evaluation import Batches, PathScorer, calibration_batches
from hurricane.search.hardware import Choice
from hurricane.search.retrain import train_architecture
from hurricane.search.supernet import Supernet
from hurricane.search.training import (
    PRESETS,
    Preset,
    Progress,
    TrainingSettings,
    build_supernet,
    train_supernet,
)
from hurricane.search.training_log import TrainingStatus

OPERATORS = ("SEP_3", "MB_3_3", "MB_5_6_SE", "Choice_3", "Choice_x_SE")
GATE = "h-swish"
WARM_STATUSES = 3
"""Left out: kernels are chosen and memory is taken then."""

SEED = 0

TINY = """
classes = 10
split = 1
exploring_layers = 1
[input]
channels = 3
height = 8
width = 8
[[stem]]
channels = 8
kernel = 3
stride = 1
[[stages]]
channels = 16
repeats = 2
stride = 2
[head]
channels = 16
"""


class Enough(Exception):
    """Training has gone on for long enough."""


def random_data(backbone: Backbone, images: int) -> ImageData:
    """Random images: speed does not depend on what they show."""
    drawn = torch.Generator().manual_seed(SEED)

    def split(count: int) -> Split:
        size = (count, backbone.input_channels, backbone.input_height, backbone.input_width)
        pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=drawn)
        return Split(pixels, torch.randint(0, backbone.classes, (count,), generator=drawn))

    classes = tuple(map(str, range(backbone.classes)))
    splits = split(images), split(images // 9), split(images // 9)
    grey = (0.5,) * backbone.input_channels
    shown = Augmentation(shift=max(1, backbone.input_height // 8), flip=True)
    return ImageData("random", "cifar10", classes, *splits, grey, grey, shown, SEED)


def mean_network(backbone: Backbone, candidates: Sequence[Sequence[str]]) -> list[str]:
    """The network, of many drawn, whose MACs are nearest to the mean of all paths."""
    macs = [
        np.array([parse_operator(name).macs(shape) for name in names], dtype=np.int64)
        for names, shape in zip(candidates, backbone.layers, strict=True)
    ]
    widths = [len(names) for names in candidates]
    codes = np.random.default_rng(SEED).integers(0, widths, (10_000, len(widths)))
    totals = sum(costs[column] for costs, column in zip(macs, codes.T, strict=True))
    wanted = sum(float(costs.mean()) for costs in macs)
    best = codes[np.abs(np.asarray(totals) - wanted).argmin()]
    return [names[code] for names, code in zip(candidates, best, strict=True)]


def speed(train: Callable[[Progress], object], seconds: float) -> list[TrainingStatus]:
    """Statuses of a training that is stopped after some seconds."""
    found: list[TrainingStatus] = []
    begun: list[float] = []

    def told(status: TrainingStatus) -> None:
        found.append(status)
        if len(found) == WARM_STATUSES:
            begun.append(time.perf_counter())
        if len(found) > WARM_STATUSES and time.perf_counter() - begun[0] > seconds:
            raise Enough

    try:
        train(told)
    except Enough:
        return found[WARM_STATUSES:]
    raise SystemExit("the training ended before it was timed: more epochs are needed")


@contextmanager
def utilisation(device: torch.device) -> Iterator[list[float]]:
    """Per cent of the time in which the GPU computed, in samples; filled at the end."""
    samples: list[float] = []
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        yield samples
        return
    identity = str(torch.cuda.get_device_properties(device).uuid)
    asked = ["nvidia-smi", "-i", f"GPU-{identity.removeprefix('GPU-')}"]
    asked += ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "250"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield samples
        finally:
            process.terminate()
            said, _ = process.communicate()
            numbers = [line.strip() for line in said.splitlines()]
            samples += [float(number) for number in numbers if number.isdecimal()]


def score_plainly(
    supernet: Supernet, data: ImageData, codes: np.ndarray, images: int, device: torch.device
) -> list[float]:
    """Accuracies of paths, one after the other, in batches of 128 in fp32."""
    calibration = calibration_batches(data, images, 128, device)
    validation = Batches(data.validation.images, data, 128, device)
    labels = data.validation.labels.to(device).split(128)
    norms = [n for n in supernet.modules() if isinstance(n, nn.BatchNorm2d)]
    found = []
    with torch.inference_mode():
        for code in codes.tolist():
            supernet.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for x in calibration:
                supernet(x, code)
            supernet.eval()
            right = 0
            for x, wanted in zip(validation, labels, strict=True):
                right += int((supernet(x, code).argmax(1) == wanted).sum())
            found.append(right / len(data.validation))
    return found


def synchronised(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def timed_trainings(
    backbone: Backbone,
    data: ImageData,
    trainings: dict[str, TrainingSettings],
    seconds: float,
    rounds: int,
) -> dict[str, dict[str, Any]]:
    """Images a second, utilisation and waiting of supernet and network, in turns."""
    candidates = [OPERATORS] * len(backbone.layers)
    operators = mean_network(backbone, candidates)
    widths = [len(OPERATORS)] * len(backbone.layers)
    statuses: dict[str, list[TrainingStatus]] = {name: [] for name in trainings}
    busy: dict[str, list[float]] = {name: [] for name in trainings}

    def train(name: str, told: Progress) -> None:
        settings = trainings[name]
        if name == "network":
            train_architecture(backbone, operators, data, settings, gate=GATE, progress=told)
            return
        supernet = build_supernet(backbone, candidates, GATE, SEED)
        sampler = lambda rng, n: rng.integers(0, widths, (n, len(widths)))  # noqa: E731
        train_supernet(supernet, data, sampler, settings, None, told)

    for _ in range(rounds):
        for name, settings in trainings.items():
            with utilisation(choose_device(settings.device)) as samples:
                statuses[name] += speed(lambda told, name=name: train(name, told), seconds)
            busy[name] += samples
    return {
        name: {
            "batch": trainings[name].batch,
            "precision": trainings[name].precision,
            "images_per_s": median(s.images_per_s for s in found),
            "waiting": median(s.waiting for s in found),
            "utilisation_percent": median(busy[name]) if busy[name] else None,
        }
        for name, found in statuses.items()
    }


def timed_scoring(
    backbone: Backbone, data: ImageData, preset: Preset, paths: int, device: torch.device
) -> dict[str, float]:
    """Candidates a second, at the defaults and one by one."""
    supernet = build_supernet(backbone, [OPERATORS] * len(backbone.layers), GATE, SEED)
    rng = np.random.default_rng(SEED)
    codes = rng.integers(0, len(OPERATORS), (paths, len(backbone.layers)))
    images = preset.calibration_images
    scorer = PathScorer(
        supernet,
        data,
        images,
        preset.evaluation_batch,
        str(device),
        precision=preset.supernet.precision,
    )
    plain = codes[: max(2, paths // 4)]
    scorer.score(codes[:2])
    score_plainly(supernet, data, plain[:2], images, device)
    ours = synchronised(lambda: scorer.score(codes), device)
    theirs = synchronised(lambda: score_plainly(supernet, data, plain, images, device), device)
    return {
        "candidates_per_s": len(codes) / ours,
        "one_by_one_candidates_per_s": len(plain) / theirs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small enough for a test on a CPU")
    parser.add_argument("--backbone", default="cifar32")
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each training, each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--paths", type=int, default=100)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = choose_device(given.device)
    preset = PRESETS["cifar10"].adjusted(device=given.device, epochs=1e6)
    if given.tiny:
        backbone = parse_backbone(TINY, "tiny", "tiny.toml")
        images, seconds, rounds, paths = 360, 0.01, 1, 4
        preset = replace(preset.with_batch(8), calibration_images=64, evaluation_batch=32)
    else:
        backbone = load_backbone(given.backbone)
        images, seconds, rounds = given.images, given.seconds, given.rounds
        paths = given.paths
    data = random_data(backbone, images)
    # Rates are those of the schedules' beginnings: nothing is to be learnt, or to diverge.
    defaults = Choice.of(preset, device, images).apply(preset, images).adjusted(learning_rate=1e-3)
    small = preset.adjusted(learning_rate=1e-3, precision="fp32")
    trainings = {
        "defaults": defaults.supernet,
        "small": small.supernet,
        "network": defaults.retrain,
    }
    found = timed_trainings(backbone, data, trainings, seconds, rounds)
    scoring = timed_scoring(backbone, data, defaults, paths, device)
    speeds = {name: figures["images_per_s"] for name, figures in found.items()}
    gpu = device.type == "cuda"
    result = {
        "benchmark": "gpu_training",
        "device": torch.cuda.get_device_name(device) if gpu else platform.machine(),
        "torch": torch.__version__,
        "backbone": backbone.name,
        "training": found,
        "scoring": {**scoring, "batch": defaults.evaluation_batch},
        "defaults_over_small": speeds["defaults"] / speeds["small"],
        "supernet_over_network": speeds["defaults"] / speeds["network"],
        "scoring_over_one_by_one": scoring["candidates_per_s"]
        / scoring["one_by_one_candidates_per_s"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
