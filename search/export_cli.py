"""The command ``hurricane export``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import emit, json_option
from ..ops.errors import BadRequest
from .cli import named_agent, one_agent
from .progress import progress_bars

if TYPE_CHECKING:
    from ..lookup_tables.architecture import Architecture, ArtifactAccuracy, TrainingData
    from ..ops.artifacts import Artifact, Recipe, Samples
    from ..ops.backbone import Backbone
    from .data import ImageData

FORMATS = ("onnx", "onnx-qdq", "snpe", "tflite")
CHIP_FORMATS = ("dlc", "qnn-context")
PRECISIONS = ("fp32", "fp16", "int8")
"""What can be chosen; here so that --help does not wait for what writes them."""

_HELP = """Writes an architecture as the file that a device loads: ONNX, TFLite, DLC or QNN's.

The output's name gives the format: .tflite, .dlc, or .onnx, which is onnx-qdq for int8. For a
trained network a second file, with .json after its name, has what an application needs:
preprocessing and class names.

Without trained weights of this very network, random ones of a fixed seed are written, which is
enough to measure latency.

\b
Examples:
  hurricane export runs/mine/architecture.json -o model.tflite
  hurricane export runs/mine/architecture.json -o model.onnx --precision int8
  hurricane export runs/mine/architecture.json -o model.tflite --precision int8 \\
      --test --target cpu-litert-int8
  hurricane export runs/mine/architecture.json -o model.dlc --precision int8
  hurricane export runs/mine/architecture.json -o model.onnx --precision int8 \\
      --format qnn-context --soc SM8650
"""


@click.command("export", help=_HELP)
@click.argument("architecture", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice((*FORMATS, *CHIP_FORMATS)),
    help="Format [from the output's name].",
)
@click.option("--soc", default="", metavar="NAME", help="Chip that a qnn-context is compiled for.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Precision [that of the table's target; fp32 without a table].",
)
@click.option(
    "--calibration",
    metavar="SPEC",
    help="Data whose training images give the ranges for int8 [what it was trained on].",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Trained weights [weights.pt beside the architecture].",
)
@click.option("--data", metavar="SPEC", help="Where the training data is now, if it was moved.")
@click.option(
    "--test",
    is_flag=True,
    help="Measure the file's accuracy on the test split, in the target's runtime.",
)
@click.option("--target", metavar="NAME", help="Target for --test [the table's].")
@one_agent
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.",
)
@json_option
def export_command(
    architecture: Path,
    form: str | None,
    soc: str,
    precision: str | None,
    calibration: str | None,
    weights: Path | None,
    data: str | None,
    test: bool,
    target: str | None,
    output: Path,
    as_json: bool,
    **options: Any,
) -> None:
    from ..lookup_tables.architecture import Accuracy, Architecture
    from ..ops.export import sha256
    from .deployment import Packed, make_artifact, training_data, write_artifact
    from .pipeline import export_trained
    from .retrain import OtherWeights, load_network

    loaded = Architecture.load(architecture)
    backbone = loaded.load_backbone()
    if form is None and output.suffix == ".dlc":
        form = "dlc"
    recipe = _recipe(loaded, form, precision, output, soc)
    if calibration is not None and not recipe.calibrated:
        raise BadRequest(f"--calibration is for int8, and this is {recipe.precision}")
    if (target or options["agent"]) and not test:
        raise BadRequest("--target and --agent say where to test; add --test")
    beside = architecture.parent / "weights.pt"
    source = weights or (beside if beside.exists() else None)
    network = None
    try:
        if source is not None:
            network = load_network(backbone, loaded.operators, source, loaded.gate)
    except OtherWeights:
        if weights is not None:
            raise
        click.echo(f"Note: {source} holds another network's weights; these are seeded", err=True)
        source = None
    trained_on = loaded.trained_on if source else None
    spec = (data or _training_spec(loaded, architecture.parent)) if source else None
    images = None
    if spec and (test or trained_on is None or (recipe.calibrated and not calibration)):
        images = _load(spec, backbone, trained_on)
        trained_on = trained_on or training_data(images)
    if test and images is None:
        raise BadRequest(
            "there is no accuracy without trained weights and their data; train the network with "
            "hurricane train, or name both with --weights and --data"
        )
    samples = _samples(recipe, backbone, images, trained_on, calibration)
    model = export_trained(loaded, backbone, source, network)
    artifact = make_artifact(model, recipe, backbone, trained_on, samples)
    packed = None
    if form in CHIP_FORMATS:
        from .chips import pack

        packed = Packed(form, soc, pack(artifact, form, recipe.precision, soc))
    described = write_artifact(output, artifact, recipe, backbone, trained_on, packed)
    content = packed.content if packed else artifact.content
    kind = f"{packed.form} for {soc}" if soc and packed else form or recipe.format
    result: dict[str, Any] = {
        "output": str(output),
        "description": str(described) if described else None,
        "format": packed.form if packed else recipe.format,
        "soc": soc or None,
        "precision": recipe.precision,
        "bytes": len(content),
        "sha256": sha256(content),
        "weights": str(source) if source else None,
        "converter": artifact.info.converter,
        "calibration": artifact.info.calibration,
    }
    origin = f"weights of {source}" if source else "seeded, untrained weights"
    if artifact.info.calibration:
        origin += f", calibrated with {artifact.info.calibration}"
    size = f"{recipe.precision} {kind}, {len(content):,} bytes"
    lines = [f"{output}: {size}, {origin}"]
    if test:
        from .evaluation import evaluate_network

        assert network is not None
        assert images is not None
        with progress_bars() as watch:
            found = _tested(loaded, target, recipe, artifact, images, options, watch, soc)
        fp32 = evaluate_network(network, images.test, images, device="cpu")
        result["test"] = {"fp32_accuracy": fp32, **found.to_dict()}
        lines.append(f"test accuracy: {found.value:.1%} ({found.how})")
        plain = Accuracy(fp32, "test", "fp32, in torch", found.images)
        lines.append(f"test accuracy: {plain.text}")
    emit(result, as_json, "\n".join(lines))


def _recipe(
    architecture: Architecture,
    form: str | None,
    precision: str | None,
    output: Path,
    soc: str = "",
) -> Recipe:
    """What to write: as asked, else by the table's target and the name of the file.

    Where nobody asks for a precision, and the format does not have that of the table's target, a
    format with one precision has that one: a runtime lowers that of ``onnx`` itself.
    """
    from ..lookup_tables.shipped import open_table
    from ..ops.artifacts import Recipe, formats_of, precisions

    asked = precision is not None
    if precision is None and architecture.table is not None:
        table = architecture.table
        try:
            precision = open_table(table.path).target(table.target).precision
        except BadRequest as error:
            raise BadRequest(f"{error}; without its table, add --precision") from error
    precision = precision or ("int8" if form in CHIP_FORMATS else "fp32")
    if form in CHIP_FORMATS or soc:
        from .chips import base_recipe

        return base_recipe(form or output.suffix, precision, soc)
    known = (form,) if form else formats_of(output.suffix)
    if not known:
        raise BadRequest(
            f"{output}: its name does not tell the format; end it in .onnx, .tflite or .dlc, "
            f"or add --format {'|'.join(FORMATS)}"
        )
    for name in known:
        if precision in precisions(name):
            return Recipe(name, precision)
    for name in () if asked else known:
        if len(precisions(name)) == 1:
            return Recipe(name, *precisions(name))
    there = "; ".join(f"{name} has {', '.join(precisions(name))}" for name in known)
    raise BadRequest(f"{output} cannot be {precision}: {there}; choose with --precision")


def _training_spec(architecture: Architecture, folder: Path) -> str | None:
    """The data that weights beside an architecture come from; None: not known."""
    from .rundir import read_config

    if architecture.trained_on is not None:
        return architecture.trained_on.spec
    if not (folder / "config.json").exists():
        return None
    spec = read_config(folder).get("data")  # of a run by an earlier version
    return spec if isinstance(spec, str) else None


def _load(spec: str, backbone: Backbone, trained_on: TrainingData | None) -> ImageData:
    """The data that a network was trained on, with the mean and deviation that it was trained with.

    Raises:
        BadRequest: it cannot be read, or has other classes.
    """
    from .data import load_data
    from .deployment import check_same_classes

    try:
        found = load_data(spec, backbone)
    except BadRequest as error:
        raise BadRequest(f"{error}; say with --data where the training data is") from error
    if trained_on is not None:
        check_same_classes(found, trained_on)
        return replace(found, mean=trained_on.mean, std=trained_on.std)
    return found


def _samples(
    recipe: Recipe,
    backbone: Backbone,
    images: ImageData | None,
    trained_on: TrainingData | None,
    calibration: str | None,
) -> Samples | None:
    """Calibration data: of the data named, else of what it was trained on; None: random values."""
    from .data import load_data
    from .deployment import calibration_samples

    if not recipe.calibrated:
        return None
    if calibration is not None:
        images = load_data(calibration, backbone)
    if images is not None:
        return calibration_samples(images, trained_on)
    click.echo(
        "Note: calibrated with random values, enough for latency and not for accuracy; "
        "name images with --calibration",
        err=True,
    )
    return None


def _tested(
    architecture: Architecture,
    target: str | None,
    recipe: Recipe,
    artifact: Artifact,
    data: ImageData,
    options: dict[str, Any],
    watch: Callable[[str, int, int], None],
    soc: str = "",
) -> ArtifactAccuracy:
    """Accuracy of an artefact on the target named, or on the table's."""
    from ..profiler.target import parse_target
    from .measuring import TargetMeasurer, artifact_accuracy, open_session

    agents, keys = named_agent(options)

    def made(wanted: Recipe) -> Artifact:
        if wanted.format != recipe.format:
            raise BadRequest(
                f"the target takes {wanted.format}, and this is {recipe.format}; "
                "name another with --target"
            )
        return artifact

    def count(done: int, total: int) -> None:
        watch("test images", done, total)

    if target is not None:
        request = parse_target(target, (f"soc={soc}",) if soc else ())
        with open_session(request, agents, keys, timed=False) as session:
            return artifact_accuracy(session, made(session.recipe), data, count)
    if architecture.table is None:
        raise BadRequest("there is no table that tells a target; name one with --target")
    measurer = TargetMeasurer.of_table(architecture.table, agents=agents, credentials=keys)
    return measurer.accuracy(made, data, count)
