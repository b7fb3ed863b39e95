"""The keyset: which keys there are, what each is for, and in which state it is.

Owns the files under ``STATE/keys`` and is the only module that reads or writes them. Knows no
event and no recipient beyond the name of its domain. Files (0600 in folders 0700):

- ``keyset.json``: what the pseudonymizer needs. Token keys are random and independent for each
  (domain, epoch), never derived: a key that can be derived again cannot be destroyed.
- ``spool.json``: the payload key of the embedded log, apart, for roles without identities.
- ``public.json``: public halves only; all that a gateway needs. No secret, so 0644.
- ``dead-letter/keyset.json``: private half for dead letters. Belongs off these hosts.

This version writes *development* keysets: their keys lie in the clear, so they say
``"insecure": true`` and are refused in production. A reader refuses any member it does not know,
so a later form of custody (wrapped keys) can never be mistaken for this one.

Source:
    Art. 32(1)(a) GDPR; RFC 7517 and RFC 8037 (members ``kty``, ``k``, ``crv``, ``x``, ``d``);
    SDM Baustein 60, M60.P09 and P14 (rules for keys of data to be erased, register of copies).
"""

from __future__ import annotations

import binascii
import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from telemetry.errors import CapsuleError, KeyringError
from telemetry.identity.pseudonym import key_id

__all__ = [
    "DEAD_LETTER",
    "KEYSET",
    "PUBLIC",
    "SPOOL",
    "Key",
    "Keyring",
    "PublicKey",
    "PublicKeys",
    "Secret",
    "State",
    "Use",
]

KEYSET: Final = "keyset.json"
SPOOL: Final = "spool.json"
PUBLIC: Final = "public.json"
DEAD_LETTER: Final = Path("dead-letter", "keyset.json")

Use = Literal["seal", "token", "locator", "suppress", "wrap", "delivery", "dead", "spool"]
State = Literal["PRE_ACTIVE", "PRIMARY", "ENABLED", "DISABLED", "DESTROYED"]

_FORMAT: Final = "milchglas-keyset/1"
_PUBLIC_FORMAT: Final = "milchglas-public/1"
_PAIRS: Final = frozenset({"seal", "dead"})
_USES: Final = frozenset(
    {"seal", "token", "locator", "suppress", "wrap", "delivery", "dead", "spool"}
)
_STATES: Final = frozenset({"PRE_ACTIVE", "PRIMARY", "ENABLED", "DISABLED", "DESTROYED"})
# A new key is published before it is promoted, so another process may already use it.
_OPENS: Final = frozenset({"PRE_ACTIVE", "PRIMARY", "ENABLED"})
_MEMBERS: Final = frozenset(
    {"kid", "use", "domain", "epoch", "version", "state", "kty", "crv", "k", "x", "d"}
    | {"created", "not_before", "not_after", "destroy_after", "copies"}
)
_PUBLIC_MEMBERS: Final = frozenset({"kid", "use", "state", "kty", "crv", "x"})
_KID = re.compile(r"[0-9a-hjkmnp-tv-z]{8}")
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}@[a-z0-9][a-z0-9_.-]{0,63}")
_EPOCH = re.compile(r"rel|[0-9]{4}q[1-4]")
_KEY_BYTES: Final = 32
_FILE_BYTES: Final = 4 * 1024 * 1024
_PRODUCTION: Final = frozenset({"production", "prod", "live"})


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
        not_before: Not used before; None if there is no bound.
        not_after: Not used for anything new after; None if there is no bound.
        destroy_after: When it has to be destroyed; None if there is no date yet.
        copies: Where copies of it are (SDM M60.P14).
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

    def __repr__(self) -> str:
        where = "".join(f" {part}" for part in (self.domain, self.epoch) if part)
        return f"Key({self.use} {self.kid} {self.state}{where})"

    @property
    def slot(self) -> tuple[str, str, str]:
        """Where only one key may be PRIMARY."""
        return self.use, self.domain, self.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """The public half of a pair: 32 bytes of X25519 and the name of the pair."""

    kid: str
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKeys:
    """What ``public.json`` holds: enough to seal, nothing to open with.

    Attributes:
        seal: For capsules of identifiers.
        dead: For the originals of dead letters.
    """

    seal: PublicKey
    dead: PublicKey

    @classmethod
    def load(cls, path: Path) -> PublicKeys:
        """Read ``public.json``. It holds no secret, so who else may read it does not matter.

        Raises:
            KeyringError: The file is missing, cut off or no file of public keys.
        """
        document = _parse(_read(path, private=False), path)
        if document.get("format") != _PUBLIC_FORMAT or set(document) != {"format", "keys"}:
            raise _wrong(path)
        found: dict[str, PublicKey] = {}
        for entry in _entries(document, path):
            use = entry.get("use")
            if set(entry) != _PUBLIC_MEMBERS or use not in ("seal", "dead") or use in found:
                raise _wrong(path)
            if (entry["kty"], entry["crv"], entry["state"]) != ("OKP", "X25519", "PRIMARY"):
                raise _wrong(path)
            kid = entry["kid"]
            if not isinstance(kid, str) or not _KID.fullmatch(kid):
                raise _wrong(path)
            found[use] = PublicKey(kid=kid, raw=_octets(entry["x"], path))
        if set(found) != _PAIRS:
            raise _wrong(path)
        return cls(seal=found["seal"], dead=found["dead"])


class Keyring:
    """The keys of one keyset file, by use. Safe to share between threads.

    Keys for a new domain or epoch are made on demand and are on disk before they are first used.
    """

    def __init__(self, path: Path, keys: Sequence[Key], *, mark: object = None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._mark = mark
        self._keys: tuple[Key, ...] = ()
        self._primary: dict[tuple[str, str, str], Key] = {}
        self._opening: dict[tuple[str, str], Key] = {}
        self._wraps: dict[int, Key] = {}
        self.generation = 0
        self._adopt(keys)

    def __repr__(self) -> str:
        return f"Keyring({len(self._keys)} keys)"

    # --- Making ---------------------------------------------------------------------------------

    @classmethod
    def create_development(cls, path: Path) -> Keyring:
        """Make a keyset whose keys lie in the clear, and the files beside it.

        Writes, in this order, what is absent: ``dead-letter/keyset.json``, ``spool.json``, the
        keyset, ``public.json``. Each file appears whole or not at all.

        Args:
            path: Where the keyset is to be; its folder exists.

        Raises:
            KeyringError: There is one already, or the folder cannot be written.
        """
        with _locked(path):
            if path.exists():
                raise KeyringError("There is a keyset already.", path=path)
            return cls._make(path)

    @classmethod
    def ensure_development(cls, path: Path) -> Keyring:
        """Load the development keyset, or make it and the files beside it if it is absent.

        Raises:
            KeyringError: What is there is wrong, or the folder cannot be written.
        """
        with _locked(path):
            if not path.exists():
                return cls._make(path)
            ring = cls.load(path, environment="development")
            if not path.with_name(PUBLIC).exists():
                ring.publish()
            return ring

    @classmethod
    def _make(cls, path: Path) -> Keyring:
        letters = path.parent / DEAD_LETTER
        _create(letters, [_pair("dead")])
        _create(path.parent / SPOOL, [_symmetric("spool")])
        # What a start that was cut short left behind is used, not replaced.
        dead = cls.load(letters, environment="development").primary("dead")
        keys = [
            _pair("seal"),
            _symmetric("locator"),
            _symmetric("suppress"),
            _symmetric("wrap", version=1),
            replace(dead, secret=None),
        ]
        _create(path, keys)
        ring = cls.load(path, environment="development")
        ring.publish()
        return ring

    def publish(self) -> None:
        """Write ``public.json`` beside the keyset, from its PRIMARY pairs."""
        keys = [
            {
                "kid": key.kid,
                "use": key.use,
                "state": key.state,
                "kty": "OKP",
                "crv": "X25519",
                "x": _text(key.public),
            }
            for key in (self.primary("seal"), self.primary("dead"))
        ]
        _replace(
            self._path.with_name(PUBLIC),
            {"format": _PUBLIC_FORMAT, "keys": keys},
            mode=0o644,
        )

    # --- Loading --------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path, *, environment: str) -> Keyring:
        """Read a keyset file.

        Args:
            path: ``keyset.json``, ``spool.json`` or ``dead-letter/keyset.json``.
            environment: ``production`` refuses keys that lie in the clear.

        Raises:
            KeyringError: The file is missing, empty, cut off, changed, readable by others, not
                ours, or not for this environment.
        """
        raw, mark = _read_marked(path)
        document = _parse(raw, path)
        if document.get("format") != _FORMAT or set(document) != {"format", "insecure", "keys"}:
            raise _wrong(path)
        if document["insecure"] is not True:
            # Only development keysets exist so far; a claim to be better is not believed.
            raise _wrong(path)
        if environment.strip().casefold() in _PRODUCTION:
            raise KeyringError(
                "holds its keys in the clear, which is for development only.",
                path=path,
                remedy="This version makes development keys only: see docs/limitations.md.",
            )
        keys = [_entry(entry, path) for entry in _entries(document, path)]
        primaries = [key.slot for key in keys if key.state == "PRIMARY"]
        kids = [(key.use, key.kid) for key in keys]
        versions = [key.version for key in keys if key.use == "wrap"]
        for unique in (primaries, kids, versions):
            if len(set(unique)) != len(unique):
                raise _wrong(path)
        return cls(path, keys, mark=mark)

    def refresh(self) -> bool:
        """Read the file again if it changed since.

        Returns:
            Whether it had.

        Raises:
            KeyringError: As `load`; the caller holds its events.
        """
        with self._lock:
            try:
                mark = _mark(os.stat(self._path))  # noqa: PTH116 - beside os.fstat of the reader
            except OSError:
                raise _unreadable(self._path) from None
            if mark == self._mark:
                return False
            # The environment was checked when this object was made.
            fresh = Keyring.load(self._path, environment="development")
            self._mark = fresh._mark  # noqa: SLF001 - one of us
            self._adopt(fresh._keys)  # noqa: SLF001
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
                remedy="Restore the keyset from its copy.",
            )
        return key

    def secret(self, use: Use) -> Secret:
        """Give the secret part of `primary`.

        Raises:
            KeyringError: There is none.
        """
        return self._held(self.primary(use))

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
        if not _DOMAIN.fullmatch(domain) or (use == "token" and not _EPOCH.fullmatch(epoch)):
            raise KeyringError("A domain is purpose@recipient, an epoch rel or like 2026q4.")
        with self._lock, _locked(self._path):
            # Another process may have made it while we waited for the lock.
            self.refresh()
            slot = (use, domain, epoch)
            key = self._primary.get(slot)
            if key is None:
                key = self._retired(slot)
            if key is None:
                key = _symmetric(use, domain=domain, epoch=epoch)
                keys = (*self._keys, key)
                _replace(self._path, _document(keys))
                self._mark = _mark(os.stat(self._path))  # noqa: PTH116
                self._adopt(keys)
            return self._held(key)

    def _retired(self, slot: tuple[str, str, str]) -> Key | None:
        """Find a key for late events in a slot without a primary."""
        former = [key for key in self._keys if key.slot == slot]
        for key in reversed(former):
            if key.state == "ENABLED":
                return key
        if any(key.state == "DESTROYED" for key in former):
            # A second key for a closed epoch would give the subject a second token there.
            raise CapsuleError("key_destroyed")
        if former:
            raise KeyringError("A key that events need is disabled.", path=self._path)
        return None

    def _held(self, key: Key) -> Secret:
        if key.secret is None:
            raise KeyringError(f"does not hold the secret part of {key!r}.", path=self._path)
        return key.secret


# --- Entries of a keyset --------------------------------------------------------------------------


def _symmetric(use: Use, *, domain: str = "", epoch: str = "", version: int = 0) -> Key:
    raw = secrets.token_bytes(_KEY_BYTES)
    return Key(
        kid=key_id(raw),
        use=use,
        state="PRIMARY",
        domain=domain,
        epoch=epoch,
        version=version,
        secret=Secret(raw),
        created=datetime.now(UTC).replace(microsecond=0),
    )


def _pair(use: Use) -> Key:
    raw = secrets.token_bytes(_KEY_BYTES)
    return replace(_symmetric(use), kid=key_id(raw), secret=Secret(raw), public=_public_half(raw))


def _public_half(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _document(keys: Sequence[Key]) -> dict[str, Any]:
    return {"format": _FORMAT, "insecure": True, "keys": [_members(key) for key in keys]}


def _members(key: Key) -> dict[str, Any]:
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
    if key.use in _PAIRS:
        members |= {"kty": "OKP", "crv": "X25519", "x": _text(key.public)}
    else:
        members |= {"kty": "oct"}
    if key.secret is not None:
        members["d" if key.use in _PAIRS else "k"] = _text(key.secret.expose())
    return members


def _entry(members: Mapping[str, Any], path: Path) -> Key:
    words = {name: members.get(name, "") for name in ("use", "state", "kid", "domain", "epoch")}
    if not set(members) <= _MEMBERS or not all(isinstance(word, str) for word in words.values()):
        raise _wrong(path)
    use, state, kid, domain, epoch = words.values()
    if use not in _USES or state not in _STATES or not _KID.fullmatch(kid):
        raise _wrong(path)
    version, copies = members.get("version", 0), members.get("copies", [])
    domain_fits = bool(_DOMAIN.fullmatch(domain)) if use in {"token", "delivery"} else not domain
    epoch_fits = bool(_EPOCH.fullmatch(epoch)) if use == "token" else not epoch
    if not domain_fits or not epoch_fits:
        raise _wrong(path)
    if type(version) is not int or (version > 0) is not (use == "wrap") or version >= 1 << 32:
        raise _wrong(path)
    if not isinstance(copies, list) or not all(isinstance(place, str) for place in copies):
        raise _wrong(path)
    public, secret = _material(members, path, pair=use in _PAIRS)
    if secret is not None and not compare_digest(key_id(secret.expose()), kid):
        raise _wrong(path)
    # Only the pair for dead letters is meant to be here without its private half.
    if (secret is None) is not (state == "DESTROYED") and not (use == "dead" and public):
        raise _wrong(path)
    created = _moment(members.get("created"), path)
    if created is None:
        raise _wrong(path)
    return Key(
        kid=kid,
        use=use,
        state=state,
        domain=domain,
        epoch=epoch,
        version=version,
        secret=secret,
        public=public,
        created=created,
        not_before=_moment(members.get("not_before"), path),
        not_after=_moment(members.get("not_after"), path),
        destroy_after=_moment(members.get("destroy_after"), path),
        copies=tuple(copies),
    )


def _material(members: Mapping[str, Any], path: Path, *, pair: bool) -> tuple[bytes, Secret | None]:
    name = "d" if pair else "k"
    if not pair:
        if members.get("kty") != "oct" or {"crv", "x", "d"} & set(members):
            raise _wrong(path)
    elif (members.get("kty"), members.get("crv")) != ("OKP", "X25519") or "k" in members:
        raise _wrong(path)
    secret = Secret(_octets(members[name], path)) if name in members else None
    public = _octets(members.get("x"), path) if pair else b""
    if pair and secret is not None and _public_half(secret.expose()) != public:
        raise _wrong(path)
    return public, secret


def _octets(value: object, path: Path) -> bytes:
    """Read 32 bytes of base64url without padding, in their one form."""
    try:
        raw = urlsafe_b64decode(f"{value}=") if isinstance(value, str) else b""
    except (ValueError, binascii.Error):
        raw = b""
    if len(raw) != _KEY_BYTES or _text(raw) != value:
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


# --- Files ----------------------------------------------------------------------------------------


def _read(path: Path, *, private: bool = True) -> bytes:
    return _read_marked(path, private=private)[0]


def _read_marked(path: Path, *, private: bool = True) -> tuple[bytes, object]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _wrong(path)
            if private and status.st_mode & 0o077:
                raise KeyringError(
                    "is open to group or others.", path=path, remedy="Run: chmod 600 on it."
                )
            if private and status.st_uid not in {os.geteuid(), 0}:
                raise KeyringError(
                    "belongs to another user.", path=path, remedy="Run: chown on it."
                )
            raw = file.read(_FILE_BYTES + 1)
    except OSError:
        raise _unreadable(path) from None
    if not raw or len(raw) > _FILE_BYTES:
        raise _wrong(path)
    return raw, _mark(status)


def _mark(status: os.stat_result) -> object:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _wrong(path) from None
    if not isinstance(document, dict):
        raise _wrong(path)
    return document


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


def _create(path: Path, keys: Sequence[Key]) -> None:
    """Write a keyset unless there is one."""
    if path.exists():
        return
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        raise _unwritable(path) from None
    _replace(path, _document(keys))


def _replace(path: Path, document: Mapping[str, Any], *, mode: int = 0o600) -> None:
    """Put a file in place whole and durable: the name shows the old content or the new."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(document, indent=1).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)  # noqa: PTH105 - os throughout, where order matters
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        raise _unwritable(path) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from changing the files beside `path`."""
    try:
        handle = os.open(path.with_name(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        raise _unwritable(path) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _wrong(path: Path) -> KeyringError:
    # Never tells which member or what stood there: it could be a key.
    return KeyringError(
        "is no keyset of this version, or was cut off or changed.",
        path=path,
        remedy="Restore it from its copy.",
    )


def _unreadable(path: Path) -> KeyringError:
    return KeyringError(
        "cannot be read.", path=path, remedy="Check that it exists and who owns it."
    )


def _unwritable(path: Path) -> KeyringError:
    return KeyringError(
        "cannot be written.", path=path, remedy="Check its folder and the space left."
    )
