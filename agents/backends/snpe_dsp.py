"""Qualcomm's DSP by SNPE's command-line tools: target ``dsp-snpe-int8``.

The tools run on the board itself, where they are on its PATH, or on a phone over adb (``agent
serve --adb SERIAL``), where they lie in ``/data/local/tmp/snpe``. Each visit is a run of
``snpe-net-run`` on the DSP alone, with no fallback to the CPU, and ``snpe-diagview`` tells what the
calls took: one mean over all of them, so that every call of a visit has that time and the flag
``averaged``. A first run with times of layers, which slow it down, tells where each of them ran;
no latency is taken from it. With the option ``tool=snpe-throughput-net-run`` the visit is a second
of calls one after the other instead, as that program's own clock sees them.

SNPE reaches processors that QNN does not, down to Hexagon v65.

Written after SNPE's documentation and public logs of versions 2.9 and 2.37; it has met no board.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence

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
from ..errors import AgentError, BadRequest, BoardNotReady, RuntimeCrashed, UnsupportedOperator
from ..formats.snpe_file import SnpeArtifact, SnpeEdge, read
from ..phone import PHONE_NEEDS, Phone
from ..sandbox import Needs
from ..tools.snpe import Diagnosis, Throughput, read_diagview, read_throughput, snpe_error
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
_THROUGHPUT = "snpe-throughput-net-run"
_TIMERS = (_NET_RUN, _THROUGHPUT)
_OPTIONS = ("perf_profile", "tool")
_PROFILES = (
    "burst", "sustained_high_performance", "high_performance", "balanced", "default",
    "low_balanced", "high_power_saver", "power_saver", "low_power_saver", "extreme_power_saver",
    "system_settings",
)  # fmt: skip
_DOORS = ("/dev/adsprpc-smd", "/dev/fastrpc-cdsp", "/dev/fastrpc-adsp", "/dev/ion", "/dev/dma_heap")
_SKELETONS = ("/system/lib/rfsa/adsp", "/system/vendor/lib/rfsa/adsp", "/dsp")
_VERSION = re.compile(r"SNPE v(\d+(?:\.\d+)+)")
_TIMED, _WITH_LAYERS = "basic", "detailed"  # levels of profiling
_THROUGHPUT_S = 1
_LEFT_AT_MOST = 16  # folders of runs, before they are removed: a command on a phone takes a while
_LOG, _RESULTS = "SNPEDiag_0.log", "Result_0"
_MOST_OUTPUT_BYTES = 2**28
_UNIT, _RUNTIME = "DSP", "dsp"


def needs(context: Context) -> Needs:
    """Programs, a folder for their files, and the processor's devices or adb's server."""
    if context.adb:
        return PHONE_NEEDS
    folders = tuple(filter(None, (_folder_of(tool) for tool in (_NET_RUN, _DIAGVIEW))))
    skeletons = re.split("[;:]", os.environ.get("ADSP_LIBRARY_PATH", ""))
    read = (*PROGRAMS, *folders, *_SKELETONS, *filter(os.path.isabs, skeletons))
    return Needs(read=read, write=_DOORS, scratch_bytes=2**30, processes=True)


def _folder_of(tool: str) -> str:
    found = shutil.which(tool)
    return found.rpartition("/")[0] if found else ""


def targets(context: Context) -> list[TargetInfo]:
    """The one target, with the reason where it cannot be used."""
    version, device, reason = "", context.device_name, ""
    availability = Availability.UNAVAILABLE
    try:
        board = Board(_runner(context), context.adb)
        try:
            version = board.version()
            device = board.name() or device
            board.check(_DIAGVIEW)
            availability = board.availability()
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
            availability=availability,
            reason=reason,
            formats=_FORMATS,
            resident=False,
            device_time=True,
            options=_OPTIONS,
            defaults=(f"perf_profile={_PROFILES[0]}", f"tool={_TIMERS[0]}"),
        )
    ]


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> SnpeSession:
    """Opens the DSP of this board, or of a phone.

    Args:
        options: ``perf_profile``, by SNPE's names, and ``tool``, the program that times.

    Raises:
        BadRequest: an unknown option or value, or more than one thread.
        BoardNotReady: a tool is missing.
        Busy: the phone is in no state to be measured.
        DeviceLost: it does not answer.
    """
    check_options(target, _OPTIONS, options)
    check_threads(target, threads, 1)
    profile = choice_of(options, "perf_profile", _PROFILES)
    tool = choice_of(options, "tool", _TIMERS)
    board = Board(_runner(context), context.adb)
    try:
        board.check(_DIAGVIEW, tool)
    except AgentError:
        board.close()
        raise
    return SnpeSession(board, profile, tool)


def _runner(context: Context) -> CommandRunner:
    if context.adb:
        return AdbRunner(context.adb, os.getcwd())
    for tool in (_NET_RUN, _DIAGVIEW):
        if shutil.which(tool) is None:
            raise BoardNotReady(
                f"{tool} is not on this board's PATH; install SNPE there (docs/snapdragon.md), or "
                "serve a phone: agent serve --adb SERIAL"
            )
    return LocalRunner(os.getcwd())


class Board:
    """SNPE's tools on a board.

    Args:
        runner: of commands there.
        serial: of a phone; empty: this machine.

    Attributes:
        placed: paths of the graphs there of which every layer is known to run on the DSP.
    """

    def __init__(self, runner: CommandRunner, serial: str) -> None:
        self.runner = runner
        self.placed: set[str] = set()
        self._phone = Phone(runner) if serial else None
        self._runs = 0
        self._left: list[str] = []

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
        return self._phone.name() if self._phone else ""

    def availability(self) -> Availability:
        """Whether its times are those of a processor."""
        return self._phone.availability() if self._phone else Availability.AVAILABLE

    def check(self, *tools: str) -> None:
        """Looks at what a measurement needs there.

        Raises:
            BoardNotReady: one of these tools is missing.
            Busy: a phone is in no state to be measured.
        """
        for tool in tools:
            if self._phone is None and shutil.which(tool) is None:
                raise BoardNotReady(
                    f"{tool} is not on this board's PATH; install SNPE there (docs/snapdragon.md)"
                )
            path = f"{PHONE_SNPE}/bin/{tool}"
            if self._phone and self.runner.run(("test", "-x", path), COMMAND_S).status:
                raise BoardNotReady(
                    f"{tool} is not on the phone, or is no program: push it, and chmod 755 it "
                    "(docs/snapdragon.md)"
                )
        if self._phone:
            self._phone.check_battery()

    def put(self, content: bytes, suffix: str) -> str:
        """Brings a file to the board; its path there."""
        return self.runner.put(content, suffix)

    def run(self, dlc: str, inputs: str, profile: str, level: str) -> RunFolder:
        """Runs a network on the inputs of a list.

        Args:
            level: of profiling, by SNPE's names.

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
            f"--profiling_level={level}",
            "--use_native_input_files",
            "--use_native_output_files",
        )
        self._tool(words, TOOL_S)
        return RunFolder(self, folder, level)

    def throughput(self, dlc: str, profile: str, seconds: int) -> Throughput:
        """Runs a network again and again on inputs of the tool's own.

        Raises:
            AgentError: what the tool says went wrong.
        """
        words = (
            _THROUGHPUT,
            f"--container={dlc}",
            f"--duration={seconds}",
            "--use_dsp",
            f"--perf_profile={profile}",
        )
        return read_throughput(self._tool(words, TOOL_S).text)

    def diagnosis(self, log: str, layers_told: bool) -> Diagnosis:
        """What a log tells."""
        output = self._tool((_DIAGVIEW, f"--input_log={log}"), COMMAND_S)
        return read_diagview(output.text, layers_told)

    def conditions(self) -> Conditions:
        """Conditions of this machine, or of the phone."""
        return self._phone.conditions() if self._phone else read_conditions(children=True)

    def remove(self, folder: str) -> None:
        """Removes what a run left, together with what others did."""
        self._left.append(folder)
        if len(self._left) >= _LEFT_AT_MOST:
            self.runner.run(("rm", "-rf", *self._left), COMMAND_S)
            self._left.clear()

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
    """What a run left on the board; a context manager after which it may be removed."""

    def __init__(self, board: Board, folder: str, level: str) -> None:
        self._board, self._folder, self._level = board, folder, level

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self._board.remove(self._folder)

    def diagnosis(self) -> Diagnosis:
        """What its calls took."""
        return self._board.diagnosis(f"{self._folder}/{_LOG}", self._level == _WITH_LAYERS)

    def output(self, name: str) -> bytes:
        """An output of its first call."""
        path = f"{self._folder}/{_RESULTS}/{name}.raw"
        return self._board.runner.read(path, _MOST_OUTPUT_BYTES)


class SnpeSession(Session):
    """The DSP of one board with one performance profile and one program that times."""

    warms_up = False

    def __init__(self, board: Board, profile: str, tool: str) -> None:
        self._board = board
        self._profile, self._tool = profile, tool

    def load(self, content: bytes, format: str) -> SnpeGraph:
        check_format(TARGET, _FORMATS, format)
        artifact = read(content)
        for edge in artifact.inputs:
            if edge.dtype not in EIGHT_BITS:
                raise BadRequest(f"target '{TARGET}' takes 8 bits; '{edge.name}' is {edge.dtype}")
        return SnpeGraph(self._board, self._profile, self._tool, artifact)

    def conditions(self) -> Conditions:
        return self._board.conditions()

    def close(self) -> None:
        self._board.close()


class SnpeGraph(Loaded):
    """A network on the board."""

    def __init__(self, board: Board, profile: str, tool: str, artifact: SnpeArtifact) -> None:
        self.compute_unit, self.flags = _UNIT, ("averaged",)
        self._board, self._profile, self._tool = board, profile, tool
        self._edges = artifact
        self._dlc = board.put(artifact.dlc, ".dlc")
        self._inputs = tuple(_tensor(edge) for edge in artifact.inputs)
        self._preset = ""

    def timed_calls(self, count: int) -> list[Sample]:
        self._preset = self._preset or self._line(random_inputs(self._inputs))
        self._check_placement(self._preset)
        # The one mean that SNPE tells.
        return [self._mean(count)] * count

    def _mean(self, count: int) -> Sample:
        if self._tool == _THROUGHPUT:
            found = self._board.throughput(self._dlc, self._profile, _THROUGHPUT_S)
            if not found.runtime.startswith(_RUNTIME):
                raise UnsupportedOperator(f"{_THROUGHPUT} ran the graph on {found.runtime}")
            return Sample(found.inference_us / 1e3)
        inputs = self._board.put((self._preset * count).encode(), ".txt")
        with self._board.run(self._dlc, inputs, self._profile, _TIMED) as done:
            diagnosis = done.diagnosis()
        if not diagnosis.accelerator_us:
            raise UnsupportedOperator("SNPE tells of no time on the DSP, so it ran elsewhere")
        return Sample(diagnosis.total_us / 1e3, diagnosis.accelerator_us / 1e3)

    def _check_placement(self, line: str) -> None:
        """Refuses a graph of which a layer does not run on the DSP; asks once for each graph.

        Args:
            line: of an input list.
        """
        if self._dlc in self._board.placed:
            return
        inputs = self._board.put(line.encode(), ".txt")
        with self._board.run(self._dlc, inputs, self._profile, _WITH_LAYERS) as done:
            found = done.diagnosis()
        elsewhere = [runtime for runtime in found.runtimes if runtime != _UNIT]
        if elsewhere:
            on = sum(layer.runtime != _UNIT for layer in found.layers)
            raise UnsupportedOperator(
                f"SNPE ran {on} of {len(found.layers)} layers on {', '.join(elsewhere)}"
            )
        self._board.placed.add(self._dlc)

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_inputs(self._inputs, inputs)
        line = self._line(inputs)
        self._check_placement(line)
        listed, found = self._board.put(line.encode(), ".txt"), {}
        with self._board.run(self._dlc, listed, self._profile, _TIMED) as done:
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
