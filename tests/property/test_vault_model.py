"""Keyset and vault against a model of what everybody's tokens are, with crashes at every write.

Two writers share a vault and a keyset. Whatever is done, in whatever order, and wherever it is cut
short: one subject has one token in a domain and epoch for as long as it lives, and another or none
once it was erased; and a key that was destroyed is in no file.
"""

from __future__ import annotations

import shutil
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import sqlalchemy as sql
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from telemetry.identity import Domain, Identifier, Identity, guarded, initialise_development
from telemetry.identity.keyring import Keyring
from telemetry.identity.vault import Held, Tombstoned, Vault
from telemetry.identity.vault.upkeep import backup, forget, restore, rewrap, rotate

HEAP = Domain(name="analytics@heap", label="heap", epoch="rel")
SENTRY = Domain(name="errors@sentry", label="sentry", epoch="quarter")
SLOTS = ((HEAP, "rel"), (SENTRY, "2026q4"), (SENTRY, "2027q1"))
PEOPLE = [Identifier("account", "app:user", str(n)) for n in range(6)]
NOW = datetime(2026, 12, 30, tzinfo=UTC)

people = st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True)
writers = st.integers(0, 1)
fuses = st.one_of(st.none(), st.integers(0, 30))


class PowerCut(BaseException):
    """The process is gone in the middle of what it did."""


class Fuse:
    """Blows at the n-th write to a file or database."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self, *_: Any, **__: Any) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise PowerCut


class VaultMachine(RuleBasedStateMachine):
    """`known` holds each living subject's tokens; `graves` those that must never come again."""

    @initialize()
    def start(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="vault-model-"))
        self.fuse = Fuse()
        self.write = guarded.replace
        guarded.replace = self.replace
        initialise_development(self.state)
        self.open: list[Identity] = []
        self.now = datetime.now(UTC)
        self.known: dict[tuple[int, int], str] = {}
        self.graves: set[str] = set()
        self.erased: set[int] = set()
        self.unsure: set[int] = set()
        self.copy: tuple[Path, set[int]] | None = None
        self.copies = 0
        self.secrets: dict[str, bytes] = {}
        for n in (0, 1):
            self.open.append(self.identity())
            self.open[n]._now = lambda: NOW

    def replace(self, *arguments: Any, **named: Any) -> None:
        self.fuse.burn()
        self.write(*arguments, **named)
        self.fuse.burn()

    def identity(self, repair: Any = "") -> Identity:
        ticks = iter(range(0, 10**9, 60))  # a minute passes with each look: nothing is remembered

        def clock() -> float:
            return float(next(ticks))

        path = self.state / "keys" / "keyset.json"
        ring = Keyring.load(path, environment="development", now=lambda: self.now)
        url = f"sqlite:///{self.state}/vault.sqlite3"
        vault = Vault(url, keyring=ring, clock=clock, repair=repair, now=lambda: self.now)
        for engine in (vault.engine, vault.journal._engine):
            for event in ("before_cursor_execute", "commit"):
                sql.event.listen(engine, event, self.fuse.burn)
        return Identity(ring, vault, clock=clock, now=lambda: NOW)

    def attempt(self, who: int, fuse: int | None, work: Callable[[Identity], Any]) -> bool:
        """Let a writer work; a blown fuse ends its process, and another is started."""
        self.fuse.left = fuse
        try:
            work(self.open[who])
        except PowerCut:
            self.open[who]._vault.close()
            self.open[who] = self.identity()
            return False
        finally:
            self.fuse.left = None
        return True

    def tokens(self, identity: Identity, numbers: list[int]) -> dict[int, list[str] | None]:
        identity._refresh()
        places = {n: identity._locator(PEOPLE[n]) for n in numbers}
        found = identity._vault.secrets(list(places.values()))
        answer: dict[int, list[str] | None] = {}
        for n in numbers:
            held = found[places[n]]
            if isinstance(held, Tombstoned):
                answer[n] = None
            else:
                assert isinstance(held, Held), f"subject {n} cannot be read"
                answer[n] = [
                    identity._tokens_in(domain, epoch, [(PEOPLE[n], held)])[0]
                    for domain, epoch in SLOTS
                ]
        return answer

    @rule(who=writers, numbers=people, fuse=fuses)
    def look(self, who: int, numbers: list[int], fuse: int | None) -> None:
        answer: dict[int, list[str] | None] = {}
        self.attempt(who, fuse, lambda one: answer.update(self.tokens(one, numbers)))
        for n, tokens in answer.items():
            if n in self.unsure and tokens is None:
                self.bury(n)
            self.unsure.discard(n)
            if tokens is None:
                assert n in self.erased
                continue
            assert n not in self.erased
            assert not self.graves & set(tokens)
            for slot, token in enumerate(tokens):
                assert self.known.setdefault((n, slot), token) == token

    def bury(self, n: int) -> None:
        self.erased.add(n)
        for slot in range(len(SLOTS)):
            if (token := self.known.pop((n, slot), "")) != "":
                self.graves.add(token)

    @rule(who=writers, n=st.integers(0, 5), fuse=fuses)
    def erase(self, who: int, n: int, fuse: int | None) -> None:
        if self.attempt(who, fuse, lambda one: one.erase(PEOPLE[n], purposes=["error-logging"])):
            self.bury(n)
        elif n not in self.erased:
            self.unsure.add(n)  # asked and not answered: either

    @rule(who=writers, fuse=fuses, pages=st.integers(0, 9), keep=st.integers(0, 1))
    def rotate_wrap_key(self, who: int, fuse: int | None, pages: int, keep: int) -> None:
        def work(one: Identity) -> None:
            self.now += timedelta(days=8)
            rotate(one._vault, now=self.now)
            steps = rewrap(one._vault, keep=keep, rows=2)
            for _, _ in zip(range(pages), steps, strict=False):
                pass
            steps.close()

        self.attempt(who, fuse, work)

    @rule(who=writers, fuse=fuses)
    def rotate_token_key(self, who: int, fuse: int | None) -> None:
        def work(one: Identity) -> None:
            with one._keyring.alone():
                slot = [k for k in one._keyring.entries() if k.slot == ("token", HEAP.name, "rel")]
                if any(key.state == "PRIMARY" for key in slot) and len(slot) < 8:
                    fresh = one._keyring.create("token", domain=HEAP.name, epoch="rel")
                    one._keyring.promote(fresh.kid)

        self.attempt(who, fuse, work)

    @rule(who=writers)
    def restart(self, who: int) -> None:
        self.open[who].close()
        self.open[who] = self.identity()

    @rule(who=writers, fuse=fuses)
    def back_up(self, who: int, fuse: int | None) -> None:
        self.copies += 1
        path = self.state / f"copy{self.copies}.sqlite3"
        if self.attempt(who, fuse, lambda one: list(backup(one._vault, path))):
            self.copy = path, {n for n, _ in self.known}

    @precondition(lambda self: self.copy is not None)
    @rule(lost=st.booleans(), fuse=fuses)
    def bring_back(self, lost: bool, fuse: int | None) -> None:
        """Restore; perhaps after the vault was lost, and cut short, and done again."""
        assert self.copy is not None
        path, there = self.copy
        for one in self.open:
            one.close()
        if self.wrapped(path) <= self.versions():
            if lost:
                for file in self.state.glob("vault.sqlite3*"):
                    file.unlink()
                for n, slot in list(self.known):
                    if n not in there:
                        # Made since the backup: nobody can have it back.
                        self.graves.add(self.known.pop((n, slot)))
            for left in (fuse, None):
                mending = self.identity("restore")
                self.fuse.left = left
                try:
                    list(restore(mending._vault, path))
                except PowerCut:
                    continue
                finally:
                    self.fuse.left = None
                    mending.close()
                break
        self.open = [self.identity(), self.identity()]

    @rule(who=writers, numbers=people, fuse=fuses)
    def lose_everything_after_an_erasure(
        self, who: int, numbers: list[int], fuse: int | None
    ) -> None:
        """What a state machine seldom finds by itself: the backup is older than the erasure."""
        self.look(who, numbers, None)
        self.back_up(who, None)
        self.erase(who, numbers[0], None)
        self.bring_back(lost=True, fuse=fuse)
        self.look(who, numbers, None)

    def wrapped(self, path: Path) -> set[int]:
        with sql.create_engine(f"sqlite:///{path}").connect() as connection:
            query = "SELECT DISTINCT wrap_version FROM subjects WHERE wrapped IS NOT NULL"
            return set(connection.exec_driver_sql(query).scalars())

    def versions(self) -> set[int]:
        ring = self.open[0]._keyring
        ring.refresh()
        return {k.version for k in ring.entries() if k.use == "wrap" and k.secret is not None}

    @rule(who=writers, fuse=fuses)
    def forget(self, who: int, fuse: int | None) -> None:
        def work(one: Identity) -> None:
            forget(one._vault)

        before = set(self.erased)
        self.attempt(who, fuse, work)
        with sql.create_engine(f"sqlite:///{self.state}/vault.sqlite3").connect() as connection:
            query = "SELECT locator FROM subjects WHERE wrapped IS NULL"
            stones = set(connection.exec_driver_sql(query).scalars())
        for n in before:
            if self.open[who]._locator(PEOPLE[n]) not in stones:
                self.erased.discard(n)  # they may come again, as somebody else

    def files(self) -> Iterator[tuple[Path, bytes]]:
        for file in self.state.rglob("*"):
            if file.is_file():
                yield file, file.read_bytes()

    @rule()
    def search_for_destroyed_keys(self) -> None:
        ring = self.open[0]._keyring
        ring.refresh()
        for key in ring.entries():
            if key.secret is not None:
                self.secrets[key.kid] = key.secret.expose()
        gone = [k.kid for k in ring.entries() if k.state == "DESTROYED" and k.kid in self.secrets]
        for path, content in self.files():
            for kid in gone:
                raw = self.secrets[kid]
                assert raw not in content, f"{kid} is in {path.name}"
                assert urlsafe_b64encode(raw).rstrip(b"=") not in content, f"{kid}: {path.name}"

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        try:
            for who in (0, 1):
                self.look(who, list(range(6)), None)
            self.search_for_destroyed_keys()
        finally:
            guarded.replace = self.write
            for one in self.open:
                one.close()
            shutil.rmtree(self.state, ignore_errors=True)


TestVaultModel = VaultMachine.TestCase
TestVaultModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
