"""The topics of a pipeline: what policy and settings call for, in whose words, and what there is.

Retention comes from the policy's ``[log]``: Kafka deletes whole segments, and a segment once it is
old, so a topic's retention and its segments' age together make the period. Times are the broker's
(``LogAppendTime``): no producer's clock can make a record last longer.

Source:
    Kafka's topic configuration: ``retention.ms``, ``segment.ms``, ``message.timestamp.type``,
    ``max.message.bytes``, ``min.insync.replicas``, ``unclean.leader.election.enable``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from shlex import quote
from typing import Any, Final, NamedTuple

import kafka
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions, NewTopic

from telemetry.brokers import DEAD, HELD, ORDERS, SEALED, clean
from telemetry.brokers.kafka import topic_name
from telemetry.brokers.kafka.clients import Clients, broker_error, connection_options
from telemetry.brokers.kafka.records import RECORD_BYTES
from telemetry.config import BrokerSection
from telemetry.errors import BrokerError, PolicyError
from telemetry.policy import Policy
from telemetry.retention import Period

__all__ = [
    "MESSAGE_BYTES",
    "Difference",
    "Grant",
    "Topic",
    "apply",
    "as_commands",
    "as_strimzi",
    "as_terraform",
    "differences",
    "grants_for",
    "least_kept",
    "remove",
    "topics_for",
]

MESSAGE_BYTES: Final = RECORD_BYTES + 64 * 1024

_DAY_MS: Final = 24 * 3600 * 1000
_HOUR_MS: Final = 3600 * 1000
_SEGMENTS: Final = 12
_SHORTEST_MONTHS: Final = {1: 28, 2: 59, 3: 89, 6: 181, 12: 365}
_METADATA_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One topic.

    Attributes:
        name: With prefix and version. stream: Of which stream.
        partitions, replication: How many. settings: Its own settings, as Kafka names them.
        beside: Whether its partitions are those of the sealed topic, number by number.
    """

    name: str
    stream: str
    partitions: int
    replication: int
    settings: Mapping[str, str]
    beside: bool


class Grant(NamedTuple):
    """What one role may do."""

    role: str
    resource: str  # topic or group
    name: str
    operations: tuple[str, ...]


class Difference(NamedTuple):
    """One thing that is not as it must be."""

    where: str
    setting: str
    found: str
    wanted: str


def topics_for(section: BrokerSection, policy: Policy) -> list[Topic]:
    """Say which topics there must be.

    Raises:
        PolicyError: The policy does not say how long they keep.
    """
    recipients = [name for name, recipient in policy.recipients.items() if recipient.sink]
    # In the order in which partitions are added: where clean records go before what they come from.
    streams = [(clean(name), "clean") for name in recipients]
    streams += [(SEALED, "sealed"), (DEAD, "dead"), (HELD, "held")]
    topics: list[Topic] = []
    for stream, sort in streams:
        period = policy.log_retention.get(sort)
        if period is None:
            raise PolicyError(
                f"says nothing of how long {sort} is kept on Kafka.",
                path=policy.folder / "retention.toml",
                remedy=f'Add {sort} = "P…D" under [log].',
            )
        topics.append(
            Topic(
                name=topic_name(section.topic_prefix, stream),
                stream=stream,
                partitions=section.partitions,
                replication=section.replication,
                settings=_settings(period, section.replication),
                beside=sort in ("sealed", "clean"),
            )
        )
    orders = Topic(
        name=topic_name(section.topic_prefix, ORDERS),
        stream=ORDERS,
        partitions=1,
        replication=section.replication,
        settings={**_ORDERS, "min.insync.replicas": _in_sync(section.replication)},
        beside=False,
    )
    return [*topics, orders]


_ORDERS: Final = {
    # The last order about each recipient holds for ever; none names a person.
    "cleanup.policy": "compact",
    "message.timestamp.type": "LogAppendTime",
    "unclean.leader.election.enable": "false",
}


def _in_sync(replication: int) -> str:
    return str(max(1, replication - 1))


def least_kept(period: Period) -> timedelta:
    """Give how long a record stays at least on a topic that keeps so long at most."""
    return timedelta(milliseconds=_shortest_ms(period) - _segment_ms(period))


def _segment_ms(period: Period) -> int:
    return min(_DAY_MS, max(_HOUR_MS, _shortest_ms(period) // _SEGMENTS))


def _settings(period: Period, replication: int) -> dict[str, str]:
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(_shortest_ms(period) - _segment_ms(period)),
        "segment.ms": str(_segment_ms(period)),
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(MESSAGE_BYTES),
        "min.insync.replicas": _in_sync(replication),
        "unclean.leader.election.enable": "false",
    }


def _shortest_ms(period: Period) -> int:
    """Give the shortest time that a calendar period can be: no month makes a record last longer."""
    years, months = divmod(period.months, 12)
    days = years * 365 + _SHORTEST_MONTHS.get(months, months * 28) * (months > 0) + period.days
    return days * _DAY_MS


def grants_for(section: BrokerSection, topics: Sequence[Topic]) -> list[Grant]:
    """Say what each role may do, and no more. None of them needs an administrator's rights.

    Reading a group's commits is no reading of events: forwarders do it for their books.
    """
    name = {topic.stream: topic.name for topic in topics}
    prefix = section.group_prefix
    recipients = [s.removeprefix(clean("")) for s in name if s.startswith(clean(""))]
    grants = [
        Grant("gateway", "topic", name[stream], ("Write", "Describe")) for stream in (SEALED, DEAD)
    ]
    grants.append(Grant("pseudonymizer", "topic", name[SEALED], ("Read", "Describe")))
    grants += [
        Grant("pseudonymizer", "topic", name[stream], ("Write", "Describe"))
        for stream in (*map(clean, recipients), DEAD, HELD)
    ]
    grants.append(Grant("pseudonymizer", "group", f"{prefix}.pseudonymizer", ("Read", "Describe")))
    # Whoever holds a socket on which an operator orders passes it on to all.
    of_orders = ("Read", "Write", "Describe")
    grants.append(Grant("pseudonymizer", "topic", name[ORDERS], of_orders))
    # Whoever looks at dead letters and held events, with commands and from where the key is.
    # `Delete` on a topic is the right to delete all of it: it is not given unasked.
    grants += [
        Grant("operator", "topic", name[stream], ("Read", "Write", "Describe"))
        for stream in (DEAD, HELD)
    ]
    grants.append(Grant("operator", "topic", name[SEALED], ("Write", "Describe")))
    for recipient in recipients:
        role = f"forwarder-{recipient}"
        grants += [
            Grant("pseudonymizer", "group", f"{prefix}.{recipient}", ("Describe",)),
            Grant(role, "topic", name[clean(recipient)], ("Read", "Describe")),
            Grant(role, "topic", name[DEAD], ("Write", "Describe")),
            Grant(role, "topic", name[ORDERS], of_orders),
            Grant(role, "topic", name[SEALED], ("Describe",)),
            Grant(role, "group", f"{prefix}.{recipient}", ("Read", "Describe")),
            Grant(role, "group", f"{prefix}.pseudonymizer", ("Describe",)),
        ]
    return grants


# ---------------------------------------------------------------------- in whose words


def as_commands(topics: Iterable[Topic], grants: Iterable[Grant]) -> str:
    """Write commands of Kafka's own tools; the shell fills in ``$KAFKA_BOOTSTRAP``."""
    server = (
        '--bootstrap-server "$KAFKA_BOOTSTRAP" ${KAFKA_CONFIG:+--command-config "$KAFKA_CONFIG"}'
    )
    lines = ["#!/bin/sh", "set -eu"]
    for topic in topics:
        settings = [f"{key}={value}" for key, value in topic.settings.items()]
        lines.append(
            f"kafka-topics.sh {server} --create --if-not-exists --topic {quote(topic.name)} "
            f"--partitions {topic.partitions} --replication-factor {topic.replication} "
            + " ".join(f"--config {setting}" for setting in settings)
        )
        # A topic that was there keeps its settings until they are set.
        lines.append(
            f"kafka-configs.sh {server} --alter --topic {quote(topic.name)} "
            f"--add-config {','.join(settings)}"
        )
    for grant in grants:
        operations = " ".join(f"--operation {operation}" for operation in grant.operations)
        lines.append(
            f"kafka-acls.sh {server} --add --allow-principal {quote(f'User:{grant.role}')} "
            f"{operations} --{grant.resource} {quote(grant.name)}"
        )
    return "\n".join([*lines, ""])


def as_strimzi(topics: Iterable[Topic], grants: Iterable[Grant], cluster: str) -> str:
    """Write resources for Strimzi's operators. JSON is YAML."""
    resources: list[dict[str, Any]] = [
        {
            "apiVersion": "kafka.strimzi.io/v1beta2",
            "kind": "KafkaTopic",
            "metadata": {"name": topic.name, "labels": {"strimzi.io/cluster": cluster}},
            "spec": {
                "partitions": topic.partitions,
                "replicas": topic.replication,
                "config": {key: _typed(value) for key, value in topic.settings.items()},
            },
        }
        for topic in topics
    ]
    by_role: dict[str, list[Grant]] = {}
    for grant in grants:
        by_role.setdefault(grant.role, []).append(grant)
    resources += [
        {
            "apiVersion": "kafka.strimzi.io/v1beta2",
            "kind": "KafkaUser",
            "metadata": {"name": role, "labels": {"strimzi.io/cluster": cluster}},
            "spec": {
                "authentication": {"type": "scram-sha-512"},
                "authorization": {
                    "type": "simple",
                    "acls": [
                        {
                            "resource": {"type": grant.resource, "name": grant.name},
                            "operations": list(grant.operations),
                        }
                        for grant in of_role
                    ],
                },
            },
        }
        for role, of_role in by_role.items()
    ]
    return "".join(f"---\n{json.dumps(resource, indent=2)}\n" for resource in resources)


def _typed(value: str) -> object:
    return int(value) if value.isdigit() else {"true": True, "false": False}.get(value, value)


def as_terraform(topics: Iterable[Topic], grants: Iterable[Grant]) -> str:
    """Write resources for Terraform's provider ``Mongey/kafka``."""
    blocks: list[str] = []
    for topic in topics:
        settings = "\n".join(
            f"    {json.dumps(key)} = {json.dumps(value)}" for key, value in topic.settings.items()
        )
        blocks.append(
            f'resource "kafka_topic" {json.dumps(_identifier(topic.stream))} {{\n'
            f"  name               = {json.dumps(topic.name)}\n"
            f"  partitions         = {topic.partitions}\n"
            f"  replication_factor = {topic.replication}\n"
            f"  config = {{\n{settings}\n  }}\n}}\n"
        )
    for grant in grants:
        for operation in grant.operations:
            label = _identifier(f"{grant.role}_{grant.resource}_{grant.name}_{operation}")
            blocks.append(
                f'resource "kafka_acl" {json.dumps(label)} {{\n'
                f"  resource_name       = {json.dumps(grant.name)}\n"
                f"  resource_type       = {json.dumps(grant.resource.capitalize())}\n"
                f"  acl_principal       = {json.dumps(f'User:{grant.role}')}\n"
                '  acl_host            = "*"\n'
                f"  acl_operation       = {json.dumps(operation)}\n"
                '  acl_permission_type = "Allow"\n}\n'
            )
    return "\n".join(blocks)


def _identifier(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text).lower()


# ---------------------------------------------------------------------- what there is


def differences(section: BrokerSection, topics: Sequence[Topic]) -> list[Difference]:
    """Compare with the live broker. Reads only.

    Raises:
        BrokerError: It cannot be asked.
    """
    admin = None
    clients = _clients(section)
    try:
        admin = clients.administrator()
        return [*_of_topics(admin, topics), *_of_broker(admin, topics)]
    except BrokerError:
        raise
    except Exception as error:  # noqa: BLE001 - kafka-python's errors are of many trees
        raise broker_error(error) from None
    finally:
        clients.drop(admin)


def apply(section: BrokerSection, topics: Sequence[Topic]) -> None:
    """Make what is missing, set what differs, add partitions. Removes nothing.

    Raises:
        BrokerError: The broker refuses, or we are no administrator there.
    """
    admin = None
    clients = _clients(section)
    try:
        admin = clients.administrator()
        live = _live(admin, topics)
        missing = [topic for topic in topics if topic.name not in live]
        if missing:
            admin.create_topics(
                [
                    NewTopic(
                        t.name,
                        _partitions(t, topics, live),
                        t.replication,
                        topic_configs=dict(t.settings),
                    )
                    for t in missing
                ]
            )
        for topic in topics:
            count = len(live.get(topic.name, ()))
            if 0 < count < _partitions(topic, topics, live):
                more = NewPartitions(_partitions(topic, topics, live))
                admin.create_partitions({topic.name: more})
        there = [topic for topic in topics if topic.name in live]
        if there:
            admin.alter_configs(
                [ConfigResource(ConfigResourceType.TOPIC, t.name, dict(t.settings)) for t in there]
            )
        admin.wait_for_topics([topic.name for topic in topics])
    except Exception as error:  # noqa: BLE001 - as above
        raise broker_error(error) from None
    finally:
        clients.drop(admin)


def remove(section: BrokerSection, topics: Sequence[Topic]) -> None:
    """Delete topics with all that lies there. For topics of a demonstration only.

    Raises:
        BrokerError: The broker refuses.
    """
    admin = None
    clients = _clients(section)
    try:
        admin = clients.administrator()
        admin.delete_topics([topic.name for topic in topics])
    except Exception as error:  # noqa: BLE001 - as above
        raise broker_error(error) from None
    finally:
        clients.drop(admin)


def _clients(section: BrokerSection) -> Clients:
    clients = Clients(section.bootstrap, options=connection_options(section))
    clients.tells = False
    return clients


def _live(admin: Any, topics: Sequence[Topic]) -> dict[str, Sequence[Any]]:
    """Give the partitions of those topics that are there."""
    described = admin.describe_topics([topic.name for topic in topics])
    live: dict[str, Sequence[Any]] = {}
    for entry in described:
        error = kafka.errors.for_code(entry["error_code"])
        if error is kafka.errors.NoError:
            live[entry["name"]] = entry["partitions"]
        elif error is not kafka.errors.UnknownTopicOrPartitionError:
            raise broker_error(error(), "a topic")
    return live


def _partitions(topic: Topic, topics: Sequence[Topic], live: Mapping[str, Sequence[Any]]) -> int:
    """Say how many it must have: what belongs together grows to the largest of them."""
    if not topic.beside:
        return topic.partitions
    return max(topic.partitions, *(len(live.get(t.name, ())) for t in topics if t.beside))


def _of_topics(admin: Any, topics: Sequence[Topic]) -> list[Difference]:
    live = _live(admin, topics)
    found: list[Difference] = []
    there = [topic for topic in topics if topic.name in live]
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in there]
    settings = admin.describe_configs(resources, config_filter="all")["topic"] if there else {}
    for topic in topics:
        if topic.name not in live:
            found.append(Difference(topic.name, "topic", "missing", "there"))
            continue
        partitions = live[topic.name]
        wanted = _partitions(topic, topics, live)
        if len(partitions) < wanted:
            found.append(Difference(topic.name, "partitions", str(len(partitions)), str(wanted)))
        fewest = min(len(partition["replica_nodes"]) for partition in partitions)
        if fewest < topic.replication:
            found.append(Difference(topic.name, "replication", str(fewest), str(topic.replication)))
        for key, value in topic.settings.items():
            is_ = str((settings.get(topic.name, {}).get(key) or {}).get("value", "unknown"))
            if is_ != value:
                found.append(Difference(topic.name, key, is_, value))
    return found


def _of_broker(admin: Any, topics: Sequence[Topic]) -> list[Difference]:
    """Look at what only the cluster's administrator can set: the books live in commits."""
    longest_ms = max(
        int(t.settings["retention.ms"]) + int(t.settings["segment.ms"]) for t in topics if t.beside
    )
    least = {
        "offsets.retention.minutes": longest_ms // 60_000,
        "offset.metadata.max.bytes": _METADATA_BYTES,
    }
    found: list[Difference] = []
    try:
        nodes = [str(broker["broker_id"]) for broker in admin.describe_cluster()["brokers"]]
        resources = [ConfigResource(ConfigResourceType.BROKER, node) for node in nodes]
        brokers = admin.describe_configs(resources, config_filter="all")["broker"]
    except kafka.errors.ClusterAuthorizationFailedError:
        brokers = {"": {}}
    for node, settings in brokers.items():
        for key, value in least.items():
            is_ = str((settings.get(key) or {}).get("value", "not shown to us"))
            if not is_.isdigit() or int(is_) < value:
                found.append(Difference(f"broker {node}".strip(), key, is_, f"{value} or more"))
    return found
