"""Power cuts: what was written and not synced may be gone; nothing that was acknowledged is.

A child works on a spool under strace, which records each write and each sync of its files with all
bytes, and each acknowledgement, in their order. A cut is a moment in that record: what was synced
is on disk; of each later write a coin decides, and some are torn at a sector's edge, in any order,
as a drive with a cache may do. The files of that moment are opened, and the books must agree.

``TELEMETRY_CUTS=1000`` tries more moments.
"""

# ruff: noqa: S603 - children are this interpreter and strace

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from telemetry.brokers import DEAD, SEALED, Entry, clean
from telemetry.brokers.spool import Spool
from telemetry.errors import BrokerError

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

CUTS: Final = int(os.environ.get("TELEMETRY_CUTS", "200"))
"""How many of each record are tried."""

KEY: Final = b"\x11" * 32
SECTOR: Final = 512
APPENDED = Entry("edge", "sealed")
SCRUBBED = Entry("pseudonymizer", "scrubbed")
PURGED = Entry("dead", "dropped", "purged")
CALLS: Final = "pwrite64,write,fsync,fdatasync,ftruncate"

WORK: Final = """
    import os, random, sys
    from pathlib import Path
    from telemetry.brokers import DEAD, SEALED, Entry, clean
    from telemetry.brokers.spool import Spool
    from telemetry.testing.brokers import make_parcel

    if sys.argv[2] != "FULL":
        whole = Spool._configure
        def weaker(self, connection):
            whole(self, connection)
            connection.execute(f"PRAGMA synchronous = {sys.argv[2]}")
        Spool._configure = weaker
    spool = Spool(Path(sys.argv[1]), key=bytes([0x11]) * 32, ballast_bytes=1 << 16)
    os.write(1, b"done 0 0 0\\n")
    chance = random.Random(7)
    appended = scrubbed = purged = 0
    for step in range(160):
        amount = chance.choice((1, 2, 20))
        size = chance.choice((40, 400, 20_000))
        parcels = [make_parcel(appended + n, body=os.urandom(size)) for n in range(amount)]
        spool.append(SEALED, parcels, {Entry("edge", "sealed"): amount})
        appended += amount
        if chance.random() < 0.6:
            polled = spool.poll(SEALED, "pseudonymizer", 30)
            half = len(polled.parcels) // 2
            outputs = {clean("heap"): polled.parcels[half:], DEAD: polled.parcels[:half]}
            counts = {Entry("pseudonymizer", "scrubbed"): len(polled.parcels)}
            spool.finish(polled, outputs, counts)
            scrubbed += len(polled.parcels)
        if chance.random() < 0.2 and (kept := spool.look(DEAD, 0, 20)):
            gone = kept[::2]
            spool.take_out(DEAD, gone, {Entry("dead", "dropped", "purged"): len(gone)})
            purged += len(gone)
        os.write(1, b"done %d %d %d\\n" % (appended, scrubbed, purged))
    os._exit(0)
"""


@dataclass(frozen=True)
class Call:
    """One system call: a write with its place, a sync, a truncation, or what was acknowledged."""

    name: str
    file: str = ""
    offset: int = 0
    data: bytes = b""
    done: tuple[int, int, int] = (0, 0, 0)


_LINE = re.compile(
    r'(?P<name>\w+)\((?P<fd>\d+)<(?P<path>[^>]*)>(?:, "(?P<data>[^"]*)")?(?P<rest>.*)'
)


def recorded(folder: Path, synchronous: str) -> list[Call]:
    """Let a child work; give what it told the kernel."""
    trace = folder / "trace"
    command = ["strace", "-qq", "-y", "-xx", "-s", "10000000", "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [
            *(*command, "-e", "signal=none", "-o", str(trace), sys.executable, "-c"),
            *(textwrap.dedent(WORK), str(folder / "spool.db"), synchronous),
        ],
        capture_output=True,
        timeout=120,
        check=False,
    )
    if done.returncode and b"ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr[-2000:]
    calls: list[Call] = []
    with trace.open(encoding="ascii") as lines:
        for line in lines:
            match = _LINE.match(line)
            if match is None:
                continue
            # strace writes paths in hexadecimal too.
            path = bytes.fromhex(match["path"].replace("\\x", "")).decode()
            name = Path(path).name
            data = bytes.fromhex((match["data"] or "").replace("\\x", ""))
            if match["fd"] == "1" and data.startswith(b"done"):
                appended, scrubbed, purged = map(int, data.split()[1:])
                calls.append(Call("done", done=(appended, scrubbed, purged)))
            elif name in ("spool.db", "spool.db-wal"):
                numbers = [int(n) for n in re.findall(r"-?\d+", match["rest"])]
                kind = "sync" if "sync" in match["name"] else match["name"]
                assert numbers[-1] >= 0, "a call failed"
                offset = {"pwrite64": numbers[1:2], "ftruncate": numbers[:1]}.get(kind, [0])[0]
                assert kind != "write", "a write without a place is not understood here"
                calls.append(Call(kind, name, offset, data))
    return calls


@dataclass
class Disk:
    """Files as they are for sure, and what may or may not have reached them."""

    sure: dict[str, bytearray] = field(default_factory=dict)
    unsure: dict[str, list[Call]] = field(default_factory=dict)

    def take(self, call: Call) -> None:
        if call.name == "sync":
            for one in self.unsure.pop(call.file, []):
                self._apply(self.sure, one)
        else:
            self.unsure.setdefault(call.file, []).append(call)

    @staticmethod
    def _apply(files: dict[str, bytearray], call: Call) -> None:
        content = files.setdefault(call.file, bytearray())
        if call.name == "ftruncate":
            del content[call.offset :]
            content.extend(bytes(call.offset - len(content)))
            return
        content.extend(bytes(max(0, call.offset - len(content))))
        content[call.offset : call.offset + len(call.data)] = call.data

    def cut(self, chance: random.Random) -> dict[str, bytes]:
        """Give the files after a power cut."""
        files = {name: bytearray(content) for name, content in self.sure.items()}
        for calls in self.unsure.values():
            kept = [call for call in calls if chance.random() < 0.5]
            for call in kept:
                data = call.data
                if len(data) > SECTOR and chance.random() < 0.3:
                    data = data[: SECTOR * chance.randrange(1, len(data) // SECTOR + 1)]
                self._apply(files, Call(call.name, call.file, call.offset, data))
        return {name: bytes(content) for name, content in files.items()}


def opened_after(files: dict[str, bytes], folder: Path) -> Spool:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return Spool(folder / "spool.db", key=KEY, ballast_bytes=1 << 16)


def lost_in(spool: Spool, done: tuple[int, int, int]) -> int:
    """Count what was acknowledged and is not there; check everything else there is to check."""
    appended, scrubbed, purged = done
    books, pending = spool.books(), spool.pending()
    found = {
        stream: [int(kept.parcel.event_id, 16) for kept in spool.look(stream, 0, 10**9)]
        for stream in (SEALED, clean("heap"), DEAD)
    }
    everywhere = [number for numbers in found.values() for number in numbers]
    assert len(everywhere) == len(set(everywhere))
    assert pending == {stream: len(numbers) for stream, numbers in found.items() if numbers}
    assert books.get(APPENDED, 0) == len(everywhere) + books.get(PURGED, 0)
    assert books.get(SCRUBBED, 0) == books.get(APPENDED, 0) - len(found[SEALED])
    assert spool.lost() == 0
    wanted = zip((APPENDED, SCRUBBED, PURGED), (appended, scrubbed, purged), strict=True)
    return sum(max(0, count - books.get(entry, 0)) for entry, count in wanted)


def losses(calls: list[Call], folder: Path, cuts: int) -> tuple[int, int]:
    """Cut at `cuts` moments; give how many events were lost, and how many files did not open."""
    chance = random.Random(20260301)  # noqa: S311 - moments of cuts, no secret
    begun = next(n for n, call in enumerate(calls) if call.name == "done")
    moments = sorted(chance.sample(range(begun + 1, len(calls)), min(cuts, len(calls) - begun - 1)))
    disk, done, at = Disk(), (0, 0, 0), 0
    lost = unopened = 0
    for moment in moments:
        for call in calls[at:moment]:
            if call.name == "done":
                done = call.done
            else:
                disk.take(call)
        at = moment
        after = folder / str(moment)
        try:
            spool = opened_after(disk.cut(chance), after)
            try:
                lost += lost_in(spool, done)
            finally:
                spool.close()
        except BrokerError:
            unopened += 1
        shutil.rmtree(after)
    return lost, unopened


@pytest.mark.timeout(60 + CUTS)
def test_no_power_cut_loses_or_doubles_what_was_acknowledged(tmp_path: Path) -> None:
    calls = recorded(tmp_path, "FULL")
    # The record holds what the claim is about: many commits, and checkpoints into the file.
    assert sum(call.name == "sync" and call.file == "spool.db-wal" for call in calls) > 200
    assert sum(call.name == "sync" and call.file == "spool.db" for call in calls) >= 3
    assert losses(calls, tmp_path, CUTS) == (0, 0)


def test_the_same_cuts_find_a_log_that_does_not_sync_each_commit(tmp_path: Path) -> None:
    calls = recorded(tmp_path, "NORMAL")
    lost, _ = losses(calls, tmp_path, 60)
    assert lost > 0
