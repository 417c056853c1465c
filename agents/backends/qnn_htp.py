"""Snapdragon's tensor processor (HTP) by QNN: targets ``dsp-qnn-int8`` and ``dsp-qnn-fp16``.

onnxruntime's QNN provider compiles each graph for the processor; nothing may fall back to the
CPU. What it makes of a graph is kept for the next time, by graph, chip, versions and settings. On
a board with Linux it runs there, and the profile that the provider writes has the processor's own
time of each call. On an x86-64 machine the same provider has QNN's compiler and an emulator:
there a target is *emulated* for the chip that the option ``soc`` names. It tells which graphs
compile, where their nodes run, and what comes out; an emulator's times are those of the machine
that it runs on, so nothing is timed there, and its profile is not even asked for.

Of the provider this file uses what onnxruntime 1.32 and onnxruntime-qnn 2.7 offer; the board's part
has been run in the emulator only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ...ops.cached_files import checked, prune, read_checked, write_file
from ...ops.errors import BadRequest as BadValue
from ...ops.socs import Soc, check_binary, soc_of
from ..conditions import read_text
from ..errors import AgentError, BadRequest, BoardNotReady, Internal, UnsupportedOperator
from ..sandbox import Needs
from ..tools.qnn import read_profile
from ._distribution import distribution_version
from ._onnxruntime import outputs_of, typed
from .base import (
    Availability,
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    check_eight_bits,
    check_format,
    check_options,
    check_threads,
    choice_of,
    one_line,
    random_inputs,
    time_calls,
)

_FORMATS = {"int8": ("onnx-qdq",), "fp16": ("onnx",)}
_RUNTIME = "qnn"
_DISTRIBUTION, _MODULE = "onnxruntime-qnn", "onnxruntime_qnn"
_EMULATES = platform.machine() in ("x86_64", "AMD64")
_DOORS = ("/dev/fastrpc-cdsp", "/dev/fastrpc-cdsp-secure", "/dev/adsprpc-smd", "/dev/dma_heap")
"""Devices of the kernel through which a program reaches the processor."""

_FILE_BYTES = 256 * 2**20
_KEPT_BYTES = 2**30
"""Of all graphs that are kept compiled; the least recently used ones go first."""
_CHIP = Path("/sys/devices/soc0/soc_id")
"""Qualcomm's number of a board's chip: boards may share a folder."""

_EMULATED_OPTIONS = ("soc",)
_BOARD_OPTIONS = ("htp_performance_mode", "htp_graph_finalization_optimization_mode", "vtcm_mb")
_SOC = "SM8650"
_MODES = (
    "burst", "default", "balanced", "high_performance", "sustained_high_performance",
    "high_power_saver", "power_saver", "low_power_saver", "extreme_power_saver", "low_balanced",
)  # fmt: skip
_EFFORTS = ("3", "0", "1", "2")
_VTCM_MB = re.compile(r"[1-9][0-9]?")
_UNIT = "HTP"
_ON_PROCESSOR = "QNNExecutionProvider"
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}


def needs(context: Context) -> Needs:
    """Where graphs are kept compiled; on a board, the processor, and a file for the profile."""
    kept = (context.cache,) if context.cache else ()
    if _EMULATES:
        return Needs(write=kept, file_bytes=_FILE_BYTES if kept else 0)
    return Needs(write=(*_DOORS, *kept), file_bytes=_FILE_BYTES, scratch_bytes=_FILE_BYTES)


def targets(context: Context) -> list[TargetInfo]:
    """One target for each precision, with the reason where it cannot be used."""
    version, reason = distribution_version(
        _DISTRIBUTION, wanted=(2, 7), module=_MODULE, extra="qnn", python=(3, 11)
    )
    if not reason and not _EMULATES and not any(map(os.path.exists, _DOORS[:3])):
        reason = "this machine has no HTP: none of " + ", ".join(_DOORS[:3]) + " is there"
    usable = Availability.EMULATED if _EMULATES else Availability.AVAILABLE
    defaults = (f"soc={_SOC}",) if _EMULATES else (f"htp_performance_mode={_MODES[0]}",)
    return [
        TargetInfo(
            name=f"dsp-{_RUNTIME}-{precision}",
            device="hexagon-htp" if _EMULATES else context.device_name or "hexagon-htp",
            processor="dsp",
            runtime=_RUNTIME,
            runtime_version=version,
            precision=precision,
            availability=Availability.UNAVAILABLE if reason else usable,
            reason=reason,
            formats=_FORMATS[precision],
            device_time=not _EMULATES,
            options=_EMULATED_OPTIONS if _EMULATES else _BOARD_OPTIONS,
            defaults=defaults,
        )
        for precision in ("int8", "fp16")
    ]


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> QnnSession:
    """Opens the processor, or the emulator for a chip.

    Args:
        options: ``soc`` where it is emulated; on a board ``htp_performance_mode``,
            ``htp_graph_finalization_optimization_mode`` and ``vtcm_mb``.

    Raises:
        BadRequest: an unknown option or value, or more than the one thread that there is.
    """
    precision = target.rpartition("-")[2]
    check_options(target, _EMULATED_OPTIONS if _EMULATES else _BOARD_OPTIONS, options)
    check_threads(target, threads, 1)
    soc = None
    settings: dict[str, str] = {}
    if _EMULATES:
        try:
            soc = soc_of(options.get("soc", _SOC), precision)
        except BadValue as error:
            raise BadRequest(f"option 'soc': {error}") from error
        settings["soc_model"] = str(soc.number)  # it knows more numbers than names
    else:
        settings["htp_performance_mode"] = choice_of(options, "htp_performance_mode", _MODES)
        effort = "htp_graph_finalization_optimization_mode"
        settings[effort] = choice_of(options, effort, _EFFORTS)
        if "vtcm_mb" in options:
            if not _VTCM_MB.fullmatch(options["vtcm_mb"]):
                raise BadRequest(f"option 'vtcm_mb' is 1 to 99, not '{options['vtcm_mb']}'")
            settings["vtcm_mb"] = options["vtcm_mb"]
    return QnnSession(target, precision, soc, settings, context.cache)


class QnnSession(Session):
    """The provider with one chip: a process holds no more, as settings of one stay for the next.

    Args:
        target: its name.
        precision: of it.
        soc: the chip that is emulated; None: the one of this board.
        settings: of the provider.
        cache: folder in which compiled graphs are kept; empty: none.
    """

    def __init__(
        self,
        target: str,
        precision: str,
        soc: Optional[Soc],
        settings: Mapping[str, str],
        cache: str = "",
    ) -> None:
        self.timed = soc is None
        self._target, self._precision, self._soc = target, precision, soc
        self._runtime: Any = importlib.import_module("onnxruntime")
        provider: Any = importlib.import_module(_MODULE)
        self._name = provider.get_ep_name()
        self._runtime.register_execution_provider_library(self._name, provider.get_library_path())
        self._settings = {"backend_path": provider.get_qnn_htp_path(), **settings}
        self._loaded = 0
        chip = soc.name if soc is not None else read_text(_CHIP)
        versions = (self._runtime.__version__, importlib.metadata.version(_DISTRIBUTION))
        self._key = json.dumps((chip, versions, sorted(settings.items())))
        self._folder = Path(cache, "qnn") if cache else None

    def load(self, content: bytes, format: str) -> QnnGraph:
        check_format(self._target, _FORMATS[self._precision], format)
        kept = self._kept(content)
        compiled = read_checked(kept) if kept else None
        if compiled is not None:
            with contextlib.suppress(Exception):  # of no use: it is made anew
                return self._started(compiled)
        compiled = self._compiled(content)
        graph = self._started(compiled)
        if kept is not None and self._folder is not None:
            with contextlib.suppress(OSError):  # then it takes as long again the next time
                write_file(kept, checked(compiled))
                prune(self._folder, _KEPT_BYTES)
        return graph

    def _kept(self, content: bytes) -> Optional[Path]:
        """Where a graph is kept compiled."""
        if self._folder is None:
            return None
        digest = hashlib.sha256(self._key.encode() + hashlib.sha256(content).digest()).hexdigest()
        return self._folder / digest[:2] / digest

    def _compiled(self, content: bytes) -> bytes:
        """A graph compiled for the processor: an ONNX file around QNN's context binary."""
        try:
            compiler = self._runtime.ModelCompiler(
                self._options(strict=True), content, embed_compiled_data_into_model=True
            )
            return compiler.compile_to_bytes()
        except Exception as error:
            raise self._refusal(content, error) from error

    def _started(self, compiled: bytes) -> QnnGraph:
        """A compiled graph in the processor."""
        if self._soc is not None:
            try:
                check_binary(compiled, self._soc)
            except BadValue as error:
                raise Internal(str(error)) from error
        profile = self._profile_path()
        more = {"profiling_level": "basic", "profiling_file_path": profile} if profile else {}
        try:
            session = self._runtime.InferenceSession(
                compiled, sess_options=self._options(strict=True, **more)
            )
        except Exception as error:
            raise typed(error, "QNN") from error
        _check_placement(_placement(session))
        inputs = tuple(_tensor_info(node) for node in session.get_inputs())
        if self._precision == "int8":
            check_eight_bits(self._target, inputs)
        return QnnGraph(session, inputs, profile)

    def close(self) -> None:
        self._runtime.unregister_execution_provider_library(self._name)

    def _options(self, strict: bool, **settings: str) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4  # what matters is in its errors
        options.intra_op_num_threads = 1
        if strict:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        devices = [d for d in self._runtime.get_ep_devices() if d.ep_name == self._name][:1]
        if not devices:
            raise BoardNotReady(
                f"{_DISTRIBUTION} finds no processor on this board; is it a Snapdragon with an HTP?"
            )
        options.add_provider_for_devices(devices, {**self._settings, **settings})
        return options

    def _profile_path(self) -> str:
        """Where the profile of the next graph goes; empty: there is none."""
        if not self.timed:
            return ""
        self._loaded += 1
        return os.path.abspath(f"profile-{self._loaded}.csv")

    def _refusal(self, content: bytes, error: Exception) -> AgentError:
        """Why the processor does not take a graph: the nodes that it would leave to the CPU."""
        if "assigned to the default CPU EP" not in str(error):
            return typed(error, "QNN")
        try:
            session = self._runtime.InferenceSession(
                content, sess_options=self._options(strict=False)
            )
            left = [node for unit, nodes in _placement(session) for node in nodes if unit]
        except Exception:  # what is known is enough
            left = []
        if not left:
            return UnsupportedOperator("QNN does not take the graph; is its backend library there?")
        some = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        return UnsupportedOperator(f"QNN does not take {some}")


class QnnGraph(Loaded):
    """A compiled graph.

    Args:
        session: of it.
        inputs: of it.
        profile: the file that the provider appends each call's times to; empty: none.
    """

    def __init__(self, session: Any, inputs: tuple[TensorInfo, ...], profile: str) -> None:
        self.compute_unit, self.flags = _UNIT, ()
        self._session = session
        self._inputs = inputs
        self._profile = Path(profile) if profile else None
        self._read = 0
        self._head = ""
        self._binding = session.io_binding()
        for name, array in random_inputs(inputs).items():
            self._binding.bind_cpu_input(name, array)
        for node in session.get_outputs():
            self._binding.bind_output(node.name, "cpu")

    def timed_calls(self, count: int) -> list[Sample]:
        if self._profile is None:
            raise BadRequest("an emulator has no latency: its times are those of this machine")
        run, binding = self._session.run_with_iobinding, self._binding
        try:
            samples = time_calls(lambda: run(binding), count)
        except Exception as error:
            raise typed(error, "QNN") from error
        executions = read_profile(self._new_profile(self._profile))
        if len(executions) != count:
            raise Internal(f"QNN's profile has {len(executions)} inferences of {count}")
        return [
            Sample(
                sample.wall_ms,
                None if found.accelerator_us is None else found.accelerator_us / 1e3,
            )
            for sample, found in zip(samples, executions)
        ]

    def _new_profile(self, path: Path) -> str:
        """What the provider has appended since the last time, below the header."""
        with path.open(encoding="utf-8", newline="") as file:
            if not self._head:
                self._head = file.readline()
                self._read = file.tell()
            file.seek(self._read)
            new = file.read()
            self._read = file.tell()
        return self._head + new

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return outputs_of(self._session, self._inputs, inputs, "QNN")

    def close(self) -> None:
        del self._binding, self._session
        if self._profile is not None:
            self._profile.unlink(missing_ok=True)


def _placement(session: Any) -> list[tuple[str, list[str]]]:
    """Nodes by where they run, as ``name (kind)``; empty: on the processor."""
    found = []
    for part in session.get_provider_graph_assignment_info():
        unit = "" if part.ep_name == _ON_PROCESSOR else str(part.ep_name)
        nodes = [f"'{one_line(n.name, 80)}' ({n.op_type})" for n in part.get_nodes()]
        found.append((unit, nodes))
    return found


def _check_placement(placement: Sequence[tuple[str, list[str]]]) -> None:
    """Refuses a graph of which anything does not run on the processor, or nothing is told."""
    elsewhere = [unit for unit, _ in placement if unit]
    if elsewhere or not any(nodes for _, nodes in placement):
        raise UnsupportedOperator(
            f"QNN runs a part on {elsewhere[0]}" if elsewhere else "QNN does not tell where it runs"
        )


def _tensor_info(node: Any) -> TensorInfo:
    if node.type not in _DTYPES or not all(isinstance(size, int) for size in node.shape):
        raise BadRequest(
            f"input '{node.name}' is {node.type} of shape {node.shape}; QNN's targets take "
            "float32 or 8 bits and fixed shapes"
        )
    return TensorInfo(node.name, _DTYPES[node.type], tuple(node.shape))
