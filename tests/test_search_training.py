"""Training is decided by its seed alone: not by kills, checkpoints or the number of processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.search import distributed, evaluation
from hurricane.search.data import ImageData, load_data
from hurricane.search.training import TrainingSettings, build_supernet, train_supernet
from hurricane.search.trainings import SUPERNET_TRAININGS

from . import search_training_worker as worker

pytestmark = pytest.mark.process

WORKER = Path(worker.__file__)
TIMEOUT_S = 120


@pytest.fixture(autouse=True)
def one_thread():
    """Equal to the last bit means with the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits?limit=100", worker.BACKBONE)


def start(folder: Path, parts: int, *kill: str, **environment: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), str(parts), *kill],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def assert_equal_weights(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def tiny(seed: int = 0):
    return build_supernet(worker.BACKBONE, worker.CANDIDATES, "h-swish", seed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    torch.set_num_threads(1)
    return worker.train_both(tmp_path_factory.mktemp("undisturbed"), 1)


@pytest.mark.parametrize("file", ["supernet-1.pt", "training.pt"])
def test_a_killed_training_resumes_to_the_same_weights(
    undisturbed: dict, tmp_path: Path, file: str
):
    folder = tmp_path / "killed"
    assert start(folder, 1, file).wait(TIMEOUT_S) == -signal.SIGKILL
    assert torch.load(folder / file, weights_only=True)["step"] == 4
    resumed = worker.train_both(folder, 1)
    for what, result in undisturbed.items():
        assert_equal_weights(result["model"], resumed[what]["model"])
        assert result["scores"] == resumed[what]["scores"]
    assert not list(folder.glob("*.partial"))


def launch(folder: Path, processes: int, *kill: str, parts: int = 1) -> tuple[int, str]:
    """The worker under torchrun; its exit status and what it said."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            f"--nproc-per-node={processes}",
            *(str(WORKER), str(folder), str(parts), *kill),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return done.returncode, done.stderr


def assert_same_results(one: dict, other: dict) -> None:
    # A supernet keeps the statistics that BatchNorm saw on rank 0: no score depends on them.
    supernets = (run["supernet"]["model"] for run in (one, other))
    assert_equal_weights(*({k: v for k, v in m.items() if not is_statistic(k)} for m in supernets))
    assert_equal_weights(one["network"]["model"], other["network"]["model"])
    for what in ("supernet", "network"):
        assert one[what]["scores"] == other[what]["scores"]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_do_the_same_as_one_with_as_many_parts(tmp_path: Path, processes: int):
    alone = worker.train_both(tmp_path / "alone", processes)
    folder = tmp_path / "together"
    folder.mkdir()
    status, said = launch(folder, processes, parts=processes)
    assert status == 0, said
    assert_same_results(alone, torch.load(folder / "result.pt", weights_only=True))
    assert exact_rows(folder) == exact_rows(tmp_path / "alone")


def exact_rows(folder: Path) -> list[list[str]]:
    """Which training, step, epoch and rate: the rest is rounded, or depends on the clock."""
    lines = (folder / "training.csv").read_text().splitlines()
    return [line.split(",")[:5] for line in lines]


@pytest.mark.parametrize("steps", [6, 22])  # of 15 of the supernet, and 15 of the network
def test_a_killed_rank_ends_the_job_with_a_clear_error_and_it_resumes(tmp_path: Path, steps: int):
    """The supernet sums its gradients itself, the network by DistributedDataParallel."""
    folder = tmp_path / "killed"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), "2", str(steps)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), **shared},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    _, said = first.communicate(timeout=TIMEOUT_S)
    second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == 1
    assert "HurricaneError: another process of this run has ended or cannot be reached" in said
    assert "the same command carries the run on" in said
    assert not (folder / "result.pt").exists()

    status, said = launch(folder, 2, parts=2)
    assert status == 0, said
    whole = worker.train_both(tmp_path / "alone", 2)
    assert_same_results(whole, torch.load(folder / "result.pt", weights_only=True))
    assert exact_rows(folder) == exact_rows(tmp_path / "alone")


@pytest.mark.parametrize(
    ("gpus", "nccl", "backend"),
    [
        (False, True, "gloo"),
        (True, False, "gloo"),
        # CPU tensors are summed by gloo also where there are GPUs: --device cpu.
        (True, True, "cpu:gloo,cuda:nccl"),
    ],
)
def test_processes_talk_by_what_suits_the_device_that_is_used(
    monkeypatch: pytest.MonkeyPatch, gpus: bool, nccl: bool, backend: str
):
    asked: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(distributed.dist, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(distributed.dist, "init_process_group", asked.append)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    world = distributed.join_world()
    assert asked == [backend]
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    device = distributed.choose_device("auto", world)
    assert device == (torch.device("cuda", 1) if gpus else torch.device("cpu"))
    assert current == ([device] if gpus else [])
    assert distributed.choose_device("cpu", world) == torch.device("cpu")


def test_a_network_is_tested_on_the_processes_own_device(
    monkeypatch: pytest.MonkeyPatch, digits: ImageData
):
    class Stop(Exception):
        pass

    def chosen(wish: str, world: distributed.World) -> torch.device:
        raise Stop(wish, world.local_rank)

    monkeypatch.setattr(evaluation, "join_world", lambda: distributed.World(1, 2, 1))
    monkeypatch.setattr(evaluation, "choose_device", chosen)
    with pytest.raises(Stop, match=r"\('auto', 1\)"):
        evaluation.evaluate_network(torch.nn.Identity(), digits.test, digits)


def is_statistic(name: str) -> bool:
    return "running" in name or "num_batches" in name


def test_parts_do_not_change_the_size_of_a_step(digits: ImageData):
    """Without BatchNorm's view of a part, gradients of parts average to the whole batch's."""
    results = []
    for parts in (1, 2):
        supernet = tiny()
        for norm in (m for m in supernet.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.track_running_stats = True
            norm.forward = lambda x: x  # type: ignore[method-assign]
        supernet.head.dropout.p = 0.0
        train_supernet(
            supernet, digits, worker.sampler, worker.settings(parts, augment=False, epochs=1)
        )
        results.append(supernet.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], msg=name)


@pytest.mark.parametrize("strategy", SUPERNET_TRAININGS)
def test_every_strategy_lowers_the_loss_and_is_reproducible(digits: ImageData, strategy: str):
    losses: list[float] = []
    settings = worker.settings(1, strategy=strategy, epochs=16)
    supernet = tiny()
    train_supernet(
        supernet, digits, worker.sampler, settings, None, lambda s: losses.append(s.loss)
    )
    assert losses[-1] < losses[0]
    again = tiny()
    train_supernet(again, digits, worker.sampler, settings)
    assert_equal_weights(supernet.state_dict(), again.state_dict())


def test_fair_training_touches_every_operator_in_one_step(digits: ImageData):
    supernet = tiny()
    before = {k: v.clone() for k, v in supernet.named_parameters()}
    one_step = worker.settings(1, strategy="fair", epochs=0.2)
    assert one_step.steps(len(digits.train)) == 1
    train_supernet(supernet, digits, worker.sampler, one_step)
    assert not any(torch.equal(v, before[k]) for k, v in supernet.named_parameters() if v.ndim > 1)


def test_paths_come_from_the_sampler_only(digits: ImageData):
    seen: list[tuple[int, ...]] = []
    supernet = tiny()
    run = supernet.forward

    def watched(x, code, dropout=True):
        seen.append(tuple(code))
        return run(x, code, dropout)

    supernet.forward = watched
    allowed = np.array([[0, 1], [1, 2]])
    train_supernet(
        supernet, digits, lambda rng, n: allowed[rng.integers(0, 2, n)], worker.settings(1)
    )
    assert len(seen) == 15
    assert set(seen) == {(0, 1), (1, 2)}


def test_training_leaves_the_callers_random_numbers_alone(digits: ImageData):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train_supernet(tiny(), digits, worker.sampler, worker.settings(1))
    assert torch.equal(torch.rand(3), expected)


def test_another_runs_checkpoint_is_refused_by_name(digits: ImageData, tmp_path: Path):
    file = tmp_path / "c.pt"
    train_supernet(tiny(), digits, worker.sampler, worker.settings(1), file)
    changed = [
        ("settings", digits, worker.sampler, worker.settings(1, learning_rate=0.2)),
        ("paths", digits, lambda rng, n: np.zeros((n, 2), dtype=int), worker.settings(1)),
        ("data", replace(digits, seed=9), worker.sampler, worker.settings(1)),
    ]
    for what, data, sampler, settings in changed:
        with pytest.raises(BadRequest, match=f"run with other {what}; choose"):
            train_supernet(tiny(), data, sampler, settings, file)
    other = build_supernet(worker.BACKBONE, worker.CANDIDATES, "hard-sigmoid", 0)
    with pytest.raises(BadRequest, match="run with other gate"):
        train_supernet(other, digits, worker.sampler, worker.settings(1), file)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_checkpoint_is_named(digits: ImageData, tmp_path: Path, damage: str):
    file = tmp_path / "c.pt"
    train_supernet(tiny(), digits, worker.sampler, worker.settings(1), file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"latency,table")
    with pytest.raises(HurricaneError, match=r"c\.pt cannot be read.*remove it"):
        train_supernet(tiny(), digits, worker.sampler, worker.settings(1), file)
    assert {p.name for p in tmp_path.iterdir()} == {"c.pt", "training.csv"}


def test_a_diverging_training_stops_and_says_so(digits: ImageData):
    wild = worker.settings(1, learning_rate=1e30, clip=None)
    with pytest.raises(HurricaneError, match="lower the learning rate"):
        train_supernet(tiny(), digits, worker.sampler, wild)


def test_learning_rates_climb_and_fall_to_nothing():
    linear = TrainingSettings(epochs=1, batch=1, learning_rate=0.5)
    assert [linear.rate(s, 4) for s in range(4)] == [0.5, 0.375, 0.25, 0.125]
    warm = replace(linear, schedule="cosine", warmup=0.5)
    assert [warm.rate(s, 8) for s in range(5)] == [0.125, 0.25, 0.375, 0.5, 0.5]
    assert warm.rate(6, 8) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "changes",
    [{"strategy": "greedy"}, {"schedule": "flat"}, {"precision": "int8"}, {"batch": 0}],
)
def test_impossible_settings_are_refused(changes: dict):
    with pytest.raises(BadRequest, match=next(iter(changes))):
        worker.settings(1, **changes)


def test_a_batch_that_cannot_be_shared_out_is_refused(digits: ImageData):
    with pytest.raises(BadRequest, match="20 in 3 parts"):
        train_supernet(tiny(), digits, worker.sampler, worker.settings(3, batch=20))
