"""Write the test vectors in this folder, deterministically.

Run as `python protocol/testdata/generate.py [FOLDER]`.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from mev.audit.tlog import origin
from mev.crypto import merkle, note
from mev.crypto.envelope import pae, payload_type, seal
from mev.crypto.keys import SigningKey
from mev.wire.pb.audit_pb2 import AuditRecord, Checkpoint
from mev.wire.pb.control_pb2 import (
    ACK,
    ACTIVE,
    HALTED,
    NACK,
    Command,
    Issuer,
    Lease,
    Report,
    Running,
    SetLevel,
    Target,
    Version,
)
from mev.wire.pb.envelope_pb2 import Envelope, KeySet, Threshold

NOW_NS = 1_800_000_000_000_000_000
HOUR_NS = 3_600_000_000_000
# The leaves that the Certificate Transparency project tests with.
CT_LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]


def key(name: str) -> SigningKey:
    """Return the test key called `name`; everyone knows its seed."""
    return SigningKey(name, seed(name))


def seed(name: str) -> bytes:
    """Return the seed of a test key."""
    return hashlib.sha256(f"mev test key {name}".encode()).digest()


NAMES = (
    "command-1",
    "command-2",
    "command-3",
    "expired-1",
    "future-1",
    "root-1",
    "root-2",
    "audit-1",
    "agent-1",
    "stranger-1",
)
KEYS = {name: key(name) for name in NAMES}
COMMAND = Command(
    id="018f3c5e-7b6a-7c11-9d2e-3f4a5b6c7d8e",
    version=Version(epoch=1, counter=42),
    target=Target(agent_ids=["agent-1"]),
    issued_at_ns=NOW_NS,
    expires_at_ns=NOW_NS + HOUR_NS,
    priority=9,
    issuer=Issuer(principal="alice", approvers=["bob"]),
    level=SetLevel(level=HALTED, reason="spread gone"),
)
LEASE = Lease(
    version=Version(epoch=1, counter=43),
    target=Target(all=True),
    issued_at_ns=NOW_NS,
    expires_at_ns=NOW_NS + 60_000_000_000,
)


def key_set(
    epoch: int, command_threshold: int = 1, root_threshold: int = 1, *, without: str = ""
) -> KeySet:
    """Return a key set of the test keys."""
    keys = [KEYS[name].trusted_for("command") for name in ("command-1", "command-2", "command-3")]
    keys += [
        KEYS["expired-1"].trusted_for("command", not_after_ns=NOW_NS - 1),
        KEYS["future-1"].trusted_for("command", not_before_ns=NOW_NS + 1),
        KEYS["root-1"].trusted_for("root"),
        KEYS["root-2"].trusted_for("root"),
        KEYS["audit-1"].trusted_for("audit"),
        KEYS["agent-1"].trusted_for("agent"),
    ]
    thresholds = [
        Threshold(role="command", signatures=command_threshold),
        Threshold(role="root", signatures=root_threshold),
    ]
    return KeySet(
        epoch=epoch,
        issued_at_ns=NOW_NS,
        keys=[key for key in keys if key.key_id != without],
        thresholds=thresholds,
    )


def sealed(message: Message, *names: str) -> Envelope:
    """Return `message` signed by the test keys called `names`."""
    return seal(message, *(KEYS[name] for name in names))


def changed(envelope: Envelope, change: Callable[[Envelope], object]) -> Envelope:
    """Return a copy of `envelope` that `change` was done to."""
    copy = Envelope.FromString(envelope.SerializeToString())
    change(copy)
    return copy


def retyped(envelope: Envelope, message_type: type[Message]) -> Envelope:
    """Return `envelope` said to carry another kind of message."""
    return changed(envelope, lambda e: setattr(e, "payload_type", payload_type(message_type)))


def flipped(envelope: Envelope) -> Envelope:
    """Return `envelope` with one bit of its payload changed."""
    return changed(
        envelope, lambda e: setattr(e, "payload", bytes([e.payload[0] ^ 1]) + e.payload[1:])
    )


def case(name: str, envelope: Envelope | bytes, expect: str = "ok", **more: Any) -> dict[str, Any]:
    """Return one case: `expect` is "ok" or the code of the refusal."""
    data = (
        envelope if isinstance(envelope, bytes) else envelope.SerializeToString(deterministic=True)
    )
    return {
        "name": name,
        "key_set": "one",
        "message": "Command",
        "role": "command",
        "expect": expect,
        **more,
        "envelope": data.hex(),
    }


def envelopes() -> dict[str, Any]:
    """Return envelopes of commands and leases, good and bad."""
    good, two = sealed(COMMAND, "command-1"), sealed(COMMAND, "command-1", "command-2")
    swapped = changed(two, lambda e: setattr(e.signatures[1], "key_id", "command-3"))
    no_signature = changed(good, lambda e: e.ClearField("signatures"))
    cases = [
        case(
            "valid",
            good,
            signed=pae(good.payload_type, good.payload).hex(),
            decoded=MessageToDict(COMMAND),
        ),
        case(
            "valid lease", sealed(LEASE, "command-2"), message="Lease", decoded=MessageToDict(LEASE)
        ),
        case("an unknown key beside a known one", sealed(COMMAND, "stranger-1", "command-1")),
        case("tampered payload", flipped(good), "bad_signature"),
        case(
            "tampered signature beside a good one",
            changed(two, lambda e: setattr(e.signatures[0], "sig", b"\x01" * 64)),
            "bad_signature",
        ),
        case("another kind of message", sealed(LEASE, "command-1"), "wrong_payload_type"),
        case(
            "another kind of message, renamed",
            retyped(sealed(LEASE, "command-1"), Command),
            "bad_signature",
        ),
        case("unknown key", sealed(COMMAND, "stranger-1"), "unknown_key"),
        case("key without the role", sealed(COMMAND, "agent-1"), "key_without_role"),
        case("key expired", sealed(COMMAND, "expired-1"), "key_expired"),
        case("key not yet valid", sealed(COMMAND, "future-1"), "key_not_yet_valid"),
        case("two of three", two, key_set="two of three"),
        case("one of two", good, "not_enough_signatures", key_set="two of three"),
        case(
            "one key twice",
            sealed(COMMAND, "command-1", "command-1"),
            "not_enough_signatures",
            key_set="two of three",
        ),
        case(
            "one good, one expired",
            sealed(COMMAND, "command-1", "expired-1"),
            "not_enough_signatures",
            key_set="two of three",
        ),
        case(
            "a signature under another key's name", swapped, "bad_signature", key_set="two of three"
        ),
        case("no signature", no_signature, "malformed_envelope"),
        case("seventeen signatures", sealed(COMMAND, *["command-1"] * 17), "malformed_envelope"),
        case("cut short", good.SerializeToString()[:-1], "malformed_envelope"),
        case("nothing", b"", "malformed_envelope"),
    ]
    return {"now_ns": NOW_NS, "key_sets": key_sets(), "cases": cases}


def key_sets() -> dict[str, str]:
    """Return the key sets that the cases name."""
    sets = {
        "one": key_set(1),
        "two of three": key_set(1, 2),
        "two roots": key_set(1, root_threshold=2),
    }
    return {name: keys.SerializeToString(deterministic=True).hex() for name, keys in sets.items()}


def rotations() -> dict[str, Any]:
    """Return successors of key sets; a refused one leaves the old set in force."""
    more = {"message": "KeySet", "role": "root"}
    good = sealed(key_set(2, without="command-3"), "root-1")
    cases = [
        case("next epoch", good, epoch=2, **more),
        case("several epochs later", sealed(key_set(9), "root-2"), epoch=9, **more),
        case("the same epoch", sealed(key_set(1), "root-1"), "old_key_set", **more),
        case("an earlier epoch", sealed(key_set(0), "root-1"), "old_key_set", **more),
        case(
            "signed by a command key", sealed(key_set(2), "command-1"), "key_without_role", **more
        ),
        case("one root of two", good, "not_enough_signatures", **more | {"key_set": "two roots"}),
        case(
            "two roots of two",
            sealed(key_set(2), "root-1", "root-2"),
            epoch=2,
            **more | {"key_set": "two roots"},
        ),
        case("tampered", flipped(good), "bad_signature", **more),
        case("one key under two names", sealed(_twice(), "root-1"), "invalid_key_set", **more),
        case(
            "more signatures needed than there are keys",
            sealed(key_set(2, 6), "root-1"),
            "invalid_key_set",
            **more,
        ),
    ]
    return {"now_ns": NOW_NS, "key_sets": key_sets(), "cases": cases}


def _twice() -> KeySet:
    keys = key_set(2)
    keys.keys.append(SigningKey("command-9", seed("command-1")).trusted_for("command"))
    return keys


def reports() -> dict[str, Any]:
    """Return what agents answer."""
    running = Running(
        level=HALTED,
        ordered_level=HALTED,
        key_epoch=1,
        model_id="arb",
        model_version="3",
        model_sha256=b"\x07" * 32,
    )
    ack = Report(
        agent_id="agent-1",
        module="arbitrage",
        agent_counter=7,
        reported_at_ns=NOW_NS,
        command_id=COMMAND.id,
        result=ACK,
        running=running,
    )
    nack = Report(
        agent_id="agent-1",
        module="arbitrage",
        agent_counter=8,
        reported_at_ns=NOW_NS,
        command_id=COMMAND.id,
        result=NACK,
        reason_code="rolled_back",
        detail="counter 41 where 42 is stored",
        running=Running(level=ACTIVE, ordered_level=ACTIVE),
    )
    more = {"message": "Report", "role": "agent"}
    cases = [
        case("applied", sealed(ack, "agent-1"), decoded=MessageToDict(ack), **more),
        case("refused", sealed(nack, "agent-1"), decoded=MessageToDict(nack), **more),
        case("tampered", flipped(sealed(ack, "agent-1")), "bad_signature", **more),
        case("signed by a command key", sealed(ack, "command-1"), "key_without_role", **more),
    ]
    return {"now_ns": NOW_NS, "key_sets": key_sets(), "cases": cases}


def trees() -> dict[str, Any]:
    """Return roots and proofs over Certificate Transparency's test leaves, valid and invalid."""
    tree = merkle.MerkleTree(merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in CT_LEAVES)
    sizes = range(tree.size + 1)
    record = AuditRecord(
        index=0,
        log_id="log-1",
        at_ns=NOW_NS,
        actor="alice",
        action="control.level",
        object="all",
        outcome="ok",
        details_json="{}",
    )
    leaf = merkle.leaf_hash(record.SerializeToString(deterministic=True))
    checkpoint = Checkpoint(log_id="log-1", size=1, root_hash=leaf, at_ns=NOW_NS)
    return {
        "leaves": CT_LEAVES,
        "roots": [tree.root(size).hex() for size in sizes],
        "inclusion": [
            {
                "index": index,
                "size": size,
                "proof": [step.hex() for step in tree.inclusion(index, size)],
            }
            for size in sizes
            for index in range(size)
        ],
        "consistency": [
            {"old": old, "new": new, "proof": [step.hex() for step in tree.consistency(old, new)]}
            for new in sizes
            for old in range(new + 1)
        ],
        "audit_record": {
            "record": record.SerializeToString(deterministic=True).hex(),
            "leaf_hash": leaf.hex(),
        },
        **envelopes_of_checkpoints(checkpoint),
    }


def envelopes_of_checkpoints(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a signed head of the log, and one that is not."""
    more = {"message": "Checkpoint", "role": "audit"}
    cases = [
        case(
            "checkpoint", sealed(checkpoint, "audit-1"), decoded=MessageToDict(checkpoint), **more
        ),
        case(
            "checkpoint of a command key",
            sealed(checkpoint, "command-1"),
            "key_without_role",
            **more,
        ),
    ]
    return {"now_ns": NOW_NS, "key_sets": key_sets(), "cases": cases}


def tlog() -> dict[str, Any]:
    """Return a checkpoint as a signed note, its key, and the tiles below it."""
    signer, records = KEYS["audit-1"], [bytes.fromhex(leaf) for leaf in CT_LEAVES]
    tree = merkle.MerkleTree(map(merkle.leaf_hash, records))
    name = origin(signer.key_id, "log-1")
    checkpoint = note.NoteCheckpoint(name, tree.size, tree.root())
    return {
        "verifier_key": note.verifier_key(name, signer.public_key),
        "checkpoint": note.sign_checkpoint(signer, checkpoint).decode(),
        "size": tree.size,
        "root_hash": tree.root().hex(),
        "tile/0/000.p/8": tree.subtree_roots(0, 0, tree.size).hex(),
        "tile/entries/000.p/8": note.tile_entries(records).hex(),
    }


def keys() -> dict[str, Any]:
    """Return the seeds, which everyone may know, and what they give."""
    return {
        name: {"seed": seed(name).hex(), "public_key": KEYS[name].public_key.hex()}
        for name in NAMES
    }


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "keys.json": keys,
    "envelopes.json": envelopes,
    "key_sets.json": rotations,
    "reports.json": reports,
    "merkle.json": trees,
    "tlog.json": tlog,
}


def main(folder: Path) -> None:
    """Write every file into `folder`."""
    for name, content in FILES.items():
        (folder / name).write_text(json.dumps(content(), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
