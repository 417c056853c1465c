"""Files that are broken, hostile or something else: one typed error each, in one or two lines."""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hurricane.agents import files as board_files
from hurricane.agents.backends._simulation_device import load_device
from hurricane.agents.console import run_command
from hurricane.agents.errors import AgentError
from hurricane.agents.security import read_token
from hurricane.lookup_tables.architecture import (
    Accuracy,
    Architecture,
    ArtifactAccuracy,
    TrainingData,
)
from hurricane.lookup_tables.baselines import BASELINES
from hurricane.lookup_tables.calibration import (
    Calibration,
    calibration_path,
    load_calibrations,
    save_calibration,
)
from hurricane.lookup_tables.journal import Journal, read_journal
from hurricane.lookup_tables.raw import DeviceRun, LoopTimes, RawRow, Reference
from hurricane.lookup_tables.runs import Run, load_runs, save_runs
from hurricane.lookup_tables.spread import SPREADS, NetworkTimes, Spread
from hurricane.lookup_tables.support import SupportReport, SupportRow
from hurricane.lookup_tables.table import LookupTable
from hurricane.lookup_tables.verdict import AdditivityCheck, Verdict
from hurricane.ops import files as host_files
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.profiler.boards import Boards
from hurricane.search.baselines import Baseline, Comparison
from hurricane.search.cli import cli
from hurricane.search.confirm import Attempt, Candidate, Confirmation
from hurricane.search.demo import _verify
from hurricane.search.measuring import Measurement
from hurricane.search.report import gather_run, read_verification
from hurricane.search.rundir import RunDirectory, read_config
from hurricane.search.space import SearchSpace
from hurricane.search.supported import LeftOut, SupportSource
from hurricane.search.training import read_saved, save_weights

from .search_problem import BACKBONE as BACKBONE_TEXT
from .test_search_report import BACKBONE, CPU, make_run, make_table

BACKBONE_FILE = f"{BACKBONE_TEXT}dropout = 0.1\n"
BOARDS_FILE = """
[boards.desk]
agent = "127.0.0.1:50051"
token_file = "token.txt"
tls_ca = "ca.pem"
[boards.vpu]
agent = "10.0.0.5:50051"
"""
FIGURES = {"count": 20, "bias": 0.0, "rmspe": 0.01, "within_5": 1.0, "within_10": 1.0}


class World:
    """A folder with a good file of every kind, and its space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / "cpu.csv"
        self.run = folder / "runs" / "cpu"
        self.rows = table = make_table(self.table)
        self.space = make_run(self.run, table)
        found = Architecture.load(self.run / "architecture.json")
        backbone = found.load_backbone()
        channels = backbone.input_channels
        replace(
            found,
            artifact_accuracy=ArtifactAccuracy(
                9, 10, "digits", "cpu-onnxruntime-int8", "measured", "1.32.0", "onnx-qdq", "int8",
                "onnxruntime 1.32.0", "256 training images of digits", "ab" * 32, ("busy",),
            ),
            trained_on=TrainingData(
                "digits", tuple(map(str, range(backbone.classes))), (0.3,) * channels,
                (0.4,) * channels,
            ),
        ).save(self.run / "architecture.json")  # fmt: skip
        candidate = Candidate(found.operators, 0.9, found.predicted_ms or 1.0)
        Confirmation((Attempt(candidate, Measurement(1.0, 1.1, 0.9), True),), 0).save(
            self.run / "confirmed.json"
        )
        figures = (Accuracy(0.9, "test", "trained from scratch on digits", 10),)
        wide = Baseline("shufflenet-v2", multiplier=0.5, macs=5, params=6, tried=((0.5, 2.0),))
        random = Baseline("random", "best", found.operators, None, 7, 8, 1.5, None, figures)
        Comparison(2.0, "measured", (random, wide), Measurement(1.0, 1.1, 0.9)).save(
            self.run / "baselines.json"
        )
        (folder / "mine.toml").write_text(BACKBONE_FILE)
        device = resources.files("hurricane.agents.devices") / "hexagon685-dsp.toml"
        (folder / "device.toml").write_text(device.read_text("utf-8"))
        (folder / "boards.toml").write_text(BOARDS_FILE)
        (folder / "token.txt").write_text("a token that nobody guesses\n")
        (folder / "ca.pem").write_text("a certificate")
        verdict = Calibration(
            CPU,
            1.1,
            0.2,
            backbone=BACKBONE.name,
            networks=10,
            rmspe=0.1,
            fitted_at="2026-01-01T00:00:00+00:00",
            check=AdditivityCheck(Verdict.ADDITIVE, "RMSPE 1.8%"),
        )
        save_calibration(self.table, verdict)
        content = json.loads(calibration_path(self.table).read_bytes())
        figures = {**FIGURES, "kendall_tau": None}
        content["calibrations"][0]["groups"] = [
            {"group": "random", "prediction": figures, "split_half": figures, "failed": 0}
        ]
        calibration_path(self.table).write_text(json.dumps(content))
        BASELINES.save(self.table, CPU, {"a" * 64: 1.0})
        network = NetworkTimes(BACKBONE.name, ("SEP_3", "MB_3_3"), 1.0, 1.1, 1.3, 60)
        spread = Spread((network,), 1.05, 1.2)
        SPREADS.save(self.table, CPU, spread)
        shape, words = BACKBONE.layers[0], {"flags": "fallback:cpu", "reason": "not compared"}
        report = SupportReport(
            SupportRow.of(CPU, name, shape, status="ok", **words) for name in ("SEP_3", "MB_3_3")
        )
        report.save(folder / "cpu.support.csv")
        out = (LeftOut("SEP_3", str(shape), "fallback:cpu"),)
        source = SupportSource("cpu.support.csv", report.sha256(), 20.0, out)
        replace(self.space, support=source).save(folder / "supported.json")
        save_runs(self.table, [Run("2026-01-01T00:00:00+00:00", str(CPU), "1", 3, 1.0, 2, 1, 1.0)])
        with Journal.open(self.table, CPU) as journal:
            first, *rows = table.rows[:3]
            journal.append([RawRow(row) for row in rows])
            loop = LoopTimes(first.operator, first.shape, 0.4, 0.3, 0.2, 0.35, 0.3)
            measured = RawRow(first, 1, 1.1, {"b" * 64: 2.0})
            run = DeviceRun(1, "board:1", 1.02, 1.2, {"a" * 64: 1.0}, spread)
            journal.append([Reference("reference", {"a" * 64: 0.9}), run, measured, loop])
        shutil.copy(self.run / "verify.json", folder / "cpu.verify.json")
        save_weights(self.run / "weights.pt", {"model": {"weight": torch.zeros(2)}})

    def evaluated(self) -> object:
        config = read_config(self.run)
        with RunDirectory.open(self.run, config) as run:
            return run.read_evaluated(1, self.space.candidates)

    def report(self) -> object:
        return gather_run(self.run)

    def history(self) -> object:
        return [run.text() for run in load_runs(self.table)]

    def journal(self) -> object:
        data = read_journal(self.table).data
        return data.table_rows(), data.graphs_ms(), data.spread()

    def demo(self) -> object:
        return _verify("cpu", self.table, self.rows, BACKBONE, 0, self.folder, lambda text: None)


LOADERS: Mapping[str, tuple[str, Callable[[World], object]]] = {
    "space": ("runs/cpu/space.json", lambda w: SearchSpace.load(w.run / "space.json").to_dict()),
    "architecture": (
        "runs/cpu/architecture.json",
        lambda w: Architecture.load(w.run / "architecture.json").to_dict(),
    ),
    "confirmation": (
        "runs/cpu/confirmed.json",
        lambda w: Confirmation.load(w.run / "confirmed.json"),
    ),
    "comparison": (
        "runs/cpu/baselines.json",
        lambda w: Comparison.load(w.run / "baselines.json").to_dict(),
    ),
    "run configuration": ("runs/cpu/config.json", lambda w: read_config(w.run)),
    "evaluated": ("runs/cpu/evaluated-1.csv", World.evaluated),
    "verification": (
        "runs/cpu/verify.json",
        lambda w: read_verification(w.run / "verify.json"),
    ),
    "weights": ("runs/cpu/weights.pt", lambda w: read_saved(w.run / "weights.pt")),
    "report of config": ("runs/cpu/config.json", World.report),
    "report of space": ("runs/cpu/space.json", World.report),
    "report of winner": ("runs/cpu/winner-1.json", World.report),
    "report of comparison": ("runs/cpu/baselines.json", World.report),
    "report of evaluated": ("runs/cpu/evaluated-1.csv", World.report),
    "report of baseline": ("runs/cpu/baseline/config.json", World.report),
    "report of table": ("cpu.csv", World.report),
    "demo": ("cpu.verify.json", World.demo),
    "backbone": ("mine.toml", lambda w: load_backbone(w.folder / "mine.toml")),
    "device": ("device.toml", lambda w: load_device(str(w.folder / "device.toml"))),
    "boards": ("boards.toml", lambda w: Boards.load(w.folder / "boards.toml")),
    "token": ("token.txt", lambda w: read_token(w.folder / "token.txt", "--token-file")),
    "table": ("cpu.csv", lambda w: LookupTable.load(w.table)),
    "support": ("cpu.support.csv", lambda w: SupportReport.load(w.folder / "cpu.support.csv")),
    "space by support": (
        "supported.json",
        lambda w: SearchSpace.load(w.folder / "supported.json").to_dict(),
    ),
    "journal": ("cpu.csv.journal", World.journal),
    "calibration": (
        "cpu.csv.calibration.json",
        lambda w: [(c.text(), c.line, c.model_error) for c in load_calibrations(w.table)],
    ),
    "baselines": ("cpu.csv.baselines.json", lambda w: BASELINES.load(w.table)),
    "spread": (
        "cpu.csv.spread.json",
        lambda w: [(s.ratio("p90"), s.scatter("median")) for s in SPREADS.load(w.table).values()],
    ),
    "runs": ("cpu.csv.runs.jsonl", World.history),
}


def marked(loaders: Iterable[str]) -> list[Any]:
    """Loaders as parameters; a report reads everything each time, and the demo starts processes."""
    return [
        pytest.param(name, marks=pytest.mark.process)
        if name.startswith(("report", "demo"))
        else name
        for name in loaders
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@contextmanager
def holding(path: Path, content: bytes) -> Iterator[None]:
    """The file with another content, for a while."""
    good = path.read_bytes()
    try:
        path.write_bytes(content)
        yield
    finally:
        path.write_bytes(good)


@contextmanager
def replaced(path: Path, put: Callable[[Path], None]) -> Iterator[None]:
    """Something else in the file's place, for a while."""
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        put(path)
        yield
    finally:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        aside.rename(path)


def refusal(load: Callable[[World], object], world: World, name: str) -> str | None:
    """What a loader says of a bad file; None where it takes it.

    Any other exception than the families' fails the test by itself.
    """
    try:
        load(world)
    except (HurricaneError, AgentError) as error:
        words = str(error)
        assert 1 <= len(words.splitlines()) <= 2, words
        assert len(words) <= 2100, len(words)
        assert words.replace("\n", "").isprintable(), repr(words)
        assert name in words, words
        assert "Traceback" not in words
        return words
    return None


def cut(good: bytes) -> bytes:
    return good[: len(good) // 2]


# Each from the good content.
BAD: Mapping[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "white space": lambda good: b" \n\n",
    "cut in half": cut,
    "cut and closed with a line end": lambda good: cut(good) + b"\n",
    "NUL bytes": lambda good: b"\0" * 100 + b"\n",
    "a NUL byte in front": lambda good: b"\0" + good,
    "no UTF-8": lambda good: b"\xff\xfe\x80" + good,
    "UTF-16": lambda good: good.decode("latin-1").encode("utf-16"),
    "Latin-1": lambda good: b"caf\xe9 = 1\n" + good,
    "a surrogate in bytes": lambda good: b"\xed\xa0\x80\n" + good,
    "two byte order marks": lambda good: b"\xef\xbb\xbf" * 2 + good,
    "random bytes": lambda good: bytes(range(256)) * 20 + b"\n",
    "an ELF file": lambda good: b"\x7fELF\x02\x01\x01" + b"\0" * 50 + b"\n",
    "a pickle": lambda good: b"\x80\x02K\x01.\n",
    "HTML": lambda good: b"<html><body>404</body></html>\n",
    "terminal escapes": lambda good: b"\x1b[2J\x1b]0;pwned\x07\n" + good,
    "escapes in a key": lambda good: b'{"\\u001b[2J\\n\\n\\n": 1, "format_version": 1}\n',
    "lists in lists": lambda good: b"[" * 100_000 + b"\n",
    "closed lists in lists": lambda good: b"[" * 50_000 + b"]" * 50_000 + b"\n",
    "objects in objects": lambda good: b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"\n",
    "a field of lists in lists": lambda good: b'{"a":' + b"[" * 400 + b"]" * 400 + b"}\n",
    "TOML lists in lists": lambda good: b"a = " + b"[" * 900 + b"]" * 900 + b"\n",
    "TOML tables in tables": lambda good: b"a = " + b"{a=" * 400 + b"1" + b"}" * 400 + b"\n",
    "a long dotted key": lambda good: b"a" + b".a" * 30_000 + b" = 1\n",
    "5,000 digits": lambda good: b"9" * 5_000 + b"\n",
    "a field of 5,000 digits": lambda good: b'{"a": ' + b"9" * 5_000 + b"}\n",
    "TOML 5,000 digits": lambda good: b"classes = 1" + b"0" * 1_900 + b"\n",
    "a long hexadecimal number": lambda good: b"classes = 0x" + b"f" * 1_900 + b"\n",
    "a number beyond all": lambda good: b'{"format_version": 1e999}\n',
    "NaN": lambda good: b'{"format_version": NaN}\n',
    "infinity": lambda good: b"classes = inf\n",
    "a key twice": lambda good: b'{"format_version": 1, "format_version": 1}\n',
    "a TOML key twice": lambda good: b"classes = 1\nclasses = 2\n",
    "a lone surrogate": lambda good: b'{"format_version": 1, "backbone": "\\ud800"}\n',
    "null": lambda good: b"null\n",
    "true": lambda good: b"true\n",
    "a number": lambda good: b"3\n",
    "a text": lambda good: b'"text"\n',
    "a list": lambda good: b"[]\n",
    "an object": lambda good: b"{}\n",
    "a list of everything": lambda good: b'[1, "a", null, {}, []]\n',
    "true for numbers": lambda good: b'{"format_version": true, "format": true}\n',
    "an unknown version": lambda good: b'{"format_version": 99, "format": 99}\n',
    "a megabyte in one line": lambda good: b"x" * 1_000_000 + b"\n",
    "a million commas": lambda good: b"," * 1_000_000 + b"\n",
    "a long text in quotes": lambda good: b'"' + b"x" * 200_000 + b'"\n',
    "quotes without end": lambda good: good + b'"a\n',
}

# What is no error: a line without an end was cut off by a kill and is dropped, no run is a history,
# and a token may be any printable text. The report takes figures of evaluated architectures and
# not their names; torch looks at a file from its end.
TAKEN = {
    ("journal", "empty"),
    ("journal", "cut in half"),
    ("evaluated", "empty"),
    ("evaluated", "cut in half"),
    ("report of evaluated", "empty"),
    ("report of evaluated", "cut in half"),
    ("report of evaluated", "cut and closed with a line end"),
    ("runs", "empty"),
    ("weights", "quotes without end"),
}


@pytest.mark.parametrize("loader", marked(LOADERS))
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_error_that_names_it(world: World, loader: str, kind: str):
    name, load = LOADERS[loader]
    path = world.folder / name
    with holding(path, BAD[kind](path.read_bytes())):
        words = refusal(load, world, path.name)
    if words is None and loader != "token":
        assert (loader, kind) in TAKEN
    load(world)  # as it was


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


# What stands where a file should be.
PLACES: Mapping[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a file without end": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": make_large,
}
MAY_LACK = {"journal", "calibration", "baselines", "spread", "runs", "evaluated", "demo"}
"""Files that need not be there; of the report's, most, and it says that they are not."""


@pytest.mark.parametrize("loader", marked(LOADERS))
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_or_has_no_end_is_one_error(world: World, loader: str, place: str):
    name, load = LOADERS[loader]
    path = world.folder / name
    with replaced(path, PLACES[place]):
        # Without its file the demo verifies anew, and here finds another device.
        words = refusal(load, world, "" if loader == "demo" else path.name)
    if words is None:
        lenient = loader in MAY_LACK or "report" in loader
        assert (lenient and place.startswith("a link")) or loader in (
            "report of table",
            "report of baseline",
        )


# Fields

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    2**62,
    2**63,
    10**400,
    -1e308,
    1e308,
    math.inf,
    math.nan,
    "",
    "x",
    "0",
    "no/such/place",
    "~nobody-of-this-name/x",
    "x" * 5_000,
    "a\nb",
    "\x1b[2J",
    "\ud800",
    "\u202e",
    [],
    [1],
    ["x"],
    [[[]]],
    {},
    {"x": 1},
)


def changed(value: Any) -> Iterator[Any]:
    """A value with something odd in one of its places; of long lists, only their ends."""
    yield from ODD
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield {**value, f"{key}\n": value[key]}
            for odd in changed(value[key]):
                yield {**value, key: odd}
    elif isinstance(value, list):
        yield [*value, *value]
        yield value[1:]
        for at in {0, len(value) - 1} if value else ():
            for odd in changed(value[at]):
                yield [*value[:at], odd, *value[at + 1 :]]


def as_toml(value: Any) -> str:
    """Inline TOML; what TOML has no words for stays as Python has it, and is a mistake."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii="\ud800" in value)
    return str(value).lower()


def toml_file(value: Any) -> str:
    if not isinstance(value, dict):
        return as_toml(value)
    return "".join(f"{json.dumps(key)} = {as_toml(item)}\n" for key, item in value.items())


def variants(path: Path) -> Iterator[bytes]:
    """A file with one field changed, in every way."""
    content = path.read_bytes()
    if path.suffix == ".toml":
        data = tomllib.loads(content.decode())
        yield from (toml_file(v).encode(errors="replace") for v in changed(data))
    elif path.suffix in (".json", ".jsonl"):
        yield from (json.dumps(v).encode() + b"\n" for v in changed(json.loads(content)))
    elif path.suffix == ".journal":
        lines = content.splitlines(keepends=True)
        for at in (0, *range(3, len(lines))):  # one of every kind
            for value in changed(json.loads(lines[at])):
                line = json.dumps(value).encode() + b"\n"
                yield b"".join((*lines[:at], line, *lines[at + 1 :]))
    else:
        lines = content.decode().split("\n")
        cells = lines[1].split(",")
        for at in range(len(cells)):
            for odd in ODD:
                row = [*cells[:at], str(odd), *cells[at + 1 :]]
                yield "\n".join((lines[0], ",".join(row), "")).encode(errors="replace")


# Report and demo read most with loaders that are here by themselves; what else has fields.
FIELDS = ("run configuration", "report of config", "space", "architecture", "confirmation")
FIELDS += ("verification", "evaluated", "report of evaluated", "backbone", "device", "boards")
FIELDS += ("table", "support", "space by support", "journal", "calibration", "baselines")
FIELDS += ("spread", "runs")


@pytest.mark.parametrize("loader", marked(FIELDS))
def test_one_odd_field_gives_a_value_or_one_error(world: World, loader: str):
    name, load = LOADERS[loader]
    path = world.folder / name
    refused = 0
    good = path.read_bytes()
    for content in variants(path):
        with holding(path, content):
            refused += refusal(load, world, "") is not None
    assert refused > 5
    assert path.read_bytes() == good


# Bytes


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[float, int, bytes]]:
    """Where (a share of the length), how many bytes go, and what comes instead."""
    pieces = st.one_of(
        st.binary(max_size=4),
        st.sampled_from([b"[", b"{", b'"', b"}", b"\n", b",", b"9" * 30, b"-", b"1e999", b"NaN"]),
    )
    one = st.tuples(st.floats(0, 1), st.integers(0, 30), pieces)
    return draw(st.lists(one, min_size=1, max_size=4))


@pytest.mark.parametrize("loader", marked(sorted(set(LOADERS) - {"report of config", "demo"})))
@settings(max_examples=40)
@given(changes=edits())
def test_a_damaged_file_gives_a_value_or_one_error(
    world: World, loader: str, changes: list[tuple[float, int, bytes]]
):
    name, load = LOADERS[loader]
    path = world.folder / name
    content = path.read_bytes()
    for share, gone, instead in changes:
        at = int(share * len(content))
        content = content[:at] + instead + content[at + gone :]
    with holding(path, content):
        refusal(load, world, "")


# Words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": [{"b": NaN}]}', "thing f.json: a[0].b must be a number that is finite, not nan"),
        ('{"a": {"b": 1e999}}', "thing f.json: a.b must be a number that is finite, not inf"),
        ('{"a": 9223372036854775808}', "thing f.json: a must be a number of at most 64 bits"),
        ('["\\ud83d"]', "thing f.json: [0] has the character U+D83D, which no text has"),
        ('{"a\\n": 1}', "thing f.json: the key 'a\\n' has characters that no name has"),
        ('{"a": 1, "a": 2}', "thing f.json is not JSON: the key 'a' is there twice"),
        ("[" * 40 + "]" * 40, "is nested too deeply"),
        ("[" * 9_999, "thing f.json is not JSON: its values are nested too deeply"),
        ("9" * 5_000, "thing f.json is not JSON: a whole number has too many digits"),
        (b"\xff", "thing f.json is not JSON: it is not UTF-8 text (invalid start byte)"),
        ("{", "thing f.json is not JSON: Expecting property name"),
    ],
)
def test_bad_json_is_told_with_its_place(content: str | bytes, words: str):
    with pytest.raises(BadRequest) as caught:
        host_files.parse_json(content, "thing f.json")
    assert words in str(caught.value)


@pytest.mark.parametrize("room", [host_files, board_files])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[a]\nb = [nan]", "thing f.toml: a.b[0] must be a number that is finite, not nan"),
        ("a = 0xffffffffffffffffff", "thing f.toml: a must be a number of at most 64 bits"),
        ('"a\\u0007" = 1', "has characters that no name has"),
        ("a = " + "[" * 40 + "]" * 40, "is nested too deeply"),
        ("a = " + "[" * 1_900, "thing f.toml is not TOML: its values are nested too deeply"),
        ("a = " + "9" * 5_000, "thing f.toml is not TOML: line 1 has more than 2,000 characters"),
        ("a" + ".a" * 30_000, "thing f.toml is not TOML: line 1 has more than 2,000 characters"),
        ("a = 1\na = 2", "thing f.toml is not TOML: Cannot overwrite a value"),
        (b"a = '\xff'", "thing f.toml is not TOML: it is not UTF-8 text (invalid start byte)"),
    ],
)
def test_bad_toml_is_told_with_its_place_by_host_and_board(
    room: Any, content: str | bytes, words: str
):
    with pytest.raises((BadRequest, AgentError)) as caught:
        room.parse_toml(content, "thing f.toml")
    assert words in str(caught.value)


def test_a_byte_order_mark_is_taken(tmp_path: Path):
    mark = b"\xef\xbb\xbf"
    assert host_files.parse_json(mark + b'{"a": 1}', "f") == {"a": 1}
    assert host_files.parse_toml(mark + b"a = 1\r\n", "f") == {"a": 1}
    assert board_files.parse_toml(mark + b"a = 1\r\n", "f") == {"a": 1}


@pytest.mark.parametrize("room", [host_files, board_files])
def test_a_file_has_a_limit(room: Any, tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 2048)
    assert room.read_bytes(path, "thing", limit=2048) == b"x" * 2048
    with pytest.raises((BadRequest, AgentError), match=r"thing .*f has more than 1 KiB"):
        room.read_bytes(path, "thing", limit=1024)
    with pytest.raises((BadRequest, AgentError), match=r"thing .* cannot be read: embedded null"):
        room.read_bytes("a\0b", "thing")


def test_an_error_is_bounded_and_moves_no_cursor():
    words = str(HurricaneError("what\x1b[2J and\nwhere " + "x" * 100_000 + " what to do"))
    assert words.startswith("what\\x1b[2J and\nwhere")
    assert words.endswith("what to do")
    assert len(words) < 2100


# Commands


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("cpu.csv", "space --table {} --latency 1"),
        ("cpu.csv.calibration.json", "space --table {folder}/cpu.csv --latency 1"),
        ("cpu.csv.runs.jsonl", "table show {folder}/cpu.csv"),
        ("runs/cpu/space.json", "search --space {} --no-measure -o {out}"),
        ("runs/cpu/architecture.json", "train {} --no-measure -o {out}"),
        ("runs/cpu/architecture.json", "export {} -o {out}"),
        ("runs/cpu/config.json", "report {folder}/runs/cpu -o {out}"),
        ("mine.toml", "profile-ops --layers {} --target cpu-onnxruntime-fp32 -o {out}"),
        ("boards.toml", "boards --boards {}"),
        ("token.txt", "boards --boards {folder}/boards.toml"),
        ("cpu.csv.journal", "profile-ops --layers digits32 --target x --check -o {folder}/cpu.csv"),
    ],
)
@pytest.mark.parametrize("kind", ["lists in lists", "NUL bytes", "no UTF-8", "5,000 digits"])
def test_a_command_says_it_in_two_lines_and_leaves_nothing(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    words: str,
    kind: str,
):
    path, out = world.folder / file, tmp_path / "out"
    arguments = words.format(path, folder=world.folder, out=out).split()
    bad = BAD[kind](path.read_bytes())
    with holding(path, bad), pytest.raises(SystemExit) as ended:
        run_command(cli, "hurricane", arguments)
    told = capsys.readouterr().err.splitlines()
    if file == "token.txt" and kind == "5,000 digits":
        return  # is a token
    assert ended.value.code == 2
    assert told[0].startswith("Error: ")
    assert path.name in told[0]
    assert len(told) <= 2
    assert not out.exists()
