"""Files of the cache, on the host and on boards: they may be damaged, or gone, at any time.

Python 3.9, and nothing but the standard library: this module runs on a board.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from .atomic import replacing

CACHE_VARIABLE = "HURRICANE_CACHE"

_DIGEST_BYTES = 32


def cache_folder() -> Path:
    """Where the cache is: $HURRICANE_CACHE, or hurricane in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hurricane"


def read_checked(file: Path) -> bytes | None:
    """What was given to `checked` for a file; None where that is not there, or damaged."""
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # the least recently used ones are removed first
    return content


def checked(content: bytes) -> bytes:
    """What a file holds of which `read_checked` gives the content: half of it is nothing."""
    return hashlib.sha256(content).digest() + content


def write_file(file: Path, content: bytes) -> None:
    """Writes a file in one step, and its folder where there is none.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, durable=False) as new:
        new.write(content)


def prune(folder: Path, limit_bytes: int) -> None:
    """Removes the files that were not used for longest, until the others take no more.

    Args:
        folder: of folders of files.
        limit_bytes: of all files.
    """
    files = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):
            facts = path.stat()
            files.append((facts.st_mtime, facts.st_size, path))
    excess = sum(size for _, size, _ in files) - limit_bytes
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            excess -= size
