"""Signed envelopes, against bare Ed25519 over the same bytes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bench.harness import Clock, Row, RowInput, Sides, rate
from mev.core.clock import now_ns
from mev.core.ids import new_id
from mev.crypto.envelope import pae, payload_type, seal
from mev.crypto.keys import SigningKey
from mev.crypto.trust import COMMAND, TrustStore
from mev.wire.pb.control_pb2 import Command, Issuer, ModuleAction, Target, Version
from mev.wire.pb.envelope_pb2 import KeySet

_ENVELOPES = 100
_SEED = bytes(range(32))


@contextmanager
def _sign(_: RowInput) -> Iterator[Sides]:
    signing, bare = SigningKey("control", _SEED), Ed25519PrivateKey.from_private_bytes(_SEED)
    commands = _commands()
    signed = [_signed_bytes(command) for command in commands]

    def baseline() -> None:
        for content in signed:
            bare.sign(content)

    def ours() -> None:
        for command in commands:
            seal(command, signing).SerializeToString()

    yield _sides(baseline, ours)


@contextmanager
def _verify(_: RowInput) -> Iterator[Sides]:
    signing = SigningKey("control", _SEED)
    bare = Ed25519PublicKey.from_public_bytes(signing.public_key)
    trust = TrustStore(KeySet(epoch=1, keys=[signing.trusted_for(COMMAND)]))
    commands = _commands()
    envelopes = [seal(command, signing) for command in commands]
    signed = [
        (envelope.signatures[0].sig, _signed_bytes(command))
        for envelope, command in zip(envelopes, commands, strict=True)
    ]
    received = [envelope.SerializeToString() for envelope in envelopes]
    now = now_ns()

    def baseline() -> None:
        for signature, content in signed:
            bare.verify(signature, content)

    def ours() -> None:
        for envelope in received:
            trust.open(envelope, Command, COMMAND, now)

    yield _sides(baseline, ours)


def _sides(baseline: Callable[[], None], ours: Callable[[], None]) -> Sides:
    return Sides(
        lambda: rate(baseline, _ENVELOPES, clock=Clock.CPU),
        lambda: rate(ours, _ENVELOPES, clock=Clock.CPU),
    )


def _commands() -> list[Command]:
    """Return actions of a module as the control plane issues them."""
    now = now_ns()
    return [
        Command(
            id=new_id(),
            version=Version(epoch=1, counter=now + number),
            target=Target(modules=["arbitrage"]),
            issued_at_ns=now,
            expires_at_ns=now + 30_000_000_000,
            priority=5,
            issuer=Issuer(principal="master"),
            request_sha256=_SEED,
            action=ModuleAction(
                module="arbitrage", action="set_min_profit", params_json=f'{{"lamports": {number}}}'
            ),
        )
        for number in range(_ENVELOPES)
    ]


def _signed_bytes(command: Command) -> bytes:
    return pae(payload_type(Command), command.SerializeToString(deterministic=True))


ROWS = (
    Row(
        name="sign",
        unit="envelopes/s",
        ours="a command to the bytes of its signed envelope",
        baseline="the Ed25519 signature alone, of the same bytes",
        clock=Clock.CPU,
        open=_sign,
    ),
    Row(
        name="verify",
        unit="envelopes/s",
        ours="the bytes of an envelope to its command, under a key set",
        baseline="checking the Ed25519 signature alone, of the same bytes",
        clock=Clock.CPU,
        open=_verify,
    ),
)
