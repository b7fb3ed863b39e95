"""Orders on a real broker: in time, over restarts, and by grants of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import kafka
import pytest

from telemetry.brokers import ORDERS, Order
from telemetry.brokers.kafka import KafkaBroker, topic_name
from telemetry.errors import BrokerError
from tests.kafka.topics import make_topics

PAUSE, RESUME = Order("recipient", "heap", "pause"), Order("recipient", "heap", "resume")
Opener = Callable[..., Any]


def test_what_one_process_orders_others_read_within_seconds_and_after_a_restart(
    opener: Opener, bootstrap: str
) -> None:
    opened = opener(partitions=1)
    make_topics(bootstrap, opened.prefix, 1, (ORDERS,))
    one, two = (opened().board() for _ in range(2))
    try:
        assert one.look() == two.look() == []
        began = time.monotonic()
        one.give(PAUSE)
        while not (found := two.look()):
            assert time.monotonic() - began < 5.0
        assert found == [PAUSE]
        assert one.look() == [PAUSE]
        one.give(RESUME)
        one.give(Order("policy", "c0" * 32, "revoke"))
        assert two.look() == [RESUME, Order("policy", "c0" * 32, "revoke")]
        late = opened().board()
        assert late.look() == [PAUSE, RESUME, Order("policy", "c0" * 32, "revoke")]
        assert late.look() == []
        late.close()
    finally:
        one.close()
        two.close()


def test_what_somebody_else_wrote_lets_a_recipient_wait_and_stops_nothing_else(
    opener: Opener, bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = opener(partitions=1)
    make_topics(bootstrap, opened.prefix, 1, (ORDERS,))
    enemy = kafka.KafkaProducer(bootstrap_servers=bootstrap)
    topic = topic_name(opened.prefix, ORDERS)
    for key, value in (
        (b"recipient/heap", b'{"order": "planted-mareike"}'),
        (b"recipient/sentry", b"\xff"),
        (b"policy/c0ffee", b'{"order": "pause"}'),
        (b"planted-mareike", b"{}"),
        (None, b"{}"),
    ):
        enemy.send(topic, key=key, value=value, partition=0)
    enemy.flush()
    enemy.close()
    board = opened().board()
    try:
        assert board.look() == [PAUSE, Order("recipient", "sentry", "pause")]
        board.give(RESUME)
        assert board.look() == [RESUME]
    finally:
        board.close()
    assert caplog.text.count("order_unreadable") == 5
    assert "planted" not in caplog.text


def test_without_its_topic_one_is_told_which_is_missing(opener: Opener, bootstrap: str) -> None:
    opened = opener(partitions=1)
    broker: KafkaBroker = opened(client_options={"allow_auto_create_topics": False})
    board = broker.board()
    try:
        with pytest.raises(BrokerError, match=r"\.orders\.v1.*telemetry topics check"):
            board.look()
        make_topics(bootstrap, opened.prefix, 1, (ORDERS,))
        assert board.look() == []
    finally:
        board.close()
