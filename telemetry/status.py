"""One page: are we losing, are we leaking, is it safe now, how much time is left?

Pure: a snapshot in, four answers out. ``telemetry status`` prints them and exits with 1 if one is
bad; the metrics of the same names come from the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from telemetry.books import Books
from telemetry.brokers import DEAD, HELD, Room
from telemetry.dead_letter import ends_at, note_of
from telemetry.parcel import Parcel
from telemetry.retention import Period

__all__ = [
    "Answer",
    "Snapshot",
    "ages",
    "answers",
    "as_json",
    "merged",
    "spoken",
    "times_to_loss",
]

_FULL: Final = 0.8
_NOTABLE: Final = 0.01
_SOON_S: Final = 48 * 3600.0
_TIME_LEFT: Final = "time left?"
_WORKING: Final = "running"
_LOST: Final = ("no_room", "expired", "log_retention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of a pipeline at one moment.

    Attributes:
        now: Aware UTC time.
        books: The counts.
        holding: Why the pseudonymizer takes nothing; empty if it does.
        forwarders: By recipient, what `Forwarder.state` says.
        policy: Digest of the live policy. accepted: Whether the register still accepts it.
        environment: As configured. stand_ins: Recipients that a stand-in plays.
        oldest: First unfinished parcel of each stream; empty where the log cannot tell.
        room: Used and most bytes of each stream; ``""`` is the whole log.
        letters: How long dead letters are kept.
        log_ends: When the log's own retention may delete the oldest of a stream; empty for the
            embedded one, which has none.
    """

    now: datetime
    books: Books
    holding: str
    forwarders: Mapping[str, str]
    policy: str
    accepted: bool
    environment: str
    stand_ins: tuple[str, ...] = ()
    oldest: Mapping[str, Parcel]
    room: Mapping[str, Room]
    letters: Period
    log_ends: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the four: a question, whether all is well, a word, and why."""

    question: str
    well: bool
    word: str
    because: tuple[str, ...]


def ages(found: Snapshot) -> dict[str, float]:
    """Give the age of the oldest unfinished parcel of each stream, seconds.

    Of dead letters, since they died; of others, since receipt.
    """
    return {
        stream: (
            found.now - (note_of(parcel).at if stream == DEAD else parcel.received_at)
        ).total_seconds()
        for stream, parcel in found.oldest.items()
    }


def times_to_loss(found: Snapshot) -> dict[str, float]:
    """Give the seconds until something of a stream would be lost, if nothing of it moved on.

    The soonest of: the oldest parcel's retention ends; the log's own retention deletes it (Kafka);
    or, once a hundredth of the stream's share of the log is used and going on as since the oldest
    came, the share is full. Dead and held parcels are not on their way: for a dead letter it is
    the moment at which it is deleted.
    """
    left: dict[str, float] = {}
    for stream, age_s in ages(found).items():
        if stream == DEAD:
            ends = ends_at(found.oldest[stream], found.letters)
            left[stream] = max(0.0, (ends - found.now).total_seconds())
            continue
        if stream == HELD:
            continue
        ends = found.oldest[stream].retain_until
        ends_s = (min(ends, found.log_ends.get(stream, ends)) - found.now).total_seconds()
        used, most = found.room.get(stream, Room(0, 0))
        full_s = age_s * (most - used) / used if used > _NOTABLE * most else ends_s
        left[stream] = max(0.0, min(ends_s, full_s))
    return left


def answers(found: Snapshot) -> list[Answer]:
    """Answer the four questions, in the order in which one asks them."""
    return [_losing(found), _leaking(found), _safe(found), _time_left(found)]


def _losing(found: Snapshot) -> Answer:
    books = found.books
    because = [
        f"the books differ by {balance.difference} in {balance.name!r}"
        for balance in books.balances
        if balance.difference
    ]
    because += [
        f"{stage}: {reasons[reason]} dropped, {reason}"
        for stage, reasons in books.by_stage("dropped").items()
        for reason in _LOST
        if reasons.get(reason) and stage not in ("edge", DEAD, HELD)
    ]
    if count := books.reasons("dead").get("unreadable_record", 0):
        because.append(f"{count} in records of the log that cannot be read")
    if count := books.by_stage("dropped").get(DEAD, {}).get("no_room", 0):
        because.append(f"{count} dead letters were counted only, for want of room")
    return Answer("losing?", not because, "yes" if because else "no", tuple(because))


def _leaking(found: Snapshot) -> Answer:
    because = []
    if not found.accepted:
        because.append("the live policy was revoked; what it scrubbed may have left before")
    if count := found.books.reasons("dropped").get("untagged", 0):
        because.append(f"{count} without their tags reached a forwarder and were stopped")
    if found.environment == "development":
        because.append("environment is development: any client key, any recipient's host")
    word = "look" if because else "no sign of it"
    return Answer("leaking?", not because, word, tuple(because))


def _safe(found: Snapshot) -> Answer:
    because = [
        f"{name} is {state}" for name, state in found.forwarders.items() if state != _WORKING
    ]
    if found.holding:
        because.insert(0, f"the pseudonymizer takes nothing: {found.holding}")
    because += [f"{name} is a stand-in, not the real one" for name in found.stand_ins]
    return Answer("safe now?", not because, "no" if because else "yes", tuple(because))


def _time_left(found: Snapshot) -> Answer:
    left = times_to_loss(found)
    because = [
        f"{stream}: {spoken(seconds)} left for the oldest"
        for stream, seconds in left.items()
        if seconds < _SOON_S
    ]
    because += [
        f"{stream or 'the log'} has used {used / most:.0%} of its room"
        for stream, (used, most) in found.room.items()
        if most and used > _FULL * most
    ]
    waiting = [seconds for stream, seconds in left.items() if stream != DEAD]
    word = spoken(min(waiting)) if waiting else "nothing is waiting"
    return Answer(_TIME_LEFT, not because, word, tuple(because))


def spoken(seconds: float) -> str:
    """Say a time in its largest unit.

    >>> spoken(5), spoken(90_000), spoken(31_536_000)
    ('5 s', '25 h', '365 d')
    """
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size or (unit == "h" and seconds >= size):
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def as_json(found: Snapshot) -> dict[str, Any]:
    """Give what ``telemetry status --json`` prints."""
    return {
        "well": all(answer.well for answer in answers(found)),
        "answers": [
            {"question": a.question, "well": a.well, "answer": a.word, "because": list(a.because)}
            for a in answers(found)
        ],
        "policy": found.policy,
        "environment": found.environment,
        "holding": found.holding,
        "recipients": dict(found.forwarders),
        "waiting": dict(found.books.pending),
        "oldest_s": {stream: round(age, 1) for stream, age in ages(found).items()},
        "time_to_loss_s": {s: round(left, 1) for s, left in times_to_loss(found).items()},
        "room": {
            stream or "log": {"used_bytes": used, "most_bytes": most}
            for stream, (used, most) in found.room.items()
        },
        "dead": found.books.reasons("dead"),
        "exact": found.books.exact,
    }


def merged(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Make one page of what several roles on one host say; of a single one, its own.

    Args:
        found: `as_json` of each, by name, those who know most first.
    """
    pages = list(found.values())
    if len(pages) == 1:
        return dict(pages[0])
    page = dict(pages[0])
    page |= {
        "well": all(one["well"] for one in pages),
        "holding": next((one["holding"] for one in pages if one["holding"]), ""),
        "recipients": {name: s for one in pages for name, s in one["recipients"].items()},
        "waiting": _by_stream(pages, "waiting", max),
        "oldest_s": _by_stream(pages, "oldest_s", max),
        "time_to_loss_s": _by_stream(pages, "time_to_loss_s", min),
        "room": {stream: room for one in reversed(pages) for stream, room in one["room"].items()},
        "dead": _by_stream(pages, "dead", max),
        "exact": all(one["exact"] for one in pages),
    }
    soonest = [left for stream, left in page["time_to_loss_s"].items() if stream != DEAD]
    page["answers"] = []
    for of_question in zip(*(one["answers"] for one in pages), strict=True):
        bad = [answer for answer in of_question if not answer["well"]]
        told = dict((bad or of_question)[0])
        told["because"] = [
            f"{name or 'run'}: {line}"
            for name, answer in zip(found, of_question, strict=True)
            for line in answer["because"]
        ]
        if told["question"] == _TIME_LEFT and soonest:
            told["answer"] = spoken(min(soonest))
        page["answers"].append(told)
    return page


def _by_stream(
    pages: Iterable[Mapping[str, Any]], what: str, choose: Callable[[float, float], float]
) -> dict[str, float]:
    """Join figures by stream; where several have one, the one that `choose` gives."""
    joined: dict[str, float] = {}
    for page in pages:
        for stream, figure in page[what].items():
            joined[stream] = choose(figure, joined.get(stream, figure))
    return joined
