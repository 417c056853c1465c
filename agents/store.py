"""Artefacts on the board's disk, each under its SHA-256."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Optional

from .errors import BadRequest, Busy

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY_PREFIX = "hurricane-agent-"
_LOCK = ".lock"
_PARTIAL = ".partial-"


def check_digest(sha256: str) -> None:
    """Refuses what is no SHA-256 in lower-case hexadecimal (and so no path either).

    Raises:
        BadRequest: not a digest.
    """
    if not _DIGEST.fullmatch(sha256):
        raise BadRequest(f"'{sha256[:80]}' is not a SHA-256 in lower-case hexadecimal")


class Store:
    """A folder of artefacts, each in a file named by its digest.

    Args:
        folder: where they are kept; None: a temporary folder, removed by `close` (and, after a
            kill -9, by the next agent).
        max_artifact_bytes: size of the largest artefact taken.
        max_bytes: size of the folder; beyond it, the least recently used artefacts that no
            running request needs make room.
    """

    def __init__(
        self, folder: Optional[Path], max_artifact_bytes: int, max_bytes: Optional[int] = None
    ) -> None:
        self._temporary = folder is None
        if folder is None:
            _remove_stale()
            folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX))
        self._lock_file = _lock(folder)
        self._folder = folder
        self._max_artifact_bytes = max_artifact_bytes
        self._max_bytes = max_bytes or shutil.disk_usage(folder).free // 2
        self._mutex = threading.Lock()
        self._pinned: Counter[str] = Counter()
        for left_over in folder.glob(f"{_PARTIAL}*"):
            left_over.unlink(missing_ok=True)

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of the digests that are not held; the others count as used now."""
        absent = []
        for digest in digests:
            check_digest(digest)
            try:
                os.utime(self._folder / digest)
            except FileNotFoundError:
                absent.append(digest)
        return absent

    def add(self, sha256: str, size: int, chunks: Iterable[bytes]) -> None:
        """Takes one artefact; it appears whole or not at all.

        Args:
            sha256: its digest.
            size: its size in bytes.
            chunks: its content.

        Raises:
            BadRequest: too large, or the content has another size or digest.
            Busy: the store is full of artefacts in use.
        """
        check_digest(sha256)
        if not 0 < size <= self._max_artifact_bytes:
            raise BadRequest(
                f"artefact {sha256[:12]} has {size} bytes; "
                f"this agent takes 1 to {self._max_artifact_bytes}"
            )
        self._make_room(size)
        descriptor, partial = tempfile.mkstemp(prefix=_PARTIAL, dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _write_checked(file, sha256, size, chunks)
                if not self._temporary:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(partial, self._folder / sha256)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise

    @contextlib.contextmanager
    def pinned(self, digests: Sequence[str]) -> Iterator[list[Path]]:
        """The artefacts' files, which stay for as long as the context does.

        Raises:
            BadRequest: one of them is not held.
        """
        with self._mutex:
            self._pinned.update(digests)
        try:
            absent = self.missing(digests)
            if absent:
                raise BadRequest(
                    f"{len(absent)} of {len(digests)} artefacts are not on the agent "
                    f"(first: {absent[0][:12]}); upload them before"
                )
            yield [self._folder / digest for digest in digests]
        finally:
            with self._mutex:
                self._pinned.subtract(digests)

    def close(self) -> None:
        """Removes a temporary folder."""
        if self._temporary:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock_file.close()

    def _make_room(self, size: int) -> None:
        with self._mutex:
            files = [path for path in self._folder.iterdir() if _DIGEST.fullmatch(path.name)]
            facts = sorted(
                (status.st_mtime_ns, status.st_size, path)
                for path, status in ((path, path.stat()) for path in files)
            )
            excess = sum(held for _, held, _ in facts) + size - self._max_bytes
            for _, held, path in facts:
                if excess <= 0:
                    return
                if self._pinned[path.name] <= 0:
                    path.unlink(missing_ok=True)
                    excess -= held
            if excess > 0:
                raise Busy(
                    f"the agent's store is full ({self._max_bytes} bytes, all in use); try later"
                )


def _write_checked(file: IO[bytes], sha256: str, size: int, chunks: Iterable[bytes]) -> None:
    digest, written = hashlib.sha256(), 0
    for chunk in chunks:
        written += len(chunk)
        if written > size:
            raise BadRequest(f"artefact {sha256[:12]} is longer than the {size} bytes announced")
        digest.update(chunk)
        file.write(chunk)
    if written != size:
        raise BadRequest(f"artefact {sha256[:12]} ended after {written} of {size} bytes")
    if digest.hexdigest() != sha256:
        raise BadRequest(
            f"artefact {sha256[:12]} arrived with digest {digest.hexdigest()[:12]}; send it again"
        )


def _lock(folder: Path) -> IO[str]:
    """Marks a folder as in use for as long as this process lives.

    Raises:
        BadRequest: the folder cannot be written, or another agent uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("w")
    except OSError as error:
        raise BadRequest(f"the store {folder} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise BadRequest(f"the store {folder} is in use by another agent") from error
    return file


def _remove_stale() -> None:
    """Removes temporary stores whose agents were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY_PREFIX}*"):
        lock = folder / _LOCK
        # Without its lock file yet, a folder is being made at this very moment.
        if not lock.is_file() or folder.stat().st_uid != os.getuid():
            continue
        with contextlib.suppress(OSError), open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
