"""The log on Apache Kafka. The only file that imports ``kafka``, wrapped against its traps.

Guarantee: at least once, without transactions. `KafkaBroker.append` returns when all in-sync
replicas have the records. `KafkaBroker.finish` sends its outputs, waits for all of them, then
commits the position; the counts and the last origin ride in that commit's metadata, so the books of
a reader and its position cannot differ, whatever is killed when. Killed in between, the outputs are
sent again, with the same `origin` (offset of the sealed record, number of the part), and the reader
of a clean stream steps over an origin that is not above the last one it finished.

Topics: ``<prefix>.<stream with dots>.v1``, for example ``telemetry.clean.heap.v1``. A record is one
encoded batch. Clean records go to the partition of the same number as their sealed record, so
sealed and clean topics must have the same number of partitions and grow together.

Books of `append` have no commit to ride on: each append also writes the member's cumulative counts
to the compacted topic ``<prefix>.books.v1`` under the key ``member:<member>`` and waits for both.
The same topic lists who reads which stream.

What is not exact: an append that is cut off (kill -9, broken connection) may leave its parcels
without its counts or the counts without the parcels, for this one append, which was not
acknowledged. A dead letter may be there twice after a crash (with one event id; it is counted
once). Two processes with one member name overwrite each other's counts. Where offsets are reset
with other tools, the counts in the commit are gone; where the sealed topic is made anew, its
offsets start again, so the clean topics and their groups must be made anew with it.

One process for each group and partition: partitions are assigned by hand, from `partitions`. Group
membership, fencing and lag behind retention are a later version's matter.

Source:
    Kafka protocol, OffsetCommit (metadata up to ``offset.metadata.max.bytes``, 4096 by default);
    traps K1 to K11 in ``docs/reliability.md``.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import time
import weakref
import zlib
from base64 import b85decode, b85encode
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final, NamedTuple

import kafka
from kafka.codec import has_zstd

from telemetry.batch import decode_batch
from telemetry.brokers import SEALED, Counts, Entry, Polled, pack, stage_of
from telemetry.errors import BrokerError, DecodeError
from telemetry.parcel import Parcel

__all__ = ["KafkaBroker"]

_RECORD_BYTES: Final = 1_000_000
_IN_FLIGHT_BYTES: Final = 16 * 1024**2
_METADATA_BYTES: Final = 4096
_PLAIN_METADATA_BYTES: Final = 2048
_FETCH_RECORDS: Final = 256
_ORIGIN_BYTES: Final = 32
# Stages of entries that are no part of the books: parcels stored in, and finished from, a stream.
_STORED: Final = "+"
_FINISHED: Final = "-"

_Origin = tuple[int, int]


class _Record(NamedTuple):
    topic: str
    partition: int | None
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


@dataclass(slots=True)
class _Place:
    """Where one group stands in one partition, and what was fetched but not finished."""

    partition: Any
    offset: int
    fetched: int
    counts: Counter[Entry]
    origin: _Origin
    waiting: deque[Any] = field(default_factory=deque)


@dataclass(slots=True)
class _Reader:
    """One group on one stream. Gives one partition at a time; the next after each finish."""

    consumer: Any
    places: list[_Place]
    partitions: int
    turn: int = 0


@dataclass(frozen=True, slots=True)
class _Position:
    """Which partition a poll read, from where to where, and the last origin it gave."""

    number: int
    start: int
    last: int
    events: int
    origin: _Origin


class KafkaBroker:
    """A durable log on Kafka, with books.

    Implements `telemetry.brokers.Broker`. Connects when first used, and anew in a forked child.

    Args:
        bootstrap: ``host:port``, several separated by commas.
        member: Name under which this process's appends are counted. Unique, and the same after
            each restart (the name of the pod or host).
        topic_prefix: First part of each topic's name.
        group_prefix: First part of each consumer group's name.
        partitions: Numbers of the partitions this process reads; all by default.
        timeout_s: Upper bound in seconds of each wait for the broker; at least 1.
        client_options: More options for kafka-python's clients: TLS, SASL, ``api_version``.
    """

    _own: Counter[Entry] | None
    _appended: int

    def __init__(
        self,
        bootstrap: str,
        *,
        member: str = "main",
        topic_prefix: str = "telemetry",
        group_prefix: str = "telemetry",
        partitions: Collection[int] | None = None,
        timeout_s: float = 10.0,
        client_options: Mapping[str, Any] | None = None,
    ) -> None:
        _quieten()
        self._bootstrap = bootstrap.split(",")
        self._member = f"member:{member}"
        self._topic_prefix = topic_prefix
        self._group_prefix = group_prefix
        self._partitions = partitions
        self._timeout_s = max(1.0, timeout_s)
        self._client_options = dict(client_options or {})
        self._lock = Lock()
        self._closed = False
        self._forget_clients()
        _brokers.add(self)

    def __repr__(self) -> str:
        """Name the log; never addresses' credentials or what is stored."""
        return f"KafkaBroker({self._topic_prefix}, {'closed' if self._closed else 'open'})"

    # ------------------------------------------------------------------ the five calls

    def append(
        self,
        stream: str,
        parcels: Sequence[Parcel],
        counts: Counts,
        *,
        beside: Mapping[str, Sequence[Parcel]] | None = None,
    ) -> None:
        """Store parcels and add counts; returns when all in-sync replicas have both.

        Raises:
            BrokerError: Kafka did not take all of it in time. Nothing was acknowledged.
        """
        with self._lock:
            self._ready()
            books = self._books_of_member() + Counter(counts)
            records: list[_Record] = []
            for name, some in {**(beside or {}), stream: parcels}.items():
                books[Entry(_STORED, name)] += len(some)
                if some:
                    topic = self._topic(name)
                    partition = self._appended % self._partition_count(topic)
                    records += _records(topic, partition, some)
            self._send([*records, self._book(self._member, _encode_counts(books))])
            self._own = books
            self._appended += 1

    def poll(self, stream: str, group: str, max_events: int) -> Polled:
        """Read what follows the group's position in one partition, without moving it.

        Of the sealed stream it gives one record (at most 64 parcels): what is made from it carries
        its offset. Of other streams it gives records up to `max_events` parcels together, and at
        least one record if any is waiting. Waits for the broker's answer, not for new parcels.

        A record that does not decode is stepped over at once and counted as ``dead`` with reason
        ``unreadable_record``. It stays on the topic until its retention ends.

        Raises:
            BrokerError: Kafka did not answer in time.
        """
        with self._lock:
            self._ready()
            reader = self._reader(stream, group)
            if self._partition_count(self._topic(stream)) != reader.partitions:
                del self._readers[stream, group]  # the topic has grown: read the new ones too
                reader = self._reader(stream, group)
            try:
                while True:
                    number = self._fetch(reader)
                    waiting = reader.places[number].waiting
                    was_empty = not waiting
                    position, parcels = self._take(reader, number, stream, group, max_events)
                    if parcels or was_empty:
                        break
                    # Nothing but repeats and unreadable records: read on behind them.
                    waiting.clear()
            except BrokerError:
                raise
            except Exception as error:  # noqa: BLE001 - a client that failed once spins (K3)
                raise self._lose_reader(stream, group, error) from None
            return Polled(stream=stream, group=group, position=position, parcels=parcels)

    def finish(
        self, polled: Polled, outputs: Mapping[str, Sequence[Parcel]], counts: Counts
    ) -> None:
        """Store the outputs, then commit position, counts and origin in one request.

        Raises:
            BrokerError: Kafka did not take all of it in time, or the position has moved since this
                poll: poll again. What was sent of the outputs is sent again and stepped over.
        """
        position = polled.position
        if not isinstance(position, _Position):
            raise BrokerError("This was polled from another broker.")
        with self._lock:
            self._ready()
            reader = self._reader(polled.stream, polled.group)
            place = reader.places[position.number]
            if place.offset != position.start:
                raise BrokerError("The position has moved since this poll. Poll again.")
            number = int(place.partition.partition)
            more = Counter(counts)
            more[Entry(_FINISHED, polled.stream)] += position.events
            records: list[_Record] = []
            for stream, parcels in outputs.items():
                more[Entry(_STORED, stream)] += len(parcels)
                if not parcels:
                    continue
                topic = self._topic(stream)
                is_clean = polled.stream == SEALED and stream.startswith("clean.")
                partition = self._matching(topic, number, is_clean=is_clean)
                origin = position.last - 1 if is_clean else None
                records += _records(topic, partition, parcels, origin)
            self._send(records)
            try:
                self._commit(reader, place, position.last, more, position.origin)
            except Exception as error:  # noqa: BLE001 - whatever it was, the state is unknown
                raise self._lose_reader(polled.stream, polled.group, error) from None
            reader.turn = position.number + 1

    def books(self) -> dict[Entry, int]:
        """All counts of all members and readers that this log knows.

        Other members' appends show once they are written, which is before they return.
        """
        with self._lock:
            self._ready()
            total, _ = self._all_books()
        return {entry: n for entry, n in total.items() if entry.stage not in {_STORED, _FINISHED}}

    def pending(self) -> dict[str, int]:
        """Parcels that some known group has not finished, by stream, from the books alone.

        Nothing is read to count; what the topic's own retention removed still counts as pending.
        """
        with self._lock:
            self._ready()
            total, finished = self._all_books()
        pending: dict[str, int] = {}
        for entry, stored in total.items():
            if entry.stage == _STORED:
                stream = entry.outcome
                done = min((n for (name, _), n in finished.items() if name == stream), default=0)
                if stored > done:
                    pending[stream] = stored - done
        return pending

    def close(self) -> None:
        """Let go of all connections, within the time limit."""
        with self._lock:
            self._closed = True
            if self._pid != os.getpid():
                return
            self._drop_producer()
            for consumer in [*self._consumers.values(), self._books_consumer]:
                self._drop(consumer)
            self._forget_clients()

    # ------------------------------------------------------------------ clients

    def _forget_clients(self) -> None:
        self._pid = os.getpid()
        self._producer: Any = None
        self._consumers: dict[tuple[str, str], Any] = {}
        self._readers: dict[tuple[str, str], _Reader] = {}
        self._books_consumer: Any = None
        self._book_offsets: dict[Any, int] = {}
        self._book_values: dict[str, bytes] = {}
        self._own = None
        self._appended = 0

    def _ready(self) -> None:
        """Refuse when closed; after a fork leave the parent's clients alone and start anew (K5)."""
        if self._closed:
            raise BrokerError("The broker is closed.")
        if self._pid != os.getpid():
            for client in (self._producer, self._books_consumer, *self._consumers.values()):
                if client is not None:
                    # Its threads did not survive the fork; even its destructor would hang (K6).
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
            self._forget_clients()

    @property
    def _timeout_ms(self) -> int:
        return int(self._timeout_s * 1000)

    def _options(self) -> dict[str, Any]:
        return {
            "bootstrap_servers": self._bootstrap,
            "bootstrap_timeout_ms": self._timeout_ms,
            "request_timeout_ms": self._timeout_ms,
            "reconnect_backoff_max_ms": 1000,
            "metrics_enabled": False,
        } | self._client_options

    def _get_producer(self) -> Any:
        if self._producer is None:
            self._producer = kafka.KafkaProducer(
                acks="all",
                compression_type="zstd" if has_zstd() else "gzip",
                delivery_timeout_ms=self._timeout_ms,
                max_block_ms=self._timeout_ms,
                max_request_size=_RECORD_BYTES + 4096,
                **self._options(),
            )
        return self._producer

    def _new_consumer(self, group: str | None) -> Any:
        return kafka.KafkaConsumer(
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            fetch_max_bytes=8 * 1024**2,
            max_partition_fetch_bytes=1024**2,
            **self._options(),
        )

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):  # closing raises while the broker is away (K6)
                producer.close(timeout=1)

    def _drop(self, consumer: Any) -> None:
        if consumer is not None:
            with suppress(Exception):
                consumer.close(autocommit=False, timeout_ms=1000)

    def _lose_reader(self, stream: str, group: str, error: Exception) -> BrokerError:
        """Throw a consumer away with all it remembers; the next poll reads the committed state."""
        self._readers.pop((stream, group), None)
        self._drop(self._consumers.pop((stream, group), None))
        return _broker_error(error)

    # ------------------------------------------------------------------ sending

    def _topic(self, stream: str) -> str:
        return f"{self._topic_prefix}.{stream}.v1"

    def _partition_count(self, topic: str) -> int:
        try:
            partitions = self._get_producer().partitions_for(topic)
        except Exception as error:  # noqa: BLE001 - anything here means: no metadata
            self._drop_producer()
            raise _broker_error(error, f"topic {topic}") from None
        if not partitions:
            raise BrokerError(f"Kafka has no topic {topic}.")
        return len(partitions)

    def _matching(self, topic: str, partition: int, *, is_clean: bool) -> int:
        count = self._partition_count(topic)
        if is_clean and partition >= count:
            raise BrokerError(f"{topic} has fewer partitions than the sealed topic.")
        return partition % count

    def _send(self, records: Iterable[_Record]) -> None:
        """Send records and wait until each is acknowledged, with bounded memory (K1).

        Any failure may have poisoned the producer (K2, K11): it is rebuilt, and what was not
        acknowledged is the caller's to send again.
        """
        records = list(records)
        if any(_size_of(record) > _RECORD_BYTES for record in records):
            raise BrokerError("A batch is larger than what a record may hold.")
        sent: deque[tuple[Any, int]] = deque()
        in_flight = 0
        deadline = time.monotonic() + self._timeout_s
        try:
            producer = self._get_producer()
            for record in records:
                size = _size_of(record)
                while sent and in_flight + size > _IN_FLIGHT_BYTES:
                    future, done = sent.popleft()
                    future.get(timeout=max(0.001, deadline - time.monotonic()))
                    in_flight -= done
                future = producer.send(
                    record.topic,
                    value=record.value,
                    key=record.key,
                    headers=record.headers,
                    partition=record.partition,
                )
                sent.append((future, size))
                in_flight += size
            for future, _ in sent:
                future.get(timeout=max(0.001, deadline - time.monotonic()))
        except Exception as error:  # noqa: BLE001 - whatever it was, not all is acknowledged
            self._drop_producer()
            raise _broker_error(error) from None

    # ------------------------------------------------------------------ reading

    def _consumer(self, stream: str, group: str) -> Any:
        consumer = self._consumers.get((stream, group))
        if consumer is None:
            consumer = self._new_consumer(f"{self._group_prefix}.{group}")
            self._consumers[stream, group] = consumer
        return consumer

    def _reader(self, stream: str, group: str) -> _Reader:
        """Give the state of a group on a stream, read from its commits when first needed."""
        reader = self._readers.get((stream, group))
        if reader is None:
            try:
                reader = self._new_reader(stream, group)
            except BrokerError:
                raise
            except Exception as error:  # noqa: BLE001 - no part of it can be relied on
                raise self._lose_reader(stream, group, error) from None
            self._readers[stream, group] = reader
        return reader

    def _new_reader(self, stream: str, group: str) -> _Reader:
        self._register(stream, group)
        topic = self._topic(stream)
        consumer = self._consumer(stream, group)
        count = self._partition_count(topic)
        owned = [
            kafka.TopicPartition(topic, number)
            for number in range(count)
            if self._partitions is None or number in self._partitions
        ]
        if not owned:
            raise BrokerError(f"{topic} has none of the partitions this process is to read.")
        consumer.assign(owned)
        beginnings = consumer.beginning_offsets(owned, timeout_ms=self._timeout_ms)
        places: list[_Place] = []
        for partition in owned:
            offset, counts, origin = self._committed(consumer, partition)
            start = beginnings[partition] if offset is None else offset
            consumer.seek(partition, start)
            places.append(_Place(partition, start, start, counts, origin))
        return _Reader(consumer, places, count)

    def _committed(
        self, consumer: Any, partition: Any
    ) -> tuple[int | None, Counter[Entry], _Origin]:
        commit = consumer.committed(partition, metadata=True, timeout_ms=self._timeout_ms)
        if commit is None or commit.offset < 0:
            return None, Counter(), (-1, -1)
        counts, origin = _decode_metadata(commit.metadata)
        return commit.offset, counts, origin

    def _fetch(self, reader: _Reader) -> int:
        """Have records waiting, if there are any; gives the place whose turn it is."""
        order = [(reader.turn + n) % len(reader.places) for n in range(len(reader.places))]
        deadline = time.monotonic() + self._timeout_s
        ends: Mapping[Any, int] | None = None
        while True:
            for number in order:
                if reader.places[number].waiting:
                    return number
            if ends is None:
                ends = reader.consumer.end_offsets(
                    [place.partition for place in reader.places], timeout_ms=self._timeout_ms
                )
            behind = [place for place in reader.places if place.fetched < ends[place.partition]]
            if not behind:
                return order[0]
            if time.monotonic() > deadline:
                raise BrokerError("Kafka has records but does not give them.")
            got = reader.consumer.poll(timeout_ms=200, max_records=_FETCH_RECORDS)
            if not got:
                self._step_over_expired(reader, behind)
            for place in reader.places:
                if records := got.get(place.partition):
                    _warn_of_gap(place, records[0].offset)
                    place.waiting.extend(records)
                    place.fetched = records[-1].offset + 1

    def _step_over_expired(self, reader: _Reader, behind: Sequence[_Place]) -> None:
        """Go on at the oldest record left, where retention removed what came next (fault 12)."""
        oldest = reader.consumer.beginning_offsets(
            [place.partition for place in behind], timeout_ms=self._timeout_ms
        )
        for place in behind:
            start = oldest[place.partition]
            if start > place.fetched:
                _warn_of_gap(place, start)
                place.fetched = start
                reader.consumer.seek(place.partition, start)

    def _take(
        self, reader: _Reader, number: int, stream: str, group: str, max_events: int
    ) -> tuple[_Position, list[Parcel]]:
        """Decode what is waiting at one place, up to `max_events`; nothing is taken away yet."""
        place = reader.places[number]
        parcels: list[Parcel] = []
        last, origin = place.offset, place.origin
        for record in list(place.waiting):
            made_from = _origin_of(record)
            if made_from is not None and made_from <= origin:
                last = record.offset + 1
                continue
            try:
                read = decode_batch(bytes(record.value or b""))
            except DecodeError:
                if parcels:
                    break
                events = _events_of(record)
                lost = {
                    Entry(stage_of(stream), "dead", "unreadable_record"): events,
                    Entry(_FINISHED, stream): events,
                }
                self._commit(reader, place, record.offset + 1, Counter(lost), origin)
                last = place.offset
                continue
            if parcels and len(parcels) + len(read) > max_events:
                break
            parcels += read
            last = record.offset + 1
            origin = made_from or origin
            if stream == SEALED:
                break
        return _Position(number, place.offset, last, len(parcels), origin), parcels

    def _commit(
        self, reader: _Reader, place: _Place, offset: int, more: Counter[Entry], origin: _Origin
    ) -> None:
        counts = place.counts + more
        metadata = _encode_metadata(counts, origin)
        reader.consumer.commit(
            {place.partition: kafka.OffsetAndMetadata(offset, metadata, -1)},
            timeout_ms=self._timeout_ms,
        )
        place.offset, place.counts, place.origin = offset, counts, origin
        while place.waiting and place.waiting[0].offset < offset:
            place.waiting.popleft()

    # ------------------------------------------------------------------ books

    def _book(self, key: str, value: bytes) -> _Record:
        return _Record(f"{self._topic_prefix}.books.v1", None, key.encode(), value, [])

    def _books_of_member(self) -> Counter[Entry]:
        if self._own is None:
            self._read_books()
            self._own = _decode_counts(self._book_values.get(self._member, b"[]"))
        return self._own.copy()

    def _register(self, stream: str, group: str) -> None:
        """Make a group known: from then on parcels count as pending until it has finished them."""
        key = f"reader:{stream}:{group}"
        if key not in self._book_values:
            self._read_books()
        if key not in self._book_values:
            self._send([self._book(key, b"1")])
            self._book_values[key] = b"1"

    def _read_books(self) -> None:
        """Read the books topic from where we stopped to its end."""
        try:
            self._catch_up(f"{self._topic_prefix}.books.v1")
        except BrokerError:
            self._lose_books()
            raise
        except Exception as error:  # noqa: BLE001 - a client that failed once is not used again
            self._lose_books()
            raise _broker_error(error) from None

    def _catch_up(self, topic: str) -> None:
        if self._books_consumer is None:
            parts = [
                kafka.TopicPartition(topic, number)
                for number in range(self._partition_count(topic))
            ]
            self._books_consumer = self._new_consumer(None)
            self._books_consumer.assign(parts)
            self._book_offsets = self._books_consumer.beginning_offsets(
                parts, timeout_ms=self._timeout_ms
            )
            for part, offset in self._book_offsets.items():
                self._books_consumer.seek(part, offset)
        consumer = self._books_consumer
        ends = consumer.end_offsets(list(self._book_offsets), timeout_ms=self._timeout_ms)
        deadline = time.monotonic() + self._timeout_s
        while any(consumer.position(part) < end for part, end in ends.items()):
            if time.monotonic() > deadline:
                raise BrokerError("Kafka has books but does not give them.")
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    self._book_values[bytes(record.key).decode()] = bytes(record.value)

    def _lose_books(self) -> None:
        consumer, self._books_consumer = self._books_consumer, None
        self._drop(consumer)

    def _all_books(self) -> tuple[Counter[Entry], dict[tuple[str, str], int]]:
        """Sum up all counts; and how many parcels each group has finished of each stream."""
        total = self._books_of_member()
        self._read_books()
        finished: dict[tuple[str, str], int] = {}
        for key, value in self._book_values.items():
            kind, _, name = key.partition(":")
            if kind == "member" and key != self._member:
                total.update(_decode_counts(value))
            elif kind == "reader":
                stream, _, group = name.partition(":")
                counts = self._books_of_reader(stream, group)
                finished[stream, group] = counts[Entry(_FINISHED, stream)]
                total.update(counts)
        return total, finished

    def _books_of_reader(self, stream: str, group: str) -> Counter[Entry]:
        topic = self._topic(stream)
        total: Counter[Entry] = Counter()
        try:
            consumer = self._consumer(stream, group)
            for number in range(self._partition_count(topic)):
                _, counts, _ = self._committed(consumer, kafka.TopicPartition(topic, number))
                total.update(counts)
        except BrokerError:
            raise
        except Exception as error:  # noqa: BLE001 - a client that failed once is not used again
            raise self._lose_reader(stream, group, error) from None
        return total


# ---------------------------------------------------------------------- records


def _records(
    topic: str, partition: int, parcels: Sequence[Parcel], origin: int | None = None
) -> list[_Record]:
    """Encode parcels as records; with an origin, number them as parts of it."""
    records: list[_Record] = []
    for part, (raw, events) in enumerate(pack(parcels)):
        headers = [("events", b"%d" % events)]
        if origin is not None:
            headers.append(("origin", b"%d.%d" % (origin, part)))
        records.append(_Record(topic, partition, None, raw, headers))
    return records


def _size_of(record: _Record) -> int:
    return len(record.value) + len(record.key or b"") + 256


def _header(record: Any, name: str) -> bytes:
    return next((bytes(value or b"") for key, value in record.headers or () if key == name), b"")


def _origin_of(record: Any) -> _Origin | None:
    """Read which part of which sealed record this was made from; None if it does not say."""
    origin = _header(record, "origin")
    offset, _, part = origin.partition(b".")
    is_ours = offset.isdigit() and part.isdigit() and len(origin) <= _ORIGIN_BYTES
    return (int(offset), int(part)) if is_ours else None


def _events_of(record: Any) -> int:
    """Read how many parcels a record that does not decode was said to hold; at least one."""
    events = _header(record, "events")
    return max(1, int(events)) if events.isdigit() and len(events) < len("1000") else 1


def _warn_of_gap(place: _Place, offset: int) -> None:
    """Say that records are gone that nobody finished: never silently (fault 12)."""
    if offset > place.fetched:
        logging.getLogger(__name__).error(
            "kafka_gap topic=%s partition=%d records=%d",
            place.partition.topic,
            place.partition.partition,
            offset - place.fetched,
        )


# ---------------------------------------------------------------------- counts as bytes


def _encode_counts(counts: Counter[Entry]) -> bytes:
    rows = [[*entry, n] for entry, n in sorted(counts.items()) if n]
    return json.dumps(rows, separators=(",", ":")).encode()


def _decode_counts(raw: bytes) -> Counter[Entry]:
    try:
        return Counter(
            {Entry(stage, outcome, why): n for stage, outcome, why, n in json.loads(raw)}
        )
    except (ValueError, TypeError):
        raise BrokerError("The books on Kafka cannot be read.") from None


def _encode_metadata(counts: Counter[Entry], origin: _Origin) -> str:
    """Write cumulative counts and the last origin as text for an offset commit.

    Plain JSON while it is short, so that an operator can read it; else compressed.
    """
    text = f"{origin[0]}.{origin[1]} {_encode_counts(counts).decode()}"
    if len(text) > _PLAIN_METADATA_BYTES:
        text = "z" + b85encode(zlib.compress(text.encode(), 9)).decode()
    if len(text) > _METADATA_BYTES:
        raise BrokerError("The counts do not fit into a commit.")
    return text


def _decode_metadata(text: str) -> tuple[Counter[Entry], _Origin]:
    try:
        if text.startswith("z"):
            text = zlib.decompress(b85decode(text[1:])).decode()
        mark, _, counts = text.partition(" ")
        offset, _, part = mark.partition(".")
        return _decode_counts(counts.encode()), (int(offset), int(part))
    except (ValueError, zlib.error):
        raise BrokerError(
            "A commit of this group was not made by us; its books are gone."
        ) from None


# ---------------------------------------------------------------------- silence


def _broker_error(error: Exception, about: str = "") -> BrokerError:
    """Name what failed; kafka-python's own messages may quote records and frames (K10)."""
    return BrokerError(f"Kafka failed{about and f' on {about}'} ({type(error).__name__}).")


class _WithoutArguments(logging.Filter):
    """Keeps the text of a log line and drops its arguments: some hold raw records (K10)."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.args = ()
        record.exc_info = record.exc_text = record.stack_info = None
        return record.levelno >= logging.WARNING


_SILENCE: Final = _WithoutArguments()


def _quieten() -> None:
    """Keep kafka-python's loggers at warnings without arguments, also those made since last time.

    A filter on a logger does not see what its children log, so each has its own.
    """
    logging.getLogger("kafka").setLevel(logging.WARNING)
    for name in list(logging.root.manager.loggerDict):
        if name == "kafka" or name.startswith("kafka."):
            logging.getLogger(name).addFilter(_SILENCE)


# ---------------------------------------------------------------------- fork

_brokers: weakref.WeakSet[KafkaBroker] = weakref.WeakSet()


def _unlock_in_child() -> None:
    """In a forked child: the thread that held a lock does not exist. Clients follow in `_ready`."""
    for broker in _brokers:
        broker._lock = Lock()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_unlock_in_child)
