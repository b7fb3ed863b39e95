"""`telemetry policy list` and `revoke`, at rest and on a pipeline that runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

from running import Running, command, until

from telemetry.identity.audit import actor_of
from telemetry.policy import load_policy
from telemetry.testing import HeapStandIn, SentryStandIn


def test_a_policy_revoked_while_it_runs_lets_nothing_out_within_five_seconds(
    tmp_path: Path,
) -> None:
    digest = load_policy().digest
    with HeapStandIn() as heap, SentryStandIn() as sentry, Running(tmp_path, heap, sentry) as ours:
        heap.fail(status=503, seconds=60.0)
        event = {"event": "search used", "account": 7, "properties": {"scope": "tasks"}}
        assert ours.events([event] * 5)
        until(lambda: ours.books()["pending"]["heap"] == 5, 10.0, "waits for heap")
        done = command("policy", "revoke", digest[:8], "--yes", cwd=tmp_path, **ours.more)
        assert (done.returncode, done.stderr) == (0, "")
        assert digest in done.stdout
        begun = time.monotonic()
        heap.heal()
        until(lambda: not ours.books()["pending"]["heap"], 5.0, "dropped")
        assert time.monotonic() - begun < 5
        books = ours.books()
        assert books["dropped_at"]["heap"] == {"revoked_policy": 5}
        # Clients are still answered; the pseudonymizer takes nothing for now.
        assert ours.events([event])
        until(lambda: ours.get("/health/ready")[0] == 503, 5.0, "holding")
        assert ours.books()["pending"]["pseudonymizer"] == 1
        assert ours.books()["exact"]
        assert heap.events == []
        assert ours.witnessed("policy.revoke") == [(actor_of(), {"digest": digest})]
        listed = command("policy", "list", "--json", cwd=tmp_path, **ours.more)
        (entry,) = json.loads(listed.stdout)
        assert (entry["digest"], entry["state"]) == (digest, "revoked")
    again = command("run", cwd=tmp_path, **ours.more)
    assert again.returncode == 2
    assert "Change the policy" in again.stderr


def test_at_rest_the_next_start_obeys_and_a_typing_error_revokes_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    digest = "c0ffee12" * 8
    line = {"digest": digest, "state": "live", "at": "2026-11-22T00:00:00+00:00"}
    (state / "policies.ndjson").write_text(json.dumps(line) + "\n", "utf-8")
    for wrong in ("c0ffee13", "c0f", "Jane"):
        refused = command("policy", "revoke", wrong, "--yes", "--state", "state", cwd=tmp_path)
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr
    more = ("--yes", "--state", "state", "--json")
    done = command("policy", "revoke", "C0FFEE12", *more, cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == {"revoked": digest}
    shown = command("policy", "list", "--state", "state", cwd=tmp_path)
    assert digest in shown.stdout
    assert "revoked" in shown.stdout
