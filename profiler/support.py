"""Asks a target which graphs it takes, where they run, and how far outputs are from fp32.

Every row's own graph is loaded and called twice; nothing is timed. Its outputs for seeded random
inputs are compared with those of the fp32 ONNX graph in onnxruntime on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np

from ..agents.errors import AgentError, BadAnswer, ErrorKind, Unreachable
from ..agents.results import ArtifactResult
from ..lookup_tables.support import MAX_REASON, SupportRow
from ..lookup_tables.table import COMPUTING, TableError, format_flags
from ..ops.artifacts import ArtifactInfo, edges
from ..ops.artifacts.cache import cached
from ..ops.calibration import random_samples
from ..ops.errors import BadRequest, HurricaneError
from ..ops.export import sha256
from ..ops.graph import prepare_templates
from .deviation import NotComparable, compare_outputs
from .origin import keeping
from .outcomes import CONTENDED
from .plan import PlannedRow, batches, graph_bytes
from .recorder import STATUS_OF
from .session import TargetSession

BATCH_ROWS = 16
"""Rows of one request: few, so that a graph that kills the runtime costs few others anew."""

INPUTS = 4
"""Random inputs of each graph: heads give as few as ten numbers for one."""

_FIRST_SEED = 1
"""Calibration samples are drawn with seed 0."""

_OF_TIME = ("throttled", *CONTENDED)
"""Flags that speak of times, which are not kept."""


@dataclass(frozen=True)
class SupportSettings:
    """How a target is asked.

    Attributes:
        timeout_s: for loading a graph, and for one call.
        seed: of the inputs, at least 0.
    """

    timeout_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise BadRequest(f"seed must not be negative, got {self.seed}")


def ask_support(
    session: TargetSession,
    rows: Sequence[PlannedRow],
    settings: SupportSettings,
    on_progress: Callable[[str, float], None] | None = None,
) -> Iterator[SupportRow]:
    """Asks for every row; each is given as soon as it is known.

    A graph at which the device is lost is tried once more at the end; if others could be run and
    it is lost again, that row has failed.

    Args:
        session: the target.
        rows: of a plan; their own graphs alone are sent.
        on_progress: called with (what, share of the whole).

    Raises:
        AgentError: the agent or its device is gone, or answers what cannot be right.
    """
    note = on_progress or (lambda what, share: None)
    pieces = {piece for row in rows for piece in row.alone}
    prepare_templates(
        sorted(pieces, key=lambda piece: piece.key), lambda done, n: note("export", 0.2 * done / n)
    )
    _ = session.recipe.converter  # says what is not installed
    with suppress(HurricaneError):  # of one graph: its row says so
        session.prepare(
            [partial(graph_bytes, row.alone) for row in rows],
            lambda done, n: note("convert", 0.2 + 0.3 * done / n),
        )
    done, lost = 0, []
    for batch in batches(rows, session.max_bytes, BATCH_ROWS):
        for row, found in _ask(session, batch, settings):
            if isinstance(found, AgentError):
                lost.append(row)
                continue
            done += 1
            note("ask", 0.5 + 0.5 * done / len(rows))
            yield found
    for row in lost:
        for _, found in _ask(session, [row], settings):
            if isinstance(found, AgentError):
                if not done:
                    raise found
                found = _row(session, row, error=found)
            yield found


def _ask(
    session: TargetSession, rows: Sequence[PlannedRow], settings: SupportSettings
) -> Iterator[tuple[PlannedRow, SupportRow | AgentError]]:
    """Rows of one request; of those at which the device was lost the error."""
    digests: dict[PlannedRow, str] = {}
    for row in rows:
        try:
            digests[row] = session.digest_of(row.alone)
        except AgentError:  # of the agent, and not of the graph
            raise
        except HurricaneError as error:
            yield row, _row(session, row, status="failed", reason=f"no artefact: {error}")
    protocol = keeping(session.target.origin, warmup_calls=1, artifact_timeout_s=settings.timeout_s)
    results = session.time([*digests.values()], protocol) if digests else {}
    for row, digest in digests.items():
        result = results[digest]
        try:
            if result.error is not None:
                raise result.error
            yield row, _checked(session, row, result, settings)
        except (BadAnswer, Unreachable):
            raise
        except AgentError as error:
            if error.kind is ErrorKind.DEVICE_LOST:
                yield row, error
            elif error.kind.is_of_board:
                raise
            else:
                yield row, _row(session, row, result, error=error)


def _checked(
    session: TargetSession, row: PlannedRow, result: ArtifactResult, settings: SupportSettings
) -> SupportRow:
    """The row of a graph that runs, with the numbers where there can be any.

    Raises:
        AgentError: it does not run with these inputs.
    """
    origin = session.target.origin
    if origin not in COMPUTING:
        return _row(session, row, result, reason=f"no numbers: {origin}, and nothing is computed")
    inputs = _inputs(row, INPUTS if session.resident else 1, settings.seed)  # else each is a load
    reference = _reference(row, inputs)
    try:
        found = compare_outputs(reference, _outputs(session, row, inputs, settings.timeout_s))
    except NotComparable as error:
        return _row(session, row, result, status="failed", reason=str(error))
    except ValueError as error:
        return _row(session, row, result, reason=f"no numbers: {error}")
    return _row(session, row, result, relative_error=found.relative_error, sqnr_db=found.sqnr_db)


def _inputs(row: PlannedRow, count: int, seed: int) -> np.ndarray:
    """Inputs of a row's graph, drawn as calibration samples are: float32 [count, C, H, W]."""
    shape = row.shape
    size = (shape.in_channels, shape.height, shape.width)
    return random_samples(size, count, _FIRST_SEED + seed)


def _reference(row: PlannedRow, inputs: np.ndarray) -> list[list[np.ndarray]]:
    """Outputs of the fp32 graph for each input."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        graph_bytes(row.alone), providers=["CPUExecutionProvider"]
    )
    (name,) = (value.name for value in session.get_inputs())
    return [[np.asarray(v) for v in session.run(None, {name: value[None]})] for value in inputs]


def _outputs(
    session: TargetSession, row: PlannedRow, inputs: np.ndarray, timeout_s: float
) -> list[list[np.ndarray]]:
    """What the target gives for each input, as real values in ONNX's layout.

    Args:
        inputs: float32 [count, C, H, W].

    Raises:
        AgentError: it does not run.
        NotComparable: an output is not there.
    """
    content = cached(partial(graph_bytes, row.alone), session.recipe).content
    known = edges(content, session.recipe.format)
    (entry,) = known.inputs
    names = [edge.name for edge in known.outputs]
    values = []
    for value in inputs:
        given = session.run(
            session.digest_of(row.alone), {entry.name: entry.encode(value[None])}, timeout_s
        )
        if set(given) != set(names):
            found = ", ".join(given) or "none"
            raise NotComparable(f"its outputs are called {found}, not {', '.join(names)}")
        values.append([edge.decode(given[edge.name]) for edge in known.outputs])
    return values


def _row(
    session: TargetSession,
    row: PlannedRow,
    result: ArtifactResult | None = None,
    error: AgentError | None = None,
    status: str = "ok",
    reason: str = "",
    relative_error: float | None = None,
    sqnr_db: float | None = None,
) -> SupportRow:
    """A row of the report."""
    artifact = _info_of(session, row)
    if error is not None:
        status = STATUS_OF.get(error.kind, "failed")
        kind = error.kind.name.lower().replace("_", " ")
        words = str(error).removeprefix(f"agent at {session.client.address}: ")
        reason = words if status != "failed" else f"{kind}: {words}"
    ran = result if result is not None and result.error is None else None
    try:
        return SupportRow.of(
            session.target,
            row.name,
            row.shape,
            status=status,
            compute_unit=ran.compute_unit if ran else "",
            flags=format_flags(flag for flag in ran.flags if flag not in _OF_TIME) if ran else "",
            relative_error=relative_error,
            sqnr_db=sqnr_db,
            reason=_one_line(reason),
            graph_sha256=artifact.graph_sha256,
            artifact_sha256=artifact.artifact_sha256,
            converter=artifact.converter,
            calibration=artifact.calibration,
            agent_version=session.agent_version,
            checked_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
    except TableError as why:
        raise BadAnswer(
            f"the agent at {session.client.address} sent what no report can hold: {why}"
        ) from why


def _info_of(session: TargetSession, row: PlannedRow) -> ArtifactInfo:
    """What is known of a row's artefact, or of its graph where none can be made."""
    try:
        return session.info_of(row.alone)
    except HurricaneError:
        return ArtifactInfo(sha256(graph_bytes(row.alone)), "", session.recipe.converter)


def _one_line(text: str) -> str:
    """A message as a cell holds it."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 1] + "…"
