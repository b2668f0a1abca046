"""Checks of module actions against the schemas that the agents declared.

Agents write the schemas, so the checks run in a separate thread with a deadline. An agent whose
schema cannot be checked in time still gets the command and checks the parameters itself. Actions
that stop trading are never refused by a schema.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mev.control import action_schemas
from mev.control.enrolments import raises_risk
from mev.control.errors import InvalidCommandError, SchemaNotAllowedError
from mev.control.fleet import EnrolledAgent, Fleet
from mev.control.validate import list_names
from mev.wire.pb.control_pb2 import Command, DeclaredAction, Target

STOP_ACTIONS = frozenset({"cancel_all"})
"""Actions that only reduce risk: they are sent to every agent, whatever its schema says."""
MAX_TARGET_BYTES = 128 << 10
_LISTED = 100
_GRACE_S = 1.0  # for the check running at the deadline, whose cost is bounded


@dataclass(frozen=True, slots=True)
class ActionRefusal:
    """Reason why an agent is not sent an action."""

    agent_id: str
    reason_code: str
    detail: str
    field: str = ""


@dataclass(slots=True)
class ActionCheck:
    """Result of checking an action against the agents' declarations."""

    accepted: list[EnrolledAgent] = field(default_factory=list)
    refusals: list[ActionRefusal] = field(default_factory=list)
    raising: list[EnrolledAgent] = field(default_factory=list)
    """Accepted agents that do not declare that the action raises no risk."""
    unchecked: list[str] = field(default_factory=list)
    """Agents whose schema could not be checked in time; they are among the accepted."""
    let_go: list[str] = field(default_factory=list)
    """Revoked agents that did not declare that the action raises no risk; they may still obey."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Agents by the SHA-256 of their declared schema."""

    def view(self) -> dict[str, object]:
        """Return the result for the API, with the first 100 agents of each list."""
        conflicts = [
            {"schema_sha256": digest, "agents": len(names), "agent_ids": names[:_LISTED]}
            for digest, names in self.groups.items()
        ]
        refusals = [
            {
                "agent_id": one.agent_id,
                "reason_code": one.reason_code,
                "field": one.field or None,
                "detail": one.detail,
            }
            for one in self.refusals[:_LISTED]
        ]
        return {
            "not_sent_to": refusals,
            "not_sent": len(self.refusals),
            "unchecked": self.unchecked[:_LISTED],
            "schema_conflicts": conflicts[:_LISTED] if len(conflicts) > 1 else [],
        }


class ActionChecks:
    """Checks actions in a separate thread, for at most `timeout_s` each."""

    def __init__(self, *, timeout_s: float, max_schema_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._max_schema_bytes = max_schema_bytes
        self._thread = ThreadPoolExecutor(1, "action-checks")

    async def check(self, draft: Command, fleet: Fleet) -> ActionCheck:
        """Return the result of checking `draft` against the declarations of its target agents.

        :raises InvalidCommandError: if no agent declares the action, or every agent's schema
            refuses the parameters.
        """
        action = draft.action
        if not fleet.declares(action.module, action.action):
            names = list_names(fleet.declared_actions(action.module))
            raise InvalidCommandError(
                f"action: module {action.module!r} has no action {action.action!r}; "
                f"there are {names}",
                field="action",
            )
        members = [agent for agent in fleet.agents.values() if agent.module == action.module]
        meant = [
            agent for agent in fleet.meant(draft.target) if agent.module == action.module
        ] or members
        if action.action in STOP_ACTIONS:
            return ActionCheck(accepted=list(meant))
        job = _Job(
            action.action,
            action.params_json,
            meant,
            time.monotonic() + self._timeout_s,
            self._max_schema_bytes,
        )
        work = asyncio.get_running_loop().run_in_executor(self._thread, job.run)
        try:
            found = await asyncio.wait_for(work, self._timeout_s + _GRACE_S)
        except TimeoutError:  # earlier checks use the thread
            found = ActionCheck(
                accepted=list(meant), raising=list(meant), unchecked=[agent.id for agent in meant]
            )
        gone = (one for one in fleet.let_go(draft.target) if one.module == action.module)
        found.let_go = [
            one.agent_id
            for one in gone
            if any(each.name == action.action and raises_risk(each) for each in one.actions)
        ]
        if not found.accepted:
            raise _nobody(found, action.module, action.action)
        return found

    def close(self) -> None:
        """Stop the thread after its current check."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def narrowed(target: Target, check: ActionCheck) -> Target:
    """Return the target without revoked agents and without those that refuse the action.

    Unchanged where the list of agents would be too long for a command.
    """
    if not (check.refusals or check.let_go) or not fits(check.accepted):
        return target
    return Target(agent_ids=[agent.id for agent in check.accepted])


def fits(agents: Sequence[EnrolledAgent]) -> bool:
    """Return whether a command can list all the agents by id."""
    return sum(len(agent.id) for agent in agents) <= MAX_TARGET_BYTES


@dataclass(slots=True)
class _Job:
    action: str
    params_json: str
    agents: Sequence[EnrolledAgent]
    deadline_s: float
    max_schema_bytes: int
    outcomes: dict[str, InvalidCommandError | None] = field(default_factory=dict)

    def run(self) -> ActionCheck:
        """Check each distinct schema once; schemas left at the deadline are not checked."""
        found, params = ActionCheck(), json.loads(self.params_json)
        for agent in self.agents:
            declared = declaration(agent, self.action)
            if declared is None:
                found.refusals.append(
                    ActionRefusal(
                        agent.id, "unknown_action", f"the agent does not declare {self.action!r}"
                    )
                )
                continue
            text = declared.params_schema_json
            found.groups.setdefault(hashlib.sha256(text.encode()).hexdigest(), []).append(agent.id)
            is_late = text not in self.outcomes and time.monotonic() > self.deadline_s
            if not is_late and (error := self._outcome(text, params)) is not None:
                found.refusals.append(
                    ActionRefusal(
                        agent.id, "bad_params", error.detail, str(error.fields.get("field", ""))
                    )
                )
                continue
            found.accepted.append(agent)
            if is_late:
                found.unchecked.append(agent.id)
            if raises_risk(declared):
                found.raising.append(agent)
        return found

    def _outcome(self, text: str, params: dict[str, object]) -> InvalidCommandError | None:
        if text not in self.outcomes:
            self.outcomes[text] = self._problem(text, params)
        return self.outcomes[text]

    def _problem(self, text: str, params: dict[str, object]) -> InvalidCommandError | None:
        try:
            # Checked again, because an earlier release may have accepted the schema at enrolment.
            action_schemas.check_schema(
                json.loads(text or "{}"), "schema", max_bytes=self.max_schema_bytes
            )
            action_schemas.check_params(params, text)
        except (SchemaNotAllowedError, ValueError):
            return None  # such a schema is ignored; the agent checks the parameters itself
        except InvalidCommandError as error:
            return error
        return None


def declaration(agent: EnrolledAgent, action: str) -> DeclaredAction | None:
    """Return the action as declared by `agent`, None if it does not declare it."""
    return next((one for one in agent.enrolment.actions if one.name == action), None)


def _nobody(found: ActionCheck, module: str, action: str) -> InvalidCommandError:
    bad = next((one for one in found.refusals if one.reason_code == "bad_params"), None)
    if bad is not None:
        return InvalidCommandError(bad.detail, field=bad.field or "params")
    return InvalidCommandError(
        f"action: no agent of module {module!r} that is meant declares {action!r}", field="action"
    )
