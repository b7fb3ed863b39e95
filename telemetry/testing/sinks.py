# ruff: noqa: S101, D102, PLR2004 - a test class: it asserts, its names are sentences
"""`SinkConformance`: what every sink must do, as a test class to inherit from.

::

    class TestHeapSink(SinkConformance):
        kind = "analytics_event"

        def stand_in(self): return HeapStandIn()
        def sink(self, stand_in): return HeapSink(url=stand_in.url, app_id="11", total_s=0.5)
        def event(self, number): return Scrubbed(b'{"event":"saved"}')
        def stored(self, stand_in): return [one["idempotency_key"] for one in stand_in.events]
"""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, date, datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import pytest

from scrubbers.model import Remark, Scrubbed
from telemetry.sinks import Delivered, Delivery, Outcome, Refused, Retry, Shaping, Sink, Tags
from telemetry.testing.stand_in import StandIn

__all__ = ["SinkConformance"]

_TOKEN = re.compile(rb"ps[0-9]+_[a-z0-9_]+")
_GARBAGE = (b"", b"\xff\xfe\x00", b"[" * 100_000, b'{"err":', b"<html>", b"null", b"1e999")
_REASON = re.compile(r"[a-z][a-z_]{0,39}")


class SinkConformance(ABC):
    """Tests for one sink against its stand-in.

    `sink` should set a total deadline of about half a second: some tests wait for it.
    """

    kind: str
    """Kind of the sample events."""

    tagged: bool = True
    """Whether events of this kind carry their tags (Sentry's sessions have no place for them)."""

    deadline_s: float = 5.0
    """Longest time for one `send` to a recipient that does not answer in time."""

    @abstractmethod
    def stand_in(self) -> StandIn:
        """Make the recipient's stand-in, not yet started."""

    @abstractmethod
    def sink(self, stand_in: Any) -> Sink:
        """Make the sink under test, pointed at a running stand-in."""

    @abstractmethod
    def event(self, number: int) -> Scrubbed:
        """Make a scrubbed event; different numbers may give different ones."""

    @abstractmethod
    def stored(self, stand_in: Any) -> Sequence[str]:
        """Give the delivery ids of what the stand-in stored, repeats left out if it drops them."""

    # Material

    def shaping(self, number: int = 0) -> Shaping:
        """Give everything besides the event for the sample of this number."""
        return Shaping(
            kind=self.kind,
            delivery_id=sha256(f"{self.kind} {number}".encode()).hexdigest()[:32],
            occurred_at=datetime(2026, 3, 31, 9, 15, number % 60, tzinfo=UTC),
            tokens=MappingProxyType(
                {
                    "account": f"ps1_own_u_{number % 7:02d}conformance",
                    "organization": "ps1_own_o_conformance",
                    "session": f"ps1_own_s_{number % 7:02d}conformance",
                }
            ),
            remarks=(Remark(("user", "ip_address"), "truncate_ip", "reduce"),),
            tags=Tags(
                retain_until=date(2027, 3, 31),
                retention_class="12m",
                policy="c0ffee123456",
                notice="2026-03",
            ),
        )

    def deliveries(self, stand_in: StandIn, count: int, start: int = 0) -> list[Delivery]:
        """Shape sample events."""
        sink = self.sink(stand_in)
        return [
            Delivery(
                delivery_id=self.shaping(number).delivery_id,
                kind=self.kind,
                body=sink.shape(self.event(number), self.shaping(number)),
                occurred_at=self.shaping(number).occurred_at,
            )
            for number in range(start, start + count)
        ]

    def exchange(self, stand_in: StandIn, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Send once with a sink of its own."""

        async def main() -> Sequence[Outcome]:
            sink = self.sink(stand_in)
            try:
                return await sink.send(deliveries)
            finally:
                await sink.close()

        return asyncio.run(main())

    # Shape

    def test_shape_gives_the_same_bytes_for_the_same_event(self) -> None:
        with self.stand_in() as there:
            first, second = self.sink(there), self.sink(there)
            event, shaping = self.event(1), self.shaping(1)
            body = first.shape(event, shaping)
            assert body == first.shape(event, shaping) == second.shape(event, shaping)
            assert event == self.event(1)
            assert there.requests == []

    def test_shape_carries_the_tags(self) -> None:
        with self.stand_in() as there:
            body = self.sink(there).shape(self.event(1), self.shaping(1))
            if self.tagged:
                for tag in (b"2027-03-31", b"12m", b"c0ffee123456"):
                    assert tag in body

    def test_shape_holds_no_token_but_those_it_was_given(self) -> None:
        with self.stand_in() as there:
            shaping = self.shaping(1)
            body = self.sink(there).shape(self.event(1), shaping)
            given = {token.encode() for token in shaping.tokens.values()}
            assert set(_TOKEN.findall(body)) <= given

    # Send

    def test_outcomes_come_in_order_one_for_each_delivery(self) -> None:
        with self.stand_in() as there:
            deliveries = self.deliveries(there, 7)
            outcomes = self.exchange(there, deliveries)
            assert list(outcomes) == [Delivered()] * 7
            assert sorted(self.stored(there)) == sorted(
                delivery.delivery_id for delivery in deliveries
            )
            assert there.violations == []

    def test_nothing_to_send_is_no_request(self) -> None:
        with self.stand_in() as there:
            assert list(self.exchange(there, [])) == []
            assert there.requests == []

    def test_a_repeat_carries_the_same_id_and_is_stored_once(self) -> None:
        with self.stand_in() as there:
            deliveries = self.deliveries(there, 3)
            there.drop(count=len(deliveries), stored=True)
            assert not any(isinstance(one, Delivered) for one in self.exchange(there, deliveries))
            there.heal()
            assert list(self.exchange(there, deliveries)) == [Delivered()] * 3
            assert len(self.stored(there)) == len(set(self.stored(there))) == 3

    @pytest.mark.parametrize(
        "status", [200, 201, 204, 207, 400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 415, 418]
    )
    def test_no_answer_below_500_raises_or_is_misread(self, status: int) -> None:
        with self.stand_in() as there:
            single = self.deliveries(there, 1)
            for garbage in _GARBAGE:
                there.heal()
                there.fail(status=status, body=b"" if status == 204 else garbage)
                (outcome,) = self.exchange(there, single)
                if status in {200, 201, 204}:
                    assert outcome == Delivered()
                elif isinstance(outcome, Refused):
                    assert _REASON.fullmatch(outcome.reason)
                else:
                    assert isinstance(outcome, Retry)
                if status in {401, 403, 404, 410}:
                    assert isinstance(outcome, Retry)
                    assert outcome.blocked

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
    @pytest.mark.parametrize(
        "header",
        [None, "2", "1000000000", "-7", "NaN", "inf", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"],
    )
    def test_a_recipient_in_trouble_is_asked_again_within_sane_bounds(
        self, status: int, header: str | None
    ) -> None:
        with self.stand_in() as there:
            there.fail(status=status, headers={} if header is None else {"Retry-After": header})
            (outcome,) = self.exchange(there, self.deliveries(there, 1))
            assert isinstance(outcome, Retry)
            assert not outcome.blocked
            assert outcome.after_s == 0 or 0.9 <= outcome.after_s <= 3600
            if header == "2":
                assert 1.5 < outcome.after_s <= 2

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_never_followed(self, status: int) -> None:
        with self.stand_in() as there, self.stand_in() as elsewhere:
            there.fail(status=status, headers={"Location": f"{elsewhere.url}/api/track"})
            (outcome,) = self.exchange(there, self.deliveries(there, 1))
            assert isinstance(outcome, Retry)
            assert outcome.blocked
            assert elsewhere.requests == []

    def test_a_reset_connection_is_a_retry(self) -> None:
        with self.stand_in() as there:
            there.drop()
            outcomes = self.exchange(there, self.deliveries(there, 2))
            assert all(isinstance(one, Retry) and not one.blocked for one in outcomes)

    def test_a_closed_port_is_a_retry(self) -> None:
        with self.stand_in() as there:
            deliveries = self.deliveries(there, 2)
        outcomes = self.exchange(there, deliveries)
        assert all(isinstance(one, Retry) and not one.blocked for one in outcomes)

    def test_a_silent_recipient_costs_one_deadline(self) -> None:
        with self.stand_in() as there:
            deliveries = self.deliveries(there, 20)
            there.slow(30.0)
            begun = time.monotonic()
            outcomes = self.exchange(there, deliveries)
            assert time.monotonic() - begun < self.deadline_s
            assert all(isinstance(one, Retry) for one in outcomes)

    def test_an_answer_that_trickles_does_not_outlast_the_deadline(self) -> None:
        with self.stand_in() as there:
            there.fail(status=503, body=b"x" * 1000, byte_s=0.05)
            begun = time.monotonic()
            (outcome,) = self.exchange(there, self.deliveries(there, 1))
            assert time.monotonic() - begun < self.deadline_s
            assert isinstance(outcome, Retry)

    def test_an_answer_of_a_gigabyte_is_not_read(self) -> None:
        with self.stand_in() as there:
            there.fail(status=200, size=2**30)
            begun = time.monotonic()
            (outcome,) = self.exchange(there, self.deliveries(there, 1))
            assert time.monotonic() - begun < self.deadline_s
            assert outcome == Delivered()
            assert there.answered_bytes < 2**25  # what fits into buffers on the way
