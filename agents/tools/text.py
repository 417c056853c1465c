"""Lines of a tool's output, and how they are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..backends.base import one_line
from ..errors import RuntimeCrashed


class BadOutput(RuntimeCrashed):
    """A tool printed what is not understood; nothing of it is used."""


class Lines:
    """The lines of a text, one after the other.

    Args:
        tool: that printed it, for errors.
        text: all of it; its last line must have an end, or it is cut off.
    """

    def __init__(self, tool: str, text: str) -> None:
        self._tool = tool
        text = text.replace("\r\n", "\n")  # a terminal on the way
        if text and not text.endswith("\n"):
            raise self.error("is cut off", text.rpartition("\n")[2])
        self._lines = text.split("\n")[:-1]

    def __iter__(self) -> Iterator[str]:
        return iter(line.strip() for line in self._lines)

    def error(self, what: str, line: str = "") -> BadOutput:
        """The error for an output that is not understood."""
        shown = f": '{one_line(line, 120)}'" if line else ""
        return BadOutput(f"what {self._tool} printed {what}{shown}")

    def only(self, name: str, found: Sequence[object]) -> None:
        """Refuses what is not there exactly once."""
        if not found:
            raise self.error(f"has no '{name}'")
        if len(found) > 1:
            raise self.error(f"has '{name}' {len(found)} times")


def whole(pattern: str) -> re.Pattern[str]:
    """A pattern of a whole line."""
    return re.compile(rf"(?:{pattern})\Z")
