"""Two simulated years: who is one person at Heap stays one, and at Sentry for a quarter."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from telemetry.errors import CapsuleError, KeyringError
from telemetry.identity import Domain, Identifier, Identity, epoch_label, initialise_development
from telemetry.identity.keyring import Keyring
from telemetry.identity.vault import Held
from telemetry.identity.vault.upkeep import stats

HEAP = Domain(name="analytics@heap", label="heap", epoch="rel")
SENTRY = Domain(name="errors@sentry", label="sentry", epoch="quarter")
SENTRY_REL = Domain(name="errors@sentry", label="sentry", epoch="rel")
YEARS = 2


class Years:
    """An installation whose clock is moved."""

    def __init__(self, state: Path) -> None:
        initialise_development(state)
        self.state, self.start = state, datetime.now(UTC) + timedelta(minutes=1)
        self.now = self.start
        self.identity = self.open()

    def open(self) -> Identity:
        identity = Identity.open(self.state, environment="development")
        identity._now = identity._vault._now = lambda: self.now
        identity._keyring._now = lambda: self.now
        return identity

    def restart(self) -> None:
        self.identity.close()
        self.identity = self.open()

    def token(self, who: str, domain: Domain) -> str:
        self.identity._forget()
        subject = Identifier("account", "app:user", who)
        place = self.identity._locator(subject)
        held = self.identity._vault.secrets([place])[place]
        assert isinstance(held, Held)
        return self.identity._tokens_of(domain, self.now, [(subject, held)])[0]

    def rotate_token_key(self, domain: Domain) -> None:
        ring: Keyring = self.identity._keyring
        ring.promote(ring.create("token", domain=domain.name, epoch="rel").kid)


@pytest.fixture
def years(tmp_path: Path) -> Iterator[Years]:
    one = Years(tmp_path)
    yield one
    one.identity.close()


def test_no_rotation_of_two_years_breaks_a_cohort(years: Years) -> None:
    """Weekly wrap keys, a new token key each quarter, new accounts each month, a restart each."""
    seen: dict[str, set[str]] = {}
    at_sentry: dict[str, dict[str, set[str]]] = {}
    for week in range(YEARS * 52):
        years.now = years.start + timedelta(weeks=week)
        list(years.identity.upkeep())
        if week % 13 == 12:
            years.rotate_token_key(HEAP)
        if week % 4 == 0:
            years.restart()
            seen[str(1000 + week)] = set()
        epoch = epoch_label("quarter", years.now)
        for who, tokens in seen.items():
            tokens.add(years.token(who, HEAP))
            at_sentry.setdefault(who, {}).setdefault(epoch, set()).add(years.token(who, SENTRY))
    assert len(seen) == 26
    assert all(len(tokens) == 1 for tokens in seen.values())
    assert len(set.union(*seen.values())) == len(seen)
    for quarters in at_sentry.values():
        assert all(len(tokens) == 1 for tokens in quarters.values())
        assert all(not a & b for a, b in pairwise(quarters.values()))
    assert len(at_sentry["1000"]) >= 8
    # Eight token keys, each with those who came in its time; two wrap keys, the others destroyed.
    counted = stats(years.identity._vault)
    assert len(counted.pinned[HEAP.name]) >= 7
    assert sum(counted.pinned[HEAP.name].values()) == len(seen)
    wraps = [key for key in years.identity._keyring.entries() if key.use == "wrap"]
    assert [key.state for key in wraps[-2:]] == ["ENABLED", "PRIMARY"]
    assert {key.state for key in wraps[:-2]} == {"DESTROYED"}


def test_an_account_that_returns_within_twelve_months_is_the_same_person(years: Years) -> None:
    first = years.token("4711", HEAP)
    for quarter in range(1, 5):
        years.now = years.start + timedelta(days=91 * quarter)
        years.rotate_token_key(HEAP)
        list(years.identity.upkeep())
    assert years.token("4711", HEAP) == first
    assert years.token("4712", HEAP) != first


def test_errors_by_relationship_keep_their_token_over_the_quarters(years: Years) -> None:
    first = years.token("4711", SENTRY_REL)
    for quarter in range(1, 9):
        years.now = years.start + timedelta(days=91 * quarter)
        assert years.token("4711", SENTRY_REL) == first


def test_a_pinned_key_that_is_disabled_holds_and_one_that_is_destroyed_parks(years: Years) -> None:
    years.token("4711", HEAP)
    ring = years.identity._keyring
    (old,) = (key for key in ring.entries() if key.use == "token")
    years.rotate_token_key(HEAP)
    ring.disable(old.kid)
    years.restart()
    with pytest.raises(KeyringError, match="pinned"):
        years.token("4711", HEAP)
    assert years.token("4712", HEAP)
    years.identity._keyring.destroy(old.kid)
    years.restart()
    with pytest.raises(CapsuleError, match="key_destroyed"):
        years.token("4711", HEAP)


def test_a_recipient_that_is_new_gets_its_first_key_for_all(years: Years) -> None:
    years.token("4711", HEAP)
    later = Domain(name="analytics@other", label="other", epoch="rel")
    first = years.token("4711", later)
    years.rotate_token_key(later)
    years.restart()
    assert years.token("4711", later) == first
    years.token("4712", HEAP)
    kids = [key.kid for key in years.identity._keyring.entries() if key.domain == later.name]
    assert stats(years.identity._vault).pinned[later.name] == {kids[0]: 1, kids[1]: 1}
