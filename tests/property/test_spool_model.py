"""The spool against a model of plain lists, with crashes and restarts in between."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from telemetry.brokers import DEAD, SEALED, Entry, Polled, clean
from telemetry.brokers.spool import Spool
from telemetry.parcel import Parcel
from telemetry.testing.brokers import make_parcel

KEY = b"\x07" * 32
STREAMS = (SEALED, DEAD, clean("heap"))
READERS = ((SEALED, "pseudonymizer"), (SEALED, "auditor"), (clean("heap"), "heap"))
ENTRIES = (Entry("edge", "sealed"), Entry("edge", "dropped", "no_consent"), Entry("heap", "dead"))

counts = st.dictionaries(st.sampled_from(ENTRIES), st.integers(1, 5), max_size=2)
amounts = st.integers(0, 70)


class SpoolMachine(RuleBasedStateMachine):
    """A stream is a list that only grows; a reader is an index into it."""

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.generation = 0
        self.folder = self.root / "0"
        self.folder.mkdir()
        self.spool = self.open()
        self.number = 0
        self.written: dict[str, list[Parcel]] = {stream: [] for stream in STREAMS}
        self.known: dict[tuple[str, str], int] = {}
        self.books: Counter[Entry] = Counter()
        self.polled: dict[tuple[str, str], tuple[Polled, int]] = {}

    def open(self) -> Spool:
        return Spool(self.folder / "spool.db", key=KEY, ballast_bytes=1 << 16)

    def fresh(self, amount: int) -> list[Parcel]:
        """Make new parcels, a run of two kinds, so that they fall into several batches."""
        made = [
            make_parcel(n, kind="event" if n % 50 < 40 else "error")
            for n in range(self.number, self.number + amount)
        ]
        self.number += amount
        return made

    def deleted(self, stream: str) -> int:
        """How many parcels of a stream every known reader has behind it."""
        return min((at for (name, _), at in self.known.items() if name == stream), default=0)

    @rule(stream=st.sampled_from(STREAMS), amount=amounts, added=counts)
    def append(self, stream: str, amount: int, added: dict[Entry, int]) -> None:
        parcels = self.fresh(amount)
        self.spool.append(stream, parcels, added)
        self.written[stream] += parcels
        self.books.update(added)

    @rule(reader=st.sampled_from(READERS), most=st.integers(1, 150))
    def poll(self, reader: tuple[str, str], most: int) -> None:
        at = self.known.setdefault(reader, self.deleted(reader[0]))
        polled = self.spool.poll(*reader, most)
        given = list(polled.parcels)
        assert given == self.written[reader[0]][at : at + len(given)]
        assert len(given) <= max(most, 64)
        assert bool(given) == (at < len(self.written[reader[0]]))
        self.polled[reader] = (polled, at)

    @precondition(lambda self: self.polled)
    @rule(data=st.data(), amount=amounts, added=counts)
    def finish(self, data: st.DataObject, amount: int, added: dict[Entry, int]) -> None:
        reader = data.draw(st.sampled_from(sorted(self.polled)))
        polled, at = self.polled.pop(reader)
        outputs = {clean("heap"): self.fresh(amount), DEAD: self.fresh(amount // 10)}
        self.spool.finish(polled, outputs, added)
        self.known[reader] = at + len(polled.parcels)
        for stream, parcels in outputs.items():
            self.written[stream] += parcels
        self.books.update(added)

    @precondition(lambda self: self.written[DEAD])
    @rule(data=st.data(), amount=st.integers(0, 3), added=counts)
    def take_out(self, data: st.DataObject, amount: int, added: dict[Entry, int]) -> None:
        kept = self.spool.look(DEAD, 0, 10**9)
        assert [one.parcel for one in kept] == self.written[DEAD]
        gone = data.draw(st.lists(st.sampled_from(range(len(kept))), max_size=20, unique=True))
        outputs = self.fresh(amount)
        self.spool.take_out(DEAD, [kept[n] for n in gone], added, {SEALED: outputs})
        self.written[DEAD] = [one.parcel for n, one in enumerate(kept) if n not in gone]
        self.written[SEALED] += outputs
        self.books.update(added)

    @invariant()
    def the_room_used_is_what_the_records_take(self) -> None:
        if hasattr(self, "spool"):
            room = self.spool.room()
            assert all(used >= 0 for used, _ in room.values())
            assert {s for s, (used, _) in room.items() if s and used} == set(self.spool.pending())

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.spool = self.open()
        self.polled.clear()

    @rule()
    def crash(self) -> None:
        """Go on from a copy of the files as they lie: no closing, no checkpoint."""
        self.generation += 1
        after = self.root / str(self.generation)
        after.mkdir()
        for name in ("spool.db", "spool.db-wal"):
            if (self.folder / name).exists():
                shutil.copy(self.folder / name, after / name)
        self.spool.close()
        shutil.rmtree(self.folder)
        self.folder = after
        self.spool = self.open()
        self.polled.clear()

    @rule(cut=st.integers(1, 6000))
    def crash_in_a_write(self, cut: int) -> None:
        """As a crash, with the beginning of one more transaction in the WAL."""
        wal = self.folder / "spool.db-wal"
        before = wal.stat().st_size if wal.exists() else 0
        with wal.open("ab") as file:
            file.write(os.urandom(cut))
        assert wal.stat().st_size == before + cut
        self.crash()

    @invariant()
    def the_books_add_up(self) -> None:
        if hasattr(self, "spool"):
            assert self.spool.books() == dict(+self.books)

    @invariant()
    def pending_is_what_some_reader_has_not_finished(self) -> None:
        if not hasattr(self, "spool"):
            return
        left = {name: len(written) - self.deleted(name) for name, written in self.written.items()}
        assert self.spool.pending() == {name: n for name, n in left.items() if n}

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            shutil.rmtree(self.root)


SpoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSpoolAgainstLists = SpoolMachine.TestCase
