"""Strict reading of FlatBuffers by a table of tables, without the flatbuffers package.

What FlatBuffers' own verifier refuses is refused, and all that the schema does not name besides:
fields, kinds of unions, values of enumerations. Parts may be shared, as the format allows, but each
use of one counts: time and memory grow with the size of the file and not with what it says.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from ..errors import BadRequest
from ._protobuf import Span, shown

_SCALARS = {
    "bool": ("B", 1),
    "int8": ("b", 1),
    "uint8": ("B", 1),
    "int16": ("h", 2),
    "uint16": ("H", 2),
    "int32": ("i", 4),
    "uint32": ("I", 4),
    "int64": ("q", 8),
    "uint64": ("Q", 8),
    "float32": ("f", 4),
}
_TRUTHS = 2  # values of a bool
_STRINGS = ("name", "text")
"""A `name` is printable and kept, a `text` is checked only."""

_MOST_STRING_BYTES = 1 << 16  # converters join the names of what they fuse
_OFFSET_BYTES = 4
_SHARING = 2  # how many times its size a file may be looked at


@dataclass(frozen=True)
class Field:
    """One field of a table; its place in the table's list of fields is its slot.

    Args:
        name: as in the .fbs file.
        kind: a scalar, ``name``, ``text``, ``bytes``, or an enumeration's, union's or table's name.
        vector: it is a vector of them.
        default: of a scalar that is not stored.
        scalar: how struct writes it, and its bytes; None for what is no number.
        values: how many values an enumeration has, from 0; 0 for any other scalar.
        union: the tables of its kinds, from 1.
    """

    name: str
    kind: str
    vector: bool
    default: int
    scalar: Optional[tuple[str, int]]
    values: int
    union: tuple[str, ...]

    @property
    def stored_size(self) -> int:
        """Bytes that it takes in its table."""
        return self.scalar[1] if self.scalar and not self.vector else _OFFSET_BYTES

    @property
    def absent(self) -> Optional[int]:
        """Its value where it is not stored."""
        return self.default if self.scalar and not self.vector else None


@dataclass(frozen=True)
class Schema:
    """All that a file may hold.

    Args:
        tables: by name, the fields in the order of their slots. A union has two: its kind, which is
            named ``…_type``, and itself.
        enumerations: by name, the scalar that it is stored as, and how many values it has, from 0.
        unions: by name, the tables of its kinds, from 1.
    """

    tables: Mapping[str, tuple[Field, ...]]
    enumerations: Mapping[str, tuple[str, int]]
    unions: Mapping[str, tuple[str, ...]]


Table = dict[str, Any]
"""A table that was read, by field name: a number, a str for a name, a `Span` for text and bytes, a
dict for a table, a `Chosen` for a union; arrays of numbers, or lists, for vectors. What is not
there is None, and a scalar its default."""


class Chosen(NamedTuple):
    """The table of a union."""

    kind: str
    table: Table


def schema_of(
    tables: Mapping[str, str],
    enumerations: Mapping[str, tuple[str, int]],
    unions: Mapping[str, tuple[str, ...]],
) -> Schema:
    """A schema from its short form.

    Args:
        tables: for each table, its fields in order, as ``"name kind"`` separated by commas, with a
            star behind the kind of a vector, and ``=1`` where a default is not 0. A union stands
            there once.
        enumerations, unions: as in `Schema`.
    """

    def field(name: str, kind: str) -> Field:
        kind, _, default = kind.partition("=")
        vector, kind = kind.endswith("*"), kind.rstrip("*")
        stored, values = enumerations.get(kind, (kind, _TRUTHS if kind == "bool" else 0))
        scalar = _SCALARS.get(stored)
        return Field(name, kind, vector, int(default or 0), scalar, values, unions.get(kind, ()))

    def fields(text: str) -> tuple[Field, ...]:
        found = []
        for part in filter(None, text.split(", ")):
            name, kind = part.split(" ")
            if kind in unions:
                found.append(field(f"{name}_type", "uint8"))
            found.append(field(name, kind))
        return tuple(found)

    return Schema({name: fields(text) for name, text in tables.items()}, enumerations, unions)


class _Layout(NamedTuple):
    """Where the fields of a table are.

    Attributes:
        size: of the table, in bytes.
        stored: the fields that are there, each with its offset.
        unions: with their offsets, 0 where one is not there.
        absent: the table where nothing is stored.
    """

    size: int
    stored: list[tuple[Field, int]]
    unions: list[tuple[Field, int]]
    absent: Table


@dataclass(frozen=True)
class Limits:
    """What a file may hold.

    Args:
        objects: tables, vectors and strings.
        depth: of tables within tables.
    """

    objects: int
    depth: int


def parse(content: Union[bytes, memoryview], schema: Schema, root: str, limits: Limits) -> Table:
    """Reads a file that holds one table and what belongs to it.

    Args:
        content: the file; it begins with the offset of the root table.
        schema: all that may occur.
        root: name of the root table.
        limits: what it may hold.

    Raises:
        BadRequest: it is malformed, or holds something that the schema does not name.
    """
    if isinstance(content, memoryview):
        content = content.cast("B")
    reader = _Reader(content, schema, limits)
    return reader.table(root, reader.follow(0, root), 1)


class _Reader:
    """Reads one content; counts what it has looked at."""

    def __init__(self, content: Union[bytes, memoryview], schema: Schema, limits: Limits) -> None:
        self._content = content
        self._size = len(content)
        self._schema = schema
        self._limits = limits
        self._objects = 0
        self._bytes_left = _SHARING * self._size
        self._layouts: dict[tuple[str, int], _Layout] = {}

    def follow(self, at: int, table: str) -> int:
        """Where the offset that is stored at a place leads to: always onwards."""
        target = at + self._number("I", 4, at, table)
        if target == at or target % _OFFSET_BYTES:
            raise _malformed(at, table, "an offset leads nowhere")
        if target > self._size - _OFFSET_BYTES:
            raise _malformed(at, table, "an offset leads out of it; is the file complete?")
        return target

    def table(self, name: str, at: int, depth: int) -> Table:
        if depth > self._limits.depth:
            raise _malformed(at, name, f"tables are nested deeper than {self._limits.depth}")
        layout = self._layout(name, at)
        if layout.size > self._size - at:
            raise _malformed(at, name, "it ends within a table; is the file complete?")
        self._count(at, name, layout.size)
        table = dict(layout.absent)
        for field, offset in layout.stored:
            table[field.name] = self._value(field, at + offset, name, depth)
        for field, offset in layout.unions:
            kind = table.pop(f"{field.name}_type")
            table[field.name] = self._union(field, kind, at, offset, name, depth)
        return table

    def _layout(self, name: str, at: int) -> _Layout:
        """The layout of the table at a place; many tables share one."""
        start = at - self._number("i", 4, at, name)
        if start % 2 or not 0 <= start <= self._size - 4:
            raise _malformed(at, name, "its list of fields lies outside")
        if (name, start) in self._layouts:
            return self._layouts[name, start]
        own_size, size = struct.unpack_from("<HH", self._content, start)
        if own_size % 2 or own_size < 4 or own_size > self._size - start:
            raise _malformed(start, name, "its list of fields is cut short")
        if size < _OFFSET_BYTES:
            raise _malformed(start, name, f"a table has {size} bytes")
        self._count(start, name, own_size)
        fields = self._schema.tables[name]
        offsets = struct.unpack_from(f"<{own_size // 2 - 2}H", self._content, start + 4)
        if any(offsets[len(fields) :]):
            slot = next(i for i, o in enumerate(offsets) if o and i >= len(fields))
            raise _malformed(start, name, f"the field number {slot} is unknown")
        for field, offset in zip(fields, offsets):
            if offset and not 4 <= offset <= size - field.stored_size:
                raise _malformed(start, name, f"{field.name} lies outside of its table")
        placed = list(zip(fields, offsets + (0,) * len(fields)))
        layout = _Layout(
            size,
            [(field, offset) for field, offset in placed if offset and not field.union],
            [(field, offset) for field, offset in placed if field.union],
            {field.name: field.absent for field in fields},
        )
        self._layouts[name, start] = layout
        return layout

    def _value(self, field: Field, at: int, table: str, depth: int) -> Any:
        if field.vector:
            return self._vector(field, at, table, depth)
        if field.scalar:
            return self._checked_scalar(field, field.scalar, at, table)
        target = self.follow(at, table)
        if field.kind == "bytes":
            return self._span(target, 1, table, looked_at=False)
        if field.kind in _STRINGS:
            return self._string(field, target, table)
        return self.table(field.kind, target, depth + 1)

    def _vector(self, field: Field, at: int, table: str, depth: int) -> Any:
        start = self.follow(at, table)
        if field.scalar:
            letter, size = field.scalar
            span = self._span(start, size, table)
            if span.start % size:
                raise _malformed(start, table, f"the list {field.name} is not aligned")
            return np.frombuffer(self._content, f"<{letter}", span.size // size, span.start)
        span = self._span(start, _OFFSET_BYTES, table)
        places = range(span.start, span.end, _OFFSET_BYTES)
        return [self.table(field.kind, self.follow(p, table), depth + 1) for p in places]

    def _union(
        self, field: Field, kind: int, at: int, offset: int, table: str, depth: int
    ) -> Optional[Chosen]:
        if kind > len(field.union):
            raise _malformed(at, table, f"{field.name} is of the unknown kind {kind}")
        if bool(kind) != bool(offset):
            raise _malformed(at, table, f"{field.name} has a kind without a value, or the reverse")
        if not kind:
            return None
        name = field.union[kind - 1]
        return Chosen(name, self.table(name, self.follow(at + offset, table), depth + 1))

    def _span(self, start: int, size: int, table: str, looked_at: bool = True) -> Span:
        """Where the elements of the vector at a place lie."""
        count = self._number("I", 4, start, table)
        start += _OFFSET_BYTES
        if count * size > self._size - start:
            raise _malformed(start, table, f"{count} elements do not fit; is the file complete?")
        self._count(start, table, _OFFSET_BYTES + (count * size if looked_at else 0))
        return Span(start, start + count * size)

    def _string(self, field: Field, start: int, table: str) -> Union[str, Span]:
        span = self._span(start, 1, table)
        if span.end >= self._size or self._content[span.end]:
            raise _malformed(start, table, f"{field.name} does not end with a zero")
        if span.size > _MOST_STRING_BYTES:
            raise _malformed(
                start, table, f"{field.name} is longer than {_MOST_STRING_BYTES} bytes"
            )
        try:
            text = str(self._content[span.start : span.end], "utf-8")
        except UnicodeDecodeError:
            raise _malformed(start, table, f"{field.name} is not UTF-8") from None
        if field.kind == "text":
            return span
        if not text.isprintable():
            raise _malformed(
                start, table, f"{field.name} {shown(text)} holds unprintable characters"
            )
        return text

    def _checked_scalar(
        self, field: Field, scalar: tuple[str, int], at: int, table: str
    ) -> Union[int, float]:
        letter, size = scalar
        if at % size:
            raise _malformed(at, table, f"{field.name} is not aligned")
        value = self._number(letter, size, at, table)
        if field.values and not 0 <= value < field.values:
            raise _malformed(at, table, f"{field.name} has the unknown value {value}")
        return value

    def _number(self, letter: str, size: int, at: int, table: str) -> Any:
        if size > self._size - at:
            raise _malformed(at, table, "it ends within a number; is the file complete?")
        return struct.unpack_from("<" + letter, self._content, at)[0]

    def _count(self, at: int, table: str, size: int) -> None:
        self._objects += 1
        if self._objects > self._limits.objects:
            raise _malformed(at, table, f"there are more than {self._limits.objects} objects")
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise _malformed(at, table, "its parts are used too often")


def _malformed(at: int, table: str, what: str) -> BadRequest:
    return BadRequest(f"the artefact cannot be read: {what} (byte {at}, in {table})")
