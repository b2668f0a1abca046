"""Who is in the fleet: one key a name, let go by people or after a long silence."""

import asyncio
from collections.abc import Awaitable, Callable

from google.protobuf.message import Message

from mev.control.audit import SYSTEM, Audit
from mev.control.book import Book
from mev.control.errors import AgentExistsError, TooManyAgentsError, UnknownAgentError
from mev.control.fleet import MAX_AGENTS, Agent
from mev.core.clock import now_ns
from mev.wire.pb.control_pb2 import Enrolment

Write = Callable[[Message, str], Awaitable[None]]
_LONGEST_GRACE_S = 600.0


class Enrolments:
    """Takes agents in and lets them go; `write` signs, keeps, applies and publishes a message under a key.

    Agents that are silent for `forget_s` are let go, but not right after a start: while the control plane was away nobody could be heard.
    """

    def __init__(self, book: Book, audit: Audit, write: Write, *, forget_s: float) -> None:
        self._book = book
        self._audit = audit
        self._write = write
        self._forget_ns = round(forget_s * 1e9)
        self._forget_from_ns = now_ns() + round(min(forget_s, _LONGEST_GRACE_S) * 1e9)
        self._changing = asyncio.Lock()  # of two who want one name at once, the first has it

    async def enrol(self, enrolment: Enrolment, principal: str) -> None:
        """Take an agent in.

        :raises AgentExistsError: when its name belongs to another key.
        :raises TooManyAgentsError: when the fleet is as large as it may be.
        """
        async with self._changing:
            fleet, name = self._book.fleet, enrolment.agent_id
            known = fleet.agents.get(name)
            if known and known.enrolment.public_key != enrolment.public_key:
                raise AgentExistsError(
                    f"agent {name!r} is enrolled with another key; use another name, or revoke it first with `mev agents revoke`"
                )
            if not known and len(fleet.agents) >= MAX_AGENTS:
                raise TooManyAgentsError(f"the fleet has {MAX_AGENTS} agents; let some go with `mev agents revoke`")
            await self._audit.record(principal, "control.enrol", name)
            before = max((one.enrolled_at_ns for one in (known and known.enrolment, fleet.revoked.get(name)) if one), default=0)
            enrolment.enrolled_at_ns = max(now_ns(), before + 1)  # also when the clock went back
            await self._write(enrolment, f"agent:{name}")

    async def revoke(self, agent_id: str, principal: str) -> None:
        """Let an agent go: its reports count no more.

        :raises UnknownAgentError: when there is none of that name.
        """
        async with self._changing:
            agent = self._book.fleet.agents.get(agent_id)
            if agent is None:
                raise UnknownAgentError(f"no agent {agent_id!r}")
            await self._let_go(agent, principal, "control.revoke")

    async def forget_silent(self) -> None:
        """Let the agents go that are silent for long."""
        now = now_ns()
        if now < self._forget_from_ns:
            return
        async with self._changing:
            for agent in self._book.fleet.silent_since(now - self._forget_ns):
                await self._let_go(agent, SYSTEM, "control.forget")

    async def _let_go(self, agent: Agent, principal: str, action: str) -> None:
        await self._audit.record(principal, action, agent.id)
        was = agent.enrolment
        gone = Enrolment(agent_id=agent.id, module=was.module, public_key=was.public_key, enrolled_at_ns=was.enrolled_at_ns, revoked=True)
        await self._write(gone, f"agent:{agent.id}")  # remembered for long, and therefore without what it declared
