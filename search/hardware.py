"""Batch and precision that suit where a run trains, for what the user leaves open.

They are chosen once, when a run first needs them, and kept in its ``trainings.json``: a run that is
carried on elsewhere goes on as it began.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..ops.errors import BadRequest
from ..ops.jsonfile import Fields, write_json
from .training import Preset
from .trainings import AUTO, PRECISIONS

FORMAT_VERSION = 1

GPU_BATCH = 512
"""Images a step that keep a GPU busy: with 128, launching kernels takes longer than they do."""

GPU_EVALUATION_BATCH = 512
"""Images that a GPU scores at once."""

LEAST_STEPS = 50
"""Steps that an epoch must keep for its batch to grow: small data learns by steps, not images."""


@dataclass(frozen=True)
class Choice:
    """What a run settles for where it trains.

    Attributes:
        batch: images a step, over all processes; None leaves those of the preset.
        precision: ``fp32`` or ``bf16``.
        evaluation_batch: images that an evaluation puts through at once.
    """

    batch: int | None
    precision: str
    evaluation_batch: int

    @classmethod
    def of(
        cls,
        preset: Preset,
        device: torch.device,
        images: int,
        processes: int = 1,
        batch: int | None = None,
        precision: str = AUTO,
        keep_batch: bool = False,
    ) -> Choice:
        """What was asked for, and for the rest what suits the device.

        Args:
            preset: its batch is what small data and CPUs are trained with.
            device: to train on.
            images: in the training split.
            processes: that share a batch; one that is chosen here can be shared evenly.
            batch: as asked for; None leaves it open.
            precision: as asked for; ``auto`` leaves it open.
            keep_batch: leave the preset's, where no other was asked for.

        Raises:
            BadRequest: the device has no bf16.
        """
        gpu = device.type == "cuda"
        if batch is None and not keep_batch:
            usual = preset.supernet.batch
            grown = usual
            while gpu and 2 * grown <= GPU_BATCH and images >= 2 * grown * LEAST_STEPS:
                grown *= 2
            shared = -(-grown // processes) * processes
            batch = None if shared == usual else shared
        bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == AUTO:
            precision = "bf16" if bf16 else "fp32"
        elif precision == "bf16" and gpu and not bf16:
            raise BadRequest(f"{torch.cuda.get_device_name(device)} has no bf16; use fp32 or auto")
        largest = max(preset.evaluation_batch, GPU_EVALUATION_BATCH)
        return cls(batch, precision, largest if gpu else preset.evaluation_batch)

    def apply(self, preset: Preset, images: int) -> Preset:
        """The preset so trained; learning rates follow the batch.

        Args:
            preset: any.
            images: in the training split; no batch is larger.
        """
        if self.batch is not None:
            preset = preset.with_batch(min(self.batch, images))
        return preset.adjusted(precision=self.precision).scored_by(self.evaluation_batch)

    def save(self, path: Path, preset: Preset, device: torch.device) -> None:
        """Writes it with what came of it.

        Args:
            path: the file.
            preset: the trainings, as they will be run.
            device: where.
        """
        trainings = {
            "supernet": asdict(preset.supernet),
            "second_stage": asdict(preset.stage_2),
            "network": asdict(preset.retrain),
        }
        facts: dict[str, Any] = {"format_version": FORMAT_VERSION, **asdict(self)}
        write_json(path, {**facts, "device": _name(device), "trainings": trainings})

    @classmethod
    def load(cls, path: Path) -> Choice:
        """Reads what `save` wrote.

        Raises:
            BadRequest: it is something else.
        """
        fields = Fields.load(path, "choice of batch and precision", FORMAT_VERSION)
        return cls(
            None if fields.get("batch") is None else fields.integer("batch", 1),
            fields.choice("precision", PRECISIONS),
            fields.integer("evaluation_batch", 1),
        )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
