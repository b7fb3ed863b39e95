"""One real Kafka for all tests of this folder, started by the first and ended after the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from telemetry.brokers.kafka import KafkaBroker
from tests.kafka.server import KafkaServer, given, lacking
from tests.kafka.topics import make_topics, open_broker

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Confine them to one worker: they share the broker."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kafka)
            item.add_marker(pytest.mark.xdist_group("kafka"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """Give a broker of our own, which a test may stop, restart and look into."""
    if missing := lacking():
        pytest.skip(f"real Kafka needs java and Maven: {missing}")
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka


@pytest.fixture(scope="session")
def bootstrap(request: pytest.FixtureRequest) -> str:
    """Give the address of a broker: that of TELEMETRY_KAFKA_BOOTSTRAP, else our own."""
    return given() or request.getfixturevalue("server").bootstrap


@pytest.fixture
def opener(
    bootstrap: str,
) -> Iterator[Callable[..., Callable[..., KafkaBroker]]]:
    """Make topics for one test, and give what opens brokers on them."""
    opened: list[KafkaBroker] = []

    def on_topics(*, partitions: int = 4, **defaults: Any) -> Callable[..., KafkaBroker]:
        prefix = f"t{token_hex(5)}"
        make_topics(bootstrap, prefix, partitions)

        def open_one(**options: Any) -> KafkaBroker:
            opened.append(open_broker(bootstrap, prefix, **{**defaults, **options}))
            return opened[-1]

        open_one.prefix = prefix  # type: ignore[attr-defined]
        return open_one

    yield on_topics
    for broker in opened:
        broker.close()
