"""Commands on accounts: token, erase, join, and reidentify request, approve, run, list."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from telemetry.admin import NotRunningError
from telemetry.admin import ask as ask_running
from telemetry.cli import EXIT_NO, Config, Json, State, app
from telemetry.cli.audit import open_identity, open_log
from telemetry.config import Settings, load_settings
from telemetry.errors import ConfigError

# Whoever asks for help must not wait for the vault's library.
if TYPE_CHECKING:
    from telemetry.identity.ways_back import LiveToken, Request, WaysBack
    from telemetry.policy import Policy

__all__: list[str] = []

account = typer.Typer(
    name="account",
    help="Ways back from and to pseudonyms; each use is audited. First of all: the error reference"
    " that a customer reads out is the id of the event at Sentry, and needs none of these.",
    no_args_is_help=True,
)
reidentify = typer.Typer(
    name="reidentify", help="From a token to an account, by two persons.", no_args_is_help=True
)
account.add_typer(reidentify)
app.add_typer(account)

_STEP_S: Final = 60.0
_PIECE: Final = 5
"""So many are erased by one order to a running pipeline: each is a few durable commits."""

Ids = Annotated[
    list[str] | None, typer.Argument(help="Ids; in development only. Else prompt, stdin or --ids.")
]
IdsFile = Annotated[
    Path | None, typer.Option("--ids", help="File with one id in each line; '-' is stdin.")
]
Ticket = Annotated[str, typer.Option(help="Where it is explained, such as SUP-1234.")]
Reason = Annotated[str, typer.Option(help="A reason of ways_back.toml.")]
Kind = Annotated[str, typer.Option(help="account or organization.")]


@contextmanager
def _opened(
    config: Path | None, state: Path | None
) -> Iterator[tuple[Settings, Policy, WaysBack, bool]]:
    """Open what the ways back need: policy, keyset, vault, audit log; and find out who asks.

    Last comes whether this is a trial: the keys themselves lie in the clear. No setting makes it
    one, since whoever runs the command sets it.
    """
    from telemetry.identity import Domain  # noqa: PLC0415
    from telemetry.identity.audit import actor_of  # noqa: PLC0415
    from telemetry.identity.ways_back import (  # noqa: PLC0415
        Lookup,
        Source,
        WaysBack,
        person_behind,
    )
    from telemetry.policy import load_policy, policy_dir  # noqa: PLC0415

    settings = load_settings(config, overrides={"state": str(state) if state else None})
    policy = load_policy(policy_dir(settings.policy.path))
    with ExitStack() as stack:
        identity = open_identity(settings)
        stack.callback(identity.close)
        log = open_log(settings, identity)
        stack.callback(log.close)
        domains = {
            one.domain: Domain(name=one.domain, label=one.label, epoch=one.epoch)
            for one in policy.recipients.values()
            if one.sink
        }
        sources = {
            kind: Source(kind, one.namespace, one.profile)
            for kind, one in policy.pseudonyms.items()
            if kind in {"account", "organization"}
        }
        back = WaysBack(
            Lookup(identity, sources, list(domains.values())),
            log,
            state=settings.state_dir,
            rules=policy.ways_back,
            policy_digest=policy.digest,
            person=person_behind(
                _actor(policy, actor_of(), trial=identity.insecure), policy.ways_back
            ),
        )
        stack.callback(back.close)
        yield settings, policy, back, identity.insecure


def _actor(policy: Policy, actor: str, *, trial: bool) -> str:
    """Name the user; on a trial somebody may play another person, to try both parts."""
    played = os.environ.get("TELEMETRY_PERSON", "")
    if trial and played in policy.ways_back.person:
        return f"user:{policy.ways_back.person[played].user}"
    return actor


def _given(ids: Sequence[str] | None, file: Path | None, what: str) -> list[str]:
    """Read ids from where they may stand: `ids` only if the caller allows it.

    Raises:
        ConfigError: The file cannot be read.
    """
    if ids:
        return list(ids)
    if file is not None and str(file) != "-":
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise ConfigError("cannot be read.", path=file, remedy="Name a text file.") from None
    elif sys.stdin.isatty():
        lines = [typer.prompt(what, err=True)]
    else:
        lines = sys.stdin.read().splitlines()
    return [line.strip() for line in lines if line.strip()]


@account.command("token")
def tokens(
    ids: Ids = None,
    *,
    file: IdsFile = None,
    kind: Kind = "account",
    ticket: Ticket = "",
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show the tokens of an account, to find it at Sentry and Heap.

    Prints every token that is still alive, of each recipient and epoch, with a ready search link
    where the recipient's settings have `search`. The ids themselves are not repeated. Needs the
    rights of the pseudonymizer; audited, and limited for each person and day.

    Examples:

      telemetry account token

      telemetry account token --ids customers.txt --ticket SUP-1234 --json
    """
    with _opened(config, state) as (settings, policy, back, trial):
        if kind not in {"account", "organization"}:
            raise typer.BadParameter("A kind is account or organization.")
        if ids and not trial:
            back.refuse_arguments("account.token")
        given = _given(ids, file, f"{kind.capitalize()} id")
        told = back.tokens(kind, given, ticket=ticket)
    rows = _rows(settings, policy, told)
    if as_json:
        typer.echo(json.dumps({"kind": kind, "ids": rows}))
    else:
        _print_tokens(rows)
    if not any(row["tokens"] for row in rows):
        raise typer.Exit(EXIT_NO)


@account.command()
def erase(  # noqa: PLR0913 - options
    ids: Ids = None,
    *,
    file: IdsFile = None,
    kind: Kind = "account",
    ticket: Ticket,
    reason: Annotated[str, typer.Option(help="Why, in a word.")] = "art17",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Erase accounts or organizations (Art. 17), and say what is left to do at the recipients.

    First prints the tokens under which recipients hold something, with links where their settings
    have `search`: afterwards nobody can compute them, so keep what is printed until it is done
    there. Then destroys the secrets that the tokens were made with, and refuses the subjects from
    then on. In force in a running pipeline at once, in others within a minute. Idempotent: if it
    fails, run it again. With --json, one line before and one after.

    Examples:

      telemetry account erase --ticket DSR-17

      telemetry account erase --ids leavers.txt --ticket DSR-18 --yes --json > to-do.jsonl
    """
    with _opened(config, state) as (settings, policy, back, trial):
        if kind not in {"account", "organization"}:
            raise typer.BadParameter("A kind is account or organization.")
        if ids and not trial:
            back.refuse_arguments("erasure")
        given = list(dict.fromkeys(_given(ids, file, f"{kind.capitalize()} id")))
        unfit = [str(n) for n, value in enumerate(given, 1) if not back.fits(kind, value)]
        if unfit or not given:
            # All or nothing: half of a list erased is a list that nobody checks again.
            raise ConfigError(
                f"No valid id of this kind: {', '.join(unfit[:10]) or 'there is none'}.",
                remedy="The numbers count the ids that were given. Nobody was erased.",
            )
        running = _runs_with_vault(settings)
        if not running:
            back.claim()
        if not yes:
            if not sys.stdin.isatty():
                raise typer.BadParameter("Nobody can be asked here: give --yes.")
            typer.confirm(f"Erase {len(given)} ({kind})? Nothing brings them back.", abort=True)
        request, told = back.order_erasure(kind, given, reason=reason, ticket=ticket)
        rows = _rows(settings, policy, told)
        left = _left_to_do(policy)
        if as_json:
            said = {"request": request, "kind": kind, "ids": rows, "recipients": left}
            typer.echo(json.dumps(said))
        else:
            _print_tokens(rows)
            for name, one in left.items():
                typer.echo(f"{name}: {one['to_do']}")
        sys.stdout.flush()
        for at in range(0, len(given), _PIECE):
            piece = given[at : at + _PIECE]
            if running:
                order = {"request": request, "kind": kind, "ids": piece}
                ask_running(
                    settings.state_dir, "POST", "/account/erase", json.dumps(order).encode()
                )
            else:
                back.erase(kind, piece, purposes=list(policy.purposes))
        back.erased(request, kind, len(given))
    if as_json:
        typer.echo(json.dumps({"request": request, "erased": len(given)}))
    else:
        typer.echo(f"Erased: {len(given)}. Request {request} of the audit log.")


def _runs_with_vault(settings: Settings) -> bool:
    """Tell whether a process on this state serves the vault, which then erases by itself."""
    try:
        ask_running(settings.state_dir, "GET", "/vault/work")
    except (NotRunningError, ConfigError):
        return False  # or it is a role without a vault of its own
    return True


def _left_to_do(policy: Policy) -> dict[str, dict[str, str]]:
    """Say what somebody has to do at each recipient that may hold something."""
    return {
        name: {
            "entity": one.entity,
            "erasure": one.erasure,
            "to_do": "delete the user of each of its tokens there (Art. 17, 19)."
            if one.erasure == "api"
            else one.compensation,
        }
        for name, one in policy.recipients.items()
        if one.sink
    }


def _rows(
    settings: Settings,
    policy: Policy,
    told: Sequence[tuple[str, tuple[LiveToken, ...]]],
) -> list[dict[str, Any]]:
    """Give the tokens of each id with its recipient and link, in the order in which ids came."""
    rows: list[dict[str, Any]] = []
    for number, (known, found) in enumerate(told, 1):
        shown = [
            {
                "recipient": name,
                "epoch": token.epoch,
                "token": token.token,
                "link": settings.recipient[name].search.replace("{token}", token.token)
                if name in settings.recipient
                else "",
            }
            for token in found
            for name, one in policy.recipients.items()
            if one.domain == token.domain and one.sink
        ]
        rows.append({"line": number, "state": known, "tokens": shown})
    return rows


_STATES: Final = {
    "unknown": "nothing was ever sent of it",
    "erased": "erased",
    "unfit": "no valid id",
    "known": "no live key",
}


def _print_tokens(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(show_edge=False)
    for column in ("line", "recipient", "epoch", "token", "link"):
        table.add_column(column, overflow="fold", no_wrap=column == "token")
    for row in rows:
        if not row["tokens"]:
            table.add_row(str(row["line"]), f"({_STATES[row['state']]})", "", "", "")
        for one in row["tokens"]:
            link = one["link"] or f"(set recipient.{one['recipient']}.search)"
            cells = (one["recipient"], one["epoch"], one["token"], link)
            table.add_row(str(row["line"]), *map(escape, cells))
    Console(highlight=False, soft_wrap=True).print(table)


@account.command()
def join(
    heap_and_sentry: Annotated[
        list[str], typer.Argument(metavar="TOKEN TOKEN...", help="Tokens of different recipients.")
    ],
    *,
    reason: Reason,
    ticket: Ticket,
    file: IdsFile = None,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Tell whether tokens of two recipients are of one account, which you name.

    Nobody can join them without this. The policy switches it on, names reasons and persons; it is
    audited. The id comes by prompt, standard input or --ids. Exit code 1 if they are not.

    Examples:

      telemetry account join ps1_heap_u_… ps1_sentry_u_… --reason abuse --ticket SEC-7
    """
    with _opened(config, state) as (_settings, _policy, back, _trial):
        given = _given(None, file, "Account id")
        if len(given) != 1:
            raise typer.BadParameter("Name one id.")
        same = back.join(heap_and_sentry, given[0], reason=reason, ticket=ticket)
    if as_json:
        typer.echo(json.dumps({"same": same}))
    else:
        typer.echo("They are of this account." if same else "They are not all of this account.")
    if not same:
        raise typer.Exit(EXIT_NO)


def _print_request(request: Request, *, as_json: bool) -> None:
    told = asdict(request) | {"until": request.until.isoformat()}
    if as_json:
        typer.echo(json.dumps(told))
        return
    for name, value in told.items():
        typer.echo(f"{name}: {value}")


@reidentify.command("request")
def ask(
    token: Annotated[str | None, typer.Argument(help="Else by prompt or standard input.")] = None,
    *,
    reason: Reason,
    ticket: Ticket,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Ask that the account behind a token be found. Another person has to approve.

    First think of the error reference and of `telemetry account token`: mostly they do. Off unless
    ways_back.toml switches it on.

    Examples:

      telemetry account reidentify request ps1_sentry_u_… --reason abuse --ticket SEC-7
    """
    with _opened(config, state) as (_settings, _policy, back, _trial):
        given = [token] if token else _given(None, None, "Token")
        if len(given) != 1:
            raise typer.BadParameter("Name one token.")
        made = back.request(given[0], reason=reason, ticket=ticket)
    _print_request(made, as_json=as_json)


@reidentify.command()
def approve(
    request: str, *, config: Config = None, state: State = None, as_json: Json = False
) -> None:
    """Agree to another person's request.

    Read reason and ticket first: `telemetry account reidentify list`.

    Examples:

      telemetry account reidentify approve 1f00a2c3
    """
    with _opened(config, state) as (_settings, _policy, back, _trial):
        found = back.approve(request)
    _print_request(found, as_json=as_json)


@reidentify.command("list")
def show(*, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Show open requests. No token is shown.

    Examples:

      telemetry account reidentify list
    """
    with _opened(config, state) as (_settings, _policy, back, _trial):
        found = back.requests()
    if as_json:
        typer.echo(json.dumps([asdict(one) | {"until": one.until.isoformat()} for one in found]))
        return
    table = Table(show_edge=False)
    for column in ("id", "state", "domain", "reason", "ticket", "requester", "until"):
        table.add_column(column, overflow="fold")
    for one in found:
        until = one.until.isoformat(timespec="minutes")
        cells = (one.id, one.state, one.domain, one.reason, one.ticket, one.requester, until)
        table.add_row(*map(escape, cells))
    Console(highlight=False).print(table)


@reidentify.command()
def run(
    request: str,
    *,
    candidates: Annotated[
        Path | None, typer.Option(help="CSV of the application's ids; '-' is stdin.")
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="Command of yours that prints this CSV. No shell.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Header of the column; without, the first column.")
    ] = None,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Find the account of an approved request of yours, among candidates of the application.

    The account is shown once; then the request and its token are gone. If it is not among them,
    try others until the request is void. Exit code 1 if it was not found.

    Examples:

      telemetry account reidentify run 1f00a2c3 --candidates accounts.csv --column id

      telemetry account reidentify run 1f00a2c3 --command "shop accounts --csv"
    """
    if (candidates is None) == (command is None):
        raise typer.BadParameter("Name either --candidates or --command.")
    with _opened(config, state) as (settings, _policy, back, _trial), ExitStack() as stack:
        lines = (
            stack.enter_context(_command(command, settings))
            if command is not None
            else stack.enter_context(_file(candidates or Path("-")))
        )
        seen = stack.enter_context(_progress())
        found = back.run(request, _column(lines, column), seen=seen)
    if as_json:
        typer.echo(json.dumps({"request": request, "found": found is not None, "id": found}))
    else:
        typer.echo("It is not among these candidates." if found is None else found)
    if found is None:
        raise typer.Exit(EXIT_NO)


@contextmanager
def _file(path: Path) -> Iterator[Iterator[str]]:
    if str(path) == "-":
        yield sys.stdin
        return
    try:
        file = path.open(encoding="utf-8", newline="")
    except OSError:
        raise ConfigError("cannot be read.", path=path, remedy="Name a CSV file.") from None
    with file:
        yield file


@contextmanager
def _command(words: str, settings: Settings) -> Iterator[Iterator[str]]:
    """Run a command of the operator's and give the lines it prints; its failure is ours."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the operator's own command, without a shell
            shlex.split(words),
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=_environment(settings),
        )
    except (OSError, ValueError, IndexError):
        raise ConfigError(
            "--command cannot be run.", remedy="Name a program and its arguments."
        ) from None
    try:
        yield _printed(process)
    finally:
        if process.stdout is not None:
            process.stdout.close()
        if process.poll() is None:
            process.terminate()
        process.wait(_STEP_S)


def _environment(settings: Settings) -> dict[str, str]:
    """Give a command of the operator's its environment without anything of ours.

    It needs no key and no address of a recipient: settings, credentials of systemd, and the
    variable that holds the key-encryption key, whatever its name, stay here.
    """
    kind, _, named = settings.custody.kek.partition(":")
    ours = {"CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", *([named] if kind == "env" else ())}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith("TELEMETRY_")
    }


def _printed(process: subprocess.Popen[bytes]) -> Iterator[str]:
    if process.stdout is not None:
        yield from io.TextIOWrapper(process.stdout, encoding="utf-8", newline="")
    if process.wait(_STEP_S):
        # What came before the failure is no whole list: "not found" would be no answer.
        raise ConfigError(
            "--command failed before its list was whole.", remedy="Run it by hand first."
        )


def _column(lines: Iterator[str], named: str | None) -> Iterator[str]:
    """Give one column of a CSV.

    Raises:
        ConfigError: It is no CSV, or has no such column. No value is repeated.
    """
    try:
        rows = csv.reader(lines)
        place = 0
        if named is not None:
            header = next(rows, [])
            if named not in header:
                raise ConfigError(
                    "The CSV has no such column.", remedy="Name one of its first line."
                )
            place = header.index(named)
        for row in rows:
            if len(row) > place:
                yield row[place].strip()
    except (csv.Error, UnicodeDecodeError):
        raise ConfigError(
            "The candidates are no CSV in UTF-8.", remedy="Export them anew."
        ) from None


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} candidates"))
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda count: bar.update(task, completed=count)
