"""Rows about the SDK: what an application pays for it, against what sentry-sdk costs by itself.

- Our scrub of an error event, from the dict that sentry-sdk made to the bytes that are sent,
  against sentry-sdk's `EventScrubber` on the same dict: it looks at keys only and writes nothing.
- ``capture_exception``: time of the thread that calls it, through ``telemetry.init`` and through
  ``sentry_sdk.init``, in a process each, with a gateway and a server that are not there.
- ``track`` and a log record, which becomes a breadcrumb: how long one call takes by the clock while
  the gateway is away. The background thread works meanwhile, as it would.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import sentry_sdk
from sentry_sdk.scrubber import EventScrubber

import telemetry
from telemetry.client import Client, _encoded
from telemetry.transport import Entry
from tests.bench.neighbours import Neighbour, NextDoor
from tests.bench.race import Contender, Local, race
from tests.bench.workloads import build, raising

__all__ = ["ROWS", "measure_sdk"]

_CALLS: Final = 500
_TURNS: Final = 10
_CAPTURE_S: Final = 0.2
_PAUSE_S: Final = 0.0005
_QUANTILES: Final = (("p50", 0.5), ("p99", 0.99))
_LATENCIES: Final = tuple(
    f"{call} {name}, µs" for call in ("track", "log record") for name, _ in _QUANTILES
)
ROWS: Final = (
    "EventScrubber/SDK scrub B8 clean",
    "EventScrubber/SDK scrub B8 pii",
    "capture_exception/stock sentry-sdk",
    *_LATENCIES,
)


def measure_sdk(
    names: Sequence[str], *, repeats: int, turn_s: float, tell: Callable[[str], None]
) -> dict[str, float]:
    """Measure the rows that are named."""
    figures: dict[str, float] = {}
    for sort in ("clean", "pii"):
        if any(name.endswith(f"SDK scrub B8 {sort}") for name in names):
            times = race(dict(_scrubbers(sort)), repeats=repeats, turn_s=turn_s, tell=tell)
            ratio = times["EventScrubber"] / times["SDK scrub"]
            figures[f"EventScrubber/SDK scrub B8 {sort}"] = ratio
    if "capture_exception/stock sentry-sdk" in names:
        captures = _capturing("ours"), _capturing("stock")
        with captures[0] as ours, captures[1] as stock:
            contenders: dict[str, Contender] = {
                "capture_exception": Neighbour(ours, "capture_exception"),
                "stock": Neighbour(stock, "stock capture_exception"),
            }
            # A call takes a third of a millisecond, and the goal is near: more calls, less chance.
            times = race(contenders, repeats=repeats, turn_s=_CAPTURE_S, tell=tell)
        figures["capture_exception/stock sentry-sdk"] = times["capture_exception"] / times["stock"]
    if set(_LATENCIES) & set(names):
        tell("track and log records, gateway away")
        command = [sys.executable, "-m", "tests.bench.sdk", "latencies"]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=120, check=True)  # noqa: S603
        figures |= json.loads(done.stdout)
    return {row: figures[row] for row in ROWS if row in names and row in figures}


def _scrubbers(sort: str) -> Iterator[tuple[str, Contender]]:
    events = build("B8", sort)

    def fresh() -> Sequence[Any]:
        return [json.loads(raw) for raw in events]

    # Nothing is put, so its thread never starts; what it would run is called here.
    prepare = Client(service="shop", environment="production", url=_nobody())._prepare

    def ours(event: Any) -> bytes | str:
        return prepare(Entry("envelope", "error_event", _encoded(event)))

    for event in fresh():
        assert isinstance(ours(event), bytes), "the SDK would not send this event"
    yield "SDK scrub", Local(ours, events, fresh=fresh)
    yield "EventScrubber", Local(EventScrubber().scrub_event, events, fresh=fresh)


def _nobody() -> str:
    """Give the address of a gateway that is not there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://key@127.0.0.1:{found.getsockname()[1]}/1"


# The applications ---------------------------------------------------------------------------------


def _capturing(whose: str) -> NextDoor:
    return NextDoor(sys.executable, "-m", "tests.bench.sdk", whose)


def _init(whose: str) -> None:
    if whose == "stock":
        sentry_sdk.init(dsn=_nobody(), release="shop@1.0.0")
    else:
        telemetry.init(service="shop", environment="production", url=_nobody(), release="1.0.0")


def _capture(whose: str) -> None:
    """Answer turns: report one really raised exception so many times."""
    _init(whose)
    capture: Callable[[BaseException], object] = (
        sentry_sdk.capture_exception if whose == "stock" else telemetry.capture_exception
    )
    error = raising()
    for line in sys.stdin:
        took_s = 0.0
        for _ in range(json.loads(line)["turn"]):
            # sentry-sdk reports one object once.
            fresh = type(error)(*error.args).with_traceback(error.__traceback__)
            began = time.thread_time()
            event_id = capture(fresh)
            took_s += time.thread_time() - began
            assert event_id, "nothing was captured"
        sys.stdout.write(json.dumps({"cpu_s": took_s}) + "\n")
        sys.stdout.flush()


def _latencies() -> None:
    _init("ours")
    log = logging.getLogger("shop")
    logging.getLogger().addHandler(logging.NullHandler())
    works: dict[str, Callable[[int], object]] = {
        "track": lambda n: telemetry.track(
            "feature feedback given",
            account=10_000 + n,
            organization=7,
            session=f"s-{n}",
            page="https://app.example.com/projects/7/board",
            properties={"score": n % 11, "remark": "The board is quick again."},
        ),
        "log record": lambda n: log.warning("payment %d failed at step %d", n, n % 9),
    }
    best: dict[str, float] = {}
    for call, work in works.items():
        for _ in range(_TURNS):
            took_s = sorted(_each(work))
            for name, share in _QUANTILES:
                row = f"{call} {name}, µs"
                found = took_s[int(share * (len(took_s) - 1))] * 1e6
                best[row] = min(best.get(row, found), found)
    assert sentry_sdk.get_isolation_scope()._breadcrumbs, "log records became no breadcrumbs"
    dropped = {what: n for what, n in telemetry.stats().items() if "drop" in what and n}
    assert not dropped, dropped  # a call that found no room was no call
    sys.stdout.buffer.write(msgspec.json.encode(best))


def _each(work: Callable[[int], object]) -> Iterator[float]:
    for n in range(_CALLS):
        began = time.perf_counter()
        work(n)
        yield time.perf_counter() - began
        time.sleep(_PAUSE_S)  # as requests come; and the background thread gets its turn


if __name__ == "__main__":
    if sys.argv[1] == "latencies":
        _latencies()
    else:
        _capture(sys.argv[1])
