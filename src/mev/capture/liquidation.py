"""Detection of successful liquidations on MarginFi, Kamino and Solend.

Paid and received amounts are the liquidator's token movements inside the liquidation instruction.
MarginFi's ``lending_account_liquidate`` moves no tokens, so these fields stay empty; in its
receivership liquidation the liquidator withdraws and repays between a first and a last instruction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mev.capture import balances, base58, swaps, tokens, venues
from mev.capture.analysed_transaction import AnalysedTransaction
from mev.capture.arbitrage import event_tip
from mev.capture.model import Instruction
from mev.capture.venues import anchor
from mev.wire.pb import events_pb2

# Program -> first bytes of a liquidation -> position of the borrower's account.
_LIQUIDATIONS: Mapping[str, Mapping[bytes, int]] = {
    "MarginFi": {anchor("lending_account_liquidate"): 5, anchor("start_liquidation"): 0},
    "Kamino": {
        anchor("liquidate_obligation_and_redeem_reserve_collateral"): 1,
        anchor("liquidate_obligation_and_redeem_reserve_collateral_v2"): 1,
    },
    "Solend": {b"\x0c": 6, b"\x11": 10},
}
_START_OF_RECEIVERSHIP = anchor("start_liquidation")
_END_OF_RECEIVERSHIP = anchor("end_liquidation")


@dataclass(frozen=True, slots=True)
class FoundLiquidation:
    """One liquidation: protocol, borrower, and the indexes of its instructions."""

    protocol: str
    borrower: str
    indexes: tuple[int, ...]


def find(instructions: Sequence[Instruction]) -> FoundLiquidation | None:
    """Return the first liquidation among the instructions, or None."""
    for index, each in enumerate(instructions):
        protocol = venues.LENDERS.get(each.program)
        if protocol is None or not each.data:
            continue
        data = base58.decode(each.data)
        position = _position(protocol, data)
        if position is not None and position < len(each.accounts):
            indexes = (
                _receivership(instructions, index)
                if data[:8] == _START_OF_RECEIVERSHIP
                else (index,)
            )
            if indexes:
                return FoundLiquidation(protocol, each.accounts[position], indexes)
    return None


def _receivership(instructions: Sequence[Instruction], start: int) -> tuple[int, ...]:
    """Return the lender's instructions of a receivership; empty without its end."""
    program = instructions[start].program
    found = [
        index for index in range(start, len(instructions)) if instructions[index].program == program
    ]
    ends = (
        index
        for index in found
        if base58.decode(instructions[index].data)[:8] == _END_OF_RECEIVERSHIP
    )
    end = next(ends, None)
    return () if end is None else tuple(index for index in found if index <= end)


def _position(protocol: str, data: bytes) -> int | None:
    known = _LIQUIDATIONS[protocol]
    return known.get(data[:1]) if protocol == "Solend" else known.get(data[:8])


def event(analysed: AnalysedTransaction, found: FoundLiquidation) -> events_pb2.Liquidation:
    """Return the event of a liquidation."""
    tx = analysed.tx
    moved = _moved(analysed, found)
    repaid, seized = _only(moved, -1), _only(moved, 1)
    gains = analysed.net.gains(analysed.spent_lamports) if analysed.net.owners_are_known else {}
    profit = next(iter(gains)) if len(gains) == 1 else ""
    used = analysed.swaps
    return events_pb2.Liquidation(
        signature=tx.signature,
        slot=tx.slot,
        block_time_ns=tx.block_time_s * 1_000_000_000,
        signer=tx.signers[0],
        venues=list(dict.fromkeys([found.protocol, *(swap.venue for swap in used)])),
        pools=list(dict.fromkeys(swap.pool for swap in used)),
        profit_mint=profit,
        profit_amount=gains.get(profit, 0),
        profit_decimals=balances.decimals(tx, profit) if profit else 0,
        fee_lamports=tx.fee_lamports,
        tip_lamports=analysed.tip_lamports,
        protocol=found.protocol,
        borrower=found.borrower,
        repaid_mint=repaid,
        repaid_amount=-moved.get(repaid, 0),
        seized_mint=seized,
        seized_amount=moved.get(seized, 0),
        tips=[event_tip(tip) for tip in analysed.tips],
    )


def _moved(analysed: AnalysedTransaction, found: FoundLiquidation) -> dict[str, int]:
    """Return the signers' net token movements inside the liquidation.

    A receipt token that is burnt at once cancels out.
    """
    signers = frozenset(analysed.tx.signers)
    instructions, accounts = analysed.instructions, analysed.accounts
    moved: dict[str, int] = {}
    inside = {
        at for index in found.indexes for at in range(index + 1, swaps.ends(instructions, index))
    }
    for each in (instructions[at] for at in sorted(inside)):
        flow = tokens.flow(each, accounts) if each.program in venues.TOKEN_PROGRAMS else None
        if flow is None:
            continue
        for sign, address in ((-1, flow.source), (1, flow.destination)):
            account = accounts.get(address)
            if address and (account.owner in signers if account else True):
                moved[flow.mint] = moved.get(flow.mint, 0) + sign * flow.amount
    return moved


def _only(moved: Mapping[str, int], sign: int) -> str:
    """Return the only mint that moved in that direction; empty if there are none or several."""
    found = [mint for mint, amount in moved.items() if amount * sign > 0]
    return found[0] if len(found) == 1 else ""
