"""Commands on the vault: stats, rewrap, backup, restore.

They ask the running pipeline; where none runs they open the vault themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from telemetry.admin import NoAnswerError, NotRunningError, ask
from telemetry.cli import EXIT_CONFIG, Config, Json, State, app
from telemetry.cli.audit import witness, witnessed
from telemetry.config import Settings, check_vault, load_settings
from telemetry.errors import ConfigError
from telemetry.identity import Identity, Repair

__all__ = ["vault_app"]

_POLL_S: Final = 0.2

vault_app = typer.Typer(
    name="vault",
    help="The store of per-subject secrets: what is in it, its wrap keys, its backups.",
    no_args_is_help=True,
)
app.add_typer(vault_app)


def _settings(config: Path | None, state: Path | None) -> Settings:
    settings = load_settings(config, overrides={"state": str(state) if state else None})
    check_vault(settings)
    return settings


def _open(settings: Settings, repair: Repair = "") -> Identity:
    """Open the vault where no pipeline runs on it."""
    from telemetry.policy import load_policy, policy_dir  # noqa: PLC0415 - help must not wait
    from telemetry.run import open_custody  # noqa: PLC0415

    return Identity.open(
        settings.state_dir,
        environment=settings.environment,
        custody=open_custody(settings),
        vault_url=settings.vault.url or None,
        journal_url=settings.vault.journal or None,
        alone=True,
        repair=repair,
        max_age=load_policy(policy_dir(settings.policy.path)).max_age,
    )


def _show(name: str, steps: Iterator[float], *, quiet: bool) -> None:
    """Go through the steps of a work; on a terminal with a bar once it takes a second."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn(name),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    began, shown = time.monotonic(), False
    task = bar.add_task(name, total=1.0)
    try:
        for done in steps:
            if not shown and time.monotonic() - began > 1:
                bar.start()
                shown = True
            bar.update(task, completed=done)
    finally:
        bar.stop()


def _followed(state: Path) -> Iterator[float]:
    """Ask the running pipeline how far its work is, until it is over.

    Raises:
        ConfigError: It failed; the pipeline goes on.
        NoAnswerError: Another process runs there now, and knows nothing of it.
    """
    while True:
        time.sleep(_POLL_S)
        work: dict[str, Any] = ask(state, "GET", "/vault/work")
        if not work:
            raise NoAnswerError("The pipeline was started anew before it was through. Try again.")
        if not work["running"]:
            if work["error"]:
                raise ConfigError(work["error"])
            return
        yield float(work["done"])


@vault_app.command()
def stats(*, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Count what is in the vault: subjects, tombstones, wrap keys, pins, states.

    Examples:

      telemetry vault stats

      telemetry vault stats --json | jq .subjects
    """
    settings = _settings(config, state)
    figures = _stats(settings)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    console = Console(highlight=False)
    table = Table(title="Vault", title_justify="left", show_edge=False, show_header=False)
    table.add_row("database", f"{figures['database']}, schema {figures['schema']}")
    table.add_row("size", f"{figures['bytes'] / 2**20:,.1f} MiB")
    table.add_row("subjects", f"{figures['subjects']:,}")
    table.add_row("erased", f"{figures['erased']:,}")
    for version, number in sorted(figures["wrapped"].items()):
        table.add_row(f"under wrap key {version}", f"{number:,}")
    for domain, keys in sorted(figures["pinned"].items()):
        for kid, number in keys.items():
            table.add_row(f"pinned to {domain} {kid}", f"{number:,}")
    for word, number in sorted(figures["states"].items()):
        table.add_row(word.lower(), f"{number:,}")
    table.add_row("journal obeyed up to", f"{figures['journal']:,}")
    console.print(table)


def _stats(settings: Settings) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415 - only without a running pipeline

    try:
        answer: dict[str, Any] = ask(settings.state_dir, "GET", "/vault")
    except NotRunningError:
        identity = _open(settings)
        try:
            answer = msgspec.to_builtins(identity.stats(), str_keys=True)
        finally:
            identity.close()
    return answer


@vault_app.command()
def rewrap(
    *,
    config: Config = None,
    state: State = None,
    now: Annotated[
        bool, typer.Option("--now", help="Make a new wrap key whatever the age of the present.")
    ] = False,
    destroy: Annotated[
        bool,
        typer.Option("--destroy", help="Keep no former wrap key: all backups become unreadable."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Move all secrets under today's wrap key and destroy the keys that nothing needs.

    `telemetry run` does this each week by itself. The key before the present one is kept for a
    week, so that a backup can be read. Can be stopped and begun again at any time.

    Examples:

      telemetry vault rewrap

      telemetry vault rewrap --now --destroy    # a wrap key may have leaked
    """
    settings = _settings(config, state)
    keep = 0 if destroy else 1
    asked = urlencode({"now": int(now), "keep": keep})
    try:
        ask(settings.state_dir, "POST", f"/vault/rewrap?{asked}")
    except NotRunningError:
        from datetime import timedelta  # noqa: PLC0415

        from telemetry.identity.audit import KEY_ACTIONS, about_key  # noqa: PLC0415

        identity = _open(settings)
        try:
            after = {"rotate_after": timedelta(0)} if now else {}
            with witnessed(settings, "vault.rewrap", {}):
                try:
                    _show("rewrapping", identity.upkeep(keep=keep, **after), quiet=as_json)
                finally:
                    for turn in identity.turns():
                        witness(settings, KEY_ACTIONS[turn.what], about_key(turn.key))
        finally:
            identity.close()
    else:
        _show("rewrapping", _followed(settings.state_dir), quiet=as_json)
    figures = _stats(settings)
    if as_json:
        typer.echo(json.dumps({"wrapped": figures["wrapped"], "rewrapped": figures["rewrapped"]}))
        return
    for version, number in sorted(figures["wrapped"].items()):
        typer.echo(f"Under wrap key {version}: {number:,} subjects.")


@vault_app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="New file; must not exist.")],
    *,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Copy the vault into a file, while the pipeline runs.

    It holds no identifier, and tells nothing without the keyset. It can be read for one to two
    weeks, until its wrap key is destroyed: keep it for seven days at most.

    Examples:

      telemetry vault backup /var/backups/vault-2026-11-22.sqlite3
    """
    settings = _settings(config, state)
    place = file.absolute()
    if place.exists():
        raise ConfigError("exists already.", path=file, remedy="Name a new file.")
    try:
        ask(settings.state_dir, "POST", f"/vault/backup?{urlencode({'path': str(place)})}")
    except NotRunningError:
        identity = _open(settings)
        try:
            with witnessed(settings, "vault.backup", {"file": place.name}):
                _show("copying", identity.backup(place), quiet=as_json)
        finally:
            identity.close()
    else:
        _show("copying", _followed(settings.state_dir), quiet=as_json)
    size = place.stat().st_size
    if as_json:
        typer.echo(json.dumps({"file": str(place), "bytes": size}))
    else:
        typer.echo(f"{place}: {size / 2**20:,.1f} MiB. Keep it for seven days at most.")


@vault_app.command()
def restore(
    file: Annotated[Path | None, typer.Argument(help="A file of `telemetry vault backup`.")] = None,
    *,
    config: Config = None,
    state: State = None,
    new_journal: Annotated[
        bool,
        typer.Option(
            "--new-journal",
            help="Begin a new tombstone journal: only if the old one is lost and the vault itself "
            "was never set back.",
        ),
    ] = False,
    new_vault: Annotated[
        bool,
        typer.Option(
            "--new-vault",
            help="Begin a new vault in the place of one that is gone for good: every account gets "
            "new tokens.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring back the subjects that a backup has and the vault lacks. Stop the pipeline first.

    Whoever was erased since stays erased: the tombstone journal is obeyed before anything else.
    Who was new since keeps their tokens. Cut short, run it again; nothing is served until it is
    through.

    Examples:

      telemetry vault restore /var/backups/vault-2026-11-22.sqlite3

      telemetry vault restore --new-journal

      telemetry vault restore --new-vault    # there is no backup left
    """
    settings = _settings(config, state)
    if (file is not None) + new_journal + new_vault != 1:
        raise typer.BadParameter("Name a FILE, or give --new-journal or --new-vault.")
    try:
        ask(settings.state_dir, "GET", "/vault/work")
    except NotRunningError:
        running = False
    except ConfigError:
        running = True  # a role without a vault of its own, but on this state
    else:
        running = True
    if running:
        Console(stderr=True).print("The pipeline is running. Stop it first.")
        raise typer.Exit(EXIT_CONFIG)
    from telemetry.identity.audit import AUDIT_FILE, AuditLog, actor_of  # noqa: PLC0415

    # Recorded first: what cannot be witnessed is not restored. After a disaster it begins anew.
    action = "vault.begin" if new_vault else "vault.restore"
    log = AuditLog(settings.state_dir / AUDIT_FILE)
    try:
        log.record(actor_of(), action, {"file": file.name} if file else {}, "begun")
        repair: Repair = "anew" if new_vault else "journal" if new_journal else "restore"
        identity = _open(settings, repair)
        try:
            if file is not None:
                _show("restoring", identity.restore(file), quiet=as_json)
            figures = _numbers(identity)
        finally:
            identity.close()
        told = {"rows": figures["subjects"], "tombstones": figures["erased"]}
        log.record(actor_of(), action, told, "done")
    finally:
        log.close()
    if as_json:
        typer.echo(json.dumps(figures))
        return
    typer.echo(f"{figures['subjects']:,} subjects, {figures['erased']:,} erased.")


def _numbers(identity: Identity) -> dict[str, int]:
    counted = identity.stats()
    return {"subjects": counted.subjects, "erased": counted.erased, "journal": counted.journal}
