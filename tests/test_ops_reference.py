"""Published networks: sizes as published, outputs of other libraries, graphs that runtimes take."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hurricane.ops.artifacts import Recipe, prepare
from hurricane.ops.errors import BadRequest
from hurricane.ops.graph import count_graph, fold_batchnorm
from hurricane.ops.reference import REFERENCES, ReferenceNetwork
from hurricane.ops.reference_networks import scaled

pytestmark = pytest.mark.process  # it computes for seconds

PUBLISHED = {
    "mobilenet-v2": (3_504_872, 300.8),  # paper: 3.4 M, 300 M
    "mobilenet-v3-small": (2_542_856, 56.5),  # paper: 2.5 M (2.9 M in its first version), 56 M
    "mobilenet-v3-large": (5_483_032, 216.6),  # paper: 5.4 M, 219 M
    "mobilenet-v4-conv-small": (3_774_024, 186.0),  # paper: 3.8 M, 0.2 G
    "shufflenet-v2": (2_278_604, 144.9),  # paper: 2.3 M, 146 M
    "efficientnet-lite0": (4_652_008, 385.2),  # published: 4.7 M, 407 M
}
"""Parameters of torchvision's and timm's modules, with BatchNorm and biases; MACs in millions of
convolutions and linears. EfficientNet-Lite's publishers count more than these as MACs."""


def at(name: str, multiplier: float = 1.0, size: int = 224, channels: int = 3) -> ReferenceNetwork:
    return ReferenceNetwork(name, multiplier, 1000 if size > 32 else 10, channels, size, size)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", REFERENCES)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    network = at(name)
    count, macs = PUBLISHED[name]
    assert parameters(network.build()) == count
    assert network.macs / 1e6 == pytest.approx(macs, abs=0.05)
    assert network.params < count  # biases and BatchNorm are no weights


@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_are_those_of_torchvision_and_timm(name: str) -> None:
    """Every convolution, BatchNorm and linear, in the order they run, given the same weights."""
    if name in ("mobilenet-v4-conv-small", "efficientnet-lite0"):
        library = pytest.importorskip("timm")
        known = {"mobilenet-v4-conv-small": "mobilenetv4_conv_small"}
        other = library.create_model(known.get(name, "efficientnet_lite0"))
    else:
        library = pytest.importorskip("torchvision", exc_type=Exception)  # pyright: ignore
        known = {"shufflenet-v2": "shufflenet_v2_x1_0"}
        other = getattr(library.models, known.get(name, name.replace("-", "_")))()
    ours, other = at(name).build().eval(), other.eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(in_order(ours, images), in_order(other, images), strict=True))
    for mine, its in pairs:
        if isinstance(its, nn.BatchNorm2d):
            assert isinstance(mine, nn.BatchNorm2d)
            assert its.running_var is not None
            nn.init.uniform_(its.running_var, 0.5, 1.5)
            nn.init.uniform_(its.weight, 0.5, 1.5)
            mine.eps = its.eps
        mine.load_state_dict(its.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images), other(images))


def in_order(module: nn.Module, images: Tensor) -> list[nn.Module]:
    """Layers with weights in the order in which they run."""
    seen: list[nn.Module] = []
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    handles = [
        layer.register_forward_hook(lambda layer, _, __: seen.append(layer))
        for layer in module.modules()
        if isinstance(layer, kinds)
    ]
    with torch.no_grad():
        module(images)
    for handle in handles:
        handle.remove()
    return seen


OUTPUTS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "mobilenet-v2": ((-0.466373, 0.587134), (0.567231, -2.69601)),
    "mobilenet-v3-small": ((-0.0233707, 0.348951), (-4.4328, 8.19698)),
    "mobilenet-v3-large": ((-9.5485, -0.653809), (-40.6995, 5.37725)),
    "mobilenet-v4-conv-small": ((-12.2017, 211.175), (-190.898, 374.612)),
    "shufflenet-v2": ((-4.94064, 3.81523), (-4.89819, -28.4102)),
    "efficientnet-lite0": ((-2.97572, -3.08283), (-2.12252, 2.26247)),
}
"""What `pinned` gives at 64 and at 32 pixels; outputs were those of torchvision and timm."""


def pinned(name: str, size: int) -> tuple[float, float]:
    """The first and the last logit for an image, with weights of numpy's generator."""
    random = np.random.default_rng(0)
    module = at(name, 1.0, size).build().eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                shape = tuple(layer.weight.shape)
                spread = math.sqrt(2 / math.prod(shape[1:]))
                layer.weight.copy_(torch.from_numpy(random.normal(0, spread, shape)))
                if layer.bias is not None:
                    layer.bias.copy_(torch.from_numpy(random.normal(0, 0.1, shape[0])))
        image = torch.from_numpy(random.normal(0, 1, (1, 3, size, size)).astype(np.float32))
        logits = module(image)[0]
    return float(logits[0]), float(logits[-1])


@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_stay_what_they_were(name: str) -> None:
    for size, expected in zip((64, 32), OUTPUTS[name], strict=True):
        assert pinned(name, size) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", REFERENCES)
def test_small_images_are_halved_three_times_and_others_five(name: str) -> None:
    def last_pixels(size: int) -> int:
        network = at(name, 0.25, size)
        pixels = [c.pixels for c in network.convolutions if c.pixels > 1]
        return pixels[-1]

    assert last_pixels(32) == 4 * 4
    assert last_pixels(64) == 2 * 2
    assert at(name, 0.25, 32).params < at(name, 0.25, 64).params  # the classes alone differ


@pytest.mark.parametrize("name", REFERENCES)
def test_wider_networks_cost_more(name: str) -> None:
    costs = [at(name, multiplier, 32).macs for multiplier in (0.1, 0.25, 0.5, 1.0, 2.0)]
    assert costs == sorted(set(costs))


@pytest.mark.parametrize("name", REFERENCES)
def test_graphs_compute_what_the_modules_do_and_do_not_die_out(name: str) -> None:
    network = at(name, 0.35, 32, channels=1)
    content = network.export()
    assert content == network.export()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    assert sum(cost.macs for cost in count_graph(model)) == network.macs
    module = fold_batchnorm(network.build())
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(weights[key].copy()))
    image = np.random.default_rng(0).standard_normal((1, 1, 32, 32), dtype=np.float32)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = np.asarray(session.run(["output"], {"input": image})[0])
    with torch.no_grad():
        expected = module(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    # Values that die out would be denormal, and slow.
    assert found.shape == (1, 10)
    assert 1e-3 < float(np.abs(found).max()) < 1e3


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("recipe", [Recipe("onnx-qdq", "int8"), Recipe("tflite", "int8")], ids=str)
def test_graphs_of_small_images_become_int8_artefacts(name: str, recipe: Recipe) -> None:
    pytest.importorskip("ai_edge_litert" if recipe.format == "tflite" else "onnxruntime")
    network = at(name, 0.25, 32)
    made = prepare(network.export(), recipe)
    assert 0 < len(made.content) < 4 * network.params + 1_000_000


@pytest.mark.parametrize("name", REFERENCES)
def test_graphs_of_larger_images_become_tflite_files(name: str) -> None:
    """Above 32 pixels strides are the published ones, and ShuffleNetV2 has its max pool."""
    network = at(name, 0.25, 64)
    content = network.export()
    made = prepare(content, Recipe("tflite", "fp32"))
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = runtime.Interpreter(model_content=made.content)
    interpreter.allocate_tensors()
    image = np.random.default_rng(0).standard_normal((1, 64, 64, 3), dtype=np.float32)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = session.run(["output"], {"input": image.transpose(0, 3, 1, 2)})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@given(
    channels=st.integers(1, 2000), multiplier=st.floats(0.05, 8), divisor=st.sampled_from([4, 8])
)
@settings(max_examples=200, deadline=None)
def test_scaled_channels_are_multiples_that_lose_no_more_than_a_tenth(
    channels: int, multiplier: float, divisor: int
) -> None:
    found = scaled(channels, multiplier, divisor)
    wanted = channels * multiplier
    assert found % divisor == 0
    assert found >= divisor
    assert found >= 0.9 * wanted - 1e-9
    assert found - wanted < divisor or found == divisor


def test_a_wrong_name_or_width_is_refused() -> None:
    with pytest.raises(BadRequest, match="there are mobilenet-v2"):
        at("mobilenet-v5")
    for multiplier in (0.0, -1.0, 100.0, math.nan):
        with pytest.raises(BadRequest, match="width multiplier"):
            at("mobilenet-v2", multiplier)
