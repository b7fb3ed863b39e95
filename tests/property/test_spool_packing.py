"""Packing parcels into batches: nothing is lost, doubled, reordered or miscounted."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from telemetry.batch import BATCH_BYTES, BATCH_PARCELS, decode_batch
from telemetry.brokers import pack
from telemetry.testing.brokers import make_parcel

kinds = st.sampled_from(("event", "error"))
sizes = st.one_of(st.integers(0, 40), st.sampled_from((BATCH_BYTES // 3, BATCH_BYTES + 1)))
runs = st.lists(st.tuples(kinds, sizes, st.integers(1, 90)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(runs)
def test_unpacking_gives_the_same_parcels_in_batches_within_the_limits(
    shape: list[tuple[str, int, int]],
) -> None:
    parcels = []
    for kind, size, amount in shape:
        few = amount if size < 100 else amount % 7 + 1
        parcels += [make_parcel(len(parcels) + n, kind=kind, body=bytes(size)) for n in range(few)]
    packed = list(pack(parcels))
    unpacked = [decode_batch(raw) for raw, _ in packed]
    assert [parcel for batch in unpacked for parcel in batch] == parcels
    assert [len(batch) for batch in unpacked] == [events for _, events in packed]
    for batch, (raw, events) in zip(unpacked, packed, strict=True):
        assert 1 <= events <= BATCH_PARCELS
        assert len({parcel.header for parcel in batch}) == 1
        assert events == 1 or len(raw) <= BATCH_BYTES + 8192
