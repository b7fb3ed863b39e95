"""Commands on dead letters: dead list, show, replay, purge; on held events: held list, release.

A list never shows an event: a reason, a place, a shape. The original opens only with the private
key, which does not belong on these hosts; whoever gives it with ``--key`` brings it for the moment.

The embedded log has one owner, so its running pipeline is asked. On Kafka nobody is: the commands
look into the topics themselves, with the rights that their configuration has.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self
from urllib.parse import urlencode

import msgspec
import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from telemetry import logs
from telemetry.admin import NotRunningError, ask
from telemetry.brokers import DEAD, HELD
from telemetry.cli import EXIT_NO, Config, Json, State, Yes, app, confirm, print_table, settings_of
from telemetry.cli.audit import witness
from telemetry.config import Settings
from telemetry.errors import CapsuleError
from telemetry.letters import Chosen, Letter, Meant, Opened, page, purge, release
from telemetry.status import spoken

if TYPE_CHECKING:
    from telemetry.brokers import Drawer
    from telemetry.identity import DeadLetterOpener
    from telemetry.redrive import Redrive

__all__: list[str] = []

_LOUD: Final = "THIS SHOWS ORIGINAL EVENTS AND HOLDS PERSONAL DATA. Do not pass it on."
_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_AT_ONCE: Final = 50

dead_app = typer.Typer(no_args_is_help=True, help="Look at events that could not be processed.")
app.add_typer(dead_app, name="dead")
held_app = typer.Typer(no_args_is_help=True, help="Look at held events, and let them go on.")
app.add_typer(held_app, name="held")

EventId = Annotated[str, typer.Option("--event", help="Only this event id (32 hex digits).")]
Reason = Annotated[str, typer.Option(help="Only this reason; docs/reliability.md lists them.")]
Stage = Annotated[str, typer.Option(help="Only from edge, pseudonymizer, or a recipient.")]
OlderThan = Annotated[str, typer.Option(help="Only those dead for longer: 90s, 10min, 6h, 7d.")]
Key = Annotated[
    Path | None,
    typer.Option(help="keyset.json with the private key for dead letters.", show_default="none"),
]


@dead_app.command("list")
def list_letters(
    *,
    event: EventId = "",
    reason: Reason = "",
    stage: Stage = "",
    older_than: OlderThan = "",
    most: Annotated[int, typer.Option(help="Most letters that are listed.")] = 100,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """List dead letters, oldest first: reason, stage, age, place, and whether one can go again.

    Never shows an event. Asks the running pipeline; without one it reads the state itself.

    Examples:

      telemetry dead list

      telemetry dead list --reason undecodable --older-than 1d --json
    """
    with _Desk(config, state) as desk:
        found = desk.oldest(_chosen(event, reason, stage, older_than), most)
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    console = Console(highlight=False)
    if not found:
        console.print("No dead letters.")
        return
    table = Table(show_edge=False)
    for column in ("reason", "stage", "path", "kind", "age", "place", "event", "goes again"):
        table.add_column(column)
    for one in found:
        row = (one.reason, one.stage, one.path, one.kind, spoken(one.age_s), one.place)
        table.add_row(*map(escape, row), one.event_id, one.goes_again)
    print_table(table)


@dead_app.command()
def show(
    event_id: Annotated[str, typer.Argument(help="Event id, 32 hex digits.")],
    *,
    key: Key = None,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show one event's dead letters: reason, path, shape. The original only with the key.

    Without --key nothing of the event's content is shown: of its outermost object the names that
    our records declare, and the class of each value. With --key the original is opened here, in
    this command, and printed; the running pipeline logs that it handed it out.

    Examples:

      telemetry dead show 0190a6e0c0de7000800000000000c0de

      telemetry dead show 0190a6e0c0de7000800000000000c0de --key /media/keys/keyset.json
    """
    with _Desk(config, state) as desk:
        opener = desk.opener(key) if key else None
        chosen = _chosen(event_id, "", "", "")
        found = [one for letters in desk.pages(chosen, sealed=bool(key)) for one in letters]
        if not found:
            raise typer.BadParameter("There is no dead letter of this event.")
        originals = [_open(opener, one) if opener else None for one in found]
        if as_json:
            shown = [msgspec.to_builtins(msgspec.structs.replace(one, sealed=b"")) for one in found]
            for entry, original in zip(shown, originals, strict=True):
                if original is not None:
                    entry["original"] = original.decode("utf-8", "replace")
            typer.echo(json.dumps(shown))
            return
        console = Console(highlight=False, soft_wrap=True)
        for one, original in zip(found, originals, strict=True):
            for name in ("reason", "path", "stage", "kind", "tenant", "place", "goes_again"):
                console.print(f"{name.replace('_', ' '):<12}", end="")
                console.print(getattr(one, name) or "-", markup=False)
            console.print(
                f"died         {one.died_at:%Y-%m-%d %H:%M:%S} UTC, {spoken(one.age_s)} ago"
            )
            console.print(f"retained     until {one.retain_until:%Y-%m-%d}")
            for name, sort in one.shape.items():
                console.print(f"  {name}: {sort}", markup=False)
            if original is not None:
                Console(stderr=True).print(f"[bold red]{_LOUD}[/]")
                console.print(original.decode("utf-8", "replace"), markup=False)


@dead_app.command()
def replay(  # noqa: PLR0913 - options
    *,
    key: Annotated[Path, typer.Option(help="keyset.json with the private key for dead letters.")],
    event: EventId = "",
    reason: Reason = "",
    stage: Stage = "",
    older_than: OlderThan = "",
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Send dead letters on their way again, after what killed them was mended.

    Each goes with its own event id and time through today's edge and scrubber; its retention is
    looked at first, and by the pseudonymizer the state of whom it names. One that fails again
    stays where it is. What a recipient refused has no identifiers any more: no_identifiers.
    Needs the running pipeline. Exit code 1 if some stayed.

    Examples:

      telemetry dead replay --reason undecodable --key /media/keys/keyset.json

      telemetry dead replay --event 0190a6e0c0de7000800000000000c0de --key keyset.json --json
    """
    chosen = _some(event, reason, stage, older_than, everything=everything)
    with _Desk(config, state) as desk:
        opener = desk.opener(key)
        outcomes: dict[str, int] = {}
        begun = datetime.now(UTC)
        with _progress("replayed", desk.waiting()) as advance:
            for letters in desk.pages(chosen, sealed=True):
                opened = []
                for one in letters:
                    if one.died_at >= begun:
                        continue  # it went already, and died again
                    original = _open(opener, one) if one.sealed else b""
                    if original is None:
                        outcomes["another_key"] = outcomes.get("another_key", 0) + 1
                        continue
                    opened.append(_opened(one, original))
                for start in range(0, len(opened), _AT_ONCE):
                    some = opened[start : start + _AT_ONCE]
                    for word, count in desk.replay(some).items():
                        outcomes[word] = outcomes.get(word, 0) + count
                    advance(len(some))
        _tell(outcomes, as_json=as_json)
        if set(outcomes) - {"replayed"}:
            raise typer.Exit(EXIT_NO)


@dead_app.command("purge")
def purge_letters(  # noqa: PLR0913 - options
    *,
    event: EventId = "",
    reason: Reason = "",
    stage: Stage = "",
    older_than: OlderThan = "",
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Yes = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Delete dead letters for good. They stay counted: dropped at dead, purged.

    Asks first, and says how many; exit code 1 if the answer is no.

    Examples:

      telemetry dead purge --reason undecodable --older-than 7d

      telemetry dead purge --all --yes --json
    """
    chosen = _some(event, reason, stage, older_than, everything=everything)
    with _Desk(config, state) as desk:
        if not yes:
            counted = Counter(one.reason for letters in desk.pages(chosen) for one in letters)
            listed = ", ".join(f"{reason} {count}" for reason, count in sorted(counted.items()))
            if counted:
                confirm(
                    f"Delete for good: {counted.total()} of the dead letters ({listed})?", yes=yes
                )
        purged = 0
        with _progress("purged", desk.waiting()) as advance:
            for count in desk.purge(chosen):
                purged += count
                advance(count)
        _tell({"purged": purged}, as_json=as_json)
        if remark := desk.free():
            typer.echo(remark, err=True)


@held_app.command("list")
def list_held(
    *,
    event: EventId = "",
    older_than: Annotated[str, typer.Option(help="Only received before: 90s, 10min, 6h, 7d.")] = "",
    most: Annotated[int, typer.Option(help="Most events that are listed.")] = 100,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """List held events, oldest first: why, since when, until when they may be kept.

    An event is held while the processing of somebody it names is restricted (Art. 18 GDPR). Never
    shows its content: that is scrubbed, and its identifiers are sealed.

    Examples:

      telemetry held list

      telemetry held list --older-than 30d --json
    """
    with _Desk(config, state) as desk:
        found = desk.oldest(_chosen(event, "", "", older_than), most, HELD)
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    console = Console(highlight=False)
    if not found:
        console.print("No held events.")
        return
    table = Table(show_edge=False)
    for column in ("reason", "kind", "age", "kept until", "place", "event", "goes again"):
        table.add_column(column)
    for one in found:
        row = (one.reason, one.kind, spoken(one.age_s), f"{one.retain_until:%Y-%m-%d}", one.place)
        table.add_row(*map(escape, row), one.event_id, one.goes_again)
    print_table(table, console)


@held_app.command("release")
def release_held(
    *,
    event: EventId = "",
    older_than: Annotated[str, typer.Option(help="Only received before: 90s, 10min, 6h, 7d.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Let held events go on, after the restriction was lifted.

    Each goes back to the pseudonymizer, which looks at the state of whom it names anew: one that is
    still restricted is held again. One whose retention has ended stays. Exit code 1 if some stayed.

    Examples:

      telemetry held release --all

      telemetry held release --event 0190a6e0c0de7000800000000000c0de --json
    """
    chosen = _some(event, "", "", older_than, everything=everything)
    with _Desk(config, state) as desk:
        # All that are meant first: one that is held again comes back at the end of the stream.
        meant = [_meant(one) for events in desk.pages(chosen, HELD) for one in events]
        outcomes: dict[str, int] = {}
        with _progress("released", len(meant)) as advance:
            for start in range(0, len(meant), _AT_ONCE):
                some = meant[start : start + _AT_ONCE]
                for word, count in desk.release(some).items():
                    outcomes[word] = outcomes.get(word, 0) + count
                advance(len(some))
        _tell(outcomes, as_json=as_json, nothing="No held events.")
        if set(outcomes) - {"released"}:
            raise typer.Exit(EXIT_NO)


# ---------------------------------------------------------------------- which, and with what


def _chosen(event: str, reason: str, stage: str, older_than: str) -> Chosen:
    event = event.replace("-", "").lower()
    if event and not re.fullmatch(r"[0-9a-f]{32}", event):
        raise typer.BadParameter("An event id has 32 hexadecimal digits.")
    seconds = 0.0
    if older_than:
        match = re.fullmatch(r"(\d{1,6})(s|min|h|d)", older_than)
        if match is None:
            raise typer.BadParameter("Write a time such as 90s, 10min, 6h or 7d.")
        seconds = float(match[1]) * _UNITS[match[2]]
    return Chosen(event_id=event, reason=reason, stage=stage, older_than_s=seconds)


def _some(event: str, reason: str, stage: str, older_than: str, *, everything: bool) -> Chosen:
    """Refuse to touch all of them for want of a word."""
    chosen = _chosen(event, reason, stage, older_than)
    if (chosen == Chosen()) is not everything:
        raise typer.BadParameter(
            "Say which, with --event, --older-than or the like; or else --all."
        )
    return chosen


def _open(opener: DeadLetterOpener, one: Letter) -> bytes | None:
    try:
        return opener.open(one.sealed, event_id=one.event_id)
    except CapsuleError:
        return None


def _seq(one: Letter) -> int:
    return int(one.place.rpartition("/")[2])


def _meant(one: Letter) -> Meant:
    return Meant(seq=_seq(one), event_id=one.event_id, reason=one.reason)


def _opened(one: Letter, original: bytes) -> Opened:
    return Opened(seq=_seq(one), event_id=one.event_id, reason=one.reason, original=original)


def _tell(outcomes: dict[str, int], *, as_json: bool, nothing: str = "No dead letters.") -> None:
    if as_json:
        typer.echo(json.dumps(outcomes))
    else:
        listed = ", ".join(f"{word} {count}" for word, count in sorted(outcomes.items()))
        typer.echo(listed or nothing)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    """Show how far it is, on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total or None)
        yield lambda count: bar.advance(task, count)


# ---------------------------------------------------------------------- the log


class _Desk:
    """Where letters are looked at: the running pipeline, or the state itself if nobody owns it.

    On Kafka always the topics themselves, over one connection for each command.
    """

    def __init__(self, config: Path | None, state: Path | None) -> None:
        self._settings: Settings = settings_of(config, state)
        self._on_kafka = self._settings.broker.kind == "kafka"
        self._topics: Any = None
        self._witnessed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._topics is not None:
            self._topics.close()

    def opener(self, key: Path) -> DeadLetterOpener:
        """Load the private key.

        Raises:
            KeyringError: It is not one, others can read it, or it is not for this environment.
        """
        from telemetry.identity import load_dead_letter_opener  # noqa: PLC0415 - only with a key
        from telemetry.start import open_custody  # noqa: PLC0415

        settings = self._settings
        return load_dead_letter_opener(
            key, environment=settings.environment, custody=open_custody(settings)
        )

    def waiting(self) -> int:
        """Count the letters there are, as far as the running pipeline says."""
        try:
            return int(self._ask("GET", "/books")["waiting"]["dead"])
        except NotRunningError:
            return 0

    def oldest(self, chosen: Chosen, most: int, stream: str = DEAD) -> list[Letter]:
        """Give the oldest letters, or held events."""
        found: list[Letter] = []
        for letters in self.pages(chosen, stream):
            found += letters
            if len(found) >= most and not self._on_kafka:
                break
        if self._on_kafka:  # which gives them in order within each partition only
            found.sort(key=lambda one: one.died_at)
        return found[:most]

    def pages(
        self, chosen: Chosen, stream: str = DEAD, *, sealed: bool = False
    ) -> Iterator[list[Letter]]:
        """Give the letters, or held events, page by page, oldest first."""
        after = -1
        more = {"sealed": "1"} if sealed else {}
        key = "letters" if stream == DEAD else stream
        while after:
            try:
                answer = self._ask("GET", f"/{stream}?{_query(chosen, after, more)}")
                letters = msgspec.convert(answer[key], list[Letter])
                after = int(answer["next"])
            except NotRunningError:
                with self._shelf() as shelf:
                    now = datetime.now(UTC)
                    self._note_originals(sealed=sealed)
                    letters, after = page(
                        shelf, chosen, now, stream=stream, after=max(after, 0), sealed=sealed
                    )
                    if sealed and letters:
                        witness(self._settings, "dead.open", {"count": len(letters)})
            if letters:
                yield letters

    def _note_originals(self, *, sealed: bool) -> None:
        """Say in our log that originals are read, as the running pipeline would."""
        if sealed:
            logs.configure(self._settings.log, production=self._settings.production)
            log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.cli.letters")
            log.warning("sealed_originals_given", by=f"uid {os.getuid()} pid {os.getpid()}")

    def purge(self, chosen: Chosen) -> Iterator[int]:
        """Delete letters, page by page; give how many of each."""
        after = -1
        while after:
            try:
                answer = self._ask("POST", f"/dead/purge?{_query(chosen, after, {})}")
                count, after = int(answer["purged"]), int(answer["next"])
            except NotRunningError:
                with self._shelf() as shelf:
                    self._witness_once("dead.purge")
                    count, after = purge(shelf, chosen, datetime.now(UTC), after=max(after, 0))
            yield count

    def replay(self, opened: list[Opened]) -> dict[str, int]:
        """Hand opened letters to the running pipeline; on Kafka to the sealed topic."""
        outcomes: dict[str, int]
        if not self._on_kafka:
            return self._ask("POST", "/dead/replay", msgspec.json.encode(opened))  # type: ignore[no-any-return]
        with self._shelf() as shelf:
            self._witness_once("dead.replay")
            outcomes = asyncio.run(self._redrive(shelf).replay(opened))
        return outcomes

    def release(self, meant: list[Meant]) -> dict[str, int]:
        """Let held events go on."""
        outcomes: dict[str, int]
        try:
            outcomes = self._ask("POST", "/held/release", msgspec.json.encode(meant))
        except NotRunningError:
            with self._shelf() as shelf:
                self._witness_once("held.release")
                outcomes = release(shelf, meant, datetime.now(UTC))
        return outcomes

    def free(self) -> str:
        """Have Kafka delete what nobody wants any more; say what it leaves."""
        if self._topics is None:
            return ""
        if self._topics.free(DEAD):
            return "Those behind letters that stay are marked; their bytes go with the retention."
        return (
            "They are marked and not shown any more. Their bytes stay until the topic's retention "
            "ends: we have no right to delete its records."
        )

    def _redrive(self, shelf: Drawer) -> Redrive:
        from telemetry.identity import Identity, load_dead_letter_sealer  # noqa: PLC0415
        from telemetry.policy import load_policy, policy_dir  # noqa: PLC0415
        from telemetry.redrive import Redrive  # noqa: PLC0415
        from telemetry.rules import Schemas  # noqa: PLC0415

        state = self._settings.state_dir
        policy = load_policy(policy_dir(self._settings.policy.path))
        return Redrive(
            shelf,
            policy,
            Schemas(policy, policy.detectors),
            Identity.sealer(state),
            load_dead_letter_sealer(state / "keys" / "public.json"),
            on_storage=_here,
            on_scrub=_here,
        )

    def _witness_once(self, action: str) -> None:
        if action not in self._witnessed:
            witness(self._settings, action, {}, "begun")
            self._witnessed.add(action)

    def _ask(self, method: str, target: str, body: bytes | None = None) -> Any:
        if self._on_kafka:
            raise NotRunningError("On Kafka the topics are looked into.")
        return ask(self._settings.state_dir, method, target, body)

    @contextmanager
    def _shelf(self) -> Iterator[Drawer]:
        from telemetry.run import open_broker  # noqa: PLC0415 - help must not wait for it

        settings = self._settings
        if self._on_kafka:
            if self._topics is None:
                broker: Any = open_broker(settings)
                self._topics = broker.shelf()
            yield self._topics
            return
        if not (settings.state_dir / "spool.sqlite3").exists():
            raise NotRunningError(
                f"There is no log in {settings.state_dir}. The first `telemetry run` makes it; if "
                "it is elsewhere, name that folder with --state."
            )
        spool: Any = open_broker(settings)
        try:
            yield spool
        finally:
            spool.close()


async def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _query(chosen: Chosen, after: int, more: dict[str, str]) -> str:
    words = {name: value for name, value in msgspec.to_builtins(chosen).items() if value}
    return urlencode({**words, "after": str(max(after, 0)), **more})
