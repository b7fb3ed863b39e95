"""A gateway's log while Kafka is away: events wait on its own disk, encrypted, and go on later.

Clients are answered 200 as soon as one of the two logs has the events on disk; most of them never
try again. What waits goes on in its order; what comes in meanwhile overtakes it.

Guarantee: at least once. Where an append to Kafka was cut off, or the process was killed between
Kafka's acknowledgement and the spool's, events are there twice, with one event id each, and are
counted twice on both sides of the books.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Event, Thread
from typing import Final

import structlog

from telemetry import logs
from telemetry.brokers import DEAD, SEALED, Broker, Counts, Entry, Polled
from telemetry.errors import BrokerError
from telemetry.parcel import Parcel

__all__ = ["Buffered"]

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.brokers.buffered")

_GROUP: Final = "relay"
_BATCH_EVENTS: Final = 512
_RETRY_S: Final = 1.0
# Stage of entries in the spool's books that were entered in Kafka's.
_RELAYED: Final = ">"
_IN, _SEALED = Entry("edge", "items_in"), Entry("edge", "sealed")


class Buffered:
    """Appends to one log, and to another while that is away. For gateways: nothing is polled here.

    Args:
        log: The log of all, `telemetry.brokers.kafka.KafkaBroker`.
        spool: This process's own log, `telemetry.brokers.spool.Spool`.
        name: Names the thread.
    """

    fenced = False

    def __init__(self, log: Broker, spool: Broker, *, name: str = "") -> None:
        self._log, self._spool = log, spool
        self._away = Event()
        self._closing = Event()
        self._failure = ""
        if any(spool.pending().values()):
            self._away.set()
        self._thread = Thread(target=self._relay_all, name=f"relay {name}".strip(), daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Buffered({self._log!r}, {self._spool!r})"

    @property
    def spool(self) -> Broker:
        """This process's own log."""
        return self._spool

    @property
    def busy_s(self) -> float:
        """As `KafkaBroker.busy_s`; the relay's own calls do not count: nobody waits for them."""
        return 0.0

    @property
    def away(self) -> bool:
        """Whether events wait here because the log of all did not take them."""
        return self._away.is_set()

    @property
    def ailing(self) -> str:
        """What keeps the relay from bringing on what waits here, though the log may be back.

        The class of an error that nobody foresaw, ``RelayDead``, or nothing. Clients are answered
        all the same: what they send waits here, until there is no room.
        """
        return self._failure if self._thread.is_alive() else "RelayDead"

    def append(
        self,
        stream: str,
        parcels: Sequence[Parcel],
        counts: Counts,
        *,
        beside: Mapping[str, Sequence[Parcel]] | None = None,
    ) -> None:
        """Store in the log, or here while it does not take anything.

        Raises:
            BrokerError: Neither took it.
        """
        if not self._away.is_set():
            try:
                self._log.append(stream, parcels, counts, beside=beside)
            except BrokerError:
                self._away.set()
            else:
                return
        self._spool.append(stream, parcels, counts, beside=beside)

    def poll(self, stream: str, group: str, max_events: int) -> Polled:
        """Give nothing: a gateway reads nothing back."""
        return Polled(stream=stream, group=group, position=None, parcels=())

    def finish(
        self, polled: Polled, outputs: Mapping[str, Sequence[Parcel]], counts: Counts
    ) -> None:
        """Refuse: nothing was polled.

        Raises:
            BrokerError: Always.
        """
        raise BrokerError("This was polled from another broker.")

    def books(self) -> dict[Entry, int]:
        """Give the counts that were not entered in the log of all yet."""
        return dict(self._owed())

    def pending(self) -> dict[str, int]:
        """Give how many parcels wait here."""
        return {stream: n for stream, n in self._spool.pending().items() if n}

    def tend(self) -> None:
        """Nothing to do: the relay has a thread of its own."""

    def close(self) -> None:
        """Stop; what waits here goes on after the next start."""
        self._closing.set()
        self._thread.join(30.0)
        self._log.close()
        self._spool.close()

    # ------------------------------------------------------------------ the way back

    def _relay_all(self) -> None:
        if (tend := getattr(self._log, "tend", None)) is not None:
            with suppress(BrokerError):
                tend()  # a log that is away is told of now, and not when the first event comes
        while not self._closing.is_set():
            if not self._away.is_set():
                self._away.wait(_RETRY_S)
                continue
            try:
                if not self.relay():
                    # Those who append look at this without a lock: what one of them puts into the
                    # spool after our look is found at the next round.
                    self._away.clear()
                    if any(self._spool.pending().values()) or self._owed():
                        self._away.set()
                self._failure = ""
            except BrokerError:
                self._failure = ""
                self._closing.wait(_RETRY_S)
            except Exception as error:  # noqa: BLE001 - without this thread all piles up, unseen
                # Its text is the client library's: who knows what it quotes.
                self._failure = type(error).__name__
                _log.error("relay_failed", **logs.place(error))
                self._closing.wait(_RETRY_S)

    def relay(self) -> bool:
        """Bring one batch of what waits here to the log of all. Tells whether there was any.

        Raises:
            BrokerError: The log does not take it; it still waits.
        """
        dead = self._spool.poll(DEAD, _GROUP, _BATCH_EVENTS)
        if dead.parcels:
            self._log.append(DEAD, dead.parcels, {})
            self._spool.finish(dead, {}, {})
        sealed = self._spool.poll(SEALED, _GROUP, _BATCH_EVENTS)
        counts = self._owed()
        # What is sealed is counted with the parcels that go, so that the books agree all the time.
        later = counts[_SEALED] - len(sealed.parcels)
        if later > 0:
            counts[_SEALED] -= later
            counts[_IN] -= later
        counts = +counts
        if not sealed.parcels and not counts:
            return bool(dead.parcels)
        self._log.append(SEALED, sealed.parcels, counts)
        entered = {Entry(_RELAYED + e.stage, e.outcome, e.reason): n for e, n in counts.items()}
        if sealed.parcels:
            self._spool.finish(sealed, {}, entered)
        else:
            self._spool.append(SEALED, [], entered)
        return True

    def _owed(self) -> Counter[Entry]:
        """Count what is in the spool's books and not in the log's."""
        owed: Counter[Entry] = Counter()
        for entry, n in self._spool.books().items():
            if entry.stage.startswith(_RELAYED):
                owed[Entry(entry.stage.removeprefix(_RELAYED), entry.outcome, entry.reason)] -= n
            else:
                owed[entry] += n
        return +owed
