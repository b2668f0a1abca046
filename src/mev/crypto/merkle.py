"""Merkle trees of RFC 6962: an append-only tree, its proofs, and their verification.

Leaves are numbered from 0. A root, a leaf and every step of a proof are SHA-256 hashes of 32 bytes.
Proofs are verified as in RFC 9162, sections 2.1.3.2 and 2.1.4.2.
"""

import hashlib
from collections.abc import Iterable, Sequence

from mev.core.errors import InvalidInputError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
Proof = list[bytes]


class NoSuchTreeError(InvalidInputError):
    """The tree has not reached this size, or has no such leaf."""

    code = "no_such_tree"


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """An append-only tree in memory, with roots and proofs for every size it has had.

    It takes 64 bytes per leaf.
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        # Level n holds the roots of the complete subtrees of 2**n leaves, from the left.
        self._levels = [bytearray()]
        for hashed in leaf_hashes:
            self.append(hashed)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    def append(self, hashed: bytes) -> int:
        """Append a leaf by its hash; return its index."""
        number = self.size
        level = 0
        while True:
            self._levels[level] += hashed
            if len(self._levels[level]) // HASH_BYTES % 2:
                return number
            hashed = node_hash(bytes(self._levels[level][-2 * HASH_BYTES : -HASH_BYTES]), hashed)
            level += 1
            if level == len(self._levels):
                self._levels.append(bytearray())

    def leaf(self, index: int) -> bytes:
        """Return the hash of leaf `index`."""
        self._check(index + 1)
        return self._node(0, index)

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first `size` leaves, or of all."""
        size = self.size if size is None else size
        self._check(size)
        return self._hash(0, size) if size else EMPTY_ROOT

    def subtree_roots(self, level: int, start: int, count: int) -> bytes:
        """Return the roots of `count` complete subtrees of 2**level leaves, from number `start`."""
        self._check((start + count) << level)
        return bytes(self._levels[level][start * HASH_BYTES : (start + count) * HASH_BYTES])

    def inclusion(self, index: int, size: int) -> Proof:
        """Return the proof that leaf `index` is among the first `size` leaves."""
        self._check(size)
        if not 0 <= index < size:
            raise NoSuchTreeError(f"there is no leaf {index} among {size}")
        return self._path(index, 0, size)

    def consistency(self, old: int, new: int) -> Proof:
        """Return the proof that the first `old` leaves are a prefix of the first `new` leaves."""
        self._check(new)
        if not 0 <= old <= new:
            raise NoSuchTreeError(f"{old} leaves are not the beginning of {new}")
        return [] if old in {0, new} else self._subproof(old, 0, new, whole=True)

    def _check(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise NoSuchTreeError(f"the tree has {self.size} leaves, not {size}")

    def _node(self, level: int, index: int) -> bytes:
        return bytes(self._levels[level][index * HASH_BYTES : (index + 1) * HASH_BYTES])

    def _hash(self, start: int, stop: int) -> bytes:
        """Return the root of leaves `start` to `stop`.

        `start` is a multiple of the power of two that covers the range.
        """
        width = stop - start
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            return self._node(level, start >> level)
        split = start + _split(width)
        return node_hash(self._hash(start, split), self._hash(split, stop))

    def _path(self, index: int, start: int, stop: int) -> Proof:
        if stop - start == 1:
            return []
        split = start + _split(stop - start)
        if index < split:
            return [*self._path(index, start, split), self._hash(split, stop)]
        return [*self._path(index, split, stop), self._hash(start, split)]

    def _subproof(self, old: int, start: int, stop: int, *, whole: bool) -> Proof:
        if old == stop:
            return [] if whole else [self._hash(start, stop)]
        split = start + _split(stop - start)
        if old <= split:
            return [*self._subproof(old, start, split, whole=whole), self._hash(split, stop)]
        return [*self._subproof(old, split, stop, whole=False), self._hash(start, split)]


def verify_inclusion(
    hashed: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Return whether `proof` shows that `hashed` is leaf `index` of `size` leaves under `root`."""
    if not 0 <= index < size:
        return False
    node, last = index, size - 1
    for step in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            hashed = node_hash(step, hashed)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            hashed = node_hash(hashed, step)
        node, last = node >> 1, last >> 1
    return last == 0 and hashed == root


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bool:
    """Return whether `proof` shows that the tree of `new_root` extends the tree of `old_root`.

    `new` and `old` are their numbers of leaves.
    """
    if not 0 <= old <= new:
        return False
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    steps = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not steps:
        return False
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            first, second = node_hash(step, first), node_hash(step, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, step)
        node, last = node >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


def _split(width: int) -> int:
    """Return the largest power of two below `width`."""
    return 1 << (width - 1).bit_length() - 1
