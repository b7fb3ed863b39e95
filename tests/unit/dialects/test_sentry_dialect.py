"""Envelopes and ``/store/``, in the shapes that real clients were seen to send."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.dialects import Refusal, sentry
from telemetry.dialects.sentry import (
    Credentials,
    Discarded,
    Envelope,
    credentials,
    dsn_credentials,
)
from telemetry.edge import EVENT_BYTES, Item
from telemetry.schema import load_records

SHIPPED = frozenset(("error_event", "session", "sessions", "check_in"))
ALL = frozenset(load_records())


def parse_envelope(body: bytes, kinds: frozenset[str] = SHIPPED) -> Envelope:
    return sentry.parse_envelope(body, kinds)


def parse_store(body: bytes) -> Envelope:
    return sentry.parse_store(body, SHIPPED)


ID = "3be4a1c07d9f4a5b8c6d7e8f90a1b2c3"
EVENT = b'{"event_id":"%s","level":"error","platform":"python"}' % ID.encode()


def envelope(header: Any, *items: tuple[Any, bytes], end: bytes = b"\n") -> bytes:
    lines = [json.dumps(header).encode()]
    for head, payload in items:
        lines += [json.dumps(head).encode(), payload]
    return b"\n".join(lines) + end


def refused(body: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        parse_envelope(body)
    return caught.value.code


def test_what_sentry_sdk_sends_becomes_an_error_event_under_the_envelopes_id() -> None:
    header = {
        "event_id": ID,
        "sent_at": "2026-11-22T09:15:03.554795Z",
        "trace": {"trace_id": "ab", "transaction": "/users/alice@example.org", "sampled": "true"},
    }
    head = {"type": "event", "content_type": "application/json", "length": len(EVENT)}
    parsed = parse_envelope(envelope(header, (head, EVENT)))
    assert parsed.items == [Item("error_event", EVENT, ID)]
    assert parsed.event_id == ID


def test_what_sentry_node_sends_has_items_without_length() -> None:
    parsed = parse_envelope(envelope({"event_id": ID}, ({"type": "event"}, EVENT), end=b""))
    assert parsed.items == [Item("error_event", EVENT, ID)]


def test_what_a_browser_sends_through_a_tunnel_names_its_dsn() -> None:
    dsn = "https://pub@o1.ingest.example.com/42"
    parsed = parse_envelope(envelope({"event_id": ID, "dsn": dsn}, ({"type": "event"}, EVENT)))
    assert parsed.dsn == dsn
    assert dsn_credentials(parsed.dsn) == Credentials("pub", "42")


def test_sessions_and_reports_come_under_an_empty_header() -> None:
    sessions = b'{"attrs":{"release":"r@1"},"aggregates":[]}'
    report = (
        b'{"timestamp":1,"discarded_events":['
        b'{"reason":"ratelimit_backoff","category":"error","quantity":3},'
        b'{"reason":"alice@example.org","category":"alice","quantity":1},'
        b'{"reason":"send_error","category":"error","quantity":-5}]}'
    )
    parsed = parse_envelope(
        envelope(
            {},
            ({"type": "sessions"}, sessions),
            ({"type": "session", "length": 2}, b"{}"),
            ({"type": "client_report"}, report),
        )
    )
    assert parsed.items == [
        Item("sessions", sessions),
        Item("session", b"{}"),
        Item("client_report", refused="client_report"),
    ]
    assert parsed.discarded == [
        Discarded("ratelimit_backoff", "error", 3),
        Discarded("other", "other", 1),
    ]


@pytest.mark.parametrize("report", [b"{}", b"null", b"[1]", b"alice", b'{"discarded_events":3}'])
def test_a_report_that_cannot_be_read_says_nothing(report: bytes) -> None:
    assert parse_envelope(envelope({}, ({"type": "client_report"}, report))).discarded == []


def test_a_check_in_takes_the_envelopes_id_unless_an_event_does() -> None:
    check_in = {"type": "check_in"}
    alone = parse_envelope(envelope({"event_id": ID}, (check_in, b"{}")))
    assert alone.items == [Item("check_in", b"{}", ID)]
    both = parse_envelope(envelope({"event_id": ID}, ({"type": "event"}, EVENT), (check_in, b"{}")))
    assert [item.event_id for item in both.items] == [ID, ""]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("transaction", "kind_transaction"),
        ("span", "kind_span"),
        ("log", "kind_log"),
        ("trace_metric", "kind_trace_metric"),
        ("attachment", "kind_attachment"),
        ("feedback", "kind_feedback"),
        ("user_report", "kind_user_report"),
        ("raw_security", "kind_raw_security"),
        ("replay_event", "kind_replay_event"),
        ("replay_recording", "kind_replay_recording"),
        ("profile", "kind_profile"),
        ("profile_chunk", "kind_profile_chunk"),
        ("minidump", "kind_minidump"),
        ("unreal_report", "kind_unreal_report"),
        ("statsd", "kind_statsd"),
        ("metric_buckets", "kind_metric_buckets"),
        ("security", "kind_security"),
        ("nel", "kind_nel"),
        ("alice@example.org", "kind_unknown"),
        ("", "kind_unknown"),
    ],
)
def test_other_items_are_dropped_by_a_word_of_ours_and_their_bytes_forgotten(
    word: str, reason: str
) -> None:
    parsed = parse_envelope(envelope({}, ({"type": word, "length": 3}, b"a\nb")))
    assert parsed.items == [Item("dropped", refused=reason)]


@pytest.mark.parametrize(
    "word",
    [
        "attachment",
        "minidump",
        "nel",
        "otel_span",
        "profile",
        "profile_chunk",
        "replay_event",
        "replay_recording",
        "security",
        "statsd",
        "unreal_report",
        "vendor_specific",
    ],
)
def test_no_policy_can_switch_on_what_no_record_describes(word: str) -> None:
    kinds = ALL | {word}
    (item,) = parse_envelope(envelope({}, ({"type": word}, b"{}")), kinds).items
    assert item.kind == "dropped"
    assert item.raw == b""


@pytest.mark.parametrize("word", ["event", "session", "sessions", "check_in"])
def test_what_a_policy_has_no_purpose_for_is_counted_by_its_name(word: str) -> None:
    body = envelope({"event_id": ID}, ({"type": word}, b"{}"))
    assert parse_envelope(body, frozenset()).items == [Item("dropped", refused=f"kind_{word}")]


@pytest.mark.parametrize("kind", ["log", "span", "trace_metric"])
def test_a_container_becomes_one_item_for_each_element(kind: str) -> None:
    payload = b'{"version":2,"items":[{"body":"a"}, {"body":"b"},{}]}'
    body = envelope({"event_id": ID}, ({"type": kind, "item_count": 3}, payload))
    expected = [Item(kind, b'{"body":"a"}'), Item(kind, b'{"body":"b"}'), Item(kind, b"{}")]
    assert parse_envelope(body, ALL).items == expected
    assert parse_envelope(body).items == [Item("dropped", refused=f"kind_{kind}")]


@pytest.mark.parametrize("payload", [b"{}", b'{"items":{}}', b"[]", b"alice", b'{"trace_id":"a"}'])
def test_a_container_of_another_form_is_counted_and_not_taken(payload: bytes) -> None:
    body = envelope({}, ({"type": "span"}, payload))
    assert parse_envelope(body, ALL).items == [Item("span", refused="unknown_form")]


def test_what_holds_nothing_is_counted_too() -> None:
    body = envelope({}, ({"type": "log"}, b'{"items":[]}'))
    assert parse_envelope(body, ALL).items == [Item("log", refused="empty_container")]
    nothing = sentry.parse_security(b"[]", ALL).items
    assert nothing == [Item("dropped", refused="kind_security_other")]


def test_a_thousand_elements_pass_and_one_more_does_not() -> None:
    for count in (1000, 1001):
        payload = b'{"items":[' + b",".join([b"{}"] * count) + b"]}"
        body = envelope({}, ({"type": "log"}, payload))
        if count == 1000:
            assert len(parse_envelope(body, ALL).items) == count
        else:
            with pytest.raises(Refusal, match="too_many_events"):
                parse_envelope(body, ALL)
    several = envelope({}, *([({"type": "log"}, b'{"items":[' + b"{}," * 999 + b"{}]}")] * 2))
    with pytest.raises(Refusal, match="too_many_events"):
        parse_envelope(several, ALL)


def test_an_element_larger_than_a_mebibyte_is_dropped_and_its_neighbours_taken() -> None:
    large = b'{"body":"' + b"x" * EVENT_BYTES + b'"}'
    body = envelope({}, ({"type": "log"}, b'{"items":[{},' + large + b"]}"))
    expected = [Item("log", b"{}"), Item("log", refused="too_large")]
    assert parse_envelope(body, ALL).items == expected


def test_the_envelopes_id_goes_to_the_first_item_that_may_have_it() -> None:
    body = envelope(
        {"event_id": ID}, ({"type": "user_report"}, b"{}"), ({"type": "feedback"}, b"{}")
    )
    assert [item.event_id for item in parse_envelope(body, ALL).items] == ["", ID]
    transaction = envelope({"event_id": ID}, ({"type": "transaction"}, EVENT))
    assert parse_envelope(transaction, ALL).items == [Item("transaction", EVENT, ID)]


def test_sessions_that_name_nobody_stay_together() -> None:
    payload = b'{"attrs":{"release":"r@1"},"aggregates":[{"exited":1},{"exited":2}]}'
    parsed = parse_envelope(envelope({}, ({"type": "sessions"}, payload)))
    assert parsed.items == [Item("sessions", payload)]


@given(st.lists(st.sampled_from([None, "4711", 4712, "", "x"]), max_size=12))
@settings(max_examples=60, deadline=None)
def test_each_bucket_that_names_somebody_becomes_an_item_and_none_is_lost(dids: list[Any]) -> None:
    buckets = [{"exited": n} | ({} if did is None else {"did": did}) for n, did in enumerate(dids)]
    payload = json.dumps({"aggregates": buckets, "attrs": {"release": "r@1"}}).encode()
    found = parse_envelope(envelope({}, ({"type": "sessions"}, payload))).items
    parts = [json.loads(item.raw) for item in found]
    assert {item.kind for item in found} <= {"sessions"}
    assert all(part["attrs"] == {"release": "r@1"} for part in parts)
    kept = [bucket for part in parts for bucket in part["aggregates"]]
    assert sorted(kept, key=lambda one: one["exited"]) == buckets
    for part in parts:
        named = [bucket for bucket in part["aggregates"] if bucket.get("did")]
        assert not named or len(part["aggregates"]) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b'{"aggregates":"did","attrs":{},"did":1}',
        b'{"aggregates":[{"did":[4711]}]}',
        b'{"aggregates":[7],"x":{"did":1}}',
        b'{"aggregates":[],"did":1}',
        b'{"aggregates":[{"did":null},{"did":""}]}',
        b'"did"',
    ],
)
def test_sessions_of_another_form_go_to_the_record_as_they_are(payload: bytes) -> None:
    found = parse_envelope(envelope({}, ({"type": "sessions"}, payload))).items
    assert found == [Item("sessions", payload)]


CSP = b'{"csp-report":{"document-uri":"https://a.example/","blocked-uri":"inline"}}'
CSP_MODERN = b'{"type":"csp-violation","body":{"documentURL":"https://a.example/"}}'
NEL = b'{"type":"network-error","body":{"server_ip":"203.0.113.7"}}'


def test_a_policy_violation_is_taken_in_both_forms_and_other_reports_are_counted() -> None:
    kinds = frozenset(("security_report",))
    for body in (CSP, b" " + CSP):
        assert sentry.parse_security(body, kinds).items == [Item("security_report", body)]
    many = sentry.parse_security(b"[%b,%b,%b,{}, 7]" % (CSP_MODERN, NEL, CSP), kinds).items
    assert many == [
        Item("security_report", CSP_MODERN),
        Item("dropped", refused="kind_nel"),
        Item("security_report", CSP),
        Item("dropped", refused="kind_security_other"),
        Item("dropped", refused="kind_security_other"),
    ]
    within = parse_envelope(envelope({"event_id": ID}, ({"type": "raw_security"}, CSP)), kinds)
    assert within.items == [Item("security_report", CSP, ID)]


def test_reports_of_browsers_are_not_even_read_where_they_are_off() -> None:
    for body in (CSP, b"alice@example.org"):
        found = sentry.parse_security(body, SHIPPED).items
        assert found == [Item("dropped", refused="kind_raw_security")]


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_no_bytes_make_an_open_container_or_report_fail_otherwise(payload: bytes) -> None:
    items = [({"type": word, "length": len(payload)}, payload) for word in sorted(sentry._KINDS)]
    for parse in (
        lambda: parse_envelope(envelope({}, *items), ALL),
        lambda: sentry.parse_security(payload, ALL),
        lambda: sentry.parse_security(b"[" + payload, ALL),
    ):
        try:
            parse()
        except Refusal as error:
            assert error.status in (400, 413)  # noqa: PT017 - either outcome is fine


def test_dashes_and_capitals_in_the_event_id_do_not_matter() -> None:
    written = "3BE4A1C0-7D9F-4A5B-8C6D-7E8F90A1B2C3"
    assert parse_envelope(envelope({"event_id": written})).event_id == ID


def test_an_event_larger_than_a_mebibyte_is_dropped_and_the_rest_taken() -> None:
    large = b'{"message":"' + b"x" * EVENT_BYTES + b'"}'
    parsed = parse_envelope(envelope({}, ({"type": "event"}, large), ({"type": "session"}, b"{}")))
    assert parsed.items == [Item("error_event", refused="too_large"), Item("session", b"{}")]


def test_an_event_of_very_many_values_is_dropped_before_it_is_read() -> None:
    many = b'{"level":NaN,"breadcrumbs":[' + b"[]," * 300_000 + b"[]]}"
    parsed = parse_envelope(envelope({}, ({"type": "event"}, many)))
    assert parsed.items == [Item("error_event", refused="too_many_values")]
    frames = [{"function": "save", "lineno": 7, "in_app": True}] * 10_000
    full = json.dumps({"exception": {"values": [{"stacktrace": {"frames": frames}}]}}).encode()
    assert parse_envelope(envelope({}, ({"type": "event"}, full))).items[0].raw == full


def test_a_lone_surrogate_in_a_header_does_not_cost_the_envelope() -> None:
    body = b'{"event_id":"%s","trace":{"transaction":"\\ud83d"}}\n{"type":"event"}\n{}\n'
    assert parse_envelope(body % ID.encode()).event_id == ID


def test_five_hundred_items_pass_and_one_more_does_not() -> None:
    items = [({"type": "session"}, b"{}")] * 500
    assert len(parse_envelope(envelope({}, *items)).items) == 500
    assert refused(envelope({}, *items, items[0])) == "too_many_items"


@pytest.mark.parametrize(
    "body",
    [
        b"alice@example.org",
        b"[]\n",
        b"\n{}",
        b'{}\n{"no":"type"}\n{}',
        b'{}\n{"type":7}\n{}',
        b'{}\n{"type":"event","length":5}\n{}',
        b'{}\n{"type":"event","length":1}\n{}\n',
        b'{}\n{"type":"event","length":-1}\n{}\n',
        b'{}\n{"type":"event","length":99999999999999999999}\n{}\n',
        b'{"event_id":7}\n',
        b"{}\nalice@example.org\n{}",
    ],
)
def test_what_is_no_envelope_is_refused(body: bytes) -> None:
    assert refused(body) == "bad_envelope"


def test_an_id_that_is_none_is_refused() -> None:
    assert refused(b'{"event_id":"alice@example.org"}\n') == "bad_event_id"


PAYLOADS = st.one_of(
    st.binary(max_size=200),
    st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3).map(
        lambda data: json.dumps(data).encode()
    ),
)


@given(
    st.lists(st.tuples(st.sampled_from(["event", "session", "sessions"]), PAYLOADS), max_size=8),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_byte_of_any_payload_is_lost(
    items: list[tuple[str, bytes]],
    last_line_end: bool,
    always_length: bool,
) -> None:
    parts: list[tuple[Any, bytes]] = []
    for kind, payload in items:
        head: dict[str, Any] = {"type": kind}
        # As clients do: without a length only what holds no line end.
        if always_length or b"\n" in payload:
            head["length"] = len(payload)
        parts.append((head, payload))
    found = parse_envelope(envelope({}, *parts, end=b"\n" if last_line_end else b""))
    assert [item.raw for item in found.items] == [payload for _, payload in items]


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_parser_fail_otherwise(body: bytes) -> None:
    for parse in (parse_envelope, parse_store, lambda b: parse_envelope(b"{}\n" + b)):
        try:
            parse(body)
        except Refusal as error:
            assert error.status in (400, 413)  # noqa: PT017 - either outcome is fine


def test_a_store_request_is_one_event() -> None:
    event = b'{"level":40,"platform":"python","message":"x"}'
    for body in (event, base64.b64encode(event), base64.b64encode(zlib.compress(event))):
        assert parse_store(body).items == [Item("error_event", event)]


@pytest.mark.parametrize("body", [b"alice@example.org", b"[]", base64.b64encode(b"[1]"), b"    "])
def test_a_store_request_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal):
        parse_store(body)


HEADER = "Sentry sentry_key=pubkey, sentry_version=7, sentry_client=sentry.python/2.75.0"
BASIC = "Basic " + base64.b64encode(b"pubkey:").decode()


@pytest.mark.parametrize(
    ("x_sentry_auth", "authorization", "query"),
    [
        (HEADER, "", ""),
        ("Sentry sentry_version=6,sentry_secret=s,sentry_key=pubkey", "", ""),
        ("sentry  sentry_key = pubkey", "", ""),
        ("", HEADER, ""),
        ("", BASIC, ""),
        ("", "", "sentry_version=7&sentry_key=pubkey&sentry_client=sentry.javascript.node%2F11"),
        (HEADER, BASIC, "sentry_key=pubkey"),
        (HEADER, "Bearer something-of-a-proxy", ""),
    ],
)
def test_a_key_is_found_wherever_clients_put_it(
    x_sentry_auth: str, authorization: str, query: str
) -> None:
    assert credentials(x_sentry_auth, authorization, query) == Credentials("pubkey")


def test_without_any_key_the_envelope_may_still_say_who_it_is() -> None:
    assert credentials("", "", "a=b") is None
    assert credentials("", "Bearer something", "") is None


@pytest.mark.parametrize(
    ("x_sentry_auth", "authorization", "query"),
    [
        (HEADER, "", "sentry_key=other"),
        ("", "", "sentry_key=one&sentry_key=two"),
        ("Bearer pubkey", "", ""),
        ("Sentry nothing", "", ""),
        ("Sentry sentry_key=", "", ""),
        ("", "Basic !!!", ""),
        ("", "Basic " + base64.b64encode(b"\xff\xfe").decode(), ""),
        ("", "", "sentry_key=a%20b"),
        ("", "", "sentry_key=" + "k" * 65),
    ],
)
def test_keys_that_contradict_each_other_or_cannot_be_read_are_refused(
    x_sentry_auth: str, authorization: str, query: str
) -> None:
    with pytest.raises(Refusal, match="no_credentials"):
        credentials(x_sentry_auth, authorization, query)


@pytest.mark.parametrize(
    "dsn",
    ["", "x", "https://example.com/1", "https://k@example.com/", "//[", "https://k@h/a b"],
)
def test_a_dsn_that_is_none_is_refused(dsn: str) -> None:
    with pytest.raises(Refusal, match="no_credentials"):
        dsn_credentials(dsn)


def test_a_dsn_may_have_a_secret_and_a_path() -> None:
    assert dsn_credentials("http://key:old@127.0.0.1:9/prefix/path/7") == Credentials("key", "7")
