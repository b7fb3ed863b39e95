"""What the whole pipeline takes: HTTP in, tokens, stand-in recipients out; time and memory.

Three processes, as in an installation: clients, ``telemetry run`` with its embedded log on disk at
full durability, and recipients. Connections are kept, and each request is answered before the next
is sent; what was answered 200 counts as taken: it is durable. Five events in a hundred hold
personal data.

Events per second are of the clock on the wall, so they are of this machine and this moment. The
ratio is of processor time: what the pipeline's process used from the first request until the last
event was delivered, against a JSON round trip of the same events.

The files of the log lie in the temporary folder; where that is memory, the disk is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol

from telemetry.testing.heap import HeapStandIn
from telemetry.testing.sentry import SentryStandIn
from tests.bench.workloads import analytics_event
from tests.integration.running import Running, until

__all__ = [
    "ROWS",
    "cpu_s",
    "delivered",
    "events_of",
    "measure_end_to_end",
    "process",
    "round_trips",
    "rss_mb",
    "send",
]

ROWS: Final = (
    "json/end to end A",
    "end to end, one a request, taken/s",
    "end to end, 100 a request, taken/s",
    "end to end, 100 a request, delivered/s",
    "RSS of telemetry run, idle, MB",
    "RSS of telemetry run, after 10,000 events, MB",
)

# Heap takes 15,000 events a minute and the forwarder keeps to that: more would measure patience.
_WARM_UP: Final = 64
_SINGLE: Final = 2_400
_BATCHED: Final = 2_000
_TURNS: Final = 5
_BATCH: Final = 100
_CONNECTIONS: Final = 32
_PATIENCE_S: Final = 120.0
_ROUND_TRIPS: Final = 3


def measure_end_to_end(*, short: bool, tell: Callable[[str], None]) -> dict[str, float]:
    """Run the pipeline: one event a request, then five times 2,000, a hundred a request."""
    single = _SINGLE // (4 if short else 1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, process("recipients") as recipients:
        assert recipients.stdout is not None
        given = json.loads(recipients.stdout.readline())
        heap: Any = SimpleNamespace(url=given["heap"]["url"], settings=given["heap"])
        sentry: Any = SimpleNamespace(dsn=given["sentry"]["dsn"])
        tell("end to end: telemetry run")
        pipeline = Running(Path(name), heap, sentry, TELEMETRY_LOG="json")
        pipeline.start()
        try:
            figures |= _measure(pipeline, single, tell)
            books = pipeline.drain()
        finally:
            pipeline.kill()
        assert books["exact"], "the books do not agree"
    return {row: figures[row] for row in ROWS}


def _measure(pipeline: Running, single: int, tell: Callable[[str], None]) -> dict[str, float]:
    assert pipeline.process is not None
    pid = pipeline.process.pid
    figures = {"RSS of telemetry run, idle, MB": rss_mb(pid)}
    taken = _WARM_UP
    send(pipeline, _WARM_UP, 1, "warm-up")
    delivered(pipeline, taken)
    tell("end to end: one event a request")
    figures["end to end, one a request, taken/s"] = single / send(pipeline, single, 1, "single")
    taken += single
    delivered(pipeline, taken)
    taken_s = through_s = used_s = json_s = float("inf")
    for turn in range(_TURNS):
        tell(f"end to end: {_BATCHED} events, a hundred a request, {turn + 1} of {_TURNS}")
        seed = f"batched {turn}"
        json_s = min(json_s, *round_trips(events_of(_BATCHED, seed)))
        began_cpu = cpu_s(pid)
        took_s = send(pipeline, _BATCHED, _BATCH, seed)
        ended = time.perf_counter()
        taken += _BATCHED
        delivered(pipeline, taken)
        taken_s = min(taken_s, took_s)
        # Making the events and starting Python is not the pipeline's time.
        through_s = min(through_s, took_s + time.perf_counter() - ended)
        used_s = min(used_s, cpu_s(pid) - began_cpu)
    figures["json/end to end A"] = json_s / used_s
    figures["end to end, 100 a request, taken/s"] = _BATCHED / taken_s
    figures["end to end, 100 a request, delivered/s"] = _BATCHED / through_s
    figures["RSS of telemetry run, after 10,000 events, MB"] = rss_mb(pid)
    return figures


class Served(Protocol):
    """Where a pipeline listens, and its books."""

    @property
    def port(self) -> int: ...

    def books(self) -> dict[str, Any]: ...


def process(*arguments: str) -> subprocess.Popen[str]:
    """Start recipients or clients as a process of their own."""
    return subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-m", "tests.bench.end_to_end", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def send(pipeline: Served, events: int, batch: int, seed: str) -> float:
    """Let clients send events; give the seconds until all were answered."""
    with process("clients", str(pipeline.port), str(events), str(batch), seed) as clients:
        return float(clients.communicate(timeout=_PATIENCE_S)[0])


def delivered(pipeline: Served, events: int) -> None:
    """Return when Heap has so many events, none was dropped and none is a dead letter."""

    def through() -> bool:
        books = pipeline.books()
        assert not books["dead"], books["dead"]
        assert not books["dropped"], books["dropped"]
        return bool(books["delivered"]["heap"] >= events)

    until(through, _PATIENCE_S, "delivered")


def round_trips(lines: Sequence[bytes]) -> Iterator[float]:
    """Give the processor time of a JSON round trip of all lines, several times."""
    for _ in range(_ROUND_TRIPS):
        began = time.process_time()
        for line in lines:
            json.dumps(json.loads(line))
        yield time.process_time() - began


def cpu_s(pid: int) -> float:
    """Give the processor time of a process so far, all threads. Source: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Give the memory that a process holds, in MB of 10^6 bytes. Source: proc(5)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# The other two processes --------------------------------------------------------------------------


def _recipients() -> None:
    """Stand in for Heap and Sentry until whoever started this closes our input."""
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        found = {"heap": dict(heap.settings), "sentry": dict(sentry.settings)}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


def events_of(events: int, seed: str) -> list[bytes]:
    """Make the events of a seed."""
    chance = random.Random(seed)  # noqa: S311 - the same events each time
    return [json.dumps(analytics_event(chance, n, pii=n % 20 == 0)).encode() for n in range(events)]


async def _clients(port: int, events: int, batch: int, seed: str) -> None:
    """Send events over kept connections; print how many seconds that took."""
    lines = events_of(events, seed)
    bodies = [b"\n".join(lines[n : n + batch]) for n in range(0, events, batch)]
    requests = [
        b"POST /v1/events HTTP/1.1\r\nHost: bench\r\nContent-Type: application/x-ndjson\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        for body in bodies
    ]
    lanes = min(_CONNECTIONS, len(requests))
    began = time.perf_counter()
    await asyncio.gather(*(_lane(port, requests[n::lanes]) for n in range(lanes)))
    sys.stdout.write(f"{time.perf_counter() - began}\n")


async def _lane(port: int, requests: Sequence[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head[:64]
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    writer.close()


if __name__ == "__main__":
    if sys.argv[1] == "recipients":
        _recipients()
    else:
        port, events, batch = map(int, sys.argv[2:5])
        asyncio.run(_clients(port, events, batch, sys.argv[5]))
