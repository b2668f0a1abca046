"""Check the test vectors in this folder with a second implementation.

It needs nothing but the `cryptography` package. `python protocol/testdata/check.py [FOLDER]` exits
with 1 and prints a line for each vector with another result than the file states.
"""

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FILES = ("envelopes.json", "key_sets.json", "reports.json", "merkle.json")


class RefusedError(Exception):
    """The envelope is refused; the argument is the code."""


def fields(data: bytes) -> dict[int, list[Any]]:
    """Return the fields of a Protobuf message by number: integers, and bytes."""
    found: dict[int, list[Any]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value

    try:
        while at < len(data):
            tag = varint()
            value: int | bytes = varint()
            if tag & 7 == 2:
                start, at = at, at + int(value)
                value = data[start:at]
            if at > len(data) or tag & 7 not in {0, 2}:
                raise RefusedError("malformed_envelope")
            found.setdefault(tag >> 3, []).append(value)
    except IndexError:
        raise RefusedError("malformed_envelope") from None
    return found


def signed_number(values: list[int]) -> int:
    """Return an sint64."""
    return values[-1] >> 1 ^ -(values[-1] & 1) if values else 0


def read_key_set(data: bytes) -> tuple[int, dict[bytes, dict[int, list[Any]]], dict[bytes, int]]:
    """Return the epoch, the keys by name and the thresholds by role."""
    message = fields(data)
    entries = [fields(key) for key in message.get(3, [])]
    keys = {entry[1][0]: entry for entry in entries}
    thresholds = {fields(item)[1][0]: fields(item).get(2, [0])[0] for item in message.get(4, [])}
    if len(keys) < len(entries) or len({entry[2][0] for entry in entries}) < len(entries):
        raise RefusedError("invalid_key_set")
    for role, needed in thresholds.items():
        if not 1 <= needed <= sum(role in entry.get(3, []) for entry in entries):
            raise RefusedError("invalid_key_set")
    return message.get(1, [0])[0], keys, thresholds


def open_envelope(data: bytes, key_set: bytes, message: str, role: bytes, now_ns: int) -> bytes:
    """Return the payload of an envelope that enough keys signed."""
    _, keys, thresholds = read_key_set(key_set)
    envelope = fields(data)
    signatures = envelope.get(3, [])
    if not 1 <= len(signatures) <= 16 or len(data) > 1 << 20:
        raise RefusedError("malformed_envelope")
    kind, payload = bytes(envelope[1][0]), bytes(envelope[2][0])
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", message).lower()
    if kind.decode() != f"application/vnd.mev.{name}.v1+protobuf":
        raise RefusedError("wrong_payload_type")
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    verdicts = [verdict(fields(signature), keys, signed, role, now_ns) for signature in signatures]
    good = {
        fields(signature)[1][0]
        for signature, code in zip(signatures, verdicts, strict=True)
        if code == "ok"
    }
    if len(good) >= thresholds.get(role, 1):
        return payload
    raise RefusedError(
        verdicts[0] if not good and len(set(verdicts)) == 1 else "not_enough_signatures"
    )


def verdict(
    signature: dict[int, list[Any]],
    keys: dict[bytes, dict[int, list[Any]]],
    signed: bytes,
    role: bytes,
    now_ns: int,
) -> str:
    """Return "ok" when the signature counts, else the reason; a bad one refuses the envelope."""
    key = keys.get(signature.get(1, [b""])[0])
    if key is None:
        return "unknown_key"
    try:
        Ed25519PublicKey.from_public_bytes(key[2][0]).verify(signature.get(2, [b""])[0], signed)
    except InvalidSignature:
        raise RefusedError("bad_signature") from None
    not_before, not_after = signed_number(key.get(4, [])), signed_number(key.get(5, []))
    if role not in key.get(3, []):
        return "key_without_role"
    if not_before and now_ns < not_before:
        return "key_not_yet_valid"
    return "key_expired" if not_after and now_ns > not_after else "ok"


def outcome(case: dict[str, Any], file: dict[str, Any]) -> str:
    """Return "ok", or the code of the refusal."""
    key_set = bytes.fromhex(file["key_sets"][case["key_set"]])
    try:
        payload = open_envelope(
            bytes.fromhex(case["envelope"]),
            key_set,
            case["message"],
            case["role"].encode(),
            file["now_ns"],
        )
        if case["message"] == "KeySet":
            epoch = fields(payload).get(1, [0])[0]
            if epoch <= read_key_set(key_set)[0]:
                return "old_key_set"
            read_key_set(payload)
    except RefusedError as refused:
        return str(refused)
    return "ok"


def root(leaves: list[bytes]) -> bytes:
    """Return the Merkle tree hash of RFC 6962, by its definition."""
    if len(leaves) <= 1:
        return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + root(leaves[:split]) + root(leaves[split:])).digest()


def path(index: int, leaves: list[bytes]) -> list[bytes]:
    """Return the audit path of RFC 6962, by its definition."""
    if len(leaves) <= 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*path(index, leaves[:split]), root(leaves[split:])]
    return [*path(index - split, leaves[split:]), root(leaves[:split])]


def subproof(old: int, leaves: list[bytes], *, whole: bool = True) -> list[bytes]:
    """Return the consistency proof of RFC 6962, by its definition."""
    if old == len(leaves):
        return [] if whole else [root(leaves)]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= split:
        return [*subproof(old, leaves[:split], whole=whole), root(leaves[split:])]
    return [*subproof(old - split, leaves[split:], whole=False), root(leaves[:split])]


def wrong_trees(file: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the roots and proofs."""
    leaves = [bytes.fromhex(leaf) for leaf in file["leaves"]]
    for size, given in enumerate(file["roots"]):
        if root(leaves[:size]).hex() != given:
            yield f"root of {size}"
    for item in file["inclusion"]:
        if [step.hex() for step in path(item["index"], leaves[: item["size"]])] != item["proof"]:
            yield f"inclusion of {item['index']} in {item['size']}"
    for item in file["consistency"]:
        expected = subproof(item["old"], leaves[: item["new"]]) if item["old"] else []
        if [step.hex() for step in expected] != item["proof"]:
            yield f"consistency of {item['old']} with {item['new']}"
    record = file["audit_record"]
    if root([bytes.fromhex(record["record"])]).hex() != record["leaf_hash"]:
        yield "audit record"


def wrong_log(file: dict[str, Any]) -> Iterator[str]:
    """Yield errors in the signed note (https://c2sp.org/signed-note) and the tiles of tlog.json."""
    bundle, records = bytes.fromhex(file["tile/entries/000.p/8"]), []
    while bundle:
        length = int.from_bytes(bundle[:2])
        records.append(bundle[2 : 2 + length])
        bundle = bundle[2 + length :]
    if b"".join(root([record]) for record in records).hex() != file["tile/0/000.p/8"]:
        yield "tiles: the hashes are not those of the records"
    if (len(records), root(records).hex()) != (file["size"], file["root_hash"]):
        yield "tiles: the root is not that of the records"

    text, _, signature = file["checkpoint"].partition("\n\n")
    signed = text + "\n"
    name, key_hash, encoded = file["verifier_key"].split("+", 2)
    key = base64.b64decode(encoded, validate=True)
    if (
        hashlib.sha256(name.encode() + b"\n" + key).hexdigest()[:8] != key_hash
        or key[:1] != b"\x01"
    ):
        yield "verifier key: wrong hash or algorithm"
    encoded_root = base64.b64encode(bytes.fromhex(file["root_hash"])).decode()
    if signed != f"{name}\n{file['size']}\n{encoded_root}\n":
        yield "checkpoint: origin, size or root hash"
    dash, signer, signature = signature.removesuffix("\n").split(" ")
    signature_bytes = base64.b64decode(signature, validate=True)
    if (dash, signer, signature_bytes[:4].hex()) != ("\u2014", name, key_hash):
        yield "checkpoint: the signature line is not of the verifier key"
    try:
        Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature_bytes[4:], signed.encode())
    except InvalidSignature:
        yield "checkpoint: wrong signature"


def wrong(folder: Path) -> Iterator[str]:
    """Yield a line for each vector that comes out otherwise than its file says."""
    for name, key in json.loads((folder / "keys.json").read_text()).items():
        if (
            Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key["seed"]))
            .public_key()
            .public_bytes_raw()
            .hex()
            != key["public_key"]
        ):
            yield f"keys.json: {name}"
    for name in FILES:
        file = json.loads((folder / name).read_text())
        for case in file["cases"]:
            if (came := outcome(case, file)) != case["expect"]:
                yield f"{name}: {case['name']}: {came}, not {case['expect']}"
    yield from (
        f"merkle.json: {what}"
        for what in wrong_trees(json.loads((folder / "merkle.json").read_text()))
    )
    yield from (
        f"tlog.json: {what}" for what in wrong_log(json.loads((folder / "tlog.json").read_text()))
    )


def main() -> int:
    """Print what is wrong; return the exit code."""
    found = list(wrong(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
    sys.stdout.write(
        "".join(f"{line}\n" for line in found) or "all vectors come out as they should\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
