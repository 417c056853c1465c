"""Memory is placed anew between the passes of a batch, and no timed call pays for that."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from hurricane.agents import worker
from hurricane.agents.backends import onnxruntime_cpu
from hurricane.agents.backends.base import Loaded, Sample, Session
from hurricane.agents.results import Protocol
from hurricane.agents.worker import Heartbeat

from .agents_stand_ins import FORMAT, OneMillisecond, bench_of

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE = _SETTING.exists() and "[always]" in _SETTING.read_text()


class Graph(OneMillisecond):
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def timed_calls(self, count: int) -> list[Sample]:
        self.log += [self.name] * count
        return super().timed_calls(count)

    def close(self) -> None:
        self.log.append(f"close {self.name}")


class Target(Session):
    def __init__(self) -> None:
        self.log: list[str] = []

    def load(self, content: bytes, format: str) -> Loaded:
        return Graph(content.decode(), self.log)

    def renew(self) -> None:
        self.log.append("renew")

    def elapsed_ms(self) -> float:
        return float(self.log.count("a"))  # calls of 1 ms


def test_memory_is_renewed_between_passes_and_at_no_other_time(heartbeat: Heartbeat) -> None:
    target = Target()
    bench = bench_of(target, heartbeat)
    bench.measure(["a"], FORMAT, Protocol(3, 2, 1, keep_loaded=True), True)
    assert target.log == ["a", "a", "a", "renew", "a", "a", "renew", "a", "a"]
    target.log.clear()
    bench.measure(["a"], FORMAT, Protocol(1, 2, 1), True)
    assert target.log == ["a", "a", "close a"]


@pytest.mark.process
def test_renewals_take_a_small_share_of_the_time(heartbeat: Heartbeat) -> None:
    class Slow(Target):
        renewal_ms = 10.0

        def renew(self) -> None:
            super().renew()
            self.log += ["wait"] * int(self.renewal_ms)

        def elapsed_ms(self) -> float:
            return super().elapsed_ms() + self.log.count("wait")

    target, requests, rounds = Slow(), 200, 8
    bench = bench_of(target, heartbeat)
    for _ in range(requests):
        bench.measure(["a"], FORMAT, Protocol(rounds, 1, 1, keep_loaded=True), True)
    share = target.log.count("wait") / (requests * rounds)
    assert worker._RENEWAL_SHARE / 2 < share <= worker._RENEWAL_SHARE * 1.1


def sine_chain(side: int) -> bytes:
    """Ten elementwise operators on [8, side, side], each into a tensor of its own."""
    pytest.importorskip("onnx", reason="onnx, which makes the test graphs, is not installed")
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Sin", [f"x{i}"], [f"x{i + 1}"]) for i in range(10)]
    shape = [1, 8, side, side]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("x10", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 7
    return model.SerializeToString()


# In a process of its own: a session pins the process, and its arena is the process's.
SCRIPT = """
import json, sys
from hurricane.agents.backends.onnxruntime_cpu import OnnxruntimeSession, _page_faults

session = OnnxruntimeSession(1, "all", "1")
contents = [open(path, "rb").read() for path in sys.argv[1:]]
small, twin, large = graphs = [session.load(content, "onnx") for content in contents]

def faults(work):
    before = _page_faults()
    work()
    return _page_faults() - before

def a_pass():
    return [faults(lambda: graph.timed_calls(1)) for graph in graphs]

found = {"shared": small._arrays["x0"] is twin._arrays["x0"], "renewals": [], "passes": []}
found["first"] = [a_pass(), a_pass()]  # the second call is the first with planned memory
found["settled"] = a_pass()
for _ in range(3):
    found["renewals"].append(faults(session.renew))
    found["passes"].append(a_pass())
large.close()
found["without"] = faults(session.renew)
small.close()
twin.close()
session.renew()
print(json.dumps(found))
"""


@pytest.mark.process
@pytest.mark.skipif(
    onnxruntime_cpu._return_memory is None, reason="without glibc memory is not placed anew"
)
@pytest.mark.skipif(HUGE, reason="the system takes huge pages, one fault for many")
def test_onnxruntime_places_its_arena_anew_and_no_timed_call_pays(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    paths = []
    for number, side in enumerate((64, 64, 256)):
        paths.append(tmp_path / f"{number}.onnx")
        paths[-1].write_bytes(sine_chain(side))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    pages = 8 * 256 * 256 * 4 // mmap.PAGESIZE  # of one tensor of the large graph
    assert found["shared"]
    assert max(n for numbers in found["first"] for n in numbers) >= pages
    assert max(found["settled"]) < 16
    # The large graph is called for the others: after that, the arena is large enough for all.
    assert min(found["renewals"]) >= pages
    assert max(n for numbers in found["passes"] for n in numbers) < 16
    assert found["without"] < pages
