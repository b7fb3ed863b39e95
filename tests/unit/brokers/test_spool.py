"""The embedded spool: conformance, and what only a file can suffer."""

# ruff: noqa: S603, S607 - children are this interpreter, strace and mount

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from telemetry.brokers import DEAD, HELD, SEALED, Broker, Entry, clean
from telemetry.brokers.spool import Spool
from telemetry.errors import BrokerError, KeyringError, SpoolFull
from telemetry.parcel import Parcel
from telemetry.testing.brokers import PLANTED, BrokerConformance, make_parcel

KEY = bytes(range(32))
ONE = Entry("edge", "sealed")
DONE = Entry("pseudonymizer", "scrubbed")
GROUP = "pseudonymizer"


Opener = Callable[..., Spool]


def large(number: int) -> Parcel:
    return make_parcel(number, body=os.urandom(60_000))


class TestSpoolConforms(BrokerConformance):
    @pytest.fixture
    def broker(self, tmp_path: Path) -> Iterator[Broker]:
        self.open = lambda: Spool(tmp_path / "spool.db", key=KEY, ballast_bytes=1 << 20)
        yield from self.opened()


@pytest.fixture
def open_spool(tmp_path: Path) -> Iterator[Callable[..., Spool]]:
    spools: list[Spool] = []

    def opener(**options: object) -> Spool:
        settings = {"key": KEY, "ballast_bytes": 1 << 20} | options
        spools.append(Spool(tmp_path / "spool.db", **settings))
        return spools[-1]

    yield opener
    for spool in spools:
        spool.close()


def damage(path: Path, statement: str, values: tuple[object, ...] = ()) -> None:
    """Change a closed spool behind its back."""
    connection = sqlite3.connect(path)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


# ---------------------------------------------------------------------- owner, key, file


def test_a_second_owner_in_the_same_process_is_refused_at_once(open_spool: Opener) -> None:
    first = open_spool()
    started = time.monotonic()
    with pytest.raises(BrokerError, match="is open in another process"):
        open_spool()
    assert time.monotonic() - started < 1
    first.append(SEALED, [make_parcel(0)], {})


def test_a_second_process_is_refused_until_the_first_lets_go(
    open_spool: Opener, tmp_path: Path
) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from telemetry.brokers.spool import Spool
        from telemetry.errors import BrokerError
        try:
            Spool(Path(sys.argv[1]), key=bytes(range(32)), ballast_bytes=1 << 20)
        except BrokerError as error:
            print(error)
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "spool.db")]
    first = open_spool()
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "is open in another process" in refused.stdout
    first.append(SEALED, [make_parcel(0)], {})
    first.close()
    allowed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert allowed.stdout == ""


def test_another_key_is_refused_and_nothing_is_set_aside(open_spool: Opener) -> None:
    spool = open_spool()
    spool.append(SEALED, [make_parcel(0)], {ONE: 1})
    spool.close()
    with pytest.raises(KeyringError, match="another key"):
        open_spool(key=bytes(32))
    with pytest.raises(KeyringError, match="32 bytes"):
        open_spool(key=b"short")
    again = open_spool()
    assert again.lost() == 0
    assert list(again.poll(SEALED, GROUP, 10).parcels) == [make_parcel(0)]


def test_only_the_owner_may_read_its_files(open_spool: Opener, tmp_path: Path) -> None:
    old_umask = os.umask(0)
    try:
        spool = open_spool()
        spool.append(SEALED, [make_parcel(0)], {})
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(old_umask)
    assert modes == {"spool.db": 0o600, "spool.db-wal": 0o600, "spool.db.ballast": 0o600}


def test_no_file_holds_a_planted_value_in_clear(open_spool: Opener, tmp_path: Path) -> None:
    spool = open_spool()
    spool.append(SEALED, [make_parcel(n) for n in range(100)], {ONE: 100})
    polled = spool.poll(SEALED, GROUP, 64)
    spool.finish(polled, {clean("heap"): polled.parcels, DEAD: polled.parcels}, {DONE: 64})
    copies = tmp_path / "copies"
    shutil.copytree(tmp_path, copies)  # with the WAL as it lies while the spool is open
    spool.close()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"spool.db-wal", "spool.db", "spool.db.ballast"} <= {file.name for file in files}
    for file in files:
        raw = file.read_bytes()
        assert PLANTED.encode() not in raw
        assert make_parcel(7).event_id.encode() not in raw


def test_a_file_that_is_no_spool_is_refused_and_left_alone(
    open_spool: Opener, tmp_path: Path
) -> None:
    path = tmp_path / "spool.db"
    garbage = b"no database at all " * 500
    path.write_bytes(garbage)
    with pytest.raises(BrokerError, match="damaged"):
        open_spool()
    assert path.read_bytes() == garbage
    path.unlink()
    damage(path, "CREATE TABLE other (x)")
    with pytest.raises(BrokerError, match="no spool"):
        open_spool()


def test_an_unknown_format_is_refused(open_spool: Opener, tmp_path: Path) -> None:
    open_spool().close()
    damage(tmp_path / "spool.db", "PRAGMA user_version = 99")
    with pytest.raises(BrokerError, match="version"):
        open_spool()


def test_a_missing_folder_is_a_broker_error(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="cannot be created"):
        Spool(tmp_path / "gone" / "spool.db", key=KEY)


def test_a_forked_child_cannot_use_it_and_its_exit_harms_nothing(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from telemetry.brokers.spool import Spool
        from telemetry.errors import BrokerError
        from telemetry.testing.brokers import make_parcel
        spool = Spool(Path(sys.argv[1]), key=bytes(range(32)), ballast_bytes=1 << 20)
        spool.append("sealed", [make_parcel(0)], {})
        spool._lock.acquire()  # as a thread in the middle of a call does
        child = os.fork()
        if child:
            spool._lock.release()
        else:
            try:
                spool.poll("sealed", "g", 1)
            except BrokerError:
                spool.close()
                del spool
                sys.exit(7)  # a full exit: finalizers run
            sys.exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        assert Path(sys.argv[1] + "-wal").exists()
        spool.append("sealed", [make_parcel(1)], {})
        os._exit(0)  # as kill -9: only the WAL has it
    """)
    path = tmp_path / "spool.db"
    subprocess.run([sys.executable, "-c", script, str(path)], timeout=30, check=True)
    spool = Spool(path, key=KEY, ballast_bytes=1 << 20)
    assert [p.event_id for p in spool.poll(SEALED, GROUP, 10).parcels] == [
        make_parcel(0).event_id,
        make_parcel(1).event_id,
    ]
    spool.close()


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("stream", "stage"), [(SEALED, "pseudonymizer"), (clean("heap"), "heap"), (DEAD, "dead")]
)
def test_a_damaged_record_is_counted_kept_and_stepped_over(
    open_spool: Opener, tmp_path: Path, stream: str, stage: str
) -> None:
    spool = open_spool()
    for n in range(3):
        spool.append(stream, [make_parcel(10 * n + k) for k in range(5)], {})
    spool.close()
    damage(
        tmp_path / "spool.db",
        "UPDATE log SET sealed = CAST(substr(sealed, 1, 40) || x'00' || substr(sealed, 42) AS BLOB)"
        " WHERE seq = 2",
    )
    spool = open_spool()
    polled = spool.poll(stream, "reader", 100)
    assert [p.event_id for p in polled.parcels] == [
        make_parcel(10 * n + k).event_id for n in (0, 2) for k in range(5)
    ]
    assert spool.books() == {Entry(stage, "dead", "unreadable_record"): 5}
    assert spool.pending() == {stream: 10}
    spool.finish(polled, {}, {})
    assert spool.pending() == {}
    assert spool.lost() == 5
    now = datetime.now(UTC)
    assert spool.forget_lost(now - timedelta(days=30)) == 0
    assert spool.forget_lost(now + timedelta(days=1)) == 5
    assert spool.lost() == 0
    assert spool.books() == {Entry(stage, "dead", "unreadable_record"): 5}


def test_a_stream_of_nothing_but_damage_comes_to_its_end(
    open_spool: Opener, tmp_path: Path
) -> None:
    spool = open_spool()
    for n in range(4):
        spool.append(SEALED, [make_parcel(n)], {})
    spool.close()
    damage(tmp_path / "spool.db", "UPDATE log SET sealed = x'00'")
    spool = open_spool()
    assert list(spool.poll(SEALED, GROUP, 2).parcels) == []
    assert (spool.lost(), spool.pending()) == (4, {})


def test_a_record_moved_to_another_stream_or_recounted_does_not_open(
    open_spool: Opener, tmp_path: Path
) -> None:
    spool = open_spool()
    spool.append(SEALED, [make_parcel(0)], {})
    spool.append(clean("heap"), [make_parcel(1)], {})
    spool.close()
    damage(tmp_path / "spool.db", "UPDATE log SET stream = 'clean.heap' WHERE seq = 1")
    damage(tmp_path / "spool.db", "UPDATE log SET events = 3 WHERE seq = 2")
    spool = open_spool()
    assert list(spool.poll(clean("heap"), "heap", 10).parcels) == []
    assert spool.lost() == 4


def pages_of_records(path: Path) -> list[int]:
    """List pages that are leaves of a table with numbered rows, or overflow; no roots."""
    connection = sqlite3.connect(path)
    roots = {page for (page,) in connection.execute("SELECT rootpage FROM sqlite_schema")}
    connection.close()
    raw = path.read_bytes()
    leaf, overflow = 0x0D, 0x00
    numbers = range(1, len(raw) // 4096 + 1)
    return [n for n in numbers if raw[(n - 1) * 4096] in {leaf, overflow} and n not in {1, *roots}]


@pytest.mark.parametrize("seed", range(6))
def test_with_pages_destroyed_it_goes_on_with_what_can_be_read_and_counts_the_rest(
    open_spool: Opener, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(seed)  # noqa: S311 - which pages, no secret
    spool = open_spool()
    for n in range(400):
        spool.append(SEALED, [make_parcel(n, body=os.urandom(chance.choice((40, 9000))))], {ONE: 1})
    polled = spool.poll(SEALED, GROUP, 30)
    spool.finish(polled, {}, {DONE: 30})
    spool.close()
    path = tmp_path / "spool.db"
    pages = pages_of_records(path)
    with path.open("r+b") as file:
        for page in chance.sample(pages, 8):
            file.seek((page - 1) * 4096)
            file.write(os.urandom(4096))
    found: list[int] = []
    refusals = 0
    spool = open_spool()
    while refusals < 3:
        try:
            polled = spool.poll(SEALED, GROUP, 7)
            if not polled.parcels:
                break
            spool.finish(polled, {}, {DONE: len(polled.parcels)})
            found += [int(p.event_id, 16) for p in polled.parcels]
        except BrokerError:
            refusals += 1
    assert refusals <= 1
    assert found == sorted(set(found))
    assert 300 < len(found) < 370
    books = spool.books()
    dead = books[Entry("pseudonymizer", "dead", "unreadable_record")]
    assert books[ONE] == 400 == books[DONE] + dead
    assert books[DONE] == 30 + len(found)
    assert spool.pending() == {}
    spool.append(SEALED, [make_parcel(1000)], {ONE: 1})
    assert drain_numbers(spool) == [1000]
    assert bool(list(tmp_path.glob("spool.db.damaged-*"))) == ("spool_salvaged" in caplog.text)


def test_a_damaged_file_that_was_put_aside_is_deleted_in_the_end(
    open_spool: Opener, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    old, new = (now - timedelta(days=days) for days in (40, 20))
    for at in (old, new):
        (tmp_path / f"spool.db.damaged-{int(at.timestamp() * 1e9)}").write_bytes(b"x")
    (tmp_path / "spool.db.damaged-kept-by-hand").write_bytes(b"x")
    spool = open_spool()
    spool.append(SEALED, [make_parcel(1)], {ONE: 1})
    spool.forget_lost(now - timedelta(days=30))
    left = {path.name for path in tmp_path.glob("spool.db.damaged-*")}
    kept = f"spool.db.damaged-{int(new.timestamp() * 1e9)}"
    assert left == {kept, "spool.db.damaged-kept-by-hand"}
    assert drain_numbers(spool) == [1]


def drain_numbers(spool: Spool) -> list[int]:
    return [int(p.event_id, 16) for p in BrokerConformance.drain(spool, SEALED, GROUP)]


def test_without_its_books_a_damaged_file_is_refused_and_left_alone(
    open_spool: Opener, tmp_path: Path
) -> None:
    spool = open_spool()
    spool.append(SEALED, [make_parcel(0)], {ONE: 1})
    spool.close()
    path = tmp_path / "spool.db"
    connection = sqlite3.connect(path)
    [(page,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'books'")
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))
    before = path.read_bytes()[4096:]  # the first page counts changes
    spool = open_spool()
    for _ in range(2):
        with pytest.raises(BrokerError, match="damaged"):
            spool.append(SEALED, [make_parcel(1)], {ONE: 1})
    assert path.read_bytes()[4096:] == before
    assert not list(tmp_path.glob("spool.db.damaged-*"))


def test_a_torn_wal_loses_only_what_was_never_acknowledged(
    open_spool: Opener, tmp_path: Path
) -> None:
    spool = open_spool()
    spool.append(SEALED, [make_parcel(0)], {ONE: 1})
    wal = tmp_path / "spool.db-wal"
    whole = wal.stat().st_size
    spool.append(SEALED, [make_parcel(1)], {ONE: 1})
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    shutil.copy(tmp_path / "spool.db", crashed)
    (crashed / "spool.db-wal").write_bytes(wal.read_bytes()[: whole + 5000])
    again = Spool(crashed / "spool.db", key=KEY, ballast_bytes=1 << 20)
    assert list(again.poll(SEALED, GROUP, 10).parcels) == [make_parcel(0)]
    assert again.books() == {ONE: 1}
    again.close()


# ---------------------------------------------------------------------- room


def fill(spool: Spool, why: str) -> int:
    """Append until the spool refuses; gives how many parcels it took."""
    for n in range(1000):
        try:
            spool.append(SEALED, [large(n)], {ONE: 1})
        except SpoolFull as refusal:
            assert why in str(refusal)  # noqa: PT017 - the loop counts what came before
            return n
    pytest.fail("the spool never refused")


def test_above_the_quota_it_refuses_new_parcels_and_still_drains(open_spool: Opener) -> None:
    spool = open_spool(quota_bytes=1 << 20)
    stored = fill(spool, "quota")
    assert spool.books() == {ONE: stored}
    assert spool.pending() == {SEALED: stored}
    polled = spool.poll(SEALED, GROUP, 8)
    spool.finish(polled, {DEAD: polled.parcels[:1]}, {DONE: len(polled.parcels)})
    spool.append(SEALED, [large(1000)], {ONE: 1})


def test_clean_parcels_wait_at_the_brim_but_dead_ones_never(open_spool: Opener) -> None:
    spool = open_spool(quota_bytes=1 << 20)
    fill(spool, "quota")
    polled = spool.poll(SEALED, GROUP, 4)
    with pytest.raises(SpoolFull):
        spool.finish(polled, {clean("heap"): [large(n) for n in range(4)]}, {DONE: 4})
    stored = spool.books()[ONE]
    spool.finish(polled, {DEAD: [large(n) for n in range(2)]}, {DONE: 4})
    assert spool.books() == {ONE: stored, DONE: 4}
    assert spool.pending()[DEAD] == 2


def test_a_recipient_that_stays_away_takes_its_share_and_stops_nobody_else(
    open_spool: Opener,
) -> None:
    spool = open_spool(quota_bytes=4 << 20)
    taken = 0
    for n in range(200):  # 12 MB, three times the quota
        spool.append(SEALED, [large(n)], {ONE: 1})
        polled = spool.poll(SEALED, GROUP, 10)
        outputs = {clean("heap"): polled.parcels, clean("sentry"): polled.parcels}
        spool.finish(polled, outputs, {DONE: 1, Entry("heap", "routed"): 1})
        taken += len(BrokerConformance.drain(spool, clean("sentry"), "sentry"))
    assert taken == 200
    books = spool.books()
    dropped = books[Entry("heap", "dropped", "no_room")]
    assert books[Entry("heap", "routed")] == 200 == dropped + spool.pending()[clean("heap")]
    assert Entry("sentry", "dropped", "no_room") not in books
    used, most = spool.room()[clean("heap")]
    assert most - 61_000 < used <= most == 1 << 20
    # Once it is back, and has taken what waited, there is room again.
    BrokerConformance.drain(spool, clean("heap"), "heap")
    assert spool.room()[clean("heap")].used_bytes == 0
    spool.append(SEALED, [large(0)], {})
    polled = spool.poll(SEALED, GROUP, 10)
    spool.finish(polled, {clean("heap"): polled.parcels}, {})
    assert spool.pending()[clean("heap")] == 1


def test_a_flood_of_unreadable_events_takes_its_share_then_its_originals_are_forgotten(
    open_spool: Opener,
) -> None:
    spool = open_spool(quota_bytes=4 << 20)
    unreadable = Entry("edge", "dead", "undecodable")
    for n in range(0, 6000, 100):
        letters = [make_parcel(n + k, body=os.urandom(2000)) for k in range(100)]
        spool.append(SEALED, [], {unreadable: 100}, beside={DEAD: letters})
    books, pending = spool.books(), spool.pending()
    dropped = books[Entry("dead", "dropped", "no_room")]
    assert books[unreadable] == 6000 == pending[DEAD] + dropped
    bare = [one for one in spool.look(DEAD, 0, 10_000) if not one.parcel.body]
    assert len(bare) + dropped == books[Entry("dead", "forgotten")]
    assert len(bare) > 500
    used, most = spool.room()[DEAD]
    assert used < 1.3 * most
    for n in range(30):
        spool.append(SEALED, [large(n)], {})
    spool.close()
    again = open_spool(quota_bytes=4 << 20)
    assert again.room()[DEAD].used_bytes == used


def test_held_parcels_take_no_more_than_their_share(open_spool: Opener) -> None:
    spool = open_spool(quota_bytes=1 << 20)
    spool.append(SEALED, [make_parcel(0)], {})
    polled = spool.poll(SEALED, GROUP, 1)
    held = Entry("pseudonymizer", "held", "restricted")
    spool.finish(polled, {HELD: [large(n) for n in range(9)]}, {held: 9})
    assert HELD not in spool.pending()
    assert spool.books()[Entry("held", "dropped", "no_room")] == 9


# ---------------------------------------------------------------------- a shelf


def test_single_parcels_are_taken_out_of_their_records_and_the_rest_keeps_its_order(
    open_spool: Opener,
) -> None:
    spool = open_spool()
    gone = Entry("dead", "dropped", "purged")
    for n in range(0, 30, 10):
        spool.append(DEAD, [make_parcel(n + k) for k in range(10)], {})
    kept = spool.look(DEAD, 0, 100)
    assert [one.parcel for one in kept] == [make_parcel(n) for n in range(30)]
    assert [one.parcel for one in spool.look(DEAD, kept[5].seq, 1)] == [
        make_parcel(n) for n in range(10, 20)
    ]
    leaving = [kept[3], *kept[10:20], kept[29]]
    replayed = [make_parcel(100)]
    spool.take_out(DEAD, leaving, {gone: 12}, {SEALED: replayed})
    spool.close()
    spool = open_spool()
    left = [n for n in range(30) if n not in (3, *range(10, 20), 29)]
    assert [one.parcel for one in spool.look(DEAD, 0, 100)] == [make_parcel(n) for n in left]
    assert spool.pending() == {DEAD: 18, SEALED: 1}
    assert spool.books() == {gone: 12}
    assert list(spool.poll(SEALED, GROUP, 10).parcels) == replayed
    spool.take_out(DEAD, spool.look(DEAD, 0, 100), {})
    assert spool.room()[DEAD].used_bytes == 0


def test_what_is_not_there_any_more_is_not_taken_out_and_nothing_else_is(
    open_spool: Opener,
) -> None:
    spool = open_spool()
    spool.append(DEAD, [make_parcel(n) for n in range(3)], {})
    kept = spool.look(DEAD, 0, 10)
    spool.take_out(DEAD, kept[:1], {ONE: 1})
    for wrong in (kept[:2], [kept[1]._replace(seq=99)], [kept[1], kept[1]]):
        with pytest.raises(BrokerError, match="not there"):
            spool.take_out(DEAD, wrong, {ONE: 1}, {SEALED: [make_parcel(9)]})
    assert spool.books() == {ONE: 1}
    assert spool.pending() == {DEAD: 2}


def test_the_oldest_of_each_stream_is_the_first_that_nobody_has_finished(
    open_spool: Opener,
) -> None:
    spool = open_spool()
    assert spool.oldest() == {}
    for n in range(3):
        spool.append(SEALED, [make_parcel(n)], {})
    spool.append(DEAD, [make_parcel(7)], {})
    spool.finish(spool.poll(SEALED, GROUP, 1), {}, {})
    assert spool.oldest() == {SEALED: make_parcel(1), DEAD: make_parcel(7)}


def test_a_file_of_the_former_format_is_taken_over(open_spool: Opener, tmp_path: Path) -> None:
    spool = open_spool()
    spool.append(SEALED, [make_parcel(0)], {ONE: 1})
    spool.append(DEAD, [large(1)], {})
    before = spool.room()
    spool.close()
    damage(tmp_path / "spool.db", "DROP TABLE sizes")
    damage(tmp_path / "spool.db", "PRAGMA user_version = 1")
    again = open_spool()
    assert {s: r for s, r in again.room().items() if s} == {s: r for s, r in before.items() if s}
    assert list(again.poll(SEALED, GROUP, 10).parcels) == [make_parcel(0)]


def test_the_file_is_reused_and_shrinks_when_idle(open_spool: Opener, tmp_path: Path) -> None:
    spool = open_spool()
    for n in range(0, 300, 10):
        spool.append(SEALED, [large(n + k) for k in range(10)], {})
    while (polled := spool.poll(SEALED, GROUP, 100)).parcels:
        spool.finish(polled, {}, {})
    for _ in range(30):
        spool.poll(SEALED, GROUP, 100)
    spool.close()
    assert (tmp_path / "spool.db").stat().st_size < 9 << 20


def test_reopening_after_a_crash_takes_less_than_a_second(
    open_spool: Opener, tmp_path: Path
) -> None:
    spool = open_spool()
    for n in range(200):
        spool.append(SEALED, [large(n)], {ONE: 1})
    crashed = tmp_path / "crashed"
    shutil.copytree(tmp_path, crashed)
    started = time.monotonic()
    again = Spool(crashed / "spool.db", key=KEY, ballast_bytes=1 << 20)
    assert time.monotonic() - started < 1
    assert again.pending() == {SEALED: 200}
    again.close()


# ---------------------------------------------------------------------- failing disk


class Faulty:
    """A connection that fails once at a chosen statement, as SQLite would."""

    def __init__(self, connection: sqlite3.Connection, at: str, name: str) -> None:
        self._connection, self._at, self._name = connection, at, name
        self.closed = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: object) -> object:
        if statement.startswith(self._at):
            error = sqlite3.OperationalError(f"{PLANTED} in a message")
            error.sqlite_errorname = self._name
            raise error
        return self._connection.execute(statement, *values)

    def close(self) -> None:
        self.closed = True
        self._connection.close()


@pytest.mark.parametrize("at", ["INSERT INTO log", "INSERT INTO books", "COMMIT"])
def test_after_a_disk_error_nothing_is_acknowledged_and_the_file_is_opened_anew(
    open_spool: Opener, at: str
) -> None:
    spool = open_spool()
    spool.append(SEALED, [make_parcel(0)], {ONE: 1})
    spool._connection = faulty = Faulty(spool._connection, at, "SQLITE_IOERR_FSYNC")
    with pytest.raises(BrokerError, match="SQLITE_IOERR_FSYNC") as caught:
        spool.append(SEALED, [make_parcel(1)], {ONE: 1})
    assert PLANTED not in str(caught.value)
    assert caught.value.__cause__ is None
    assert faulty.closed
    spool.append(SEALED, [make_parcel(2)], {ONE: 1})
    assert spool.books() == {ONE: 2}
    assert [p.event_id for p in spool.poll(SEALED, GROUP, 10).parcels] == [
        make_parcel(n).event_id for n in (0, 2)
    ]


def test_a_failed_finish_leaves_outputs_counts_and_position_as_they_were(
    open_spool: Opener,
) -> None:
    spool = open_spool()
    spool.append(SEALED, [make_parcel(0)], {ONE: 1})
    polled = spool.poll(SEALED, GROUP, 10)
    spool._connection = Faulty(spool._connection, "DELETE", "SQLITE_IOERR_WRITE")
    with pytest.raises(BrokerError):
        spool.finish(polled, {clean("heap"): polled.parcels}, {DONE: 1})
    assert spool.books() == {ONE: 1}
    assert spool.pending() == {SEALED: 1}
    spool.finish(spool.poll(SEALED, GROUP, 10), {clean("heap"): polled.parcels}, {DONE: 1})
    assert spool.books() == {ONE: 1, DONE: 1}
    assert spool.pending() == {clean("heap"): 1}


def test_a_file_that_lost_what_it_acknowledged_is_not_used_again(
    open_spool: Opener, tmp_path: Path
) -> None:
    spool = open_spool()
    spool.append(SEALED, [make_parcel(0)], {})
    spool._connection = Faulty(spool._connection, "COMMIT", "SQLITE_IOERR_FSYNC")
    with pytest.raises(BrokerError):
        spool.append(SEALED, [make_parcel(1)], {})
    damage(tmp_path / "spool.db", "UPDATE sqlite_sequence SET seq = 0")
    for _ in range(2):
        with pytest.raises(BrokerError, match="lost what it acknowledged"):
            spool.append(SEALED, [make_parcel(2)], {})


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("call", "error", "when"),
    [
        ("fdatasync", "EIO", "12..14"),
        ("fdatasync", "ENOSPC", "20"),
        ("pwrite64", "EIO", "60..63"),
        ("pwrite64", "ENOSPC", "60..63"),
    ],
)
def test_a_disk_that_really_fails_is_an_error_and_the_next_append_is_kept(
    tmp_path: Path, call: str, error: str, when: str
) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from telemetry.brokers.spool import Spool
        from telemetry.errors import BrokerError
        from telemetry.testing.brokers import make_parcel
        spool = Spool(Path(sys.argv[1]), key=bytes(range(32)), ballast_bytes=1 << 20)
        kept = []
        for n in range(30):
            try:
                spool.append("sealed", [make_parcel(n)], {})
                kept.append(n)
            except BrokerError:
                print("refused", flush=True)
        print(*kept, flush=True)
        import os
        os._exit(0)
    """)
    path = tmp_path / "spool.db"
    # Only calls on the spool's own files are counted and fail.
    files = [f"--trace-path={path}", f"--trace-path={path}-wal"]
    inject = f"inject={call}:error={error}:when={when}"
    command = ["strace", "-f", "-qq", "-o", os.devnull, *files, "-e", f"trace={call}", "-e", inject]
    done = subprocess.run(
        [*command, sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode and "ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    *refused, kept = done.stdout.splitlines()
    assert refused, done.stderr
    spool = Spool(path, key=KEY, ballast_bytes=1 << 20)
    found = {p.event_id for p in spool.poll(SEALED, GROUP, 100).parcels}
    spool.close()
    assert {make_parcel(int(n)).event_id for n in kept.split()} <= found


def test_where_files_may_not_grow_it_refuses_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    """A full disk for those who may not mount one: the kernel refuses writes above a file size."""
    script = textwrap.dedent("""
        import os, resource, signal, sys
        from pathlib import Path
        from telemetry.brokers.spool import Spool
        from telemetry.errors import BrokerError
        from telemetry.testing.brokers import make_parcel
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        spool = Spool(Path(sys.argv[1]), key=bytes(range(32)), ballast_bytes=1 << 20)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
        kept, refused = [], 0
        for n in range(300):
            try:
                spool.append("sealed", [make_parcel(n, body=os.urandom(60_000))], {})
                kept.append(n)
            except BrokerError:
                refused += 1
        print(refused, *kept, flush=True)
        os._exit(0)
    """)
    path = tmp_path / "spool.db"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    refused, *kept = map(int, done.stdout.split())
    assert refused > 100
    assert len(kept) > 30
    spool = Spool(path, key=KEY, ballast_bytes=1 << 20)
    found = {int(one.parcel.event_id, 16) for one in spool.look(SEALED, 0, 1000)}
    assert set(kept) <= found
    spool.append(SEALED, [make_parcel(1000)], {})
    spool.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MiB, if we may mount one."""
    mount = shutil.which("mount")
    target = tmp_path / "disk"
    target.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=12m", "milchglas-test", str(target)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system of limited size cannot be mounted here: DISK FULL NOT TESTED")
    yield target
    subprocess.run(["umount", "--lazy", str(target)], capture_output=True, check=False)


def test_on_a_full_disk_it_refuses_drains_and_resumes(small_disk: Path) -> None:
    spool = Spool(small_disk / "spool.db", key=KEY, ballast_bytes=3 << 20)
    stored = fill(spool, "disk")
    assert stored > 20
    assert not (small_disk / "spool.db.ballast").exists()
    with pytest.raises(SpoolFull):
        spool.append(SEALED, [large(1000)], {ONE: 1})
    # A reader that has nothing to write but its position gets through to the end.
    seen = 0
    while (polled := spool.poll(SEALED, GROUP, 4)).parcels:
        spool.finish(polled, {}, {DONE: len(polled.parcels)})
        seen += len(polled.parcels)
    assert seen == stored
    assert spool.books() == {ONE: stored, DONE: stored}
    for _ in range(10):
        spool.poll(SEALED, GROUP, 4)
    spool.append(SEALED, [make_parcel(1)], {ONE: 1})
    assert (small_disk / "spool.db.ballast").exists()
    spool.close()


def test_a_disk_filled_by_others_is_survived_too(small_disk: Path) -> None:
    spool = Spool(small_disk / "spool.db", key=KEY, ballast_bytes=3 << 20)
    spool.append(SEALED, [large(n) for n in range(30)], {ONE: 30})
    hog = small_disk / "hog"
    with hog.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    fill(spool, "disk")
    acknowledged = sum(spool.pending().values())
    hog.unlink()
    spool.append(SEALED, [make_parcel(1)], {})
    assert spool.pending() == {SEALED: acknowledged + 1}
    spool.close()
