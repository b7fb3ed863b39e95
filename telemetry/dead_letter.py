"""Dead letters: parcels that went no further. Owns the rule that none of them is readable here.

The original is sealed to a public key whose private half does not belong on these hosts; in the
clear stand only what every parcel shows, a reason from a closed set (`telemetry.books.REASONS`),
and a `Note`: the stage, the place in the event, when, and the shape of its outermost object (names
that our records declare, classes of values; never a value, a length or an undeclared name).

Owns also what becomes of letters: `ends_at` says when their time is up, `sweep` deletes those, and
`Brake` stops a stage that would park everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from telemetry.brokers import Entry, Shelf
from telemetry.errors import TooManyDead
from telemetry.parcel import Parcel
from telemetry.retention import Period, retain_until
from telemetry.schema import load_records

__all__ = [
    "Brake",
    "Bury",
    "Note",
    "burying",
    "ends_at",
    "forgetting",
    "note_of",
    "noted",
    "sweep",
]


if TYPE_CHECKING:
    from telemetry.identity import DeadLetterSealer  # what loads it brings no key near a command


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a dead letter besides its reason. Kept as JSON in `Parcel.remarks`.

    Attributes:
        stage: ``edge``, ``pseudonymizer`` or a recipient; empty in letters of older versions.
        at: When it became one. Aware UTC.
        path: Where in the event, as a dotted path of declared names; empty if unknown.
        shape: Declared name → class of its value, of the outermost object. Names that the record
            does not declare stand together as ``<key>``.
    """

    stage: str
    at: datetime
    path: str = ""
    shape: dict[str, str] = {}


class Bury(Protocol):
    """Parcel, reason and place in the event → dead letter."""

    def __call__(self, parcel: Parcel, reason: str, path: str = "") -> Parcel:
        """Make the letter."""


def burying(
    sealer: DeadLetterSealer,
    stage: str = "",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Bury:
    """Make dead letters whose originals open only where the private half of the key is.

    Args:
        sealer: Seals the originals.
        stage: Whose letters: ``pseudonymizer`` or a recipient.
        now: Aware UTC clock.
    """

    def bury(parcel: Parcel, reason: str, path: str = "") -> Parcel:
        body = sealer.seal(parcel.body, event_id=parcel.event_id)
        note = noted(stage, now(), path=path, kind=parcel.kind, original=parcel.body)
        return replace(parcel, reason=reason, body=body, remarks=note)

    return bury


def forgetting(parcel: Parcel, reason: str, path: str = "") -> Parcel:  # noqa: ARG001 - a `Bury`
    """Make a dead letter without its original: where there is no key to seal it to."""
    return replace(parcel, reason=reason, body=b"", remarks=b"")


def noted(stage: str, at: datetime, *, path: str, kind: str, original: bytes) -> bytes:
    """Write the note of a letter.

    Args:
        stage: Where it died.
        at: When.
        path: Where in the event.
        kind: Of the event; its record says which names may be shown.
        original: The event. Only its outermost names and the first byte of each value are read.
    """
    return msgspec.json.encode(Note(stage=stage, at=at, path=path, shape=_shape(kind, original)))


def note_of(letter: Parcel) -> Note:
    """Read the note of a letter; one of an older version tells nothing but its receipt."""
    try:
        return _read_note(letter.remarks)
    except msgspec.MsgspecError:
        return Note(stage="", at=letter.received_at)


_read_note: Final = msgspec.json.Decoder(Note).decode
_read_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_CLASSES: Final = {
    ord('"'): "text", ord("{"): "map", ord("["): "list",
    ord("t"): "bool", ord("f"): "bool", ord("n"): "null",
}  # fmt: skip


def _shape(kind: str, original: bytes) -> dict[str, str]:
    try:
        found = _read_object(original)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    names = _names().get(kind, frozenset())
    return {
        name if name in names else "<key>": _CLASSES.get(bytes(raw)[:1][0], "number")
        for name, raw in sorted(found.items())
    }


@cache
def _names() -> Mapping[str, frozenset[str]]:
    return {
        kind: frozenset(name for entry in record.fields for name in (entry.name, entry.wire))
        for kind, record in load_records().items()
    }


# ---------------------------------------------------------------------- their end


def ends_at(letter: Parcel, period: Period) -> datetime:
    """Give the moment at which a letter's time is up: its event's retention, or the letters' own.

    Args:
        letter: From the dead stream.
        period: How long letters are kept (``retention.toml``, ``[dead_letters]``).
    """
    return min(letter.retain_until, retain_until(note_of(letter).at, period))


def sweep(
    shelf: Shelf, stream: str, ended: Callable[[Parcel], bool], *, after: int = 0, most: int = 500
) -> tuple[int, int]:
    """Delete one stretch of a stream's parcels whose time is up, and count them as ``expired``.

    A stretch, because others wait for the thread that uses the log.

    Args:
        shelf: The log.
        stream: ``dead`` or ``held``; its books count what is deleted.
        ended: Whether a parcel's time is up.
        after: `Kept.seq` behind which to begin.
        most: After so many parcels the stretch ends.

    Returns:
        How many were deleted, and behind which `Kept.seq` to go on; 0 at the end.
    """
    kept = shelf.look(stream, after, most)
    gone = [one for one in kept if ended(one.parcel)]
    if gone:
        shelf.take_out(stream, gone, {Entry(stream, "dropped", "expired"): len(gone)})
    return len(gone), kept[-1].seq if kept else 0


# ---------------------------------------------------------------------- their limits


class Brake:
    """Stops a stage that would park nearly everything: the installation is bad, not the events.

    Args:
        run_length: Most letters in a row.
        ratio: Largest part of letters among the last `window` outcomes, 0 to 1.
        window: Outcomes that are looked at; the ratio counts once there are so many.
    """

    def __init__(self, *, run_length: int = 500, ratio: float = 0.5, window: int = 2000) -> None:
        self._run_length, self._ratio, self._window = run_length, ratio, window
        self._run, self._released = 0, False
        self._last: deque[bool] = deque(maxlen=window)

    def check(self, outcomes: Sequence[bool]) -> None:
        """Look at the outcomes of a batch before they are made durable; notes nothing.

        Args:
            outcomes: In order: whether each parcel became a dead letter.

        Raises:
            TooManyDead: With them a limit would be passed. Asked again with better outcomes, it
                lets them through.
        """
        if not any(outcomes) or (self._released and all(outcomes)):
            return
        run = self._run
        for is_dead in outcomes:
            run = run + 1 if is_dead else 0
            if run > self._run_length:
                raise TooManyDead("dead letters in a row")
        last = deque(self._last, maxlen=self._window)
        last.extend(outcomes)
        if len(last) == self._window and sum(last) > self._ratio * self._window:
            raise TooManyDead("dead letters among the last events")

    def note(self, outcomes: Sequence[bool]) -> None:
        """Note outcomes that are durable now."""
        if self._released and all(outcomes):
            return
        self._released = False
        self._last.extend(outcomes)
        for is_dead in outcomes:
            self._run = self._run + 1 if is_dead else 0

    def release(self) -> None:
        """Let all through until something good comes: an operator says that these are bad."""
        self._run, self._released = 0, True
        self._last.clear()
