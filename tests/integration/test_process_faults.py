"""Rows of the fault catalogue that need a process (docs/reliability.md, "The 86 faults")."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import Running, until

from telemetry.testing import HeapStandIn, SentryStandIn


@contextmanager
def few_files(most: int) -> Iterator[None]:
    """Let processes that are started here have only so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_flood_of_connections_leaves_files_for_log_and_recipients(tmp_path: Path) -> None:
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        pipeline = Running(tmp_path, heap, sentry)
        with few_files(512):
            pipeline.start()
        flood: list[socket.socket] = []
        try:
            while len(flood) < 700:
                flood += [socket.create_connection(("127.0.0.1", pipeline.port), timeout=5)]
            began = time.monotonic()
            assert pipeline.events(
                [{"event": "page viewed", "account": 7}, {"kind": "error_event", "message": "x"}]
            )
            assert time.monotonic() - began < 5  # long before deadlines end the flood
            until(lambda: len(heap.events) == len(sentry.events) == 1, 10.0, "delivered")
            assert pipeline.get("/health/live")[0] == 200
        finally:
            for one in flood:
                one.close()
        assert pipeline.drain()["exact"]
        assert pipeline.stop() == 0
        assert b"Too many open files" not in pipeline.stderr.read_bytes()


@pytest.mark.parametrize("level", ["1", "2"])
def test_without_asserts_and_docstrings_it_works_the_same(tmp_path: Path, level: str) -> None:
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        with Running(tmp_path, heap, sentry, PYTHONOPTIMIZE=level) as pipeline:
            assert pipeline.events(
                [
                    {"event": "page viewed", "account": 7},
                    {"kind": "error_event", "message": "jane.roe@example.org"},
                ]
            )
            figures = pipeline.drain()
            assert figures["exact"]
            assert figures["delivered"] == {"heap": 1, "sentry": 1}
            assert pipeline.stop() == 0
        assert b"jane.roe" not in pipeline.everything_written()
        assert "jane.roe" not in str(sentry.events)


def test_a_crash_of_it_leaves_no_memory_on_disk(tmp_path: Path) -> None:
    with (
        HeapStandIn() as heap,
        SentryStandIn() as sentry,
        Running(tmp_path, heap, sentry) as pipeline,
    ):
        assert pipeline.process is not None
        limits = Path(f"/proc/{pipeline.process.pid}/limits").read_text("ascii")
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core file")]
        assert core.split()[4] == "0"
        assert pipeline.stop() == 0
