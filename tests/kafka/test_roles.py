"""The roles as processes of their own, each with what it needs and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import kafka
import pytest
import sqlalchemy
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from typer.testing import CliRunner

from telemetry.admin import NoAnswerError, NotRunningError, ask
from telemetry.brokers import DEAD, HELD, ORDERS, SEALED, Order, clean
from telemetry.brokers.kafka.topics import grants_for, topics_for
from telemetry.cli import app
from telemetry.cli import roles as _registered  # noqa: F401 - it registers the commands
from telemetry.config import BrokerSection
from telemetry.demo.clients import drive
from telemetry.demo.people import World
from telemetry.demo.recorder import Recorder
from telemetry.demo.stage import heap_count, sentry_count
from telemetry.identity import initialise_development
from telemetry.policy import load_policy
from telemetry.testing.heap import HeapStandIn
from telemetry.testing.leaks import Leaks, files_under, received_by
from telemetry.testing.sentry import SentryStandIn
from tests.integration.running import COMMAND, environment, free_port, until
from tests.kafka.server import KafkaServer, password_of, unsecured_token
from tests.kafka.topics import open_broker
from tests.postgres import postgres

PEOPLE = 14
GATEWAY, PSEUDONYMIZER = "gateway", "pseudonymizer"
FORWARDERS = ("forwarder-heap", "forwarder-sentry")


class Role:
    """One process, with a folder, a user of the broker, and settings of its own."""

    def __init__(self, folder: Path, user: str, kafka_: Mapping[str, str], *, member: str) -> None:
        self.user, self.member = user, member
        self.folder = folder / member
        self.state = self.folder / "state"
        (self.state / "keys").mkdir(parents=True, mode=0o700)
        self.output = self.folder / "output.txt"
        self.port, self.admin_port = free_port(), free_port()
        password = self.folder / "password"
        password.write_text(password_of(user), "utf-8")
        section = {**kafka_, "username": user, "password_file": str(password), "member": member}
        lines = ["[broker]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
        if user == GATEWAY:
            lines[:0] = ["[gateway]", 'on_broker_loss = "reject"']
        self.config = self.folder / "telemetry.toml"
        self.config.write_text("\n".join([*lines, ""]), "utf-8")
        self.process: subprocess.Popen[bytes] | None = None
        self.more: dict[str, str] = {}

    def start(self) -> None:
        command = {GATEWAY: ["gateway"], PSEUDONYMIZER: ["pseudonymize"]}.get(
            self.user, ["forward", self.user.removeprefix("forwarder-")]
        )
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                [*COMMAND, *command, "--config", str(self.config), "--state", str(self.state)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(
                    TELEMETRY_BIND=f"127.0.0.1:{self.port}",
                    TELEMETRY_ADMIN_BIND=f"127.0.0.1:{self.admin_port}",
                    **self.more,
                ),
            )

    def up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()[-3000:]
        return "Health and metrics" in self.said()

    def said(self) -> str:
        return self.output.read_text("utf-8", "replace") if self.output.exists() else ""

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(30)

    def books(self) -> dict[str, Any]:
        try:
            figures: dict[str, Any] = ask(self.state, "GET", "/books")
        except (NoAnswerError, NotRunningError):
            return {}
        return figures

    def files(self) -> set[str]:
        return {path.name for path in self.state.rglob("*") if path.is_file()}


@pytest.fixture
def secured(server: KafkaServer) -> Mapping[str, Any]:
    """Settings of a broker section for the protected listener, on a prefix of their own."""
    prefix = f"r{token_hex(4)}"
    return {
        "kind": "kafka",
        "bootstrap": server.secure,
        "protocol": "sasl_tls",
        "ca_file": str(server.ca),
        "mechanism": "SCRAM-SHA-512",
        "topic_prefix": prefix,
        "group_prefix": prefix,
        "partitions": 2,
        "replication": 1,
    }


def administrator(folder: Path, secured: Mapping[str, Any]) -> Path:
    """Write the settings with which an administrator makes the topics."""
    folder.mkdir(exist_ok=True)
    password = folder / "admin-password"
    password.write_text(password_of("admin"), "utf-8")
    section = {**secured, "username": "admin", "password_file": str(password)}
    path = folder / "admin.toml"
    path.write_text(
        "[broker]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in section.items()), "utf-8"
    )
    return path


def telemetry(*arguments: str) -> Any:
    """Run a command in this process; its start alone takes a second."""
    return CliRunner().invoke(app, arguments, env={"TELEMETRY_CONFIG": ""})


def make_topics(admin: Path, server: KafkaServer, secured: Mapping[str, Any]) -> None:
    """Make the topics as an administrator, with the command for it, and grant the rights."""
    done = telemetry("topics", "apply", "--yes", "--config", str(admin))
    assert done.exit_code == 0, done.output
    grant(server, BrokerSection(**secured))


def grant(server: KafkaServer, section: BrokerSection) -> None:
    """Give each role what `telemetry topics print --acls` says, and no more."""
    admin = kafka.KafkaAdminClient(bootstrap_servers=server.bootstrap)
    admin.create_acls(
        [
            ACL(
                principal=f"User:{one.role}",
                host="*",
                operation=ACLOperation[operation.upper()],
                permission_type=ACLPermissionType.ALLOW,
                resource_pattern=ResourcePattern(ResourceType[one.resource.upper()], one.name),
            )
            for one in grants_for(section, topics_for(section, load_policy()))
            for operation in one.operations
        ]
    )
    admin.close()


@pytest.fixture
def database() -> Iterator[str]:
    with postgres() as url:
        yield url


def with_journal(database: str) -> str:
    """Make the database of the tombstone journal, beside that of the vault."""
    engine = sqlalchemy.create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        found = "SELECT 1 FROM pg_database WHERE datname = 'journal'"
        if connection.exec_driver_sql(found).first() is None:
            connection.exec_driver_sql("CREATE DATABASE journal")
    engine.dispose()
    return database.replace("/postgres?", "/journal?")


@pytest.fixture
def cast(
    tmp_path: Path, server: KafkaServer, secured: Mapping[str, Any], database: str
) -> Iterator[tuple[dict[str, Role], HeapStandIn, SentryStandIn]]:
    """Make all roles, started: two pseudonymizers, one of each other."""
    admin = administrator(tmp_path / "admin", secured)
    make_topics(admin, server, secured)
    users = {GATEWAY: GATEWAY, "p-0": PSEUDONYMIZER, "p-1": PSEUDONYMIZER}
    users |= {name: name for name in FORWARDERS}
    roles = {
        member: Role(tmp_path / "roles", user, secured, member=member)
        for member, user in users.items()
    }
    # Keys are made where keys are; both pseudonymizers have the same, and one vault.
    initialise_development(roles["p-0"].state)
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        roles["forwarder-heap"].more = {
            "TELEMETRY_HEAP_URL": heap.url,
            "TELEMETRY_HEAP_APP_ID": heap.settings["app_id"],
        }
        roles["forwarder-sentry"].more = {"TELEMETRY_SENTRY_DSN": sentry.dsn}
        (roles["p-1"].state / "keys").rmdir()
        (roles["p-1"].state / "keys").symlink_to(roles["p-0"].state / "keys")
        for name in ("p-0", "p-1"):
            roles[name].more = {
                "TELEMETRY_VAULT_URL": database,
                "TELEMETRY_VAULT_JOURNAL": with_journal(database),
            }
        shutil.copy(roles["p-0"].state / "keys" / "public.json", roles[GATEWAY].state / "keys")
        try:
            for role in roles.values():
                role.start()
            for role in roles.values():
                until(role.up, 120.0, f"{role.member} is up: {role.said()[-2000:]}")
            yield roles, heap, sentry
        finally:
            for role in roles.values():
                if role.process is not None and role.process.poll() is None:
                    role.process.kill()
                    role.process.wait()


@pytest.mark.timeout(240)
def test_roles_apart_deliver_everything_and_leak_nothing(
    cast: tuple[dict[str, Role], HeapStandIn, SentryStandIn],
    server: KafkaServer,
    secured: Mapping[str, Any],
) -> None:
    roles, heap, sentry = cast
    world = World(people=PEOPLE)
    gateway = roles[GATEWAY]
    with Recorder(f"http://127.0.0.1:{gateway.port}") as recorder:
        driven = drive(recorder.url, world, lambda *_: None)
        assert driven.failures == []
        assert recorder.refused == 0
        # One that holds keys and one that sends die where they are; another takes over, or the
        # same one comes back under its name.
        for name in ("p-1", "forwarder-heap"):
            assert roles[name].end(signal.SIGKILL) == -signal.SIGKILL
        roles["forwarder-heap"].start()
        again = drive(recorder.url, world, lambda *_: None)
        assert again.failures == []
        sent = [(f"request {n}", r.as_bytes()) for n, r in enumerate(recorder.requests, 1)]

    def settled() -> bool:
        books = roles["p-0"].books()
        return bool(books) and not any(books["pending"].values())

    until(settled, 120.0, f"everything is delivered: {roles['p-0'].books().get('pending')}")
    books = roles["p-0"].books()
    assert books["exact"]
    assert books["events_in"] == gateway.books()["events_in"]
    assert books["routed"] == books["delivered"]
    assert books["delivered"]["sentry"] == sentry_count(sentry)
    # Counted once, however often the kill made it arrive: Heap itself keeps one of each id.
    assert len(heap.events) + 2 * len(heap.users) >= heap_count(heap)
    for name in FORWARDERS:
        own = roles[name].books()
        recipient = name.removeprefix("forwarder-")
        assert own["exact"]
        assert own["delivered"] == {recipient: books["delivered"][recipient]}

    leaks = Leaks(world.planted)
    assert {finding.name for finding in leaks.search(sent)} == set(world.planted)
    assert leaks.search(received_by({"heap": heap, "sentry": sentry})) == []
    for role in roles.values():
        assert leaks.search(files_under(role.folder)) == [], role.member
    assert leaks.search(stored(server, secured["topic_prefix"])) == []

    # An order that is given to one process is obeyed by the others, wherever they are.
    assert ask(roles["p-0"].state, "POST", "/pause/heap")
    until(lambda: roles["forwarder-heap"].books().get("paused") == ["heap"], 20.0, "heap waits")
    assert roles["forwarder-sentry"].books()["paused"] == []

    # What a role has of keys is what it was given: the others never had a file to open.
    assert gateway.files() & {"keyset.json", "spool.json", "vault.sqlite3"} == set()
    for name in FORWARDERS:
        assert not any((roles[name].state / "keys").iterdir())
        assert "vault.sqlite3" not in roles[name].files()
    for role in roles.values():
        if role.process is not None and role.process.poll() is None:
            assert role.end(signal.SIGTERM) == 0, role.said()[-1500:]
        assert "Traceback" not in role.said()


def stored(server: KafkaServer, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Read what lies on the topics, as an administrator of the broker could."""
    broker = open_broker(server.bootstrap, prefix)
    for stream in (SEALED, DEAD, HELD, clean("heap"), clean("sentry")):
        while (polled := broker.poll(stream, "search", 500)).parcels:
            for parcel in polled.parcels:
                yield stream, b"\n".join((parcel.capsule, parcel.body, parcel.remarks))
            broker.finish(polled, {}, {})
    broker.close()


def test_a_role_may_do_what_its_grants_say_and_nothing_else(
    tmp_path: Path, server: KafkaServer, secured: Mapping[str, Any]
) -> None:
    from telemetry.brokers.kafka import KafkaBroker
    from telemetry.brokers.kafka.clients import connection_options
    from telemetry.errors import BrokerError
    from telemetry.testing.brokers import make_parcel

    admin = administrator(tmp_path / "admin", secured)
    make_topics(admin, server, secured)

    def as_(user: str) -> KafkaBroker:
        password = tmp_path / user
        password.write_text(password_of(user), "utf-8")
        section = BrokerSection(**secured, username=user, password_file=str(password))
        return KafkaBroker(
            secured["bootstrap"],
            topic_prefix=secured["topic_prefix"],
            group_prefix=secured["group_prefix"],
            timeout_s=5,
            client_options=connection_options(section),
        )

    gateway, forwarder = as_("gateway"), as_("forwarder-heap")
    gateway.append(SEALED, [make_parcel(0)], {})
    refused = {
        "a gateway reads nothing": lambda: gateway.poll(SEALED, PSEUDONYMIZER, 1),
        "a gateway writes no clean log": lambda: gateway.append(
            clean("heap"), [make_parcel(1)], {}
        ),
        "a forwarder reads no sealed log": lambda: forwarder.poll(SEALED, "heap", 1),
        "a forwarder reads no other's log": lambda: forwarder.poll(clean("sentry"), "heap", 1),
        "a forwarder writes no sealed log": lambda: forwarder.append(SEALED, [make_parcel(2)], {}),
        "a gateway gives no orders": lambda: gateway.board().give(
            Order("recipient", "heap", "pause")
        ),
        "a gateway reads no orders": lambda: gateway.board().look(),
    }
    for what, call in refused.items():
        with pytest.raises(BrokerError):
            call()
        assert what
    assert forwarder.poll(clean("heap"), "heap", 1).parcels == ()
    board = forwarder.board()
    board.give(Order("recipient", "heap", "pause"))
    assert board.look() == [Order("recipient", "heap", "pause")]
    board.close()
    gateway.append(SEALED, [make_parcel(3)], {})
    gateway.close()
    forwarder.close()


def test_a_wrong_certificate_or_password_is_refused_and_a_token_is_taken(
    tmp_path: Path, server: KafkaServer, secured: Mapping[str, Any]
) -> None:
    from telemetry.brokers.kafka import KafkaBroker
    from telemetry.brokers.kafka.clients import connection_options
    from telemetry.errors import BrokerError
    from telemetry.testing.brokers import make_parcel
    from tests.kafka.server import make_certificates

    admin = administrator(tmp_path / "admin", secured)
    make_topics(admin, server, secured)
    secret, token = tmp_path / "secret", tmp_path / "token"
    secret.write_text(password_of("gateway"), "utf-8")
    token.write_text(unsecured_token("gateway"), "utf-8")
    other = tmp_path / "other"
    other.mkdir()
    wrong_ca, _ = make_certificates(other)

    def append(timeout_s: float = 5.0, **changed: Any) -> None:
        given = {**secured, "username": "gateway", "password_file": str(secret), **changed}
        broker = KafkaBroker(
            secured["bootstrap"],
            topic_prefix=secured["topic_prefix"],
            timeout_s=timeout_s,
            client_options=connection_options(BrokerSection(**given)),
        )
        try:
            broker.append(SEALED, [make_parcel(0)], {})
        finally:
            broker.close()

    append()
    append(mechanism="SCRAM-SHA-256")
    append(mechanism="OAUTHBEARER", token_file=str(token), username="", password_file="")
    for wrong in (
        {"ca_file": str(wrong_ca)},
        {"ca_file": ""},
        {"protocol": "tls", "username": "", "password_file": ""},
        {"protocol": "plaintext", "username": "", "password_file": ""},
        {"username": "forwarder-heap"},
    ):
        with pytest.raises(BrokerError) as caught:
            append(timeout_s=1.0, **wrong)
        assert password_of("gateway") not in str(caught.value)
    # A password that is changed on disk is taken at the next connection: no restart is needed.
    secret.write_text("wrong", "utf-8")
    with pytest.raises(BrokerError):
        append(timeout_s=1.0)
    secret.write_text(password_of("gateway"), "utf-8")
    append()


def test_topics_are_checked_against_the_policy_and_made_to_fit(
    tmp_path: Path, server: KafkaServer, secured: Mapping[str, Any]
) -> None:
    admin = administrator(tmp_path, secured)
    prefix = secured["topic_prefix"]

    def run(*arguments: str) -> Any:
        return telemetry("topics", *arguments, "--config", str(admin))

    before = run("check", "--json")
    assert before.exit_code == 1
    missing = {d["where"] for d in json.loads(before.stdout)["differences"]}
    assert missing == {
        f"{prefix}.{stream}.v1"
        for stream in (SEALED, DEAD, HELD, clean("heap"), clean("sentry"), ORDERS)
    }
    assert run("apply", "--yes").exit_code == 0
    assert run("check").exit_code == 0
    client = kafka.KafkaAdminClient(bootstrap_servers=server.bootstrap)
    sealed = f"{prefix}.{SEALED}.v1"
    resource = kafka.admin.ConfigResource
    topic = kafka.admin.ConfigResourceType.TOPIC
    client.alter_configs([resource(topic, sealed, {"retention.ms": "-1"})])
    client.create_partitions({sealed: kafka.admin.NewPartitions(3)})
    client.close()
    after = run("check", "--json")
    found = {
        (d["where"], d["setting"], d["found"]) for d in json.loads(after.stdout)["differences"]
    }
    assert found == {
        (sealed, "retention.ms", "-1"),
        (f"{prefix}.clean.heap.v1", "partitions", "2"),
        (f"{prefix}.clean.sentry.v1", "partitions", "2"),
    }
    assert run("apply", "--yes").exit_code == 0
    assert run("check").exit_code == 0


def test_the_demo_finds_no_leak_over_a_real_broker(bootstrap: str) -> None:
    started = time.monotonic()
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, *COMMAND[1:], "demo", "--broker", "kafka", "--json", "--people", "14"],
        env={**environment(), "TELEMETRY_KAFKA_BOOTSTRAP": bootstrap, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["leaks"] == []
    assert figures["planted"] >= 200
    assert figures["routed"] == figures["delivered"]
    assert time.monotonic() - started < 100
