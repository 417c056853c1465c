"""Text that comes from somebody else, made safe to print and to store."""

from __future__ import annotations

import re

# What a terminal takes for a command, whole: CSI … final byte; OSC, DCS, SOS, PM and APC up to
# their end; and the short ones. The eight-bit introducers (C1) stand beside ESC and a letter.
_ESCAPES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)?"
    "|\x1b[ -/]*[0-~]?"
)
_CUT = "…"
# Text is looked at so far, in multiples of what is kept of it: it may be of any size.
_LOOKED_AT = 8


def printable(text: str, limit: int) -> str:
    """One line of text that moves no cursor, hides nothing and has an end.

    Escape sequences of terminals are taken out whole; so are control characters (C0, C1, DEL),
    marks that turn the direction of writing, characters of no width and lone surrogates. White
    space of any kind and length becomes one space, none is left at the ends.

    Args:
        text: from an agent, a worker, a runtime, a file.
        limit: characters kept, at least 1; the last is ``…`` where more were there.

    Returns:
        Text for which `str.isprintable` holds; it may be empty.
    """
    most = _LOOKED_AT * limit
    whole = len(text) <= most
    words = _ESCAPES.sub("", text[:most]).split()
    shown = " ".join(filter(None, ("".join(filter(str.isprintable, word)) for word in words)))
    if whole and len(shown) <= limit:
        return shown
    return shown[: limit - 1].rstrip() + _CUT
