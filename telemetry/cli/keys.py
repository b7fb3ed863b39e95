"""``telemetry keys``: what an operator may do to keys. `telemetry run` does the usual unasked.

The file lock of the keyset orders this and running processes; they pick changes up within a minute.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.console import Console
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
from telemetry.cli.audit import witness, witnessed
from telemetry.config import Settings
from telemetry.errors import ConfigError, KeyringError

if TYPE_CHECKING:
    from telemetry.identity.custody import Custody
    from telemetry.identity.keyring import Key, Keyring, Use

__all__: list[str] = []

keys_app = typer.Typer(
    no_args_is_help=True,
    help="Look at keys, exchange and destroy them. [bold]telemetry run[/] does the usual unasked.",
)
app.add_typer(keys_app, name="keys")

_Told = TypeVar("_Told", bound="Key | None")

_USES: Final[dict[str, Use]] = {
    "seal": "seal",
    "token": "token",
    "wrap": "wrap",
    "delivery": "delivery",
    "hold": "hold",
    "audit": "audit",
}
_KEYSET: Final = Path("keys", "keyset.json")
_EVERYWHERE_S: Final = 150.0
_COLOURS: Final = {"PRIMARY": "green", "DISABLED": "yellow", "DESTROYED": "dim"}

Kid = Annotated[str, typer.Argument(help="Name of the key: telemetry keys list.")]
Domain = Annotated[str, typer.Option(help="purpose@recipient, for token and delivery keys.")]
Epoch = Annotated[str, typer.Option(help="rel or like 2026q4, for token keys.")]


def _custody(settings: Settings) -> Custody | None:
    from telemetry.start import open_custody  # noqa: PLC0415 - help must not wait for all of it

    return open_custody(settings)


def _ring(settings: Settings) -> Keyring:
    from telemetry.identity.keyring import Keyring  # noqa: PLC0415

    require_keys(settings)
    return Keyring.load(
        settings.state_dir / _KEYSET,
        environment=settings.environment,
        custody=_custody(settings),
    )


@contextmanager
def _witness(settings: Settings, action: str) -> Iterator[Callable[[_Told], _Told]]:
    """Open the audit log before anything is changed; a refusal of the keyset is an entry too."""
    from telemetry.identity.audit import AUDIT_FILE, AuditLog, about_key, actor_of  # noqa: PLC0415

    log = AuditLog(settings.state_dir / AUDIT_FILE)

    def tell(key: _Told) -> _Told:
        log.record(actor_of(), action, {} if key is None else about_key(key), "done")
        return key

    try:
        yield tell
    except ConfigError:
        log.record(actor_of(), action, {}, "refused:keyset")
        raise
    finally:
        log.close()


@keys_app.command()
def init(*, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Make the keys that are absent, as the first start would; change nothing that is there.

    With custody.kek = "file:PATH" a missing key file is made as well, unless there are keys.

    Exit code 0; 2 if what is there cannot be used.

    Examples:

      telemetry keys init

      TELEMETRY_CUSTODY_KEK=credential:telemetry-kek telemetry keys init
    """
    from telemetry.identity import initialise, initialise_development  # noqa: PLC0415
    from telemetry.identity.audit import about_key  # noqa: PLC0415

    settings = settings_of(config, state)
    custody, made = _custody(settings), False
    there = (settings.state_dir / _KEYSET).exists()
    before = {key.kid for key in _ring(settings).entries()} if there else set()
    witness(settings, "key.create", {}, "begun")
    if custody is None:
        initialise_development(settings.state_dir)
    else:
        if not (settings.state_dir / _KEYSET).exists() and not custody.made_here:
            made = custody.make()
        made |= initialise(settings.state_dir, environment=settings.environment, custody=custody)
    ring = _ring(settings)
    for key in ring.entries():
        if key.kid not in before:
            witness(settings, "key.create", about_key(key))
    if as_json:
        typer.echo(json.dumps({"made_kek": made, "keys": [_as_json(k) for k in ring.entries()]}))
        return
    counted = sum(key.state != "DESTROYED" for key in ring.entries())
    typer.echo(f"{counted} keys in {settings.state_dir / 'keys'}.")
    typer.echo(custody.advice if custody else "They lie in the clear: for development only.")


@keys_app.command("list")
def list_keys(
    *,
    every: Annotated[bool, typer.Option("--all", help="Destroyed keys, too.")] = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show the keys: what each is for, its state, and when it ends. Never a key itself.

    Examples:

      telemetry keys list

      telemetry keys list --all --json | jq -r '.[] | select(.state == "DESTROYED").receipt'
    """
    keys = [
        k for k in _ring(settings_of(config, state)).entries() if every or k.state != "DESTROYED"
    ]
    if as_json:
        typer.echo(json.dumps([_as_json(key) for key in keys]))
        return
    table = Table(show_edge=False)
    for column in ("kid", "use", "state", "for", "made", "used from", "destroyed"):
        table.add_column(column)
    for key in keys:
        what = " ".join(filter(None, (key.domain, key.epoch))) or (
            f"version {key.version}" if key.version else ""
        )
        gone = key.receipt.destroyed_at if key.receipt else key.destroy_after
        state_ = f"[{_COLOURS.get(key.state, 'default')}]{key.state}[/]"
        table.add_row(
            key.kid, key.use, state_, what, _day(key.created), _day(key.not_before), _day(gone)
        )
    print_table(table)


@keys_app.command()
def create(
    use: Annotated[str, typer.Argument(help=f"One of: {', '.join(_USES)}.")],
    *,
    domain: Domain = "",
    epoch: Epoch = "",
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a key that everybody loads before anybody uses it: PRE_ACTIVE until promoted.

    Examples:

      telemetry keys create wrap

      telemetry keys create token --domain analytics@heap --epoch rel
    """
    settings = settings_of(config, state)
    ring = _ring(settings)
    with _witness(settings, "key.create") as tell:
        _say(tell(ring.create(_use(use), domain=domain, epoch=epoch)), as_json=as_json)


@keys_app.command()
def promote(
    kid: Kid,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also if a running process has not loaded it yet.")
    ] = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Use a key for all that is new; the former one stays for what is late.

    Refused while a running process has not loaded it: a minute after create.

    Examples:

      telemetry keys promote 3dpd7npx
    """
    settings = settings_of(config, state)
    ring = _ring(settings)
    after = _former_ends(_named(ring, kid).use)
    with _witness(settings, "key.promote") as tell:
        key = tell(ring.promote(kid, destroy_former_after=after, force=force))
    _say(key, as_json=as_json)


@keys_app.command()
def enable(kid: Kid, *, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Let a disabled key serve again for what is late.

    Examples:

      telemetry keys enable 3dpd7npx
    """
    settings = settings_of(config, state)
    ring = _ring(settings)
    with _witness(settings, "key.enable") as tell:
        _say(tell(ring.enable(kid)), as_json=as_json)


@keys_app.command()
def disable(kid: Kid, *, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Use a key for nothing any more, but keep it: for a suspicion. Events that need it wait.

    Examples:

      telemetry keys disable 3dpd7npx
    """
    settings = settings_of(config, state)
    ring = _ring(settings)
    with _witness(settings, "key.disable") as tell:
        _say(tell(ring.disable(kid)), as_json=as_json)


@keys_app.command()
def destroy(
    kid: Kid, *, yes: Yes = False, config: Config = None, state: State = None, as_json: Json = False
) -> None:
    """Destroy a key for ever, here and in the backup folder; give a signed receipt.

    Copies that are registered elsewhere are named: destroy them, then telemetry keys copies
    --remove. Exit code 1 if somebody answered no.

    Examples:

      telemetry keys destroy 3dpd7npx

      telemetry keys destroy 3dpd7npx --yes --json > receipt.json
    """
    settings = settings_of(config, state)
    ring = _ring(settings)
    key = _named(ring, kid)
    confirm(f"Destroy {key!r}? Whatever needs it is lost for ever.", yes=yes)
    with _witness(settings, "key.destroy") as tell:
        receipt = ring.destroy(kid)
        tell(key)
    if as_json:
        typer.echo(json.dumps(receipt.as_json()))
        return
    typer.echo(f"Destroyed {kid} in {' and '.join(receipt.places)}.")
    for place in receipt.awaited:
        typer.echo(f"Still there: {place}. Destroy that copy, then: telemetry keys copies --remove")


@keys_app.command()
def rotate(
    use: Annotated[
        str, typer.Argument(help=f"{', '.join(_USES)}, kek; nothing: what is due now.")
    ] = "",
    *,
    to: Annotated[str, typer.Option(help="kek only: the new custody, like file:PATH.")] = "",
    domain: Domain = "",
    epoch: Epoch = "",
    yes: Yes = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Exchange a key at once, or do what is due by the calendar.

    A token key of a quarter: its recipient gets another token for everybody from now on, and cannot
    join them with the former ones. A token key of rel: who is known keeps their token, since the
    vault pins each subject to the key of its first day; who is new gets one of the new key. A seal
    key: gateways on other hosts need the new public.json before the former key ends in four days.
    kek: all keys are wrapped with another key-encryption key; set custody.kek to the same
    afterwards, and start again.

    Exit code 1 if somebody answered no.

    Examples:

      telemetry keys rotate

      telemetry keys rotate seal

      telemetry keys rotate kek --to file:/etc/telemetry/kek
    """
    settings = settings_of(config, state)
    if use == "kek":
        _rotate_kek(settings, to, as_json=as_json)
        return
    if to:
        raise ConfigError("--to is for kek only.", remedy="See: telemetry keys rotate --help.")
    ring = _ring(settings)
    if not use:
        from telemetry.identity.rotation import tend  # noqa: PLC0415
        from telemetry.policy import load_policy, policy_dir  # noqa: PLC0415
        from telemetry.run import keeps  # noqa: PLC0415

        periods = keeps(load_policy(policy_dir(settings.policy.path)))
        with _witness(settings, "key.rotate") as tell:
            turns = tend(ring, now=datetime.now(UTC), keeps=periods)
            for turn in turns:
                tell(turn.key)
        if as_json:
            typer.echo(json.dumps([{"what": t.what, **_as_json(t.key)} for t in turns]))
            return
        for turn in turns:
            typer.echo(f"{turn.what} {turn.key!r}")
        typer.echo(f"{len(turns)} done; nothing else is due.")
        return
    if use == "token":
        confirm(_rotates(domain, epoch), yes=yes)
    with _witness(settings, "key.rotate") as tell:
        made = ring.create(_use(use), domain=domain, epoch=epoch)
        _wait_until_everywhere(ring, made.kid)
        key = tell(ring.promote(made.kid, destroy_former_after=_former_ends(use)))
    _say(key, as_json=as_json)


def _rotates(domain: str, epoch: str) -> str:
    """Ask for what a new token key does: it differs with the epoch (DESIGN 4, pinning)."""
    if epoch == "rel":
        return (
            f"Make a new token key for {domain}? Whoever is known there keeps their token; only "
            "who is new from now on gets one of the new key."
        )
    return (
        f"Give everybody another token at {domain} for the rest of {epoch}? The recipient counts "
        "each of them twice in that quarter."
    )


def _wait_until_everywhere(ring: Keyring, kid: str) -> None:
    """Running processes look for new keys once a minute; none may be used before."""
    ends = time.monotonic() + _EVERYWHERE_S
    if ring.lacking(kid):
        console = Console(stderr=True)
        with console.status("Waiting until all running processes have loaded the new key"):
            while ring.lacking(kid) and time.monotonic() < ends:
                time.sleep(1.0)


def _former_ends(use: str) -> datetime | None:
    from telemetry.identity.rotation import SEAL_LAG  # noqa: PLC0415

    return datetime.now(UTC) + SEAL_LAG if use == "seal" else None


def _rotate_kek(settings: Settings, to: str, *, as_json: bool) -> None:
    from telemetry.identity.custody import Custody  # noqa: PLC0415
    from telemetry.identity.keyring import Keyring  # noqa: PLC0415

    new = Custody(to, state=settings.state_dir, backup=settings.custody.backup) if to else None
    if new is None:
        raise ConfigError(
            "to where is not said.", remedy="Use --to file:PATH, or another form of custody.kek."
        )
    if settings.custody.kek == to or (new.path == Custody(state=settings.state_dir).path):
        raise ConfigError(
            "the new key-encryption key needs a place of its own.",
            remedy="Name another file, so that a step that fails can be repeated.",
        )
    new.make()
    path, old = settings.state_dir / _KEYSET, _custody(settings)
    with _witness(settings, "key.custody") as tell:
        Keyring.change_custody(path, environment=settings.environment, old=old, new=new)
        tell(None)
    if as_json:
        typer.echo(json.dumps({"custody": to.partition(":")[0], "advice": new.advice}))
        return
    typer.echo(
        f"All keys are wrapped anew. Now set custody.kek = {json.dumps(to)} and start again."
    )
    typer.echo(new.advice)


@keys_app.command()
def verify(*, config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Check that everything fits: each key its name and its public half, public.json, the copy.

    Exit code 0 if all is well; 1 if the public file or the copy differs, a key should have been
    destroyed, a receipt's signature is wrong, or a copy waits to be destroyed; 2 if the keyset
    itself cannot be used.

    Examples:

      telemetry keys verify

      telemetry keys verify --json | jq .complaints
    """
    settings = settings_of(config, state)
    ring = _ring(settings)
    complaints = _complaints(ring, settings)
    keys = [key for key in ring.entries() if key.state != "DESTROYED"]
    if as_json:
        report = {"wrapped": not ring.insecure, "kids": [k.kid for k in keys]}
        typer.echo(json.dumps({**report, "complaints": complaints}))
    else:
        wrapped = "in the clear" if ring.insecure else "wrapped"
        typer.echo(f"{len(keys)} keys, {wrapped}.")
        for complaint in complaints:
            typer.echo(f"  {complaint}")
    if complaints:
        raise typer.Exit(EXIT_NO)


def _complaints(ring: Keyring, settings: Settings) -> list[str]:
    from telemetry.identity.keyring import PublicKeys  # noqa: PLC0415
    from telemetry.identity.rotation import overdue  # noqa: PLC0415

    found: list[str] = []
    folder = settings.state_dir / "keys"
    public = folder / "public.json"
    try:
        PublicKeys.load(public)
        if public.read_bytes() != ring.public_document():
            found.append(f"{public} does not say what the keyset says; a running pipeline mends it")
    except KeyringError as error:
        found.append(str(error))
    custody = _custody(settings)
    if custody is not None:
        for name in ("keyset.json", "spool.json"):
            copy = custody.backup / name
            if (folder / name).exists() and (
                not copy.exists() or copy.read_bytes() != (folder / name).read_bytes()
            ):
                found.append(
                    f"{copy} is not the copy that it should be; a running pipeline mends it"
                )
    found += [
        f"{key!r} should have been destroyed" for key in overdue(ring.entries(), datetime.now(UTC))
    ]
    signers = {key.kid: key.public for key in ring.entries() if key.use == "audit"}
    for key in ring.entries():
        if key.receipt is not None:
            signed_by = signers.get(key.receipt.signed_by)
            if signed_by is None or not key.receipt.verify(signed_by):
                found.append(f"the receipt of {key!r} is not signed by a key that was here")
            waiting = set(key.receipt.awaited) & set(key.copies)
            found += [f"a copy of {key!r} waits at {place}" for place in sorted(waiting)]
    return found


@keys_app.command("export-public")
def export_public(*, config: Config = None, state: State = None) -> None:
    """Print public.json: all that a gateway, or who verifies the audit log, needs. No secret.

    A gateway learns the next key 30 days before its use, so renew its file at least monthly.

    Examples:

      telemetry keys export-public > public.json
    """
    typer.echo(_ring(settings_of(config, state)).public_document().decode(), nl=False)


@keys_app.command()
def copies(
    *,
    add: Annotated[str, typer.Option(help="A copy that you made of the keyset: where it is.")] = "",
    remove: Annotated[str, typer.Option(help="A copy that you destroyed.")] = "",
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Keep the register of copies: a receipt names those that somebody still has to destroy.

    Examples:

      telemetry keys copies

      telemetry keys copies --add "USB stick 3, safe of the data protection officer"
    """
    settings = settings_of(config, state)
    ring = _ring(settings)
    # Not where: that is free text, and the receipts name it.
    if add:
        with witnessed(settings, "key.export", {"copies": "added"}):
            ring.note_copy(add)
    if remove:
        with witnessed(settings, "key.export", {"copies": "removed"}):
            ring.drop_copy(remove)
    places: dict[str, list[str]] = {}
    for key in ring.entries():
        for place in key.copies:
            places.setdefault(place, []).append(key.kid)
    if as_json:
        typer.echo(json.dumps(places))
        return
    for place, kids in places.items():
        typer.echo(f"{place}: {len(kids)} keys")


def _use(word: str) -> Use:
    if word not in _USES:
        raise ConfigError("there is no such use.", remedy=f"Use one of: {', '.join(_USES)}.")
    return _USES[word]


def _named(ring: Keyring, kid: str) -> Key:
    for key in ring.entries():
        if key.kid == kid:
            return key
    raise ConfigError("there is no key of that name.", remedy="See: telemetry keys list.")


def _day(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).date().isoformat()


def _say(key: Key, *, as_json: bool) -> None:
    place = " ".join(filter(None, (key.domain, key.epoch)))
    told = f"The {key.use} key {key.kid}{f' for {place}' if place else ''} is {key.state}."
    typer.echo(json.dumps(_as_json(key)) if as_json else told)


def _as_json(key: Key) -> dict[str, Any]:
    def when(at: datetime | None) -> str | None:
        return None if at is None else at.isoformat()

    return {
        "kid": key.kid,
        "use": key.use,
        "state": key.state,
        "domain": key.domain,
        "epoch": key.epoch,
        "version": key.version,
        "created": when(key.created),
        "not_before": when(key.not_before),
        "not_after": when(key.not_after),
        "destroy_after": when(key.destroy_after),
        "copies": list(key.copies),
        "receipt": key.receipt.as_json() if key.receipt else None,
    }
