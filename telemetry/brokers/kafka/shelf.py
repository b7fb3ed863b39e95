"""Dead and held topics as something to look into: nobody reads those streams to their end.

Reads without a group, from its own place, and commits nothing: whoever looks disturbs nobody. Kafka
deletes no single record, so what was taken out is *marked*: a record of the same partition, without
parcels, whose header ``gone`` lists what is not there any more. Its bytes stay until the topic's
retention ends, or until nothing in front of them is wanted (`KafkaShelf.free`).

Guarantee: what was stored again is there before the mark. Killed in between, it is shown once more,
and goes again under the same event id.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import kafka

from telemetry.brokers import SEALED, Counts, Kept
from telemetry.brokers.kafka.clients import Clients, broker_error
from telemetry.brokers.kafka.records import Record, header, unframe
from telemetry.errors import BrokerError, DecodeError
from telemetry.parcel import Parcel

__all__ = ["KafkaShelf"]

_OFFSET_BITS: Final = 44
_GONE: Final = "gone"
_MARKED_AT_ONCE: Final = 2000

Gone = tuple[int, str, str]
"""Offset of the record, event id, reason."""


class KafkaShelf:
    """Looks into streams and takes parcels out. Implements `telemetry.brokers.Drawer`.

    `Kept.seq` is a partition and an offset in one number; parcels come oldest first within each
    partition, one partition after the other.

    Args:
        log: Of what this is a part: `telemetry.brokers.kafka.KafkaBroker`.
        clients: How to connect.
        timeout_s: Upper bound in seconds of each wait for the broker.
    """

    def __init__(self, log: Any, clients: Clients, *, timeout_s: float) -> None:
        self._log, self._clients, self._timeout_s = log, clients, timeout_s
        self._reader: Any = None
        self._gone: dict[Any, set[Gone]] = defaultdict(set)
        self._scanned: dict[Any, int] = {}

    def look(self, stream: str, after: int, most: int) -> list[Kept]:
        """Give the parcels of whole records behind `after`, without those that were taken out.

        Raises:
            BrokerError: Kafka did not answer in time, or we may not read the topic.
        """
        number, begin = after >> _OFFSET_BITS, after & ((1 << _OFFSET_BITS) - 1)
        kept: list[Kept] = []
        for partition in self._partitions(stream)[number:]:
            self._scan(partition)
            for record in self._records(partition, begin):
                seq = partition.partition << _OFFSET_BITS | (record.offset + 1)
                kept += (Kept(seq, parcel) for parcel in self._left(partition, record))
                if len(kept) >= most:
                    return kept
            begin = 0
            if kept:
                break
        return kept

    def take_out(
        self,
        stream: str,
        gone: Sequence[Kept],
        counts: Counts,
        outputs: Mapping[str, Sequence[Parcel]] | None = None,
    ) -> None:
        """Store outputs and add counts, then mark these parcels as taken out.

        Raises:
            BrokerError: One of them is not there any more, or Kafka did not take all of it.
        """
        topic = self._log.topic(stream)
        by_partition: dict[Any, list[Gone]] = defaultdict(list)
        for one in gone:
            partition = kafka.TopicPartition(topic, one.seq >> _OFFSET_BITS)
            offset = (one.seq & ((1 << _OFFSET_BITS) - 1)) - 1
            by_partition[partition].append((offset, one.parcel.event_id, one.parcel.reason))
        for partition, some in by_partition.items():
            self._scan(partition)
            if self._gone[partition] & set(some):
                raise BrokerError("A parcel is not there any more: somebody took it out meanwhile.")
        self._log.append(SEALED, (outputs or {}).get(SEALED, ()), counts)
        self._log.send(
            Record(topic, partition.partition, b"", [(_GONE, json.dumps(part).encode())])
            for partition, some in by_partition.items()
            for part in _parts(some)
        )
        for partition, some in by_partition.items():
            self._gone[partition].update(some)

    def free(self, stream: str) -> bool:
        """Delete the records in front of which nothing is wanted any more.

        Returns:
            Whether Kafka let us: it takes the right to delete records of the topic.

        Raises:
            BrokerError: Kafka did not answer in time.
        """
        until: dict[Any, int] = {}
        for partition in self._partitions(stream):
            self._scan(partition)
            for record in self._records(partition, 0):
                if self._left(partition, record):
                    break
                until[partition] = record.offset + 1
        admin = None
        try:
            if until:
                admin = self._clients.administrator()
                admin.delete_records(until)
        except kafka.errors.TopicAuthorizationFailedError:
            return False
        except Exception as error:  # noqa: BLE001 - kafka-python's errors are of many trees
            raise broker_error(error, f"topic {self._log.topic(stream)}") from None
        finally:
            self._clients.drop(admin)
        return True

    def close(self) -> None:
        """Let go of connections."""
        self._clients.drop(self._reader)
        self._reader = None
        self._log.close()

    # ------------------------------------------------------------------ reading

    def _partitions(self, stream: str) -> list[Any]:
        topic = self._log.topic(stream)
        found = self._asked(lambda reader: reader.partitions_for_topic(topic))
        if not found:
            raise BrokerError(f"Kafka has no topic {topic}, or we may not read it.")
        return [kafka.TopicPartition(topic, number) for number in sorted(found)]

    def _asked(self, ask: Any) -> Any:
        """Ask with the reader; one that failed is not used again."""
        try:
            if self._reader is None:
                self._reader = self._clients.reader()
            return ask(self._reader)
        except Exception as error:  # noqa: BLE001 - as above
            reader, self._reader = self._reader, None
            self._clients.drop(reader)
            raise broker_error(error, "a topic that is looked into") from None

    def _scan(self, partition: Any) -> None:
        """Learn what was taken out since the last time, by whomever."""
        for record in self._records(partition, self._scanned.get(partition, 0)):
            if raw := header(record, _GONE):
                self._gone[partition].update(_gone_of(raw))
            self._scanned[partition] = record.offset + 1

    def _records(self, partition: Any, begin: int) -> Iterator[Any]:
        """Read a partition to where it ends now.

        Raises:
            BrokerError: Kafka did not answer in time, or does not let us read it.
        """
        timeout_ms = int(self._timeout_s * 1000)

        def start(reader: Any) -> tuple[int, int]:
            reader.assign([partition])
            end = reader.end_offsets([partition], timeout_ms=timeout_ms)[partition]
            oldest = reader.beginning_offsets([partition], timeout_ms=timeout_ms)[partition]
            reader.seek(partition, max(begin, oldest))
            return max(begin, oldest), end

        at, end = self._asked(start)
        deadline = time.monotonic() + self._timeout_s
        while at < end:
            found = self._asked(lambda reader: reader.poll(timeout_ms=200))
            for record in found.get(partition, ()):
                at = record.offset + 1
                deadline = time.monotonic() + self._timeout_s
                yield record
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"Kafka has records on {partition.topic}, but does not give them."
                )

    def _left(self, partition: Any, record: Any) -> list[Parcel]:
        """Give what of a record was not taken out; nothing of one that cannot be read."""
        try:
            parcels = unframe(bytes(record.value or b""))
        except DecodeError:
            return []
        gone = self._gone[partition]
        return [p for p in parcels if (record.offset, p.event_id, p.reason) not in gone]


def _parts(gone: Sequence[Gone]) -> Iterator[Sequence[Gone]]:
    for start in range(0, len(gone), _MARKED_AT_ONCE):
        yield gone[start : start + _MARKED_AT_ONCE]


def _gone_of(raw: bytes) -> set[Gone]:
    """Read a mark; one that somebody else wrote takes nothing away."""
    try:
        return {(int(offset), str(event), str(reason)) for offset, event, reason in json.loads(raw)}
    except (ValueError, TypeError):
        return set()
