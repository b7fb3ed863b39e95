"""Commands on the policies that were live here: policy list, policy revoke."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.table import Table

from telemetry import logs
from telemetry.admin import NotRunningError, ask
from telemetry.cli import Config, Json, State, Yes, confirm, print_table, settings_of
from telemetry.cli.audit import witness
from telemetry.cli.explain import policy_app
from telemetry.config import Settings
from telemetry.errors import AuditError, ConfigError

__all__: list[str] = []

_COLOURS = {"live": "green", "superseded": "dim", "revoked": "red"}


@policy_app.command("list")
def list_policies(*, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """List the policies that were live on this state, and what has become of each.

    live: what events are scrubbed under now. superseded: its events still leave, scrubbed again
    under the live one. revoked: its events do not leave.

    Examples:

      telemetry policy list

      telemetry policy list --json | jq -r '.[] | select(.state == "live").digest'
    """
    from telemetry.policy import PolicyRegister  # noqa: PLC0415 - help must not wait for it

    settings = settings_of(config, state)
    states = PolicyRegister(settings.state_dir / "policies.ndjson").states()
    if as_json:
        keys = ("digest", "state", "since")
        typer.echo(json.dumps([dict(zip(keys, entry, strict=True)) for entry in states]))
        return
    console = Console(highlight=False, soft_wrap=True)
    if not states:
        console.print("No policy was live here yet.")
        return
    table = Table(show_edge=False)
    for column in ("policy", "state", "since"):
        table.add_column(column)
    for digest, what, since in states:
        table.add_row(digest, f"[{_COLOURS.get(what, 'red')}]{what}[/]", since[:19])
    print_table(table)


@policy_app.command()
def revoke(
    digest: Annotated[str, typer.Argument(help="Its digest, or its first eight digits or more.")],
    *,
    yes: Yes = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Take a policy back: nothing that was scrubbed under it leaves any more. For good.

    A running pipeline obeys within five seconds, also for events that wait for a recipient; they
    are counted as revoked_policy. Revoking the live policy stops the pseudonymizer until the
    pipeline is started with another one; clients are still answered. Who ordered it stands in
    STATE/policies.ndjson and in the log. Asks first; exit code 1 if the answer is no.

    Examples:

      telemetry policy revoke 3f2c9a81

      telemetry policy revoke 3f2c9a81 --yes --json
    """
    settings = settings_of(config, state)
    confirm(
        f"Revoke policy {_hex(digest)} for good? What it scrubbed and is not sent yet never is.",
        yes=yes,
    )
    try:
        answer = ask(settings.state_dir, "POST", f"/policy/revoke/{_hex(digest)}")
    except NotRunningError:
        answer = {"revoked": _revoke_here(settings, _hex(digest))}
    except ConfigError as error:
        raise typer.BadParameter(error.message) from None
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        typer.echo(f"Revoked {answer['revoked']}. What it scrubbed does not leave any more.")


def _hex(digest: str) -> str:
    if not digest or set(digest.lower()) - set("0123456789abcdef"):
        raise typer.BadParameter("A digest has only the digits 0-9 and a-f.")
    return digest.lower()


def _revoke_here(settings: Settings, digest: str) -> str:
    """Revoke where nothing runs: the next start reads it."""
    from telemetry.policy import PolicyRegister  # noqa: PLC0415

    logs.configure(settings.log, production=settings.production)
    by = f"uid {os.getuid()} pid {os.getpid()}"
    register = PolicyRegister(settings.state_dir / "policies.ndjson")
    whole = register.revoke(digest, datetime.now(UTC), by=by)
    log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.cli.policies")
    log.warning("policy_revoked", digest=whole, by=by)
    try:
        # After it: to revoke protects.
        witness(settings, "policy.revoke", {"digest": whole})
    except AuditError as error:
        raise AuditError(f"It is revoked, but nobody witnessed it. {error}") from None
    return whole
