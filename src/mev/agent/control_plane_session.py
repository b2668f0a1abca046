"""Connection to the control plane: at the start, after a loss and after a gap in its messages."""

import asyncio
import logging
import time
from collections.abc import Callable

import mev
from mev.agent.command_verifier import Identity
from mev.agent.enrolment import ControlPlane, EnrolmentRefusedError, Locate, Site, Welcome
from mev.agent.kafka_clients import KafkaClients
from mev.agent.strategy import Strategy
from mev.core.errors import MevError
from mev.crypto.keys import SigningKey

LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_STEADY_S = 10.0


class ControlPlaneSession:
    """Keeps an agent connected.

    `welcome` receives the initial state before the control topic is read.
    """

    def __init__(
        self,
        identity: Identity,
        strategy: Strategy,
        key: SigningKey,
        locate: Locate,
        kafka: KafkaClients,
        welcome: Callable[[Welcome], None],
        *,
        timeout_s: float,
    ) -> None:
        self._identity = identity
        self._strategy = strategy
        self._key = key
        self._locate = locate
        self._kafka = kafka
        self._welcome = welcome
        self._timeout_s = timeout_s
        self._enrolled = False
        self._wanted = asyncio.Event()
        self._wanted.set()
        self.problem = "not connected yet"

    def lost(self, reason: str) -> None:
        """Request a new connection."""
        if not self._wanted.is_set():
            LOG.warning("the control plane was lost: %s", reason, extra={"action": "control_lost"})
            self.problem = reason
            self._wanted.set()

    async def run(self) -> None:
        """Reconnect on each request, until cancelled."""
        pause_s, tried_at = _FIRST_PAUSE_S, 0.0
        while True:
            await self._wanted.wait()
            # Short connections count as failed attempts for the pause.
            if time.monotonic() - tried_at > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            tried_at = time.monotonic()
            await self._attempt()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def ask(self) -> tuple[Site, Welcome]:
        """Return the location of the control plane and its initial state.

        :raises MevError: when it cannot be found, does not answer, or refuses this agent.
        """
        site = await asyncio.to_thread(self._locate)
        control = ControlPlane(site, timeout_s=self._timeout_s)
        if self._enrolled:
            try:
                return site, await control.snapshot()
            except EnrolmentRefusedError:
                self._enrolled = False
        welcome = await control.enrol(self._identity, self._strategy, self._key, mev.__version__)
        self._enrolled = True
        return site, welcome

    async def _attempt(self) -> None:
        # A loss after this point is a new loss.
        self._wanted.clear()
        try:
            site, welcome = await self.ask()
            self._welcome(welcome)
            await self._kafka.open(site.brokers, welcome.control_offset)
        except MevError as error:
            self._failed(error.detail)
        except Exception as error:
            LOG.exception("connecting failed", extra={"action": "connect_failed"})
            self._failed(repr(error))
        else:
            self.problem = ""
            LOG.info("connected to %s", site.api, extra={"action": "connected"})

    def _failed(self, reason: str) -> None:
        if reason != self.problem:
            LOG.warning("no control plane: %s", reason, extra={"action": "connect_failed"})
        self.problem = reason
        self._wanted.set()
