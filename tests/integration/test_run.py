"""`telemetry run` with real HTTP on both sides: outages, stops, a stalled recipient, a new policy.

docs/reliability.md, rows 22-34, 39, 50, 58.
"""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from running import Running, command, until

from telemetry.policy import schemas_dir
from telemetry.testing import HeapStandIn, SentryStandIn

ACCOUNT = 7_744_556_123


@pytest.fixture
def heap() -> Iterator[HeapStandIn]:
    with HeapStandIn() as there:
        yield there


@pytest.fixture
def sentry() -> Iterator[SentryStandIn]:
    with SentryStandIn() as there:
        yield there


def analytics(number: int, **more: Any) -> dict[str, Any]:
    properties = {"scope": "tasks", "results": number}
    return {
        "event": "search used",
        "account": ACCOUNT + number % 50,
        "properties": properties,
    } | more


def failure(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "error_event", "event_id": uuid4().hex, "message": f"failure {number}"} | more


def holds(count: int, there: HeapStandIn) -> bool:
    return len(there.events) >= count


def outage(tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn, seconds: float) -> None:
    with Running(tmp_path, heap, sentry) as pipeline:
        sentry.fail(status=503, seconds=seconds)
        begun = time.monotonic()
        sent = 0
        while time.monotonic() - begun < seconds - 1:
            assert pipeline.events([analytics(sent), failure(sent)])
            sent += 1
            # Heap's events flow on while Sentry takes none.
            assert heap.wait(partial(holds, sent - 5), 3.0)
            assert sentry.items == []
            time.sleep(0.05)
        assert sent >= 10 * (seconds - 2)
        until(lambda: not pipeline.books()["pending"]["pseudonymizer"], 5.0, "shaped")
        if time.monotonic() - begun < seconds:
            assert pipeline.books()["pending"]["sentry"] == sent
        books = pipeline.drain(seconds + 70.0)
        assert sorted(event["message"] for event in sentry.events) == sorted(
            f"failure {number}" for number in range(sent)
        )
        assert {event["properties"]["results"] for event in heap.events} == set(range(sent))
        assert sentry.duplicates == heap.repeats == 0
        assert books["exact"]
        assert books["delivered"] == {"heap": sent, "sentry": sent}
        assert books["resent"]["sentry"] > 0
        assert books["dropped"] == books["dead"] == {}
        assert pipeline.stop() == 0


@pytest.mark.timeout(60)
def test_sentry_is_down_for_ten_seconds(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    outage(tmp_path, heap, sentry, 10.0)


@pytest.mark.endurance
@pytest.mark.timeout(240)
def test_sentry_is_down_for_a_minute(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    outage(tmp_path, heap, sentry, 60.0)


def test_a_recipient_that_never_answers_delays_no_other(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    heap.slow(20.0)
    with Running(tmp_path, heap, sentry) as pipeline:
        begun = time.monotonic()
        for number in range(100):
            assert pipeline.events([analytics(number), failure(number)]), pipeline.unanswered
        assert sentry.wait(lambda there: len(there.events) == 100, 5.0)
        assert time.monotonic() - begun < 8
        until(lambda: pipeline.books()["delivered"]["sentry"] == 100, 5.0, "entered")
        assert pipeline.books()["delivered"]["heap"] == 0
        assert pipeline.books()["pending"]["heap"] == 100


def test_a_stop_with_a_backlog_keeps_it_for_the_next_start(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    pipeline = Running(tmp_path, heap, sentry)
    with pipeline:
        heap.fail(status=503)
        sentry.fail(status=503)
        for start in range(0, 400, 20):
            assert pipeline.events(analytics(n) for n in range(start, start + 20))
            assert pipeline.events(failure(n) for n in range(start, start + 20))
        begun = time.monotonic()
        assert pipeline.stop() == 0
        assert time.monotonic() - begun < 10
        assert "waits for the next start" in pipeline.stderr.read_text("utf-8")
        figures = command("books", "--json", cwd=tmp_path, TELEMETRY_STATE=str(pipeline.state))
        assert figures.returncode == 0
        kept = json.loads(figures.stdout)
        assert kept["exact"]
        assert sum(kept["pending"].values()) == 800
        heap.heal()
        sentry.heal()
        pipeline.start()
        books = pipeline.drain()
        assert books["delivered"] == {"heap": 400, "sentry": 400}
        assert len(heap.events) == len(sentry.events) == 400


def test_a_stop_waits_for_the_answer_that_is_on_its_way(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    heap.slow(1.5)
    with Running(tmp_path, heap, sentry) as pipeline:
        assert pipeline.events([analytics(1)])
        assert heap.wait(lambda there: len(there.requests) == 1, 5.0)
        assert pipeline.stop() == 0
        figures = command("books", "--json", cwd=tmp_path, TELEMETRY_STATE=str(pipeline.state))
        assert json.loads(figures.stdout)["delivered"]["heap"] == 1
    assert heap.repeats == 0


def test_a_recipient_that_never_answers_does_not_keep_the_process(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    heap.slow(25.0)
    with Running(tmp_path, heap, sentry) as pipeline:
        assert pipeline.events([analytics(1)])
        assert heap.wait(lambda there: len(there.requests) == 1, 5.0)
        begun = time.monotonic()
        assert pipeline.signal(signal.SIGINT) == 0
        assert time.monotonic() - begun < 10


def test_whoever_asks_twice_does_not_wait_and_a_lost_terminal_stops_nothing(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    heap.slow(25.0)
    pipeline = Running(tmp_path, heap, sentry)
    with pipeline:
        assert pipeline.process is not None
        pipeline.process.send_signal(signal.SIGHUP)
        assert pipeline.events([analytics(1)])
        assert heap.wait(lambda there: len(there.requests) == 1, 5.0)
        pipeline.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            pipeline.process.wait(0.5)
        begun = time.monotonic()
        assert pipeline.stop() == 1
        assert time.monotonic() - begun < 2
        heap.heal()
        pipeline.start()
        assert pipeline.drain()["delivered"]["heap"] == 1
    assert len(heap.events) == 1


def test_a_second_process_on_the_same_state_refuses_and_harms_nothing(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    with Running(tmp_path, heap, sentry) as pipeline:
        register = pipeline.state / "policies.ndjson"
        before = register.read_bytes()
        folder = copied_policy(tmp_path, "treatments.toml", '"default"', '"strict"')
        elsewhere = {
            "TELEMETRY_BIND": "127.0.0.1:0",
            "TELEMETRY_ADMIN_BIND": "127.0.0.1:0",
            "TELEMETRY_POLICY": str(folder),
        }
        second = command("run", cwd=tmp_path, **{**pipeline.more, **elsewhere})
        assert second.returncode in (1, 2)
        assert "Traceback" not in second.stderr
        assert "another process" in second.stderr
        assert register.read_bytes() == before
        assert pipeline.books()["exact"]
        assert pipeline.events([analytics(1)])
        assert heap.wait(lambda there: len(there.events) == 1, 5.0)


@pytest.mark.parametrize("which", ["TELEMETRY_BIND", "TELEMETRY_ADMIN_BIND"])
def test_a_port_that_is_taken_is_named(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn, which: str
) -> None:
    here = tmp_path / "other"
    here.mkdir()
    other = Running(here, heap, sentry)
    refused = command("run", cwd=here, **{**other.more, which: f"127.0.0.1:{heap.port}"})
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert f"127.0.0.1:{heap.port}" in refused.stderr


def copied_policy(tmp_path: Path, file: str, old: str, new: str) -> Path:
    folder = tmp_path / "policy"
    if not folder.exists():
        shutil.copytree(schemas_dir() / "policy", folder)
    text = (folder / file).read_text("utf-8")
    assert text.count(old) >= 1
    (folder / file).write_text(text.replace(old, new, 1), "utf-8")
    return folder


def test_one_line_of_policy_changes_what_arrives(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    event = analytics(1, ip="203.0.113.77")
    event["properties"]["sorted_by"] = "age"
    pipeline = Running(tmp_path, heap, sentry)
    with pipeline:
        assert pipeline.events([event])
        pipeline.drain()
        # What still waits when the policy changes leaves under the new one.
        heap.fail(status=503)
        assert pipeline.events([analytics(2, ip="198.51.100.77")])
        until(lambda: pipeline.books()["pending"]["heap"] == 1, 5.0, "shaped")
        assert pipeline.stop() == 0
        copied_policy(tmp_path, "treatments.toml", '"default"', '"strict"')
        folder = copied_policy(
            tmp_path, "events.toml", '["search used"]',
            '["search used"]\nsorted_by = { type = "enum", values = ["age", "name"] }',
        )  # fmt: skip
        pipeline.more = {**pipeline.more, "TELEMETRY_POLICY": str(folder)}
        heap.heal()
        pipeline.start()
        assert pipeline.events([event])
        books = pipeline.drain()
        assert books["exact"]
        assert pipeline.stop() == 0
    before, waited, after = (event["properties"] for event in heap.events)
    assert before["ip_prefix"] == "203.0.113.0/24"
    assert "sorted_by" not in before
    assert waited["ip_prefix"] == "198.51.100.0/24"  # it was shaped before the change
    assert after["ip_prefix"] == "203.0.0.0/16"
    assert after["sorted_by"] == "age"
    assert before["policy"] != after["policy"]


def test_the_state_is_closed_to_others_and_holds_no_raw_id(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    mail = "kq7canary@mail.example.org"
    dirty = {
        "user": {
            "id": ACCOUNT,
            "email": mail,
            "ip_address": "203.0.113.77",
            "name": "Kq Canaryson",
        },
        "request": {"url": f"https://app.example.com/u/{mail}?m={mail}", "cookies": mail},
        "extra": {mail: mail},
        "tags": {"who": mail},
        "undeclared": {mail: mail},
    }
    with Running(tmp_path, heap, sentry) as pipeline:
        heap.fail(status=503)
        assert pipeline.events([failure(1, **dirty), analytics(1, session=mail, page=mail)])
        assert pipeline.envelope({"event_id": uuid4().hex, "message": f"no {mail}", **dirty})
        lines = (b'{"kind": "error_event"}', b'{"kind": "%b"}', b'{"mail": %b')
        torn = b"\n".join(line.replace(b"%b", mail.encode()) for line in lines)
        answer = pipeline.post("/v1/events", torn)
        assert answer == {"taken": 1, "dropped": {"unknown_kind": 1}, "dead": {"undecodable": 1}}
        until(lambda: len(sentry.events) == 3, 5.0, "Sentry's events")
        metrics = pipeline.get("/metrics")[1]
        running = pipeline.everything_written()
        socket_mode = stat.S_IMODE((pipeline.state / "admin.sock").stat().st_mode)
        assert socket_mode == 0o600
        heap.heal()
        assert pipeline.drain()["exact"]
        assert pipeline.stop() == 0
        modes = {path: path.stat().st_mode & 0o077 for path in pipeline.state.rglob("*")}
        # Public keys are for others to read; the folder they lie in here is still closed.
        assert modes.pop(pipeline.state / "keys" / "public.json") == 0o044
        assert {path: mode for path, mode in modes.items() if mode} == {}
        assert (pipeline.state / "spool.sqlite3").exists()
        seen = running + metrics + pipeline.everything_written()
    seen += heap.received_bytes() + sentry.received_bytes()
    for secret in (b"canary", b"Canaryson", str(ACCOUNT).encode(), b"203.0.113.77"):
        assert secret not in seen
    assert b"telemetry_items_total" in metrics
