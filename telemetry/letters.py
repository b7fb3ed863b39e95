"""Looking at dead letters and deleting them; looking at held events and releasing them.

Owns what may be seen of them without a key.

Opens nothing, and loads little: the command line imports it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import msgspec

from telemetry.brokers import DEAD, HELD, SEALED, Drawer, Entry, Kept
from telemetry.dead_letter import note_of
from telemetry.parcel import Parcel

__all__ = ["Chosen", "Letter", "Meant", "Opened", "find", "hindrance", "page", "purge", "release"]

PAGE: Final = 200
_STAGES_WITH_IDENTIFIERS: Final = ("edge", "pseudonymizer")


class Chosen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which letters are meant: those that fit everything that is set.

    Attributes:
        event_id: Of one event, 32 hex digits.
        reason: A word of `telemetry.books.REASONS`.
        stage: ``edge``, ``pseudonymizer`` or a recipient.
        older_than_s: At least so many seconds in the dead stream.
    """

    event_id: str = ""
    reason: str = ""
    stage: str = ""
    older_than_s: float = 0.0

    def fits(self, letter: Parcel, now: datetime) -> bool:
        """Tell whether a letter is meant."""
        note = note_of(letter)
        return (
            self.event_id in ("", letter.event_id)
            and self.reason in ("", letter.reason)
            and self.stage in ("", note.stage)
            and (now - note.at).total_seconds() >= self.older_than_s
        )


class Letter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is shown of a letter.

    Attributes:
        place: Where it lies: stream and number of the record.
        age_s: Seconds since it died. died_at: When. retain_until: When its event's time is up.
        goes_again: Whether it can be replayed; else why not, in one word.
        sealed: The sealed original, only where it was asked for.
    """

    place: str
    event_id: str
    reason: str
    stage: str
    kind: str
    tenant: str
    died_at: datetime
    age_s: float
    retain_until: datetime
    goes_again: str
    path: str = ""
    shape: dict[str, str] = {}
    sealed: bytes = b""


class Meant(msgspec.Struct, frozen=True, kw_only=True):
    """One parcel, named so that no other can be meant.

    Attributes:
        seq: Number of its record, from `Letter.place`.
    """

    seq: int
    event_id: str
    reason: str


class Opened(Meant, frozen=True, kw_only=True):
    """A letter with its original, opened where the key is.

    Attributes:
        original: As it was before it died.
    """

    original: bytes


def page(
    shelf: Drawer,
    chosen: Chosen,
    now: datetime,
    *,
    stream: str = DEAD,
    after: int = 0,
    sealed: bool = False,
) -> tuple[list[Letter], int]:
    """Give the letters of one stretch of the dead stream, or held events, oldest first.

    Of a held event `Letter.died_at` is when it was received.

    Args:
        shelf: The log.
        chosen: Which.
        now: Aware UTC time.
        stream: ``dead`` or ``held``.
        after: Where the page before ended; 0 begins.
        sealed: Whether to give the sealed originals.

    Returns:
        The letters, and where to go on; 0 at the end.
    """
    kept = shelf.look(stream, after, PAGE)
    found = [_shown(one, now, stream, sealed) for one in kept if chosen.fits(one.parcel, now)]
    return found, kept[-1].seq if kept else 0


def _shown(one: Kept, now: datetime, stream: str, sealed: bool) -> Letter:  # noqa: FBT001 - `page`
    letter, note = one.parcel, note_of(one.parcel)
    why_not = hindrance(letter, now) if stream == DEAD else _ended(letter, now)
    return Letter(
        place=f"{stream}/{one.seq}",
        event_id=letter.event_id,
        reason=letter.reason,
        stage=note.stage,
        kind=letter.kind,
        tenant=letter.tenant,
        died_at=note.at,
        age_s=round((now - note.at).total_seconds(), 1),
        retain_until=letter.retain_until,
        goes_again=why_not or "yes",
        path=note.path,
        shape=note.shape,
        sealed=letter.body if sealed else b"",
    )


def hindrance(letter: Parcel, now: datetime) -> str:
    """Say why a letter cannot go again; empty if it can."""
    if not letter.body:
        return "original_forgotten"
    if now >= letter.retain_until:
        return "expired"
    if note_of(letter).stage not in _STAGES_WITH_IDENTIFIERS:
        return "no_identifiers"
    return ""


def _ended(parcel: Parcel, now: datetime) -> str:
    return "expired" if now >= parcel.retain_until else ""


def find(shelf: Drawer, stream: str, one: Meant) -> Kept | None:
    """Look for a parcel where it was seen; None if it is not there any more."""
    wanted = (one.seq, one.event_id, one.reason)
    for kept in shelf.look(stream, one.seq - 1, 1):
        if (kept.seq, kept.parcel.event_id, kept.parcel.reason) == wanted:
            return kept
    return None


def release(shelf: Drawer, meant: Sequence[Meant], now: datetime) -> dict[str, int]:
    """Let held events go on: back to the sealed log, as they came from it.

    The pseudonymizer looks at the state of whom they name anew: what is still restricted is held
    again. Each goes in one step of the log, so none is lost and none goes twice.

    Returns:
        How many went (``released``), and of the others how many stayed for which reason.

    Raises:
        BrokerError: The log cannot be written. What went before is counted in the books.
    """
    outcomes: Counter[str] = Counter()
    for one in meant:
        kept = find(shelf, HELD, one)
        why_not = "not_there" if kept is None else _ended(kept.parcel, now)
        if kept is not None and not why_not:
            # It comes in once more, as a dead letter that is replayed does.
            counts = {Entry("edge", "items_in"): 1, Entry("edge", "sealed"): 1}
            counts[Entry(HELD, "replayed")] = 1
            outputs = {SEALED: [replace(kept.parcel, reason="")]}
            shelf.take_out(HELD, [kept], counts, outputs)
        outcomes[why_not or "released"] += 1
    return dict(outcomes)


def purge(shelf: Drawer, chosen: Chosen, now: datetime, *, after: int = 0) -> tuple[int, int]:
    """Delete the letters of one stretch, and count them as ``purged``.

    Returns:
        How many, and where to go on; 0 at the end.
    """
    kept = shelf.look(DEAD, after, PAGE)
    gone = [one for one in kept if chosen.fits(one.parcel, now)]
    if gone:
        shelf.take_out(DEAD, gone, {Entry(DEAD, "dropped", "purged"): len(gone)})
    return len(gone), kept[-1].seq if kept else 0
