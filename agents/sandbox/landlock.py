"""Landlock: which files and which TCP ports this process may use (Linux 5.13 and newer).

See Documentation/userspace-api/landlock.rst of the kernel; there is no wrapper in the C library.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
from collections.abc import Iterable

from .kernel import PR_SET_NO_NEW_PRIVS, prctl, syscall

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_QUERY_VERSION = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_FILE_ACCESS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
# Of rights over files, over TCP ports, and of what is kept within the process, by the first ABI
# that knows them; a right that is handled and not granted is denied.
_FILES = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: _IOCTL_DEVICE}
_NETWORK = {4: 0b11}  # bind and connect
_ABSTRACT_SOCKETS, _SIGNALS = {6: 0b01}, {6: 0b10}  # of and to processes outside

# Rules hold for the inodes that they were given for, and those of /proc are made anew when they
# are not in use: their descriptors stay open.
_KEPT: list[int] = []


def abi() -> int:
    """Version of the kernel's Landlock; 0: it has none, or it is off."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return syscall(_CREATE_RULESET, None, 0, _QUERY_VERSION)
    except OSError:
        return 0


def restrict(
    abi: int, read: Iterable[str], write: Iterable[str], execute: bool, network: bool
) -> None:
    """Leaves this thread, and those that it starts from now on, these paths and no others.

    Args:
        abi: what `abi` returned.
        read, write: files and folders, with all below them; those that are not there are skipped.
        execute: programs below `read` may be started.
        network: TCP ports and abstract sockets are left as they are.

    Raises:
        OSError: the kernel refuses.
    """
    files, scopes, ports = _known(_FILES, abi), _known(_SIGNALS, abi), 0
    if not network:
        ports = _known(_NETWORK, abi)
        scopes |= _known(_ABSTRACT_SOCKETS, abi)
    attributes = struct.pack("=QQQ", files, ports, scopes)
    rules = syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        reading = _READ_FILE | _READ_DIR | (_EXECUTE if execute else 0)
        for path in dict.fromkeys(read):
            _allow(rules, path, reading & files)
        for path in dict.fromkeys(write):
            _allow(rules, path, files & ~_EXECUTE)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        syscall(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _known(rights: dict[int, int], abi: int) -> int:
    return sum(bits for first, bits in rights.items() if first <= abi)


def _allow(rules: int, path: str, access: int) -> None:
    with contextlib.suppress(OSError):  # it is not there
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _FILE_ACCESS
        rule = struct.pack("=Qi", access, descriptor)
        try:
            syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, rule, 0)
        finally:
            if path.startswith("/proc/"):
                _KEPT.append(descriptor)
            else:
                os.close(descriptor)
