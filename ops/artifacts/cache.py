"""Artefacts that take time to make, kept on the disk and made on all cores.

A file's name is a digest of all that it depends on: the graph, the format, the precision, the
calibration data, the converters' versions and our own source files.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..cached_files import cache_folder, checked, prune, read_checked
from ..errors import UnsupportedNode
from ..export import sha256
from ..graph import write_cached
from ..processes import on_all_cores
from . import Artifact, Recipe, Samples, info_of, prepare, source_sha256

MAX_BYTES = 4 * 2**30
"""Of all files; the least recently used ones go first. A table's artefacts take some 0.2 GB."""

_WORTH_A_POOL = 4
"""Below this many artefacts, starting processes costs more than it saves."""

_MAKING = threading.Lock()  # quantisers redirect the process's stderr

Make = Callable[[], bytes]
"""Gives an ONNX graph; it can be pickled."""


def cached(make: Make, recipe: Recipe, samples: Samples | None = None) -> Artifact:
    """An artefact from the cache, or made now and put there.

    Raises:
        UnsupportedNode: the format cannot express a node of the graph.
        HurricaneError: a converter failed or is not installed, or the cache cannot be written.
    """
    model = make()
    digest = sha256(model)
    for converter in _slow_converters(recipe):
        content = read_checked(_file(digest, recipe, samples, converter))
        if content is not None:
            return Artifact(content, info_of(model, content, recipe, samples, converter))
    with _MAKING:
        artifact = prepare(model, recipe, samples)
    _keep(artifact, recipe, samples)
    return artifact


def fill(
    makes: Iterable[Make],
    recipe: Recipe,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Makes what the cache lacks, on all cores, with random calibration data.

    Graphs that a format cannot express are left out: `cached` says so of each.

    Args:
        makes: of the graphs.
        recipe: of all of them.
        on_progress: called with (done, total).

    Raises:
        HurricaneError: a converter failed or is not installed, the cache cannot be written, or a
            process was killed.
    """
    if not recipe.calibrated:
        return
    missing = [make for make in makes if not _is_kept(sha256(make()), recipe)]
    workers = min(os.cpu_count() or 1, len(missing))
    work = functools.partial(_prepared, recipe=recipe)
    if len(missing) >= _WORTH_A_POOL and workers > 1:
        preload = (__name__, "hurricane.ops.tflite")
        artifacts = on_all_cores(work, missing, workers, preload, "makes artefacts", 2)
    else:
        artifacts = map(work, missing)
    for done, artifact in enumerate(artifacts, start=1):
        if artifact is not None:
            _keep(artifact, recipe, None)
        if on_progress:
            on_progress(done, len(missing))
    if missing:
        prune(cache_folder() / "artifacts", MAX_BYTES)


def _prepared(make: Make, recipe: Recipe) -> Artifact | None:
    """An artefact; None where the format cannot express the graph."""
    try:
        return prepare(make(), recipe)
    except UnsupportedNode:
        return None


def _slow_converters(recipe: Recipe) -> Iterator[str]:
    """The converters whose artefacts are kept; the others are as fast as reading a file."""
    if recipe.calibrated:
        yield recipe.converter
    if recipe.fallback_converter:
        yield recipe.fallback_converter


def _is_kept(graph_sha256: str, recipe: Recipe) -> bool:
    """Whether there is a file of a graph with random calibration data."""
    return any(_file(graph_sha256, recipe, None, c).is_file() for c in _slow_converters(recipe))


def _keep(artifact: Artifact, recipe: Recipe, samples: Samples | None) -> None:
    """Writes an artefact's file, where it took time to make."""
    info = artifact.info
    if info.converter in _slow_converters(recipe):
        _write(_file(info.graph_sha256, recipe, samples, info.converter), artifact.content)


def _file(graph_sha256: str, recipe: Recipe, samples: Samples | None, converter: str) -> Path:
    parts = (
        graph_sha256,
        recipe.format,
        recipe.precision,
        "random" if samples is None else samples.sha256,
        converter,
        source_sha256(recipe.format),
    )
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()
    return cache_folder() / "artifacts" / digest[:2] / digest


def _write(file: Path, content: bytes) -> None:
    write_cached(file, checked(content), "artefacts")
