"""An agent: one strategy under one control plane."""

import asyncio
import logging
from base64 import b64decode
from binascii import Error as Base64Error
from contextlib import suppress
from pathlib import Path

import mev
from mev.agent.command_verifier import Identity
from mev.agent.enrolment import ControlPlane, Locate
from mev.agent.folder import AgentFolder
from mev.agent.level import LeaseLimits
from mev.agent.model_source import ModelFolder, ModelSource
from mev.agent.run import AgentRun
from mev.agent.state import AgentState
from mev.agent.strategy import Strategy
from mev.core.clock import Clock, steady_clock
from mev.core.errors import InvalidInputError, UnavailableError
from mev.crypto.envelope import parse, parse_message
from mev.crypto.errors import EnvelopeError
from mev.crypto.keys import SigningKey
from mev.crypto.trust import ROOT, TrustStore
from mev.wire.pb.envelope_pb2 import Envelope, KeySet

LOG = logging.getLogger(__name__)
_RETRY_S = 1.0


class UntrustedKeySetError(InvalidInputError):
    """The control plane's keys are not the keys that this agent trusts."""

    code = "untrusted_key_set"


class Agent:
    """Runs `strategy` as `agent_id` under the control plane that `locate` returns.

    `locate` is called again after each connection loss. The agent's folder is created in `folder`.
    `trust` pins the first key set, as an envelope; without it, the key set of the first enrolment
    is trusted. `models` loads the models of swaps; without it, swaps are refused.
    """

    def __init__(
        self,
        strategy: Strategy,
        agent_id: str,
        *,
        locate: Locate,
        folder: Path,
        trust: bytes | None = None,
        models: ModelSource | None = None,
        limits: LeaseLimits | None = None,
        clock: Clock | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self.identity = Identity(agent_id=agent_id, module=strategy.module)
        self.session: AgentRun | None = None
        self._strategy = strategy
        self._locate = locate
        self._folder = AgentFolder(folder, agent_id)
        self._trust = trust
        self._models = models or ModelFolder(None)
        self._limits = limits or LeaseLimits()
        self._clock = clock or steady_clock()
        self._timeout_s = timeout_s

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Run until `stop` is set, then send a last report; cancellation is like a crash.

        :raises AgentRunsError: when another process runs the agent.
        :raises EnrolmentRefusedError: at the first start, when the control plane refuses the agent.
        :raises UntrustedKeySetError: at the first start, when the key set is not the pinned one.
        """
        stop = stop or asyncio.Event()
        self._folder.acquire()
        try:
            key = self._folder.key()
            state = self._folder.load() or await self._first_state(key, stop)
            if state is not None:
                self.session = self._session(key, state)
                await self.session.run(stop)
        finally:
            self._folder.release()

    def _session(self, key: SigningKey, state: AgentState) -> AgentRun:
        return AgentRun(
            self.identity,
            self._strategy,
            self._folder,
            key,
            state,
            locate=self._locate,
            models=self._models,
            limits=self._limits,
            clock=self._clock,
            timeout_s=self._timeout_s,
        )

    async def _first_state(self, key: SigningKey, stop: asyncio.Event) -> AgentState | None:
        """Return the state after the first enrolment: the trusted key set only."""
        while not stop.is_set():
            try:
                site = await asyncio.to_thread(self._locate)
                control = ControlPlane(site, timeout_s=self._timeout_s)
                welcome = await control.enrol(self.identity, self._strategy, key, mev.__version__)
            except UnavailableError as error:
                LOG.warning(
                    "no control plane yet: %s", error.detail, extra={"action": "connect_failed"}
                )
                await _pause(stop, _RETRY_S)
                continue
            state = AgentState(key_set=first_key_set(welcome.key_set, self._trust, self._clock()))
            await asyncio.to_thread(self._folder.save, state)
            return state
        return None


def first_key_set(given: bytes, pinned: bytes | None, now_ns: int) -> bytes:
    """Return the first key set: the pinned one if the given one equals or succeeds it.

    :raises UntrustedKeySetError: when it does not, or an envelope is not signed by its own root
        keys.
    """
    try:
        offered = _trust_store(given, now_ns)
        if pinned is None:
            return given
        trusted = _trust_store(pinned, now_ns)
        if trusted.key_set != offered.key_set:
            trusted.rotate(given, now_ns)
    except EnvelopeError as error:
        raise UntrustedKeySetError(f"the control plane's key set: {error.detail}") from None
    return pinned


def read_key_set(path: Path) -> bytes:
    """Return the envelope in a file, raw or in base64.

    :raises UntrustedKeySetError: when there is none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UntrustedKeySetError(f"{path}: {error.strerror}") from None
    with suppress(Base64Error, ValueError):
        content = b64decode(content.strip(), validate=True)
    try:
        parse(content)
    except EnvelopeError as error:
        raise UntrustedKeySetError(f"{path}: {error.detail}") from None
    return content


def _trust_store(envelope: bytes, now_ns: int) -> TrustStore:
    parsed: Envelope = parse(envelope)
    trust = TrustStore(parse_message(KeySet, parsed.payload))
    trust.open(parsed, KeySet, ROOT, now_ns)
    return trust


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
