"""The exceptions of the agent and its client; each has the kind that goes over the wire."""

from __future__ import annotations

import enum

from ..ops import errors


class ErrorKind(enum.IntEnum):
    """Who is at fault; names and numbers are those of ``ErrorKind`` in agent.proto."""

    BAD_REQUEST = 1
    UNSUPPORTED_OPERATOR = 2
    RUNTIME_CRASHED = 3
    TIMED_OUT = 4
    OUT_OF_MEMORY = 5
    DEVICE_LOST = 6
    BUSY = 7
    UNAUTHORISED = 8
    INTERNAL = 9
    BOARD_NOT_READY = 10

    @property
    def is_of_board(self) -> bool:
        """Whether it says nothing of the graph in work: nothing of it is recorded."""
        return self in _OF_BOARD

    @property
    def lasts(self) -> bool:
        """Whether waiting does not help: somebody has to do something first."""
        return self in _LASTING


_LASTING = frozenset((ErrorKind.UNAUTHORISED, ErrorKind.BOARD_NOT_READY))
_OF_BOARD = _LASTING | {ErrorKind.DEVICE_LOST, ErrorKind.BUSY}


class AgentError(errors.HurricaneError):
    """Something failed on a board, or on the way to it."""

    kind = ErrorKind.INTERNAL


class BadRequest(AgentError, errors.BadRequest):
    """The request itself is wrong: unknown target, unknown option, impossible protocol."""

    kind = ErrorKind.BAD_REQUEST


class UnsupportedOperator(AgentError):
    """The runtime cannot read or run this graph."""

    kind = ErrorKind.UNSUPPORTED_OPERATOR


class RuntimeCrashed(AgentError):
    """The child process died while it worked on an artefact."""

    kind = ErrorKind.RUNTIME_CRASHED


class TimedOut(AgentError):
    """Loading or one visit took longer than the protocol allows."""

    kind = ErrorKind.TIMED_OUT


class OutOfMemory(AgentError):
    """The device or the child process ran out of memory."""

    kind = ErrorKind.OUT_OF_MEMORY


class DeviceLost(AgentError):
    """The device (a stick, a DSP, a board) no longer answers."""

    kind = ErrorKind.DEVICE_LOST


class Unreachable(DeviceLost):
    """No agent answers at an address."""


class BoardNotReady(AgentError):
    """The board lacks what any graph needs: a program, a library, the runtime, the right chip."""

    kind = ErrorKind.BOARD_NOT_READY


class Busy(AgentError):
    """The agent takes no more work now."""

    kind = ErrorKind.BUSY


class Unauthorised(AgentError):
    """The token is missing or wrong."""

    kind = ErrorKind.UNAUTHORISED


class Internal(AgentError):
    """The agent is at fault."""


class BadAnswer(AgentError):
    """What an agent sent cannot be right: it is broken, or lies. Nothing of it is used.

    Raised by the host only; over the wire there is no such kind.
    """


_BY_KIND = {
    cls.kind: cls
    for cls in (
        BadRequest,
        UnsupportedOperator,
        RuntimeCrashed,
        TimedOut,
        OutOfMemory,
        DeviceLost,
        Busy,
        Unauthorised,
        Internal,
        BoardNotReady,
    )
}


def error_of(kind: int, message: str) -> AgentError:
    """The exception for a kind from the wire; a kind this version does not know is `Internal`."""
    try:
        return _BY_KIND[ErrorKind(kind)](message)
    except ValueError:
        return Internal(message)
