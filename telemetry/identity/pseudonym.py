"""Tokens, locators and tags of construction "tps/v1". Pure: keys and values in, text out.

Owns the frames that are authenticated and the profiles of canonical identifiers. Knows no file,
clock, store or policy. Every value here is fixed by vectors (``tests/vectors/identity.json``):
a change of one bit orphans every pseudonym that recipients hold.

Source:
    Art. 4(5) GDPR; EDPB Guidelines 01/2025 (consultation version), 85-91: a keyed MAC over the
    identifier, with a plan to replace it (`migrate`); RFC 2104.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, Literal

from telemetry.errors import IdentifierError, KeyringError, PolicyError

__all__ = [
    "EPOCH_RULES",
    "KINDS",
    "EpochRule",
    "Kind",
    "Profile",
    "Tokenizer",
    "canonicalize",
    "check",
    "delivery_id",
    "epoch_label",
    "frame",
    "key_id",
    "locator",
    "membership",
    "migrate",
    "suppression_tag",
    "token",
]

Kind = Literal["account", "organization", "membership", "session", "device", "object"]
Profile = Literal["integer", "uuid", "opaque", "nocase", "email"]
EpochRule = Literal["rel", "quarter"]

KINDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        # kind: (letter in the token, word in every frame). The frame says "org" (vector V6).
        "account": ("u", "account"),
        "organization": ("o", "org"),
        "membership": ("m", "membership"),
        "session": ("s", "session"),
        "device": ("d", "device"),
        "object": ("x", "object"),
    }
)

EPOCH_RULES: Final[frozenset[str]] = frozenset({"rel", "quarter"})
KEY_BYTES: Final = 32
_SECRET_SIZES: Final = {size: size.to_bytes(2, "big") for size in (0, KEY_BYTES)}
_PART_BYTES: Final = 65_535
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, lower case
_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_TRIPLES: Final = tuple(pair + low for pair in _PAIRS for low in _ALPHABET)
_HALVES: Final = struct.Struct(">QQ16x").unpack
_60_BITS: Final = (1 << 60) - 1
_BODY_CHARACTERS: Final = 26
_BLOCK_BYTES: Final = 64
_IPAD: Final = bytes(octet ^ 0x36 for octet in range(256))
_OPAD: Final = bytes(octet ^ 0x5C for octet in range(256))
_SIZED: Final = 512
_SIZES: Final = tuple(size.to_bytes(2, "big") for size in range(_SIZED))

_TOKEN = re.compile(
    r"((ps1_([a-z0-9]{2,12})_([uomsdx])_)[0-9a-hjkmnp-tv-z]{26})([0-9a-hjkmnp-tv-z]{2})"
)
_LABEL = re.compile(r"[a-z0-9]{2,12}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_HOST_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_JSON_EXACT: Final = 2**53
_OPAQUE_BYTES: Final = 256
_LOCAL_BYTES: Final = 64
_HOST_BYTES: Final = 253
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


# --- Canonical identifiers ------------------------------------------------------------------------


def canonicalize(profile: Profile, value: str | int) -> str:
    """Bring an identifier into the one form that is tokenized, or refuse it.

    Nothing is repaired: merging two people mixes their data, splitting one makes an erasure miss
    half of it.

    Args:
        profile: ``integer`` (decimal, up to 19 digits; numbers beyond 2**53 only as text),
            ``uuid`` (36 characters, lower-cased), ``opaque`` (1 to 256 bytes of UTF-8 that equal
            their NFC and NFKC forms, without white space at the ends or control characters),
            ``nocase`` (opaque, case-folded), ``email`` (nocase local part, IDNA domain).
        value: As the application gave it. Numbers are taken by ``integer`` only.

    Returns:
        The canonical text.

    Raises:
        IdentifierError: `value` does not fit; the message does not hold it.
        PolicyError: There is no such profile.

    >>> canonicalize("integer", 4711) == canonicalize("integer", "4711")
    True
    """
    canon = _PROFILES.get(profile)
    if canon is None:
        raise PolicyError("An identifier profile is integer, uuid, opaque, nocase or email.")
    return canon(value)


def membership(account: str, organization: str) -> str:
    """Canonical id of one account's membership in one organization, from their canonical ids."""
    return f"{account}\x1f{organization}"


def _integer(value: str | int) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        # A JSON reader with doubles has already rounded what is larger.
        if abs(value) > _JSON_EXACT:
            raise IdentifierError
        return str(value)
    if not isinstance(value, str) or not _INTEGER.fullmatch(value):
        raise IdentifierError
    return value


def _uuid(value: str | int) -> str:
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise IdentifierError
    return value.lower()


def _opaque(value: str | int) -> str:
    # Length first: normalization of a hostile text is slow.
    if not isinstance(value, str) or not 0 < len(value) <= _OPAQUE_BYTES:
        raise IdentifierError
    if value.isascii():
        if not value.isprintable() or value != value.strip():
            raise IdentifierError
        return value
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in value):
        raise IdentifierError
    if len(value.encode()) > _OPAQUE_BYTES or value != value.strip():
        raise IdentifierError
    # NFKC is a coarser NFC: what equals its NFKC form equals its NFC form.
    if not unicodedata.is_normalized("NFKC", value):
        raise IdentifierError
    return value


def _nocase(value: str | int) -> str:
    text = _opaque(value)
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text.casefold())
    # Folding can make compositions that fold again (Unicode 3.13, toNFKC_Casefold).
    return _opaque(unicodedata.normalize("NFKC", folded.casefold()))


def _email(value: str | int) -> str:
    local, at, host = _opaque(value).rpartition("@")
    if not at or not local or "@" in local or len(local.encode()) > _LOCAL_BYTES:
        raise IdentifierError
    if any(character.isspace() for character in local):
        raise IdentifierError
    host = host.lower()
    try:
        ascii_host = host.encode("idna").decode("ascii")
        shown = ascii_host.encode("ascii").decode("idna")
        again = shown.encode("idna").decode("ascii")
    except UnicodeError:
        raise IdentifierError from None
    # IDNA 2003 maps some letters to others ("ss"); two domains must not become one.
    if again != ascii_host or host not in {ascii_host, shown} or len(ascii_host) > _HOST_BYTES:
        raise IdentifierError
    if not all(_HOST_LABEL.fullmatch(label) for label in ascii_host.split(".")):
        raise IdentifierError
    return f"{_nocase(local)}@{ascii_host}"


_PROFILES: Final[Mapping[str, Callable[[str | int], str]]] = MappingProxyType(
    {
        "integer": _integer,
        "uuid": _uuid,
        "opaque": _opaque,
        "nocase": _nocase,
        "email": _email,
    }
)


# --- Where a subject is found ---------------------------------------------------------------------


def locator(key: bytes, *, kind: str, namespace: str, canonical_id: str) -> bytes:
    """Primary key of a subject in the vault: 32 bytes that tell nothing without `key`.

    Raises:
        IdentifierError: Unknown kind, or a part that no frame holds.
        KeyringError: `key` is not 32 bytes.
    """
    _, word = _kind(kind)
    return _mac(key, frame("tps/v1/locator", word, namespace, canonical_id))


def suppression_tag(
    key: bytes, *, purpose: str, kind: str, namespace: str, canonical_id: str
) -> bytes:
    """Key under which the vault keeps objection, restriction, consent and erasure: 32 bytes.

    Raises:
        IdentifierError: Unknown kind, or a part that no frame holds.
        KeyringError: `key` is not 32 bytes.
    """
    _, word = _kind(kind)
    return _mac(key, frame("tps/v1/suppress", purpose, word, namespace, canonical_id))


# --- Tokens ---------------------------------------------------------------------------------------


def epoch_label(rule: EpochRule, at: datetime) -> str:
    """Name of the token epoch an event belongs to.

    Args:
        rule: ``rel`` lasts as long as the relationship; ``quarter`` a calendar quarter in UTC.
        at: Aware time of the event.

    >>> epoch_label("quarter", datetime(2026, 10, 1, tzinfo=UTC))
    '2026q4'
    """
    if rule == "rel":
        return "rel"
    if rule not in EPOCH_RULES or at.tzinfo is None:
        raise PolicyError("A token epoch is rel or quarter, of a time with a zone.")
    moment = at if at.tzinfo is UTC else at.astimezone(UTC)
    return f"{moment.year:04d}q{(moment.month + 2) // 3}"


class Tokenizer:
    """Computes the tokens of one key, recipient, kind and namespace: what is the same is done once.

    Arguments and errors are those of `token`; it holds what `key` was made into, and is to be let
    go of with it.
    """

    __slots__ = ("_before_check", "_head", "_inner", "_outer")

    def __init__(
        self, key: bytes, *, domain: str, epoch: str, kind: str, namespace: str, label: str
    ) -> None:
        letter, word = _kind(kind)
        if len(key) != KEY_BYTES:
            raise KeyringError("A key has 32 bytes.")
        if not _LABEL.fullmatch(label):
            raise PolicyError("A recipient's token label has 2 to 12 lower-case letters or digits.")
        # RFC 2104 in its own words, so that hashing the pads is not repeated for each token.
        padded = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(padded.translate(_IPAD))
        self._inner.update(frame("tps/v1/token", domain, epoch, word, namespace))
        self._outer = hashlib.sha256(padded.translate(_OPAD))
        self._head = f"ps1_{label}_{letter}_"
        self._before_check = _before_check(self._head)

    def __repr__(self) -> str:
        return f"Tokenizer({self._head})"

    def __call__(self, canonical_id: str, secret: bytes) -> str:
        """Give the token of an identifier.

        Raises:
            IdentifierError: A part that no frame holds.
            KeyringError: A secret of the wrong length.
        """
        # Empty is the stateless form of vector V5; the pipeline never uses it.
        ending = _SECRET_SIZES.get(len(secret))
        if ending is None:
            raise KeyringError("A subject's secret has 32 bytes.")
        try:
            raw = canonical_id.encode()
            mac = self._inner.copy()
            mac.update(len(raw).to_bytes(2, "big") + raw + ending + secret)
        except (OverflowError, UnicodeEncodeError):
            raise IdentifierError from None
        whole = self._outer.copy()
        whole.update(mac.digest())
        return _shape(whole.digest(), self._head, self._before_check)


def token(
    key: bytes,
    *,
    domain: str,
    epoch: str,
    kind: str,
    namespace: str,
    canonical_id: str,
    secret: bytes,
    label: str,
) -> str:
    """Compute the pseudonym of one identifier for one recipient.

    Args:
        key: 32 bytes, of this domain and epoch only.
        domain: ``purpose@recipient``; in the frame too, so a mis-copied key still cannot join.
        epoch: ``rel`` or a label of `epoch_label`.
        kind: account, organization, membership, session, device or object.
        namespace: Where the id is unique, for example ``app:user``.
        canonical_id: What `canonicalize` returned.
        secret: The subject's own 32 bytes from the vault.
        label: 2 to 12 lower-case letters or digits that name the recipient in the token.

    Returns:
        ``ps1_<label>_<letter>_`` with 26 characters for 130 bits and 2 check characters.

    Raises:
        IdentifierError: Unknown kind or a part that no frame holds.
        KeyringError: A key or secret of the wrong length.
        PolicyError: `label` is none.
    """
    return Tokenizer(key, domain=domain, epoch=epoch, kind=kind, namespace=namespace, label=label)(
        canonical_id, secret
    )


def check(token: str) -> bool:
    """Tell whether a text is a whole token. Public: never a reason to trust or keep a text.

    >>> check("ps1_heap_u_sxf883p2g7hdwj0neg6s6ahqppjm")
    True
    """
    match = _TOKEN.fullmatch(token)
    return match is not None and _check_characters(match[1], _before_check(match[2])) == match[5]


def migrate(key: bytes, *, domain: str, old_token: str) -> str:
    """Give a token a successor under a new key, without the identifier (EDPB 01/2025, 91).

    Raises:
        IdentifierError: `old_token` is cut off or no token.
        KeyringError: `key` is not 32 bytes.
    """
    match = _TOKEN.fullmatch(old_token)
    if match is None or not check(old_token):
        raise IdentifierError("invalid_token")
    mac = _mac(key, frame("tps/v1/migrate", domain, old_token))
    return _shape(mac, match[2], _before_check(match[2]))


def delivery_id(key: bytes, *, domain: str, event_id: str) -> str:
    """Idempotency key of an event at one recipient: 32 hex digits that join with no other's.

    A shared id would let recipients join their records, and a UUIDv7 carries the millisecond.

    Raises:
        KeyringError: `key` is not 32 bytes.
    """
    return _mac(key, frame("tps/v1/delivery", domain, event_id))[:16].hex()


def key_id(key: bytes) -> str:
    """Name a key by 8 characters that tell nothing about it."""
    digest = _mac(key, frame("tps/v1/kid"))
    number = int.from_bytes(digest[:5], "big")
    return "".join(_PAIRS[(number >> shift) & 1023] for shift in (30, 20, 10, 0))


# --- Frames ---------------------------------------------------------------------------------------


def frame(*parts: str | bytes) -> bytes:
    """Join parts so that no two lists of parts give the same bytes: each behind its length.

    Raises:
        IdentifierError: A part above 65,535 bytes, or one that is no Unicode text.
    """
    pieces: list[bytes] = []
    try:
        for part in parts:
            raw = part if isinstance(part, bytes) else part.encode()
            size = len(raw)
            pieces += (_SIZES[size] if size < _SIZED else size.to_bytes(2, "big"), raw)
    except (OverflowError, UnicodeEncodeError):
        raise IdentifierError from None
    return b"".join(pieces)


def _kind(kind: str) -> tuple[str, str]:
    try:
        return KINDS[kind]
    except KeyError:
        raise IdentifierError("unknown_kind") from None


def _mac(key: bytes, message: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise KeyringError("A key has 32 bytes.")
    return hmac.digest(key, message, "sha256")


def _shape(mac: bytes, head: str, before_check: bytes) -> str:
    first, second = _HALVES(mac)
    # 130 bits: 60 and 60 as four groups of 15 each, then 10. Small numbers shift faster.
    middle = (first << 56 | second >> 8) & _60_BITS
    first >>= 4
    body = (
        f"{head}{_TRIPLES[first >> 45]}{_TRIPLES[first >> 30 & 32767]}"
        f"{_TRIPLES[first >> 15 & 32767]}{_TRIPLES[first & 32767]}"
        f"{_TRIPLES[middle >> 45]}{_TRIPLES[middle >> 30 & 32767]}"
        f"{_TRIPLES[middle >> 15 & 32767]}{_TRIPLES[middle & 32767]}"
        f"{_PAIRS[(second & 255) << 2 | mac[16] >> 6]}"
    )
    return body + _check_characters(body, before_check)


def _before_check(head: str) -> bytes:
    """Give what stands before a token's body in the frame of its check characters."""
    return frame("tps/v1/check") + (len(head) + _BODY_CHARACTERS).to_bytes(2, "big")


def _check_characters(body: str, before: bytes) -> str:
    digest = hashlib.sha256(before + body.encode("ascii")).digest()
    return _PAIRS[digest[0] << 2 | digest[1] >> 6]
