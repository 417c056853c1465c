"""Checks artefacts of the format ``snpe``: a DLC, and how its inputs and outputs are encoded.

A ZIP archive of two stored members, ``model.dlc`` and ``edges.json``. The DLC, which is Qualcomm's
own, is a ZIP archive itself; of that only the frame is looked at: its reader is Qualcomm's, and
runs on the board in the tools' own process.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from typing import Any

from ..errors import BadRequest
from . import Content

NAMES = ("snpe",)
MODEL, EDGES = "model.dlc", "edges.json"
TYPES = ("float32", "uint8")

_MOST_MEMBERS = 64
_MOST_EDGES = 16
_MOST_JSON_BYTES = 64 * 1024
_MOST_VALUES = 2**28
_MODEL_MEMBER = "model"
_KEYS = {"name", "dtype", "shape", "scale", "zero_point"}  # the last two are the host's


@dataclass(frozen=True)
class SnpeEdge:
    """An input or output: its name, numpy's name of its type, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SnpeArtifact:
    """What an artefact holds."""

    dlc: bytes
    inputs: tuple[SnpeEdge, ...]
    outputs: tuple[SnpeEdge, ...]


def check(content: Content) -> None:
    """Checks a file.

    Raises:
        BadRequest: it is damaged, or holds anything else than it may.
    """
    read(content)


def read(content: Content) -> SnpeArtifact:
    """Reads a file, as `check` does."""
    if not len(content):
        raise BadRequest("the artefact is empty")
    members = _members(bytes(content), "the artefact", (MODEL, EDGES))
    if _MODEL_MEMBER not in _members(members[MODEL], "the DLC"):
        raise BadRequest("the DLC holds no model")
    inputs, outputs = _edges(members[EDGES])
    return SnpeArtifact(members[MODEL], inputs, outputs)


def _members(content: bytes, what: str, wanted: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Members of an archive, by name.

    Args:
        content: of the archive.
        what: it is, for errors.
        wanted: names of the members that there must be, stored, and no others; none: any names,
            and only the frame is looked at.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if len(infos) > _MOST_MEMBERS or len(set(names)) != len(names):
                raise BadRequest(f"{what} has too many members, or two of one name")
            if not wanted:
                return dict.fromkeys(names, b"")
            if set(names) != set(wanted):
                raise BadRequest(f"{what} holds other files than {' and '.join(wanted)}")
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise BadRequest(f"{what} has compressed members")
            if sum(info.file_size for info in infos) > len(content):
                raise BadRequest(f"{what} has members that overlap")
            return {name: archive.read(name) for name in names}
    except BadRequest:
        raise
    except Exception as error:  # zipfile raises of many kinds
        raise BadRequest(f"{what} is no ZIP archive, or a damaged one") from error


def _edges(content: bytes) -> tuple[tuple[SnpeEdge, ...], tuple[SnpeEdge, ...]]:
    problem = BadRequest(f"{EDGES} of the artefact is not what it should be")
    if len(content) > _MOST_JSON_BYTES:
        raise problem
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise problem from None
    if not isinstance(found, dict) or set(found) != {"inputs", "outputs"}:
        raise problem
    edges = []
    for kind in ("inputs", "outputs"):
        entries = found[kind]
        if not isinstance(entries, list) or not 1 <= len(entries) <= _MOST_EDGES:
            raise problem
        edges.append(tuple(_edge(entry, problem) for entry in entries))
    names = [edge.name for part in edges for edge in part]
    if len(set(names)) != len(names):
        raise problem
    return edges[0], edges[1]


def _edge(entry: Any, problem: BadRequest) -> SnpeEdge:
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        raise problem
    name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
    if any(type(entry[key]) not in (int, float) for key in ("scale", "zero_point")):
        raise problem
    # Names become those of files on the board, and words of a list.
    if not isinstance(name, str) or not 0 < len(name) <= 100 or not _is_plain(name):
        raise problem
    if dtype not in TYPES or not isinstance(shape, list) or not 1 <= len(shape) <= 5:
        raise problem
    values = 1
    for size in shape:
        if type(size) is not int or not 0 < size <= _MOST_VALUES:
            raise problem
        values *= size
    if values > _MOST_VALUES:
        raise problem
    return SnpeEdge(name, dtype, tuple(shape))


def _is_plain(name: str) -> bool:
    return name[0] not in ".-" and all(c.isascii() and (c.isalnum() or c in "_.-") for c in name)
