"""Batch, learning rate and precision suit the device unless the user says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hurricane.ops.errors import BadRequest
from hurricane.search.hardware import GPU_BATCH, LEAST_STEPS, Choice
from hurricane.search.training import PRESETS, WARMUP

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CIFAR = PRESETS["cifar10"]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with bf16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")


def test_a_cpu_trains_by_the_preset():
    choice = Choice.of(CIFAR, CPU, 45_000)
    assert choice == Choice(None, "fp32", 128)
    assert choice.apply(CIFAR, 45_000) == CIFAR


def test_a_gpu_trains_in_bf16_with_larger_batches_and_rates():
    choice = Choice.of(CIFAR, GPU, 45_000)
    assert choice == Choice(512, "bf16", 512)
    done = choice.apply(CIFAR, 45_000)
    for name, rate in (("supernet", 0.4), ("stage_2", 0.2), ("retrain", 0.4)):
        training = getattr(done, name)
        assert (training.batch, training.precision) == (512, "bf16")
        assert training.learning_rate == pytest.approx(rate)
        assert training.warmup == WARMUP
    assert done.evaluation_batch == 512


def test_a_gpu_without_bf16_trains_in_fp32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert Choice.of(CIFAR, GPU, 45_000).precision == "fp32"
    with pytest.raises(BadRequest, match="Some GPU has no bf16; use fp32 or auto"):
        Choice.of(CIFAR, GPU, 45_000, precision="bf16")


def test_what_was_asked_for_is_taken():
    assert Choice.of(CIFAR, GPU, 45_000, 3, 100, "fp32") == Choice(100, "fp32", 512)
    assert Choice.of(CIFAR, CPU, 45_000, 1, 64, "bf16") == Choice(64, "bf16", 128)
    assert Choice.of(CIFAR, GPU, 45_000, keep_batch=True).batch is None
    half = Choice(64, "fp32", 128).apply(CIFAR, 45_000).supernet
    assert (half.batch, half.learning_rate, half.warmup) == (64, 0.05, 0.0)
    # No batch is larger than the data, and rates are of the batch that is taken.
    few = Choice(512, "fp32", 128).apply(CIFAR, 256).supernet
    assert (few.batch, few.learning_rate) == (256, 0.2)


@given(
    name=st.sampled_from(sorted(PRESETS)),
    gpu=st.booleans(),
    images=st.integers(1, 2_000_000),
    processes=st.integers(1, 9),
)
def test_a_chosen_batch_can_be_shared_and_leaves_an_epoch_its_steps(
    name: str, gpu: bool, images: int, processes: int
):
    preset = PRESETS[name]
    usual = preset.supernet.batch
    batch = Choice.of(preset, GPU if gpu else CPU, images, processes).batch or usual
    assert batch % processes == 0
    assert usual <= batch < max(usual, GPU_BATCH) + processes
    if batch >= usual + processes:
        assert gpu
        assert images // (batch - processes + 1) >= LEAST_STEPS
    elif gpu:  # it would have grown
        assert 2 * usual > GPU_BATCH or images < 2 * usual * LEAST_STEPS


def test_a_choice_is_kept_with_what_came_of_it(tmp_path: Path):
    path = tmp_path / "trainings.json"
    for choice in (Choice(None, "fp32", 128), Choice(512, "bf16", 512)):
        choice.save(path, choice.apply(CIFAR, 45_000), CPU)
        assert Choice.load(path) == choice
    kept = json.loads(path.read_text())
    assert kept["trainings"]["network"]["learning_rate"] == pytest.approx(0.4)
    path.write_text(json.dumps({**kept, "precision": "int8"}))
    with pytest.raises(BadRequest, match=r"trainings\.json: precision must be one of fp32, bf16"):
        Choice.load(path)


def test_epochs_are_those_of_supernet_and_network_and_stage_two_keeps_its_share():
    done = CIFAR.lasting(30)
    assert (done.supernet.epochs, done.stage_2.epochs, done.retrain.epochs) == (30, 3, 30)
