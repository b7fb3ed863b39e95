"""Four questions, and what turns each answer bad."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from telemetry.books import Books
from telemetry.brokers import DEAD, SEALED, Entry, Room, clean
from telemetry.dead_letter import noted
from telemetry.parcel import Parcel
from telemetry.retention import Period
from telemetry.status import Snapshot, ages, answers, as_json, times_to_loss
from telemetry.testing.brokers import make_parcel

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HEAP = clean("heap")
MIB = 1 << 20


def parcel(*, age: timedelta, left: timedelta) -> Parcel:
    received = NOW - age
    return replace(
        make_parcel(1), occurred_at=received, received_at=received, retain_until=NOW + left
    )


def snapshot(**more: Any) -> Snapshot:
    whole: dict[str, Any] = {
        "now": NOW,
        "books": Books({}, {}, ("heap",), shelved=True),
        "holding": "",
        "forwarders": {"heap": "running"},
        "policy": "c0" * 32,
        "accepted": True,
        "environment": "staging",
        "oldest": {},
        "room": {"": Room(1, 100 * MIB)},
        "letters": Period(days=30),
    }
    return Snapshot(**(whole | more))


def test_at_rest_all_is_well() -> None:
    assert [(one.word, one.well) for one in answers(snapshot())] == [
        ("no", True),
        ("no sign of it", True),
        ("yes", True),
        ("nothing is waiting", True),
    ]
    assert as_json(snapshot())["well"]


def books(*counted: tuple[Entry, int]) -> Books:
    return Books(dict(counted), {}, ("heap",), shelved=True)


ROUTED = (Entry("heap", "routed"), 3)


@pytest.mark.parametrize(
    ("more", "question", "told"),
    [
        ({"books": books(ROUTED)}, "losing?", "differ by 3 in 'routed to heap'"),
        ({"books": books(ROUTED, (Entry("heap", "dropped", "no_room"), 3))}, "losing?", "no_room"),
        ({"books": books(ROUTED, (Entry("heap", "dropped", "expired"), 3))}, "losing?", "expired"),
        (
            {"books": books(ROUTED, (Entry("heap", "dead", "unreadable_record"), 3))},
            "losing?",
            "cannot be read",
        ),
        ({"accepted": False}, "leaking?", "was revoked"),
        ({"environment": "development"}, "leaking?", "any client key"),
        (
            {"books": books(ROUTED, (Entry("heap", "dropped", "untagged"), 3))},
            "leaking?",
            "without their tags",
        ),
        ({"holding": "VaultError"}, "safe now?", "takes nothing: VaultError"),
        ({"forwarders": {"heap": "blocked"}}, "safe now?", "heap is blocked"),
        ({"forwarders": {"heap": "paused"}}, "safe now?", "heap is paused"),
        ({"stand_ins": ("heap",)}, "safe now?", "not the real one"),
        (
            {"oldest": {SEALED: parcel(age=timedelta(days=300), left=timedelta(hours=30))}},
            "time left?",
            "sealed: 30 h",
        ),
        ({"room": {HEAP: Room(90, 100)}}, "time left?", "90% of its room"),
    ],
)
def test_one_bad_sign_turns_one_answer(more: dict[str, Any], question: str, told: str) -> None:
    found = snapshot(**more)
    bad = [one for one in answers(found) if not one.well]
    assert [one.question for one in bad] == [question]
    assert told in " ".join(bad[0].because)
    assert not as_json(found)["well"]


def test_the_time_to_loss_is_the_sooner_of_retention_and_room() -> None:
    waiting = parcel(age=timedelta(days=10), left=timedelta(days=300))
    far = snapshot(oldest={HEAP: waiting}, room={HEAP: Room(1, 1000)})
    assert times_to_loss(far) == {HEAP: 300 * 86_400}
    filling = snapshot(oldest={HEAP: waiting}, room={HEAP: Room(500, 1000)})
    assert times_to_loss(filling) == {HEAP: 10 * 86_400}
    late = snapshot(oldest={HEAP: parcel(age=timedelta(days=400), left=-timedelta(days=1))})
    assert times_to_loss(late) == {HEAP: 0.0}


def test_on_kafka_the_topics_own_retention_may_end_first() -> None:
    oldest = {HEAP: parcel(age=timedelta(days=6), left=timedelta(days=300))}
    ends = {HEAP: NOW + timedelta(hours=20)}
    found = snapshot(oldest=oldest, room={}, log_ends=ends)
    assert times_to_loss(found) == {HEAP: 20 * 3600.0}
    told = answers(found)[-1]
    assert (told.well, told.word) == (False, "20 h")
    assert as_json(found)["time_to_loss_s"] == {HEAP: 20 * 3600.0}
    gone = snapshot(books=books(ROUTED, (Entry("heap", "dropped", "log_retention"), 3)))
    assert not answers(gone)[0].well


def test_a_dead_letter_is_as_old_as_its_death_and_is_not_on_its_way() -> None:
    died = noted("heap", NOW - timedelta(hours=1), path="", kind="event", original=b"{}")
    letter = replace(parcel(age=timedelta(days=9), left=timedelta(days=9)), remarks=died)
    found = snapshot(oldest={DEAD: letter}, letters=Period(days=7))
    assert ages(found) == {DEAD: 3600.0}
    assert times_to_loss(found) == {DEAD: 7 * 86_400 - 3600.0}
    told = answers(found)[3]
    assert (told.word, told.well) == ("nothing is waiting", True)
    soon = replace(letter, retain_until=NOW + timedelta(hours=5))
    told = answers(snapshot(oldest={DEAD: soon}))[3]
    assert not told.well
    assert told.because == ("dead: 5 h left for the oldest",)
