"""What `telemetry run` witnesses, and what it does not do when it cannot witness it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from telemetry.config import load_settings
from telemetry.errors import AuditError
from telemetry.identity import Turn, initialise_development
from telemetry.identity.audit import (
    AUDIT_FILE,
    AuditLog,
    Checkpoint,
    VerifierKey,
    about_key,
    verify,
)
from telemetry.run import Runner


def runner(state: Path, **environ: str) -> Runner:
    environ |= {
        "TELEMETRY_STATE": str(state),
        "TELEMETRY_BIND": "127.0.0.1:0",
        "TELEMETRY_ADMIN_BIND": "127.0.0.1:0",
    }
    return Runner(load_settings(environ=environ), lambda _: None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it is told by a file
            await asyncio.sleep(0.02)


async def test_a_run_signs_each_hour_and_orders_are_witnessed_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "officer").mkdir()
    run = runner(tmp_path / "state", TELEMETRY_AUDIT_CHECKPOINTS=str(tmp_path / "officer"))
    await run.open()
    try:
        log = run.audit
        assert len(log.checkpoints()) == 1
        run.audit_every_s = 0.1
        stop = asyncio.Event()
        working = asyncio.create_task(run.run(stop))
        await until(lambda: len(log.entries(action="egress.total")) >= 4)
        totals = [entry.body for entry in log.entries(action="egress.total")]
        assert {body["recipient"] for body in totals if body} == {"heap", "sentry"}
        await until(lambda: len(log.checkpoints()) >= 3)
        assert log.entries(action="key.create")

        def fails(*_: Any, **__: Any) -> int:
            raise AuditError("The audit log cannot be written.")

        with monkeypatch.context() as broken:
            broken.setattr(log, "record", fails)
            with pytest.raises(AuditError):
                await run.order(["heap"], paused=True, actor="user:erika")
            assert run.forwarders["heap"].paused, "a pause protects: it is done all the same"
            with pytest.raises(AuditError):
                await run.order(["heap"], paused=False, actor="user:erika")
            assert run.forwarders["heap"].paused, "to go on without a witness is refused"
        await run.order(["heap"], paused=False, actor="user:erika")
        assert not run.forwarders["heap"].paused
        (resumed,) = log.entries(action="recipient.resume")
        assert (resumed.actor, resumed.body) == ("user:erika", {"recipient": "heap"})
        assert resumed.policy_digest == run.policy.digest
        stop.set()
        await working
        key = VerifierKey.of(run.identity.signer())
    finally:
        await run.close()
    notes = [p.read_text("utf-8") for p in sorted((tmp_path / "officer").glob("*.txt"))]
    closed = AuditLog(tmp_path / "state" / AUDIT_FILE)
    assert closed.entries()[-1].action == "run.stop"
    assert Checkpoint.parse(notes[-1]).size == closed.size
    assert verify(closed.export(), [key], witnessed=notes).sound
    closed.close()


async def test_what_was_done_to_keys_is_witnessed_once_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.run._TEND_S", 0.05)
    run = runner(tmp_path / "state")
    await run.open()
    try:
        assert run.identity is not None
        stop = asyncio.Event()
        record, rounds = run.audit.record, []
        before = len(run.audit.entries(action="key."))

        def fails(*_: Any, **__: Any) -> int:
            raise AuditError("The audit log cannot be written.")

        def tend(**arguments: Any) -> list[Turn]:
            done = ended(**arguments)
            done += [Turn(what="scheduled", key=turn.key) for turn in done]
            rounds.append(done)
            return done

        ended = run.identity.tend
        monkeypatch.setattr(run.identity, "tend", tend)
        monkeypatch.setattr(run.audit, "record", fails)
        tending = asyncio.create_task(run._tend(stop))
        await until(lambda: len(rounds) >= 3)
        done = [turn for turns in rounds for turn in turns]
        assert len(done) > 1, "the first round announces a key"
        monkeypatch.setattr(run.audit, "record", record)
        await until(lambda: len(run.audit.entries(action="key.")) >= before + len(done))
        stop.set()
        await tending
        entries = run.audit.entries(action="key.")[before:]
        told = [(entry.action, entry.body) for entry in entries]
        words = {"created": "key.create", "scheduled": "key.schedule"}
        assert told == [(words[turn.what], about_key(turn.key)) for turn in done]
    finally:
        await run.close()


async def test_a_log_that_was_changed_or_cannot_be_handed_over_stops_the_start(
    tmp_path: Path,
) -> None:
    run = runner(tmp_path / "state", TELEMETRY_AUDIT_CHECKPOINTS=str(tmp_path / "absent"))
    with pytest.raises(AuditError):
        await run.open()
    await run.close()
    (tmp_path / "state").mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "state" / AUDIT_FILE).write_bytes(b"noise" * 5000)
    run = runner(tmp_path / "state")
    with pytest.raises(AuditError):
        await run.open()
    await run.close()


async def test_every_key_that_there_is_is_in_the_log_from_the_first_start_on(
    tmp_path: Path,
) -> None:
    run = runner(tmp_path / "state")
    await run.open()
    try:
        heard = {(e.body or {})["kid"] for e in run.audit.entries(action="key.create")}
        ring = run.identity._keyring
        assert heard == {key.kid for key in ring.entries()}
        # What is made on demand, for a recipient's first event, is told with the next look.
        ring.token_key("analytics@heap", "rel")
        stop = asyncio.Event()
        working = asyncio.create_task(run.run(stop))
        await until(
            lambda: any(
                (e.body or {}).get("domain") == "analytics@heap"
                for e in run.audit.entries(action="key.create")
            )
        )
        stop.set()
        await working
        number = len(run.audit.entries(action="key."))
    finally:
        await run.close()
    again = runner(tmp_path / "state")
    await again.open()
    await again.close()
    log = AuditLog(tmp_path / "state" / AUDIT_FILE)
    assert len(log.entries(action="key.")) == number, "what the log has heard of is not told twice"
    log.close()


async def test_a_first_start_that_was_cut_short_is_told_by_the_next(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    initialise_development(state)  # and then the power failed
    run = runner(state)
    await run.open()
    heard = {(e.body or {})["kid"] for e in run.audit.entries(action="key.create")}
    assert heard == {key.kid for key in run.identity._keyring.entries()}
    await run.close()


async def test_the_weekly_exchange_of_the_wrap_key_is_witnessed_with_its_destruction(
    tmp_path: Path,
) -> None:
    run = runner(tmp_path / "state")
    await run.open()
    try:
        for _ in range(2):
            list(run.identity.upkeep(rotate_after=timedelta(0)))
        stop = asyncio.Event()
        working = asyncio.create_task(run.run(stop))
        await until(lambda: bool(run.audit.entries(action="key.destroy")))
        stop.set()
        await working

        def told(action: str) -> list[Any]:
            bodies = [e.body or {} for e in run.audit.entries(action=action)]
            return [body["version"] for body in bodies if body["use"] == "wrap"]

        assert told("key.create") == [1, 2, 3]
        assert told("key.promote") == [2, 3]
        assert told("key.destroy") == [1]
        (destroyed,) = run.audit.entries(action="key.destroy")
        assert destroyed.actor == "role:run"
    finally:
        await run.close()


async def test_what_retention_deletes_is_told_in_sums_and_after_a_failure_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner(tmp_path / "state")
    await run.open()
    ends = [datetime(2026, 11, day, tzinfo=UTC) for day in (3, 1, 2)]

    def fails(*_: Any, **__: Any) -> int:
        raise AuditError("The audit log cannot be written.")

    try:
        run._note_swept("dead", 3, ends)
        with monkeypatch.context() as broken:
            broken.setattr(run.audit, "record", fails)
            with pytest.raises(AuditError):
                run._witness_swept()
        run._note_swept("dead", 1, [datetime(2026, 11, 9, tzinfo=UTC)])
        run._note_swept("lost", 2)
    finally:
        await run.close()
    log = AuditLog(tmp_path / "state" / AUDIT_FILE)
    bodies = {(e.body or {})["store"]: e.body for e in log.entries(action="retention.sweep")}
    log.close()
    assert bodies == {
        "dead": {
            "store": "dead",
            "count": 4,
            "oldest": "2026-11-01T00:00:00+00:00",
            "latest": "2026-11-09T00:00:00+00:00",
        },
        "lost": {"store": "lost", "count": 2},
    }
