"""Accuracy of networks and of a supernet's paths.

A path borrows weights that were trained with many others, so BatchNorm's statistics are
recalibrated for it: reset, averaged over a fixed set of training images, and only then is it
scored on the validation split. Every path sees the same images in the same batches.

Paths that begin alike share work. A layer's outputs depend only on the layers before it, so paths
are walked as a tree: a stretch that several paths have in common is recalibrated and run once,
and its outputs are kept for as long as a path needs them. Where the images themselves are too
many for memory, nothing is kept: they are read once for many paths, which run one after the other
on each batch. Either way the figures are those of scoring each path by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..ops.backbone import Backbone
from ..ops.errors import HurricaneError
from ..ops.pool import GATES
from .data import ImageData, Split
from .distributed import choose_device, join_world
from .images import Images, StoredImages, held, take, to_device
from .rundir import SUPERNET_FILE
from .supernet import Candidates, Supernet
from .training import (
    Preset,
    Progress,
    Sampler,
    build_supernet,
    generator,
    load_weights,
    preset_for,
    train_supernet,
)

CALIBRATION = 1000
"""What the random numbers that pick the calibration images are for (see `derive`)."""

KEPT_BYTES = 1 << 30
"""Outputs of shared stretches that may be kept at one time on a CPU."""

KEPT_SHARE = 0.25
"""The same on a GPU, as a share of its memory."""

HELD_BYTES = 1 << 30
"""Calibration images up to this size are decoded once for all paths."""

PATHS_AT_ONCE = 64
"""Paths that images on the disk are read once for."""


def evaluate_network(
    network: nn.Module, split: Split, data: ImageData, batch: int = 256, device: str = "auto"
) -> float:
    """Share of a split's images that a network classifies rightly, 0 to 1.

    Args:
        network: from normalised images to logits; is moved to the device, left in its mode.
        split: one of the data's.
        data: for normalisation.
        batch: images put through at once.
        device: as in `TrainingSettings`.
    """
    place = choose_device(device, join_world())
    was_training = network.training
    network.to(place).eval()
    right = 0
    with torch.inference_mode():
        batches = Batches(split.images, data, batch, place)
        for images, labels in zip(batches, split.labels.split(batch), strict=True):
            right += _right(network(images), labels.to(place))
    network.train(was_training)
    return right / len(split)


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets BatchNorm's statistics to their averages over some batches of normalised images."""
    with torch.inference_mode(), _calibrating([network]) as counted:
        for images in counted(batches):
            network(images)


def calibration_batches(
    data: ImageData, images: int, batch: int, device: torch.device, hold: bool = False
) -> Batches:
    """A fixed draw of training images, not augmented, normalised, in whole batches.

    Args:
        data: gives the training images.
        images: how many, if there are as many.
        batch: of each batch.
        device: for the batches.
        hold: decode images on the disk once, if they take no more than `HELD_BYTES`.
    """
    count = min(images, len(data.train))
    order = torch.randperm(len(data.train), generator=generator(data.seed, CALIBRATION))
    chosen = take(data.train.images, order[: max(count - count % batch, min(count, batch))])
    return Batches(held(chosen, HELD_BYTES) if hold else chosen, data, batch, device)


class Batches(Iterable[Tensor]):
    """Images in normalised batches on a device, as often as they are gone through.

    Args:
        images: in memory or on the disk; what is on the disk is read anew each time, ahead.
        data: for normalisation.
        batch: images in a batch, but for the last.
        device: for the batches.

    Attributes:
        images: how many there are.
        stored: whether they are on the disk.
    """

    def __init__(self, images: Images, data: ImageData, batch: int, device: torch.device) -> None:
        self._images = images.to(device) if isinstance(images, Tensor) else images
        self.stored = isinstance(images, StoredImages)
        self._data = data
        self._batch = batch
        self._device = device
        self.images = len(images)

    def __iter__(self) -> Iterator[Tensor]:
        for part in self._images.split(self._batch):
            yield _ready(part, self._data, self._device)


def _ready(images: Tensor, data: ImageData, device: torch.device) -> Tensor:
    return data.normalise(to_device(images, device)).contiguous(memory_format=torch.channels_last)


def _right(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(1) == labels).sum())


Counted = Callable[[Iterable[Tensor]], Iterator[Tensor]]
"""The same batches, each with its weight in BatchNorm's averages."""


@contextmanager
def _calibrating(modules: Sequence[nn.Module]) -> Iterator[Counted]:
    """BatchNorm, and nothing else, learns plain averages of the statistics of counted batches.

    With no momentum torch computes the same averages, but asks the GPU at every layer how many
    batches there were, and so waits for it.
    """
    norms = [n for m in modules for n in m.modules() if isinstance(n, nn.BatchNorm2d)]
    momenta = [n.momentum for n in norms]
    modes = [(part, part.training) for m in modules for part in m.modules()]
    for module in modules:
        module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()

    def counted(batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for number, batch in enumerate(batches, 1):
            for norm in norms:
                norm.momentum = 1 / number
            yield batch

    try:
        yield counted
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in modes:
            part.training = mode


@dataclass(frozen=True)
class _Kept:
    """Outputs of a stretch of layers for the images of both passes."""

    calibration: Iterable[Tensor]
    validation: Iterable[Tensor]


class _Path:
    """A path's modules with BatchNorm statistics of its own: other paths have the same modules.

    Args:
        modules: from images to logits.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        norms = [n for m in modules for n in m.modules() if isinstance(n, nn.BatchNorm2d)]
        found = ((norm, *_statistics(norm)) for norm in norms)
        self._own = [(norm, mean.clone(), variance.clone()) for norm, mean, variance in found]

    def run(self, x: Tensor) -> Tensor:
        """Logits of a batch; in training mode the path's own statistics learn from it."""
        shared = [(norm, *_statistics(norm)) for norm, _, _ in self._own]
        _put(self._own)
        try:
            return _chain(self._modules, x)
        finally:
            _put(shared)


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None  # none of ours does without
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _put(statistics: Iterable[tuple[nn.BatchNorm2d, Tensor, Tensor]]) -> None:
    for norm, mean, variance in statistics:
        norm.running_mean, norm.running_var = mean, variance


class PathScorer:
    """Scores paths of a supernet on the validation split.

    Args:
        supernet: trained; its BatchNorm statistics are overwritten by scoring.
        data: gives calibration and validation images.
        calibration_images: training images for BatchNorm.
        batch: images put through at once.
        device: as in `TrainingSettings`.
        kept_bytes: memory for outputs of shared stretches; 0 scores every path by itself; None
            takes what suits the device.
        precision: ``fp32`` or ``bf16``, as it was trained in.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        calibration_images: int,
        batch: int = 128,
        device: str = "auto",
        kept_bytes: int | None = None,
        precision: str = "fp32",
    ) -> None:
        self._device = choose_device(device, join_world())
        # In one layout, or the last bits, and by them an accuracy, would depend on whether the
        # supernet was just trained or read from a checkpoint.
        layout = torch.channels_last
        supernet.to(device=self._device, memory_format=layout)  # pyright: ignore[reportCallIssue]
        self._supernet = supernet.eval()
        self._mixed = precision == "bf16"
        kept_bytes = _memory(self._device) if kept_bytes is None else kept_bytes
        self._budget = kept_bytes
        inputs = calibration_batches(data, calibration_images, batch, self._device, hold=True)
        validation = Batches(data.validation.images, data, batch, self._device)
        self._labels = data.validation.labels.to(self._device)
        self._batch = batch
        self._images = inputs.images + validation.images
        self._root = 0
        self._kept = _Kept(inputs, validation)
        widths = [1, *map(len, supernet.candidates), 2]
        fixed = next(place for place, width in enumerate(widths) if width > 1)
        if self._size(fixed) <= kept_bytes:
            # What no path can change, stem and first fixed layers, is run once and for all.
            # What is too large for that, such as images on the disk, is gone through for each.
            common = np.zeros(len(widths), dtype=np.int64)
            with self._computing():
                self._kept = self._advance(self._stretch(common, 0, fixed), self._kept)
            self._root = fixed
            self._budget -= self._size(fixed)
        self._stored = self._root == 0 and (inputs.stored or validation.stored)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        kind = self._device.type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self._mixed):
            yield

    def score(self, codes: np.ndarray) -> list[float]:
        """Validation accuracies (0 to 1) of codes [N, layers]; equal codes are run once."""
        distinct, inverse = np.unique(
            np.asarray(codes, dtype=np.int64), axis=0, return_inverse=True
        )
        found = np.full(len(distinct), np.nan)
        # Places on a path: 0 is the stem, which offers one choice, then come the layers.
        places = np.pad(distinct, ((0, 0), (1, 0)))
        with self._computing():
            if self._stored:
                for first in range(0, len(places), PATHS_AT_ONCE):
                    some = places[first : first + PATHS_AT_ONCE]
                    found[first : first + PATHS_AT_ONCE] = self._together(some)
            else:
                self._walk(places, np.arange(len(places)), self._root, self._kept, found)
        return found[inverse.reshape(-1)].tolist()

    def _walk(
        self, codes: np.ndarray, rows: np.ndarray, place: int, kept: _Kept, found: np.ndarray
    ) -> None:
        """Scores the paths `rows`, which are alike before a place, from its inputs."""
        last = codes.shape[1]
        for group in _alike(codes, rows, place):
            if len(group) > 1:
                parts = (codes[group] != codes[group[0]]).any(0)
                end = int(parts.argmax())
                if self._size(end) <= self._budget:
                    self._budget -= self._size(end)
                    stretch = self._stretch(codes[group[0]], place, end)
                    self._walk(codes, group, end, self._advance(stretch, kept), found)
                    self._budget += self._size(end)
                    continue
            for row in group:
                found[row] = self._finish(self._stretch(codes[row], place, last), kept)

    def _together(self, codes: np.ndarray) -> list[float]:
        """Accuracies of some paths, whose images are gone through once for all of them."""
        head = self._supernet.head
        stretches = [[*self._stretch(code, 0, codes.shape[1]), head] for code in codes]
        with _calibrating([self._supernet]) as counted:
            paths = [_Path(modules) for modules in stretches]  # with statistics that were reset
            for x in counted(self._kept.calibration):
                for path in paths:
                    path.run(x)
        right = torch.zeros(len(paths), dtype=torch.int64, device=self._device)
        labels = self._labels.split(self._batch)
        for x, wanted in zip(self._kept.validation, labels, strict=True):
            for number, path in enumerate(paths):
                right[number] += (path.run(x).argmax(1) == wanted).sum()
        return (right.double() / len(self._labels)).tolist()

    def _stretch(self, code: np.ndarray, start: int, end: int) -> list[nn.Module]:
        """Modules of a path from one place to before another."""
        return [
            self._supernet.operator(place - 1, int(code[place])) if place else self._supernet.stem
            for place in range(start, end)
        ]

    def _advance(self, modules: Sequence[nn.Module], kept: _Kept) -> _Kept:
        """Recalibrates a stretch on its inputs and gives its outputs."""
        with _calibrating(modules) as counted:
            calibration = [_chain(modules, x) for x in counted(kept.calibration)]
        return _Kept(calibration, [_chain(modules, x) for x in kept.validation])

    def _finish(self, modules: Sequence[nn.Module], kept: _Kept) -> float:
        """Recalibrates a path's last stretch and its head, and gives the path's accuracy."""
        whole = [*modules, self._supernet.head]
        with _calibrating(whole) as counted:
            for x in counted(kept.calibration):
                _chain(whole, x)
        logits = torch.cat([_chain(whole, x) for x in kept.validation])
        return _right(logits, self._labels) / len(self._labels)

    def _size(self, place: int) -> int:
        """Bytes of all images' float32 inputs to a place on a path."""
        backbone = self._supernet.backbone
        if place == 0:
            shape = backbone.stem_shape
        elif place <= len(backbone.layers):
            shape = backbone.layers[place - 1]
        else:
            shape = backbone.head_shape
        return 4 * self._images * shape.in_pixels * shape.in_channels


def _memory(device: torch.device) -> int:
    """Bytes for outputs that paths share."""
    if device.type != "cuda":
        return KEPT_BYTES
    return int(KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory)


def _alike(codes: np.ndarray, rows: np.ndarray, place: int) -> list[np.ndarray]:
    """Rows grouped by their choice at a place (none is left at the head)."""
    if place == codes.shape[1]:
        return [rows]
    choices = codes[rows, place]
    return [rows[choices == choice] for choice in np.unique(choices)]


def _chain(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


class NoSupernet(HurricaneError):
    """A stage has no trained supernet, or no longer."""


class SupernetEvaluator:
    """Trains a supernet for each stage of a search and scores architectures with it.

    Checkpoints go to ``supernet-<stage>.pt`` in the run's directory; a run that was cut off
    carries on from them. Under ``torchrun`` every process calls the same methods with the same
    arguments; training and scoring are shared out.

    Args:
        backbone: the frame.
        data: what to train and score on.
        directory: of the run; None keeps no checkpoints.
        preset: settings of the trainings; by default those for the data.
        gate: of squeeze-and-excitation.
        seed: of initial weights, paths, data order and augmentation.
        device: as in `TrainingSettings`.
        progress: is told how far a training is.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: ImageData,
        directory: Path | None = None,
        preset: Preset | None = None,
        gate: str = GATES[0],
        seed: int = 0,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        self._backbone = backbone
        self._data = data
        self._directory = directory
        self._preset = (preset or preset_for(data)).adjusted(seed=seed, device=device)
        self._gate = gate
        self._seed = seed
        self._progress = progress
        self._supernet: Supernet | None = None
        self._scorer: PathScorer | None = None
        self._reused: tuple[Path, Candidates] | None = None

    def reuse(self, weights: Path, candidates: Candidates) -> None:
        """Takes stage 1's weights from a supernet that was trained before; nothing is trained.

        Args:
            weights: its checkpoint.
            candidates: of that supernet; a stage's are among them.
        """
        self._reused = weights, candidates

    def prepare(
        self,
        stage: int,
        candidates: Candidates,
        sampler: Sampler,
        previous: Candidates | None = None,
    ) -> None:
        """Makes ready to score a stage's architectures: trains its supernet or resumes it.

        Args:
            stage: from 1.
            candidates: of every layer in this stage; fixed layers have one.
            sampler: draws codes evenly from those that meet the budget.
            previous: candidates of the stage before, whose weights are inherited wherever an
                operator stays; None starts afresh.

        Raises:
            BadRequest: a checkpoint in the directory is another run's.
            NoSupernet: the stage before left no checkpoint.
            HurricaneError: training diverged.
        """
        settings = self._preset.supernet
        self._scorer = None
        if self._reused is not None:
            supernet = self._trained(stage, candidates)
        else:
            supernet = build_supernet(self._backbone, candidates, self._gate, self._seed)
            if previous is not None:
                supernet.inherit(self._trained(stage - 1, previous).cpu())
                settings = self._preset.stage_2
            train_supernet(
                supernet, self._data, sampler, settings, self._checkpoint(stage), self._progress
            )
        self._open(supernet)

    def reopen(self, stage: int, candidates: Candidates) -> None:
        """Makes ready to score a stage that was prepared before, now or by an earlier process.

        Raises:
            NoSupernet: the stage's checkpoint is no longer there.
        """
        self._open(self._trained(stage, candidates))

    def _open(self, supernet: Supernet) -> None:
        self._supernet = supernet
        self._scorer = PathScorer(
            supernet,
            self._data,
            self._preset.calibration_images,
            self._preset.evaluation_batch,
            self._preset.supernet.device,
            precision=self._preset.supernet.precision,
        )

    def evaluate(self, codes: np.ndarray) -> list[float]:
        """Validation accuracies, 0 to 1, of codes [N, layers] into this stage's candidates.

        Raises:
            HurricaneError: no stage was prepared.
        """
        if self._scorer is None:
            raise HurricaneError("no supernet is trained; call prepare first")
        scorer = self._scorer
        codes = np.asarray(codes, dtype=np.int64)
        order = np.lexsort(codes.T[::-1])  # neighbours share most of their layers
        shares = join_world().share_out(
            len(codes), lambda rows: scorer.score(codes[order[np.asarray(rows, dtype=np.int64)]])
        )
        found = np.empty(len(codes))
        found[order] = shares
        return found.tolist()

    def test(
        self, stage: int, candidates: Candidates, codes: Sequence[Sequence[int]]
    ) -> list[float] | None:
        """Accuracies on the test split, which no search chooses by, with a stage's weights.

        Args:
            stage: one that was prepared, now or by an earlier process.
            candidates: of that stage.
            codes: [N, layers] into them.

        Returns:
            0 to 1 each; None where the stage's checkpoint is no longer there.
        """
        try:
            supernet = self._trained(stage, candidates)
        except NoSupernet:
            return None
        scorer = PathScorer(
            supernet,
            replace(self._data, validation=self._data.test),
            self._preset.calibration_images,
            self._preset.evaluation_batch,
            self._preset.supernet.device,
            kept_bytes=0,
            precision=self._preset.supernet.precision,
        )
        return scorer.score(np.asarray(codes))

    def _checkpoint(self, stage: int) -> Path | None:
        return self._directory / SUPERNET_FILE.format(stage) if self._directory else None

    def _trained(self, stage: int, candidates: Candidates) -> Supernet:
        """A stage's supernet: at hand, or read from its checkpoint."""
        if self._supernet is not None and self._supernet.candidates == candidates:
            return self._supernet
        path, trained = self._reused or (self._checkpoint(stage), candidates)
        if path is None or not path.exists():
            raise NoSupernet(
                f"stage {stage} has no trained supernet{f' at {path}' if path else ''}; "
                "prepare it first"
            )
        supernet = build_supernet(self._backbone, trained, self._gate, self._seed)
        load_weights(supernet, path)
        if trained == candidates:
            return supernet
        part = build_supernet(self._backbone, candidates, self._gate, self._seed)
        part.inherit(supernet)
        return part
