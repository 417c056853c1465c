"""The shapes that TFLite's operators make of those they get, for all operators that are accepted.

Runtimes compute shapes anew and believe no declaration, so a file must declare what they compute:
else a tensor that is declared as small is large when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operand:
    """A tensor that an operator reads.

    Args:
        shape: its dimensions.
        values: of a constant that decides on shapes; else None.
    """

    shape: Shape
    values: Optional[Sequence[Any]] = None


@dataclass(frozen=True)
class Node:
    """An operator with what its shapes follow from.

    Args:
        options: the fields of its options; empty where it has none.
        inputs: None stands for one that is left out.
        outputs: how many.
    """

    options: dict[str, Any]
    inputs: Sequence[Optional[Operand]]
    outputs: int

    def shape(self, index: int) -> Shape:
        """The shape of an input that is there."""
        return self._input(index).shape

    def values(self, index: int) -> list[Any]:
        """The numbers of an input that is a constant."""
        values = self._input(index).values
        _need(values is not None, f"input {index} is no constant")
        return list(values or ())

    def _input(self, index: int) -> Operand:
        found = self.inputs[index]
        if found is None:
            raise ValueError(f"input {index} is left out")
        return found


def shapes_of(name: str, node: Node) -> list[Shape]:
    """The shapes of an operator's outputs.

    Raises:
        ValueError: its inputs and options do not fit together; says why.
    """
    try:
        shapes = _RULES[name](node)
    except IndexError:
        raise ValueError("its inputs have too few dimensions") from None
    if any(size < 1 for shape in shapes for size in shape):
        raise ValueError("an output would have no elements")
    return shapes


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _axis(axis: int, rank: int) -> int:
    _need(-rank <= axis < rank, f"there is no axis {axis} of {rank}")
    return axis % rank


def _broadcast(*shapes: Shape) -> Shape:
    rank = max(len(shape) for shape in shapes)
    result = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes)):
        wide = {size for size in sizes if size != 1}
        _need(len(wide) <= 1, "its inputs have unequal sizes")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def _same(node: Node) -> list[Shape]:
    return [node.shape(0)]


def _elementwise(node: Node) -> list[Shape]:
    return [_broadcast(*(node.shape(i) for i in range(len(node.inputs))))]


def _add_n(node: Node) -> list[Shape]:
    for index in range(len(node.inputs)):
        _need(node.shape(index) == node.shape(0), "its inputs have unequal sizes")
    return [node.shape(0)]


def _prelu(node: Node) -> list[Shape]:
    _need(_broadcast(node.shape(0), node.shape(1)) == node.shape(0), "its slopes are too many")
    return [node.shape(0)]


def _select(node: Node) -> list[Shape]:
    condition, chosen, other = (node.shape(i) for i in range(3))
    _need(chosen == other, "its inputs have unequal sizes")
    _need(condition in ((), chosen, chosen[:1]), "its condition does not fit")
    return [chosen]


# --- Windows


def _windows(node: Node, sizes: Shape, kernel: Shape, axes: str) -> Shape:
    """How often a window fits, for each axis.

    Args:
        sizes, kernel: of the axes.
        axes: their letters in the names of options, such as ``hw``.
    """
    found = []
    for size, width, letter in zip(sizes, kernel, axes):
        stride = node.options[f"stride_{letter}"]
        reach = (width - 1) * node.options.get(f"dilation_{letter}_factor", 1) + 1
        room = size if node.options["padding"] == 0 else size - reach + 1
        found.append(-(-room // stride))
    return tuple(found)


def _bias(node: Node, index: int, channels: int) -> None:
    if len(node.inputs) > index and node.inputs[index] is not None:
        fits = math.prod(node.shape(index)) == channels
        _need(fits, "its bias does not have a number for each channel")


def _rank(node: Node, index: int, rank: int) -> Shape:
    shape = node.shape(index)
    _need(len(shape) == rank, f"input {index} does not have {rank} dimensions")
    return shape


def _conv_2d(node: Node) -> list[Shape]:
    batch, *sizes, channels = _rank(node, 0, 4)
    filters, *kernel, depth = _rank(node, 1, 4)
    _need(channels % depth == 0, "its weights do not fit the channels of its input")
    _need(filters % (channels // depth) == 0, "its weights do not fit its groups")
    _bias(node, 2, filters)
    return [(batch, *_windows(node, tuple(sizes), tuple(kernel), "hw"), filters)]


def _conv_3d(node: Node) -> list[Shape]:
    batch, *sizes, channels = _rank(node, 0, 5)
    *kernel, depth, filters = _rank(node, 1, 5)
    _need(channels == depth, "its weights do not fit the channels of its input")
    _bias(node, 2, filters)
    return [(batch, *_windows(node, tuple(sizes), tuple(kernel), "dhw"), filters)]


def _depthwise(node: Node) -> list[Shape]:
    batch, *sizes, channels = _rank(node, 0, 4)
    one, *kernel, filters = _rank(node, 1, 4)
    multiplier = node.options["depth_multiplier"]
    _need(one == 1 and filters == channels * multiplier, "its weights do not fit its channels")
    _bias(node, 2, filters)
    return [(batch, *_windows(node, tuple(sizes), tuple(kernel), "hw"), filters)]


def _pool(node: Node) -> list[Shape]:
    batch, *sizes, channels = _rank(node, 0, 4)
    kernel = node.options["filter_height"], node.options["filter_width"]
    return [(batch, *_windows(node, tuple(sizes), kernel, "hw"), channels)]


def _transpose_conv(node: Node) -> list[Shape]:
    target = tuple(node.values(0))
    filters, *kernel, depth = _rank(node, 1, 4)
    batch, *sizes, channels = _rank(node, 2, 4)
    _need(depth == channels, "its weights do not fit the channels of its input")
    _need(len(target) == 4, "its output does not have 4 dimensions")
    _need((target[0], target[3]) == (batch, filters), "its output does not fit its weights")
    # The output is what a convolution would read to give the input.
    _need(min(target) > 0, "an output would have no elements")
    read = _windows(node, target[1:3], tuple(kernel), "hw")
    _need(read == tuple(sizes), "its output does not fit its input")
    _bias(node, 3, filters)
    return [target]


def _fully_connected(node: Node) -> list[Shape]:
    units, depth = _rank(node, 1, 2)
    shape = node.shape(0)
    elements = math.prod(shape)
    _need(elements % depth == 0, "its weights do not fit its input")
    _bias(node, 2, units)
    if node.options["keep_num_dims"]:
        _need(shape[-1] == depth, "its weights do not fit its input")
        return [(*shape[:-1], units)]
    return [(elements // depth, units)]


def _batch_matmul(node: Node) -> list[Shape]:
    left, right = node.shape(0), node.shape(1)
    _need(min(len(left), len(right)) >= 2, "its inputs have too few dimensions")
    rows, inner = left[:-3:-1] if node.options["adj_x"] else left[-2:]
    other, columns = right[:-3:-1] if node.options["adj_y"] else right[-2:]
    _need(inner == other, "its inputs do not fit each other")
    return [(*_broadcast(left[:-2], right[:-2]), rows, columns)]


# --- Taking apart and putting together


def _concatenation(node: Node) -> list[Shape]:
    first = node.shape(0)
    axis = _axis(node.options["axis"], len(first))
    total = 0
    for index in range(len(node.inputs)):
        shape = node.shape(index)
        fits = len(shape) == len(first)
        fits = fits and shape[:axis] + shape[axis + 1 :] == first[:axis] + first[axis + 1 :]
        _need(fits, "its inputs have unequal sizes")
        total += shape[axis]
    return [(*first[:axis], total, *first[axis + 1 :])]


def _pack(node: Node) -> list[Shape]:
    shape = _add_n(node)[0]
    _need(
        node.options["values_count"] == len(node.inputs), "values_count is not that of its inputs"
    )
    axis = _axis(node.options["axis"], len(shape) + 1)
    return [(*shape[:axis], len(node.inputs), *shape[axis:])]


def _unpack(node: Node) -> list[Shape]:
    shape = node.shape(0)
    axis = _axis(node.options["axis"], len(shape))
    fits = node.options["num"] == node.outputs == shape[axis]
    _need(fits, "num is not that of its outputs")
    return [shape[:axis] + shape[axis + 1 :]] * node.outputs


def _split(node: Node) -> list[Shape]:
    shape = node.shape(1)
    (axis,) = _numbers(node, 0, 1)
    axis = _axis(axis, len(shape))
    _need(node.options["num_splits"] == node.outputs, "num_splits is not that of its outputs")
    _need(shape[axis] % node.outputs == 0, "its parts are not equal")
    return [(*shape[:axis], shape[axis] // node.outputs, *shape[axis + 1 :])] * node.outputs


def _split_v(node: Node) -> list[Shape]:
    shape = node.shape(0)
    sizes = _numbers(node, 1, node.outputs)
    (axis,) = _numbers(node, 2, 1)
    axis = _axis(axis, len(shape))
    _need(node.options["num_splits"] == node.outputs, "num_splits is not that of its outputs")
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = shape[axis] - sum(sizes) - 1
    _need(sum(sizes) == shape[axis], "its parts are not the whole")
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _numbers(node: Node, index: int, count: int) -> list[int]:
    values = node.values(index)
    _need(len(values) == count, f"input {index} does not have {count} numbers")
    return values


def _gather(node: Node) -> list[Shape]:
    shape, indices = node.shape(0), node.shape(1)
    axis = _axis(node.options["axis"], len(shape))
    batch = node.options["batch_dims"]
    batch = batch + len(indices) if batch < 0 else batch
    _need(0 <= batch <= min(axis, len(indices)), "batch_dims does not fit")
    _need(shape[:batch] == indices[:batch], "its inputs do not fit each other")
    return [(*shape[:axis], *indices[batch:], *shape[axis + 1 :])]


def _gather_nd(node: Node) -> list[Shape]:
    shape, indices = node.shape(0), node.shape(1)
    _need(indices[-1] <= len(shape), "its indices have too many numbers")
    return [(*indices[:-1], *shape[indices[-1] :])]


def _embedding(node: Node) -> list[Shape]:
    _need(len(node.shape(1)) >= 2, "its table has too few dimensions")
    return [(*_rank(node, 0, 1), *node.shape(1)[1:])]


def _scatter_nd(node: Node) -> list[Shape]:
    indices, updates, target = node.shape(0), node.shape(1), tuple(node.values(2))
    _need(indices[-1] <= len(target), "its indices have too many numbers")
    _need(updates == (*indices[:-1], *target[indices[-1] :]), "its updates do not fit")
    return [target]


def _update_slice(node: Node) -> list[Shape]:
    shape, update = node.shape(0), node.shape(1)
    _need(len(shape) == len(update), "its inputs differ in their number of dimensions")
    _need(all(u <= s for u, s in zip(update, shape)), "its update is larger than its input")
    _need(node.shape(2) == (len(shape),), "its indices do not fit")
    return [shape]


def _one_hot(node: Node) -> list[Shape]:
    shape, axis = node.shape(0), node.options["axis"]
    (depth,) = _numbers(node, 1, 1)
    axis = _axis(axis, len(shape) + 1)
    return [(*shape[:axis], depth, *shape[axis:])]


def _top_k(node: Node) -> list[Shape]:
    (count,) = _numbers(node, 1, 1)
    _need(count <= node.shape(0)[-1], "it takes more than there are")
    return [(*node.shape(0)[:-1], count)] * 2


def _slice(node: Node) -> list[Shape]:
    shape = node.shape(0)
    begins, sizes = (_numbers(node, i, len(shape)) for i in (1, 2))
    result = []
    for size, begin, wanted in zip(shape, begins, sizes):
        wanted = size - begin if wanted == -1 else wanted
        _need(begin >= 0 and 0 < wanted <= size - begin, "it begins or ends outside")
        result.append(wanted)
    return [tuple(result)]


def _strided_slice(node: Node) -> list[Shape]:
    shape, options = node.shape(0), node.options
    begins = node.values(1)
    ends, steps = (_numbers(node, i, len(begins)) for i in (2, 3))
    _need(not (options["ellipsis_mask"] or options["offset"]), "ellipses are not accepted")
    result: list[int] = []
    axis = 0
    for bit in range(len(begins)):
        if options["new_axis_mask"] >> bit & 1:
            result.append(1)
            continue
        size, step = shape[axis], steps[bit]
        axis += 1
        _need(step != 0, "a step is 0")
        if options["shrink_axis_mask"] >> bit & 1:
            _need(-size <= begins[bit] < size and step == 1, "it begins outside")
            continue
        begin = None if options["begin_mask"] >> bit & 1 else begins[bit]
        end = None if options["end_mask"] >> bit & 1 else ends[bit]
        result.append(len(range(*slice(begin, end, step).indices(size))))
    return [(*result, *shape[axis:])]


# --- Shapes


def _reshape(node: Node) -> list[Shape]:
    is_input = len(node.inputs) > 1 and node.inputs[1] is not None
    target = node.values(1) if is_input else node.options["new_shape"]
    _need(target is not None, "it has no shape")
    target = list(target)
    elements = math.prod(node.shape(0))
    if target == [0]:
        target = []  # how old converters write a scalar
    if target.count(-1) == 1:
        rest = -math.prod(target)
        _need(rest > 0 and elements % rest == 0, "its shape does not fit its input")
        target[target.index(-1)] = elements // rest
    fits = min(target, default=1) > 0 and math.prod(target) == elements
    _need(fits, "its shape does not fit its input")
    return [tuple(target)]


def _squeeze(node: Node) -> list[Shape]:
    shape = node.shape(0)
    dims = node.options["squeeze_dims"]
    axes = {_axis(axis, len(shape)) for axis in (dims if dims is not None else ())}
    axes = axes or {axis for axis, size in enumerate(shape) if size == 1}
    _need(all(shape[axis] == 1 for axis in axes), "it removes a dimension that is not 1")
    return [tuple(size for axis, size in enumerate(shape) if axis not in axes)]


def _expand_dims(node: Node) -> list[Shape]:
    shape = node.shape(0)
    (axis,) = _numbers(node, 1, 1)
    axis = _axis(axis, len(shape) + 1)
    return [(*shape[:axis], 1, *shape[axis:])]


def _transpose(node: Node) -> list[Shape]:
    shape = node.shape(0)
    order = [_axis(axis, len(shape)) for axis in node.values(1)]
    _need(sorted(order) == list(range(len(shape))), "it is no permutation")
    return [tuple(shape[axis] for axis in order)]


def _reduce(node: Node) -> list[Shape]:
    shape = node.shape(0)
    axes = {_axis(axis, len(shape)) for axis in node.values(1)}
    if node.options["keep_dims"]:
        return [tuple(1 if axis in axes else size for axis, size in enumerate(shape))]
    return [tuple(size for axis, size in enumerate(shape) if axis not in axes)]


def _arg(node: Node) -> list[Shape]:
    shape = node.shape(0)
    (axis,) = _numbers(node, 1, 1)
    axis = _axis(axis, len(shape))
    return [shape[:axis] + shape[axis + 1 :]]


def _any_axis(node: Node) -> list[Shape]:
    for axis in node.values(1):
        _axis(axis, len(node.shape(0)))
    return [node.shape(0)]


def _reverse_sequence(node: Node) -> list[Shape]:
    shape = node.shape(0)
    batch, along = (_axis(node.options[name], len(shape)) for name in ("batch_dim", "seq_dim"))
    _need(batch != along, "seq_dim is batch_dim")
    _need(node.shape(1) == (shape[batch],), "its lengths do not fit")
    return [shape]


def _shape(node: Node) -> list[Shape]:
    return [(len(node.shape(0)),)]


def _scalar(node: Node) -> list[Shape]:
    return [()]


# --- Sizes that are numbers of the file


def _pad(node: Node) -> list[Shape]:
    shape = node.shape(0)
    _need(node.shape(1) == (len(shape), 2), "its paddings do not fit")
    pads = node.values(1)
    _need(min(pads) >= 0, "a padding is negative")
    return [tuple(size + b + e for size, b, e in zip(shape, pads[::2], pads[1::2]))]


def _mirror_pad(node: Node) -> list[Shape]:
    result = _pad(node)
    most = 1 if node.options["mode"] == 0 else 0  # REFLECT leaves the edge out
    for index, pad in enumerate(node.values(1)):
        _need(pad <= node.shape(0)[index // 2] - most, "a padding is larger than its input")
    return result


def _resize(node: Node) -> list[Shape]:
    batch, _, _, channels = _rank(node, 0, 4)
    return [(batch, *_numbers(node, 1, 2), channels)]


def _tile(node: Node) -> list[Shape]:
    shape = node.shape(0)
    return [tuple(s * n for s, n in zip(shape, _numbers(node, 1, len(shape))))]


def _broadcast_to(node: Node) -> list[Shape]:
    target = tuple(node.values(1))
    _need(_broadcast(node.shape(0), target) == target, "its shape does not fit its input")
    return [target]


def _fill(node: Node) -> list[Shape]:
    _need(math.prod(node.shape(1)) == 1, "its value is no single number")
    return [tuple(node.values(0))]


def _range(node: Node) -> list[Shape]:
    start, limit, step = (_numbers(node, index, 1)[0] for index in range(3))
    _need(type(start) is type(limit) is type(step), "its numbers are of several types")
    _need(step != 0, "a step is 0")
    if isinstance(step, int):
        return [(max(0, -((start - limit) // step)),)]
    count = (limit - start) / step
    _need(math.isfinite(count), "it is endless")
    return [(max(0, math.ceil(count)),)]


def _space_to_depth(node: Node) -> list[Shape]:
    batch, height, width, channels = _rank(node, 0, 4)
    block = node.options["block_size"]
    _need(height % block == width % block == 0, "its blocks do not fit its input")
    return [(batch, height // block, width // block, channels * block * block)]


def _depth_to_space(node: Node) -> list[Shape]:
    batch, height, width, channels = _rank(node, 0, 4)
    block = node.options["block_size"]
    _need(channels % (block * block) == 0, "its blocks do not fit its input")
    return [(batch, height * block, width * block, channels // (block * block))]


def _blocks(node: Node) -> tuple[Shape, list[int], list[int]]:
    """Shape, block sizes, and paddings or crops, of which there are two for each block."""
    shape, blocks = node.shape(0), node.values(1)
    _need(len(shape) in (3, 4) and len(blocks) == len(shape) - 2, "its blocks do not fit")
    _need(node.shape(2) == (len(blocks), 2), "its paddings do not fit")
    _need(min(blocks) > 0, "a block has no size")
    _need(min(node.values(2)) >= 0, "a padding is negative")
    return shape, blocks, node.values(2)


def _space_to_batch(node: Node) -> list[Shape]:
    shape, blocks, pads = _blocks(node)
    sizes = [s + b + e for s, b, e in zip(shape[1:], pads[::2], pads[1::2])]
    _need(not any(s % b for s, b in zip(sizes, blocks)), "its blocks do not fit its input")
    inner = (s // b for s, b in zip(sizes, blocks))
    return [(shape[0] * math.prod(blocks), *inner, shape[-1])]


def _batch_to_space(node: Node) -> list[Shape]:
    shape, blocks, crops = _blocks(node)
    _need(shape[0] % math.prod(blocks) == 0, "its blocks do not fit its input")
    inner = (s * n - b - e for s, n, b, e in zip(shape[1:], blocks, crops[::2], crops[1::2]))
    return [(shape[0] // math.prod(blocks), *inner, shape[-1])]


_Rule = Callable[[Node], list[Shape]]


def _all(rule: _Rule, names: str) -> dict[str, _Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, _Rule] = {
    **_all(
        _same,
        "ABS CAST CEIL COS DEQUANTIZE ELU EXP FAKE_QUANT FLOOR GELU HARD_SWISH L2_NORMALIZATION "
        "LEAKY_RELU LOCAL_RESPONSE_NORMALIZATION LOG LOGICAL_NOT LOGISTIC LOG_SOFTMAX NEG QUANTIZE "
        "RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 ROUND RSQRT SIGN SIN SOFTMAX SQRT SQUARE TANH "
        "ZEROS_LIKE",
    ),
    **_all(
        _elementwise,
        "ADD ATAN2 DIV EQUAL FLOOR_DIV FLOOR_MOD GREATER GREATER_EQUAL LESS LESS_EQUAL LOGICAL_AND "
        "LOGICAL_OR MAXIMUM MINIMUM MUL NOT_EQUAL POW SELECT_V2 SQUARED_DIFFERENCE SUB",
    ),
    **_all(_reduce, "MEAN REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD SUM"),
    **_all(_pool, "AVERAGE_POOL_2D L2_POOL_2D MAX_POOL_2D"),
    **_all(_arg, "ARG_MAX ARG_MIN"),
    **_all(_any_axis, "CUMSUM REVERSE_V2"),
    **_all(_pad, "PAD PADV2"),
    **_all(_resize, "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR"),
    "ADD_N": _add_n,
    "BATCH_MATMUL": _batch_matmul,
    "BATCH_TO_SPACE_ND": _batch_to_space,
    "BROADCAST_TO": _broadcast_to,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv_2d,
    "CONV_3D": _conv_3d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEPTH_TO_SPACE": _depth_to_space,
    "DYNAMIC_UPDATE_SLICE": _update_slice,
    "EMBEDDING_LOOKUP": _embedding,
    "EXPAND_DIMS": _expand_dims,
    "FILL": _fill,
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "MIRROR_PAD": _mirror_pad,
    "ONE_HOT": _one_hot,
    "PACK": _pack,
    "PRELU": _prelu,
    "RANGE": _range,
    "RANK": _scalar,
    "RESHAPE": _reshape,
    "REVERSE_SEQUENCE": _reverse_sequence,
    "SCATTER_ND": _scatter_nd,
    "SELECT": _select,
    "SHAPE": _shape,
    "SLICE": _slice,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "SPACE_TO_DEPTH": _space_to_depth,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
    "TILE": _tile,
    "TOPK_V2": _top_k,
    "TRANSPOSE": _transpose,
    "TRANSPOSE_CONV": _transpose_conv,
    "UNPACK": _unpack,
}
