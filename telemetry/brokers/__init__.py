"""The log between the stages. Owns the `Broker` interface and the words of the books.

A broker stores *parcels* in *streams*. It packs them into batches as it likes. Three calls:

- `Broker.append` returns when the parcels and the counts are durable;
- `Broker.poll` gives the next parcels of a stream to one group;
- `Broker.finish` makes the outcome of one poll durable: outputs, counts and position together.

Batch = unit of reading and finishing. Parcel = unit of outcome. Delivery is at least once: what is
polled and not finished is polled again, in the same order, after a crash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from telemetry.batch import BATCH_PARCELS, encode_batches
from telemetry.parcel import Parcel

__all__ = [
    "DEAD",
    "HELD",
    "ORDERS",
    "SEALED",
    "Board",
    "Broker",
    "Counts",
    "Drawer",
    "Entry",
    "Kept",
    "Order",
    "Polled",
    "Room",
    "Shelf",
    "clean",
    "pack",
    "stage_of",
]

SEALED, DEAD, HELD = "sealed", "dead", "held"
ORDERS = "orders"
"""Of the topic of orders on Kafka (`Board`); no stream of parcels."""


def clean(recipient: str) -> str:
    """Name of the stream of scrubbed parcels for one recipient.

    >>> clean("heap")
    'clean.heap'
    """
    return f"clean.{recipient}"


def stage_of(stream: str) -> str:
    """Name the stage that reads a stream: in its books a record of the stream is missing if lost.

    >>> stage_of("sealed"), stage_of("clean.heap"), stage_of("dead")
    ('pseudonymizer', 'heap', 'dead')
    """
    return "pseudonymizer" if stream == SEALED else stream.removeprefix("clean.")


class Entry(NamedTuple):
    """One account of the books.

    Attributes:
        stage: ``edge``, ``pseudonymizer`` or the name of a recipient.
        outcome: ``items_in``, ``sealed``, ``scrubbed``, ``routed``, ``delivered``, ``dropped``,
            ``dead``, ``held``, ``replayed``; outside the equations ``resent``, ``forgotten``.
        reason: Why, for ``dropped`` and ``dead``; else empty.
    """

    stage: str
    outcome: str
    reason: str = ""


Counts = Mapping[Entry, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """What one `Broker.poll` gave.

    Attributes:
        stream: Where it was read.
        group: For whom.
        position: The broker's own mark of the place behind the last parcel; opaque to callers.
        parcels: In order. Empty if nothing is waiting.
    """

    stream: str
    group: str
    position: object
    parcels: Sequence[Parcel]


@runtime_checkable
class Broker(Protocol):
    """A durable log with books. Synchronous; one caller at a time for each instance.

    Every method raises `telemetry.errors.BrokerError` when the log cannot take or give; then
    nothing of that call is durable or acknowledged.
    """

    def append(
        self,
        stream: str,
        parcels: Sequence[Parcel],
        counts: Counts,
        *,
        beside: Mapping[str, Sequence[Parcel]] | None = None,
    ) -> None:
        """Store `parcels` and add `counts` to the books; both or none, durable on return.

        Args:
            stream: Where the parcels go.
            parcels: In order.
            counts: What they and their like mean for the books.
            beside: Parcels of other streams that belong to the same counts.
        """

    def poll(self, stream: str, group: str, max_events: int) -> Polled:
        """Read what follows the group's position, without moving it. Does not wait."""

    def finish(
        self, polled: Polled, outputs: Mapping[str, Sequence[Parcel]], counts: Counts
    ) -> None:
        """Store the outputs, add the counts and move the position; durable on return."""

    def books(self) -> dict[Entry, int]:
        """All counts since the log was created."""

    def pending(self) -> dict[str, int]:
        """Parcels not yet finished, by stream."""

    def close(self) -> None:
        """Let go of files and connections. What was acknowledged stays."""


class Kept(NamedTuple):
    """A parcel where it lies.

    Attributes:
        seq: Number of its record; one record may hold several parcels.
        parcel: Itself.
    """

    seq: int
    parcel: Parcel


class Room(NamedTuple):
    """How much of its share of the log a stream has used."""

    used_bytes: int
    most_bytes: int


class Drawer(Protocol):
    """Streams in which one can look without finishing, and take single parcels out.

    What dead and held parcels need: nobody reads those streams to their end.
    """

    def look(self, stream: str, after: int, most: int) -> list[Kept]:
        """Give the parcels of whole records behind `after`: at least one record, if there is any.

        Args:
            stream: Where to look.
            after: `Kept.seq` behind which to begin; 0: at the oldest.
            most: After so many parcels no further record is begun.
        """

    def take_out(
        self,
        stream: str,
        gone: Sequence[Kept],
        counts: Counts,
        outputs: Mapping[str, Sequence[Parcel]] | None = None,
    ) -> None:
        """Delete these parcels, store outputs and add counts.

        All durable together on the embedded log; on Kafka see `telemetry.brokers.kafka.shelf`.

        Raises:
            BrokerError: One of them is not there any more; nothing was changed.
        """


@runtime_checkable
class Shelf(Broker, Drawer, Protocol):
    """A log that keeps dead and held parcels itself and knows its room: the embedded one."""

    def oldest(self) -> dict[str, Parcel]:
        """Give the first unfinished parcel of each stream that has one."""

    def room(self) -> dict[str, Room]:
        """Give what each stream uses of its share; ``""`` stands for the log as a whole."""


class Order(NamedTuple):
    """One order: about a recipient or a stage by its name, or about a policy by its digest."""

    sort: Literal["recipient", "stage", "policy"]
    name: str
    word: Literal["pause", "resume", "revoke"]


class Board(Protocol):
    """Where all processes read the orders that one of them wrote."""

    def look(self) -> list[Order]:
        """Give the orders that came since the last look; at first, those in force.

        Raises:
            BrokerError: It cannot be asked. Nothing of it counts as seen.
        """

    def give(self, order: Order) -> None:
        """Write an order; returns when it is durable.

        Raises:
            BrokerError: It was not taken.
        """

    def close(self) -> None:
        """Let go of connections."""


def pack(parcels: Sequence[Parcel]) -> Iterator[tuple[bytes, int]]:
    """Encode parcels, in their order, and say how many each batch holds.

    Yields:
        The bytes of a batch and its number of parcels, within the limits of `encode_batches`.
    """
    for _, run in groupby(parcels, key=lambda parcel: parcel.header):
        alike = list(run)
        for start in range(0, len(alike), BATCH_PARCELS):
            yield from _pack_alike(alike[start : start + BATCH_PARCELS])


def _pack_alike(parcels: Sequence[Parcel]) -> Iterator[tuple[bytes, int]]:
    """Encode up to 64 parcels of one header; halve them where their bytes need several batches."""
    batches = encode_batches(parcels)
    if len(batches) == 1:
        yield batches[0], len(parcels)
    else:
        half = len(parcels) // 2
        yield from _pack_alike(parcels[:half])
        yield from _pack_alike(parcels[half:])
