"""IP addresses, cut to the network they stand in. Owns what an address embeds and its classes.

Knows no header, no proxy and no free text: who calls has one field that should hold one address.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from scrubbers import shipped
from scrubbers.model import AddressError, RuleError

__all__ = ["CLASSES", "AddressError", "AddressProfile", "embedded_v4", "truncate_ip"]

# 65,536 texts of at most 100 characters: the addresses of a busy minute in some 10 MB.
_CACHE_SIZE = 65_536
# "[" + 45 for the longest IPv6 text + "%" + zone + "]" + ":65535"; more is no address.
_MAX_LENGTH = 100

_V4_CLASSES = (
    (0x00000000, 32, "unspecified"),
    (0x00000000, 8, "reserved"),
    (0x0A000000, 8, "private"),
    (0x64400000, 10, "cgnat"),
    (0x7F000000, 8, "loopback"),
    (0xA9FE0000, 16, "link-local"),
    (0xAC100000, 12, "private"),
    (0xC0000000, 24, "reserved"),
    (0xC0A80000, 16, "private"),
    (0xC6120000, 15, "reserved"),
    (0xE0000000, 4, "multicast"),
    (0xF0000000, 4, "reserved"),
)
"""IANA's special-purpose registry. Documentation ranges are not in it: they count as real."""

_V6_CLASSES = (
    (0, 128, "unspecified"),
    (1, 128, "loopback"),
    (0x0064FF9B0001 << 80, 48, "translated"),
    (0xFC << 120, 7, "unique-local"),
    (0xFE80 << 112, 10, "link-local"),
    (0xFEC0 << 112, 10, "unique-local"),
    (0xFF << 120, 8, "multicast"),
)
"""``translated`` is RFC 8215's local NAT64 range: each network places the IPv4 bits differently."""

CLASSES = frozenset(name for classes in (_V4_CLASSES, _V6_CLASSES) for _, _, name in classes) | {
    "reserved"
}
"""What can stand in place of an address that names no subscriber."""


@dataclass(frozen=True, slots=True)
class AddressProfile:
    """How much of an address a recipient gets.

    Attributes:
        name: Its name in ``addresses.toml``.
        v4_bits: Leading bits kept of an IPv4 address, 0 to 32.
        v6_bits: Leading bits kept of an IPv6 address, 0 to 128.
        drop: Nothing is kept, not even the class.
    """

    name: str
    v4_bits: int
    v6_bits: int
    drop: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.v4_bits <= 32 and 0 <= self.v6_bits <= 128):  # noqa: PLR2004
            raise RuleError(f"address profile {self.name!r} keeps bits that no address has")

    def __hash__(self) -> int:
        # One look-up in the cache of addresses must not hash four fields.
        return hash(self.name)


def truncate_ip(address: str, *, profile: AddressProfile | str = "default") -> str:
    """Keep the network part of an IP address.

    Args:
        address: IPv4 or IPv6 text, also in brackets, with zone or port. Forms that embed an IPv4
            address (mapped, translated, 6to4, Teredo, NAT64, ISATAP, IPv4-compatible) count as
            that address. What this function returned earlier is taken too, and gets no finer.
        profile: An address profile, or the name of one of the shipped table; "default" keeps 24
            of 32 and 40 of 128 bits.

    Returns:
        The network with its length; or one of `CLASSES` where the address names no subscriber; or
        "" if the profile drops addresses.

    Raises:
        AddressError: `address` is no address. The message does not repeat it.
        RuleError: There is no profile of this name.

    Source:
        Privacy notice, "shortened IP address"; RFC 4291, 2.5.5; RFC 3056, 2; RFC 4380, 4;
        RFC 5214, 6.1; RFC 6052, 2.1.

    >>> truncate_ip("203.0.113.77")
    '203.0.113.0/24'
    >>> truncate_ip("2002:cb00:714d::1")
    '203.0.113.0/24'
    >>> truncate_ip("fe80::1%eth0")
    'link-local'
    >>> truncate_ip("010.1.2.3")
    Traceback (most recent call last):
    ...
    scrubbers.model.AddressError: not an IP address
    """
    if type(address) is not str:
        raise AddressError("not an IP address")
    return _truncate(address, profile)


@cache
def shipped_profiles() -> dict[str, AddressProfile]:
    """Compile the shipped table.

    Raises:
        RuleError: An entry lacks a number of bits or has one that no address has.
    """
    try:
        return {
            name: AddressProfile(name, row["v4_bits"], row["v6_bits"], drop=row.get("drop", False))
            for name, row in shipped.address_table()["profile"].items()
        }
    except (KeyError, TypeError, AttributeError):
        raise RuleError(
            "addresses.toml: each [profile.NAME] needs v4_bits and v6_bits. Add them."
        ) from None


@lru_cache(maxsize=_CACHE_SIZE)
def _truncate(address: str, profile: AddressProfile | str) -> str:
    if isinstance(profile, str):
        try:
            profile = shipped_profiles()[profile]
        except KeyError:
            raise RuleError("no address profile of this name. Add it to addresses.toml.") from None
    if not address or address in CLASSES:
        # "" is what `drop` returns; nothing is left that could be cut.
        if not address and not profile.drop:
            raise AddressError("not an IP address")
        return "" if profile.drop else address
    bits, width, length = _parse(address)
    if profile.drop:
        return ""
    if width == 128:  # noqa: PLR2004 -- the width of IPv6
        inner = embedded_v4(bits)
        if inner is not None and length == width:
            bits, width, length = inner, 32, 32
    return _cut(bits, width, length, profile)


def _parse(address: str) -> tuple[int, int, int]:
    """Return the bits, how many an address of its kind has, and how many of them are given."""
    # `inet_pton` is strict where `inet_aton` is not: no octal, no hex, four parts, ASCII only.
    if len(address) > _MAX_LENGTH or not address.isascii():
        raise AddressError("not an IP address")
    text, slash, length_text = address.partition("/")
    if not slash:
        text = _bare(text)
    try:
        if ":" in text:
            packed, width = inet_pton(AF_INET6, text), 128
        else:
            packed, width = inet_pton(AF_INET, text), 32
    except (OSError, ValueError):
        raise AddressError("not an IP address") from None
    bits = int.from_bytes(packed, "big")
    if not slash:
        return bits, width, width
    if not (length_text.isdigit() and length_text == str(int(length_text[:4]))):
        raise AddressError("not an IP address")
    length = int(length_text)
    if length > width or bits & ((1 << (width - length)) - 1):
        raise AddressError("not an IP address")
    if width == 128 and _embeds_in_network(bits, length):  # noqa: PLR2004
        raise AddressError("not an IP address")
    return bits, width, length


def _bare(text: str) -> str:
    """Take off brackets, port and zone, each only where it may stand."""
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or ":" not in text or (port and not _is_port(port)):
            raise AddressError("not an IP address")
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            raise AddressError("not an IP address")
    before, percent, zone = text.partition("%")
    if percent and (":" not in before or not zone):
        raise AddressError("not an IP address")
    return before


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isdigit() and len(text) <= len(":65535")


def embedded_v4(bits: int) -> int | None:
    """Return the IPv4 address that an IPv6 address carries.

    Args:
        bits: The 128 bits of an IPv6 address.

    Returns:
        The 32 bits, of the *client* for Teredo, or None. ``::`` and ``::1`` carry none.
    """
    low = bits & 0xFFFF_FFFF
    head = bits >> 32
    if head in {0xFFFF, 0xFFFF_0000, 0x0064_FF9B << 64}:  # mapped, translated (SIIT), NAT64
        return low
    if head == 0:  # IPv4-compatible, deprecated but still parsed
        return low if low > 1 else None
    if bits >> 112 == 0x2002:  # noqa: PLR2004 -- 6to4: the prefix is the IPv4 address in hex
        return (bits >> 80) & 0xFFFF_FFFF
    if bits >> 96 == 0x2001_0000:  # noqa: PLR2004 -- Teredo keeps the client's bits inverted
        return low ^ 0xFFFF_FFFF
    if (head & 0xFFFF_FFFF) in {0x0000_5EFE, 0x0200_5EFE}:  # ISATAP, with or without the u bit
        return low
    return None


def _embeds_in_network(bits: int, length: int) -> bool:
    # A *network* inside these ranges holds part of an IPv4 address where it is not looked for.
    # `truncate_ip` returns none, so nobody needs one.
    return (
        (length >= 16 and bits >> 112 == 0x2002)  # noqa: PLR2004
        or (length >= 32 and bits >> 96 == 0x2001_0000)  # noqa: PLR2004
        or (length >= 64 and bits >> 64 == 0)  # noqa: PLR2004
        or (length > 96 and embedded_v4(bits) is not None)  # noqa: PLR2004
    )


def _cut(bits: int, width: int, length: int, profile: AddressProfile) -> str:
    v4 = width == 32  # noqa: PLR2004 -- the width of IPv4
    for network, network_length, name in _V4_CLASSES if v4 else _V6_CLASSES:
        if length >= network_length and (bits ^ network) >> (width - network_length) == 0:
            return name
    if not v4 and length >= 3 and bits >> 125 != 1:  # noqa: PLR2004
        # Only 2000::/3 is given to subscribers (RFC 4291, 2.4).
        return "reserved"
    kept = min(length, profile.v4_bits if v4 else profile.v6_bits)
    bits = bits >> (width - kept) << (width - kept)
    text = inet_ntop(AF_INET if v4 else AF_INET6, bits.to_bytes(width // 8, "big"))
    return f"{text}/{kept}"
