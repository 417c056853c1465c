"""Files that Qualcomm's tools load, made of an artefact: a DLC, or a binary for one chip."""

from __future__ import annotations

from ..ops.artifacts import Artifact, Recipe, snpe_file
from ..ops.errors import BadRequest
from ..ops.qnn import compile_context
from ..ops.socs import soc_of

DLC, CONTEXT = "dlc", "qnn-context"
"""``dlc`` for SNPE; ``qnn-context``: an ONNX graph of one node with QNN's binary, which
onnxruntime's QNN provider loads without compiling."""

_RECIPES = {
    DLC: {"int8": Recipe("snpe", "int8")},
    CONTEXT: {"int8": Recipe("onnx-qdq", "int8"), "fp16": Recipe("onnx", "fp16")},
}


def base_recipe(form: str, precision: str, soc: str) -> Recipe:
    """The artefact that a file is made of.

    Raises:
        BadRequest: there is no such file in that precision, or for that chip.
    """
    if form == CONTEXT and not soc:
        raise BadRequest(f"{CONTEXT} is for one chip; name it with --soc, such as --soc SM8650")
    if form != CONTEXT and soc:
        raise BadRequest(f"--soc is for --format {CONTEXT}; {form} is of no chip")
    recipe = _RECIPES[form].get(precision)
    if recipe is None:
        there = " or ".join(_RECIPES[form])
        raise BadRequest(f"{form} cannot be {precision}: it has {there}; choose with --precision")
    if soc:
        soc_of(soc, precision)
    return recipe


def pack(artifact: Artifact, form: str, precision: str, soc: str) -> bytes:
    """The file.

    Raises:
        BadRequest: QNN does not take the network, or compiled for another chip.
        HurricaneError: QNN failed, or is not installed.
    """
    if form == DLC:
        return snpe_file.dlc_of(artifact.content)
    return compile_context(artifact.content, soc_of(soc, precision))
