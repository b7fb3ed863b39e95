"""What Heap has and what Sentry has cannot be joined: no value of theirs is the same.

The same accounts work and fail at both. Every text and every run of letters and digits of at least
eight characters that one recipient gets is looked for in all that the other gets. What both may
have stands below, and why.

``TELEMETRY_JOIN_ACCOUNTS`` is the number of accounts; ``make proof`` takes 100,000.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import structlog

from telemetry import request
from telemetry.edge import Item
from telemetry.identity import Identifier, Resolved
from telemetry.identity.vault import Held
from telemetry.integrations.structlog import AccountsApart
from telemetry.parcel import Parcel
from telemetry.pipeline import Deliver, decide
from telemetry.policy import load_policy, schemas_dir
from tests.unit.making import NOW, World

ACCOUNTS = int(os.environ.get("TELEMETRY_JOIN_ACCOUNTS", "4000"))
WHOLE = 300
"""So many go the whole way from the client's JSON; the others from behind the edge."""

PREFIXES = ("192.0.2", "198.51.100", "203.0.113")
BROWSER = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/126.0.0.0 Safari/537.36"
)
WORD = re.compile(rb"[0-9A-Za-z_-]{8,}")
TEXT = re.compile(rb'"((?:[^"\\]|\\.){8,}?)"')


class Person:
    """One invented account and everything about it that is unique."""

    def __init__(self, n: int) -> None:
        self.n = n
        raw = sha256(b"person %d" % n).hexdigest()
        self.account, self.organization = 7_000_000_000 + n, 6_000_000_000 + n // 20
        self.session, self.device = f"sess-{raw[:24]}", f"dev-{raw[24:48]}"
        self.project = f"proj-{raw[48:]}"
        self.heap_id, self.sentry_id = raw[:32], raw[32:]
        self.trace = sha256(raw.encode()).hexdigest()[:32]
        self.ip = f"{PREFIXES[n % 3]}.{n % 250 + 1}"
        self.at = NOW - timedelta(seconds=n % 80_000, milliseconds=n % 997)
        self.identifiers = (
            Identifier("account", "app:user", str(self.account)),
            Identifier("organization", "app:org", str(self.organization)),
            Identifier("session", "app:session", self.session),
        )

    def analytics(self) -> dict[str, Any]:
        return {
            "event": "task created",
            "time": self.at.isoformat(),
            "account": self.account,
            "organization": self.organization,
            "session": self.session,
            "ip": self.ip,
            "page": f"https://app.example.com/boards/{self.account}",
            "properties": {"project": self.project, "priority": "low", "assignees": self.n % 9},
        }

    def error(self) -> dict[str, Any]:
        frames = [{"filename": "app/boards.py", "function": "save", "lineno": 7, "in_app": True}]
        return {
            "timestamp": self.at.isoformat(),
            "platform": "python",
            "level": "error",
            "user": {
                "id": str(self.account),
                "email": f"p{self.n}@example.com",
                "ip_address": self.ip,
                "session": self.session,
                "organization": str(self.organization),
            },
            "contexts": {"trace": {"trace_id": self.trace, "span_id": self.trace[:16]}},
            "request": {
                "method": "POST",
                "url": f"https://app.example.com/boards/{self.account}",
                "headers": {"User-Agent": BROWSER},
            },
            "exception": {
                "values": [
                    {
                        "type": "ConflictError",
                        "value": f"board of {self.account} changed in {self.trace}",
                        "stacktrace": {"frames": frames},
                    }
                ]
            },
        }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path)
    yield one
    one.close()


def outputs(world: World, people: list[Person]) -> Iterator[tuple[str, Person, bytes]]:
    """Give what each recipient gets of each person."""
    shapes = {
        "heap": _shape(world.parcel("analytics_event", people[0].analytics())),
        "sentry": _shape(world.parcel("error_event", people[0].error())),
    }
    purposes = {shape.purpose for shape, _ in shapes.values()}
    for person in people[:WHOLE]:
        for kind, event, event_id in (
            ("analytics_event", person.analytics(), person.heap_id),
            ("error_event", person.error(), person.sentry_id),
        ):
            (parcel,) = world.take(Item(kind, json.dumps(event).encode(), event_id)).parcels
            yield from _decided(world, person, parcel, world.resolve(parcel))
    for start in range(WHOLE, len(people), 500):
        group = people[start : start + 500]
        places = {i: world.identity._locator(i) for one in group for i in one.identifiers[:2]}
        held = world.identity._vault.secrets(list(places.values()))
        # Asked for all of them at once, as `Identity.resolve` does: one by one it took most of the
        # time.
        world.identity._vault.states(
            [world.identity._tag(purpose, subject) for purpose in purposes for subject in places]
        )
        for person in group:
            for name, event_id in (("heap", person.heap_id), ("sentry", person.sentry_id)):
                parcel = _of(person, *shapes[name], event_id)
                whose = [held[places[person.identifiers[n]]] for n in (0, 1, 0)]
                secrets = tuple(one for one in whose if isinstance(one, Held))
                assert len(secrets) == 3
                identities = Resolved(world.identity, event_id, person.identifiers, secrets)
                yield from _decided(world, person, parcel, identities)


def _shape(parcel: Parcel) -> tuple[Parcel, str]:
    return parcel, json.dumps(json.loads(parcel.body))


def _of(person: Person, shape: Parcel, text: str, event_id: str) -> Parcel:
    """Put a person's own values into what the edge made of the first one's event."""
    first = Person(0)
    for former, own in ((first.trace, person.trace), (first.trace[:16], person.trace[:16])):
        text = text.replace(former, own)
    text = text.replace(f"{PREFIXES[0]}.0/24", f"{PREFIXES[person.n % 3]}.0/24")
    at = person.at.replace(microsecond=0)
    return replace(
        shape, event_id=event_id, occurred_at=at, capsule=b"", body=text.encode(), remarks=b""
    )


def _decided(
    world: World, person: Person, parcel: Parcel, identities: Any
) -> Iterator[tuple[str, Person, bytes]]:
    decision = decide(parcel, identities, world.terms, world.now)
    assert isinstance(decision, dict), decision
    for name, outcome in decision.items():
        assert isinstance(outcome, Deliver), outcome
        yield name, person, outcome.parcel.body


def registry(world: World) -> set[bytes]:
    """Collect the names that everybody's events are made of: keys, event names, enums, tags."""
    names: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            names.update(node)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)
        elif isinstance(node, str):
            names.add(node)

    for path in schemas_dir().glob("*.avsc"):
        walk(json.loads(path.read_text("utf-8")))
    policy = world.policy
    for event, properties in policy.events.items():
        names.update({event, *properties, *(v for p in properties.values() for v in p.values)})
    names |= {policy.digest[:12], policy.notice.version, *policy.retention}
    names |= {"retain_until", "retention_class", "ip_prefix", "milchglas"}
    return {name.encode() for name in names}


def coarse() -> set[bytes]:
    """What both get of a request because many share it: a prefix, a route, a day, an hour."""
    days = {(NOW.date() + timedelta(days=d)).replace(year=2027) for d in (-2, -1, 0)}
    values = {f"{prefix}.0/24" for prefix in PREFIXES} | {day.isoformat() for day in days}
    # What `WORD` sees of a time: minutes stand behind a colon.
    values |= {f"{NOW - timedelta(hours=h):%Y-%m-%dT%H}" for h in range(24)}
    return {value.encode() for value in values | {"https://app.example.com/boards/<id>"}}


@pytest.mark.timeout(120 + ACCOUNTS // 50)
def test_no_value_of_an_account_is_the_same_at_heap_and_at_sentry(world: World) -> None:
    people = [Person(n) for n in range(ACCOUNTS)]
    seen: dict[str, set[bytes]] = {"heap": set(), "sentry": set()}
    carried: dict[str, Counter[bytes]] = {"heap": Counter(), "sentry": Counter()}
    shared_by_rule, count = coarse(), Counter[str]()
    for name, person, body in outputs(world, people):
        count[name] += 1
        for own in (person.account, person.organization, person.session, person.project):
            assert str(own).encode() not in body
        values = {*WORD.findall(body), *TEXT.findall(body)}
        seen[name] |= values
        carried[name].update(values & shared_by_rule)
    assert count == {"heap": ACCOUNTS, "sentry": ACCOUNTS}
    # Each account has a token of its own at each, so what is compared is really there.
    for name, values in seen.items():
        tokens = {value for value in values if value.startswith(f"ps1_{name}_u_".encode())}
        assert len(tokens) == ACCOUNTS
    names = registry(world)
    both = (seen["heap"] & seen["sentry"]) - names
    words = {word for value in names | shared_by_rule for word in WORD.findall(value)}
    assert both - shared_by_rule - words == set()
    # What is shared by rule points at nobody.
    for name, counted in carried.items():
        for value, number in counted.items():
            assert number >= ACCOUNTS // 100, f"{name}: only {number} share {value!r}"


def test_the_comparison_finds_a_trace_id_that_both_have(world: World) -> None:
    person = Person(1)
    heap, sentry = (body for _, _, body in outputs(world, [person]))
    assert person.trace.encode() in WORD.findall(sentry)
    leaked = heap.replace(b'"low"', b'"' + person.trace.encode() + b'"')
    assert leaked != heap
    assert set(WORD.findall(leaked)) & set(WORD.findall(sentry)) >= {person.trace.encode()}


# --- Sentry and the application's own log ---------------------------------------------------------


def application_log(people: list[Person], *, apart: bool) -> list[dict[str, Any]]:
    """Write what an application writes of each request: who it was, and under which trace."""
    written = io.StringIO()
    renderer: list[Any] = [AccountsApart()] if apart else []
    log = structlog.wrap_logger(
        structlog.PrintLogger(written), processors=[*renderer, structlog.processors.JSONRenderer()]
    )
    for person in people:
        account = str(person.account)
        log.info("board saved", user_id=account, trace_id=person.trace)
        text = f"board of {account} changed"
        log.info(text, request={"trace": {"trace_id": person.trace}})
        log.info("failed", traceparent=f"00-{person.trace}-{person.trace[:16]}-01", login=account)
        log.info("signed in", user_id=account)  # no trace: nobody gets here from Sentry
    return [json.loads(line) for line in written.getvalue().splitlines()]


def behind(body: bytes, log: list[dict[str, Any]], people: list[Person]) -> set[int]:
    """Give the accounts that who has an error at Sentry and the log finds by what both hold."""
    words = {word for word in WORD.findall(body) if len(word) >= 16}  # ids, no names
    lines = [json.dumps(line).encode() for line in log]
    joined = [line for line in lines if any(word in line for word in words)]
    return {one.account for one in people if any(b"%d" % one.account in line for line in joined)}


def test_who_reads_sentry_and_the_applications_log_finds_no_account_by_the_trace(
    world: World,
) -> None:
    people = [Person(n) for n in range(20)]
    errors = [(p, body) for name, p, body in outputs(world, people) if name == "sentry"]
    assert all(person.trace.encode() in body for person, body in errors)
    # As shipped the trace id leaves. A log that names the account beside it gives everybody away.
    for person, body in errors:
        assert behind(body, application_log(people, apart=False), people) == {person.account}
    log = application_log(people, apart=True)
    with_request = []
    for person in people:
        with request(account=person.account):
            with_request += application_log([person], apart=True)
    for _, body in errors:
        assert behind(body, with_request, people) == set()
        # Without the processor in the request's own context a text may still name the account
        # alone; where the same line holds it in a field, it is gone from the text too.
        assert (
            behind(body, [line for line in log if "event" in line and "user_id" in line], people)
            == set()
        )
    # What has no trace is left as it was: the log is as useful as before.
    signed = [line for line in with_request if line["event"] == "signed in"]
    assert [line["user_id"] for line in signed] == [str(person.account) for person in people]


def test_where_the_policy_drops_traces_nothing_at_sentry_is_in_the_applications_log(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(schemas_dir() / "policy", folder)
    file = folder / "pseudonyms.toml"
    text = file.read_text("utf-8")
    assert 'mode = "keep"' in text
    file.write_text(text.replace('mode = "keep"', 'mode = "drop"'), "utf-8")
    world = World(tmp_path / "state", policy=load_policy(folder))
    try:
        people = [Person(n) for n in range(20)]
        log = application_log(people, apart=False)
        errors = [(p, body) for name, p, body in outputs(world, people) if name == "sentry"]
        assert len(errors) == 20
        for person, body in errors:
            # Nor where the error's own text repeats it.
            assert b"board of <account> changed in <id>" in body
            assert set(json.loads(body)["contexts"]["trace"].values()) == {None}
            assert person.trace.encode() not in body
            assert person.trace[:16].encode() not in body
            assert behind(body, log, people) == set()
    finally:
        world.close()
