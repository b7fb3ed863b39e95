"""Keyset and vault under two writers, restarts and crashes at each write: what always holds.

The model knows which key is alive, which token a subject had, and every key that was destroyed. A
crash makes a call of the file system fail and every later one too, with no tidying up, as a kill
would; then everybody starts again from what is on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from telemetry.errors import CapsuleError, IdentifierError
from telemetry.identity import (
    Custody,
    Domain,
    Identifier,
    Identity,
    Sealed,
    epoch_ms,
    guarded,
    initialise,
)
from telemetry.identity.keyring import KEYSET, Key, Keyring, Use
from telemetry.identity.vault import Vault

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DOMAINS = (
    Domain(name="analytics@heap", label="heap", epoch="rel"),
    Domain(name="errors@sentry", label="sentry", epoch="quarter"),
)
ROTATED: tuple[tuple[Use, str, str], ...] = (
    ("seal", "", ""),
    ("wrap", "", ""),
    ("hold", "", ""),
    ("audit", "", ""),
    ("token", "analytics@heap", "rel"),
    ("token", "errors@sentry", "2026q4"),
)
# In memory where there is such a place: a crash is simulated here, a power cut is not.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
writers = st.integers(0, 1)
subjects = st.integers(0, 3)


class Crash(BaseException):
    """The process is gone. No `except Exception` of ours may see it."""


class Failing:
    """Stands in for `os`: the n-th call that changes a file, and all after it, never happen."""

    changing = frozenset({"open", "fsync", "replace", "fdopen"})

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.changing:
            return real

        def step(*args: Any, **more: Any) -> Any:
            self.spend()
            return real(*args, **more)

        return step

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash


@contextlib.contextmanager
def crashing_after(calls: int) -> Iterator[Failing]:
    failing = Failing(calls)

    unlinked = Path.unlink

    def unlink(path: Path, **more: bool) -> None:
        failing.spend()
        unlinked(path, **more)

    with mock.patch.object(guarded, "os", failing), mock.patch.object(Path, "unlink", unlink):
        yield failing


def forms(raw: bytes) -> list[bytes]:
    """A key as it could stand in a file."""
    text = urlsafe_b64encode(raw).rstrip(b"=")
    standard, digits = text.translate(bytes.maketrans(b"-_", b"+/")), raw.hex().encode()
    return [raw, text, standard, digits, digits.upper()]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Keys(RuleBasedStateMachine):
    """Two pseudonymizers on one state folder."""

    @initialize()
    def begin(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="milchglas-", dir=MEMORY))
        self.custody = Custody(state=self.state)
        initialise(self.state, environment="production", custody=self.custody)
        self.identities = [self.opened(), self.opened()]
        self.tokens: dict[tuple[int, str, str], str] = {}
        self.wrapped_by: dict[int, int] = {}
        self.destroyed: dict[str, bytes] = {}
        self.erased: set[int] = set()
        self.seen: set[str] = set()

    def opened(self) -> Identity:
        ticks = iter(range(0, 10**9, 100))

        def clock() -> float:
            """A minute goes by at each look: nothing is remembered."""
            return float(next(ticks))

        path, url = self.state / "keys" / KEYSET, f"sqlite:///{self.state / 'vault.sqlite3'}"
        ring = Keyring.load(path, environment="production", custody=self.custody)
        return Identity(ring, Vault(url, keyring=ring, clock=clock), clock=clock, now=lambda: NOW)

    def ring(self, writer: int) -> Keyring:
        """Its keyring as it is: perhaps another writer has changed the file meanwhile."""
        return self.identities[writer]._keyring

    def disk(self) -> Keyring:
        path = self.state / "keys" / KEYSET
        return Keyring.load(path, environment="production", custody=self.custody)

    def restart(self) -> None:
        initialise(self.state, environment="production", custody=self.custody)
        for identity in self.identities:
            identity.close()
        self.identities = [self.opened(), self.opened()]

    # --- What happens ---------------------------------------------------------------------------

    @rule(writer=writers, subject=subjects, domain=st.sampled_from(DOMAINS))
    def name(self, writer: int, subject: int, domain: Domain) -> None:
        identity, ring = self.identities[writer], self.ring(writer)
        ring.refresh()
        who = Identifier("account", "app:user", str(subject))
        sealer = Identity.sealer(self.state)
        event = {"event_id": "e1", "schema": "error_event", "tenant": "shop"}
        capsule = sealer.seal([who], occurred_ms=epoch_ms(NOW), **event)
        primary = ring.primary("wrap").version
        [resolved] = identity.resolve([Sealed(capsule=capsule, occurred_at=NOW, **event)])
        lost = {k.version for k in ring.entries() if k.use == "wrap" and k.state == "DESTROYED"}
        if self.wrapped_by.get(subject, primary) in lost and subject not in self.erased:
            # Nobody wrapped the row anew before its key was destroyed.
            assert isinstance(resolved, CapsuleError)
            return
        assert not isinstance(resolved, Exception)
        if subject in self.erased:
            try:
                resolved.token_list(domain, NOW)
            except IdentifierError:
                return
            raise AssertionError("an erased subject got a token")
        self.wrapped_by.setdefault(subject, primary)
        epoch = "rel" if domain.epoch == "rel" else "2026q4"
        [token] = resolved.token_list(domain, NOW)
        used = ring.token_key(domain.name, epoch)
        [kid] = [key.kid for key in ring.entries() if key.secret == used]
        assert self.tokens.setdefault((subject, domain.name, kid), token) == token

    @rule(writer=writers, subject=subjects)
    def erase(self, writer: int, subject: int) -> None:
        who = Identifier("account", "app:user", str(subject))
        self.identities[writer].erase(who, purposes=["product-analytics"])
        self.erased.add(subject)

    @rule(writer=writers, what=st.sampled_from(ROTATED))
    def rotate(self, writer: int, what: tuple[Use, str, str]) -> None:
        use, domain, epoch = what
        ring = self.ring(writer)
        before = {key.kid for key in ring.entries()}
        key = ring.create(use, domain=domain, epoch=epoch)
        assert key.kid not in before
        assert key.state == "PRE_ACTIVE"
        ring.promote(key.kid)
        assert self.disk()._primary[key.slot].kid == key.kid

    @rule(writer=writers, use=st.sampled_from(["seal", "wrap"]))
    def create(self, writer: int, use: Use) -> None:
        self.ring(writer).create(use)

    @precondition(lambda self: self.destroyable())
    @rule(writer=writers, data=st.data())
    def destroy(self, writer: int, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.destroyable()))
        assert key.secret is not None
        receipt = self.ring(writer).destroy(key.kid)
        self.destroyed[key.kid] = key.secret.expose()
        audit = {k.kid: k.public for k in self.disk().entries() if k.use == "audit"}
        assert receipt.verify(audit[receipt.signed_by])

    def destroyable(self) -> list[Key]:
        return [
            key
            for key in self.disk().entries()
            if key.state in {"PRE_ACTIVE", "ENABLED", "DISABLED"}
        ]

    @rule(writer=writers, data=st.data())
    def disable_and_enable(self, writer: int, data: st.DataObject) -> None:
        former = [key for key in self.disk().entries() if key.state == "ENABLED"]
        if former:
            kid = data.draw(st.sampled_from(former)).kid
            assert self.ring(writer).disable(kid).state == "DISABLED"
            assert self.ring(1 - writer).enable(kid).state == "ENABLED"

    @rule()
    def all_start_again(self) -> None:
        self.restart()

    @rule(writer=writers, calls=st.integers(0, 24), data=st.data())
    def crash(self, writer: int, calls: int, data: st.DataObject) -> None:
        ring = self.ring(writer)
        before = {key.kid: key for key in self.disk().entries()}
        doomed = data.draw(st.sampled_from([*self.destroyable(), None]))

        def rotate() -> None:
            ring.promote(ring.create("token", domain="analytics@heap", epoch="rel").kid)

        def destroy() -> None:
            assert doomed is not None
            ring.destroy(doomed.kid)

        does: Callable[[], None] = rotate if doomed is None else destroy
        with contextlib.suppress(Crash), crashing_after(calls):
            does()
        # A tombstone is true when it appears: the copy has lost the key before.
        stones = self.states(self.state / "keys" / KEYSET, "DESTROYED")
        assert stones <= self.states(self.custody.backup / KEYSET, "DESTROYED")
        self.restart()
        after = {key.kid: key for key in self.disk().entries()}
        for kid, key in before.items():
            gone = after[kid].state == "DESTROYED" and key.state != "DESTROYED"
            assert not gone or (doomed is not None and kid == doomed.kid)
            if gone:
                assert key.secret is not None
                self.destroyed[kid] = key.secret.expose()
            else:
                assert after[kid].secret == key.secret

    @staticmethod
    def states(path: Path, state: str) -> set[str]:
        return {k["kid"] for k in json.loads(path.read_bytes())["keys"] if k["state"] == state}

    # --- What always holds ----------------------------------------------------------------------

    @invariant()
    def no_file_holds_a_destroyed_key(self) -> None:
        files = contents(self.state)
        for path, content in files.items():
            for kid, raw in self.destroyed.items():
                assert not any(form in content for form in forms(raw)), (path.name, kid)
            # Wrapped it is no better: whoever has the key in custody would have it back.
            if content.startswith(b'{\n "format": "milchglas-keyset'):
                opened = Keyring.load(path, environment="production", custody=self.custody)
                held = {key.kid for key in opened.entries() if key.secret is not None}
                assert not held & set(self.destroyed)

    @invariant()
    def no_file_but_the_one_in_custody_holds_a_key_in_the_clear(self) -> None:
        live = [key.secret.expose() for key in self.disk().entries() if key.secret is not None]
        for path, content in contents(self.state).items():
            assert not any(form in content for raw in live for form in forms(raw)), path.name

    @invariant()
    def no_key_vanishes_without_a_tombstone(self) -> None:
        kids = {key.kid for key in self.disk().entries()}
        assert self.seen <= kids
        self.seen = kids

    @invariant()
    def the_copy_is_a_copy_and_the_public_file_is_right(self) -> None:
        keyset = self.state / "keys" / KEYSET
        assert (self.custody.backup / KEYSET).read_bytes() == keyset.read_bytes()
        said = json.loads((self.state / "keys" / "public.json").read_bytes())
        shown = {(key["use"], key["kid"]) for key in said["keys"] if key["state"] == "PRIMARY"}
        primary = {(key.use, key.kid) for key in self.disk().entries() if key.state == "PRIMARY"}
        assert shown == {pair for pair in primary if pair[0] in {"seal", "dead", "hold", "audit"}}

    @invariant()
    def two_keys_never_give_one_subject_the_same_token(self) -> None:
        assert len(set(self.tokens.values())) == len(self.tokens)

    def teardown(self) -> None:
        for identity in getattr(self, "identities", []):
            identity.close()
        shutil.rmtree(getattr(self, "state", "/nonexistent"), ignore_errors=True)


TestKeys = Keys.TestCase
TestKeys.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="milchglas-", dir=MEMORY) as name:
        yield Path(name)


def test_a_first_start_cut_short_at_any_write_is_completed_by_the_next(folder: Path) -> None:
    calls, finished = 0, False
    while not finished:
        state = folder / str(calls)
        custody = Custody(state=state)
        try:
            with crashing_after(calls):
                initialise(state, environment="production", custody=custody)
            finished = True
        except Crash:
            pass
        initialise(state, environment="production", custody=custody)
        ring = Keyring.load(state / "keys" / KEYSET, environment="production", custody=custody)
        assert {key.state for key in ring.entries()} == {"PRIMARY"}
        assert not [path.name for path in state.rglob(".*.json.*")]
        Identity.open(state, environment="production", custody=custody).close()
        calls += 1
    assert calls > 20


def test_a_change_of_custody_cut_short_at_any_write_is_completed_by_the_next(
    folder: Path,
) -> None:
    calls, finished = 0, False
    while not finished:
        state = folder / str(calls)
        old = Custody(state=state)
        initialise(state, environment="production", custody=old)
        new = Custody(f"file:{folder}/{calls}.kek", state=state)
        new.make()
        path = state / "keys" / KEYSET
        kept = Keyring.load(path, environment="production", custody=old).secret("locator")
        change = {"environment": "production", "old": old, "new": new}
        try:
            with crashing_after(calls):
                Keyring.change_custody(path, **change)  # type: ignore[arg-type]
            finished = True
        except Crash:
            pass
        Keyring.change_custody(path, **change)  # type: ignore[arg-type]
        assert Keyring.load(path, environment="production", custody=new).secret("locator") == kept
        (state / "custody" / "kek").unlink()
        initialise(state, environment="production", custody=new)
        Identity.open(state, environment="production", custody=new).close()
        calls += 1
    assert calls > 10
