"""What SNPE's tools print: snpe-diagview and snpe-throughput-net-run, versions 2.9 to 2.37.

Both forms of diagview are those of public logs (2.9.0 on SM8550, 2.37.0); a form that neither is
raises `BadOutput`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

from ..backends.base import one_line
from ..errors import AgentError, BoardNotReady, DeviceLost, OutOfMemory, UnsupportedOperator
from .text import BadOutput, Lines, whole

DIAGVIEW = "snpe-diagview"
THROUGHPUT = "snpe-throughput-net-run"

_RULE = whole(r"-{3,}")
_TIME_SCALE = whole(r"Time Scale: (\S+)")
_VERSION = whole(r"Software library version: (\d+(?:\.\d+)+)\S*")
_SECTIONS = {
    "Dnn Runtime Load/Deserialize/Create/De-Init Statistics:": "create",
    "SNPE Create Statistics:": "create",
    "Average SNPE Statistics:": "execute",
    "SNPE Execute Statistics (Averaged):": "execute",
    "Per-Subnet Execution Times:": "subnets",
    "Layer Times:": "layers",
    "Per-Layer Execution Times:": "layers",
}
_TIME = whole(
    r"(Total Inference Time|Forward Propagate Time|RPC Execute Time|Snpe Accelerator Time|"
    r"Accelerator Time|Misc Accelerator Time): (\d+)( us)?"
)
_PASSED_OVER = {
    "header": (
        whole(r"Interpreting file serialized with Flatbuffer"),
        whole(r"CREATE NETWORK: \d+"),
        whole(r"Log File Created: .+"),
        whole(r"Epoch Timestamp: \d+ Steady Clock Timestamp: \d+"),
    ),
    "create": (
        whole(
            r"(?:Load|Deserialize|Create|Init|De-Init|Create Network\(s\)|RPC Init Time|"
            r"Snpe Accelerator Init Time|Accelerator Init Time): \d+(?: us)?"
        ),
    ),
    "execute": (whole(r"Num times yield occurred: \d+"),),
    "subnets": (whole(r"Subnet \d+ \(\w+\) : \d+ (?:us|cycles)"),),
}
_LAYER = whole(r"(\d+): (?:(.*) : )?(\d+) (us|cycles) : (\w+)")
_NO_TIME_LIMIT_US = 3600 * 10**6


@dataclass(frozen=True)
class Layer:
    """What one layer of a network took.

    Attributes:
        number: in the log.
        name: empty in older logs.
        value, unit: ``us`` or ``cycles``.
        runtime: where it ran (``DSP``, ``CPU`` …).
    """

    number: int
    name: str
    value: int
    unit: str
    runtime: str


@dataclass(frozen=True)
class Diagnosis:
    """What snpe-diagview tells of the runs in a log: times in µs, each a mean over all of them.

    Attributes:
        version: of SNPE's library.
        total_us: of an inference, as the program that asked for it sees it.
        forward_us: without what is done around the network.
        rpc_us: of the call to the processor and back.
        accelerator_us: on the processor itself. These two are 0 where no processor is called.
        layers: in the log's order; none in a log without their times.
    """

    version: str
    total_us: int
    forward_us: int
    rpc_us: int
    accelerator_us: int
    layers: tuple[Layer, ...]

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Where layers ran, each once."""
        return tuple(sorted({layer.runtime for layer in self.layers}))


def read_diagview(text: str, layers_told: bool = True) -> Diagnosis:
    """Reads what snpe-diagview printed of a log.

    Args:
        layers_told: whether the log is one of ``--profiling_level=detailed``, with times of layers,
            or of ``basic``, without.

    Raises:
        BadOutput: anything in it is unknown, is missing or stands twice.
    """
    lines = Lines(DIAGVIEW, text)
    section = "header"
    seen: list[str] = []
    versions: list[str] = []
    scales: list[str] = []
    times: dict[str, list[int]] = {}
    layers: list[Layer] = []
    for line in lines:
        if not line or _RULE.match(line):
            continue
        if line in _SECTIONS:
            section = _SECTIONS[line]
            if section in seen:
                raise lines.error("has a part twice", line)
            seen.append(section)
        elif section == "header" and (found := _VERSION.match(line)):
            versions.append(found[1])
        elif section == "header" and (found := _TIME_SCALE.match(line)):
            scales.append(found[1])
        elif section == "execute" and (found := _TIME.match(line)):
            if not found[3] and found[2] != "0":
                raise lines.error("has a time without a unit", line)
            times.setdefault(found[1], []).append(int(found[2]))
        elif section == "layers" and (found := _LAYER.match(line)):
            layers.append(Layer(int(found[1]), found[2] or "", int(found[3]), found[4], found[5]))
        elif not any(pattern.match(line) for pattern in _PASSED_OVER.get(section, ())):
            raise lines.error("has a line that is not known", line)
    lines.only("Software library version", versions)
    lines.only("Time Scale", scales)
    if scales != ["1e-06"]:
        raise lines.error("has another time scale than 1e-06", scales[0])
    for name in (
        "Total Inference Time",
        "Forward Propagate Time",
        "RPC Execute Time",
        "Accelerator Time",
    ):
        lines.only(name, times.get(name, []))
    numbers = [layer.number for layer in layers]
    if layers_told and not layers:
        raise lines.error("has no times of layers; is the log of --profiling_level=detailed?")
    if layers and not layers_told:
        raise lines.error("has times of layers; is the log of --profiling_level=basic?")
    if numbers != sorted(set(numbers)):
        raise lines.error("has layers that do not follow each other")
    found_times = {name: values[0] for name, values in times.items()}
    total_us, forward_us = (
        found_times["Total Inference Time"],
        found_times["Forward Propagate Time"],
    )
    rpc_us, accelerator_us = found_times["RPC Execute Time"], found_times["Accelerator Time"]
    if not 0 < forward_us <= total_us <= _NO_TIME_LIMIT_US or rpc_us > forward_us:
        raise lines.error("has times that contradict each other")
    if accelerator_us > (rpc_us or 0):
        raise lines.error("has times that contradict each other")
    return Diagnosis(versions[0], total_us, forward_us, rpc_us, accelerator_us, tuple(layers))


@dataclass(frozen=True)
class Throughput:
    """What snpe-throughput-net-run tells of one instance.

    Attributes:
        runtime: it ran on, by SNPE's name (``dsp_fixed8_tf``).
        inferences: how many.
        elapsed_us: that they took together.
    """

    runtime: str
    inferences: int
    elapsed_us: int

    @property
    def inference_us(self) -> float:
        """The mean of one inference, in µs."""
        return self.elapsed_us / self.inferences


_INSTANCE = whole(
    r"\[(?:Thread|Instance) 0 - (\w+)\] (\d+(?:\.\d+)?) infs/sec - "
    r"Number of images processed: (\d+) - Build time: \d+ microseconds - "
    r"Elapsed time: (\d+) microseconds - Real time: \d+ microseconds - "
    r"Teardown time: \d+ microseconds - Batch : 1"
)
_SUM = whole(r"Total throughput: (\d+(?:\.\d+)?) infs/sec")
_AGREES = 0.01  # share by which a rate and what it is the rate of may differ


def read_throughput(text: str) -> Throughput:
    """Reads what snpe-throughput-net-run printed of one instance.

    Raises:
        AgentError: what the tool says went wrong; see `snpe_error`.
        BadOutput: anything in it is unknown, is missing or stands twice.
    """
    error = snpe_error(text)
    if error is not None:
        raise error
    lines = Lines(THROUGHPUT, text)
    instances: list[tuple[Throughput, float]] = []
    sums: list[float] = []
    for line in lines:
        if not line:
            continue
        if found := _INSTANCE.match(line):
            rate = float(found[2])
            instances.append((Throughput(found[1], int(found[3]), int(found[4])), rate))
        elif found := _SUM.match(line):
            sums.append(float(found[1]))
        else:
            raise lines.error("has a line that is not known", line)
    lines.only("infs/sec of an instance", instances)
    lines.only("Total throughput", sums)
    result, rate = instances[0]
    if not result.inferences or not 0 < result.elapsed_us <= _NO_TIME_LIMIT_US:
        raise lines.error("tells of no inference")
    for given in (rate, sums[0]):
        if abs(given * result.inference_us / 1e6 - 1) > _AGREES:
            raise lines.error("has numbers that contradict each other")
    return result


_ERROR = re.compile(r"error_code=(\d+); error_message=([^.;\n]+)")
_ADVICE: dict[int, tuple[type[AgentError], str]] = {
    402: (
        UnsupportedOperator,
        "the processor does not take all of the graph, or its runtime is not there: see what "
        "snpe-platform-validator says",
    ),
    303: (DeviceLost, "the processor's service does not answer: restart the board"),
    804: (
        BoardNotReady,
        "the DLC is of another version of SNPE: convert it with that of the board",
    ),
    500: (OutOfMemory, "the processor has no memory left for the graph"),
}
_MISSING = re.compile(r"(?:CANNOT LINK EXECUTABLE|error while loading shared libraries)[^\n]*")


def snpe_error(text: str) -> Optional[AgentError]:
    """What SNPE's tools say went wrong, with advice; None: they say nothing of that kind."""
    missing = _MISSING.search(text)
    if missing:
        return BoardNotReady(
            f"{one_line(missing[0])}: a library of SNPE is not where the tool looks; on a phone "
            "push it to the folder lib of snpe, on a board put its folder on the agent's "
            "LD_LIBRARY_PATH (docs/snapdragon.md)"
        )
    found = _ERROR.search(text)
    if found is None:
        return None
    code, message = int(found[1]), one_line(found[2]).rstrip(". ")
    kind, advice = _ADVICE.get(code, (BadOutput, "see SNPE's list of error codes"))
    return kind(f"SNPE {code}: {message}; {advice}")
