import pytest

from mev.crypto.envelope import seal
from mev.crypto.errors import (
    BadSignatureError,
    InvalidKeySetError,
    KeyExpiredError,
    KeyNotYetValidError,
    KeyWithoutRoleError,
)
from mev.crypto.keys import SigningKey
from mev.crypto.trust import TrustStore
from mev.wire.pb.control_pb2 import Lease
from mev.wire.pb.envelope_pb2 import KeySet, Threshold, TrustedKey

KEY, OTHER = SigningKey("a", b"\x01" * 32), SigningKey("b", b"\x02" * 32)
ENVELOPE = seal(Lease(expires_at_ns=1), KEY)


def test_a_key_counts_from_its_first_to_its_last_instant() -> None:
    store = TrustStore(KeySet(keys=[KEY.trusted_for("command", not_before_ns=10, not_after_ns=20)]))
    for now_ns in (10, 20):
        store.open(ENVELOPE, Lease, "command", now_ns)
    with pytest.raises(KeyNotYetValidError):
        store.open(ENVELOPE, Lease, "command", 9)
    with pytest.raises(KeyExpiredError):
        store.open(ENVELOPE, Lease, "command", 21)


def test_a_wrong_signature_is_named_before_the_keys_role() -> None:
    store = TrustStore(KeySet(keys=[KEY.trusted_for("audit")]))
    with pytest.raises(KeyWithoutRoleError):
        store.open(ENVELOPE, Lease, "command", 1)
    forged = seal(Lease(expires_at_ns=2), KEY)
    forged.payload = ENVELOPE.payload
    with pytest.raises(BadSignatureError):
        store.open(forged, Lease, "command", 1)


def test_a_rotation_is_kept_before_it_takes_effect() -> None:
    store = TrustStore(KeySet(epoch=1, keys=[KEY.trusted_for("root")]))
    successor = KeySet(epoch=2, keys=[OTHER.trusted_for("root")])
    seen: list[int] = []

    def fail(_: KeySet) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.rotate(seal(successor, KEY), 1, fail)
    assert store.epoch == 1
    store.rotate(seal(successor, KEY), 1, lambda key_set: seen.extend([store.epoch, key_set.epoch]))
    assert seen == [1, 2]
    assert store.key_set == successor

    store.rotate(seal(KeySet(epoch=3, keys=[OTHER.trusted_for("root")]), OTHER), 1)
    assert store.epoch == 3


@pytest.mark.parametrize(
    ("key_set", "reason"),
    [
        (KeySet(keys=[TrustedKey(key_id="a", public_key=b"\x01" * 31)]), "'a' of 31 bytes"),
        (KeySet(keys=[TrustedKey(public_key=b"\x01" * 32)]), "a name and 32 bytes"),
        (
            KeySet(
                keys=[KEY.trusted_for("root"), SigningKey("a", b"\x03" * 32).trusted_for("root")]
            ),
            "key_id 'a' comes 2 times",
        ),
        (
            KeySet(
                keys=[KEY.trusted_for("root"), SigningKey("c", b"\x01" * 32).trusted_for("root")]
            ),
            "public_key .* comes 2 times",
        ),
        (
            KeySet(keys=[KEY.trusted_for("root")], thresholds=[Threshold(role="root")]),
            "needs 0 signatures",
        ),
        (
            KeySet(
                keys=[KEY.trusted_for("root", "root")],
                thresholds=[Threshold(role="root", signatures=2)],
            ),
            "1 keys have it",
        ),
        (
            KeySet(
                keys=[KEY.trusted_for("root")],
                thresholds=[Threshold(role="root", signatures=1)] * 2,
            ),
            "two thresholds",
        ),
        (
            KeySet(keys=[TrustedKey(key_id=str(n), public_key=n.to_bytes(32)) for n in range(257)]),
            "257 keys; 256",
        ),
    ],
)
def test_a_key_set_that_contradicts_itself_is_refused(key_set: KeySet, reason: str) -> None:
    with pytest.raises(InvalidKeySetError, match=reason):
        TrustStore(key_set)
