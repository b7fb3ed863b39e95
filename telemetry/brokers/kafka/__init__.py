"""The log on Apache Kafka. The only package that imports ``kafka``, wrapped against its traps.

Guarantee: at least once, without transactions. Each step ends in one write that either happens or
does not, and the counts of the step are in that write:

- `KafkaBroker.append` writes a sealed record; what it adds to the books stands in its header.
- `KafkaBroker.finish` sends its outputs, waits for all of them, then commits the position. The
  books so far, those headers included, and the last origin ride in the commit's metadata.

So books and position cannot differ, whatever is killed when: the books are what commits say, plus
what stands in sealed records behind them. Killed between outputs and commit, the outputs are sent
again; each clean record names the sealed record it was made from (``origin``), one sealed record
makes at most one record on each clean stream, and the reader of a clean stream steps over an origin
that is not above the last it finished.

Topics: ``<prefix>.<stream with dots>.v1``, for example ``telemetry.clean.heap.v1``
(`telemetry.brokers.kafka.topics`). Clean records go to the partition of the same number as their
sealed record, so sealed and clean topics have the same number of partitions and grow together.

Readers of a group share the partitions: cooperative-sticky, static members. A member that lost a
partition cannot finish what it polled of it.

What is not exact: a dead letter may be there twice after a crash (with one event id; it is counted
once). If between a crash and the second attempt a subject was erased or the policy changed, the
first attempt's record may already be on its way, and the books count the second's. What is counted
by a sealed record that retention removed unread is gone with it, and said aloud. Where the sealed
topic is made anew, its offsets start again: its readers refuse to go on until their groups are
removed.

Source:
    Kafka protocol, OffsetCommit (metadata up to ``offset.metadata.max.bytes``, 4096 by default);
    KIP-345 (static membership), KIP-429 (cooperative rebalancing); traps K1 to K12 in
    ``docs/reliability.md``.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import randbelow
from threading import Lock
from typing import Any, Final, NamedTuple

import kafka
from kafka.structs import MemberState

from telemetry.brokers import DEAD, ORDERS, SEALED, Counts, Entry, Polled, clean, stage_of
from telemetry.brokers.kafka.board import KafkaBoard
from telemetry.brokers.kafka.clients import Clients, Gone, Options, broker_error
from telemetry.brokers.kafka.records import (
    FINISHED,
    RECORD_BYTES,
    STORED,
    Record,
    counts_of,
    decode_metadata,
    encode_counts,
    encode_metadata,
    events_of,
    frame,
    number_of,
    runs,
    unframe,
    without_large,
)
from telemetry.brokers.kafka.shelf import KafkaShelf
from telemetry.errors import BrokerError, DecodeError
from telemetry.parcel import Parcel

__all__ = ["KafkaBroker", "topic_name"]

_IN_FLIGHT_BYTES: Final = 16 * 1024**2
_FETCH_RECORDS: Final = 256
_TEND_S: Final = 0.5
_PROBE_S: Final = 30.0
_JOIN_S: Final = 5.0
_STALLED_S: Final = 3.0
_PARTITIONS_S: Final = 1.0
_TAIL_RECORDS: Final = 20_000
_TAIL_S: Final = 3.0
_BOARD_S: Final = 3.0
_HOLE_TRIES: Final = 200
_COORDINATOR_S: Final = 0.2


def topic_name(prefix: str, stream: str) -> str:
    """Name the topic of a stream.

    >>> topic_name("telemetry", "clean.heap")
    'telemetry.clean.heap.v1'
    """
    return f"{prefix}.{stream}.v1"


class _Hole(NamedTuple):
    """Records that cannot be fetched at all; in a row of records it stands for them."""

    offset: int  # of the last of them
    records: int


@dataclass(slots=True, eq=False)
class _Place:
    """Where one group stands in one partition, and what was fetched but not finished."""

    partition: Any
    offset: int
    fetched: int
    counts: Counter[Entry]
    origin: int
    waiting: deque[Any] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class _Reader:
    """One group on one stream. Gives one partition at a time; the next after each finish."""

    stream: str
    group: str
    consumer: Any
    gone: Gone
    places: dict[Any, _Place] = field(default_factory=dict)
    turn: int = -1
    tended: float = 0.0
    generation: int = -1
    partitions: int = 0

    def settled(self) -> bool:
        """Tell whether the group has come together with us in it."""
        return bool(self.consumer.group_metadata().state == MemberState.STABLE)

    def next(self) -> _Place | None:
        """Give the place whose turn it is, of those where something is waiting."""
        ready = [place for place in self.places.values() if place.waiting]
        if not ready:
            return None
        ready.sort(key=lambda place: int(place.partition.partition))
        later = (place for place in ready if place.partition.partition > self.turn)
        return next(later, ready[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Position:
    """Which partition a poll read, from where to where, and what finishing it adds to the books."""

    place: _Place
    start: int
    last: int
    origin: int
    counts: Counter[Entry]

    def __repr__(self) -> str:
        return f"_Position({self.place.partition.partition}: {self.start} to {self.last})"


@dataclass(slots=True)
class _Tail:
    """What stands in sealed records of one partition that nobody has finished yet."""

    next: int
    counts: deque[tuple[int, Counter[Entry]]] = field(default_factory=deque)


class KafkaBroker:
    """A durable log on Kafka, with books.

    Implements `telemetry.brokers.Broker`. Connects when first used, and anew in a forked child.

    Args:
        bootstrap: ``host:port``, several separated by commas.
        member: Name of this process in its groups: unique among those that read the same stream,
            and the same after each restart (the name of the pod or host). Empty: a new member at
            each start, so that after a kill the group waits ten seconds for the old one.
        topic_prefix: First part of each topic's name.
        group_prefix: First part of each consumer group's name.
        timeout_s: Upper bound in seconds of each wait for the broker; at least 1.
        client_options: More options for kafka-python's clients: TLS, SASL, ``api_version``; or a
            function that gives them.

    Attributes:
        fenced: Another process came with our name. This one can do nothing more: end it.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        member: str = "",
        topic_prefix: str = "telemetry",
        group_prefix: str = "telemetry",
        timeout_s: float = 10.0,
        client_options: Options | None = None,
    ) -> None:
        self._topic_prefix, self._group_prefix = topic_prefix, group_prefix
        self._timeout_s = max(1.0, timeout_s)
        self._clients = Clients(
            bootstrap, member=member, timeout_s=self._timeout_s, options=client_options
        )
        self._member = member
        self._lock = Lock()
        self._closed = False
        self.fenced = False
        self._began = 0.0
        self._probe_at = 0.0
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

        What goes to another stream than the sealed one goes first, so that what counts it is
        written last. A parcel larger than a record may be is counted as dead, ``too_large``.

        Raises:
            BrokerError: Kafka did not take all of it in time. Nothing was acknowledged.
        """
        with self._call():
            more = Counter(counts)
            streams = {name: list(some) for name, some in (beside or {}).items()}
            streams.setdefault(stream, []).extend(parcels)
            sealed = self._without_large(SEALED, streams.pop(SEALED, []), streams, more)
            for name in sorted(streams, key=lambda name: name == DEAD):  # it takes the large ones
                streams[name] = list(self._without_large(name, streams[name], streams, more))
            self._send(
                record
                for name, some in streams.items()
                for record in self._records(name, some, more)
            )
            topic = self.topic(SEALED)
            partition = self._appended % self._partition_count(topic)
            self._send(_sealed_records(topic, partition, sealed, more))
            self._appended += 1

    def poll(self, stream: str, group: str, max_events: int) -> Polled:
        """Read what follows the group's position in one partition, without moving it.

        Of the sealed stream it gives one record: what is made from it carries its offset. Of other
        streams it gives records up to `max_events` parcels together, and at least one record if any
        is waiting. Waits for the broker's answer, not for new parcels; the first call waits until
        the group has come together.

        A record that does not decode is stepped over at once and counted as ``dead`` with reason
        ``unreadable_record``. It stays on the topic until its retention ends.

        Raises:
            BrokerError: Kafka did not answer in time.
        """
        with self._call():
            reader = self._reader(stream, group)
            try:
                while True:
                    place = self._waiting_place(reader)
                    if place is None:
                        return Polled(stream=stream, group=group, position=None, parcels=())
                    position, parcels = _take(place, stream, group, max_events)
                    if parcels:
                        break
                    # Nothing but repeats, counts and what cannot be read: go on behind it.
                    self._commit(reader, position, Counter())
            except BrokerError:
                raise
            except Exception as error:  # noqa: BLE001 - a client that failed once spins (K3)
                raise self._lose_reader(reader, error) from None
            return Polled(stream=stream, group=group, position=position, parcels=parcels)

    def finish(
        self, polled: Polled, outputs: Mapping[str, Sequence[Parcel]], counts: Counts
    ) -> None:
        """Store the outputs, then commit position, counts and origin in one request.

        Raises:
            BrokerError: Kafka did not take all of it in time, the position has moved since this
                poll, or the partition is another member's now: poll again. What was sent of the
                outputs is sent again and stepped over.
        """
        position = polled.position
        if not isinstance(position, _Position):
            raise BrokerError("This was polled from another broker.")
        with self._call():
            reader = self._reader(polled.stream, polled.group)
            self._check_ours(reader, position)
            more = Counter(counts)
            streams = {name: list(some) for name, some in outputs.items()}
            for name in sorted(streams, key=lambda name: name == DEAD):  # it takes the large ones
                streams[name] = list(self._without_large(name, streams[name], streams, more))
            records: list[Record] = []
            for name, some in streams.items():
                if polled.stream == SEALED and name.startswith(clean("")):
                    records += self._made_records(position, name, some, more)
                else:
                    records += self._records(name, some, more)
            self._send(records)
            try:
                self._commit(reader, position, more)
            except BrokerError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, the state is unknown
                raise self._lose_reader(reader, error) from None
            reader.turn = int(position.place.partition.partition)

    def books(self) -> dict[Entry, int]:
        """All counts: of what was finished, and of what stands in sealed records behind that."""
        return self.snapshot()[0]

    def pending(self) -> dict[str, int]:
        """Parcels that the stream's own reader, or a group polled here, has not finished."""
        return self.snapshot()[1]

    def snapshot(self) -> tuple[dict[Entry, int], dict[str, int]]:
        """Books and pending of one moment: their sums agree while everybody works.

        Needs the right to read the sealed topic. Of a backlog of more than twenty thousand records
        what lies behind them is not in yet; the sums agree all the same.
        """
        with self._call():
            total, finished = self._all_books()
        hidden = {STORED, FINISHED}
        entries = {entry: n for entry, n in total.items() if n and entry.stage not in hidden}
        return entries, _pending(total, finished)

    def books_of(self, recipients: Collection[str]) -> tuple[dict[Entry, int], dict[str, int]]:
        """Counts and pending parcels of some recipients alone, from commits.

        Needs no right to read a topic, so a forwarder may ask it.
        """
        own = {(clean(name), name) for name in recipients}
        finished: dict[tuple[str, str], int] = {}
        with self._call():
            try:
                total = self._of_groups({(SEALED, stage_of(SEALED))} | own, finished)
            except BrokerError:
                raise
            except Exception as error:  # noqa: BLE001 - a client that failed once is not used again
                self._forget_books()
                raise broker_error(error) from None
        streams = {stream for stream, _ in own}
        pending = _pending(total, finished)
        return (
            {entry: n for entry, n in total.items() if n and entry.stage in recipients},
            {stream: n for stream, n in pending.items() if stream in streams},
        )

    def waits(self) -> dict[str, tuple[Parcel, datetime]]:
        """Give the oldest unfinished parcel that this process has of each stream it reads.

        Of what was fetched, so nobody is asked and no right is needed; a reader that rests fetches,
        too (`tend`). Other members tell of their own partitions.

        Returns:
            The parcel, and when the log took it: the broker's own time.
        """
        found: dict[str, tuple[Parcel, datetime]] = {}
        with self._call():
            for reader in self._readers.values():
                if reader.group != stage_of(reader.stream):
                    continue
                for place in reader.places.values():
                    first = _first_waiting(place)
                    known = found.get(reader.stream)
                    if first is not None and (known is None or first[1] < known[1]):
                        found[reader.stream] = first
        return found

    def share(self, stream: str, group: str) -> float:
        """Give the part of a stream's partitions that this member of a group has, 0 to 1.

        Of what was last heard of the group; never waits. Any thread may ask.
        """
        reader = self._readers.get((stream, group))
        if reader is None or not reader.partitions:
            return 0.0
        return min(1.0, len(reader.places) / reader.partitions)

    def close(self) -> None:
        """Let go of all connections, within the time limit."""
        with self._lock:
            self._closed = True
            if self._pid != os.getpid():
                return
            for client in self._all_clients():
                self._clients.drop(client)
            self._forget_clients()

    def send(self, records: Iterable[Record]) -> None:
        """Send records as they are; returns when all in-sync replicas have them.

        Raises:
            BrokerError: Kafka did not take all of them in time.
        """
        with self._call():
            self._send(records)

    def shelf(self) -> KafkaShelf:
        """Open what looks into the dead and held topics, for a command; it closes this, too."""
        self._clients.tells = False
        return KafkaShelf(self, self._clients, timeout_s=self._timeout_s)

    def board(self) -> KafkaBoard:
        """Open the topic of orders, with connections of its own: no call here keeps it waiting."""
        return KafkaBoard(self._clients, self.topic(ORDERS), timeout_s=_BOARD_S)

    # ------------------------------------------------------------------ while nothing is asked

    def tend(self) -> None:
        """Stay a member of the groups while what was polled is being worked on (K9).

        To be called every second or so, by whoever calls the rest: a caller that is stuck does not
        call, and its partitions go to others after a minute.

        Raises:
            BrokerError: No broker has ever answered; asked twice a minute at most.
        """
        with self._call():
            if not self._clients.answered and time.monotonic() >= self._probe_at:
                # Whoever starts where no broker answers is told so before the first event comes.
                self._probe_at = time.monotonic() + _PROBE_S
                self._get_producer()
            for reader in list(self._readers.values()):
                try:
                    self._pump(reader, 0)
                    # A group that is being dealt anew waits for each member: one that only looked
                    # in for a moment would keep it from coming together for as long as it rests.
                    deadline = time.monotonic() + _JOIN_S
                    while not reader.settled() and time.monotonic() < deadline:
                        self._pump(reader, 100)
                except Exception as error:  # noqa: BLE001 - the next poll meets it again and tells
                    self._lose_reader(reader, error)

    @property
    def busy_s(self) -> float:
        """How long the call that is under way has lasted, in seconds; 0 if none is.

        Each call is bounded; one that lasts for minutes does not end (K3).
        """
        began = self._began
        return time.monotonic() - began if began else 0.0

    # ------------------------------------------------------------------ clients

    def _forget_clients(self) -> None:
        self._pid = os.getpid()
        self._producer: Any = None
        self._readers: dict[tuple[str, str], _Reader] = {}
        self._tail_reader: Any = None
        self._tails: dict[Any, _Tail] = {}
        self._admin: Any = None
        self._groups: set[tuple[str, str]] = {(SEALED, stage_of(SEALED))}
        self._partitions: dict[str, tuple[float, int]] = {}
        self._suspects: dict[Any, int] = {}
        self._holes: dict[Any, tuple[int, int]] = {}
        # Several gateways that start together do not all begin with the same partition.
        self._appended = randbelow(1 << 16)

    def _all_clients(self) -> list[Any]:
        readers = [reader.consumer for reader in self._readers.values()]
        return [self._producer, self._tail_reader, self._admin, *readers]

    @contextmanager
    def _call(self) -> Iterator[None]:
        """One call at a time; refused when closed; after a fork with clients of its own (K5)."""
        with self._lock:
            if self._closed:
                raise BrokerError("The broker is closed.")
            if self.fenced:
                raise BrokerError("Another process has taken this one's name in its group.")
            if self._pid != os.getpid():
                self._clients.leave_to_parent(self._all_clients())
                self._forget_clients()
            self._began = time.monotonic()
            try:
                yield
            finally:
                self._began = 0.0

    @property
    def _timeout_ms(self) -> int:
        return self._clients.timeout_ms

    def _get_producer(self) -> Any:
        if self._producer is None:
            self._producer = self._clients.producer(RECORD_BYTES)
        return self._producer

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        self._partitions.clear()
        self._clients.drop(producer)

    def _lose_reader(self, reader: _Reader, error: Exception) -> BrokerError:
        """Throw a consumer away with all it remembers; the next poll reads the committed state."""
        if isinstance(error, kafka.errors.FencedInstanceIdError):
            self.fenced = True
        self._readers.pop((reader.stream, reader.group), None)
        self._clients.drop(reader.consumer)
        return broker_error(error)

    # ------------------------------------------------------------------ sending

    def topic(self, stream: str) -> str:
        """Name the topic of a stream."""
        return topic_name(self._topic_prefix, stream)

    def _group(self, stream: str, group: str) -> str:
        """Name a consumer group. Whoever else reads several streams is in a group for each.

        In one for all, a reader that rests would keep the others waiting.
        """
        own = group == stage_of(stream)
        return f"{self._group_prefix}.{group}" + ("" if own else f".{stream}")

    def _partition_count(self, topic: str) -> int:
        at, count = self._partitions.get(topic, (0.0, 0))
        now = time.monotonic()
        if count and now - at < _PARTITIONS_S:
            return count
        try:
            found = self._get_producer().partitions_for(topic)
        except Exception as error:  # noqa: BLE001 - anything here means: no metadata
            self._drop_producer()
            raise broker_error(error, f"topic {topic}") from None
        if not found:
            raise BrokerError(f"Kafka has no topic {topic}.")
        self._partitions[topic] = (now, len(found))
        return len(found)

    def _without_large(
        self,
        stream: str,
        parcels: Sequence[Parcel],
        streams: dict[str, list[Parcel]],
        more: Counter[Entry],
    ) -> Sequence[Parcel]:
        """Turn what no record can hold into dead letters without content: nothing gets stuck."""
        fit, large = without_large(parcels, together=stream.startswith(clean("")))
        if stream == DEAD:
            return [*fit, *large]
        if large:
            more[Entry(stage_of(stream), "dead", "too_large")] += len(large)
            streams.setdefault(DEAD, []).extend(large)
        return fit

    def _records(
        self, stream: str, parcels: Sequence[Parcel], more: Counter[Entry]
    ) -> Iterator[Record]:
        """Encode parcels of a stream that is not made record by record: dead letters, held ones."""
        if not parcels:
            return
        topic = self.topic(stream)
        more[Entry(STORED, stream)] += len(parcels)
        for number, run in enumerate(runs(parcels)):
            partition = (self._appended + number) % self._partition_count(topic)
            yield Record(topic, partition, frame(run), [("events", b"%d" % len(run))])
        self._appended += 1

    def _made_records(
        self, position: _Position, stream: str, parcels: Sequence[Parcel], more: Counter[Entry]
    ) -> Iterator[Record]:
        """Encode what was made from one sealed record, as one record beside it."""
        if not parcels:
            return
        entry = Entry(STORED, stream)
        more[entry] += len(parcels)
        topic, number = self.topic(stream), int(position.place.partition.partition)
        if number >= self._partition_count(topic):
            self._drop_producer()  # perhaps it only has not heard of the new ones
            raise BrokerError(f"{topic} has fewer partitions than the sealed topic.")
        headers = [
            ("events", b"%d" % len(parcels)),
            ("origin", b"%d" % (position.last - 1)),
            ("total", b"%d" % (position.place.counts[entry] + more[entry])),
        ]
        yield Record(topic, number, frame(parcels), headers)

    def _send(self, records: Iterable[Record]) -> None:
        """Send records and wait until each is acknowledged, with bounded memory (K1).

        Any failure may have poisoned the producer (K2, K11): it is rebuilt, and what was not
        acknowledged is the caller's to send again.
        """
        sent: deque[tuple[Any, int]] = deque()
        in_flight = 0
        deadline = time.monotonic() + self._timeout_s
        try:
            for record in records:
                size = record.size
                while sent and in_flight + size > _IN_FLIGHT_BYTES:
                    future, done = sent.popleft()
                    future.get(timeout=max(0.001, deadline - time.monotonic()))
                    in_flight -= done
                future = self._get_producer().send(
                    record.topic,
                    value=record.value,
                    headers=record.headers,
                    partition=record.partition,
                )
                sent.append((future, size))
                in_flight += size
            for future, _ in sent:
                future.get(timeout=max(0.001, deadline - time.monotonic()))
        except BrokerError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, not all is acknowledged
            self._drop_producer()
            raise broker_error(error) from None

    # ------------------------------------------------------------------ reading

    def _reader(self, stream: str, group: str) -> _Reader:
        reader = self._readers.get((stream, group))
        if reader is not None:
            return reader
        topic = self.topic(stream)
        self._partition_count(topic)  # a topic that is not there is an error, not an empty stream
        try:
            consumer, gone = self._clients.reader(self._group(stream, group)), Gone()
            consumer.subscribe([topic], listener=gone)
            # Who deals the partitions must know the topic, or deals none in the first round.
            consumer.partitions_for_topic(topic)
        except Exception as error:  # noqa: BLE001 - the constructor connects
            raise broker_error(error) from None
        reader = _Reader(stream, group, consumer, gone)
        self._readers[stream, group] = reader
        self._groups.add((stream, group))
        return reader

    def _waiting_place(self, reader: _Reader) -> _Place | None:
        """Have records waiting, if there are any; gives the place whose turn it is."""
        deadline = time.monotonic() + self._timeout_s
        ends: Mapping[Any, int] | None = None
        if time.monotonic() - reader.tended > _TEND_S or reader.next() is None:
            self._pump(reader, 0)
        while True:
            place = reader.next()
            if place is not None:
                return place
            if reader.settled():
                # Whoever waits for a group may wait long; records that are there come at once, or
                # the client has lost its way: it is made anew.
                deadline = min(deadline, time.monotonic() + _STALLED_S)
                if ends is None or ends.keys() != reader.places.keys():
                    ends = self._ends(reader.consumer, list(reader.places))
                if all(place.fetched >= ends[tp] for tp, place in reader.places.items()):
                    return None
            if time.monotonic() > deadline:
                self._lose_reader(reader, TimeoutError())
                raise BrokerError("Kafka has records or a group, but does not give them.")
            if not self._pump(reader, 100) and ends is not None:
                self._step_over_expired(reader, ends)

    def _ends(self, consumer: Any, partitions: Sequence[Any]) -> Mapping[Any, int]:
        if not partitions:
            return {}
        ends: Mapping[Any, int] = consumer.end_offsets(partitions, timeout_ms=self._timeout_ms)
        return ends

    def _pump(self, reader: _Reader, timeout_ms: int) -> bool:
        """Let the client do its work: join, heed others, fetch where nothing is waiting."""
        consumer = reader.consumer
        self._heed_growth(reader)
        assigned = consumer.assignment()
        for partition, place in reader.places.items():
            if partition in assigned:
                (consumer.pause if place.waiting else consumer.resume)(partition)
        try:
            got = consumer.poll(timeout_ms=timeout_ms, max_records=_FETCH_RECORDS)
        except Exception:
            self._adopt(reader)
            self._suspect(reader)
            if self._step_over_holes(reader):
                return True  # behind it the client reads on; only at it, it would spin (K3)
            raise
        reader.tended = time.monotonic()
        new_here = self._adopt(reader)
        for partition, records in got.items():
            if partition not in reader.places or partition in new_here:
                continue
            place = reader.places[partition]
            new = [record for record in records if record.offset >= place.fetched]
            if new:
                _warn_of_gap(place, new[0].offset)
                place.waiting.extend(new)
                place.fetched = new[-1].offset + 1
        self._step_over_holes(reader)
        return bool(got)

    def _heed_growth(self, reader: _Reader) -> None:
        """Join the group anew when its topic has grown.

        The client looks for new partitions only where it has dealt them itself. A static member
        that died as the leader of its group and came back is the leader still, but has dealt
        nothing (KIP-345): nobody would ever read the new ones.
        """
        found = reader.consumer.partitions_for_topic(self.topic(reader.stream))
        if found and reader.partitions and len(found) > reader.partitions:
            reader.consumer._coordinator.request_rejoin()  # noqa: SLF001 - it has no other way
        reader.partitions = len(found or ()) or reader.partitions

    def _adopt(self, reader: _Reader) -> set[Any]:
        """Forget the partitions that were taken from us, learn where we stand in new ones.

        Returns:
            Those that are new, or in which somebody else was meanwhile: they are read from their
            position, whatever the client has fetched of them.
        """
        for partition in reader.gone.take():
            reader.places.pop(partition, None)
        consumer = reader.consumer
        assigned = consumer.assignment()
        for partition in list(reader.places):
            if partition not in assigned:
                del reader.places[partition]
        # The client may find that it owns what it owned before, and not tell that the group was
        # without us for a while. A commit from what we remember would then set the group back.
        generation = consumer.group_metadata().generation_id
        dealt_anew = generation != reader.generation
        reader.generation = generation
        new_here: set[Any] = set()
        for partition in assigned:
            known = reader.places.get(partition)
            if known is not None and not dealt_anew:
                continue
            place = self._place(consumer, partition)
            if known is None or known.offset != place.offset:
                reader.places[partition] = place
                consumer.seek(partition, place.offset)
                new_here.add(partition)
        return new_here

    def _place(self, consumer: Any, partition: Any) -> _Place:
        timeout_ms = self._timeout_ms
        commit = consumer.committed(partition, metadata=True, timeout_ms=timeout_ms)
        if commit is None or commit.offset < 0:
            start = consumer.beginning_offsets([partition], timeout_ms=timeout_ms)[partition]
            return _Place(partition, start, start, Counter(), -1)
        if commit.offset > self._ends(consumer, [partition])[partition]:
            raise BrokerError(
                f"{partition.topic} ends before what its group has read: it lost records, or was "
                "made anew. Nothing is read until the group is removed, with its clean topics."
            )
        counts, origin = decode_metadata(commit.metadata)
        return _Place(partition, commit.offset, commit.offset, counts, origin)

    def _step_over_expired(self, reader: _Reader, ends: Mapping[Any, int]) -> None:
        """Go on at the oldest record left, where retention removed what came next (fault 12)."""
        behind = [tp for tp, place in reader.places.items() if place.fetched < ends.get(tp, 0)]
        if not behind:
            return
        oldest = reader.consumer.beginning_offsets(behind, timeout_ms=self._timeout_ms)
        for partition in behind:
            place, start = reader.places[partition], oldest[partition]
            if start > place.fetched:
                _warn_of_gap(place, start)
                place.fetched = start
                reader.consumer.seek(partition, start)

    # A batch whose checksum is wrong, or that expands without end, is met at the same offset again.

    def _step_over_holes(self, reader: _Reader) -> bool:
        """Go on behind what is known to be unreadable. Tells whether there was any."""
        stepped = False
        for partition, place in reader.places.items():
            bad, good = self._holes.get(partition, (-1, -1))
            if place.fetched == bad:
                place.waiting.append(_Hole(good - 1, good - bad))
                place.fetched = good
                reader.consumer.seek(partition, good)
                stepped = True
        return stepped

    def _suspect(self, reader: _Reader) -> None:
        """After a failed fetch: the second at the same place is looked into, and stepped over."""
        for partition, place in reader.places.items():
            again = self._suspects.get(partition) == place.fetched
            self._suspects[partition] = place.fetched
            if again and (good := self._behind_hole(partition, place.fetched)) is not None:
                self._holes[partition] = (place.fetched, good)
                logging.getLogger(__name__).error(
                    "kafka_unreadable topic=%s partition=%d records=%d",
                    partition.topic,
                    partition.partition,
                    good - place.fetched,
                )

    def _behind_hole(self, partition: Any, offset: int) -> int | None:
        """Find the first offset from which records can be fetched; None if that is `offset`."""
        for tried in range(offset, offset + _HOLE_TRIES):
            # A client that failed once is not asked again.
            probe: Any = None
            try:
                probe = self._clients.reader()
                probe.assign([partition])
                if tried >= self._ends(probe, [partition])[partition]:
                    return tried if tried > offset else None
                probe.seek(partition, tried)
                deadline = time.monotonic() + self._timeout_s
                while time.monotonic() < deadline:
                    if probe.poll(timeout_ms=200, max_records=1):
                        return tried if tried > offset else None
            except (kafka.errors.KafkaConnectionError, kafka.errors.KafkaTimeoutError):
                return None
            except Exception:  # noqa: BLE001, S112 - this is what we look for
                continue
            else:
                return None
            finally:
                self._clients.drop(probe)
        return None

    # ------------------------------------------------------------------ committing

    @staticmethod
    def _check_ours(reader: _Reader, position: _Position) -> None:
        place = position.place
        if reader.places.get(place.partition) is not place or place.offset != position.start:
            raise BrokerError("The position has moved since this poll. Poll again.")

    def _commit(self, reader: _Reader, position: _Position, more: Counter[Entry]) -> None:
        place = position.place
        counts = place.counts + position.counts + more
        metadata = encode_metadata(counts, position.origin)
        commit = {place.partition: kafka.OffsetAndMetadata(position.last, metadata, -1)}
        deadline = time.monotonic() + self._timeout_s
        while True:
            while not reader.settled() and time.monotonic() < deadline:
                # The group is being dealt anew: commits are refused until we have joined it.
                self._pump(reader, 100)
            self._check_ours(reader, position)
            try:
                reader.consumer.commit(commit, timeout_ms=self._timeout_ms)
                break
            except kafka.errors.RebalanceInProgressError:
                if time.monotonic() > deadline:
                    raise
                self._pump(reader, 100)
        place.offset, place.counts, place.origin = position.last, counts, position.origin
        while place.waiting and place.waiting[0].offset < position.last:
            place.waiting.popleft()

    # ------------------------------------------------------------------ books

    def _all_books(self) -> tuple[Counter[Entry], dict[tuple[str, str], int]]:
        """Sum up all counts; and how many parcels each group has finished of each stream.

        Read against the stream, last readers first: what moves on meanwhile then counts as pending,
        and the sums agree while everybody works.
        """
        finished: dict[tuple[str, str], int] = {}
        sealed = (SEALED, stage_of(SEALED))
        try:
            known = self._of_commits(self._commits(*sealed))
            made = {
                e.outcome for e in known if e.stage == STORED and e.outcome.startswith(clean(""))
            }
            readers = ({(stream, stage_of(stream)) for stream in made} | self._groups) - {sealed}
            total = self._of_groups(readers, finished)
            commits = self._commits(*sealed)
            counts = self._of_commits(commits)
            finished[sealed] = counts[Entry(FINISHED, SEALED)]
            total.update(counts)
            total.update(self._of_tail(commits))
        except BrokerError:
            raise
        except Exception as error:  # noqa: BLE001 - a client that failed once is not used again
            self._forget_books()
            raise broker_error(error) from None
        return total, finished

    def _forget_books(self) -> None:
        for client in (self._admin, self._tail_reader):
            self._clients.drop(client)
        self._admin = self._tail_reader = None
        self._tails.clear()

    def _of_groups(
        self, groups: Iterable[tuple[str, str]], finished: dict[tuple[str, str], int]
    ) -> Counter[Entry]:
        """Add up what the commits of groups say."""
        total: Counter[Entry] = Counter()
        for stream, group in sorted(groups):
            counts = self._of_commits(self._commits(stream, group))
            finished[stream, group] = counts[Entry(FINISHED, stream)]
            total.update(counts)
        return total

    @staticmethod
    def _of_commits(commits: Mapping[Any, tuple[int, Counter[Entry]]]) -> Counter[Entry]:
        total: Counter[Entry] = Counter()
        for _, counts in commits.values():
            total.update(counts)
        return total

    def _commits(self, stream: str, group: str) -> dict[Any, tuple[int, Counter[Entry]]]:
        if self._admin is None:
            self._admin = self._clients.administrator()
        topic, name = self.topic(stream), self._group(stream, group)
        wanted = [kafka.TopicPartition(topic, n) for n in range(self._partition_count(topic))]
        patient_until = time.monotonic() + self._timeout_ms / 1000
        while True:
            try:
                given = self._admin.list_group_offsets({name: wanted})[name]
            except kafka.errors.CoordinatorNotAvailableError:
                # Whoever first asks a cluster for a group has its topic of groups made: seconds.
                if time.monotonic() > patient_until:
                    raise
                time.sleep(_COORDINATOR_S)
                continue
            return {
                partition: (commit.offset, decode_metadata(commit.metadata)[0])
                for partition, commit in given.items()
                if commit.offset >= 0
            }

    def _of_tail(self, commits: Mapping[Any, tuple[int, Counter[Entry]]]) -> Counter[Entry]:
        """Add up what sealed records say that the pseudonymizer has not finished."""
        topic = self.topic(SEALED)
        partitions = [kafka.TopicPartition(topic, n) for n in range(self._partition_count(topic))]
        if self._tail_reader is None:
            self._tail_reader = self._clients.reader()
        reader = self._tail_reader
        if reader.assignment() != set(partitions):
            reader.assign(partitions)
            self._tails.clear()
        oldest = reader.beginning_offsets(partitions, timeout_ms=self._timeout_ms)
        ends = self._ends(reader, partitions)
        for partition in partitions:
            committed = commits[partition][0] if partition in commits else 0
            start = max(committed, oldest[partition])
            tail = self._tails.get(partition)
            if tail is None or tail.next < start:
                self._tails[partition] = _Tail(start)
                reader.seek(partition, start)
                continue
            while tail.counts and tail.counts[0][0] < start:
                tail.counts.popleft()
        self._read_tail(reader, ends)
        total: Counter[Entry] = Counter()
        for tail in self._tails.values():
            for _, counts in tail.counts:
                total.update(counts)
        return total

    def _read_tail(self, reader: Any, ends: Mapping[Any, int]) -> None:
        deadline = time.monotonic() + _TAIL_S
        while any(tail.next < ends[partition] for partition, tail in self._tails.items()):
            if sum(len(tail.counts) for tail in self._tails.values()) > _TAIL_RECORDS:
                return
            if time.monotonic() > deadline:
                return
            for partition, records in reader.poll(timeout_ms=100).items():
                tail = self._tails[partition]
                for record in records:
                    if record.offset >= tail.next:
                        tail.counts.append((record.offset, counts_of(record)))
                        tail.next = record.offset + 1


# ---------------------------------------------------------------------- records


def _sealed_records(
    topic: str, partition: int, parcels: Sequence[Parcel], more: Counter[Entry]
) -> Iterator[Record]:
    """Encode what is appended: each record says what it stores, the first also all other counts."""
    for run in runs(parcels) if parcels else ([],):
        more[Entry(STORED, SEALED)] += len(run)
        headers = [("events", b"%d" % len(run)), ("counts", encode_counts(more))]
        yield Record(topic, partition, frame(run), headers)
        more = Counter()


def _take(
    place: _Place, stream: str, group: str, max_events: int
) -> tuple[_Position, list[Parcel]]:
    """Decode what is waiting at one place, up to `max_events`; nothing is taken away yet."""
    parcels: list[Parcel] = []
    more: Counter[Entry] = Counter()
    done = Entry(FINISHED, stream)
    unreadable = Entry(stage_of(stream), "dead", "unreadable_record")
    last, origin = place.offset, place.origin
    for record in place.waiting:
        if isinstance(record, _Hole):
            more[unreadable] += record.records
            last = record.offset + 1
            continue
        made_from = number_of(record, "origin")
        if made_from is not None and made_from <= origin:
            last = record.offset + 1
            continue
        try:
            read = unframe(bytes(record.value or b""))
        except DecodeError:
            read = []
            more[unreadable] += events_of(record)
            more[done] += events_of(record)
        if parcels and len(parcels) + len(read) > max_events:
            break
        if stream == SEALED and group == stage_of(SEALED):
            more.update(counts_of(record))
        total = number_of(record, "total")
        if total is not None:
            lost = total - len(read) - place.counts[done] - more[done]
            if lost > 0:
                # The topic's retention was quicker than the recipient (fault 12).
                more[Entry(stage_of(stream), "dropped", "log_retention")] += lost
                more[done] += lost
        parcels += read
        more[done] += len(read)
        last, origin = record.offset + 1, made_from if made_from is not None else origin
        if parcels and stream == SEALED:
            break
    return _Position(place, place.offset, last, origin, more), parcels


def _first_waiting(place: _Place) -> tuple[Parcel, datetime] | None:
    """Give the first parcel that is not finished and can be read, and when the log took it."""
    for record in place.waiting:
        if isinstance(record, _Hole):
            continue
        made_from = number_of(record, "origin")
        if made_from is not None and made_from <= place.origin:
            continue  # a repeat: it is stepped over
        with suppress(DecodeError):
            for parcel in unframe(bytes(record.value or b"")):
                return parcel, datetime.fromtimestamp(record.timestamp / 1000, UTC)
    return None


def _warn_of_gap(place: _Place, offset: int) -> None:
    """Say that records are gone that nobody finished: never silently (fault 12)."""
    if offset > place.fetched:
        logging.getLogger(__name__).error(
            "kafka_gap topic=%s partition=%d records=%d",
            place.partition.topic,
            place.partition.partition,
            offset - place.fetched,
        )


def _pending(total: Counter[Entry], finished: Mapping[tuple[str, str], int]) -> dict[str, int]:
    pending: dict[str, int] = {}
    for entry, stored in total.items():
        if entry.stage == STORED:
            stream = entry.outcome
            done = min((n for (name, _), n in finished.items() if name == stream), default=0)
            if stored > done:
                pending[stream] = stored - done
    return pending


# ---------------------------------------------------------------------- fork

_brokers: weakref.WeakSet[KafkaBroker] = weakref.WeakSet()


def _unlock_in_child() -> None:
    """In a forked child: the thread that held a lock does not exist. Clients follow in `_call`."""
    for broker in _brokers:
        broker._lock = Lock()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_unlock_in_child)
