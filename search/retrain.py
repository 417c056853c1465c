"""Training one architecture from scratch, and the figures that it ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..lookup_tables.architecture import Accuracy
from ..ops.backbone import Backbone
from ..ops.blocks import Network
from ..ops.errors import BadRequest
from ..ops.pool import GATES
from .data import ImageData
from .distributed import choose_device, join_world
from .evaluation import calibration_batches, evaluate_network, recalibrate
from .training import (
    INITIAL,
    Losses,
    Progress,
    TrainingSettings,
    forward,
    optimise,
    preset_for,
    read_saved,
    save_weights,
    seeded,
)

BATCH_NORM_IMAGES = 4096
"""Training images that the final BatchNorm statistics are averaged over (Wu & Johnson 2021,
arXiv 2105.07576: "precise" statistics), which makes them the same for any number of processes."""

BATCH_NORM_BATCH = 128
"""Images in each of the batches whose statistics are averaged."""


class OtherWeights(BadRequest):
    """A file holds the weights of another network than the one they are wanted for."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained architecture and how good it is.

    Attributes:
        network: on the CPU, in evaluation mode.
        operators: one name a layer.
        validation_accuracy, test_accuracy: share of the split's images, 0 to 1.
        validation_images, test_images, train_images: sizes of the splits.
        settings: how it was trained.
        spec: the data.
    """

    network: Network
    operators: tuple[str, ...]
    validation_accuracy: float
    test_accuracy: float
    validation_images: int
    test_images: int
    train_images: int
    settings: TrainingSettings
    spec: str

    def figures(self) -> dict[str, Any]:
        """Accuracies with how they were obtained, for JSON."""
        return {
            "validation": self.validation_accuracy,
            "validation_images": self.validation_images,
            "test": self.test_accuracy,
            "test_images": self.test_images,
            "train_images": self.train_images,
            "data": self.spec,
            "how": "trained from scratch on the training split; weights of the last step, "
            "BatchNorm's statistics averaged anew over training images",
            "settings": asdict(self.settings),
        }


def train_architecture(
    backbone: Backbone,
    operators: Sequence[str],
    data: ImageData,
    settings: TrainingSettings | None = None,
    directory: Path | None = None,
    gate: str = GATES[0],
    progress: Progress | None = None,
) -> TrainedNetwork:
    """Trains an architecture from scratch, or carries on where its checkpoint stands.

    Args:
        backbone: the frame.
        operators: one name a layer.
        data: training split to learn from; validation and test splits to score on.
        settings: by default those for the data.
        directory: gets ``training.pt`` (checkpoint), ``training.csv`` and ``weights.pt``; None
            keeps nothing.
        gate: of squeeze-and-excitation.
        progress: is told how far it is.

    Raises:
        BadRequest: the architecture does not fit the backbone, or the directory holds the
            checkpoint of another training.
        HurricaneError: training diverged, or the checkpoint is damaged.
    """
    settings = settings or preset_for(data).retrain
    with seeded(settings.seed, INITIAL):
        network = Network(backbone, operators, gate)
    identity = {"backbone": repr(backbone), "operators": list(operators), "gate": gate}
    checkpoint = directory / "training.pt" if directory else None
    validation, test = train_module(network, data, settings, identity, checkpoint, progress)
    network = network.cpu().to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
    if directory is not None and join_world().leads:
        content = {"operators": list(operators), "gate": gate, "model": network.state_dict()}
        save_weights(directory / "weights.pt", content)
    return TrainedNetwork(
        network=network,
        operators=tuple(operators),
        validation_accuracy=validation,
        test_accuracy=test,
        validation_images=len(data.validation),
        test_images=len(data.test),
        train_images=len(data.train),
        settings=settings,
        spec=data.spec,
    )


def train_module(
    network: nn.Module,
    data: ImageData,
    settings: TrainingSettings,
    identity: Mapping[str, Any],
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """Trains any network in place, with BatchNorm's statistics averaged anew at the end.

    Args:
        network: with its initial weights; from normalised images to logits.
        data: training split to learn from; validation and test splits to score on.
        settings: how.
        identity: what the network is; a checkpoint of another is refused.
        checkpoint: file to write to and to resume from; None keeps none.
        progress: is told how far it is.

    Returns:
        Its accuracies on the validation and the test split, 0 to 1.
    """
    world = join_world()
    device = choose_device(settings.device, world)
    network.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    replica = world.replica(network, device)

    def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
        logits = forward(replica, settings, images)
        yield F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing), logits

    optimise(network, objective, data, settings, identity, checkpoint, progress, replica)
    recalibrate(network, calibration_batches(data, BATCH_NORM_IMAGES, BATCH_NORM_BATCH, device))
    validation = evaluate_network(network, data.validation, data, device=settings.device)
    test = evaluate_network(network, data.test, data, device=settings.device)
    return validation, test


def scratch_accuracies(
    data: str,
    settings: TrainingSettings,
    validation: tuple[float, int],
    test: tuple[float, int],
    finalists: int = 1,
) -> tuple[Accuracy, Accuracy]:
    """The figures of a network trained from scratch, with how they were obtained.

    Args:
        data: spec of what it was trained on.
        settings: how.
        validation, test: share of the split's images classified rightly, and how many there are.
        finalists: networks that were ranked by the validation split.
    """
    how = f"trained from scratch on {data}, {settings.epochs:g} epochs"
    ranked = how
    if finalists > 1:
        ranked += f"; the images that {finalists} finalists were ranked by"
    return (
        Accuracy(validation[0], "validation", ranked, validation[1]),
        Accuracy(test[0], "test", how, test[1]),
    )


def load_network(
    backbone: Backbone, operators: Sequence[str], weights: Path, gate: str = GATES[0]
) -> Network:
    """A network with the weights that `train_architecture` saved, in evaluation mode.

    Raises:
        OtherWeights: the file's weights are another network's.
        BadRequest: the architecture does not fit the backbone, or there is no such file.
        HurricaneError: the file is damaged.
    """
    if not weights.is_file():
        raise BadRequest(f"weights file {weights} does not exist")
    saved = read_saved(weights, advice="name another with --weights, or train again")
    network = Network(backbone, operators, gate)
    try:
        # Operators of different names can have parameters of the same shapes.
        same = [saved.get("operators", list(operators)), saved.get("gate", gate)]
        if same != [list(operators), gate]:
            raise ValueError("other operators")
        network.load_state_dict(saved["model"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise OtherWeights(
            f"the weights in {weights} are another network's; name those that training left for "
            "this one with --weights"
        ) from error
    return network.eval()
