"""Signed snapshots of the active commands, for agents that start.

A signature takes a fraction of a millisecond, and thousands of commands may be active. So signed
commands are kept, a snapshot is shared until the commands change, and it is built in slices.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from mev.control.control_state import ControlState
from mev.core.clock import Clock
from mev.crypto.envelope import seal
from mev.wire.pb.control_pb2 import Snapshot, Version
from mev.wire.pb.envelope_pb2 import Envelope

_SHARED_NS = 1_000_000_000
_SLICE_S = 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedSnapshot:
    """A snapshot, with the offset of the control topic from which an agent must read on."""

    envelope: bytes
    control_offset: int


class SignedSnapshots:
    """Builder of snapshots, one at a time.

    `next_version` returns a new version, `control_offset` the offset below which the control topic
    has been applied.
    """

    def __init__(
        self,
        state: ControlState,
        *,
        next_version: Callable[[], Version],
        control_offset: Callable[[], int],
        clock: Clock,
    ) -> None:
        self._state = state
        self._next_version = next_version
        self._control_offset = control_offset
        self._clock = clock
        self._building = asyncio.Lock()
        self._sealed: dict[str, Envelope] = {}
        self._sealed_under: tuple[int, str] = (0, "")
        self._shared: SignedSnapshot | None = None
        self._shared_of: tuple[int, int, str] = (0, 0, "")
        self._shared_at_ns = 0

    async def current(self) -> SignedSnapshot:
        """Return a snapshot of all active commands; a new one if they have changed.

        :raises RetiredKeyError: if the signing key was replaced.
        """
        async with self._building:
            signer, epoch = self._state.keys.signer(), self._state.keys.trust.epoch
            of = (self._state.command_store.revision, epoch, signer.key_id)
            age_ns = self._clock() - self._shared_at_ns
            if self._shared and self._shared_of == of and 0 <= age_ns < _SHARED_NS:
                return self._shared
            if self._sealed_under != (epoch, signer.key_id):
                self._sealed_under, self._sealed = (epoch, signer.key_id), {}
            # The offset first: what changes during the build is at or after it.
            offset, now = self._control_offset(), self._clock()
            snapshot = Snapshot(version=self._next_version(), issued_at_ns=now)
            in_force = self._state.command_store.in_force(now)
            known, self._sealed = self._sealed, {}
            until = time.perf_counter() + _SLICE_S
            for issued in in_force:
                name = issued.command.id
                self._sealed[name] = known.get(name) or seal(issued.command, signer)
                if time.perf_counter() >= until:
                    await asyncio.sleep(0)
                    until = time.perf_counter() + _SLICE_S
            snapshot.commands.extend(self._sealed.values())
            envelope = seal(snapshot, signer).SerializeToString()
            self._shared = SignedSnapshot(envelope=envelope, control_offset=offset)
            self._shared_of, self._shared_at_ns = of, now
            return self._shared
