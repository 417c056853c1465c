"""The command ``hurricane support``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import emit, json_option
from ..ops.errors import BadRequest, HurricaneError
from ..ops.pool import select_operators
from .cli import Interrupted, gate_option
from .options import (
    credentials,
    layers_option,
    operator_options,
    plugin_option,
    share_bar,
    target_options,
)

if TYPE_CHECKING:
    from ..lookup_tables.support import SupportRow

_SUPPORT_HELP = """Reports which operators a target supports, where they run, and their error.

Nothing is timed. Every operator is loaded and run at every layer shape, and its outputs for
random inputs are compared with those of the fp32 graph: the error is a signal-to-quantisation-noise
ratio (SQNR) in dB, higher is better. Rows that the report has already are replaced. The exit status
is 1 where an operator failed or took too long; one that is not supported is no failure.

\b
Examples:
  hurricane support --layers imagenet224 --target cpu-litert-int8 -o my-board.support.csv
  hurricane support --layers imagenet224:0-7 --operators 'MB_*' --target cpu-openvino-int8 \\
      --agent board:50051 -o my-board.support.csv
  hurricane table show my-board.support.csv
  hurricane space --table my-board.csv --latency 17 --support my-board.support.csv --min-sqnr 25
"""


@click.command("support", help=_SUPPORT_HELP)
@layers_option
@click.option(
    "--target",
    required=True,
    metavar="NAME[-tN]",
    help="Target, as agent info lists it, with -tN for N threads.",
)
@operator_options
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Limit for loading a graph, and for running it.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False), help="Report to write, a CSV."
)
@target_options
@plugin_option
@json_option
def support(
    layers: str,
    target: str,
    operators: str | None,
    gate: str,
    timeout_s: float,
    output: str,
    agents: Any,
    runtime_options: tuple[str, ...],
    token_file: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    insecure: bool,
    seed: int,
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    from ..lookup_tables.support import SupportReport, SupportSummary
    from .plan import parse_layers, plan_rows
    from .session import TargetSession, connect
    from .support import SupportSettings, ask_support
    from .target import parse_target

    started = time.monotonic()
    rows = plan_rows(parse_layers(layers), select_operators(operators), gate)
    request = parse_target(target, (*runtime_options, *gate_option(gate)))
    settings = SupportSettings(timeout_s=timeout_s, seed=seed)
    # A broken one, or one that cannot be written, is told before anything else.
    SupportReport.update(output, [])
    keys = credentials(agents, token_file, tls_ca, tls_cert, tls_key, insecure)
    found: list[SupportRow] = []
    try:
        with connect(agents, request, **keys) as clients, share_bar("support") as note:
            if len(clients) > 1:
                raise BadRequest("one agent is asked, and these are several: name one with --agent")
            session = TargetSession.open(clients[0], request, timed=False)
            for row in ask_support(session, rows, settings, note):
                found.append(row)
    except BaseException as error:
        _save_part(found, output, len(rows), error)
        raise
    SupportReport.update(output, found)
    summary = SupportSummary.of(found)
    seconds = time.monotonic() - started
    result = {
        "report": output,
        "target": session.target.name,
        "origin": session.target.origin,
        **summary.to_dict(),
        "seconds": round(seconds, 2),
    }
    text = f"{output}: {session.target}: {summary.text()}; in {seconds:.1f} s"
    emit(result, as_json, "\n".join([text, *_reasons(found)]))
    if failed := sum(row.status in ("failed", "timeout") for row in found):
        raise HurricaneError(
            f"{output}: {failed} of its rows failed or took too long (see: hurricane table show "
            f"{output})"
        )


def _save_part(
    found: Sequence[SupportRow],
    output: str,
    rows: int,
    error: BaseException,
) -> None:
    """Keeps what is known where not all rows could be asked.

    Raises:
        Interrupted: that is what ended it.
        HurricaneError: the agent failed; with how much is kept.
    """
    from ..lookup_tables.support import SupportReport

    if found:
        SupportReport.update(output, found)
    kept = f"{len(found)} of {rows} rows are in {output}, the same command asks all again"
    if isinstance(error, KeyboardInterrupt):
        raise Interrupted(f"interrupted; {kept if found else 'nothing was written'}") from None
    if found and isinstance(error, HurricaneError):
        raise HurricaneError(f"{error}; {kept}") from error


def _reasons(rows: Sequence[SupportRow]) -> list[str]:
    """Why rows are not ok, each reason once."""
    from ..lookup_tables.support import reason_lines

    return [f"  {line}" for line in reason_lines([row for row in rows if not row.ok])]
