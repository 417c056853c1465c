"""Arm Ethos-U by Arm's own compiler: targets ``npu-ethosu65-int8`` and ``npu-ethosu55-int8``.

Nothing runs here. Vela compiles a graph for an accelerator in a system, both named by options, and
calculates how many cycles it takes; the time of a call is these cycles over the system's clock.
Every number is labelled: the availability is ESTIMATED, and ``estimated`` is among the flags.
`docs/ethos-u.md` has what the estimate is and is not.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..conditions import Conditions
from ..errors import BadRequest, UnsupportedOperator
from ..formats.tflite_file import TENSOR_TYPES
from ._distribution import distribution_version
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
    choice_of,
    one_line,
)

_FORMATS = ("tflite",)
_PRECISION = "int8"


@dataclass(frozen=True)
class Series:
    """A series of accelerators, with what vela takes where it is told nothing else.

    Args:
        runtime: its name in a target's.
        device: its name in tables.
        architecture: its name in vela.
        systems: how the names of its system configurations begin.
        accelerator_configs: its accelerators, the default first.
        system_config, memory_mode: the defaults.
    """

    runtime: str
    device: str
    architecture: str
    systems: str
    accelerator_configs: tuple[str, ...]
    system_config: str
    memory_mode: str

    @property
    def target(self) -> str:
        """Name of the target."""
        return f"npu-{self.runtime}-{_PRECISION}"

    @property
    def defaults(self) -> dict[str, str]:
        """Options that hold where they are not given."""
        return {
            "accelerator_config": self.accelerator_configs[0],
            "memory_mode": self.memory_mode,
            "system_config": self.system_config,
        }


SERIES = (
    Series(
        runtime="ethosu65",
        device="ethos-u65",
        architecture="EthosU65",
        systems="Ethos_U65_",
        accelerator_configs=("ethos-u65-256", "ethos-u65-512"),
        system_config="Ethos_U65_Client_Server",
        memory_mode="Dedicated_Sram_384KB",
    ),
    Series(
        runtime="ethosu55",
        device="ethos-u55",
        architecture="EthosU55",
        systems="Ethos_U55_",
        accelerator_configs=("ethos-u55-128", "ethos-u55-256", "ethos-u55-64", "ethos-u55-32"),
        system_config="Ethos_U55_High_End_Embedded",
        memory_mode="Shared_Sram",
    ),
)
_ON_CPU = "Passthrough"
"""What vela makes of an operator that it leaves to the CPU."""

OPTIONS = ("accelerator_config", "system_config", "memory_mode")


def targets(context: Context) -> list[TargetInfo]:
    """One target for each series, with the reason where vela is not there or does not fit."""
    # What is used of vela is no stable interface, and its estimates differ between versions.
    version, reason = distribution_version(
        "ethos-u-vela", wanted=(5, 2), module="ethosu.regor", extra="ethosu", python=(3, 10)
    )
    return [
        TargetInfo(
            name=series.target,
            device=series.device,
            processor="npu",
            runtime=series.runtime,
            runtime_version=version and f"vela-{version}",
            precision=_PRECISION,
            availability=Availability.UNAVAILABLE if reason else Availability.ESTIMATED,
            reason=reason,
            formats=_FORMATS,
            options=OPTIONS,
            defaults=tuple(f"{name}={value}" for name, value in series.defaults.items()),
        )
        for series in SERIES
    ]


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> VelaSession:
    """Opens an accelerator in a system.

    Args:
        options: ``accelerator_config``, and names of a system configuration and a memory mode in
            the file that comes with vela.

    Raises:
        BadRequest: an unknown option or value, values that do not go together, or more than the
            one thread that there is.
    """
    series = next(series for series in SERIES if series.target == target)
    check_options(target, OPTIONS, options)
    check_threads(target, threads, 1)
    return VelaSession(series, Compiler(series, options))


@dataclass(frozen=True)
class Compilation:
    """What vela calculates of a graph.

    Args:
        cycles: of one inference, on the NPU.
        operators: how many operators the graph has.
        on_cpu: kinds of those that are left to the CPU, one for each, by vela's names.
    """

    cycles: int
    operators: int
    on_cpu: tuple[str, ...]


class Compiler:
    """Vela for one accelerator in one system: all that is used of its interface.

    The command line ``vela`` does the same, but for reading and writing files.

    Args:
        series: of the accelerator.
        options: as for `open_target`.

    Attributes:
        clock_hz: of the accelerator in this system.
    """

    def __init__(self, series: Series, options: Mapping[str, str]) -> None:
        from ethosu import regor
        from ethosu.vela.architecture_features import CONFIG_FILES_PATH, ArchitectureFeatures
        from ethosu.vela.errors import VelaError

        path = Path(CONFIG_FILES_PATH, "Arm", "vela.ini")
        ini = path.read_text(encoding="utf-8")
        known = configparser.ConfigParser()
        known.read_string(ini)
        values = {
            "accelerator_config": series.accelerator_configs,
            "system_config": _section_names(known, "System_Config", series.systems),
            "memory_mode": _section_names(known, "Memory_Mode"),
        }
        asked = {**series.defaults, **options}
        chosen = {name: choice_of(asked, name, values[name]) for name in OPTIONS}
        try:
            architecture = ArchitectureFeatures(
                vela_config_files=[str(path)],
                max_blockdep=ArchitectureFeatures.MAX_BLOCKDEP,
                verbose_config=False,
                arena_cache_size=None,
                **chosen,
            )
        except VelaError as error:
            raise BadRequest(
                f"memory mode '{chosen['memory_mode']}' does not go with system configuration "
                f"'{chosen['system_config']}': {one_line(str(error))}"
            ) from error
        self.clock_hz = float(architecture.core_clock)
        self._regor = regor
        self._architecture = series.architecture
        self._system = (
            f"[architecture]\nmacs={architecture.num_macs_per_cycle}\ncores={architecture.ncores}\n"
            f"[vela]\nsystem_config_name={chosen['system_config']}\n"
            f"memory_mode_name={chosen['memory_mode']}\n{ini}"
        )
        # As the command line has them where it is told nothing; `enable_db` brings the operators.
        self._settings = (
            "[compiler]\nenable_db=true\noutput_format=TFLite\ncop_format=COP1\n"
            f"[scheduler]\noptimize=Performance\narena_size_limit={architecture.arena_cache_size}\n"
            "cpu_tensor_alignment=16\ntensor_allocator=HillClimb\n"
        )

    def compile(self, content: bytes) -> Compilation:
        """Compiles a `.tflite` file.

        Raises:
            UnsupportedOperator: vela does not, or leaves all of it to the CPU.
        """
        try:
            compiled = self._regor.compile(
                self._architecture, content, "TFLITE", self._system, options=self._settings
            )
        except MemoryError:
            raise
        except Exception as error:  # of any kind: what C++ threw
            raise UnsupportedOperator(f"vela: {one_line(str(error))}") from error
        tables = compiled.opt_database.tables
        kinds: dict[str, str] = dict(_columns(tables["source"], "id", "operator"))
        placed = _columns(tables["perf"], "source_id", "operator")
        on_cpu = dict.fromkeys(source for source, operator in placed if operator == _ON_CPU)
        found = Compilation(
            int(compiled.perf_report.totalCycles),
            len(kinds),
            tuple(kinds[source] for source in on_cpu),
        )
        if not found.cycles:
            raise UnsupportedOperator(
                f"vela leaves every operator to the CPU: {', '.join(sorted(set(found.on_cpu)))}"
            )
        return found


class VelaSession(Session):
    """An accelerator with a clock of its own, on which nothing but calls takes time."""

    def __init__(self, series: Series, compiler: Compiler) -> None:
        self._series = series
        self._compiler = compiler
        self._clock_ms = 0.0

    def load(self, content: bytes, format: str) -> VelaGraph:
        target = self._series.target
        check_format(target, _FORMATS, format)
        inputs, outputs = _tensors(content)
        for tensor in (*inputs, *outputs):
            if tensor.dtype != _PRECISION:
                raise BadRequest(
                    f"'{tensor.name}' is {tensor.dtype}; {target} takes {_PRECISION} inputs and "
                    "outputs: quantise the graph"
                )
        found = self._compiler.compile(content)
        return VelaGraph(self, found, 1e3 * found.cycles / self._compiler.clock_hz, inputs)

    def elapsed_ms(self) -> float:
        return self._clock_ms

    def advance(self, duration_ms: float) -> None:
        """Calls take some time."""
        self._clock_ms += duration_ms

    def conditions(self) -> Conditions:
        """None: the accelerator is not there, and this machine's are not its own."""
        return Conditions()


class VelaGraph(Loaded):
    """What vela calculates of one graph.

    Operators that vela leaves to the CPU count as no time: the estimate is then a lower bound.
    """

    def __init__(
        self,
        session: VelaSession,
        found: Compilation,
        call_ms: float,
        inputs: tuple[TensorInfo, ...],
    ) -> None:
        self._session = session
        self._call_ms = call_ms
        self._inputs = inputs
        self.compute_unit, self.flags = "NPU", ("estimated",)
        if found.on_cpu:
            on_npu = found.operators - len(found.on_cpu)
            self.compute_unit = f"NPU {on_npu}/{found.operators}"
            kinds = "+".join(sorted(set(found.on_cpu)))
            self.flags = ("estimated", f"fallback:{kinds}", "lower-bound")

    def timed_calls(self, count: int) -> list[Sample]:
        self._session.advance(count * self._call_ms)
        return [Sample(self._call_ms)] * count

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises BadRequest: there are none."""
        raise BadRequest("an estimated target computes no outputs; it tells times only")

    def close(self) -> None:
        """Nothing is held."""


def _tensors(content: bytes) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs of a `.tflite` file that passed the check of its format."""
    from ethosu.vela.tflite.Model import Model

    graph: Any = Model.GetRootAs(content, 0).Subgraphs(0)

    def info(index: int) -> TensorInfo:
        tensor = graph.Tensors(index)
        shape = tuple(tensor.Shape(axis) for axis in range(tensor.ShapeLength()))
        name = tensor.Name() or b""  # a file need not have any
        return TensorInfo(name.decode(), TENSOR_TYPES[tensor.Type()].lower(), shape)

    inputs = [info(graph.Inputs(i)) for i in range(graph.InputsLength())]
    outputs = [info(graph.Outputs(i)) for i in range(graph.OutputsLength())]
    return tuple(inputs), tuple(outputs)


def _section_names(ini: configparser.ConfigParser, kind: str, start: str = "") -> list[str]:
    """Names of a configuration file's sections of a kind, ``Kind.NAME``."""
    sections = (section.partition(".") for section in ini.sections())
    return [name for k, _, name in sections if k == kind and name.startswith(start)]


def _columns(table: Any, *names: str) -> list[Any]:
    """Some columns of one of vela's tables, row by row."""
    places = [table.header.index(name) for name in names]
    return [tuple(row[place] for place in places) for row in table.data]
