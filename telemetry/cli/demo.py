"""``telemetry demo``: the whole way of an event, with real clients, and the search for leaks."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from telemetry.cli import EXIT_NO, Config, Json, app
from telemetry.cli.operate import print_books
from telemetry.config import Settings, load_settings
from telemetry.errors import ConfigError

if TYPE_CHECKING:
    from telemetry.demo.sides import Row, Sides, Tokens
    from telemetry.demo.stage import Evidence, Verdict

__all__: list[str] = []

_WIDTH: Final = 100
_LEAKS_SHOWN: Final = 20
_MIB: Final = 1024 * 1024


@app.command()
def demo(
    *,
    config: Config = None,
    broker: Annotated[
        str | None,
        typer.Option(help="spool, or kafka at TELEMETRY_KAFKA_BOOTSTRAP.", show_default="spool"),
    ] = None,
    people: Annotated[int, typer.Option(min=12, max=100, help="How many invented people.")] = 40,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the pipeline's state directory here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what leaves and what does not: real clients, a real pipeline, stand-ins as recipients.

    Two small web applications and a job send events and errors full of the personal data of people
    who do not exist. Then everything the recipients received, every file of the pipeline and all
    that it printed is searched for every one of those values, in a dozen encodings.

    Exit code 1 if one is found, if the books do not agree with what the recipients hold, or if a
    value was never sent; 2 if it cannot start.

    Examples:

      telemetry demo

      telemetry demo --json | tail -n 1 | jq .leaks

      TELEMETRY_KAFKA_BOOTSTRAP=127.0.0.1:9092 telemetry demo --broker kafka
    """
    settings = _settings(config, broker)
    # Help must not wait for clients and stand-ins.
    from telemetry.demo.stage import judge, perform  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="telemetry-demo-") as folder:
        state, scratch = Path(folder) / "state", Path(folder)
        with _Bar() as bar:
            evidence = perform(state, scratch, settings, people=people, progress=bar.show)
            bar.show("searching for leaks", 0, 1)
            verdict = judge(evidence)
        if keep is not None:
            shutil.copytree(state, keep, dirs_exist_ok=True)
        if not as_json:
            _print_all(Console(highlight=False, width=_width()), evidence, verdict)
    if as_json:
        errors = Console(stderr=True, highlight=False, soft_wrap=True)
        for complaint in verdict.complaints:
            errors.print(escape(complaint))
        typer.echo(json.dumps(_figures(evidence, verdict)))
    if not verdict.good:
        raise typer.Exit(EXIT_NO)


def _settings(config: Path | None, broker: str | None) -> Settings:
    settings = load_settings(config)
    kind = broker or "spool"
    if kind not in ("spool", "kafka"):
        raise ConfigError("there is no such broker.", remedy="Use --broker spool or kafka.")
    if kind == "kafka" and not settings.broker.bootstrap:
        raise ConfigError(
            "no Kafka broker is named.", remedy="Set TELEMETRY_KAFKA_BOOTSTRAP to host:port."
        )
    import msgspec  # noqa: PLC0415

    return msgspec.structs.replace(
        settings, broker=msgspec.structs.replace(settings.broker, kind=kind)
    )


def _width() -> int | None:
    """As wide as the terminal; what is written to a file needs a hundred columns."""
    return None if Console().is_terminal else _WIDTH


class _Bar:
    """One progress bar, on a terminal only, on standard error: output stays output."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Show what is going on."""
        self._progress.update(self._task, description=what, completed=done, total=total)


def _figures(evidence: Evidence, verdict: Verdict) -> dict[str, Any]:
    books = evidence.books
    words = ("events_in", "routed", "delivered", "dropped", "dead", "held", "pending")
    return {
        **{word: books[word] for word in words},
        "planted": len(evidence.world.planted),
        "leaks": [finding._asdict() for finding in verdict.leaks],
        "events_per_second": evidence.events_per_second,
    }


def _print_all(console: Console, evidence: Evidence, verdict: Verdict) -> None:
    from telemetry.demo.sides import Sides  # noqa: PLC0415 - as above

    sides = Sides(evidence)
    print_books(console, evidence.books)
    for name, count in verdict.received.items():
        console.print(f"The stand-in for {name} counts {count} distinct records.")
    console.print(f"{evidence.events_per_second} events/s, all clients on this machine included.")
    try:
        _print_explained(console, sides)
    except LookupError:
        console.print("[bold red]The events to be explained did not arrive.[/]")
    _print_search(console, evidence, verdict)


def _print_explained(console: Console, sides: Sides) -> None:
    _print_sides(
        console,
        "An error: what sentry-sdk sent with its DSN changed, and what Sentry received",
        sides.promise("error_event"),
        sides.error(),
    )
    console.print(f"As they were: {escape(sides.kept)}.", style="dim")
    _print_sides(
        console,
        "An analytics event: what a job sent to Heap's interface, and what Heap received",
        sides.promise("analytics_event"),
        sides.analytics(),
    )
    _print_tokens(console, sides.tokens())


def _print_sides(console: Console, title: str, promise: str, rows: Sequence[Row]) -> None:
    console.print(f"\n[bold]{escape(title)}[/]")
    console.print(escape(promise), style="dim")
    table = Table(show_lines=True, expand=True)
    table.add_column("field", ratio=20, overflow="fold")
    table.add_column("before", ratio=29, overflow="fold")
    table.add_column("after", ratio=25, overflow="fold")
    table.add_column("why", ratio=26, overflow="fold", style="dim")
    for row in rows:
        after = escape(row.after) if row.after else "[dim]gone[/]"
        table.add_row(escape(row.path), escape(row.before) or "[dim]-[/]", after, escape(row.why))
    console.print(table)


def _print_tokens(console: Console, tokens: Tokens) -> None:
    console.print(
        f"\n[bold]Account {tokens.account} as its recipients know it[/]; they cannot join the two"
    )
    table = Table(show_edge=False)
    for column in ("recipient", "token"):
        table.add_column(column, overflow="fold")
    table.add_column("records", justify="right")
    table.add_row("heap", tokens.heap, str(tokens.heap_records))
    table.add_row("sentry", tokens.sentry, str(tokens.sentry_records))
    console.print(table)


def _print_search(console: Console, evidence: Evidence, verdict: Verdict) -> None:
    planted = len(evidence.world.planted)
    sent = planted - len(verdict.unsent)
    kinds = Counter(name.partition(": ")[2] for name in evidence.world.planted)
    console.print("\n[bold]The search[/]")
    console.print(f"{planted} planted values: {', '.join(f'{n} {k}' for k, n in kinds.items())}.")
    console.print(f"In what clients sent: {sent} of {planted} found.")
    console.print(
        f"In {verdict.searched_bytes / _MIB:.1f} MiB of what recipients received, of the state "
        "directory (running and stopped), of output and metrics: "
        + (
            "[bold green]none of them.[/]"
            if not verdict.leaks
            else f"[bold red]{len(verdict.leaks)} findings.[/]"
        )
    )
    for finding in verdict.leaks[:_LEAKS_SHOWN]:
        console.print(f"  [red]{escape(finding.name)}[/], {finding.form}, in {finding.place}")
    for complaint in verdict.complaints:
        console.print(f"[bold red]{escape(complaint)}[/]")
