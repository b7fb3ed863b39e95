"""A dead letter goes again by today's rules, and never for somebody who is gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from making import NOW, TENANT, World

from telemetry.books import Books
from telemetry.brokers import DEAD, HELD, SEALED, Entry
from telemetry.brokers.spool import Spool
from telemetry.dead_letter import burying
from telemetry.edge import Item
from telemetry.identity import Identifier, Identity, load_dead_letter_sealer
from telemetry.letters import Chosen, Meant, Opened, page, purge, release
from telemetry.parcel import Parcel
from telemetry.pipeline import Deliver, Drop
from telemetry.redrive import Redrive

ACCOUNT = 7_744_556_123
EVENT: dict[str, Any] = {
    "event": "task created",
    "time": "2026-11-22T10:14:31.5Z",
    "account": ACCOUNT,
    "properties": {"project": "proj-7744", "priority": "low"},
}


async def inline(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class Desk:
    """A world with a log, a place to bury in and somebody who holds the key."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        keys = folder / "keys"
        sealer = load_dead_letter_sealer(keys / "public.json")
        self.spool = Spool(folder / "spool.sqlite3", key=bytes(32), ballast_bytes=1 << 16)
        self.bury = burying(sealer, "pseudonymizer", lambda: self.world.now)
        self.redrive = Redrive(
            self.spool,
            self.world.policy,
            self.world.schemas,
            Identity.sealer(folder),
            sealer,
            on_storage=inline,
            on_scrub=inline,
            now=lambda: self.world.now,
        )

    def dead(self, letter: Parcel) -> Parcel:
        """Store a letter with the counts of its life so far."""
        counts = {Entry("edge", "items_in"): 1, Entry("edge", "dead", letter.reason): 1}
        self.spool.append(SEALED, [], counts, beside={DEAD: [letter]})
        return letter

    async def replay(self) -> dict[str, int]:
        opener = self.world.dead_opener()
        letters = [
            Opened(
                seq=kept.seq,
                event_id=kept.parcel.event_id,
                reason=kept.parcel.reason,
                original=opener.open(kept.parcel.body, event_id=kept.parcel.event_id),
            )
            for kept in self.spool.look(DEAD, 0, 1000)
        ]
        return await self.redrive.replay(letters)

    @property
    def sealed(self) -> list[Parcel]:
        return [kept.parcel for kept in self.spool.look(SEALED, 0, 1000)]

    @property
    def exact(self) -> bool:
        return Books(self.spool.books(), self.spool.pending(), (), shelved=True).exact

    def close(self) -> None:
        self.spool.close()
        self.world.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    one = Desk(tmp_path)
    yield one
    one.close()


async def test_what_the_pseudonymizer_parked_goes_again_under_the_same_id_and_token(
    desk: Desk,
) -> None:
    parcel = desk.world.parcel("analytics_event", EVENT, "ab" * 16)
    before = desk.world.decide(parcel)
    stale = replace(parcel, policy_digest="f" * 64)
    letter = desk.dead(desk.bury(stale, "unknown_policy"))
    assert letter.capsule == parcel.capsule
    desk.world.now += timedelta(days=3)
    assert await desk.replay() == {"replayed": 1}
    (again,) = desk.sealed
    assert (again.event_id, again.occurred_at) == (parcel.event_id, parcel.occurred_at)
    assert again.policy_digest == desk.world.policy.digest
    assert (again.reason, again.retain_until) == ("", parcel.retain_until)
    assert desk.spool.look(DEAD, 0, 10) == []
    assert desk.spool.books()[Entry("dead", "replayed")] == 1
    assert desk.exact
    desk.world.now = NOW
    after = desk.world.decide(again)
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert isinstance(before["heap"], Deliver)
    assert isinstance(after["heap"], Deliver)
    bodies = [json.loads(one["heap"].parcel.body) for one in (before, after)]
    for name in ("identity", "idempotency_key", "timestamp", "event"):
        assert bodies[0][name] == bodies[1][name]


async def test_a_letter_of_somebody_who_was_erased_brings_nobody_back(desk: Desk) -> None:
    parcel = desk.world.parcel("analytics_event", EVENT)
    desk.dead(desk.bury(parcel, "secret_unreadable"))
    namespace = desk.world.policy.pseudonyms["account"].namespace
    subject = Identifier("account", namespace, str(ACCOUNT))
    desk.world.identity.erase(subject, purposes=desk.world.policy.purposes)
    assert await desk.replay() == {"replayed": 1}
    (again,) = desk.sealed
    assert desk.world.decide(again) == Drop("erased")


async def test_what_the_edge_parked_goes_again_with_its_time_of_receipt(desk: Desk) -> None:
    raw = json.dumps({k: v for k, v in EVENT.items() if k != "time"}).encode()
    taken = desk.world.take(Item("analytics_event", b"no json", "cd" * 16))
    (unreadable,) = taken.dead
    assert (unreadable.reason, unreadable.event_id) == ("undecodable", "cd" * 16)
    sealer = load_dead_letter_sealer(desk.world.state / "keys" / "public.json")
    desk.dead(replace(unreadable, body=sealer.seal(raw, event_id="cd" * 16)))
    desk.world.now += timedelta(days=10)
    assert await desk.replay() == {"replayed": 1}
    (again,) = desk.sealed
    assert (again.event_id, again.tenant) == ("cd" * 16, TENANT)
    assert again.occurred_at.date() == again.received_at.date() == NOW.date()
    assert desk.exact


async def test_what_fails_again_what_is_late_and_what_a_recipient_refused_stays_where_it_is(
    desk: Desk,
) -> None:
    taken = desk.world.take(Item("analytics_event", b"no json"))
    desk.dead(taken.dead[0])
    parcel = desk.world.parcel("analytics_event", EVENT)
    late = replace(desk.bury(parcel, "contract"), retain_until=NOW + timedelta(days=1))
    desk.dead(late)
    sealer = load_dead_letter_sealer(desk.world.state / "keys" / "public.json")
    desk.dead(burying(sealer, "heap", lambda: NOW)(parcel, "rejected"))
    desk.world.now += timedelta(days=2)
    assert await desk.replay() == {"undecodable": 1, "expired": 1, "no_identifiers": 1}
    assert desk.sealed == []
    assert len(desk.spool.look(DEAD, 0, 10)) == 3
    assert desk.exact


async def test_a_letter_that_is_not_there_or_was_exchanged_is_not_replayed(desk: Desk) -> None:
    parcel = desk.world.parcel("analytics_event", EVENT)
    desk.dead(desk.bury(parcel, "contract"))
    (kept,) = desk.spool.look(DEAD, 0, 10)
    one = Opened(seq=kept.seq, event_id=parcel.event_id, reason="contract", original=parcel.body)
    for wrong in (
        Opened(seq=99, event_id=one.event_id, reason=one.reason, original=b"{}"),
        Opened(seq=kept.seq, event_id="0" * 32, reason=one.reason, original=b"{}"),
        Opened(seq=kept.seq, event_id=one.event_id, reason="capsule", original=b"{}"),
    ):
        assert await desk.redrive.replay([wrong]) == {"not_there": 1}
    assert await desk.redrive.replay([one, one]) == {"replayed": 1, "not_there": 1}
    assert len(desk.sealed) == 1


def test_letters_are_chosen_by_everything_that_is_said(desk: Desk) -> None:
    parcel = desk.world.parcel("analytics_event", EVENT)
    for number, reason in enumerate(["contract", "contract", "capsule_corrupt"]):
        desk.dead(desk.bury(replace(parcel, event_id=f"{number:032x}"), reason))
        desk.world.now += timedelta(hours=1)
    now = desk.world.now

    def found(**words: Any) -> list[int]:
        letters, after = page(desk.spool, Chosen(**words), now)
        assert after
        return [int(one.event_id, 16) for one in letters]

    assert found() == [0, 1, 2]
    assert found(reason="contract") == [0, 1]
    assert found(reason="contract", older_than_s=2.5 * 3600) == [0]
    assert found(event_id=f"{2:032x}") == [2]
    assert found(stage="pseudonymizer") == [0, 1, 2]
    assert found(stage="edge") == []
    (shown,), _ = page(desk.spool, Chosen(reason="capsule_corrupt"), now)
    assert shown.shape["properties"] == "map"
    assert b"proj-7744" not in repr(shown).encode()
    assert shown.sealed == b""
    assert purge(desk.spool, Chosen(reason="contract", older_than_s=9000), now)[0] == 1
    assert found() == [1, 2]
    assert desk.spool.books()[Entry("dead", "dropped", "purged")] == 1
    assert desk.exact


async def test_held_events_go_on_once_and_what_is_still_restricted_is_held_again(
    desk: Desk,
) -> None:
    held = desk.world.parcel("analytics_event", EVENT, "ab" * 16)
    late = desk.world.parcel("analytics_event", EVENT, "cd" * 16)
    late = replace(late, retain_until=desk.world.now + timedelta(days=1))
    both = [replace(parcel, reason="restricted") for parcel in (held, late)]
    counts = {Entry("edge", "items_in"): 2, Entry("edge", "sealed"): 2}
    counts[Entry("pseudonymizer", "held", "restricted")] = 2
    desk.spool.append(HELD, both, counts)
    now = desk.world.now + timedelta(days=2)
    listed, _ = page(desk.spool, Chosen(), now, stream=HELD)
    assert [(one.reason, one.goes_again) for one in listed] == [
        ("restricted", "yes"),
        ("restricted", "expired"),
    ]
    assert str(ACCOUNT) not in repr(listed)
    meant = [
        Meant(seq=int(one.place.partition("/")[2]), event_id=one.event_id, reason=one.reason)
        for one in listed
    ]
    assert release(desk.spool, meant, now) == {"released": 1, "expired": 1}
    assert release(desk.spool, meant, now) == {"not_there": 1, "expired": 1}
    (again,) = desk.sealed
    assert again == held
    books = Books(desk.spool.books(), desk.spool.pending(), (), shelved=True)
    assert books.exact
    assert books.as_json()["released"] == 1
    assert books.as_json()["waiting"]["held"] == 1
    assert isinstance(desk.world.decide(again), dict)
