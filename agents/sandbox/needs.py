"""What a backend asks of the sandbox."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What a backend's runtime needs beside its libraries and facts about the machine.

    Args:
        read: paths that may be read, with all below them.
        write: paths that may be read and written, with all below them (a device, a folder).
        file_bytes: size that a file may be written to; 0: none may be written at all.
        scratch_bytes: size that a file in the process's own working directory may be written to;
            0: nothing may be made there.
        processes: other programs may be started; they are in the same sandbox.
        forks: copies of the process may be made, which start no other program.
        network: sockets may be opened.
        netlink: sockets may be opened on which the kernel tells of devices that come and go
            (``NETLINK_KOBJECT_UEVENT``), and no others.
        no_locks: taking a lock on a whole file does nothing, as far as the system has a filter for
            calls: for a runtime that locks a device of this machine which it is not to use.
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    file_bytes: int = 0
    scratch_bytes: int = 0
    processes: bool = False
    forks: bool = False
    network: bool = False
    netlink: bool = False
    no_locks: bool = False
