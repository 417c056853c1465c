"""How much accuracy does a network lose as the file that its device loads?

Trains a small network on CIFAR-10 for a few minutes, makes the artefact of each target with
training images for calibration, and runs it over the whole test split in the target's runtime, one
image a call through an agent, as `hurricane train` does.

    python benchmarks/artifact_accuracy.py --data cifar10:cifar-10-python.tar.gz --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from typing import Any

from hurricane.ops.artifacts import Artifact, Recipe
from hurricane.ops.backbone import Backbone, parse_backbone
from hurricane.ops.export import export_architecture
from hurricane.profiler.target import parse_target
from hurricane.search.data import ImageData, load_data
from hurricane.search.deployment import calibration_samples, make_artifact, training_data
from hurricane.search.measuring import artifact_accuracy, open_session
from hurricane.search.retrain import TrainedNetwork, train_architecture
from hurricane.search.training import preset_for

OPERATORS = ("MB_3_3", "Choice_3", "MB_5_3_SE", "SEP_3", "Choice_5_SE", "MB_3_3")
TARGETS = "cpu-onnxruntime-fp32,cpu-onnxruntime-int8,cpu-litert-fp32,cpu-litert-int8"
BACKBONE = """
classes = 10
split = 2
exploring_layers = 1
[input]
channels = 3
height = 32
width = 32
[[stem]]
channels = 24
kernel = 3
stride = 2
[[stages]]
channels = 48
repeats = 2
stride = 1
[[stages]]
channels = 96
repeats = 2
stride = 2
[[stages]]
channels = 160
repeats = 2
stride = 2
[head]
channels = 256
"""


def measure(name: str, backbone: Backbone, trained: TrainedNetwork, data: ImageData) -> Any:
    """Accuracy on one target, with the time that making and running the file took."""
    model = export_architecture(backbone, trained.operators, trained.network)
    seconds = {}

    def make(recipe: Recipe) -> Artifact:
        started = time.monotonic()
        samples = calibration_samples(data) if recipe.calibrated else None
        made = make_artifact(model, recipe, backbone, training_data(data), samples)
        seconds["make"] = round(time.monotonic() - started, 1)
        return made

    with open_session(parse_target(name), (), {}, timed=False) as session:
        artifact = make(session.recipe)
        started = time.monotonic()
        found = artifact_accuracy(session, artifact, data)
        seconds["test"] = round(time.monotonic() - started, 1)
    return {
        **found.to_dict(),
        "fp32_accuracy": trained.test_accuracy,
        "loss_points": 100 * (trained.test_accuracy - found.value),
        "bytes": len(artifact.content),
        "seconds": seconds,
        "ms_per_image": 1e3 * seconds["test"] / found.images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="cifar10:PATH, or another spec of 10 classes")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    backbone = parse_backbone(BACKBONE, "small32", "small32.toml")
    data = load_data(arguments.data, backbone)
    settings = replace(preset_for(data).retrain, epochs=arguments.epochs)
    started = time.monotonic()
    trained = train_architecture(backbone, OPERATORS, data, settings)
    result = {
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load_1m": os.getloadavg()[0],
        "operators": OPERATORS,
        "epochs": arguments.epochs,
        "training_seconds": round(time.monotonic() - started, 1),
        "test_images": len(data.test),
        "fp32_accuracy": trained.test_accuracy,
        "targets": [
            measure(name, backbone, trained, data) for name in arguments.targets.split(",")
        ],
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['test_images']} test images, fp32 in torch: {trained.test_accuracy:.2%}")
    for found in result["targets"]:
        print(
            f"{found['target']:<22}{found['value']:>8.2%}{found['loss_points']:>+7.2f} points lost"
            f"{found['ms_per_image']:>8.1f} ms an image"
        )


if __name__ == "__main__":
    main()
