"""Tips: lamports paid to land a transaction, to a listed service or an unlisted account.

The tip of a listed account is its gain. An unlisted tip is a plain System transfer from a signer,
outside of swaps, to an account that nothing else in the transaction uses, and small compared with
the amounts moved.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mev.capture import base58, tip_accounts, venues
from mev.capture.balances import TokenAccount
from mev.capture.model import SOL_MINT, Flow, Instruction, Transaction

JITO = "Jito"
UNKNOWN = "unknown"
# Jito's accounts, whose tips the summary counts.
TIP_ACCOUNTS = frozenset(
    account for account, service in tip_accounts.SERVICES.items() if service == JITO
)

# The highest minimum tip of the services; ten times that if the price of SOL is unknown.
_SMALL_LAMPORTS = 1_000_000
_SMALL_LAMPORTS_WITHOUT_PRICE = 10_000_000
_SHARE_OF_VOLUME = 100
_TRANSFER = (2).to_bytes(4, "little")
_TRANSFER_BYTES = 12


@dataclass(frozen=True, slots=True)
class Tip:
    """A payment to one account, with its service; ``UNKNOWN`` for an unlisted account."""

    account: str
    service: str
    lamports: int


@dataclass(frozen=True, slots=True)
class _Transfer:
    """A plain transfer of lamports, with its index among the instructions."""

    index: int
    destination: str
    lamports: int


def listed(tx: Transaction) -> tuple[Tip, ...]:
    """Return the tips to listed accounts, in the order of the account keys.

    A tip account with a loss is being emptied by its owner.
    """
    services = tip_accounts.SERVICES
    if services.keys().isdisjoint(tx.keys):
        return ()
    changes = (
        (key, tx.post_lamports[index] - tx.pre_lamports[index])
        for index, key in enumerate(tx.keys)
        if key in services
    )
    return tuple(Tip(key, services[key], change) for key, change in changes if change > 0)


def merged(tips: Iterable[Tip]) -> tuple[Tip, ...]:
    """Return one tip per account, in the order of the first payment."""
    found: dict[str, Tip] = {}
    for tip in tips:
        known = found.get(tip.account)
        found[tip.account] = Tip(
            tip.account, tip.service, tip.lamports + (known.lamports if known else 0)
        )
    return tuple(found.values())


def unlisted(
    tx: Transaction,
    instructions: Sequence[Instruction],
    accounts: Mapping[str, TokenAccount],
    spans: Sequence[tuple[int, int]],
) -> tuple[Tip, ...]:
    """Return the payments to unlisted accounts that look like tips, of any total.

    ``spans`` are the instruction ranges of swaps.
    """
    transfers = [
        each
        for each in _transfers(tx, instructions)
        if not any(start <= each.index < end for start, end in spans)
    ]
    if not transfers:
        return ()
    used = (
        {key for each in accounts.values() for key in (each.owner, each.mint)}
        | accounts.keys()
        | set(tx.signers)
    )
    found = [
        each
        for each in transfers
        if each.destination not in used and _is_beside(each, instructions, spans)
    ]
    return merged(Tip(each.destination, UNKNOWN, each.lamports) for each in found)


def most_lamports(flows: Sequence[Flow], gains: Mapping[str, int]) -> int:
    """Return the maximum total of tips to unlisted accounts, from the amounts moved and gained.

    The largest movement of a token is the size of its trade, and the largest movement of SOL its
    price.
    """
    largest: dict[str, int] = {}
    for flow in flows:
        largest[flow.mint] = max(largest.get(flow.mint, 0), flow.amount)
    volume = largest.get(SOL_MINT, 0)
    worth = [
        amount * volume // largest[mint]
        for mint, amount in gains.items()
        if mint != SOL_MINT and largest.get(mint)
    ]
    small = _SMALL_LAMPORTS if volume or SOL_MINT in gains else _SMALL_LAMPORTS_WITHOUT_PRICE
    return max(small, volume // _SHARE_OF_VOLUME, gains.get(SOL_MINT, 0), *worth)


def _transfers(tx: Transaction, instructions: Sequence[Instruction]) -> Iterator[_Transfer]:
    signers = frozenset(tx.signers)
    for index, each in enumerate(instructions):
        if each.program != venues.SYSTEM_PROGRAM:
            continue
        source, destination, lamports = _parsed(each) if each.parsed is not None else _binary(each)
        if lamports and source in signers and destination not in tip_accounts.SERVICES:
            yield _Transfer(index, destination, lamports)


def _parsed(instruction: Instruction) -> tuple[str, str, int]:
    parsed = instruction.parsed or {}
    if parsed.get("type") != "transfer":
        return "", "", 0
    info = parsed["info"]
    return info["source"], info["destination"], int(info["lamports"])


def _binary(instruction: Instruction) -> tuple[str, str, int]:
    data = base58.decode(instruction.data)
    # The program reads no further: what follows may tell equal transactions apart.
    if (
        len(data) < _TRANSFER_BYTES
        or not data.startswith(_TRANSFER)
        or len(instruction.accounts) < 2
    ):
        return "", "", 0
    return (
        instruction.accounts[0],
        instruction.accounts[1],
        int.from_bytes(data[4:_TRANSFER_BYTES], "little"),
    )


def _is_beside(
    transfer: _Transfer, instructions: Sequence[Instruction], spans: Sequence[tuple[int, int]]
) -> bool:
    """Return whether only its transfer, and the callers of the transfer, use the paid account.

    A calling program is accepted if it also routed the swaps, or moves no token.
    """
    callers = _callers(transfer.index, instructions)
    if callers is None:
        return False
    for index, each in enumerate(instructions):
        is_transfer = each.program == venues.SYSTEM_PROGRAM and not _creates(each)
        if index not in callers and not is_transfer and _names(each, transfer.destination):
            return False
    return all(_may_tip(caller, instructions, spans) for caller in callers)


def _names(instruction: Instruction, account: str) -> bool:
    if instruction.parsed is None:
        return account in instruction.accounts
    info = instruction.parsed.get("info")
    return isinstance(info, Mapping) and account in info.values()


def _creates(instruction: Instruction) -> bool:
    """Return whether a System instruction does more than move lamports."""
    if instruction.parsed is not None:
        return instruction.parsed.get("type") != "transfer"
    return not base58.decode(instruction.data).startswith(_TRANSFER)


def _callers(index: int, instructions: Sequence[Instruction]) -> frozenset[int] | None:
    """Return the callers of the instruction at ``index``, or None for blocks without depths."""
    height = instructions[index].height
    if not height:
        return None
    callers = set()
    for at in range(index - 1, -1, -1):
        each = instructions[at]
        if each.height and each.height < height:
            callers.add(at)
            height = each.height
    return frozenset(callers)


def _may_tip(
    caller: int, instructions: Sequence[Instruction], spans: Sequence[tuple[int, int]]
) -> bool:
    end = caller + 1
    while end < len(instructions) and instructions[end].height > instructions[caller].height:
        end += 1
    routes = any(caller < start < end for start, _ in spans)
    return routes or not any(
        each.program in venues.TOKEN_PROGRAMS for each in instructions[caller + 1 : end]
    )
