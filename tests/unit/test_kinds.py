"""Every kind that Sentry clients send, from the wire to what Sentry would store, and back to none.

The envelopes have the form of what ``sentry-sdk`` 2.75, ``@sentry/node`` 10.78 and 11.12 and
``raven`` 6.10 were seen to send; a planted value stands wherever one of them puts personal data.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from making import EVERY_KIND, NOW, World, everything_on

from telemetry.brokers import Entry
from telemetry.dialects import sentry
from telemetry.edge import Connection
from telemetry.intake import Taken
from telemetry.pipeline import Deliver
from telemetry.policy import load_policy
from telemetry.sinks import Delivered, Delivery
from telemetry.sinks.sentry import SentrySink
from telemetry.testing import Canaries, SentryStandIn

PERSON = Canaries(2026)
V = PERSON.values
ACCOUNT = 7_744_556_123
ID, TRACE, SPAN = "3be4a1c07d9f4a5b8c6d7e8f90a1b2c3", "4b" * 16, "5c" * 8
AT = NOW.timestamp() - 60
OWN = "brown eyes and a limp"  # nothing finds this: it is gone only where it is not decoded
TEXT = f"mail to {V['email']} failed, iban {V['iban']}, password={V['password']}, {V['name']} waits"
URL = f"https://app.example.com/users/{ACCOUNT}/board?mail={V['email']}&token={V['token']}"
USER = {
    "id": str(ACCOUNT),
    "email": V["email"],
    "username": V["username"],
    "name": V["name"],
    "ip_address": V["ipv4"],
}
REQUEST = {
    "url": URL,
    "method": "POST",
    "query_string": f"mail={V['email']}",
    "data": {"note": V["name"]},
    "cookies": {"sid": V["session"]},
    "headers": {
        "authorization": f"Bearer {V['token']}",
        "x-forwarded-for": V["ipv4"],
        "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "x-custom": V["name"],
    },
    "env": {"REMOTE_ADDR": V["ipv6"]},
}
SPAN_DATA = {
    "http.request.method": "GET",
    "http.response.status_code": 200,
    "url": URL,
    "url.full": URL,
    "http.target": f"/users/{ACCOUNT}?mail={V['email']}",
    "http.query": f"mail={V['email']}",
    "http.client_ip": V["ipv4"],
    "http.user_agent": "curl/8.5.0",
    "net.peer.ip": V["ipv6"],
    "server.address": f"{V['username']}.example.net",
    "db.system": "postgresql",
    "db.query.text": f"SELECT * FROM users WHERE mail = '{V['email']}'",  # noqa: S608 - a text
    "user.id": str(ACCOUNT),
    "user.email": V["email"],
    "thread.id": "140243053853568",
    "own": OWN,
    "http.request.header.x_forwarded_for": V["ipv4"],
}
EVENT = {
    "event_id": ID,
    "timestamp": AT,
    "platform": "node",
    "release": "shop@1.2.3",
    "environment": "production",
    "server_name": f"{V['username']}-laptop",
    "user": USER,
    "request": REQUEST,
    "tags": {"mail": V["email"], "queue": "orders"},
    "extra": {"who": V["name"]},
    "breadcrumbs": [{"timestamp": AT, "category": "http", "message": TEXT, "data": {"url": URL}}],
    "sdk": {
        "name": "sentry.javascript.node",
        "version": "10.78.0",
        "settings": {"infer_ip": "auto"},
    },
}


def attributes(values: dict[str, Any]) -> dict[str, Any]:
    kinds = {str: "string", int: "integer", list: "array"}
    return {name: {"value": value, "type": kinds[type(value)]} for name, value in values.items()}


ATTRIBUTES = attributes(
    {
        **SPAN_DATA,
        "user.name": V["name"],
        "user.ip_address": V["ipv4"],
        "client.address": V["ipv6"],
        "user_agent.original": "curl/8.5.0",
        "http.request.header.authorization": [f"Bearer {V['token']}"],
        "http.request.header.x-forwarded-for": [V["ipv4"]],
        "sentry.message.parameter.0": V["name"],
    }
)
TRACED = {"trace_id": TRACE, "span_id": SPAN}


def container(*elements: Any) -> dict[str, Any]:
    return {
        "version": 2,
        "ingest_settings": {"infer_ip": "auto", "infer_user_agent": "auto"},
        "items": list(elements),
    }


PAYLOADS: dict[str, Any] = {
    "event": EVENT | {"exception": {"values": [{"type": "ValueError", "value": TEXT}]}},
    "transaction": EVENT
    | {
        "type": "transaction",
        "transaction": f"GET /users/{ACCOUNT}",
        "start_timestamp": AT - 1.25,
        "contexts": {
            "trace": {**TRACED, "op": "http.server", "status": "ok", "data": SPAN_DATA},
            "own": {"who": OWN},
        },
        "measurements": {"lcp": {"value": 12.5, "unit": "millisecond"}},
        "spans": [
            {
                **TRACED,
                "span_id": "6d" * 8,
                "parent_span_id": SPAN,
                "op": "db",
                "description": f"SELECT * FROM u WHERE mail = '{V['email']}' -- {V['iban']}",  # noqa: S608 - a text
                "start_timestamp": AT - 1,
                "timestamp": AT - 0.75,
                "tags": {"who": V["email"]},
                "data": SPAN_DATA,
            }
        ],
    },
    "span": container(
        {
            **TRACED,
            "name": f"GET /users/{ACCOUNT}?mail={V['email']}",
            "start_timestamp": AT - 1,
            "end_timestamp": AT - 0.75,
            "is_segment": True,
            "status": "ok",
            "attributes": ATTRIBUTES,
            "links": [{**TRACED, "sampled": True, "attributes": attributes({"a": OWN})}],
        }
    ),
    "log": container(
        {"timestamp": AT, **TRACED, "level": "warn", "body": TEXT, "attributes": ATTRIBUTES},
    ),
    "trace_metric": container(
        {
            "timestamp": AT,
            **TRACED,
            "name": "orders",
            "type": "distribution",
            "value": 3.5,
            "unit": "millisecond",
            "attributes": ATTRIBUTES,
        }
    ),
    "feedback": EVENT
    | {
        "type": "feedback",
        "contexts": {
            "trace": TRACED,
            "feedback": {
                "message": TEXT,
                "contact_email": V["email"],
                "name": V["name"],
                "url": URL,
                "associated_event_id": ID,
                "replay_id": "7e" * 16,
            },
        },
    },
    "user_report": {"event_id": ID, "email": V["email"], "name": V["name"], "comments": TEXT},
    "raw_security": {
        "csp-report": {
            "document-uri": URL,
            "referrer": URL,
            "blocked-uri": f"https://cdn.example.net/x.js?u={V['email']}",
            "violated-directive": "script-src",
            "original-policy": f"script-src 'self'; report-uri /r?u={V['token']}",
            "script-sample": V["name"],
            "line-number": 7,
        }
    },
    "session": {
        "sid": "5c1760bd21e04a90b37ef7418699cc6c",
        "did": str(ACCOUNT),
        "started": "2026-11-22T10:14:00Z",
        "timestamp": "2026-11-22T10:14:42Z",
        "status": "exited",
        "attrs": {"release": "shop@1.2.3", "ip_address": V["ipv4"], "user_agent": "curl/8.5.0"},
    },
    "sessions": {
        "aggregates": [
            {"started": "2026-11-22T10:14:00Z", "did": str(ACCOUNT), "exited": 2},
            {"started": "2026-11-22T10:14:00Z", "did": str(ACCOUNT + 1), "exited": 1},
            {"started": "2026-11-22T10:14:00Z", "exited": 5},
        ],
        "attrs": {"release": "shop@1.2.3", "ip_address": V["ipv4"]},
    },
    "check_in": {"check_in_id": ID, "monitor_slug": "nightly", "status": "ok", "who": OWN},
}
HEADER = {
    "event_id": ID,
    "sent_at": "2026-11-22T10:15:03Z",
    "sdk": {"name": "sentry.javascript.node", "version": "11.12.0"},
    "trace": {
        "trace_id": TRACE,
        "public_key": "pub",
        "transaction": URL,
        "user_id": str(ACCOUNT),
        "user": {"id": V["account"], "segment": V["name"]},
    },
    "remote_addr": V["ipv4"],
    "forwarded_for": V["ipv6"],
    "user_agent": V["name"],
}
ELEMENTS = {"sessions": 3}
CONNECTION = Connection(V["ipv4"], [("ip", V["ipv4"]), ("ip", V["ipv6"])])


def wire(word: str, payload: Any) -> bytes:
    """Write as @sentry/node does: items without length."""
    head = {"type": word, "item_count": 1}
    return b"\n".join(json.dumps(part).encode() for part in (HEADER, head, payload))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kinds")
    one = World(folder / "state", policy=everything_on(folder / "policy"))
    yield one
    one.close()


def taken(world: World, envelope: sentry.Envelope) -> Taken:
    return world.take(*envelope.items, connection=CONNECTION)


def sent(world: World, found: Taken) -> SentryStandIn:
    """Take parcels through the pseudonymizer and to a Sentry; give what it has then."""
    deliveries = []
    for parcel in found.parcels:
        decision = world.decide(parcel)
        assert isinstance(decision, dict), decision
        outcome = decision["sentry"]
        assert isinstance(outcome, Deliver), outcome
        out = outcome.parcel
        deliveries.append(
            Delivery(
                delivery_id=out.event_id,
                kind=out.kind,
                body=out.body,
                occurred_at=out.occurred_at,
            )
        )

    async def main(there: SentryStandIn) -> None:
        sink = SentrySink(dsn=there.dsn)
        assert set(await sink.send(deliveries)) == {Delivered()}
        await sink.close()

    with SentryStandIn() as there:
        asyncio.run(main(there))
    return there


def planted_in(data: bytes) -> list[str]:
    found = PERSON.found_in(data)
    others = {"the account": str(ACCOUNT), "what an application adds": OWN}
    return found + [name for name, value in others.items() if value.encode() in data]


@pytest.mark.parametrize("word", sorted(PAYLOADS))
def test_every_kind_arrives_without_a_planted_value_and_breaks_no_rule(
    world: World, word: str
) -> None:
    assert planted_in(wire(word, PAYLOADS[word]))
    envelope = sentry.parse_envelope(wire(word, PAYLOADS[word]), world.policy.purpose_of_kind)
    found = taken(world, envelope)
    number = ELEMENTS.get(word, 1)
    assert found.dead == []
    assert found.counts == {Entry("edge", "items_in"): number, Entry("edge", "sealed"): number}
    for parcel in found.parcels:
        assert planted_in(parcel.body + parcel.remarks + parcel.capsule) == []
    there = sent(world, found)
    assert there.violations == []
    assert {item.type for item in there.items} == {word}
    for request in there.requests:
        assert planted_in(request.as_bytes()) == []
        assert b"trace" not in request.body.split(b"\n")[0]
    assert there.addresses() == set()


def test_every_kind_that_has_a_record_was_among_them() -> None:
    assert (
        {sentry._KINDS[word] for word in PAYLOADS} == set(EVERY_KIND) == set(sentry._KINDS.values())
    )


class TestWhatIsLeft:
    """What an engineer needs is still there."""

    kept: ClassVar[dict[str, Callable[[Any], object]]] = {
        "transaction": lambda one: (
            one["transaction"],
            one["spans"][0]["data"]["db.query.text"],
            one["spans"][0]["data"]["url.full"],
            one["measurements"]["lcp"]["value"],
        ),
        "span": lambda one: (
            one["items"][0]["name"],
            one["items"][0]["attributes"]["http.response.status_code"],
            round(one["items"][0]["end_timestamp"] - one["items"][0]["start_timestamp"], 3),
        ),
        "log": lambda one: (one["items"][0]["level"], one["items"][0]["body"][:8]),
        "trace_metric": lambda one: (one["items"][0]["value"], one["items"][0]["unit"]),
        "feedback": lambda one: (
            one["contexts"]["feedback"]["message"][:8],
            one["contexts"]["feedback"]["url"],
            one["contexts"]["feedback"]["associated_event_id"],
        ),
        "user_report": lambda one: (one["event_id"], one["comments"][:8]),
        "raw_security": lambda one: (
            one["csp-report"]["blocked-uri"],
            one["csp-report"]["violated-directive"],
        ),
    }
    expected: ClassVar[dict[str, object]] = {
        "transaction": (
            "GET /users/<id>",
            "SELECT * FROM users WHERE mail = '<email:1>'",
            "https://app.example.com/users/<id>/board",
            12.5,
        ),
        "span": ("GET /users/<id>", {"value": 200, "type": "integer"}, 0.25),
        "log": ("warn", "mail to "),
        "trace_metric": (3.5, "millisecond"),
        "feedback": ("mail to ", "https://app.example.com/users/<id>/board", ID),
        "user_report": (ID, "mail to "),
        "raw_security": ("https://cdn.example.net/x.js", "script-src"),
    }

    @pytest.mark.parametrize("word", sorted(kept))
    def test_of_each_kind(self, world: World, word: str) -> None:
        envelope = sentry.parse_envelope(wire(word, PAYLOADS[word]), world.policy.purpose_of_kind)
        (payload,) = sent(world, taken(world, envelope)).payloads(word)
        assert self.kept[word](payload) == self.expected[word]

    def test_one_account_has_one_token_in_every_kind(self, world: World) -> None:
        tokens: dict[str, str] = {}
        for word in ("event", "transaction", "span", "log", "trace_metric", "feedback", "session"):
            envelope = sentry.parse_envelope(
                wire(word, PAYLOADS[word]), world.policy.purpose_of_kind
            )
            (one,) = sent(world, taken(world, envelope)).payloads(word)
            if "items" in one:
                tokens[word] = one["items"][0]["attributes"]["user.id"]["value"]
            else:
                tokens[word] = one["did"] if word == "session" else one["user"]["id"]
        assert len(set(tokens.values())) == 1
        assert tokens["log"].startswith("ps1_sentry_u_")
        aggregates = sentry.parse_envelope(
            wire("sessions", PAYLOADS["sessions"]), world.policy.purpose_of_kind
        )
        found = [
            bucket
            for one in sent(world, taken(world, aggregates)).payloads("sessions")
            for bucket in one["aggregates"]
        ]
        by_count = {bucket["exited"]: bucket.get("did") for bucket in found}
        assert by_count[2] == tokens["session"]
        assert by_count[1] not in (None, tokens["session"])
        assert by_count[5] is None


def test_what_raven_sends_to_store_arrives_without_a_planted_value(world: World) -> None:
    event = {
        **EVENT,
        "platform": "python",
        "level": 40,
        "timestamp": "2026-11-22T10:14:21Z",
        "message": TEXT,
        "sentry.interfaces.Message": {"message": TEXT, "params": [V["name"]]},
        "exception": {
            "values": [
                {
                    "type": "ValueError",
                    "value": TEXT,
                    "stacktrace": {
                        "frames": [
                            {
                                "filename": "shop/orders.py",
                                "function": "save",
                                "lineno": 9,
                                "vars": {"mail": f"'{V['email']}'", "o": "1"},
                            }
                        ]
                    },
                }
            ]
        },
        "extra": {"sys.argv": [V["username"]]},
        "modules": {"python": "3.11.7"},
        "project": "31",
        "time_spent": None,
        "repos": {},
        "sdk": {"name": "raven-python", "version": "6.10.0"},
    }
    packed = zlib.compress(json.dumps(event).encode())
    envelope = sentry.parse_store(zlib.decompress(packed), world.policy.purpose_of_kind)
    found = taken(world, envelope)
    there = sent(world, found)
    assert there.violations == []
    assert all(planted_in(request.as_bytes()) == [] for request in there.requests)
    (stored,) = there.events
    assert stored["event_id"] == ID
    assert stored["level"] == "error"
    (frame,) = stored["exception"]["values"][0]["stacktrace"]["frames"]
    assert frame["vars"] == {"mail": "text", "o": "number"}


def test_the_shipped_policy_lets_errors_sessions_and_check_ins_out_and_counts_the_rest() -> None:
    on = load_policy().purpose_of_kind
    for word, payload in PAYLOADS.items():
        (item, *_) = sentry.parse_envelope(wire(word, payload), on).items
        if word in ("event", "session", "sessions", "check_in"):
            assert item.refused == ""
        else:
            assert (item.refused, item.raw) == (f"kind_{word}", b"")


@pytest.mark.parametrize(
    "word", ["attachment", "profile", "replay_recording", "vendor", "minidump"]
)
def test_what_no_record_describes_stays_even_where_everything_is_on(
    world: World, word: str
) -> None:
    envelope = sentry.parse_envelope(wire(word, EVENT), world.policy.purpose_of_kind)
    found = taken(world, envelope)
    assert found.parcels == found.dead == []
    reason = "kind_unknown" if word == "vendor" else f"kind_{word}"
    assert found.counts[Entry("edge", "dropped", reason)] == 1


def test_an_element_that_is_no_object_becomes_a_dead_letter_and_its_neighbours_go_on(
    world: World,
) -> None:
    body = wire("log", container("alice", PAYLOADS["log"]["items"][0], None))
    found = taken(world, sentry.parse_envelope(body, world.policy.purpose_of_kind))
    assert [parcel.kind for parcel in found.parcels] == ["log"]
    assert {parcel.reason for parcel in found.dead} == {"not_an_object"}
    assert len(found.dead) == 2
    assert all(b"alice" not in parcel.body for parcel in found.dead)
