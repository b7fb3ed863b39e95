"""The bytes of a batch: what was written is read, and nothing else is (reliability.md, 64-68)."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.batch import (
    BATCH_BYTES,
    BATCH_PARCELS,
    FINGERPRINT,
    SCHEMAS,
    decode_batch,
    encode_batches,
)
from telemetry.brokers import pack
from telemetry.errors import DecodeError, EventError
from telemetry.parcel import HEADER, Parcel

AT = datetime(2026, 11, 22, 10, 15, 42, 7, tzinfo=UTC)
_MOMENTS = st.datetimes(
    min_value=datetime(1971, 1, 1),  # noqa: DTZ001 - the strategy adds the zone
    max_value=datetime(2400, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
_WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@st.composite
def parcels(draw: st.DrawFn, header: dict[str, str] | None = None) -> Parcel:
    occurred_at = draw(_MOMENTS)
    return Parcel(
        event_id=f"{draw(st.integers(0, 2**128 - 1)):032x}",
        occurred_at=occurred_at,
        received_at=draw(_MOMENTS),
        retain_until=occurred_at + draw(st.timedeltas(timedelta(microseconds=1), timedelta(400))),
        capsule=draw(st.binary(max_size=40)),
        body=draw(st.binary(max_size=60)),
        remarks=draw(st.binary(max_size=20)),
        reason=draw(st.sampled_from(["", "capsule"])),
        **(header or {name: draw(_WORDS) for name in HEADER}),
    )


HEADERS = [{name: f"{name}-{number}" for name in HEADER} for number in range(2)]


def parcel(number: int = 0, body: bytes = b"{}", **more: str) -> Parcel:
    return Parcel(
        event_id=f"{number:032x}",
        occurred_at=AT,
        received_at=AT,
        retain_until=AT + timedelta(days=365),
        body=body,
        **{**HEADERS[0], **more},
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    given_parcels=st.lists(
        st.one_of(parcels(), parcels(HEADERS[0]), parcels(HEADERS[1])), max_size=12
    )
)
def test_what_was_packed_is_unpacked_in_its_order(given_parcels: list[Parcel]) -> None:
    batches = encode_batches(given_parcels)
    assert [one for batch in batches for one in decode_batch(batch)] == given_parcels
    packed = list(pack(given_parcels))
    assert [one for batch, _ in packed for one in decode_batch(batch)] == given_parcels
    assert [len(decode_batch(batch)) for batch, _ in packed] == [count for _, count in packed]


def test_a_batch_ends_at_64_parcels() -> None:
    batches = encode_batches(parcel(n) for n in range(2 * BATCH_PARCELS + 1))
    assert [len(decode_batch(batch)) for batch in batches] == [64, 64, 1]


def test_a_batch_ends_before_256_kib_unless_one_parcel_is_larger() -> None:
    sizes = [100_000, 100_000, 100_000, 400_000, 10, 255_000, 10_000]
    batches = encode_batches(parcel(n, b"x" * size) for n, size in enumerate(sizes))
    found = [[len(one.body) for one in decode_batch(batch)] for batch in batches]
    assert [size for batch in found for size in batch] == sizes
    assert all(len(batch) <= BATCH_BYTES for batch, held in zip(batches, found, strict=True)
               if len(held) > 1)  # fmt: skip
    assert [400_000] in found
    # As few as the limit allows: no neighbours would have fitted into one.
    assert all(sum(one) + sum(other) > BATCH_BYTES - 1000 for one, other in pairwise(found))


def test_another_tenant_or_purpose_never_shares_a_batch() -> None:
    batches = encode_batches([parcel(1), parcel(2, tenant="b"), parcel(3), parcel(4)])
    assert [len(decode_batch(batch)) for batch in batches] == [1, 1, 2]


def refused(raw: bytes) -> str:
    with pytest.raises(EventError) as caught:
        decode_batch(raw)
    error = caught.value
    assert isinstance(error, DecodeError)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    assert "canary" not in repr(error)
    return error.reason


BATCH = encode_batches([parcel(n, b'{"message":"canary"}') for n in range(3)])[0]


def test_an_unknown_fingerprint_is_not_read() -> None:
    for raw in (b"", b"\xc3", b"\xc3\x01", BATCH[:9], b"\xc3\x02" + BATCH[2:], b"{}" + BATCH):
        assert refused(raw) == "unknown_schema"
    other = bytes(byte ^ 1 for byte in FINGERPRINT)
    assert refused(BATCH[:2] + other + BATCH[10:]) == "unknown_schema"


def test_a_batch_cut_anywhere_is_refused() -> None:
    for end in range(len(BATCH)):
        refused(BATCH[:end])


def test_a_batch_with_anything_behind_it_is_refused() -> None:
    for rest in (b"\x00", b"x", BATCH):
        assert refused(BATCH + rest) == "batch"


def test_a_flipped_byte_is_read_or_refused_and_nothing_else() -> None:
    """Whether a change is noticed is the sealing's matter; here it may only not break us."""
    draw = random.Random(7)  # noqa: S311 - reproducible damage
    seen = 0
    for place in range(len(BATCH)):
        for _ in range(4):
            damaged = bytearray(BATCH)
            damaged[place] ^= draw.randrange(1, 256)
            try:
                decode_batch(bytes(damaged))
            except DecodeError:
                seen += 1
    assert seen > len(BATCH)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rest=st.binary(max_size=200))
def test_any_bytes_behind_a_known_fingerprint_are_read_or_refused(rest: bytes) -> None:
    try:
        decode_batch(BATCH[:10] + rest)
    except DecodeError as error:
        told = repr(error)
    else:
        told = ""
    assert len(told) < 60


def test_a_batch_that_claims_a_billion_parcels_is_refused_at_once() -> None:
    head = BATCH[: BATCH.index(b"policy_digest-0") + len(b"policy_digest-0")]
    for claim in (
        b"\x80\x94\xeb\xdc\x03",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x01\x00",
    ):
        assert refused(head + claim) in ("batch", "event_id")


def test_a_parcel_without_tags_does_not_come_out_of_a_batch() -> None:
    assert refused(BATCH.replace(b"\x1alegal_basis-0", b"\x00", 1)) in ("batch", "untagged")
    (mark,) = SCHEMAS
    record = {name: HEADERS[0][name] for name in HEADER} | {"purpose": "", "parcels": [_item()]}
    from io import BytesIO

    out = BytesIO()
    fastavro.schemaless_writer(out, SCHEMAS[mark], record)
    assert refused(b"\xc3\x01" + mark + out.getvalue()) == "untagged"


def _item() -> dict[str, object]:
    one = parcel(1)
    names = ("event_id", "occurred_at", "received_at", "retain_until", "capsule", "body")
    return {name: getattr(one, name) for name in names} | {"remarks": b"", "reason": ""}
