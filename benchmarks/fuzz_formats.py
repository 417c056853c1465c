"""Does any file make a check of artefacts fail otherwise than with one of its typed errors?

Coverage-guided fuzzing of `agents/formats` with atheris: seeds are our own small graphs and the
attacks of the tests; half of the mutations change fields of the file, half its bytes. An ONNX file
that is accepted must be read by onnx too, and hold no external data. A TFLite file that is accepted
must be read by LiteRT's schema as it was by the check, and, in a child process, neither kill
LiteRT's interpreter nor have other shapes there. atheris has its own environment:

    python3.11 -m venv /tmp/fuzz
    /tmp/fuzz/bin/pip install atheris numpy onnx ai-edge-litert flatbuffers
    .venv/bin/python benchmarks/fuzz_formats.py --python /tmp/fuzz/bin/python --seconds 600 --json

Exit status 1 where a file was found; the files are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 16384  # of a file; seeds are smaller
MOST_SECONDS = 10  # that one file may take
MOST_MEMORY_MB = 2048
CHILD_SECONDS = 20  # that the interpreter may take for a file
CHILD_MEMORY_BYTES = 8 << 30
OTHER_SHAPES = 99  # exit status of the interpreter's process
_STATISTICS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)/")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_PROGRESS = re.compile(r"^#(\d+)\s", re.MULTILINE)


# --- the fuzzed process ---------------------------------------------------------------------


def fuzz(folder: Path, format: str, settings: list[str]) -> None:
    """Runs libFuzzer; does not return.

    Args:
        folder: holds ``corpus``, and gets a file in ``found`` for each kind of failure.
        format: whose check.
        settings: of libFuzzer.
    """
    import atheris

    with atheris.instrument_imports(include=["hurricane.agents.formats"]):
        from hurricane.agents.formats import checker_of

        check = checker_of(format)  # imports the format's module
    tools = tools_of(format)
    from hurricane.agents.errors import BadRequest, UnsupportedOperator

    assert check is not None
    accepted = folder / "accepted"

    def run(content: bytes) -> None:
        try:
            check(content)
        except (BadRequest, UnsupportedOperator) as error:
            if not str(error).isprintable():
                keep(folder, content, f"unprintable: {error!r}")
            return
        except Exception:
            keep(folder, content, traceback.format_exc())
            return
        with accepted.open("ab") as file:
            file.write(b".")
        try:
            tools.read(content)
        except Exception:
            keep(folder, content, "accepted, but: " + traceback.format_exc())

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            try:
                return tools.mutate(content, chance)[:most]
            except Exception:
                pass  # it cannot be taken apart, or not be put together again
        return atheris.Mutate(content, most)

    arguments = [sys.argv[0], *settings, str(folder / "corpus")]
    atheris.Setup(arguments, run, custom_mutator=mutate)
    atheris.Fuzz()


def keep(folder: Path, content: bytes, why: str) -> None:
    """Keeps a file that made a check fail, one for each place that it failed at."""
    place = "".join(re.findall(r'File "[^"]+", line \d+', why)) or why
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    (folder / "found" / name).write_bytes(content)
    (folder / "found" / f"{name}.txt").write_text(why)


class Tools(NamedTuple):
    """What fuzzing needs for a format: how to change a file's fields, and who else reads it."""

    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], None]


def tools_of(format: str) -> Tools:
    """The tools of a format."""
    if format == "tflite":
        return Tools(mutated_tflite, read_by_litert)
    import onnx_attacks

    return Tools(onnx_attacks.mutated, read_by_onnx)


def mutated_tflite(content: bytes, chance: random.Random) -> bytes:
    """A file with fields changed; raises where the file is no FlatBuffer.

    LiteRT's schema would take gigabytes to read one that is not.
    """
    import tflite_attacks

    from hurricane.agents.formats._flatbuffer import parse
    from hurricane.agents.formats._tflite_schema import SCHEMA
    from hurricane.agents.formats.tflite_file import _LIMITS

    parse(content, SCHEMA, "Model", _LIMITS)
    return tflite_attacks.mutated(content, chance)


def read_by_litert(content: bytes) -> None:
    """Raises where LiteRT reads a file otherwise than the check, or dies of it."""
    import tflite_attacks

    from hurricane.agents.formats._flatbuffer import parse
    from hurricane.agents.formats._tflite_schema import SCHEMA
    from hurricane.agents.formats.tflite_file import _LIMITS

    other = tflite_attacks.unpack(content)
    difference = tflite_attacks.difference(parse(content, SCHEMA, "Model", _LIMITS), other, content)
    if difference:
        raise ValueError(f"it is read in two ways: {difference}")
    child = os.fork()
    if child == 0:
        _run_by_litert(content)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise ValueError(f"the interpreter died of signal {os.WTERMSIG(status)}")
    if os.WEXITSTATUS(status) == OTHER_SHAPES:
        raise ValueError("the interpreter computes other shapes")


def _run_by_litert(content: bytes) -> None:
    """Allocates and runs; does not return. An exception of the interpreter is as good as a run."""
    import resource

    import tflite_attacks
    from ai_edge_litert.interpreter import Interpreter

    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # libFuzzer catches them
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES))
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    signal.alarm(CHILD_SECONDS)
    try:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        declared = tflite_attacks.unpack(content).subgraphs[0].tensors
        for tensor in interpreter.get_tensor_details():
            if tensor["index"] < len(declared):
                shape = declared[tensor["index"]].shape
                if [*([] if shape is None else shape)] != [*tensor["shape"]]:
                    os._exit(OTHER_SHAPES)
        interpreter.invoke()
    except BaseException:
        os._exit(1)
    os._exit(0)


def read_by_onnx(content: bytes) -> None:
    """Raises where onnx cannot read a file, or finds external data in it."""
    import onnx

    model = onnx.load_from_string(content)
    if "data_location: EXTERNAL" in str(model) or "external_data" in str(model):
        raise ValueError("it holds external data")


# --- what starts it -------------------------------------------------------------------------


def seeds(format: str) -> Iterator[bytes]:
    """Small files of a format, good and bad."""
    if format == "tflite":
        yield from tflite_seeds()
    else:
        yield from onnx_seeds()


def tflite_seeds() -> Iterator[bytes]:
    """Files by hand, and what is written of our own operators."""
    from tflite_attacks import (
        crashing_models,
        external_models,
        int8_model,
        large_models,
        operator_graphs,
        sound_model,
    )

    from hurricane.ops.calibration import random_samples
    from hurricane.ops.export import export_operator
    from hurricane.ops.shapes import LayerShape
    from hurricane.ops.tflite import quantise_tflite, write_tflite

    yield sound_model().pack()
    yield int8_model()
    for builder in (operator_graphs(), external_models(), large_models(), crashing_models()):
        for _, content in builder:
            yield content
    for name in ("SEP_3", "MB_3_3_SE", "Choice_3_SE", "Choice_x"):
        content = write_tflite(export_operator(name, LayerShape(4, 4, 4, 4, 1)))
        yield content
        yield quantise_tflite(content, random_samples((4, 4, 4), 2))


def onnx_seeds() -> Iterator[bytes]:
    """The attacks of the tests, and our own operators."""
    from onnx_attacks import (
        Canary,
        endless_graphs,
        external_data_attacks,
        refused_graphs,
        relu_model,
        sound_model,
    )

    from hurricane.ops.export import export_operator
    from hurricane.ops.shapes import LayerShape

    yield sound_model().SerializeToString()
    yield relu_model().SerializeToString()
    for builder in (external_data_attacks(Canary(64, "/canary")), refused_graphs()):
        for _, content in builder:
            yield content
    for _, content in endless_graphs():
        yield content
    for name in ("SEP_3", "MB_3_3_SE", "Choice_3_SE", "Choice_x"):
        yield export_operator(name, LayerShape(4, 4, 4, 4, 1))


def library(folder: Path) -> Path:
    """A folder in which the package `hurricane` is found, with what the fuzzed process needs."""
    (folder / "hurricane").mkdir(parents=True)
    (folder / "hurricane" / "agents").symlink_to(ROOT / "agents")
    for name in ("onnx_attacks.py", "tflite_attacks.py"):
        (folder / name).symlink_to(ROOT / "tests" / name)
    return folder


def fuzz_format(format: str, seconds: float, python: str, folder: Path) -> dict[str, Any]:
    """Fuzzes one format's check for a time.

    Args:
        python: an interpreter that has atheris.
        folder: where seeds, and what is found, are kept.

    Returns:
        Counts; `crashes` holds the files that were found.
    """
    for name in ("corpus", "found"):
        (folder / name).mkdir(parents=True)
    used = 0
    for content in seeds(format):
        if len(content) <= MOST_BYTES:
            used += 1
            (folder / "corpus" / hashlib.sha256(content).hexdigest()).write_bytes(content)
    environment = {**os.environ, "PYTHONPATH": str(library(folder / "library"))}
    executions = covered = features = files = 0
    started = time.monotonic()
    end = started + seconds
    # A file that takes too long, or kills the process, ends libFuzzer: it is started again.
    while (left := end - time.monotonic()) > 1:
        settings = [
            f"-max_total_time={max(1, round(left))}",
            f"-max_len={MOST_BYTES}",
            f"-timeout={MOST_SECONDS}",
            f"-rss_limit_mb={MOST_MEMORY_MB}",
            f"-artifact_prefix={folder / 'found'}/",
            "-print_final_stats=1",
        ]
        done = subprocess.run(
            [python, __file__, "--fuzz", str(folder), "--format", format, *settings],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        counts = [int(n) for n in _EXECUTED.findall(done.stderr)] or [0]
        counts += [int(n) for n in _PROGRESS.findall(done.stderr)]
        if max(counts) == 0:
            sys.exit(f"atheris did not run:\n{done.stderr[-2000:]}")
        executions += max(counts)
        for found in _STATISTICS.findall(done.stderr):
            covered, features, files = (int(n) for n in found)
    took_s = time.monotonic() - started
    crashes = [file for file in (folder / "found").iterdir() if file.suffix != ".txt"]
    accepted = folder / "accepted"
    return {
        "format": format,
        "seconds": round(took_s, 1),
        "seeds": used,
        "executions": executions,
        "executions_per_s": round(executions / took_s),
        "accepted": accepted.stat().st_size if accepted.exists() else 0,
        "coverage": covered,
        "features": features,
        "corpus": files,
        "crashes": sorted(str(file) for file in crashes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="for all formats together")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with atheris")
    parser.add_argument("--format", help="only this one")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--fuzz", type=Path, help=argparse.SUPPRESS)
    arguments, settings = parser.parse_known_args()
    if arguments.fuzz is not None:
        fuzz(arguments.fuzz, arguments.format, settings)
        return 0
    if settings:
        parser.error(f"unknown arguments: {' '.join(settings)}")
    sys.path.insert(0, str(ROOT / "tests"))  # the attacks
    from hurricane.agents.formats import checker_of, format_names

    # Two names of one check, such as onnx and onnx-qdq, are fuzzed once.
    checks = {checker_of(name): name for name in reversed(format_names())}
    formats = [arguments.format] if arguments.format else list(checks.values())
    folder = Path(tempfile.mkdtemp(prefix="fuzz-formats-"))
    results = []
    for format in formats:
        results.append(
            fuzz_format(format, arguments.seconds / len(formats), arguments.python, folder / format)
        )
        if not arguments.json:
            print(results[-1], flush=True)
    crashes = sum(len(result["crashes"]) for result in results)
    print(json.dumps({"crashes": crashes, "folder": str(folder), "formats": results}))
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
