"""SNPE's tools that are not there: they check their arguments and answer in the genuine form.

Their times are what the simulated Hexagon 685 takes for the very graph in the DLC that was brought
to the board, so that a cached or a guessed answer shows. The DLC here is a ZIP archive, as the
genuine one is, that holds the canonical ONNX graph.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from hurricane.agents.backends._simulation_device import load_device, price
from hurricane.agents.backends._simulation_graph import read_graph
from hurricane.ops.artifacts import snpe_file

DEVICE = load_device("hexagon685-dsp")
VERSION = "2.37.0.250724"
CALL_US = 700
"""What a call takes beside the processor's own time."""

OPTIONS = {
    "--container", "--input_list", "--output_dir", "--use_dsp", "--perf_profile",
    "--profiling_level", "--use_native_input_files", "--use_native_output_files",
}  # fmt: skip
LEVELS = {"basic": 1, "detailed": 3}
"""Levels of profiling, and by what factor they slow the processor down."""
THROUGHPUT_OPTIONS = {"--container", "--duration", "--use_dsp", "--perf_profile"}


def fake_archive(model: bytes, precision: str, samples: object) -> bytes:
    """In place of `snpe_file.convert`: the canonical graph as the DLC."""
    graph = onnx.load_from_string(model).graph
    weights = {tensor.name for tensor in graph.initializer}

    def entries(values) -> list[dict[str, object]]:
        return [
            {
                "name": value.name,
                "shape": [d.dim_value for d in value.type.tensor_type.shape.dim],
                "dtype": "uint8",
                "scale": 0.0078125,
                "zero_point": 128,
            }
            for value in values
            if value.name not in weights
        ]

    edges = {"inputs": entries(graph.input), "outputs": entries(graph.output)}
    members = {snpe_file.MODEL: fake_dlc(model), snpe_file.EDGES: json.dumps(edges).encode()}
    return snpe_file._archive(members, b"")


def fake_dlc(model: bytes) -> bytes:
    """A DLC that holds a graph."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("model", (1980, 1, 1, 0, 0, 0)), model)
    return file.getvalue()


def true_us(model: bytes) -> int:
    """What the processor takes for a graph, in whole µs."""
    return max(1, round(1e3 * price(read_graph(model), DEVICE).total_ms))


@dataclass(eq=False)
class FakeSnpe:
    """The tools of one board.

    Attributes:
        change: what becomes of each text that diagview prints; may be anything.
        fails: what snpe-net-run says instead of running; empty: it runs.
        takes: whether the processor takes a graph; of others snpe-net-run says 402.
        runs: how many times it ran.
        calls: in each run.
        runtime: that the throughput tool says it ran on.
        root: folder that stands for a phone's file system; empty: this machine's own.
    """

    change: Callable[[str], str] = lambda text: text
    fails: str = ""
    takes: Callable[[bytes], bool] = lambda model: True
    runs: int = 0
    root: str = ""
    runtime: str = "dsp_fixed8_tf"
    arguments: list[list[str]] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    def programs(self) -> dict[str, Callable[[Sequence[str]], tuple[int, str]]]:
        """The tools by name; each takes its arguments, and gives its status and what it prints."""
        return {
            "snpe-net-run": self.net_run,
            "snpe-throughput-net-run": self.throughput,
            "snpe-diagview": self.diagview,
        }

    def net_run(self, words: Sequence[str]) -> tuple[int, str]:
        self.arguments.append(list(words))
        if list(words) == ["--version"]:
            return 0, f"SNPE v{VERSION}\n"
        if self.fails:
            return 1, self.fails
        given = _options(words, OPTIONS)
        if given is None or given["--profiling_level"] not in LEVELS:
            return 1, "arguments are missing or unknown\n"
        try:
            with zipfile.ZipFile(given["--container"]) as archive:
                model = archive.read("model")
            lines = Path(given["--input_list"]).read_text().splitlines()
            entries = [re.fullmatch(r"input:=(\S+)", line) for line in lines]
            sizes = {len(Path(self.root + entry[1]).read_bytes()) for entry in entries if entry}
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            return 1, f"error_code=910; error_message=cannot read {error}; line_no=1\n"
        if not self.takes(model):
            return 1, "error_code=402; error_message=Network partition has failed; line_no=950\n"
        shape = onnx.load_from_string(model).graph.input[0].type.tensor_type.shape.dim
        wanted = 1
        for dim in shape:
            wanted *= dim.dim_value
        if not lines or not all(entries) or sizes != {wanted}:
            return 1, "error_code=310; error_message=inputs do not fit; line_no=2\n"
        folder = Path(given["--output_dir"])
        (folder / "Result_0").mkdir(parents=True)
        level = given["--profiling_level"]
        us = true_us(model) * LEVELS[level]
        (folder / "SNPEDiag_0.log").write_text(json.dumps({"us": us, "level": level}))
        (folder / "Result_0" / "output.raw").write_bytes(self.output(model))
        self.runs += 1
        self.calls.append(len(lines))
        return 0, "-" * 20 + "\nModel String: N/A\n"

    def throughput(self, words: Sequence[str]) -> tuple[int, str]:
        self.arguments.append(list(words))
        if self.fails:
            return 1, self.fails
        given = _options(words, THROUGHPUT_OPTIONS)
        if given is None:
            return 1, "arguments are missing or unknown\n"
        with zipfile.ZipFile(given["--container"]) as archive:
            us = true_us(archive.read("model")) + CALL_US
        count = 10**6 * int(given["--duration"]) // us
        return 0, (
            f"[Thread 0 - {self.runtime}] {1e6 / us:.2f} infs/sec - Number of images processed: "
            f"{count} - Build time: 650001 microseconds - Elapsed time: {count * us} microseconds "
            f"- Real time: {count * us - 9} microseconds - Teardown time: 10001 microseconds - "
            f"Batch : 1\nTotal throughput: {1e6 / us:.2f} infs/sec     \n"
        )

    def output(self, model: bytes) -> bytes:
        """Zeros as many as the graph has outputs."""
        size = 1
        for dim in onnx.load_from_string(model).graph.output[0].type.tensor_type.shape.dim:
            size *= dim.dim_value
        return bytes(size)

    def diagview(self, words: Sequence[str]) -> tuple[int, str]:
        (word,) = words
        name, _, path = word.partition("=")
        if name != "--input_log":
            return 1, f"unknown argument {word}\n"
        try:
            found = json.loads(Path(path).read_text())
        except OSError:
            return 1, "cannot open the log\n"
        return 0, self.change(diagview_text(found["us"], found["level"] == "detailed"))


def _options(words: Sequence[str], wanted: set[str]) -> dict[str, str] | None:
    """Options and their values; None: they are not those that are wanted, each once."""
    given = dict(word.split("=", 1) if "=" in word else (word, "") for word in words)
    return given if set(given) == wanted and len(given) == len(words) else None


def diagview_text(accelerator_us: int, layers: bool) -> str:
    """What snpe-diagview prints, in the form of version 2.37."""
    forward_us = accelerator_us + CALL_US - 10
    text = f"""\
Log File Created: Tue Mar  3 09:14:27 2026
Time Scale: 1e-06
Epoch Timestamp: 1772529267123456 Steady Clock Timestamp: 81234567
Software library version: {VERSION}175447_124859
------------------------------------------------------------

SNPE Execute Statistics (Averaged):
----------------------------------------
  Total Inference Time: {accelerator_us + CALL_US} us
  Forward Propagate Time: {forward_us} us
  RPC Execute Time: {accelerator_us + 200} us
  Snpe Accelerator Time: {accelerator_us + 100} us
  Num times yield occurred: 0
  Accelerator Time: {accelerator_us} us
"""
    if layers:
        text += f"""
  Per-Subnet Execution Times:\x20
  ------------------------------
    Subnet 0 (DSP) : {accelerator_us * 10} cycles

  Per-Layer Execution Times:\x20
  ------------------------------
    0: Input OpId_2 (cycles) : 2121 cycles : DSP
    1: body (cycles) : {accelerator_us * 10} cycles : DSP
"""
    return text
