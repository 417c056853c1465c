"""Errors without what they may tell a caller of this machine: where its files lie."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .text import printable

_LIMIT = 2000  # characters of a message that leaves this machine
# Top folders of the systems that agents run on. Names of nodes often begin with a slash, too, so
# not everything that looks like a path is one.
_TOPS = (
    "apex", "app", "bin", "boot", "code", "content", "data", "dev", "etc", "home", "lib", "lib32",
    "lib64", "media", "mnt", "nix", "opt", "private", "proc", "root", "run", "sbin", "scratch",
    "sdcard", "snap", "srv", "storage", "sys", "system", "tmp", "usr", "var", "vendor", "work",
    "workspace", "Users", "Volumes",
)  # fmt: skip


def redact(text: str) -> str:
    """A message as one line of printable text, with the last part of each absolute path alone."""
    return _paths().sub(_last_part, printable(text, _LIMIT))


def _own_paths() -> Iterator[str]:
    yield from (sys.prefix, sys.base_prefix, os.path.realpath(__file__), tempfile.gettempdir())
    # A folder that was removed, a user without a home: their paths are in no message.
    with contextlib.suppress(OSError):
        yield os.getcwd()
    with contextlib.suppress(RuntimeError, OSError):
        yield str(Path.home())


@functools.cache
def _paths() -> re.Pattern[str]:
    own = {Path(path).parts[1] for path in _own_paths() if len(Path(path).parts) > 1}
    tops = "|".join(sorted(re.escape(top) for top in own.union(_TOPS)))
    # In quotes, a path may have spaces; else it ends where a word does.
    quoted = rf"(?<=['\"])/(?:{tops})(?:/[^'\"]*)?(?=['\"])"
    plain = rf"(?<![\w.])/(?:{tops})\b(?:/[^\s'\"`:;,()<>\[\]{{}}|]*)?"
    return re.compile(f"{quoted}|{plain}")


def _last_part(match: re.Match[str]) -> str:
    name = match[0].rstrip("/").rpartition("/")[2]
    # Of a folder, not even its name: it may be a user's.
    return f"…/{name}" if "." in name.strip(".") else "…"
