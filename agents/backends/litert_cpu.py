"""LiteRT (TensorFlow Lite) on the CPU: targets ``cpu-litert-fp32`` and ``cpu-litert-int8``.

It runs in ai-edge-litert, or in tflite-runtime, its predecessor, where that is all there is. Which
nodes a delegate took, XNNPACK or one that is named, is looked up for every graph: LiteRT itself
says nothing where it falls back on its own kernels.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Optional

import numpy as np

from ..errors import AgentError, BadRequest, OutOfMemory, RuntimeCrashed, UnsupportedOperator
from ..sandbox import advice
from ._litert_graph import (
    Node,
    nodes_left,
    nodes_of,
    other_precisions,
    own_nodes,
    precision_of,
)
from .base import (
    Availability,
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
    one_line,
    pin,
    random_inputs,
    time_calls,
)

_FORMATS = ("tflite",)
_PRECISIONS = ("fp32", "int8")
_OPTIONS = ("xnnpack", "delegate", "delegate_options")
_NOT_INSTALLED = (
    "neither ai-edge-litert nor tflite-runtime is installed; run: pip install "
    "'hurricane-nas[litert]' (tflite-runtime for an older board: 'hurricane-nas[tflite-runtime]')"
)
# A file of one RELU on one number, for a look at whether the runtime works.
_SMALLEST = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAA5AAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAM"
    "ABQAEAAMAAgABAAMAAAAEAAAADwAAABAAAAARAAAAAEAAAAQAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAMAAAAAQAAAAEA"
    "AAABAAAAAAAAAAEAAAABAAAAAQAAAAAAAAACAAAAQAAAAAQAAADe////AAAAAQgAAAAMAAAAAQAAAHkAAAABAAAAAQAA"
    "AAAAFgAQAAwAAAAAAAgAAAAAAAAAAAAHABYAAAAAAAABCAAAAAwAAAABAAAAeAAAAAEAAAABAAAAAQAAABAAAAAMAAwA"
    "CwAAAAAABAAMAAAAEwAAAAAAABM="
)
# With this metadata XNNPACK computes in fp16 where the processor can, and says nothing.
_HALF_PRECISION = b"reduced_precision_support"
_NO_MEMORY = "no memory for the graph's tensors"
_UNSUPPORTED = (
    "unresolved custom op",
    "Didn't find op for builtin opcode",
    "builtin_code out of range",
    "failed to prepare",
    "Failed to apply delegate",
)
_DELEGATE_OPTION = re.compile(r"([A-Za-z0-9_.-]+):([^,]+)")
_FLAG_CHARACTERS = 60  # what the host keeps of a flag
_NAMES_IN_FLAG = 6
_NOT_IN_FLAGS = re.compile(r"[^A-Za-z0-9_.]+")


class _Unavailable(Exception):
    """No runtime works here; the message says why and what to do."""


@dataclass(frozen=True)
class _Runtime:
    """The module that has the interpreter, and the version as tables name it."""

    module: Any
    version: str


@dataclass(frozen=True)
class _Delegate:
    """An external delegate: its library's path or name, and what it is told."""

    library: str
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        return os.path.basename(self.library).partition(".")[0]

    def load(self, runtime: _Runtime) -> Any:
        """A delegate for one interpreter.

        Raises:
            BadRequest: there is no such library, it is no delegate, or it refuses its options.
        """
        try:
            return runtime.module.load_delegate(self.library, dict(self.options))
        except OSError as error:
            raise BadRequest(self._not_loaded(one_line(str(error)))) from error
        except AttributeError as error:
            raise BadRequest(
                f"option 'delegate': {self.name} is a library without a TFLite delegate (it has no "
                "function tflite_plugin_create_delegate); name the delegate's own library"
            ) from error
        except ValueError as error:
            said = one_line(str(error).partition("\n")[2]) or "it does not say why"
            raise BadRequest(
                f"option 'delegate_options': {self.name} cannot be had with these options ({said});"
                " see the delegate's manual, and whether its device is there"
            ) from error

    def _not_loaded(self, text: str) -> str:
        if "Permission denied" in text:
            return (
                f"option 'delegate': the agent's sandbox, or the file's mode, forbids to read "
                f"{self.name} or what it needs ({text}); start the agent with: agent serve "
                "--allow-read PATH"
            )
        if "No such file" in text and text.startswith(self.library):
            return (
                f"option 'delegate': the board has no library {self.library}; give the path there, "
                "or a name that its loader finds"
            )
        return f"option 'delegate': {self.name} cannot be loaded: {text}"


def targets(context: Context) -> list[TargetInfo]:
    """Both targets, with the reason where no runtime works."""
    version, reason = "", ""
    try:
        version = _find_runtime().version
    except _Unavailable as error:
        reason = str(error)
    return [
        TargetInfo(
            name=_name(precision),
            device=context.device_name,
            processor="cpu",
            runtime="litert",
            runtime_version=version,
            precision=precision,
            availability=Availability.UNAVAILABLE if reason else Availability.AVAILABLE,
            reason=reason,
            formats=_FORMATS,
            options=_OPTIONS,
            max_threads=len(allowed_cores()),
        )
        for precision in _PRECISIONS
    ]


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
    delegate = _delegate_of(options)
    if delegate is not None and options.get("xnnpack") == "1":
        raise BadRequest(
            "option 'xnnpack' cannot be 1 with option 'delegate': XNNPACK would take what the "
            "delegate leaves, and nobody could tell them apart"
        )
    precision = next(precision for precision in _PRECISIONS if _name(precision) == target)
    return LitertSession(precision, threads, xnnpack and delegate is None, delegate)


class LitertSession(Session):
    """Makes interpreters that differ in nothing but the graph."""

    def __init__(
        self, precision: str, threads: int, xnnpack: bool, delegate: Optional[_Delegate]
    ) -> None:
        self._cores = pin(threads)
        try:
            runtime = _find_runtime()
        except _Unavailable as error:
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

    runtime: _Runtime
    threads: int
    xnnpack: bool
    delegate: Optional[_Delegate]

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
            nodes = nodes_of(self._interpreter)
            self._check_precision(nodes, precision)
            self.compute_unit, self.flags = _placement(maker, nodes, precision)
            # Into the interpreter's own memory, once: the planner gives an input's place to no
            # other tensor, so a call leaves it as it was.
            self._preset = random_inputs(self._inputs)
            self._set(self._preset)
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
            self._set(inputs)
            self._interpreter.invoke()
            return {
                name: self._interpreter.get_tensor(details["index"])
                for name, details in self._places.outputs.items()
            }
        except Exception as error:
            raise _typed_at_run_time(error) from error
        finally:
            self._set(self._preset)

    def renew(self) -> None:
        """Moves to a new interpreter, whose memory lies elsewhere for the old one still has its."""
        with contextlib.suppress(Exception), _own_cores(self._cores):
            content = bytes(memoryview(self._content))  # LiteRT's own kernels read weights there
            old, self._interpreter = self._interpreter, self._maker.interpreter(content)
            try:
                self._set(self._preset)
                self._interpreter.invoke()
            except Exception:
                self._interpreter = old
                raise
            self._content = content

    def close(self) -> None:
        self._graphs.pop(self, None)
        del self._interpreter

    def _set(self, values: Mapping[str, np.ndarray]) -> None:
        for name, details in self._places.inputs.items():
            self._interpreter.set_tensor(details["index"], values[name])

    def _check_precision(self, nodes: Optional[Sequence[Node]], precision: str) -> None:
        found = precision_of(nodes or (), [tensor.dtype for tensor in self._inputs])
        if found == precision:
            return
        where = (
            f"send it to '{_name(found)}'" if found in _PRECISIONS else "no target here takes it"
        )
        raise BadRequest(f"the file computes in {found}, not in {precision}; {where}")


@dataclass(frozen=True)
class _Places:
    """Details of the inputs and outputs, by name."""

    inputs: dict[str, Mapping[str, Any]]
    outputs: dict[str, Mapping[str, Any]]


def _find_runtime() -> _Runtime:
    """The first runtime that works.

    Raises:
        _Unavailable: none does.
    """
    reasons = []
    for package in ("ai_edge_litert", "tflite_runtime"):
        try:
            found = importlib.import_module(package)
            module = importlib.import_module(f"{package}.interpreter")
        except ModuleNotFoundError as error:
            if error.name != package:
                reasons.append(f"{package} does not import: {error}")
            continue
        except Exception as error:  # a broken installation may raise anything
            reasons.append(f"{package} does not import: {one_line(str(error))}{advice(error)}")
            continue
        version = str(getattr(found, "__version__", "") or "unknown")
        if package == "tflite_runtime":
            version = f"tflite-runtime {version}"
        if reason := _fault_of(module):
            reasons.append(f"{package} {version.rpartition(' ')[2]} does not work: {reason}")
            continue
        return _Runtime(module, version)
    raise _Unavailable("; ".join(reasons) or _NOT_INSTALLED)


def _fault_of(module: ModuleType) -> str:
    """Why a runtime cannot make an interpreter; empty if it can."""
    try:
        module.Interpreter(model_content=_SMALLEST).allocate_tensors()
    except SystemError as error:
        if int(np.__version__.partition(".")[0]) >= 2:
            return (
                f"it was built for numpy 1, and here is numpy {np.__version__}; "
                "run: pip install 'numpy<2'"
            )
        return one_line(str(error))
    except Exception as error:
        return one_line(str(error)) + advice(error)
    return ""


def _name(precision: str) -> str:
    return f"cpu-litert-{precision}"


def _delegate_of(options: Mapping[str, str]) -> Optional[_Delegate]:
    told = _delegate_options(options["delegate_options"]) if "delegate_options" in options else {}
    library = options.get("delegate", "")
    if "delegate" not in options:
        if told:
            raise BadRequest("option 'delegate_options' needs option 'delegate'")
        return None
    if not library or (os.sep in library and not os.path.isabs(library)):
        raise BadRequest(
            f"option 'delegate' is the absolute path of a library on the board, not '{library}'"
        )
    return _Delegate(library, told)


def _delegate_options(text: str) -> dict[str, str]:
    """``key:value,key:value`` as a dictionary."""
    options: dict[str, str] = {}
    for part in text.split(","):
        match = _DELEGATE_OPTION.fullmatch(part)
        if match is None or match[1] in options:
            raise BadRequest(
                f"option 'delegate_options' is key:value,key:value with each key once; '{part}' is "
                "not like that"
            )
        options[match[1]] = match[2]
    return options


def _placement(
    maker: _Maker, nodes: Optional[Sequence[Node]], precision: str
) -> tuple[str, tuple[str, ...]]:
    """The compute unit of a graph, and its flags."""
    if nodes is None:
        return "unknown", ("placement:unknown",)
    flags = other_precisions(nodes, precision)
    left, total = nodes_left(nodes), len(own_nodes(nodes))
    asked = maker.xnnpack or maker.delegate is not None
    if len(left) == total and not asked:
        return "CPU", flags
    unit = maker.delegate.name[: _FLAG_CHARACTERS // 2] if maker.delegate else "XNNPACK"
    if not left:
        return unit, flags
    taken = total - len(left)
    return f"{unit if taken else 'CPU'} {taken}/{total}", (_fallback_flag(left), *flags)


def _fallback_flag(left: Sequence[Node]) -> str:
    """The operators that no delegate took, as one word: ``fallback:REVERSE_V2+GATHER``."""
    names = list(dict.fromkeys(_NOT_IN_FLAGS.sub("-", node.operator) for node in left))
    flag = ""
    for count in range(min(len(names), _NAMES_IN_FLAG), 0, -1):
        more = ["more"] if count < len(names) else []
        flag = "fallback:" + "+".join(names[:count] + more)
        if len(flag) <= _FLAG_CHARACTERS:
            break
    return flag[:_FLAG_CHARACTERS]


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
    return BadRequest(f"litert cannot read the graph: {text}")


def _typed_at_run_time(error: Exception) -> AgentError:
    text = one_line(str(error))
    return (OutOfMemory if _is_memory(error) else RuntimeCrashed)(f"litert: {text or 'no details'}")


def _is_memory(error: Exception) -> bool:
    # Without a word `allocate_tensors` fails where the arena cannot be had.
    text = str(error)
    return isinstance(error, MemoryError) or not text or "ailed to allocate" in text
