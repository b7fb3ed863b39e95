"""What must hold for any bytes, one function a target. Knows nothing of the fuzzer that calls them.

Each function takes what a fuzzer made, and fails by assertion. `test_regressions.py` calls them
with every input that ever failed, so that whoever has no fuzzer is warned all the same.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Container, Mapping
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from scrubbers import AddressError, redact_text, reduce_url, reduce_user_agent, truncate_ip
from scrubbers.address import CLASSES, embedded_v4
from scrubbers.detectors import Detectors, searchable
from scrubbers.engine import Ledger, Outcome, rescrub, scrub
from scrubbers.known_values import KnownValues
from scrubbers.text import MAX_FIELD_BYTES, MAX_HITS, shipped_detectors
from telemetry.dialects import BODY_BYTES, Refusal, decompress, heap, native, sentry
from telemetry.edge import Connection, Edge, Item
from telemetry.errors import EventError
from telemetry.policy import load_policy
from telemetry.rules import CompiledRules, Schemas

__all__ = ["CANARY", "DIALECTS", "ENCODINGS", "PROPERTIES", "SESSION"]

CANARY: Final = "q7canary.vk@mail.example.org"
"""An address that seeds hold, and nothing that comes out."""
SESSION: Final = "k7fjw0q2xz"
"""What the connection is known to hold; only lines of the program may hold it too."""

_KNOWN: Final = (("account", "acct-4711-x"), ("name", "Jördis Quux"), ("email", CANARY))


def text(data: bytes) -> None:
    """Redacted text holds nothing but placeholders, and remarks say where each stands."""
    given = data.decode("utf-8", "surrogateescape")
    detectors = shipped_detectors()
    for known in (None, KnownValues(_KNOWN)):
        redacted, remarks = redact_text(given, known=known)
        out = redacted.encode()
        assert not remarks or len(out) <= max(MAX_FIELD_BYTES, len(b"<redacted>"))
        assert len(remarks) <= MAX_HITS + 1
        standing = set(detectors.placeholder_spans(out))
        last = 0
        for remark in remarks:
            assert (remark.start, remark.end) in standing, "a remark points at no placeholder"
            assert remark.start >= last, "remarks overlap"
            last = remark.end
        form = searchable(redacted).encode()
        for row in detectors.rows:
            assert next(detectors.find(row, form), None) is None, f"{row.detector.id} finds more"
        assert redact_text(redacted, known=known) == (redacted, ()), "a second time changes it"
        if known is not None:
            assert not known.found_in(redacted), "a known value stays"


def _told(error: Exception, words: re.Pattern[str]) -> None:
    """Check that a refusal says nothing of what was refused."""
    assert words.fullmatch(str(error)), "a refusal in words that are not ours"
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


_USER: Final = "zq9jane"


def url(data: bytes) -> None:
    """Of a URL stays no user info, query or fragment; the rest is one, and stays as it is."""
    given = data.decode("utf-8", "surrogateescape")
    for keep_path in (False, True):
        once = reduce_url(given, keep_path=keep_path)
        once.encode()
        assert reduce_url(once, keep_path=keep_path) == once, "a second time changes it"
    once = reduce_url(given)
    assert not set("?#@%") & set(once), "a separator of what must go"
    urlsplit(once)
    if _USER in given.lower():
        return
    planted = f"https://{_USER}:{_USER}@{given}?{_USER}={_USER}#{_USER}"
    for keep_path in (False, True):
        assert _USER not in reduce_url(planted, keep_path=keep_path).lower(), "a planted value"
    for home in ("/home/", "/Users/", "C:\\Users\\", "file:///home/", "/mnt/c/Users/"):
        kept = reduce_url(f"{home}{_USER}{'/' if '/' in home else chr(92)}{given}", keep_path=True)
        assert _USER not in kept.lower(), "a home directory"


_NO_ADDRESS: Final = re.compile("not an IP address")
_BITS: Final = {"default": (24, 40), "ga": (24, 48), "strict": (16, 32)}


def address(data: bytes) -> None:
    """An address loses what its profile says in each of its forms; anything else is refused."""
    given = data.decode("utf-8", "surrogateescape")
    _truncated(given)
    packed = data[:16].ljust(16, b"\0")
    _truncated(str(ipaddress.IPv6Address(packed)))
    v4 = ipaddress.IPv4Address(packed[:4])
    plain, bits = truncate_ip(str(v4)), int(v4)
    _truncated(str(v4))
    if bits <= 1:
        return
    rest = int.from_bytes(packed[4:12], "big")
    for embedding in (
        0xFFFF << 32 | bits,
        0xFFFF_0000 << 32 | bits,
        bits,
        0x0064_FF9B << 96 | bits,
        0x2002 << 112 | bits << 80 | rest,
        0x2001_0000 << 96 | rest << 32 | bits ^ 0xFFFF_FFFF,
        0x2001_0DB8 << 96 | 0x5EFE << 32 | bits,
        0x2001_0DB8 << 96 | 0x0200_5EFE << 32 | bits,
    ):
        whole = ipaddress.IPv6Address(embedding)
        for written in (str(whole), whole.exploded, f"[{whole}]:443", f"{whole}%eth0"):
            assert truncate_ip(written) == plain, "an embedded address keeps more"


def _truncated(given: str) -> None:
    for profile, (v4_bits, v6_bits) in _BITS.items():
        try:
            once = truncate_ip(given, profile=profile)
        except AddressError as error:
            _told(error, _NO_ADDRESS)
            assert not _is_address(given), "a plain address is refused"
            return
        assert truncate_ip(once, profile=profile) == once, "a second time changes it"
        if once in CLASSES:
            continue
        network = ipaddress.ip_network(once)  # strict: no bit behind the prefix
        assert network.prefixlen <= (v4_bits if network.version == 4 else v6_bits)
        if _is_address(given):
            whole = ipaddress.ip_address(given.partition("%")[0])
            inner = embedded_v4(int(whole)) if whole.version == 6 else None
            assert (whole if inner is None else ipaddress.IPv4Address(inner)) in network


def _is_address(given: str) -> bool:
    try:
        ipaddress.ip_address(given)
    except ValueError:
        return False
    # The standard library takes any text as a zone; ours must end within what a header holds.
    return len(given) <= 100 and given.isascii()


_REDUCED: Final = re.compile(
    r"other|[A-Za-z][A-Za-z/ -]{1,30}( [0-9]{1,3})?; [A-Za-z ]{2,13}; [a-z]{3,7}"
)


def user_agent(data: bytes) -> None:
    """A reduced user agent has words of closed sets and a major version, once and for all."""
    given = data.decode("utf-8", "surrogateescape")
    for agent in (given, f"Mozilla/5.0 ({_USER}) {given} {_USER}/{_USER}", f"{_USER}/1.0 {given}"):
        once = reduce_user_agent(agent)
        assert _REDUCED.fullmatch(once), "not of the documented form"
        assert reduce_user_agent(once) == once, "a second time changes it"
        assert _USER in given or _USER not in once


@cache
def _schemas() -> Schemas:
    policy = load_policy()
    return Schemas(policy, Detectors.compile(policy.detector_table))


@cache
def _edge() -> Edge:
    return Edge(_schemas())


class _Slowly:
    """Rules that take the slow path, whatever comes."""

    def __init__(self, rules: CompiledRules) -> None:
        self._rules = rules
        self.treatments = rules.treatments
        self.rewrite, self.slots, self.encode = rules.rewrite, rules.slots, rules.encode
        self.forms = rules.forms

    def decode(self, raw: bytes, ledger: Ledger) -> Any:
        return self._rules._decode_slowly(raw, ledger)

    reread = recheck = None


class _Everything(Container[str]):
    """A policy that has a purpose for every record."""

    def __contains__(self, kind: object) -> bool:
        return kind in _schemas().records


DIALECTS: Final[Mapping[str, Callable[[bytes], list[Item]]]] = {
    "envelope": lambda body: sentry.parse_envelope(body, _Everything()).items,
    "store": lambda body: sentry.parse_store(body, _Everything()).items,
    "security": lambda body: sentry.parse_security(body, _Everything()).items,
    "track": lambda body: heap.parse_track(body).items,
    "users": lambda body: heap.parse_users(body).items,
    "accounts": lambda body: heap.parse_accounts(body).items,
    "events": lambda body: native.parse_events(body, _Everything()),
    "lines": lambda body: native.parse_events(body, _Everything(), lines=True),
}
"""Entry points of the dialects; the first byte of an input chooses one."""

ENCODINGS: Final = ("", "gzip", "deflate", "br", "zstd")
"""Encodings of a body; the second byte of an input chooses one."""

_CLOSED: Final = re.compile(r"[a-z_]{1,40}( at [a-z_.]{1,80})?")


def body(data: bytes) -> None:
    """A body of any dialect is scrubbed or refused in our words, and holds no planted value."""
    if len(data) < 2:
        return
    parse = list(DIALECTS.values())[data[0] % len(DIALECTS)]
    encoding = ENCODINGS[data[1] % len(ENCODINGS)]
    try:
        unpacked = decompress(data[2:], encoding)
        assert len(unpacked) <= BODY_BYTES
        items = parse(unpacked)
    except Refusal as refusal:
        _told(refusal, _CLOSED)
        return
    for item in items:
        assert re.fullmatch(r"[a-z_]{0,40}", item.refused)
        assert re.fullmatch(r"[0-9a-f]{32}|", item.event_id)
        if not item.refused:
            _check_item(item)


def _check_item(item: Item) -> None:
    connection = Connection("198.51.100.23", [("secret", SESSION)])
    try:
        outcome = _edge().scrub(item, connection)
        rules = _schemas().rules_for(item.kind, item.raw)
    except EventError as error:
        _told(error, _CLOSED)
        return
    _check_leaks(outcome, rules)
    again = rescrub(outcome.event, rules)
    assert (again.event, again.remarks) == (outcome.event, []), "a second time changes it"
    _check_paths(item.raw, rules)
    assert not any(CANARY in path for path in _edge().unknown_paths(item))


def _check_leaks(outcome: Outcome, rules: CompiledRules) -> None:
    event = outcome.event.decode("utf-8")
    assert "\\u0000" not in event
    assert CANARY not in event.lower(), "a planted address"
    assert CANARY not in json.dumps(json.loads(event), ensure_ascii=False).lower()
    assert CANARY not in repr(outcome.remarks).lower(), "a planted address in a remark"
    assert CANARY not in outcome.event_id
    contract = rules.reread(outcome.event)
    if SESSION in event.lower():
        for _, _, value, *_, static in rules.slots(contract, ()):
            assert static or SESSION not in value.lower(), "a known value stays"


def _check_paths(raw: bytes, rules: CompiledRules) -> None:
    """Compare both ways to read an event, where the fast one takes it."""
    if b"\\u0000" in raw:
        return
    try:
        rules._decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    slowly: Any = _Slowly(rules)
    assert scrub(raw, rules) == scrub(raw, slowly), "the slow path makes something else of it"


PROPERTIES: Final[Mapping[str, Callable[[bytes], None]]] = {
    "text": text,
    "url": url,
    "address": address,
    "user_agent": user_agent,
    "body": body,
}
