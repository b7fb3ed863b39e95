"""The keyset: which keys there are, what each is for, and in which state it is.

Owns the files under ``STATE/keys`` and is the only module that reads or writes them. Knows no
event and no recipient beyond the name of its domain. Files (0600 in folders 0700):

- ``keyset.json``: what the pseudonymizer needs. Token keys are random and independent for each
  (domain, epoch), never derived: a key that can be derived again cannot be destroyed.
- ``spool.json``: the payload key of the embedded log, apart, for roles without identities.
- ``public.json``: public halves only; all that a gateway needs. No secret, so 0644.
- ``dead-letter/keyset.json``: private half for dead letters. Belongs off these hosts.
- ``loaded/INSTANCE.json``: which keys a running process has loaded.

Two formats. ``milchglas-keyset/2``: each secret is wrapped with the file's own random key, and that
one by `custody`, so the file alone tells nothing; a second copy lies in the backup folder.
``milchglas-keyset/1`` is for development: the keys lie in the clear, it says ``"insecure": true``,
and every other environment refuses it.

::

    PRE_ACTIVE ──promote──► PRIMARY ──(another is promoted)──► ENABLED ◄─enable─┐
        │                      │                                 │ └──promote──► PRIMARY
        └──────────────────────┴────────disable──────────────────┴──► DISABLED ─┘
                      PRE_ACTIVE, ENABLED, DISABLED ──destroy──► DESTROYED (a tombstone)

Source:
    Art. 32(1)(a) GDPR; RFC 7517 and RFC 8037 (members ``kty``, ``k``, ``crv``, ``x``, ``d``);
    SDM Baustein 60, M60.P09 and P14 (rules for keys of data to be erased, register of copies).
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hmac import compare_digest
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from telemetry.errors import CapsuleError, KeyringError
from telemetry.identity import guarded
from telemetry.identity.custody import Custody
from telemetry.identity.pseudonym import frame, key_id

__all__ = [
    "DEAD_LETTER",
    "KEYSET",
    "PUBLIC",
    "SPOOL",
    "Announced",
    "Key",
    "Keyring",
    "PublicKey",
    "PublicKeys",
    "Receipt",
    "Secret",
    "Signer",
    "State",
    "Use",
    "default_custody",
]

KEYSET: Final = "keyset.json"
SPOOL: Final = "spool.json"
PUBLIC: Final = "public.json"
DEAD_LETTER: Final = Path("dead-letter", "keyset.json")

Use = Literal[
    "seal", "token", "locator", "suppress", "wrap", "delivery", "dead", "hold", "spool", "audit"
]
State = Literal["PRE_ACTIVE", "PRIMARY", "ENABLED", "DISABLED", "DESTROYED"]

_WRAPPED_FORMAT: Final = "milchglas-keyset/2"
_OPEN_FORMAT: Final = "milchglas-keyset/1"
_PUBLIC_FORMAT: Final = "milchglas-public/2"
_CURVES: Final = {"seal": "X25519", "dead": "X25519", "hold": "X25519", "audit": "Ed25519"}
_USES: Final = frozenset({*_CURVES, "token", "locator", "suppress", "wrap", "delivery", "spool"})
# What a keyset cannot exchange: the index of the vault is made with two of them, the log is
# encrypted with the third, and the fourth is made where dead letters are read.
_FOR_GOOD: Final = {
    "locator": "the vault is indexed with it",
    "suppress": "the vault is indexed with it",
    "spool": "the embedded log is encrypted with it",
    "dead": "its private half belongs elsewhere",
}
_STATES: Final = frozenset({"PRE_ACTIVE", "PRIMARY", "ENABLED", "DISABLED", "DESTROYED"})
# A new key is published before it is promoted, so another process may already use it.
_OPENS: Final = frozenset({"PRE_ACTIVE", "PRIMARY", "ENABLED"})
_MAY_BECOME: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "PRIMARY": (frozenset({"PRE_ACTIVE", "ENABLED"}), "Enable it first."),
    "ENABLED": (frozenset({"DISABLED"}), ""),
    "DISABLED": (frozenset({"PRE_ACTIVE", "PRIMARY", "ENABLED"}), ""),
    "DESTROYED": (
        frozenset({"PRE_ACTIVE", "ENABLED", "DISABLED"}),
        "Promote another in its place, or disable it first.",
    ),
}
_MEMBERS: Final = frozenset(
    {"kid", "use", "domain", "epoch", "version", "state", "kty", "crv", "k", "x", "d", "wrapped"}
    | {"created", "not_before", "not_after", "destroy_after", "copies", "receipt"}
)
_PUBLIC_MEMBERS: Final = frozenset({"kid", "use", "state", "kty", "crv", "x", "not_before"})
_KID = re.compile(r"[0-9a-hjkmnp-tv-z]{8}")
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}@[a-z0-9][a-z0-9_.-]{0,63}")
_EPOCH = re.compile(r"rel|[0-9]{4}q[1-4]")
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_DEVELOPMENT: Final = "development"
_LOADED: Final = "loaded"
_DAY_S: Final = 86_400.0
_LIVING_S: Final = 600.0
"""A process that has not reported for so long is gone; those alive report four times a minute."""
# The pipeline takes events that are up to a day ahead of its clock.
_AHEAD: Final = timedelta(days=2)


class Secret:
    """Bytes that no repr, log line, traceback of ours or pickle shows.

    The bytes leave through `expose` only, so a search for that word finds every use.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def expose(self) -> bytes:
        """Give the bytes to who computes with them."""
        return self._raw

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self._raw)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A secret is not serialized.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a destruction leaves: which key is gone since when, and from where. No key, no id.

    Attributes:
        kid: The key's name; use, domain, epoch, version: its place.
        destroyed_at: Aware time.
        places: Files that were written anew without it.
        awaited: Registered copies that we cannot reach; somebody has to destroy them.
        signed_by: Kid of the audit key; empty if there was none.
        signature: Ed25519 over `statement`, base64url.
    """

    kid: str
    use: str
    domain: str
    epoch: str
    version: int
    destroyed_at: datetime
    places: tuple[str, ...]
    awaited: tuple[str, ...]
    signed_by: str = ""
    signature: str = ""

    def statement(self) -> bytes:
        """Give the bytes that are signed: JSON with sorted names and no white space."""
        said = {name: value for name, value in self.as_json().items() if name != "signature"}
        return json.dumps(
            {**said, "what": "key destroyed"}, sort_keys=True, separators=(",", ":")
        ).encode()

    def verify(self, public: bytes) -> bool:
        """Tell whether the key with this public half (32 bytes) signed it."""
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(
                urlsafe_b64decode(f"{self.signature}=="), self.statement()
            )
        except (InvalidSignature, ValueError):
            return False
        return True

    def as_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "kid": self.kid,
            "use": self.use,
            "domain": self.domain,
            "epoch": self.epoch,
            "version": self.version,
            "destroyed_at": self.destroyed_at.isoformat(),
            "places": list(self.places),
            "awaited": list(self.awaited),
            "signed_by": self.signed_by,
            "signature": self.signature,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One entry of a keyset.

    Attributes:
        kid: Eight characters that tell nothing about the key.
        use: What it is for; a key has one use.
        state: PRE_ACTIVE (published, not used yet), PRIMARY (used for what is new), ENABLED (for
            what is late), DISABLED (kept, used for nothing), DESTROYED (the entry is all that is
            left of it).
        domain: ``purpose@recipient`` for token and delivery keys, else empty.
        epoch: Epoch of a token key, else empty.
        version: Number of a wrap key, from 1; else 0.
        secret: The key, or the private half of a pair; None if it is not here.
        public: The public half of a pair, else empty.
        created: When it was made.
        not_before: Not used before; None if there is no bound. A token key that was used has one.
        not_after: Not used for anything new after; None if there is no bound.
        destroy_after: When it has to be destroyed; None if there is no date yet.
        copies: Where copies of it are (SDM M60.P14).
        receipt: What its destruction left.
    """

    kid: str
    use: Use
    state: State
    domain: str = ""
    epoch: str = ""
    version: int = 0
    secret: Secret | None = None
    public: bytes = b""
    created: datetime
    not_before: datetime | None = None
    not_after: datetime | None = None
    destroy_after: datetime | None = None
    copies: tuple[str, ...] = field(default=())
    receipt: Receipt | None = None

    def __repr__(self) -> str:
        where = "".join(f" {part}" for part in (self.domain, self.epoch) if part)
        return f"Key({self.use} {self.kid} {self.state}{where})"

    @property
    def slot(self) -> tuple[str, str, str]:
        """Where only one key may be PRIMARY."""
        return self.use, self.domain, self.epoch


class Signer:
    """Signs with one audit key (Ed25519, RFC 8032). Ask the keyring anew for each checkpoint.

    Attributes:
        name: ``audit-`` and the kid.
        public: The public half, 32 bytes.
    """

    __slots__ = ("_key", "name", "public")

    def __init__(self, kid: str, private: Secret) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private.expose())
        self.name = f"audit-{kid}"
        self.public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"Signer({self.name})"

    def sign(self, data: bytes) -> bytes:
        """Give the 64 bytes of the signature."""
        return self._key.sign(data)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A secret is not serialized.")


# --- What a gateway reads -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """The public half of a pair: 32 bytes, the name of the pair, and from when it is used."""

    kid: str
    raw: bytes
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKeys:
    """What ``public.json`` holds: enough to seal and to verify, nothing to open with.

    Attributes:
        seal: For capsules of identifiers, now.
        next: What follows it, each from its `not_before`; known 30 days before.
        dead: For the originals of dead letters.
        hold: For events of subjects who are on hold.
        audit: Who may have signed the audit log; the present one first.
    """

    seal: PublicKey
    next: tuple[PublicKey, ...]
    dead: PublicKey
    hold: PublicKey
    audit: tuple[PublicKey, ...]

    def sealing(self, at: datetime) -> PublicKey:
        """Give the key to seal with at an aware time."""
        due = [key for key in self.next if key.not_before is not None and key.not_before <= at]
        return max(due, key=lambda key: key.not_before or at, default=self.seal)

    @classmethod
    def load(cls, path: Path) -> PublicKeys:
        """Read ``public.json``. It holds no secret, so who else may read it does not matter.

        Raises:
            KeyringError: The file is missing, cut off or no file of public keys.
        """
        document = _parse(guarded.read(path, private=False)[0], path)
        if document.get("format") != _PUBLIC_FORMAT or set(document) != {"format", "keys"}:
            raise _wrong(path)
        found: dict[tuple[str, str], list[PublicKey]] = {}
        kids: set[str] = set()
        for entry in _entries(document, path):
            use, state, kid = entry.get("use"), entry.get("state"), entry.get("kid")
            if set(entry) != _PUBLIC_MEMBERS or not isinstance(use, str) or use not in _CURVES:
                raise _wrong(path)
            if (entry["kty"], entry["crv"]) != ("OKP", _CURVES[use]):
                raise _wrong(path)
            if not isinstance(kid, str) or not _KID.fullmatch(kid) or kid in kids:
                raise _wrong(path)
            if not isinstance(state, str) or state not in _STATES:
                raise _wrong(path)
            kids.add(kid)
            key = PublicKey(
                kid=kid,
                raw=_octets(entry["x"], path),
                not_before=_moment(entry["not_before"], path),
            )
            found.setdefault((use, state), []).append(key)
        first = {use: found.pop((use, "PRIMARY"), []) for use in _CURVES}
        coming, former = found.pop(("seal", "PRE_ACTIVE"), []), found.pop(("audit", "ENABLED"), [])
        if found or any(len(keys) != 1 for keys in first.values()):
            raise _wrong(path)
        return cls(
            seal=first["seal"][0],
            next=tuple(coming),
            dead=first["dead"][0],
            hold=first["hold"][0],
            audit=(*first["audit"], *former),
        )


class Announced:
    """``public.json``, followed: gives the sealing key of the hour, also of a file that changes.

    A file that cannot be read for a while changes nothing: what it announced stays announced.

    Args:
        path: The file.
        now: Aware wall clock.

    Raises:
        KeyringError: As `PublicKeys.load`, at the beginning only.
    """

    def __init__(
        self, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._path, self._now = path, now
        self._mark, self.keys = guarded.marked(path), PublicKeys.load(path)

    def __call__(self) -> PublicKey:
        """Give the key to seal with now."""
        with contextlib.suppress(KeyringError):
            mark = guarded.marked(self._path)
            if mark != self._mark:
                self.keys, self._mark = PublicKeys.load(self._path), mark
        return self.keys.sealing(self._now())


# --- The keyring ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _FileKey:
    """What one file's entries are wrapped with, and how it stands there itself."""

    raw: Secret
    wrapped: bytes


class Keyring:
    """The keys of one keyset file, by use. Safe to share between threads.

    Every change is one locked, durable rewrite of the file that other processes see at their next
    `refresh`. Keys for a new domain or epoch are made on demand, on disk before they are used.
    """

    def __init__(
        self,
        path: Path,
        keys: Sequence[Key],
        *,
        mark: object = None,
        environment: str = _DEVELOPMENT,
        custody: Custody | None = None,
        file_key: _FileKey | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path, self._environment, self._now = path, environment, now
        self._custody, self._file_key = custody, file_key
        self._lock = threading.RLock()
        self._alone = 0
        self._mark = mark
        self._keys: tuple[Key, ...] = ()
        self._primary: dict[tuple[str, str, str], Key] = {}
        self._opening: dict[tuple[str, str], Key] = {}
        self._wraps: dict[int, Key] = {}
        self._made: deque[Key] = deque()
        self.generation = 0
        self._adopt(keys)

    def __repr__(self) -> str:
        return f"Keyring({len(self._keys)} keys)"

    @property
    def insecure(self) -> bool:
        """Whether the keys lie in the clear."""
        return self._file_key is None

    # --- Making ---------------------------------------------------------------------------------

    @classmethod
    def ensure(cls, path: Path, *, environment: str, custody: Custody | None) -> Keyring:
        """Load the keyset; make it, and what is absent of the files beside it, if need be.

        A start that was cut short is completed; what is there is never replaced. Each file appears
        whole or not at all: ``dead-letter/keyset.json``, ``spool.json``, the keyset,
        ``public.json``, the copy in the backup folder.

        Args:
            path: Where the keyset is to be; its folder exists.
            environment: Only ``development`` may have keys in the clear.
            custody: What new files are wrapped with; None for a development keyset.

        Raises:
            KeyringError: What is there is wrong, or custody or the folder cannot be used.
        """
        with guarded.locked(path):
            for file in (path, path.with_name(SPOOL), path.parent / DEAD_LETTER):
                guarded.sweep(file)
            if guarded.absent(path):
                cls._make(path, environment, custody)
            ring = cls.load(path, environment=environment, custody=custody)
        ring.settle()
        return ring

    @classmethod
    def _make(cls, path: Path, environment: str, custody: Custody | None) -> None:
        letters, now = path.parent / DEAD_LETTER, datetime.now(UTC)
        for file, use in ((letters, "dead"), (path.parent / SPOOL, "spool")):
            if guarded.absent(file):
                key = _fresh(_use(use), now)
                guarded.replace(file, _document([key], _new_file_key(custody)))
        # What a start that was cut short left behind is used, not replaced.
        dead = cls.load(letters, environment=environment, custody=custody).primary("dead")
        keys = [
            *(_fresh(_use(use), now) for use in ("seal", "locator", "suppress")),
            _fresh("wrap", now, version=1),
            *(_fresh(_use(use), now) for use in ("hold", "audit")),
            replace(dead, secret=None, copies=()),
        ]
        guarded.replace(path, _document(keys, _new_file_key(custody)))

    @classmethod
    def change_custody(
        cls, path: Path, *, environment: str, old: Custody | None, new: Custody
    ) -> None:
        """Wrap the keyset and the files beside it with the key of another custody.

        Idempotent: cut short, ask again with the same two. Keys that lay in the clear until now
        are wrapped, too; whoever could read them before still knows them.

        Args:
            path: The keyset.
            environment: ``development`` if its keys lie in the clear.
            old: What they are wrapped with; None if they lie in the clear.
            new: What they are to be wrapped with. A new key-encryption key needs a new place, or
                nobody can go back.

        Raises:
            KeyringError: A file opens with neither; it is as it was.
        """
        with guarded.locked(path):
            for file in (path.parent / DEAD_LETTER, path.with_name(SPOOL), path):
                if file != path and not file.exists():
                    continue
                guarded.sweep(file)
                with contextlib.suppress(KeyringError):
                    if not cls.load(file, environment=environment, custody=new).insecure:
                        continue
                ring = cls.load(file, environment=environment, custody=old)
                guarded.replace(file, _document(ring.entries(), _new_file_key(new)))
        cls.load(path, environment=environment, custody=new).settle()

    def settle(self) -> None:
        """Bring what lies beside the keyset up to it, and add what an earlier version lacked.

        Idempotent. Also mends what a crash between two files left.

        Raises:
            KeyringError: As `refresh`; or a file cannot be written.
        """
        with self.alone():
            uses: tuple[Use, ...] = ("hold", "audit")
            absent = [use for use in uses if (use, "", "") not in self._primary]
            if absent:
                self._write((*self._keys, *(_fresh(use, self._now()) for use in absent)))
            for file in (self._path, self._path.with_name(PUBLIC)):
                guarded.sweep(file)
            self._settle()

    def publish(self) -> None:
        """Write ``public.json`` beside the keyset, unless it says so already.

        Raises:
            KeyringError: It cannot be written.
        """
        content = self.public_document()
        path = self._path.with_name(PUBLIC)
        with contextlib.suppress(KeyringError):
            if guarded.read(path, private=False)[0] == content:
                return
        guarded.replace(path, content, mode=0o644)

    def public_document(self) -> bytes:
        """Give the bytes of ``public.json``.

        Raises:
            KeyringError: There is no PRIMARY pair of each kind.
        """
        keys = [self.primary(use) for use in ("seal", "dead", "hold", "audit")]
        shown = {("seal", "PRE_ACTIVE"), ("audit", "ENABLED")}
        keys += [key for key in self._keys if (key.use, key.state) in shown]
        entries = [
            {
                "kid": key.kid,
                "use": key.use,
                "state": key.state,
                "kty": "OKP",
                "crv": _CURVES[key.use],
                "x": _text(key.public),
                "not_before": _when(key.not_before),
            }
            for key in keys
        ]
        return _json({"format": _PUBLIC_FORMAT, "keys": entries})

    # --- Loading --------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        environment: str,
        custody: Custody | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Keyring:
        """Read a keyset file.

        Args:
            path: ``keyset.json``, ``spool.json`` or ``dead-letter/keyset.json``.
            environment: All but ``development`` refuse keys that lie in the clear.
            custody: What it is wrapped with; by default `default_custody`.
            now: Aware wall clock.

        Raises:
            KeyringError: The file is missing, empty, cut off, changed, readable by others, not
                ours, or not for this environment; or custody cannot be used or has another key.
        """
        custody = default_custody(path) if custody is None else custody
        keys, mark, file_key = _load(path, environment, custody, None)
        return cls(
            path,
            keys,
            mark=mark,
            environment=environment,
            custody=custody,
            file_key=file_key,
            now=now,
        )

    def refresh(self) -> bool:
        """Read the file again if it changed since.

        Returns:
            Whether it had.

        Raises:
            KeyringError: As `load`; the caller holds its events.
        """
        with self._lock:
            if guarded.marked(self._path) == self._mark:
                return False
            keys, mark, file_key = _load(
                self._path, self._environment, self._custody, self._file_key
            )
            self._mark, self._file_key = mark, file_key
            self._adopt(keys)
            return True

    def _adopt(self, keys: Sequence[Key]) -> None:
        with self._lock:
            self._keys = tuple(keys)
            self._primary = {key.slot: key for key in keys if key.state == "PRIMARY"}
            self._opening = {(key.use, key.kid): key for key in keys if key.state in _OPENS}
            self._wraps = {
                key.version: key for key in keys if key.use == "wrap" and key.state in _OPENS
            }
            self.generation += 1

    # --- Asking ---------------------------------------------------------------------------------

    def entries(self) -> tuple[Key, ...]:
        """All entries, in the order of the file; destroyed ones too."""
        return self._keys

    def primary(self, use: Use) -> Key:
        """Give the key for what is new.

        Raises:
            KeyringError: There is none.
        """
        key = self._primary.get((use, "", ""))
        if key is None:
            raise KeyringError(
                f"has no primary key for {use}.",
                path=self._path,
                remedy="Promote one, or restore the keyset from its copy.",
            )
        return key

    def secret(self, use: Use) -> Secret:
        """Give the secret part of `primary`.

        Raises:
            KeyringError: There is none.
        """
        return self._held(self.primary(use))

    def signer(self) -> Signer:
        """Give what signs for the audit log.

        Raises:
            KeyringError: There is no audit key.
        """
        key = self.primary("audit")
        return Signer(key.kid, self._held(key))

    def opening(self, use: Use, kid: str) -> Secret | None:
        """Give the private half that opens what says `kid`; None if no such key may be used.

        Looks at the file once more before it says None: another process may have added the key.

        Raises:
            KeyringError: The file changed and cannot be read.
        """
        key = self._opening.get((use, kid))
        if key is None and self.refresh():
            key = self._opening.get((use, kid))
        return None if key is None else key.secret

    def retired(self, use: Use, kid: str) -> bool:
        """Tell whether there was such a key and it was disabled or destroyed."""
        return any(
            (key.use, key.kid) == (use, kid) and key.state not in _OPENS for key in self._keys
        )

    def wrap(self, version: int) -> Secret:
        """Give the wrap key with this number.

        Raises:
            CapsuleError: It was destroyed, and what it wrapped with it (``key_destroyed``).
            KeyringError: It is not here or disabled; the caller holds.
        """
        key = self._wraps.get(version)
        if key is None and self.refresh():
            key = self._wraps.get(version)
        if key is None:
            if any(
                (former.use, former.version, former.state) == ("wrap", version, "DESTROYED")
                for former in self._keys
            ):
                raise CapsuleError("key_destroyed")
            raise KeyringError(
                "lacks a wrap key that rows of the vault need.",
                path=self._path,
                remedy="Restore the keyset that belongs to this vault.",
            )
        return self._held(key)

    def token_key(self, domain: str, epoch: str) -> Secret:
        """Give the token key of a domain and epoch; make and persist it if it is the first use.

        Raises:
            KeyringError: Names that are none, a disabled key, or a file that cannot be written.
            CapsuleError: The key was destroyed; what needs it is past its time (``key_destroyed``).
        """
        return self._on_demand("token", domain, epoch)

    def delivery_key(self, domain: str) -> Secret:
        """Give the key of idempotency keys of a domain; made and persisted at first use.

        Raises:
            KeyringError: As `token_key`.
            CapsuleError: As `token_key`.
        """
        return self._on_demand("delivery", domain, "")

    def _on_demand(self, use: Use, domain: str, epoch: str) -> Secret:
        key = self._primary.get((use, domain, epoch))
        if key is not None:
            return self._held(key)
        if not _fits(use, domain, epoch):
            raise KeyringError("A domain is purpose@recipient, an epoch rel or like 2026q4.")
        slot = (use, domain, epoch)
        key = self._without_primary(slot)
        if key is not None:
            return self._held(key)
        # Another process may have made it while we wait for the lock.
        with self.alone():
            key = self._primary.get(slot) or self._without_primary(slot)
            if key is None:
                key = self._first(slot)
            return self._held(key)

    def _without_primary(self, slot: tuple[str, str, str]) -> Key | None:
        """Find what serves in a slot without a primary: for late events, or announced before."""
        former = [key for key in self._keys if key.slot == slot]
        for key in reversed(former):
            if key.state == "ENABLED":
                return key
        for key in former:
            if key.state == "PRE_ACTIVE" and key.not_before is not None:
                if key.not_before <= self._now() + _AHEAD:
                    return key
                raise KeyringError("A key that events need may not be used yet.", path=self._path)
        if any(key.state == "DESTROYED" and key.not_before is not None for key in former):
            # A second key for a closed epoch would give the subject a second token there.
            raise CapsuleError("key_destroyed")
        if any(key.state == "DISABLED" for key in former):
            raise KeyringError("A key that events need is disabled.", path=self._path)
        return None

    def _first(self, slot: tuple[str, str, str]) -> Key:
        """Begin a slot in which no key was ever used: with one that waits there, or a new one."""
        now = self._now().replace(microsecond=0)
        for key in self._keys:
            if key.slot == slot and key.state == "PRE_ACTIVE":
                self._exchange(replace(key, state="PRIMARY", not_before=now))
                return self._one(key.kid)
        use, domain, epoch = slot
        key = replace(_fresh(_use(use), now, domain=domain, epoch=epoch), not_before=now)
        self._write((*self._keys, key))
        self._made.append(key)
        return self._one(key.kid)

    def made(self) -> list[Key]:
        """Give the keys that were made on demand since this was asked last."""
        return [self._made.popleft() for _ in range(len(self._made))]

    def _held(self, key: Key) -> Secret:
        if key.secret is None:
            raise KeyringError(f"does not hold the secret part of {key!r}.", path=self._path)
        return key.secret

    # --- Changing -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep everybody else from changing the keyset; several changes become one decision.

        Reads the file anew first. May be nested.

        Raises:
            KeyringError: As `refresh`.
        """
        with self._lock:
            if self._alone:
                yield
                return
            with guarded.locked(self._path):
                self._alone += 1
                try:
                    self.refresh()
                    yield
                finally:
                    self._alone -= 1

    def create(
        self,
        use: Use,
        *,
        domain: str = "",
        epoch: str = "",
        not_before: datetime | None = None,
        destroy_after: datetime | None = None,
    ) -> Key:
        """Make a key that is known everywhere before it is used: PRE_ACTIVE until `promote`.

        It already opens what another process may have sealed with it.

        Args:
            use: What it is for. A wrap key gets the next version.
            domain: ``purpose@recipient``, for token and delivery keys.
            epoch: ``rel`` or like ``2026q4``, for token keys.
            not_before: When it is to be promoted.
            destroy_after: When it has to be destroyed.

        Raises:
            KeyringError: A key of this use is never exchanged, names do not fit, or the file
                cannot be written.
        """
        if use in _FOR_GOOD:
            raise KeyringError(f"The {use} key has no successor: {_FOR_GOOD[use]}.")
        if use not in _USES or not _fits(use, domain, epoch):
            raise KeyringError("A domain is purpose@recipient, an epoch rel or like 2026q4.")
        with self.alone():
            version = 0
            if use == "wrap":
                # Tombstones count: no row may ever take a new key for an old one.
                version = 1 + max((k.version for k in self._keys if k.use == "wrap"), default=0)
            key = _fresh(use, self._now(), domain=domain, epoch=epoch, version=version)
            while any(key.kid == other.kid for other in self._keys):
                key = _fresh(use, self._now(), domain=domain, epoch=epoch, version=version)
            key = replace(
                key, state="PRE_ACTIVE", not_before=not_before, destroy_after=destroy_after
            )
            self._write((*self._keys, key))
            return self._one(key.kid)

    def promote(
        self, kid: str, *, destroy_former_after: datetime | None = None, force: bool = False
    ) -> Key:
        """Use a key for what is new; the former PRIMARY becomes ENABLED.

        Args:
            kid: A key that is PRE_ACTIVE or ENABLED.
            destroy_former_after: When the former one has to be destroyed.
            force: Do not ask whether all running processes have loaded it.

        Raises:
            KeyringError: There is no such key, its state forbids it, a running process has not
                loaded it yet, or the file cannot be written.
        """
        with self.alone():
            key = self._turned(kid, "PRIMARY")
            if not force and (lacking := self.lacking(kid)):
                raise KeyringError(
                    f"{key!r} is not loaded yet by {', '.join(lacking)}.",
                    remedy="Wait a minute and promote again.",
                )
            now = self._now().replace(microsecond=0)
            former = self._primary.get(key.slot)
            early = key.not_before is None or key.not_before > now
            key = replace(
                key,
                state="PRIMARY",
                not_before=now if early else key.not_before,
                not_after=None,
                destroy_after=None if key.state == "ENABLED" else key.destroy_after,
            )
            changed = [key]
            if former is not None:
                ends = former.destroy_after or destroy_former_after
                changed.append(replace(former, state="ENABLED", not_after=now, destroy_after=ends))
            self._exchange(*changed)
            return self._one(kid)

    def enable(self, kid: str) -> Key:
        """Let a disabled key open and serve what is late again.

        Raises:
            KeyringError: There is no such key, it is not DISABLED, or the file cannot be written.
        """
        with self.alone():
            self._exchange(replace(self._turned(kid, "ENABLED"), state="ENABLED"))
            return self._one(kid)

    def disable(self, kid: str) -> Key:
        """Use a key for nothing any more, but keep it. What needs a disabled PRIMARY holds.

        Raises:
            KeyringError: There is no such key, its state forbids it, or the file cannot be written.
        """
        with self.alone():
            self._exchange(replace(self._turned(kid, "DISABLED"), state="DISABLED"))
            return self._one(kid)

    def schedule(self, kid: str, destroy_after: datetime) -> Key:
        """Write down when a key has to be destroyed.

        Raises:
            KeyringError: There is no such key, or the file cannot be written.
        """
        with self.alone():
            self._exchange(replace(self._one(kid), destroy_after=destroy_after))
            return self._one(kid)

    def destroy(self, kid: str) -> Receipt:
        """Destroy a key. A tombstone stays, with a signed receipt. Nothing takes this back.

        The copy in the backup folder goes first, so that the receipt tells what is true when it
        appears.

        Raises:
            KeyringError: There is no such key, it is PRIMARY, it is one that is never exchanged,
                or a file cannot be written: ask again.
        """
        with self.alone():
            key = self._turned(kid, "DESTROYED")
            if key.use in _FOR_GOOD:
                raise KeyringError(
                    f"The {key.use} key has no successor: {_FOR_GOOD[key.use]}.",
                    remedy="To destroy everything, remove keys, custody, backup and vault.",
                )
            places, ours = [str(self._path)], self._backup()
            if ours is not None:
                places.append(str(ours))
            receipt = Receipt(
                kid=key.kid,
                use=key.use,
                domain=key.domain,
                epoch=key.epoch,
                version=key.version,
                destroyed_at=self._now().replace(microsecond=0),
                places=tuple(places),
                awaited=tuple(place for place in key.copies if place not in places),
            )
            audit = self._primary.get(("audit", "", ""))
            if audit is not None and audit.secret is not None:
                receipt = replace(receipt, signed_by=audit.kid)
                signed = Signer(audit.kid, audit.secret).sign(receipt.statement())
                receipt = replace(receipt, signature=_text(signed))
            stone = replace(key, state="DESTROYED", secret=None, receipt=receipt)
            self._exchange(stone, backup_first=True)
            return receipt

    def note_copy(self, place: str, *, kids: Sequence[str] = ()) -> None:
        """Register a copy that somebody made of the keyset, so that a destruction names it.

        Args:
            place: Where it is, in words or as a path.
            kids: Which keys are there; by default all that are here.

        Raises:
            KeyringError: No such key, or the file cannot be written.
        """
        with self.alone():
            chosen = [self._one(kid) for kid in kids] or list(self._keys)
            self._exchange(
                *(
                    replace(key, copies=(*key.copies, place))
                    for key in chosen
                    if key.secret is not None and place not in key.copies
                )
            )

    def drop_copy(self, place: str) -> None:
        """Take a copy out of the register: it was destroyed.

        Receipts that awaited it stay as they were signed.

        Raises:
            KeyringError: The file cannot be written.
        """
        with self.alone():
            self._exchange(
                *(
                    replace(key, copies=tuple(other for other in key.copies if other != place))
                    for key in self._keys
                    if place in key.copies
                )
            )

    def _one(self, kid: str) -> Key:
        for key in self._keys:
            if key.kid == kid:
                return key
        raise KeyringError("has no key of that name.", path=self._path)

    def _turned(self, kid: str, state: State) -> Key:
        """Give a key whose state may become another."""
        key, (former, remedy) = self._one(kid), _MAY_BECOME[state]
        if key.state not in former:
            raise KeyringError(f"{key!r} cannot become {state}.", remedy=remedy)
        if (key.state, state) == ("PRIMARY", "DISABLED") and key.use in _CURVES:
            # Gateways would go on sealing with it, and nothing would open that.
            raise KeyringError(
                f"{key!r} cannot become {state}.", remedy="Promote another in its place first."
            )
        return key

    def _exchange(self, *changed: Key, backup_first: bool = False) -> None:
        by_kid = {key.kid: key for key in changed}
        self._write([by_kid.get(key.kid, key) for key in self._keys], backup_first=backup_first)

    def _write(self, keys: Sequence[Key], *, backup_first: bool = False) -> None:
        """Put another content in place, then what follows from it. Only within `alone`."""
        backup = self._backup()
        if backup is not None:
            place = str(backup)
            keys = [
                key
                if key.secret is None or place in key.copies
                else replace(key, copies=(*key.copies, place))
                for key in keys
            ]
            self._same_keyset(self._path.name, backup)
        guarded.sweep(self._path)
        content = _document(keys, self._file_key)
        if backup is not None and backup_first:
            guarded.replace(backup, content)
        guarded.replace(self._path, content)
        self._mark = guarded.marked(self._path)
        self._adopt(keys)
        self._settle()

    def _settle(self) -> None:
        """Bring the public file and the copy in the backup folder up to the keyset."""
        if self._path.name != KEYSET or self._path.parent.name == DEAD_LETTER.parent.name:
            return
        self.publish()
        backup = self._backup()
        if backup is None:
            return
        spool = self._path.with_name(SPOOL)
        for file, copy in ((self._path, backup), (spool, backup.with_name(SPOOL))):
            if guarded.absent(file):
                continue
            content, there = guarded.read(file)[0], b""
            with contextlib.suppress(KeyringError):
                there = guarded.read(copy)[0]
            if content != there:
                self._same_keyset(file.name, copy)
                guarded.replace(copy, content)
            if copy.parent.is_dir():
                guarded.sweep(copy)

    def _same_keyset(self, name: str, copy: Path) -> None:
        """Refuse to replace the copy of another keyset: it may be the last one of its keys.

        The key that never changes tells: ``locator`` of a keyset, ``spool`` of its spool file.
        """
        if guarded.absent(copy) or not copy.stat().st_size:
            return
        theirs = _for_good(guarded.read(copy, private=False)[0], copy)
        own = self._path.with_name(name)
        if theirs and theirs != _for_good(guarded.read(own)[0], own):
            raise KeyringError(
                "is the copy of another keyset, and may be the last one of its keys.",
                path=copy,
                remedy="Restore it in the place of this keyset, or move it away.",
            )

    def _backup(self) -> Path | None:
        """Where the second copy is; keys in the clear are not copied about."""
        if self._custody is None or self.insecure:
            return None
        return self._custody.backup / KEYSET

    # --- Running processes ----------------------------------------------------------------------

    def report(self) -> None:
        """Tell the others, beside the keyset, which keys this process has loaded.

        Raises:
            KeyringError: It cannot be written.
        """
        kids = sorted(key.kid for key in self._keys if key.state in _OPENS)
        for path in (self._path.parent / _LOADED).glob("*.json"):
            # What was killed took nothing back.
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _DAY_S:
                    path.unlink()
        guarded.replace(self._report_path(), _json({"kids": kids, "at": time.time()}))

    def depart(self) -> None:
        """Take the report back: this process ends."""
        with contextlib.suppress(OSError):
            self._report_path().unlink(missing_ok=True)

    def lacking(self, kid: str) -> tuple[str, ...]:
        """Name the running processes that have not loaded a key yet."""
        found: list[str] = []
        for path in sorted((self._path.parent / _LOADED).glob("*.json")):
            try:
                said = json.loads(path.read_bytes())
                at, kids = float(said["at"]), said["kids"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if kid not in kids and time.time() - at < _LIVING_S and not _gone(path.stem):
                found.append(path.stem)
        return tuple(found)

    def _report_path(self) -> Path:
        return self._path.parent / _LOADED / f"{_instance(os.getpid())}.json"


def _instance(pid: int) -> str:
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]
    return f"{host}-{pid}"


def _gone(instance: str) -> bool:
    """Tell whether an instance is this process, or one of this host that ended without a word."""
    pid = instance.rpartition("-")[2]
    if not pid.isdecimal() or instance != _instance(int(pid)):
        return False
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


# --- Entries of a keyset --------------------------------------------------------------------------


def default_custody(path: Path) -> Custody:
    """Custody of a keyset for which none is configured: a file beside its ``keys`` folder."""
    folder = path.parent.parent if path.parent.name == DEAD_LETTER.parent.name else path.parent
    return Custody(state=folder.parent)


def _use(word: str) -> Use:
    if word not in _USES:
        raise KeyringError("There is no such use of a key.")
    use: Use = word  # type: ignore[assignment]  # it is one of them
    return use


def _fits(use: str, domain: str, epoch: str) -> bool:
    domain_fits = bool(_DOMAIN.fullmatch(domain)) if use in {"token", "delivery"} else not domain
    return domain_fits and (bool(_EPOCH.fullmatch(epoch)) if use == "token" else not epoch)


def _fresh(use: Use, now: datetime, *, domain: str = "", epoch: str = "", version: int = 0) -> Key:
    raw = secrets.token_bytes(_KEY_BYTES)
    return Key(
        kid=key_id(raw),
        use=use,
        state="PRIMARY",
        domain=domain,
        epoch=epoch,
        version=version,
        secret=Secret(raw),
        public=_public_half(use, raw),
        created=now.astimezone(UTC).replace(microsecond=0),
    )


def _public_half(use: str, private: bytes) -> bytes:
    curve = _CURVES.get(use)
    if curve == "X25519":
        return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    if curve == "Ed25519":
        return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    return b""


def _new_file_key(custody: Custody | None) -> _FileKey | None:
    if custody is None:
        return None
    raw = secrets.token_bytes(_KEY_BYTES)
    return _FileKey(Secret(raw), custody.wrap(raw))


def _load(
    path: Path, environment: str, custody: Custody | None, known: _FileKey | None
) -> tuple[list[Key], object, _FileKey | None]:
    raw, mark = guarded.read(path)
    document = _parse(raw, path)
    file_key: _FileKey | None = None
    if document.get("format") == _OPEN_FORMAT:
        # A claim to be better is not believed.
        if set(document) != {"format", "insecure", "keys"} or document["insecure"] is not True:
            raise _wrong(path)
        if environment.strip().casefold() != _DEVELOPMENT:
            raise KeyringError(
                "holds its keys in the clear, which is for development only.",
                path=path,
                remedy="Use another state folder, or wrap these: docs/keys.md, From development.",
            )
    elif document.get("format") == _WRAPPED_FORMAT:
        if set(document) != {"format", "file_key", "keys"}:
            raise _wrong(path)
        wrapped = _bytes(document["file_key"], path)
        if known is not None and known.wrapped == wrapped:
            file_key = known  # custody is asked once for each file key, not for each change
        elif custody is None:
            raise KeyringError("is wrapped, and no custody is configured.", path=path)
        else:
            file_key = _FileKey(Secret(custody.unwrap(wrapped)), wrapped)
    else:
        raise _wrong(path)
    keys = [_entry(entry, path, file_key) for entry in _entries(document, path)]
    primaries = [key.slot for key in keys if key.state == "PRIMARY"]
    kids = [key.kid for key in keys]
    versions = [key.version for key in keys if key.use == "wrap"]
    for unique in (primaries, kids, versions):
        if len(set(unique)) != len(unique):
            raise _wrong(path)
    return keys, mark, file_key


def _document(keys: Sequence[Key], file_key: _FileKey | None) -> bytes:
    entries = [_members(key, file_key) for key in keys]
    if file_key is None:
        return _json({"format": _OPEN_FORMAT, "insecure": True, "keys": entries})
    return _json({"format": _WRAPPED_FORMAT, "file_key": _text(file_key.wrapped), "keys": entries})


def _members(key: Key, file_key: _FileKey | None) -> dict[str, Any]:
    members: dict[str, Any] = {
        "kid": key.kid,
        "use": key.use,
        "domain": key.domain,
        "epoch": key.epoch,
        "version": key.version,
        "state": key.state,
        "created": _when(key.created),
        "not_before": _when(key.not_before),
        "not_after": _when(key.not_after),
        "destroy_after": _when(key.destroy_after),
        "copies": list(key.copies),
    }
    if key.receipt is not None:
        members["receipt"] = key.receipt.as_json()
    curve = _CURVES.get(key.use)
    if curve is None:
        members |= {"kty": "oct"}
    else:
        members |= {"kty": "OKP", "crv": curve, "x": _text(key.public)}
    if key.secret is not None:
        raw = key.secret.expose()
        if file_key is None:
            members["k" if curve is None else "d"] = _text(raw)
        else:
            nonce = secrets.token_bytes(_NONCE_BYTES)
            cipher = AESGCMSIV(file_key.raw.expose())
            members["wrapped"] = _text(nonce + cipher.encrypt(nonce, raw, _entry_binding(key)))
    return members


def _entry_binding(key: Key) -> bytes:
    """What an entry is bound to: a secret under another name or use does not open."""
    version = key.version.to_bytes(4, "big")
    return frame("tps/v1/keyset", key.kid, key.use, key.domain, key.epoch, version)


def _entry(members: Mapping[str, Any], path: Path, file_key: _FileKey | None) -> Key:
    words = {name: members.get(name, "") for name in ("use", "state", "kid", "domain", "epoch")}
    if not set(members) <= _MEMBERS or not all(isinstance(word, str) for word in words.values()):
        raise _wrong(path)
    use, state, kid, domain, epoch = words.values()
    if use not in _USES or state not in _STATES or not _KID.fullmatch(kid):
        raise _wrong(path)
    version, copies = members.get("version", 0), members.get("copies", [])
    if not _fits(use, domain, epoch):
        raise _wrong(path)
    if type(version) is not int or (version > 0) is not (use == "wrap") or version >= 1 << 32:
        raise _wrong(path)
    if not isinstance(copies, list) or not all(isinstance(place, str) for place in copies):
        raise _wrong(path)
    created = _moment(members.get("created"), path)
    if created is None:
        raise _wrong(path)
    key = Key(
        kid=kid,
        use=use,
        state=state,
        domain=domain,
        epoch=epoch,
        version=version,
        created=created,
        not_before=_moment(members.get("not_before"), path),
        not_after=_moment(members.get("not_after"), path),
        destroy_after=_moment(members.get("destroy_after"), path),
        copies=tuple(copies),
        receipt=_receipt(members.get("receipt"), path),
    )
    public, secret = _material(key, members, path, file_key)
    # Only the pair for dead letters is meant to be here without its private half.
    if (secret is None) is not (state == "DESTROYED") and not (use == "dead" and public):
        raise _wrong(path)
    return replace(key, public=public, secret=secret)


def _material(
    key: Key, members: Mapping[str, Any], path: Path, file_key: _FileKey | None
) -> tuple[bytes, Secret | None]:
    """Give the public and the secret part of an entry; each has to fit the other and the name."""
    curve = _CURVES.get(key.use)
    name = ("k" if curve is None else "d") if file_key is None else "wrapped"
    expected = ("oct", None) if curve is None else ("OKP", curve)
    others = {"k", "d", "wrapped", "x"} - {name} - ({"x"} if curve else set())
    if (members.get("kty"), members.get("crv")) != expected or others & set(members):
        raise _wrong(path)
    public = b"" if curve is None else _octets(members.get("x"), path)
    if name not in members:
        return public, None
    if file_key is None:
        raw = _octets(members[name], path)
    else:
        wrapped = _bytes(members[name], path)
        try:
            raw = AESGCMSIV(file_key.raw.expose()).decrypt(
                wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _entry_binding(key)
            )
        except (InvalidTag, ValueError):
            raise _wrong(path) from None
    if len(raw) != _KEY_BYTES or not compare_digest(key_id(raw), key.kid):
        raise _wrong(path)
    if _public_half(key.use, raw) != public:
        raise _wrong(path)
    return public, Secret(raw)


def _receipt(value: object, path: Path) -> Receipt | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong(path)
    said = dict(value)
    try:
        at = _moment(said.pop("destroyed_at"), path)
        places, awaited = tuple(said.pop("places")), tuple(said.pop("awaited"))
        if at is None:
            raise _wrong(path)
        return Receipt(destroyed_at=at, places=places, awaited=awaited, **said)
    except (KeyError, TypeError):
        raise _wrong(path) from None


def _octets(value: object, path: Path) -> bytes:
    """Read 32 bytes of base64url without padding, in their one form."""
    raw = _bytes(value, path)
    if len(raw) != _KEY_BYTES:
        raise _wrong(path)
    return raw


def _bytes(value: object, path: Path) -> bytes:
    try:
        raw = urlsafe_b64decode(f"{value}===") if isinstance(value, str) else b""
    except (ValueError, binascii.Error):
        raw = b""
    if not raw or _text(raw) != value:
        raise _wrong(path)
    return raw


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _when(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(value: object, path: Path) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise _wrong(path)
    return moment


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _wrong(path) from None
    if not isinstance(document, dict):
        raise _wrong(path)
    return document


def _for_good(raw: bytes, path: Path) -> set[str]:
    """Name the keys of a file that never change; none if it was cut off or is no keyset."""
    try:
        entries = _entries(_parse(raw, path), path)
    except (KeyringError, KeyError):
        return set()
    return {str(entry.get("kid")) for entry in entries if entry.get("use") in {"locator", "spool"}}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def _entries(document: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    entries = document["keys"]
    if not isinstance(entries, list) or not entries:
        raise _wrong(path)
    if not all(isinstance(entry, dict) for entry in entries):
        raise _wrong(path)
    return entries


def _wrong(path: Path) -> KeyringError:
    # Never tells which member or what stood there: it could be a key.
    return KeyringError(
        "is no keyset of this version, or was cut off or changed.",
        path=path,
        remedy="Restore it from its copy.",
    )
