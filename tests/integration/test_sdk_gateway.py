"""The SDK and a real gateway: what one writes, the other reads, seals and takes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import sentry_sdk

import telemetry
from scrubbers.detectors import Detectors
from telemetry.config import Project
from telemetry.edge import Edge
from telemetry.gateway import Gateway, Projects
from telemetry.identity import Identifier
from telemetry.intake import Intake, Taken
from telemetry.policy import load_policy
from telemetry.rules import Schemas


class OpenSealer:
    """Seals nothing, so that a test can see what would be sealed."""

    def seal(self, *parts: Any, **named: Any) -> bytes:
        (identifiers,) = [
            part
            for part in (*parts, *named.values())
            if isinstance(part, list | tuple) and all(isinstance(i, Identifier) for i in part)
        ]
        return json.dumps({i.namespace: i.canonical_id for i in identifiers}).encode()


class RealGateway:
    """A gateway in its own thread, keyed, with a log that keeps what it took."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    def serve(self, ready: Future[None]) -> None:
        try:
            self._loop.run_until_complete(self._serve(ready))
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            ready.set_exception(error)
        self._loop.close()

    async def _serve(self, ready: Future[None]) -> None:
        policy = load_policy()
        edge = Edge(Schemas(policy, Detectors.compile(policy.detector_table)))
        gateway = Gateway(
            Intake(policy, edge, OpenSealer(), None),  # type: ignore[arg-type]
            self._store,
            projects=Projects({"7": Project(key="pub123", tenant="flow")}, open_to_all=False),
            kinds=frozenset(policy.purpose_of_kind),
            environment="development",
        )
        _, self.port = await gateway.start("127.0.0.1", 0)
        ready.set_result(None)
        await self._stop.wait()
        await gateway.stop()

    async def _store(self, taken: Taken) -> None:
        self.taken.append(taken)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def of(self, kind: str) -> list[tuple[dict[str, Any], dict[str, Any], str]]:
        return [
            (json.loads(parcel.body), json.loads(parcel.capsule or b"{}"), parcel.event_id)
            for taken in self.taken
            for parcel in taken.parcels
            if parcel.kind == kind
        ]


@pytest.fixture
def gateway() -> Iterator[RealGateway]:
    running = RealGateway()
    ready: Future[None] = Future()
    thread = threading.Thread(target=running.serve, args=(ready,), daemon=True)
    thread.start()
    ready.result(10)
    yield running
    running.end()
    thread.join(10)


@pytest.fixture
def flow(gateway: RealGateway) -> Iterator[RealGateway]:
    sentry_sdk.get_global_scope().set_client(None)
    with sentry_sdk.isolation_scope() as scope:
        scope.clear()
        url = f"http://pub123@127.0.0.1:{gateway.port}/7"
        telemetry.init(service="flow", environment="test", url=url)
        yield gateway
        telemetry.shutdown()
    sentry_sdk.get_global_scope().set_client(None)


def test_the_gateway_seals_the_ids_that_the_sdk_handed_over(flow: RealGateway) -> None:
    with telemetry.request(
        route="/boards/{board}",
        headers={"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Firefox/128.0"},
        client_ip="203.0.113.77",
        account=471142,
        organization=12,
        session="session-0815-abc",
    ):
        telemetry.track("board opened", properties={"project": "p-77", "columns": 5})
        telemetry.identify(471142, properties={"plan": "team"})
        shown = telemetry.capture_exception(ValueError("no row for 471142"))
    assert telemetry.flush(10)
    assert telemetry.stats()["handed_over"] == 3
    ((event, sealed, _),) = flow.of("analytics_event")
    assert sealed == {
        "app:user": "471142",
        "app:org": "12",
        "app:session": "session-0815-abc",
        "app:object:project": "p-77",
    }
    assert event["properties"] == {"columns": 5}
    assert (event["page"], event["ip"]) == ("/boards/{board}", "203.0.113.0/24")
    assert "128.0)" not in event["user_agent"]
    assert event["user_agent"].startswith("Firefox")
    ((_, sealed, _),) = flow.of("user_properties")
    assert sealed == {"app:user": "471142", "app:org": "12"}
    ((error, sealed, event_id),) = flow.of("error_event")
    assert event_id == shown
    assert sealed["app:user"] == "471142"
    assert error["exception"]["values"][0]["value"] == "no row for <account>"
    assert all(not taken.dead for taken in flow.taken)


def test_a_second_scrub_changes_nothing_that_the_first_one_left(flow: RealGateway) -> None:
    """Else the gateway would lose what the SDK kept: shapes, prefixes, templates, placeholders."""

    def fail(depth: int) -> None:
        items, empty, name = [depth], "", "Erika"
        if depth:
            fail(depth - 1)
        raise ValueError(f"{name} erika.beispiel@example.com from 203.0.113.77: {items} {empty}")

    try:
        fail(2)
    except ValueError:
        telemetry.capture_exception()
    assert telemetry.flush(10)
    ((error, _, _),) = flow.of("error_event")
    value = error["exception"]["values"][0]
    assert value["value"] == "Erika <email:1> from <ip>: [0] "
    assert value["stacktrace"]["frames"][-1]["vars"] == {
        "depth": "number",
        "items": "list",
        "empty": "empty",
        "name": "text",
        "fail": "object",
    }


def test_existing_sentry_calls_reach_the_gateway(flow: RealGateway) -> None:
    sentry_sdk.crons.capture_checkin(monitor_slug="nightly", status="ok")
    with sentry_sdk.isolation_scope() as scope:
        scope.set_user({"id": "471142"})
        scope.start_session(session_mode="application")
        scope.end_session()
    sentry_sdk.flush(2)
    assert telemetry.flush(10)
    ((check_in, _, _),) = flow.of("check_in")
    assert check_in["monitor_slug"] == "nightly"
    assert flow.of("session") or flow.of("sessions")
    assert all(not taken.dead for taken in flow.taken)


@pytest.mark.parametrize("key", ["wrong", ""])
def test_a_wrong_key_loses_nothing_until_somebody_corrects_it(
    gateway: RealGateway, key: str
) -> None:
    url = f"http://{key}@127.0.0.1:{gateway.port}/7"
    telemetry.init(service="flow", environment="test", url=url, errors=False)
    try:
        telemetry.track("board opened")
        assert not telemetry.flush(0.5)
        assert telemetry.stats()["pending"] == 1
        assert gateway.taken == []
    finally:
        telemetry.shutdown(0)
