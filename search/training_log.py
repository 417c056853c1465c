"""What a training tells while it runs, and its rows in ``training.csv``.

A row covers the steps since the row before it. Rows are written before the checkpoint of their
step, which keeps what has been counted since the last row; a training that resumes takes back the
rows after its checkpoint. So none is lost and none stands twice, whenever a training is killed.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..ops.atomic import write_atomically
from ..ops.errors import BadRequest
from ..ops.files import read_bytes
from .distributed import World

LOG = "training.csv"
COLUMNS = (
    "training",
    "step",
    "steps",
    "epoch",
    "learning_rate",
    "loss",
    "accuracy",
    "images_per_s",
    "waiting",
)
ROW_STEPS = 500
"""Most steps between two rows, where an epoch has more."""

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingStatus:
    """The steps of a training from one status to the next.

    Attributes:
        step: steps done.
        steps: steps in all.
        learning_rate: of the last step.
        loss: mean over the steps.
        accuracy: share (0 to 1) of the training images, as they were shown, that were classified
            rightly; None where nothing was classified.
        images_per_s: training images a second, of all processes together.
        waiting: share (0 to 1) of the time that went by until a step's images were there.
    """

    step: int
    steps: int
    learning_rate: float
    loss: float
    accuracy: float | None
    images_per_s: float
    waiting: float

    def text(self) -> str:
        """All but the steps, for people."""
        right = f"{self.accuracy:.1%} of training images right, "
        return (
            f"loss {self.loss:.3f}, {self.images_per_s:,.0f} images/s, "
            f"{'' if self.accuracy is None else right}"
            f"rate {self.learning_rate:.3g}, {self.waiting:.0%} waiting for data"
        )


@dataclass(frozen=True)
class Tally:
    """Sums over some steps.

    Attributes:
        loss: of the losses.
        losses: how many there were.
        right: images classified rightly.
        classified: images classified.
        images: training images shown.
        seconds: that it took.
        waited: of these, until a step's images were there.
    """

    loss: float = 0.0
    losses: float = 0.0
    right: float = 0.0
    classified: float = 0.0
    images: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def status(self, step: int, steps: int, learning_rate: float) -> TrainingStatus:
        return TrainingStatus(
            step,
            steps,
            learning_rate,
            self.loss / max(1.0, self.losses),
            self.right / self.classified if self.classified else None,
            self.images / max(self.seconds, 1e-9),
            min(1.0, self.waited / max(self.seconds, 1e-9)),
        )


class Meter:
    """Counts what the steps of a training do; sums stay on the device until they are asked for."""

    def __init__(self, world: World, device: torch.device) -> None:
        self._world = world
        self._device = device
        self._begin()

    def _begin(self) -> None:
        self._loss = torch.zeros((), device=self._device)
        self._right = torch.zeros((), device=self._device)
        self._losses = self._classified = self._images = 0
        self._waited = 0.0
        self._since = time.perf_counter()

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until each is there counts as waiting."""
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - begun
            if batch is None:
                return
            yield batch

    def add(self, loss: Tensor, logits: Tensor | None, labels: Tensor) -> None:
        """Counts a loss, and the logits that it is of where they are to meet the labels."""
        self._loss += loss.detach()
        self._losses += 1
        if logits is not None:
            self._right += (logits.detach().argmax(1) == labels).sum()
            self._classified += len(labels)

    def add_step(self, images: int) -> None:
        """Counts the images of a step, of all processes together."""
        self._images += images

    def collect(self) -> Tally:
        """The sums since the last call, of all processes; every process must call it."""
        numbers = (self._losses, self._classified)
        parts = torch.stack([self._loss.double(), self._right.double()])
        counted = torch.cat([parts, torch.tensor(numbers, device=self._device).double()])
        loss, right, losses, classified = self._world.sum(counted).tolist()
        seconds = time.perf_counter() - self._since
        found = Tally(loss, losses, right, classified, self._images, seconds, self._waited)
        self._begin()
        return found


def row_is_due(done: int, steps: int, steps_per_epoch: int) -> bool:
    """Whether a row ends with this step: at an epoch's end, every `ROW_STEPS` in it, at the end."""
    return done == steps or (done % steps_per_epoch) % ROW_STEPS == 0


class TrainingLog:
    """The rows of one training in ``training.csv``, which other trainings of a run share.

    Args:
        path: the file; None keeps no rows.
        training: its name in the file.
        leads: whether this process writes.

    Raises:
        BadRequest: the file is something else.
    """

    def __init__(self, path: Path | None, training: str, leads: bool = True) -> None:
        self._path = path if leads else None
        self._training = training

    @classmethod
    def beside(cls, checkpoint: Path | None, leads: bool = True) -> TrainingLog:
        """That of a training with this checkpoint."""
        if checkpoint is None:
            return cls(None, "")
        return cls(checkpoint.with_name(LOG), checkpoint.stem, leads)

    def rewind(self, step: int) -> None:
        """Takes back this training's rows after a step, and an unfinished last line.

        Raises:
            BadRequest: the file is no such list.
        """
        if self._path is None or not self._path.exists():
            return
        content = read_bytes(self._path, "log of trainings")
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        kept = b"".join(
            line for n, line in enumerate(lines, 1) if not self._is_later(n, line, step)
        )
        if kept != content:
            write_atomically(self._path, kept)

    def _is_later(self, number: int, line: bytes, step: int) -> bool:
        try:
            (row,) = csv.reader([line.decode()], strict=True)
            if number == 1:
                if tuple(row) != COLUMNS:
                    raise ValueError(f"columns must be {', '.join(COLUMNS)}")
                return False
            found = dict(zip(COLUMNS, row, strict=True))
            return found["training"] == self._training and int(found["step"]) > step
        except (ValueError, csv.Error) as error:
            raise BadRequest(
                f"{self._path} line {number} does not fit ({error}); remove the file"
            ) from error

    def append(self, epoch: float, status: TrainingStatus) -> None:
        """Adds a row, durably."""
        if self._path is None:
            return
        accuracy = "" if status.accuracy is None else f"{status.accuracy:.4f}"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._path.exists() or not self._path.stat().st_size:
            writer.writerow(COLUMNS)
        writer.writerow(
            [
                self._training,
                status.step,
                status.steps,
                f"{epoch:.3f}",
                f"{status.learning_rate:.6g}",
                f"{status.loss:.5f}",
                accuracy,
                f"{status.images_per_s:.1f}",
                f"{status.waiting:.3f}",
            ]
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())
