"""Agents' answers to commands that this replica has not read yet.

They use another topic, and an agent may be faster than a replica.
"""

from collections import OrderedDict
from dataclasses import dataclass

from mev.wire.pb.control_pb2 import ACK, Report

_MOST = 20_000
_MOST_BYTES = 32 << 20


@dataclass(frozen=True)
class EarlyAnswer:
    """An agent's answer, its arrival and its envelope."""

    report: Report
    arrived_at_ns: int
    envelope: bytes


class EarlyAnswers:
    """The newest answer of each agent to each unknown command, in bounded memory.

    When there is no room, the agent that uses most of it loses its oldest answers: no agent can
    push out those of others.
    """

    def __init__(self, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._by_agent: dict[str, OrderedDict[str, EarlyAnswer]] = {}
        self._agents_of: dict[str, set[str]] = {}
        self._bytes_of: dict[str, int] = {}
        self.count = 0
        self.size_bytes = 0

    def add(self, answer: EarlyAnswer) -> None:
        """Keep an answer; an acknowledgement is not replaced by a later error."""
        agent_id, command_id = answer.report.agent_id, answer.report.command_id
        answers = self._by_agent.setdefault(agent_id, OrderedDict())
        before = answers.get(command_id)
        if before is not None:
            if before.report.result == ACK != answer.report.result:
                return
            self._remove(agent_id, command_id)
        self._by_agent.setdefault(agent_id, answers)[command_id] = answer
        self._agents_of.setdefault(command_id, set()).add(agent_id)
        self._count(agent_id, 1, len(answer.envelope))
        while self.count > self._most or self.size_bytes > self._most_bytes:
            most = self._largest(agent_id)
            self._remove(most, next(iter(self._by_agent[most])))

    def take(self, command_id: str) -> list[EarlyAnswer]:
        """Remove and return the answers to a command."""
        agents = sorted(self._agents_of.get(command_id, ()))
        return [self._remove(agent_id, command_id) for agent_id in agents]

    def _largest(self, newest: str) -> str:
        """Return an agent that uses more than its share; that of the newest answer if it does."""
        agents = len(self._by_agent)

        def share(agent_id: str) -> float:
            return max(
                len(self._by_agent[agent_id]) / self._most,
                self._bytes_of[agent_id] / self._most_bytes,
            )

        return newest if share(newest) > 1 / agents else max(self._by_agent, key=share)

    def _remove(self, agent_id: str, command_id: str) -> EarlyAnswer:
        answer = self._by_agent[agent_id].pop(command_id)
        self._agents_of[command_id].discard(agent_id)
        if not self._agents_of[command_id]:
            del self._agents_of[command_id]
        self._count(agent_id, -1, -len(answer.envelope))
        if not self._by_agent[agent_id]:
            del self._by_agent[agent_id], self._bytes_of[agent_id]
        return answer

    def _count(self, agent_id: str, number: int, size_bytes: int) -> None:
        self.count += number
        self.size_bytes += size_bytes
        self._bytes_of[agent_id] = self._bytes_of.get(agent_id, 0) + size_bytes
