"""A seccomp filter: system calls that no runtime needs to compute a graph fail with EPERM.

Denied is what reaches other processes, the network, the kernel's settings or a file's owner and
mode; everything else stays, for runtimes use what they like. Files are Landlock's business.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

from .kernel import PR_SET_NO_NEW_PRIVS, prctl, syscall
from .needs import Needs

# Numbers on x86-64 and on 64-bit Arm; None: there is no such call.
_NETWORK: dict[str, tuple[int, int]] = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
}  # fmt: skip
_FORKS: dict[str, tuple[int | None, int | None]] = {"fork": (57, None), "vfork": (58, None)}
_PROGRAMS: dict[str, tuple[int | None, int | None]] = {"execve": (59, 221), "execveat": (322, 281)}
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # Other processes.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "get_robust_list": (274, 100),
    # What outlives this process.
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Owner, mode and attributes of files, which Landlock does not look at.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "utime": (132, None), "utimes": (235, None),
    "utimensat": (280, 88), "futimesat": (261, None),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    # The kernel's settings, and its parts with the longest record of holes.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "mount_setattr": (442, 442),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "personality": (135, 92), "syslog": (103, 116),
    "vhangup": (153, 58), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip
_OWN_PROCESS: dict[str, tuple[int | None, int | None]] = {"kill": (62, 129), "tgkill": (234, 131)}
# With 0, or its own id, the process means itself. (Cores are not here: runtimes pin threads by
# their ids, which the filter cannot know.)
_ABOUT_A_PROCESS: dict[str, tuple[int, int]] = {
    "prlimit64": (302, 261), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "setpgid": (109, 154),
}  # fmt: skip
_LOCK = (73, 32)  # flock
_NETLINK, _DEVICE_EVENTS = 16, 15  # AF_NETLINK, NETLINK_KOBJECT_UEVENT
# Signals by way of a file: F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP.
_COMMANDS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "fcntl": (72, 25, (8, 10, 15)), "ioctl": (16, 29, (0x8901, 0x8902)),
}  # fmt: skip
_CLONE, _CLONE3 = (56, 220), (435, 435)
_CLONE_THREAD = 0x00010000
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # a second set of call numbers on x86-64

# Of the data that a filter reads.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 24, 32
_LOAD, _RETURN = 0x20, 0x06
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_KILL, _ALLOW, _ERROR = 0x80000000, 0x7FFF0000, 0x00050000

_SYSCALL = (317, 277)
_SET_MODE_FILTER = 1
_ALL_THREADS = 1 << 0
# Else older kernels turn speculative loads off for a process with a filter, which makes it slower
# than the same graph is in anybody's application.
_LEAVE_SPECULATION = 1 << 2


def restrict(needs: Needs) -> None:
    """Sets the filter for all threads of this process.

    Args:
        needs: of the backend: `processes`, `forks`, `network`, `netlink` and `no_locks` count.

    Raises:
        OSError: the kernel refuses, or this is no 64-bit Linux on x86 or Arm.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"not on {sys.platform}, {platform.machine()}")
    code = _program(platform.machine(), os.getpid(), needs)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    index, _ = _ARCHITECTURES[platform.machine()]
    set_filter = (_SYSCALL[index], _SET_MODE_FILTER)
    try:
        syscall(*set_filter, _ALL_THREADS | _LEAVE_SPECULATION, program)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 4.17 there is no such flag
            raise
        syscall(*set_filter, _ALL_THREADS, program)


def _program(machine: str, process: int, needs: Needs) -> bytes:
    """The filter's instructions, 8 bytes each.

    Args:
        process: own id, the only one that may be sent signals, unless there are others.
    """
    index, architecture = _ARCHITECTURES[machine]
    refuse = _ERROR | errno.EPERM
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    alone = not (needs.processes or needs.forks)
    denied = dict(_DENIED)
    denied.update({} if needs.processes else _PROGRAMS)
    denied.update(_FORKS if alone else {})
    denied.update({} if needs.network else _NETWORK)
    if needs.netlink and not needs.network:
        code += _only_device_events(_NETWORK["socket"][index], refuse)
        del denied["socket"], denied["bind"]
    for numbers in denied.values():
        number = numbers[index]
        if number is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    if needs.no_locks:
        code += [(_EQUAL, 0, 1, _LOCK[index]), (_RETURN, 0, 0, _ERROR)]  # with error 0: it is done
    if alone:
        # A process that is no thread. Of the newer call the filter cannot read the flags; the C
        # library takes the older one where it is told that there is no newer one.
        code += [
            (_EQUAL, 0, 1, _CLONE3[index]),
            (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
            (_EQUAL, 0, 4, _CLONE[index]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_ANY_BIT, 1, 0, _CLONE_THREAD),
            (_RETURN, 0, 0, refuse),
            (_RETURN, 0, 0, _ALLOW),
        ]
        for numbers in _OWN_PROCESS.values():
            number = numbers[index]
            assert number is not None
            code += _only_own(number, [process], refuse)
        for *numbers, values in _COMMANDS.values():
            code += _never(numbers[index], values, refuse)
    for numbers in _ABOUT_A_PROCESS.values():
        code += _only_own(numbers[index], [0, process], refuse)
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _only_device_events(number: int, refuse: int) -> list[tuple[int, int, int, int]]:
    """Of calls that open a socket, allows those that listen to the kernel's news of devices."""
    return [
        (_EQUAL, 0, 6, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 3, _NETLINK),
        (_LOAD, 0, 0, _THIRD_ARGUMENT),
        (_EQUAL, 0, 1, _DEVICE_EVENTS),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, refuse),
    ]


def _never(number: int, refused: tuple[int, ...], refuse: int) -> list[tuple[int, int, int, int]]:
    """Refuses a call with one of these second arguments."""
    count = len(refused)
    tests = [(_EQUAL, count - i, 0, value) for i, value in enumerate(refused)]
    return [
        (_EQUAL, 0, count + 3, number),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        *tests,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, refuse),
    ]


def _only_own(number: int, allowed: list[int], refuse: int) -> list[tuple[int, int, int, int]]:
    """Allows a call with these first arguments only."""
    count = len(allowed)
    tests = [(_EQUAL, count - i, 0, value) for i, value in enumerate(allowed)]
    return [
        (_EQUAL, 0, count + 3, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *tests,
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, _ALLOW),
    ]
