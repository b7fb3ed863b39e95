"""One role of the pipeline in a process of its own, without the weight of the real one.

It reads, makes outputs, counts and finishes as the role does; what it delivers it writes down. Run
by tests, which kill it wherever it is.

    python -m tests.kafka.worker ROLE BOOTSTRAP PREFIX MEMBER WRITTEN
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from telemetry.brokers import SEALED, Entry, Polled, clean
from telemetry.brokers.kafka import KafkaBroker
from telemetry.errors import BrokerError
from telemetry.testing.brokers import make_parcel
from tests.kafka.topics import open_broker

RECIPIENTS = ("heap", "sentry")
GATEWAY = "gateway"
BATCH = 5


def take(broker: KafkaBroker, number: int, attempted: int, acknowledged: int) -> None:
    """Append a few events as a gateway does, and write down which were acknowledged."""
    numbers = range(number, number + BATCH)
    os.write(attempted, f"{number + BATCH:x}\n".encode())
    counts = {Entry("edge", "items_in"): BATCH + 1, Entry("edge", "sealed"): BATCH}
    counts[Entry("edge", "dropped", "undeclared_event")] = 1
    broker.append(SEALED, [make_parcel(n) for n in numbers], counts)
    os.write(acknowledged, "".join(f"{n:x}\n" for n in numbers).encode())


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
    """Work until asked to stop. A gateway's name is its first event's number, hexadecimal."""
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    broker = open_broker(bootstrap, prefix, member=member, timeout_s=5.0)
    written = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    log = Path(f"{path}.attempted")
    attempted = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    while not stopping:
        try:
            if role == GATEWAY:
                lines = log.read_text("utf-8").split()
                take(broker, int(lines[-1] if lines else member, 16), attempted, written)
                time.sleep(0.02)
                continue
            busy = pseudonymize(broker) if role == SEALED else forward(broker, role, written)
        except BrokerError as error:
            sys.stderr.write(f"{role} {member}: {error}\n")
            if broker.fenced:
                sys.exit(f"fenced: {error}")
            time.sleep(0.1)
            continue
        if not busy:
            time.sleep(0.02)
    broker.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
