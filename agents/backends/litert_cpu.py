"""LiteRT (TensorFlow Lite) on the CPU: targets ``cpu-litert-fp32`` and ``cpu-litert-int8``.

It runs in ai-edge-litert, or in tflite-runtime, its predecessor, where that is all there is. Which
nodes a delegate took, XNNPACK or one that is named, is looked up for every graph: LiteRT itself
says nothing where it falls back on its own kernels.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from ..errors import AgentError, BadRequest, OutOfMemory, RuntimeCrashed, UnsupportedOperator
from ._litert_graph import nodes_of, other_precisions, placement_of, precision_of
from ._litert_runtime import Delegate, Runtime, Unavailable, delegate_of, find_runtime
from .base import (
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    allowed_cores,
    check_format,
    check_inputs,
    check_options,
    check_threads,
    choice_of,
    cpu_targets,
    one_line,
    pin,
    precision_of_target,
    random_inputs,
    time_calls,
)

_FORMATS: tuple[str, ...] = ("tflite",)
_PRECISIONS: tuple[str, ...] = ("fp32", "int8")
_OPTIONS: tuple[str, ...] = ("xnnpack", "delegate", "delegate_options")
# With this metadata XNNPACK computes in fp16 where the processor can, and says nothing.
_HALF_PRECISION = b"reduced_precision_support"
_NO_MEMORY = "no memory for the graph's tensors"
_UNSUPPORTED = (
    "unresolved custom op",
    "Didn't find op for builtin opcode",
    "builtin_code out of range",
    "failed to prepare",
    "Failed to apply delegate",
    "after delegate application failure",
)


def targets(context: Context) -> list[TargetInfo]:
    """Both targets, with the reason where no runtime works."""
    version, reason = "", ""
    try:
        version = find_runtime().version
    except Unavailable as error:
        reason = str(error)
    formats = dict.fromkeys(_PRECISIONS, _FORMATS)
    options = dict.fromkeys(_PRECISIONS, _OPTIONS)
    return cpu_targets(context, "litert", version, reason, formats, options)


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> LitertSession:
    """Opens one of the targets.

    Args:
        options: ``xnnpack`` (1 or 0: XNNPACK's kernels, or LiteRT's own; 1), ``delegate`` (path of
            an external delegate's library; XNNPACK is then off) and ``delegate_options`` (what it
            is told, as ``key:value,key:value``).
        threads: threads within an operator, each pinned to a core of its own.

    Raises:
        BadRequest: an unknown option or value, too many threads, or no such delegate.
    """
    check_options(target, _OPTIONS, options)
    check_threads(target, threads, len(allowed_cores()))
    xnnpack = choice_of(options, "xnnpack", ("1", "0")) == "1"
    delegate = delegate_of(options)
    if delegate is not None and options.get("xnnpack") == "1":
        raise BadRequest(
            "option 'xnnpack' cannot be 1 with option 'delegate': XNNPACK would take what the "
            "delegate leaves, and nobody could tell them apart"
        )
    return LitertSession(
        precision_of_target(target), threads, xnnpack and delegate is None, delegate
    )


class LitertSession(Session):
    """Makes interpreters that differ in nothing but the graph."""

    def __init__(
        self, precision: str, threads: int, xnnpack: bool, delegate: Optional[Delegate]
    ) -> None:
        self._cores = pin(threads)
        try:
            runtime = find_runtime()
        except Unavailable as error:
            raise BadRequest(f"target '{_name(precision)}': {error}") from error
        if delegate is not None:
            delegate.load(runtime)  # one that cannot be had is the request's fault, not a graph's
        self._precision = precision
        self._maker = _Maker(runtime, threads, xnnpack, delegate)
        self._graphs: dict[LitertGraph, None] = {}

    def load(self, content: bytes, format: str) -> LitertGraph:
        check_format(_name(self._precision), _FORMATS, format)
        if self._precision == "fp32" and _HALF_PRECISION in content:
            raise BadRequest(
                f"the file allows fp16 arithmetic (metadata {_HALF_PRECISION.decode()}), which "
                f"'{_name('fp32')}' is not to use; write it without"
            )
        graph = LitertGraph(self._maker, content, self._precision, self._cores, self._graphs)
        self._graphs[graph] = None
        return graph

    def renew(self) -> None:
        # An accelerator's compiler may take minutes, and its memory is not the processor's.
        if self._maker.delegate is None:
            for graph in self._graphs:
                graph.renew()


@dataclass(frozen=True)
class _Maker:
    """What all interpreters of a session have in common."""

    runtime: Runtime
    threads: int
    xnnpack: bool
    delegate: Optional[Delegate]

    @property
    def delegate_name(self) -> str:
        """Of the one delegate that may take nodes; empty: there is none."""
        return self.delegate.name if self.delegate else "XNNPACK" if self.xnnpack else ""

    def interpreter(self, content: bytes) -> Any:
        """An interpreter whose tensors have memory.

        Raises:
            AgentError: typed by what the runtime says.
        """
        try:
            return self._interpreter(content, self.xnnpack)
        except Exception as error:
            if "XNNPack delegate failed" in str(error) and self._lacks_memory(content):
                raise MemoryError(_NO_MEMORY) from error
            raise

    def _lacks_memory(self, content: bytes) -> bool:
        """Whether LiteRT's own kernels find too little memory.

        XNNPACK says the same of that as of shapes that it cannot take.
        """
        try:
            self._interpreter(content, xnnpack=False)
        except Exception as error:
            return _is_memory(error)
        return False

    def _interpreter(self, content: bytes, xnnpack: bool) -> Any:
        module = self.runtime.module
        resolvers = module.OpResolverType
        delegates = [] if self.delegate is None else [self.delegate.load(self.runtime)]
        interpreter = module.Interpreter(
            model_content=content,
            num_threads=self.threads,
            experimental_delegates=delegates,
            # By default XNNPACK takes what an external delegate leaves, so that one which took
            # nothing would look as if it had taken all.
            experimental_op_resolver_type=resolvers.BUILTIN
            if xnnpack
            else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
        return interpreter


class LitertGraph(Loaded):
    """One graph in an interpreter of its own, with its inputs preset."""

    def __init__(
        self,
        maker: _Maker,
        content: bytes,
        precision: str,
        cores: Sequence[int],
        graphs: dict[LitertGraph, None],
    ) -> None:
        self._maker = maker
        self._content = content
        self._cores = cores
        self._graphs = graphs
        self._called = False
        try:
            with _own_cores(cores):
                self._interpreter = maker.interpreter(content)
            self._places = _places(self._interpreter)
            self._inputs = tuple(
                _tensor_info(name, details) for name, details in self._places.inputs.items()
            )
            self._look_at_nodes(precision)
            # Into the interpreter's own memory, once: the planner gives an input's place to no
            # other tensor, so a call leaves it as it was.
            self._preset = random_inputs(self._inputs)
            self._set(self._interpreter, self._preset)
        except Exception as error:
            raise _typed(error) from error

    def timed_calls(self, count: int) -> list[Sample]:
        try:
            if self._called:
                return time_calls(self._interpreter.invoke, count)
            with _own_cores(self._cores):  # LiteRT's own kernels start theirs when they are called
                samples = time_calls(self._interpreter.invoke, count)
        except Exception as error:
            raise _typed_at_run_time(error) from error
        self._called = True
        return samples

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_inputs(self._inputs, inputs)
        try:
            self._set(self._interpreter, inputs)
            self._interpreter.invoke()
            return {
                name: self._interpreter.get_tensor(details["index"])
                for name, details in self._places.outputs.items()
            }
        except Exception as error:
            raise _typed_at_run_time(error) from error
        finally:
            self._set(self._interpreter, self._preset)

    def renew(self) -> None:
        """Moves to a new interpreter, whose memory lies elsewhere for the old one still has its.

        Graphs of 30 us differed by up to 9% from one interpreter to the next, and by 0.3% within
        each.
        """
        with contextlib.suppress(Exception), _own_cores(self._cores):
            content = bytes(memoryview(self._content))  # LiteRT's own kernels read weights there
            interpreter = self._maker.interpreter(content)
            self._set(interpreter, self._preset)
            interpreter.invoke()
            self._interpreter, self._content = interpreter, content

    def close(self) -> None:
        self._graphs.pop(self, None)
        del self._interpreter

    def _set(self, interpreter: Any, values: Mapping[str, np.ndarray]) -> None:
        for name, details in self._places.inputs.items():
            interpreter.set_tensor(details["index"], values[name])

    def _look_at_nodes(self, precision: str) -> None:
        """Finds out where the graph runs, and whether in the target's precision.

        Raises:
            BadRequest: most of it is of another precision.
        """
        nodes = nodes_of(self._interpreter)
        found = precision_of(nodes or (), [tensor.dtype for tensor in self._inputs])
        if found != precision:
            other = f"send it to '{_name(found)}'" if found in _PRECISIONS else "no target takes it"
            raise BadRequest(f"the file computes in {found}, not in {precision}; {other}")
        if nodes is None:
            self.compute_unit, self.flags = "unknown", ("placement:unknown",)
            return
        self.compute_unit, flags = placement_of(nodes, self._maker.delegate_name)
        self.flags = flags + other_precisions(nodes, precision)


@dataclass(frozen=True)
class _Places:
    """Details of the inputs and outputs, by name."""

    inputs: dict[str, Mapping[str, Any]]
    outputs: dict[str, Mapping[str, Any]]


def _name(precision: str) -> str:
    return f"cpu-litert-{precision}"


def _places(interpreter: Any) -> _Places:
    """Inputs and outputs by the names of the file's signature, else by those of their tensors."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    with contextlib.suppress(ValueError):  # no signature, or several
        # To be forgotten before a call, or the interpreter takes it for somebody in its memory.
        signature = interpreter.get_signature_runner()
        named = _Places(signature.get_input_details(), signature.get_output_details())
        if _indices(named.inputs.values()) == _indices(inputs) and _indices(
            named.outputs.values()
        ) == _indices(outputs):
            return named
    for details in (inputs, outputs):
        if len({tensor["name"] for tensor in details}) != len(details):
            raise BadRequest("inputs or outputs share a name, and the file has no signature")
    return _Places({d["name"]: d for d in inputs}, {d["name"]: d for d in outputs})


def _indices(details: Any) -> set[int]:
    return {int(tensor["index"]) for tensor in details}


def _tensor_info(name: str, details: Mapping[str, Any]) -> TensorInfo:
    dtype = np.dtype(details["dtype"])
    if dtype.kind not in "fiub":
        raise BadRequest(f"input '{name}' is a {dtype.name}, which the agent cannot fill")
    shape = tuple(int(size) for size in details["shape"])
    signature = tuple(int(size) for size in details.get("shape_signature", shape))
    if any(size < 0 for size in signature):
        raise BadRequest(
            f"input '{name}' has no fixed shape ({list(signature)}); export it with fixed sizes"
        )
    return TensorInfo(name, dtype.name, shape)


@contextlib.contextmanager
def _own_cores(cores: Sequence[int]) -> Iterator[None]:
    """Gives each thread that is started inside a core of its own, the last being the caller's.

    Else two of them may share a core, and timings have two modes.
    """
    if len(cores) == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    os.sched_setaffinity(0, cores)  # what they inherit, until they are found
    before = _threads()
    try:
        yield
    finally:
        for thread, core in zip(sorted(_threads() - before), itertools.cycle(cores[:-1])):
            with contextlib.suppress(OSError):  # it ended
                os.sched_setaffinity(thread, {core})
        os.sched_setaffinity(0, cores[-1:])


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _typed(error: Exception) -> AgentError:
    """What went wrong while a graph was loaded."""
    if isinstance(error, AgentError):
        return error
    text = one_line(str(error))
    if _is_memory(error):
        return OutOfMemory(f"litert: {text or _NO_MEMORY}")
    if any(phrase in text for phrase in _UNSUPPORTED):
        return UnsupportedOperator(f"litert: {text}")
    if not isinstance(error, (ValueError, RuntimeError)):
        return RuntimeCrashed(f"litert: {type(error).__name__}: {text}")
    return BadRequest(f"litert cannot read the graph: {text}")


def _typed_at_run_time(error: Exception) -> AgentError:
    kind = OutOfMemory if isinstance(error, MemoryError) else RuntimeCrashed
    return kind(f"litert: {one_line(str(error)) or 'no details'}")


def _is_memory(error: Exception) -> bool:
    """Whether loading failed for want of memory."""
    text = str(error)
    # An arena that cannot be had is an error without a word.
    return isinstance(error, MemoryError) or "ailed to allocate" in text or not text
