"""ONNX Runtime on the CPU: targets ``cpu-onnxruntime-fp32`` and ``cpu-onnxruntime-int8``."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import AgentError, BadRequest
from ..formats.onnx_file import operators_of
from ._onnxruntime import outputs_of, typed
from .base import (
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    allowed_cores,
    check_eight_bits,
    check_format,
    check_options,
    check_threads,
    choice_of,
    cpu_targets,
    pin,
    precision_flags,
    precision_of_target,
    random_inputs,
    runtime_version,
    time_calls,
)

try:
    import resource
except ImportError:  # not on Windows
    resource = None

_FORMATS = {"fp32": ("onnx",), "int8": ("onnx-qdq",)}  # by the target's precision
_LINUX = sys.platform == "linux"
_GROWTH_FAULTS = 2  # a call that gets as many pages had more memory made for it
_return_memory = getattr(ctypes.CDLL(None), "malloc_trim", None) if _LINUX else None  # glibc's
_OPTIMIZATION = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
_OPTIONS = {
    "fp32": ("graph_optimization", "spinning"),
    # On x86 without VNNI the kernels that everybody gets cut sums of two products off at 16 bits;
    # x64_exact=1 takes slower, exact ones there, and changes nothing elsewhere.
    "int8": ("graph_optimization", "spinning", "x64_exact"),
}
# Parts of the names of operators with weights: QLinearConv, QGemm, MatMulInteger, FusedConv …
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_PRECISIONS = {"fp32": ("f32",), "int8": ("u8",)}
_QUANTISED = ("Linear", "Integer")  # in the name of every operator that makes or takes 8 bits
_IN_8_BITS = ("QLinear", "QGemm", "Integer", "DynamicQuantize")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def targets(context: Context) -> list[TargetInfo]:
    """The targets of this backend, with the reason where the runtime is not there."""
    version, reason = runtime_version("onnxruntime", extra="onnxruntime")
    return cpu_targets(context, "onnxruntime", version, reason, _FORMATS, _OPTIONS)


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> OnnxruntimeSession:
    """Opens a target.

    Args:
        options: ``graph_optimization`` (all, extended, basic, disabled; all), ``spinning``
            (1 or 0: whether waiting threads spin; 1) and for int8 ``x64_exact`` (0 or 1; 0).
        threads: threads within an operator, each pinned to a core of its own.

    Raises:
        BadRequest: an unknown option or value, or too many threads.
    """
    check_options(target, _OPTIONS[precision_of_target(target)], options)
    check_threads(target, threads, len(allowed_cores()))
    optimization = choice_of(options, "graph_optimization", tuple(_OPTIMIZATION))
    spinning = choice_of(options, "spinning", ("1", "0"))
    exact = choice_of(options, "x64_exact", ("0", "1"))
    return OnnxruntimeSession(threads, optimization, spinning, target, exact)


class OnnxruntimeSession(Session):
    """Makes sessions of ONNX Runtime that differ in nothing but the graph."""

    def __init__(
        self,
        threads: int,
        optimization: str,
        spinning: str,
        target: str = "cpu-onnxruntime-fp32",
        exact: str = "0",
    ) -> None:
        self._target, self._precision = target, precision_of_target(target)
        cores = pin(threads)
        import onnxruntime

        self._runtime = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, _OPTIMIZATION[optimization]
        )
        options.log_severity_level = 3
        # Else it looks into the bytes, and may find its own format.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        options.add_session_config_entry("session.x64quantprecision", exact)
        # One arena for all graphs: inside a network an operator finds its buffers where the one
        # before it left them, in the caches; in an arena of its own it would find them cold.
        onnxruntime.create_and_register_allocator(
            onnxruntime.OrtMemoryInfo(
                "Cpu",
                onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
                0,
                onnxruntime.OrtMemType.DEFAULT,
            ),
            onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1}),
        )
        options.add_session_config_entry("session.use_env_allocators", "1")
        if threads > 1:
            # The calling thread is already pinned; the others are told, counting from one.
            # Without this two threads may share a core and timings have two modes.
            affinities = ";".join(str(core + 1) for core in cores[:-1])
            options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
            pin(1)
        self._options = options
        self._memory = _Memory(onnxruntime)

    def load(self, content: bytes, format: str) -> OnnxruntimeGraph:
        check_format(self._target, _FORMATS[self._precision], format)
        try:
            session = self._runtime.InferenceSession(
                content, sess_options=self._options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise typed(error) from error
        flags = ()
        if self._precision == "int8":
            check_eight_bits(self._target, [_tensor_info(node) for node in session.get_inputs()])
        if self._precision == "int8" or _is_quantised(content):
            flags = self._precision_flags(content)
        return OnnxruntimeGraph(self._runtime, session, self._memory, flags)

    def _precision_flags(self, content: bytes) -> tuple[str, ...]:
        """Flags for convolutions and matrix products that run in another precision.

        A session does not tell what it made of its graph; the compiler of newer versions, given
        the same options, does, at the price of a second loading.
        """
        try:
            compiler = self._runtime.ModelCompiler(
                self._options,
                content,
                graph_optimization_level=self._options.graph_optimization_level,
            )
            operators = operators_of(compiler.compile_to_bytes())
        except Exception:  # older, or it cannot: what is not known is not claimed
            return ("precision:unknown",)
        precisions = [
            "u8" if any(word in kind for word in _IN_8_BITS) else "f32"
            for kind in operators
            if any(word in kind for word in _WEIGHTED)
        ]
        return precision_flags(precisions, _PRECISIONS[self._precision])

    def renew(self) -> None:
        self._memory.renew()


class _Memory:
    """What all graphs of a session share: their inputs, and the arena that tensors between their
    operators lie in.

    Equal inputs are shared because where an input lies tells in a graph's time, and is not to
    tell in the difference of two graphs.
    """

    def __init__(self, runtime: Any) -> None:
        self._arrays: weakref.WeakValueDictionary[TensorInfo, np.ndarray] = (
            weakref.WeakValueDictionary()
        )
        self._graphs: dict[OnnxruntimeGraph, None] = {}
        self._growing: dict[OnnxruntimeGraph, None] = {}
        self._shrinking = runtime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def input(self, tensor: TensorInfo) -> np.ndarray:
        """The array that graphs with such an input read."""
        array = self._arrays.get(tensor)
        if array is None:
            array = self._arrays[tensor] = random_inputs([tensor])[tensor.name]
        return array

    def add(self, graph: OnnxruntimeGraph) -> None:
        """A graph is there."""
        self._graphs[graph] = None

    def remove(self, graph: OnnxruntimeGraph) -> None:
        """A graph is gone."""
        self._graphs.pop(graph, None)
        self._growing.pop(graph, None)

    def note_growth(self, graph: OnnxruntimeGraph, faults: int) -> None:
        """Remembers graphs that found the arena too small."""
        if faults >= _GROWTH_FAULTS:
            self._growing.pop(graph, None)
            self._growing[graph] = None

    def renew(self) -> None:
        """Places the arena anew, as large as it was.

        A call that the arena grows for pays for that: graphs that it grew for are called once,
        the last one first; those that then find it large enough are forgotten.
        """
        if _return_memory is None or not self._graphs:
            return
        growing, self._growing = reversed(self._growing), {}
        # The arena gives memory back to the C library at the end of a call that asks for it, of
        # any graph, and the C library to the system.
        for graph in self._graphs:
            with contextlib.suppress(AgentError):  # what ails a graph shows in its own calls
                graph.call(self._shrinking)
                break
        _return_memory(0)
        for graph in growing:
            with contextlib.suppress(AgentError):
                graph.timed_calls(1)


class OnnxruntimeGraph(Loaded):
    """One graph with its inputs and outputs bound to memory."""

    compute_unit = "CPU"

    def __init__(
        self, runtime: Any, session: Any, memory: _Memory, flags: tuple[str, ...] = ()
    ) -> None:
        self.flags = flags
        self._runtime = runtime
        self._session = session
        self._inputs = tuple(_tensor_info(node) for node in session.get_inputs())
        self._memory = memory
        # Bound arrays are read in place: they must live as long as the binding.
        self._arrays = {tensor.name: memory.input(tensor) for tensor in self._inputs}
        self._binding = session.io_binding()
        for name, array in self._arrays.items():
            self._binding.bind_ortvalue_input(
                name, runtime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)
            )
        for node in session.get_outputs():
            if node.type in _DTYPES and all(isinstance(size, int) for size in node.shape):
                value = runtime.OrtValue.ortvalue_from_shape_and_type(
                    node.shape, np.dtype(_DTYPES[node.type]), "cpu", 0
                )
                self._binding.bind_ortvalue_output(node.name, value)
            else:
                self._binding.bind_output(node.name, "cpu")
        memory.add(self)

    def call(self, options: Any) -> None:
        """One call with run options of its own, not timed."""
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:
            raise typed(error) from error

    def timed_calls(self, count: int) -> list[Sample]:
        run, binding = self._session.run_with_iobinding, self._binding
        before = _page_faults()
        try:
            samples = time_calls(lambda: run(binding), count)
        except Exception as error:
            raise typed(error) from error
        self._memory.note_growth(self, _page_faults() - before)
        return samples

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return outputs_of(self._session, self._inputs, inputs)

    def close(self) -> None:
        self._memory.remove(self)
        del self._binding, self._session


def _is_quantised(content: bytes) -> bool:
    """Whether a graph has an operator of 8 bits."""
    return any(word in kind for kind in operators_of(content) for word in _QUANTISED)


def _page_faults() -> int:
    """Pages of memory that this process got so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


def _tensor_info(node: Any) -> TensorInfo:
    if node.type not in _DTYPES:
        raise BadRequest(f"input '{node.name}' is a {node.type}, which the agent cannot fill")
    if not all(isinstance(size, int) for size in node.shape):
        raise BadRequest(
            f"input '{node.name}' has no fixed shape ({node.shape}); export it with fixed sizes"
        )
    return TensorInfo(node.name, _DTYPES[node.type], tuple(node.shape))
