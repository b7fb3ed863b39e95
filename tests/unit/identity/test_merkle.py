"""The tree's arithmetic: known answers, and proofs that hold for every tree and nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.identity.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "audit.json").read_text("utf-8"))
LEAVES = st.lists(st.binary(max_size=3).map(leaf_hash), max_size=40)


@pytest.mark.parametrize("case", VECTORS["merkle"], ids=lambda case: case["name"])
def test_roots_are_those_of_the_vectors(case: dict[str, object]) -> None:
    entries = [bytes.fromhex(entry) for entry in case["entries"]]  # type: ignore[attr-defined]
    assert root_of(map(leaf_hash, entries)).hex() == case["root"]


def test_an_entry_cannot_pass_for_a_node() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)
    assert hashlib.sha256(b"").digest() == EMPTY_ROOT


def naive_root(leaves: list[bytes]) -> bytes:
    """The recursive definition of RFC 6962, 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(naive_root(leaves[:split]), naive_root(leaves[split:]))


@settings(max_examples=60, deadline=None)
@given(leaves=LEAVES)
def test_the_frontier_gives_the_root_of_the_definition(leaves: list[bytes]) -> None:
    frontier = Frontier()
    for count, leaf in enumerate(leaves, 1):
        frontier.push(leaf)
        assert Frontier(count, frontier.nodes).root() == naive_root(leaves[:count])


@settings(max_examples=60, deadline=None)
@given(leaves=LEAVES.filter(bool), data=st.data())
def test_inclusion_is_proved_for_the_entry_at_its_place_only(
    leaves: list[bytes], data: st.DataObject
) -> None:
    leaves = [leaf_hash(bytes([n]) + leaf) for n, leaf in enumerate(leaves)]  # all different
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, proof = root_of(leaves), inclusion_proof(leaves, index)
    for other in range(len(leaves)):
        held = verify_inclusion(
            leaves[other], index=index, size=len(leaves), proof=proof, root=root
        )
        assert held is (other == index)
    for wrong in (proof[:-1], [*proof, root], proof[::-1]):
        if wrong != proof:
            assert not verify_inclusion(
                leaves[index], index=index, size=len(leaves), proof=wrong, root=root
            )


@settings(max_examples=60, deadline=None)
@given(leaves=LEAVES, data=st.data())
def test_growth_is_proved_for_true_beginnings_only(
    leaves: list[bytes], data: st.DataObject
) -> None:
    earlier = data.draw(st.integers(0, len(leaves)))
    proof = consistency_proof(leaves, earlier)
    later_root = root_of(leaves)

    def holds(former: bytes, latter: bytes) -> bool:
        return verify_consistency(
            earlier=earlier,
            earlier_root=former,
            later=len(leaves),
            later_root=latter,
            proof=proof,
        )

    assert holds(root_of(leaves[:earlier]), later_root)
    assert not holds(leaf_hash(b"another"), later_root)
    if earlier:
        assert not holds(root_of(leaves[:earlier]), leaf_hash(b"another"))


def test_what_is_out_of_the_tree_is_refused() -> None:
    leaves = [leaf_hash(b"a"), leaf_hash(b"b")]
    for index in (-1, 2):
        with pytest.raises(ValueError, match="no entry"):
            inclusion_proof(leaves, index)
        assert not verify_inclusion(
            leaves[0], index=index, size=2, proof=[leaves[1]], root=root_of(leaves)
        )
    with pytest.raises(ValueError, match="never had"):
        consistency_proof(leaves, 3)
    with pytest.raises(ValueError, match="one hash for each bit"):
        Frontier(3, [leaves[0]])
