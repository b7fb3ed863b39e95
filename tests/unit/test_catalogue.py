"""Rows of the fault catalogue that have no other home (docs/reliability.md, "The 86 faults")."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from making import NOW, World

from telemetry.brokers import SEALED, Entry
from telemetry.brokers.spool import Spool
from telemetry.edge import Item
from telemetry.errors import BrokerError
from telemetry.intake import Taken
from telemetry.run import SPOOL_FILE, Storage
from telemetry.testing.brokers import BrokerConformance, make_parcel

ROOT = Path(__file__).parents[2]
GROUP = "pseudonymizer"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    one = World(tmp_path_factory.mktemp("state"))
    yield one
    one.close()


async def test_a_log_whose_file_was_taken_away_acknowledges_nothing_more(tmp_path: Path) -> None:
    storage = Storage(Spool(tmp_path / SPOOL_FILE, key=bytes(32)), tmp_path)
    await storage.store(Taken(parcels=[make_parcel(1)]))
    (tmp_path / SPOOL_FILE).rename(tmp_path / "elsewhere")
    with pytest.raises(BrokerError):
        await storage.store(Taken(parcels=[make_parcel(2)]))
    (tmp_path / "elsewhere").rename(tmp_path / SPOOL_FILE)
    await storage.store(Taken(parcels=[make_parcel(3)]))
    assert storage.broker.pending() == {SEALED: 2}
    storage.close()


def test_a_log_from_a_backup_gives_again_what_it_gave_under_the_same_ids(tmp_path: Path) -> None:
    path, backup = tmp_path / "spool.sqlite3", tmp_path / "backup.sqlite3"
    spool = Spool(path, key=bytes(32))
    spool.poll(SEALED, GROUP, 1)
    for first in range(0, 50, 10):
        spool.append(SEALED, [make_parcel(first + n) for n in range(10)], {})
    polled = spool.poll(SEALED, GROUP, 20)
    spool.finish(polled, {}, {})
    spool.close()
    shutil.copy(path, backup)
    spool = Spool(path, key=bytes(32))
    given = [parcel.event_id for parcel in BrokerConformance.drain(spool, SEALED, GROUP)]
    spool.close()
    shutil.copy(backup, path)
    restored = Spool(path, key=bytes(32))
    again = [parcel.event_id for parcel in BrokerConformance.drain(restored, SEALED, GROUP)]
    restored.close()
    assert again == given
    assert len(set(given)) == len(given) == 50 - len(polled.parcels) > 0


TIMES: list[Any] = [
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-14:00",
    "1969-12-31T23:59:59Z",
    "2026-02-30T00:00:00Z",
    "2026-11-22T10:14:31",
    "2026-11-22T24:00:00Z",
    "2016-12-31T23:59:60Z",
    "2026-10-25T02:30:00+02:00",
    "+1e300",
    1e300,
    -1e300,
    -1,
    0,
    10**30,
    10**400,
    "",
    None,
    True,
    [],
]


@pytest.mark.parametrize("time", TIMES, ids=lambda time: str(time)[:28])
@pytest.mark.parametrize("kind", ["analytics_event", "error_event"])
def test_no_time_costs_an_event_unseen_or_keeps_it_longer_than_promised(
    world: World, kind: str, time: Any
) -> None:
    event: dict[str, Any] = (
        {"event": "page viewed", "account": 7, "time": time}
        if kind == "analytics_event"
        else {"message": "x", "timestamp": time}
    )
    taken = world.take(Item(kind, json.dumps(event).encode()))
    counts = {entry: n for entry, n in taken.counts.items() if entry.outcome != "items_in"}
    assert sum(counts.values()) == 1
    for parcel in taken.parcels:
        assert parcel.occurred_at <= NOW + timedelta(minutes=5)
        assert NOW < parcel.retain_until <= NOW.replace(year=NOW.year + 1) + timedelta(minutes=5)
    if not taken.parcels:
        assert counts == {Entry("edge", "dropped", "expired"): 1}


def test_every_dependency_is_installed_by_its_hash_only() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"(?m)^\s*#.*\n", "", lock))
    assert len(entries) > 40
    for entry in entries:
        name = entry.split("==")[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), f"{name} has no hash"
        assert "://" not in entry, f"{name} names a place"
    installs = [
        line
        for path in ("Makefile", "deploy/Dockerfile", ".ci/run")
        for line in (ROOT / path).read_text("utf-8").splitlines()
        if "pip" in line and "requirements.lock" in line and " install " in line
    ]
    assert installs
    for line in installs:
        assert "--require-hashes" in line
