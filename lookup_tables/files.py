"""Writing a file so that a reader sees the old content or the new, and never a half."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..ops.errors import BadRequest, HurricaneError


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replaces the file's content in one step that survives a crash at any moment.

    The content goes to a temporary file in the same folder, is flushed to the disk, and
    takes the file's place. A symbolic link stays a link, and permissions stay as they are.

    Raises:
        BadRequest: the folder does not exist.
        HurricaneError: the disk is full or the folder may not be written to.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise BadRequest(f"cannot write {path}: the folder {target.parent} does not exist")
    temporary = None
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
        sync_folder(target.parent)
    except OSError as error:
        raise HurricaneError(
            f"cannot write {path}: {error.strerror}; what was there is untouched"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def locked_folder(path: str | Path) -> Iterator[None]:
    """Keeps others that lock it too from changing files in a file's folder meanwhile.

    Raises:
        BadRequest: the folder does not exist.
    """
    folder = Path(os.path.realpath(path)).parent
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadRequest(f"cannot write {path}: the folder {folder} does not exist") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder (a new, renamed or removed file) safe on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def without_nan(value: Any) -> Any:
    """A value with null for NaN and infinity, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _umask() -> int:
    # There is no way to read the umask but to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
