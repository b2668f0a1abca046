import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from mev.crypto import merkle, note
from mev.crypto.envelope import pae
from mev.crypto.errors import EnvelopeError
from mev.crypto.keys import SigningKey
from mev.crypto.trust import TrustStore
from mev.wire.pb.envelope_pb2 import Envelope, KeySet
from tests.unit.crypto.vectors import FOLDER, load, message_type

FILES = ("envelopes.json", "reports.json", "key_sets.json", "merkle.json")
CASES = [(name, case) for name in FILES for case in load(name)["cases"]]


def outcome(store: TrustStore, case: dict[str, Any], now_ns: int) -> str:
    data = bytes.fromhex(case["envelope"])
    try:
        if case["message"] == "KeySet":
            assert store.rotate(data, now_ns).epoch == store.epoch == case["epoch"]
        else:
            message = store.open(data, message_type(case["message"]), case["role"], now_ns)
            assert MessageToDict(message) == case.get("decoded", MessageToDict(message))
    except EnvelopeError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize(
    ("file", "case"), CASES, ids=[f"{name}: {case['name']}" for name, case in CASES]
)
def test_every_envelope_comes_out_as_published(file: str, case: dict[str, Any]) -> None:
    vectors = load(file)
    store = TrustStore(KeySet.FromString(bytes.fromhex(vectors["key_sets"][case["key_set"]])))
    assert outcome(store, case, vectors["now_ns"]) == case["expect"]
    if case["message"] == "KeySet" and case["expect"] != "ok":
        assert store.epoch == 1
    if "signed" in case:
        envelope = Envelope.FromString(bytes.fromhex(case["envelope"]))
        assert pae(envelope.payload_type, envelope.payload).hex() == case["signed"]


def test_the_keys_are_those_of_their_seeds() -> None:
    for name, key in load("keys.json").items():
        assert SigningKey.from_hex(key["seed"], name).public_key.hex() == key["public_key"]


def test_signed_note_of_checkpoint_opens_as_published() -> None:
    vectors = load("tlog.json")
    text = vectors["checkpoint"].encode()
    found = note.read_checkpoint(text)
    assert (found.size, found.root_hash.hex()) == (vectors["size"], vectors["root_hash"])
    public_key = bytes.fromhex(load("keys.json")["audit-1"]["public_key"])
    assert note.verifier_key(found.origin, public_key) == vectors["verifier_key"]
    assert note.is_signed_by(text, found.origin, public_key)
    assert not note.is_signed_by(text.replace(b"\n8\n", b"\n7\n"), found.origin, public_key)


def test_trees_come_out_as_published() -> None:
    vectors = load("merkle.json")
    tree = merkle.MerkleTree(merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in vectors["leaves"])
    assert [tree.root(size).hex() for size in range(9)] == vectors["roots"]
    for item in vectors["inclusion"]:
        assert [step.hex() for step in tree.inclusion(item["index"], item["size"])] == item["proof"]
    for item in vectors["consistency"]:
        assert [step.hex() for step in tree.consistency(item["old"], item["new"])] == item["proof"]


def test_the_generator_writes_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "generate.py", tmp_path], check=True, timeout=30)
    for file in tmp_path.iterdir():
        assert file.read_text() == (FOLDER / file.name).read_text(), (
            f"{file.name}: run protocol/testdata/generate.py"
        )
    assert len(list(tmp_path.iterdir())) == 6


def test_the_second_implementation_agrees(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "check.py"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, "all vectors come out as they should\n")

    found = check_changed(tmp_path, '"expect": "unknown_key"', '"expect": "ok"')
    assert found == "envelopes.json: unknown key: unknown_key, not ok\n"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (
            '"tile/0/000.p/8": "6e',
            '"tile/0/000.p/8": "6f',
            "tiles: the hashes are not those of the records",
        ),
        ('"size": 8', '"size": 9', "tiles: the root is not that of the records"),
        ("\\n8\\nXcna", "\\n8\\nXcnb", "checkpoint: origin, size or root hash"),
        ("log-1 8Y+qyvf3", "log-1 8Y+qyvf4", "checkpoint: wrong signature"),
        (
            "log-1 8Y+qyvf3",
            "log-1 9Y+qyvf3",
            "checkpoint: the signature line is not of the verifier key",
        ),
        ("log-1+f18faaca", "log-1+f18faacb", "verifier key: wrong hash or algorithm"),
    ],
)
def test_second_implementation_names_a_changed_log_vector(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    assert old in (FOLDER / "tlog.json").read_text()
    assert f"tlog.json: {named}\n" in check_changed(tmp_path, old, new)


def check_changed(folder: Path, old: str, new: str) -> str:
    """Return what the second implementation says is wrong when `old` is replaced in every file."""
    for file in FOLDER.glob("*.json"):
        (folder / file.name).write_text(file.read_text().replace(old, new))
    done = subprocess.run(
        [sys.executable, FOLDER / "check.py", folder],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1, done.stderr
    return done.stdout
