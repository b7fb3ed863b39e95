"""Merkle trees of RFC 6962: hashes in, roots and proofs out. Pure.

Owns the arithmetic of a tree that only grows: its root, the proof that it holds an entry, and the
proof that a later tree begins with an earlier one. Knows no entry, file or key.

Source:
    RFC 6962, 2.1; the verifying algorithms are those of RFC 9162, 2.1.3.2 and 2.1.4.2. The vectors
    are those that both RFCs' reference implementations share, and ``tests/vectors/audit.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "Frontier",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "root_of",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """Hash an entry. The byte before it keeps an entry from ever passing for a node.

    >>> leaf_hash(b"").hex()[:16]
    '6e340b9cffb37a98'
    """
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into the one above them."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The full subtrees of a tree that grows: all that its root and its next entry need.

    Args:
        size: Number of entries so far.
        nodes: Roots of the full subtrees from the left, one for each bit that `size` has set.

    Raises:
        ValueError: The two do not fit each other.
    """

    __slots__ = ("_nodes", "size")

    def __init__(self, size: int = 0, nodes: Iterable[bytes] = ()) -> None:
        self.size, self._nodes = size, list(nodes)
        fits = size >= 0 and len(self._nodes) == size.bit_count()
        if not fits or any(len(node) != HASH_BYTES for node in self._nodes):
            raise ValueError("A frontier has one hash for each bit of its size.")

    @property
    def nodes(self) -> tuple[bytes, ...]:
        """The roots of the full subtrees, from the left."""
        return tuple(self._nodes)

    def push(self, leaf: bytes) -> None:
        """Take the hash of the next entry."""
        merged, carry = leaf, self.size
        while carry & 1:
            merged = node_hash(self._nodes.pop(), merged)
            carry >>= 1
        self._nodes.append(merged)
        self.size += 1

    def root(self) -> bytes:
        """Give the root of the tree as it stands."""
        if not self._nodes:
            return EMPTY_ROOT
        root = self._nodes[-1]
        for node in reversed(self._nodes[:-1]):
            root = node_hash(node, root)
        return root


def root_of(leaves: Iterable[bytes]) -> bytes:
    """Give the root of the tree over these hashes of entries."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.push(leaf)
    return frontier.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Prove that the tree over `leaves` holds the entry at `index`, counted from 0.

    Raises:
        ValueError: There is no such entry.
    """
    if not 0 <= index < len(leaves):
        raise ValueError("The tree has no entry of that number.")
    return _path(leaves, index, 0, len(leaves))


def verify_inclusion(
    leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Tell whether a tree of `size` entries with this root holds `leaf` at `index`."""
    if not 0 <= index < size:
        return False
    number, last, found = index, size - 1, leaf
    for node in proof:
        if last == 0:
            return False
        if number & 1 or number == last:
            found = node_hash(node, found)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            found = node_hash(found, node)
        number, last = number >> 1, last >> 1
    return last == 0 and found == root


def consistency_proof(leaves: Sequence[bytes], earlier: int) -> list[bytes]:
    """Prove that the tree over `leaves` begins with its first `earlier` entries.

    Raises:
        ValueError: It has fewer.
    """
    if not 0 <= earlier <= len(leaves):
        raise ValueError("The tree never had that size.")
    if earlier in {0, len(leaves)}:
        return []
    return _subproof(leaves, earlier, 0, len(leaves), whole=True)


def verify_consistency(
    *, earlier: int, earlier_root: bytes, later: int, later_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Tell whether the tree of `later` entries begins with the one of `earlier` entries."""
    if not 0 <= earlier <= later:
        return False
    if earlier == later:
        return not proof and earlier_root == later_root
    if earlier == 0:
        return not proof and earlier_root == EMPTY_ROOT
    path = list(proof)
    if earlier & (earlier - 1) == 0:
        path.insert(0, earlier_root)
    if not path:
        return False
    number, last = earlier - 1, later - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    former = latter = path[0]
    for node in path[1:]:
        if last == 0:
            return False
        if number & 1 or number == last:
            former, latter = node_hash(node, former), node_hash(node, latter)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            latter = node_hash(latter, node)
        number, last = number >> 1, last >> 1
    return last == 0 and former == earlier_root and latter == later_root


def _root(leaves: Sequence[bytes], start: int, end: int) -> bytes:
    return root_of(leaves[at] for at in range(start, end))


def _split(count: int) -> int:
    """Give the largest power of two below `count`, which is at least 2."""
    return 1 << (count - 1).bit_length() - 1


def _path(leaves: Sequence[bytes], index: int, start: int, end: int) -> list[bytes]:
    if end - start == 1:
        return []
    middle = start + _split(end - start)
    if start + index < middle:
        return [*_path(leaves, index, start, middle), _root(leaves, middle, end)]
    return [*_path(leaves, start + index - middle, middle, end), _root(leaves, start, middle)]


def _subproof(
    leaves: Sequence[bytes], earlier: int, start: int, end: int, *, whole: bool
) -> list[bytes]:
    if earlier == end - start:
        return [] if whole else [_root(leaves, start, end)]
    middle = start + _split(end - start)
    if earlier <= middle - start:
        left = _subproof(leaves, earlier, start, middle, whole=whole)
        return [*left, _root(leaves, middle, end)]
    rest = earlier - (middle - start)
    return [*_subproof(leaves, rest, middle, end, whole=False), _root(leaves, start, middle)]
