"""Dead letters as an operator meets them, and the page that tells all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from running import Running, command, until

from telemetry.brokers import DEAD, HELD, SEALED, Entry
from telemetry.config import Settings
from telemetry.dead_letter import noted
from telemetry.identity import load_dead_letter_sealer
from telemetry.identity.audit import AUDIT_FILE, AuditLog, actor_of
from telemetry.run import open_broker
from telemetry.testing import HeapStandIn, SentryStandIn
from telemetry.testing.brokers import make_parcel

PLANTED = "planted-mareike.sample@example.org"
GOOD = {"event": "search used", "account": 7, "properties": {"scope": "tasks", "results": 3}}


@pytest.fixture
def heap() -> Iterator[HeapStandIn]:
    with HeapStandIn() as there:
        yield there


@pytest.fixture
def sentry() -> Iterator[SentryStandIn]:
    with SentryStandIn() as there:
        yield there


def run(ours: Running, *arguments: str, code: int = 0) -> Any:
    """Run a command of ours with ``--json``; give its answer."""
    done = command(*arguments, "--json", cwd=ours.folder, **ours.more)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def unreadable(ours: Running, number: int) -> dict[str, Any]:
    """Send lines of which one is no JSON; give the answer."""
    lines = [json.dumps(GOOD), f'{{"event": "search used", "note": "{PLANTED} {number}"']
    answer: dict[str, Any] = ours.post("/v1/events", "\n".join(lines).encode())
    return answer


def key_of(ours: Running) -> str:
    (found,) = ours.state.rglob("dead-letter/keyset.json")
    return str(found)


def test_a_list_names_reason_and_place_and_the_original_needs_the_key(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    with Running(tmp_path, heap, sentry) as ours:
        assert unreadable(ours, 1)["dead"]
        (letter,) = run(ours, "dead", "list")
        assert letter["stage"] == "edge"
        assert letter["goes_again"] == "yes"
        assert letter["place"].startswith("dead/")
        assert letter["age_s"] < 30
        shown = run(ours, "dead", "show", letter["event_id"])
        assert PLANTED not in json.dumps(shown)
        opened = run(ours, "dead", "show", letter["event_id"], "--key", key_of(ours))
        assert PLANTED in opened[0]["original"]
        assert ours.witnessed("dead.open") == [(actor_of(), {"count": 1})]
        table = command("dead", "list", cwd=tmp_path, **ours.more)
        assert letter["reason"] in table.stdout
        missing = command("dead", "show", "0" * 32, cwd=tmp_path, **ours.more)
        assert missing.returncode == 2
        assert PLANTED not in ours.stderr.read_text("utf-8")
    # The same without a pipeline: the state is read itself.
    assert [one["event_id"] for one in run(ours, "dead", "list")] == [letter["event_id"]]
    assert PLANTED.encode() not in ours.everything_written()


def test_purged_letters_are_gone_and_counted(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    with Running(tmp_path, heap, sentry) as ours:
        for number in range(3):
            assert unreadable(ours, number)["dead"]
        (reason,) = {one["reason"] for one in run(ours, "dead", "list")}
        refused = command("dead", "purge", cwd=tmp_path, **ours.more)
        assert refused.returncode == 2
        assert "--all" in refused.stderr
        assert run(ours, "dead", "purge", "--reason", "capsule_corrupt") == {"purged": 0}
        assert run(ours, "dead", "purge", "--older-than", "1h") == {"purged": 0}
        assert run(ours, "dead", "purge", "--reason", reason) == {"purged": 3}
        assert run(ours, "dead", "list") == []
        books = ours.drain()
        assert books["dropped_at"]["dead"] == {"purged": 3}
        assert books["exact"]
        assert unreadable(ours, 9)["dead"]
    assert run(ours, "dead", "purge", "--all") == {"purged": 1}
    assert run(ours, "books")["exact"]


def test_held_events_are_listed_and_released_with_a_pipeline_and_without(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    ours = Running(tmp_path, heap, sentry)
    with ours:
        assert ours.events([GOOD])
        ours.drain()
        assert ours.stop() == 0
    spool = open_broker(Settings(state=str(ours.state)))
    now = datetime.now(UTC)
    held = [
        replace(
            make_parcel(number, kind="analytics_event"),
            reason="restricted",
            occurred_at=now,
            received_at=now,
            retain_until=now + timedelta(days=9),
        )
        for number in (1, 2, 3)
    ]
    counts = {Entry("edge", "items_in"): 3, Entry("edge", "sealed"): 3}
    spool.append(HELD, held, counts | {Entry("pseudonymizer", "held", "restricted"): 3})
    spool.close()
    assert len(run(ours, "held", "list")) == 3
    assert run(ours, "held", "release", "--event", held[0].event_id) == {"released": 1}
    refused = command("held", "release", cwd=tmp_path, **ours.more)
    assert refused.returncode == 2
    assert "--all" in refused.stderr
    with Running(tmp_path, heap, sentry) as ours:
        found = run(ours, "held", "list")
        assert [one["event_id"] for one in found] == [one.event_id for one in held[1:]]
        assert PLANTED not in json.dumps(found)
        table = command("held", "list", cwd=tmp_path, **ours.more)
        assert "restricted" in table.stdout
        assert run(ours, "held", "release", "--all") == {"released": 2}
        assert run(ours, "held", "list") == []
        assert run(ours, "held", "release", "--all") == {}
        books = ours.drain()
        assert (books["released"], books["waiting"]["held"]) == (3, 0)
        assert books["exact"]
        assert (actor_of(), {"count": 2}) in ours.witnessed("held.release")


ORIGINAL = {"event": "old name", "account": 7, "time": "2026-11-20T10:11:12Z", "properties": {}}


def test_what_could_not_be_read_goes_again_with_its_id_once_it_can(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    """The fault is in the log: the spool holds letters whose originals today's edge reads."""
    ours = Running(tmp_path, heap, sentry)
    with ours:
        assert ours.events([GOOD])
        ours.drain()
        assert ours.stop() == 0
    sealer = load_dead_letter_sealer(ours.state / "keys" / "public.json")

    now = datetime.now(UTC)
    letters = []
    for number, (age, stage, original) in enumerate(
        [
            (timedelta(hours=1), "edge", GOOD),
            (timedelta(hours=1), "edge", GOOD | {"account": 8}),
            (timedelta(days=500), "edge", GOOD),
            (timedelta(hours=1), "heap", GOOD),
            (timedelta(hours=1), "edge", None),
        ]
    ):
        body = b"no json" if original is None else json.dumps(original).encode()
        parcel = make_parcel(number, kind="analytics_event", body=body)
        at = now - timedelta(hours=1)
        letters.append(
            replace(
                parcel,
                body=sealer.seal(body, event_id=parcel.event_id),
                capsule=b"",
                reason="undecodable",
                remarks=noted(stage, at, path="", kind=parcel.kind, original=body),
                occurred_at=now - age,
                received_at=at,
                retain_until=now - age + timedelta(days=365),
            )
        )
    broker = open_broker(Settings(state=str(ours.state)))
    counts = {Entry("edge", "items_in"): 5, Entry("edge", "dead", "undecodable"): 5}
    broker.append(SEALED, [], counts, beside={DEAD: letters})
    broker.close()
    with ours:
        # The sweeper takes what is past its retention before anybody else.
        until(lambda: ours.books()["dropped_at"].get("dead") == {"expired": 1}, 10.0, "swept")
        key = key_of(ours)
        outcomes = run(ours, "dead", "replay", "--all", "--key", key, code=1)
        assert outcomes == {"replayed": 2, "no_identifiers": 1, "undecodable": 1}
        assert heap.wait(lambda there: len(there.events) == 3, 10.0)
        books = ours.drain()
        assert books["replayed"] == 2
        assert books["waiting"]["dead"] == 2
        assert books["exact"]
        assert books["events_in"] == 8
        went = sorted(one["event_id"] for one in run(ours, "dead", "list"))
        assert went == [f"{number:032x}" for number in (3, 4)]
        again = run(ours, "dead", "replay", "--event", f"{0:032x}", "--key", key)
        assert again == {}
        assert (actor_of(), {"count": 4}) in ours.witnessed("dead.replay")
        assert ours.stop() == 0
    log = AuditLog(ours.state / AUDIT_FILE)
    (told,) = log.entries(action="retention.sweep")
    log.close()
    assert told.body is not None
    assert (told.actor, told.body["store"], told.body["count"]) == ("role:run", "dead", 1)
    assert str(told.body["oldest"]) == str(told.body["latest"]) < now.isoformat()


def test_one_page_answers_the_four_questions(
    tmp_path: Path, heap: HeapStandIn, sentry: SentryStandIn
) -> None:
    with Running(tmp_path, heap, sentry) as ours:
        assert ours.events([GOOD])
        ours.drain()
        found = run(ours, "status", code=1)
        words = {one["question"]: one["answer"] for one in found["answers"]}
        assert words == {
            "losing?": "no",
            "leaking?": "look",
            "safe now?": "yes",
            "time left?": "nothing is waiting",
        }
        assert found["answers"][1]["because"] == [
            "environment is development: any client key, any recipient's host"
        ]
        heap.fail(status=401, seconds=60.0)
        assert ours.events([GOOD] * 3)
        until(
            lambda: run(ours, "status", code=1)["recipients"]["heap"] == "blocked", 10.0, "blocked"
        )
        assert unreadable(ours, 1)["dead"]
        time.sleep(0.2)
        found = run(ours, "status", code=1)
        assert not found["answers"][2]["well"]
        assert 364 * 86_400 < found["time_to_loss_s"]["clean.heap"] < 366 * 86_400
        assert found["oldest_s"]["dead"] > 0
        assert found["room"]["clean.heap"]["used_bytes"] > 0
        metrics = ours.get("/metrics")[1].decode()
        assert 'telemetry_oldest_age_seconds{of="dead"}' in metrics
        assert 'telemetry_time_to_loss_seconds{of="clean.heap"}' in metrics
        assert 'telemetry_stopped{of="heap"} 1.0' in metrics
        page = command("status", cwd=tmp_path, **ours.more)
        assert page.returncode == 1
        for question in words:
            assert question in page.stdout
        assert "heap is blocked" in page.stdout
    nothing = command("status", cwd=tmp_path, **ours.more)
    assert nothing.returncode == 4
