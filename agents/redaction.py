"""Errors without what they may tell a caller of this machine: where its files lie."""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
from pathlib import Path

from .text import printable

_LIMIT = 2000  # characters of a message that leaves this machine
# Top folders of the systems that agents run on. Names of nodes often begin with a slash, too, so
# not everything that looks like a path is one.
_TOPS = (
    "apex", "bin", "boot", "data", "dev", "etc", "home", "lib", "lib32", "lib64", "media", "mnt",
    "nix", "opt", "private", "proc", "root", "run", "sbin", "sdcard", "snap", "srv", "storage",
    "sys", "system", "tmp", "usr", "var", "vendor", "Users", "Volumes",
)  # fmt: skip


def redact(text: str) -> str:
    """A message as one line of printable text, with the last part of each absolute path alone."""
    return _paths().sub(_last_part, printable(text, _LIMIT))


@functools.cache
def _paths() -> re.Pattern[str]:
    own = (sys.prefix, sys.base_prefix, __file__, str(Path.home()), os.getcwd())
    tops = {
        Path(path).parts[1] for path in (*own, tempfile.gettempdir()) if len(Path(path).parts) > 1
    }
    names = "|".join(sorted(re.escape(top) for top in {*tops, *_TOPS}))
    # In quotes, a path may have spaces; else it ends where a word does.
    return re.compile(
        rf"(?<=['\"])/(?:{names})(?:/[^'\"]*)?(?=['\"])|(?<![\w.])/(?:{names})\b(?:/[^\s'\"`:;,()<>\[\]{{}}|]*)?"
    )


def _last_part(match: re.Match[str]) -> str:
    name = match[0].rstrip("/").rpartition("/")[2]
    # Of a folder, not even its name: it may be a user's.
    return f"…/{name}" if "." in name.strip(".") else "…"
