"""Boards: a TOML file of agents and what they want to know of a caller, and asking many at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..agents.client import AgentClient, Description, TlsFiles
from ..agents.errors import AgentError, BadAnswer, Unauthorised
from ..agents.security import check_address, read_token
from ..ops.errors import BadRequest
from ..ops.files import read_toml
from .origin import ORIGIN

ANSWER_S = 3.0
"""A board that does not answer within this time is unreachable."""

_TEXTS = ("agent", "token_file", "tls_ca", "tls_cert", "tls_key")
_KEYS = (*_TEXTS, "insecure")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Board:
    """One agent, and what it wants to know of a caller.

    Attributes:
        name: what the file calls it, or its address.
        address: ``HOST:PORT``.
        token: the agent's token; None: whatever `open` is given.
        tls: files for TLS; None: whatever `open` is given.
        insecure: the token may go there over a network without TLS.
    """

    name: str
    address: str
    token: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None
    insecure: bool = False

    @classmethod
    def at(cls, address: str) -> Board:
        """A board that no file names."""
        return cls(address, address)

    def __str__(self) -> str:
        return self.name if self.name == self.address else f"{self.name} ({self.address})"

    def open(
        self, token: str | None = None, tls: TlsFiles | None = None, insecure: bool = False
    ) -> AgentClient:
        """A client of its agent; `token`, `tls` and `insecure` hold where the file names none."""
        return AgentClient(
            self.address, self.token or token, self.tls or tls, self.insecure or insecure
        )


@dataclass(frozen=True)
class Boards:
    """The boards of a file, in its order.

    Attributes:
        path: the file.
        boards: at least one; neither two names nor two addresses are equal.
    """

    path: Path
    boards: tuple[Board, ...]

    def __iter__(self) -> Iterator[Board]:
        return iter(self.boards)

    def __len__(self) -> int:
        return len(self.boards)

    def get(self, name: str) -> Board:
        """The board of that name.

        Raises:
            BadRequest: there is none.
        """
        names = [board.name for board in self.boards]
        if name in names:
            return self.boards[names.index(name)]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
        raise BadRequest(f"boards file {self.path} names no board {name!r}; {hint}")

    def having(self, target: str, **credentials: Any) -> list[Board]:
        """The boards that answer now and can be measured on a target.

        Args:
            target: its name, without ``-tN``.
            credentials: arguments of `Board.open`.

        Raises:
            BadRequest: there is none; the message tells what there is.
        """
        answers = ask(self.boards, **credentials)
        found = [answer.board for answer in answers if target in answer.targets]
        if not found:
            has = (f"{a.board.name} {', '.join(a.targets) or a.state}" for a in answers)
            raise BadRequest(
                f"no board of {self.path} has the target {target!r}; there are: {'; '.join(has)}"
            )
        return found

    @classmethod
    def load(cls, path: str | Path) -> Boards:
        """Reads a file of boards, and the tokens that it names.

        Raises:
            BadRequest: a file cannot be read, or the boards file holds an unknown key, lacks one
                or has a wrong value.
        """
        path = Path(path)
        data = read_toml(path, "boards file")
        read = _Reader(path)
        read.no_others(data, "", ("boards",))
        tables = read.table(data.get("boards", {}), "boards")
        if not tables:
            raise BadRequest(
                f"boards file {path} names no board; write [boards.NAME] and "
                'agent = "HOST:PORT" below it'
            )
        boards = tuple(read.board(name, value) for name, value in tables.items())
        first: dict[str, str] = {}
        for board in boards:
            if board.address in first:
                raise BadRequest(
                    f"boards file {path}: boards.{first[board.address]} and boards.{board.name} "
                    f"have the same agent, {board.address}; keep one of them"
                )
            first[board.address] = board.name
        return cls(path, boards)


@dataclass(frozen=True)
class Answer:
    """What a board said when it was asked.

    Attributes:
        board: who was asked.
        description: what it said; None where it did not answer.
        error: why it did not; None where it did.
    """

    board: Board
    description: Description | None = None
    error: AgentError | None = None

    @property
    def state(self) -> str:
        """``idle``, ``measuring``, ``unreachable``, ``unauthorised``, ``invalid`` (what it says
        cannot be right); ``?``: it does not tell."""
        if self.description is None:
            if isinstance(self.error, BadAnswer):
                return "invalid"
            return "unauthorised" if isinstance(self.error, Unauthorised) else "unreachable"
        activity = self.description.activity
        if activity is None:
            return "?"
        return "measuring" if activity.measuring else "idle"

    @property
    def targets(self) -> Mapping[str, str]:
        """Origin of what each available target gives: measured, simulated …"""
        known = self.description.targets if self.description else ()
        return {t.name: ORIGIN[t.availability] for t in known if t.availability in ORIGIN}


def ask(boards: Sequence[Board], timeout_s: float = ANSWER_S, **credentials: Any) -> list[Answer]:
    """Asks boards what they are and do, all at the same time.

    Args:
        boards: whom.
        timeout_s: for each of them, in seconds.
        credentials: arguments of `Board.open`.

    Returns:
        One answer for each board, in their order.
    """

    def ask_one(board: Board) -> Answer:
        try:
            with board.open(**credentials) as client:
                return Answer(board, client.describe(timeout_s))
        except AgentError as error:
            return Answer(board, error=error)

    if not boards:
        return []
    with ThreadPoolExecutor(max_workers=len(boards)) as pool:
        return list(pool.map(ask_one, boards))


class _Reader:
    """Takes boards out of parsed TOML, and says which file and key is at fault."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def no_others(self, table: Mapping[str, Any], at: str, known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise BadRequest(f"boards file {self.path}: unknown key {at}{key}; {hint}")

    def table(self, value: Any, at: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise BadRequest(f"boards file {self.path}: {at} must be a table, [{at}]")
        return value

    def board(self, name: str, value: Any) -> Board:
        at = f"boards.{name}"
        if not _NAME.fullmatch(name):
            raise BadRequest(
                f"boards file {self.path}: {name!r} is no name of a board; "
                "take letters, digits, '.', '_' and '-'"
            )
        table = self.table(value, at)
        self.no_others(table, f"{at}.", _KEYS)
        if "agent" not in table:
            raise BadRequest(
                f'boards file {self.path} lacks the key {at}.agent; write agent = "HOST:PORT"'
            )
        for key in (key for key in _TEXTS if key in table):
            if not isinstance(table[key], str) or not table[key].strip():
                raise BadRequest(f"boards file {self.path}: {at}.{key} must be a text in quotes")
        if not isinstance(table.get("insecure", False), bool):
            raise BadRequest(f"boards file {self.path}: {at}.insecure must be true or false")
        here = f"boards file {self.path}: {at}"
        address = check_address(table["agent"], f"{here}.agent")
        token_file = self._file(table, "token_file")
        ca, cert, key = (self._file(table, f"tls_{part}") for part in ("ca", "cert", "key"))
        for part, file in (("ca", ca), ("cert", cert), ("key", key)):
            if file is not None and not os.path.isfile(file):
                raise BadRequest(f"{here}.tls_{part}: there is no file {file}")
        if (cert is None) != (key is None):
            raise BadRequest(f"{here}: tls_cert and tls_key belong together; give both or none")
        return Board(
            name,
            address,
            read_token(token_file, f"{here}.token_file") if token_file else None,
            TlsFiles(ca, cert, key) if ca or cert else None,
            table.get("insecure", False),
        )

    def _file(self, table: Mapping[str, Any], key: str) -> Path | None:
        """A file that a board names; a relative path is seen from the boards file."""
        # `os.path` leaves the home folder of nobody as it is, where pathlib raises RuntimeError.
        return self.path.parent / os.path.expanduser(table[key]) if key in table else None
