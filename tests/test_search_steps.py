"""What a step of training sees and does: images, rates, clipping, decay, losses, paths."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hurricane.ops.blocks import Network
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.search import evaluation, retrain, training
from hurricane.search.crops import RandomResizedCrop
from hurricane.search.data import Augmentation, ImageData, Split
from hurricane.search.distributed import World
from hurricane.search.images import StoredImages
from hurricane.search.training import (
    Losses,
    TrainingSettings,
    build_supernet,
    optimise,
    train_supernet,
)
from hurricane.search.training_log import TrainingStatus

from . import search_training_worker as worker

IMAGES = 24
NAMES = ("Choice_3_SE", "MB_3_3")


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Random images, so that each can be told from all others, also where it was shifted."""
    torch.set_num_threads(1)
    drawn = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (3 * IMAGES, 1, 8, 8), dtype=torch.uint8, generator=drawn)
    labels = torch.arange(3 * IMAGES) % 10
    splits = [Split(pixels[i::3], labels[i::3]) for i in range(3)]
    return ImageData(
        "noise", "digits", tuple("0123456789"), *splits, (0.5,), (0.25,), Augmentation(2, True), 0
    )


def settings(**changes: Any) -> TrainingSettings:
    plain = {"epochs": 3, "batch": 8, "learning_rate": 0.1, "device": "cpu", "momentum": 0.0}
    return TrainingSettings(**{**plain, "weight_decay": 0.0, "clip": None, **changes})


class Scale(nn.Module):
    """One matrix and one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.full((2, 2), 3.0))
        self.vector = nn.Parameter(torch.full((2,), 3.0))


def steps_of(data: ImageData, **changes: Any) -> list[tuple[Tensor, Tensor]]:
    """What every step, or part of one, is given."""
    seen: list[tuple[Tensor, Tensor]] = []
    model = Scale()

    def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
        seen.append((images, labels))
        yield 0 * model.vector.sum(), None

    optimise(model, objective, data, settings(**changes), {})
    return seen


def weights_after(
    data: ImageData, slope: float, model: Scale | None = None, **changes: Any
) -> list[tuple[Tensor, Tensor]]:
    """Matrix and vector before every step and at the end; the loss rises by a slope with each."""
    model = model or Scale()
    seen: list[tuple[Tensor, Tensor]] = []

    def note() -> None:
        seen.append((model.matrix.detach().clone(), model.vector.detach().clone()))

    def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
        note()
        yield slope * (model.matrix.sum() + model.vector.sum()), None

    optimise(model, objective, data, settings(**changes), {})
    note()
    return seen


def numbers(images: Tensor, data: ImageData) -> list[int]:
    """Which training images these are, as they are or not at all (-1)."""
    plain = data.normalise(data.train.images).flatten(1)
    found = (images.flatten(1)[:, None] == plain[None]).all(2)
    return [int(row.nonzero()[0]) if row.any() else -1 for row in found]


def test_an_epoch_shows_every_training_image_once_in_an_order_of_its_own(data: ImageData):
    def order(**changes: Any) -> list[int]:
        shown = steps_of(data, augment=False, **changes)
        for images, labels in shown:
            assert labels.tolist() == data.train.labels[numbers(images, data)].tolist()
        return [n for images, _ in shown for n in numbers(images, data)]

    whole = order()
    epochs = [tuple(whole[i : i + IMAGES]) for i in range(0, len(whole), IMAGES)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(IMAGES))] * 3
    assert len({*epochs, tuple(range(IMAGES))}) == 4
    assert order() == whole != order(seed=1)
    # Parts of a batch are shares of what is shown at once otherwise.
    assert order(parts=2) == whole


def test_images_are_augmented_only_where_the_settings_say_so(data: ImageData):
    plain = steps_of(data, augment=False, epochs=1)
    assert all(min(numbers(images, data)) >= 0 for images, _ in plain)
    augmented = steps_of(data, augment=True, epochs=1)
    kept = [n for images, _ in augmented for n in numbers(images, data) if n >= 0]
    assert len(kept) < IMAGES / 2
    assert [labels.tolist() for _, labels in augmented] == [labels.tolist() for _, labels in plain]


def test_every_step_and_part_draws_its_own_augmentation(data: ImageData):
    """One image alone, again and again: what differs is the augmentation."""
    one = Split(data.train.images[:1].expand(4, -1, -1, -1), data.train.labels[:4])
    same = ImageData(**{**vars(data), "train": one})
    shown = [i for i, _ in steps_of(same, epochs=4, batch=4, parts=2)]
    assert len({images.numpy().tobytes() for images in shown}) == len(shown) == 8
    again = [i for i, _ in steps_of(same, epochs=4, batch=4, parts=2)]
    assert all(torch.equal(a, b) for a, b in zip(shown, again, strict=True))
    other = [i for i, _ in steps_of(same, epochs=4, batch=4, parts=2, seed=1)]
    assert not any(torch.equal(a, b) for a, b in zip(shown, other, strict=True))


def test_every_step_and_part_draws_its_own_dropout(data: ImageData):
    def drawn(**changes: Any) -> list[float]:
        found: list[float] = []
        model = Scale()

        def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
            found.append(float(torch.rand(())))
            yield 0 * model.vector.sum(), None

        optimise(model, objective, data, settings(parts=2, **changes), {})
        return found

    first = drawn()
    assert len(set(first)) == len(first) == 18
    torch.rand(7)
    assert drawn() == first
    assert set(drawn(seed=1)).isdisjoint(first)


def test_dropout_does_not_depend_on_where_a_training_was_cut_off(data: ImageData, tmp_path: Path):
    class Stop(Exception):
        pass

    def run(file: Path | None, stop: int | None = None) -> list[float]:
        found: list[float] = []
        model = Scale()

        def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
            if step == stop:
                raise Stop
            found.append(float(torch.rand(())))
            yield 0 * model.vector.sum(), None

        optimise(model, objective, data, settings(checkpoint_steps=2), {}, file)
        return found

    whole = run(None)
    with pytest.raises(Stop):
        run(tmp_path / "c.pt", 5)
    assert run(tmp_path / "c.pt") == whole[4:]


def test_each_step_has_the_rate_of_its_place_in_the_schedule(data: ImageData):
    for schedule in training.SCHEDULES:
        wanted = settings(schedule=schedule, warmup=0.3)
        seen = weights_after(data, 1.0, schedule=schedule, warmup=0.3)
        steps = [float(a[1][0] - b[1][0]) for a, b in pairwise(seen)]
        assert steps == pytest.approx([wanted.rate(s, 9) for s in range(9)], abs=1e-6)
    line, cosine = (settings(schedule=s) for s in ("linear", "cosine"))
    assert cosine.rate(2, 8) > line.rate(2, 8)
    assert cosine.rate(6, 8) < line.rate(6, 8)


def test_images_on_the_disk_are_shown_as_those_in_memory_are(data: ImageData, tmp_path: Path):
    def stored(split: Split) -> Split:
        return Split(StoredImages(split.images.__getitem__, torch.arange(len(split))), split.labels)

    disk = ImageData(
        **{**vars(data), **{n: stored(getattr(data, n)) for n in ("train", "validation", "test")}}
    )
    for one, other in zip(steps_of(data, parts=2), steps_of(disk, parts=2), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])

    def figures(data: ImageData) -> list[float]:
        trained = retrain.train_architecture(worker.BACKBONE, NAMES, data, settings())
        supernet = build_supernet(worker.BACKBONE, worker.CANDIDATES, "h-swish", 0)
        train_supernet(supernet, data, worker.sampler, settings())
        kept = [evaluation.PathScorer(supernet, data, 16, 8, "cpu", k) for k in (0, 1 << 30)]
        scores = [scorer.score(worker.CODES) for scorer in kept]
        assert scores[0] == scores[1]
        return [trained.validation_accuracy, trained.test_accuracy, *scores[0]]

    assert figures(disk) == figures(data)


def test_crops_are_drawn_by_step_and_part_wherever_a_training_was_cut_off(
    data: ImageData, tmp_path: Path
):
    class Stop(Exception):
        pass

    def crop(numbers: Tensor, drawn: Tensor) -> Tensor:
        """Pixels that tell the image and what was drawn for it."""
        shown = torch.cat([numbers[:, None], (drawn * 255).round()], 1).to(torch.uint8)
        return shown[:, None, None, :].contiguous()

    photographs = StoredImages(lambda numbers: torch.zeros(0), torch.arange(IMAGES), crop)
    train = Split(photographs, data.train.labels)
    photos = ImageData(**{**vars(data), "train": train, "augmentation": RandomResizedCrop()})

    def run(file: Path | None, stop: int | None = None, **changes: Any) -> list[Tensor]:
        seen: list[Tensor] = []
        model = Scale()

        def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
            if step == stop:
                raise Stop
            seen.append(images)
            yield 0 * model.vector.sum(), None

        wanted = settings(checkpoint_steps=2, parts=2, **changes)
        optimise(model, objective, photos, wanted, {}, file)
        return seen

    whole = run(None)
    assert len({images.numpy().tobytes() for images in whole}) == len(whole) == 18
    with pytest.raises(Stop):
        run(tmp_path / "c.pt", 5)
    resumed = run(tmp_path / "c.pt")
    assert len(resumed) == 10
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole[8:], strict=True))
    other = run(None, seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(other, whole, strict=True))


def test_momentum_carries_on_what_steps_did(data: ImageData):
    still, moving = (weights_after(data, 1.0, momentum=m)[2][1][0] for m in (0.0, 0.9))
    first, second = (settings().rate(step, 9) for step in range(2))
    assert float(still) == pytest.approx(3 - first - second)
    assert float(moving) == pytest.approx(3 - first - 1.9 * second)


def test_gradients_of_steps_do_not_pile_up_and_those_of_parts_are_averaged(data: ImageData):
    whole, parts = (weights_after(data, 1.0, parts=n) for n in (1, 2))
    assert float(parts[-1][1][0]) == pytest.approx(float(whole[-1][1][0]))
    assert float(whole[-1][1][0]) == pytest.approx(3 - sum(settings().rate(s, 9) for s in range(9)))


def test_a_step_is_no_longer_than_the_clip_allows(data: ImageData):
    free, clipped = (weights_after(data, 100.0, clip=c)[:2] for c in (None, 2.0))

    def length(pair: list[tuple[Tensor, Tensor]]) -> float:
        return sum(float(((a - b) ** 2).sum()) for a, b in zip(*pair, strict=True)) ** 0.5

    assert length(free) == pytest.approx(0.1 * 100 * 6**0.5, rel=1e-4)
    assert length(clipped) == pytest.approx(0.1 * 2, rel=1e-4)


def test_weights_of_more_than_one_dimension_decay_and_no_others(data: ImageData):
    matrix, vector = weights_after(data, 0.0, weight_decay=0.5, epochs=0.4)[-1]
    assert matrix.flatten().tolist() == pytest.approx([3 - 0.1 * 0.5 * 3] * 4)
    assert vector.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("kind", ["supernet", "network"])
def test_the_loss_is_cross_entropy_with_smoothed_labels(data: ImageData, kind: str):
    """It is linear in the smoothing, from that of the labels to that of an even distribution."""

    def loss(smoothing: float) -> float:
        found: list[float] = []
        wanted = settings(label_smoothing=smoothing, epochs=0.4)
        progress = lambda status: found.append(status.loss)  # noqa: E731
        if kind == "supernet":
            supernet = build_supernet(worker.BACKBONE, worker.CANDIDATES, "h-swish", 0)
            train_supernet(supernet, data, worker.sampler, wanted, None, progress)
        else:
            retrain.train_architecture(worker.BACKBONE, NAMES, data, wanted, progress=progress)
        return found[0]

    none, quarter, even = loss(0.0), loss(0.25), loss(1.0)
    assert quarter == pytest.approx(0.75 * none + 0.25 * even, rel=1e-5)
    assert abs(none - even) > 1e-3


def test_progress_is_the_mean_loss_since_it_was_told_last(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "REPORT_STEPS", 2)
    told: list[TrainingStatus] = []
    model = Scale()

    def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
        yield 0 * model.vector.sum() + step, None

    optimise(model, objective, data, settings(epochs=5 / 3), {}, None, told.append)
    assert [(s.step, s.steps, s.loss) for s in told] == [(2, 5, 0.5), (4, 5, 2.5), (5, 5, 4.0)]


def test_a_checkpoint_is_written_at_every_so_many_steps_and_at_the_end(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps: list[int] = []
    monkeypatch.setattr(
        training, "save_weights", lambda path, content: steps.append(content["step"])
    )
    model = Scale()

    def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
        yield 0 * model.vector.sum(), None

    optimise(model, objective, data, settings(checkpoint_steps=4), {}, tmp_path / "c.pt")
    assert steps == [4, 8, 9]


def test_a_resumed_training_goes_on_with_its_momentum(data: ImageData, tmp_path: Path):
    class Stop(Exception):
        pass

    def run(file: Path | None, stop: int | None = None) -> tuple[list[int], Tensor]:
        model, done = Scale(), []

        def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
            if step == stop:
                raise Stop
            done.append(step)
            yield model.matrix.sum() * (step == 1), None

        optimise(model, objective, data, settings(momentum=0.9, checkpoint_steps=3), {}, file)
        return done, model.matrix.detach()

    _, whole = run(None)
    with pytest.raises(Stop):
        run(tmp_path / "c.pt", 5)
    done, resumed = run(tmp_path / "c.pt")
    assert done == [3, 4, 5, 6, 7, 8]
    assert torch.equal(resumed, whole)


def test_a_checkpoint_of_other_data_is_refused(data: ImageData, tmp_path: Path):
    model = Scale()

    def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
        yield 0 * model.vector.sum(), None

    optimise(model, objective, data, settings(), {}, tmp_path / "c.pt")
    other = ImageData(**{**vars(data), "spec": "other"})
    with pytest.raises(BadRequest, match="run with other data"):
        optimise(model, objective, other, settings(), {}, tmp_path / "c.pt")


def test_a_loss_that_is_no_number_ends_a_training(data: ImageData):
    with pytest.raises(HurricaneError, match="diverged"):
        weights_after(data, float("nan"))


def test_mixed_precision_computes_in_bf16_and_gives_fp32():
    linear = nn.Linear(64, 8)
    images = torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    full = training.forward(linear, settings(), images)
    mixed = training.forward(linear, settings(precision="bf16"), images)
    assert mixed.dtype == torch.float32
    assert torch.equal(full, linear(images))
    assert torch.equal(mixed, mixed.bfloat16().float())
    assert not torch.equal(mixed, full)
    torch.testing.assert_close(mixed, full, atol=0.05, rtol=0.05)


# Paths


class Watched:
    """The paths that a training took, and whether the head dropped out."""

    def __init__(self, data: ImageData, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.paths: list[tuple[int, ...]] = []
        self.dropout: list[bool] = []
        self.chunks: list[np.ndarray] = []
        monkeypatch.setattr(training, "PATHS_AT_ONCE", 4)
        supernet = build_supernet(worker.BACKBONE, worker.CANDIDATES, "h-swish", 0)
        self.largest, self.smallest = supernet.largest(), supernet.smallest()
        run = supernet.forward

        def watched(x: Tensor, code: Any, dropout: bool = True) -> Tensor:
            self.paths.append(tuple(code))
            found = run(x, code, dropout)
            self.dropout.append(supernet.head.dropout.training)
            return found

        def sampler(rng: np.random.Generator, n: int) -> np.ndarray:
            self.chunks.append(worker.sampler(rng, n))
            return self.chunks[-1]

        supernet.forward = watched
        train_supernet(supernet, data, sampler, settings(**changes))


def test_every_step_trains_the_next_path_drawn(data: ImageData, monkeypatch: pytest.MonkeyPatch):
    found = Watched(data, monkeypatch)
    drawn = [tuple(code) for chunk in found.chunks for code in chunk.tolist()]
    assert found.paths == drawn[:9]
    first, second, third = found.chunks
    assert not (np.array_equal(first, second) and np.array_equal(second, third))
    assert found.paths != Watched(data, monkeypatch, seed=1).paths
    assert all(found.dropout)


def test_a_sandwich_is_largest_smallest_and_two_paths_drawn(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
):
    found = Watched(data, monkeypatch, strategy="sandwich")
    drawn = [tuple(code) for chunk in found.chunks for code in chunk.tolist()]
    assert found.largest != found.smallest
    assert found.paths[::4] == [found.largest] * 9
    assert found.paths[1::4] == [found.smallest] * 9
    pairs = list(zip(found.paths[2::4], found.paths[3::4], strict=True))
    assert [path for pair in pairs for path in pair] == drawn[:18]
    assert found.dropout == [True, False, False, False] * 9


def test_a_sandwichs_teacher_does_not_learn_from_its_pupils(data: ImageData):
    """Its own operators get the gradient of its own loss and of no other."""
    supernet = build_supernet(worker.BACKBONE, worker.CANDIDATES, "h-swish", 0)
    small = supernet.smallest()
    paths = training._Paths(lambda rng, n: np.tile(small, (n, 1)), 0)
    wanted = settings(strategy="sandwich", label_smoothing=0.0)
    objective = training._supernet_objective(supernet, paths, wanted)
    images, labels = data.normalise(data.train.images), data.train.labels
    supernet.head.dropout.p = 0.0
    losses = objective(images, labels, 0)
    own, _ = next(losses)
    own.backward()
    teacher = [
        p for i, c in enumerate(supernet.largest()) for p in supernet.operator(i, c).parameters()
    ]
    alone = [p.grad.clone() for p in teacher if p.grad is not None]
    assert len(alone) == len(teacher) > 0
    for loss, logits in losses:
        assert logits is None  # theirs are not to meet the labels
        loss.backward()
    for parameter, gradient in zip(teacher, alone, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_fair_training_uses_all_operators_of_a_layer_in_another_order_each_step(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
):
    found = Watched(data, monkeypatch, strategy="fair")
    steps = [tuple(found.paths[i : i + 3]) for i in range(0, len(found.paths), 3)]
    assert len(steps) == 9
    for step in steps:
        assert {a for a, _ in step} == {0, 1}
        assert sorted(b for _, b in step) == [0, 1, 2]
    assert len(set(steps)) > 1
    assert found.paths != Watched(data, monkeypatch, strategy="fair", seed=1).paths


def test_initial_weights_depend_on_the_seed():
    def weights(seed: int) -> Tensor:
        supernet = build_supernet(worker.BACKBONE, worker.CANDIDATES, "h-swish", seed)
        return next(p for p in supernet.parameters() if p.ndim > 1)

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


# A network from scratch


def test_a_network_from_scratch_depends_on_its_seed_and_its_gate(data: ImageData):
    still = {"epochs": 0.4, "learning_rate": 1e-12}

    def network(gate: str = "h-swish", **changes: Any) -> Network:
        wanted = settings(**still, **changes)
        return retrain.train_architecture(worker.BACKBONE, NAMES, data, wanted, gate=gate).network

    images = data.normalise(data.test.images)
    plain = network()(images)
    assert torch.equal(plain, network()(images))
    assert not torch.allclose(plain, network(seed=1)(images), atol=1e-3)
    assert not torch.allclose(plain, network("hard-sigmoid")(images), atol=1e-6)


def test_the_checkpoint_of_a_network_with_another_gate_is_refused(data: ImageData, tmp_path: Path):
    retrain.train_architecture(worker.BACKBONE, NAMES, data, settings(), tmp_path)
    with pytest.raises(BadRequest, match="run with other gate"):
        retrain.train_architecture(
            worker.BACKBONE, NAMES, data, settings(), tmp_path, gate="hard-sigmoid"
        )


def test_a_trained_networks_statistics_are_those_of_plain_training_images(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retrain, "BATCH_NORM_IMAGES", IMAGES)
    trained = retrain.train_architecture(worker.BACKBONE, NAMES, data, settings(learning_rate=0.5))
    seen: list[Tensor] = []
    convolution = next(m for m in trained.network.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in trained.network.modules() if isinstance(m, nn.BatchNorm2d))
    convolution.register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        trained.network(data.normalise(data.train.images))
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-4, rtol=1e-4)


def test_without_settings_a_network_is_trained_by_the_preset_for_networks(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
):
    asked: list[TrainingSettings] = []

    class Stop(Exception):
        pass

    def stop(model: Any, objective: Any, data: Any, wanted: TrainingSettings, *rest: Any) -> None:
        asked.append(wanted)
        raise Stop

    monkeypatch.setattr(retrain, "optimise", stop)
    with pytest.raises(Stop):
        retrain.train_architecture(worker.BACKBONE, NAMES, data)
    assert asked == [training.PRESETS["digits"].retrain]


def test_presets_grow_in_all_their_trainings():
    for preset in training.PRESETS.values():
        twice = preset.scaled(2)
        for name in ("supernet", "stage_2", "retrain"):
            assert getattr(twice, name).epochs == 2 * getattr(preset, name).epochs
        other = preset.adjusted(seed=7, device="cpu")
        for name in ("supernet", "stage_2", "retrain"):
            assert (getattr(other, name).seed, getattr(other, name).device) == (7, "cpu")


# Several processes


def test_gradients_are_summed_over_processes_and_absent_ones_stay_absent(
    monkeypatch: pytest.MonkeyPatch,
):
    first, second, third = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad, third.grad = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: flat.mul_(2))
    World(0, 2).sum_gradients([first, second, third])
    assert first.grad.tolist() == [2, 4]
    assert second.grad is None
    assert third.grad.tolist() == [6, 8]


def test_shares_of_work_are_put_together_in_the_order_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
):
    def gathered(rank: int) -> list[int]:
        def exchange(shares: list[Any], own: list[int]) -> None:
            shares[:] = [[0, 10], [20, 30, 40]]
            assert shares[rank] == own

        monkeypatch.setattr("torch.distributed.all_gather_object", exchange)
        return World(rank, 2).share_out(5, lambda rows: [10 * row for row in rows])

    assert gathered(0) == gathered(1) == [0, 10, 20, 30, 40]
