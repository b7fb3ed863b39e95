"""Identity: from sealed identifiers to one token for each recipient.

The only module of this package that others import. No key bytes cross it: callers hand in capsules
and get tokens; identifiers stay inside. Fails closed: what cannot be asked raises `VaultError` or
`KeyringError` (hold), what cannot be opened is an `EventError` for that event (park).

Whose secret a token is made with decides what an erasure reaches:

=============  ==================================================================================
account        its own
organization   its own
membership     the account's; an event that names a membership names its account
session        the account's if the event names one, else its own
device         the account's if the event names one, else its own
object         the organization's, else the account's, else its own
=============  ==================================================================================

So erasing an account destroys 32 bytes, and with them every token of its sessions and devices. A
session before and after its log-in has two tokens that cannot be joined.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final

from telemetry.errors import CapsuleError, EventError, IdentifierError, KeyringError, PolicyError
from telemetry.identity import guarded, pseudonym
from telemetry.identity import keyring as _keys
from telemetry.identity.capsule import (
    DeadLetterOpener,
    DeadLetterSealer,
    HeldOpener,
    HeldSealer,
    Identifier,
    Opener,
    Sealer,
    self_test,
)
from telemetry.identity.custody import Custody
from telemetry.identity.keyring import Announced, Keyring, PublicKeys, Secret, Signer
from telemetry.identity.pseudonym import (
    EPOCH_RULES,
    EpochRule,
    Kind,
    Profile,
    canonicalize,
    check,
    epoch_label,
    membership,
)
from telemetry.identity.rotation import Turn, overdue, tend
from telemetry.identity.vault import (
    CACHE_ROWS,
    CACHE_S,
    MAX_AGE,
    STATES,
    Held,
    Repair,
    SuppressionState,
    Tombstoned,
    Unreadable,
    Vault,
)
from telemetry.identity.vault import upkeep as _upkeep
from telemetry.identity.vault.upkeep import ROTATE_AFTER, Stats
from telemetry.retention import Period

__all__ = [
    "Custody",
    "DeadLetterOpener",
    "DeadLetterSealer",
    "Domain",
    "EpochRule",
    "HeldOpener",
    "HeldSealer",
    "Identifier",
    "Identity",
    "Kind",
    "Profile",
    "Repair",
    "Resolved",
    "Sealed",
    "Sealer",
    "Stats",
    "SuppressionState",
    "Turn",
    "canonicalize",
    "check",
    "epoch_label",
    "epoch_ms",
    "initialise",
    "initialise_development",
    "inspect",
    "load_dead_letter_opener",
    "load_dead_letter_sealer",
    "load_held_sealer",
    "load_sealer",
    "load_spool_key",
    "membership",
    "open_vault",
]

_KEYS: Final = "keys"
_VAULT: Final = "vault.sqlite3"
_TOMBSTONES: Final = "tombstones.sqlite3"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}@[a-z0-9][a-z0-9_.-]{0,63}")
_LABEL = re.compile(r"[a-z0-9]{2,12}")
_EPOCH_START: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
# Nothing older than the retention ceiling of 12 months is processed; a clock may be a day ahead.
_OLDEST: Final = timedelta(days=400)
_NEWEST: Final = timedelta(days=1)
LATE: Final = timedelta(days=7)
"""How long after its end a quarter still gives tokens: as long as a client's spool keeps events."""
SKEW: Final = timedelta(minutes=5)
"""How far a clock may be ahead and still name the epoch."""
_CACHE_TOKENS: Final = 1 << 16

_HOLDERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "account": (),
        "organization": (),
        "membership": ("account",),
        "session": ("account",),
        "device": ("account",),
        "object": ("organization", "account"),
    }
)
"""Whose secret a kind uses if the event names them, in this order; else its own."""

_SUPPRESSIBLE: Final = frozenset({"account", "organization"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """Where a token is valid: one purpose at one recipient.

    Attributes:
        name: ``purpose@recipient``, for example ``analytics@heap``.
        label: 2 to 12 lower-case letters or digits that name it in the token.
        epoch: ``rel`` or ``quarter``, see `epoch_label`.

    Raises:
        PolicyError: A value that is none of these.
    """

    name: str
    label: str
    epoch: EpochRule

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not _LABEL.fullmatch(self.label):
            raise PolicyError("A token domain is purpose@recipient with a label of 2 to 12 a-z0-9.")
        if self.epoch not in EPOCH_RULES:
            raise PolicyError("A token epoch is rel or quarter.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A capsule with what it is bound to.

    Attributes:
        capsule: From `Sealer.seal`; empty if the event names nobody.
        event_id: The event's.
        schema: As it was given to `Sealer.seal`.
        occurred_at: Aware time of the event; counts to the millisecond.
        tenant: The application's.
    """

    capsule: bytes
    event_id: str
    schema: str
    occurred_at: datetime
    tenant: str

    def __repr__(self) -> str:
        """Name what it is, never what it holds."""
        return f"Sealed({self.event_id} {len(self.capsule)} bytes)"


def epoch_ms(at: datetime) -> int:
    """Milliseconds since 1970 UTC, rounded down, as a capsule is bound to them.

    >>> epoch_ms(datetime(1970, 1, 1, 0, 0, 1, 999, tzinfo=UTC))
    1000
    """
    return (at - _EPOCH_START) // _MILLISECOND


class Resolved:
    """One event's identifiers, opened. Gives tokens and states, never an identifier.

    Valid for the batch it was resolved in; not to be kept.

    Attributes:
        kinds: The kind of each identifier, in the order in which they were sealed.
    """

    __slots__ = ("_event_id", "_holders", "_identifiers", "_identity", "kinds")

    def __init__(
        self,
        identity: Identity,
        event_id: str,
        identifiers: tuple[Identifier, ...],
        holders: tuple[Held | Tombstoned, ...],
    ) -> None:
        self._identity, self._event_id = identity, event_id
        self._identifiers, self._holders = identifiers, holders
        self.kinds: tuple[str, ...] = tuple(identifier.kind for identifier in identifiers)

    def __repr__(self) -> str:
        return f"Resolved({self._event_id} {' '.join(self.kinds) or 'nobody'})"

    def tokens(self, domain: Domain, at: datetime) -> dict[str, str]:
        """Give the pseudonyms of this event at one recipient.

        Args:
            domain: Purpose and recipient.
            at: Aware time of the event: it decides the epoch.

        Returns:
            Token by kind. An object stands under ``object:<namespace>``; if an event names several
            of one namespace the first does, and `token_list` has all.

        Raises:
            IdentifierError: Somebody named here is erased (``erased``), or `at` is out of reach
                (``invalid_time``).
            CapsuleError: The key of that epoch was destroyed (``key_destroyed``).
            KeyringError: A key cannot be read or written; hold.
        """
        named: dict[str, str] = {}
        tokens = self.token_list(domain, at)
        for identifier, token in zip(self._identifiers, tokens, strict=True):
            kind = identifier.kind
            named.setdefault(f"object:{identifier.namespace}" if kind == "object" else kind, token)
        return named

    def token_list(self, domain: Domain, at: datetime) -> tuple[str, ...]:
        """Give one token for each of `kinds`. Arguments and errors as `tokens`."""
        pairs: list[tuple[Identifier, Held]] = []
        for identifier, holder in zip(self._identifiers, self._holders, strict=True):
            if isinstance(holder, Tombstoned):
                raise IdentifierError("erased")
            pairs.append((identifier, holder))
        return self._identity._tokens_of(domain, at, pairs)  # noqa: SLF001 - its other half

    def delivery_id(self, domain: Domain) -> str:
        """Give the idempotency key of this event at one recipient: 32 hex digits.

        Raises:
            KeyringError: A key cannot be read or written; hold.
        """
        return self._identity._delivery_id(domain, self._event_id)  # noqa: SLF001

    def state(self, purpose: str) -> SuppressionState:
        """Tell whether this event may be processed for a purpose.

        Returns:
            The strictest state of the account and the organization. GRANTED only if the account
            itself has consented: nobody consents for another. ERASED if anybody named is.

        Raises:
            VaultError: It cannot be asked; hold.
        """
        if any(isinstance(holder, Tombstoned) for holder in self._holders):
            return "ERASED"
        return self._identity._state_of(purpose, self._identifiers)  # noqa: SLF001


class _Desk:
    """Gives tokens of one domain and epoch, and remembers those it gave. Let go of in a minute."""

    def __init__(self, domain: Domain, epoch: str, key: Secret) -> None:
        self._domain, self._epoch, self._key = domain, epoch, key
        self._tokenizers: dict[tuple[str, str], pseudonym.Tokenizer] = {}
        self._given: dict[Identifier, tuple[Secret, str]] = {}

    def __repr__(self) -> str:
        return f"_Desk({self._domain.name} {self._epoch})"

    def tokens(self, pairs: Sequence[tuple[Identifier, Secret]]) -> tuple[str, ...]:
        tokens: list[str] = []
        for identifier, secret in pairs:
            given = self._given.get(identifier)
            # The vault remembers secrets as objects; another one may be a rerolled subject's.
            if given is not None and given[0] is secret:
                tokens.append(given[1])
            else:
                tokens.append(self._make(identifier, secret))
        return tuple(tokens)

    def _make(self, identifier: Identifier, secret: Secret) -> str:
        kind, namespace, canonical_id = identifier
        tokenizer = self._tokenizers.get((kind, namespace))
        if tokenizer is None:
            tokenizer = self._tokenizers[kind, namespace] = pseudonym.Tokenizer(
                self._key.expose(),
                domain=self._domain.name,
                epoch=self._epoch,
                kind=kind,
                namespace=namespace,
                label=self._domain.label,
            )
        token = tokenizer(canonical_id, secret.expose())
        if len(self._given) >= _CACHE_TOKENS:
            self._given.clear()
        self._given[identifier] = secret, token
        return token


class Identity:
    """Keyring, vault and opener of one pseudonymizer. Safe to share between threads."""

    def __init__(
        self,
        keyring: Keyring,
        vault: Vault,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keyring, self._vault, self._opener = keyring, vault, Opener(keyring)
        self._clock, self._now = clock, now
        self._turns: deque[Turn] = deque()
        self._forget()

    def __repr__(self) -> str:
        return f"Identity({self._keyring!r}, {self._vault!r})"

    @property
    def insecure(self) -> bool:
        """Whether the keys lie in the clear: a keyset of development, which guards nobody."""
        return self._keyring.insecure

    @classmethod
    def open(  # noqa: PLR0913 - each is one setting of the operator's, or of the policy
        cls,
        state: Path,
        *,
        environment: str,
        custody: Custody | None = None,
        vault_url: str | None = None,
        journal_url: str | None = None,
        cache_rows: int = CACHE_ROWS,
        alone: bool = False,
        repair: Repair = "",
        max_age: Period = MAX_AGE,
    ) -> Identity:
        """Open keyset and vault under a state folder.

        Args:
            state: Holds ``keys/keyset.json``; ``vault.sqlite3`` unless `vault_url` is given; and
                ``tombstones.sqlite3`` unless `journal_url` is.
            environment: All but ``development`` refuse development keysets.
            custody: What the keyset is wrapped with; by default ``STATE/custody/kek``.
            vault_url: SQLAlchemy URL of another vault.
            journal_url: SQLAlchemy URL of another tombstone journal.
            cache_rows: As for `Vault`.
            alone: Refuse a SQLite vault that another process serves, and keep others from it.
            repair: As for `Vault`.
            max_age: How old a subject's secret becomes; of the policy.

        Raises:
            KeyringError: No usable keyset, a vault of another keyset, or HPKE does not work.
            ConfigError: The vault is another process's, does not fit its journal, or is gone.
            VaultError: The vault cannot be reached.
        """
        self_test()
        keyring = Keyring.load(
            state / _KEYS / _keys.KEYSET, environment=environment, custody=custody
        )
        vault = open_vault(
            state,
            keyring,
            vault_url=vault_url,
            journal_url=journal_url,
            cache_rows=cache_rows,
            repair=repair,
            max_age=max_age,
        )
        if alone:
            try:
                vault.claim()
            except BaseException:
                vault.close()
                raise
        return cls(keyring, vault)

    @staticmethod
    def sealer(state: Path) -> Sealer:
        """Give what a gateway on this host needs, from public keys alone.

        Raises:
            KeyringError: ``keys/public.json`` is missing or changed.
        """
        return load_sealer(state / _KEYS / _keys.PUBLIC)

    # --- A batch --------------------------------------------------------------------------------

    def resolve(
        self, sealed: Sequence[Sealed], *, purposes: Iterable[str] = ()
    ) -> list[Resolved | EventError]:
        """Open the capsules of a batch and fetch what their tokens need, in one go.

        Args:
            sealed: The capsules, each with what it is bound to.
            purposes: For which `Resolved.state` will be asked; fetched together, so that asking
                costs nothing. Others are fetched one by one.

        Returns:
            One for each capsule, in order: its identifiers, or why there are none.

        Raises:
            VaultError: The vault cannot be asked; hold the batch.
            KeyringError: The keyset cannot be read or lacks a key; hold the batch.
        """
        self._refresh()
        opened: list[tuple[tuple[Identifier, ...], tuple[bytes, ...]] | EventError] = []
        wanted: dict[bytes, None] = {}
        subjects: dict[Identifier, None] = {}
        for one in sealed:
            try:
                identifiers = self._opener.open(
                    one.capsule,
                    event_id=one.event_id,
                    schema=one.schema,
                    occurred_ms=epoch_ms(one.occurred_at),
                    tenant=one.tenant,
                )
                locators = self._holders(identifiers)
            except EventError as error:
                opened.append(error)
                continue
            opened.append((identifiers, locators))
            wanted.update(dict.fromkeys(locators))
            subjects.update(dict.fromkeys(i for i in identifiers if i.kind in _SUPPRESSIBLE))
        found = self._vault.secrets(list(wanted)) if wanted else {}
        tags = [self._tag(purpose, subject) for purpose in purposes for subject in subjects]
        if tags:
            self._vault.states(tags)
        return [
            one if isinstance(one, EventError) else self._resolved(event.event_id, *one, found)
            for event, one in zip(sealed, opened, strict=True)
        ]

    def _resolved(
        self,
        event_id: str,
        identifiers: tuple[Identifier, ...],
        locators: tuple[bytes, ...],
        found: Mapping[bytes, Held | Tombstoned | Unreadable],
    ) -> Resolved | EventError:
        holders: list[Held | Tombstoned] = []
        for locator in locators:
            holder = found[locator]
            if isinstance(holder, Unreadable):
                return CapsuleError("secret_unreadable")
            holders.append(holder)
        return Resolved(self, event_id, identifiers, tuple(holders))

    def _holders(self, identifiers: tuple[Identifier, ...]) -> tuple[bytes, ...]:
        named = {identifier.kind: identifier for identifier in reversed(identifiers)}
        locators: list[bytes] = []
        for identifier in identifiers:
            holder = next(
                (named[kind] for kind in _HOLDERS[identifier.kind] if kind in named), identifier
            )
            if holder.kind == "membership":
                # With a secret of its own it would outlive the account.
                raise IdentifierError("membership_without_account")
            locators.append(self._locator(holder))
        return tuple(locators)

    # --- One event ------------------------------------------------------------------------------

    def epoch_of(self, domain: Domain, at: datetime) -> str:
        """Give the epoch whose key the tokens of an event are made with.

        The epoch of the event's own time, but of a time that lies at most `LATE` back and at most
        `SKEW` ahead: a quarter that is over for a week gets no further tokens, and a clock that
        runs ahead does not open the next one early.

        Args:
            domain: Whose rule counts.
            at: Aware time of the event.

        Raises:
            IdentifierError: A time beyond all retention, or a day ahead (``invalid_time``).
        """
        if domain.epoch == "rel":
            return "rel"
        if not self._oldest <= at <= self._newest:
            # A forged time must not make keys for epochs nobody lives in.
            raise IdentifierError("invalid_time")
        return epoch_label(domain.epoch, min(max(at, self._late), self._ahead))

    def _tokens_of(
        self, domain: Domain, at: datetime, pairs: Sequence[tuple[Identifier, Held]]
    ) -> tuple[str, ...]:
        if not pairs:
            return ()
        return self._tokens_in(domain, self.epoch_of(domain, at), pairs)

    def _tokens_in(
        self, domain: Domain, epoch: str, pairs: Sequence[tuple[Identifier, Held]]
    ) -> tuple[str, ...]:
        pins = pairs[0][1].pins
        if all(held.pins is pins for _, held in pairs):
            return self._desk(domain, epoch, pins).tokens(pairs)
        return tuple(self._desk(domain, epoch, p[1].pins).tokens((p,))[0] for p in pairs)

    def _desk(self, domain: Domain, epoch: str, pins: Mapping[str, str]) -> _Desk:
        kid = self._pinned(domain.name, pins) if epoch == "rel" else ""
        place = domain.name, domain.label, epoch, kid
        desk = self._desks.get(place)
        if desk is None:
            key = self._pinned_key(kid) if kid else self._keyring.token_key(domain.name, epoch)
            desk = self._desks[place] = _Desk(domain, epoch, key)
        return desk

    def _pinned(self, domain: str, pins: Mapping[str, str]) -> str:
        """Name the key that a subject's tokens are made with: its own, also after a rotation."""
        kid = pins.get(domain) or self._first_key(domain)
        if kid is None:
            # Nobody has had a token there yet: what is made now is the first.
            self._keyring.token_key(domain, "rel")
            self._first_keys.clear()
            kid = self._first_key(domain)
        return kid or ""

    def _pinned_key(self, kid: str) -> Secret:
        key = self._keyring.opening("token", kid)
        if key is not None:
            return key
        if kid in {former.kid for former in self._keyring.entries() if former.state == "DESTROYED"}:
            raise CapsuleError("key_destroyed")
        raise KeyringError(
            "The keyset lacks a token key that subjects are pinned to, or it is disabled.",
            remedy="Restore the keyset that belongs to this vault, or enable the key.",
        )

    def _first_key(self, domain: str) -> str | None:
        """Name the first key there ever was: it counts for who was here before there was any."""
        if not self._first_keys:
            for key in reversed(self._keyring.entries()):
                if (key.use, key.epoch) == ("token", "rel"):
                    self._first_keys[key.domain] = key.kid
        return self._first_keys.get(domain)

    def _delivery_id(self, domain: Domain, event_id: str) -> str:
        key = self._keyring.delivery_key(domain.name)
        return pseudonym.delivery_id(key.expose(), domain=domain.name, event_id=event_id)

    def _state_of(self, purpose: str, identifiers: Sequence[Identifier]) -> SuppressionState:
        subjects = [i for i in identifiers if i.kind in _SUPPRESSIBLE]
        tags = [self._tag(purpose, subject) for subject in subjects]
        states = self._vault.states(tags) if tags else {}
        worst: SuppressionState = "ACTIVE"
        for tag in tags:
            if STATES[states[tag]] > STATES[worst]:
                worst = states[tag]
        if worst == "ACTIVE":
            for subject, tag in zip(subjects, tags, strict=True):
                if subject.kind == "account" and states[tag] == "GRANTED":
                    return "GRANTED"
        return worst

    # --- The audit log --------------------------------------------------------------------------

    def signer(self) -> Signer:
        """Give what signs a checkpoint of the audit log; ask anew for each, because keys rotate.

        Raises:
            KeyringError: There is no audit key, or the keyset cannot be read.
        """
        self._keyring.refresh()
        return self._keyring.signer()

    # --- Rights ---------------------------------------------------------------------------------

    def set_state(self, subject: Identifier, *, purpose: str, state: SuppressionState) -> None:
        """Record objection, restriction or consent of a subject for a purpose.

        In force here at once, in other processes within a minute.

        Args:
            subject: An account or organization; events are suppressed by no other kind.
            purpose: A name from the policy.
            state: ACTIVE takes an objection, restriction or consent back.

        Raises:
            IdentifierError: The subject is erased, or of another kind.
            VaultError: It cannot be written.
        """
        if subject.kind not in _SUPPRESSIBLE:
            raise IdentifierError("unknown_kind")
        self._vault.set_state(self._tag(purpose, subject), state)

    def erase(self, subject: Identifier, *, purposes: Iterable[str]) -> None:
        """Destroy a subject's secret; first stop its processing for all `purposes`.

        Idempotent: after an error, ask again.

        Raises:
            VaultError: It cannot be written.
        """
        if subject.kind in _SUPPRESSIBLE:
            for purpose in purposes:
                self._vault.set_state(self._tag(purpose, subject), "ERASED")
        self._vault.erase(self._locator(subject))
        self._forget()

    # --- Keys -----------------------------------------------------------------------------------

    def tend(
        self, *, keeps: Mapping[str, Period] | None = None, holding: bool = False
    ) -> list[Turn]:
        """Rotate, destroy and back up what is due, and tell others what is loaded. Once a minute.

        Arguments and errors as `telemetry.identity.rotation.tend`.
        """
        for turn in tend(self._keyring, now=self._now(), keeps=keeps, holding=holding):
            self._turns.append(turn)
        self._keyring.report()
        return self.turns()

    def turns(self) -> list[Turn]:
        """Give what was done to keys since this was asked last: for the audit log, once."""
        self._turns.extend(Turn(what="created", key=key) for key in self._keyring.made())
        return [self._turns.popleft() for _ in range(len(self._turns))]

    def unheard(self, heard: Container[str]) -> list[Turn]:
        """Give the living keys whose names are not among those that a log has heard of."""
        return [
            Turn(what="created", key=key)
            for key in self._keyring.entries()
            if key.state != "DESTROYED" and key.kid not in heard
        ]

    def keys(self) -> tuple[Counter[tuple[str, str]], int]:
        """Count the keys by use and state, and those that should be destroyed by now."""
        entries = self._keyring.entries()
        counted: Counter[tuple[str, str]] = Counter((key.use, key.state) for key in entries)
        return counted, len(overdue(entries, self._now()))

    # --- What is remembered, for less than a minute ---------------------------------------------

    def _refresh(self) -> None:
        if self._clock() >= self._fresh_until or self._generation != self._keyring.generation:
            self._keyring.refresh()
            self._forget()

    def _forget(self) -> None:
        self._desks: dict[tuple[str, str, str, str], _Desk] = {}
        self._first_keys: dict[str, str] = {}
        now = self._now()
        self._oldest, self._newest = now - _OLDEST, now + _NEWEST
        self._late, self._ahead = now - LATE, now + SKEW
        self._locators: dict[Identifier, bytes] = {}
        self._tags: dict[tuple[str, Identifier], bytes] = {}
        self._generation = self._keyring.generation
        self._fresh_until = self._clock() + CACHE_S

    def _locator(self, subject: Identifier) -> bytes:
        known = self._locators.get(subject)
        if known is None:
            known = pseudonym.locator(self._keyring.secret("locator").expose(), **subject._asdict())
            if len(self._locators) >= _CACHE_TOKENS:
                self._locators.clear()
            self._locators[subject] = known
        return known

    def _tag(self, purpose: str, subject: Identifier) -> bytes:
        known = self._tags.get((purpose, subject))
        if known is None:
            known = pseudonym.suppression_tag(
                self._keyring.secret("suppress").expose(), purpose=purpose, **subject._asdict()
            )
            if len(self._tags) >= _CACHE_TOKENS:
                self._tags.clear()
            self._tags[purpose, subject] = known
        return known

    # --- Upkeep ---------------------------------------------------------------------------------

    def upkeep(self, *, rotate_after: timedelta = ROTATE_AFTER, keep: int = 1) -> Iterator[float]:
        """Do what is due: rotate the wrap key each week, move rows, destroy keys, forget.

        Does one bounded piece at each step; between two the vault answers others. May be left at
        any step: the next call goes on.

        Args:
            rotate_after: Age at which the wrap key is replaced; zero replaces it now.
            keep: How many former wrap keys stay, for backups: 1, or 0 after a compromise.

        Yields:
            How much of the table is done, from 0 to 1.

        Raises:
            VaultError: It cannot be written; call again later.
            KeyringError: The keyset cannot be written; call again later.
        """
        told = self._turns.append
        _upkeep.rotate(self._vault, now=self._now(), after=rotate_after, told=told)
        yield from _upkeep.rewrap(self._vault, keep=keep, told=told)
        _upkeep.forget(self._vault)

    def stats(self) -> Stats:
        """Count what is in the vault. Reads the whole table once.

        Raises:
            VaultError: It cannot be asked.
        """
        return _upkeep.stats(self._vault)

    def backup(self, path: Path) -> Iterator[float]:
        """Copy the vault into a new file; arguments, steps and errors as `vault.upkeep.backup`."""
        return _upkeep.backup(self._vault, path)

    def restore(self, path: Path) -> Iterator[float]:
        """Bring back what a backup has; arguments, steps and errors as `vault.upkeep.restore`."""
        return _upkeep.restore(self._vault, path)

    def close(self) -> None:
        """Let go of the vault and forget what was remembered."""
        self._forget()
        self._keyring.depart()
        self._vault.close()


def open_vault(
    state: Path,
    keyring: Keyring,
    *,
    vault_url: str | None = None,
    journal_url: str | None = None,
    cache_rows: int = CACHE_ROWS,
    repair: Repair = "",
    max_age: Period = MAX_AGE,
) -> Vault:
    """Open the vault of a state folder. Arguments and errors as for `Identity.open` and `Vault`."""
    return Vault(
        vault_url or f"sqlite:///{(state / _VAULT).absolute()}",
        keyring=keyring,
        journal=journal_url or f"sqlite:///{(state / _TOMBSTONES).absolute()}",
        cache_rows=cache_rows,
        repair=repair,
        max_age=max_age,
    )


# --- For roles that resolve nothing ---------------------------------------------------------------


def load_sealer(public: Path) -> Sealer:
    """Give a gateway what it seals identifiers with. It follows the file and its next keys.

    Args:
        public: A ``public.json``.

    Raises:
        KeyringError: It is missing or changed, or HPKE does not work.
    """
    self_test()
    announced = Announced(public)
    key = announced()
    return Sealer(key.raw, key.kid, source=announced)


def load_dead_letter_sealer(public: Path) -> DeadLetterSealer:
    """Give a stage what it seals the originals of dead letters with.

    Raises:
        KeyringError: As `load_sealer`.
    """
    self_test()
    return DeadLetterSealer(PublicKeys.load(public).dead)


def load_held_sealer(public: Path) -> HeldSealer:
    """Give a pseudonymizer what it seals events of subjects on hold with.

    Raises:
        KeyringError: As `load_sealer`.
    """
    self_test()
    return HeldSealer(PublicKeys.load(public).hold)


def load_dead_letter_opener(
    keyset: Path, *, environment: str, custody: Custody | None = None
) -> DeadLetterOpener:
    """Give the place where dead letters are looked at what opens them.

    Args:
        keyset: A ``dead-letter/keyset.json``.
        environment: All but ``development`` refuse development keysets.
        custody: What it is wrapped with; by default ``STATE/custody/kek``.

    Raises:
        KeyringError: No usable keyset.
    """
    return DeadLetterOpener(Keyring.load(keyset, environment=environment, custody=custody))


def load_spool_key(state: Path, *, environment: str, custody: Custody | None = None) -> Secret:
    """Give the embedded log the key of its payloads: 32 bytes in a holder that nothing prints.

    The one key that leaves this package: it opens a local file, never an identity.

    Raises:
        KeyringError: No usable ``keys/spool.json``.
    """
    path = state / _KEYS / _keys.SPOOL
    return Keyring.load(path, environment=environment, custody=custody).secret("spool")


def initialise(state: Path, *, environment: str, custody: Custody) -> bool:
    """Make what is absent of ``STATE/keys``, wrapped by custody. Changes nothing that is there.

    With the default custody its key file is made as well, unless a keyset is there already.

    Returns:
        Whether that file is new: then somebody has to back it up.

    Raises:
        KeyringError: As `initialise_development`; or custody cannot be used.
    """
    made = False
    if custody.made_here and guarded.absent(state / _KEYS / _keys.KEYSET):
        _initialisable(state, custody)
        made = custody.make()
    _initialise(state, environment, custody)
    return made


def initialise_development(state: Path) -> None:
    """Make what is absent of ``STATE/keys``, for development. Changes nothing that is there.

    Raises:
        KeyringError: The folder cannot be written, what is there is wrong, or there is a vault
            whose keyset is gone: with a new one every subject in it would become another.
    """
    _initialise(state, "development", None)


def inspect(state: Path, *, environment: str, custody: Custody | None = None) -> Keyring | None:
    """Look at the keyset without changing anything; None if the first start will make it.

    Raises:
        KeyringError: The start would be refused, for this reason.
    """
    self_test()
    _initialisable(state, custody, make=False)
    keyset = state / _KEYS / _keys.KEYSET
    if not guarded.absent(keyset):
        ring = Keyring.load(keyset, environment=environment, custody=custody)
        PublicKeys.load(keyset.with_name(_keys.PUBLIC))
        return ring
    if custody is not None and not custody.made_here:
        custody.unwrap(custody.wrap(bytes(range(32))))
    return None


def _initialise(state: Path, environment: str, custody: Custody | None) -> None:
    _initialisable(state, custody)
    keyset = state / _KEYS / _keys.KEYSET
    Keyring.ensure(keyset, environment=environment, custody=custody)


def _initialisable(state: Path, custody: Custody | None, *, make: bool = True) -> None:
    folder = state / _KEYS
    keyset = folder / _keys.KEYSET
    try:
        if make:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        raise KeyringError("cannot be made.", path=folder) from None
    if not guarded.absent(keyset):
        return
    if not guarded.absent(state / _VAULT):
        raise KeyringError(
            "is gone, but its vault is there.",
            path=keyset,
            remedy="Restore it from its copy; or remove the vault, which gives every subject new "
            "tokens.",
        )
    # The vault may lie on another host: then only the copy tells that this is no first start.
    if custody is not None and not guarded.absent(custody.backup / _keys.KEYSET):
        raise KeyringError(
            "is gone, but its copy is there.",
            path=keyset,
            remedy=f"Restore it from {custody.backup}, or move that copy away: a new keyset gives "
            "every subject new tokens.",
        )
