"""Enrolment and removal of agents: one key per name.

Agents are removed by users, or after a long silence.
"""

import asyncio
from collections.abc import Awaitable, Callable

from google.protobuf.message import Message

from mev.control.audit import SYSTEM, AuditWriter, actor_of
from mev.control.control_state import ControlState
from mev.control.errors import AgentExistsError, TooManyAgentsError
from mev.control.fleet import MAX_AGENTS, EnrolledAgent
from mev.core.clock import Clock
from mev.core.errors import NotFoundError
from mev.wire.pb.control_pb2 import DeclaredAction, Enrolment

Write = Callable[[Message, str], Awaitable[None]]
_LONGEST_GRACE_S = 600.0


class Enrolments:
    """Enrols and removes agents.

    `write` signs and publishes a message under a key, and returns once it has been read back and
    applied. Agents that are silent for `forget_s` are removed, but not right after a start, because
    no report could arrive while the control plane was down.
    """

    def __init__(
        self,
        control_state: ControlState,
        audit: AuditWriter,
        write: Write,
        *,
        forget_s: float,
        clock: Clock,
    ) -> None:
        self._control_state = control_state
        self._audit = audit
        self._write = write
        self._clock = clock
        self._forget_ns = round(forget_s * 1e9)
        self._forget_from_ns = clock() + round(min(forget_s, _LONGEST_GRACE_S) * 1e9)
        # Of two concurrent enrolments of a name, the first wins; across replicas, the first
        # in the topic.
        self._changing = asyncio.Lock()

    async def enrol(self, enrolment: Enrolment, principal: str) -> None:
        """Enrol an agent.

        :raises AgentExistsError: if another key has its name.
        :raises TooManyAgentsError: if the fleet is full.
        """
        async with self._changing:
            fleet, name = self._control_state.fleet, enrolment.agent_id
            known = fleet.agents.get(name)
            if known and known.enrolment.public_key != enrolment.public_key:
                raise _taken(name)
            if not known and len(fleet.agents) >= MAX_AGENTS:
                raise TooManyAgentsError(
                    f"the fleet has {MAX_AGENTS} agents; revoke some with `mev agents revoke`"
                )
            await self._audit.record(
                actor_of(principal), "control.enrol", name, details={"module": enrolment.module}
            )
            # Newer than all others, also after the clock went back.
            enrolment.enrolled_at_ns = max(self._clock(), fleet.newest_ns + 1)
            await self._write(enrolment, topic_key(enrolment))
            winner = fleet.agents.get(name)
            if winner is None or winner.enrolment.public_key != enrolment.public_key:
                # The compacted topic must not contain the losing enrolment.
                await self._write(_revocation(enrolment), topic_key(enrolment))
                raise _taken(name)

    async def revoke(self, agent_id: str, principal: str) -> None:
        """Remove an agent: its reports are ignored from now on.

        :raises NotFoundError: if it does not exist.
        """
        async with self._changing:
            agent = self._control_state.fleet.agents.get(agent_id)
            if agent is None:
                raise NotFoundError(f"no agent {agent_id!r}", code="unknown_agent")
            await self._let_go(agent, principal, "control.revoke")

    async def forget_silent(self) -> None:
        """Remove agents that have been silent for long."""
        now = self._clock()
        if now < self._forget_from_ns:
            return
        async with self._changing:
            for agent in self._control_state.fleet.silent_since(now - self._forget_ns):
                await self._let_go(agent, SYSTEM, "control.forget")

    async def _let_go(self, agent: EnrolledAgent, principal: str, action: str) -> None:
        await self._audit.record(actor_of(principal), action, agent.id)
        await self._write(_revocation(agent.enrolment), topic_key(agent.enrolment))


def _revocation(was: Enrolment) -> Enrolment:
    """Return the record that revokes an enrolment.

    It is kept for a long time, so it leaves out the schemas that the agent declared. Declarations
    of what is tighter stay: a revoked agent may still obey, and its declarations still decide
    whether an order raises risk.
    """
    return Enrolment(
        agent_id=was.agent_id,
        module=was.module,
        public_key=was.public_key,
        enrolled_at_ns=was.enrolled_at_ns,
        revoked=True,
        policy_types=was.policy_types,
        policies=was.policies,
        configs=was.configs,
        actions=[
            DeclaredAction(name=one.name, raises_risk=raises_risk(one)) for one in was.actions
        ],
    )


def raises_risk(action: DeclaredAction) -> bool:
    """Say whether an action may raise risk: it does unless the agent declares otherwise."""
    return action.raises_risk or not action.HasField("raises_risk")


def topic_key(enrolment: Enrolment) -> str:
    """Return the key of an enrolment in the compacted topic."""
    # The public key is part of it: compaction must not replace the first of two rival enrolments.
    return f"agent:{enrolment.agent_id}:{enrolment.public_key.hex()}"


def _taken(name: str) -> AgentExistsError:
    return AgentExistsError(
        f"agent {name!r} is enrolled with another key; "
        "use another name, or revoke it first with `mev agents revoke`"
    )
