"""``environment = "production"`` from an empty folder: nobody has to know what a keyset is."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from base64 import urlsafe_b64encode
from http.client import HTTPConnection
from pathlib import Path

import pytest
from running import Running, command, until

from telemetry.identity.custody import Custody
from telemetry.identity.keyring import DEAD_LETTER, KEYSET, Keyring
from telemetry.policy import schemas_dir
from telemetry.testing import HeapStandIn, SentryStandIn

SETTINGS = '[project.1]\nkey = "demo"\ntenant = "shop"\n'


def telemetry(pipeline: Running, *words: str) -> subprocess.CompletedProcess[str]:
    return command(*words, cwd=pipeline.folder, timeout_s=60.0, **pipeline.more)


def production(folder: Path, heap: HeapStandIn, sentry: SentryStandIn) -> Running:
    """All guards of production; the policy names this machine as the recipients' host."""
    policy = folder / "policy"
    shutil.copytree(schemas_dir() / "policy", policy)
    path = policy / "recipients.toml"
    path.write_text(path.read_text("utf-8").replace("hosts = [", 'hosts = ["127.0.0.1", '), "utf-8")
    (folder / "telemetry.toml").write_text(SETTINGS, "utf-8")
    return Running(
        folder,
        heap,
        sentry,
        TELEMETRY_ENVIRONMENT="production",
        TELEMETRY_POLICY=str(policy),
        TELEMETRY_CONFIG=str(folder / "telemetry.toml"),
    )


def send(pipeline: Running, *events: dict[str, object]) -> None:
    connection = HTTPConnection("127.0.0.1", pipeline.port, timeout=20)
    headers = {"Content-Type": "application/json", "Authorization": "Bearer demo"}
    try:
        connection.request("POST", "/v1/events", json.dumps(events).encode(), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        assert json.loads(answer.read()) == {"taken": len(events), "dropped": {}, "dead": {}}
    finally:
        connection.close()


def event(account: int, number: int) -> dict[str, object]:
    return {"event": "page viewed", "account": account, "event_id": f"{number:032x}"}


@pytest.mark.endurance
@pytest.mark.timeout(240)
def test_a_first_start_makes_keys_and_rotations_while_it_runs_lose_and_change_nothing(
    tmp_path: Path,
) -> None:
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        pipeline = production(tmp_path, heap, sentry)
        with pipeline:
            send(pipeline, event(7, 1), event(8, 2))
            until(lambda: len(heap.events) == 2, 15.0, "the first events")
            tokens = {one["identity"] for one in heap.events}
            assert len(tokens) == 2
            for number, use in enumerate(("seal", "wrap", "audit", "hold"), 3):
                rotated = telemetry(pipeline, "keys", "rotate", use, "--json")
                assert rotated.returncode == 0, rotated.stderr
                assert json.loads(rotated.stdout)["state"] == "PRIMARY"
                send(pipeline, event(7, number), event(100 + number, 100 + number))
            until(lambda: len(heap.events) == 10, 30.0, "what came during the rotations")
            same = [one["identity"] for one in heap.events if one["identity"] in tokens]
            assert len(same) == 6
            figures = pipeline.drain()
            assert figures["exact"]
            assert figures["dead_at"] == {}
            assert b"telemetry_keys_overdue" in pipeline.get("/metrics")[1]
            assert pipeline.stop() == 0
        said = pipeline.stderr.read_text("utf-8")
        assert said.count("custody/kek once, apart from everything else") == 1
        with pipeline:
            send(pipeline, event(7, 50))
            until(lambda: len(heap.events) == 11, 15.0, "an event after the restart")
            assert heap.events[-1]["identity"] in tokens
            assert pipeline.stop() == 0
        assert pipeline.stderr.read_text("utf-8").count("apart from everything else") == 1
    found = telemetry(pipeline, "keys", "verify", "--json")
    assert (found.returncode, json.loads(found.stdout)["complaints"]) == (0, [])
    no_key_lies_open(pipeline.state)


def no_key_lies_open(state: Path) -> None:
    custody = Custody(state=state)
    rings = [
        Keyring.load(state / "keys" / name, environment="production", custody=custody)
        for name in (KEYSET, "spool.json", DEAD_LETTER)
    ]
    keys = [k.secret.expose() for ring in rings for k in ring.entries() if k.secret is not None]
    assert len(keys) > 10
    files = [path for path in state.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"kek", "keyset.json", "vault.sqlite3", "spool.sqlite3"}
    for path in files:
        content = path.read_bytes()
        for raw in keys:
            text = urlsafe_b64encode(raw).rstrip(b"=")
            assert not [f for f in (raw, text, raw.hex().encode()) if f in content], path.name
        others = stat.S_IMODE(path.stat().st_mode) & 0o077
        assert not others or path.name == "public.json", path.name


def test_without_its_custody_it_does_not_start_and_says_what_to_do(tmp_path: Path) -> None:
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        pipeline = production(tmp_path, heap, sentry)
        assert telemetry(pipeline, "keys", "init").returncode == 0
        (pipeline.state / "custody" / "kek").rename(tmp_path / "in a safe")
        for name in ("run", "check"):
            refused = telemetry(pipeline, name)
            assert refused.returncode == 2
            assert "Put it back from where you backed it up." in refused.stderr
            assert "Traceback" not in refused.stderr
        assert not (pipeline.state / "custody" / "kek").exists()
