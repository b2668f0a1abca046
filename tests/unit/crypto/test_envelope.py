import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.crypto.envelope import MAX_ENVELOPE_BYTES, pae, payload_type, seal
from mev.crypto.errors import EnvelopeError, MalformedEnvelopeError
from mev.crypto.keys import SigningKey
from mev.crypto.trust import TrustStore
from mev.wire.pb.control_pb2 import Command, Lease, Target, Version
from mev.wire.pb.envelope_pb2 import Envelope, KeySet, Threshold

KEYS = [SigningKey(f"key-{number}", bytes([number]) * 32) for number in range(3)]
LEASE = Lease(version=Version(epoch=1, counter=2), target=Target(all=True), expires_at_ns=3)
NOW_NS = 5


def store(threshold: int = 1) -> TrustStore:
    keys = [key.trusted_for("command") for key in KEYS]
    return TrustStore(
        KeySet(epoch=1, keys=keys, thresholds=[Threshold(role="command", signatures=threshold)])
    )


def test_the_encoding_is_the_one_dsse_publishes() -> None:
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"") == "DSSEv1 2 é 0 ".encode()  # lengths count bytes


def test_signatures_are_those_of_rfc_8032() -> None:
    key = SigningKey.from_hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert (
        key.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    assert key.key_id == "21fe31dfa154a261"


def test_the_type_names_the_message() -> None:
    assert payload_type(Command) == "application/vnd.mev.command.v1+protobuf"
    assert payload_type(KeySet) == "application/vnd.mev.key_set.v1+protobuf"


def test_what_was_sealed_opens_and_names_its_signers() -> None:
    envelope = seal(LEASE, KEYS[2], KEYS[0])
    opened = store(2).open_signed(envelope.SerializeToString(), Lease, "command", NOW_NS)
    assert opened.message == LEASE
    assert opened.key_ids == ("key-2", "key-0")
    assert store(2).open(envelope, Lease, "command", NOW_NS) == LEASE


@pytest.mark.parametrize("signers", [1, 2])
def test_any_changed_byte_is_refused(signers: int) -> None:
    trust = store(signers)
    sealed = seal(LEASE, *KEYS[:signers]).SerializeToString()
    trust.open(sealed, Lease, "command", NOW_NS)
    for place in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[place] ^= 1 << bit
            with pytest.raises(EnvelopeError):
                trust.open(bytes(changed), Lease, "command", NOW_NS)


@given(data=st.data())
def test_any_cut_or_insertion_that_changes_the_message_is_refused(data: st.DataObject) -> None:
    sealed = seal(LEASE, KEYS[0]).SerializeToString()
    start = data.draw(st.integers(0, len(sealed)))
    stop = data.draw(st.integers(start, len(sealed)))
    changed = sealed[:start] + data.draw(st.binary(max_size=20)) + sealed[stop:]
    try:
        assert store().open(changed, Lease, "command", NOW_NS) == LEASE
    except EnvelopeError:
        assert changed != sealed


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(EnvelopeError):
        store().open(data, Lease, "command", NOW_NS)
    with pytest.raises(EnvelopeError):
        store().rotate(data, NOW_NS)


@given(
    kind=st.text(max_size=40),
    payload=st.binary(max_size=40),
    key_id=st.text(max_size=20),
    sig=st.binary(max_size=70),
)
def test_arbitrary_envelopes_raise_nothing_else(
    kind: str, payload: bytes, key_id: str, sig: bytes
) -> None:
    for name in (key_id, "key-0"):
        for carried in (kind, payload_type(Lease)):
            envelope = Envelope(
                payload_type=carried, payload=payload, signatures=[{"key_id": name, "sig": sig}]
            )
            with pytest.raises(EnvelopeError):
                store().open(envelope, Lease, "command", NOW_NS)


@given(payload=st.binary(max_size=100))
def test_a_signed_payload_that_is_no_message_is_malformed(payload: bytes) -> None:
    kind = payload_type(Lease)
    envelope = Envelope(
        payload_type=kind, payload=payload, signatures=[KEYS[0].sign(kind, payload)]
    )
    with contextlib.suppress(MalformedEnvelopeError):
        store().open(envelope, Lease, "command", NOW_NS)


def test_sizes_are_bounded() -> None:
    large = seal(Lease(target=Target(modules=["x" * MAX_ENVELOPE_BYTES])), KEYS[0])
    for envelope in (large, large.SerializeToString()):
        with pytest.raises(MalformedEnvelopeError, match="1048576 are allowed"):
            store().open(envelope, Lease, "command", NOW_NS)
    store().open(seal(LEASE, *[KEYS[0]] * 16), Lease, "command", NOW_NS)
    with pytest.raises(MalformedEnvelopeError, match="1 to 16"):
        store().open(seal(LEASE, *[KEYS[0]] * 17), Lease, "command", NOW_NS)
