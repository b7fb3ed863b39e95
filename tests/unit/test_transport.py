"""The hand-over: bounded, never in the caller's way, and it says what became of each event."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from telemetry import transport
from telemetry.errors import ConfigError
from telemetry.transport import Destination, Entry, Handover
from tests.sdk_gateway import RecordingGateway, wait_until


@pytest.fixture
def gateway() -> Iterator[RecordingGateway]:
    with RecordingGateway() as running:
        yield running


@pytest.fixture
def dead_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def as_it_is(entry: Entry) -> bytes:
    return entry.raw


def event(number: int) -> Entry:
    return Entry("events", "analytics_event", json.dumps({"n": number}).encode())


def error(number: int) -> Entry:
    return Entry("envelope", "error_event", b'{}\n{"type":"event","length":2}\n%d' % number)


def balanced(stats: dict[str, int]) -> bool:
    dropped = sum(n for what, n in stats.items() if what.startswith("dropped:"))
    return stats["accepted"] == stats.get("handed_over", 0) + dropped + stats["pending"]


def test_what_is_put_arrives_once_and_in_batches(gateway: RecordingGateway) -> None:
    handover = Handover(Destination.parse(gateway.url), as_it_is)
    for number in range(1200):
        assert handover.put(event(number))
    assert handover.flush(5)
    assert sorted(found["n"] for found in gateway.events) == list(range(1200))
    assert len(gateway.bodies) <= 6
    assert gateway.connections == 1
    assert handover.stats()["handed_over"] == 1200
    assert balanced(handover.stats())


def test_bodies_above_a_kibibyte_travel_compressed(gateway: RecordingGateway) -> None:
    handover = Handover(Destination.parse(gateway.url), as_it_is)
    handover.put(event(1))
    handover.flush(5)
    for number in range(500):
        handover.put(event(number))
    handover.flush(5)
    assert "content-encoding" not in gateway.headers[0]
    assert gateway.headers[-1]["content-encoding"] == "gzip"
    assert sum(map(len, gateway.raw)) < sum(len(body) for _, body in gateway.bodies) / 2


def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    with RecordingGateway(unix=str(tmp_path / "gateway.sock")) as gateway:
        handover = Handover(Destination.parse(gateway.url), as_it_is)
        handover.put(event(7))
        assert handover.flush(5)
        assert gateway.events == [{"n": 7}]


def test_a_burst_during_an_outage_arrives_when_the_gateway_is_back(dead_url: str) -> None:
    handover = Handover(Destination.parse(dead_url), as_it_is)
    for number in range(2000):
        handover.put(event(number))
    assert not handover.flush(0.3)
    with RecordingGateway(port=handover.destination.port) as gateway:
        assert handover.flush(10)
        assert sorted(found["n"] for found in gateway.events) == list(range(2000))
    assert not [what for what in handover.stats() if what.startswith("dropped")]


def test_a_connection_that_ended_meanwhile_costs_nothing(gateway: RecordingGateway) -> None:
    handover = Handover(Destination.parse(gateway.url), as_it_is)
    handover.put(event(1))
    handover.flush(5)
    assert handover._connection is not None
    handover._connection.sock.shutdown(socket.SHUT_RDWR)
    handover.put(event(2))
    assert handover.flush(5)
    assert [found["n"] for found in gateway.events] == [1, 2]
    assert "retries" not in handover.stats()


def test_analytics_make_room_for_errors_and_never_the_other_way_round(dead_url: str) -> None:
    handover = Handover(Destination.parse(dead_url), as_it_is, max_events=10)
    handover.put(error(0))
    wait_until(lambda: handover.stats().get("retries"))
    for number in range(9):
        assert handover.put(event(number))
    assert not handover.put(event(9))
    for number in range(1, 10):
        assert handover.put(error(number))
    assert not handover.put(error(10))
    assert handover.stats()["dropped:queue_full"] == 11
    assert handover.stats()["pending"] == 10
    assert balanced(handover.stats())
    handover.close(0)


def test_the_queue_is_bounded_by_bytes_too(dead_url: str) -> None:
    handover = Handover(Destination.parse(dead_url), as_it_is, max_bytes=100_000)
    for _ in range(20):
        handover.put(Entry("events", "analytics_event", b"x" * 30_000))
    assert handover.stats()["pending"] == 3
    assert balanced(handover.stats())
    handover.close(0)


def test_what_cannot_be_prepared_stays_here_and_is_counted(gateway: RecordingGateway) -> None:
    def prepare(entry: Entry) -> bytes | str:
        number = json.loads(entry.raw)["n"]
        if number == 1:
            return "undeclared_event"
        if number == 2:
            raise ValueError("the scrubber broke")
        return entry.raw

    handover = Handover(Destination.parse(gateway.url), prepare)
    for number in range(4):
        handover.put(event(number))
    assert handover.flush(5)
    assert [found["n"] for found in gateway.events] == [0, 3]
    assert handover.stats()["dropped:undeclared_event"] == 1
    assert handover.stats()["dropped:scrub_failed"] == 1
    assert balanced(handover.stats())


@pytest.mark.parametrize("status", [429, 503, 500, 401, 404, 307])
def test_an_answer_that_may_change_is_asked_for_again(
    gateway: RecordingGateway, status: int
) -> None:
    gateway.answers = [(status, {})]
    handover = Handover(Destination.parse(gateway.url), as_it_is)
    handover.put(event(1))
    assert handover.flush(5)
    assert gateway.events == [{"n": 1}]
    assert handover.stats()["retries"] == 1


def test_retry_after_is_honoured_even_by_a_flush(gateway: RecordingGateway) -> None:
    gateway.answers = [(429, {"Retry-After": "1"})]
    handover = Handover(Destination.parse(gateway.url), as_it_is)
    begun_at = time.monotonic()
    handover.put(event(1))
    assert handover.flush(5)
    assert time.monotonic() - begun_at >= 0.95


def test_errors_pass_analytics_that_were_told_to_wait(gateway: RecordingGateway) -> None:
    gateway.answers = [(429, {"Retry-After": "2"})]
    handover = Handover(Destination.parse(gateway.url), as_it_is)
    begun_at = time.monotonic()
    handover.put(event(1))
    wait_until(lambda: handover.stats().get("retries") == 1)
    handover.put(error(1))
    handover.put(error(2))
    wait_until(lambda: len(gateway.bodies) == 2)
    assert time.monotonic() - begun_at < 1.5
    assert {path for path, _ in gateway.bodies} == {"/api/1/envelope/"}
    assert handover.flush(5)
    assert time.monotonic() - begun_at >= 1.95  # what was told to wait has waited
    assert gateway.events == [{"n": 1}]
    assert balanced(handover.stats())


def test_a_request_that_is_refused_is_dropped_and_the_next_goes_on(
    gateway: RecordingGateway,
) -> None:
    gateway.answers = [(400, {})]
    handover = Handover(Destination.parse(gateway.url), as_it_is)
    handover.put(error(1))
    handover.put(error(2))
    assert handover.flush(5)
    assert handover.stats()["dropped:refused"] == 1
    assert handover.stats()["handed_over"] == 1
    assert balanced(handover.stats())


def test_a_request_the_gateway_breaks_on_does_not_stop_the_rest(
    gateway: RecordingGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_BACKOFF_S", (0.0, 0.0))
    gateway.answers = [(500, {})] * transport._ATTEMPTS_ANSWERED
    handover = Handover(Destination.parse(gateway.url), as_it_is)
    handover.put(error(1))
    handover.put(error(2))
    assert handover.flush(10)
    assert handover.stats()["dropped:refused"] == 1
    assert handover.stats()["handed_over"] == 1


def test_a_batch_that_is_too_large_is_halved_until_it_fits(gateway: RecordingGateway) -> None:
    gateway.largest_events = 3
    handover = Handover(Destination.parse(gateway.url), as_it_is)
    for number in range(20):
        handover.put(event(number))
    assert handover.flush(5)
    assert sorted(found["n"] for found in gateway.events) == list(range(20))
    assert balanced(handover.stats())


def test_shutting_down_with_a_dead_gateway_keeps_to_its_time(dead_url: str) -> None:
    handover = Handover(Destination.parse(dead_url), as_it_is)
    for number in range(100):
        handover.put(event(number))
    begun_at = time.monotonic()
    assert not handover.close(0.5)
    assert time.monotonic() - begun_at < 0.8
    assert not handover.put(event(1))
    assert handover.stats()["dropped:closed"] >= 1


def test_a_gateway_that_never_answers_does_not_hold_up_the_exit() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        handover = Handover(Destination.parse(url), as_it_is)
        handover.put(event(1))
        begun_at = time.monotonic()
        assert not handover.close(0.5)
        assert time.monotonic() - begun_at < 0.8


def test_time_already_waited_in_vain_is_not_waited_again(dead_url: str) -> None:
    handover = Handover(Destination.parse(dead_url), as_it_is)
    handover.put(event(1))
    handover.flush(0.5)
    begun_at = time.monotonic()
    handover.close(0.5)
    assert time.monotonic() - begun_at < 0.2


def test_a_thread_that_dies_is_replaced_and_the_rest_arrives(gateway: RecordingGateway) -> None:
    def prepare(entry: Entry) -> bytes:
        if entry.raw == b'{"n": 1}':
            raise SystemExit
        return entry.raw

    handover = Handover(Destination.parse(gateway.url), prepare)
    for number in range(3):
        handover.put(event(number))
    assert handover.flush(5)
    assert [found["n"] for found in gateway.events] == [0, 2]
    assert handover.stats()["thread_died"] == 1
    assert handover.stats()["dropped:thread_died"] == 1
    assert balanced(handover.stats())


def test_what_the_sending_itself_causes_is_not_sent(gateway: RecordingGateway) -> None:
    def prepare(entry: Entry) -> bytes:
        handover.put(event(99))
        return entry.raw

    handover = Handover(Destination.parse(gateway.url), prepare)
    handover.put(event(1))
    assert handover.flush(5)
    assert gateway.events == [{"n": 1}]
    assert handover.stats()["dropped:own_thread"] == 1


def test_many_threads_lose_nothing(gateway: RecordingGateway) -> None:
    handover = Handover(Destination.parse(gateway.url), as_it_is)

    def many(first: int) -> None:
        for number in range(first, first + 500):
            handover.put(event(number))

    threads = [threading.Thread(target=many, args=(n * 500,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert handover.flush(10)
    assert sorted(found["n"] for found in gateway.events) == list(range(4000))
    assert handover.stats()["pending"] == 0
    assert handover._bytes == 0


def test_a_forked_child_sends_its_own_and_nothing_of_its_parent(
    gateway: RecordingGateway, dead_url: str
) -> None:
    """The parent's queue is full and its thread busy at the time of the fork."""
    handover = Handover(Destination.parse(dead_url), as_it_is)
    for number in range(100):
        handover.put(event(number))
    wait_until(lambda: handover.stats().get("retries"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            handover.destination = Destination.parse(gateway.url)
            begun_at = time.monotonic()
            handover.put(event(-1))
            sent = handover.flush(5) and time.monotonic() - begun_at < 1
            code = 0 if sent and handover.stats()["accepted"] == 1 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert gateway.events == [{"n": -1}]
    assert handover.stats()["pending"] == 100
    handover.close(0)


def test_a_fork_waits_for_the_event_being_scrubbed(gateway: RecordingGateway) -> None:
    """Else the child would inherit whatever locks the scrubber holds at that moment."""
    scrubbing = threading.Event()
    engine = threading.Lock()

    def prepare(entry: Entry) -> bytes:
        with engine:
            scrubbing.set()
            time.sleep(0.2)
        return entry.raw

    handover = Handover(Destination.parse(gateway.url), prepare)
    handover.put(event(1))
    scrubbing.wait(5)
    child = os.fork()
    if child == 0:
        os._exit(0 if engine.acquire(timeout=1) else 3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert handover.flush(5)


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("http://127.0.0.1:4180", True),
        ("http://localhost:4180/1", True),
        ("http://[::1]:4180", True),
        ("unix:/run/telemetry.sock", True),
        ("https://gateway.example.com", True),
        ("http://gateway.example.com:4180", False),
        ("http://127.example.com", False),
        ("http://192.0.2.7:4180", False),
    ],
)
def test_a_way_is_private_only_if_nobody_can_read_along(url: str, *, private: bool) -> None:
    assert Destination.parse(url).private is private


def test_a_dsn_is_a_url_of_a_gateway() -> None:
    there = Destination.parse("https://abc123@gateway.example.com/7")
    assert (there.host, there.port, there.key, there.project) == (
        "gateway.example.com",
        443,
        "abc123",
        "7",
    )
    assert Destination.parse(there.dsn) == there


@pytest.mark.parametrize("url", ["", "flow", "ftp://example.com", "unix:", "http://", "http://a:b"])
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Destination.parse(url)
    assert "a:b" not in str(caught.value)
