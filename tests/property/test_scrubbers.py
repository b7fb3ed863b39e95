"""What holds for any text: twice is once, and no planted value survives anywhere."""

from __future__ import annotations

import base64
import ipaddress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scrubbers import (
    AddressError,
    AddressProfile,
    KnownValues,
    coarsen_time,
    redact_text,
    reduce_url,
    reduce_user_agent,
    truncate_ip,
)
from scrubbers.address import CLASSES
from scrubbers.detectors import SEPARATOR, searchable
from scrubbers.text import shipped_detectors

_EXAMPLES = [text for row in shipped_detectors().rows for text, _ in row.detector.match]
_FRAGMENTS = st.sampled_from(
    [
        *_EXAMPLES, "password=", "token: ", '"', "'", "\\", "<", ">", "@", "<email:1>", "<secret>",
        " ", "\n", "\x1e", "=", ":", "/", "%40", "é", "\u0338", "\u200b", "\uff20", "1", "4111",
    ]
)  # fmt: skip
_TEXTS = st.one_of(st.text(max_size=80), st.lists(_FRAGMENTS, max_size=8).map("".join))
_ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
_PLANTS = {
    "email": "zq9janedoe@mail.example.com",
    "ipv4": "203.0.113.207",
    "ipv6": "2001:db8:85a3:8d3::7348",
    "card": "4111 1111 1111 1111",
    "iban": "DE89 3704 0044 0532 0130 00",
    "phone": "+49 30 901820",
    "jwt": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ6cTkifQ.c2ln",
    "secret": 'api_key="zq9hunter2zq9"',
    "credentials": "https://zq9jane:zq9pw@app.example.com/",
    "path": "/home/zq9jane/app.py",
}
_SECRET_PARTS = ("zq9", "203.0.113", "8d3::7348", "1111 1111", "0532", "901820", "eyJhbGci")

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_TEXTS)
def test_redacting_twice_is_redacting_once(text: str) -> None:
    redacted, remarks = redact_text(text)
    assert redact_text(redacted) == (redacted, ())
    data = redacted.encode()
    for remark in remarks:
        assert data[remark.start : remark.start + 1] == b"<"
        assert data[remark.end - 1 : remark.end] == b">"
    assert [r.start for r in remarks] == sorted(r.start for r in remarks)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_TEXTS)
def test_the_finder_finds_nothing_in_what_comes_out(text: str) -> None:
    detectors = shipped_detectors()
    data = searchable(redact_text(text)[0]).encode()
    for row in detectors.rows:
        assert next(detectors.find(row, data), None) is None


def _is_claimed(row: Any, data: bytes) -> bool:
    if row.detector.id == "ipv6":
        # Its pattern also takes `::`, which its validator then refuses.
        return next(shipped_detectors().find(row, data), None) is not None
    return bool(row.pattern.spans(data, 0)[0][0] >= 0)


@settings(max_examples=200, deadline=None)
@given(_TEXTS)
def test_where_a_pattern_finds_something_its_anchor_hits(text: str) -> None:
    detectors = shipped_detectors()
    data = searchable(text).encode()
    for row in detectors.rows:
        if _is_claimed(row, data):
            assert row.anchor.hits(data), row.detector.id
            assert detectors.gate_bytes(data)


def _as_python(pattern: str) -> str:
    return pattern.replace(r"\x{80}-\x{10ffff}", "\u00a1-\u02af")


@pytest.mark.parametrize("row", shipped_detectors().rows, ids=lambda row: row.detector.id)
# Without explaining: it traces each line, and making a strategy of a long pattern has too many.
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=set(Phase) - {Phase.explain},
)
@given(data=st.data())
def test_texts_made_from_a_pattern_hit_its_anchor(row: Any, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(_as_python(row.detector.pattern), fullmatch=True))
    form = searchable(text).encode()
    if _is_claimed(row, form):  # the searched form is another text where it is not ASCII
        assert row.anchor.hits(form)
        assert shipped_detectors().gate(f"before{SEPARATOR}{text}")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(_PLANTS)),
    st.text(st.sampled_from("abc xyz,.\n(ü"), max_size=30),
    st.text(st.sampled_from("abc xyz,\n)ü"), max_size=30),
)
def test_a_planted_value_survives_in_no_text_and_no_remark(
    kind: str, before: str, after: str
) -> None:
    redacted, remarks = redact_text(f"{before} {_PLANTS[kind]} {after}")
    for part in _SECRET_PARTS:
        assert part not in redacted
        assert part not in repr(remarks)


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.sampled_from("abcxyzÄß0189 -"), min_size=6, max_size=24).filter(
        lambda value: len(value.strip()) >= 6 and any(c.isalpha() for c in value)
    ),
    st.sampled_from(["plain", "upper", "url", "hex", "base64"]),
    st.text(st.sampled_from("mnop 345\n"), max_size=12),
)
def test_a_known_value_survives_in_no_encoding(value: str, form: str, around: str) -> None:
    value = searchable(value).strip()
    written = {
        "plain": value,
        "upper": value.upper(),
        "url": quote(value, safe=""),
        "hex": value.encode().hex(),
        "base64": base64.b64encode(around.encode() + value.encode()).decode(),
    }[form]
    known = KnownValues([("name", value)])
    text = f"{around} {written} {around}"
    redacted, remarks = redact_text(text, known=known)
    assert written not in redacted
    assert remarks
    assert redact_text(redacted, known=known) == (redacted, ())
    assert value not in repr(known) + repr(remarks)


@given(_ADDRESSES, st.integers(0, 32), st.integers(0, 128))
def test_truncating_twice_is_truncating_once(address: str, v4_bits: int, v6_bits: int) -> None:
    profile = AddressProfile("any", v4_bits, v6_bits)
    once = truncate_ip(address, profile=profile)
    try:
        assert truncate_ip(once, profile=profile) == once
    except AddressError:
        # A network so wide or so narrow that its bits could embed another is refused, not passed.
        assert v6_bits < 3 or v6_bits > 40


@given(_ADDRESSES)
def test_an_output_is_a_class_or_a_network_around_the_address(address: str) -> None:
    for profile in ("default", "ga", "strict"):
        once = truncate_ip(address, profile=profile)
        assert truncate_ip(once, profile=profile) == once
        if once not in CLASSES:
            network = ipaddress.ip_network(once)
            parsed = ipaddress.ip_address(address)
            assert network.version == 4 or parsed in network
            if parsed.version == 4:
                assert parsed in network


@given(st.ip_addresses(v=4))
def test_every_way_to_embed_an_address_leads_to_the_same_network(
    address: ipaddress.IPv4Address,
) -> None:
    plain, bits = truncate_ip(str(address)), int(address)
    for embedded in (
        0xFFFF << 32 | bits,
        0x0064_FF9B << 96 | bits,
        0x2002 << 112 | bits << 80 | 1,
        0x2001_0000 << 96 | (bits ^ 0xFFFF_FFFF),
        0x2001_0DB8 << 96 | 0x5EFE << 32 | bits,
    ):
        assert truncate_ip(str(ipaddress.IPv6Address(embedded))) == plain


@given(st.text(max_size=60))
def test_an_address_error_repeats_nothing(text: str) -> None:
    try:
        truncate_ip(text)
    except AddressError as error:
        caught = error
    else:
        return
    assert str(caught) == "not an IP address"
    assert caught.__cause__ is None


_URLS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                *("https://", "http:", "//", "/", "\\", "jane", ":pw", "@", "?q=1", "#x", "users"),
                *("%2F", "home", "C:", ".", "..", ";a", "203.0.113.7", "[::2]", "blob:", "data:"),
                *("file:", "~", "<id>", "<ip>", "<user>", "a1b2c3d4e5", "localhost", ":80", " "),
                *("\n", "é", "example.com"),
            ]
        ),
        max_size=9,
    ).map("".join),
)  # fmt: skip


@settings(max_examples=200)
@given(_URLS, st.booleans())
def test_reducing_a_url_twice_is_reducing_it_once(url: str, keep_path: bool) -> None:
    once = reduce_url(url, keep_path=keep_path)
    assert reduce_url(once, keep_path=keep_path) == once


@given(_URLS)
def test_no_query_fragment_or_user_info_comes_out_of_a_url(tail: str) -> None:
    url = f"https://zq9user:zq9pw@app.example.com/a?zq9={tail}#zq9{tail}"
    assert "zq9" not in reduce_url(url)
    assert "zq9" not in reduce_url(url, keep_path=True)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_a_user_agent_of_any_text_is_reduced_once_and_for_all(text: str) -> None:
    once = reduce_user_agent(text)
    assert reduce_user_agent(once) == once
    assert once == "other" or once.count("; ") == 2


@given(st.datetimes(timezones=st.just(UTC)), st.integers(1, 86_400))
def test_a_coarse_time_is_on_the_grid_and_stays_there(at: datetime, seconds: int) -> None:
    once = coarsen_time(at, seconds=seconds)
    assert once <= at or once.year == 1
    assert at - once < timedelta(seconds=seconds) or once.year == 1
    assert coarsen_time(once, seconds=seconds) == once
