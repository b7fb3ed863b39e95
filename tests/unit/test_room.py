"""When the log's room is short: the rest is kept for errors (docs/reliability.md)."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from telemetry import run
from telemetry.brokers import SEALED, Entry
from telemetry.brokers.spool import Spool
from telemetry.config import GatewaySection, Project, RecipientSettings, Settings
from telemetry.errors import ConfigError, SpoolFull
from telemetry.identity.ways_back import Request, _Requests
from telemetry.policy import load_policy
from telemetry.run import Runner, Storage, networks_of
from telemetry.sinks.wire import may_reach
from telemetry.testing.brokers import make_parcel

ONE = Entry("edge", "sealed")


async def looked(storage: Storage) -> bool:
    """Ask twice: the first look goes to the storage thread."""
    storage._looked_at = float("-inf")
    storage.short()
    await storage.call(lambda: None)
    return storage.short()


async def test_the_last_eighth_of_the_quota_is_short_until_something_has_left(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path / "spool.sqlite3", key=bytes(32), quota_bytes=1 << 20)
    storage = Storage(spool, tmp_path)
    spool.poll(SEALED, "pseudonymizer", 1)
    assert not await looked(storage)
    most = 1 << 20
    short_at = 0
    for n in range(100):
        try:
            spool.append(SEALED, [make_parcel(n, body=os.urandom(20_000))], {ONE: 1})
        except SpoolFull:
            break
        if not short_at and await looked(storage):
            short_at = spool.room()[""].used_bytes
    assert 7 / 8 * most < short_at < 7 / 8 * most + 60_000
    assert await looked(storage)
    for _ in range(10):
        polled = spool.poll(SEALED, "pseudonymizer", 1)
        spool.finish(polled, {}, {})
    assert not await looked(storage)
    storage.close()


async def test_a_disk_that_others_fill_is_short_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(Spool(tmp_path / "spool.sqlite3", key=bytes(32)), tmp_path)
    free = 63 << 20
    monkeypatch.setattr(
        run.os, "statvfs", lambda _path: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
    )
    assert await looked(storage)
    free = 65 << 20
    assert not await looked(storage)
    await asyncio.to_thread(storage.close)


async def test_a_word_that_is_no_kind_stops_the_start(tmp_path: Path) -> None:
    settings = Settings(
        state=str(tmp_path / "state"),
        bind="127.0.0.1:0",
        admin_bind="127.0.0.1:0",
        gateway=GatewaySection(yields=["analytics_event", "analytics_evnet"]),
    )
    runner = Runner(settings, lambda _line: None)
    try:
        with pytest.raises(ConfigError, match="analytics_evnet"):
            await runner.open()
    finally:
        await runner.close()


async def test_a_pipeline_that_is_short_refuses_analytics_and_takes_errors(tmp_path: Path) -> None:
    settings = Settings(state=str(tmp_path / "state"), bind="127.0.0.1:0", admin_bind="127.0.0.1:0")
    runner = Runner(settings, lambda _line: None)
    try:
        await runner.open()
        runner.storage._short, runner.storage._looked_at = True, float("inf")
        host, port = runner.address
        statuses = []
        async with aiohttp.ClientSession() as client:
            for event in ({"event": "page viewed"}, {"kind": "error_event", "message": "x"}):
                url = f"http://{host}:{port}/v1/events"
                async with client.post(url, json=event) as answer:
                    statuses.append(answer.status)
        assert statuses == [429, 200]
        assert runner.seen["refusals", ("shed",)] == 1
    finally:
        await runner.close()


async def test_the_sweeper_deletes_what_lies_beside_the_log_too(tmp_path: Path) -> None:
    state = tmp_path / "state"
    settings = Settings(state=str(state), bind="127.0.0.1:0", admin_bind="127.0.0.1:0")
    runner = Runner(settings, lambda _line: None)
    now = datetime.now(UTC)
    try:
        await runner.open()
        requests = _Requests(state / "ways_back.sqlite3")
        for name, until in (("over", now), ("open", now + timedelta(hours=1))):
            one = Request(
                id=name,
                domain="errors@sentry",
                reason="abuse",
                ticket="SEC-7",
                requester="person:sample",
                until=until,
            )
            requests.add(one, f"token-{name}", 1)
        requests.close()
        aside = state / f"spool.sqlite3.damaged-{int((now.timestamp() - 400 * 86400) * 1e9)}"
        aside.write_bytes(b"x")
        await runner.sweep_once()
        assert not aside.exists()
        left = (state / "ways_back.sqlite3").read_bytes()
        assert b"token-open" in left
        assert b"token-over" not in left
    finally:
        await runner.close()


@pytest.mark.parametrize(("environment", "everywhere"), [("development", True), ("staging", False)])
async def test_only_in_development_a_recipient_may_be_anywhere(
    tmp_path: Path, environment: str, everywhere: bool
) -> None:
    key = "5e17" * 8
    settings = Settings(
        environment=environment,
        state=str(tmp_path / "state"),
        bind="127.0.0.1:0",
        admin_bind="127.0.0.1:0",
        project={"1": Project(key=key, tenant="web")},
        recipient={
            "heap": RecipientSettings(url="https://heapanalytics.com", app_id="11"),
            "sentry": RecipientSettings(dsn=f"https://{key}@o1.ingest.de.sentry.io/1"),
        },
    )
    runner = Runner(settings, lambda _line: None)
    try:
        await runner.open()
        for sink in runner.sinks.values():
            networks = sink._wire._networks  # type: ignore[attr-defined]
            assert may_reach("169.254.169.254", networks) is everywhere
            assert may_reach("fd00::1", networks) is everywhere
    finally:
        await runner.close()


def test_a_recipient_is_in_our_own_network_only_where_the_policy_has_it_among_its_hosts() -> None:
    sentry = load_policy().recipients["sentry"]
    assert networks_of(sentry, trial=False) == []
    own = type(sentry)(
        **{name: getattr(sentry, name) for name in sentry.__struct_fields__}
        | {"hosts": ["sentry.internal.example", "10.20.0.0/16", "192.0.2.7"]}
    )
    assert networks_of(own, trial=False) == ["10.20.0.0/16", "192.0.2.7/32"]
    assert networks_of(sentry, trial=True) == ["0.0.0.0/0", "::/0"]
