"""The stand-ins refuse what the vendors refuse. A sink is only as good as the server it met."""

from __future__ import annotations

import gzip
import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.testing import Canaries, HeapStandIn, SentryStandIn
from telemetry.testing.stand_in import Request, inflate

EVENT: dict[str, Any] = {"identity": "t1", "event": "saved"}
KEY = "5e17" * 8
AUTH = f"Sentry sentry_key={KEY}, sentry_version=7, sentry_client=test/1"
ID = "0" * 31 + "1"


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(  # noqa: S310 - 127.0.0.1
        url, data=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - 127.0.0.1
            return response.status, response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def heap_takes(heap: HeapStandIn, path: str, body: object) -> int:
    request = Request(
        method="POST",
        target=path,
        headers=(("Content-Type", "application/json"),),
        raw=b"",
        body=json.dumps(body).encode(),
        at=0.0,
    )
    return heap.answer(request).status


class TestHeap:
    @pytest.mark.parametrize(
        "change",
        [
            {"event": ""},
            {"event": "e" * 1025},
            {"event": 5},
            {"identity": "i" * 256},
            {"identity": ""},
            {"user_id": "7"},  # both
            {"identity": None},
            {"timestamp": "2026-03-31T09:15:00"},
            {"timestamp": "yesterday"},
            {"timestamp": 1700000000},
            {"idempotency_key": 7},
            {"properties": {"nested": {"a": 1}}},
            {"properties": {"flag": True}},
            {"properties": {"none": None}},
            {"properties": {"long": "x" * 1024}},
            {"properties": {"k" * 1024: "x"}},
            {"properties": []},
            {"ip": "203.0.113.7"},
        ],
    )
    def test_what_is_not_documented_is_refused(self, change: dict[str, Any]) -> None:
        for body in (
            {"app_id": "1", **EVENT, **change},
            {"app_id": "1", "events": [EVENT | change]},
        ):
            heap = HeapStandIn()
            assert heap_takes(heap, "/api/track", body) == 400
            assert len(heap.violations) == 1
            assert heap.events == []

    def test_a_plain_event_and_an_anonymous_one_are_taken(self) -> None:
        heap = HeapStandIn()
        assert heap_takes(heap, "/api/track", {"app_id": "1", **EVENT}) == 200
        anonymous = {"user_id": "9007199254740991", "event": "seen"}
        assert heap_takes(heap, "/api/track", {"app_id": "1", **anonymous}) == 200
        assert heap.distinct_ids() == {"t1", "9007199254740991"}
        too_big = {"user_id": "9007199254740992", "event": "seen"}
        assert heap_takes(heap, "/api/track", {"app_id": "1", **too_big}) == 400

    @pytest.mark.parametrize("body", [{}, {"app_id": 1, **EVENT}, {"app_id": "x", **EVENT}, []])
    def test_a_body_without_an_environment_is_refused(self, body: object) -> None:
        assert heap_takes(HeapStandIn(), "/api/track", body) == 400

    def test_a_thousand_events_are_taken_and_one_more_is_not(self) -> None:
        heap = HeapStandIn()
        many = [{"identity": f"t{number}", "event": "e"} for number in range(1001)]
        assert heap_takes(heap, "/api/track", {"app_id": "1", "events": many}) == 400
        assert heap_takes(heap, "/api/track", {"app_id": "1", "events": many[:1000]}) == 200

    def test_one_bad_event_spoils_the_request(self) -> None:
        heap = HeapStandIn()
        assert heap_takes(heap, "/api/track", {"app_id": "1", "events": [EVENT, {}]}) == 400
        assert heap.events == []

    def test_an_idempotency_key_is_stored_once_for_each_environment(self) -> None:
        heap = HeapStandIn()
        keyed = EVENT | {"idempotency_key": "k"}
        for app_id in ("1", "1", "2"):
            assert heap_takes(heap, "/api/track", {"app_id": app_id, **keyed}) == 200
        assert [event["app_id"] for event in heap.events] == ["1", "2"]
        assert heap.repeats == 1

    def test_limits_slide(self) -> None:
        now = 0.0
        heap = HeapStandIn(clock=lambda: now, retry_after_s=3)
        single = {"app_id": "1", **EVENT}
        assert [heap_takes(heap, "/api/track", single) for _ in range(31)] == [200] * 30 + [429]
        now = 29.9
        assert heap_takes(heap, "/api/track", single) == 429
        now = 30.1
        assert heap_takes(heap, "/api/track", single) == 200
        assert heap_takes(heap, "/api/track", single | {"identity": "t2"}) == 200
        assert heap.violations == []
        heap.limits = False
        assert {heap_takes(heap, "/api/track", single) for _ in range(40)} == {200}

    def test_fifteen_thousand_a_minute_for_the_whole_environment(self) -> None:
        heap = HeapStandIn(clock=lambda: 0.0)
        statuses = [
            heap_takes(
                heap,
                "/api/track",
                {
                    "app_id": "1",
                    "events": [{"identity": f"{n}-{i}", "event": "e"} for i in range(1000)],
                },
            )
            for n in range(16)
        ]
        assert statuses == [200] * 15 + [429]

    def test_an_unknown_environment_is_silent_or_refused_as_asked(self) -> None:
        silent, strict = (
            HeapStandIn(app_ids={"1"}),
            HeapStandIn(app_ids={"1"}, unknown_app_id="refuse"),
        )
        assert heap_takes(silent, "/api/track", {"app_id": "2", **EVENT}) == 200
        assert heap_takes(strict, "/api/track", {"app_id": "2", **EVENT}) == 404
        assert silent.events == strict.events == []
        assert silent.violations
        assert strict.violations

    def test_user_properties_are_merged_and_their_reserved_name_refused(self) -> None:
        heap = HeapStandIn()
        path = "/api/add_user_properties"
        for properties in ({"plan": "free"}, {"plan": "pro", "seats": 3}):
            body = {"app_id": "1", "identity": "t1", "properties": properties}
            assert heap_takes(heap, path, body) == 200
        assert heap.users == {"t1": {"plan": "pro", "seats": 3}}
        for bad in ({"Id": "x"}, {"long": "x" * 256}):
            body = {"app_id": "1", "users": [{"identity": "t1", "properties": bad}]}
            assert heap_takes(heap, path, body) == 400

    def test_accounts_and_identities_are_taken(self) -> None:
        heap = HeapStandIn()
        account = {"account_id": "a1", "properties": {"plan": "pro"}}
        assert heap_takes(heap, "/api/add_account_properties", {"app_id": "1", **account}) == 200
        bound = {"app_id": "1", "user_id": "7", "identity": "t1"}
        assert heap_takes(heap, "/api/v1/identify", bound) == 200
        assert heap_takes(heap, "/api/v1/identify", bound | {"identity": "t2"}) == 200
        assert heap.accounts == {"a1": {"plan": "pro"}}
        assert heap.merged == {"7": "t1"}  # for ever
        assert heap_takes(heap, "/api/nowhere", {"app_id": "1"}) == 404

    def test_headers_are_checked_too(self) -> None:
        with HeapStandIn() as heap:
            body = json.dumps({"app_id": "1", **EVENT}).encode()
            assert post(f"{heap.url}/api/track", body, Content_Type="text/plain")[0] == 400
            packed = gzip.compress(body)
            headers = {"Content_Type": "application/json", "Content_Encoding": "gzip"}
            assert post(f"{heap.url}/api/track", packed, **headers)[0] == 415
            assert post(f"{heap.url}/api/track", body, Content_Type="application/json")[0] == 200
            assert len(heap.violations) == 2

    def test_deletion_needs_a_fresh_bearer(self) -> None:
        now = 0.0
        heap = HeapStandIn(api_key="k", app_ids={"1"}, clock=lambda: now)

        def ask(path: str, authorization: str, body: bytes = b"") -> Any:
            return heap.answer(
                Request(
                    method="POST",
                    target=f"/api/public/v0/{path}",
                    headers=(("Authorization", authorization),),
                    raw=body,
                    body=body,
                    at=0.0,
                )
            )

        for basic in (b"1:wrong", b"2:k", b"1:"):
            assert ask("auth_token", f"Basic {b64encode(basic).decode()}").status == 401
        reply = ask("auth_token", f"Basic {b64encode(b'1:k').decode()}")
        bearer = f"Bearer {json.loads(reply.body)['access_token']}"
        users = json.dumps({"users": [{"identity": "t1"}]}).encode()
        assert ask("user_deletion", "Bearer made-up", users).status == 401
        assert ask("user_deletion", bearer, users).status == 201
        assert ask("user_deletion", bearer, b'{"users":[]}').status == 400
        now = 300.1
        assert ask("user_deletion", bearer, users).status == 401


NOW = "just now"


def envelope(*items: tuple[dict[str, Any], bytes], **head: Any) -> bytes:
    """Make an envelope. Its time is filled in when it is sent: parameters are made long before."""
    lines = [json.dumps({"event_id": ID, "sent_at": NOW} | head).encode()]
    for headers, payload in items:
        lines += [json.dumps(headers).encode(), payload]
    return b"\n".join(lines)


def event(**changes: Any) -> bytes:
    plain = {"event_id": ID, "timestamp": "2026-03-31T09:15:00Z", "platform": "python"}
    return json.dumps(plain | changes).encode()


def sentry_takes(
    sentry: SentryStandIn, body: bytes, auth: str = AUTH, target: str = "/api/1/envelope/"
) -> int:
    headers = (("X-Sentry-Auth", auth),) if auth else ()
    sent_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    body = body.replace(NOW.encode(), sent_at.encode())
    request = Request(method="POST", target=target, headers=headers, raw=b"", body=body, at=0.0)
    return sentry.answer(request).status


ITEM: dict[str, Any] = {"type": "event"}


TRACED = {"trace_id": "4b" * 16}
ELEMENTS: dict[str, dict[str, Any]] = {
    "log": {**TRACED, "timestamp": 1.5, "level": "warn", "body": "x"},
    "trace_metric": {**TRACED, "timestamp": 1.5, "name": "n", "type": "counter", "value": 1},
    "span": {
        **TRACED,
        "span_id": "5c" * 8,
        "name": "GET /",
        "status": "ok",
        "start_timestamp": 1.5,
        "end_timestamp": 2.5,
    },
}


def contained(kind: str, *elements: Any) -> tuple[dict[str, Any], bytes]:
    suffix = {"span": "span.v2", "trace_metric": "trace-metric"}.get(kind, kind)
    head = {
        "type": kind,
        "item_count": len(elements),
        "content_type": f"application/vnd.sentry.items.{suffix}+json",
    }
    return head, json.dumps({"version": 2, "items": list(elements)}).encode()


class TestSentry:
    def test_a_plain_event_breaks_no_rule(self) -> None:
        sentry = SentryStandIn()
        assert sentry_takes(sentry, envelope((ITEM, event()))) == 200
        assert sentry_takes(sentry, envelope((ITEM | {"length": len(event())}, event()))) == 200
        assert sentry.violations == []
        assert len(sentry.events) == 1
        assert sentry.duplicates == 1

    @pytest.mark.parametrize(
        ("auth", "target", "dsn", "status"),
        [
            (AUTH, "/api/1/envelope/", None, 200),
            ("", f"/api/1/envelope/?sentry_key={KEY}&sentry_version=7", None, 200),
            ("", "/api/1/envelope/", f"http://{KEY}@127.0.0.1/1", 200),
            (AUTH, f"/api/1/envelope/?sentry_key={KEY}", f"http://{KEY}@127.0.0.1/1", 200),
            ("", "/api/1/envelope/", None, 401),
            ("Bearer x", "/api/1/envelope/", None, 401),
            (AUTH, "/api/1/envelope/?sentry_key=another", None, 403),
            (AUTH, "/api/1/envelope/", f"http://{KEY}@127.0.0.1/2", 403),
            (AUTH.replace("5e", "6e"), "/api/1/envelope/", None, 403),
            (AUTH, "/api/2/envelope/", None, 403),
            (AUTH, "/api/x/envelope/", None, 400),
            (AUTH, "/envelope/", None, 404),
        ],
    )
    def test_keys_must_be_given_and_agree(
        self, auth: str, target: str, dsn: str | None, status: int
    ) -> None:
        sentry = SentryStandIn()
        head = {} if dsn is None else {"dsn": dsn}
        assert sentry_takes(sentry, envelope((ITEM, event()), **head), auth, target) == status
        assert len(sentry.events) == (status == 200)
        assert bool(sentry.violations) == (status != 200)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"no json\n",
            b"[]\n",
            envelope((ITEM | {"length": 10**6}, event())),
            envelope((ITEM | {"length": 3}, event())),
            envelope((ITEM | {"length": -1}, event())),
            envelope(({"length": 2}, b"{}")),
            envelope((ITEM, event()), (ITEM, event())),
            envelope((ITEM, event()), ({"type": "transaction"}, event())),
            envelope((ITEM, event()), event_id=None),
            envelope((ITEM, event()), event_id="short"),
            envelope((ITEM, b"{")),
            envelope((ITEM, b"[]")),
            envelope(({"type": "attachment"}, b"bytes")),
            envelope(*[({"type": "x"}, b"")] * 501),
            envelope(*[({"type": "session"}, b"{}")] * 101),
            envelope(({"type": "log", "item_count": 2}, b'{"items":[]}')),
            envelope(({"type": "check_in"}, b"{}")),
            b'{"sent_at":"2026-01-01T00:00:00Z","sent_at":"2026-01-01T00:00:00Z"}\n',
        ],
    )
    def test_a_broken_envelope_is_refused(self, body: bytes) -> None:
        sentry = SentryStandIn()
        assert sentry_takes(sentry, body) == 400
        assert sentry.items == []
        assert len(sentry.violations) == 1

    @pytest.mark.parametrize(
        "body",
        [
            envelope((ITEM, event(event_id=None))),
            envelope((ITEM, event(event_id="f" * 32))),
            envelope((ITEM, event(timestamp=None))),
            envelope((ITEM, event(platform=None))),
            envelope((ITEM, event(level="loud"))),
            envelope((ITEM, event(tags={"a b": "x"}))),
            envelope((ITEM, event(tags={"k" * 33: "x"}))),
            envelope((ITEM, event(tags=[["k", "v" * 201]]))),
            envelope((ITEM, event(tags={"k": "a\nb"}))),
            envelope((ITEM, event(user={"ip_address": "203.0.113.0/24"}))),
            envelope((ITEM, event(_meta={"release": {"": {"rem": [["!config", "s"]]}}}))),
            envelope((ITEM, event(_meta={"platform": {"": {"rem": [["r", "s", 0, 99]]}}}))),
            envelope((ITEM, event()), sent_at=None),
            envelope((ITEM, event()), sent_at="2020-01-01T00:00:00Z"),
            envelope((ITEM, event()), sent_at=1700000000),
        ],
    )
    def test_a_broken_rule_is_noted(self, body: bytes) -> None:
        sentry = SentryStandIn()
        sentry_takes(sentry, body)
        assert len(sentry.violations) == 1

    @pytest.mark.parametrize("kind", sorted(ELEMENTS))
    def test_an_element_needs_its_parts_and_its_container_the_right_type(self, kind: str) -> None:
        whole = ELEMENTS[kind]
        sentry = SentryStandIn()
        assert sentry_takes(sentry, envelope(contained(kind, whole, whole))) == 200
        assert sentry.violations == []
        for name in whole:
            for value in (None, [], True):
                assert sentry_takes(sentry, envelope(contained(kind, whole | {name: value}))) == 400
        head, payload = contained(kind, whole)
        wrong = head | {"content_type": "application/json"}
        assert sentry_takes(sentry, envelope((wrong, payload))) == 400
        assert sentry_takes(sentry, envelope((head | {"item_count": 7}, payload))) == 400
        assert sentry_takes(sentry, envelope(contained(kind, 7))) == 400

    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            ("log", {"trace_id": "short"}),
            ("log", {"level": "loud"}),
            ("log", {"attributes": {"a": {"value": 1, "type": "string"}}}),
            ("log", {"attributes": {"a": {"type": "string"}}}),
            ("log", {"attributes": {"a": "plain"}}),
            ("log", {"attributes": {"a": {"value": 1, "type": "unheard"}}}),
            ("log", {"attributes": {"client.address": {"value": "x", "type": "string"}}}),
            ("trace_metric", {"type": "histogram"}),
            ("span", {"end_timestamp": 0.5}),
            ("span", {"parent_span_id": "x"}),
        ],
    )
    def test_a_broken_rule_of_an_element_is_noted(self, kind: str, change: dict[str, Any]) -> None:
        sentry = SentryStandIn()
        assert sentry_takes(sentry, envelope(contained(kind, ELEMENTS[kind] | change))) == 200
        assert len(sentry.violations) == 1

    def test_the_addresses_of_a_container_are_known(self) -> None:
        sentry = SentryStandIn()
        address = {"client.address": {"value": "203.0.113.7", "type": "string"}}
        head, payload = contained("log", ELEMENTS["log"] | {"attributes": address})
        auto = payload.replace(b'"version"', b'"ingest_settings": {"infer_ip": "auto"}, "version"')
        assert sentry_takes(sentry, envelope((head, auto))) == 200
        assert sentry.addresses() == {"203.0.113.7", "connection"}

    @pytest.mark.parametrize(
        ("change", "status", "violations"),
        [
            ({}, 200, 0),
            ({"contexts": {}}, 400, 1),
            ({"type": "event"}, 400, 1),
            ({"spans": None}, 400, 1),
            ({"start_timestamp": None}, 400, 1),
            ({"spans": [{"trace_id": "a", "span_id": "b"}]}, 400, 1),
            ({"spans": [{"start_timestamp": 1, "timestamp": 2}]}, 400, 1),
            ({"start_timestamp": 4_000_000_000}, 200, 1),
        ],
    )
    def test_a_transaction_is_one_only_with_its_trace_times_and_spans(
        self, change: dict[str, Any], status: int, violations: int
    ) -> None:
        whole = {
            "type": "transaction",
            "start_timestamp": 1.0,
            "contexts": {"trace": {"trace_id": "4b" * 16, "span_id": "5c" * 8}},
            "spans": [],
        }
        sentry = SentryStandIn()
        item = ({"type": "transaction"}, event(**(whole | change)))
        assert sentry_takes(sentry, envelope(item)) == status
        assert len(sentry.violations) == violations

    @pytest.mark.parametrize(
        ("kind", "payload"),
        [
            ("feedback", event()),
            ("feedback", event(contexts={"feedback": {}})),
            ("user_report", b'{"comments":"no"}'),
            ("raw_security", b"{}"),
            ("raw_security", b'{"csp-report":{"blocked-uri":"inline"}}'),
        ],
    )
    def test_reports_that_lack_what_makes_them_are_refused(self, kind: str, payload: bytes) -> None:
        assert sentry_takes(SentryStandIn(), envelope(({"type": kind}, payload))) == 400

    def test_too_large_is_413(self) -> None:
        sentry = SentryStandIn()
        assert sentry_takes(sentry, envelope((ITEM, event(extra="x" * 2**20)))) == 413
        check_in = ({"type": "check_in"}, b'{"monitor_slug":"' + b"x" * 2**17 + b'"}')
        assert sentry_takes(sentry, envelope(check_in)) == 413

    def test_the_old_endpoint_takes_one_event(self) -> None:
        sentry = SentryStandIn()
        assert sentry_takes(sentry, event(), target="/api/1/store/") == 200
        assert [one["event_id"] for one in sentry.events] == [ID]

    @pytest.mark.parametrize(
        ("changes", "kept"),
        [
            ({}, set()),
            ({"platform": "javascript"}, {"connection"}),
            ({"platform": "javascript", "sdk": {"settings": {"infer_ip": "never"}}}, set()),
            ({"sdk": {"settings": {"infer_ip": "auto"}}}, {"connection"}),
            ({"user": {"ip_address": "{{auto}}"}}, {"connection"}),
            ({"user": {"ip_address": "203.0.113.7"}}, {"203.0.113.7"}),
            ({"request": {"env": {"REMOTE_ADDR": "203.0.113.8"}}}, {"203.0.113.8"}),
        ],
    )
    def test_it_tells_which_address_sentry_would_keep(
        self, changes: dict[str, Any], kept: set[str]
    ) -> None:
        sentry = SentryStandIn()
        sentry_takes(sentry, envelope((ITEM, event(**changes))))
        assert sentry.addresses() == kept

    @pytest.mark.parametrize(
        ("encoding", "pack"),
        [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
    )
    def test_packed_bodies_are_read(self, encoding: str, pack: Callable[[bytes], bytes]) -> None:
        with SentryStandIn() as sentry:
            body = pack(envelope((ITEM, event())))
            url = f"{sentry.url}/api/1/envelope/?sentry_key={KEY}"
            headers = {"Content_Encoding": encoding, "Content_Type": "text/plain;charset=UTF-8"}
            assert post(url, body, **headers)[0] == 200
            assert post(url, b"damaged", Content_Encoding="gzip")[0] == 415
            assert post(url, body, Content_Encoding="rot13")[0] == 415
            assert len(sentry.events) == 1
            assert body in sentry.received_bytes()
            assert event() in sentry.received_bytes()

    def test_the_real_client_is_understood_and_its_leaks_are_found(self) -> None:
        import sentry_sdk

        person = Canaries(5)
        with SentryStandIn(prefix="/prefix") as sentry:
            client = sentry_sdk.Client(dsn=sentry.dsn, release="web@1", server_name=None)
            with sentry_sdk.isolation_scope() as isolated:
                isolated.set_client(client)
                isolated.set_user({"id": person.values["account"], "email": person.values["email"]})
                try:
                    raise ValueError(person.values["iban"])  # noqa: TRY301
                except ValueError as error:
                    isolated.capture_exception(error, scope=isolated)
                client.flush(5)
                client.close(5)
            assert sentry.wait(lambda there: len(there.events) == 1, 5)
            assert sentry.violations == []
            assert set(person.found_in(sentry.received_bytes())) >= {"account", "email", "iban"}


class TestFaults:
    def test_a_fault_ends_after_its_count_or_its_time(self) -> None:
        with HeapStandIn() as heap:
            body = json.dumps({"app_id": "1", **EVENT}).encode()

            def ask() -> int:
                return post(f"{heap.url}/api/track", body, Content_Type="application/json")[0]

            heap.fail(status=503, count=2)
            assert [ask(), ask(), ask()] == [503, 503, 200]
            heap.fail(status=500, seconds=0.2)
            assert ask() == 500
            time.sleep(0.25)
            assert ask() == 200
            heap.fail(status=500)
            assert {ask() for _ in range(5)} == {500}
            heap.heal()
            assert ask() == 200
            heap.fail(status=500, count=1, stored=True)
            before = len(heap.events)
            assert (ask(), len(heap.events)) == (500, before + 1)

    def test_a_dropped_connection_has_no_answer(self) -> None:
        with HeapStandIn() as heap:
            heap.drop(count=1)
            with pytest.raises((OSError, http.client.HTTPException)):
                post(f"{heap.url}/api/track", b"{}")
            assert heap.events == []
            assert len(heap.requests) == 1

    def test_headers_can_be_announced_on_ordinary_answers(self) -> None:
        with SentryStandIn() as sentry:
            sentry.announce({"X-Sentry-Rate-Limits": "5:error:key"}, count=1)
            url = f"{sentry.url}/api/1/envelope/?sentry_key={KEY}"
            status, headers = post(url, envelope((ITEM, event())))
            assert (status, headers["X-Sentry-Rate-Limits"]) == (200, "5:error:key")
            assert "X-Sentry-Rate-Limits" not in post(url, envelope((ITEM, event())))[1]

    def test_a_port_taken_is_an_error_at_start(self) -> None:
        with HeapStandIn() as heap, pytest.raises(RuntimeError):
            HeapStandIn(port=heap.port).start()

    def test_a_stand_in_stops_even_while_a_client_waits(self) -> None:
        heap = HeapStandIn().start()
        heap.slow(30.0)
        connection = http.client.HTTPConnection("127.0.0.1", heap.port, timeout=5)
        connection.request("POST", "/api/track", b"{}")
        assert heap.wait(lambda there: len(there.requests) == 1, 5)
        begun = time.monotonic()
        heap.stop()
        connection.close()
        assert time.monotonic() - begun < 5

    @given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "br", "zstd", "x"]))
    def test_no_damaged_body_raises(self, raw: bytes, encoding: str) -> None:
        inflate(raw, encoding, 1000)

    def test_a_bomb_is_not_unpacked(self) -> None:
        assert inflate(gzip.compress(b"\0" * 10**7), "gzip", 10**6) is None


class TestCanaries:
    @given(st.integers(0, 10**6), st.binary(max_size=20))
    def test_a_value_is_found_in_every_encoding(self, seed: int, lead: bytes) -> None:
        person = Canaries(seed)
        for name, value in person.values.items():
            plain = value.encode()
            for coded in (
                plain,
                quote(value).encode(),
                json.dumps(value).encode(),
                plain.hex().encode(),
            ):
                if name != "ipv4" or coded == plain:
                    assert name in person.found_in(b" " + coded + b" ")
            if name != "ipv4":
                assert name in person.found_in(b64encode(lead + plain + b"tail"))

    def test_a_cut_address_is_no_leak(self) -> None:
        person = Canaries(3)
        address = person.values["ipv4"]
        assert person.found_in(f"{address.rpartition('.')[0]}.0/24 {address}9".encode()) == []
        assert person.found_in(f"x={address}, y".encode()) == ["ipv4"]

    def test_people_differ_and_are_reproducible(self) -> None:
        assert Canaries(1).values == Canaries(1).values
        assert not set(Canaries(1).values.values()) & set(Canaries(2).values.values())


def test_the_plug_in_loads_nothing_that_a_foreign_test_run_would_notice() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import telemetry.testing.plugin;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new - set(sys.stdlib_module_names)), len([n for n in sys.modules if "
        "n.startswith('telemetry.testing')]))"
    )
    *loaded, own = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    # msgspec brings typing_extensions; sysconfig's data has a name of its own on each platform.
    others = {name for name in loaded if not name.startswith("_sysconfigdata")}
    assert others <= {"telemetry", "msgspec", "typing_extensions"}
    assert own == "2"


def test_the_plug_in_gives_stand_ins_that_listen(
    heap_stand_in: HeapStandIn, sentry_stand_in: SentryStandIn, canaries: Canaries
) -> None:
    assert heap_stand_in.port != sentry_stand_in.port
    assert canaries.values["email"].endswith("example.org")
