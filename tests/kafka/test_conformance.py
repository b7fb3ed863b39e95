"""The log on a real Kafka does what every log must."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from telemetry.brokers import Broker
from telemetry.testing.brokers import BrokerConformance
from tests.kafka.topics import Opener


class TestKafkaConforms(BrokerConformance):
    @pytest.fixture
    def broker(self, opener: Callable[..., Opener]) -> Iterator[Broker]:
        # One partition, because order holds within a partition only.
        self.open = opener(partitions=1, member="conformance")
        yield from self.opened()
