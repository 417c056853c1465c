"""What all our commands share: errors as words and exit statuses, lazy sub-commands, JSON
output and progress bars."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, NoReturn, Optional

import click

from .telemetry import turn_off_telemetry

HOST_PYTHON = (3, 11)
"""What every command but the board's needs."""

BOARD_COMMAND = "agent"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
DEBUG_VARIABLE = "HURRICANE_DEBUG"

# The extra of this distribution that brings a third-party package.
_EXTRA_OF = {
    "jinja2": "search",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "PIL": "search",
    "ai_edge_litert": "tflite",
    "flatbuffers": "tflite",
    "litert_quantizer": "tflite",
    "sklearn": "search",
}
_DEFAULT_EXTRA = "host"
_OURS = "hurricane"


@dataclass(frozen=True)
class LazyCommand:
    """A sub-command that is imported when it is used.

    Args:
        target: ``module:attribute`` of a click command.
        help: one line for the group's help, so that it needs no import.
    """

    target: str
    help: str


class LazyGroup(click.Group):
    """A group whose sub-commands live in modules that are imported only when used.

    Usage::

        @click.group(cls=LazyGroup, lazy={"show": LazyCommand("hurricane.x.cli:show", "Show it.")})
    """

    def __init__(
        self, *args: Any, lazy: Optional[Mapping[str, LazyCommand]] = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        lazy = self._lazy.get(cmd_name)
        if lazy is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = lazy.target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in self._lazy:
                rows.append((name, self._lazy[name].help))
            else:
                command = super().get_command(ctx, name)
                if command is not None and not command.hidden:
                    rows.append((name, command.get_short_help_str(formatter.width)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def run_command(
    command: click.Command, prog_name: str, args: Optional[Sequence[str]] = None
) -> NoReturn:
    """Runs a click command as a program and exits.

    An exception with an `exit_status` becomes ``Error: …`` on stderr and that status; an
    interrupt 130; wrong usage 2; an error of the operating system its own words and the file,
    status 1; a third-party package that is not installed names the extra
    that brings it; anything else is an internal error, status 1. All commands but the board's
    end at once on a Python older than `HOST_PYTHON`. ``--debug`` (anywhere on the
    command line, or HURRICANE_DEBUG=1) shows the traceback. An int that the command returns,
    or gives to ``ctx.exit``, is the exit status.
    """
    turn_off_telemetry()
    given = list(sys.argv[1:] if args is None else args)
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0") or "--debug" in given
    given = [word for word in given if word != "--debug"]
    # Taken out above, so that it may stand anywhere; declared here, so that --help has it.
    if not any("--debug" in parameter.opts for parameter in command.params):
        command.params.append(
            click.Option(
                ["--debug"], is_flag=True, expose_value=False, help="Show tracebacks of errors."
            )
        )
    sys.exit(_status_of(command, prog_name, given, debug))


def _status_of(command: click.Command, prog_name: str, args: list[str], debug: bool) -> int:
    if prog_name != BOARD_COMMAND and sys.version_info[:2] < HOST_PYTHON:
        needed, here = (".".join(map(str, v[:2])) for v in (HOST_PYTHON, sys.version_info))
        _complain(
            f"host commands need Python {needed} or newer (this is {here}); "
            f"the board needs only `{BOARD_COMMAND}`",
            debug=False,
        )
        return EXIT_FAILED
    try:
        result = command.main(args=args, prog_name=prog_name, standalone_mode=False)
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted", debug)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", _OURS):
            _complain(f"internal error: {error}; run with --debug for details", debug)
        else:
            extra = _EXTRA_OF.get(package, _DEFAULT_EXTRA)
            _complain(
                f"this needs the package '{package}', which is not installed here; "
                f"run: pip install 'hurricane-nas[{extra}]'",
                debug,
            )
        return EXIT_FAILED
    except Exception as error:
        status = getattr(error, "exit_status", None)
        if isinstance(status, int):
            _complain(str(error), debug)
            return status
        if isinstance(error, OSError) and error.strerror:
            place = f"{error.filename}: " if error.filename is not None else ""
            _complain(f"{place}{error.strerror}", debug)
            return EXIT_FAILED
        first_line = (str(error).splitlines() or [""])[0]
        _complain(
            f"internal error: {type(error).__name__}: {first_line}; run with --debug for details",
            debug,
        )
        return EXIT_FAILED


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"Error: {message}", err=True)


json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object."
)


def emit(result: Any, as_json: bool, text: str = "") -> None:
    """Prints a command's result on stdout: as one line of JSON, or as the given text.

    Args:
        result: what `json.dumps` takes.
        as_json: the command's ``--json``.
        text: the result for people; where it is empty, indented JSON stands in.
    """
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(text or json.dumps(result, ensure_ascii=False, indent=2))


class Progress:
    """A progress bar's handle; without a terminal it does nothing."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def update(self, done: float, label: Optional[str] = None) -> None:
        """Moves the bar to `done` of its total (never back), with a new label if one is given."""
        if self._bar is None:
            return
        if label is not None:
            self._bar.label = label
        self._bar.update(max(0, int(done) - self._bar.pos))


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Progress]:
    """A progress bar with time left on stderr; none when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    with click.progressbar(length=total, label=label, file=sys.stderr, show_eta=True) as bar:
        yield Progress(bar)
