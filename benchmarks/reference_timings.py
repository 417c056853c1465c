"""Are the agent's times those of other people's tools, and what does the agent add to them?

Times the same graphs in turns with the agent (`warm_ms`, as a table gets it), with a plain loop
over the runtime in a process of its own, and, for OpenVINO, with its benchmark_app: one thread on
one core, tools in shuffled order for each few graphs. Then sends a batch that is loaded already,
and compares what the client waits with the sum of the inference times in it.

    python benchmarks/reference_timings.py --target cpu-openvino-fp32 --json

All are compared by the median, which is what `warm_ms` holds and benchmark_app prints; a plain
loop beside benchmark_app tells what Python's call adds to the runtime's own counter. A tool's
retest is how far one of its repetitions lies from the one before. Two tools agree on a graph if
their ratio is within 5% of one, or within twice the larger retest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from hurricane.agents.backends.base import allowed_cores
from hurricane.agents.client import private_agent
from hurricane.agents.telemetry import turn_off_telemetry
from hurricane.ops.artifacts import suffix_of
from hurricane.ops.artifacts.cache import cached
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.graph import prepare_templates
from hurricane.ops.pool import select_operators
from hurricane.profiler.plan import Graph, graph_bytes, parse_layers, plan_row
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession
from hurricane.profiler.target import parse_target

OPERATORS = "SEP_3,SEP_7,MB_3_1,MB_5_3,MB_7_6,MB_3_6_SE,Choice_3,Choice_x_SE"
LAYERS = "imagenet224:0,5,17"

WARM_UP, CALLS = 10, 50
"""Calls of the plain loop before and while timing; benchmark_app makes one and as many."""

BLOCK = 6
"""Graphs that one tool times before the next tool's turn."""

TOLERANCE = 0.05

AGENT, LOOP, BENCHMARK_APP = "agent", "loop", "benchmark_app"

COMPARED = ((AGENT, LOOP), (AGENT, BENCHMARK_APP), (LOOP, BENCHMARK_APP))

Tool = Callable[[Sequence[Graph]], list[np.ndarray]]
"""Times graphs in one turn; for each the times of its calls in ms, or just their median."""


def main() -> None:
    turn_off_telemetry()
    arguments = parse_arguments()
    try:
        result = run(arguments)
    except HurricaneError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    if not arguments.json:
        show(result)
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cpu-onnxruntime-fp32", help=" or ".join(LOOPS))
    parser.add_argument("--operators", default=OPERATORS, metavar="NAMES")
    parser.add_argument("--layers", default=LAYERS)
    parser.add_argument("--repetitions", type=int, default=8, metavar="N", help="at least 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> dict:
    """Both checks on one private agent.

    Raises:
        BadRequest: an argument that cannot be met.
        HurricaneError: benchmark_app is missing or fails.
    """
    request = parse_target(arguments.target)
    if request.name not in LOOPS or request.threads != 1:
        raise BadRequest(f"--target {arguments.target}: take one of {', '.join(LOOPS)}")
    if arguments.repetitions < 2:
        raise BadRequest(f"--repetitions {arguments.repetitions}: there is no retest below 2")
    layers = parse_layers(arguments.layers)
    operators = select_operators(arguments.operators)

    def graphs_at(shapes) -> list[Graph]:
        return [plan_row(o.name, s).alone for o in operators for s in shapes if o.applies_to(s)]

    graphs = graphs_at(layers.shapes)
    batch = graphs_at(dict.fromkeys(layers.backbone.layers))
    if not graphs:
        raise BadRequest("none of these operators applies to any of these layers")
    prepare_templates([piece for graph in batch for piece in graph])
    core = allowed_cores()[-1]  # the one that the agent takes
    with tempfile.TemporaryDirectory() as folder, private_agent() as client:
        session = TargetSession.open(client, request)
        suffix = suffix_of(session.recipe.format)
        paths = {graph: Path(folder) / f"{i}{suffix}" for i, graph in enumerate(graphs)}
        for graph, path in paths.items():  # the very files that the agent gets
            path.write_bytes(cached(partial(graph_bytes, graph), session.recipe).content)
        tools: dict[str, Tool] = {
            AGENT: partial(time_by_agent, session),
            LOOP: partial(time_by_loop, request.name, core, paths),
        }
        if request.name.startswith("cpu-openvino"):
            tools[BENCHMARK_APP] = partial(time_by_benchmark_app, find_benchmark_app(), core, paths)
        overhead = time_batch(session, batch)
        times = time_in_turns(tools, graphs, arguments.repetitions, arguments.seed)
    compared = {
        f"{one}/{other}": [
            Agreement.of(*pair) for pair in zip(times[one], times[other], strict=True)
        ]
        for one, other in COMPARED
        if other in tools
    }
    return {
        "target": str(session.target),
        "core": core,
        "repetitions": arguments.repetitions,
        "overall": {name: summarise(found) for name, found in compared.items()},
        "batch": overhead,
        "graphs": [
            {"operator": graph[0].name, "shape": str(graph[0].shape)}
            | {name: found[index].facts() for name, found in compared.items()}
            for index, graph in enumerate(graphs)
        ],
    }


@dataclass(frozen=True)
class Agreement:
    """One tool's time of a graph beside another's; retests are fractions."""

    one_ms: float
    other_ms: float
    one_retest: float
    other_retest: float

    @classmethod
    def of(cls, one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> Agreement:
        """Pools the turns of each.

        Args:
            one, other: times of calls in ms, an array for each turn.
        """
        return cls(
            float(np.median(np.concatenate(one))),
            float(np.median(np.concatenate(other))),
            retest([float(np.median(turn)) for turn in one]),
            retest([float(np.median(turn)) for turn in other]),
        )

    @property
    def ratio(self) -> float:
        """One tool's time over the other's."""
        return self.one_ms / self.other_ms

    @property
    def limit(self) -> float:
        """How far the ratio may be from one."""
        return max(TOLERANCE, 2 * self.one_retest, 2 * self.other_retest)

    @property
    def within(self) -> bool:
        """Whether the two agree."""
        return abs(self.ratio - 1) <= self.limit

    def facts(self) -> dict[str, float | bool]:
        """For the JSON object."""
        return asdict(self) | {"ratio": self.ratio, "limit": self.limit, "within": self.within}


def retest(turns_ms: Sequence[float]) -> float:
    """The median change from one turn to the next, a fraction; at least two turns."""
    times = np.asarray(turns_ms)
    return float(np.median(np.abs(times[1:] / times[:-1] - 1)))


def summarise(found: Sequence[Agreement]) -> dict[str, float]:
    """What holds over all graphs."""
    ratios = np.array([a.ratio for a in found])
    off = np.abs(ratios - 1)
    return {
        "ratio": float(np.median(ratios)),
        "ratio_lowest": float(ratios.min()),
        "ratio_highest": float(ratios.max()),
        "rms_deviation": math.sqrt(float(np.mean(off**2))),
        "share_within_5_percent": float(np.mean(off <= TOLERANCE)),
        "share_within_limit": float(np.mean([a.within for a in found])),
        "one_retest": float(np.median([a.one_retest for a in found])),
        "other_retest": float(np.median([a.other_retest for a in found])),
    }


def time_in_turns(
    tools: dict[str, Tool], graphs: Sequence[Graph], repetitions: int, seed: int
) -> dict[str, list[list[np.ndarray]]]:
    """Times all graphs with all tools in shuffled order.

    Returns:
        For each tool and graph, in the order given, the times in ms of each repetition.
    """
    shuffle = random.Random(seed).shuffle
    times: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in graphs] for name in tools}
    for _ in range(repetitions):
        order = list(range(len(graphs)))
        shuffle(order)
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            turns = list(tools)
            shuffle(turns)
            for name in turns:
                found = tools[name]([graphs[i] for i in block])
                for index, samples_ms in zip(block, found, strict=True):
                    times[name][index].append(samples_ms)
    return times


def time_by_agent(session: TargetSession, graphs: Sequence[Graph]) -> list[np.ndarray]:
    """The calls that a table takes ``warm_ms`` from."""
    protocol = TimingProtocol()
    digests = [session.digest_of(graph) for graph in graphs]
    results = session.time(digests, protocol.loop(-1))
    return [wall_ms_of(results[d])[:, protocol.loop_skipped :].reshape(-1) for d in digests]


def time_by_loop(
    target: str, core: int, paths: dict[Graph, Path], graphs: Sequence[Graph]
) -> list[np.ndarray]:
    """Loops over each graph in one new process that is pinned before it loads the runtime."""
    files = [str(paths[graph]) for graph in graphs]
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, os.sched_setaffinity, (0, {core})) as process:
        return process.submit(loop_over, target, files).result()


def time_by_benchmark_app(
    program: str, core: int, paths: dict[Graph, Path], graphs: Sequence[Graph]
) -> list[np.ndarray]:
    """OpenVINO's own tool, a process for each graph, allowed on one core only.

    Raises:
        HurricaneError: it fails, or prints no latency.
    """
    options = "-d CPU -api sync -hint none -nstreams 1 -nthreads 1 -pin YES -infer_precision f32"
    found = []
    for graph in graphs:
        command = [program, "-m", str(paths[graph]), *options.split(), "-niter", str(CALLS)]
        with pinned(core):
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
            raise HurricaneError(f"benchmark_app ended with status {done.returncode}: {last}")
        found.append(np.array([parse_median_ms(done.stdout)]))
    return found


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes started meanwhile stay on one core; gRPC survives no fork with code after it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def parse_median_ms(output: str) -> float:
    """The median that benchmark_app prints; its JSON report has only hundredths of a ms.

    Raises:
        HurricaneError: there is none.
    """
    match = re.search(r"\bMedian: +([0-9.]+) (us|ms)$", output, re.MULTILINE)
    if match is None:
        raise HurricaneError("benchmark_app printed no line 'Median: … ms'; is it of 2024.0 on?")
    return float(match[1]) / (1e3 if match[2] == "us" else 1.0)


def find_benchmark_app() -> str:
    """The program beside this Python, or on the path.

    Raises:
        HurricaneError: there is none.
    """
    beside = Path(sys.executable).with_name("benchmark_app")
    found = str(beside) if beside.is_file() else shutil.which("benchmark_app")
    if found is None:
        raise HurricaneError("benchmark_app is missing; it comes with: pip install openvino")
    return found


def loop_over(target: str, files: Sequence[str]) -> list[np.ndarray]:
    """`CALLS` times in ms of each file: the runtime's own API, and nothing of Hurricane's."""
    found = []
    for file in files:
        call = LOOPS[target](file)
        for _ in range(WARM_UP):
            call()
        found.append(np.array([call() for _ in range(CALLS)]))
    return found


def _onnxruntime_call(file: str) -> Callable[[], float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (node,) = session.get_inputs()
    binding = session.io_binding()
    dtype = "uint8" if node.type == "tensor(uint8)" else "float32"
    binding.bind_cpu_input(node.name, _image(node.shape, dtype))
    for output in session.get_outputs():
        binding.bind_output(output.name)

    def call() -> float:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        return 1e3 * (time.perf_counter() - start)

    return call


def _openvino_call(file: str) -> Callable[[], float]:
    # Its telemetry would start a process on the core that is timed.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(file, "CPU", options)
    request = compiled.create_infer_request()
    port = compiled.input(0)
    image = _image(port.shape, np.dtype(port.element_type.to_dtype()).name)
    request.set_input_tensor(openvino.Tensor(image))

    def call() -> float:
        # Neither a copy into numpy nor Python's call counts: benchmark_app leaves them out too.
        request.infer(share_outputs=True)
        return request.latency

    return call


def _litert_call(file: str) -> Callable[[], float]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=file, num_threads=1)
    interpreter.allocate_tensors()
    (details,) = interpreter.get_input_details()
    image = _image(details["shape"], np.dtype(details["dtype"]).name)
    interpreter.set_tensor(details["index"], image)

    def call() -> float:
        start = time.perf_counter()
        interpreter.invoke()
        return 1e3 * (time.perf_counter() - start)

    return call


def _image(shape: Iterable[int], dtype: str) -> np.ndarray:
    draw = np.random.default_rng(1)
    if dtype == "float32":
        return draw.random(tuple(shape), np.float32)
    limits = np.iinfo(dtype)
    return draw.integers(limits.min, limits.max, tuple(shape), dtype, endpoint=True)


LOOPS = {
    f"cpu-{runtime}-{precision}": call
    for runtime, call in (
        ("onnxruntime", _onnxruntime_call),
        ("openvino", _openvino_call),
        ("litert", _litert_call),
    )
    for precision in ("fp32", "int8")
}
"""Targets, and how a plain loop calls a file on them; the call returns the ms it took."""


def time_batch(
    session: TargetSession, graphs: Sequence[Graph], repetitions: int = 3
) -> dict[str, float]:
    """What a client waits for a batch, over the sum of the inference times in it.

    The first request starts the worker and loads; the others find the batch loaded.
    """
    timing = TimingProtocol()
    digests = [session.digest_of(graph) for graph in graphs]
    protocol = timing.networks(timing.network_rounds, 0, keep_loaded=True)
    waited_ms, inference_ms = [], []
    for _ in range(1 + repetitions):
        start = time.perf_counter()
        results = session.time(digests, protocol)
        waited_ms.append(1e3 * (time.perf_counter() - start))
        inference_ms.append(sum(float(wall_ms_of(r).sum()) for r in results.values()))
    ratios = np.array(waited_ms) / inference_ms
    return {
        "graphs": len(set(digests)),
        "calls": len(set(digests)) * timing.network_rounds,
        "inference_ms": float(np.median(inference_ms[1:])),
        "waited_ms": float(np.median(waited_ms[1:])),
        "waited_ratio": float(np.median(ratios[1:])),
        "waited_ratio_highest": float(ratios[1:].max()),
        "waited_with_loading_ms": waited_ms[0],
        "waited_with_loading_ratio": float(ratios[0]),
    }


def wall_ms_of(result) -> np.ndarray:
    """[rounds, calls] ms; the error of a result that has none is raised."""
    if result.error is not None:
        raise result.error
    return np.asarray(result.wall_ms)


def show(result: dict) -> None:
    print(result["target"])
    for pair, found in result["overall"].items():
        one, other = pair.split("/")
        print(f"\n{'':30}{one:>20}{other:>21}   ratio")
        for row in result["graphs"]:
            f = row[pair]
            print(
                f"{row['operator']:12}{row['shape']:18}"
                f"{f['one_ms']:11.4f} ms {f['one_retest']:5.1%}"
                f"{f['other_ms']:12.4f} ms {f['other_retest']:5.1%}"
                f"{f['ratio']:8.3f}{'' if f['within'] else '  off'}"
            )
        print(
            f"{pair}: {found['ratio']:.3f} "
            f"({found['ratio_lowest']:.3f} to {found['ratio_highest']:.3f}); "
            f"within 5%: {found['share_within_5_percent']:.0%}, "
            f"within its limit: {found['share_within_limit']:.0%}; "
            f"retest {found['one_retest']:.1%} and {found['other_retest']:.1%}"
        )
    batch = result["batch"]
    print(
        f"\na loaded batch of {batch['graphs']} graphs: {batch['waited_ms']:.0f} ms waited for "
        f"{batch['inference_ms']:.0f} ms of inference, ratio {batch['waited_ratio']:.3f}; "
        f"with loading {batch['waited_with_loading_ratio']:.3f}"
    )


if __name__ == "__main__":
    main()
