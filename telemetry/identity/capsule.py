"""Capsules: identifiers on their way from the gateway to the pseudonymizer, sealed.

Owns their bytes. A gateway holds a public key only, so whoever reads its disk, the log or a backup
learns no identifier and not even that two capsules are about the same person. What a capsule holds
is bound to one event, schema, time and tenant: moved elsewhere it does not open.

::

    01 | kid, 8 ASCII | HPKE: 32 encapsulated, 48 sealed session key | nonce, 12 | sealed, tag 16

The session key is AES-256-GCM-SIV with random nonces, so that two processes that share one by
accident repeat nothing that matters. The sealed part is padded to a multiple of 128 bytes.

Source:
    RFC 9180 (HPKE, base mode; it does not authenticate the sender); RFC 8452 (AES-GCM-SIV);
    EDPB Guidelines 01/2025 (consultation version), 105: a proxy that replaces identifiers.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, ClassVar, Final, NamedTuple

import structlog
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from telemetry.errors import CapsuleError, IdentifierError, KeyringError
from telemetry.identity.keyring import Keyring, PublicKey, Use
from telemetry.identity.pseudonym import KINDS, frame

__all__ = [
    "DeadLetterOpener",
    "DeadLetterSealer",
    "HeldOpener",
    "HeldSealer",
    "Identifier",
    "Opener",
    "Sealer",
    "open_bytes",
    "seal_bytes",
    "self_test",
]

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.identity")

_VERSION: Final = b"\x01"
_KID_BYTES: Final = 8
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_WRAPPED_BYTES: Final = 80
_HEADER_BYTES: Final = 1 + _KID_BYTES + _WRAPPED_BYTES
_BLOCK: Final = 128
_MOST_IDENTIFIERS: Final = 64
_SESSION_S: Final = 3600.0
_SESSION_EVENTS: Final = 1 << 20
_SESSIONS_KEPT: Final = 1024
_FOLLOW_S: Final = 60.0
_NONCES_DRAWN: Final = 256

_LETTERS: Final = {letter: kind for kind, (letter, _) in KINDS.items()}

# Open-only vector of construction tps/v1 (tests/vectors/identity.json, "seal"): no key of ours.
_TEST_PRIVATE: Final = "77076d0a7318a57d3c16c17251b26645c6f30c5a0f8e1c1f4b7a0c3c9a1d2e2a"
_TEST_SEALED: Final = (
    "92cc16f43428359a24ce30ea21ce9423f73ca8dd1bddd3e557c42b28256457602899cedd9d0e598261dca07ac56a2f"
    "cf5fe480c9da0e03d27016e393912b2afd32e6ffa4b3855e9f6bbda5acd7f8af5d"
)
_TEST_OPENED: Final = bytes(range(0xA0, 0xC0))


class Identifier(NamedTuple):
    """One canonical identifier of an event. Its repr tells the kind only.

    Attributes:
        kind: account, organization, membership, session, device or object.
        namespace: Where the id is unique.
        canonical_id: What `telemetry.identity.canonicalize` returned.
    """

    kind: str
    namespace: str
    canonical_id: str

    def __repr__(self) -> str:
        """Name what it is, never whose."""
        return f"Identifier({self.kind if self.kind in KINDS else '?'})"


class _Session(NamedTuple):
    """A session key at work: ready to seal, with the header that lets the other side open."""

    header: bytes
    cipher: AESGCMSIV
    ends: float


# --- Sealing --------------------------------------------------------------------------------------


class Sealer:
    """Seals identifiers for one public key. Safe to share between threads.

    A new session key is made each hour, after 2**20 events, and in each forked child.

    Args:
        public_key: 32 bytes of X25519.
        kid: Name of the pair; stands in each capsule in the clear.
        clock: Monotonic seconds.
        source: Gives the public key of the hour; asked once a minute. None keeps the first.
    """

    def __init__(
        self,
        public_key: bytes,
        kid: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        source: Callable[[], PublicKey] | None = None,
    ) -> None:
        if len(kid) != _KID_BYTES or not kid.isascii():
            raise KeyringError("The name of a public key has 8 characters.")
        self._public, self._kid, self._clock = _public_key(public_key), kid, clock
        self._source, self._look_at = source, clock() + _FOLLOW_S
        self._nonces: list[bytes] = []
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._left, self._pid = 0, os.getpid()
        _SEALERS.add(self)

    def __repr__(self) -> str:
        return f"Sealer({self._kid})"

    def seal(
        self,
        identifiers: Sequence[Identifier],
        *,
        event_id: str,
        schema: str,
        occurred_ms: int,
        tenant: str,
    ) -> bytes:
        """Seal the identifiers of one event.

        Args:
            identifiers: At most 64; of each kind but ``object`` at most one.
            event_id: The event they belong to.
            schema: Name or fingerprint of the record that describes the event.
            occurred_ms: Its time, in milliseconds since 1970 UTC.
            tenant: Which application sent it.

        Returns:
            The capsule; empty if there are no identifiers.

        Raises:
            IdentifierError: An unknown kind, too many, two of one kind, or a part that is no text.
        """
        if not identifiers:
            return b""
        plain = _pad(_pack(identifiers))
        binding = _binding(event_id, schema, occurred_ms, tenant)
        with self._lock:
            now = self._clock()
            if now >= self._look_at:
                self._follow(now)
            session = self._session
            # The pid catches what forked without the interpreter's knowledge.
            if (
                session is None
                or self._left == 0
                or now >= session.ends
                or self._pid != os.getpid()
            ):
                session = self._begin(now)
            self._left -= 1
            if not self._nonces:
                drawn = secrets.token_bytes(_NONCE_BYTES * _NONCES_DRAWN)
                self._nonces = [
                    drawn[at : at + _NONCE_BYTES] for at in range(0, len(drawn), _NONCE_BYTES)
                ]
            nonce = self._nonces.pop()
        return session.header + nonce + session.cipher.encrypt(nonce, plain, binding)

    def _begin(self, now: float) -> _Session:
        key = secrets.token_bytes(_KEY_BYTES)
        info = frame("tps/v1/seal", self._kid)
        header = _VERSION + self._kid.encode() + _suite().encrypt(key, self._public, info)
        session = _Session(header, AESGCMSIV(key), now + _SESSION_S)
        self._session, self._left, self._pid = session, _SESSION_EVENTS, os.getpid()
        self._nonces = []
        return session

    def _follow(self, now: float) -> None:
        """Take the public key whose time has come."""
        self._look_at = now + _FOLLOW_S
        key = None if self._source is None else self._source()
        if key is not None and key.kid != self._kid:
            self._public, self._kid = _public_key(key.raw), key.kid
            self._session = None

    def _forget(self) -> None:
        # The lock too: a thread that no longer exists in the child may have held it.
        self._lock = threading.Lock()
        self._session, self._nonces = None, []


_SEALERS: Final[weakref.WeakSet[Sealer]] = weakref.WeakSet()


def _after_fork() -> None:
    for sealer in _SEALERS:
        sealer._forget()  # noqa: SLF001 - ours


os.register_at_fork(after_in_child=_after_fork)


# --- Opening --------------------------------------------------------------------------------------


class Opener:
    """Opens capsules with the private halves of a keyring. Safe to share between threads.

    The last 1,024 session keys are remembered until the keyset changes.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._lock = threading.Lock()
        self._ciphers: OrderedDict[bytes, AESGCMSIV] = OrderedDict()
        self._alarmed: set[str] = set()
        self._generation = keyring.generation

    def __repr__(self) -> str:
        return f"Opener({len(self._ciphers)} sessions)"

    def open(
        self, capsule: bytes, *, event_id: str, schema: str, occurred_ms: int, tenant: str
    ) -> tuple[Identifier, ...]:
        """Open a capsule that belongs to this event.

        Returns:
            The identifiers in the order in which they were sealed; none for an empty capsule.

        Raises:
            CapsuleError: ``capsule_corrupt``: these are not the bytes of a capsule.
                ``capsule_retired_key``: sealed for a key that was disabled or destroyed; the
                first for each key is an error in our log.
                ``capsule_unknown_key``: sealed for a key that never was here.
                ``capsule_mismatch``: sealed for another event, schema, time or tenant, or changed.
            KeyringError: The keyset changed on disk and cannot be read; hold.
        """
        if not capsule:
            return ()
        body = len(capsule) - _HEADER_BYTES - _NONCE_BYTES - _TAG_BYTES
        if body <= 0 or body % _BLOCK or not capsule.startswith(_VERSION):
            raise CapsuleError("capsule_corrupt")
        cipher = self._cipher(capsule[:_HEADER_BYTES])
        nonce = capsule[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES]
        sealed = capsule[_HEADER_BYTES + _NONCE_BYTES :]
        try:
            plain = cipher.decrypt(nonce, sealed, _binding(event_id, schema, occurred_ms, tenant))
        except InvalidTag:
            raise CapsuleError("capsule_mismatch") from None
        return _unpack(_unpad(plain))

    def _cipher(self, header: bytes) -> AESGCMSIV:
        with self._lock:
            if self._generation != self._keyring.generation:
                # A key may have been disabled or destroyed; what it opened goes with it.
                self._ciphers.clear()
                self._generation = self._keyring.generation
            cipher = self._ciphers.get(header)
            if cipher is not None:
                self._ciphers.move_to_end(header)
                return cipher
        try:
            kid = header[1 : 1 + _KID_BYTES].decode("ascii")
        except UnicodeDecodeError:
            raise CapsuleError("capsule_corrupt") from None
        private = self._keyring.opening("seal", kid)
        if private is None:
            if not self._keyring.retired("seal", kid):
                raise CapsuleError("capsule_unknown_key")
            if kid not in self._alarmed:
                # A gateway seals with a key of the past: all it sends is lost to us from now on.
                self._alarmed.add(kid)
                _log.error("capsule_retired_key", kid=kid)
            raise CapsuleError("capsule_retired_key")
        key = _hpke_open(private.expose(), header[1 + _KID_BYTES :], frame("tps/v1/seal", kid))
        if len(key) != _KEY_BYTES:
            raise CapsuleError("capsule_corrupt")
        cipher = AESGCMSIV(key)
        with self._lock:
            self._ciphers[header] = cipher
            while len(self._ciphers) > _SESSIONS_KEPT:
                self._ciphers.popitem(last=False)
        return cipher


# --- Dead letters and held events -----------------------------------------------------------------


def seal_bytes(public_key: bytes, data: bytes, *, info: bytes) -> bytes:
    """Seal bytes to a public key, once. They open only with the same `info`.

    Raises:
        KeyringError: `public_key` is none.
    """
    return _suite_encrypt(_public_key(public_key), data, frame("tps/v1/bytes", info))


def open_bytes(private_key: bytes, sealed: bytes, *, info: bytes) -> bytes:
    """Open what `seal_bytes` sealed.

    Raises:
        CapsuleError: ``capsule_corrupt``: another key, another `info`, or changed bytes.
    """
    return _hpke_open(private_key, sealed, frame("tps/v1/bytes", info))


class DeadLetterSealer:
    """Seals the original of a dead letter to a key whose private half is not on this host."""

    _use: ClassVar[Use] = "dead"

    def __init__(self, public: PublicKey) -> None:
        self._public = public

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._public.kid})"

    def seal(self, original: bytes, *, event_id: str) -> bytes:
        """Seal the bytes of one event, bound to its id."""
        info = frame(f"tps/v1/{self._use}", self._public.kid, event_id)
        return (
            _VERSION + self._public.kid.encode() + seal_bytes(self._public.raw, original, info=info)
        )


class HeldSealer(DeadLetterSealer):
    """Seals an event of a subject who is on hold, until its restriction ends."""

    _use: ClassVar[Use] = "hold"


class DeadLetterOpener:
    """Opens dead letters, where their private half is."""

    _use: ClassVar[Use] = "dead"

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def open(self, sealed: bytes, *, event_id: str) -> bytes:
        """Open the original of one event.

        Raises:
            CapsuleError: ``capsule_unknown_key``, or ``capsule_corrupt``: changed or of another
                event.
        """
        head = 1 + _KID_BYTES
        if not sealed.startswith(_VERSION) or not sealed[:head].isascii():
            raise CapsuleError("capsule_corrupt")
        kid = sealed[1:head].decode("ascii")
        private = self._keyring.opening(self._use, kid)
        if private is None:
            raise CapsuleError("capsule_unknown_key")
        info = frame(f"tps/v1/{self._use}", kid, event_id)
        return open_bytes(private.expose(), sealed[head:], info=info)


class HeldOpener(DeadLetterOpener):
    """Opens held events, where they are released."""

    _use: ClassVar[Use] = "hold"


# --- What lies inside -----------------------------------------------------------------------------


def _binding(event_id: str, schema: str, occurred_ms: int, tenant: str) -> bytes:
    try:
        moment = occurred_ms.to_bytes(8, "big", signed=True)
    except OverflowError:
        raise IdentifierError("invalid_time") from None
    return _BOUND + frame(event_id) + _framed(schema) + _MOMENT + moment + _framed(tenant)


@lru_cache(maxsize=1024)
def _framed(*parts: str) -> bytes:
    """Frame what is the same in very many events: names of schemas, tenants and namespaces."""
    return frame(*parts)


_BOUND: Final = frame("tps/v1/capsule")
_MOMENT: Final = (8).to_bytes(2, "big")


def _pack(identifiers: Sequence[Identifier]) -> bytes:
    packed = b""
    for kind, namespace, canonical_id in identifiers:
        if kind not in KINDS:
            raise IdentifierError("unknown_kind")
        packed += _framed(KINDS[kind][0], namespace) + frame(canonical_id)
    if len(identifiers) > 1 and not _fits(identifiers):
        raise IdentifierError("too_many_identifiers")
    return packed


def _unpack(packed: bytes) -> tuple[Identifier, ...]:
    parts: list[str] = []
    at, end = 0, len(packed)
    try:
        while at < end:
            start = at + 2
            at = start + (packed[start - 2] << 8 | packed[start - 1])
            if at > end:
                raise CapsuleError("capsule_corrupt")
            parts.append(packed[start:at].decode())
        kinds = [_LETTERS[letter] for letter in parts[::3]]
        identifiers = tuple(
            Identifier(*triple) for triple in zip(kinds, parts[1::3], parts[2::3], strict=True)
        )
    except (ValueError, KeyError, IndexError):
        raise CapsuleError("capsule_corrupt") from None
    if not identifiers or not _fits(identifiers):
        raise CapsuleError("capsule_corrupt")
    return identifiers


def _fits(identifiers: Sequence[Identifier]) -> bool:
    """Two accounts in one event would leave open whose the event is."""
    single = [identifier.kind for identifier in identifiers if identifier.kind != "object"]
    return len(identifiers) <= _MOST_IDENTIFIERS and len(set(single)) == len(single)


def _pad(plain: bytes) -> bytes:
    return plain + _PADDING[: _BLOCK - len(plain) % _BLOCK]


_PADDING: Final = b"\x80" + bytes(_BLOCK - 1)


def _unpad(padded: bytes) -> bytes:
    plain = padded.rstrip(b"\x00")
    if not plain.endswith(b"\x80"):
        raise CapsuleError("capsule_corrupt")
    return plain[:-1]


# --- HPKE -----------------------------------------------------------------------------------------


@cache
def _suite() -> Any:
    try:
        from cryptography.hazmat.primitives import hpke  # noqa: PLC0415 - absent in old releases

        return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    except (ImportError, AttributeError, UnsupportedAlgorithm):
        raise KeyringError(
            "This release of cryptography has no HPKE, so identifiers cannot be sealed.",
            remedy="Install cryptography >= 48, < 51.",
        ) from None


def self_test() -> None:
    """Prove at start that HPKE of the installed library opens a known answer, and only that.

    Raises:
        KeyringError: It is missing, or gives other bytes. Nothing may run.
    """
    private, sealed = bytes.fromhex(_TEST_PRIVATE), bytes.fromhex(_TEST_SEALED)
    works = False
    try:
        works = _hpke_open(private, sealed, frame("tps/v1/seal", "k1")) == _TEST_OPENED
        again = _suite_encrypt(
            X25519PrivateKey.from_private_bytes(private).public_key(), _TEST_OPENED, b"self-test"
        )
        works = works and _hpke_open(private, again, b"self-test") == _TEST_OPENED
    except CapsuleError:
        works = False
    if works:
        try:
            _hpke_open(private, sealed, frame("tps/v1/seal", "k2"))
        except CapsuleError:
            return
    raise KeyringError(
        "HPKE of the installed cryptography fails its self-test.",
        remedy="Install cryptography >= 48, < 51.",
    )


def _public_key(raw: bytes) -> X25519PublicKey:
    try:
        return X25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise KeyringError("A public key has 32 bytes.") from None


def _suite_encrypt(public: X25519PublicKey, data: bytes, info: bytes) -> bytes:
    sealed: bytes = _suite().encrypt(data, public, info)
    return sealed


def _hpke_open(private: bytes, sealed: bytes, info: bytes) -> bytes:
    suite = _suite()
    try:
        opened: bytes = suite.decrypt(sealed, X25519PrivateKey.from_private_bytes(private), info)
    except (InvalidTag, ValueError):
        # ValueError: an encapsulated key of low order.
        raise CapsuleError("capsule_corrupt") from None
    return opened
