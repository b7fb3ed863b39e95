"""Everything that sends in the demo: two applications with their visitors, and a job for Heap.

The applications run as processes of their own (`telemetry.demo.app`); their visitors are in here
and come with bodies, cookies, headers and query strings. The job calls Heap's HTTP interface
directly, in bulk and one by one, as a server without any SDK does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from telemetry.demo.app import ROUTES
from telemetry.demo.people import Person, World
from telemetry.errors import ConfigError

__all__ = ["FEEDBACK", "Driven", "drive"]

FEEDBACK: Final = "Wochenenden im Gantt-Plan bitte grau"
"""Begins the remark of one single event: how it is found again at the recipient."""

_METHODS: Final = {action: method for method, action in ROUTES}
_MISTAKES: Final = (
    "sign_in invite pay export webhook api progress mention profile comment".split()  # noqa: SIM905
)
_UNKNOWN_TO_SDK: Final = frozenset(("mention", "comment"))
_APP_MISTAKES, _WORKER_MISTAKES, _BOARDS, _TASKS = 4, 7, 6, 3
_BULK_EVENTS, _BULK = 100, 200
_AT_ONCE: Final = 4
_START_S: Final = 30.0
_FINISH_S: Final = 40.0
_USER_AGENT: Final = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:{version}.0) Gecko/20100101 Firefox/{version}.0"
)


@dataclass(slots=True)
class Driven:
    """What the clients did.

    Attributes:
        actions: Requests made.
        references: By application (``sdk``, ``sentry``) and number of the person: the error
            references that its 500 pages showed.
        failures: What did not work, in words without values.
    """

    actions: int = 0
    references: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def drive(gateway: str, world: World, progress: Callable[[int, int], None]) -> Driven:
    """Run all clients against a gateway; return when each has handed over all it had.

    Args:
        gateway: Base URL.
        world: Whom it concerns.
        progress: Told after each action how many of how many are done.

    Raises:
        ConfigError: An application does not start.
    """
    driven = Driven()
    lock = threading.Lock()
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(_application(name, gateway, world, driven))
            for name in ("sdk", "sentry")
        }
        visits = [
            (name, person, tuple(_plan(name, person))) for person in world.people for name in ports
        ]
        calls = list(_heap_calls(world))
        total = sum(len(plan) for _, _, plan in visits) + len(calls)

        def done() -> None:
            with lock:
                driven.actions += 1
                progress(driven.actions, total)

        def visit(name: str, person: Person, plan: Sequence[str]) -> None:
            for action in plan:
                reference = _visit(ports[name], person, action)
                if reference is None:
                    driven.failures.append(f"{name}: no answer to {action}")
                elif reference:
                    with lock:
                        driven.references.setdefault((name, person.number), []).append(reference)
                done()

        def job() -> None:
            for path, body, lines in calls:
                if _post(gateway, path, body, lines=lines) != 200:  # noqa: PLR2004 - OK
                    driven.failures.append(f"heap: {path} was refused")
                done()

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            waiting = [pool.submit(job), *(pool.submit(visit, *one) for one in visits)]
            for one in waiting:
                one.result()
    return driven


# Two applications and who visits them


@contextmanager
def _application(name: str, gateway: str, world: World, driven: Driven) -> Iterator[int]:
    """Run an application; give its port. Ends when its telemetry is handed over."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("TELEMETRY_", "SENTRY_"))}
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "telemetry.demo.app", name, gateway, str(len(world.people))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
        text=True,
    )
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    assert process.stdin is not None  # noqa: S101 - as above
    alarm = threading.Timer(_START_S, process.kill)
    alarm.start()
    try:
        port = process.stdout.readline().strip()
        alarm.cancel()
        if not port.isdigit():
            raise ConfigError(f"the demo's application {name!r} does not start")
        yield int(port)
        process.stdin.close()
        if process.wait(_FINISH_S) != 0:
            driven.failures.append(f"{name}: not everything was handed over")
    finally:
        alarm.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def _plan(name: str, person: Person) -> Iterator[str]:
    """Say what somebody does: mostly what works, and some of everything that does not."""
    yield from ["board"] * _BOARDS if name == "sdk" else ["board"]
    yield from ["task"] * _TASKS
    # The SDK of a request knows ids and address, not the name: what says only a name is left to
    # the application that tells Sentry whose request it is.
    mistakes = [one for one in _MISTAKES if name == "sentry" or one not in _UNKNOWN_TO_SDK]
    count = _APP_MISTAKES if name == "sdk" else _WORKER_MISTAKES
    for step in range(count if person.number > 1 else len(mistakes)):
        yield mistakes[(person.number + step) % len(mistakes)]


def _visit(port: int, person: Person, action: str) -> str | None:
    """Make one request; give the error reference of a 500 page, empty without, None if it fails."""
    project = person.organization.projects[0]
    form = {
        "board": {"view": "kanban", "q": project.title},
        "task": {"title": project.task, "assignee": person.email},
        "comment": {"text": project.comment},
        "sign_in": {"email": person.email, "password": person.password},
        "invite": {"email": person.email, "name": person.name},
        "pay": {"iban": person.iban, "card": person.card},
        "profile": {
            "phone": person.phone,
            "birth_date": person.birth_date,
            "street": person.street,
        },
        "webhook": {"token": person.api_token},
        "api": {"token": person.api_token, "since": "2026-01-01"},
        "progress": {"title": project.title, "task": project.task},
        "mention": {"username": person.username},
    }.get(action, {})
    method = _METHODS[action]
    target, body = f"/{action}", None
    if method == "GET":
        target += f"?{urlencode({**form, 'email': person.email})}"
    else:
        body = json.dumps(form).encode()
    headers = {
        "Host": "flow.example",
        "Content-Type": "application/json",
        "Cookie": f"flow_session={person.session}; theme=dark",
        "Authorization": f"Bearer {person.api_token}",
        "X-Forwarded-For": person.ipv6 if person.number % 2 else person.ipv4,
        "User-Agent": _USER_AGENT.format(version=120 + person.number % 20),
        "Referer": f"https://flow.example/people/{person.username}?phone={person.phone}".replace(
            " ", "%20"
        ),
    }
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, target, body, headers)
        answer = json.loads(connection.getresponse().read())
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return str(answer.get("reference", ""))


# A job that calls Heap's interface itself

_Call = tuple[str, Any, bool]


def _heap_calls(world: World) -> Iterator[_Call]:
    """Give paths and bodies: in bulk, one by one, facts about accounts, and what must not pass."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    bulk = [
        _heap_event(person, number, now)
        for number in range(_BULK_EVENTS)
        for person in world.people
    ]
    for start in range(0, len(bulk), _BULK):
        yield "/api/track", {"app_id": "11", "events": bulk[start : start + _BULK]}, False
    first = world.people[0]
    remark = f"{FEEDBACK}. Rückfragen an {first.email} oder {first.phone}."
    yield (
        "/api/track",
        {
            "app_id": "11",
            "event": "feature feedback given",
            "identity": str(first.account),
            "timestamp": now,
            "session_id": first.session,
            "idempotency_key": f"feedback-{first.account}",
            "properties": {"score": 9, "remark": remark, "author": first.name, "ip": first.ipv4},
        },
        False,
    )
    for person in world.people:
        event = _heap_event(person, _BULK_EVENTS, now)
        yield "/api/track", {"app_id": "11", **event}, False
        if not person.number % 5:
            # Nobody has declared what this event may say: it is dropped and counted.
            event = {**event, "event": "newsletter opened", "idempotency_key": None}
            yield "/api/track", {"app_id": "11", **event}, False
    users = [
        {
            "identity": str(person.account),
            "properties": {"plan": "business", "seats": 12, **person.planted},
        }
        for person in world.people
        if not person.number % 2
    ]
    yield "/api/add_user_properties", {"app_id": "11", "users": users}, False
    # A log shipper that was cut off in the middle of a line: parked, sealed, as a dead letter.
    whole = {"event": "page viewed", "account": first.account, "page": "/boards"}
    torn = [json.dumps(whole), *(f'{{"event": "page viewed", "mail": "{p.email}'
                                 for p in world.people[:3])]  # fmt: skip
    yield "/v1/events", "\n".join(torn), True


def _heap_event(person: Person, number: int, now: str) -> Mapping[str, Any]:
    """Make an event that says what it may, and all that it may not."""
    project = person.organization.projects[0]
    declared: tuple[str, dict[str, Any]] = (
        ("page viewed", {}),
        ("task completed", {"project": project.id, "days_open": 2.5}),
        ("comment added", {"project": project.id, "mentions": 2}),
        ("search used", {"scope": "people", "results": number}),
        ("signed in", {"method": "password"}),
        ("organization created", {"size": "11-50"}),
    )[number % 6]
    event, properties = declared
    undeclared: Mapping[str, Any] = {"query": project.title, "page_url": f"/people/{person.email}"}
    if not number:
        organization = person.organization
        undeclared = {
            **person.planted,
            "organization": {"id": organization.id, "name": organization.name},
            "project": project.id,
            "project_title": project.title,
            "texts": [project.task, project.comment],
        }
    return {
        "event": event,
        "identity": str(person.account),
        "timestamp": now,
        "session_id": person.session,
        "idempotency_key": f"{person.account}-{number}",
        "properties": {**undeclared, **properties},
    }


def _post(gateway: str, path: str, body: Any, *, lines: bool) -> int:
    """Post JSON, or lines of it; give the status, 0 without an answer."""
    connection = HTTPConnection(urlsplit(gateway).netloc, timeout=30)
    content_type = "application/x-ndjson" if lines else "application/json"
    raw = body if lines else json.dumps(body, ensure_ascii=False)
    try:
        headers = {"Content-Type": content_type, "Authorization": "Bearer demo"}
        connection.request("POST", path, raw.encode(), headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, HTTPException):
        return 0
    else:
        return answer.status
    finally:
        connection.close()
