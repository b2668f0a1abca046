import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.crypto.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    NoSuchTreeError,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

# Published by Certificate Transparency's tests, over its eight leaves.
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
TREE = MerkleTree(leaf_hash(b"%d" % number) for number in range(70))
SIZES = st.integers(1, TREE.size)


def test_roots_are_those_of_certificate_transparency() -> None:
    tree = MerkleTree()
    assert tree.root() == EMPTY_ROOT
    for number, leaf in enumerate(LEAVES):
        assert tree.append(leaf_hash(bytes.fromhex(leaf))) == number
        assert tree.root().hex() == ROOTS[number + 1]
    assert {size: tree.root(size).hex() for size in ROOTS} == ROOTS


@given(size=SIZES, data=st.data())
def test_a_leaf_is_proved_at_its_place_and_nowhere_else(size: int, data: st.DataObject) -> None:
    index, other = data.draw(st.integers(0, size - 1)), data.draw(st.integers(-1, size))
    proof = TREE.inclusion(index, size)
    assert verify_inclusion(TREE.leaf(index), index, size, proof, TREE.root(size))
    if other != index:
        assert not verify_inclusion(TREE.leaf(index), other, size, proof, TREE.root(size))
    assert not verify_inclusion(leaf_hash(b"x"), index, size, proof, TREE.root(size))
    assert not verify_inclusion(
        TREE.leaf(index), index, size, [*proof, b"\x00" * 32], TREE.root(size)
    )
    assert (
        not verify_inclusion(TREE.leaf(index), index, size, proof[:-1], TREE.root(size))
        or not proof
    )


@given(one=SIZES, two=SIZES, data=st.data())
def test_a_longer_tree_is_proved_to_go_on_from_a_shorter_one(
    one: int, two: int, data: st.DataObject
) -> None:
    old, new = sorted((one, two))
    proof = TREE.consistency(old, new)
    assert verify_consistency(old, new, proof, TREE.root(old), TREE.root(new))
    assert not verify_consistency(old, new, proof, leaf_hash(b"x"), TREE.root(new))
    assert not verify_consistency(old, new, proof, TREE.root(old), leaf_hash(b"x"))
    assert not verify_consistency(old, new, [*proof, b"\x00" * 32], TREE.root(old), TREE.root(new))
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        changed = [
            bytes([step[0] ^ (number == place), *step[1:]]) for number, step in enumerate(proof)
        ]
        assert not verify_consistency(old, new, changed, TREE.root(old), TREE.root(new))
        assert not verify_consistency(old, new, proof[:-1], TREE.root(old), TREE.root(new))


@given(size=SIZES, place=st.integers(0, 69))
def test_a_changed_leaf_changes_every_root_from_there_on(size: int, place: int) -> None:
    changed = MerkleTree(
        leaf_hash(b"changed" if number == place else b"%d" % number) for number in range(70)
    )
    assert (changed.root(size) == TREE.root(size)) == (place >= size)


def test_a_proof_of_another_height_is_refused_though_its_hashes_lead_to_the_root() -> None:
    pair = TREE.inclusion(2, 4)[1]  # the node over the leaves 0 and 1
    assert not verify_inclusion(pair, 0, 4, [TREE.inclusion(0, 4)[1]], TREE.root(4))
    assert not verify_inclusion(TREE.leaf(1), 0, 1, [TREE.leaf(0)], TREE.root(2))
    assert not verify_consistency(2, 8, [TREE.inclusion(0, 4)[1]], TREE.root(2), TREE.root(4))
    assert not verify_consistency(1, 2, TREE.consistency(1, 4), TREE.root(1), TREE.root(4))
    assert not verify_consistency(3, 4, TREE.consistency(7, 8), TREE.root(7), TREE.root(8))


def test_nothing_precedes_every_tree() -> None:
    assert TREE.consistency(0, 5) == []
    assert verify_consistency(0, 5, [], EMPTY_ROOT, TREE.root(5))
    assert not verify_consistency(0, 5, [], TREE.root(1), TREE.root(5))
    assert not verify_consistency(6, 5, [], TREE.root(6), TREE.root(5))
    assert not verify_consistency(3, 5, [], TREE.root(3), TREE.root(5))


def test_what_the_tree_never_was_is_refused() -> None:
    for ask in (
        lambda: TREE.root(71),
        lambda: TREE.root(-1),
        lambda: TREE.leaf(70),
        lambda: TREE.inclusion(5, 5),
        lambda: TREE.inclusion(-1, 5),
        lambda: TREE.inclusion(0, 71),
        lambda: TREE.consistency(6, 5),
        lambda: TREE.consistency(5, 71),
        lambda: TREE.consistency(-1, 5),
    ):
        with pytest.raises(NoSuchTreeError):
            ask()
