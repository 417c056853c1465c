"""Options and helpers that the commands which measure share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import progress_bar
from ..ops.errors import BadRequest
from ..ops.pool import GATES, PLUGIN_VARIABLE

if TYPE_CHECKING:
    from ..agents.client import TlsFiles
    from .boards import Board, Boards

_PROGRESS_STEPS = 1000
_BOARDS = f"{__name__}.boards"


def _load_boards(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    if path is not None:
        from .boards import Boards

        ctx.meta[_BOARDS] = Boards.load(path)


def chosen_agents(
    ctx: click.Context, param: click.Parameter, names: tuple[str, ...]
) -> Boards | tuple[Board, ...] | tuple[str, ...]:
    """Callback of the parameter that names agents, in a command with `boards_option`.

    Returns:
        With ``--boards``, the boards of those names, or all where none is named; otherwise the
        addresses. `connect` takes either.

    Raises:
        BadRequest: the file has no such board, or there is no file and a name is no address.
    """
    names = tuple(dict.fromkeys(names))
    boards: Boards | None = ctx.meta.get(_BOARDS)
    if boards is not None:
        return tuple(boards.get(name) for name in names) if names else boards
    for name in names:
        if ":" not in name:
            raise BadRequest(
                f"{name!r} is no address; give HOST:PORT, or the file that names it with --boards"
            )
    return names


boards_option = click.option(
    "--boards",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_load_boards,
    help="TOML file of boards and their tokens; all of them are used, or those that are named.",
)


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order of the help."""

    def apply(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


credential_options = together(
    click.option(
        "--token-file", type=click.Path(dir_okay=False), help="File with the agents' token."
    ),
    click.option("--insecure", is_flag=True, help="Send the token off loopback without TLS."),
    click.option(
        "--tls-ca",
        type=click.Path(dir_okay=False),
        help="PEM file of the authority of the agents' certificates; turns TLS on.",
    ),
    click.option(
        "--tls-cert", type=click.Path(dir_okay=False), help="PEM file of your own certificate."
    ),
    click.option("--tls-key", type=click.Path(dir_okay=False), help="PEM file of its key."),
)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that measures: agents, credentials, runtime options.

    The command's `agents` is what `connect` takes: addresses, or boards of ``--boards``.
    """
    return together(
        boards_option,
        click.option(
            "--agent",
            "agents",
            multiple=True,
            metavar="HOST:PORT|NAME",
            callback=chosen_agents,
            help="Agent, or board of --boards, to use (repeatable) [a private agent on this "
            "machine].",
        ),
        click.option(
            "--option",
            "runtime_options",
            multiple=True,
            metavar="KEY=VALUE",
            help="Option of the target's runtime (repeatable).",
        ),
        credential_options,
        click.option("--seed", default=0, show_default=True, help="Random seed."),
    )(command)


layers_option = click.option(
    "--layers",
    required=True,
    metavar="BACKBONE[:0-7,12]",
    help="Backbone (cifar32, digits32, imagenet224, proxyless224, or a TOML file), or some of its "
    "layers.",
)

operator_options = together(
    click.option(
        "--operators", metavar="PATTERNS", help="Names or patterns, such as 'MB_*,Choice_3' [all]."
    ),
    click.option(
        "--gate",
        type=click.Choice(GATES),
        default=GATES[0],
        show_default=True,
        help="Activation of squeeze-and-excitation blocks.",
    ),
)

plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    callback=lambda ctx, param, value: use_plugins(value),
    help="Python file that registers operators of your own (repeatable).",
)


def use_plugins(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Makes users' operator files known to this process and its children."""
    if paths:
        there = os.environ.get(PLUGIN_VARIABLE, "")
        every = [*filter(None, there.split(os.pathsep)), *(str(Path(p).resolve()) for p in paths)]
        os.environ[PLUGIN_VARIABLE] = os.pathsep.join(dict.fromkeys(every))
    return paths


def credentials(
    agents: Iterable[str | Board],
    token_file: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    insecure: bool,
) -> dict[str, Any]:
    """Keyword arguments of `AgentClient` from a command's options.

    What an agent among these may overhear of its token is told on stderr.

    Raises:
        BadRequest: a file cannot be read, or a token would go over a network as plain text.
    """
    from ..agents.client import TlsFiles
    from ..agents.security import read_token
    from .boards import Board

    token = read_token(token_file, "--token-file") if token_file else None
    tls: TlsFiles | None = None
    if tls_ca or tls_cert:
        tls = TlsFiles(*(Path(p) if p else None for p in (tls_ca, tls_cert, tls_key)))
    for agent in agents:
        board = agent if isinstance(agent, Board) else Board.at(agent)
        with board.open(token, tls, insecure) as client:  # connects to nothing yet
            if client.warning:
                click.echo(f"Warning: {client.warning}", err=True)
    return {"token": token, "tls": tls, "insecure": insecure}


@contextmanager
def share_bar(label: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar that takes (what is going on, share of the whole)."""
    with progress_bar(_PROGRESS_STEPS, label) as bar:
        yield lambda what, share: bar.update(_PROGRESS_STEPS * share, f"{label}: {what:<8}")
