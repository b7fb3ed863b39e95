"""Heap: shape, bulk requests, limits, deletion."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubbers.model import Scrubbed
from telemetry.errors import ConfigError, EventError, SinkError
from telemetry.sinks import Delivered, Delivery, NotErasable, Refused, Retry
from telemetry.sinks.heap import HeapSink
from telemetry.testing import HeapStandIn, SinkConformance

EVENT = {
    "event": "project saved",
    "page": "/projects/<id>",
    "ip": "203.0.113.0/24",
    "user_agent": "Chrome 128; Windows; desktop",
    "referrer": "https://www.example.org/",
    "properties": {"plan": "pro", "seats": 12, "trial": False, "ratio": 0.5},
}


class Suite(SinkConformance):
    def stand_in(self) -> HeapStandIn:
        return HeapStandIn()

    def sink(self, stand_in: HeapStandIn) -> HeapSink:
        return HeapSink(url=stand_in.url, app_id="11", total_s=0.5)


class TestEvents(Suite):
    kind = "analytics_event"

    def event(self, number: int) -> Scrubbed:
        return Scrubbed(json.dumps(EVENT | {"event": f"saved {number}"}).encode())

    def stored(self, stand_in: HeapStandIn) -> Sequence[str]:
        return [event["idempotency_key"] for event in stand_in.events]

    def test_an_event_takes_the_form_that_heap_documents(self) -> None:
        sink = HeapSink(url="https://heapanalytics.com", app_id="11")
        body = json.loads(sink.shape(Scrubbed(json.dumps(EVENT).encode()), self.shaping(3)))
        assert body == {
            "identity": "ps1_own_u_03conformance",
            "event": "project saved",
            "timestamp": "2026-03-31T09:15:03.000+00:00",
            "idempotency_key": self.shaping(3).delivery_id,
            "session_id": "ps1_own_s_03conformance",
            "properties": {
                "plan": "pro",
                "seats": 12,
                "trial": "false",
                "ratio": 0.5,
                "page": "/projects/<id>",
                "referrer": "https://www.example.org/",
                "ip_prefix": "203.0.113.0/24",
                "browser": "Chrome 128",
                "os": "Windows",
                "device": "desktop",
                "organization": "ps1_own_o_conformance",
                "retain_until": "2027-03-31",
                "retention_class": "12m",
                "policy": "c0ffee123456",
            },
        }

    def test_no_property_of_an_application_stands_in_the_place_of_a_tag(self) -> None:
        sink = HeapSink(url="https://heapanalytics.com", app_id="11")
        forged = {"event": "x", "properties": {"retain_until": "2099-01-01", "policy": "none"}}
        body = sink.shape(Scrubbed(json.dumps(forged).encode()), self.shaping())
        assert json.loads(body)["properties"]["retain_until"] == "2027-03-31"
        assert json.loads(body)["properties"]["policy"] == "c0ffee123456"

    def test_without_an_account_there_is_no_event(self) -> None:
        sink = HeapSink(url="https://heapanalytics.com", app_id="11")
        with pytest.raises(EventError) as caught:
            sink.shape(self.event(1), replace(self.shaping(), tokens={}))
        assert caught.value.reason == "no_identity"

    @given(
        properties=st.dictionaries(
            st.text(min_size=1, max_size=1100),
            st.none() | st.booleans() | st.integers() | st.text(max_size=1200),
            max_size=6,
        ),
        name=st.text(max_size=1100),
    )
    def test_whatever_is_shaped_is_accepted(self, properties: dict[str, object], name: str) -> None:
        sink = HeapSink(url="https://heapanalytics.com", app_id="11")
        raw = json.dumps({"event": name, "properties": properties}).encode()
        try:
            body = sink.shape(Scrubbed(raw), self.shaping())
        except EventError as error:
            assert error.reason == "unshapeable"  # noqa: PT017
            return
        there = HeapStandIn()
        from telemetry.testing.stand_in import Request

        reply = there.answer(
            Request(
                method="POST",
                target="/api/track",
                headers=(("Content-Type", "application/json"),),
                raw=b"",
                body=b'{"app_id":"11","events":[%s]}' % body,
                at=0.0,
            )
        )
        assert (reply.status, there.violations) == (200, [])

    @pytest.mark.parametrize(
        ("kind", "longest"), [("analytics_event", 1023), ("user_properties", 255)]
    )
    def test_a_text_is_cut_to_what_heap_keeps(self, kind: str, longest: int) -> None:
        sink = HeapSink(url="https://heapanalytics.com", app_id="11")
        raw = json.dumps({"event": "e", "properties": {"note": "ä" * 2000}}).encode()
        body = json.loads(sink.shape(Scrubbed(raw), replace(self.shaping(), kind=kind)))
        assert body["properties"]["note"] == "ä" * longest

    def test_one_bad_event_splits_a_request_and_is_refused_alone(self) -> None:
        with self.stand_in() as heap:
            good = self.deliveries(heap, 2)
            bad = replace(good[0], body=b'{"identity":"u","event":""}')
            assert list(self.exchange(heap, [*good, bad])) == [Retry(split=True)] * 3
            assert list(self.exchange(heap, [bad])) == [Refused(reason="rejected")]
            assert heap.events == []

    def test_too_much_at_once_is_split_and_too_large_alone_is_refused(self) -> None:
        with self.stand_in() as heap:
            heap.fail(status=413)
            deliveries = self.deliveries(heap, 2)
            assert list(self.exchange(heap, deliveries)) == [Retry(split=True)] * 2
            assert list(self.exchange(heap, deliveries[:1])) == [Refused(reason="too_large")]

    def test_a_200_that_says_error_is_no_delivery(self) -> None:
        with self.stand_in() as heap:
            heap.fail(status=200, body=b'{"err":"bad"}')
            assert list(self.exchange(heap, self.deliveries(heap, 1))) == [
                Refused(reason="rejected")
            ]

    def test_the_minute_limit_of_an_identity_is_a_retry(self) -> None:
        with self.stand_in() as heap:
            one = self.deliveries(heap, 1)
            for _ in range(2):
                assert set(self.exchange(heap, one * 500)) == {Delivered()}
            (outcome,) = self.exchange(heap, one)
            assert isinstance(outcome, Retry)
            assert heap.violations == []
            assert len(heap.events) == 1
            assert heap.repeats == 999

    def test_the_sink_names_the_identity_that_heap_counts(self) -> None:
        with self.stand_in() as heap:
            (one,) = self.deliveries(heap, 1)
            assert self.sink(heap).identity(one) == "ps1_own_u_00conformance"
            assert self.sink(heap).identity(replace(one, body=b"\xff")) == ""


class TestUserProperties(Suite):
    kind = "user_properties"

    def event(self, number: int) -> Scrubbed:
        return Scrubbed(json.dumps({"properties": {"plan": f"p{number}", "active": True}}).encode())

    def stored(self, stand_in: HeapStandIn) -> Sequence[str]:
        # No key exists for updates: the identity stands for the delivery (7 samples, 7 people).
        by_identity = {self.shaping(n).tokens["account"]: n for n in range(7)}
        return [self.shaping(by_identity[user]).delivery_id for user in stand_in.users]

    @pytest.mark.parametrize("name", ["id", "ID", "email"])
    def test_names_that_heap_keeps_for_itself_are_refused(self, name: str) -> None:
        sink = HeapSink(url="https://heapanalytics.com", app_id="11")
        raw = json.dumps({"properties": {name: "x"}}).encode()
        with pytest.raises(EventError) as caught:
            sink.shape(Scrubbed(raw), self.shaping())
        assert (caught.value.reason, caught.value.path) == ("reserved_name", "properties")

    def test_events_and_updates_go_out_together_and_answer_apart(self) -> None:
        with self.stand_in() as heap:
            events = TestEvents().deliveries(heap, 2)
            users = self.deliveries(heap, 2)
            heap.fail(status=503, where=lambda request: request.path == "/api/add_user_properties")
            outcomes = self.exchange(heap, [users[0], events[0], users[1], events[1]])
            assert list(outcomes) == [Retry(), Delivered(), Retry(), Delivered()]


class TestDeletion:
    async def test_a_deletion_is_asked_and_its_receipt_kept(self) -> None:
        async with HeapStandIn(api_key="k" * 8) as heap:
            sink = HeapSink(url=heap.url, app_id="11", api_key="k" * 8)
            heap.events = [{"identity": "gone"}, {"identity": "stays"}]
            heap.completing = False
            pending = await sink.erase({"gone"})
            assert not pending.complete
            heap.completing = True
            done = await sink.erasure(pending.reference)
            await sink.close()
            assert (done.complete, done.reference) == (True, pending.reference)
            assert heap.events == [{"identity": "stays"}]
            assert heap.violations == []

    async def test_more_than_ten_thousand_tokens_are_several_requests(self) -> None:
        async with HeapStandIn() as heap:
            sink = HeapSink(url=heap.url, app_id="11", api_key="k")
            receipt = await sink.erase({f"t{number}" for number in range(10_001)})
            await sink.close()
            assert receipt.complete
            assert sorted(len(gone) for gone in heap.deletions.values()) == [1, 10_000]

    async def test_without_a_key_nothing_can_be_erased(self) -> None:
        with pytest.raises(NotErasable):
            await HeapSink(url="https://heapanalytics.com", app_id="11").erase({"t"})

    @pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"err":"no"}', b'{"access_token":7}'])
    async def test_an_odd_answer_is_an_error_that_repeats_nothing(self, body: bytes) -> None:
        async with HeapStandIn() as heap:
            heap.fail(status=200, body=body)
            sink = HeapSink(url=heap.url, app_id="11", api_key="top-secret")
            with pytest.raises(SinkError) as caught:
                await sink.erase({"someone"})
            await sink.close()
            assert "someone" not in str(caught.value)
            assert "top-secret" not in str(caught.value)

    async def test_a_wrong_key_is_an_error(self) -> None:
        async with HeapStandIn(api_key="right") as heap:
            sink = HeapSink(url=heap.url, app_id="11", api_key="wrong")
            with pytest.raises(SinkError):
                await sink.erase({"someone"})
            await sink.close()


@pytest.mark.parametrize(
    "url",
    ["", "heapanalytics.com", "ftp://h.example", "http://h.example", "https://h.example/?k=v"],
)
def test_an_address_that_is_unsafe_or_no_url_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HeapSink(url=url, app_id="11")
    assert not url or url not in str(caught.value)


def test_a_delivery_does_not_show_its_body() -> None:
    with HeapStandIn() as heap:
        (one,) = TestEvents().deliveries(heap, 1)
        assert isinstance(one, Delivery)
        assert "project" not in repr(one)
        assert "ps1" not in repr(one)


def test_a_shared_session_is_left_to_its_owner() -> None:
    async def main() -> None:
        import aiohttp

        async with HeapStandIn() as heap, aiohttp.ClientSession() as session:
            sink = HeapSink(url=heap.url, app_id="11", session=session)
            deliveries = TestEvents().deliveries(heap, 1)
            assert list(await sink.send(deliveries)) == [Delivered()]
            await sink.close()
            assert not session.closed

    asyncio.run(main())
