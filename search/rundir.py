"""A run's directory: its configuration, what was evaluated, and what came out.

Everything is written atomically or, for the list of evaluated architectures, line by line with
an unfinished last line dropped, so that a killed run can be carried on.

Under ``torchrun`` every process opens the directory and reads it; only rank 0 writes.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..lookup_tables.architecture import Architecture
from ..ops.atomic import PARTIAL, write_atomically
from ..ops.errors import BadRequest, HurricaneError
from ..ops.files import read_bytes
from ..ops.jsonfile import Fields, write_json
from .evolution import Evaluated
from .space import SearchSpace

FORMAT_VERSION = 1
CONFIRMED = "confirmed.json"
BASELINES = "baselines.json"
SUPERNET_FILE = "supernet-{}.pt"
"""Checkpoint of a stage's supernet."""

EVALUATED_COLUMNS = ("evaluation", "generation", "accuracy", "predicted_ms", "operators")


class RunDirectory:
    """One run; open it with `RunDirectory.open`.

    Attributes:
        path: the directory.
        config: the run's settings.
        resumed: whether the directory held this run before.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], resumed: bool) -> None:
        self.path = path
        self.config = dict(config)
        self.resumed = resumed
        self._made = False
        self._lock: io.TextIOWrapper | None = None

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any]) -> RunDirectory:
        """Starts a run in a new or empty directory, or carries on the same run.

        Args:
            path: the directory; is made where it does not exist.
            config: everything that the result depends on, as JSON values.

        Raises:
            BadRequest: the directory holds something else, or a run with another
                configuration (the message names what differs).
            HurricaneError: another process is at work in it.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise BadRequest(f"{folder} is a file; name a directory for the run")
        wanted = json.loads(json.dumps(config))  # tuples as the lists that a file gives back
        config_file = folder / "config.json"
        resumed = config_file.exists()
        if resumed:
            _require_same(folder, read_config(folder), wanted)
        elif leads() and folder.exists() and not all(map(_left_by_a_kill, folder.iterdir())):
            raise BadRequest(
                f"{folder} is not empty and holds no run; name a new directory, or empty it"
            )
        run = cls(folder, wanted, resumed)
        if leads():
            try:
                run._made = not folder.exists()
                folder.mkdir(parents=True, exist_ok=True)
                run._take_lock()
                if not resumed:
                    write_json(config_file, {"format_version": FORMAT_VERSION, **wanted})
            except OSError as error:
                raise HurricaneError(
                    f"{folder} cannot be written: {error.strerror or error}"
                ) from error
        return run

    @property
    def space_path(self) -> Path:
        return self.path / "space.json"

    @property
    def trainings_path(self) -> Path:
        return self.path / "trainings.json"

    @property
    def architecture_path(self) -> Path:
        return self.path / "architecture.json"

    @property
    def model_path(self) -> Path:
        return self.path / "model.onnx"

    @property
    def weights_path(self) -> Path:
        return self.path / "weights.pt"

    @property
    def training_begun(self) -> bool:
        """Whether a training from scratch has a checkpoint, from its beginning to its end."""
        return any((f / "training.pt").exists() for f in (self.path, self.finalist_path(1)))

    @property
    def confirmed_path(self) -> Path:
        return self.path / CONFIRMED

    @property
    def baselines_path(self) -> Path:
        return self.path / BASELINES

    def baseline_path(self, name: str) -> Path:
        """The folder of a baseline's training."""
        return self.path / "baselines" / name

    def evaluated_path(self, stage: int | str) -> Path:
        """Of a stage, from 1, or of a baseline, by its name."""
        return self.path / f"evaluated-{stage}.csv"

    def winner_path(self, stage: int) -> Path:
        return self.path / f"winner-{stage}.json"

    def finalist_path(self, number: int) -> Path:
        """The folder of a finalist, from 1: its training, its weights and its figures."""
        return self.path / f"finalist-{number}"

    def confirmed_path_of(self, number: int) -> Path:
        """What was timed for the n-th budget of a front, from 1."""
        return self.path / f"confirmed-{number}.json"

    def point_path(self, number: int) -> Path:
        """A network of a front, from 1."""
        return self.path / f"point-{number}.json"

    def drop_points(self, kept: int) -> None:
        """Removes networks of a front beyond so many: of a time when nothing was measured yet."""
        number = kept + 1
        while (file := self.point_path(number)).exists():
            file.unlink()
            number += 1

    def save_space(self, space: SearchSpace) -> None:
        if leads():
            space.save(self.space_path)

    def save_winner(self, stage: int, architecture: Architecture) -> None:
        if leads():
            architecture.save(self.winner_path(stage))

    def read_winner(self, stage: int) -> Architecture | None:
        """A stage's winner, where the run has come that far."""
        path = self.winner_path(stage)
        return Architecture.load(path) if path.exists() else None

    def save_architecture(self, architecture: Architecture) -> None:
        if leads():
            architecture.save(self.architecture_path)

    def read_architecture(self) -> Architecture | None:
        """The architecture, where the run has come that far."""
        if not self.architecture_path.exists():
            return None
        return Architecture.load(self.architecture_path)

    def read_evaluated(
        self, stage: int | str, candidates: Sequence[Sequence[str]]
    ) -> list[Evaluated]:
        """What a stage or a baseline evaluated so far; an unfinished last line is dropped.

        Raises:
            BadRequest: a line is wrong, or names an operator that is no candidate.
        """
        path = self.evaluated_path(stage)
        if not path.exists():
            return []
        content = read_bytes(path, "list of evaluated architectures")
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content and leads():
            write_atomically(path, whole, make_folder=True)
        rows = evaluated_rows(path, whole)
        return [_parse_row(path, number, row, candidates) for number, row in enumerate(rows)]

    def append_evaluated(
        self, stage: int | str, candidates: Sequence[Sequence[str]], batch: Sequence[Evaluated]
    ) -> None:
        """Adds evaluated architectures to a stage's list, durably."""
        if not leads():
            return
        path = self.evaluated_path(stage)
        content = path.read_bytes() if path.exists() else b""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not content:
            writer.writerow(EVALUATED_COLUMNS)
        first = max(0, content.count(b"\n") - 1)
        for number, item in enumerate(batch, first):
            names = [c[code] for c, code in zip(candidates, item.codes, strict=True)]
            writer.writerow(
                [
                    number,
                    item.generation,
                    repr(item.fitness),
                    repr(item.latency_ms),
                    " ".join(names),
                ]
            )
        with path.open("ab") as file:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Takes back a run that has not begun: what opening made, and the space.

        A run that was there before is left alone. The lock goes last, before the folder.
        """
        if self.resumed or not leads():
            return
        for file in (self.space_path, self.path / "config.json", self.path / ".lock"):
            file.unlink(missing_ok=True)
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()

    def close(self) -> None:
        """Lets other processes use the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take_lock(self) -> None:
        lock = (self.path / ".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise HurricaneError(
                f"another process is at work in {self.path}; wait for it, or name another directory"
            ) from None
        self._lock = lock


def evaluated_rows(path: Path, content: bytes) -> list[list[str]]:
    """The cells of a list of evaluated architectures, without its header.

    Args:
        path: for errors.
        content: whole lines.

    Raises:
        BadRequest: it is not such a list.
    """
    rows = []
    for number, line in enumerate(content.decode(errors="replace").split("\n")[:-1], 1):
        try:
            rows.append(next(csv.reader([line], strict=True), []))
        except csv.Error as error:
            raise BadRequest(f"{path} line {number} is broken: {error}") from error
    if rows and tuple(rows[0]) != EVALUATED_COLUMNS:
        raise BadRequest(f"{path} line 1: columns must be {', '.join(EVALUATED_COLUMNS)}")
    return rows[1:]


def read_config(folder: str | Path) -> dict[str, Any]:
    """The settings of the run in a directory.

    Raises:
        BadRequest: the directory holds no run.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise BadRequest(f"{folder} holds no run: it has no config.json")
    fields = Fields.load(path, "run configuration", FORMAT_VERSION)
    return {k: v for k, v in fields.as_dict().items() if k != "format_version"}


def _require_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
    if differing:
        was = ", ".join(f"{k}={json.dumps(found.get(k))}" for k in differing[:3])
        now = ", ".join(f"{k}={json.dumps(wanted.get(k))}" for k in differing[:3])
        raise BadRequest(
            f"{folder} holds a run with {was}, not {now};\n"
            "give the same options to carry it on, or name another directory with -o"
        )


def _parse_row(
    path: Path, number: int, row: list[str], candidates: Sequence[Sequence[str]]
) -> Evaluated:
    where = f"{path} line {number + 2}"
    try:
        index, generation, fitness, latency, operators = row
        names = operators.split(" ")
        codes = tuple(list(c).index(name) for c, name in zip(candidates, names, strict=True))
        if int(index) != number:
            raise ValueError(f"evaluation {index} where {number} is expected")
        if not (0 <= float(fitness) <= 1 and 0 < float(latency) < math.inf):
            raise ValueError("accuracy or predicted_ms is out of range")
        return Evaluated(codes, float(fitness), float(latency), int(generation))
    except ValueError as error:
        raise BadRequest(
            f"{where} does not fit this run ({error}); start a new run directory"
        ) from error


def _left_by_a_kill(file: Path) -> bool:
    """Whether a run that was killed before it began may have left this file."""
    return file.name == ".lock" or file.suffix == PARTIAL


def leads() -> bool:
    """Whether this process writes and prints: rank 0 under torchrun, and any process without it."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_leader() -> None:
    """Returns when every process under torchrun has come here; at once without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from .distributed import join_world

        join_world().wait()


def disconnect() -> None:
    """Ends the connection to the other processes under torchrun; nothing without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from .distributed import leave_world

        leave_world()
