"""The exceptions of all packages; the console turns them into words and an exit status.

`agents.errors`, with the kinds that go over the wire, derives from these, so that this module runs
on a board: Python 3.9, and nothing but the standard library.
"""

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


class UnsupportedNode(BadRequest):
    """A node of a graph that another format cannot express, or that its writer does not know.

    Attributes:
        op_type: the node's ONNX operator.
        node: the node's name.
        reason: what about it, in a few words.
    """

    def __init__(self, op_type: str, node: str, reason: str) -> None:
        super().__init__(f"{op_type} node {node!r} cannot be converted: {reason}")
        self.op_type, self.node, self.reason = op_type, node, reason

    def with_more(self, reason: str) -> UnsupportedNode:
        """The same of the node, with a further reason."""
        return type(self)(self.op_type, self.node, f"{self.reason}; {reason}")

    def __reduce__(self) -> tuple[type[UnsupportedNode], tuple[str, str, str]]:
        """Makes it picklable: it may come out of another process."""
        return type(self), (self.op_type, self.node, self.reason)


def _fitting(message: str) -> str:
    if len(message) > LONGEST:
        message = f"{message[: LONGEST * 2 // 3]} … {message[-LONGEST // 4 :]}"
    if message.replace("\n", "").isprintable():
        return message
    return "".join(
        c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in message
    )
