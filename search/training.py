"""Training by gradient descent, for supernets and single networks alike.

All randomness of a step is derived from the seed and the step's number (see `derive`), so a
killed run that resumes from a checkpoint ends with the same weights, bit for bit on a CPU with
the same number of threads, as one that was not killed, and every process of several knows what
the others do.

A batch may be cut into parts that run one after the other and whose gradients are averaged.
Processes share the parts out: two processes do what one does with ``parts=2``. BatchNorm sees
one part at a time (as on several GPUs), so equal results need equal parts, not equal processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.atomic import remove_partials, write_atomically
from ..ops.errors import BadRequest, HurricaneError
from .data import ImageData
from .distributed import World, alone, choose_device, join_world, sums_gradients
from .images import pick, read_ahead, to_device
from .supernet import Supernet
from .training_log import Meter, Tally, TrainingLog, TrainingStatus, row_is_due
from .trainings import PRECISIONS, SUPERNET_TRAININGS

SCHEDULES = ("linear", "cosine")

Sampler = Callable[[np.random.Generator, int], np.ndarray]
"""From a random generator and n to codes [n, layers], drawn evenly from what meets the budget."""

Progress = Callable[[TrainingStatus], None]
"""Told now and then how a training stands since the last call."""

Losses = Iterator[tuple[Tensor, Tensor | None]]
"""Losses, each with the logits that it is of (None where they are not to meet the labels)."""

Objective = Callable[[Tensor, Tensor, int], Losses]
"""From images, labels and step to losses, each of which is differentiated before the next."""

PATHS_AT_ONCE = 256
"""Paths drawn in one call of the sampler."""

REPORT_STEPS = 20
"""Steps between calls of the progress function; the loss is looked at then."""

WARMUP = 0.05
"""Part of all steps in which the learning rate of a large batch climbs (5 of 90 epochs there)."""

RESIDENT_BYTES = 4 << 30
"""Training images up to this size are kept on the GPU."""

# What the random numbers of a seed are for.
ORDER, AUGMENT, DROPOUT, PATHS, FAIR, INITIAL = range(6)


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. Defaults are SPOS's where it says something.

    Attributes:
        epochs: passes over the training images.
        batch: images a step, over all processes.
        learning_rate: at the first step after the warm-up.
        schedule: ``linear`` or ``cosine``, down to 0 at the last step.
        warmup: part of all steps in which the learning rate climbs to its height.
        momentum: of SGD.
        weight_decay: on tensors of more than one dimension only.
        label_smoothing: of the cross-entropy.
        clip: largest norm of the gradient; None leaves it alone.
        strategy: of a supernet: ``single-path`` (SPOS, one path a step), ``fair`` (FairNAS,
            Chu et al. 2021: every operator of a layer once a step, gradients accumulated) or
            ``sandwich`` (BigNAS, Yu et al. 2020: largest, smallest and two drawn paths, the
            largest teaches the others). ``fair`` and the two ends of ``sandwich`` cannot
            heed a budget.
        augment: whether training images are augmented; a training too short to overfit does
            better without.
        parts: a batch is cut into this many, gradients are averaged.
        seed: of everything that is drawn.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, or ``bf16`` for mixed precision (GPU).
        checkpoint_steps: steps between checkpoints.
    """

    epochs: float
    batch: int
    learning_rate: float
    schedule: str = "linear"
    warmup: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    clip: float | None = 5.0
    strategy: str = "single-path"
    augment: bool = True
    parts: int = 1
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    checkpoint_steps: int = 100

    def __post_init__(self) -> None:
        for name, allowed in (
            ("strategy", SUPERNET_TRAININGS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in allowed:
                raise BadRequest(
                    f"training {name} {getattr(self, name)!r} is unknown; use {', '.join(allowed)}"
                )
        for name in ("epochs", "batch", "learning_rate", "parts", "checkpoint_steps"):
            if not getattr(self, name) > 0:
                raise BadRequest(f"training {name} must be more than 0")

    def with_batch(self, batch: int) -> TrainingSettings:
        """Another batch, the learning rate in proportion to it.

        A batch that is much larger begins with a warm-up (Goyal et al. 2017, arXiv 1706.02677).
        """
        grown = batch / self.batch
        warmup = max(self.warmup, WARMUP) if grown >= 2 else self.warmup
        rate = self.learning_rate * grown
        return replace(self, batch=batch, learning_rate=rate, warmup=warmup)

    def steps(self, images: int) -> int:
        """Steps in all, for this many training images."""
        return max(1, round(self.epochs * self.steps_per_epoch(images)))

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches in one pass; the images left over come in another pass's order."""
        return max(1, images // self.batch)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, from 0."""
        climb = round(self.warmup * steps)
        if step < climb:
            return self.learning_rate * (step + 1) / climb
        done = (step - climb) / max(1, steps - climb)
        fall = 1 - done if self.schedule == "linear" else 0.5 * (1 + np.cos(np.pi * done))
        return float(self.learning_rate * fall)


def derive(seed: int, *purpose: int) -> int:
    """A seed of its own for each purpose and step, independent of the others."""
    return int(np.random.SeedSequence([seed, *purpose]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *purpose: int) -> torch.Generator:
    """A CPU generator seeded by `derive`."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: int) -> Iterator[None]:
    """Seeds torch's global generator inside, and leaves it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *purpose))
        yield


def build_supernet(
    backbone: Any, candidates: Sequence[Sequence[str]], gate: str, seed: int
) -> Supernet:
    """A supernet whose initial weights depend on the seed alone."""
    with seeded(seed, INITIAL):
        return Supernet(backbone, candidates, gate)


def train_supernet(
    supernet: Supernet,
    data: ImageData,
    sampler: Sampler,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Trains a supernet in place, or carries on where its checkpoint stands.

    Args:
        supernet: with its initial or inherited weights.
        data: the training split is used; augmented where the settings say so.
        sampler: draws the paths.
        settings: how.
        checkpoint: file to write to and to resume from; None keeps none.
        progress: is told how far it is.

    Returns:
        The step it started from: 0, or that of the checkpoint.

    Raises:
        BadRequest: the checkpoint is another run's.
        HurricaneError: the loss is no longer finite, or the checkpoint cannot be read.
    """
    paths = _Paths(sampler, settings.seed)
    identity = {
        "backbone": repr(supernet.backbone),
        "candidates": supernet.candidates,
        "gate": supernet.gate,
        "paths": hashlib.sha256(paths.chunk(0).tobytes()).hexdigest(),
    }
    objective = _supernet_objective(supernet, paths, settings)
    return optimise(supernet, objective, data, settings, identity, checkpoint, progress)


class _Paths:
    """The path of every step, drawn in chunks that each have a seed of their own."""

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self._sampler = sampler
        self._seed = seed
        self._number = -1
        self._chunk = np.empty((0, 0), dtype=np.int64)

    def chunk(self, number: int) -> np.ndarray:
        """Codes [PATHS_AT_ONCE, layers]."""
        if number != self._number:
            rng = np.random.default_rng([self._seed, PATHS, number])
            drawn = self._sampler(rng, PATHS_AT_ONCE)
            self._chunk = np.ascontiguousarray(drawn, dtype=np.int64)
            self._number = number
        return self._chunk

    def __getitem__(self, index: int) -> list[int]:
        return self.chunk(index // PATHS_AT_ONCE)[index % PATHS_AT_ONCE].tolist()


def forward(
    model: Callable[..., Tensor], settings: TrainingSettings, images: Tensor, *rest: Any
) -> Tensor:
    """Logits as float32, computed in the settings' precision."""
    mixed = settings.precision == "bf16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
        return model(images, *rest).float()


def _supernet_objective(supernet: Supernet, paths: _Paths, settings: TrainingSettings) -> Objective:
    def run(images: Tensor, code: Sequence[int], dropout: bool = True) -> Tensor:
        return forward(supernet, settings, images, code, dropout)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)

    def single(images: Tensor, labels: Tensor, step: int) -> Losses:
        logits = run(images, paths[step])
        yield loss(logits, labels), logits

    def fair(images: Tensor, labels: Tensor, step: int) -> Losses:
        rng = np.random.default_rng([settings.seed, FAIR, step])
        orders = [rng.permutation(len(names)) for names in supernet.candidates]
        for turn in range(max(map(len, orders))):
            code = [int(order[turn % len(order)]) for order in orders]
            logits = run(images, code)
            yield loss(logits, labels), logits

    def sandwich(images: Tensor, labels: Tensor, step: int) -> Losses:
        logits = run(images, supernet.largest())
        teacher = logits.detach().softmax(1)
        yield loss(logits, labels), logits
        for code in (supernet.smallest(), paths[2 * step], paths[2 * step + 1]):
            yield F.cross_entropy(run(images, code, False), teacher), None

    return {"single-path": single, "fair": fair, "sandwich": sandwich}[settings.strategy]


def optimise(
    model: nn.Module,
    objective: Objective,
    data: ImageData,
    settings: TrainingSettings,
    identity: Mapping[str, Any],
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    replica: nn.Module | None = None,
) -> int:
    """Stochastic gradient descent on the training split, with checkpoints.

    Parameters that a step's objective does not touch keep no gradient, so that neither
    momentum nor weight decay moves them.

    Args:
        model: trained in place; ends on the settings' device.
        objective: gives the losses of a step.
        data: the training split is used; augmented where the settings say so.
        settings: how.
        identity: what else makes a run this run; a checkpoint of another is refused.
        checkpoint: file to write to and to resume from; ``training.csv`` is kept beside it.
        progress: is told how far it is.
        replica: the model by `World.replica`, if the objective runs that.

    Returns:
        The step it started from.
    """
    world = join_world()
    device = choose_device(settings.device, world)
    parts = max(settings.parts, world.size)
    batch = min(settings.batch, len(data.train))
    if parts % world.size or batch % parts:
        raise BadRequest(
            f"a batch of {batch} in {parts} parts cannot be shared out evenly among "
            f"{world.size} processes; choose one that can (--batch)"
        )
    settings = replace(settings, batch=batch, parts=parts)
    model.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = _sgd(model, settings)
    steps = settings.steps(len(data.train))
    per_epoch = settings.steps_per_epoch(len(data.train))
    saved = _Checkpoint(checkpoint, _fingerprint(identity, settings, data), world)
    start, logged = saved.load(model, optimizer, device)
    world.agree(start, f"the step to resume from in {checkpoint}")
    log = TrainingLog.beside(checkpoint, world.leads)
    log.rewind(start)
    parameters = [p for p in model.parameters() if p.requires_grad]
    replica = model if replica is None else replica
    mine = range(world.rank, parts, world.size)
    meter, told = Meter(world, device), Tally()
    batches = meter.waiting(_Batches(data, settings, device).parts(range(start, steps), mine))
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step in range(start, steps):
            rate = settings.rate(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            for _, part, images, labels in islice(batches, len(mine)):
                torch.manual_seed(derive(settings.seed, DROPOUT, step, part))
                with nullcontext() if part == mine[-1] else alone(replica):
                    for loss, logits in objective(images, labels, step):
                        (loss / parts).backward()
                        meter.add(loss, logits, labels)
            if not sums_gradients(replica):
                world.sum_gradients(parameters)
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            meter.add_step(batch)
            done = step + 1
            last = done == steps
            shown = last or done % REPORT_STEPS == 0
            kept = last or done % settings.checkpoint_steps == 0
            row = row_is_due(done, steps, per_epoch)
            if shown or kept or row:
                found = meter.collect()
                told, logged = told + found, logged + found
            if shown:
                _report(told.status(done, steps, rate), progress)
                told = Tally()
            if row:
                log.append(done / per_epoch, logged.status(done, steps, rate))
                logged = Tally()
            if kept:
                saved.save(model, optimizer, done, logged)
    optimizer.zero_grad(set_to_none=True)
    world.wait()
    return start


def _report(status: TrainingStatus, progress: Progress | None) -> None:
    if not np.isfinite(status.loss):
        raise HurricaneError(
            f"training diverged before step {status.step}: the loss is {status.loss}; "
            "lower the learning rate"
        )
    if progress is not None:
        progress(status)


def _sgd(model: nn.Module, settings: TrainingSettings) -> torch.optim.SGD:
    """SGD that decays weights of more than one dimension only (no biases, no BatchNorm)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [g for g in groups if g["params"]],
        lr=settings.learning_rate,
        momentum=settings.momentum,
    )


class _Batches:
    """The images of every step: shuffled anew each epoch, augmented, normalised."""

    def __init__(self, data: ImageData, settings: TrainingSettings, device: torch.device) -> None:
        self._data = data
        self._settings = settings
        self._device = device
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)
        self._images = images = data.train.images
        if isinstance(images, Tensor) and images.numel() <= RESIDENT_BYTES:
            self._images = images.to(device)
        self._labels = data.train.labels

    def parts(
        self, steps: Iterable[int], parts: Sequence[int]
    ) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Step, part, images float32 [batch / parts, C, H, W] and labels, of all parts in order.

        What is on the disk is read ahead; what is drawn is drawn by step and part alone.
        """
        wanted = ((s, p, self._chosen(s, p)) for s, p in product(steps, parts))
        at_hand = isinstance(self._images, Tensor) and self._images.device == self._device
        shown = map(self._shown, wanted) if at_hand else read_ahead(self._shown, wanted)
        for step, part, numbers, images in shown:
            ready = self._data.normalise(to_device(images, self._device)).contiguous(
                memory_format=torch.channels_last
            )
            yield step, part, ready, to_device(self._labels[numbers], self._device)

    def _shown(self, wanted: tuple[int, int, Tensor]) -> tuple[int, int, Tensor, Tensor]:
        """The images of one part of a step's batch as they are to be seen, uint8."""
        step, part, numbers = wanted
        if self._settings.augment:
            drawn = generator(self._settings.seed, AUGMENT, step, part)
            images = self._data.augmentation.show(self._images, numbers, drawn)
        else:
            images = pick(self._images, numbers)
        return step, part, numbers, images

    def _chosen(self, step: int, part: int) -> Tensor:
        """Numbers of the images of one part of a step's batch."""
        s = self._settings
        epoch, at = divmod(step, s.steps_per_epoch(len(self._data.train)))
        if epoch != self._epoch:
            shuffler = generator(s.seed, ORDER, epoch)
            self._order = torch.randperm(len(self._data.train), generator=shuffler)
            self._epoch = epoch
        size = s.batch // s.parts
        first = at * s.batch + part * size
        return self._order[first : first + size]


# Checkpoints


def _fingerprint(
    identity: Mapping[str, Any], settings: TrainingSettings, data: ImageData
) -> dict[str, str]:
    """Digests of what a run is made of, each under its name."""
    told = asdict(settings)
    for name in ("device", "checkpoint_steps"):  # do not change what is computed
        del told[name]
    facts = {**identity, "settings": told, "data": data.describe()}
    return {
        name: hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest()
        for name, fact in facts.items()
    }


class _Checkpoint:
    """A file that holds a run's weights, optimizer and step; replaced in one go."""

    def __init__(self, path: Path | None, fingerprint: dict[str, str], world: World) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._world = world

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, logged: Tally
    ) -> None:
        if self._path is None or not self._world.leads:
            return
        content = {
            "fingerprint": self._fingerprint,
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "logged": list(astuple(logged)),
        }
        save_weights(self._path, content)

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> tuple[int, Tally]:
        """Puts the saved state in place.

        Returns:
            Its step and what was counted since the last row; 0 and nothing without a file.
        """
        if self._path is None:
            return 0, Tally()
        if self._world.leads:
            remove_partials(self._path)
        if not self._path.exists():
            return 0, Tally()
        content = read_saved(self._path, device)
        try:
            saved = content["fingerprint"]
            odd = [name for name, digest in self._fingerprint.items() if saved.get(name) != digest]
            if odd:
                raise BadRequest(
                    f"checkpoint {self._path} is of a run with other {', '.join(odd)}; "
                    "choose another output folder or remove it"
                )
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
            step = content["step"]
            if not isinstance(step, int) or step < 0:
                raise ValueError(f"its step is {step!r}")
            return step, Tally(*map(float, content.get("logged", ())))
        except _OTHER_CONTENT as error:
            raise _unreadable(self._path, error) from error


def save_weights(path: Path, content: Any) -> None:
    """Saves with torch.save; a kill leaves the old file or the new one, never half of one."""
    write_atomically(path, partial(torch.save, content), make_folder=True)


_REMOVE = "remove it to train from the start"
_OTHER_CONTENT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What taking weights out of something else ends with."""


def read_saved(path: Path, device: torch.device | str = "cpu", advice: str = _REMOVE) -> Any:
    """Loads what `save_weights` saved; runs no code from the file.

    Raises:
        HurricaneError: the file is damaged.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # an unpickler fails on damaged bytes with whatever comes
        raise _unreadable(path, error, advice) from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Puts the weights of a checkpoint or of saved weights into a model on the CPU.

    Raises:
        HurricaneError: the file is missing, damaged, or of another model.
    """
    content = read_saved(path)
    try:
        model.load_state_dict(content["model"])
    except _OTHER_CONTENT as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception, advice: str = _REMOVE) -> HurricaneError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return HurricaneError(f"checkpoint {path} cannot be read ({reason}); {advice}")


# Presets


@dataclass(frozen=True)
class Preset:
    """Settings of a whole search for one kind of data.

    Attributes:
        name: for reports.
        supernet: of stage 1.
        stage_2: of stage 2, which starts from stage 1's weights and needs less.
        retrain: of a network trained from scratch.
        calibration_images: training images that BatchNorm is recalibrated on for each
            candidate (SPOS: 200 batches of 128).
        evaluation_batch: images that an evaluation puts through at once.
    """

    name: str
    supernet: TrainingSettings
    stage_2: TrainingSettings
    retrain: TrainingSettings
    calibration_images: int
    evaluation_batch: int = 128

    def scaled(self, epochs: float) -> Preset:
        """The preset with all training lengthened (> 1) or shortened (< 1)."""
        return replace(
            self,
            supernet=replace(self.supernet, epochs=self.supernet.epochs * epochs),
            stage_2=replace(self.stage_2, epochs=self.stage_2.epochs * epochs),
            retrain=replace(self.retrain, epochs=self.retrain.epochs * epochs),
        )

    def lasting(self, epochs: float) -> Preset:
        """The preset with this many epochs for a supernet and for a network from scratch.

        Stage 2 keeps its share of the supernet's.
        """
        second = self.stage_2.epochs * epochs / self.supernet.epochs
        return replace(
            self,
            supernet=replace(self.supernet, epochs=epochs),
            stage_2=replace(self.stage_2, epochs=second),
            retrain=replace(self.retrain, epochs=epochs),
        )

    def with_batch(self, batch: int) -> Preset:
        """The preset with this batch in all trainings, learning rates in proportion."""
        return replace(
            self,
            supernet=self.supernet.with_batch(batch),
            stage_2=self.stage_2.with_batch(batch),
            retrain=self.retrain.with_batch(batch),
        )

    def scored_by(self, batch: int) -> Preset:
        """The preset with this many images put through at once in an evaluation."""
        return replace(self, evaluation_batch=batch)

    def adjusted(self, **changes: Any) -> Preset:
        """The preset with the same changes to the settings of all three trainings."""
        return replace(
            self,
            supernet=replace(self.supernet, **changes),
            stage_2=replace(self.stage_2, **changes),
            retrain=replace(self.retrain, **changes),
        )


_SPOS_BATCH, _SPOS_EPOCHS = 1024, 120  # 150,000 steps of 1,024 on 1.28 M images

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        "digits",
        supernet=TrainingSettings(epochs=20, batch=32, learning_rate=0.1, augment=False),
        stage_2=TrainingSettings(epochs=8, batch=32, learning_rate=0.1, augment=False),
        retrain=TrainingSettings(epochs=8, batch=32, learning_rate=0.1, schedule="cosine"),
        calibration_images=256,
    ),
    "cifar10": Preset(
        "cifar10",
        supernet=TrainingSettings(epochs=200, batch=128, learning_rate=0.1, checkpoint_steps=350),
        stage_2=TrainingSettings(epochs=20, batch=128, learning_rate=0.05, checkpoint_steps=350),
        retrain=TrainingSettings(
            epochs=200, batch=128, learning_rate=0.1, schedule="cosine", checkpoint_steps=350
        ),
        calibration_images=2048,
    ),
    "imagenet": Preset(
        "imagenet",
        supernet=TrainingSettings(
            epochs=_SPOS_EPOCHS, batch=_SPOS_BATCH, learning_rate=0.5, checkpoint_steps=1000
        ),
        stage_2=TrainingSettings(
            epochs=10, batch=_SPOS_BATCH, learning_rate=0.1, checkpoint_steps=1000
        ),
        retrain=TrainingSettings(
            epochs=2 * _SPOS_EPOCHS, batch=_SPOS_BATCH, learning_rate=0.5, checkpoint_steps=1000
        ),
        calibration_images=25_600,
    ),
}
"""Settings by kind of data: tried on digits; CIFAR-10's are the field's usual ones; ImageNet's
are SPOS's (stage 2 after the paper's 4 to 9% more iterations)."""

IMAGENET_IMAGES = 200_000
"""From this many training images on, the ImageNet settings are meant."""


def preset_for(data: ImageData) -> Preset:
    """The preset for a data set, by its kind and size."""
    if data.kind == "digits":
        return PRESETS["digits"]
    return PRESETS["imagenet" if len(data.train) >= IMAGENET_IMAGES else "cifar10"]
