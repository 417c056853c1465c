"""Calls of the Linux kernel that Python has no function for."""

from __future__ import annotations

import ctypes
import os
from typing import Union

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38


def prctl(option: int, value: int) -> None:
    """Sets something about this process.

    Raises:
        OSError: the kernel refuses.
    """
    words = (ctypes.c_ulong(word) for word in (value, 0, 0, 0))
    _checked(ctypes.CDLL(None, use_errno=True).prctl(ctypes.c_int(option), *words))


def syscall(number: int, *arguments: Union[int, bytes, None]) -> int:
    """What a call returns; bytes are handed over by their address, None as 0.

    Raises:
        OSError: it failed.
    """
    words = [a if isinstance(a, bytes) else ctypes.c_long(a or 0) for a in arguments]
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    return _checked(call(ctypes.c_long(number), *words))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
