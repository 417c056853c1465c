"""How commands show how far they are: bars on a terminal, a line now and then without one."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import click

from ..agents.console import Progress, progress_bar
from .rundir import leads

LINE_EVERY_S = 30.0
"""Between two lines, where there is no terminal."""

BAR_COLUMNS = 62
"""What a bar takes beside its label: itself, the share, the time left."""


class Watch(Protocol):
    """Told what is being done, steps done, steps in all, and perhaps how it goes."""

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None: ...


@contextmanager
def progress_bars() -> Iterator[Watch]:
    """Progress bars one after the other, a new label ending the bar before; or lines."""
    if not sys.stderr.isatty():
        yield log_lines() if leads() else _silent
        return
    with ExitStack() as stack:
        label = ""
        bar = Progress()

        def watch(what: str, done: int, total: int, detail: str = "") -> None:
            nonlocal label, bar
            if what != label:
                stack.close()
                label, bar = what, stack.enter_context(progress_bar(total, what))
            room = shutil.get_terminal_size().columns - BAR_COLUMNS
            bar.update(done, labelled(what, detail, room))

        yield watch


def log_lines(
    say: Callable[[str], None] = lambda line: click.echo(line, err=True),
    now: Callable[[], float] = time.monotonic,
) -> Watch:
    """Says how far things are, at most one line every `LINE_EVERY_S` seconds."""
    last = now()

    def watch(what: str, done: int, total: int, detail: str = "") -> None:
        nonlocal last
        if now() - last < LINE_EVERY_S:
            return
        last = now()
        say(f"{what}: {done:,} of {total:,}" + (f", {detail}" if detail else ""))

    return watch


def labelled(what: str, detail: str, room: int) -> str:
    """A bar's label with as many of a detail's parts (at ", ") as there is room for."""
    label = what
    for part in detail.split(", ") if detail else ():
        longer = f"{label}, {part}"
        if len(longer) > room:
            break
        label = longer
    return label


def _silent(what: str, done: int, total: int, detail: str = "") -> None:
    """For processes that do not speak."""
