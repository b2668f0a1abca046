"""Recognise successful liquidations on MarginFi, Kamino and Solend.

What the liquidator paid and received is read from its own token movements inside the liquidation instruction; MarginFi
settles inside its books, so there the balances say nothing and the fields stay empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mev.capture import balances, base58, swaps, tokens, venues
from mev.capture.candidate import Candidate
from mev.capture.model import Instruction
from mev.capture.venues import anchor
from mev.wire.pb import events_pb2

# Program -> first bytes of a liquidation -> position of the account that holds the loan.
_LIQUIDATIONS: Mapping[str, Mapping[bytes, int]] = {
    "MarginFi": {anchor("lending_account_liquidate"): 5},
    "Kamino": {
        anchor("liquidate_obligation_and_redeem_reserve_collateral"): 1,
        anchor("liquidate_obligation_and_redeem_reserve_collateral_v2"): 1,
    },
    "Solend": {b"\x0c": 6, b"\x11": 10},
}


@dataclass(frozen=True, slots=True)
class Found:
    """One liquidation instruction: where it is and whose loan it was."""

    protocol: str
    borrower: str
    index: int


def find(instructions: Sequence[Instruction]) -> Found | None:
    """Return the first liquidation among the instructions."""
    for index, each in enumerate(instructions):
        protocol = venues.LENDERS.get(each.program)
        if protocol is None or not each.data:
            continue
        position = _position(protocol, base58.decode(each.data))
        if position is not None and position < len(each.accounts):
            return Found(protocol, each.accounts[position], index)
    return None


def _position(protocol: str, data: bytes) -> int | None:
    known = _LIQUIDATIONS[protocol]
    return known.get(data[:1]) if protocol == "Solend" else known.get(data[:8])


def event(candidate: Candidate, found: Found) -> events_pb2.Liquidation:
    """Return the event of a liquidation."""
    tx = candidate.tx
    moved = _moved(candidate, found)
    repaid, seized = _only(moved, -1), _only(moved, 1)
    gains = candidate.net.gains(candidate.spent_lamports)
    profit = next(iter(gains)) if len(gains) == 1 else ""
    known = [swap for swap in candidate.swaps if swap.known]
    return events_pb2.Liquidation(
        signature=tx.signature,
        slot=tx.slot,
        block_time_ns=tx.block_time_s * 1_000_000_000,
        signer=tx.signers[0],
        venues=list(dict.fromkeys([found.protocol, *(swap.venue for swap in known)])),
        pools=list(dict.fromkeys(swap.pool for swap in known)),
        profit_mint=profit,
        profit_amount=gains.get(profit, 0),
        profit_decimals=balances.decimals(tx, profit) if profit else 0,
        fee_lamports=tx.fee_lamports,
        tip_lamports=candidate.tip_lamports,
        protocol=found.protocol,
        borrower=found.borrower,
        repaid_mint=repaid,
        repaid_amount=-moved.get(repaid, 0),
        seized_mint=seized,
        seized_amount=moved.get(seized, 0),
    )


def _moved(candidate: Candidate, found: Found) -> dict[str, int]:
    """Return the signers' net token movements inside the liquidation; a receipt that is burnt at once cancels out."""
    signers = frozenset(candidate.tx.signers)
    instructions, accounts = candidate.instructions, candidate.accounts
    moved: dict[str, int] = {}
    for each in instructions[found.index + 1 : swaps.ends(instructions, found.index)]:
        flow = tokens.flow(each, accounts) if each.program in venues.TOKEN_PROGRAMS else None
        if flow is None:
            continue
        for sign, address in ((-1, flow.source), (1, flow.destination)):
            account = accounts.get(address)
            if address and (account.owner in signers if account else True):
                moved[flow.mint] = moved.get(flow.mint, 0) + sign * flow.amount
    return moved


def _only(moved: Mapping[str, int], sign: int) -> str:
    """Return the only mint that moved that way; empty when there is none or several, for then which is uncertain."""
    found = [mint for mint, amount in moved.items() if amount * sign > 0]
    return found[0] if len(found) == 1 else ""
