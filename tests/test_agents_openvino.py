"""OpenVINO's GPU and NPU: why there is none here, and what is done where there is one.

The devices are stand-ins: a core that lists them, compiles for the CPU, and tells of the result
what the test says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx, which makes the test graphs, is not installed")
pytest.importorskip("openvino", reason="openvino is not installed")

import openvino

from hurricane.agents.backends import _openvino, openvino_accelerator
from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.errors import (
    BadRequest,
    DeviceLost,
    OutOfMemory,
    RuntimeCrashed,
    UnsupportedOperator,
)
from hurricane.ops.artifacts import Recipe, prepare

from .agents_artifacts import SHAPE, convolutions

GPU, NPU = openvino_accelerator.KINDS
GPU16, GPU32, NPU16 = "gpu-openvino-fp16", "gpu-openvino-fp32", "npu-openvino-fp16"
ELEMENT = {"f16": openvino.Type.f16, "f32": openvino.Type.f32}


@dataclass
class Compiled:
    """A graph that was compiled for the CPU, and what is told of it."""

    real: Any
    core: Core
    settings: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_property(self, name: str) -> Any:
        if name == "EXECUTION_DEVICES":
            return self.core.ran_on
        assert name == "INFERENCE_PRECISION_HINT"
        return ELEMENT[self.core.hint or self.settings[name]]

    def get_runtime_model(self) -> Any:
        if self.core.precisions is None:
            raise RuntimeError("Not implemented")
        facts = [
            {"layerType": openvino.OVAny("Convolution"), "runtimePrecision": openvino.OVAny(p)}
            for p in self.core.precisions
        ]
        nodes = [SimpleNamespace(get_rt_info=lambda fact=fact: fact) for fact in facts]
        return SimpleNamespace(get_ops=lambda: nodes)


@dataclass
class Core:
    """A core with devices that this machine has not.

    Attributes:
        available_devices: its list.
        ran_on: where compiled graphs are told to run.
        precisions: of their convolutions; None: they tell nothing.
        hint: precision that they are told to have; empty: the one that was asked for.
        refusal: what compiling ends with; empty: it compiles.
        compiled: device and settings of each graph.
    """

    available_devices: list[str] = field(default_factory=lambda: ["CPU", "GPU"])
    ran_on: list[str] = field(default_factory=lambda: ["GPU.0"])
    precisions: list[str] | None = field(default_factory=lambda: ["FP16"])
    hint: str = ""
    refusal: str = ""
    compiled: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def get_property(self, device: str, name: str) -> Any:
        if name == "FULL_DEVICE_NAME":
            return f"Intel(R) Arc(TM) Graphics ({device})"
        assert name == "SUPPORTED_PROPERTIES"
        common = ("PERFORMANCE_HINT", "NUM_STREAMS", "PERF_COUNT", "CACHE_DIR")
        own = ("INFERENCE_PRECISION_HINT",) if device.startswith("GPU") else ()
        return dict.fromkeys((*common, *own, *NPU.settings), "RW")

    def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Compiled:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.compiled.append((device, settings))
        counters = {"PERF_COUNT": settings["PERF_COUNT"]}
        return Compiled(openvino.Core().compile_model(model, "CPU", counters), self, settings)


def opened(core: Core, target: str = GPU16, **options: str) -> _openvino.OpenvinoSession:
    kind = GPU if target.startswith("gpu") else NPU
    return openvino_accelerator.open_session(core, kind, target, options)


def graph_on(core: Core, target: str = GPU16, **options: str) -> _openvino.OpenvinoGraph:
    return opened(core, target, **options).load(convolutions(), "onnx")


def test_a_graph_is_compiled_for_the_device_without_a_cache_and_computes() -> None:
    core = Core()
    graph = graph_on(core)
    ((device, settings),) = core.compiled
    assert (device, settings["CACHE_DIR"], settings["PERF_COUNT"]) == ("GPU", "", False)
    assert settings["INFERENCE_PRECISION_HINT"] == "f16"
    assert (graph.compute_unit, graph.flags) == ("GPU.0", ())
    assert all(sample.wall_ms > 0 and sample.device_ms is None for sample in graph.timed_calls(3))
    x = np.random.default_rng(1).uniform(-1, 1, SHAPE).astype(np.float32)
    (found,) = graph.outputs({"input": x}).values()
    assert found.shape == SHAPE
    assert np.all(found >= 0)
    assert np.any(found > 0)
    graph.close()


def test_settings_that_a_device_does_not_have_are_left_out() -> None:
    core = Core(available_devices=["CPU", "NPU"], ran_on=["NPU"])
    graph = graph_on(core, NPU16)
    ((device, settings),) = core.compiled
    assert device == graph.compute_unit == "NPU"
    assert "INFERENCE_PRECISION_HINT" not in settings
    assert settings["NPU_BYPASS_UMD_CACHING"] is True


@pytest.mark.parametrize(
    "ran_on", [["CPU"], ["GPU.0", "CPU"], ["(CPU)"], ["AUTO"], ["HETERO:GPU,CPU"], ["GPU.1"], []]
)
def test_a_graph_that_runs_elsewhere_is_refused(ran_on: list[str]) -> None:
    with pytest.raises(UnsupportedOperator, match="not on GPU") as caught:
        graph_on(Core(ran_on=ran_on))
    assert ", ".join(ran_on) in str(caught.value)


def test_one_of_several_devices_is_chosen_by_the_cores_own_list() -> None:
    both = ["CPU", "GPU.0", "GPU.1"]
    core = Core(available_devices=both, ran_on=["GPU.1"])
    assert graph_on(core, device="GPU.1").compute_unit == "GPU.1"
    with pytest.raises(UnsupportedOperator, match=r"runs it on GPU.1, not on GPU.0"):
        graph_on(core)
    for other in ("CPU", "GPU", "GPU.2", "AUTO"):
        with pytest.raises(BadRequest, match=r"'device' is one of GPU.0, GPU.1"):
            opened(core, device=other)
    targets = openvino_accelerator._targets(Context(), GPU, core, "2026.4.1", "")
    for target in targets:
        assert target.availability == Availability.AVAILABLE
        assert target.device == "Intel(R) Arc(TM) Graphics (GPU.0)"
        assert target.defaults == ("device=GPU.0",)


def test_another_precision_than_the_targets_is_flagged() -> None:
    assert graph_on(Core(precisions=["FP32"]), GPU32).flags == ()
    assert graph_on(Core(precisions=["f16", "FP32"])).flags == ("precision:f32-1/2",)
    assert graph_on(Core(hint="f32")).flags == ("precision:f32",)
    assert graph_on(Core(precisions=None)).flags == ("precision:unknown",)


def test_an_int8_target_takes_quantised_graphs_alone() -> None:
    target = "npu-openvino-int8"
    core = Core(available_devices=["CPU", "NPU"], ran_on=["NPU"], precisions=["u8"])
    session = opened(core, target)
    quantised = prepare(convolutions(), Recipe("onnx-qdq", "int8")).content
    graph = session.load(quantised, "onnx-qdq")
    assert graph.flags == ()
    assert [tensor.dtype for tensor in graph.inputs()] == ["uint8"]
    with pytest.raises(BadRequest, match="takes onnx-qdq, not 'onnx'"):
        session.load(convolutions(), "onnx")
    with pytest.raises(BadRequest, match="quantised to 8 bits"):
        session.load(convolutions(), "onnx-qdq")
    core.precisions = ["f16", "u8"]
    assert session.load(quantised, "onnx-qdq").flags == ("precision:f16-1/2",)


def test_counters_of_nodes_are_read_on_request() -> None:
    core = Core()
    graph = graph_on(core, perf_count="1")
    assert core.compiled[0][1]["PERF_COUNT"] is True
    *_, last = graph.timed_calls(2)
    nodes = graph._request.get_profiling_info()
    assert last.device_ms == pytest.approx(sum(n.real_time.total_seconds() * 1e3 for n in nodes))
    assert last.device_ms > 0


@pytest.mark.parametrize(
    ("refusal", "kind", "words"),
    [
        ("[GPU] Exceeded max size of memory object allocation", OutOfMemory, "max size"),
        ("clEnqueue: CL_DEVICE_NOT_AVAILABLE", DeviceLost, "NOT_AVAILABLE"),
        ("VCL compiler loading failed, aborting", BadRequest, "Intel's NPU driver"),
        ("Operation Det is not supported", UnsupportedOperator, "Det"),
    ],
)
def test_what_compiling_ends_with_is_typed(refusal: str, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        graph_on(Core(refusal=refusal))


def test_a_call_that_fails_is_a_crash() -> None:
    graph = graph_on(Core())

    def infer(**options: bool) -> None:
        raise RuntimeError("[GPU] clFinish, error code: -36")

    graph._request = SimpleNamespace(infer=infer)
    with pytest.raises(RuntimeCrashed, match="-36"):
        graph.timed_calls(1)


class Bare:
    """A core without the device, whose plugin tells why."""

    available_devices = ("CPU",)

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def get_property(self, device: str, name: str) -> Any:
        answer = self.answers.get(name, RuntimeError("no answer"))
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_reasons_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(kind: openvino_accelerator.Kind, **answers: Any) -> str:
        return openvino_accelerator.missing(Bare(**answers), kind)

    without = RuntimeError(
        "Cannot load library x: libOpenCL.so.1: cannot open shared object file: No such file"
    )
    assert "apt-get install ocl-icd-libopencl1" in reason(GPU, AVAILABLE_DEVICES=without)
    broken = RuntimeError("Cannot load library x: undefined symbol: clFinish")
    assert "does not load: Cannot load" in reason(GPU, AVAILABLE_DEVICES=broken)
    lacking = RuntimeError('Device with "GPU" name is not registered in the OpenVINO Runtime')
    assert reason(GPU, AVAILABLE_DEVICES=lacking) == "this OpenVINO has no plugin for GPU"
    there = True
    monkeypatch.setattr(openvino_accelerator.os.path, "exists", lambda path: there)
    assert "let this user write to /dev/dri" in reason(GPU, AVAILABLE_DEVICES=[])
    there = False
    assert reason(GPU, AVAILABLE_DEVICES=[]) == "OpenVINO finds no GPU: /dev/dri is not there"
    assert "Intel's NPU driver" in reason(NPU, AVAILABLE_DEVICES=[])
    with_compiler = reason(NPU, AVAILABLE_DEVICES=[], NPU_COMPILER_VERSION=1)
    assert with_compiler == "OpenVINO finds no NPU: /dev/accel is not there"
    with pytest.raises(BadRequest, match="finds no NPU"):
        openvino_accelerator.open_session(Bare(AVAILABLE_DEVICES=[]), NPU, NPU16, {})


def test_options_and_threads_are_checked() -> None:
    for options, threads, words in (
        ({"devise": "GPU"}, 1, "no option 'devise'"),
        ({}, 2, "1 to 1 threads"),
    ):
        with pytest.raises(BadRequest, match=words):
            openvino_accelerator.open_target(Context(), GPU16, options, threads)
    with pytest.raises(BadRequest, match="'perf_count' is one of 0, 1"):
        opened(Core(), perf_count="yes")


def reasons_here(**environment: str) -> dict[str, str]:
    """Why targets of GPU and NPU are not available on this machine, as the command tells."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("agent")), "info", "--json"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = {target["name"]: target for target in json.loads(done.stdout)["targets"]}
    return {n: t["reason"] for n, t in found.items() if re.match(r"(gpu|npu)-openvino", n)}


@pytest.mark.process
def test_a_library_that_was_missing_changes_the_reason(tmp_path: Path) -> None:
    core = openvino.Core()
    if any(name.startswith(("GPU", "NPU")) for name in core.available_devices):
        pytest.skip("this machine has a GPU or an NPU that OpenVINO drives")
    before = reasons_here()
    assert set(before) == {GPU16, GPU32, NPU16, "npu-openvino-int8"}
    assert "finds no NPU" in before[NPU16]
    if "libOpenCL.so.1 is not there" not in before[GPU16]:
        pytest.skip(f"this machine has libOpenCL.so.1: {before[GPU16]}")
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("gcc and nm, which make a libOpenCL.so.1, are not installed")
    (plugin,) = Path(openvino.__file__).parent.glob("libs/libopenvino_intel_gpu_plugin.so")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(plugin)], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r" (cl[A-Z]\w*)@(OPENCL_[\d.]+)", symbols)
    # As a loader of OpenCL does that finds no driver: every call ends with -1001.
    source, versions = tmp_path / "opencl.c", tmp_path / "versions"
    source.write_text("".join(f"int {name}(void) {{ return -1001; }}\n" for name, _ in found))
    versions.write_text(
        "".join(
            f"{version} {{ global: {' '.join(n + ';' for n, v in found if v == version)} }};\n"
            for version in sorted({version for _, version in found})
        )
    )
    library = tmp_path / "libOpenCL.so.1"
    words = ["gcc", "-shared", "-fPIC", f"-Wl,--version-script={versions}", str(source)]
    subprocess.run([*words, "-o", str(library)], check=True)
    after = reasons_here(LD_LIBRARY_PATH=str(tmp_path))
    assert after[GPU16] == after[GPU32]
    assert "libOpenCL" not in after[GPU16]
    assert after[GPU16].startswith("OpenVINO finds no GPU")
    assert after[NPU16] == before[NPU16]
