"""One real Kafka for all tests of this folder, started by the first and ended after the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kafka.server import KafkaServer, given, lacking

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
