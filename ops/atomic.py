"""Writing files so that a reader, or a kill, sees the old content or the new, and never a half."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import BadRequest, HurricaneError

PARTIAL = ".partial"
"""Ending of a file that is being written; only a kill leaves one."""


def write_atomically(
    path: str | Path,
    content: bytes | Callable[[BinaryIO], object],
    *,
    make_folder: bool = False,
) -> None:
    """Replaces a file's content in one step that survives a crash at any moment.

    A symbolic link stays a link, and permissions stay as they are.

    Args:
        path: of the file.
        content: the bytes, or what writes them into an open file.
        make_folder: makes the folder where there is none.

    Raises:
        BadRequest: the folder does not exist.
        HurricaneError: the disk is full or the folder may not be written to.
    """
    target = Path(os.path.realpath(path))
    try:
        if make_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        elif not target.parent.is_dir():
            raise BadRequest(f"{path} cannot be written: the folder {target.parent} does not exist")
        with replacing(target) as file:
            content(file) if callable(content) else file.write(content)
    except OSError as error:
        raise HurricaneError(
            f"{path} cannot be written: {error.strerror or error}; what was there is untouched"
        ) from error


@contextlib.contextmanager
def replacing(target: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file in the same folder, which takes the target's place when the block ends well.

    Args:
        target: no symbolic link, or one that may be replaced by a file.
        durable: flushed to the disk first; without, a power failure may leave an empty file.
    """
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with open(partial, "xb") as file:
            yield file
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    if durable:
        sync_folder(target.parent)


def remove_partials(path: Path) -> None:
    """Removes what killed processes left of a file that no other process writes now."""
    for partial in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder (a new, renamed or removed file) safe on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
