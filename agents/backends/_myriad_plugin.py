"""OpenVINO's MYRIAD plugin, with or without a stick.

It needs of its machine libusb, which its wheel lacks, and a lock.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
from contextlib import suppress

from ..errors import BadRequest
from ._openvino_legacy import Engine, open_engine, reason_of

DEVICE = "MYRIAD"
LOCK = "/tmp/mvnc.mutex"
"""File by which all processes with a plugin take turns: its place is fixed in the plugin, and the
process ends where it cannot be opened."""

_REMEDY = "see docs/ncs2.md"
_GET_LIBUSB = "run: pip install libusb-package"
_NOT_TAKEN = re.compile(r'Failed to compile layer "(.*?)".*unsupported layer type "(.*?)"')
_NO_DEVICE_DISCOVERY = 2  # LIBUSB_OPTION_NO_DEVICE_DISCOVERY


def make_lock() -> None:
    """Makes the lock where it is not there; to be called before a sandbox is closed.

    Whoever makes it, all users take turns by it.
    """
    with suppress(OSError):
        lock = os.open(LOCK, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            os.fchmod(lock, 0o666)  # the umask is not asked
        finally:
            os.close(lock)


def lock_problem() -> str:
    """Why the plugin could not take its lock; empty: it can."""
    if os.access(LOCK, os.R_OK):
        return ""
    return (
        f"{LOCK}, by which processes with the MYRIAD plugin take turns, is another user's and "
        "cannot be opened; remove it, or run the agent as that user"
    )


def layer_not_taken(text: str) -> str:
    """That the plugin does not take a layer, where its message says so; else empty."""
    found = _NOT_TAKEN.search(text)
    return f"MYRIAD does not take {found[2]} '{found[1]}'" if found else ""


def load_libusb() -> ctypes.CDLL:
    """Makes libusb available to plugins that are loaded later.

    It comes with the package ``libusb-package``, or is the system's.

    Raises:
        OSError: it cannot be had; the text says what to do.
    """
    with suppress(ImportError, OSError):
        package = importlib.import_module("libusb_package")
        return ctypes.CDLL(str(package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
    with suppress(OSError):
        return ctypes.CDLL("libusb-1.0.so.0", mode=ctypes.RTLD_GLOBAL)
    raise OSError(f"libusb is not there, which OpenVINO's MYRIAD plugin needs; {_GET_LIBUSB}")


def hide_devices(libusb: ctypes.CDLL) -> None:
    """Makes libusb find no device, without a look at the machine: it opens no socket then.

    Raises:
        OSError: this libusb cannot.
    """
    if libusb.libusb_set_option(None, ctypes.c_int(_NO_DEVICE_DISCOVERY)):
        raise OSError(
            "libusb is too old for MYRIAD's compiler; run: pip install 'libusb-package>=1.0.30'"
        )


def open_plugin() -> Engine:
    """OpenVINO's core, once its MYRIAD plugin has loaded.

    Raises:
        BadRequest: there is no plugin, or it does not load.
    """
    try:
        engine = open_engine()
        engine.plugin(DEVICE)
    except Exception as error:  # a broken installation may raise anything
        if "is not registered" in str(error):
            reason = f"OpenVINO as it is installed here has no MYRIAD plugin; {_REMEDY}"
        elif "libusb" in str(error):
            reason = f"the MYRIAD plugin needs libusb, which is not there; {_GET_LIBUSB}"
        else:
            reason = f"the MYRIAD plugin does not load: {reason_of(error)}"
        raise BadRequest(reason) from error
    return engine
