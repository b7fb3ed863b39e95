"""Topics for one test each, and brokers on them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import kafka
from kafka.admin import NewPartitions, NewTopic

from telemetry.brokers import DEAD, HELD, SEALED, clean
from telemetry.brokers.kafka import KafkaBroker, topic_name

Opener = Callable[[], KafkaBroker]
STREAMS = (SEALED, DEAD, HELD, clean("heap"), clean("sentry"))


def make_topics(
    bootstrap: str, prefix: str, partitions: int, streams: Collection[str] = STREAMS
) -> None:
    """Make the topics of a prefix."""
    admin = kafka.KafkaAdminClient(bootstrap_servers=bootstrap)
    topics = [NewTopic(topic_name(prefix, s), partitions, 1) for s in streams]
    admin.create_topics(topics)
    admin.wait_for_topics([topic.name for topic in topics])
    admin.close()


def grow_topics(
    bootstrap: str, prefix: str, partitions: int, streams: Collection[str] = STREAMS
) -> None:
    """Give topics more partitions."""
    admin = kafka.KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_partitions({topic_name(prefix, s): NewPartitions(partitions) for s in streams})
    admin.close()


def open_broker(bootstrap: str, prefix: str, **options: Any) -> KafkaBroker:
    """Open a broker on the topics of a prefix, as impatient as a test."""
    fast = {"metadata_max_age_ms": 1000, "session_timeout_ms": 6000, "heartbeat_interval_ms": 1000}
    settings = {"topic_prefix": prefix, "group_prefix": prefix, "timeout_s": 10.0}
    if "client_options" not in options:
        settings["client_options"] = fast
    return KafkaBroker(bootstrap, **{**settings, **options})
