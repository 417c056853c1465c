"""Strict reading of protobuf's wire format by a table of messages, without protobuf.

Parsers of other people read the same bytes later, and what they accept differs: this one refuses
all that two of them could read in two ways, and all that its table does not name. Time and memory
grow with the number of fields and not with the numbers that stand in them.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from ..errors import BadRequest

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_GROUPS = (3, 4)
_WIRE_TYPES = {
    "int32": VARINT,
    "int64": VARINT,
    "uint64": VARINT,
    "float": FIXED32,
    "double": FIXED64,
    "bytes": BYTES,
    "text": BYTES,
    "name": BYTES,
}
"""Kinds of fields. Both `text` and `name` are strings: a `name` is short and printable, a `text` is
checked and not kept."""

_MOST_VARINT_BYTES = 10  # what 64 bits take, 7 in a byte
_MOST_NAME_BYTES = 1024
_KEPT_NUMBERS = 32  # of a repeated scalar: enough for dimensions, the rest is counted only
_NUMPY_BYTES = 256  # shorter lists of varints are read faster one by one
_BLOCK_BYTES = 1 << 20  # long lists and texts are read in blocks, which take little memory
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Args:
        name: as in the .proto file.
        kind: a key of the table of kinds, or the name of a message.
        repeated: it may occur more than once.
        wire_type: how its values are encoded.
    """

    name: str
    kind: str
    repeated: bool
    wire_type: int


Schema = Mapping[str, Mapping[int, Field]]
Message = dict[str, Any]
"""A message that was read, by field name: an int, a str for a name, a dict for a message, else a
`Span`; a list of them where the field is repeated, or `Numbers` where it is a repeated scalar."""


class Span(NamedTuple):
    """Where bytes lie in the content."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class Numbers:
    """A repeated scalar field: how many there are, their range, and the first of them.

    Attributes:
        count: how many.
        low, high: smallest and largest; 0 where there is none, and of floating-point numbers.
        first: the first ones, 32 at most; floating-point numbers are not kept.
    """

    __slots__ = ("count", "first", "high", "low", "packed")

    def __init__(self) -> None:
        self.count = self.low = self.high = 0
        self.first: list[int] = []
        self.packed = False

    def add(self, count: int, low: int, high: int, first: list[int]) -> None:
        """Counts further ones."""
        self.low = min(self.low, low) if self.count else low
        self.high = max(self.high, high) if self.count else high
        self.count += count
        if len(self.first) < _KEPT_NUMBERS:
            self.first += first[: _KEPT_NUMBERS - len(self.first)]


def schema_of(messages: Mapping[str, Mapping[int, str]]) -> Schema:
    """A schema from its short form.

    Args:
        messages: for each message, its fields by number, as ``"name kind"``, with a star behind the
            kind where the field is repeated.
    """
    return {
        message: {number: _field(text) for number, text in fields.items()}
        for message, fields in messages.items()
    }


def _field(text: str) -> Field:
    name, kind = text.split(" ")
    repeated = kind.endswith("*")
    kind = kind.rstrip("*")
    return Field(name, kind, repeated, _WIRE_TYPES.get(kind, BYTES))


def shown(name: str) -> str:
    """A name as it may stand in a message: printable, quoted, not long."""
    if len(name) > _SHOWN_CHARACTERS:
        name = name[: _SHOWN_CHARACTERS - 1] + "…"
    if not name.isprintable():
        name = "".join(c if c.isprintable() else "?" for c in name)
    return f"'{name}'"


@dataclass(frozen=True)
class Limits:
    """What a file may hold.

    Args:
        fields: of all messages together.
        depth: of messages within messages.
    """

    fields: int
    depth: int


def parse(
    content: Union[bytes, memoryview],
    schema: Schema,
    root: str,
    limits: Limits,
    checks: Optional[Mapping[str, Callable[[Message], None]]] = None,
) -> Message:
    """Reads a file that holds one message.

    Args:
        content: the file.
        schema: all messages that may occur.
        root: name of the file's message.
        limits: what it may hold.
        checks: called with each message of a name, wherever it stands, as soon as it was read.

    Raises:
        BadRequest: it is malformed, ambiguous, or holds something that the schema does not name.
    """
    if isinstance(content, memoryview):
        content = content.cast("B")
    return _Reader(content, schema, limits, checks or {}).message(root, 0, len(content), 1)


class _Reader:
    """Reads one content, front to back; its position is where the next byte is."""

    def __init__(
        self,
        content: Union[bytes, memoryview],
        schema: Schema,
        limits: Limits,
        checks: Mapping[str, Callable[[Message], None]],
    ) -> None:
        self._content = content
        self._schema = schema
        self._limits = limits
        self._checks = checks
        self._position = 0
        self._fields = 0

    def message(self, name: str, start: int, end: int, depth: int) -> Message:
        if depth > self._limits.depth:
            raise _malformed(start, name, f"messages are nested deeper than {self._limits.depth}")
        fields = self._schema[name]
        message: Message = {}
        self._position = start
        while self._position < end:
            at = self._position
            self._fields += 1
            if self._fields > self._limits.fields:
                raise _malformed(at, name, f"there are more than {self._limits.fields} fields")
            tag = self._varint(end, name)
            wire_type = tag & 7
            field = fields.get(tag >> 3)
            if wire_type in _GROUPS:
                raise _malformed(at, name, "groups are not part of the format")
            if field is None:
                raise _malformed(at, name, f"the field number {tag >> 3} is unknown")
            if wire_type == field.wire_type:
                packed = False
            elif wire_type == BYTES and field.repeated:
                packed = True
            else:
                raise _malformed(at, name, f"{field.name} has the wrong wire type {wire_type}")
            if field.name in message and not field.repeated:
                raise _malformed(at, name, f"{field.name} stands there twice")
            if field.wire_type != BYTES and field.repeated:
                self._scalars(message, field, packed, end, name)
                continue
            value = self._value(field, end, name, depth)
            if field.repeated:
                message.setdefault(field.name, []).append(value)
            else:
                message[field.name] = value
        check = self._checks.get(name)
        if check is not None:
            check(message)
        return message

    def _value(self, field: Field, end: int, message: str, depth: int) -> Any:
        if field.wire_type == VARINT:
            return self._integer(field, end, message)
        if field.wire_type != BYTES:
            return self._fixed(field, end, message)
        span = self._span(end, message)
        if field.kind == "bytes":
            value = span
        elif field.kind == "text":
            value = self._text(field, span, message)
        elif field.kind == "name":
            value = self._name(field, span, message)
        else:
            value = self.message(field.kind, span.start, span.end, depth + 1)
        self._position = span.end
        return value

    def _varint(self, end: int, message: str) -> int:
        """The varint here, below 2^64; refused where fewer bytes would say the same."""
        content, start = self._content, self._position
        if start < end and content[start] < 0x80:
            self._position = start + 1
            return content[start]
        value = 0
        for index in range(_MOST_VARINT_BYTES):
            if start + index >= end:
                raise _malformed(start, message, "it ends within a number; is the file complete?")
            byte = content[start + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if byte == 0 or value >> 64:
                    break
                self._position = start + index + 1
                return value
        raise _malformed(start, message, "a number is longer than it may be")

    def _span(self, end: int, message: str) -> Span:
        at = self._position
        size = self._varint(end, message)
        if size > end - self._position:
            raise _malformed(at, message, f"{size} bytes do not fit; is the file complete?")
        return Span(self._position, self._position + size)

    def _integer(self, field: Field, end: int, message: str) -> int:
        at = self._position
        return _signed(field.kind, self._varint(end, message), at, message)

    def _fixed(self, field: Field, end: int, message: str) -> Span:
        size = _size_of(field)
        start = self._position
        if size > end - start:
            raise _malformed(start, message, "it ends within a number; is the file complete?")
        self._position = start + size
        return Span(start, self._position)

    def _text(self, field: Field, span: Span, message: str) -> Span:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for start in range(span.start, span.end, _BLOCK_BYTES):
                decoder.decode(self._content[start : min(start + _BLOCK_BYTES, span.end)])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise _malformed(span.start, message, f"{field.name} is not UTF-8") from None
        return span

    def _name(self, field: Field, span: Span, message: str) -> str:
        if span.size > _MOST_NAME_BYTES:
            raise _malformed(
                span.start, message, f"{field.name} is longer than {_MOST_NAME_BYTES} bytes"
            )
        try:
            name = str(self._content[span.start : span.end], "utf-8")
        except UnicodeDecodeError:
            raise _malformed(span.start, message, f"{field.name} is not UTF-8") from None
        if not name.isprintable():
            raise _malformed(
                span.start, message, f"{field.name} {shown(name)} holds unprintable characters"
            )
        return name

    def _scalars(self, message: Message, field: Field, packed: bool, end: int, name: str) -> None:
        at = self._position
        numbers: Optional[Numbers] = message.get(field.name)
        if numbers is None:
            numbers = message[field.name] = Numbers()
        if numbers.packed or (packed and numbers.count):
            # Some parsers go on with the list, others begin it anew.
            raise _malformed(at, name, f"the list {field.name} stands there twice")
        numbers.packed = packed
        if not packed:
            value = self._value(field, end, name, 0)
            if isinstance(value, int):
                numbers.add(1, value, value, [value])
            else:
                numbers.add(1, 0, 0, [])
            return
        span = self._span(end, name)
        if field.wire_type != VARINT:
            if span.size % _size_of(field):
                raise _malformed(at, name, f"the list {field.name} ends within a number")
            numbers.add(span.size // _size_of(field), 0, 0, [])
        elif span.size > _NUMPY_BYTES:
            self._many_varints(numbers, field, span, name)
        else:
            self._position = span.start
            while self._position < span.end:
                value = self._integer(field, span.end, name)
                numbers.add(1, value, value, [value])
        self._position = span.end

    def _many_varints(self, numbers: Numbers, field: Field, span: Span, message: str) -> None:
        for values in _varints(self._content, span, message):
            if field.kind != "uint64":
                values = values.view(np.int64)
            low, high = int(values.min()), int(values.max())
            for extreme in (low, high):
                _signed(field.kind, extreme % 2**64, span.start, message)
            numbers.add(len(values), low, high, values[:_KEPT_NUMBERS].tolist())


def _varints(
    content: Union[bytes, memoryview], span: Span, message: str
) -> Iterator[np.ndarray[Any, np.dtype[np.uint64]]]:
    """All varints of a span, a block of them at a time; the same are refused as one by one."""
    start = span.start
    while start < span.end:
        block = np.frombuffer(content, np.uint8, min(span.end - start, _BLOCK_BYTES), start)
        lasts = np.flatnonzero(block < 0x80)
        if not len(lasts):
            raise _malformed(start, message, "it ends within a number; is the file complete?")
        firsts = np.concatenate(([0], lasts[:-1] + 1))
        lengths = lasts - firsts + 1
        overlong = (lengths > 1) & (block[lasts] == 0)
        overflown = (lengths == _MOST_VARINT_BYTES) & (block[lasts] > 1)
        if lengths.max() > _MOST_VARINT_BYTES or overlong.any() or overflown.any():
            raise _malformed(start, message, "a number is longer than it may be")
        values = np.zeros(len(lasts), np.uint64)
        for index in range(int(lengths.max())):
            there = np.flatnonzero(lengths > index)
            bits = (block[firsts[there] + index] & 0x7F).astype(np.uint64)
            values[there] |= bits << np.uint64(7 * index)
        yield values
        start += int(lasts[-1]) + 1


def _signed(kind: str, value: int, at: int, message: str) -> int:
    """The number that 64 bits stand for."""
    if kind == "uint64":
        return value
    value = value - 2**64 if value >> 63 else value
    if kind == "int32" and not -(2**31) <= value < 2**31:
        # Most parsers cut it to 32 bits, so that it becomes another number.
        raise _malformed(at, message, f"{value} does not fit into 32 bits")
    return value


def _size_of(field: Field) -> int:
    return 8 if field.wire_type == FIXED64 else 4


def _malformed(at: int, message: str, what: str) -> BadRequest:
    return BadRequest(f"the artefact cannot be read: {what} (byte {at}, in {message})")
