"""A control plane in memory that signs, and a governor that listens to it on a clock of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

from google.protobuf.message import Message

from mev.agent.active_models import ActiveModels
from mev.agent.command_handlers import CommandHandlers
from mev.agent.command_processor import CommandProcessor
from mev.agent.command_verifier import Identity, Prepared, Transition, Wanted
from mev.agent.folder import AgentFolder
from mev.agent.level import LeaseLimits, Level
from mev.agent.model_source import ModelFolder, ModelSource
from mev.agent.policy import Policies, PolicyType
from mev.agent.state import AgentState, CommandResult
from mev.agent.strategy import Action, Param, Strategy, Value
from mev.core.errors import MevError
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.crypto.trust import COMMAND, MODEL, ROOT, TrustStore
from mev.wire.pb.control_pb2 import (
    Command,
    Lease,
    ModuleAction,
    SetConfig,
    SetLevel,
    SetPolicy,
    Snapshot,
    Target,
    Version,
)
from mev.wire.pb.envelope_pb2 import Envelope, KeySet

START_NS = 1_800_000_000_000_000_000
SECOND = 1_000_000_000
ME = "a1"
MODULE = "arbitrage"
EVERYONE = Target(all=True)


class Clock:
    """A manual clock."""

    def __init__(self, now_ns: int = START_NS) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ns += round(seconds * SECOND)


class Plane:
    """Signs what a control plane signs; every version is newer than the one before."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.root = SigningKey.generate("root")
        self.key = SigningKey.generate("command-1")
        self.model_key = SigningKey.generate("model-1")
        self.epoch = 1
        self.counters = count(1000)
        self.key_set = self._key_set()

    def rotate(self) -> bytes:
        """Replace the keys for commands and models; return the new key set's envelope."""
        self.epoch += 1
        self.key = SigningKey.generate(f"command-{self.epoch}")
        self.model_key = SigningKey.generate(f"model-{self.epoch}")
        self.counters = count(1)
        self.key_set = self._key_set()
        return self.key_set

    def version(self) -> Version:
        """Return the next version."""
        return Version(epoch=self.epoch, counter=next(self.counters))

    def command(
        self,
        body: Message,
        target: Target = EVERYONE,
        *,
        version: Version | None = None,
        expires_s: float = 30.0,
    ) -> Command:
        """Return a new command."""
        version = version or self.version()
        command = Command(
            id=f"{type(body).__name__}-{version.epoch}-{version.counter}",
            version=version,
            target=target,
            issued_at_ns=self.clock(),
            expires_at_ns=self.clock() + round(expires_s * SECOND),
        )
        names = {
            ModuleAction: "action",
            SetLevel: "level",
            SetPolicy: "policy",
            SetConfig: "config",
        }
        getattr(command, names.get(type(body), "model")).CopyFrom(body)
        return command

    def level(
        self,
        level: Level,
        target: Target = EVERYONE,
        until_s: float | None = None,
        *,
        approvers: Sequence[str] = ("ann",),
    ) -> Command:
        """Return a level command."""
        until_ns = 0 if until_s is None else self.clock() + round(until_s * SECOND)
        command = self.command(SetLevel(level=level.name, until_ns=until_ns), target)
        command.issuer.approvers.extend(approvers)
        return command

    def lease(
        self, seconds: float = 10.0, target: Target = EVERYONE, version: Version | None = None
    ) -> Lease:
        """Return a lease from now on."""
        now_ns = self.clock()
        expires_at_ns = now_ns + round(seconds * SECOND)
        return Lease(
            version=version or self.version(),
            target=target,
            issued_at_ns=now_ns,
            expires_at_ns=expires_at_ns,
        )

    def snapshot(self, *commands: Command | Envelope) -> Snapshot:
        """Return the commands in force, signed."""
        envelopes = [one if isinstance(one, Envelope) else seal(one, self.key) for one in commands]
        return Snapshot(version=self.version(), issued_at_ns=self.clock(), commands=envelopes)

    def sealed(self, message: Message) -> bytes:
        """Sign with the key in use."""
        return seal(message, self.key).SerializeToString()

    def _key_set(self) -> bytes:
        keys = [
            self.root.trusted_for(ROOT),
            self.key.trusted_for(COMMAND),
            self.model_key.trusted_for(MODEL),
        ]
        return seal(
            KeySet(epoch=self.epoch, issued_at_ns=self.clock(), keys=keys), self.root
        ).SerializeToString()


class Recorder(Strategy):
    """A strategy that notes what it is told."""

    module = MODULE
    actions = (
        Action(
            name="set_min_profit",
            description="",
            params={"lamports": Param(type="integer", minimum=0)},
        ),
        Action(name="cancel_all", description=""),
        Action(name="enter", description="", needs=Level.ACTIVE),
    )
    policy_types = (PolicyType("risk"),)
    configs: Mapping[str, Param] = {"pace": Param(type="number", minimum=0, maximum=10)}

    def __init__(self) -> None:
        self.done: list[tuple[str, Mapping[str, Value]]] = []
        self.levels: list[Level] = []
        self.configured: list[tuple[str, Value]] = []
        self.policies = Policies()
        self.fails = False

    def on_action(self, name: str, params: Mapping[str, Value]) -> str:
        if self.fails:
            raise ZeroDivisionError
        self.done.append((name, params))
        return "done"

    def on_policies(self, policies: Policies) -> None:
        self.policies = policies

    def on_config(self, key: str, value: Value) -> None:
        self.configured.append((key, value))

    def on_level(self, level: Level, reason: str) -> None:
        self.levels.append(level)


@dataclass
class Bench:
    """A control plane, a governor on a folder, and what it reported: (command id, answer)."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    models: ModelSource = field(default_factory=lambda: ModelFolder(None))
    limits: LeaseLimits = field(default_factory=LeaseLimits)

    def __post_init__(self) -> None:
        self.plane = Plane(self.clock)
        self.reports: list[tuple[str, CommandResult]] = []
        self.restart()

    def restart(self) -> None:
        """Begin with what is on disk, as a new process does."""
        folder = AgentFolder(self.folder, ME)
        folder.path.mkdir(exist_ok=True, parents=True)
        if (state := folder.load()) is None:
            state = AgentState(key_set=self.plane.key_set)
            folder.save(state)
        trust = TrustStore(KeySet.FromString(Envelope.FromString(state.key_set).payload))
        self.strategy = Recorder()
        self.active_models = ActiveModels(self.clock)
        self.processor = CommandProcessor(
            Identity(agent_id=ME, module=MODULE),
            self.strategy,
            CommandHandlers(self.strategy, {}, self.active_models),
            self.active_models,
            folder,
            state,
            trust,
            limits=self.limits,
            clock=self.clock,
            report=lambda command_id, answer: self.reports.append((command_id, answer)),
        )
        self.processor.start()
        for wanted in self.processor.absent():
            self.processor.restore(self._load(wanted))

    def send(self, message: Message) -> list[str]:
        """Send a signed message; return the codes of the answers, empty for consent."""
        return self.send_bytes(self.plane.sealed(message))

    def send_bytes(self, envelope: bytes) -> list[str]:
        """Send an envelope as it is."""
        before = len(self.reports)
        self._follow(partial(self.processor.decide, envelope, self.clock()))
        return [answer.reason_code for _, answer in self.reports[before:]]

    def _follow(self, decide: Callable[[], Transition]) -> None:
        """Do what the session does, and load in between."""
        while not self.processor.holds(transition := decide()):
            pass
        self.processor.enact(transition)
        for wanted in transition.wanted.values():
            self._follow(partial(self.processor.decide_again, self._load(wanted)))

    def _load(self, wanted: Wanted) -> Prepared:
        trust = self.processor.trust
        try:
            return Prepared(
                wanted, self.models.load(wanted.command.model, trust, self.clock()), trust.epoch
            )
        except MevError as error:
            return Prepared(wanted, error, trust.epoch)

    def activate(self) -> None:
        """Order ACTIVE and give a lease."""
        assert self.send(self.plane.level(Level.ACTIVE)) == [""]
        assert self.send(self.plane.lease()) == []
        assert self.level() == Level.ACTIVE

    def level(self) -> Level:
        """Return the level in force."""
        return self.processor.level()

    def wait(self, seconds: float) -> Level:
        """Let time pass, as the agent would notice it; return the level then."""
        self.clock.advance(seconds)
        self.processor.refresh()
        return self.level()
