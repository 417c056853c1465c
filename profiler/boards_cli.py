"""The command ``hurricane boards``."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..agents.conditions import Conditions
from ..agents.console import emit, json_option
from ..ops.errors import BadRequest
from .boards import Answer, Board, ask
from .options import boards_option, chosen_agents, credential_options, credentials

_HELP = """Lists boards: what they can measure, and what they are doing.

AGENTS are names of boards in the file [all] or, without --boards, addresses. The exit status is 1
if one of them does not answer.

\b
Examples:
  hurricane boards --boards boards.toml
  hurricane boards 10.0.0.5:50051 10.0.0.6:50051 --token-file token.txt --tls-ca ca.pem
"""
_NOT_TOLD = "?"
_TOLD = ("temperature_c", "frequency_mhz", "load_1m")
_COLUMNS = ("board", "agent", "device", "state", "queue", "machine", "version", "targets")


@click.command("boards", help=_HELP)
@click.argument("agents", nargs=-1, callback=chosen_agents)
@boards_option
@credential_options
@json_option
def boards_command(
    agents: Any,
    token_file: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    insecure: bool,
    as_json: bool,
) -> int:
    if not agents:
        raise BadRequest("whom to ask? name a file with --boards FILE, or agents by HOST:PORT")
    boards = [a if isinstance(a, Board) else Board.at(a) for a in agents]
    keys = credentials(boards, token_file, tls_ca, tls_cert, tls_key, insecure)
    answers = ask(boards, **keys)
    emit({"boards": [_as_dict(a) for a in answers]}, as_json, "" if as_json else _text(answers))
    return 1 if any(answer.error for answer in answers) else 0


def _as_dict(answer: Answer) -> dict[str, Any]:
    """One board for ``--json``; what it does not tell is null."""
    said = answer.description
    activity = said.activity if said else None
    conditions = said.conditions if said else None
    return {
        "board": answer.board.name,
        "agent": answer.board.address,
        "state": None if answer.state == _NOT_TOLD else answer.state,
        "error": str(answer.error) if answer.error else None,
        "device": said.device.name if said else None,
        "agent_version": said.agent_version if said else None,
        "activity": vars(activity) if activity else None,
        "conditions": {name: getattr(conditions, name) or None for name in _TOLD}
        if conditions
        else None,
        "targets": dict(answer.targets),
    }


def _text(answers: list[Answer]) -> str:
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        grid.add_column(name, overflow="fold", justify="right" if name == "queue" else "left")
    for answer in answers:
        grid.add_row(*_cells(answer))
    # Into a file or a pipe nothing is wrapped to the width of a screen that is not there.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 1000)
    with console.capture() as captured:
        console.print(grid)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    lines += [f"{a.board.name}: {a.error}" for a in answers if a.error]
    return "\n".join(lines)


def _cells(answer: Answer) -> tuple[str, ...]:
    board, said = answer.board, answer.description
    if said is None:
        return (board.name, board.address, "", answer.state, "", "", "", "")
    activity = said.activity
    return (
        board.name,
        board.address,
        said.device.name,
        str(activity) if activity else _NOT_TOLD,
        str(activity.waiting) if activity else _NOT_TOLD,
        _machine(said.conditions) if said.conditions else _NOT_TOLD,
        said.agent_version,
        ", ".join(f"{name} ({origin})" for name, origin in answer.targets.items()) or "none",
    )


def _machine(conditions: Conditions) -> str:
    """Temperature, clock and load, as far as the machine tells them."""
    facts = []
    if conditions.temperature_c:
        facts.append(f"{conditions.temperature_c:.0f} °C")
    if conditions.frequency_mhz:
        facts.append(f"{conditions.frequency_mhz:.0f} MHz")
    if conditions.load_1m:
        facts.append(f"load {conditions.load_1m:.2f}")
    return ", ".join(facts) or _NOT_TOLD
