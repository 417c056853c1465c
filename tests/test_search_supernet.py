"""A supernet runs and trains one path at a time; its paths are scored alike however it is done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hurricane.ops.backbone import parse_backbone
from hurricane.ops.blocks import Network
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.pool import GATES
from hurricane.ops.shapes import LayerShape
from hurricane.search import evaluation
from hurricane.search.data import ImageData, Split, load_data
from hurricane.search.evaluation import (
    PathScorer,
    SupernetEvaluator,
    calibration_batches,
    evaluate_network,
)
from hurricane.search.images import StoredImages
from hurricane.search.supernet import Candidates, Supernet
from hurricane.search.training import (
    PRESETS,
    Preset,
    TrainingSettings,
    build_supernet,
    train_supernet,
)

pytestmark = pytest.mark.process

TINY = parse_backbone(
    """
    classes = 10
    split = 1
    exploring_layers = 1
    [input]
    channels = 1
    height = 8
    width = 8
    [[stem]]
    channels = 8
    kernel = 3
    stride = 1
    [[stages]]
    channels = 16
    repeats = 2
    stride = 2
    [[stages]]
    channels = 16
    repeats = 1
    stride = 1
    [head]
    channels = 24
    dropout = 0.2
    """,
    "tiny",
    "tiny.toml",
)
FULL: Candidates = (
    ("Choice_3", "SEP_3"),
    ("Choice_3_SE", "MB_3_3", "SEP_5"),
    ("Choice_x", "MB_3_1_SE"),
)
FIXED: Candidates = (("Choice_3",), *FULL[1:])


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits?limit=100", TINY)


def uniform(candidates: Candidates):
    widths = [len(names) for names in candidates]
    return lambda rng, n: rng.integers(0, widths, (n, len(widths)))


def every_code(candidates: Candidates) -> np.ndarray:
    grid = np.meshgrid(*(np.arange(len(names)) for names in candidates), indexing="ij")
    return np.stack([axis.ravel() for axis in grid], 1)


def trained(candidates: Candidates, data: ImageData, **changes) -> Supernet:
    supernet = build_supernet(TINY, candidates, "h-swish", 0)
    settings = TrainingSettings(
        **{"epochs": 2, "batch": 20, "learning_rate": 0.1, "device": "cpu", **changes}
    )
    train_supernet(supernet, data, uniform(candidates), settings)
    return supernet


@pytest.mark.parametrize("gate", GATES)
def test_a_path_computes_what_a_network_of_its_operators_does(gate: str):
    supernet = build_supernet(TINY, FULL, gate, 0).eval()
    code = (0, 0, 1)  # two of these have a gate
    network = Network(TINY, [names[c] for names, c in zip(FULL, code, strict=True)], gate).eval()
    own = {k: v for k, v in network.state_dict().items() if "layers" not in k}
    # A network's BatchNorm has scale 1 and shift 0 at the start, so only the rest is copied.
    network.load_state_dict(
        {k: supernet.state_dict().get(k, v) for k, v in own.items()}, strict=False
    )
    for layer, choice in enumerate(code):
        network.layers[layer].load_state_dict(
            supernet.operator(layer, choice).state_dict(), strict=False
        )
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(supernet(images, code), network(images))


def test_operators_off_the_path_get_no_gradient_and_do_not_move(digits: ImageData):
    supernet = build_supernet(TINY, FULL, "h-swish", 0)
    before = {k: v.clone() for k, v in supernet.named_parameters()}
    settings = TrainingSettings(epochs=1, batch=25, learning_rate=0.1, weight_decay=0.1)
    train_supernet(supernet, digits, lambda rng, n: np.ones((n, 3), dtype=np.int64), settings)
    for name, value in supernet.named_parameters():
        on_path = not name.startswith("layers") or name.split(".")[2] == "1"
        assert torch.equal(value, before[name]) != on_path, name


def test_batch_norm_has_no_scale_and_shift_in_a_supernet():
    norms = [
        m
        for m in build_supernet(TINY, FULL, "h-swish", 0).modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert norms
    assert all(norm.weight is None and norm.bias is None for norm in norms)


def test_stage_two_inherits_every_operator_that_stays():
    later = build_supernet(TINY, FIXED, "h-swish", 0)
    earlier = build_supernet(TINY, (FULL[0], ("SEP_5",), ("Choice_x",)), "h-swish", 1)
    assert earlier.inherit(later) == 3
    for mine, theirs in ((earlier.stem, later.stem), (earlier.head, later.head)):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, other)
    pairs = [((0, 0), (0, 0)), ((1, 0), (1, 2)), ((2, 0), (2, 0))]
    for mine, theirs in pairs:
        other = later.operator(*theirs).state_dict()
        for name, value in earlier.operator(*mine).state_dict().items():
            assert torch.equal(value, other[name])
    fresh = build_supernet(TINY, (FULL[0], ("SEP_5",), ("Choice_x",)), "h-swish", 1)
    kept = earlier.operator(0, 1).state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in fresh.operator(0, 1).state_dict().items())


def test_weights_are_not_inherited_between_gates():
    with pytest.raises(BadRequest, match="same gate"):
        build_supernet(TINY, FULL, "h-swish", 0).inherit(
            build_supernet(TINY, FULL, "hard-sigmoid", 0)
        )


@pytest.mark.parametrize(
    "candidates", [FULL[:2], (FULL[0], (), FULL[2]), (FULL[0], ("SEP_3", "SEP_3"), FULL[2])]
)
def test_a_space_that_does_not_fit_the_backbone_is_refused(candidates: Candidates):
    with pytest.raises(BadRequest, match="candidates"):
        Supernet(TINY, candidates)


def test_an_operator_that_does_not_apply_is_refused():
    narrowing = replace(TINY, layers=(*TINY.layers[:2], LayerShape(4, 4, 16, 8, 1)))
    with pytest.raises(BadRequest, match="does not apply"):
        Supernet(narrowing, FULL)


@pytest.mark.parametrize("candidates", [FULL, FIXED, (FULL[0], ("SEP_5",), ("Choice_x",))])
def test_sharing_stretches_between_paths_changes_no_score(
    digits: ImageData, candidates: Candidates
):
    supernet = trained(candidates, digits)
    codes = every_code(candidates)
    alone = PathScorer(supernet, digits, 60, batch=20, device="cpu", kept_bytes=0).score(codes)
    # Inputs of the layers take 328, 164 and 164 kB: some budgets hold some of them.
    for kept in (200_000, 500_000, 1 << 30):
        scorer = PathScorer(supernet, digits, 60, batch=20, device="cpu", kept_bytes=kept)
        assert scorer.score(codes) == alone
    assert len(set(alone)) > 1


def test_a_score_does_not_depend_on_what_was_scored_before(digits: ImageData):
    supernet = trained(FULL, digits)
    codes = every_code(FULL)
    scorer = PathScorer(supernet, digits, 60, batch=20, device="cpu")
    together = scorer.score(codes)
    assert scorer.score(codes[::-1]) == together[::-1]
    assert [scorer.score(code[None])[0] for code in codes[3:6]] == together[3:6]
    assert scorer.score(codes[[2, 2]]) == [together[2]] * 2
    assert scorer.score(codes[:0]) == []


def test_a_score_is_the_accuracy_with_recalibrated_batch_norm(digits: ImageData):
    """Checked against a plain module that recalibrates itself by torch's own means."""

    class Path(nn.Module):
        def __init__(self, supernet: Supernet, code: tuple[int, ...]) -> None:
            super().__init__()
            chosen = [supernet.operator(i, c) for i, c in enumerate(code)]
            self.all = nn.Sequential(supernet.stem, *chosen, supernet.head)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.all(x)

    supernet = trained(FULL, digits)
    code = (0, 2, 1)
    found = PathScorer(supernet, digits, 1000, batch=100, device="cpu").score(np.array([code]))
    path = Path(supernet, code).eval()
    for norm in (m for m in path.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 1.0  # one batch, which holds all 100 training images
        norm.train()
    with torch.no_grad():
        path(digits.normalise(digits.train.images))
    assert found[0] == pytest.approx(evaluate_network(path, digits.validation, digits), abs=0.011)


def test_a_score_is_of_the_validation_split_and_sees_no_other_labels(digits: ImageData):
    supernet = trained(FULL, digits)

    def scores(*wrong: str) -> list[float]:
        others = {
            name: Split(getattr(digits, name).images, (getattr(digits, name).labels + 1) % 10)
            for name in wrong
        }
        scorer = PathScorer(supernet, replace(digits, **others), 60, batch=20, device="cpu")
        return scorer.score(every_code(FULL))

    assert scores("train", "test") == scores()
    assert scores("validation") != scores()


def test_calibration_images_are_drawn_from_the_training_images_in_whole_batches(
    digits: ImageData,
):
    training = digits.normalise(digits.train.images).flatten(1)

    def drawn(images: int, batch: int, seed: int = 0) -> list[list[int]]:
        data = replace(digits, seed=seed)
        found = calibration_batches(data, images, batch, torch.device("cpu"))
        assert found.images == sum(map(len, found))
        same = [(part.flatten(1)[:, None] == training[None]).all(2) for part in found]
        assert all(part.any(1).all() for part in same)
        return [part.int().argmax(1).tolist() for part in same]

    sixty = drawn(60, 20)
    assert [len(part) for part in sixty] == [20] * 3
    assert drawn(60, 20) == sixty
    flat = [n for part in sixty for n in part]
    assert len(set(flat)) > 50  # equal digits are told apart by none
    assert flat != list(range(60))
    assert drawn(60, 20, seed=1) != sixty
    assert [len(part) for part in drawn(55, 20)] == [20] * 2
    assert [len(part) for part in drawn(7, 20)] == [7]
    assert sum(len(part) for part in drawn(10**6, 20)) == len(digits.train)


def preset(**changes) -> Preset:
    short = TrainingSettings(
        **{"epochs": 1, "batch": 25, "learning_rate": 0.1, "checkpoint_steps": 2, **changes}
    )
    return Preset("short", short, short, short, calibration_images=50, evaluation_batch=25)


def test_an_evaluator_trains_both_stages_and_resumes_them_from_their_checkpoints(
    digits: ImageData, tmp_path
):
    second: Candidates = (FULL[0], ("SEP_5",), ("Choice_x",))
    told: list[tuple[int, int]] = []

    def run(progress=None) -> tuple[list[float], list[float]]:
        evaluator = SupernetEvaluator(
            TINY, digits, tmp_path, preset(), GATES[1], seed=5, device="cpu", progress=progress
        )
        evaluator.prepare(1, FIXED, uniform(FIXED))
        first = evaluator.evaluate(every_code(FIXED))
        evaluator.prepare(2, second, uniform(second), FIXED)
        return first, evaluator.evaluate(every_code(second))

    whole = run(lambda s: told.append((s.step, s.steps)))
    assert told == [(4, 4), (4, 4)]
    names = {"supernet-1.pt", "supernet-2.pt", "training.csv"}
    assert {p.name for p in tmp_path.iterdir()} == names
    told.clear()
    assert run(lambda s: told.append((s.step, s.steps))) == whole
    assert told == []

    (tmp_path / "supernet-2.pt").unlink()  # killed between the stages
    late = SupernetEvaluator(TINY, digits, tmp_path, preset(), GATES[1], seed=5, device="cpu")
    late.prepare(2, second, uniform(second), FIXED)
    assert late.evaluate(every_code(second)) == whole[1]


def test_each_stage_is_trained_by_its_own_settings_with_the_evaluators_seed(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
):
    asked: list[TrainingSettings] = []
    monkeypatch.setattr(
        evaluation,
        "train_supernet",
        lambda supernet, data, sampler, settings, *rest: asked.append(settings),
    )
    short = preset(epochs=3)
    both = replace(short, stage_2=replace(short.stage_2, epochs=7))
    evaluator = SupernetEvaluator(TINY, digits, None, both, seed=5, device="cpu")
    evaluator.prepare(1, FIXED, uniform(FIXED))
    evaluator.prepare(2, FULL, uniform(FULL), FIXED)
    assert asked == [
        replace(short.supernet, seed=5, device="cpu"),
        replace(short.supernet, seed=5, device="cpu", epochs=7),
    ]


def test_a_stages_networks_can_be_run_on_test_images_as_long_as_its_supernet_is_there(
    digits: ImageData, tmp_path
):
    evaluator = SupernetEvaluator(TINY, digits, tmp_path, preset(epochs=3), device="cpu")
    assert evaluator.test(1, FULL, [[0, 0, 0]]) is None
    evaluator.prepare(1, FULL, uniform(FULL))
    before = evaluator.evaluate(every_code(FULL))
    found = evaluator.test(1, FULL, every_code(FULL).tolist())
    swapped = replace(digits, validation=digits.test)
    own = evaluator._supernet
    assert own is not None
    scorer = PathScorer(own, swapped, 50, 25, "cpu", kept_bytes=0)
    assert found == scorer.score(every_code(FULL))
    assert found != before
    assert evaluator.evaluate(every_code(FULL)) == before
    # A later process reads the checkpoint. As last bits can move an accuracy, its weights must lie
    # in memory as trained ones do.
    fresh = build_supernet(TINY, FULL, "h-swish", 0)
    PathScorer(fresh, digits, 50, 25, "cpu")
    for one, other in zip(own.parameters(), fresh.parameters(), strict=True):
        assert one.stride() == other.stride()
    later = SupernetEvaluator(TINY, digits, tmp_path, preset(epochs=3), device="cpu")
    assert later.test(1, FULL, every_code(FULL).tolist()) == found


def test_accuracies_come_in_the_order_of_the_architectures_asked(digits: ImageData):
    evaluator = SupernetEvaluator(TINY, digits, None, preset(epochs=3), device="cpu")
    evaluator.prepare(1, FULL, uniform(FULL))
    codes = np.random.default_rng(0).permutation(np.concatenate([every_code(FULL)] * 2))
    alone = [evaluator.evaluate(code[None])[0] for code in codes]
    assert evaluator.evaluate(codes) == alone
    assert alone not in (sorted(alone), alone[::-1])
    assert len(set(alone)) > 3


def test_a_stage_without_the_one_before_says_so(digits: ImageData, tmp_path):
    evaluator = SupernetEvaluator(TINY, digits, tmp_path, preset())
    with pytest.raises(HurricaneError, match="stage 1 has no trained supernet"):
        evaluator.prepare(2, FULL, uniform(FULL), FIXED)
    with pytest.raises(HurricaneError, match="prepare"):
        evaluator.evaluate(every_code(FULL))


def test_presets_grow_and_change_as_a_whole():
    half = PRESETS["digits"].scaled(0.5).adjusted(seed=7)
    assert half.supernet.epochs == PRESETS["digits"].supernet.epochs / 2
    assert {half.supernet.seed, half.stage_2.seed, half.retrain.seed} == {7}


def on_the_disk(digits: ImageData, read: list[int]) -> ImageData:
    """The same images, decoded when they are asked for; counts how many were."""

    def stored(split: Split) -> Split:
        assert isinstance(split.images, torch.Tensor)
        pixels = split.images

        def fetch(numbers: torch.Tensor) -> torch.Tensor:
            read.append(len(numbers))
            return pixels[numbers]

        return Split(StoredImages(fetch, torch.arange(len(split))), split.labels)

    return replace(digits, train=stored(digits.train), validation=stored(digits.validation))


@pytest.mark.parametrize("candidates", [FULL, FIXED])
def test_images_on_the_disk_are_read_once_for_many_paths(
    digits: ImageData, candidates: Candidates, monkeypatch: pytest.MonkeyPatch
):
    supernet = trained(candidates, digits)
    codes = every_code(candidates)
    alone = PathScorer(supernet, digits, 60, batch=20, device="cpu", kept_bytes=0).score(codes)
    monkeypatch.setattr(evaluation, "HELD_BYTES", 0)
    monkeypatch.setattr(evaluation, "PATHS_AT_ONCE", 4)
    before = {k: v.clone() for k, v in supernet.named_parameters()}
    read: list[int] = []
    data = on_the_disk(digits, read)
    scorer = PathScorer(supernet, data, 60, batch=20, device="cpu", kept_bytes=0)
    read.clear()
    assert scorer.score(codes) == alone
    times = -(-len(codes) // 4)
    assert sum(read) == times * (60 + len(digits.validation))
    assert scorer.score(codes[::-1]) == alone[::-1]
    assert all(torch.equal(v, before[k]) for k, v in supernet.named_parameters())
    # Whatever was scored, the supernet can be trained on.
    supernet.train()(torch.randn(4, 1, 8, 8), codes[0]).sum().backward()


def test_calibration_images_are_decoded_once_where_they_fit(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
):
    size = 60 * 8 * 8
    for limit, stored in ((size, False), (size - 1, True)):
        monkeypatch.setattr(evaluation, "HELD_BYTES", limit)
        data = on_the_disk(digits, [])
        found = calibration_batches(data, 60, 20, torch.device("cpu"), hold=True)
        assert found.stored == stored
        assert found.images == 60
        plain = calibration_batches(digits, 60, 20, torch.device("cpu"))
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_paths_are_scored_in_the_precision_they_were_trained_in(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
):
    supernet = trained(FULL, digits, epochs=6)
    codes = every_code(FULL)
    full = PathScorer(supernet, digits, 60, 20, "cpu").score(codes)
    seen: set[torch.dtype] = set()
    run = supernet.head.forward

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.add(x.dtype)
        return run(x)

    supernet.head.forward = watched
    for kept in (0, 1 << 30):
        mixed = PathScorer(supernet, digits, 60, 20, "cpu", kept, "bf16").score(codes)
        assert seen == {torch.bfloat16}
        assert mixed == pytest.approx(full, abs=0.1)
    asked: list[str] = []
    monkeypatch.setattr(
        evaluation, "PathScorer", lambda *a, precision, **k: asked.append(precision)
    )
    evaluator = SupernetEvaluator(TINY, digits, None, preset(precision="bf16"), device="cpu")
    evaluator.prepare(1, FIXED, uniform(FIXED))
    assert asked == ["bf16"]
