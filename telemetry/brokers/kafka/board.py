"""The topic of orders: one partition, compacted, one record for each thing that can be ordered.

Compaction keeps the last record of a key for ever, so an order holds until the next one about the
same. No consumer group: everybody reads everything, from its own place, and commits nothing. A
record is JSON, ``{"order": "pause", "at": "…"}``; its key says of what: ``recipient/heap``. It
names no person: who ordered it stands in the audit log of the process that was asked.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final

import kafka

from telemetry.brokers import Order
from telemetry.brokers.kafka.clients import Clients, broker_error
from telemetry.errors import BrokerError

__all__ = ["KafkaBoard"]

_RECORD_BYTES: Final = 4096
_ORDERS: Final = {
    "recipient": ("pause", "resume"),
    "stage": ("resume",),
    "policy": ("revoke",),
}


class KafkaBoard:
    """Implements `telemetry.brokers.Board`. One caller at a time.

    Args:
        clients: How to connect.
        topic: Its name.
        timeout_s: Upper bound in seconds of each call.
    """

    def __init__(self, clients: Clients, topic: str, *, timeout_s: float) -> None:
        self._clients, self._topic, self._timeout_s = clients, topic, timeout_s
        self._partition = kafka.TopicPartition(topic, 0)
        self._reader: Any = None
        self._next = 0

    def look(self) -> list[Order]:
        """Give what came since the last look, in order; at first what is in force.

        Raises:
            BrokerError: Kafka did not answer in time, or has no such topic.
        """
        try:
            return self._look()
        except BrokerError:
            raise
        except Exception as error:  # noqa: BLE001 - a client that failed once is not used again
            raise broker_error(error, f"topic {self._topic}") from None

    def _look(self) -> list[Order]:
        reader, self._reader = self._reader, None
        try:
            if reader is None:
                reader = self._clients.reader()
                self._begin(reader)
            found = self._read(reader)
        except BaseException:
            self._clients.drop(reader)
            raise
        self._reader = reader
        return found

    def _begin(self, reader: Any) -> None:
        if not reader.partitions_for_topic(self._topic):
            raise BrokerError(
                f"Kafka has no topic {self._topic}, or we may not read it. See: "
                "telemetry topics check"
            )
        reader.assign([self._partition])
        reader.seek(self._partition, self._next)

    def _read(self, reader: Any) -> list[Order]:
        """Read to the end. Its end is asked for each time, so that an answer means: nothing newer.

        Raises:
            BrokerError: It does not come to the end in time.
        """
        timeout_ms = int(self._timeout_s * 1000)
        end = reader.end_offsets([self._partition], timeout_ms=timeout_ms)[self._partition]
        at = self._next
        if end < at:  # made anew: what stands there now is in force
            at = 0
            reader.seek(self._partition, at)
        found: list[Order] = []
        deadline = time.monotonic() + self._timeout_s
        while at < end:
            for records in reader.poll(timeout_ms=200).values():
                for record in records:
                    at = max(at, record.offset + 1)
                    if (order := _order_of(record)) is not None:
                        found.append(order)
            if time.monotonic() > deadline:
                raise BrokerError(f"Kafka has orders on {self._topic}, but does not give them.")
        self._next = at
        return found

    def give(self, order: Order) -> None:
        """Write an order; returns when all in-sync replicas have it.

        Raises:
            BrokerError: Kafka did not take it in time, or we may not write there.
        """
        producer = None
        value = json.dumps({"order": order.word, "at": datetime.now(UTC).isoformat()}).encode()
        try:
            producer = self._clients.producer(_RECORD_BYTES)
            key = f"{order.sort}/{order.name}".encode()
            producer.send(self._topic, key=key, value=value, partition=0).get(self._timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is not acknowledged
            raise broker_error(error, f"topic {self._topic}") from None
        finally:
            self._clients.drop(producer)

    def close(self) -> None:
        """Let go of the connection."""
        self._clients.drop(self._reader)
        self._reader = None


def _order_of(record: Any) -> Order | None:
    """Read a record. What cannot be read about a recipient lets it wait: somebody must look."""
    sort, _, name = bytes(record.key or b"").decode("utf-8", "replace").partition("/")
    if sort not in _ORDERS or not name:
        logging.getLogger(__name__).error("order_unreadable offset=%d", record.offset)
        return None
    try:
        word = json.loads(record.value or b"")["order"]
    except (ValueError, TypeError, KeyError):
        word = ""
    if word not in _ORDERS[sort]:
        logging.getLogger(__name__).error("order_unreadable offset=%d", record.offset)
        return Order("recipient", name, "pause") if sort == "recipient" else None
    return Order(sort, name, word)  # type: ignore[arg-type] # both stand in the table
