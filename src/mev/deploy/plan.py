"""What a step orders, worked out from what the ledger has in force. Nothing here issues anything.

Agents hold one command for each role, the newest that was for them, whatever its scope; so does every question here.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mev.control.book import Book
from mev.control.ledger import Issued, Ledger
from mev.deploy.model import Artifact, Deployment, Order, Stage
from mev.predict.manifest import Manifest
from mev.wire.orders import order as version_of
from mev.wire.pb.control_pb2 import SHADOW, Command, SwapModel

PRODUCTION_SUBJECT, SHADOW_SUBJECT = "model", "model:shadow"
_VERSION_DIGITS = 12


def artifact(manifest: Manifest, form: str) -> Artifact | None:
    """Return the file of a model in that form, None where it has none."""
    digest = manifest.digest(form)
    if digest is None:
        return None
    return Artifact(model_id=manifest.model_id, path=f"{digest}.{form}", version=manifest.model_id[:_VERSION_DIGITS], sha256=digest)


def canaries(deployment: Deployment, agent_ids: Iterable[str], share: float) -> tuple[str, ...]:
    """Return the share of the agents that try a model first, one at least if there is one: the same ones whenever asked.

    Nobody knows the id of a deployment before it begins, so nobody can have chosen a name that comes first.
    """
    ranked = sorted(agent_ids, key=lambda name: hashlib.sha256(f"{deployment.id}\n{name}".encode()).digest())
    return tuple(ranked[: max(1, int(share * len(ranked) + 1e-9))])


def newest(ledger: Ledger, about: str, module: str, agent_ids: Iterable[str] = ()) -> Issued | None:
    """Return the newest command on a subject that is for the module, or for one of `agent_ids`."""
    return next(iter(_newest_first(ledger, about, module, agent_ids)), None)


def in_production(ledger: Ledger, module: str) -> Artifact | None:
    """Return what the module was last ordered to decide with."""
    issued = newest(ledger, PRODUCTION_SUBJECT, module)
    return _ordered(issued.command.model) if issued is not None else None


def has_shadow(ledger: Ledger, module: str) -> bool:
    """Say whether a model was ordered into the module's shadow."""
    issued = newest(ledger, SHADOW_SUBJECT, module)
    return issued is not None and bool(issued.command.model.model_id)


def base(book: Book, module: str) -> tuple[int, int]:
    """Return the newest version of any model command that concerns the module."""
    members = [agent.id for agent in book.fleet.agents.values() if agent.module == module]
    found = [newest(book.ledger, about, module, members) for about in (PRODUCTION_SUBJECT, SHADOW_SUBJECT)]
    return max((version_of(issued.command.version) for issued in found if issued is not None), default=(0, 0))


def forward(deployment: Deployment, stage: Stage, share: float, ledger: Ledger) -> tuple[Order, ...]:
    """Return the orders that bring a deployment to a stage; the first one places the model."""
    if stage is Stage.SHADOW:
        return (Order(shadow=True, artifact=deployment.artifact, share=share),)
    placing = Order(shadow=False, artifact=deployment.artifact, agent_ids=deployment.agent_ids)
    empties = stage is Stage.PRODUCTION and has_shadow(ledger, deployment.module)
    return (placing, Order(shadow=True, artifact=None)) if empties else (placing,)


def backward(deployment: Deployment, ledger: Ledger) -> tuple[Order, ...]:
    """Return the orders that give back what was there before."""
    orders = []
    if deployment.stage is not Stage.SHADOW:
        agent_ids = deployment.agent_ids if deployment.stage is Stage.CANARY else ()
        orders.append(Order(shadow=False, artifact=deployment.previous, agent_ids=agent_ids))
    return (*orders, *_shadow_withdrawn(deployment, ledger))


def withdrawal(deployment: Deployment, ledger: Ledger) -> tuple[Order, ...]:
    """Return the orders that end a trial which nobody watches any more: shadow and canaries, as far as they are still ours."""
    orders = []
    if deployment.stage is Stage.CANARY:
        left = tuple(name for name in deployment.agent_ids if _is_in_production_at(deployment, ledger, name))
        if left:
            orders.append(Order(shadow=False, artifact=in_production(ledger, deployment.module), agent_ids=left))
    return (*orders, *_shadow_withdrawn(deployment, ledger))


def still_due(deployment: Deployment, order: Order, ledger: Ledger) -> Order | None:
    """Return what is left of an order that takes a model back and was not issued at once: not what overrides somebody else's since then.

    One for the module is left whole unless it is the module that somebody gave another model: a bad one must not stay at the others.
    """
    about = SHADOW_SUBJECT if order.shadow else PRODUCTION_SUBJECT
    if not order.agent_ids:
        return None if _is_foreign(deployment, newest(ledger, about, deployment.module), ledger) else order
    found = {name: newest(ledger, about, deployment.module, [name]) for name in order.agent_ids}
    left = tuple(name for name, issued in found.items() if not _is_foreign(deployment, issued, ledger))
    return replace(order, agent_ids=left) if left else None


def intruder(deployment: Deployment, book: Book, emptied: Sequence[Deployment] = ()) -> Issued | None:
    """Return a command that somebody else gave, and that is in force in the place of what this deployment ordered or found.

    One of `emptied`, which end later than this one began, is not somebody else.
    """
    members = [agent.id for agent in book.fleet.agents.values() if agent.module == deployment.module]
    subjects = (PRODUCTION_SUBJECT, SHADOW_SUBJECT) if deployment.stage is Stage.SHADOW else (PRODUCTION_SUBJECT,)
    for about in subjects:
        for found in _newest_first(book.ledger, about, deployment.module, members):
            if version_of(found.command.version) <= deployment.base or is_ours(deployment, found.command):
                break
            if not any(is_ours(one, found.command) for one in emptied):
                return found
    return None


def is_ours(deployment: Deployment, command: Command) -> bool:
    """Say whether a command is of this deployment; after the keys were rotated it is in force under another id."""
    return any(
        command.request_sha256 == deployment.request_sha256(step, number)
        for step, each in enumerate(deployment.steps)
        for number in range(len(each.orders))
    )


def is_repeated(deployment: Deployment, found: Issued, ledger: Ledger) -> bool:
    """Say whether a command is one that the deployment found, ordered again because the keys were rotated."""
    command = found.command
    return any(
        version_of(one.command.version) <= deployment.base
        and one.command.version.epoch < command.version.epoch
        and one.command.request_sha256 == command.request_sha256
        and one.command.issuer.principal == command.issuer.principal
        and one.command.target == command.target
        and one.command.model == command.model
        for one in ledger.history(SHADOW_SUBJECT if command.model.role == SHADOW else PRODUCTION_SUBJECT)
    )


def current(deployment: Deployment, step: int, number: int, scopes: Sequence[str], ledger: Ledger) -> list[Issued]:
    """Return the commands of an order that may be answered, the one that was issued first before those ordered again."""
    order = deployment.steps[step].orders[number]
    about, marked = SHADOW_SUBJECT if order.shadow else PRODUCTION_SUBJECT, deployment.request_sha256(step, number)
    found = {order.command_id: ledger.commands.get(order.command_id)}
    for scope in scopes:
        issued = ledger.latest(about, scope)
        if issued is not None and issued.command.request_sha256 == marked:
            found[issued.command.id] = issued
    return [issued for issued in found.values() if issued is not None]


def _newest_first(ledger: Ledger, about: str, module: str, agent_ids: Iterable[str]) -> list[Issued]:
    scopes = ["all", f"module:{module}", *(f"agent:{name}" for name in agent_ids)]
    found = [issued for scope in scopes if (issued := ledger.latest(about, scope)) is not None]
    return sorted(found, key=lambda issued: version_of(issued.command.version), reverse=True)


def _is_foreign(deployment: Deployment, found: Issued | None, ledger: Ledger) -> bool:
    if found is None or version_of(found.command.version) <= deployment.base:
        return False
    return not is_ours(deployment, found.command) and not is_repeated(deployment, found, ledger)


def _is_in_production_at(deployment: Deployment, ledger: Ledger, agent_id: str) -> bool:
    found = newest(ledger, PRODUCTION_SUBJECT, deployment.module, [agent_id])
    return found is not None and is_ours(deployment, found.command)


def _shadow_withdrawn(deployment: Deployment, ledger: Ledger) -> tuple[Order, ...]:
    found = newest(ledger, SHADOW_SUBJECT, deployment.module)
    is_left = found is not None and found.command.model.model_id == deployment.artifact.model_id
    return (Order(shadow=True, artifact=None),) if is_left else ()


def _ordered(swap: SwapModel) -> Artifact | None:
    if not swap.model_id:
        return None
    return Artifact(model_id=swap.model_id, path=swap.model_path, version=swap.version, sha256=swap.sha256.hex())
