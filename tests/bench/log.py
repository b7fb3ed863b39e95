"""What the embedded log takes by itself: appends at full durability, and events read.

One thread, as in the pipeline; parcels as the gateway makes them of A, in batches of 64 or 100 an
append. Each append is one transaction with one fsync. The file lies in the temporary folder; where
that is memory, the disk is left out. By the clock on the wall, the best of several turns.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from telemetry.brokers import SEALED, Entry
from telemetry.brokers.spool import KEY_BYTES, Spool
from telemetry.edge import uuid7_hex
from telemetry.parcel import Parcel

__all__ = ["ROWS", "measure_log"]

ROWS: Final = (
    "spool, appends of one event/s",
    "spool, appends of 64 events/s",
    "spool, events appended by the hundred/s",
    "spool, append of a hundred p99, ms",
    "spool, events read and finished/s",
)
_BODY: Final = 420
_CAPSULE: Final = 190
_TURNS: Final = 3
_APPENDS: Final = 300
_GROUP: Final = "bench"
_SEALED: Final = Entry("edge", "sealed")


def measure_log(
    names: Collection[str], *, short: bool, tell: Callable[[str], None]
) -> dict[str, float]:
    """Measure the rows that are named."""
    best: dict[str, float] = {}
    appends = _APPENDS // (3 if short else 1)
    for turn in range(_TURNS):
        tell(f"the log by itself, {turn + 1} of {_TURNS}")
        for name, figure in _turn(appends).items():
            better = min if name.endswith("ms") else max
            best[name] = better(best.get(name, figure), figure)
    return {name: best[name] for name in ROWS if name in names}


def _turn(appends: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        spool = Spool(Path(folder) / "spool.sqlite3", key=os.urandom(KEY_BYTES))
        try:
            ones = _appended(spool, appends, 1)
            sixties = _appended(spool, appends, 64)
            hundreds = sorted(_appended(spool, appends, 100))
            began = time.perf_counter()
            read = 0
            while (polled := spool.poll(SEALED, _GROUP, 256)).parcels:
                read += len(polled.parcels)
                spool.finish(polled, {}, {})
            read_s = time.perf_counter() - began
        finally:
            spool.close()
    return {
        "spool, appends of one event/s": appends / sum(ones),
        "spool, appends of 64 events/s": appends / sum(sixties),
        "spool, events appended by the hundred/s": 100 * appends / sum(hundreds),
        "spool, append of a hundred p99, ms": 1000 * hundreds[int(0.99 * len(hundreds))],
        "spool, events read and finished/s": read / read_s,
    }


def _appended(spool: Spool, appends: int, size: int) -> list[float]:
    """Append so often; give the seconds of each, in which the events are made already."""
    took: list[float] = []
    for _ in range(appends):
        parcels = [_parcel() for _ in range(size)]
        began = time.perf_counter()
        spool.append(SEALED, parcels, {_SEALED: size})
        took.append(time.perf_counter() - began)
    return took


def _parcel() -> Parcel:
    now = datetime.now(UTC)
    return Parcel(
        event_id=uuid7_hex(),
        kind="analytics_event",
        purpose="product-analytics",
        tenant="default",
        retention_class="12m",
        legal_basis="6(1)(f)",
        notice_version="bench",
        policy_digest="0" * 64,
        occurred_at=now,
        received_at=now,
        retain_until=now + timedelta(days=365),
        capsule=os.urandom(_CAPSULE),
        body=b'{"event":"bench","page":"' + os.urandom(_BODY // 2).hex().encode() + b'"}',
    )
