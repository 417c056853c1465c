"""How well a supernet ranks networks, against NAS-Bench-Macro's true accuracies on CIFAR-10.

The space is the benchmark's: 3 operators in each of 8 layers. A supernet of all of them is trained,
and the same random networks are scored with its weights as a search scores them, on the
validation split; truth is the mean test accuracy of the benchmark's three trainings. Compared are
ways of training at equal cost: each has the same number of images put through paths, whatever the
number of paths a step. MACs rank the same networks beside them; the *ceiling* is how one of the
benchmark's trainings ranks them against the mean of the two others.

A run takes what time it is given: trainings go on from their checkpoints, each result is kept in
the output folder, and what is printed is of all that is there. `--minutes 12` suits one GPU (some
120 s a training at 42 epochs), `--minutes 600` with few epochs a night on 2 cores.

Run: HURRICANE_DATA=FOLDER python benchmarks/supernet_ranking.py --minutes 12 -o runs/ranking
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.pool import GATES, load_plugin, parse_operator
from hurricane.profiler.accuracy import kendall_tau
from hurricane.search.data import ImageData, load_data
from hurricane.search.evaluation import PathScorer
from hurricane.search.training import (
    PRESETS,
    TrainingSettings,
    build_supernet,
    train_supernet,
)
from hurricane.search.training_log import TrainingStatus

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "nas_bench_macro"
OPERATORS = ("Identity", "MB3_K3", "MB6_K5")
"""The digits 0, 1, 2 of the benchmark's keys."""

NETWORKS_SEED = 0
CALIBRATION_IMAGES = (512, 2048, 8192)
"""Images that BatchNorm is recalibrated on; the middle one is the preset's."""

EVALUATION_BATCH = 512
BEST_SHARE = 0.1


@dataclass(frozen=True)
class Variant:
    """A way of training.

    Attributes:
        changes: to the preset's settings of a supernet.
        paths: a step's passes of its images; so many times fewer steps cost the same.
    """

    changes: dict[str, Any]
    paths: int = 1

    def settings(self, epochs: float, seed: int, device: str, precision: str) -> TrainingSettings:
        """Settings of a training that costs as much as `epochs` of one path a step."""
        return replace(
            PRESETS["cifar10"].supernet,
            epochs=epochs / self.paths,
            seed=seed,
            device=device,
            precision=precision,
            checkpoint_steps=200,
            **self.changes,
        )


_FAIR_PATHS = len(OPERATORS)
_SANDWICH_PATHS = 4

VARIANTS: dict[str, Variant] = {
    "single path": Variant({}),
    "single path, batch 256, rate 0.2": Variant({"batch": 256, "learning_rate": 0.2}),
    "single path, cosine": Variant({"schedule": "cosine"}),
    "single path, rate 0.05": Variant({"learning_rate": 0.05}),
    "fair": Variant({"strategy": "fair"}, _FAIR_PATHS),
    "sandwich": Variant({"strategy": "sandwich"}, _SANDWICH_PATHS),
}
"""The first is the default."""


class TimeUp(Exception):
    """The run's minutes are over."""


@dataclass(frozen=True)
class Networks:
    """The networks that are ranked.

    Attributes:
        codes: [N × layers], digits of the benchmark's keys.
        trainings: test accuracies of the benchmark's three trainings [N × 3], 0 to 100.
        macs: [N].
    """

    codes: NDArray[np.int64]
    trainings: NDArray[np.float64]
    macs: NDArray[np.float64]

    @classmethod
    def draw(cls, path: Path, backbone: Backbone, count: int) -> Networks:
        """Different networks at random, the same in every run."""
        known = json.loads(path.read_text())
        keys = sorted(known)
        chosen = np.random.default_rng(NETWORKS_SEED).choice(len(keys), count, replace=False)
        codes = np.array([[int(digit) for digit in keys[i]] for i in chosen], dtype=np.int64)
        trainings = np.array([known[keys[i]]["test_acc"] for i in chosen], dtype=np.float64)
        layers = [[parse_operator(n).macs(s) for n in OPERATORS] for s in backbone.layers]
        macs = np.array(
            [sum(row[c] for row, c in zip(layers, code, strict=True)) for code in codes]
        )
        return cls(codes, trainings, macs.astype(np.float64))

    @property
    def truth(self) -> NDArray[np.float64]:
        return self.trainings.mean(axis=1)

    def figures(self, scores: NDArray[np.float64]) -> dict[str, float]:
        """How well scores [N] rank the networks, and what the one of the best score is worth."""
        truth = self.truth
        order = np.argsort(-truth, kind="stable")
        count = len(truth)
        found = {
            name: kendall_tau(scores[order[:part]], truth[order[:part]])
            for name, part in (
                ("tau", count),
                ("tau_best_half", count // 2),
                ("tau_best_tenth", max(2, round(BEST_SHARE * count))),
            )
        }
        found["regret_points"] = float(truth.max() - truth[int(np.argmax(scores))])
        return found

    def ceiling(self) -> dict[str, float]:
        """What one training of the benchmark says of the mean of the two others, on average."""
        rows = []
        for one in range(self.trainings.shape[1]):
            others = np.delete(self.trainings, one, axis=1)
            left = replace(self, trainings=others)
            rows.append(left.figures(self.trainings[:, one]))
        return mean_of(rows)


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """The means of figures of the same names."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def rank(
    name: str,
    seed: int,
    networks: Networks,
    backbone: Backbone,
    data: ImageData,
    folder: Path,
    arguments: argparse.Namespace,
    check: Callable[[], None],
) -> dict[str, Any]:
    """Trains one supernet, or carries on, and ranks the networks with it."""
    candidates = (OPERATORS,) * len(backbone.layers)
    settings = VARIANTS[name].settings(
        arguments.epochs, seed, arguments.device, arguments.precision
    )
    supernet = build_supernet(backbone, candidates, GATES[0], seed)

    def sample(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        return rng.integers(len(OPERATORS), size=(count, len(backbone.layers)))

    checkpoint = folder / f"{name.replace(' ', '-').replace(',', '')}-{seed}.pt"
    clock = folder / f"{checkpoint.stem}.seconds"
    before = float(clock.read_text()) if clock.exists() else 0.0
    start = time.monotonic()

    def progress(status: TrainingStatus) -> None:
        clock.write_text(str(before + time.monotonic() - start))
        steps = f"step {status.step} of {status.steps}"
        print(f"{name}, seed {seed}: {steps}, {status.text()}", file=sys.stderr)
        check()

    train_supernet(supernet, data, sample, settings, checkpoint, progress)
    trained = float(clock.read_text()) if clock.exists() else 0.0
    ranked = {}
    for images in CALIBRATION_IMAGES:
        check()
        start = time.monotonic()
        scorer = PathScorer(
            supernet,
            data,
            images,
            EVALUATION_BATCH,
            arguments.device,
            precision=arguments.precision,
        )
        scores = np.array(scorer.score(networks.codes))
        ranked[images] = {
            **networks.figures(scores),
            "mean_accuracy": float(scores.mean()),
            "scoring_s": time.monotonic() - start,
        }
    for file in (checkpoint, clock):
        file.unlink(missing_ok=True)
    return {
        "variant": name,
        "seed": seed,
        "epochs": arguments.epochs,
        "images": len(data.train),
        "settings": {**VARIANTS[name].changes, "precision": arguments.precision},
        "training_s": trained,
        "device": torch.cuda.get_device_name()
        if settings.device != "cpu" and torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads",
        "ranked": {str(k): v for k, v in ranked.items()},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, by variant and number of calibration images."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        found[name] = {
            "seeds": len(own),
            "training_s": float(np.mean([row["training_s"] for row in own])),
            **{
                f"{images} images": {
                    **mean_of([row["ranked"][images] for row in own]),
                    "tau_by_seed": [row["ranked"][images]["tau"] for row in own],
                }
                for images in own[0]["ranked"]
            },
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/supernet-ranking"))
    parser.add_argument("--data", help="CIFAR-10 as a search takes it [the JPEGs of the data]")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=42.0, help="of one path a step")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="separated by ;")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16" if torch.cuda.is_available() else "fp32")
    arguments = parser.parse_args()
    folder = os.environ.get("HURRICANE_DATA")
    oracle = Path(folder or ".") / "accuracy" / "nas-bench-macro_cifar10.json"
    if not oracle.is_file():
        raise SystemExit(f"{oracle} is not there: name the folder of the data by HURRICANE_DATA")
    spec = arguments.data or f"folder:{folder}/images/cifar10_jpeg.zip"
    load_plugin(EXAMPLE / "operators.py")
    backbone = load_backbone(EXAMPLE / "backbone.toml")
    networks = Networks.draw(oracle, backbone, arguments.networks)
    arguments.output.mkdir(parents=True, exist_ok=True)
    log = arguments.output / f"ranking-{arguments.epochs:g}-epochs.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    end = time.monotonic() + 60 * arguments.minutes

    def check() -> None:
        if time.monotonic() > end:
            raise TimeUp

    try:
        data = load_data(spec, backbone, 0)
        for seed in range(arguments.seeds):
            for name in arguments.variants.split(";"):
                if any((row["variant"], row["seed"]) == (name, seed) for row in rows):
                    continue
                check()
                row = rank(name, seed, networks, backbone, data, arguments.output, arguments, check)
                rows.append(row)
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    except TimeUp:
        print("the time is up: the same command goes on from here", file=sys.stderr)
    result = {
        "benchmark": "supernet_ranking",
        "networks": arguments.networks,
        "epochs": arguments.epochs,
        "macs": networks.figures(networks.macs),
        "ceiling": networks.ceiling(),
        "variants": summary(rows) if rows else {},
        "trainings_left": arguments.seeds * len(arguments.variants.split(";")) - len(rows),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
