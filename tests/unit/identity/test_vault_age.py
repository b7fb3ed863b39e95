"""A secret lives for 36 months at most; then its subject becomes another, on a day of its own."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from telemetry.identity import Domain, Identity, initialise_development, open_vault
from telemetry.identity.keyring import Keyring
from telemetry.identity.pseudonym import locator, token
from telemetry.identity.vault import Held, Tombstoned, Unreadable, Vault
from telemetry.identity.vault.upkeep import backup, restore, rewrap, rotate
from telemetry.identity.ways_back import Lookup, Source
from telemetry.retention import Period, retain_until

BEGAN = datetime(2026, 11, 22, 12, tzinfo=UTC)
A, B = (bytes([n]) * 32 for n in (1, 2))
AGE = Period(months=36)
DAY = timedelta(days=1)
HEAP = Domain(name="analytics@heap", label="heap", epoch="rel")
SENTRY = Domain(name="errors@sentry", label="sentry", epoch="quarter")


class Place:
    """A state folder with a clock that the test moves. Nothing is remembered between two looks."""

    def __init__(self, state: Path) -> None:
        self.state, self.now = state, BEGAN
        initialise_development(state)
        path = state / "keys" / "keyset.json"
        self.ring = Keyring.load(path, environment="development", now=lambda: self.now)
        self.opened: list[Vault] = []

    def vault(self, **given: Any) -> Vault:
        vault = open_vault(self.state, self.ring, **given)
        vault._now = lambda: self.now
        vault._clock = vault._subjects._clock = count(0, 60).__next__
        self.opened.append(vault)
        return vault

    def week(self, vault: Vault) -> None:
        rotate(vault, now=self.now, after=timedelta(0))
        list(rewrap(vault))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    one = Place(tmp_path)
    yield one
    for vault in one.opened:
        vault.close()


def held(vault: Vault, key: bytes) -> Held:
    found = vault.secrets([key])[key]
    assert isinstance(found, Held)
    return found


def test_over_six_years_nobody_is_older_than_36_months_and_no_day_turns_many(place: Place) -> None:
    """Subjects who come now and then for six years, some of them away for months."""
    chance = random.Random(36)  # noqa: S311 - invented people
    vault = place.vault()
    people = {chance.randbytes(32): chance.randrange(400) for _ in range(300)}
    seen: dict[bytes, list[tuple[datetime, bytes]]] = defaultdict(list)
    for day in range(6 * 365):
        place.now = BEGAN + day * DAY
        visitors = [
            one
            for one, first in people.items()
            if day == first or (day > first and day % 9 == first % 9)
        ]
        for one, secret in vault.secrets(visitors).items():
            assert isinstance(secret, Held)
            if not seen[one] or seen[one][-1][1] != secret.expose():
                seen[one].append((place.now, secret.expose()))
            # Never used on the day on which it is 36 months old, nor later.
            assert place.now < retain_until(seen[one][-1][0], AGE)
    turned: Counter[datetime] = Counter()
    for changes in seen.values():
        assert len({secret for _, secret in changes}) == len(changes)
        assert len(changes) in {2, 3}
        for (made, _), (gone, _) in pairwise(changes):
            # A whole year of anybody, and nearly three, is under one token: at most one month is
            # given away because a row tells no more than the month, and 9 days to the next visit.
            assert gone >= retain_until(made, Period(months=34)) - DAY
            turned[gone] += 1
    # 300 subjects of 13 months turn in 13 months, and on no day more than a few of them.
    assert max(turned.values()) <= 12
    assert len(turned) > 150


def test_a_secret_is_kept_until_its_last_month_and_on_its_own_day_replaced(place: Place) -> None:
    vault = place.vault()
    late = bytes(31) + bytes([20])  # its day is the 21st
    early = bytes(31) + bytes([21])  # and of this one the 1st
    before = vault.secrets([late, early])
    place.now = datetime(2029, 9, 30, 23, tzinfo=UTC)
    assert vault.secrets([late, early]) == before
    place.now = datetime(2029, 10, 1, tzinfo=UTC)
    after = vault.secrets([late, early])
    assert after[late] == before[late]
    assert after[early] != before[early]
    place.now = datetime(2029, 10, 20, 23, tzinfo=UTC)
    assert vault.secrets([late, early]) == after
    place.now = datetime(2029, 10, 21, tzinfo=UTC)
    assert held(vault, late) != before[late]
    assert held(vault, early) == after[early]


def test_the_policy_says_how_old(place: Place) -> None:
    vault = place.vault(max_age=Period(months=14))
    before = held(vault, A)
    place.now = datetime(2027, 11, 30, tzinfo=UTC)
    assert held(vault, A) == before
    place.now = datetime(2027, 12, 22, tzinfo=UTC)
    assert held(vault, A) != before


def test_the_former_secret_is_remembered_for_a_year_and_then_in_no_row(place: Place) -> None:
    vault = place.vault()
    place.ring.token_key(HEAP.name, "rel")
    before = held(vault, A)
    place.now = datetime(2029, 10, 22, tzinfo=UTC)
    rolled = held(vault, A)
    assert rolled.former == before
    assert rolled.former is not None
    assert rolled.former.pins == before.pins
    place.week(vault)
    assert held(vault, A).former == before
    # The last event under the former token was of October 2029, and is kept for twelve months.
    place.now = datetime(2030, 10, 31, 23, tzinfo=UTC)
    place.week(vault)
    assert held(vault, A).former == before
    place.now = datetime(2030, 11, 1, tzinfo=UTC)
    assert held(vault, A).former is None
    with vault.transaction() as connection:
        sizes = connection.exec_driver_sql("SELECT length(wrapped) FROM subjects").scalars().all()
    assert sizes[0] > 60
    place.week(vault)
    with vault.transaction() as connection:
        sizes = connection.exec_driver_sql("SELECT length(wrapped) FROM subjects").scalars().all()
    assert sizes == [60]
    assert held(vault, A) == rolled


def test_who_never_comes_is_given_another_secret_by_the_weekly_rewrapping(place: Place) -> None:
    vault = place.vault()
    before = held(vault, A)
    place.now = datetime(2029, 10, 31, tzinfo=UTC)
    place.week(vault)
    found = vault.find([A])[A]
    assert isinstance(found, Held)
    assert found != before
    assert found.former == before


def test_a_search_changes_nothing(place: Place) -> None:
    vault = place.vault()
    before = held(vault, A)
    place.now = datetime(2031, 1, 1, tzinfo=UTC)
    assert vault.find([A]) == {A: before}
    with vault.transaction() as connection:
        months = connection.exec_driver_sql("SELECT created_month FROM subjects").scalars().all()
    assert months == ["2026-11"]


def test_two_processes_that_meet_an_old_subject_agree_on_its_new_secret(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = place.vault(), place.vault()
    before = one.secrets([A, B])
    place.now = datetime(2029, 12, 1, tzinfo=UTC)
    winner: dict[bytes, Any] = {}
    roll = Vault._roll

    def late(self: Vault, locators: Any) -> Any:
        if self is two and not winner:
            winner.update(one.secrets([A, B]))  # between the other's look and its own turn
        return roll(self, locators)

    monkeypatch.setattr(Vault, "_roll", late)
    assert two.secrets([A, B]) == winner
    assert not set(winner.values()) & set(before.values())


def test_an_erasure_destroys_the_former_secret_with_the_present_one(place: Place) -> None:
    vault = place.vault()
    before = held(vault, A)
    place.now = datetime(2029, 12, 1, tzinfo=UTC)
    rolled = held(vault, A)
    vault.erase(A)
    assert isinstance(vault.secrets([A])[A], Tombstoned)
    place.week(vault)
    place.week(vault)
    vault.close()
    for file in place.state.rglob("*"):
        if file.is_file():
            assert before.expose() not in file.read_bytes()
            assert rolled.expose() not in file.read_bytes()


def test_both_secrets_come_back_from_a_backup(place: Place) -> None:
    vault = place.vault()
    place.ring.token_key(HEAP.name, "rel")
    before = held(vault, A)
    place.now = datetime(2029, 12, 1, tzinfo=UTC)
    rolled = held(vault, A)
    copy = place.state / "copy.sqlite3"
    list(backup(vault, copy))
    vault.close()
    for file in place.state.glob("vault.sqlite3*"):
        file.unlink()
    list(restore(place.vault(repair="restore"), copy))
    again = held(place.vault(), A)
    assert again == rolled
    assert again.former == before
    assert again.former is not None
    assert again.former.pins == before.pins


def test_a_cut_off_row_is_unreadable_and_no_shorter_secret(place: Place) -> None:
    vault = place.vault()
    held(vault, A)
    odd = vault.wrapping(1).wrap(bytes(40), A, bytes(12))
    with vault.transaction(writes=True) as connection:
        connection.exec_driver_sql("UPDATE subjects SET wrapped = ?", (odd,))
    assert isinstance(vault.secrets([A])[A], Unreadable)


def test_support_finds_what_recipients_hold_under_both(place: Place) -> None:
    """`account token`, and with it an erasure at the recipients, knows the token of before too."""
    identity = Identity(place.ring, place.vault(), now=lambda: place.now)
    where = locator(
        place.ring.secret("locator").expose(),
        kind="account",
        namespace="app:user",
        canonical_id="7",
    )
    key = place.ring.token_key(HEAP.name, "rel").expose()
    place.ring.token_key(SENTRY.name, "2029q4")

    def heap(secret: Held) -> str:
        return token(
            key,
            domain=HEAP.name,
            epoch="rel",
            kind="account",
            namespace="app:user",
            canonical_id="7",
            secret=secret.expose(),
            label="heap",
        )

    before = held(identity._vault, where)
    place.now = datetime(2029, 12, 1, tzinfo=UTC)
    rolled = held(identity._vault, where)
    lookup = Lookup(
        identity,
        {"account": Source("account", "app:user", "integer")},
        [HEAP, SENTRY],
        now=lambda: place.now,
    )
    state, found = lookup.tokens("account", "7")
    assert state == "known"
    tokens = [one.token for one in found if one.domain == HEAP.name]
    assert tokens == [heap(rolled), heap(before)]
    assert len({one.token for one in found if one.domain == SENTRY.name}) == 2
    assert lookup.find(heap(before), ["5", "6", "7"]) == ("7", 3)
    place.now = datetime(2031, 1, 1, tzinfo=UTC)
    lookup = Lookup(identity, lookup._sources, [HEAP], now=lambda: place.now)
    assert [one.token for one in lookup.tokens("account", "7")[1]] == [heap(rolled)]
