"""The command ``telemetry``. Owns what an operator reads: help, errors, exit codes.

Exit codes: 0 done; 1 the answer is "no" (a leak found, books that do not agree); 2 wrong usage or
configuration; 3 something was removed (``scrub``); 4 nothing is running; 70 an error of ours.
"""

from __future__ import annotations

import importlib.metadata
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from telemetry.config import Settings, load_settings
from telemetry.errors import (
    ConfigError,
    EventError,
    RefusedError,
    TelemetryError,
    TransportError,
)

__all__ = ["app", "complain", "confirm", "main", "print_table", "require_keys", "settings_of"]

EXIT_NO: Final = 1
EXIT_CONFIG: Final = 2
EXIT_ABSENT: Final = 4
EXIT_OURS: Final = 70
_NO_BOUND: Final = 10_000

app = typer.Typer(
    name="telemetry",
    help="Telemetry that keeps a privacy notice: scrubs, pseudonymizes, tags, forwards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_STARTS: Final = frozenset({"run", "demo", "gateway", "pseudonymize", "forward", "check"})
_begun = ""
"""Which command was given: of some an error keeps a process from starting."""


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it
    if asked:
        typer.echo(f"milchglas {importlib.metadata.version('milchglas')}")
        raise typer.Exit


@app.callback()
def begin(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 - `_print_version` has answered
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Telemetry that keeps a privacy notice: scrubs, pseudonymizes, tags, forwards."""
    global _begun  # noqa: PLW0603 - one command a process
    _begun = context.invoked_subcommand or ""


State = Annotated[
    Path | None,
    typer.Option("--state", help="Folder for log, keys and vault.", show_default=".telemetry"),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="telemetry.toml to read.", show_default="telemetry.toml"),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def settings_of(config: Path | None, state: Path | None, **more: str | None) -> Settings:
    """Read the settings as ``--config``, ``--state`` and others like them say.

    Args:
        config: The file, if one is named.
        state: The state folder, if one is named.
        more: Further top-level settings from the command line; None: not given.

    Raises:
        ConfigError: As `load_settings`.
    """
    return load_settings(config, overrides={"state": str(state) if state else None, **more})


def require_keys(settings: Settings) -> None:
    """Say that there is no keyset where none was made yet, or another folder was meant.

    Raises:
        ConfigError: There is none.
    """
    keyset = settings.state_dir / "keys" / "keyset.json"
    with suppress(OSError):
        keyset.stat()
        return
    if not settings.state_dir.exists() or not keyset.parent.exists():
        raise ConfigError(
            "There are no keys yet.",
            path=settings.state_dir,
            remedy="The first `telemetry run` makes them, or `telemetry keys init`. If they are "
            "elsewhere, name that folder with --state.",
        )


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table of which no cell is cut or broken: ids are copied from it.

    On a terminal that is too narrow, cells of several words take several lines; where that does not
    help, each row becomes a list, one column a line. What is written to a file or a pipe has its
    own width.
    """
    console = console or Console(highlight=False)
    for column in table.columns:
        column.no_wrap = True
    # Measured without the bounds of the terminal.
    unbound = console.options.update(max_width=_NO_BOUND, width=_NO_BOUND)
    wide = Measurement.get(console, unbound, table).maximum
    if console.is_terminal and wide > console.width:
        wide = _between_words(table, wide, console.width)
    if not console.is_terminal or wide <= console.width:
        room, console.width = console.width, max(wide, console.width)
        console.print(table, soft_wrap=True)
        console.width = room
        return
    names = [str(column.header) for column in table.columns]
    pad = max(map(len, names)) + 2
    for number, cells in enumerate(zip(*(column.cells for column in table.columns), strict=True)):
        if number:
            console.print()
        for name, cell in zip(names, cells, strict=True):
            if cell:
                console.print(f"[dim]{name:<{pad}}[/]{cell}", soft_wrap=True)


def _between_words(table: Table, wide: int, room: int) -> int:
    """Make columns of several words narrower, so that a table fits; give its new width."""
    least: list[int] = []
    most: list[int] = []
    for column in table.columns:
        texts = [Text.from_markup(str(cell)).plain for cell in (column.header, *column.cells)]
        least.append(max((len(word) for text in texts for word in text.split()), default=0))
        most.append(max(map(len, texts)))
    frame = wide - sum(most)
    spare = room - frame - sum(least)
    if spare < 0:
        return wide
    for column, shortest, longest in zip(table.columns, least, most, strict=True):
        given = min(spare, longest - shortest)
        column.width, column.no_wrap = shortest + given, False
        spare -= given
    return frame + sum(column.width or 0 for column in table.columns)


def _on_terminal() -> bool:
    return sys.stdin.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is gone for good: on a terminal, or by ``--yes``.

    Args:
        question: What exactly will be gone, and how much of it.
        yes: Whether ``--yes`` was given.

    Raises:
        typer.BadParameter: Nobody can be asked.
        typer.Exit: The answer was no.
    """
    if yes:
        return
    if not _on_terminal():
        raise typer.BadParameter(f"{question} Nobody can be asked here: say so with --yes.")
    if not typer.confirm(question, err=True):
        typer.echo("Nothing was done.", err=True)
        raise typer.Exit(EXIT_NO)


def complain(error: Exception, *, starting: bool = False) -> int:
    """Print what went wrong and what to do; give the exit code.

    Args:
        error: What went wrong.
        starting: Whether it keeps something from starting; most commands start nothing.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    refused = isinstance(error, RefusedError)
    word = "Cannot start" if starting else "Refused" if refused else "Error"
    console.print(f"[bold red]{word}:[/] ", end="")
    console.print(str(error), markup=False)
    if isinstance(error, ConfigError):
        return EXIT_CONFIG
    return EXIT_NO if isinstance(error, (RefusedError, EventError, TransportError)) else EXIT_ABSENT


def main() -> None:
    """Run the command line."""
    from telemetry.cli import (  # noqa: PLC0415
        account,  # noqa: F401 - they register commands
        audit,  # noqa: F401
        demo,  # noqa: F401
        explain,  # noqa: F401
        keys,  # noqa: F401
        letters,  # noqa: F401
        operate,  # noqa: F401
        policies,  # noqa: F401
        roles,  # noqa: F401
        scrub,  # noqa: F401
        vault,  # noqa: F401
    )

    try:
        app()
    except TelemetryError as error:
        sys.exit(complain(error, starting=_begun in _STARTS))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - a traceback ends with a text that may hold a value
        sys.exit(_unforeseen(error))


def _unforeseen(error: Exception) -> int:
    """Say of an error of ours what it is and where it rose; never its text."""
    at = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if {"telemetry", "scrubbers"} & set(path.parts[-4:-1]):
            at = f" at {'/'.join(path.parts[-2:])}:{frame.lineno}"
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]An error of ours:[/] ", end="")
    console.print(
        f"{type(error).__name__}{at}. Its text is not shown, as it may quote an event.",
        markup=False,
    )
    return EXIT_OURS
