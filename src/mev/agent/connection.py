"""Finding the control plane, again and again: at the start, after losing it, after a gap in its orders."""

import asyncio
import logging
import time
from collections.abc import Callable

import mev
from mev.agent.enrolment import ControlPlane, EnrolmentRefusedError, Locate, Site, Welcome
from mev.agent.judge import Identity
from mev.agent.link import Link
from mev.agent.strategy import Strategy
from mev.core.errors import MevError

LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_STEADY_S = 10.0


class Connection:
    """Keeps an agent connected; `welcome` takes the state to begin from, before anything of the control topic is read."""

    def __init__(
        self,
        identity: Identity,
        strategy: Strategy,
        public_key: bytes,
        locate: Locate,
        link: Link,
        welcome: Callable[[Welcome], None],
        *,
        timeout_s: float,
    ) -> None:
        self._identity = identity
        self._strategy = strategy
        self._public_key = public_key
        self._locate = locate
        self._link = link
        self._welcome = welcome
        self._timeout_s = timeout_s
        self._enrolled = False
        self._wanted = asyncio.Event()
        self._wanted.set()
        self.problem = "not connected yet"

    def lost(self, reason: str) -> None:
        """Ask for a new connection."""
        if not self._wanted.is_set():
            LOG.warning("the control plane was lost: %s", reason, extra={"action": "control_lost"})
            self.problem = reason
            self._wanted.set()

    async def run(self) -> None:
        """Connect whenever that is asked for, until cancelled."""
        pause_s, tried_at = _FIRST_PAUSE_S, 0.0
        while True:
            await self._wanted.wait()
            # What was connected for a moment only is not tried more often than what was not connected at all.
            if time.monotonic() - tried_at > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            tried_at = time.monotonic()
            await self._attempt()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def ask(self) -> tuple[Site, Welcome]:
        """Return where the control plane is and what it says.

        :raises MevError: when it cannot be found, does not answer, or does not want this agent.
        """
        site = await asyncio.to_thread(self._locate)
        control = ControlPlane(site, timeout_s=self._timeout_s)
        if self._enrolled:
            try:
                return site, await control.snapshot()
            except EnrolmentRefusedError:
                self._enrolled = False
        welcome = await control.enrol(self._identity, self._strategy, self._public_key, mev.__version__)
        self._enrolled = True
        return site, welcome

    async def _attempt(self) -> None:
        # What is lost from here on is a new loss.
        self._wanted.clear()
        try:
            site, welcome = await self.ask()
            self._welcome(welcome)
            await self._link.open(site.brokers, welcome.control_offset)
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
