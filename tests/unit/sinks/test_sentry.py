"""Sentry: shape, remarks, envelopes, rate limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubbers.model import Remark, Scrubbed
from telemetry.errors import ConfigError, EventError
from telemetry.sinks import Delivered, Delivery, NotErasable, Refused, Retry, Shaping
from telemetry.sinks.sentry import SentrySink, parse_dsn, rate_limits
from telemetry.sinks.wire import Answer
from telemetry.testing import SentryStandIn, SinkConformance

DSN = "https://" + "ab" * 16 + "@sentry.example/7"

EVENT: dict[str, Any] = {
    "platform": "python",
    "level": "error",
    "logentry": {"message": "cannot mail <email:1> at all"},
    "exception": {"values": [{"type": "KeyError", "value": "<email>"}]},
    "user": {"ip_address": "203.0.113.0/24"},
    "request": {
        "method": "POST",
        "url": "https://app.example.com/projects/<id>",
        "headers": {"User-Agent": "Firefox 140; Linux; desktop", "Accept": "*/*"},
        "env": {"REMOTE_ADDR": "203.0.113.0/24", "SERVER_NAME": "app"},
    },
    "tags": {"queue name": "mail", "x" * 40: "a\nb"},
    "sdk": {"name": "sentry.python", "version": "2.75.0", "settings": {"infer_ip": "auto"}},
    "contexts": {"runtime": {"name": "CPython"}},
    "release": "web@1.2.3",
    "timestamp": "2001-01-01T00:00:00Z",
    "event_id": "f" * 32,
}


class Suite(SinkConformance):
    def stand_in(self) -> SentryStandIn:
        return SentryStandIn()

    def sink(self, stand_in: SentryStandIn) -> SentrySink:
        return SentrySink(dsn=stand_in.dsn, total_s=0.5)


class TestErrorEvents(Suite):
    kind = "error_event"

    def event(self, number: int) -> Scrubbed:
        return Scrubbed(json.dumps(EVENT | {"release": f"web@{number}"}).encode())

    def stored(self, stand_in: SentryStandIn) -> Sequence[str]:
        return [event["event_id"] for event in stand_in.events]

    def shaped(self, **changes: Any) -> dict[str, Any]:
        event = changes.pop("event", EVENT)
        shaping = replace(self.shaping(3), **changes)
        body = SentrySink(dsn=DSN).shape(Scrubbed(json.dumps(event).encode()), shaping)
        return dict(json.loads(body))

    def test_identity_promise_and_time_stand_where_sentry_looks(self) -> None:
        event = self.shaped()
        assert event["event_id"] == self.shaping(3).delivery_id
        assert event["timestamp"] == "2026-03-31T09:15:03.000Z"
        assert event["user"] == {"id": "ps1_own_u_03conformance", "ip_address": None}
        assert event["tags"] == {
            "queue-name": "mail",
            "x" * 32: "a b",
            "ip_prefix": "203.0.113.0/24",
            "organization": "ps1_own_o_conformance",
            "session": "ps1_own_s_03conformance",
            "retain_until": "2027-03-31",
            "retention_class": "12m",
            "policy": "c0ffee123456",
        }
        assert event["sdk"] == {
            "name": "sentry.python",
            "version": "2.75.0",
            "settings": {"infer_ip": "never"},
        }
        assert event["request"]["headers"] == {"Accept": "*/*"}
        assert event["request"]["env"] == {"SERVER_NAME": "app"}
        assert event["contexts"]["browser"] == {"name": "Firefox", "version": "140"}
        assert event["contexts"]["client_os"] == {"name": "Linux"}
        assert event["exception"] == EVENT["exception"]

    def test_sentry_keeps_no_address_of_what_we_send(self) -> None:
        with self.stand_in() as sentry:
            javascript = Scrubbed(json.dumps(EVENT | {"platform": "javascript"}).encode())
            (one,) = self.deliveries(sentry, 1)
            body = self.sink(sentry).shape(javascript, self.shaping(0))
            self.exchange(sentry, [replace(one, body=body)])
            assert len(sentry.events) == 1
            assert sentry.addresses() == set()

    def test_without_an_account_no_user_id_is_made_up(self) -> None:
        assert self.shaped(tokens={})["user"] == {"ip_address": None}

    def test_remarks_show_as_sentry_shows_them(self) -> None:
        event = self.shaped(
            remarks=[
                Remark(("logentry", "message"), "email", "replace", 12, 21),
                Remark(("exception", "values", 0, "value"), "email", "replace", 0, 7),
                Remark(("request", "data"), "strip", "remove"),
                Remark(("user", "ip_address"), "truncate_ip", "reduce"),
                Remark(("user", "email"), "strip", "remove"),
                Remark(("request", "headers", "User-Agent"), "reduce_user_agent", "reduce"),
                Remark(("tags", "queue name"), "ip", "replace", 0, 9),
                Remark(("extra", "<key>"), "undeclared", "remove"),
            ]
        )
        assert event["_meta"] == {
            "logentry": {"message": {"": {"rem": [["!config", "s", 12, 21]]}}},
            "exception": {"values": {"0": {"value": {"": {"rem": [["!config", "s", 0, 7]]}}}}},
            "request": {"data": {"": {"rem": [["!config", "x"]]}}},
            "user": {"email": {"": {"rem": [["!config", "x"]]}}},
            "tags": {
                "ip_prefix": {"": {"rem": [["!config", "s"]]}},
                # The range reached beyond what stands there now: only the fact is told.
                "queue-name": {"": {"rem": [["!config", "s"]]}},
            },
            "contexts": {"browser": {"name": {"": {"rem": [["!config", "s"]]}}}},
            # An entry whose name is not shown: the nearest part of its path says so.
            "extra": {"": {"rem": [["!config", "x"]]}},
        }
        assert event["request"]["data"] is None
        assert event["user"]["email"] is None
        privacy = event["contexts"]["privacy"]
        assert privacy["policy"] == "c0ffee123456"
        assert privacy["notice"] == "2026-03"
        assert privacy["counts"] == {
            "email": 2, "ip": 1, "reduce_user_agent": 1, "strip": 2, "truncate_ip": 1,
            "undeclared": 1,
        }  # fmt: skip
        assert privacy["changes"][2] == "request.data: strip remove"

    def test_at_most_twenty_changes_are_listed(self) -> None:
        many = [Remark(("extra", f"k{number}"), "strip", "remove") for number in range(33)]
        changes = self.shaped(remarks=many)["contexts"]["privacy"]["changes"]
        assert len(changes) == 21
        assert changes[-1] == "and 13 more"

    @settings(max_examples=150)
    @given(
        event=st.fixed_dictionaries(
            {},
            optional={
                "user": st.none()
                | st.dictionaries(st.sampled_from(["ip_address", "x"]), st.text()),
                "tags": st.dictionaries(st.text(max_size=50), st.text(max_size=250) | st.integers())
                | st.lists(st.lists(st.text(max_size=50), min_size=2, max_size=2)),
                "request": st.fixed_dictionaries(
                    {},
                    optional={"headers": st.dictionaries(st.text(), st.text()), "url": st.text()},
                ),
                "contexts": st.dictionaries(st.text(), st.dictionaries(st.text(), st.text())),
                "user_agent": st.text(),
                "sdk": st.none() | st.dictionaries(st.text(), st.text()),
                "platform": st.none() | st.text(max_size=9),
            },
        ),
        paths=st.lists(
            st.lists(
                st.sampled_from(["user", "ip_address", "tags", "request", "headers", "url", "a"])
                | st.integers(0, 3),
                max_size=4,
            ).map(tuple),
            max_size=8,
        ),
    )
    def test_whatever_is_shaped_breaks_no_rule_of_sentry(
        self, event: dict[str, Any], paths: list[tuple[str | int, ...]]
    ) -> None:
        remarks = [Remark(path, "email", "replace", 0, 3) for path in paths]
        shaping = replace(self.shaping(1), remarks=remarks)
        there = SentryStandIn()
        there.port = 1  # never listens: its rules are asked directly
        sink = SentrySink(dsn=there.dsn, encoding="identity")
        body = sink.shape(Scrubbed(json.dumps(event).encode()), shaping)
        one = Delivery(
            delivery_id=shaping.delivery_id,
            kind=self.kind,
            body=body,
            occurred_at=shaping.occurred_at,
        )
        from telemetry.testing.stand_in import Request

        reply = there.answer(
            Request(
                method="POST",
                target="/api/1/envelope/",
                headers=(
                    ("X-Sentry-Auth", "Sentry sentry_key=" + "5e17" * 8 + ", sentry_version=7"),
                ),
                raw=b"",
                body=sink._envelope([one]),
                at=0.0,
            )
        )
        assert reply.status == 200
        assert there.violations == []
        assert there.addresses() == set()

    def test_a_bad_event_is_refused_and_its_neighbours_arrive(self) -> None:
        with self.stand_in() as sentry:
            deliveries = self.deliveries(sentry, 3)
            deliveries[1] = replace(deliveries[1], body=b"{")
            outcomes = self.exchange(sentry, deliveries)
            assert list(outcomes) == [Delivered(), Refused(reason="rejected"), Delivered()]

    def test_an_event_over_a_mebibyte_is_refused(self) -> None:
        with self.stand_in() as sentry:
            (one,) = self.deliveries(sentry, 1)
            huge = replace(one, body=b'{"x":"' + b"y" * 2**20 + b'"}')
            assert list(self.exchange(sentry, [huge])) == [Refused(reason="too_large")]

    @pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity"])
    def test_every_encoding_is_read_there(self, encoding: Any) -> None:
        async def main() -> None:
            async with self.stand_in() as sentry:
                sink = SentrySink(dsn=sentry.dsn, encoding=encoding)
                assert list(await sink.send(self.deliveries(sentry, 2))) == [Delivered()] * 2
                await sink.close()
                assert len(sentry.events) == 2
                assert sentry.violations == []

        asyncio.run(main())

    def test_one_category_is_limited_and_the_others_go_on(self) -> None:
        async def main() -> None:
            async with self.stand_in() as sentry:
                sentry.limit(["error"], 30)
                sink = self.sink(sentry)
                errors = self.deliveries(sentry, 2)
                sessions = TestSessions().deliveries(sentry, 2)
                outcomes = await sink.send([errors[0], sessions[0], errors[1], sessions[1]])
                assert [type(one) for one in outcomes] == [Retry, Delivered, Retry, Delivered]
                assert isinstance(outcomes[0], Retry)
                assert outcomes[0].scope == sink.scope(errors[0]) == "error"
                assert 25 < outcomes[0].after_s <= 30
                asked = len(sentry.requests)
                await sink.send(errors)
                assert len(sentry.requests) == asked  # the limit is remembered, nobody is asked
                await sink.close()

        asyncio.run(main())

    def test_a_limit_on_a_200_holds_for_what_comes_next(self) -> None:
        now = 100.0

        async def main() -> None:
            nonlocal now
            async with self.stand_in() as sentry:
                sentry.announce({"X-Sentry-Rate-Limits": "60:error:key"}, count=1)
                sink = SentrySink(dsn=sentry.dsn, monotonic=lambda: now)
                (one,) = self.deliveries(sentry, 1)
                assert list(await sink.send([one])) == [Delivered()]
                assert list(await sink.send([one])) == [Retry(after_s=60.0, scope="error")]
                now = 161.0
                assert list(await sink.send([one])) == [Delivered()]
                await sink.close()

        asyncio.run(main())

    def test_429_without_headers_means_a_minute_for_everything(self) -> None:
        async def main() -> None:
            async with self.stand_in() as sentry:
                sentry.fail(status=429, count=1)
                sink = SentrySink(dsn=sentry.dsn, monotonic=lambda: 5.0)
                (one,) = self.deliveries(sentry, 1)
                assert list(await sink.send([one])) == [Retry(after_s=60.0)]
                (session,) = TestSessions().deliveries(sentry, 1)
                assert list(await sink.send([session])) == [Retry(after_s=60.0)]
                await sink.close()

        asyncio.run(main())


class TestSessions(Suite):
    kind = "session"
    tagged = False

    def event(self, number: int) -> Scrubbed:
        session = {
            "sid": f"{number:032x}",
            "did": "raw-id-that-must-not-leave",
            "started": "2026-03-31T09:00:00Z",
            "status": "ok",
            "errors": 0,
            "attrs": {"release": "web@1", "ip_address": "{{auto}}"},
        }
        return Scrubbed(json.dumps(session).encode())

    def stored(self, stand_in: SentryStandIn) -> Sequence[str]:
        # No key exists for sessions; the session's own id stands for the delivery.
        return sorted(
            {self.shaping(int(one["sid"], 16)).delivery_id for one in stand_in.payloads("session")}
        )

    def test_the_account_token_takes_the_place_of_the_distinct_id(self) -> None:
        sink = SentrySink(dsn=DSN)
        known = json.loads(sink.shape(self.event(1), self.shaping(1)))
        assert known["did"] == "ps1_own_u_01conformance"
        assert known["attrs"] == {"release": "web@1"}
        unknown = json.loads(sink.shape(self.event(1), replace(self.shaping(1), tokens={})))
        assert "did" not in unknown

    def test_sessions_share_an_envelope(self) -> None:
        with self.stand_in() as sentry:
            self.exchange(sentry, self.deliveries(sentry, 50))
            assert len(sentry.requests) == 1
            assert len(sentry.items) == 50


class TestCheckIns(Suite):
    kind = "check_in"
    tagged = False

    def event(self, number: int) -> Scrubbed:
        return Scrubbed(
            json.dumps(
                {"check_in_id": f"{number:032x}", "monitor_slug": "nightly", "status": "ok"}
            ).encode()
        )

    def stored(self, stand_in: SentryStandIn) -> Sequence[str]:
        return sorted(
            {
                self.shaping(int(one["check_in_id"], 16)).delivery_id
                for one in stand_in.payloads("check_in")
            }
        )


class TestAggregates(Suite):
    kind = "sessions"
    tagged = False

    def event(self, number: int) -> Scrubbed:
        aggregates = [{"started": "2026-03-31T09:00:00Z", "exited": number + 1}]
        return Scrubbed(
            json.dumps({"aggregates": aggregates, "attrs": {"release": "web@1"}}).encode()
        )

    def stored(self, stand_in: SentryStandIn) -> Sequence[str]:
        found = {one["aggregates"][0]["exited"] - 1 for one in stand_in.payloads("sessions")}
        return [self.shaping(number).delivery_id for number in found]

    def test_the_token_stands_in_the_one_bucket_and_in_none_of_several(self) -> None:
        sink = SentrySink(dsn=DSN)
        one = json.loads(sink.shape(self.event(1), self.shaping(1)))
        assert one["aggregates"][0]["did"] == "ps1_own_u_01conformance"
        assert "did" not in one
        two = json.dumps({"aggregates": [{"exited": 1}, {"exited": 2}], "attrs": {}}).encode()
        assert b"ps1_own_u" not in sink.shape(Scrubbed(two), self.shaping(1))
        nobody = sink.shape(self.event(1), replace(self.shaping(1), tokens={}))
        assert b"did" not in nobody


TRACE, SPAN = "4b" * 16, "5c" * 8


class TestTransactions(Suite):
    kind = "transaction"

    def event(self, number: int) -> Scrubbed:
        event = {
            "type": "transaction",
            "platform": "python",
            "transaction": f"GET /orders/{number}",
            "start_timestamp": "2026-03-31T09:14:59.500000Z",
            "timestamp": "2026-03-31T09:15:00Z",
            "user": {"ip_address": "203.0.113.0/24"},
            "contexts": {
                "trace": {
                    "trace_id": TRACE,
                    "span_id": SPAN,
                    "data": {"http.client_ip": "203.0.113.0/24", "http.method": "GET"},
                }
            },
            "spans": [
                {
                    "trace_id": TRACE,
                    "span_id": "6d" * 8,
                    "parent_span_id": SPAN,
                    "op": "http.client",
                    "description": "GET https://app.example.com/users/<account>",
                    "start_timestamp": "2026-03-31T09:14:59.600000Z",
                    "timestamp": "2026-03-31T09:14:59.700000Z",
                    "data": {"client.address": "198.51.100.0/24", "http.method": "GET"},
                }
            ],
        }
        return Scrubbed(json.dumps(event).encode())

    def stored(self, stand_in: SentryStandIn) -> Sequence[str]:
        return sorted({one["event_id"] for one in stand_in.payloads("transaction")})

    def shaped(self, **changes: Any) -> dict[str, Any]:
        event = json.loads(self.event(1)) | changes
        sink = SentrySink(dsn=DSN)
        return dict(json.loads(sink.shape(Scrubbed(json.dumps(event).encode()), self.shaping(1))))

    def test_addresses_become_a_prefix_beside_the_spans(self) -> None:
        event = self.shaped()
        assert event["tags"]["ip_prefix"] == "203.0.113.0/24"
        assert event["user"] == {"id": "ps1_own_u_01conformance", "ip_address": None}
        assert "client.address" not in event["spans"][0]["data"]
        assert event["contexts"]["trace"]["data"] == {"http.method": "GET"}
        assert self.shaped(user={})["tags"]["ip_prefix"] == "198.51.100.0/24"

    def test_a_span_without_ids_or_times_is_left_out(self) -> None:
        whole = json.loads(self.event(1))["spans"][0]
        for name in ("trace_id", "span_id", "timestamp", "start_timestamp"):
            part = {key: value for key, value in whole.items() if key != name}
            assert len(self.shaped(spans=[whole, part])["spans"]) == 1

    def test_without_a_trace_it_is_none(self) -> None:
        for contexts in ({}, {"trace": {}}, {"trace": {"trace_id": TRACE}}, None):
            with pytest.raises(EventError, match="unshapeable"):
                self.shaped(contexts=contexts)

    def test_remarks_of_spans_go_with_a_span_that_is_left_out(self) -> None:
        shaping = replace(
            self.shaping(1), remarks=[Remark(("spans", 1, "description"), "email", "replace", 0, 3)]
        )
        event = json.loads(self.event(1))
        event["spans"].insert(0, {"op": "broken"})
        body = SentrySink(dsn=DSN).shape(Scrubbed(json.dumps(event).encode()), shaping)
        assert "_meta" not in json.loads(body)


class TestFeedback(Suite):
    kind = "feedback"

    def event(self, number: int) -> Scrubbed:
        said = {"message": f"{number} " + "x" * 5000, "url": "https://app.example.com/board"}
        return Scrubbed(json.dumps({"platform": "node", "contexts": {"feedback": said}}).encode())

    def stored(self, stand_in: SentryStandIn) -> Sequence[str]:
        return sorted({one["event_id"] for one in stand_in.payloads("feedback")})

    def test_without_a_message_it_is_none(self) -> None:
        for body in (b"{}", b'{"contexts":{"feedback":{}}}'):
            with pytest.raises(EventError, match="unshapeable"):
                SentrySink(dsn=DSN).shape(Scrubbed(body), self.shaping(1))


class TestUserReports(Suite):
    kind = "user_report"
    tagged = False

    def event(self, number: int) -> Scrubbed:
        return Scrubbed(json.dumps({"event_id": f"{number:032x}", "comments": "no"}).encode())

    def stored(self, stand_in: SentryStandIn) -> Sequence[str]:
        found = {int(one["event_id"], 16) for one in stand_in.payloads("user_report")}
        return [self.shaping(number).delivery_id for number in found]

    def test_nothing_but_the_comment_and_its_error_is_sent(self) -> None:
        body = SentrySink(dsn=DSN).shape(self.event(3), self.shaping(3))
        assert json.loads(body) == {"event_id": f"{3:032x}", "comments": "no"}
        with pytest.raises(EventError, match="unshapeable"):
            SentrySink(dsn=DSN).shape(Scrubbed(b'{"comments":"no"}'), self.shaping(3))


class TestSecurityReports(Suite):
    kind = "security_report"
    tagged = False

    def event(self, number: int) -> Scrubbed:
        body = {
            "documentURL": "https://app.example.com/board",
            "blockedURL": "inline",
            "effectiveDirective": "script-src-elem",
            "lineNumber": number,
        }
        return Scrubbed(json.dumps({"type": "csp-violation", "body": body}).encode())

    def stored(self, stand_in: SentryStandIn) -> Sequence[str]:
        with_id = [item for item in stand_in.items if item.type == "raw_security"]
        return sorted({item.envelope["event_id"] for item in with_id})

    def test_both_forms_become_the_one_that_every_sentry_takes(self) -> None:
        sink = SentrySink(dsn=DSN)
        modern = json.loads(sink.shape(self.event(3), self.shaping(3)))
        assert modern == {
            "csp-report": {
                "document-uri": "https://app.example.com/board",
                "blocked-uri": "inline",
                "effective-directive": "script-src-elem",
                "violated-directive": "script-src-elem",
                "line-number": 3,
            }
        }
        again = sink.shape(Scrubbed(json.dumps(modern).encode()), self.shaping(3))
        assert json.loads(again) == modern
        for body in (b"{}", b'{"csp-report":{}}', b'{"type":"csp-violation","body":{}}'):
            with pytest.raises(EventError, match="unshapeable"):
                sink.shape(Scrubbed(body), self.shaping(3))


class Elements(Suite):
    """What travels in containers."""

    element: ClassVar[dict[str, Any]]

    def event(self, number: int) -> Scrubbed:
        attributes = {
            "http.response.status_code": {"value": 200},
            "cache.hit": {"value": True},
            "sentry.sample_rate": {"value": 0.5},
            "client.address": {"value": "203.0.113.0/24"},
            "user.id": {},
        }
        return Scrubbed(
            json.dumps(
                {"trace_id": f"{number:032x}", "attributes": attributes, **self.element}
            ).encode()
        )

    def stored(self, stand_in: SentryStandIn) -> Sequence[str]:
        containers = stand_in.payloads(self.kind)
        found = {int(one["trace_id"], 16) for each in containers for one in each["items"]}
        return [self.shaping(number).delivery_id for number in found]

    def test_identity_promise_and_types_stand_in_its_attributes(self) -> None:
        shaped = json.loads(SentrySink(dsn=DSN).shape(self.event(1), self.shaping(1)))
        assert shaped["attributes"] == {
            "http.response.status_code": {"value": 200, "type": "integer"},
            "cache.hit": {"value": True, "type": "boolean"},
            "sentry.sample_rate": {"value": 0.5, "type": "double"},
            "ip_prefix": {"value": "203.0.113.0/24", "type": "string"},
            "user.id": {"value": "ps1_own_u_01conformance", "type": "string"},
            "organization": {"value": "ps1_own_o_conformance", "type": "string"},
            "session": {"value": "ps1_own_s_01conformance", "type": "string"},
            "retain_until": {"value": "2027-03-31", "type": "string"},
            "retention_class": {"value": "12m", "type": "string"},
            "policy": {"value": "c0ffee123456", "type": "string"},
            "privacy.changes": {"value": "truncate_ip 1", "type": "string"},
        }

    def test_what_lacks_a_required_part_is_not_sent(self) -> None:
        for name in (*self.element, "trace_id"):
            if name in ("start_timestamp", "end_timestamp", "timestamp"):
                continue
            event = json.loads(self.event(1))
            del event[name]
            with pytest.raises(EventError, match="unshapeable"):
                SentrySink(dsn=DSN).shape(Scrubbed(json.dumps(event).encode()), self.shaping(1))

    def test_many_share_a_container_and_sentry_fills_nothing_in(self) -> None:
        with self.stand_in() as sentry:
            self.exchange(sentry, self.deliveries(sentry, 50))
            assert len(sentry.requests) == 1
            (item,) = sentry.items
            assert item.headers["item_count"] == 50
            assert item.json()["ingest_settings"] == {
                "infer_ip": "never",
                "infer_user_agent": "never",
            }
            assert sentry.addresses() == set()
            assert sentry.violations == []

    def test_a_container_stays_under_a_mebibyte(self) -> None:
        with self.stand_in() as sentry:
            deliveries = [
                replace(one, body=one.body[:-1] + b',"x":"' + b"y" * 400_000 + b'"}')
                for one in self.deliveries(sentry, 5)
            ]
            assert list(self.exchange(sentry, deliveries)) == [Delivered()] * 5
            assert [len(item.json()["items"]) for item in sentry.items] in ([2, 2, 1], [2, 1, 2])
            assert all(len(item.payload) < 2**20 for item in sentry.items)


class TestLogs(Elements):
    kind = "log"
    element: ClassVar[dict[str, Any]] = {"level": "warn", "body": "row not found"}


class TestMetrics(Elements):
    kind = "trace_metric"
    element: ClassVar[dict[str, Any]] = {"name": "orders", "type": "counter", "value": 3.0}


class TestSpans(Elements):
    kind = "span"
    element: ClassVar[dict[str, Any]] = {
        "span_id": SPAN,
        "name": "GET /orders",
        "start_timestamp": "2026-03-31T09:15:01Z",
        "end_timestamp": "2026-03-31T09:15:01.250000Z",
    }

    def test_a_span_lasts_as_long_as_it_did(self) -> None:
        shaped = json.loads(SentrySink(dsn=DSN).shape(self.event(1), self.shaping(1)))
        assert shaped["end_timestamp"] - shaped["start_timestamp"] == 0.25
        assert shaped["status"] == "ok"
        event = json.loads(self.event(1)) | {"end_timestamp": "soon"}
        body = SentrySink(dsn=DSN).shape(Scrubbed(json.dumps(event).encode()), self.shaping(1))
        shaped = json.loads(body)
        assert shaped["end_timestamp"] == shaped["start_timestamp"]


def test_a_field_is_said_to_be_where_it_is_put() -> None:
    places = SentrySink(dsn=DSN).places
    address = ("attributes", "client.address", "value")
    assert places("log", address) == (("attributes", "ip_prefix", "value"),)
    assert places("span", ("attributes", "url.full", "value")) == (
        ("attributes", "url.full", "value"),
    )
    report = "security_report"
    assert places(report, ("body", "documentURL")) == (("csp-report", "document-uri"),)
    assert places(report, ("csp-report", "blocked-uri")) == (("csp-report", "blocked-uri"),)
    assert places(report, ("user_agent",)) == places(report, ("body", "sample")) == ()


async def test_each_kind_waits_for_its_own_category() -> None:
    suites = [TestLogs(), TestSpans(), TestTransactions(), TestFeedback(), TestErrorEvents()]
    async with SentryStandIn() as sentry:
        sentry.limit(["log_item", "transaction"], 30)
        sink = SentrySink(dsn=sentry.dsn)
        outcomes = await sink.send([suite.deliveries(sentry, 1)[0] for suite in suites])
        assert [type(one) for one in outcomes] == [Retry, Delivered, Retry, Delivered, Delivered]
        await sink.close()


class TestEnvelope:
    def test_sent_at_is_fresh_on_each_attempt_and_the_event_keeps_its_time(self) -> None:
        clock = datetime(2026, 11, 1, tzinfo=UTC)

        def wall() -> datetime:
            nonlocal clock
            clock += timedelta(seconds=1)
            return clock

        sink = SentrySink(dsn=DSN, wall=wall)
        shaping: Shaping = TestErrorEvents().shaping(1)
        one = Delivery(
            delivery_id=shaping.delivery_id,
            kind="error_event",
            body=sink.shape(TestErrorEvents().event(1), shaping),
            occurred_at=shaping.occurred_at,
        )
        first, second = (sink._envelope([one]).split(b"\n") for _ in range(2))
        assert json.loads(first[0])["sent_at"] == "2026-11-01T00:00:01.000Z"
        assert json.loads(second[0])["sent_at"] == "2026-11-01T00:00:02.000Z"
        assert first[1:] == second[1:]
        assert json.loads(first[2])["timestamp"] == "2026-03-31T09:15:01.000Z"

    async def test_sentry_cannot_erase_one_person(self) -> None:
        with pytest.raises(NotErasable, match="whole issues"):
            await SentrySink(dsn=DSN).erase({"token"})

    def test_a_kind_that_sentry_does_not_take_is_refused(self) -> None:
        shaping = replace(TestErrorEvents().shaping(), kind="analytics_event")
        with pytest.raises(EventError) as caught:
            SentrySink(dsn=DSN).shape(Scrubbed(b"{}"), shaping)
        assert caught.value.reason == "unsupported_kind"

    def test_shaping_leaves_its_arguments_as_they_are(self) -> None:
        shaping = TestErrorEvents().shaping(1)
        before = (dict(shaping.tokens), list(shaping.remarks))
        SentrySink(dsn=DSN).shape(TestErrorEvents().event(1), shaping)
        assert (dict(shaping.tokens), list(shaping.remarks)) == before
        assert isinstance(shaping.tokens, MappingProxyType)


@pytest.mark.parametrize(
    ("dsn", "endpoint"),
    [
        ("https://k@o1.ingest.de.sentry.io/42", "https://o1.ingest.de.sentry.io/api/42/envelope/"),
        ("https://k:old@s.example:9000/a/b/9", "https://s.example:9000/a/b/api/9/envelope/"),
        ("http://k@127.0.0.1:8000/1", "http://127.0.0.1:8000/api/1/envelope/"),
        ("http://k@[::1]:8000/1", "http://[::1]:8000/api/1/envelope/"),
    ],
)
def test_a_dsn_names_the_envelope_endpoint(dsn: str, endpoint: str) -> None:
    assert parse_dsn(dsn).endpoint == endpoint
    assert parse_dsn(dsn).public_key == "k"


@pytest.mark.parametrize(
    "dsn",
    [
        "", "https://s.example/1", "https://k@s.example/", "https://k@s.example/abc",
        "https://k@s.example:port/1", "http://k@s.example/1", "ftp://k@127.0.0.1/1",
    ],
)  # fmt: skip
def test_a_malformed_dsn_is_refused_without_repeating_it(dsn: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SentrySink(dsn=dsn)
    assert "s.example" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "limits"),
    [
        (200, {}, {}),
        (429, {}, {"": 60.0}),
        (429, {"retry-after": "7"}, {"": 7.0}),
        (200, {"x-sentry-rate-limits": "10::organization"}, {"": 10.0}),
        (200, {"x-sentry-rate-limits": "10:error;bogus:key:why, 20:error:org"}, {"error": 20.0}),
        (200, {"x-sentry-rate-limits": "7:log_byte;span:org"}, {"log_item": 7.0, "span": 7.0}),
        (200, {"x-sentry-rate-limits": " 5 : error ; session : key "}, {"error": 5, "session": 5}),
        (200, {"x-sentry-rate-limits": "999999999:error:key"}, {"error": 3600.0}),
        (200, {"x-sentry-rate-limits": "nan:error:key,-4:error:key,:::,;;;"}, {}),
        (429, {"x-sentry-rate-limits": "9:replay:key"}, {}),
    ],
)
def test_rate_limits_are_read_as_documented(
    status: int, headers: dict[str, str], limits: dict[str, float]
) -> None:
    assert rate_limits(Answer(status=status, headers=headers)) == limits


@given(st.text(max_size=200))
def test_no_rate_limit_header_raises_or_waits_for_ever(header: str) -> None:
    limits = rate_limits(Answer(status=429, headers={"x-sentry-rate-limits": header}))
    assert all(1.0 <= after_s <= 3600.0 for after_s in limits.values())
