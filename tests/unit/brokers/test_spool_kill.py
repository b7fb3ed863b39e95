"""kill -9 in the middle of everything: what was acknowledged is there, once, and counted."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from pathlib import Path
from typing import Final

from telemetry.brokers import DEAD, SEALED, Entry, clean
from telemetry.brokers.spool import Spool
from telemetry.testing.brokers import make_parcel

KILLS: Final = 40
KEY: Final = b"\x11" * 32
HEAP: Final = clean("heap")
APPENDED = Entry("edge", "sealed")
SCRUBBED = Entry("pseudonymizer", "scrubbed")
DELIVERED = Entry("heap", "delivered")


def opened(path: Path) -> Spool:
    return Spool(path, key=KEY, ballast_bytes=1 << 20)


def work_until_killed(path: Path, first: int, acknowledge: int) -> None:
    """Append, scrub and deliver; say what is durable, one 8-byte number each."""
    spool = opened(path)
    chance = random.Random(first)  # noqa: S311 - sizes of batches, no secret
    number = first
    while True:
        amount = chance.choice((1, 1, 3, 100))
        parcels = [make_parcel(number + n) for n in range(amount)]
        spool.append(SEALED, parcels, {APPENDED: amount})
        number += amount
        os.write(acknowledge, number.to_bytes(8))
        for stream, group, onward, entry in (
            (SEALED, "pseudonymizer", HEAP, SCRUBBED),
            (HEAP, "heap", DEAD, DELIVERED),
        ):
            if chance.random() < 0.7:
                polled = spool.poll(stream, group, 80)
                outputs = {onward: polled.parcels}
                spool.finish(polled, outputs, {entry: len(polled.parcels)})


def run_and_kill(path: Path, first: int, life_s: float) -> int:
    """Let a child work, kill it; gives the number behind the last acknowledged parcel."""
    heard, acknowledge = os.pipe()
    child = os.fork()
    if not child:
        try:
            work_until_killed(path, first, acknowledge)
        finally:
            os._exit(1)
    os.close(acknowledge)
    said = b""
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline and select.select([heard], [], [], 1)[0]:
        said = os.read(heard, 8)  # it works: the clock of its life starts
    ends_at = time.monotonic() + life_s
    while (left := ends_at - time.monotonic()) > 0:
        if select.select([heard], [], [], left)[0]:
            said = (said + os.read(heard, 1 << 16))[-8:]
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    while rest := os.read(heard, 1 << 16):
        said = (said + rest)[-8:]
    os.close(heard)
    return int.from_bytes(said) if said else first


def numbers_in(spool: Spool, stream: str, group: str) -> list[int]:
    return [int(p.event_id, 16) for p in spool.poll(stream, group, 10**9).parcels]


def test_no_acknowledged_parcel_is_lost_or_doubled_by_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    chance = random.Random(20260301)  # noqa: S311 - moments of death, no secret
    acknowledged: list[range] = []
    reopened_s = 0.0
    first = 0
    for _ in range(KILLS):
        upto = run_and_kill(path, first, chance.uniform(0, 0.1))
        acknowledged.append(range(first, upto))
        started = time.monotonic()
        spool = opened(path)
        reopened_s = max(reopened_s, time.monotonic() - started)
        places = [(SEALED, "pseudonymizer"), (HEAP, "heap"), (DEAD, "auditor")]
        found = {stream: numbers_in(spool, stream, group) for stream, group in places}
        everywhere = [number for numbers in found.values() for number in numbers]
        assert len(everywhere) == len(set(everywhere))
        assert not {n for run in acknowledged for n in run} - set(everywhere)
        books = spool.books()
        assert books.get(APPENDED, 0) == len(everywhere)
        assert books.get(SCRUBBED, 0) == len(found[HEAP]) + len(found[DEAD])
        assert books.get(DELIVERED, 0) == len(found[DEAD])
        assert spool.pending() == {name: len(found[name]) for name in found if found[name]}
        assert spool.lost() == 0
        spool.close()
        # A transaction that was durable but not acknowledged may have used up to 100 numbers.
        first = upto + 1000
    assert sum(map(len, acknowledged)) > KILLS
    assert reopened_s < 1
