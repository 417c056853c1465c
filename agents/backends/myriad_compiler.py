"""The compiler of OpenVINO's MYRIAD plugin without a stick: target ``vpu-myriad_compiler-fp16``.

Nothing runs and nothing is timed. The plugin of OpenVINO 2021.4 compiles a graph for a Myriad X and
dumps the stages that it would execute before it finds that there is no stick; a graph's flags count
them. `docs/design/myriad-compiler.md` says what they are good for.

The plugin looks for a stick for five seconds each time. That is made to find none, whatever is
there; every graph is compiled in a process of its own, and some of them side by side.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from ..conditions import Conditions
from ..errors import (
    AgentError,
    BadRequest,
    OutOfMemory,
    RuntimeCrashed,
    UnsupportedOperator,
    error_of,
)
from ..sandbox import Needs
from ..sandbox.kernel import PR_SET_PDEATHSIG, prctl
from ..tools.myriad import StageList, Unit, read_stages
from ._myriad_plugin import (
    DEVICE,
    LOCK,
    hide_devices,
    layer_not_taken,
    load_libusb,
    lock_problem,
    make_lock,
    open_plugin,
)
from ._openvino_legacy import (
    Engine,
    check_opset,
    is_out_of_memory,
    network_inputs,
    reading_error,
    reason_of,
    wheel_version,
)
from .base import (
    Availability,
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    check_format,
    check_options,
    check_threads,
)

TARGET = "vpu-myriad_compiler-fp16"
AT_ONCE = 4
"""Graphs that are compiled side by side: of a compilation's six seconds five are waiting."""

_FORMATS = ("onnx",)
_BUILD = "2021.4.2-3976-0943ed67223-refs/pull/539/head"
"""Of the plugin of the wheel, whose dumps are known; they are no stable interface."""

_PLATFORM = "2480"  # Myriad X
_NO_STICK = f"there is no available devices with platform {_PLATFORM}"


def needs(context: Context) -> Needs:
    """Files for graphs and dumps, a copy of the process for each graph, and the plugin's lock.

    The lock is taken for the search for a stick. None is to be found, so it need not be waited for.
    """
    make_lock()
    return Needs(read=(LOCK,), scratch_bytes=2**31, forks=True, no_locks=True)


def targets(context: Context) -> list[TargetInfo]:
    """The one target, with the reason where the compiler is not there."""
    version, reason = _version()
    return [
        TargetInfo(
            name=TARGET,
            device="myriad-x",
            processor="vpu",
            runtime="myriad_compiler",
            runtime_version=version,
            precision="fp16",
            availability=Availability.UNAVAILABLE if reason else Availability.COMPILED,
            reason=reason,
            formats=_FORMATS,
        )
    ]


def _version() -> tuple[str, str]:
    """OpenVINO's version and "", or "" and why its MYRIAD compiler is not there."""
    version, reason = wheel_version()
    if reason:
        return "", reason
    if not sys.platform.startswith("linux"):
        return "", "MYRIAD's compiler is used on Linux only"
    if problem := lock_problem():
        return "", problem
    try:
        plugin = _open().plugin(DEVICE)
    except (BadRequest, OSError) as error:
        return "", str(error)
    if not plugin.endswith(_BUILD):
        return "", f"openvino's MYRIAD plugin is {plugin}; dumps are known of {_BUILD} alone"
    return version, ""


def _open() -> Engine:
    """The core, with its MYRIAD plugin, which finds no stick of this machine's.

    Raises:
        BadRequest: there is no plugin, or it does not load.
        OSError: there is no libusb, or an old one.
    """
    hide_devices(load_libusb())
    return open_plugin()


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> CompilerSession:
    """Opens the compiler.

    Raises:
        BadRequest: an option, or more than one thread.
    """
    check_options(target, (), options)
    check_threads(target, threads, 1)
    return CompilerSession()


class CompilerSession(Session):
    """The compiler, with the graphs that are in work."""

    timed = False
    ahead = AT_ONCE

    def __init__(self) -> None:
        self._work: dict[str, _Compilation] = {}

    def expect(self, content: bytes, format: str) -> None:
        with contextlib.suppress(UnsupportedOperator):
            if format in _FORMATS:
                check_opset(content)
                self._begun(content)

    def load(self, content: bytes, format: str) -> CompiledGraph:
        check_format(TARGET, _FORMATS, format)
        check_opset(content)
        key = self._begun(content)
        try:
            return CompiledGraph(self._work[key].result())
        finally:
            self._work.pop(key).end()

    def conditions(self) -> Conditions:
        """None: no device is there, and this machine's are not its own."""
        return Conditions()

    def close(self) -> None:
        for compilation in self._work.values():
            compilation.end()
        self._work.clear()

    def _begun(self, content: bytes) -> str:
        """Begins to compile a graph unless it is in work; what it is kept by."""
        key = hashlib.sha256(content).hexdigest()
        if key not in self._work:
            self._work[key] = _Compilation(content, key)
        return key


class CompiledGraph(Loaded):
    """What the compiler made of one graph."""

    def __init__(self, found: Compiled) -> None:
        self.compute_unit = DEVICE
        self.flags = flags_of(found.stages)
        self._inputs = found.inputs

    def timed_calls(self, count: int) -> list[Sample]:
        """Raises BadRequest: there are no times."""
        raise BadRequest("where a graph is only compiled there is no latency")

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises BadRequest: there are none."""
        raise BadRequest("where a graph is only compiled there are no outputs")

    def close(self) -> None:
        """Nothing is held."""


def flags_of(stages: StageList) -> tuple[str, ...]:
    """What a report says of a graph's stages.

    Returns:
        ``hardware:N``, ``shave:N``, ``dma:N``: stages of each unit; ``cycles:N``: of those in
        hardware; ``shave-bytes:N``, ``dma-bytes:N``: that these read and write; ``cmx-bytes:N``: of
        memory on the chip; ``shave-Prod:N``: SHAVE stages of each kind.
    """
    shave, dma = stages.of(Unit.SHAVE), stages.of(Unit.DMA)
    kinds = Counter(stage.type for stage in shave)
    moved = {
        name: sum(stage.ddr_bytes + stage.cmx_bytes for stage in some)
        for name, some in (("shave", shave), ("dma", dma))
    }
    return (
        f"hardware:{len(stages.of(Unit.HARDWARE))}",
        f"shave:{len(shave)}",
        f"dma:{len(dma)}",
        f"cycles:{stages.cycles}",
        f"shave-bytes:{moved['shave']}",
        f"dma-bytes:{moved['dma']}",
        f"cmx-bytes:{stages.cmx_bytes}",
        *(f"shave-{kind}:{kinds[kind]}" for kind in sorted(kinds)),
    )


@dataclass(frozen=True)
class Compiled:
    """A graph that compiled: its stages and inputs."""

    stages: StageList
    inputs: tuple[TensorInfo, ...]


class _Compilation:
    """One graph in a process of its own."""

    def __init__(self, content: bytes, key: str) -> None:
        self._paths = [os.path.join(os.getcwd(), f"{key}{end}") for end in (".onnx", ".dot")]
        graph, dump = self._paths
        with open(graph, "wb") as file:
            file.write(content)
        # Forked, so that it is in the sandbox; the plugin is in no process but these.
        fork: Any = multiprocessing.get_context("fork")
        self._answer: Connection
        self._answer, told = fork.Pipe(duplex=False)
        self._process: BaseProcess = fork.Process(
            target=_compile, args=(graph, dump, told, os.getpid()), daemon=True
        )
        self._process.start()
        told.close()

    def result(self) -> Compiled:
        """Waits for what came of it.

        Raises:
            UnsupportedOperator: it does not compile.
            BadRequest: it cannot be read, or an input has no fixed shape.
            RuntimeCrashed: the compiler died, or its dump is not understood.
        """
        try:
            kind, message, inputs = self._answer.recv()
        except EOFError:
            self._process.join()
            raise RuntimeCrashed(_death_of(self._process.exitcode)) from None
        if kind:
            raise error_of(kind, message)
        with open(self._paths[1], encoding="utf-8") as file:
            return Compiled(read_stages(file.read()), inputs)

    def end(self) -> None:
        """Ends the process, and removes its files."""
        self._process.kill()
        self._process.join()
        self._answer.close()
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _death_of(status: Any) -> str:
    name = signal.Signals(-status).name if status and status < 0 else f"status {status}"
    return f"MYRIAD's compiler died ({name})"


def _compile(graph: str, dump: str, answer: Connection, parent: int) -> None:
    """In the new process: compiles a graph, and tells an error's kind and text, and the inputs."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # the plugin prints warnings there
    try:
        answer.send((0, "", _compiled(graph, dump)))
    except AgentError as error:
        answer.send((int(error.kind), str(error), ()))
    except Exception as error:
        answer.send((int(RuntimeCrashed.kind), f"MYRIAD's compiler: {reason_of(error)}", ()))


def _compiled(graph: str, dump: str) -> tuple[TensorInfo, ...]:
    """Compiles a graph into a dump; its inputs."""
    engine = _open()
    try:
        network = engine.read(graph)
    except Exception as error:
        raise reading_error(error) from error
    inputs = network_inputs(network)
    settings = {
        "VPU_MYRIAD_PLATFORM": f"VPU_MYRIAD_{_PLATFORM}",
        "MYRIAD_DUMP_INTERNAL_GRAPH_FILE_NAME": dump,
        "MYRIAD_DUMP_ALL_PASSES": "NO",
    }
    try:
        engine.load(network, DEVICE, settings)
    except Exception as error:
        # It has compiled by then.
        if _NO_STICK not in str(error):
            raise _failed(error) from error
    return inputs


def _failed(error: Exception) -> AgentError:
    """What a failure to compile stands for, by the plugin's words."""
    text = reason_of(error)
    if not_taken := layer_not_taken(text):
        return UnsupportedOperator(not_taken)
    kind = RuntimeCrashed
    if is_out_of_memory(error):
        kind = OutOfMemory
    elif "Failed to compile" in text:
        kind = UnsupportedOperator
    return kind(f"MYRIAD's compiler: {text}")
