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
    """Takes agents in and lets them go; `write` signs and publishes a message under a key, and returns when it was read back and applied.

    Agents that are silent for `forget_s` are let go, but not right after a start: while the control plane was away nobody could be heard.
    """

    def __init__(self, book: Book, audit: Audit, write: Write, *, forget_s: float) -> None:
        self._book = book
        self._audit = audit
        self._write = write
        self._forget_ns = round(forget_s * 1e9)
        self._forget_from_ns = now_ns() + round(min(forget_s, _LONGEST_GRACE_S) * 1e9)
        self._changing = asyncio.Lock()  # of two who want one name at once, the first has it; across replicas the topic says who was first

    async def enrol(self, enrolment: Enrolment, principal: str) -> None:
        """Take an agent in.

        :raises AgentExistsError: when its name belongs to another key.
        :raises TooManyAgentsError: when the fleet is as large as it may be.
        """
        async with self._changing:
            fleet, name = self._book.fleet, enrolment.agent_id
            known = fleet.agents.get(name)
            if known and known.enrolment.public_key != enrolment.public_key:
                raise _taken(name)
            if not known and len(fleet.agents) >= MAX_AGENTS:
                raise TooManyAgentsError(f"the fleet has {MAX_AGENTS} agents; let some go with `mev agents revoke`")
            await self._audit.record(principal, "control.enrol", name)
            enrolment.enrolled_at_ns = max(now_ns(), fleet.newest_ns + 1)  # also when the clock went back
            await self._write(enrolment, topic_key(enrolment))
            winner = fleet.agents.get(name)
            if winner is None or winner.enrolment.public_key != enrolment.public_key:
                await self._write(_revocation(enrolment), topic_key(enrolment))  # so that the compacted topic does not keep it
                raise _taken(name)

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
        await self._write(_revocation(agent.enrolment), topic_key(agent.enrolment))


def _revocation(was: Enrolment) -> Enrolment:
    """Return what ends an enrolment: remembered for long, and therefore without what the agent declared."""
    return Enrolment(agent_id=was.agent_id, module=was.module, public_key=was.public_key, enrolled_at_ns=was.enrolled_at_ns, revoked=True)


def topic_key(enrolment: Enrolment) -> str:
    """Return the key under which the topic keeps an enrolment."""
    # With the public key: of two that want one name, the compacted topic must not keep the second and drop the first.
    return f"agent:{enrolment.agent_id}:{enrolment.public_key.hex()}"


def _taken(name: str) -> AgentExistsError:
    return AgentExistsError(f"agent {name!r} is enrolled with another key; use another name, or revoke it first with `mev agents revoke`")
