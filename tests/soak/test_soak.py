"""The soak's own instruments: that a loss would be seen, and that faults are what they say."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import pytest

from telemetry.testing import Leaks
from tests.soak.events import Events
from tests.soak.proxy import FAULTS, Fault, Proxy
from tests.soak.recipients import Heap, Sentry
from tests.soak.round import Round, Sent, judge

NUMBERS = range(1, 60)


@pytest.fixture
def heap() -> Iterator[Heap]:
    with Heap() as there:
        yield there


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    with Sentry() as there:
        yield there


def post(
    port: int,
    path: str,
    body: bytes,
    timeout_s: float = 2.0,
    headers: Mapping[str, str] = MappingProxyType({"Content-Type": "application/json"}),
) -> int:
    """Send once; 0 if no answer came that is one."""
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", path, body, dict(headers))
        answer = connection.getresponse()
        answer.read()
    except (OSError, HTTPException):
        return 0
    else:
        return answer.status
    finally:
        connection.close()


def track(*numbers: int, known_as: str = "id") -> bytes:
    events = [
        {
            "event": "search used",
            "identity": "somebody",
            "idempotency_key": f"{known_as}-{number}",
            "properties": {"results": number},
        }
        for number in numbers
    ]
    return json.dumps({"app_id": "11", "events": events}).encode()


def _sentry(auth: str) -> dict[str, str]:
    return {"X-Sentry-Auth": auth, "Content-Type": "application/x-sentry-envelope"}


def envelope(sentry: Sentry, posted: bytes) -> int:
    key = sentry.dsn.partition("//")[2].partition("@")[0]
    auth = f"Sentry sentry_key={key}, sentry_version=7"
    return post(sentry.port, "/api/1/envelope/", posted, headers=_sentry(auth))


def delivered(heap: Heap, sentry: Sentry) -> tuple[Sent, dict[str, Any]]:
    """Give what a client and the books say after everything has gone well."""
    events, sent = Events(1), Sent()
    posted = events.native(NUMBERS)
    sent.note(posted, 200, json.dumps(posted.answer).encode(), 0.01)
    for number in NUMBERS:
        if events.kind(number) == "analytics":
            assert post(heap.port, "/api/track", track(number)) == 200
        else:
            assert envelope(sentry, events.envelope((number,)).body) == 200
    heap.violations.clear()
    sentry.violations.clear()
    count = {"heap": len(heap.arrived), "sentry": len(sentry.arrived)}
    books = {
        "exact": True,
        "pending": {"pseudonymizer": 0, "heap": 0, "sentry": 0},
        "held": 0,
        "events_in": len(NUMBERS),
        "delivered": count,
        "dead_at": {},
        "dropped_at": {},
    }
    return sent, books


def test_a_round_in_which_all_goes_well_has_no_finding(heap: Heap, sentry: Sentry) -> None:
    assert judge(*delivered(heap, sentry), heap, sentry) == []


def _lose_analytics(heap: Heap, _sentry: Sentry, _books: dict[str, Any]) -> None:
    heap.events.pop(7)


def _lose_an_error(_heap: Heap, sentry: Sentry, _books: dict[str, Any]) -> None:
    sentry.events.pop(7)


def _lose_a_session(_heap: Heap, sentry: Sentry, _books: dict[str, Any]) -> None:
    sentry.items.remove(next(item for item in sentry.items if item.type == "session"))


def _store_twice(heap: Heap, _sentry: Sentry, _books: dict[str, Any]) -> None:
    post(heap.port, "/api/track", track(1, known_as="another"))


def _store_what_was_never_sent(heap: Heap, _sentry: Sentry, _books: dict[str, Any]) -> None:
    post(heap.port, "/api/track", track(1001))


def _store_a_marked_one(heap: Heap, _sentry: Sentry, _books: dict[str, Any]) -> None:
    heap.events.append({"properties": {"results": 0}})


def _unbalance(_heap: Heap, _sentry: Sentry, books: dict[str, Any]) -> None:
    books["exact"] = False


def _leave_one_under_way(_heap: Heap, _sentry: Sentry, books: dict[str, Any]) -> None:
    books["pending"]["heap"] = 1


def _drop_without_reason(_heap: Heap, _sentry: Sentry, books: dict[str, Any]) -> None:
    books["dropped_at"] = {"heap": {"expired": 1}}


def _bury_without_reason(_heap: Heap, _sentry: Sentry, books: dict[str, Any]) -> None:
    books["dead_at"] = {"pseudonymizer": {"capsule": 1}}


def _count_a_delivery_too_many(_heap: Heap, _sentry: Sentry, books: dict[str, Any]) -> None:
    books["delivered"]["sentry"] += 1


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_lose_analytics, "LOST"),
        (_lose_an_error, "LOST"),
        (_lose_a_session, "LOST"),
        (_store_twice, "stored twice"),
        (_store_what_was_never_sent, "never sent"),
        (_store_a_marked_one, "refused for good"),
        (_unbalance, "not exact"),
        (_leave_one_under_way, "under way"),
        (_drop_without_reason, "dropped at heap"),
        (_bury_without_reason, "dead at pseudonymizer"),
        (_count_a_delivery_too_many, "delivered to sentry"),
    ],
)
def test_each_kind_of_harm_is_seen(
    heap: Heap,
    sentry: Sentry,
    harm: Callable[[Heap, Sentry, dict[str, Any]], None],
    told: str,
) -> None:
    sent, books = delivered(heap, sentry)
    harm(heap, sentry, books)
    assert any(told in what for what in judge(sent, books, heap, sentry))


def test_only_a_schedule_that_filled_the_log_explains_a_want_of_room(
    heap: Heap, sentry: Sentry
) -> None:
    sent, books = delivered(heap, sentry)
    for _ in range(2):
        sentry.events.pop()
    books["delivered"]["sentry"] -= 2
    books["dropped_at"] = {"sentry": {"no_room": 2}}
    assert judge(sent, books, heap, sentry, filled=True) == []
    assert any("LOST" in what for what in judge(sent, books, heap, sentry))
    sentry.events.pop()  # one more than there was no room for
    assert any("LOST" in what for what in judge(sent, books, heap, sentry, filled=True))


def test_an_event_whose_request_was_refused_must_not_arrive(heap: Heap, sentry: Sentry) -> None:
    sent, books = delivered(heap, sentry)
    posted = Events(1).native((1000,))
    sent.note(posted, 429, b"{}", 0.01)
    assert judge(sent, books, heap, sentry) == []
    assert post(heap.port, "/api/track", track(1000)) == 200
    assert any("every request was refused" in what for what in judge(sent, books, heap, sentry))


def test_every_event_carries_every_planted_value() -> None:
    events = Events(3)
    for number in (1, 5, 9):
        found = {
            f.name for f in Leaks(events.planted).search([("it", events.native((number,)).body)])
        }
        assert found, events.kind(number)
    whole = events.native(range(1, 10)).body + events.envelope((5, 9)).body
    assert {f.name for f in Leaks(events.planted).search([("all", whole)])} == set(events.planted)


def test_a_marked_event_is_refused_and_its_neighbours_with_it(heap: Heap) -> None:
    assert post(heap.port, "/api/track", track(0, 1)) == 400
    assert heap.stored() == {}
    assert heap.ids[1] == {"id-1"}
    assert post(heap.port, "/api/track", track(1)) == 200
    assert set(heap.stored()) == {1}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoilt_connection_shows_each_side_what_the_table_says(heap: Heap, fault: Fault) -> None:
    arrives = {"delay": True, "mute": True, "cut_answer": True, "garbage": True}
    with Proxy(heap.port) as proxy:
        assert post(proxy.port, "/api/track", track(1)) == 200
        if fault == "half_open":
            proxy.spoil(fault, seconds=0.3)
        else:
            proxy.spoil(fault, count=1, delay_s=0.2)
        answered = post(proxy.port, "/api/track", track(2))
        assert answered == (200 if fault == "delay" else 0)
        assert (2 in heap.stored()) is arrives.get(fault, False)
        assert proxy.struck == {fault: 1}
        proxy.heal()
        assert post(proxy.port, "/api/track", track(3)) == 200
        assert 3 in heap.stored()


def test_healing_ends_a_half_open_connection_at_once(heap: Heap) -> None:
    with Proxy(heap.port) as proxy:
        proxy.spoil("half_open")
        healing = threading.Timer(0.2, proxy.heal)
        healing.start()
        assert post(proxy.port, "/api/track", track(1), timeout_s=5.0) == 0
        assert post(proxy.port, "/api/track", track(1)) == 200
        healing.join()


def test_a_proxy_before_nothing_resets() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with Proxy(nobody.getsockname()[1]) as proxy:
            assert post(proxy.port, "/", b"x") == 0


def test_a_seed_decides_events_and_schedule(tmp_path: Path) -> None:
    def drawn(seed: int, number: int) -> Mapping[str, Any]:
        there = Round(seed, number, tmp_path, kills=1)
        return {"planted": there.events.planted, "next": there.draw.random()}

    assert drawn(7, 3) == drawn(7, 3)
    assert drawn(7, 3) != drawn(7, 4)
    assert drawn(7, 3) != drawn(8, 3)
    one, other = Random(1), Random(1)  # noqa: S311 - reproducible, no secret
    events = Events(5)
    assert events.hostile(range(9), one) == events.hostile(range(9), other)


@pytest.mark.endurance
@pytest.mark.timeout(180)
def test_a_short_round_loses_nothing_and_says_what_it_did(tmp_path: Path) -> None:
    report = Round(20261122, 0, tmp_path / "round", kills=6).run()
    assert report.wrong == []
    assert report.kills >= 6
    assert min(report.backlogs) >= 10
    assert report.books["exact"]
    assert report.acknowledged > 60
    assert max(report.first_delivery_s + report.first_delivery_from_nothing_s) < 10


@pytest.mark.timeout(120)
def test_a_round_in_which_an_event_is_lost_says_so(tmp_path: Path) -> None:
    class Forgetful(Round):
        def _fault(self) -> None:
            super()._fault()
            self._heal()
            self._wait(lambda: len(self.heap.events) > 3, 20.0)
            self.heap.events.pop(2)

    report = Forgetful(20261122, 1, tmp_path / "round", kills=1).run()
    assert any("LOST" in what for what in report.wrong)
