"""Kafka as a broker, against librdkafka's mock cluster: the same conformance as the spool."""

from __future__ import annotations

import itertools
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from telemetry.brokers import DEAD, HELD, SEALED, Broker, Entry, clean
from telemetry.brokers.kafka import KafkaBroker
from telemetry.brokers.kafka.records import Record, decode_metadata, encode_metadata, frame
from telemetry.errors import BrokerError
from telemetry.testing.brokers import PLANTED, BrokerConformance, make_parcel
from telemetry.testing.mock_kafka import MockKafka
from tests.kafka.server import lacking

pytestmark = pytest.mark.kafka

ONE = Entry("edge", "sealed")
DONE = Entry("pseudonymizer", "scrubbed")
HEAP = clean("heap")
GROUP = "pseudonymizer"
MESSAGE_TOO_LARGE, NOT_ENOUGH_REPLICAS, UNKNOWN_MEMBER = 10, 19, 25
_numbers = itertools.count()
# The mock cluster lets a group wait for members that have left until their session ends.
FAST = {**MockKafka.CLIENT_OPTIONS, "session_timeout_ms": 900, "heartbeat_interval_ms": 200}


@pytest.fixture(scope="module")
def mock() -> Iterator[MockKafka]:
    """One cluster; each test has its own prefix. Topics come up when asked for, four partitions."""
    with MockKafka() as cluster:
        yield cluster


@pytest.fixture
def one_partition() -> Iterator[MockKafka]:
    """A cluster of its own, because order holds within a partition only."""
    with MockKafka() as cluster:
        for stream in (SEALED, DEAD, HELD, HEAP, clean("sentry")):
            cluster.create_topic(f"one.{stream}.v1", 1)
        yield cluster


def opener(mock: MockKafka, prefix: str) -> Callable[..., KafkaBroker]:
    """Give what opens brokers on topics of that prefix."""

    def open_broker(**options: object) -> KafkaBroker:
        settings: dict[str, object] = {
            "topic_prefix": prefix,
            "group_prefix": prefix,
            "timeout_s": 5,
            "client_options": FAST,
        }
        return KafkaBroker(mock.bootstrap, **(settings | options))

    return open_broker


if lacking():  # else the real one has to conform: tests/kafka

    class TestKafkaConforms(BrokerConformance):
        @pytest.fixture
        def broker(self, one_partition: MockKafka) -> Iterator[Broker]:
            self.open = opener(one_partition, "one")
            yield from self.opened()


@pytest.fixture
def open_broker(mock: MockKafka) -> Iterator[Callable[..., KafkaBroker]]:
    brokers: list[KafkaBroker] = []
    make = opener(mock, f"t{next(_numbers)}")

    def open_one(**options: object) -> KafkaBroker:
        brokers.append(make(**options))
        return brokers[-1]

    yield open_one
    for broker in brokers:
        broker.close()


Opener = Callable[..., KafkaBroker]


def record(topic: str, partition: int, number: int) -> Record:
    return Record(topic, partition, frame([make_parcel(number)]), [("events", b"1")])


def drained(broker: KafkaBroker, stream: str, group: str) -> list[int]:
    return [int(p.event_id, 16) for p in BrokerConformance.drain(broker, stream, group)]


def test_all_partitions_are_written_and_read(open_broker: Opener) -> None:
    broker = open_broker()
    for n in range(20):
        broker.append(SEALED, [make_parcel(n)], {ONE: 1})
    seen: set[int] = set()
    while (polled := broker.poll(SEALED, GROUP, 100)).parcels:
        assert len(polled.parcels) == 1
        seen.add(polled.position.place.partition.partition)
        broker.finish(polled, {HEAP: polled.parcels}, {DONE: 1})
    assert seen == {0, 1, 2, 3}
    assert sorted(drained(broker, HEAP, "heap")) == list(range(20))
    assert broker.pending() == {}


def test_the_appends_of_several_processes_add_up(open_broker: Opener) -> None:
    members = [open_broker() for _ in range(3)]
    for n, broker in enumerate(members):
        broker.append(SEALED, [make_parcel(n)], {ONE: n + 1})
    for broker in members:
        assert broker.books() == {ONE: 6}
        assert broker.pending() == {SEALED: 3}


def test_outputs_sent_again_after_a_crash_are_read_once(
    open_broker: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_broker()
    for start in (0, 200):
        first.append(SEALED, [make_parcel(start + n) for n in range(3)], {ONE: 3})

    def killed(*_: object) -> None:
        raise TimeoutError(PLANTED)

    for _ in range(2):  # outputs are on the topic, the position is not committed
        polled = first.poll(SEALED, GROUP, 100)
        monkeypatch.setattr(first, "_commit", killed)
        with pytest.raises(BrokerError) as caught:
            first.finish(polled, {HEAP: polled.parcels}, {DONE: 3})
        assert PLANTED not in str(caught.value)
        monkeypatch.undo()
    first.close()
    second = open_broker()
    while (polled := second.poll(SEALED, GROUP, 100)).parcels:
        second.finish(polled, {HEAP: polled.parcels}, {DONE: len(polled.parcels)})
    assert sorted(drained(second, HEAP, "heap")) == [0, 1, 2, 200, 201, 202]
    assert second.books() == {ONE: 6, DONE: 6}
    assert second.pending() == {}


def test_a_repeat_that_follows_a_finished_origin_is_stepped_over(
    open_broker: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = open_broker()
    broker.append(SEALED, [make_parcel(0)], {ONE: 1})
    polled = broker.poll(SEALED, GROUP, 100)
    with monkeypatch.context() as patch:
        patch.setattr(broker, "_commit", lambda *_: (_ for _ in ()).throw(TimeoutError))
        with pytest.raises(BrokerError):
            broker.finish(polled, {HEAP: polled.parcels}, {DONE: 1})
    # The forwarder is quick: it has finished the first copy before the second is written.
    assert drained(broker, HEAP, "heap") == [0]
    broker.finish(broker.poll(SEALED, GROUP, 100), {HEAP: polled.parcels}, {DONE: 1})
    assert drained(broker, HEAP, "heap") == []
    broker.append(SEALED, [make_parcel(1)], {ONE: 1})
    while (polled := broker.poll(SEALED, GROUP, 100)).parcels:
        broker.finish(polled, {HEAP: polled.parcels}, {DONE: 1})
    assert drained(broker, HEAP, "heap") == [1]
    assert broker.pending() == {}


def test_a_record_that_does_not_decode_is_counted_and_stepped_over(open_broker: Opener) -> None:
    broker = open_broker()
    broker.append(SEALED, [make_parcel(0)], {ONE: 1})
    topic = broker.topic(SEALED)
    broken = Record(topic, 1, PLANTED.encode(), [("events", b"7")])
    silent = Record(topic, 1, b"\0\0", [])
    broker._send([broken, silent])
    broker.append(SEALED, [make_parcel(1)], {ONE: 1})  # behind them, on partition 1
    assert sorted(drained(broker, SEALED, GROUP)) == [0, 1]
    assert broker.books() == {ONE: 2, Entry(GROUP, "dead", "unreadable_record"): 8}
    assert sorted(drained(open_broker(), SEALED, GROUP)) == []


@pytest.mark.parametrize("left", [0, 2])
def test_what_retention_removed_is_stepped_over_and_never_silently(
    open_broker: Opener, mock: MockKafka, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    broker = open_broker()
    topic = broker.topic(SEALED)
    for n in range(5):
        broker._send([record(topic, 0, n)])
    first = broker.poll(SEALED, GROUP, 1)
    broker.finish(first, {}, {})
    mock.expire(topic, 0, 5 - left)
    restarted = open_broker()
    assert drained(restarted, SEALED, GROUP) == list(range(5 - left, 5))
    assert f"topic={topic} partition=0 records={4 - left}" in caplog.text
    broker._send([record(topic, 0, 9)])
    assert drained(restarted, SEALED, GROUP) == [9]


def test_after_a_refused_record_the_next_is_taken_within_seconds(
    open_broker: Opener, mock: MockKafka
) -> None:
    broker = open_broker()
    broker.append(SEALED, [make_parcel(0)], {ONE: 1})
    # Both records of an append meet it, whichever request carries them.
    mock.fail_produce(MESSAGE_TOO_LARGE, MESSAGE_TOO_LARGE)
    with pytest.raises(BrokerError):
        broker.append(SEALED, [make_parcel(1)], {ONE: 1})
    mock.fail_produce()
    started = time.monotonic()
    while True:
        try:
            broker.append(SEALED, [make_parcel(2)], {ONE: 1})
            break
        except BrokerError:
            assert time.monotonic() - started < 5
    assert time.monotonic() - started < 5
    assert {0, 2} <= set(drained(broker, SEALED, GROUP))


def test_a_passing_refusal_is_tried_again_inside(open_broker: Opener, mock: MockKafka) -> None:
    broker = open_broker()
    mock.fail_produce(NOT_ENOUGH_REPLICAS, NOT_ENOUGH_REPLICAS)
    for n in range(4):
        broker.append(SEALED, [make_parcel(n)], {ONE: 1})
    assert sorted(drained(broker, SEALED, GROUP)) == [0, 1, 2, 3]
    assert broker.books() == {ONE: 4}


def test_a_refused_commit_moves_nothing(open_broker: Opener, mock: MockKafka) -> None:
    broker = open_broker()
    broker.append(SEALED, [make_parcel(0)], {ONE: 1})
    polled = broker.poll(SEALED, GROUP, 10)
    mock.fail_commit(UNKNOWN_MEMBER)
    with pytest.raises(BrokerError):
        broker.finish(polled, {HEAP: polled.parcels}, {DONE: 1})
    assert broker.books() == {ONE: 1}
    assert drained(broker, SEALED, GROUP) == [0]


def test_while_the_broker_is_away_every_call_ends_and_nothing_acknowledged_is_lost(
    one_partition: MockKafka,
) -> None:
    own = one_partition
    broker = opener(own, "one")(timeout_s=1)
    broker.append(SEALED, [make_parcel(0)], {ONE: 1})
    own.down()
    for call in (
        lambda: broker.append(SEALED, [make_parcel(1)], {ONE: 1}),
        lambda: broker.poll(SEALED, GROUP, 10),
        broker.books,
    ):
        started = time.monotonic()
        with pytest.raises(BrokerError):
            call()
        assert time.monotonic() - started < 8
    own.up()
    deadline = time.monotonic() + 15
    while True:
        try:
            broker.append(SEALED, [make_parcel(2)], {ONE: 1})
            break
        except BrokerError:
            assert time.monotonic() < deadline
    assert {0, 2} <= set(drained(broker, SEALED, GROUP))
    started = time.monotonic()
    own.down()
    broker.close()
    assert time.monotonic() - started < 8


def test_a_broker_that_was_never_there_is_a_broker_error_in_time() -> None:
    broker = KafkaBroker("127.0.0.1:9", timeout_s=1, client_options=MockKafka.CLIENT_OPTIONS)
    started = time.monotonic()
    with pytest.raises(BrokerError):
        broker.append(SEALED, [make_parcel(0)], {ONE: 1})
    broker.close()
    assert time.monotonic() - started < 8


def test_a_forked_child_has_clients_of_its_own(open_broker: Opener) -> None:
    broker = open_broker()
    broker.append(SEALED, [make_parcel(0)], {ONE: 1})
    broker._lock.acquire()  # as a thread in the middle of a call does
    child = os.fork()
    if child:
        broker._lock.release()
    else:
        code = 1
        try:
            broker.append(SEALED, [make_parcel(1)], {ONE: 1})
            broker.close()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    broker.append(SEALED, [make_parcel(2)], {ONE: 1})
    assert sorted(drained(broker, SEALED, GROUP)) == [0, 1, 2]
    assert broker.books() == {ONE: 3}


def test_no_log_line_of_the_client_holds_what_was_sent(
    open_broker: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        broker = open_broker()
        broker.append(SEALED, [make_parcel(0)], {ONE: 1})
        polled = broker.poll(SEALED, GROUP, 10)
        broker.finish(polled, {DEAD: polled.parcels}, {DONE: 1})
        logging.getLogger("kafka.net.connection").error("Unable to decode %d: %r", 3, PLANTED)
        logging.getLogger("kafka.producer.kafka").debug("Sending %r", PLANTED)
    assert "Unable to decode" in caplog.text
    assert PLANTED not in caplog.text
    assert "note" not in caplog.text


def test_long_books_are_compressed_and_too_long_ones_refused() -> None:
    counts = Counter({Entry("pseudonymizer", "dropped", f"reason_{n}"): n + 1 for n in range(150)})
    text = encode_metadata(counts, 12)
    assert len(text) <= 4096
    assert decode_metadata(text) == (counts, 12)
    noise = random.Random(1)  # noqa: S311 - words that do not compress
    words = (noise.randbytes(20).hex() for _ in range(300))
    with pytest.raises(BrokerError, match="do not fit"):
        encode_metadata(Counter(dict.fromkeys((Entry("a", "b", w) for w in words), 1)), 1)


@pytest.mark.parametrize("text", ["", "moved by hand", "1 5", "1 [[1]]", "z!!", "x []"])
def test_a_commit_that_is_not_ours_is_an_error_and_no_empty_book(text: str) -> None:
    with pytest.raises(BrokerError):
        decode_metadata(text)
