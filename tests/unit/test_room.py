"""When the log's room is short: the rest is kept for errors (docs/reliability.md)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from telemetry import run
from telemetry.brokers import SEALED, Entry
from telemetry.brokers.spool import Spool
from telemetry.config import GatewaySection, Settings
from telemetry.errors import ConfigError, SpoolFull
from telemetry.policy import load_policy
from telemetry.run import Runner, Storage, networks_of
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


def test_a_recipient_is_in_our_own_network_only_where_the_policy_has_it_among_its_hosts() -> None:
    sentry = load_policy().recipients["sentry"]
    assert networks_of(sentry, trial=False) == []
    own = type(sentry)(
        **{name: getattr(sentry, name) for name in sentry.__struct_fields__}
        | {"hosts": ["sentry.internal.example", "10.20.0.0/16", "192.0.2.7"]}
    )
    assert networks_of(own, trial=False) == ["10.20.0.0/16", "192.0.2.7/32"]
    assert networks_of(sentry, trial=True) == ["0.0.0.0/0", "::/0"]
