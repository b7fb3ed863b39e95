"""One role of the pipeline in a process of its own, without the weight of the real one.

It reads, makes outputs, counts and finishes as the role does; what it delivers it writes down. Run
by tests, which kill it wherever it is.

    python -m tests.kafka.worker ROLE BOOTSTRAP PREFIX MEMBER DELIVERED
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from types import FrameType

from telemetry.brokers import SEALED, Entry, Polled, clean
from telemetry.brokers.kafka import KafkaBroker
from telemetry.errors import BrokerError
from tests.kafka.topics import open_broker

RECIPIENTS = ("heap", "sentry")


def pseudonymize(broker: KafkaBroker) -> bool:
    """Take one record through: everything goes to both recipients."""
    polled = broker.poll(SEALED, "pseudonymizer", 256)
    if not polled.parcels:
        return False
    number = len(polled.parcels)
    counts = Counter({Entry("pseudonymizer", "scrubbed"): number})
    counts.update({Entry(name, "routed"): number for name in RECIPIENTS})
    broker.finish(polled, {clean(name): polled.parcels for name in RECIPIENTS}, counts)
    return True


def forward(broker: KafkaBroker, recipient: str, delivered: int) -> bool:
    """Deliver one batch, then finish it: a kill in between delivers it twice."""
    polled: Polled = broker.poll(clean(recipient), recipient, 200)
    if not polled.parcels:
        return False
    os.write(delivered, "".join(f"{p.event_id}\n" for p in polled.parcels).encode())
    broker.finish(polled, {}, {Entry(recipient, "delivered"): len(polled.parcels)})
    return True


def main(role: str, bootstrap: str, prefix: str, member: str, path: str) -> None:
    """Work until asked to stop."""
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    broker = open_broker(bootstrap, prefix, member=member, timeout_s=5.0)
    delivered = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    while not stopping:
        try:
            busy = (
                pseudonymize(broker) if role == SEALED else forward(broker, role, delivered)
            )
        except BrokerError as error:
            if broker.fenced:
                sys.exit(f"fenced: {error}")
            time.sleep(0.1)
            continue
        if not busy:
            time.sleep(0.02)
    broker.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
