"""What every broker must do, as tests. Public: subclass `BrokerConformance` for a broker of yours.

::

    class TestSpool(BrokerConformance):
        @pytest.fixture
        def broker(self, tmp_path):
            self.open = lambda: Spool(tmp_path / "spool.db", key=b"k" * 32)
            yield from self.opened()

Needs pytest. Knows only the interface in `telemetry.brokers`.
"""

# ruff: noqa: D102, PLR2004, S101 - tests: the name is the sentence, assert is how they speak

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from telemetry.brokers import DEAD, HELD, SEALED, Broker, Entry, Polled, clean
from telemetry.errors import BrokerError
from telemetry.parcel import Parcel

__all__ = ["BrokerConformance", "make_parcel"]

PLANTED: Final = "planted-mareike.sample@example.org"
"""An invented person's address that stands in every body of `make_parcel`."""

_START = datetime(2026, 3, 1, 12, tzinfo=UTC)
_IN = Entry("edge", "items_in")
_SEALED = Entry("edge", "sealed")
_SCRUBBED = Entry("pseudonymizer", "scrubbed")


def make_parcel(number: int, *, kind: str = "event", body: bytes | None = None) -> Parcel:
    """Make an invented parcel; the same number gives the same one.

    Args:
        number: At least 0; becomes the event id and, in seconds, the time.
        kind: Parcels of one kind share their header, hence a batch.
        body: Its content; by default JSON that holds `PLANTED`.
    """
    at = _START + timedelta(seconds=number)
    return Parcel(
        event_id=f"{number:032x}",
        kind=kind,
        purpose="product-analytics",
        tenant="app",
        retention_class="12m",
        legal_basis="6(1)(f)",
        notice_version="2026-01",
        policy_digest="ab" * 32,
        occurred_at=at,
        received_at=at,
        retain_until=at + timedelta(days=365),
        capsule=bytes(range(64)),
        body=f'{{"n": {number}, "note": "{PLANTED}"}}'.encode() if body is None else body,
        remarks=b"[]",
    )


class BrokerConformance:
    """Base class of a broker's tests. A subclass gives the fixture `broker`.

    Attributes:
        open: Opens the broker under test on the same data each time. Set by the fixture, which
            then yields from `opened`.
    """

    open: Callable[[], Broker]
    _broker: Broker

    def opened(self) -> Iterator[Broker]:
        """Open the broker, lend it to a test, close whichever instance is open at its end."""
        self._broker = self.open()
        yield self._broker
        self._broker.close()

    def reopen(self) -> Broker:
        """Close and open again, as a restart does."""
        self._broker.close()
        self._broker = self.open()
        return self._broker

    @staticmethod
    def drain(broker: Broker, stream: str, group: str, max_events: int = 100) -> list[Parcel]:
        """Read a stream to its end, finishing without outputs or counts."""
        parcels: list[Parcel] = []
        while (polled := broker.poll(stream, group, max_events)).parcels:
            parcels += polled.parcels
            broker.finish(polled, {}, {})
        return parcels

    # ------------------------------------------------------------------ append and poll

    def test_it_is_a_broker(self, broker: Broker) -> None:
        assert isinstance(broker, Broker)

    def test_an_empty_stream_gives_nothing_and_does_not_wait(self, broker: Broker) -> None:
        polled = broker.poll(SEALED, "pseudonymizer", 100)
        assert (polled.stream, polled.group, list(polled.parcels)) == (SEALED, "pseudonymizer", [])

    def test_parcels_come_back_in_their_order_and_byte_for_byte(self, broker: Broker) -> None:
        every_byte = bytes(range(256)) * 3
        given = [make_parcel(n, kind=f"kind-{n // 7 % 3}") for n in range(150)]
        given += [
            make_parcel(150, body=b""),
            make_parcel(151, body=every_byte),
            replace(
                make_parcel(152), capsule=every_byte, remarks=every_byte, reason="scrub_failed"
            ),
        ]
        broker.append(SEALED, given[:1], {})
        broker.append(SEALED, given[1:140], {})
        broker.append(SEALED, given[140:], {})
        assert self.drain(broker, SEALED, "pseudonymizer") == given

    def test_a_large_parcel_passes(self, broker: Broker) -> None:
        given = [make_parcel(n, body=bytes([n]) * 200_000) for n in range(4)]
        broker.append(SEALED, given, {})
        assert self.drain(broker, SEALED, "pseudonymizer") == given

    def test_streams_are_apart(self, broker: Broker) -> None:
        for n, stream in enumerate((SEALED, DEAD, HELD, clean("heap"), clean("sentry"))):
            broker.append(stream, [make_parcel(n)], {})
        assert self.drain(broker, clean("heap"), "heap") == [make_parcel(3)]
        assert self.drain(broker, clean("sentry"), "sentry") == [make_parcel(4)]
        assert self.drain(broker, HELD, "release") == [make_parcel(2)]

    def test_a_poll_gives_no_more_than_asked_for(self, broker: Broker) -> None:
        for n in range(12):
            broker.append(SEALED, [make_parcel(n)], {})
        for most in (1, 5, 100):
            assert 1 <= len(broker.poll(SEALED, "pseudonymizer", most).parcels) <= most

    def test_one_batch_may_be_more_than_asked_for_but_not_two(self, broker: Broker) -> None:
        broker.append(SEALED, [make_parcel(n) for n in range(40)], {})
        broker.append(SEALED, [make_parcel(n) for n in range(40, 80)], {})
        assert 1 <= len(broker.poll(SEALED, "pseudonymizer", 3).parcels) <= 40

    # ------------------------------------------------------------------ finish

    def test_what_is_not_finished_is_polled_again(self, broker: Broker) -> None:
        broker.append(SEALED, [make_parcel(n) for n in range(5)], {})
        first = broker.poll(SEALED, "pseudonymizer", 100)
        second = broker.poll(SEALED, "pseudonymizer", 100)
        assert list(first.parcels) == list(second.parcels) != []

    def test_finish_moves_behind_what_was_polled(self, broker: Broker) -> None:
        for n in range(4):
            broker.append(SEALED, [make_parcel(n)], {})
        polled = broker.poll(SEALED, "pseudonymizer", 1)
        broker.finish(polled, {}, {})
        rest = self.drain(broker, SEALED, "pseudonymizer")
        assert [*polled.parcels, *rest] == [make_parcel(n) for n in range(4)]

    def test_finish_makes_outputs_counts_and_position_true_together(self, broker: Broker) -> None:
        broker.append(SEALED, [make_parcel(n) for n in range(3)], {_IN: 3, _SEALED: 3})
        polled = broker.poll(SEALED, "pseudonymizer", 100)
        outputs = {clean("heap"): polled.parcels, clean("sentry"): polled.parcels[:1]}
        broker.finish(polled, outputs, {_SCRUBBED: 3})
        broker = self.reopen()
        assert broker.books() == {_IN: 3, _SEALED: 3, _SCRUBBED: 3}
        assert list(broker.poll(SEALED, "pseudonymizer", 100).parcels) == []
        assert self.drain(broker, clean("heap"), "heap") == list(polled.parcels)
        assert self.drain(broker, clean("sentry"), "sentry") == list(polled.parcels[:1])

    def test_a_poll_is_finished_once(self, broker: Broker) -> None:
        broker.append(SEALED, [make_parcel(0)], {})
        polled = broker.poll(SEALED, "pseudonymizer", 100)
        broker.finish(polled, {}, {_SCRUBBED: 1})
        with pytest.raises(BrokerError):
            broker.finish(polled, {clean("heap"): polled.parcels}, {_SCRUBBED: 1})
        assert broker.books() == {_SCRUBBED: 1}
        assert self.drain(broker, clean("heap"), "heap") == []

    def test_a_foreign_position_is_refused(self, broker: Broker) -> None:
        polled = Polled(stream=SEALED, group="pseudonymizer", position=object(), parcels=[])
        with pytest.raises(BrokerError):
            broker.finish(polled, {}, {_SCRUBBED: 1})
        assert broker.books() == {}

    def test_groups_do_not_disturb_each_other(self, broker: Broker) -> None:
        given = [make_parcel(n) for n in range(10)]
        assert not broker.poll(SEALED, "one", 10).parcels
        assert not broker.poll(SEALED, "two", 10).parcels
        for parcel in given:
            broker.append(SEALED, [parcel], {})
        assert self.drain(broker, SEALED, "one", 3) == given
        broker = self.reopen()
        assert self.drain(broker, SEALED, "one", 3) == []
        assert self.drain(broker, SEALED, "two", 4) == given

    # ------------------------------------------------------------------ books

    def test_counts_without_parcels_are_kept(self, broker: Broker) -> None:
        dropped = Entry("edge", "dropped", "no_consent")
        broker.append(SEALED, [], {_IN: 2, dropped: 2})
        assert self.reopen().books() == {_IN: 2, dropped: 2}

    def test_books_add_up_over_restarts(self, broker: Broker) -> None:
        expected: Counter[Entry] = Counter()
        for n in range(6):
            counts = {_IN: n + 1, _SEALED: n, Entry("edge", "dropped", f"reason_{n % 2}"): 1}
            broker.append(SEALED, [make_parcel(n)], counts)
            expected.update(counts)
            polled = broker.poll(SEALED, "pseudonymizer", 100)
            broker.finish(polled, {clean("heap"): polled.parcels}, {_SCRUBBED: 1})
            expected[_SCRUBBED] += 1
            if n % 2:
                broker = self.reopen()
        # An entry of zero and no entry say the same.
        assert +Counter(broker.books()) == +expected

    def test_pending_counts_parcels_that_are_not_finished(self, broker: Broker) -> None:
        def pending() -> dict[str, int]:
            return {stream: n for stream, n in broker.pending().items() if n}

        assert pending() == {}
        broker.append(SEALED, [make_parcel(n) for n in range(70)], {})
        polled = broker.poll(SEALED, "pseudonymizer", 64)
        assert pending() == {SEALED: 70}
        broker.finish(polled, {clean("heap"): [make_parcel(0)], DEAD: [make_parcel(1)]}, {})
        left = {SEALED: 70 - len(polled.parcels), clean("heap"): 1, DEAD: 1}
        assert pending() == {stream: n for stream, n in left.items() if n}
        broker = self.reopen()
        self.drain(broker, SEALED, "pseudonymizer")
        self.drain(broker, clean("heap"), "heap")
        assert pending() == {DEAD: 1}

    # ------------------------------------------------------------------ restart and silence

    def test_what_was_appended_survives_a_restart(self, broker: Broker) -> None:
        given = [make_parcel(n) for n in range(130)]
        broker.append(SEALED, given, {_SEALED: 130})
        broker = self.reopen()
        assert broker.books() == {_SEALED: 130}
        assert self.drain(broker, SEALED, "pseudonymizer") == given

    def test_a_closed_broker_refuses(self, broker: Broker) -> None:
        broker.append(SEALED, [make_parcel(0)], {})
        broker.close()
        broker.close()
        for call in _calls(broker):
            with pytest.raises(BrokerError):
                call()

    def test_no_repr_shows_what_is_stored(self, broker: Broker) -> None:
        broker.append(SEALED, [make_parcel(0)], {})
        polled = broker.poll(SEALED, "pseudonymizer", 10)
        text = f"{broker!r} {polled!r} {polled.position!r} {polled.parcels!r}"
        assert PLANTED not in text
        assert "note" not in text


def _calls(broker: Broker) -> Sequence[Callable[[], object]]:
    return (
        lambda: broker.append(SEALED, [make_parcel(1)], {}),
        lambda: broker.poll(SEALED, "pseudonymizer", 10),
        broker.books,
        broker.pending,
    )
