"""Commands for the audit log: audit log, checkpoint, verify, prove, erase."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from telemetry.cli import (
    EXIT_NO,
    Config,
    Json,
    State,
    Yes,
    app,
    confirm,
    print_table,
    require_keys,
    settings_of,
)
from telemetry.config import Settings
from telemetry.errors import ConfigError

# Whoever asks for help must not wait for the vault's library.
if TYPE_CHECKING:
    from telemetry.identity import Identity
    from telemetry.identity.audit import AuditLog, Entry, VerifierKey

__all__ = ["open_identity", "open_log", "signing_log"]

audit = typer.Typer(
    name="audit", help="Who did what: read, sign and verify the audit log.", no_args_is_help=True
)
app.add_typer(audit)

Key = Annotated[
    list[str],
    typer.Option("--key", help="Public key of the log, or a file of keys; may be repeated."),
]


def open_log(settings: Settings, identity: Identity | None = None) -> AuditLog:
    """Open the audit log of a state folder; it signs if `identity` is given.

    Raises:
        ConfigError: There is none.
        AuditError: It cannot be opened.
    """
    from telemetry.identity.audit import AUDIT_FILE, AuditLog  # noqa: PLC0415

    path = settings.state_dir / AUDIT_FILE
    if not path.exists():
        raise ConfigError(
            "There is no audit log yet.", path=path, remedy="The first `telemetry run` makes it."
        )
    export = settings.audit.checkpoints
    return AuditLog(
        path,
        signer=None if identity is None else identity.signer,
        export=Path(export) if export else None,
    )


def witness(
    settings: Settings, action: str, what: Mapping[str, str | int], result: str = "done"
) -> None:
    """Record what a command does where no pipeline runs that would; the log is made if need be.

    Raises:
        AuditError: It cannot be written.
    """
    from telemetry.identity.audit import AUDIT_FILE, AuditLog, actor_of  # noqa: PLC0415

    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = AuditLog(settings.state_dir / AUDIT_FILE)
    try:
        log.record(actor_of(), action, what, result)
    finally:
        log.close()


@contextmanager
def witnessed(settings: Settings, action: str, what: Mapping[str, str | int]) -> Iterator[None]:
    """Record before something is done that it begins, and after that it is done. As `witness`."""
    witness(settings, action, what, "begun")
    yield
    witness(settings, action, what)


def open_identity(settings: Settings) -> Identity:
    """Open keyset and vault as the pseudonymizer does.

    Raises:
        KeyringError: No usable keyset.
        VaultError: The vault cannot be reached.
    """
    from telemetry.identity import Identity  # noqa: PLC0415
    from telemetry.start import open_custody  # noqa: PLC0415

    require_keys(settings)
    return Identity.open(
        settings.state_dir,
        environment=settings.environment,
        custody=open_custody(settings),
        vault_url=settings.vault.url or None,
        journal_url=settings.vault.journal or None,
    )


@contextmanager
def signing_log(settings: Settings) -> Iterator[AuditLog]:
    """Open the audit log with the key that signs it. Errors as `open_log`, and of the keyset."""
    identity = open_identity(settings)
    try:
        log = open_log(settings, identity)
        try:
            yield log
        finally:
            log.close()
    finally:
        identity.close()


@audit.command("log")
def show(
    *,
    action: Annotated[str, typer.Option(help="Only this action; 'key.' for all of keys.")] = "",
    actor: Annotated[str, typer.Option(help="Only this actor, such as person:erika.")] = "",
    since: Annotated[datetime | None, typer.Option(help="Only from this time on, UTC.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the whole log there, for `audit verify`.")
    ] = None,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show the entries of the audit log, or export all of it.

    Entries hold no identifier. What was erased or is past its period is not shown.

    Examples:

      telemetry audit log --action account. --since 2026-11-01

      telemetry audit log --export audit.jsonl
    """
    log = open_log(settings_of(config, state))
    try:
        if export is not None:
            size = _export(log, export)
            told = {"entries": size, "file": str(export)}
            typer.echo(json.dumps(told) if as_json else f"{size} entries in {export}.")
            return
        moment = None if since is None else since.replace(tzinfo=since.tzinfo or UTC)
        entries = log.entries(action=action, actor=actor, since=moment)
    finally:
        log.close()
    if as_json:
        for entry in entries:
            typer.echo(json.dumps(entry.as_json(), ensure_ascii=False))
        return
    print_table(_table(entries))


def _table(entries: Sequence[Entry]) -> Table:
    table = Table(show_edge=False)
    for column in ("seq", "time", "actor", "action", "result", "about"):
        table.add_column(column, justify="right" if column == "seq" else "left")
    for entry in entries:
        body = {k: v for k, v in (entry.body or {}).items() if v != ""}
        about = "(erased)" if entry.body is None else " ".join(f"{k}={v}" for k, v in body.items())
        row = (entry.time, entry.actor, entry.action, entry.result, about)
        table.add_row(str(entry.seq), *map(escape, row))
    return table


def _export(log: AuditLog, target: Path) -> int:
    """Write an export that only its owner may read."""
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(log.export())
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {os.strerror(error.errno or 0)}.",
            path=target,
            remedy="Name a new file in a folder of yours.",
        ) from None
    return log.size


@audit.command()
def checkpoint(*, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Sign the log as it stands, and give the note to the second principal.

    Prints the note and the public key that verifies it. `telemetry run` does this every hour, and
    every way back does it. Needs the rights of the pseudonymizer.

    Examples:

      telemetry audit checkpoint

      telemetry audit checkpoint --json | jq -r .key
    """
    from telemetry.identity.audit import Checkpoint  # noqa: PLC0415

    with signing_log(settings_of(config, state)) as log:
        note, key = log.checkpoint(), log.key
    head = Checkpoint.parse(note)
    told = {"size": head.size, "root": head.root.hex(), "checkpoint": note, "key": str(key)}
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    typer.echo(note, nl=False)
    typer.echo(f"\nPublic key: {key}")


@audit.command("verify")
def check(
    file: Annotated[Path, typer.Argument(help="An export or a proof.")],
    *,
    key: Key,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint", help="A note that the second principal kept, or its folder; repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify an exported log or a proof, offline, with the public key alone.

    Finds edited, missing and reordered entries, and a log that contradicts a checkpoint kept
    elsewhere. Without --checkpoint a log that its own key-holder rewrote cannot be told from the
    true one. Exit code 1 if anything is wrong.

    Examples:

      telemetry audit verify audit.jsonl --key audit.pub --checkpoint /mnt/officer

      telemetry audit verify proof.json --key audit-1a2b3c4d+5e6f7a8b+AQID… --json
    """
    from telemetry.identity.audit import verify, verify_proof  # noqa: PLC0415

    keys = [parsed for one in key for parsed in _keys(one)]
    witnessed = [_text(path) for one in checkpoints or [] for path in _notes(one)]
    lines = _text(file).splitlines()
    proof = _proof(lines)
    if proof is not None:
        sound = verify_proof(proof, keys)
        told: dict[str, Any] = {"sound": sound, "proof": True}
        text = "The proof holds." if sound else "The proof does not hold."
    else:
        report = verify(lines, keys, witnessed=witnessed)
        sound = report.sound
        told = {
            "sound": sound,
            "entries": report.size,
            "covered": report.covered,
            "erased": report.erased,
            "findings": [{"kind": f.kind, "at": f.at, "text": f.text} for f in report.findings],
        }
        verdict = "sound" if sound else "NOT what was signed"
        text = (
            "".join(f"{f.kind} at {f.at}: {f.text}\n" for f in report.findings)
            + f"{report.size} entries, {report.covered} of them under a valid checkpoint, "
            f"{report.erased} erased by rule: {verdict}."
        )
    typer.echo(json.dumps(told) if as_json else text)
    if not sound:
        raise typer.Exit(EXIT_NO)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError("cannot be read.", path=path, remedy="Name a readable file.") from None


def _keys(named: str) -> list[VerifierKey]:
    """Read a key that stands on the command line, or a file with one in each line."""
    from telemetry.identity.audit import VerifierKey  # noqa: PLC0415

    path = Path(named)
    lines = _text(path).splitlines() if path.is_file() else [named]
    return [VerifierKey.parse(line) for line in lines if line.strip()]


def _notes(path: Path) -> list[Path]:
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        folder = False
    return sorted(path.glob("checkpoint-*.txt")) if folder else [path]


def _proof(lines: Sequence[str]) -> dict[str, Any] | None:
    """Read a proof, which is one JSON object; an export has a line for each entry."""
    try:
        document = json.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and "proof" in document else None


@audit.command()
def prove(
    seq: Annotated[int | None, typer.Argument(help="Number of an entry.")] = None,
    *,
    since: Annotated[
        Path | None,
        typer.Option(help="Instead: prove that the log continues this earlier checkpoint."),
    ] = None,
    config: Config = None,
    state: State = None,
) -> None:
    """Prove that the log holds an entry, or that it continues an earlier checkpoint.

    Prints one JSON object that `telemetry audit verify` reads. It shows nothing of other entries.
    Needs the rights of the pseudonymizer, because it signs a checkpoint.

    Examples:

      telemetry audit prove 17 > proof.json

      telemetry audit prove --since checkpoint-000000000012.txt
    """
    if (seq is None) == (since is None):
        raise typer.BadParameter("Name either an entry or --since.")
    with signing_log(settings_of(config, state)) as log:
        told = log.prove(seq) if seq is not None else log.prove_growth(_text(since or Path()))
    typer.echo(json.dumps(told, ensure_ascii=False))


@audit.command()
def erase(
    seq: Annotated[int, typer.Argument(help="Number of the entry.")],
    *,
    reason: Annotated[str, typer.Option(help="Why; it stands in the log.")],
    ticket: Annotated[str, typer.Option(help="Where it is explained.")] = "",
    yes: Yes = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Destroy the content of an entry; its place in the log and every proof stay.

    Who, when and which action stay too: they are what is proved. That it was done is an entry.
    Asks first; exit code 1 if the answer is no.

    Examples:

      telemetry audit erase 17 --reason "a customer's name in the ticket"

      telemetry audit erase 17 --reason "a customer's name" --ticket DPO-4 --yes --json
    """
    from telemetry.identity.audit import actor_of  # noqa: PLC0415

    settings = settings_of(config, state)
    log = open_log(settings)
    try:
        found = log.entries(first=seq, last=seq)
    finally:
        log.close()
    if found:
        what = f"{found[0].action} by {found[0].actor} at {found[0].time}"
        confirm(f"Destroy the content of entry {seq} ({what}) for good?", yes=yes)
    with signing_log(settings) as log:
        log.erase(seq, actor=actor_of(), reason=reason, ticket=ticket)
        log.checkpoint()
    told = f"The content of entry {seq} is destroyed; its place and every proof stay."
    typer.echo(json.dumps({"erased": seq}) if as_json else told)
