import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from mev.crypto import merkle
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


@pytest.mark.parametrize(("file", "case"), CASES, ids=[f"{name}: {case['name']}" for name, case in CASES])
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


def test_trees_come_out_as_published() -> None:
    vectors = load("merkle.json")
    tree = merkle.Tree(merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in vectors["leaves"])
    assert [tree.root(size).hex() for size in range(9)] == vectors["roots"]
    for item in vectors["inclusion"]:
        assert [step.hex() for step in tree.inclusion(item["index"], item["size"])] == item["proof"]
    for item in vectors["consistency"]:
        assert [step.hex() for step in tree.consistency(item["old"], item["new"])] == item["proof"]


def test_the_generator_writes_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "generate.py", tmp_path], check=True, timeout=30)
    for file in tmp_path.iterdir():
        assert file.read_text() == (FOLDER / file.name).read_text(), f"{file.name}: run protocol/testdata/generate.py"
    assert len(list(tmp_path.iterdir())) == 5


def test_the_second_implementation_agrees(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, FOLDER / "check.py"], check=False, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "all vectors come out as they should\n")

    for file in FOLDER.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text().replace('"expect": "unknown_key"', '"expect": "ok"'))
    done = subprocess.run([sys.executable, FOLDER / "check.py", tmp_path], check=False, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "envelopes.json: unknown key: unknown_key, not ok\n")
