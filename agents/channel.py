"""Between the agent and its worker: messages with arrays and open files over a socket pair.

A message is a header (JSON) with its arrays behind it, raw; it may carry one open file. Sizes
come first and are bounded, so that neither side takes more memory than it agreed to: the worker
may be in the hands of whoever wrote the graph that it loaded.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

MAX_HEADER_BYTES = 4 * 1024 * 1024  # a batch names up to 10,000 digests
MAX_PAYLOAD_BYTES = 72 * 1024 * 1024  # the tensors of the largest message to a caller, and more
# Neither side may leave the other in the middle of a message for longer.
STALL_S = 30.0
_SIZES = struct.Struct("=QQ")
_KINDS = frozenset("biuf")  # of arrays: numbers and truth values
_MAX_RANK = 64


class ChannelClosed(Exception):
    """The other side is gone."""


class BadMessage(Exception):
    """The other side sent what is no message."""


@dataclass
class Message:
    """One message.

    Args:
        header: what JSON can hold.
        arrays: by name.
        descriptor: of an open file, which the receiver has to close; None: there is none.
    """

    header: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    descriptor: Optional[int] = None


class Channel:
    """One end of a socket pair. One thread at a time may use it.

    Args:
        socket_: the end.
        stall_s: how long a message may take once it has begun; None: any time.
    """

    def __init__(self, socket_: socket.socket, stall_s: Optional[float] = None) -> None:
        self._socket = socket_
        self._stall_s = stall_s
        self._socket.settimeout(stall_s)
        self._poll = select.poll()
        self._poll.register(socket_, select.POLLIN)

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Our end, and the other as the socket that a child process inherits."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(ours, STALL_S), theirs

    def send(
        self,
        header: Mapping[str, Any],
        arrays: Optional[Mapping[str, np.ndarray]] = None,
        descriptor: Optional[int] = None,
    ) -> None:
        """Sends a message.

        Raises:
            ChannelClosed: nobody reads it.
            ValueError: it is too large.
        """
        parts = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
        layout = [[name, a.dtype.str, list(np.shape(arrays[name]))] for name, a in parts.items()]  # type: ignore[index]
        head = json.dumps({"header": header, "arrays": layout}).encode()
        size = sum(array.nbytes for array in parts.values())
        if len(head) > MAX_HEADER_BYTES or size > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a message of {len(head)} + {size} bytes")
        first = _SIZES.pack(len(head), size) + head
        try:
            if descriptor is None:
                self._socket.sendall(first)
            else:
                sent = socket.send_fds(self._socket, [first], [descriptor])
                self._socket.sendall(first[sent:])
            for array in parts.values():
                if array.nbytes:
                    self._socket.sendall(array.data.cast("B"))
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self, timeout_s: Optional[float] = None) -> Optional[Message]:
        """The next message, or None where none begins within the time (None: waits for ever).

        Raises:
            ChannelClosed: there is none to come.
            BadMessage: what came is none.
        """
        wait_ms = None if timeout_s is None else math.ceil(timeout_s * 1e3)
        if not self._poll.poll(wait_ms):
            return None
        descriptors: list[int] = []
        self._until_s = time.monotonic() + (self._stall_s or math.inf)
        try:
            sizes, descriptors = self._first_bytes()
            head_bytes, size = _SIZES.unpack(sizes)
            if head_bytes > MAX_HEADER_BYTES or size > MAX_PAYLOAD_BYTES or len(descriptors) > 1:
                raise BadMessage(f"a message of {head_bytes} + {size} bytes")
            head = self._exactly(head_bytes)
            payload = self._exactly(size)
            header, arrays = _parse(head, payload)
            return Message(header, arrays, descriptors.pop() if descriptors else None)
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        finally:
            self._socket.settimeout(self._stall_s)
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        """Tells the other side that nothing more comes."""
        self._socket.close()

    def _first_bytes(self) -> tuple[bytes, list[int]]:
        # An open file comes with the first byte that was sent with it.
        data, descriptors, _, _ = socket.recv_fds(self._socket, _SIZES.size, 1)
        if not data:
            raise ChannelClosed("the other side is gone")
        try:
            return data + bytes(self._exactly(_SIZES.size - len(data))), list(descriptors)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            if self._stall_s is not None:
                # Of the message, not of each of its bytes.
                self._socket.settimeout(max(1e-3, self._until_s - time.monotonic()))
            count = self._socket.recv_into(view[filled:])
            if not count:
                raise ChannelClosed("the other side is gone")
            filled += count
        return data


def _parse(head: bytearray, payload: bytearray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        message = json.loads(bytes(head))
        header = message["header"]
        if not isinstance(header, dict):
            raise BadMessage("a header that is no object")
        arrays: dict[str, np.ndarray] = {}
        start = 0
        for name, kind, shape in message["arrays"]:
            dtype = np.dtype(kind)
            if dtype.kind not in _KINDS or len(shape) > _MAX_RANK or str(name) in arrays:
                raise BadMessage("an array that cannot be")
            count = math.prod(_length(length) for length in shape)
            end = start + count * dtype.itemsize
            if end > len(payload):
                raise BadMessage("an array longer than its message")
            arrays[str(name)] = np.frombuffer(payload, dtype, count, start).reshape(shape)
            start = end
        if start != len(payload):
            raise BadMessage("a message longer than its arrays")
    except BadMessage:
        raise
    except Exception as error:  # whatever JSON and numpy raise for nonsense
        raise BadMessage(f"{type(error).__name__}") from error
    return header, arrays


def _length(length: Any) -> int:
    if not isinstance(length, int) or isinstance(length, bool) or length < 0:
        raise BadMessage("a shape that cannot be")
    return length
