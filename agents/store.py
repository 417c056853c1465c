"""Artefacts on the board's disk, each under its SHA-256."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Optional

from .errors import BadRequest, Busy

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY_PREFIX = "hurricane-agent-"
_UNMARKED_PREFIX = "hurricane-new-agent-"
_LOCK = ".lock"
_PARTIAL = ".partial-"
_MAX_ARTIFACTS = 20_000  # twice the largest batch

WORKER_PREFIX = "hurricane-worker-"
"""Of the folders that worker processes run in, followed by their agent's process id."""


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
        _remove_stale()
        if folder is None:
            folder, self._lock_file = _temporary_folder()
        else:
            self._lock_file = _lock(folder)
        self._folder = folder
        self._max_artifact_bytes = max_artifact_bytes
        self._max_bytes = max_bytes or shutil.disk_usage(folder).free // 2
        self._mutex = threading.Lock()
        self._pinned: Counter[str] = Counter()
        self._set_aside_bytes = 0
        # At least what is held: as long as these leave room, nothing has to be counted.
        self._most_bytes_held, self._most_held = self._max_bytes, _MAX_ARTIFACTS
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

    @contextlib.contextmanager
    def incoming(self, sha256: str, size: int) -> Iterator[Incoming]:
        """Takes one artefact, which appears whole or not at all.

        Its room is set aside from the beginning, so that uploads that go on at the same time do
        not take more than there is.

        Args:
            sha256: its digest.
            size: its size in bytes.

        Yields:
            What to write its content to, and to finish.

        Raises:
            BadRequest: too large, or the content has another size or digest.
            Busy: the store is full of artefacts in use, or the disk is full.
        """
        check_digest(sha256)
        if not 0 < size <= self._max_artifact_bytes:
            raise BadRequest(
                f"artefact {sha256[:12]} has {size} bytes; "
                f"this agent takes 1 to {self._max_artifact_bytes}"
            )
        with _disk_errors():
            self._set_aside(size)
            incoming: Optional[Incoming] = None
            try:
                incoming = Incoming(self._folder, sha256, size, durable=not self._temporary)
                yield incoming
            finally:
                if incoming is not None:
                    incoming.close()
                with self._mutex:
                    self._set_aside_bytes -= size
                    self._most_bytes_held += size  # also if it did not arrive

    def open(self, sha256: str) -> int:
        """A descriptor to read an artefact with; the caller closes it.

        Raises:
            BadRequest: it is not held.
        """
        check_digest(sha256)
        try:
            return os.open(self._folder / sha256, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise BadRequest(f"artefact {sha256[:12]} cannot be read: {error.strerror}") from error

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
                for digest in digests:
                    if self._pinned[digest] <= 0:
                        del self._pinned[digest]

    def close(self) -> None:
        """Removes a temporary folder."""
        if self._temporary:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock_file.close()

    def _set_aside(self, size: int) -> None:
        """Makes room for an artefact, by dropping those used least recently."""
        with self._mutex:
            self._most_held += 1
            if self._most_held <= _MAX_ARTIFACTS and (
                self._most_bytes_held + self._set_aside_bytes + size <= self._max_bytes
            ):
                self._set_aside_bytes += size
                return
            files = [path for path in self._folder.iterdir() if _DIGEST.fullmatch(path.name)]
            facts = sorted(
                (status.st_mtime_ns, status.st_size, path)
                for path, status in ((path, path.stat()) for path in files)
            )
            held = sum(bytes_ for _, bytes_, _ in facts)
            excess = held + self._set_aside_bytes + size - self._max_bytes
            many = len(facts) + 1 - _MAX_ARTIFACTS
            for _, bytes_, path in facts:
                if excess <= 0 and many <= 0:
                    break
                if self._pinned[path.name] <= 0:
                    path.unlink(missing_ok=True)
                    excess -= bytes_
                    many -= 1
            self._most_bytes_held = excess + self._max_bytes - self._set_aside_bytes - size
            self._most_held = many + _MAX_ARTIFACTS
            if excess > 0 or many > 0:
                raise Busy(
                    f"the agent's store is full ({self._max_bytes} bytes, all in use); try later"
                )
            self._set_aside_bytes += size


class Incoming:
    """An artefact on its way into a store: `write` its content, then `finish`."""

    def __init__(self, folder: Path, sha256: str, size: int, durable: bool) -> None:
        self._folder, self._sha256, self._size, self._durable = folder, sha256, size, durable
        self._digest, self._written = hashlib.sha256(), 0
        descriptor, self._partial = tempfile.mkstemp(prefix=_PARTIAL, dir=folder)
        self._file = os.fdopen(descriptor, "wb")

    @property
    def _name(self) -> str:
        return f"artefact {self._sha256[:12]}"

    def write(self, chunk: bytes) -> None:
        """Takes the next part of the content.

        Raises:
            BadRequest: it is longer than announced.
        """
        self._written += len(chunk)
        if self._written > self._size:
            raise BadRequest(f"{self._name} is longer than the {self._size} bytes announced")
        self._digest.update(chunk)
        self._file.write(chunk)

    def finish(self) -> None:
        """Puts the artefact into the store.

        Raises:
            BadRequest: the content has another size or digest than announced.
        """
        if self._written != self._size:
            raise BadRequest(f"{self._name} ended after {self._written} of {self._size} bytes")
        if self._digest.hexdigest() != self._sha256:
            raise BadRequest(
                f"{self._name} arrived with digest {self._digest.hexdigest()[:12]}; send it again"
            )
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())
        os.replace(self._partial, self._folder / self._sha256)

    def close(self) -> None:
        """Removes what did not become an artefact."""
        with contextlib.suppress(OSError):  # a full disk, once more
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._partial)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Busy(f"the agent cannot write to its store: {error.strerror}") from error


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


def _temporary_folder() -> tuple[Path, IO[str]]:
    """A new temporary folder, marked as in use.

    It gets its name once it is marked: under that name another agent that starts may remove it.
    """
    unmarked = Path(tempfile.mkdtemp(prefix=_UNMARKED_PREFIX))
    file = _lock(unmarked)
    folder = unmarked.with_name(_TEMPORARY_PREFIX + unmarked.name[len(_UNMARKED_PREFIX) :])
    try:
        unmarked.rename(folder)
    except OSError as error:
        file.close()
        raise BadRequest(f"the store {folder} cannot be used: {error.strerror}") from error
    return folder, file


def _remove_stale() -> None:
    """Removes what agents that were killed left in the temporary folder; others' is passed over."""
    there = Path(tempfile.gettempdir())
    for folder in there.glob(f"{_TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_own_folder(folder):
                with open(folder / _LOCK) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
    for folder in there.glob(f"{WORKER_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            agent = int(folder.name[len(WORKER_PREFIX) :].partition("-")[0])
            if _is_own_folder(folder) and not Path(f"/proc/{agent}").exists():
                folder.chmod(0o700)
                shutil.rmtree(folder)


def _is_own_folder(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
