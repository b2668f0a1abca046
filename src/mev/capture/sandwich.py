"""Detection of sandwiches in a block.

Two transactions of one signer on one pool in opposite directions, with a gain over both, enclose
swaps of other signers in the direction of the first.
"""

from collections.abc import Iterator, Sequence

from mev.capture import balances, tips
from mev.capture.analysed_transaction import AnalysedTransaction
from mev.capture.arbitrage import event_tip
from mev.capture.model import Swap, Transaction
from mev.wire.pb import events_pb2


def detect(trades: Sequence[AnalysedTransaction]) -> Iterator[events_pb2.Sandwich]:
    """Yield the sandwiches among a block's trades, which must be in order of execution.

    Each transaction is used in one sandwich only: the closest pairs win.
    """
    by_signer: dict[str, list[int]] = {}
    for index, trade in enumerate(trades):
        by_signer.setdefault(trade.tx.signers[0], []).append(index)
    for indexes in by_signer.values():
        if len(indexes) > 1 and indexes[-1] - indexes[0] >= len(indexes):
            yield from _of_signer(trades, indexes)


def _of_signer(
    trades: Sequence[AnalysedTransaction], indexes: Sequence[int]
) -> Iterator[events_pb2.Sandwich]:
    used: set[int] = set()
    for at, front in enumerate(indexes):
        for back in indexes[at + 1 :]:
            if front in used or back in used or back - front < 2:
                continue
            found = _pair(trades, front, back)
            if found is not None:
                used |= {front, back}
                yield found


def _pair(
    trades: Sequence[AnalysedTransaction], front: int, back: int
) -> events_pb2.Sandwich | None:
    first, last = trades[front], trades[back]
    net = balances.combine(first.net, last.net)
    if not net.owners_are_known:
        return None
    spent = first.spent_lamports + last.spent_lamports
    gains = net.gains(spent)
    if not gains or net.has_loss(spent):
        return None
    for swap in first.swaps:
        way = first.direction(swap.pool)
        if way is None or last.direction(swap.pool) != way[::-1]:
            continue
        victims = list(_victims(trades[front + 1 : back], first.tx.signers, swap.pool, way))
        if victims:
            mint = way[0] if way[0] in gains else max(gains, key=lambda each: gains[each])
            return _event((first, last), swap, victims, (mint, gains[mint]))
    return None


def _victims(
    between: Sequence[AnalysedTransaction],
    attackers: Sequence[str],
    pool: str,
    way: tuple[str, str],
) -> Iterator[Transaction]:
    for trade in between:
        others = trade.tx.signers[0] not in attackers
        if others and pool in trade.tx.keys and trade.direction(pool) == way:
            yield trade.tx


def _event(
    legs: tuple[AnalysedTransaction, AnalysedTransaction],
    swap: Swap,
    victims: Sequence[Transaction],
    gain: tuple[str, int],
) -> events_pb2.Sandwich:
    (first, last), (mint, amount) = legs, gain
    tx = first.tx
    return events_pb2.Sandwich(
        signature=tx.signature,
        slot=tx.slot,
        block_time_ns=tx.block_time_s * 1_000_000_000,
        signer=tx.signers[0],
        venues=[swap.venue],
        pools=[swap.pool],
        profit_mint=mint,
        profit_amount=amount,
        profit_decimals=balances.decimals(tx, mint) or balances.decimals(last.tx, mint),
        fee_lamports=tx.fee_lamports + last.tx.fee_lamports,
        tip_lamports=first.tip_lamports + last.tip_lamports,
        back_signature=last.tx.signature,
        victim_signatures=[victim.signature for victim in victims],
        victims=[victim.signers[0] for victim in victims],
        tips=[event_tip(tip) for tip in tips.merged((*first.tips, *last.tips))],
    )
