"""Hostile inputs cost little time and memory, break nothing and show nothing.

Rows 69 to 77 of the fault catalogue: over the scrubbers and the SDK in processes of their own
(`hostile.py`), and over the socket of a real gateway. What counts is processor time: others use
this machine too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

import pytest

from telemetry.testing import HeapStandIn, SentryStandIn
from tests.integration import hostile
from tests.integration.running import ROOT, Running

LIMIT_S: Final = 0.1
MOST_MIB: Final = 256
GROWTH_MIB: Final = 100
"""A process that has loaded everything has up to 150 MiB."""

SLOWER_S: Final[Mapping[str, float]] = {
    # What one character stands for must be written out before it can be searched: six for one.
    "71 a mebibyte of squares that stand for words": 0.8,
    "71 many of squares that stand for words": 0.5,
}
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux: /proc/self/clear_refs"
)


def groups() -> list[str]:
    return sorted({name.partition(" ")[0] for name in hostile.CASES})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", groups())
def test_hostile_input_costs_little_breaks_nothing_and_shows_nothing(row: str) -> None:
    wrong = findings([name for name in hostile.CASES if name.startswith(f"{row} ")])
    assert wrong == []


def findings(names: list[str]) -> list[tuple[str, tuple[str, object]]]:
    """Run cases in processes of their own; give what is wrong with them."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.hostile"],
        input="\n".join(names) + "\n",
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    ran = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["case"] for one in ran] == names, done.stderr[-2000:]
    return [
        (one["case"], what)
        for one in ran
        for what in (
            ("died", one.get("died", 0)),
            ("slow", one.get("cpu_s", 0) > SLOWER_S.get(one["case"], LIMIT_S) and one["cpu_s"]),
            ("large", one.get("peak_mib", 0) - one.get("before_mib", 0) > GROWTH_MIB),
            ("shows a planted value", one.get("leaks")),
            ("is no UTF-8", not one.get("valid", True)),
            ("has control characters", one.get("raw") and one["case"].startswith("72")),
            ("gave nothing", not one.get("out", 1)),
        )
        if what[1]
    ]


class Cost:
    """What a process has spent so far: from the kernel, so it can be asked about others."""

    def __init__(self, process: int) -> None:
        self._proc = Path(f"/proc/{process}")
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")

    def cpu_s(self) -> float:
        fields = (self._proc / "stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * self._tick_s

    def forget_peak(self) -> None:
        (self._proc / "clear_refs").write_text("5", "ascii")

    def peak_mib(self) -> int:
        lines = (self._proc / "status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        folder = tmp_path_factory.mktemp("hostile")
        with Running(folder, heap, sentry) as running:
            running.post("/v1/events", b'{"event":"page viewed"}')
            yield running


def posted(running: Running, path: str, body: bytes, encoding: str) -> int:
    """Send as a hostile client would, without waiting for leave; 0 if it hung up on us."""
    client = HTTPConnection("127.0.0.1", running.port, timeout=20)
    headers = {"Content-Type": "application/json", "X-Sentry-Auth": "Sentry sentry_key=demo"}
    if encoding:
        headers["Content-Encoding"] = encoding
    try:
        client.request("POST", path, body, headers)
        answer = client.getresponse()
        assert b"canary" not in answer.read()
    except (OSError, HTTPException):
        return 0
    else:
        return answer.status
    finally:
        client.close()


PATHS: Final = {"envelope": "/api/1/envelope/", "store": "/api/1/store/", "events": "/v1/events"}
REQUESTS: Final = [
    *((name, path, "") for name in hostile.BODIES for path in PATHS),
    *((f"100 MB of zeros, {encoding}", "events", encoding) for encoding in hostile.PACKINGS),
]
"""Each body in each dialect; and bombs, which are the same for all of them."""


@pytest.mark.timeout(300)
def test_hostile_requests_cost_a_gateway_little_and_the_next_one_is_taken(
    gateway: Running,
) -> None:
    assert gateway.process is not None
    cost, wrong = Cost(gateway.process.pid), []
    for name, dialect, encoding in REQUESTS:
        body = (
            hostile.packed(encoding, bytes(100 * 10**6))
            if encoding
            else hostile.request_body(dialect, hostile.BODIES[name]())
        )
        cost.forget_peak()
        began = cost.cpu_s()
        status = posted(gateway, PATHS[dialect], body, encoding.strip())
        took, peak = cost.cpu_s() - began, cost.peak_mib()
        # Twice, because this one also reads ten mebibytes from a socket, stores and forwards.
        if status >= 500 or took > 2 * LIMIT_S or peak > MOST_MIB:
            wrong.append((name, dialect, status, round(took, 2), peak))
        assert gateway.post("/v1/events", b'{"event":"page viewed"}') is not None, name
    assert wrong == []
    assert b"canary" not in gateway.stderr.read_bytes()
