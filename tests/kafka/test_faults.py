"""What a real broker can hand out that is broken, too large or gone, and what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any

import kafka
import pytest

from telemetry.books import Books
from telemetry.brokers import DEAD, SEALED, Entry, clean
from telemetry.brokers.kafka import KafkaBroker, topic_name
from telemetry.errors import BrokerError
from telemetry.testing.brokers import PLANTED, BrokerConformance, make_parcel
from tests.kafka.server import KafkaServer

GROUP = "pseudonymizer"
IN, SEAL, DONE = Entry("edge", "items_in"), Entry("edge", "sealed"), Entry(GROUP, "scrubbed")
HEAP = clean("heap")
Opener = Callable[..., Any]


def numbers(broker: KafkaBroker, stream: str, group: str) -> list[int]:
    return [int(p.event_id, 16) for p in BrokerConformance.drain(broker, stream, group)]


def append(broker: KafkaBroker, *found: int) -> None:
    for n in found:
        broker.append(SEALED, [make_parcel(n)], {IN: 1, SEAL: 1})


def read_on(broker: KafkaBroker, stream: str, group: str, timeout_s: float = 30.0) -> list[int]:
    """Read to the end as a role does: whatever is refused is asked for again."""
    found: list[int] = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            polled = broker.poll(stream, group, 100)
        except BrokerError:
            continue
        if not polled.parcels:
            return found
        found += [int(parcel.event_id, 16) for parcel in polled.parcels]
        broker.finish(polled, {}, {DONE: len(polled.parcels)})
    raise AssertionError("it does not come to the end")


def test_a_batch_whose_bytes_changed_on_disk_is_stepped_over_and_counted(
    server: KafkaServer, opener: Opener, bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    if bootstrap != server.bootstrap:
        pytest.skip("needs the disk of a Kafka of our own")
    opened = opener(partitions=1)
    broker: KafkaBroker = opened()
    append(broker, 0, 1)
    marked = make_parcel(2, body=b"\0" * 8 + bytes(range(256)) * 40)
    broker.append(SEALED, [marked], {IN: 1, SEAL: 1})
    segment = next(
        (server.data / f"{topic_name(opened.prefix, SEALED)}-0").glob("00000000000000000000.log")
    )
    whole = segment.read_bytes()
    with segment.open("r+b") as file:  # within the third batch, behind its header
        file.seek(len(whole) - 40)
        file.write(bytes([whole[-40] ^ 0xFF]))
    append(broker, 3, 4)
    started = time.process_time()
    assert read_on(broker, SEALED, GROUP) == [0, 1, 3, 4]
    assert time.process_time() - started < 10.0, "it spins"
    assert "kafka_unreadable" in caplog.text
    books = broker.books()
    assert books[Entry(GROUP, "dead", "unreadable_record")] == 1
    broker.close()
    assert numbers(opened(), SEALED, GROUP) == []


def test_a_batch_that_expands_without_end_is_stepped_over_in_bounded_memory(
    opener: Opener, bootstrap: str
) -> None:
    opened = opener(partitions=1)
    broker: KafkaBroker = opened()
    append(broker, 0)
    enemy = kafka.KafkaProducer(
        bootstrap_servers=bootstrap,
        compression_type="zstd",
        max_request_size=200 * 1024**2,
    )
    topic = topic_name(opened.prefix, SEALED)
    enemy.send(topic, value=bytes(64 * 1024**2), partition=0).get(20)
    enemy.close()
    append(broker, 1)
    assert read_on(broker, SEALED, GROUP) == [0, 1]
    assert broker.books()[Entry(GROUP, "dead", "unreadable_record")] == 1


def test_what_is_too_large_for_a_record_becomes_a_dead_letter_and_holds_up_nobody(
    opener: Opener,
) -> None:
    broker: KafkaBroker = opener(partitions=1)()
    giant = make_parcel(1, body=PLANTED.encode() * 100_000)
    broker.append(SEALED, [make_parcel(0), giant, make_parcel(2)], {IN: 3, SEAL: 3})
    polled = broker.poll(SEALED, GROUP, 100)
    assert [int(p.event_id, 16) for p in polled.parcels] == [0, 2]
    outputs = {HEAP: [make_parcel(0), giant]}
    routed = Entry("heap", "routed")
    broker.finish(polled, outputs, {DONE: 2, routed: 2})
    assert numbers(broker, HEAP, "heap") == [0]
    letters = BrokerConformance.drain(broker, DEAD, "look")
    assert [(p.reason, p.body) for p in letters] == [("too_large", b"")] * 2
    books = Books(*broker.snapshot(), ())
    assert books.exact
    assert books.entries[Entry("heap", "dead", "too_large")] == 1


def test_what_retention_removed_unread_is_counted_for_each_recipient(
    opener: Opener, bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = opener(partitions=1)
    broker: KafkaBroker = opened()
    for n in range(6):
        append(broker, n)
        polled = broker.poll(SEALED, GROUP, 10)
        counts = {DONE: 1, Entry("heap", "routed"): 2}
        broker.finish(polled, {HEAP: [make_parcel(2 * n), make_parcel(2 * n + 1)]}, counts)
    first = broker.poll(HEAP, "heap", 2)
    broker.finish(first, {}, {Entry("heap", "delivered"): 2})
    admin = kafka.KafkaAdminClient(bootstrap_servers=bootstrap)
    partition = kafka.TopicPartition(topic_name(opened.prefix, HEAP), 0)
    admin.delete_records({partition: 4})
    admin.close()
    broker.close()
    again: KafkaBroker = opened()
    found: list[int] = []
    while (polled := again.poll(HEAP, "heap", 100)).parcels:
        found += [int(p.event_id, 16) for p in polled.parcels]
        again.finish(polled, {}, {Entry("heap", "delivered"): len(polled.parcels)})
    assert found == [8, 9, 10, 11]
    books = Books(*again.snapshot(), ("heap",))
    assert books.entries[Entry("heap", "dropped", "log_retention")] == 6
    assert books.exact, [(b.name, b.difference) for b in books.balances]
    assert "kafka_gap" in caplog.text


def test_a_topic_that_was_made_anew_is_not_read_as_if_nothing_had_happened(
    opener: Opener, bootstrap: str
) -> None:
    opened = opener(partitions=1)
    broker: KafkaBroker = opened()
    append(broker, 0, 1, 2)
    assert numbers(broker, SEALED, GROUP) == [0, 1, 2]
    broker.close()
    # As its administrator could: a position that the topic has never reached.
    admin = kafka.KafkaAdminClient(bootstrap_servers=bootstrap)
    partition = kafka.TopicPartition(topic_name(opened.prefix, SEALED), 0)
    group = f"{opened.prefix}.{GROUP}"
    metadata = admin.list_group_offsets({group: [partition]})[group][partition].metadata
    deadline = time.monotonic() + 20
    while True:
        try:
            admin.alter_group_offsets(group, {partition: kafka.OffsetAndMetadata(99, metadata, -1)})
            break
        except kafka.errors.KafkaError:  # until the group has seen its member leave
            assert time.monotonic() < deadline
            time.sleep(0.2)
    admin.close()
    with pytest.raises(BrokerError, match="made anew"):
        opened().poll(SEALED, GROUP, 10)


def test_a_reader_that_rests_stays_a_member_if_it_is_tended(opener: Opener) -> None:
    fast = {"max_poll_interval_ms": 1500, "session_timeout_ms": 1500, "heartbeat_interval_ms": 300}
    opened = opener(partitions=2)
    one, two = (opened(client_options={**fast, "metadata_max_age_ms": 1000}) for _ in range(2))
    append(one, *range(8))
    polled = one.poll(SEALED, GROUP, 1)
    deadline = time.monotonic() + 4  # longer than a member may be silent
    while time.monotonic() < deadline:
        one.tend()
        two.poll(SEALED, GROUP, 1)
        time.sleep(0.1)
    try:
        one.finish(polled, {}, {DONE: 1})
        kept = 1
    except BrokerError:  # the other has this partition now: it is read there, and not lost
        kept = 0
    found: list[int] = []
    deadline = time.monotonic() + 60
    while len(found) < 8 - kept and time.monotonic() < deadline:
        for broker in (one, two):
            # Partitions are still being dealt: what is refused is read by whoever has it then.
            with suppress(BrokerError):
                polled = broker.poll(SEALED, GROUP, 1)
                if polled.parcels:
                    broker.finish(polled, {}, {DONE: len(polled.parcels)})
                found += [int(parcel.event_id, 16) for parcel in polled.parcels]
    assert len(found) == len(set(found)) == 8 - kept
    assert one.pending() == {}


def test_members_of_a_group_know_which_part_is_theirs(opener: Opener) -> None:
    opened = opener(partitions=4)
    one: KafkaBroker = opened()
    assert one.share(HEAP, "heap") == 0.0, "before it is a member"
    one.poll(HEAP, "heap", 1)
    assert one.share(HEAP, "heap") == 1.0
    two: KafkaBroker = opened()
    gone = Event()

    def read() -> None:
        while not gone.is_set():
            with suppress(BrokerError):
                two.poll(HEAP, "heap", 1)
            time.sleep(0.05)

    other = Thread(target=read)
    other.start()
    try:
        deadline = time.monotonic() + 60
        while (one.share(HEAP, "heap"), two.share(HEAP, "heap")) != (0.5, 0.5):
            assert time.monotonic() < deadline
            one.tend()
            time.sleep(0.05)
    finally:
        gone.set()
        other.join()
    two.close()
    while one.share(HEAP, "heap") < 1.0:
        assert time.monotonic() < deadline
        one.tend()
        time.sleep(0.05)


def test_a_reader_tells_what_has_waited_longest_and_since_when(opener: Opener) -> None:
    broker: KafkaBroker = opener(partitions=1)()
    assert broker.waits() == {}
    began = datetime.now(UTC) - timedelta(seconds=5)
    append(broker, 0, 1)
    polled = broker.poll(SEALED, GROUP, 1)
    parcel, taken_at = broker.waits()[SEALED]
    assert parcel == make_parcel(0)
    assert began < taken_at < datetime.now(UTC) + timedelta(seconds=5)
    broker.finish(polled, {HEAP: [make_parcel(7)]}, {DONE: 1})
    assert broker.waits()[SEALED][0] == make_parcel(1)
    broker.poll(HEAP, "heap", 1)
    broker.tend()
    assert broker.waits()[HEAP][0] == make_parcel(7)
    broker.finish(broker.poll(SEALED, GROUP, 1), {}, {DONE: 1})
    assert SEALED not in broker.waits()
