"""Artefacts: what a target's runtime loads, made from the canonical ONNX graph.

One module in this folder for each format::

    FORMAT: str                             # as targets list it
    SUFFIX: str                             # of file names
    PRECISIONS: tuple[str, ...] | None      # that it can be made with; None: any, by the target
    CALIBRATED: tuple[str, ...]             # those of them that need calibration data
    SOURCES: tuple[str, ...]                # files and folders of `ops` that it is made by
    EXTRA: str                              # of this distribution, that brings what is needed
    def packages(precision: str) -> tuple[str, ...]    # distributions that make it
    def convert(model: bytes, precision: str, samples: np.ndarray | None) -> bytes
    def fallback(precision: str) -> tuple[str, ...]    # distributions that convert what `convert`
                                                       # refuses; the first names the extra
    def convert_otherwise(model: CanonicalGraph, samples: np.ndarray | None) -> bytes    # by these
    def edges(content: bytes) -> Edges      # how its inputs and outputs are encoded
    def annotate(content: bytes, key: str, text: str) -> bytes    # adds a text that runtimes skip

Making an artefact is a function of the graph, the format, the precision and the calibration data.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx

from ..calibration import CALIBRATION_SAMPLES, random_samples
from ..edges import Edges
from ..errors import BadRequest, HurricaneError, UnsupportedNode
from ..export import CanonicalGraph, sha256

RANDOM_SOURCE = f"{CALIBRATION_SAMPLES} random samples"
"""What is said of calibration data where nobody gives images."""


@dataclass(frozen=True)
class Recipe:
    """What a target needs of its artefacts.

    Attributes:
        format: ``onnx``, ``onnx-qdq``, ``tflite``, …
        precision: of the target; ``fp32``, ``fp16`` or ``int8``.
    """

    format: str
    precision: str

    @property
    def calibrated(self) -> bool:
        """Whether making it takes calibration data, and time."""
        return self.precision in _modules()[self.format].CALIBRATED

    @functools.cached_property
    def converter(self) -> str:
        """What makes it, with versions; empty for the canonical graph itself.

        Raises:
            HurricaneError: some of that is not installed.
        """
        module = _modules()[self.format]
        try:
            return _versions(module.packages(self.precision))
        except importlib.metadata.PackageNotFoundError as error:
            raise HurricaneError(
                f"making artefacts of the format {self.format} needs {error.name}, which is not "
                f"installed here; run: pip install 'hurricane-nas[{module.EXTRA}]'"
            ) from error

    @functools.cached_property
    def fallback_converter(self) -> str:
        """What makes it of graphs that the converter refuses; empty where that is not installed."""
        packages = _modules()[self.format].fallback(self.precision)
        try:
            return f"{self.converter} + {_versions(packages)}" if packages else ""
        except importlib.metadata.PackageNotFoundError:
            return ""


@dataclass(frozen=True, eq=False)
class Samples:
    """Calibration data.

    Attributes:
        values: float32 [samples, channels, height, width].
        source: where they come from, as a table's column ``calibration`` says it.
    """

    values: np.ndarray
    source: str

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the values."""
        return hashlib.sha256(self.values.tobytes()).hexdigest()


@dataclass(frozen=True)
class ArtifactInfo:
    """What is known of an artefact beside its bytes.

    Attributes:
        graph_sha256: digest of the ONNX graph that it was made of.
        artifact_sha256: digest of the artefact.
        converter: what made it, with versions; empty where it is the graph itself.
        calibration: source of the calibration data; empty where there was none.
    """

    graph_sha256: str
    artifact_sha256: str
    converter: str = ""
    calibration: str = ""


@dataclass(frozen=True)
class Artifact:
    """An artefact's bytes, and what is known of it."""

    content: bytes
    info: ArtifactInfo


def choose_recipe(formats: Sequence[str], precision: str) -> Recipe:
    """The first of a target's formats that can be made here with its precision.

    Raises:
        BadRequest: none can.
    """
    for format in formats:
        module = _modules().get(format)
        if module is not None and (module.PRECISIONS is None or precision in module.PRECISIONS):
            return Recipe(format, precision)
    known = ", ".join(
        f"{name} ({', '.join(module.PRECISIONS or ('any precision',))})"
        for name, module in _modules().items()
    )
    raise BadRequest(
        f"no artefact of {precision} can be made as {' or '.join(formats) or 'nothing'}; "
        f"this version makes {known}"
    )


def formats() -> tuple[str, ...]:
    """The formats that can be made."""
    return tuple(_modules())


def precisions(format: str) -> tuple[str, ...]:
    """What a format stores; where a runtime lowers the precision itself, that is fp32."""
    return _modules()[format].PRECISIONS or ("fp32",)


def formats_of(suffix: str) -> tuple[str, ...]:
    """The formats whose files have a suffix, such as ``.tflite``."""
    return tuple(name for name, module in _modules().items() if suffix == module.SUFFIX)


def suffix_of(format: str) -> str:
    """The suffix of a format's files."""
    return _modules()[format].SUFFIX


def prepare(model: bytes, recipe: Recipe, samples: Samples | None = None) -> Artifact:
    """Makes an artefact.

    Args:
        model: the canonical ONNX graph.
        recipe: what to make.
        samples: calibration data, for recipes that need some; None: seeded random values.

    Raises:
        UnsupportedNode: the format cannot express a node of the graph.
        HurricaneError: a converter failed, or is not installed.
    """
    converter = recipe.converter  # first: it says what is not installed
    values = None
    if recipe.calibrated:
        values = _random_samples(model) if samples is None else samples.values
    try:
        content = _modules()[recipe.format].convert(model, recipe.precision, values)
    except UnsupportedNode as error:
        content = _by_fallback(model, recipe, values, error)
        converter = recipe.fallback_converter
    return Artifact(content, info_of(model, content, recipe, samples, converter))


def _by_fallback(
    model: bytes, recipe: Recipe, values: np.ndarray | None, refusal: UnsupportedNode
) -> bytes:
    """The artefact of a graph that the format's own converter refused.

    Raises:
        UnsupportedNode: the refusal, with what the fallback needs or says.
    """
    module = _modules()[recipe.format]
    packages = module.fallback(recipe.precision)
    if not packages or not isinstance(model, CanonicalGraph):
        raise refusal
    if not recipe.fallback_converter:
        raise refusal.with_more(
            f"{packages[0]} may: pip install 'hurricane-nas[{packages[0]}]'"
        ) from refusal
    try:
        return module.convert_otherwise(model, values)
    except BadRequest:
        raise
    except HurricaneError as error:
        raise refusal.with_more(str(error)) from error


def info_of(
    model: bytes, content: bytes, recipe: Recipe, samples: Samples | None, converter: str
) -> ArtifactInfo:
    """What is known of an artefact that a converter made of a graph with these samples."""
    source = RANDOM_SOURCE if samples is None else samples.source
    return ArtifactInfo(
        sha256(model),
        sha256(content),
        converter,
        source if recipe.calibrated else "",
    )


def _random_samples(model: bytes) -> np.ndarray:
    """Calibration data where nobody gives images: seeded random values at the graph's input.

    Raises:
        BadRequest: the graph has no input of fixed size [1, channels, height, width].
    """
    (value, *_) = onnx.load_from_string(model).graph.input
    shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    if len(shape) != 4 or not all(size > 0 for size in shape):
        raise BadRequest(f"the graph's input {value.name!r} has no fixed size [1, C, H, W]")
    return random_samples(shape[1:])


def edges(content: bytes, format: str) -> Edges:
    """How an artefact's inputs and outputs are encoded."""
    return _modules()[format].edges(content)


def annotate(content: bytes, format: str, key: str, text: str) -> bytes:
    """The artefact with a text inside that runtimes carry and do not read; equal request, equal
    bytes."""
    return _modules()[format].annotate(content, key, text)


@functools.cache
def source_sha256(format: str) -> str:
    """Digest of our own source files that a format is made by."""
    module, ops = _modules()[format], Path(__file__).parent.parent
    paths = [ops / "calibration.py", *(ops / name for name in module.SOURCES)]
    files = [file for path in paths for file in ([path] if path.is_file() else path.glob("*.py"))]
    digest = hashlib.sha256(Path(module.__file__ or "").read_bytes())
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _versions(packages: Sequence[str]) -> str:
    return " + ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


@functools.cache
def _modules() -> Mapping[str, ModuleType]:
    found = [
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
    ]
    return {module.FORMAT: module for module in found if hasattr(module, "FORMAT")}
