"""A network as the file that a device loads, with what an application must know to use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lookup_tables.architecture import TrainingData
from ..ops.artifacts import (
    Artifact,
    Recipe,
    Samples,
    annotate,
    edges,
    precisions,
    prepare,
    suffix_of,
)
from ..ops.atomic import write_atomically
from ..ops.backbone import Backbone
from ..ops.edges import Edge
from ..ops.errors import BadRequest
from ..ops.export import sha256

if TYPE_CHECKING:
    from .data import ImageData

KEY = "hurricane"
"""Under which a description lies inside an artefact."""

FORMAT_VERSION = 1

CALIBRATION_IMAGES = 256
"""Training images for static quantisation: some hundred cover the ranges of activations."""


def training_data(data: ImageData) -> TrainingData:
    """What using a network needs of the data that it is trained on."""
    return TrainingData(data.spec, data.classes, data.mean, data.std)


def calibration_samples(data: ImageData, trained_on: TrainingData | None = None) -> Samples:
    """Calibration data: a class-balanced, fixed draw of training images.

    Args:
        data: what to draw from; its validation and test splits play no part.
        trained_on: gives mean and deviation; None: the data itself.
    """
    if trained_on is not None:
        data = replace(data, mean=trained_on.mean, std=trained_on.std)
    drawn = data.train.balanced(CALIBRATION_IMAGES)
    values = data.normalise(drawn.images[:]).numpy()
    return Samples(values, f"{len(drawn)} training images of {data.spec}")


def make_artifact(
    model: bytes,
    recipe: Recipe,
    backbone: Backbone,
    trained_on: TrainingData | None,
    samples: Samples | None = None,
) -> Artifact:
    """An artefact with its description inside.

    Args:
        model: the ONNX graph of a network.
        recipe: format and precision.
        backbone: of the network.
        trained_on: data of its weights; None: they are not trained, and there is no description.
        samples: calibration data; None: random values.

    Raises:
        HurricaneError: a converter failed, or is not installed.
    """
    made = prepare(model, recipe, samples)
    if trained_on is None:
        return made
    text = description(made.content, recipe, backbone, trained_on)
    content = annotate(made.content, recipe.format, KEY, text)
    return Artifact(content, replace(made.info, artifact_sha256=sha256(content)))


@dataclass(frozen=True)
class Packed:
    """A file that is made of an artefact, and has its inputs and outputs.

    Attributes:
        form: its format.
        soc: the chip that it is for; empty: any.
        content: of the file.
    """

    form: str
    soc: str
    content: bytes


def description(
    content: bytes,
    recipe: Recipe,
    backbone: Backbone,
    trained_on: TrainingData,
    packed: Packed | None = None,
) -> str:
    """What an application must know of an artefact, as JSON (`docs/deploying.md`).

    Args:
        content: the artefact.
        recipe: of it.
        backbone: of the network.
        trained_on: data of its weights.
        packed: the file that it was packed into.
    """
    found = edges(content, recipe.format)
    if len(found.inputs) != 1 or len(found.outputs) != 1:
        raise BadRequest("only networks with one input and one output have a description")
    channels = backbone.input_channels
    stored = precisions(recipe.format)
    facts = {
        "format_version": FORMAT_VERSION,
        "format": packed.form if packed else recipe.format,
        "precision": recipe.precision if recipe.precision in stored else stored[0],
        "input": {
            **_edge(found.inputs[0]),
            "layout": "NHWC" if found.inputs[0].channels_last else "NCHW",
            "height": backbone.input_height,
            "width": backbone.input_width,
            "channels": "RGB" if channels == 3 else "grey",
        },
        "mean": list(trained_on.mean),
        "std": list(trained_on.std),
        "output": _edge(found.outputs[0]),
        "classes": list(trained_on.classes),
    }
    if packed and packed.soc:
        facts["soc"] = packed.soc
    return json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _edge(edge: Edge) -> dict[str, Any]:
    return {
        "name": edge.name,
        "type": edge.dtype,
        "scale": edge.scale or None,
        "zero_point": edge.zero_point if edge.scale else None,
    }


def write_artifact(
    path: Path,
    artifact: Artifact,
    recipe: Recipe,
    backbone: Backbone,
    trained_on: TrainingData | None,
    packed: Packed | None = None,
) -> Path | None:
    """Writes an artefact, or the file that it was packed into, and its description beside it.

    Returns:
        Where the description is; None where there is none.
    """
    write_atomically(path, packed.content if packed else artifact.content, make_folder=True)
    if trained_on is None:
        return None
    text = description(artifact.content, recipe, backbone, trained_on, packed)
    beside = path.with_name(path.name + ".json")
    write_atomically(beside, text.encode(), make_folder=True)
    return beside


def check_same_classes(data: ImageData, trained_on: TrainingData) -> None:
    """Refuses data whose classes are not those that a network was trained on, in that order."""
    if data.classes != trained_on.classes:
        pairs: Sequence[tuple[str, str]] = list(zip(data.classes, trained_on.classes, strict=False))
        odd = next((a for a, b in pairs if a != b), "another number")
        raise BadRequest(
            f"{data.spec} has other classes than the network was trained on (such as {odd!r}); "
            f"name the data of {trained_on.spec} with --data"
        )


def file_name(recipe: Recipe) -> str:
    """The name of an artefact in a run's directory."""
    if recipe.format == "onnx":  # the exported graph itself
        return "model.onnx"
    return f"model-{recipe.precision}{suffix_of(recipe.format)}"
