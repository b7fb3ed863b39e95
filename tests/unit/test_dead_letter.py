"""What goes no further is readable nowhere here, and what an operator ordered is not forgotten."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubbers.model import Remark
from telemetry.books import Books
from telemetry.brokers import DEAD, SEALED, Entry
from telemetry.brokers.spool import Spool
from telemetry.dead_letter import (
    Brake,
    Note,
    burying,
    ends_at,
    forgetting,
    note_of,
    noted,
    sweep,
)
from telemetry.errors import TooManyDead
from telemetry.identity import (
    initialise_development,
    load_dead_letter_opener,
    load_dead_letter_sealer,
)
from telemetry.parcel import Parcel
from telemetry.pipeline import _with_names_hidden
from telemetry.retention import Period
from telemetry.testing.brokers import make_parcel

BODY = b'{"message":"what may not be read here"}'


def test_a_buried_parcel_opens_only_where_the_private_key_is(tmp_path: Path) -> None:
    initialise_development(tmp_path)
    keys = tmp_path / "keys"
    parcel = make_parcel(1, body=BODY)
    found = burying(load_dead_letter_sealer(keys / "public.json"), "heap")(parcel, "rejected", "a")
    assert b"may not be read" not in found.body + found.remarks
    assert (found.reason, found.event_id) == ("rejected", parcel.event_id)
    assert (note_of(found).stage, note_of(found).path) == ("heap", "a")
    opener = load_dead_letter_opener(
        keys / "dead-letter" / "keyset.json", environment="development"
    )
    assert opener.open(found.body, event_id=found.event_id) == BODY


def test_without_a_key_the_original_is_forgotten() -> None:
    found = forgetting(make_parcel(1, body=BODY), "rejected")
    assert (found.body, found.reason) == (b"", "rejected")


def test_parcels_dead_letters_and_counts_are_stored_together(tmp_path: Path) -> None:
    counts = {Entry("edge", "items_in"): 2}
    spool = Spool(tmp_path / "spool.sqlite3", key=bytes(32))
    spool.append(SEALED, [make_parcel(1)], counts, beside={DEAD: [make_parcel(2)]})
    spool.close()
    again = Spool(tmp_path / "spool.sqlite3", key=bytes(32))
    assert (again.pending()[SEALED], again.pending()[DEAD]) == (1, 1)
    assert again.books()[Entry("edge", "items_in")] == 2
    again.close()


def test_the_names_of_a_map_are_hidden_once_one_of_them_is_personal() -> None:
    shown = Remark(("tags", "DE89370400440532013000"), "email", "replace", 0, 7)
    other = Remark(("message",), "email", "replace", 0, 7)
    today = Remark(("tags", "<key>"), "iban", "remove")
    assert _with_names_hidden([shown, other]) == [shown, other]
    assert _with_names_hidden([shown, other, today]) == [
        Remark(("tags", "<key>"), "email", "replace", 0, 7),
        other,
        today,
    ]


def letter(number: int, *, died: datetime, stage: str = "edge", days: int = 300) -> Parcel:
    parcel = make_parcel(number)
    note = noted(stage, died, path="", kind="error_event", original=b"{}")
    return replace(
        parcel,
        remarks=note,
        reason="undecodable",
        occurred_at=died,
        retain_until=died + timedelta(days=days),
    )


NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MONTH = Period(days=30)


def test_a_note_tells_where_and_what_sort_and_never_a_value_or_a_name_of_somebodys_own() -> None:
    original = (
        b'{"message":"jane@example.org","level":null,"timestamp":1.5,"tags":{"a":"b"},'
        b'"breadcrumbs":[],"jane.doe@example.org":true}'
    )
    raw = noted("edge", NOW, path="tags", kind="error_event", original=original)
    assert b"jane" not in raw
    note = note_of(replace(make_parcel(1), remarks=raw, reason="scrub_failed"))
    assert (note.stage, note.path, note.at) == ("edge", "tags", NOW)
    assert note.shape == {
        "message": "text",
        "level": "null",
        "timestamp": "number",
        "tags": "map",
        "breadcrumbs": "list",
        "<key>": "bool",
    }


@given(st.binary(max_size=200))
def test_no_original_keeps_a_note_from_being_written(original: bytes) -> None:
    raw = noted("edge", NOW, path="", kind="error_event", original=original)
    note_of(replace(make_parcel(1), remarks=raw, reason="undecodable"))


def test_a_letter_of_an_older_version_is_as_old_as_its_receipt() -> None:
    old = replace(make_parcel(1), remarks=b"", reason="undecodable")
    assert note_of(old) == Note(stage="", at=old.received_at)


def test_letters_end_with_their_own_period_or_with_their_events_retention() -> None:
    fresh = letter(1, died=NOW - timedelta(days=29))
    assert ends_at(fresh, MONTH) == NOW + timedelta(days=1)
    assert ends_at(letter(3, died=NOW - timedelta(days=5), days=5), MONTH) == NOW


def test_what_is_swept_is_counted_and_the_books_stay_exact(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite3", key=bytes(32))
    ages = [40, 1, 31, 2, 30, 29] * 20
    letters = [letter(n, died=NOW - timedelta(days=age)) for n, age in enumerate(ages)]
    counts = {Entry("edge", "items_in"): 120, Entry("edge", "dead", "undecodable"): 120}
    for start in range(0, 120, 20):
        spool.append(
            SEALED, [], counts if not start else {}, beside={DEAD: letters[start : start + 20]}
        )
    after, swept, stretches = 0, 0, 0
    while True:
        count, after = sweep(
            spool, DEAD, lambda one: ends_at(one, MONTH) <= NOW, after=after, most=30
        )
        swept, stretches = swept + count, stretches + 1
        books = Books(spool.books(), spool.pending(), (), shelved=True)
        assert books.exact
        if not after:
            break
    assert swept == 60
    assert stretches > 3
    assert books.by_stage("dropped") == {"dead": {"expired": 60}}
    assert [one.parcel for one in spool.look(DEAD, 0, 1000)] == [
        one for one, age in zip(letters, ages, strict=True) if age < 30
    ]
    spool.close()


def test_a_letter_that_vanishes_without_being_counted_is_a_difference(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite3", key=bytes(32))
    counts = {Entry("edge", "items_in"): 1, Entry("edge", "dead", "undecodable"): 1}
    spool.append(SEALED, [], counts, beside={DEAD: [letter(1, died=NOW)]})
    spool.take_out(DEAD, spool.look(DEAD, 0, 1), {})
    books = Books(spool.books(), spool.pending(), (), shelved=True)
    assert not books.exact
    assert {b.name: b.difference for b in books.balances if b.difference} == {"dead": 1}
    spool.close()


def passed(brake: Brake, outcomes: list[bool]) -> None:
    brake.check(outcomes)
    brake.note(outcomes)


def test_a_brake_lets_one_in_a_hundred_through_and_stops_a_run_and_a_ratio() -> None:
    brake = Brake(run_length=50, ratio=0.5, window=200)
    for _ in range(1000):
        passed(brake, [True] + [False] * 99)
    with pytest.raises(TooManyDead, match="in a row"):
        passed(brake, [True] * 51)
    passed(brake, [True] * 50 + [False])
    mixed = [True, True, False] * 30
    brake = Brake(run_length=50, ratio=0.5, window=200)
    passed(brake, mixed)
    passed(brake, mixed)  # 180 of 200: too few to judge
    for _ in range(2):  # not forgotten by asking again
        with pytest.raises(TooManyDead, match="among the last"):
            passed(brake, mixed)
    brake.release()
    passed(brake, [True] * 50)


def test_a_brake_that_was_released_lets_all_through_until_something_good_comes() -> None:
    brake = Brake(run_length=50)
    with pytest.raises(TooManyDead):
        passed(brake, [True] * 60)
    brake.release()
    for _ in range(100):
        passed(brake, [True] * 60)
    passed(brake, [True] * 40 + [False] + [True] * 40)
    with pytest.raises(TooManyDead):
        passed(brake, [True] * 11)


def test_a_run_over_several_batches_is_one_run() -> None:
    brake = Brake(run_length=50)
    for _ in range(5):
        passed(brake, [True] * 10)
    with pytest.raises(TooManyDead):
        passed(brake, [True])
    passed(brake, [False])


def test_outcomes_that_never_became_durable_do_not_count() -> None:
    brake = Brake(run_length=50)
    for _ in range(100):
        brake.check([True] * 40)
    passed(brake, [True] * 50)
