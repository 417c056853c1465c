"""Runs a command as on a kernel that lacks some system calls: ``old_kernel.py NUMBERS COMMAND…``.

NUMBERS are of this machine's architecture, with commas. It shares no code with what it is for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

LOAD_NUMBER, IS_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2


def main() -> None:
    code = [(LOAD_NUMBER, 0, 0, 0)]
    for number in sys.argv[1].split(","):
        code += [(IS_EQUAL, 0, 1, int(number)), (RETURN, 0, 0, ERROR | errno.ENOSYS)]
    code.append((RETURN, 0, 0, ALLOW))
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HP", len(code), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, MODE_FILTER, program, 0, 0) == 0
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
