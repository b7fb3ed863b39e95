"""How many events a second the whole pipeline takes: HTTP in, stand-in recipients out.

Three processes, as in an installation: clients, the pipeline (this one, `telemetry.run.Runner` with
its embedded log on disk, at full durability), and recipients. Connections are kept, and each
request is answered before the next is sent; what was answered 200 counts as taken: it is durable.

The files of the log lie in the temporary folder; where that is memory, the disk is left out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from telemetry import logs
from telemetry.config import RecipientSettings, Settings
from telemetry.run import Runner
from telemetry.testing.heap import HeapStandIn
from telemetry.testing.sentry import SentryStandIn
from tests.bench.workloads import analytics_event

__all__ = ["measure_end_to_end"]

# Heap takes 15,000 events a minute and the forwarder keeps to that: more would measure patience.
_WARM_UP: Final = 64
_SINGLE: Final = 2_900
_BATCHED: Final = 12_000
_BATCH: Final = 100
_CONNECTIONS: Final = 32
_PATIENCE_S: Final = 120.0


def measure_end_to_end(console: Console, *, short: bool) -> dict[str, float]:
    """Run the pipeline twice through, one event a request and a hundred a request.

    Returns:
        Events per second: taken (answered) and through (delivered), for each of the two.
    """
    share = 5 if short else 1
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        figures = asyncio.run(_measure(Path(folder), _SINGLE // share, _BATCHED // share))
    for name, value in figures.items():
        console.print(f"{name}: {value:,.0f}")
    return figures


async def _measure(folder: Path, single: int, batched: int) -> dict[str, float]:
    logs.configure("json", production=True)
    logging.getLogger("telemetry").setLevel(logging.ERROR)
    recipients = await _start("recipients")
    assert recipients.stdout is not None
    given = json.loads(await asyncio.wait_for(recipients.stdout.readline(), 30))
    settings = Settings(
        state=str(folder / "state"),
        bind="127.0.0.1:0",
        admin_bind="127.0.0.1:0",
        recipient={name: RecipientSettings(**values) for name, values in given.items()},
    )
    runner = Runner(settings, lambda _line: None)
    stop = asyncio.Event()
    try:
        await runner.open()
        work = asyncio.create_task(runner.run(stop))
        figures = {}
        taken = 0
        # The first user agent that is parsed loads its table, once for the life of a process.
        phases = (("warm-up", _WARM_UP, 1), ("single", single, 1), ("batched", batched, _BATCH))
        for name, events, batch in phases:
            began = time.perf_counter()
            clients = await _start("clients", str(runner.address[1]), str(events), str(batch), name)
            assert clients.stdout is not None
            took_s = float(await asyncio.wait_for(clients.stdout.readline(), _PATIENCE_S))
            # Making the events and starting Python is not the pipeline's time.
            began = max(began, time.perf_counter() - took_s)
            taken += events
            await _delivered(runner, taken)
            through_s = time.perf_counter() - began
            await clients.wait()
            if name != "warm-up":
                figures[f"end_to_end {name} taken_per_s"] = events / took_s
                figures[f"end_to_end {name} delivered_per_s"] = events / through_s
        books = await runner.books()
        assert books.exact, "the books do not agree"
        stop.set()
        await work
    finally:
        await runner.close()
        assert recipients.stdin is not None
        recipients.stdin.close()
        await recipients.wait()
    return figures


async def _start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.bench.end_to_end",
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


async def _delivered(runner: Runner, events: int) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while (figures := (await runner.books()).as_json())["delivered"]["heap"] < events:
            assert not figures["dead"], figures["dead"]
            assert not figures["dropped"], figures["dropped"]
            await asyncio.sleep(0.05)


def _recipients() -> None:
    """Stand in for Heap and Sentry until whoever started this closes our input."""
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        found = {"heap": dict(heap.settings), "sentry": dict(sentry.settings)}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


async def _clients(port: int, events: int, batch: int, seed: str) -> None:
    """Send events over kept connections; print how many seconds that took."""
    chance = random.Random(seed)  # noqa: S311 - the same events each time
    lines = [
        json.dumps(analytics_event(chance, n, pii=n % 20 == 0)).encode() for n in range(events)
    ]
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
        asyncio.run(_clients(*map(int, sys.argv[2:5]), sys.argv[5]))
