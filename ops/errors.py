"""The exceptions of the host side; the console turns them into words and an exit status."""

from __future__ import annotations


class HurricaneError(Exception):
    """Something failed. The message says what, where and what to do, in one or two lines."""

    exit_status = 1


class BadRequest(HurricaneError):
    """The request itself is wrong or cannot be met (unknown name, impossible budget)."""

    exit_status = 2
