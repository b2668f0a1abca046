"""An agent: one strategy under one control plane. What a bot's author constructs and runs."""

import asyncio
import logging
from base64 import b64decode
from binascii import Error as Base64Error
from contextlib import suppress
from pathlib import Path

import mev
from mev.agent.clock import Clock, steady_clock
from mev.agent.enrolment import ControlPlane, Locate
from mev.agent.folder import AgentFolder
from mev.agent.judge import Identity
from mev.agent.level import Limits
from mev.agent.model import ModelFolder, ModelSource
from mev.agent.session import Session
from mev.agent.state import State
from mev.agent.strategy import Strategy
from mev.core.errors import InvalidInputError, UnavailableError
from mev.crypto.envelope import parse, parse_message
from mev.crypto.errors import EnvelopeError
from mev.crypto.keys import SigningKey
from mev.crypto.trust import ROOT, TrustStore
from mev.wire.pb.envelope_pb2 import Envelope, KeySet

LOG = logging.getLogger(__name__)
_RETRY_S = 1.0


class UntrustedKeySetError(InvalidInputError):
    """The control plane's keys are not the ones this agent trusts."""

    code = "untrusted_key_set"


class Agent:
    """Runs `strategy` as `agent_id`; `locate` says where the control plane is, and is asked again whenever it is lost.

    The agent's own folder is made below `folder`. `trust` pins the first key set, as an envelope; without it the one given at the first
    enrolment is trusted from then on. `models` loads the models that swaps name; without it swaps are refused.
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
        limits: Limits | None = None,
        clock: Clock | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self.identity = Identity(agent_id=agent_id, module=strategy.module)
        self.session: Session | None = None
        self._strategy = strategy
        self._locate = locate
        self._folder = AgentFolder(folder, agent_id)
        self._trust = trust
        self._models = models or ModelFolder(None)
        self._limits = limits or Limits()
        self._clock = clock or steady_clock()
        self._timeout_s = timeout_s

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Run until `stop` is set, which is reported as the last thing, or until cancelled, which is like a crash.

        :raises AgentRunsError: when it runs already.
        :raises EnrolmentRefusedError: at the first start, when the control plane does not want it.
        :raises UntrustedKeySetError: at the first start, when the control plane's keys are not the pinned ones.
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

    def _session(self, key: SigningKey, state: State) -> Session:
        return Session(
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

    async def _first_state(self, key: SigningKey, stop: asyncio.Event) -> State | None:
        """Return the state of an agent that has none: it knows whom to trust, and nothing else."""
        while not stop.is_set():
            try:
                site = await asyncio.to_thread(self._locate)
                control = ControlPlane(site, timeout_s=self._timeout_s)
                welcome = await control.enrol(self.identity, self._strategy, key.public_key, mev.__version__)
            except UnavailableError as error:
                LOG.warning("no control plane yet: %s", error.detail, extra={"action": "connect_failed"})
                await _pause(stop, _RETRY_S)
                continue
            state = State(key_set=first_key_set(welcome.key_set, self._trust, self._clock()))
            await asyncio.to_thread(self._folder.save, state)
            return state
        return None


def first_key_set(given: bytes, pinned: bytes | None, now_ns: int) -> bytes:
    """Return the envelope of the key set to begin with: the pinned one, when the given one is it or follows from it.

    :raises UntrustedKeySetError: when it does not, or an envelope holds no key set that its own root keys signed.
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
    """Return the envelope in a file: as it is, or in base64.

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
