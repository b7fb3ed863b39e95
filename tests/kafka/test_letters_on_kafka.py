"""Dead letters and held events of a real Kafka, by command, and what grants that takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kafka
import pytest
from typer.testing import CliRunner

from telemetry.brokers import DEAD, HELD, SEALED, Entry
from telemetry.brokers.kafka import KafkaBroker, topic_name
from telemetry.cli import app
from telemetry.cli import letters as _registered  # noqa: F401 - it registers the commands
from telemetry.dead_letter import burying
from telemetry.errors import BrokerError
from telemetry.identity import initialise_development, load_dead_letter_sealer
from telemetry.parcel import Parcel
from telemetry.testing.brokers import PLANTED, BrokerConformance, make_parcel
from tests.kafka.server import password_of

IN, SEAL = Entry("edge", "items_in"), Entry("edge", "sealed")
NOW = datetime.now(UTC)
GOOD = {"event": "search used", "account": 7, "properties": {"scope": "tasks", "results": 3}}
Opener = Callable[..., Any]


def recent(number: int, body: bytes, **more: Any) -> Parcel:
    """Make a parcel that was received today."""
    return replace(
        make_parcel(number, kind="analytics_event", body=body),
        occurred_at=NOW,
        received_at=NOW,
        retain_until=NOW + timedelta(days=30),
        **more,
    )


class Operator:
    """Somebody with a configuration, a state folder with keys, and a log on Kafka."""

    def __init__(self, folder: Path, opened: Any, bootstrap: str, **section: str) -> None:
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        initialise_development(self.state)
        (self.key,) = self.state.rglob("dead-letter/keyset.json")
        self.config = folder / "telemetry.toml"
        given = {
            "kind": "kafka",
            "bootstrap": bootstrap,
            "topic_prefix": opened.prefix,
            "group_prefix": opened.prefix,
            **section,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
        self.config.write_text("\n".join(["[broker]", *lines, ""]), "utf-8")
        self.broker: KafkaBroker = opened()
        self.bury = burying(load_dead_letter_sealer(self.state / "keys" / "public.json"), "edge")

    def run(self, *arguments: str, code: int = 0) -> Any:
        where = ["--config", str(self.config), "--state", str(self.state)]
        done = CliRunner().invoke(app, [*arguments, *where, "--json"], env={"TELEMETRY_CONFIG": ""})
        assert done.exit_code == code, (done.output, done.exception)
        assert PLANTED not in done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def dead(self, *parcels: Parcel, reason: str = "undecodable") -> None:
        letters = [self.bury(parcel, reason) for parcel in parcels]
        counts = {IN: len(letters), Entry("edge", "dead", reason): len(letters)}
        self.broker.append(SEALED, [], counts, beside={DEAD: letters})

    def sealed(self) -> list[Parcel]:
        return BrokerConformance.drain(self.broker, SEALED, "pseudonymizer")


def test_letters_are_listed_opened_and_replayed_once_and_no_group_is_touched(
    tmp_path: Path, opener: Opener, bootstrap: str
) -> None:
    opened = opener(partitions=3)
    operator = Operator(tmp_path, opened, bootstrap)
    assert operator.run("dead", "list") == []
    good = recent(1, json.dumps(GOOD).encode())
    operator.dead(good)
    operator.dead(recent(2, f'{{"event": "{PLANTED}'.encode()), reason="scrub_failed")
    operator.dead(*(recent(n, b"{}") for n in range(3, 8)), reason="scrub_failed")
    found = operator.run("dead", "list")
    assert {one["event_id"] for one in found} == {f"{n:032x}" for n in range(1, 8)}
    assert {one["goes_again"] for one in found} == {"yes"}
    assert [one["died_at"] for one in found] == sorted(one["died_at"] for one in found)
    assert len(operator.run("dead", "list", "--reason", "undecodable")) == 1
    assert PLANTED not in json.dumps(operator.run("dead", "show", f"{2:032x}"))
    shown = operator.run("dead", "show", f"{2:032x}", "--key", str(operator.key))
    assert PLANTED in shown[0]["original"]

    replay = ("dead", "replay", "--key", str(operator.key))
    assert operator.run(*replay, "--event", good.event_id) == {"replayed": 1}
    (again,) = operator.sealed()
    assert (again.event_id, again.received_at) == (good.event_id, good.received_at)
    assert len(operator.run("dead", "list")) == 6
    assert operator.run(*replay, "--event", good.event_id) == {}
    # What is broken today stays where it is.
    assert operator.run(*replay, "--event", f"{2:032x}", code=1) == {"undecodable": 1}
    books = operator.broker.books()
    assert books[Entry(DEAD, "replayed")] == 1
    admin = kafka.KafkaAdminClient(bootstrap_servers=bootstrap)
    groups = {group["group_id"] for group in admin.list_groups()}
    admin.close()
    assert {g for g in groups if g.startswith(opened.prefix)} == {f"{opened.prefix}.pseudonymizer"}


def test_purged_letters_are_not_shown_and_their_bytes_go_as_far_as_nothing_is_in_front(
    tmp_path: Path, opener: Opener, bootstrap: str
) -> None:
    opened = opener(partitions=1)
    operator = Operator(tmp_path, opened, bootstrap)
    for number, reason in enumerate(("undecodable", "undecodable", "contract", "undecodable")):
        operator.dead(recent(number, b"{}"), reason=reason)
    assert operator.run("dead", "purge", "--yes", "--reason", "undecodable") == {"purged": 3}
    (left,) = operator.run("dead", "list")
    assert left["reason"] == "contract"
    assert operator.run("dead", "purge", "--yes", "--reason", "undecodable") == {"purged": 0}
    client = kafka.KafkaConsumer(bootstrap_servers=bootstrap)
    partition = kafka.TopicPartition(topic_name(opened.prefix, DEAD), 0)
    oldest = client.beginning_offsets([partition])[partition]
    client.close()
    assert oldest == 2, "the first two are off the disk; what stays keeps the last one's bytes"
    assert operator.run("dead", "purge", "--yes", "--all") == {"purged": 1}
    assert operator.run("dead", "list") == []
    assert operator.broker.books()[Entry(DEAD, "dropped", "purged")] == 4


def test_held_events_are_listed_and_released_back_into_the_sealed_topic(
    tmp_path: Path, opener: Opener, bootstrap: str
) -> None:
    operator = Operator(tmp_path, opener(partitions=2), bootstrap)
    held = [recent(n, b"{}", reason="restricted") for n in range(3)]
    held.append(replace(make_parcel(9, body=b"{}"), reason="restricted"))
    held[-1] = replace(held[-1], retain_until=held[-1].occurred_at + timedelta(days=1))
    operator.broker.append(SEALED, [], {}, beside={HELD: held})
    found = operator.run("held", "list")
    assert {one["goes_again"] for one in found} == {"yes", "expired"}
    outcomes = operator.run("held", "release", "--all", code=1)
    assert outcomes == {"released": 3, "expired": 1}
    assert {(p.event_id, p.reason) for p in operator.sealed()} == {
        (f"{n:032x}", "") for n in range(3)
    }
    assert [one["event_id"] for one in operator.run("held", "list")] == [f"{9:032x}"]
    assert operator.broker.books()[Entry(HELD, "replayed")] == 3


def test_what_somebody_took_out_meanwhile_is_not_taken_twice(
    opener: Opener,
) -> None:
    opened = opener(partitions=1)
    broker: KafkaBroker = opened()
    broker.append(SEALED, [], {}, beside={DEAD: [make_parcel(0), make_parcel(1)]})
    one, two = opened().shelf(), opened().shelf()
    (first, _) = one.look(DEAD, 0, 10)
    assert two.look(DEAD, 0, 10) == one.look(DEAD, 0, 10)
    one.take_out(DEAD, [first], {})
    with pytest.raises(BrokerError, match="not there any more"):
        two.take_out(DEAD, [first], {}, {SEALED: [first.parcel]})
    assert [kept.parcel.event_id for kept in two.look(DEAD, 0, 10)] == [f"{1:032x}"]
    assert BrokerConformance.drain(broker, SEALED, "pseudonymizer") == []
    one.close()
    two.close()


def test_without_the_right_to_delete_letters_are_marked_and_one_is_told(
    tmp_path: Path, server: Any, opener: Opener
) -> None:
    from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

    opened = opener(partitions=1)
    admin = kafka.KafkaAdminClient(bootstrap_servers=server.bootstrap)
    for stream, operations in ((DEAD, "READ WRITE DESCRIBE"), (SEALED, "WRITE DESCRIBE")):
        pattern = ResourcePattern(ResourceType.TOPIC, topic_name(opened.prefix, stream))
        admin.create_acls(
            [
                ACL("User:operator", "*", ACLOperation[op], ACLPermissionType.ALLOW, pattern)
                for op in operations.split()
            ]
        )
    admin.close()
    secret = tmp_path / "password"
    secret.write_text(password_of("operator"), "utf-8")
    operator = Operator(
        tmp_path,
        opened,
        server.secure,
        protocol="sasl_tls",
        ca_file=str(server.ca),
        mechanism="SCRAM-SHA-512",
        username="operator",
        password_file=str(secret),
    )
    operator.dead(recent(0, b"{}"))
    assert len(operator.run("dead", "list")) == 1
    where = ["--config", str(operator.config), "--state", str(operator.state)]
    done = CliRunner().invoke(app, ["dead", "purge", "--all", "--yes", *where])
    assert done.exit_code == 0, done.output
    assert "no right to delete" in done.stderr
    assert operator.run("dead", "list") == []
