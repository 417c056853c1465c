"""What litert-quantizer leaves to its caller: ranges too narrow to load, biases beyond int32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .flatbuffer import schema

_LARGEST_RATIO = 128
"""Of an input's step to the output's; XNNPACK takes less than 256."""

_SMALLEST_ADDEND = 1 / 512
"""Range of an addend over the sum's; XNNPACK takes steps down to 1/1024."""

_LARGEST_BIAS = 1 << 30
"""Of an int32 bias; the other half is for the sum of products that is added to it."""

_KINDS = schema.BuiltinOperator
_CHANNEL_AXES = {_KINDS.CONV_2D: 0, _KINDS.DEPTHWISE_CONV_2D: 3, _KINDS.FULLY_CONNECTED: 0}
"""The axis of the output channels in the weights of each operator that has weights."""

_FLOAT_KINDS = (_KINDS.EXP, _KINDS.LOG)
"""What has no int8 kernels, and spans magnitudes."""


def left_in_fp32(model: Any) -> Iterator[str]:
    """What must not be int8 beside an exponential or a logarithm, which have no int8 kernels.

    Their range spans magnitudes, and one step of it hides all but the largest values.

    Returns:
        Names of the outputs of operators that read an exponential or give a logarithm its input.
    """
    unsafe = {
        index
        for code, operator in _operators(model)
        if code in _FLOAT_KINDS
        for index in (operator.outputs if code == _KINDS.EXP else operator.inputs)
    }
    for _, operator in _operators(model):
        if unsafe & {*operator.inputs, *operator.outputs}:
            yield _name(model, operator.outputs[0])


def widen_ranges(model: Any, ranges: Mapping[str, Any]) -> None:
    """Widens ranges that are too narrow for their operator.

    The range of a ReLU that let nothing through in calibration is empty, for example. XNNPACK
    refuses a graph whose steps differ too much, and ai-edge-litert 2.3.0 then ends the process.

    Args:
        model: the fp32 model.
        ranges: `min` and `max` of each computed tensor by its name; changed in place.
    """

    def span(index: int) -> float:
        """Width of a tensor's range, 0 included."""
        values = _stored(model, index, np.float32)
        if values is None:
            known = ranges[_name(model, index)]
            values = np.array([known["min"].min(), known["max"].max()])
        return float(max(values.max(), 0) - min(values.min(), 0))

    def widen(index: int, smallest: float) -> None:
        missing = smallest - span(index)
        if missing > 0 and _name(model, index) in ranges:
            known = ranges[_name(model, index)]
            known["max"] = np.maximum(known["max"], 0) + np.float32(missing)

    def is_known(index: int) -> bool:
        return _stored(model, index, np.float32) is not None or _name(model, index) in ranges

    for code, operator in _operators(model):
        inputs, outputs = (
            [i for i in indices if i >= 0 and _is_float(model, i)]
            for indices in (operator.inputs, operator.outputs)
        )
        if not inputs or not outputs or not all(map(is_known, (*inputs, *outputs))):
            continue  # it is not quantised
        smallest = _smallest_span(code, [span(index) for index in inputs])
        for index in outputs:
            widen(index, smallest)
        if code == _KINDS.ADD:
            widest = max(span(index) for index in (*inputs, *outputs))
            for index in inputs:
                widen(index, widest * _SMALLEST_ADDEND)


def _smallest_span(code: int, spans: list[float]) -> float:
    """The narrowest range that an operator's output needs, from those of its inputs.

    Where inputs are multiplied, results are multiples of the product of their steps (range / 255,
    of weights range / 127 at most): an output of a finer step holds nothing more.
    """
    if code in _CHANNEL_AXES:
        return spans[0] * spans[1] / 127
    if code == _KINDS.MUL:
        return spans[0] * spans[1] / 255
    return max(spans) / _LARGEST_RATIO


def restore_biases(quantised: Any, model: Any) -> None:
    """Coarsens the weights of channels whose bias does not fit into int32, and sets it anew.

    The step of a bias is that of the input times that of its channel's weights. Where training has
    driven a channel's weights to almost nothing, litert-quantizer cuts the bias off.

    Args:
        quantised: the int8 model; changed in place.
        model: the fp32 model that it was made from, with tensors of the same names.
    """
    biases = {
        _name(model, operator.inputs[2]): _stored(model, operator.inputs[2], np.float32)
        for code, operator in _operators(model)
        if code in _CHANNEL_AXES and _has_bias(operator)
    }
    for code, operator in _operators(quantised):
        if code in _CHANNEL_AXES and _has_bias(operator) and _is_int8(quantised, operator):
            exact = biases[_name(quantised, operator.inputs[2])]
            assert exact is not None
            _restore_bias(quantised, operator, _CHANNEL_AXES[code], exact)


def _restore_bias(quantised: Any, operator: Any, axis: int, exact: np.ndarray) -> None:
    """Makes one operator's bias fit; `exact` is what it should be, `axis` the channels'."""
    source, kernel, bias = (quantised.subgraphs[0].tensors[index] for index in operator.inputs)
    step, scale = source.quantization.scale[0], kernel.quantization.scale
    coarser = np.maximum(scale, np.abs(exact) / step / _LARGEST_BIAS).astype(np.float32)
    weights = _stored(quantised, operator.inputs[1], np.int8)
    if weights is None or np.array_equal(coarser, scale):
        return
    shape = [1] * len(kernel.shape)
    shape[axis] = -1
    shrunk = np.round(weights.reshape(kernel.shape) * (scale / coarser).reshape(shape))
    kernel.quantization.scale, bias.quantization.scale = coarser, coarser * step
    _store(quantised, kernel, shrunk.astype(np.int8))
    _store(quantised, bias, np.round(exact / (coarser.astype(np.float64) * step)).astype(np.int32))


def _operators(model: Any) -> Iterator[tuple[int, Any]]:
    """Code and operator, in order."""
    for operator in model.subgraphs[0].operators:
        yield model.operatorCodes[operator.opcodeIndex].builtinCode, operator


def _name(model: Any, index: int) -> str:
    return model.subgraphs[0].tensors[index].name.decode()


def _has_bias(operator: Any) -> bool:
    return len(operator.inputs) > 2 and operator.inputs[2] >= 0


def _is_int8(model: Any, operator: Any) -> bool:
    """Whether both what an operator reads and its weights are int8."""
    types = {model.subgraphs[0].tensors[index].type for index in operator.inputs[:2]}
    return types == {schema.TensorType.INT8}


def _is_float(model: Any, index: int) -> bool:
    return model.subgraphs[0].tensors[index].type == schema.TensorType.FLOAT32


def _stored(model: Any, index: int, dtype: Any) -> np.ndarray | None:
    """The values of a tensor that is stored, flat; None for a computed one."""
    data = model.buffers[model.subgraphs[0].tensors[index].buffer].data
    return None if data is None else np.frombuffer(data, dtype)


def _store(model: Any, tensor: Any, values: np.ndarray) -> None:
    model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
