"""``telemetry account erase`` beside a running pipeline and without one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from running import Running, command

from telemetry.cli.account import _left_to_do
from telemetry.identity.audit import AUDIT_FILE, AuditLog
from telemetry.policy import load_policy
from telemetry.testing import HeapStandIn, SentryStandIn

GONE = "471100471100"
STAYS = "815008150081"


def event(account: str) -> dict[str, Any]:
    return {"event": "page viewed", "account": int(account), "time": datetime.now(UTC).isoformat()}


def erased(cwd: Path, *words: str, stdin: str = "", code: int = 0) -> Any:
    state = ("--state", str(cwd / "state"))
    ran = command("account", "erase", *words, *state, cwd=cwd, stdin=stdin)
    assert ran.returncode == code, ran.stderr
    assert GONE not in ran.stdout + ran.stderr
    return ran


def files(state: Path) -> bytes:
    return b"".join(file.read_bytes() for file in state.rglob("*") if file.is_file())


@pytest.mark.parametrize("running", [True, False])
def test_an_erased_account_is_gone_here_and_what_is_left_elsewhere_is_said_first(
    tmp_path: Path, *, running: bool
) -> None:
    search = "https://acme.sentry.example/issues/?query=user.id%3A{token}"
    (tmp_path / "telemetry.toml").write_text(f'[recipient.sentry]\nsearch = "{search}"\n', "utf-8")
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        pipeline = Running(tmp_path, heap, sentry)
        with pipeline:
            pipeline.events([event(GONE), event(STAYS)])
            pipeline.drain()
            before = {one["identity"] for one in heap.events}
            assert len(before) == 2
            if not running:
                assert pipeline.stop() == 0
            words = ("--ticket", "DSR-17", "--yes", "--json")
            ran = erased(tmp_path, *words, stdin=f"{GONE}\n{GONE}\n")
            first, last = map(json.loads, ran.stdout.splitlines())
            assert last == {"request": first["request"], "erased": 1}
            (one,) = first["ids"]
            told = {row["recipient"]: row for row in one["tokens"]}
            assert one["state"] == "known"
            assert told["heap"]["token"] in before
            assert "delete" in first["recipients"]["heap"]["to_do"]
            assert "destroyed at once" in first["recipients"]["sentry"]["to_do"]
            if running:
                # In force at once: this process has forgotten what it remembered.
                pipeline.events([event(GONE), event(STAYS)])
                pipeline.drain()
                assert pipeline.stop() == 0
        with pipeline:
            pipeline.events([event(GONE), event(STAYS)])
            pipeline.drain()
        after = [one["identity"] for one in heap.events[2:]]
        assert set(after) == before - {told["heap"]["token"]}
        assert len(after) == (2 if running else 1)
    # Again: nothing is left to say, and nothing changes.
    again = erased(tmp_path, "--ticket", "DSR-17", "--yes", "--json", stdin=GONE)
    assert json.loads(again.stdout.splitlines()[0])["ids"][0] == {
        "line": 1,
        "state": "erased",
        "tokens": [],
    }
    log = AuditLog(tmp_path / "state" / AUDIT_FILE)
    entries = [
        e for e in log.entries(action="erasure") if (e.body or {})["request"] == first["request"]
    ]
    log.close()
    ordered, done = entries[0], entries[-1]
    assert (ordered.result, done.result) == ("begun", "done")
    assert ordered.body is not None
    assert ordered.body["ticket"] == "DSR-17"
    assert set(ordered.sealed) == {"subject"}
    assert "subject" not in ordered.body
    assert done.body is not None
    assert (done.body["state"], done.body["count"]) == ("erased", 1)
    assert all(entry.content_fits() for entry in entries)
    everything = files(tmp_path / "state")
    assert GONE.encode() not in everything
    assert told["heap"]["token"].encode() not in everything


def test_nobody_is_erased_by_half_unasked_or_by_arguments(tmp_path: Path) -> None:
    with HeapStandIn() as heap, SentryStandIn() as sentry, Running(tmp_path, heap, sentry) as ours:
        ours.events([event(STAYS)])
        ours.drain()
        assert ours.stop() == 0
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{STAYS}\nnot an id\n", "utf-8")
    half = erased(tmp_path, "--ids", str(ids), "--ticket", "DSR-1", "--yes", code=2)
    assert "Nobody was erased" in half.stderr
    assert "not an id" not in half.stderr
    unasked = erased(tmp_path, "--ticket", "DSR-1", stdin=STAYS, code=2)
    assert "--yes" in unasked.stderr
    ticket = erased(tmp_path, "--ticket", "\x07", "--yes", stdin=STAYS, code=1)
    assert "ticket" in ticket.stderr
    state = ("--state", str(tmp_path / "state"))
    known = command("account", "token", "--json", *state, cwd=tmp_path, stdin=STAYS)
    assert json.loads(known.stdout)["ids"][0]["state"] == "known"


def test_what_is_left_to_do_is_said_for_every_recipient_that_is_sent_anything() -> None:
    policy = load_policy()
    left = _left_to_do(policy)
    assert set(left) == {name for name, one in policy.recipients.items() if one.sink}
    assert all(one["to_do"] for one in left.values())
