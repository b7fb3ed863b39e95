"""What `telemetry run` witnesses, and what it does not do when it cannot witness it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from telemetry.config import load_settings
from telemetry.errors import AuditError
from telemetry.identity import Turn
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
        await until(lambda: len(run.audit.entries(action="key.")) >= len(done))
        stop.set()
        await tending
        told = [(entry.action, entry.body) for entry in run.audit.entries(action="key.")]
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
    (tmp_path / "state" / AUDIT_FILE).write_bytes(b"noise" * 5000)
    run = runner(tmp_path / "state")
    with pytest.raises(AuditError):
        await run.open()
    await run.close()
