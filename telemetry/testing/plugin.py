"""Fixtures for pytest: stand-in recipients and canaries. Imports nothing until one is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from telemetry.testing.canaries import Canaries
    from telemetry.testing.heap import HeapStandIn
    from telemetry.testing.sentry import SentryStandIn


@pytest.fixture
def heap_stand_in() -> Iterator[HeapStandIn]:
    """Give a Heap on 127.0.0.1."""
    from telemetry.testing.heap import HeapStandIn  # noqa: PLC0415 - loads in every test run

    with HeapStandIn() as heap:
        yield heap


@pytest.fixture
def sentry_stand_in() -> Iterator[SentryStandIn]:
    """Give a Sentry on 127.0.0.1."""
    from telemetry.testing.sentry import SentryStandIn  # noqa: PLC0415 - loads in every test run

    with SentryStandIn() as sentry:
        yield sentry


@pytest.fixture
def canaries(request: pytest.FixtureRequest) -> Canaries:
    """Give an invented person, another one for each test, the same in each run."""
    from zlib import crc32  # noqa: PLC0415 - loads in every test run

    from telemetry.testing.canaries import Canaries  # noqa: PLC0415 - loads in every test run

    return Canaries(crc32(request.node.nodeid.encode()))
