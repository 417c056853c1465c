"""Options and helpers that the commands which measure share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import progress_bar
from ..ops.errors import BadRequest
from ..ops.pool import PLUGIN_VARIABLE

if TYPE_CHECKING:
    from ..agents.client import TlsFiles

_PROGRESS_STEPS = 1000


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that measures: agents, credentials, runtime options."""
    options = [
        click.option(
            "--agent",
            "agents",
            multiple=True,
            metavar="HOST:PORT",
            help="An agent to measure on [a private one on this machine]; profile-ops shares work "
            "out to several.",
        ),
        click.option(
            "--option",
            "runtime_options",
            multiple=True,
            metavar="KEY=VALUE",
            help="An option of the target's runtime (repeatable).",
        ),
        click.option("--token-file", type=click.Path(dir_okay=False), help="The agents' token."),
        click.option("--tls-ca", type=click.Path(dir_okay=False), help="Turns TLS on."),
        click.option("--tls-cert", type=click.Path(dir_okay=False), help="Your certificate."),
        click.option("--tls-key", type=click.Path(dir_okay=False), help="Its key."),
        click.option(
            "--rounds",
            type=click.IntRange(min=4),
            default=24,
            show_default=True,
            help="Passes over each batch; more of them narrow the intervals.",
        ),
        click.option("--seed", default=0, show_default=True, help="Of orders and draws."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    callback=lambda ctx, param, value: use_plugins(value),
    help="A Python file that registers operators of your own (repeatable).",
)


def use_plugins(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Makes users' operator files known to this process and its children."""
    if paths:
        there = os.environ.get(PLUGIN_VARIABLE, "")
        every = [*filter(None, there.split(os.pathsep)), *(str(Path(p).resolve()) for p in paths)]
        os.environ[PLUGIN_VARIABLE] = os.pathsep.join(dict.fromkeys(every))
    return paths


def credentials(
    token_file: str | None, tls_ca: str | None, tls_cert: str | None, tls_key: str | None
) -> dict[str, Any]:
    """Keyword arguments of `AgentClient` from a command's options."""
    from ..agents.client import TlsFiles

    token = None
    if token_file:
        try:
            lines = Path(token_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"--token-file {token_file} cannot be read: {error}") from error
        if not lines or not lines[0].strip():
            raise BadRequest(f"{token_file} is empty; its first line is the agent's token")
        token = lines[0].strip()
    tls: TlsFiles | None = None
    if tls_ca or tls_cert:
        tls = TlsFiles(*(Path(p) if p else None for p in (tls_ca, tls_cert, tls_key)))
    return {"token": token, "tls": tls}


@contextmanager
def share_bar(label: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar that takes (what is going on, share of the whole)."""
    with progress_bar(_PROGRESS_STEPS, label) as bar:
        yield lambda what, share: bar.update(_PROGRESS_STEPS * share, f"{label}: {what:<8}")
