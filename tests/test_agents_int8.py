"""The int8 targets of the CPU's runtimes compute in 8 bits, or their results say otherwise."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hurricane.agents.backends.base import (
    EIGHT_BITS,
    Context,
    TensorInfo,
    allowed_cores,
    precision_flags,
    random_inputs,
)
from hurricane.agents.client import AgentClient, ArtifactResult, Protocol
from hurricane.agents.errors import BadRequest, ErrorKind
from hurricane.agents.server import AgentServer
from hurricane.ops.calibration import random_samples
from hurricane.ops.export import export_operator
from hurricane.ops.onnx_qdq import edges, quantise_onnx
from hurricane.ops.shapes import LayerShape

pytestmark = pytest.mark.process

INT8 = ("cpu-onnxruntime-int8", "cpu-openvino-int8")
FP32 = ("cpu-onnxruntime-fp32", "cpu-openvino-fp32")
QUICK = Protocol(rounds=2, calls_per_visit=2, warmup_calls=1, keep_loaded=True)
SHAPE = LayerShape(8, 8, 32, 32, 1)
SIZE = (32, 8, 8)
SMALLEST_SQNR = 30.0
OPERATORS = ("SEP_3_SE", "MB_3_3_SE", "Choice_x")

FLOAT = {name: export_operator(name, SHAPE) for name in OPERATORS}
QUANTISED = {name: quantise_onnx(c, random_samples(SIZE)) for name, c in FLOAT.items()}


@pytest.fixture(scope="module")
def client() -> Iterator[AgentClient]:
    server = AgentServer("127.0.0.1:0", Context(device_name="this machine"))
    server.start()
    try:
        with AgentClient(server.address) as client:
            yield client
    finally:
        server.stop()


def measure(client: AgentClient, target: str, content: bytes, **settings: object) -> ArtifactResult:
    digest = client.upload(content)
    request: dict = {"protocol": QUICK, **settings}
    return client.benchmark([digest], target, **request)[digest]


def precisions(result: ArtifactResult) -> list[str]:
    assert result.error is None, result.error
    return [flag for flag in result.flags if flag.startswith("precision:")]


def sqnr(expected: np.ndarray, got: np.ndarray) -> float:
    expected = expected.astype(np.float64)
    return float(10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()))


def mixed(kinds: str) -> bytes:
    """Convolutions in a row, each in 8 bits (q) or in float (f), with 8-bit input and output."""
    constants = {"one": np.float32(0.02), "zero": np.uint8(128), "none": np.int8(0)}
    constants["w"] = np.random.default_rng(1).integers(-127, 128, (4, 4, 3, 3), dtype=np.int8)
    constants["float"] = constants["w"].astype(np.float32) / 50
    nodes = [helper.make_node("DequantizeLinear", ["w", "one", "none"], ["weights"])]
    last = "x"
    for i, kind in enumerate(kinds):
        nodes.append(helper.make_node("DequantizeLinear", [last, "one", "zero"], [f"d{i}"]))
        given = f"d{i}"
        if kind == "f":  # a node between the pair and the convolution that is not quantised
            nodes.append(helper.make_node("Sin", [given], [f"s{i}"]))
            given = f"s{i}"
        weights = "weights" if kind == "q" else "float"
        nodes.append(helper.make_node("Conv", [given, weights], [f"c{i}"], pads=[1, 1, 1, 1]))
        last = "y" if i == len(kinds) - 1 else f"q{i}"
        nodes.append(helper.make_node("QuantizeLinear", [f"c{i}", "one", "zero"], [last]))
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=7).SerializeToString()


def product(operator: str, weights: str, stored: type = np.uint8) -> bytes:
    """A matrix product in 8 bits (`weights` is w8) or in float (w), with 8-bit input and output."""
    constants = {"one": np.float32(0.02), "zero": stored(0), "none": np.int8(0)}
    constants["q"] = np.random.default_rng(1).integers(-127, 128, (16, 16), dtype=np.int8)
    constants["w"] = constants["q"].astype(np.float32) / 50
    nodes = [helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["d"])]
    if weights == "w8":
        nodes.append(helper.make_node("DequantizeLinear", ["q", "one", "none"], ["w8"]))
    else:  # a node between the pair and the product that is not quantised
        nodes.append(helper.make_node("Sin", ["d"], ["s"]))
    given = nodes[-1].output[0] if weights == "w" else "d"
    nodes.append(helper.make_node(operator, [given, weights], ["c"]))
    nodes.append(helper.make_node("QuantizeLinear", ["c", "one", "zero"], ["y"]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(stored))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", kind, [1, 16])],
        [helper.make_tensor_value_info("y", kind, [1, 16])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=7).SerializeToString()


def test_there_is_an_int8_target_of_each_runtime_that_takes_quantised_graphs(client) -> None:
    found = {target.name: target for target in client.describe().targets}
    for name in INT8:
        assert (found[name].precision, tuple(found[name].formats)) == ("int8", ("onnx-qdq",))
    for name in FP32:
        assert (found[name].precision, tuple(found[name].formats)) == ("fp32", ("onnx",))


@pytest.mark.parametrize("name", OPERATORS)
def test_both_runtimes_compute_what_fp32_does_but_for_quantisation(client, name) -> None:
    x = random_samples(SIZE, 1, seed=7)
    sides = edges(QUANTISED[name])
    given, returned = sides.inputs[0], sides.outputs[0]
    digest, quantised = client.upload(FLOAT[name]), client.upload(QUANTISED[name])
    expected = client.run(digest, FP32[0], {"input": x})["output"]
    outputs = [
        client.run(quantised, target, {"input": given.encode(x)})["output"] for target in INT8
    ]
    for integers in outputs:
        assert integers.dtype == np.uint8
        assert sqnr(expected, returned.decode(integers)) >= SMALLEST_SQNR
    one, other = (integers.astype(int) for integers in outputs)
    assert np.abs(one - other).max() <= 2


@pytest.mark.parametrize("target", INT8)
def test_what_runs_in_8_bits_has_no_flag_of_its_precision(client, target) -> None:
    for content in (*QUANTISED.values(), mixed("qq")):
        assert precisions(measure(client, target, content)) == []


@pytest.mark.parametrize("target", INT8)
def test_convolutions_that_run_in_float_are_counted_in_a_flag(client, target) -> None:
    assert precisions(measure(client, target, mixed("qfqf"))) == ["precision:f32-2/4"]
    assert precisions(measure(client, target, mixed("f"))) == ["precision:f32-1/1"]


@pytest.mark.parametrize("target", INT8)
@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
def test_matrix_products_count_as_convolutions_do(client, target, operator) -> None:
    assert precisions(measure(client, target, product(operator, "w8"))) == []
    assert precisions(measure(client, target, product(operator, "w"))) == ["precision:f32-1/1"]


@pytest.mark.parametrize("target", INT8)
def test_signed_activations_are_8_bits_too(client, target) -> None:
    assert precisions(measure(client, target, product("Gemm", "w8", np.int8))) == []


@pytest.mark.parametrize("fused", [False, True])
def test_quantising_while_it_runs_is_flagged_by_onnxruntimes_fp32_target(client, fused) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "step", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["float" if fused else "y"], to=TensorProto.FLOAT),
    ]
    if fused:  # the runtime makes one operator of all
        nodes.append(helper.make_node("Mul", ["step", "one"], ["steps"]))
        nodes.append(helper.make_node("Mul", ["float", "steps"], ["y"]))
    constants = {"w": np.ones((16, 16), np.int8), "one": np.ones(1, np.float32)}
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=7).SerializeToString()
    assert precisions(measure(client, FP32[0], content)) == ["precision:u8-1/1"]


def test_optimizations_that_are_left_out_leave_onnxruntime_in_float(client) -> None:
    for level, flags in (("basic", ["precision:f32-5/5"]), ("extended", [])):
        result = measure(
            client, INT8[0], QUANTISED["MB_3_3_SE"], options={"graph_optimization": level}
        )
        assert precisions(result) == flags


@pytest.mark.parametrize("target", FP32)
def test_a_quantised_graph_in_disguise_is_flagged_by_an_fp32_target(client, target) -> None:
    assert precisions(measure(client, target, QUANTISED["SEP_3_SE"])) == ["precision:u8-4/4"]
    assert precisions(measure(client, target, FLOAT["SEP_3_SE"])) == []


@pytest.mark.parametrize("target", FP32)
def test_an_fp32_target_does_not_take_the_format_of_quantised_graphs(client, target) -> None:
    with pytest.raises(BadRequest, match="takes onnx, not 'onnx-qdq'"):
        measure(client, target, QUANTISED["SEP_3_SE"], format="onnx-qdq")


@pytest.mark.parametrize("target", INT8)
def test_an_int8_target_does_not_take_fp32_graphs(client, target) -> None:
    with pytest.raises(BadRequest, match="takes onnx-qdq, not 'onnx'"):
        measure(client, target, FLOAT["SEP_3_SE"], format="onnx")
    result = measure(client, target, FLOAT["SEP_3_SE"])
    assert result.error is not None
    assert result.error.kind == ErrorKind.BAD_REQUEST
    assert "takes graphs quantised to 8 bits, and input 'input' is float32" in str(result.error)
    # The refusal is of this graph alone.
    assert measure(client, target, QUANTISED["SEP_3_SE"]).error is None


@pytest.mark.parametrize("target", INT8)
def test_a_graph_without_inputs_is_not_quantised(client, target) -> None:
    weights = numpy_helper.from_array(np.ones((1, 4), np.float32), "w")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    nodes = [helper.make_node("Relu", ["w"], ["y"])]
    graph = helper.make_graph(nodes, "constant", [], [output], [weights])
    opsets = [helper.make_opsetid("", 13)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=7).SerializeToString()
    result = measure(client, target, content)
    assert result.error is not None
    assert "takes graphs quantised to 8 bits, and this one has no input" in str(result.error)


@pytest.mark.parametrize("target", INT8)
def test_sums_of_extreme_products_are_exact(client, target) -> None:
    """Kernels without VNNI add two products in 16 bits, and 2 * 255 * 127 is beyond them."""
    constants = {
        "w": np.full((8, 64, 1, 1), 127, np.int8),
        "one": np.float32(1),
        "many": np.float32(64 * 127),
        "none": np.int8(0),
        "low": np.uint8(0),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "low"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one", "none"], ["weights"]),
        helper.make_node("Conv", ["d", "weights"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "many", "low"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "extreme",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 8, 4, 4])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=7).SerializeToString()
    options = {"x64_exact": "1"} if "onnxruntime" in target else {}
    if not options and not _has_vnni():
        pytest.skip("OpenVINO's kernels for processors without VNNI are not exact")
    x = np.broadcast_to(np.arange(240, 256, dtype=np.uint8).reshape(4, 4), (1, 64, 4, 4))
    got = client.run(
        client.upload(content), target, {"x": np.ascontiguousarray(x)}, options=options
    )
    assert np.array_equal(got["y"][0, 0], x[0, 0])


def _has_vnni() -> bool:
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return bool({"avx512_vnni", "avx_vnni", "asimddp"} & set(words)) or "sse2" not in words


def test_what_onnxruntimes_compiler_says_is_what_its_session_runs(tmp_path) -> None:
    """Its profile, which needs a file, names what ran."""
    code = (
        "import sys, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        "options.enable_profiling, options.intra_op_num_threads = True, 1\n"
        "options.profile_file_prefix = sys.argv[2]\n"
        "session = ort.InferenceSession(sys.argv[1], options)\n"
        "import numpy as np\n"
        "session.run(None, {'x': np.zeros((1, 4, 6, 6), np.uint8)})\n"
        "print(session.end_profiling())\n"
    )
    file = tmp_path / "graph.onnx"
    file.write_bytes(mixed("qfq"))
    words = [sys.executable, "-c", code, str(file), str(tmp_path / "profile")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    events = json.loads(Path(done.stdout.strip()).read_text())
    ran = collections.Counter(
        event["args"]["op_name"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )
    assert (ran["QLinearConv"], ran["Conv"]) == (2, 1)
    import onnxruntime

    from hurricane.agents.formats.onnx_file import operators_of

    compiler = onnxruntime.ModelCompiler(
        onnxruntime.SessionOptions(),
        mixed("qfq"),
        graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    )
    told = collections.Counter(operators_of(compiler.compile_to_bytes()))
    assert (told["QLinearConv"], told["Conv"]) == (2, 1)


def test_an_onnxruntime_that_cannot_tell_is_flagged(tmp_path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import onnxruntime\n"
        "from hurricane.agents.backends import onnxruntime_cpu\n"
        "from hurricane.agents.backends.base import Context\n"
        "del onnxruntime.ModelCompiler\n"
        "_, path, precision, format = sys.argv\n"
        "target = f'cpu-onnxruntime-{precision}'\n"
        "session = onnxruntime_cpu.open_target(Context(), target, {}, 1)\n"
        "print(session.load(Path(path).read_bytes(), format).flags)\n"
    )
    model = onnx.load_from_string(FLOAT["SEP_3_SE"])
    model.graph.node[0].name = "MyLinear/conv"  # no operator of 8 bits, whatever its name
    for content, precision, format, flags in (
        (QUANTISED["SEP_3_SE"], "int8", "onnx-qdq", "('precision:unknown',)"),
        (QUANTISED["SEP_3_SE"], "fp32", "onnx", "('precision:unknown',)"),
        (model.SerializeToString(), "fp32", "onnx", "()"),
    ):
        file = tmp_path / "graph.onnx"
        file.write_bytes(content)
        words = [sys.executable, "-c", code, str(file), precision, format]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == flags


@pytest.mark.parametrize("on", [False, True])
def test_options_reach_onnxruntime(on: bool) -> None:
    """What they change shows on few processors only."""
    code = (
        "from hurricane.agents.backends import onnxruntime_cpu\n"
        "from hurricane.agents.backends.base import Context\n"
        f"given = {{'x64_exact': '1', 'spinning': '0'}} if {on} else {{}}\n"
        "opened = onnxruntime_cpu.open_target(Context(), 'cpu-onnxruntime-int8', given, 1)\n"
        "for key in ('x64quantprecision', 'intra_op.allow_spinning'):\n"
        "    print(opened._options.get_session_config_entry(f'session.{key}'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == (["1", "0"] if on else ["0", "1"])


@pytest.mark.parametrize("on", [False, True])
def test_options_and_threads_reach_openvino_and_what_is_timed_reads_random_inputs(
    on: bool, tmp_path: Path
) -> None:
    threads = min(2, len(allowed_cores())) if on else 1
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hurricane.agents.backends import openvino_cpu\n"
        "from hurricane.agents.backends.base import Context, random_inputs\n"
        f"given = {{'denormals_optimization': '1'}} if {on} else {{}}\n"
        f"opened = openvino_cpu.open_target(Context(), 'cpu-openvino-int8', given, {threads})\n"
        "graph = opened.load(Path(sys.argv[1]).read_bytes(), 'onnx-qdq')\n"
        "for key in ('CPU_DENORMALS_OPTIMIZATION', 'INFERENCE_NUM_THREADS'):\n"
        "    print(graph._compiled.get_property(key))\n"
        "(expected,) = random_inputs(graph.inputs()).values()\n"
        "print((graph._request.get_input_tensor(0).data == expected).all())\n"
    )
    file = tmp_path / "graph.onnx"
    file.write_bytes(mixed("q"))
    words = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(on), str(threads), "True"]


def test_flags_count_those_that_are_not_as_expected() -> None:
    assert precision_flags(["u8", "i8", "u8"], ("u8", "i8")) == ()
    assert precision_flags([], ("u8",)) == ()
    assert precision_flags(["f32", "u8", "bf16", "f32"], ("u8",)) == (
        "precision:bf16-1/4",
        "precision:f32-2/4",
    )


def test_8_bit_inputs_for_timing_have_all_values_there_are() -> None:
    tensors = [TensorInfo(kind, kind, (1, 64, 64)) for kind in EIGHT_BITS]
    first, again = random_inputs(tensors), random_inputs(tensors)
    for kind in EIGHT_BITS:
        limits = np.iinfo(kind)
        assert first[kind].dtype == kind
        assert len(np.unique(first[kind])) == 256
        assert (first[kind].min(), first[kind].max()) == (limits.min, limits.max)
        assert np.array_equal(first[kind], again[kind])
