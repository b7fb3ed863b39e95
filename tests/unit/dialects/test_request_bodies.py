"""Encodings and limits of bodies, before any dialect reads them."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import zlib

import brotli
import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.dialects import BODY_BYTES, REFUSALS, Refusal, decode_json, decompress, guard

PACK = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
ENCODINGS = sorted(PACK)


def raw_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


def refusal(data: bytes, encoding: str) -> str:
    with pytest.raises(Refusal) as caught:
        decompress(data, encoding)
    return caught.value.code


@given(st.binary(max_size=4096), st.sampled_from(ENCODINGS))
@settings(max_examples=100, deadline=None)
def test_every_encoding_gives_back_what_was_packed(data: bytes, encoding: str) -> None:
    assert decompress(PACK[encoding](data), encoding) == data


def test_deflate_is_read_with_and_without_its_zlib_head() -> None:
    data = b'{"event": "project_opened"}' * 20
    assert decompress(zlib.compress(data), "deflate") == data
    assert decompress(raw_deflate(data), "deflate") == data


@pytest.mark.parametrize("encoding", ["", "identity", "utf-8"])
def test_a_body_without_encoding_stays_as_it_is(encoding: str) -> None:
    assert decompress(b"{}", encoding) == b"{}"


@pytest.mark.parametrize("encoding", ["gzip,gzip", "gzip, br", "compress", "x", "br;q=1"])
def test_unknown_and_stacked_encodings_are_refused(encoding: str) -> None:
    assert refusal(b"{}", encoding) == "wrong_encoding"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_cut_off_corrupt_or_extended_body_is_refused(encoding: str) -> None:
    packed = PACK[encoding](b"an event" * 50)
    assert refusal(packed[:-3], encoding) == "bad_encoding"
    assert refusal(packed + b"more", encoding) == "bad_encoding"
    assert refusal(b"\x01\x02\x03" + packed, encoding) == "bad_encoding"
    assert refusal(b"", encoding) == "bad_encoding"


@given(st.binary(max_size=600), st.sampled_from(ENCODINGS))
@settings(max_examples=150, deadline=None)
def test_no_bytes_make_decompression_fail_otherwise(data: bytes, encoding: str) -> None:
    try:
        decompress(data, encoding)
    except Refusal as error:
        assert error.code in ("bad_encoding", "too_large")  # noqa: PT017 - either outcome is fine


def bomb(encoding: str) -> bytes:
    return PACK[encoding](bytes(100 * 1024 * 1024))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_bomb_is_refused_fast_and_in_little_memory(encoding: str) -> None:
    packed = bomb(encoding)
    started = time.process_time()
    assert refusal(packed, encoding) == "too_large"
    assert time.process_time() - started < 0.1
    tracemalloc.start()
    refusal(packed, encoding)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * BODY_BYTES


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_bomb_in_a_bomb_is_opened_once_only(encoding: str) -> None:
    nested = PACK[encoding](bomb(encoding))
    inner = decompress(nested, encoding)
    assert len(inner) < BODY_BYTES
    with pytest.raises(Refusal, match="not_json"):
        decode_json(inner, msgspec.json.Decoder(dict[str, msgspec.Raw]))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_beyond_a_mebibyte_a_hundredfold_is_too_much(encoding: str) -> None:
    assert refusal(PACK[encoding](bytes(2 * 1024 * 1024)), encoding) == "too_large"
    events = b'{"event":"project_opened"}\n' * 1000
    assert decompress(PACK[encoding](events), encoding) == events


@pytest.mark.parametrize(
    "body",
    [b"[" + b"[]," * 3_000_000 + b"[]]", b'{"a":[' + b"1," * 4_000_000 + b"1]}", b"{" * 5_000_000],
    ids=["empty lists", "numbers", "braces"],
)
def test_a_body_of_very_many_values_is_refused_before_it_is_read(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises(Refusal, match="too_many_values"):
        guard(body)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'\xef\xbb\xbf{"a":1}', 1),
        (b'{"a":NaN}', None),
        (b'{"a":"\\ud800"}', "\ufffd"),
        (b'{"a":"\xff"}', "\ufffd"),
        (b'{"a":1,"a":2}', 2),
    ],
)
def test_json_that_clients_send_although_it_is_none_is_read(body: bytes, value: object) -> None:
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    # Broken UTF-8 inside a value is passed on: the schema reads that value, or drops it.
    found = bytes(decode_json(body, decoder)["a"]).decode("utf-8", "replace")
    assert json.loads(found) == value


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"alice@example.org", b"[1]", b'"a"', b"{"],
)
def test_json_that_is_none_is_refused_without_repeating_it(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        decode_json(body, msgspec.json.Decoder(dict[str, msgspec.Raw]))
    assert str(caught.value) == "not_json"
    assert caught.value.__suppress_context__


def test_every_refusal_has_a_documented_status() -> None:
    documented = {400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503}
    assert {answer.status for answer in REFUSALS.values()} == documented
