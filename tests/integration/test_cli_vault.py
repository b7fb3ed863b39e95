"""``telemetry vault`` as an operator meets it, beside a running pipeline and without one."""

from __future__ import annotations

import json
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from running import Running, command, until

from telemetry.testing import HeapStandIn, SentryStandIn

WORDS = ("stats", "rewrap", "backup", "restore")


@pytest.mark.parametrize("word", WORDS)
def test_help_shows_an_example(tmp_path: Path, word: str) -> None:
    shown = command("vault", word, "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "Examples" in shown.stdout
    assert f"telemetry vault {word}" in shown.stdout
    assert "--json" in shown.stdout


def told(*arguments: str, cwd: Path) -> Any:
    ran = command("vault", *arguments, "--json", cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def events(first: int, number: int) -> list[dict[str, Any]]:
    at = datetime.now(UTC).isoformat()
    return [
        {"event": "page viewed", "account": n, "time": at} for n in range(first, first + number)
    ]


def test_the_vault_of_a_running_pipeline_is_counted_rewrapped_copied_and_brought_back(
    tmp_path: Path,
) -> None:
    state = ("--state", str(tmp_path / "state"))
    copy = tmp_path / "copy.sqlite3"
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        with Running(tmp_path, heap, sentry) as running:
            running.events(events(1000, 30))
            running.drain()
            figures = told("stats", *state, cwd=tmp_path)
            assert (figures["subjects"], figures["wrapped"]) == (30, {"1": 30})
            assert told("rewrap", "--now", *state, cwd=tmp_path) == {
                "wrapped": {"2": 30},
                "rewrapped": 2,
            }
            told("rewrap", "--destroy", *state, cwd=tmp_path)
            assert told("backup", str(copy), *state, cwd=tmp_path)["bytes"] == copy.stat().st_size
            again = command("vault", "backup", str(copy), *state, cwd=tmp_path)
            assert again.returncode == 2
            assert "exists already" in again.stderr
            nowhere = command("vault", "backup", "no/such/folder/x", *state, cwd=tmp_path)
            assert "cannot be written" in nowhere.stderr
            refused = command("vault", "restore", str(copy), *state, cwd=tmp_path)
            assert refused.returncode == 2
            assert "Stop it first" in refused.stderr
            running.events(events(1000, 30))
            running.drain()
            assert running.stop() == 0
        for file in (tmp_path / "state").glob("vault.sqlite3*"):
            file.unlink()
        assert told("restore", str(copy), *state, cwd=tmp_path)["subjects"] == 30
        assert told("stats", *state, cwd=tmp_path)["wrapped"] == {"2": 30}
        with Running(tmp_path, heap, sentry) as running:
            running.events(events(1000, 30))
            running.drain()
            assert told("stats", *state, cwd=tmp_path)["subjects"] == 30
        # Three times the same thirty, before and after: nobody got a second token.
        assert len(heap.events) == 90
        assert len({event["identity"] for event in heap.events}) == 30


def test_the_weekly_rotation_needs_nobody(tmp_path: Path) -> None:
    """A pipeline that starts with a wrap key of last week replaces it and moves the rows."""
    state = ("--state", str(tmp_path / "state"))
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        running = Running(tmp_path, heap, sentry)
        with running:
            running.events(events(1000, 20))
            running.drain()
            running.stop()
        keyset = tmp_path / "state" / "keys" / "keyset.json"
        document = json.loads(keyset.read_bytes())
        for key in document["keys"]:
            if key["use"] == "wrap":
                key["created"] = "2026-01-01T00:00:00+00:00"
                key["not_before"] = None
        keyset.write_text(json.dumps(document), "utf-8")
        with running:
            until(
                lambda: told("stats", *state, cwd=tmp_path)["wrapped"] == {"2": 20}, 30, "rotated"
            )
            running.events(events(1000, 25))
            running.drain()
            assert told("stats", *state, cwd=tmp_path)["wrapped"] == {"2": 25}


def test_two_pipelines_do_not_share_a_sqlite_vault(tmp_path: Path) -> None:
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        with Running(tmp_path, heap, sentry):
            other = tmp_path / "other"
            other.mkdir()
            # Without what is being written just now.
            shutil.copytree(
                tmp_path / "state" / "keys",
                other / "state" / "keys",
                ignore=shutil.ignore_patterns(".*"),
            )
            shutil.copy(tmp_path / "state" / "tombstones.sqlite3", other / "state")
            second = command(
                "run",
                "--bind=127.0.0.1:0",
                "--admin-bind=127.0.0.1:0",
                cwd=other,
                TELEMETRY_STATE=str(other / "state"),
                TELEMETRY_VAULT_URL=f"sqlite:///{tmp_path}/state/vault.sqlite3",
            )
        assert second.returncode == 2
        assert "Another process uses this SQLite vault" in second.stderr


def test_a_kafka_group_with_a_sqlite_vault_is_refused_before_the_first_event(
    tmp_path: Path,
) -> None:
    (tmp_path / "telemetry.toml").write_text(
        'environment = "staging"\n[broker]\nkind = "kafka"\nbootstrap = "127.0.0.1:1"\n', "utf-8"
    )
    refused = command("check", cwd=tmp_path)
    assert refused.returncode == 2
    assert "serves one pseudonymizer" in refused.stderr
    fits = command("check", cwd=tmp_path, TELEMETRY_VAULT_URL="postgresql+psycopg://v@db.example/v")
    assert fits.returncode == 0, fits.stderr


def test_a_vault_of_the_first_version_starts_and_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        running = Running(tmp_path, heap, sentry)
        with running:
            running.events(events(1000, 10))
            running.drain()
            running.stop()
        (state / "tombstones.sqlite3").unlink()
        with sqlite3.connect(state / "vault.sqlite3") as writer:
            for statement in (
                "DROP INDEX tombstones_by_day",
                "ALTER TABLE subjects DROP COLUMN pins",
                "ALTER TABLE suppressions DROP COLUMN since",
                "DROP TABLE pin_sets",
                "DELETE FROM about WHERE name <> 'keyset'",
            ):
                writer.execute(statement)
        writer.close()
        with running:
            running.events(events(1000, 10))
            running.drain()
            figures = told("stats", "--state", str(state), cwd=tmp_path)
            assert (figures["schema"], figures["subjects"]) == (2, 10)


def test_a_pipeline_whose_vault_vanished_does_not_start_until_somebody_decides(
    tmp_path: Path,
) -> None:
    state = ("--state", str(tmp_path / "state"))
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        running = Running(tmp_path, heap, sentry)
        with running:
            running.events(events(1000, 5))
            running.drain()
            running.stop()
        for file in (tmp_path / "state").glob("vault.sqlite3*"):
            file.unlink()
        for words in (
            ("run", "--bind=127.0.0.1:0", "--admin-bind=127.0.0.1:0"),
            ("vault", "stats"),
        ):
            refused = command(*words, *state, cwd=tmp_path)
            assert refused.returncode == 2
            assert "The vault is gone" in refused.stderr
            assert "telemetry vault restore FILE" in refused.stderr
        assert told("restore", "--new-vault", *state, cwd=tmp_path)["subjects"] == 0
        with running:
            running.events(events(1000, 5))
            running.drain()
        assert len({event["identity"] for event in heap.events}) == 10
        logged = command("audit", "log", "--action=vault.begin", "--json", *state, cwd=tmp_path)
        results = [json.loads(line)["result"] for line in logged.stdout.splitlines()]
        assert results == ["begun", "done"]
