"""Static int8 of a `.tflite` file, by litert-quantizer."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from ..calibration import check_samples
from ..errors import BadRequest, HurricaneError
from .flatbuffer import SIGNATURE, pack_model, schema, unpack_model
from .scales import left_in_fp32, restore_biases, widen_ranges

_STDERR = 2

_FP32_TYPES = {getattr(schema.TensorType, t) for t in ("FLOAT32", "INT32", "INT64", "BOOL")}
"""What tensors of an fp32 file have: values, shapes, and conditions."""


def quantise_tflite(tflite: bytes, samples: np.ndarray) -> bytes:
    """Quantises a file to static int8: weights by channel, inputs and outputs int8 as well.

    While it runs, what the process writes to stderr is held back, since litert-quantizer and the
    runtime write there; call it from one thread at a time.

    Args:
        tflite: an fp32 file of `write_tflite` or `convert_modules`, with one input and batch 1.
        samples: calibration data as ONNX takes it, [samples, channels, height, width].

    Returns:
        The int8 file's bytes, in the same layout as the fp32 one's. Equal request, equal bytes
        on one kind of CPU: ranges come from running the model.

    Raises:
        BadRequest: the file is no such file, or the samples do not fit its input.
        HurricaneError: litert-quantizer failed.
    """
    model = unpack_model(tflite)
    name, shape = _input_of(model)
    check_samples(samples, (shape[0], shape[-1], *shape[1:-1]))
    images = np.ascontiguousarray(np.moveaxis(samples, 1, -1), np.float32)
    with held_back() as messages:
        try:
            content = _quantise(tflite, model, [{name: image[np.newaxis]} for image in images])
        except ModuleNotFoundError:
            raise
        except Exception as error:  # a library's, of any kind
            messages.seek(0)
            said = [line for line in (str(error), *messages) if line.strip()]
            raise HurricaneError(f"litert-quantizer failed: {said[0].strip()}") from error
    quantised = unpack_model(content)
    restore_biases(quantised, model)
    return pack_model(quantised)


def _quantise(tflite: bytes, model: Any, feeds: list[dict[str, np.ndarray]]) -> bytes:
    from litert_quantizer import calibrator, quantizer, recipe, recipe_manager
    from litert_quantizer.utils import qsv_utils

    chosen = recipe.static_wi8_ai8()
    for name in left_in_fp32(model):
        chosen.append(
            {"regex": f"^{re.escape(name)};?$", "operation": "*", "algorithm_key": "no_quantize"}
        )
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(chosen)
    # The default, a moving average, keeps 95% of the first sample's range and clips the others'.
    # One thread: sums in another order could give other ranges.
    calibration = calibrator.Calibrator(
        tflite, num_threads=1, qsv_update_func=qsv_utils.min_max_update
    )
    calibration.calibrate({SIGNATURE: feeds}, manager)
    ranges = calibration.get_model_qsvs()
    widen_ranges(model, ranges)
    work = quantizer.Quantizer(tflite, chosen)
    result = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    assert result.quantized_model is not None
    return bytes(result.quantized_model)


def _input_of(model: Any) -> tuple[str, tuple[int, ...]]:
    """Name and shape [1, height, width, channels] of a model's one input."""
    signatures = {s.signatureKey: s for s in model.signatureDefs or []}
    signature = signatures.get(SIGNATURE.encode())
    if signature is None or len(signature.inputs) != 1:
        raise BadRequest(f"this .tflite file has no signature {SIGNATURE!r} with one input")
    types = {t.type for t in model.subgraphs[signature.subgraphIndex].tensors}
    if types - _FP32_TYPES:
        raise BadRequest("this .tflite file is no fp32 one; quantise what was written with fp32")
    tensor = model.subgraphs[signature.subgraphIndex].tensors[signature.inputs[0].tensorIndex]
    return signature.inputs[0].name.decode(), tuple(int(size) for size in tensor.shape)


@contextlib.contextmanager
def held_back() -> Iterator[IO[str]]:
    """Takes what is written meanwhile into a file: to stderr, and by Python to stdout."""
    with tempfile.TemporaryFile("w+") as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = os.dup(_STDERR)
        os.dup2(log.fileno(), _STDERR)
        try:
            with contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
                yield log
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
