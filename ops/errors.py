"""The exceptions of the host side; the console turns them into words and an exit status."""

from __future__ import annotations

LONGEST = 2_000
"""Characters of a message; of a longer one the middle is left out."""


class HurricaneError(Exception):
    """Something failed. The message says what, where and what to do, in one or two lines.

    Files, agents and users give parts of messages: what a terminal would obey and not show is
    escaped, and length is bounded.
    """

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(_fitting(str(message)))


class BadRequest(HurricaneError):
    """The request itself is wrong or cannot be met (unknown name, impossible budget)."""

    exit_status = 2


def _fitting(message: str) -> str:
    if len(message) > LONGEST:
        message = f"{message[: LONGEST * 2 // 3]} … {message[-LONGEST // 4 :]}"
    if message.replace("\n", "").isprintable():
        return message
    return "".join(
        c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in message
    )
