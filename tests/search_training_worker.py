"""Runs trainings in processes of their own: to be killed, or to be one of several.

    python search_training_worker.py FOLDER PARTS [KILL]

Trains a supernet and scores its paths, then trains a network from scratch. KILL is a file: the
process kills itself with SIGKILL in the middle of writing it for the second time; or a number of
steps, after which that of rank 1 does. The rank comes from the environment, as torchrun sets it.
Rank 0 writes ``result.pt``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from hurricane.ops.backbone import parse_backbone
from hurricane.search.data import load_data
from hurricane.search.distributed import join_world, leave_world
from hurricane.search.evaluation import SupernetEvaluator
from hurricane.search.retrain import train_architecture
from hurricane.search.training import Preset, TrainingSettings

BACKBONE = parse_backbone(
    """
    classes = 10
    split = 1
    exploring_layers = 1
    [input]
    channels = 1
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
    channels = 24
    dropout = 0.2
    """,
    "tiny",
    "tiny.toml",
)
CANDIDATES = (("Choice_3", "SEP_3"), ("MB_3_3_SE", "SEP_5", "Choice_x"))
CODES = np.array([[a, b] for a in range(2) for b in range(3)])


def settings(parts: int, **changes) -> TrainingSettings:
    return TrainingSettings(
        **{
            "epochs": 3,
            "batch": -(-20 // parts) * parts,
            "learning_rate": 0.1,
            "parts": parts,
            "device": "cpu",
            "checkpoint_steps": 4,
            **changes,
        }
    )


def sampler(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, [2, 3], (n, 2))


def train_and_score(folder: Path, parts: int) -> dict[str, object]:
    """Trains a supernet of one stage and scores every path."""
    told = settings(parts)
    preset = Preset("test", told, told, told, calibration_images=40, evaluation_batch=20)
    data = load_data("digits?limit=100", BACKBONE)
    evaluator = SupernetEvaluator(BACKBONE, data, folder, preset, device="cpu")
    evaluator.prepare(1, CANDIDATES, sampler)
    scores = evaluator.evaluate(CODES)
    checkpoint = torch.load(folder / "supernet-1.pt", weights_only=True)
    return {"model": checkpoint["model"], "scores": scores}


def train_network(folder: Path, parts: int) -> dict[str, object]:
    """Trains one network from scratch."""
    trained = train_architecture(
        BACKBONE,
        ["Choice_3_SE", "MB_3_3"],
        load_data("digits?limit=100", BACKBONE),
        settings(parts),
        folder,
    )
    return {
        "model": trained.network.state_dict(),
        "scores": [trained.validation_accuracy, trained.test_accuracy],
    }


def train_both(folder: Path, parts: int) -> dict[str, object]:
    return {
        "supernet": train_and_score(folder, parts),
        "network": train_network(folder, parts),
    }


def die_in_second_write(name: str) -> None:
    """Arranges for SIGKILL when a file is complete beside its place for the second time."""
    replace, written = os.replace, []

    def fatal(source, target) -> None:
        if Path(target).name == name:
            written.append(target)
            if len(written) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = fatal


def die_after_steps(count: int) -> None:
    """Arranges for SIGKILL after so many steps of training, the supernet's first."""
    step, done = torch.optim.SGD.step, []

    def fatal(self: torch.optim.SGD) -> None:
        step(self)
        done.append(1)
        if len(done) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.optim.SGD.step = fatal  # type: ignore[assignment]


def main() -> None:
    torch.set_num_threads(1)
    folder, parts = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3 and sys.argv[3].isdecimal():
        if os.environ["RANK"] == "1":
            die_after_steps(int(sys.argv[3]))
    elif len(sys.argv) > 3:
        die_in_second_write(sys.argv[3])
    result = train_both(folder, parts)
    if join_world().leads:
        torch.save(result, folder / "result.pt")
    join_world().wait()
    leave_world()
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    main()
