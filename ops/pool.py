"""The pool of candidate operators: their names, where they apply, what they cost.

No torch here: names, MACs and parameters are arithmetic. The modules are in `blocks`.
The definitions, node by node, are in `docs/operators.md`.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from .counting import ConvolutionCost, count_module
from .errors import BadRequest
from .shapes import LayerShape

if TYPE_CHECKING:
    from torch import nn

GATES = ("h-swish", "hard-sigmoid")
"""The squeeze-and-excitation gates; the first is the paper's and the default."""

SE_REDUCTION = 4
"""Channels of the squeeze: c // 4, at least 1 (paper: r = 4)."""

ENTRY_POINT_GROUP = "hurricane.operators"
PLUGIN_VARIABLE = "HURRICANE_OPERATORS"
"""Files with users' operators, separated as in PATH; the console's --plugin sets it."""

_FAMILIES = ("SEP", "MB", "Choice")


@dataclass(frozen=True)
class Operator:
    """One candidate block.

    Attributes:
        family: ``SEP``, ``MB``, ``Choice``, or the name of a user's own operator.
        kernel: side of the depthwise kernel; 0 stands for the three 3x3 of ``Choice_x``.
        expansion: channels of the bottleneck over channels in (``MB`` only, else 1).
        se: whether squeeze-and-excitation is added.
        custom: for a user's operator, how to build it and where it applies.
    """

    family: str
    kernel: int = 3
    expansion: int = 1
    se: bool = False
    custom: CustomBlock | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The canonical name, e.g. ``MB_5_6_SE``."""
        if self.custom is not None:
            return self.family
        size = "x" if self.kernel == 0 else str(self.kernel)
        parts = [self.family, size]
        if self.family == "MB":
            parts.append(str(self.expansion))
        if self.se:
            parts.append("SE")
        return "_".join(parts)

    def __str__(self) -> str:
        return self.name

    def applies_to(self, shape: LayerShape) -> bool:
        """Whether the operator can stand at this layer shape."""
        if self.custom is not None:
            return self.custom.applies(shape)
        if self.family != "Choice":
            return True
        if shape.keeps_shape:
            return shape.in_channels % 2 == 0
        return shape.out_channels > shape.in_channels and shape.out_channels % 2 == 0

    def check(self, shape: LayerShape) -> None:
        """Raises BadRequest unless the operator can stand at this layer shape."""
        if not self.applies_to(shape):
            raise BadRequest(f"{self.name} does not apply to the layer shape {shape}")

    def convolutions(self, shape: LayerShape) -> list[ConvolutionCost]:
        """Every convolution of the operator at this shape, in graph order."""
        if self.custom is not None:
            self.check(shape)
            return self.custom.convolutions(shape)
        return list(_convolutions(self, shape))

    def macs(self, shape: LayerShape) -> int:
        """Multiply-accumulates of convolutions and linears for one image."""
        return sum(c.macs for c in self.convolutions(shape))

    def params(self, shape: LayerShape) -> int:
        """Weights of convolutions and linears (no biases, no BatchNorm)."""
        return sum(c.params for c in self.convolutions(shape))


@dataclass(frozen=True)
class CustomBlock:
    """A user's operator: ``build(shape, gate)`` gives its torch module.

    Attributes:
        build: from layer shape and gate to a torch module of Conv2d, BatchNorm2d and
            activations, taking and returning NCHW.
        applies: from layer shape to whether the operator can stand there.
    """

    build: Callable[[LayerShape, str], nn.Module]
    applies: Callable[[LayerShape], bool] = lambda shape: True
    _counted: dict[LayerShape, list[ConvolutionCost]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def convolutions(self, shape: LayerShape) -> list[ConvolutionCost]:
        """Every convolution at this shape; the module runs once for it and is not run again."""
        if shape not in self._counted:
            self._counted[shape] = count_module(self.build(shape, GATES[0]), shape)
        return list(self._counted[shape])


def _convolutions(op: Operator, shape: LayerShape) -> Iterable[ConvolutionCost]:
    c_in, c_out = shape.in_channels, shape.out_channels
    before, after = shape.in_pixels, shape.out_pixels
    k2 = op.kernel * op.kernel

    def squeeze(channels: int) -> list[ConvolutionCost]:
        if not op.se:
            return []
        middle = squeeze_channels(channels)
        return [ConvolutionCost(channels * middle, 1), ConvolutionCost(middle * channels, 1)]

    if op.family == "SEP":
        yield ConvolutionCost(k2 * c_in, after)
        yield from squeeze(c_in)
        yield ConvolutionCost(c_in * c_out, after)
    elif op.family == "MB":
        m = op.expansion * c_in
        yield ConvolutionCost(c_in * m, before)
        yield ConvolutionCost(k2 * m, after)
        yield from squeeze(m)
        yield ConvolutionCost(m * c_out, after)
    elif op.family == "Choice":
        split = shape.keeps_shape
        branch_in = c_in // 2 if split else c_in
        middle = c_out // 2
        branch_out = c_out // 2 if split else c_out - c_in
        side = k2 or 9
        if not split:
            yield ConvolutionCost(side * c_in, after)
            yield ConvolutionCost(c_in * c_in, after)
        if op.kernel:
            yield ConvolutionCost(branch_in * middle, before)
            yield ConvolutionCost(k2 * middle, after)
            yield ConvolutionCost(middle * branch_out, after)
        else:
            yield ConvolutionCost(9 * branch_in, after)
            yield ConvolutionCost(branch_in * middle, after)
            yield ConvolutionCost(9 * middle, after)
            yield ConvolutionCost(middle * middle, after)
            yield ConvolutionCost(9 * middle, after)
            yield ConvolutionCost(middle * branch_out, after)
        yield from squeeze(branch_out)
    else:
        raise BadRequest(f"operator family {op.family!r} is unknown")


def squeeze_channels(channels: int) -> int:
    """Channels between the two convolutions of squeeze-and-excitation."""
    return max(1, channels // SE_REDUCTION)


def _pool() -> tuple[Operator, ...]:
    plain = [Operator("SEP", k) for k in (3, 5, 7)]
    plain += [Operator("MB", k, e) for k in (3, 5, 7) for e in (1, 3, 6)]
    plain += [Operator("Choice", k) for k in (3, 5, 7, 0)]
    return tuple(
        Operator(o.family, o.kernel, o.expansion, se) for se in (False, True) for o in plain
    )


POOL: tuple[Operator, ...] = _pool()
"""The 32 operators: 16 plain, then the same 16 with squeeze-and-excitation."""

_BY_NAME = {op.name: op for op in POOL}
_CUSTOM: dict[str, Operator] = {}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*")


def register_operator(
    name: str,
    build: Callable[[LayerShape, str], nn.Module],
    applies: Callable[[LayerShape], bool] = lambda shape: True,
) -> Operator:
    """Adds a user's own operator to the registry.

    Call it from a file named with ``--plugin``, or from a package that names a function
    which calls it under the entry-point group ``hurricane.operators``.

    Args:
        name: the operator's name in tables and on the command line.
        build: from (layer shape, gate) to a torch module, NCHW in and out.
        applies: from layer shape to whether the operator can stand there.

    Returns:
        The operator, to be used wherever one of the pool is.

    Raises:
        BadRequest: the name is taken, by the pool or by another build function, or has
            characters that a table cannot hold. The same registration again is none: a plugin
            may be loaded twice.
    """
    if not _NAME.fullmatch(name):
        raise BadRequest(f"operator name {name!r}: use letters, digits and _ . : -")
    if name in _BY_NAME or name.partition(":")[0] in ("stem", "head", "pool"):
        raise BadRequest(f"operator name {name!r} is already taken; choose another")
    known = _CUSTOM[name].custom if name in _CUSTOM else None
    if known is not None and _origin(known.build) != _origin(build):
        raise BadRequest(
            f"operator name {name!r} is already registered with another build function "
            f"({_place(known.build)}); choose another"
        )
    operator = Operator(name, custom=CustomBlock(build, applies))
    _CUSTOM[name] = operator
    return operator


def code_of(build: Callable[..., Any]) -> CodeType | None:
    """The code behind a build function, partial, class or callable; None where it is compiled."""
    while isinstance(build, functools.partial):
        build = build.func
    if not hasattr(build, "__code__"):
        build = build.__init__ if isinstance(build, type) else type(build).__call__
    return getattr(build, "__code__", None)


def _origin(build: Callable[..., Any]) -> tuple[object, ...]:
    """What a build function is made of: equal for the same file's, run twice."""
    if isinstance(build, functools.partial):
        bound = (build.args, sorted(build.keywords.items()))
        return (_origin(build.func), repr(bound))
    code = code_of(build)
    if code is None:
        return (build,)
    cells = [cell.cell_contents for cell in getattr(build, "__closure__", None) or ()]
    plain = [c for c in cells if isinstance(c, str | int | float | bool | tuple)]
    return (code.co_filename, code.co_firstlineno, code.co_name, repr(plain))


def _place(build: Callable[..., Any]) -> str:
    code = code_of(build)
    return repr(build) if code is None else f"{code.co_filename}, line {code.co_firstlineno}"


def load_plugin(path: str | Path) -> None:
    """Runs a Python file whose `register_operator` calls add users' operators."""
    file = Path(path)
    if not file.is_file():
        raise BadRequest(
            f"plugin {file} does not exist; name a Python file that registers operators"
        )
    spec = importlib.util.spec_from_file_location(f"hurricane_plugin_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BadRequest:
        raise
    except Exception as error:
        raise BadRequest(f"plugin {file} failed: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=1)
def _discover() -> None:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        loaded: Any = entry.load()
        if callable(loaded):
            loaded()
    for path in filter(None, os.environ.get(PLUGIN_VARIABLE, "").split(os.pathsep)):
        load_plugin(path)


def registered_operators() -> tuple[Operator, ...]:
    """The pool followed by users' own operators."""
    _discover()
    return POOL + tuple(_CUSTOM[name] for name in sorted(_CUSTOM))


def parse_operator(name: str) -> Operator:
    """From a canonical name to the operator.

    Raises:
        BadRequest: no operator has this name; the message offers the nearest.
    """
    found = _BY_NAME.get(name) or _CUSTOM.get(name)
    if found is None:
        _discover()
        found = _CUSTOM.get(name)
    if found is None:
        import difflib

        known = [op.name for op in registered_operators()]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise BadRequest(f"operator {name!r} is unknown; {hint}")
    return found


def applies(name: str, shape: LayerShape, *, unknown: bool) -> bool:
    """Whether an operator can stand at a layer shape, by its name.

    Args:
        name: of the operator.
        shape: of the layer.
        unknown: the answer for an operator that is not registered here.
    """
    try:
        return parse_operator(name).applies_to(shape)
    except BadRequest:
        return unknown


def select_operators(patterns: str | None) -> tuple[Operator, ...]:
    """Operators by comma-separated names or shell patterns (``MB_*,Choice_3``); None: all."""
    everything = registered_operators()
    if not patterns:
        return everything
    chosen: list[Operator] = []
    for pattern in (p.strip() for p in patterns.split(",") if p.strip()):
        matches = [op for op in everything if fnmatch.fnmatchcase(op.name, pattern)]
        chosen += [op for op in (matches or [parse_operator(pattern)]) if op not in chosen]
    return tuple(op for op in everything if op in chosen)
