"""A real control plane with deployments, its own disk and clock, and scripted agents."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mev.audit.errors import AuditUnavailableError
from mev.auth.model import Permission
from mev.bus.kafka import PublishError
from mev.bus.publisher import Publisher
from mev.control.control_state import ControlState
from mev.control.journal import EnvelopeJournal
from mev.control.keys import Keys, open_keys
from mev.control.service import Control, ControlSettings
from mev.core.clock import now_ns
from mev.crypto.envelope import parse, payload_type, seal
from mev.crypto.keys import SigningKey
from mev.registry.registry import Registry
from mev.rollout.admission import DeploymentRequest
from mev.rollout.model import Deployment, Stage
from mev.rollout.records import Records
from mev.rollout.service import Deployments
from mev.wire.orders import is_for, subject, version_key
from mev.wire.pb.control_pb2 import (
    PRODUCTION,
    SHADOW,
    Command,
    Enrolment,
    ModelRole,
    ModelUse,
    Report,
    SwapModel,
    Target,
)
from mev.wire.registry import KafkaRecord
from tests.services.models import register_bytes

MODULE = "arbitrage"
SILENT_S = 6.0
TERMS = ControlSettings(
    approvals_required=1,
    command_ttl_s=60.0,
    proposal_ttl_s=60.0,
    lease_ttl_s=10.0,
    lease_renew_s=3.0,
    publish_wait_s=1.0,
    forget_agents_s=86_400.0,
    compact_journal_bytes=1 << 24,
    action_check_s=1.0,
    max_schema_bytes=16 << 10,
    max_params_bytes=16 << 10,
)


class Clock:
    """The time of day, and what a test adds to it."""

    def __init__(self) -> None:
        self._added_ns = 0

    def __call__(self) -> int:
        return now_ns() + self._added_ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._added_ns += round(seconds * 1e9)


class Topic:
    """Control topic whose messages are read back at once; while `down` it accepts none."""

    def __init__(self) -> None:
        self.down = False
        self.messages: list[bytes] = []
        self.control: Control | None = None

    async def publish(self, _topic: str, records: list[KafkaRecord], partition: int = -1) -> None:
        """Take records."""
        if self.down:
            raise PublishError("the brokers are away")
        for record in records:
            self.messages.append(record["value"])
            if self.control is not None:
                self.control.received(self.messages[-1])


@dataclass
class Trail:
    """An audit trail in memory; while `full` nothing is written."""

    full: bool = False
    records: list[tuple[str, str, str, Mapping[str, object]]] = field(default_factory=list)
    ended: list[tuple[str, str, str]] = field(default_factory=list)

    async def record(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002 - the word for it
        outcome: str = "ok",
        details: Mapping[str, object] | None = None,
        *,
        correlation_id: str = "",
    ) -> int:
        if self.full:
            raise AuditUnavailableError("the disk is full")
        self.records.append((actor, action, object, details or {}))
        self.ended.append((action, object, outcome))
        return len(self.records)

    def record_later(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002 - the word for it
        outcome: str = "ok",
        details: Mapping[str, object] | None = None,
        *,
        correlation_id: str = "",
    ) -> None:
        self.records.append((actor, action, object, details or {}))

    def of(self, action: str) -> list[tuple[str, Mapping[str, object]]]:
        """Return who did that, with its details."""
        return [(actor, details) for actor, name, _, details in self.records if name == action]

    def outcomes(self, action: str, what: str) -> list[str]:
        """Return how that ended each time it was done to `what`."""
        return [outcome for name, about, outcome in self.ended if (name, about) == (action, what)]


class ScriptedAgent:
    """Agent that accepts the newest model of each role.

    `refuses` is the code of its NACK; `mute` means alive without answers. Only a `stubborn` agent
    refuses to have no model.
    """

    def __init__(self, name: str, module: str, topic: Topic) -> None:
        self.name = name
        self.module = module
        self.key = SigningKey.generate()
        self.alive = True
        self.mute = False
        self.stubborn = False
        self.refuses = ""
        self.figures: dict[str, Any] = {
            "scored": 0,
            "failed": 0,
            "latency_p50_us": 8.0,
            "latency_p99_us": 11.0,
        }
        self.held: dict[ModelRole, SwapModel] = {}
        self._versions: dict[str, tuple[int, int]] = {}
        self._topic = topic
        self._read = 0
        self._counter = 0

    def turn(self) -> list[bytes]:
        """Return what it says after it has heard what there is."""
        if not self.alive:
            return []
        said = (
            []
            if self.mute
            else [self._report(command, result, code) for command, result, code in self._answers()]
        )
        return [*said, self._report(None, "STATUS", "")]

    def miss(self) -> None:
        """Skip all commands published so far."""
        self._read = len(self._topic.messages)

    def model(self, role: ModelRole = PRODUCTION) -> str:
        """Return the model it has in a role."""
        return self.held[role].model_id if role in self.held else ""

    def _answers(self) -> list[tuple[Command, str, str]]:
        answers = []
        while self._read < len(self._topic.messages):
            envelope = parse(self._topic.messages[self._read])
            self._read += 1
            if envelope.payload_type != payload_type(Command):
                continue
            command = Command.FromString(envelope.payload)
            if command.WhichOneof("body") != "model" or not is_for(
                command.target, self.name, self.module
            ):
                continue
            if self._versions.get(subject(command), (0, 0)) >= version_key(command.version):
                continue
            if self.refuses and (command.model.model_id or self.stubborn):
                answers.append((command, "NACK", self.refuses))
                continue
            self._versions[subject(command)] = version_key(command.version)
            self.held[command.model.role] = command.model
            answers.append((command, "ACK", ""))
        return answers

    def _report(self, command: Command | None, result: str, code: str) -> bytes:
        self._counter += 1
        report = Report(
            agent_id=self.name,
            module=self.module,
            agent_counter=self._counter,
            result=result,
            reason_code=code,
        )
        report.reported_at_ns = now_ns()
        if command is not None:
            report.command_id = command.id
        for role, swap in self.held.items():
            if swap.model_id:
                report.running.models.append(
                    ModelUse(role=role, model_id=swap.model_id, sha256=swap.sha256, **self.figures)
                )
        return seal(report, self.key).SerializeToString()


class Plant:
    """Everything on one folder. `restart` is a new process on it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.topic = Topic()
        self.trail = Trail()
        self.agents: dict[str, ScriptedAgent] = {}
        self.control: Control
        self.deployments: Deployments
        self.keys: Keys

    async def start(self) -> None:
        """Begin, or begin again with what is on the disk."""
        self.keys = open_keys(
            self.folder / "control", seed_hex=None, key_id=None, now_ns=self.clock()
        )
        control_state = ControlState(self.keys, keep_sign_of_life_s=60.0)
        publisher = cast("Publisher", self.topic)
        self.control = Control(
            control_state,
            EnvelopeJournal(self.folder / "control" / "journal"),
            publisher,
            self.trail,
            TERMS,
            clock=self.clock,
        )
        self.topic.control = self.control
        await self.control.start()
        for issued in control_state.command_store.commands.values():
            issued.published = True
        self.registry = Registry(self.folder / "models", self.keys.trust)
        records = Records(self.folder / "deployments")
        await records.read()
        self.deployments = Deployments(
            records,
            self.control,
            self.registry,
            silent_s=SILENT_S,
            audit=self.trail.record,
            clock=self.clock,
        )

    async def restart(self) -> None:
        """End as by kill -9, and start again."""
        await self.control.close()
        await self.start()

    async def enrol(self, *names: str, module: str = MODULE) -> list[ScriptedAgent]:
        """Take agents in that have reported once."""
        for name in names:
            agent = self.agents[name] = ScriptedAgent(name, module, self.topic)
            await self.control.enrolments.enrol(
                Enrolment(agent_id=name, module=module, public_key=agent.key.public_key), "ann"
            )
        self.hear()
        return [self.agents[name] for name in names]

    def model(self, name: str, *, so: bool = False, baseline: bool = True) -> str:
        """Register a model and return its id."""
        return register_bytes(
            self.registry,
            name,
            self.keys.model_signer(),
            *(["so"] if so else []),
            baseline=baseline,
        )

    async def deploy(self, model: str, stage: str, **more: Any) -> Deployment:
        """Ask for a stage, as ann, who may do everything."""
        given = {"permissions": frozenset(Permission)} | more
        begun = await self.deployments.deploy(
            DeploymentRequest(model=model, stage=Stage(stage), by="ann", actor="ann", **given)
        )
        assert isinstance(begun, Deployment)
        return begun

    def hear(self) -> None:
        """Let every agent say what it has to say."""
        for agent in self.agents.values():
            for raw in agent.turn():
                self.control.received(raw)

    async def pass_time(self, seconds: float = 1.0, *, step_s: float = 1.0) -> None:
        """Let time pass; agents report and deployments are looked at in every step."""
        for _ in range(max(1, round(seconds / step_s))):
            self.clock.advance(step_s)
            self.hear()
            await self.deployments.watch.tick()

    def now(self, deployment: Deployment) -> Deployment:
        """Return a deployment as it is now."""
        return self.deployments.observer.judged(self.deployments.records.get(deployment.id))

    def swaps(self) -> list[tuple[str, str, str]]:
        """Return every swap that was issued: role, model and whom for, oldest first."""
        found = [
            one.command
            for one in self.control.state.command_store.commands.values()
            if one.command.WhichOneof("body") == "model"
        ]
        return [
            (
                "shadow" if command.model.role == SHADOW else "production",
                command.model.model_id,
                ",".join(command.target.agent_ids) or command.target.modules[0],
            )
            for command in found
        ]

    async def swap_directly(
        self, model_id: str, target: Target, by: str = "bob", key: str = ""
    ) -> None:
        """Swap a model without a deployment."""
        draft = Command(
            model=SwapModel(model_id=model_id, model_path="x.mevt", version="1"),
            target=target,
            priority=5,
        )
        draft.issuer.principal, draft.idempotency_key = by, key
        draft.request_sha256 = hashlib.sha256(model_id.encode()).digest()
        await self.control.issue(draft)

    def verdict(self, deployment: Deployment, rule: str) -> str:
        """Return what a rule says now."""
        return next(row.verdict.value for row in self.now(deployment).rows if row.rule == rule)
