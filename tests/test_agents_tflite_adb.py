"""A TFLite delegate on a phone over the real adb, with a stand-in for benchmark_model."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.client import AgentClient, Protocol
from hurricane.agents.errors import BadRequest, BoardNotReady, ErrorKind
from hurricane.agents.server import AgentServer
from hurricane.ops.artifacts import Recipe, prepare
from hurricane.ops.export import export_operator
from hurricane.ops.shapes import LayerShape

from .adb_support import adb
from .board_output import TFLITE_NONE, TFLITE_WHOLE
from .fake_phone import FakePhone, Programs

pytestmark = pytest.mark.process

TARGET = "dsp-tflite-int8"
SHAPE = LayerShape(8, 8, 32, 32, 1)
CALLS = 8
ONCE = Protocol(rounds=1, calls_per_visit=CALLS, warmup_calls=1)
ARGUMENTS = {
    "--graph", "--external_delegate_path", "--external_delegate_options", "--num_threads",
    "--require_full_delegation", "--num_runs", "--min_secs", "--warmup_runs", "--warmup_min_secs",
    "--verbose",
}  # fmt: skip


def true_us(content: bytes) -> int:
    """A function of every byte of the file."""
    return 300 + zlib.crc32(content) % 2000


@dataclass
class Model:
    """benchmark_model."""

    says: str = ""
    options: str = ""

    def __call__(self, words: Sequence[str]) -> tuple[int, str]:
        given = dict(word.split("=", 1) for word in words)
        if set(given) != ARGUMENTS or len(given) != len(words):
            return 1, "unknown arguments\n"
        if given["--require_full_delegation"] != "true" or given["--warmup_runs"] != "1":
            return 1, "wrong arguments\n"
        self.options = given["--external_delegate_options"]
        if self.says:
            return 0, self.says
        us, calls = true_us(Path(given["--graph"]).read_bytes()), given["--num_runs"]
        head = TFLITE_WHOLE[: TFLITE_WHOLE.index("INFO: Running benchmark")]
        return 0, (
            f"{head}INFO: Running benchmark for at least 1 iterations\n"
            f"INFO: count=1 curr={us}\n\n"
            f"INFO: Running benchmark for at least {calls} iterations\n"
            f"INFO: count={calls} first={us} curr={us} min={us} max={us} avg={us} std=0\n\n"
            f"INFO: Inference timings in us: Init: 1, First inference: {us}, Warmup (avg): {us}, "
            f"Inference (avg): {us}\n"
        )


@dataclass
class Bench:
    phone: FakePhone
    model: Model
    client: AgentClient

    def measure(self, content: bytes, **settings):
        digest = self.client.upload(content)
        return self.client.benchmark([digest], TARGET, protocol=ONCE, **settings)[digest]


@pytest.fixture
def bench(adb_server: None, tmp_path: Path) -> Iterator[Bench]:
    phone, model = FakePhone(tmp_path.resolve() / "phone"), Model()
    programs = Programs(phone, "/data/local/tmp/tflite", {"benchmark_model": model})
    with phone, programs:
        adb("connect", phone.serial)
        server = AgentServer("127.0.0.1:0", Context(adb=phone.serial))
        server.start()
        try:
            with AgentClient(server.address) as client:
                yield Bench(phone, model, client)
        finally:
            server.stop()
            adb("disconnect", phone.serial)


def graph(operator: str = "SEP_3") -> bytes:
    return prepare(export_operator(operator, SHAPE), Recipe("tflite", "int8")).content


def test_times_are_those_of_the_file_that_was_brought(bench: Bench) -> None:
    (target,) = (t for t in bench.client.describe().targets if t.name == TARGET)
    assert (target.availability, target.reason) == (Availability.SIMULATED, "")
    assert target.device == "Fake 1"
    for operator in ("SEP_3", "MB_3_3"):
        result = bench.measure(graph(operator))
        assert result.error is None
        assert result.wall_ms.tolist() == [[true_us(graph(operator)) / 1e3] * CALLS]
        assert "averaged" in result.flags
    assert bench.model.options == "backend_type:htp;htp_performance_mode:2"


def test_what_the_delegate_leaves_to_the_cpu_is_unsupported(bench: Bench) -> None:
    bench.model.says = TFLITE_NONE
    error = bench.measure(graph()).error
    assert error is not None
    assert error.kind == ErrorKind.UNSUPPORTED_OPERATOR
    assert "takes nothing of the graph (0 of 31 nodes)" in str(error)


def test_other_numbers_of_calls_than_asked_for_are_refused(bench: Bench) -> None:
    bench.model.says = TFLITE_WHOLE
    error = bench.measure(graph()).error
    assert error is not None
    assert error.kind == ErrorKind.RUNTIME_CRASHED
    assert f"made 50 calls, not {CALLS}" in str(error)


def test_options_go_to_the_delegate_and_nowhere_else(bench: Bench) -> None:
    options = {"delegate_options": "backend_type:dsp,log_level:1"}
    assert bench.measure(graph(), options=options).error is None
    assert bench.model.options == "backend_type:dsp;log_level:1"
    for wrong in ("a:b c", "$(touch x):1", "a", "a:b;rm -rf /", "a" + ":aaaaa" * 40 + "!"):
        with pytest.raises(BadRequest, match="key:value"):
            bench.measure(graph(), options={"delegate_options": wrong})
    with pytest.raises(BadRequest, match="htp or dsp"):
        bench.measure(graph(), options={"delegate_options": "backend_type:gpu"})
    for wrong in ("/system/lib64/x.so", "../x.so", "x y.so", ""):
        with pytest.raises(BadRequest, match="the name of a library"):
            bench.measure(graph(), options={"delegate": wrong})


def test_a_graph_that_is_not_quantised_is_refused(bench: Bench) -> None:
    content = prepare(export_operator("SEP_3", SHAPE), Recipe("tflite", "fp32")).content
    error = bench.measure(content).error
    assert error is not None
    assert "takes graphs quantised to 8 bits" in str(error)


def test_what_a_phone_lacks_ends_the_request(bench: Bench) -> None:
    bench.model.says = "ERROR: Failed to load delegate from libQnnTFLiteDelegate.so\n"
    with pytest.raises(BoardNotReady, match="push it to the phone's folder tflite"):
        bench.measure(graph())
    (bench.phone.path("/data/local/tmp/tflite") / "benchmark_model").unlink()
    with pytest.raises(BoardNotReady, match="benchmark_model is not on the phone"):
        bench.measure(graph())


def test_a_phone_without_the_program_says_what_to_do(adb_server, tmp_path: Path) -> None:
    from hurricane.agents.backends import tflite_adb

    with FakePhone(tmp_path.resolve() / "phone") as phone:
        adb("connect", phone.serial)
        try:
            (target,) = tflite_adb.targets(Context(adb=phone.serial))
        finally:
            adb("disconnect", phone.serial)
    assert target.availability == Availability.UNAVAILABLE
    assert "benchmark_model is not on the phone" in target.reason
    assert "push it to /data/local/tmp/tflite" in target.reason
    (target,) = tflite_adb.targets(Context())
    assert "agent serve --adb SERIAL" in target.reason
