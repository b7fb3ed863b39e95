"""Commands that run and look at a pipeline: run, check, books, status, pause, resume."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from telemetry import logs
from telemetry.admin import NotRunningError, ask, ask_each
from telemetry.cli import (
    EXIT_CONFIG,
    EXIT_NO,
    Config,
    Json,
    State,
    app,
    complain,
    print_table,
    settings_of,
)
from telemetry.config import Settings
from telemetry.errors import ConfigError, TransportError
from telemetry.status import merged, spoken

if TYPE_CHECKING:
    from telemetry.start import Part, Start

__all__ = ["print_books", "print_status", "serve"]

Recipient = Annotated[
    str, typer.Argument(help="Its name in recipients.toml, or all: telemetry books lists them.")
]


@app.command()
def run(
    *,
    config: Config = None,
    state: State = None,
    bind: Annotated[str | None, typer.Option(help="host:port for clients.")] = None,
    admin_bind: Annotated[str | None, typer.Option(help="host:port for health, metrics.")] = None,
) -> None:
    """Run gateway, pseudonymizer and forwarders in one process.

    Without any configuration it keeps its state in .telemetry/, makes development keys, and sends
    to local stand-ins for Heap and Sentry, saying so. Anywhere but in development it makes, wraps,
    rotates and backs up keys by itself, and says once what to keep in a safe place.

    Examples:

      telemetry run

      TELEMETRY_SENTRY_DSN=https://KEY@sentry.example/1 telemetry run --state /var/lib/telemetry
    """
    settings = settings_of(config, state, bind=bind, admin_bind=admin_bind)
    logs.configure(settings.log, production=settings.production)
    asyncio.run(serve(settings))


async def serve(settings: Settings, part: Part | None = None) -> None:
    """Run the pipeline, or a part of it, until somebody asks it to stop.

    Raises:
        ConfigError: It cannot start.
        BrokerError: The log cannot be opened.
    """
    from telemetry.run import Runner, settle  # noqa: PLC0415 - help must not wait for all of it

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask_to_stop() -> None:
        if stop.is_set():
            # Asked twice: somebody does not want to wait. The log stands a kill at any moment.
            os._exit(EXIT_NO)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask_to_stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    runner = Runner(settings, lambda line: console.print(line, style="yellow", markup=False), part)
    try:
        await runner.open()
        settle()
        policy = runner.policy
        where = escape(str(policy.folder))
        console.print(f"Policy {policy.digest[:12]} of notice {policy.notice.version}, {where}")
        if runner.gateway is not None:
            host, port = runner.address
            for key, project in _clients(settings):
                told = f"http://{key}@{host}:{port}/{project}"
                console.print("[bold green]Taking events[/] at", escape(told))
        admin = ":".join(map(str, runner.admin_address))
        console.print(f"Health and metrics at http://{admin}/metrics; stop with Ctrl-C.")
        await runner.run(stop)
    finally:
        await runner.close()
    console.print("Stopped; what was not delivered yet waits for the next start.")


def _clients(settings: Settings) -> list[tuple[str, str]]:
    """Give key and name of every project that may send; any key where none is declared."""
    return [(p.key, name) for name, p in settings.project.items()] or [("<any-key>", "1")]


@app.command()
def check(
    *,
    role: Annotated[
        Literal["run", "gateway", "pseudonymize", "forward"],
        typer.Option(help="For which role the settings are; only some need keys and a vault."),
    ] = "run",
    recipient: Annotated[
        list[str] | None,
        typer.Option(
            help="With --role forward: whose forwarder; repeatable.",
            show_default="those of the settings",
        ),
    ] = None,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Look for everything that a start would refuse; start, make and change nothing.

    Looks at settings, policy, schemas, addresses and credentials of recipients, keys, vault, audit
    log, state folder and ports, and lists all that it finds, each with what to do. Asks a
    PostgreSQL vault and the programs of custody; no recipient and no Kafka broker.

    Exit code 0 if a start would go through; 2 if it would be refused.

    Examples:

      telemetry check

      telemetry check --role forward --recipient sentry --config /etc/telemetry/sentry.toml

      TELEMETRY_POLICY=./policy telemetry check --json | jq .findings
    """
    from telemetry.start import Start  # noqa: PLC0415 - help must not wait for the whole pipeline

    if recipient and role != "forward":
        raise typer.BadParameter("--recipient is for --role forward.")
    settings = settings_of(config, state)
    running = _runs(settings)
    start = Start(settings, _part(role, recipient or list(settings.recipient)))
    findings = list(start.findings(running=running))
    report = {"sound": not findings, "findings": [one.as_json() for one in findings]}
    if start.policy is not None:
        report |= _about_policy(start)
    if start.holds_keys:
        report["keys"] = _keys(start)
    if settings.broker.kind == "kafka":
        from telemetry.cli.roles import when_kafka_is_away  # noqa: PLC0415

        report["when_kafka_is_away"] = when_kafka_is_away(settings)
    if as_json:
        typer.echo(json.dumps(report))
    elif findings:
        for one in findings:
            complain(one.error, starting=True)
            if one.remedy not in str(one.error):
                typer.echo(f"  {one.remedy}", err=True)
    else:
        _print_sound(Console(highlight=False), start, report, running=running)
    if findings:
        raise typer.Exit(EXIT_CONFIG)


def _runs(settings: Settings) -> bool:
    """Tell whether a pipeline runs on the state folder: then its ports and files are its."""
    try:
        ask(settings.state_dir, "GET", "/status")
    except NotRunningError:
        return False
    except (TransportError, ConfigError):
        pass  # one runs, and answers otherwise
    return True


def _part(role: str, recipients: Sequence[str]) -> Part:
    from telemetry.start import Part  # noqa: PLC0415 - as above

    if role == "run":
        return Part()
    forwards = tuple(recipients) if role == "forward" else ()
    return Part(gateway=role == "gateway", pseudonymizer=role == "pseudonymize", forwards=forwards)


def _about_policy(start: Start) -> dict[str, Any]:
    policy = start.policy
    if policy is None:
        return {}
    return {
        "policy": policy.digest,
        "notice": policy.notice.version,
        "purposes": {name: purpose.kinds for name, purpose in policy.purposes.items()},
        "recipients": {
            name: recipient.refused or recipient.sink
            for name, recipient in policy.recipients.items()
        },
        "kinds": sorted(start.schemas.records) if start.schemas else [],
        "analytics_events": len(policy.events),
    }


def _print_sound(
    console: Console, start: Start, report: Mapping[str, Any], *, running: bool
) -> None:
    policy = start.policy
    if policy is None:
        return
    console.print(f"Policy {policy.digest[:12]} of notice {policy.notice.version}: [green]sound[/]")
    for name, purpose in policy.purposes.items():
        receives = ", ".join(policy.recipients_of(name)) or "nobody"
        kinds = ", ".join(purpose.kinds) or "nothing"
        console.print(f"  {name}: {kinds} → {receives}", soft_wrap=True)
    if away := report.get("when_kafka_is_away"):
        console.print(f"While Kafka is away: {away}", soft_wrap=True)
    if keys := report.get("keys"):
        told = f"Keys: {keys['state']}. {keys['advice']}".rstrip()
        console.print(told, soft_wrap=True, markup=False)
    told = "It runs already; its ports and open files were not looked at." if running else ""
    console.print(told or "Nothing was found that would keep it from starting.")


def _keys(start: Start) -> dict[str, Any]:
    """Say whether there are keys, and what somebody has to keep safe."""
    from telemetry.start import open_custody  # noqa: PLC0415 - as above

    custody = open_custody(start.settings)
    ring = start.keys
    counted = 0 if ring is None else sum(k.state != "DESTROYED" for k in ring.entries())
    return {
        "state": f"sound, {counted}" if ring else "made at the first start",
        "wrapped": custody is not None,
        "advice": custody.advice if custody else "In the clear, for development only.",
    }


@app.command()
def books(*, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Show what came in and what became of it, and whether the sums agree.

    Asks the running pipeline; without one it reads the state directory itself. Exit code 1 if the
    books do not agree.

    Examples:

      telemetry books

      telemetry books --json | jq .delivered
    """
    settings = settings_of(config, state)
    figures = _books(settings)
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        print_books(Console(highlight=False), figures)
    if not figures["exact"]:
        raise typer.Exit(EXIT_NO)


def _books(settings: Settings) -> dict[str, Any]:
    from telemetry.books import Books, joined  # noqa: PLC0415
    from telemetry.brokers import Shelf  # noqa: PLC0415
    from telemetry.policy import load_policy, policy_dir  # noqa: PLC0415
    from telemetry.run import open_broker  # noqa: PLC0415

    try:
        answer = joined(list(ask_each(settings.state_dir, "GET", "/books").values()))
    except NotRunningError:
        if not (settings.state_dir / "spool.sqlite3").exists():
            raise
        policy = load_policy(policy_dir(settings.policy.path))
        broker = open_broker(settings)
        try:
            names = tuple(n for n, r in policy.recipients.items() if r.sink)
            shelved = isinstance(broker, Shelf)
            answer = Books(broker.books(), broker.pending(), names, shelved=shelved).as_json()
        finally:
            broker.close()
    return answer


def print_books(console: Console, figures: Mapping[str, Any]) -> None:
    """Print the books as two tables: the way of the items, and the deliveries."""
    table = Table(title="Books", title_justify="left", show_edge=False)
    for column in ("came in", "sealed", "scrubbed", "held", "waiting"):
        table.add_column(column, justify="right")
    waiting = str(figures["pending"]["pseudonymizer"])
    table.add_row(*(str(figures[k]) for k in ("events_in", "sealed", "scrubbed", "held")), waiting)
    print_table(table, console)
    table = Table(show_edge=False)
    table.add_column("recipient")
    for column in ("routed", "delivered", "resent", "waiting"):
        table.add_column(column, justify="right")
    for name in figures["routed"]:
        row = (figures[k][name] for k in ("routed", "delivered", "resent"))
        table.add_row(name, *map(str, row), str(figures["pending"][name]))
    print_table(table, console)
    for outcome in ("dropped", "dead"):
        for stage, reasons in figures[f"{outcome}_at"].items():
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
            console.print(f"{outcome} at {stage}: {listed}", soft_wrap=True)
    if figures.get("paused"):
        console.print(f"[yellow]paused: {', '.join(figures['paused'])}[/]")
    verdict = "[green]The sums agree.[/]" if figures["exact"] else "[red]The sums do not agree.[/]"
    console.print(verdict)


@app.command()
def status(*, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Answer on one page: losing? leaking? safe now? time left?

    Asks the running pipeline. Exit code 1 if one of the answers is bad.

    losing: books that differ, parcels dropped for want of room or time. leaking: a live policy that
    was revoked, guards that are off. safe now: every stage works. time left: until something that
    waits would be lost if nothing of it moved on.

    Examples:

      telemetry status

      telemetry status --json | jq .time_to_loss_s
    """
    found = merged(ask_each(settings_of(config, state).state_dir, "GET", "/status"))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        print_status(Console(highlight=False, soft_wrap=True), found)
    if not found["well"]:
        raise typer.Exit(EXIT_NO)


def print_status(console: Console, found: Mapping[str, Any]) -> None:
    """Print the four answers, then what waits where."""
    for one in found["answers"]:
        colour = "green" if one["well"] else "red"
        console.print(f"[bold]{one['question']:<12}[/][{colour}]{escape(one['answer'])}[/]")
        for line in one["because"]:
            console.print(f"            {escape(line)}")
    table = Table(show_edge=False)
    table.add_column("stream")
    for column in ("waiting", "oldest", "time to loss", "room used"):
        table.add_column(column, justify="right")
    for stream in dict.fromkeys([*found["room"], *found["waiting"], *found["oldest_s"]]):
        oldest, left = found["oldest_s"].get(stream), found["time_to_loss_s"].get(stream)
        room = found["room"].get(stream)
        table.add_row(
            stream,
            "" if stream == "log" else str(found["waiting"].get(stream, 0)),
            "" if oldest is None else spoken(oldest),
            "" if left is None else spoken(left),
            f"{room['used_bytes'] / room['most_bytes']:.0%}" if room else "",
        )
    print_table(table, console)
    console.print(f"policy {found['policy'][:12]}, environment {escape(found['environment'])}")


@app.command()
def pause(
    recipient: Recipient, *, config: Config = None, state: State = None, as_json: Json = False
) -> None:
    """Stop sending to a recipient, or to all, until resumed. Nothing is lost; it waits.

    Holds over restarts. On Kafka it reaches the forwarders on all hosts within five seconds, given
    to any pseudonymizer or forwarder.

    Examples:

      telemetry pause heap

      telemetry pause all --json
    """
    _order("pause", recipient, settings_of(config, state), as_json=as_json)


@app.command()
def resume(
    recipient: Recipient, *, config: Config = None, state: State = None, as_json: Json = False
) -> None:
    """Go on sending to a recipient, or to all.

    Also lets a stage go on that stopped because nearly everything became a dead letter: a
    recipient, or `pseudonymizer`.

    Examples:

      telemetry resume heap

      telemetry resume pseudonymizer
    """
    _order("resume", recipient, settings_of(config, state), as_json=as_json)


def _order(order: str, recipient: str, settings: Settings, *, as_json: bool) -> None:
    try:
        answer = ask(settings.state_dir, "POST", f"/{order}/{quote(recipient, safe='')}")
    except ConfigError:
        raise typer.BadParameter("No such recipient; `telemetry books` lists them.") from None
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for names in answer.values():
        listed = ", ".join(names)
        if order == "pause":
            typer.echo(f"{listed}: paused. Events wait; to go on: telemetry resume {recipient}")
        else:
            typer.echo(f"{listed}: going on.")
