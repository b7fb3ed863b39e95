"""Keys come and go by the calendar, and nothing is used before everybody knows it."""

from __future__ import annotations

import json
import os
import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import CapsuleError, KeyringError
from telemetry.identity import (
    Custody,
    HeldOpener,
    Identifier,
    Identity,
    initialise,
    load_held_sealer,
)
from telemetry.identity.capsule import Opener, Sealer
from telemetry.identity.keyring import KEYSET, PUBLIC, Announced, Keyring, PublicKeys
from telemetry.identity.rotation import ANNOUNCED, SEAL_LAG, overdue, tend
from telemetry.retention import Period

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HEAP, SENTRY = "analytics@heap", "errors@sentry"
WHO = [Identifier("account", "app:user", "4711")]
BOUND: dict[str, Any] = {
    "event_id": "e1",
    "schema": "error_event",
    "occurred_ms": 1_790_000_000_000,
    "tenant": "shop",
}


class Clock:
    """A wall clock that stands where it is put."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    initialise(tmp_path, environment="production", custody=Custody(state=tmp_path))
    return tmp_path / "keys" / KEYSET


@pytest.fixture
def ring(path: Path, clock: Clock) -> Keyring:
    return Keyring.load(path, environment="production", now=clock)


def in_state(ring: Keyring, use: str, state: str) -> list[str]:
    return [key.kid for key in ring.entries() if (key.use, key.state) == (use, state)]


# --- States ---------------------------------------------------------------------------------------


def test_a_key_is_published_then_used_then_kept_for_what_is_late(ring: Keyring) -> None:
    first = ring.primary("seal").kid
    second = ring.create("seal", not_before=START + DAY)
    assert (second.state, ring.primary("seal").kid) == ("PRE_ACTIVE", first)
    assert ring.opening("seal", second.kid) is not None
    assert ring.promote(second.kid).state == "PRIMARY"
    assert in_state(ring, "seal", "ENABLED") == [first]
    assert ring.opening("seal", first) is not None
    ring.disable(first)
    assert ring.opening("seal", first) is None
    ring.enable(first)
    ring.promote(first)
    assert ring.primary("seal").kid == first


@pytest.mark.parametrize(
    ("state", "forbidden"),
    [
        ("PRE_ACTIVE", {"enable"}),
        ("PRIMARY", {"promote", "enable", "disable", "destroy"}),
        ("ENABLED", {"enable"}),
        ("DISABLED", {"promote", "disable"}),
        ("DESTROYED", {"promote", "enable", "disable", "destroy"}),
    ],
)
def test_each_state_allows_some_turns_and_no_others(
    ring: Keyring, path: Path, state: str, forbidden: set[str]
) -> None:
    for turn in ("promote", "enable", "disable", "destroy"):
        kid = ring.create("seal").kid
        if state in {"PRIMARY", "ENABLED"}:
            ring.promote(kid)
        if state == "ENABLED":
            ring.promote(ring.create("seal").kid)
        if state in {"DISABLED", "DESTROYED"}:
            ring.disable(kid)
        if state == "DESTROYED":
            ring.destroy(kid)
        before = path.read_bytes()
        if turn in forbidden:
            with pytest.raises(KeyringError):
                getattr(ring, turn)(kid)
            assert path.read_bytes() == before
        else:
            getattr(ring, turn)(kid)


@pytest.mark.parametrize("use", ["locator", "suppress", "spool", "dead"])
def test_a_key_without_successor_is_neither_made_nor_destroyed(ring: Keyring, use: Any) -> None:
    with pytest.raises(KeyringError, match="no successor"):
        ring.create(use)
    for key in ring.entries():
        if key.use == use and use != "dead":
            ring.disable(key.kid)
            with pytest.raises(KeyringError, match="no successor"):
                ring.destroy(key.kid)


def test_a_wrap_key_gets_a_number_that_never_was_given(ring: Keyring) -> None:
    second = ring.create("wrap")
    ring.destroy(second.kid)
    assert [second.version, ring.create("wrap").version] == [2, 3]
    with pytest.raises(CapsuleError, match="key_destroyed"):
        ring.wrap(2)


def test_a_disabled_token_key_makes_the_stage_hold_and_no_other_takes_its_place(
    ring: Keyring, path: Path
) -> None:
    ring.token_key(HEAP, "rel")
    [kid] = in_state(ring, "token", "PRIMARY")
    ring.disable(kid)
    before = path.read_bytes()
    with pytest.raises(KeyringError):
        ring.token_key(HEAP, "rel")
    ring.create("token", domain=HEAP, epoch="rel")
    with pytest.raises(KeyringError):
        ring.token_key(HEAP, "rel")
    assert path.read_bytes() != before
    ring.promote(in_state(ring, "token", "PRE_ACTIVE")[0])
    ring.token_key(HEAP, "rel")


def test_a_key_that_was_destroyed_before_its_use_closes_nothing(ring: Keyring) -> None:
    ring.destroy(ring.create("token", domain=HEAP, epoch="rel").kid)
    waiting = ring.create("token", domain=HEAP, epoch="rel")
    assert ring.token_key(HEAP, "rel") == waiting.secret
    assert in_state(ring, "token", "PRIMARY") == [waiting.kid]
    ring.disable(waiting.kid)
    ring.destroy(waiting.kid)
    with pytest.raises(CapsuleError, match="key_destroyed"):
        ring.token_key(HEAP, "rel")


# --- Receipts and copies --------------------------------------------------------------------------


def test_a_receipt_is_signed_names_the_places_and_stays_as_a_tombstone(
    ring: Keyring, path: Path
) -> None:
    kid = ring.create("seal").kid
    ring.note_copy("USB stick 3, safe")
    receipt = ring.destroy(kid)
    assert receipt.places == (str(path), str(path.parent.parent / "backup" / KEYSET))
    assert receipt.awaited == ("USB stick 3, safe",)
    public = PublicKeys.load(path.with_name(PUBLIC)).audit[0]
    assert receipt.verify(public.raw)
    assert receipt.signed_by == public.kid
    again = Keyring.load(path, environment="production")
    [stone] = [key for key in again.entries() if key.kid == kid]
    assert (stone.state, stone.secret, stone.receipt) == ("DESTROYED", None, receipt)
    ring.drop_copy("USB stick 3, safe")
    assert "USB" not in {place for key in ring.entries() for place in key.copies}


def test_a_changed_receipt_does_not_verify(ring: Keyring, path: Path) -> None:
    kid = ring.create("seal").kid
    receipt, public = ring.destroy(kid), ring.signer().public
    document = json.loads(path.read_bytes())
    document["keys"][-1]["receipt"]["places"] = []
    path.write_text(json.dumps(document), "utf-8")
    ring.refresh()
    [stone] = [key for key in ring.entries() if key.kid == kid]
    assert stone.receipt is not None
    assert not stone.receipt.verify(public)
    assert receipt.verify(public)
    assert not receipt.verify(bytes(32))


def test_an_audit_key_signs_and_its_former_public_half_is_kept(ring: Keyring, path: Path) -> None:
    first = ring.signer()
    assert re.fullmatch(r"audit-[0-9a-z]{8}", first.name)
    ring.promote(ring.create("audit").kid)
    second = ring.signer()
    assert second.name != first.name
    known = {key.raw for key in PublicKeys.load(path.with_name(PUBLIC)).audit}
    assert known == {first.public, second.public}
    assert len(second.sign(b"a checkpoint")) == 64
    assert "Signer(audit-" in repr(second)


# --- The calendar ---------------------------------------------------------------------------------


def test_two_years_pass_and_every_rule_of_the_calendar_holds(
    ring: Keyring, path: Path, clock: Clock
) -> None:
    announced = Announced(path.with_name(PUBLIC), now=clock)
    stale = announced.keys
    sealed: list[tuple[datetime, bytes]] = []
    used: dict[str, set[bytes]] = {}
    opened = 0
    for day in range(2 * 365):
        tend(ring, now=clock.at, keeps={SENTRY: Period(months=12)})
        assert overdue(ring.entries(), clock.at) == []
        # A gateway that got the file 29 days ago still seals with a key that is alive.
        if day % 29 == 0:
            stale = PublicKeys.load(path.with_name(PUBLIC))
        sealed += [
            (clock.at, Sealer(public.raw, public.kid).seal(WHO, **BOUND))
            for public in (announced(), stale.sealing(clock.at))
        ]
        used.setdefault("rel", set()).add(ring.token_key(HEAP, "rel").expose())
        quarter = f"{clock.at.year}q{(clock.at.month + 2) // 3}"
        used.setdefault(quarter, set()).add(ring.token_key(SENTRY, quarter).expose())
        opener = Opener(ring)
        sealed = [one for one in sealed if one[0] >= clock.at - timedelta(hours=72)]
        for _, capsule in sealed:
            assert opener.open(capsule, **BOUND) == tuple(WHO)
            opened += 1
        clock.at += DAY
    assert opened > 4000
    # One key for the relationship, one for each quarter: no cohort broke.
    assert {name: len(keys) for name, keys in used.items()} == dict.fromkeys(used, 1)
    assert len(used) == 10
    seals = [key for key in ring.entries() if key.use == "seal"]
    assert 24 <= len(seals) <= 27
    assert len([key for key in seals if key.state != "DESTROYED"]) <= 3
    for key in seals:
        if key.not_before is not None:
            assert key.not_before - key.created >= ANNOUNCED
        if key.state == "DESTROYED":
            assert key.receipt is not None
            assert key.not_after is not None
            assert key.receipt.destroyed_at - key.not_after <= SEAL_LAG + DAY
            assert key.receipt.destroyed_at - key.not_after >= timedelta(hours=72)
    quarters = {k.epoch: k for k in ring.entries() if k.use == "token" and k.epoch != "rel"}
    # 2026q4 ends with the year; its events are kept until the end of 2027, and 7 days are grace.
    assert quarters["2026q4"].destroy_after == datetime(2028, 1, 8, tzinfo=UTC)
    gone = {epoch for epoch, key in quarters.items() if key.state == "DESTROYED"}
    assert gone == {"2026q4", "2027q1", "2027q2", "2027q3"}
    with pytest.raises(CapsuleError, match="key_destroyed"):
        ring.token_key(SENTRY, "2026q4")


def test_the_key_of_the_next_quarter_is_there_thirty_days_before_and_is_the_one_used(
    ring: Keyring, path: Path, clock: Clock
) -> None:
    ring.token_key(SENTRY, "2026q4")
    tend(ring, now=START)
    assert not [key for key in ring.entries() if key.epoch == "2027q1"]
    clock.at = datetime(2026, 12, 3, tzinfo=UTC)
    tend(ring, now=clock.at)
    [key] = [key for key in ring.entries() if key.epoch == "2027q1"]
    assert (key.state, key.not_before) == ("PRE_ACTIVE", datetime(2027, 1, 1, tzinfo=UTC))
    # Whose clock is a day ahead takes it, and does not make another.
    clock.at = datetime(2026, 12, 31, 1, tzinfo=UTC)
    other = Keyring.load(path, environment="production", now=clock)
    assert other.token_key(SENTRY, "2027q1") == key.secret
    clock.at = datetime(2027, 1, 1, 1, tzinfo=UTC)
    tend(ring, now=clock.at)
    assert ring.token_key(SENTRY, "2027q1") == key.secret
    assert in_state(ring, "token", "PRE_ACTIVE") == []


def test_a_standstill_of_half_a_year_leaves_one_key_of_each_kind_and_nothing_overdue(
    ring: Keyring, clock: Clock
) -> None:
    tend(ring, now=clock.at)
    clock.at += timedelta(days=183)
    first = tend(ring, now=clock.at)
    assert [turn.what for turn in first] == ["promoted", "created"]
    assert tend(ring, now=clock.at) == []
    clock.at += SEAL_LAG
    assert [turn.what for turn in tend(ring, now=clock.at)] == ["destroyed"]
    assert len(in_state(ring, "seal", "PRIMARY")) == 1


def test_no_key_that_opens_goes_while_the_stage_holds(ring: Keyring, clock: Clock) -> None:
    tend(ring, now=clock.at)
    clock.at += ANNOUNCED
    tend(ring, now=clock.at)
    clock.at += SEAL_LAG + DAY
    assert tend(ring, now=clock.at, holding=True) == []
    assert overdue(ring.entries(), clock.at)
    assert [turn.what for turn in tend(ring, now=clock.at)] == ["destroyed"]


def test_two_who_tend_at_once_do_each_thing_once(path: Path, clock: Clock) -> None:
    rings = [Keyring.load(path, environment="production", now=clock) for _ in range(3)]
    done: list[str] = []

    def work(ring: Keyring) -> None:
        done.extend(turn.what for turn in tend(ring, now=clock.at))

    for _ in range(3):
        threads = [threading.Thread(target=work, args=(ring,)) for ring in rings]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        clock.at += ANNOUNCED
    assert sorted(done) == sorted(["created"] * 3 + ["promoted"] * 2 + ["destroyed"])


# --- Running processes ----------------------------------------------------------------------------


def test_a_key_is_not_promoted_while_a_running_process_has_not_loaded_it(
    ring: Keyring, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Keyring.load(path, environment="production")
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "another-host")
        other.report()
    kid = ring.create("seal").kid
    assert ring.lacking(kid) == (f"another-host-{os.getpid()}",)
    with pytest.raises(KeyringError, match="not loaded yet by another-host"):
        ring.promote(kid)
    assert other.refresh()
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "another-host")
        other.report()
    assert ring.promote(kid).state == "PRIMARY"


def test_a_process_of_this_host_that_was_killed_delays_nobody(ring: Keyring, path: Path) -> None:
    child = os.fork()
    if child == 0:
        Keyring.load(path, environment="production").report()
        os._exit(0)
    os.waitpid(child, 0)
    assert [one.stem.rpartition("-")[2] for one in (path.parent / "loaded").iterdir()] == [
        str(child)
    ]
    ring.promote(ring.create("seal").kid)


def test_a_running_pseudonymizer_picks_up_a_rotation_within_a_minute_and_loses_nothing(
    path: Path,
) -> None:
    state, ticks = path.parent.parent, [0.0]
    identity = Identity.open(state, environment="production")
    running = Identity(identity._keyring, identity._vault, clock=lambda: ticks[0])
    before = Identity.sealer(state).seal(WHO, **BOUND)
    ring = Keyring.load(path, environment="production")
    ring.promote(ring.create("seal").kid)
    ring.promote(ring.create("wrap").kid)
    after = Identity.sealer(state).seal(WHO, **BOUND)
    opener = running._opener
    # At once, because what is not known is looked up; in a minute, because it looks anyway.
    assert opener.open(after, **BOUND) == opener.open(before, **BOUND) == tuple(WHO)
    ticks[0] += 61
    running.resolve([])
    assert running._keyring.primary("wrap").version == 2
    running.close()


def test_a_keyset_that_becomes_unreadable_makes_a_running_pseudonymizer_hold(path: Path) -> None:
    ticks = [0.0]
    identity = Identity.open(path.parent.parent, environment="production")
    running = Identity(identity._keyring, identity._vault, clock=lambda: ticks[0])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes())
    ticks[0] += 61
    with pytest.raises(KeyringError):
        running.resolve([])
    path.chmod(0o600)
    running.resolve([])
    running.close()


# --- Capsules across a rotation -------------------------------------------------------------------


def test_a_gateway_changes_to_the_announced_key_at_its_time_without_anybody(
    ring: Keyring, path: Path, clock: Clock
) -> None:
    tend(ring, now=clock.at)
    ticks = [0.0]
    sealer = Sealer(
        ring.primary("seal").public,
        ring.primary("seal").kid,
        clock=lambda: ticks[0],
        source=Announced(path.with_name(PUBLIC), now=clock),
    )
    first = sealer.seal(WHO, **BOUND)
    [following] = in_state(ring, "seal", "PRE_ACTIVE")
    ticks[0] += 61
    assert sealer.seal(WHO, **BOUND)[1:9] == first[1:9]
    clock.at += ANNOUNCED
    path.with_name(PUBLIC).unlink()
    ticks[0] += 61
    second = sealer.seal(WHO, **BOUND)
    assert second[1:9].decode() == following
    # The pseudonymizer knew it all the time, whether or not it has promoted it.
    assert Opener(ring).open(second, **BOUND) == tuple(WHO)


def test_a_capsule_for_a_retired_key_has_its_own_reason_and_alarms_once(
    ring: Keyring, capsys: pytest.CaptureFixture[str]
) -> None:
    former = ring.primary("seal")
    capsules = [Sealer(former.public, former.kid).seal(WHO, **BOUND) for _ in range(3)]
    ring.promote(ring.create("seal").kid)
    ring.destroy(former.kid)
    opener = Opener(ring)
    for capsule in capsules:
        with pytest.raises(CapsuleError, match=r"^capsule_retired_key$"):
            opener.open(capsule, **BOUND)
    said = capsys.readouterr()
    assert (said.out + said.err).count("capsule_retired_key") == 1


def test_an_event_on_hold_opens_only_as_such_and_only_for_itself(ring: Keyring, path: Path) -> None:
    sealed = load_held_sealer(path.with_name(PUBLIC)).seal(b"a parcel", event_id="e1")
    assert HeldOpener(ring).open(sealed, event_id="e1") == b"a parcel"
    with pytest.raises(CapsuleError):
        HeldOpener(ring).open(sealed, event_id="e2")
    ring.promote(ring.create("hold").kid)
    assert HeldOpener(ring).open(sealed, event_id="e1") == b"a parcel"
