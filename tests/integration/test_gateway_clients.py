"""Real clients, as applications install them, against the real edge over loopback."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

import telemetry.gateway
from scrubbers.detectors import Detectors
from scrubbers.shipped import detector_table
from telemetry.brokers import Entry
from telemetry.edge import Edge
from telemetry.gateway import Gateway, Projects
from telemetry.identity import initialise_development, load_dead_letter_sealer, load_sealer
from telemetry.intake import Intake, Taken
from telemetry.parcel import Parcel
from telemetry.pipeline import Deliver
from telemetry.policy import load_policy
from telemetry.rules import Schemas
from telemetry.sinks import Delivered, Delivery
from telemetry.sinks.sentry import SentrySink
from telemetry.testing import SentryStandIn
from tests.conftest import require
from tests.unit.making import World, everything_on

NODE = Path(__file__).parent / "node"
PLANTED = ("alice.planted@example.org", "planted-account")


class Collected:
    """What reached the log."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.encodings: Counter[str] = Counter()
        self.requests: Counter[tuple[str, ...]] = Counter()
        self.port = 0

    async def store(self, taken: Taken) -> None:
        self.taken.append(taken)

    def count(self, name: str, labels: tuple[str, ...], number: int) -> None:
        if name == "requests":
            self.requests[labels] += number

    @property
    def parcels(self) -> list[Parcel]:
        return [parcel for taken in self.taken for parcel in taken.parcels]

    @property
    def kinds(self) -> Counter[str]:
        return Counter(parcel.kind for parcel in self.parcels)

    @property
    def dropped(self) -> set[str]:
        entries: Counter[Entry] = Counter()
        for taken in self.taken:
            entries.update(taken.counts)
        return {entry.reason for entry in entries if entry.outcome == "dropped"}

    def bodies(self, kind: str) -> list[dict[str, object]]:
        return [json.loads(parcel.body) for parcel in self.parcels if parcel.kind == kind]

    def assert_clean(self) -> None:
        """No request failed, nothing was parked, and no planted value reached the log."""
        assert {status for _, status in self.requests} == {"200"}
        assert [parcel for taken in self.taken for parcel in taken.dead] == []
        for parcel in self.parcels:
            for value in PLANTED:
                assert value.encode() not in parcel.body + parcel.remarks + parcel.capsule


@pytest.fixture
def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    """A gateway under the shipped policy."""
    initialise_development(tmp_path)
    [public] = tmp_path.rglob("public.json")
    policy = load_policy()
    edge = Edge(Schemas(policy, Detectors.compile(detector_table())))
    intake = Intake(policy, edge, load_sealer(public), load_dead_letter_sealer(public))
    with serving(intake, policy.purpose_of_kind, monkeypatch) as found:
        yield found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An installation under a policy that has every kind switched on."""
    policy = everything_on(tmp_path / "policy")
    one = World(tmp_path / "state", now=lambda: datetime.now(UTC), policy=policy)
    one.now = datetime.now(UTC)
    yield one
    one.close()


@pytest.fixture
def everything(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    """A gateway in front of it."""
    with serving(world.intake, world.policy.purpose_of_kind, monkeypatch) as found:
        yield found


@contextmanager
def serving(
    intake: Intake, kinds: Container[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Collected]:
    """Run a gateway on a loop of its own, because clients block."""
    found = Collected()
    unpack = telemetry.gateway.decompress

    def note(data: bytes, encoding: str) -> bytes:
        found.encodings[encoding] += 1
        return unpack(data, encoding)

    monkeypatch.setattr(telemetry.gateway, "decompress", note)
    gateway = Gateway(
        intake,
        found.store,
        projects=Projects({}, open_to_all=True),
        kinds=kinds,
        environment="development",
        count=found.count,
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        start = asyncio.run_coroutine_threadsafe(gateway.start("127.0.0.1", 0), loop)
        found.port = start.result(10)[1]
        yield found
        asyncio.run_coroutine_threadsafe(gateway.stop(), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def run(*command: str) -> None:
    """Run a client to its end; on failure show what it said."""
    done = subprocess.run(  # noqa: S603 - our own scripts
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=NODE,
    )
    assert done.returncode == 0, done.stderr[-2000:]


SENTRY_SDK = """
import sys

if sys.argv[2] == "gzip":  # the client takes brotli as soon as it can be imported
    sys.modules["brotli"] = None

import sentry_sdk
from sentry_sdk.crons import capture_checkin

sentry_sdk.init(dsn=sys.argv[1], release="shop@1.2.3", traces_sample_rate=1.0, enable_logs=True)
# Put together here: a source line that holds an id is the program's own and would stay as it is.
sentry_sdk.set_user({"id": "-".join(["planted", "account"]), "email": "alice.planted@example.org"})

def save(order):
    secret = "alice.planted@example.org"
    raise ValueError(f"no mail to {secret}")

with sentry_sdk.start_transaction(name="save"):
    try:
        save(7)
    except ValueError:
        sentry_sdk.capture_exception()
scope = sentry_sdk.get_isolation_scope()
scope.start_session(session_mode="application")
scope.end_session()
check = capture_checkin(monitor_slug="nightly", status="in_progress")
capture_checkin(monitor_slug="nightly", check_in_id=check, status="ok", duration=1.5)
sentry_sdk.logger.info("alice.planted@example.org has logged in")
sentry_sdk.get_client().close(timeout=10)
"""


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_sentry_sdk_delivers_errors_sessions_and_check_ins(
    collected: Collected, encoding: str
) -> None:
    dsn = f"http://pub@127.0.0.1:{collected.port}/1"
    run(sys.executable, "-c", SENTRY_SDK, dsn, encoding)
    collected.assert_clean()
    assert set(collected.encodings) == {encoding}
    assert collected.kinds["error_event"] == 1
    assert collected.kinds["check_in"] == 2
    assert collected.kinds["session"] + collected.kinds["sessions"] >= 1
    assert {"kind_transaction", "kind_log"} <= collected.dropped
    [event] = collected.bodies("error_event")
    shown = json.dumps(event)
    assert "ValueError" in shown
    assert '"function": "save"' in shown
    assert "no mail to <email" in shown


def installed(folder: Path) -> str:
    """Install the Node clients from the lock file, once; say what is missing, if anything is."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "node or npm is not installed"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    major, minor = (int(part) for part in version.stdout.strip("v \n").split(".")[:2])
    if (major, minor) < (20, 19):
        return "node is older than 20.19, which @sentry/node 11 needs"
    done, lock = folder / "node_modules" / ".package-lock.json", folder / "package-lock.json"
    # Two workers that install at once would take each other's files away.
    with (folder / ".installing").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if done.is_file() and done.stat().st_mtime >= lock.stat().st_mtime:
            return ""
        return _install(npm, folder)


def _install(npm: str, folder: Path) -> str:
    try:
        result = subprocess.run(  # noqa: S603 - a fixed command
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder,
            capture_output=True,
            timeout=100,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "npm ci did not finish in time"
    return "" if result.returncode == 0 else "npm ci failed (no package registry?)"


@pytest.fixture(scope="module")
def node() -> str:
    require("node", installed(NODE))
    return shutil.which("node") or ""


@pytest.mark.node
@pytest.mark.xdist_group("node")
@pytest.mark.parametrize("package", ["@sentry/node", "sentry-node-10"])
def test_sentry_node_delivers_errors_sessions_and_check_ins(
    collected: Collected, node: str, package: str
) -> None:
    run(node, "sentry.js", package, f"http://pub@127.0.0.1:{collected.port}/1")
    collected.assert_clean()
    assert collected.kinds["error_event"] == 2
    assert collected.kinds["check_in"] == 2
    assert collected.kinds["session"] + collected.kinds["sessions"] >= 1
    assert {"", "gzip"} == set(collected.encodings)
    assert "kind_span" in collected.dropped or "kind_transaction" in collected.dropped
    shown = json.dumps(collected.bodies("error_event"))
    assert "TypeError" in shown
    assert "no mail to <email" in shown


def sent_on(world: World, collected: Collected) -> SentryStandIn:
    """Take what was collected to a Sentry."""
    deliveries = []
    for parcel in collected.parcels:
        decision = world.decide(parcel)
        assert isinstance(decision, dict), decision
        outcome = decision["sentry"]
        assert isinstance(outcome, Deliver), (parcel.kind, outcome)
        deliveries.append(
            Delivery(
                delivery_id=outcome.parcel.event_id,
                kind=parcel.kind,
                body=outcome.parcel.body,
                occurred_at=parcel.occurred_at,
            )
        )

    async def main(there: SentryStandIn) -> None:
        sink = SentrySink(dsn=there.dsn)
        assert set(await sink.send(deliveries)) == {Delivered()}
        await sink.close()

    with SentryStandIn() as there:
        asyncio.run(main(there))
    assert there.violations == []
    assert there.addresses() == set()
    for request in there.requests:
        for value in (*PLANTED, "7744556123", "203.0.113.77", "planted-token-77"):
            assert value.encode() not in request.as_bytes()
    return there


EVERY_KIND = """
import logging
import sqlite3
import sys

import sentry_sdk

mail = "@".join(["alice.planted", "example.org"])
sentry_sdk.init(
    dsn=sys.argv[1], release="shop@1.2.3", traces_sample_rate=1.0, profiles_sample_rate=1.0,
    enable_logs=True, enable_metrics=True, send_default_pii=True,
)
sentry_sdk.set_user(
    {"id": str(7744556 * 1000 + 123), "email": mail, "ip_address": "203.0.113.77"}
)
with sentry_sdk.start_transaction(op="http.server", name=f"/users/{mail}") as transaction:
    transaction.set_data("url", f"http://shop.example.com/?q={mail}")
    with sentry_sdk.start_span(op="db", name=f"SELECT * FROM u WHERE mail='{mail}'") as span:
        span.set_data("db.system", "postgresql")
    sqlite3.connect(":memory:").execute("select 1")
    sentry_sdk.logger.warning("hello {who}", who=mail, attributes={"own": mail})
    logging.getLogger("shop").error("no mail to %s", mail)
    sentry_sdk.metrics.count("orders", 3, attributes={"who": mail})
    sentry_sdk.metrics.distribution("latency", 3.5, unit="millisecond")
    sentry_sdk.get_current_scope().add_attachment(bytes=mail.encode(), filename="a.txt")
    try:
        raise ValueError(f"no mail to {mail}")
    except ValueError:
        sentry_sdk.capture_exception()
sentry_sdk.get_client().close(timeout=10)
"""


def test_every_kind_of_sentry_sdk_arrives_where_all_are_switched_on(
    everything: Collected, world: World
) -> None:
    run(sys.executable, "-c", EVERY_KIND, f"http://pub@127.0.0.1:{everything.port}/1")
    everything.assert_clean()
    assert {"transaction", "log", "trace_metric", "error_event"} <= set(everything.kinds)
    assert {"kind_profile", "kind_attachment"} <= everything.dropped
    there = sent_on(world, everything)
    (transaction,) = there.payloads("transaction")
    assert transaction["transaction"] == "/users/<id>"
    assert {"db"} <= {span["op"] for span in transaction["spans"]}
    lines = {one["body"] for each in there.payloads("log") for one in each["items"]}
    assert lines == {"hello <email:1>", "no mail to <email:1>"}
    (metrics,) = there.payloads("trace_metric")
    assert {one["name"]: one["value"] for one in metrics["items"]} == {"orders": 3, "latency": 3.5}


@pytest.mark.node
@pytest.mark.xdist_group("node")
@pytest.mark.parametrize("package", ["@sentry/node", "sentry-node-10"])
def test_every_kind_of_sentry_node_arrives_where_all_are_switched_on(
    everything: Collected, world: World, node: str, package: str
) -> None:
    run(node, "kinds.js", package, f"http://pub@127.0.0.1:{everything.port}/1")
    everything.assert_clean()
    traces = "transaction" if package == "sentry-node-10" else "span"
    assert {traces, "log", "trace_metric", "feedback", "error_event"} <= set(everything.kinds)
    assert "kind_attachment" in everything.dropped
    there = sent_on(world, everything)
    (feedback,) = there.payloads("feedback")
    assert feedback["contexts"]["feedback"]["message"] == "call <email:1>"
    shown = json.dumps(there.payloads(traces))
    assert "/users/<id>" in shown
    assert "GET /orders" in shown
    (line,) = [one for each in there.payloads("log") for one in each["items"]]
    assert line["body"] == "<email:1> has logged in"
    assert line["attributes"]["user.id"]["value"].startswith("ps1_sentry_u_")


@pytest.mark.node
@pytest.mark.xdist_group("node")
def test_heap_api_delivers_events_and_users(collected: Collected, node: str) -> None:
    run(node, "heap.js", f"http://127.0.0.1:{collected.port}")
    collected.assert_clean()
    assert collected.kinds == Counter(analytics_event=1, user_properties=1)
    assert all(parcel.capsule for parcel in collected.parcels)
    assert collected.bodies("analytics_event")[0]["event"] == "page viewed"
