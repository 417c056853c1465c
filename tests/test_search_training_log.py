"""What a training tells: rows that no kill doubles or loses, figures, lines without a terminal."""

from __future__ import annotations

import csv
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hurricane.ops.errors import BadRequest
from hurricane.search import progress, training_log
from hurricane.search.data import Augmentation, ImageData, Split
from hurricane.search.distributed import World
from hurricane.search.training import Losses, TrainingSettings, optimise
from hurricane.search.training_log import (
    COLUMNS,
    Meter,
    Tally,
    TrainingLog,
    TrainingStatus,
    row_is_due,
)

IMAGES = 12
EXACT = COLUMNS[: COLUMNS.index("images_per_s")]
"""Columns that are the same for a training that was killed and one that was not."""


class Stop(Exception):
    """A training is cut off here."""


def data() -> ImageData:
    splits = [Split(torch.zeros(IMAGES, 1, 2, 2, dtype=torch.uint8), torch.zeros(IMAGES).long())]
    return ImageData("none", "digits", ("a", "b"), *(splits * 3), (0.5,), (0.5,), Augmentation(), 0)


def train(checkpoint: Path, kill: int | None, **changes: Any) -> None:
    """A training whose loss and accuracy depend on the step alone; killed before a step."""
    model = nn.Linear(1, 1)

    def objective(images: Tensor, labels: Tensor, step: int) -> Losses:
        if step == kill:
            raise Stop
        right = torch.arange(len(labels)) <= step % len(labels)
        logits = torch.stack([right.float(), 1 - right.float()], 1)
        yield 0 * model.weight.sum() + 1 / (step + 3), logits

    wanted = TrainingSettings(batch=4, learning_rate=0.1, device="cpu", augment=False, **changes)
    optimise(model, objective, data(), wanted, {}, checkpoint)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "training.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@settings(max_examples=25)
@given(
    epochs=st.integers(1, 4),
    checkpoint_steps=st.integers(1, 7),
    row_steps=st.integers(1, 4),
    report_steps=st.integers(1, 4),
    kills=st.lists(st.integers(0, 12), max_size=4),
)
def test_a_killed_trainings_rows_are_those_of_one_that_was_not(
    epochs: int, checkpoint_steps: int, row_steps: int, report_steps: int, kills: list[int]
):
    changes = {"epochs": epochs, "checkpoint_steps": checkpoint_steps}
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as whole,
        tempfile.TemporaryDirectory() as killed,
    ):
        patch.setattr(training_log, "ROW_STEPS", row_steps)
        patch.setattr("hurricane.search.training.REPORT_STEPS", report_steps)
        train(Path(whole, "net.pt"), None, **changes)
        for kill in kills:
            try:
                train(Path(killed, "net.pt"), kill, **changes)
            except Stop:
                continue
        train(Path(killed, "net.pt"), None, **changes)
        one, other = rows(Path(whole)), rows(Path(killed))
    assert [[r[c] for c in EXACT] for r in other] == [[r[c] for c in EXACT] for r in one]
    steps = [int(r["step"]) for r in one]
    assert steps[-1] == int(one[0]["steps"]) == 3 * epochs
    # Every step's loss is in one row and no other.
    told = [float(r["loss"]) * (b - a) for a, b, r in zip([0, *steps], steps, one, strict=False)]
    assert sum(told) == pytest.approx(sum(1 / (s + 3) for s in range(3 * epochs)), abs=1e-4)


@given(per_epoch=st.integers(1, 2000), epochs=st.integers(1, 5), more=st.integers(0, 100))
def test_a_row_ends_each_epoch_and_none_is_long(per_epoch: int, epochs: int, more: int):
    steps = per_epoch * epochs + min(more, per_epoch - 1)
    due = [s for s in range(1, steps + 1) if row_is_due(s, steps, per_epoch)]
    assert {*range(per_epoch, steps + 1, per_epoch), steps} <= set(due)
    assert max(b - a for a, b in itertools.pairwise([0, *due])) <= training_log.ROW_STEPS
    assert len(due) <= (epochs + 1) * (1 + per_epoch // training_log.ROW_STEPS)


def status(step: int, **changes: Any) -> TrainingStatus:
    told = {"steps": 9, "learning_rate": 0.1, "loss": 2.0, "accuracy": 0.5}
    return TrainingStatus(**{"step": step, **told, "images_per_s": 8, "waiting": 0.25, **changes})


def test_trainings_of_a_run_share_a_file_and_take_back_their_own_rows_only(tmp_path: Path):
    first = TrainingLog.beside(tmp_path / "supernet-1.pt")
    second = TrainingLog.beside(tmp_path / "training.pt")
    for log in (first, second):
        for step in (3, 6, 9):
            log.append(step / 3, status(step, accuracy=None if step == 9 else 0.5))
    second.rewind(3)
    found = [(r["training"], int(r["step"])) for r in rows(tmp_path)]
    assert found == [("supernet-1", 3), ("supernet-1", 6), ("supernet-1", 9), ("training", 3)]
    assert rows(tmp_path)[2]["accuracy"] == ""
    assert rows(tmp_path)[0] == {
        "training": "supernet-1",
        "step": "3",
        "steps": "9",
        "epoch": "1.000",
        "learning_rate": "0.1",
        "loss": "2.00000",
        "accuracy": "0.5000",
        "images_per_s": "8.0",
        "waiting": "0.250",
    }


def test_an_unfinished_last_line_is_dropped(tmp_path: Path):
    log = TrainingLog.beside(tmp_path / "training.pt")
    log.append(1, status(3))
    with (tmp_path / "training.csv").open("a") as file:
        file.write("training,6,9,2.0")
    log.rewind(6)
    log.append(2, status(6))
    assert [r["step"] for r in rows(tmp_path)] == ["3", "6"]


def test_a_process_that_does_not_lead_writes_nothing(tmp_path: Path):
    log = TrainingLog.beside(tmp_path / "training.pt", leads=False)
    log.append(1, status(3))
    log.rewind(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["step,loss\n", f"{','.join(COLUMNS)}\ntraining,x\n"])
def test_another_file_of_that_name_is_refused_and_left_alone(tmp_path: Path, content: str):
    (tmp_path / "training.csv").write_text(content)
    with pytest.raises(BadRequest, match=r"training\.csv line \d does not fit.*remove the file"):
        TrainingLog.beside(tmp_path / "training.pt").rewind(0)
    assert (tmp_path / "training.csv").read_text() == content


def test_speed_and_the_share_of_waiting_are_of_the_time_since_the_last_status(
    monkeypatch: pytest.MonkeyPatch,
):
    clock = [0.0]
    monkeypatch.setattr(training_log.time, "perf_counter", lambda: clock[0])
    meter = Meter(World(), torch.device("cpu"))

    def batches():
        for number in range(4):
            clock[0] += 1
            yield number

    waited = meter.waiting(batches())
    for number in waited:
        clock[0] += 3
        meter.add_step(20)
        meter.add(torch.tensor(float(number)), None, torch.zeros(20))
        if number == 1:
            found = meter.collect().status(2, 4, 0.1)
            assert (found.images_per_s, found.waiting, found.loss) == (5, 0.25, 0.5)
            clock[0] += 100
            meter.collect()
    assert meter.collect() == Tally(5.0, 2, 0, 0, 40, 8.0, 2.0)


def test_figures_of_several_processes_are_added_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda values: values.mul_(2))
    meter = Meter(World(0, 2), torch.device("cpu"))
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    meter.add(torch.tensor(3.0), logits, torch.tensor([0, 0, 0]))
    meter.add_step(6)
    found = meter.collect()
    assert (found.loss, found.losses, found.right, found.classified) == (6, 2, 4, 6)
    assert found.images == 6  # a step's images are those of all processes already
    assert found.status(1, 2, 0.1).accuracy == pytest.approx(2 / 3)


def test_without_a_terminal_there_is_a_line_now_and_then():
    clock, said = [0.0], []
    watch = progress.log_lines(said.append, lambda: clock[0])
    for second in range(0, 100, 10):
        clock[0] = second
        watch("winner trained", second, 1200, "loss 2.000")
    watch("winner timed", 1, 1)
    clock[0] = 200
    watch("winner timed", 1, 1)
    assert said == [
        "winner trained: 30 of 1,200, loss 2.000",
        "winner trained: 60 of 1,200, loss 2.000",
        "winner trained: 90 of 1,200, loss 2.000",
        "winner timed: 1 of 1",
    ]


def test_a_bar_tells_as_much_as_the_terminal_has_room_for():
    text = status(3, loss=1.25, images_per_s=5120.4).text()
    assert text == (
        "loss 1.250, 5,120 images/s, 50.0% of training images right, rate 0.1, 25% waiting for data"
    )
    assert progress.labelled("winner trained", text, 10) == "winner trained"
    assert progress.labelled("winner trained", text, 30) == "winner trained, loss 1.250"
    assert progress.labelled("winner trained", text, 300) == f"winner trained, {text}"
    assert progress.labelled("winner timed", "", 300) == "winner timed"
