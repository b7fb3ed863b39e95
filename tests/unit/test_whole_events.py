"""Events that are filled at every declared place: nobody shows, and what is useful stays."""

from __future__ import annotations

import pytest

from telemetry.schema import Record, load_records
from tests.checks.shipped import rules_of
from tests.checks.whole import check_kept, check_people, check_settled, events, places

RECORDS = load_records()
each_kind = pytest.mark.parametrize("kind", sorted(RECORDS))


def declared(record: Record, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for entry in record.fields:
        here = (*path, entry.wire)
        found |= declared(entry.record, here) if entry.record is not None else {here}
    return {plain(place) for place in found}


def plain(place: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out of a way what a list is called: one may come bare, without ``values``."""
    return tuple(part for part in place if part not in ("[]", "values"))


@each_kind
def test_whomever_an_event_is_about_it_leaves_the_same_and_shows_nobody(kind: str) -> None:
    check_people(rules_of(kind), kind)


@each_kind
def test_of_an_event_stays_what_the_vector_says_and_nothing_else(kind: str) -> None:
    check_kept(rules_of(kind), kind)


@each_kind
def test_a_second_scrub_of_a_whole_event_changes_nothing(kind: str) -> None:
    check_settled(rules_of(kind), kind)


@each_kind
def test_no_declared_place_is_left_empty(kind: str) -> None:
    filled = {plain(place) for event in events(kind).values() for place in places(event)}
    # Open maps and lists of texts are places themselves; what is in them has names of its own.
    covered = {place[:depth] for place in filled for depth in range(1, len(place) + 1)}
    missing = sorted(declared(RECORDS[kind]) - covered)
    assert not missing, f"add values for {missing} to tests/vectors/whole/{kind}.json"
