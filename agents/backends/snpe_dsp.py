"""Qualcomm's DSP by SNPE's command-line tools: target ``dsp-snpe-int8``.

The tools run on the board itself, where they are on its PATH, or on a phone over adb (``agent
serve --adb SERIAL``), where they lie in ``/data/local/tmp/snpe``. Each visit is a run of
``snpe-net-run`` on the DSP alone, with no fallback to the CPU, and ``snpe-diagview`` tells what the
calls took: one mean over all of them, so that every call of a visit has that time and the flag
``averaged``. SNPE reaches processors that QNN does not, down to Hexagon v65.

Written after SNPE's documentation and public logs of versions 2.9 and 2.37; it has met no board.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np

from ..commands import (
    COMMAND_S,
    PROGRAMS,
    TOOL_S,
    AdbRunner,
    CommandRunner,
    LocalRunner,
    Output,
    run_tool,
)
from ..conditions import Conditions, read_conditions
from ..errors import AgentError, BadRequest, RuntimeCrashed, UnsupportedOperator
from ..formats.snpe_file import SnpeArtifact, SnpeEdge, read
from ..phone import PHONE_NEEDS, phone_conditions, phone_name
from ..sandbox import Needs
from ..tools.snpe import Diagnosis, read_diagview, snpe_error
from .base import (
    EIGHT_BITS,
    Availability,
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    check_format,
    check_inputs,
    check_options,
    check_threads,
    choice_of,
    one_line,
    random_inputs,
)

TARGET = "dsp-snpe-int8"
PHONE_SNPE = "/data/local/tmp/snpe"
"""Where SNPE's programs (``bin``) and libraries (``lib``) lie on a phone."""

_FORMATS = ("snpe",)
_NET_RUN, _DIAGVIEW = "snpe-net-run", "snpe-diagview"
_OPTIONS = ("perf_profile",)
_PROFILES = (
    "burst", "sustained_high_performance", "high_performance", "balanced", "default",
    "low_balanced", "high_power_saver", "power_saver", "low_power_saver", "extreme_power_saver",
    "system_settings",
)  # fmt: skip
_DOORS = ("/dev/adsprpc-smd", "/dev/fastrpc-cdsp", "/dev/fastrpc-adsp", "/dev/ion", "/dev/dma_heap")
_SKELETONS = ("/system/lib/rfsa/adsp", "/system/vendor/lib/rfsa/adsp", "/dsp")
_VERSION = re.compile(r"SNPE v(\d+(?:\.\d+)+)")
_LOG, _RESULTS = "SNPEDiag_0.log", "Result_0"
_MOST_OUTPUT_BYTES = 2**28
_UNIT = "DSP"


def needs(context: Context) -> Needs:
    """Programs, a folder for their files, and the processor's devices or adb's server."""
    if context.adb:
        return PHONE_NEEDS
    folders = tuple(filter(None, (_folder_of(tool) for tool in (_NET_RUN, _DIAGVIEW))))
    read = (*PROGRAMS, *folders, *_SKELETONS)
    return Needs(read=read, write=_DOORS, scratch_bytes=2**30, processes=True)


def _folder_of(tool: str) -> str:
    found = shutil.which(tool)
    return found.rpartition("/")[0] if found else ""


def targets(context: Context) -> list[TargetInfo]:
    """The one target, with the reason where it cannot be used."""
    version, device, reason = "", context.device_name, ""
    try:
        board = Board(_runner(context), context.adb)
        try:
            version = board.version()
            device = board.name() or device
        finally:
            board.close()
    except AgentError as error:
        reason = str(error)
    return [
        TargetInfo(
            name=TARGET,
            device=device or "hexagon-dsp",
            processor="dsp",
            runtime="snpe",
            runtime_version=version,
            precision="int8",
            availability=Availability.UNAVAILABLE if reason else Availability.AVAILABLE,
            reason=reason,
            formats=_FORMATS,
            resident=False,
            device_time=True,
            options=_OPTIONS,
            defaults=(f"perf_profile={_PROFILES[0]}",),
        )
    ]


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> SnpeSession:
    """Opens the DSP of this board, or of a phone.

    Args:
        options: ``perf_profile``, by SNPE's names.

    Raises:
        BadRequest: an unknown option or value, more than one thread, or no tools.
        DeviceLost: the phone does not answer.
    """
    check_options(target, _OPTIONS, options)
    check_threads(target, threads, 1)
    profile = choice_of(options, "perf_profile", _PROFILES)
    return SnpeSession(Board(_runner(context), context.adb), profile)


def _runner(context: Context) -> CommandRunner:
    if context.adb:
        return AdbRunner(context.adb, os.getcwd())
    for tool in (_NET_RUN, _DIAGVIEW):
        if shutil.which(tool) is None:
            raise BadRequest(
                f"{tool} is not on this board's PATH; install SNPE there (docs/snapdragon.md), or "
                "serve a phone: agent serve --adb SERIAL"
            )
    return LocalRunner(os.getcwd())


class Board:
    """SNPE's tools on a board.

    Args:
        runner: of commands there.
        serial: of a phone; empty: this machine.
    """

    def __init__(self, runner: CommandRunner, serial: str) -> None:
        self.runner = runner
        self._phone = bool(serial)
        self._runs = 0

    def version(self) -> str:
        """SNPE's version."""
        output = self._tool((_NET_RUN, "--version"), COMMAND_S)
        found = _VERSION.search(output.text)
        if found is None:
            raise RuntimeCrashed(
                f"{_NET_RUN} --version printed '{one_line(output.text, 120)}', which is no version"
            )
        return found[1]

    def name(self) -> str:
        """What a phone calls itself; empty on this machine."""
        return phone_name(self.runner) if self._phone else ""

    def put(self, content: bytes, suffix: str) -> str:
        """Brings a file to the board; its path there."""
        return self.runner.put(content, suffix)

    def run(self, dlc: str, inputs: str, profile: str) -> RunFolder:
        """Runs a network on the inputs of a list.

        Raises:
            AgentError: what the tool says went wrong.
        """
        self._runs += 1
        folder = f"{self.runner.folder}/run-{self._runs}"
        words = (
            _NET_RUN,
            f"--container={dlc}",
            f"--input_list={inputs}",
            f"--output_dir={folder}",
            "--use_dsp",
            f"--perf_profile={profile}",
            "--profiling_level=detailed",
            "--use_native_input_files",
            "--use_native_output_files",
        )
        self._tool(words, TOOL_S)
        return RunFolder(self, folder)

    def diagnosis(self, log: str) -> Diagnosis:
        """What a log tells."""
        return read_diagview(self._tool((_DIAGVIEW, f"--input_log={log}"), COMMAND_S).text)

    def conditions(self) -> Conditions:
        """Conditions of this machine, or of the phone."""
        return phone_conditions(self.runner) if self._phone else read_conditions(children=True)

    def remove(self, folder: str) -> None:
        """Removes what a run left."""
        self.runner.run(("rm", "-rf", folder), COMMAND_S)

    def close(self) -> None:
        """Removes everything that was brought there."""
        self.runner.close()

    def _tool(self, words: Sequence[str], timeout_s: float) -> Output:
        """One of SNPE's tools, which must end well."""
        environment: dict[str, str] = {}
        if self._phone:
            words = (f"{PHONE_SNPE}/bin/{words[0]}", *words[1:])
            environment["LD_LIBRARY_PATH"] = f"{PHONE_SNPE}/lib"
            environment["ADSP_LIBRARY_PATH"] = ";".join((f"{PHONE_SNPE}/lib", *_SKELETONS))
        return run_tool(self.runner, words, timeout_s, environment, snpe_error)


class RunFolder:
    """What a run left on the board; a context manager that removes it."""

    def __init__(self, board: Board, folder: str) -> None:
        self._board, self._folder = board, folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self._board.remove(self._folder)

    def diagnosis(self) -> Diagnosis:
        """What its calls took."""
        return self._board.diagnosis(f"{self._folder}/{_LOG}")

    def output(self, name: str) -> bytes:
        """An output of its first call."""
        path = f"{self._folder}/{_RESULTS}/{name}.raw"
        return self._board.runner.read(path, _MOST_OUTPUT_BYTES)


class SnpeSession(Session):
    """The DSP of one board with one performance profile."""

    def __init__(self, board: Board, profile: str) -> None:
        self._board = board
        self._profile = profile

    def load(self, content: bytes, format: str) -> SnpeGraph:
        check_format(TARGET, _FORMATS, format)
        artifact = read(content)
        for edge in artifact.inputs:
            if edge.dtype not in EIGHT_BITS:
                raise BadRequest(f"target '{TARGET}' takes 8 bits; '{edge.name}' is {edge.dtype}")
        return SnpeGraph(self._board, self._profile, artifact)

    def conditions(self) -> Conditions:
        return self._board.conditions()

    def close(self) -> None:
        self._board.close()


class SnpeGraph(Loaded):
    """A network on the board."""

    def __init__(self, board: Board, profile: str, artifact: SnpeArtifact) -> None:
        self.compute_unit, self.flags = _UNIT, ("averaged",)
        self._board, self._profile = board, profile
        self._edges = artifact
        self._dlc = board.put(artifact.dlc, ".dlc")
        self._inputs = tuple(_tensor(edge) for edge in artifact.inputs)
        self._preset: Optional[str] = None

    def timed_calls(self, count: int) -> list[Sample]:
        if self._preset is None:
            self._preset = self._line(random_inputs(self._inputs))
        inputs = self._board.put((self._preset * count).encode(), ".txt")
        with self._board.run(self._dlc, inputs, self._profile) as done:
            found = done.diagnosis()
        elsewhere = [runtime for runtime in found.runtimes if runtime != _UNIT]
        if elsewhere:
            on = sum(layer.runtime != _UNIT for layer in found.layers)
            raise UnsupportedOperator(
                f"SNPE ran {on} of {len(found.layers)} layers on {', '.join(elsewhere)}"
            )
        # The one mean that SNPE tells.
        return [Sample(found.total_us / 1e3, found.accelerator_us / 1e3)] * count

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_inputs(self._inputs, inputs)
        line = self._board.put(self._line(inputs).encode(), ".txt")
        found = {}
        with self._board.run(self._dlc, line, self._profile) as done:
            for edge in self._edges.outputs:
                content = done.output(edge.name)
                size = int(np.prod(edge.shape)) * np.dtype(edge.dtype).itemsize
                if len(content) != size:
                    raise RuntimeCrashed(
                        f"{_NET_RUN} gave {len(content)} bytes for '{edge.name}', not {size}"
                    )
                found[edge.name] = np.frombuffer(content, edge.dtype).reshape(edge.shape)
        return found

    def close(self) -> None:
        """Nothing is held: the files go with the session."""

    def _line(self, inputs: Mapping[str, np.ndarray]) -> str:
        """A line of an input list: a file on the board for each input."""
        words = [
            f"{name}:={self._board.put(np.ascontiguousarray(array).tobytes(), '.raw')}"
            for name, array in inputs.items()
        ]
        return " ".join(words) + "\n"


def _tensor(edge: SnpeEdge) -> TensorInfo:
    return TensorInfo(edge.name, edge.dtype, edge.shape)
