"""Find sandwiches in a block: two transactions of one signer on one pool, in opposite directions, with a gain over
both, around other people's swaps that moved the pool the same way as the first.
"""

from collections.abc import Iterator, Sequence

from mev.capture import balances
from mev.capture.candidate import Candidate
from mev.capture.model import Swap, Transaction
from mev.wire.pb import events_pb2


def detect(trades: Sequence[Candidate]) -> Iterator[events_pb2.Sandwich]:
    """Yield the sandwiches among a block's trades, which must be in the order they were executed.

    Each transaction is a leg once: the pairs are the closest ones.
    """
    by_signer: dict[str, list[int]] = {}
    for index, trade in enumerate(trades):
        by_signer.setdefault(trade.tx.signers[0], []).append(index)
    for indexes in by_signer.values():
        if len(indexes) > 1 and indexes[-1] - indexes[0] >= len(indexes):
            yield from _of_signer(trades, indexes)


def _of_signer(trades: Sequence[Candidate], indexes: Sequence[int]) -> Iterator[events_pb2.Sandwich]:
    used: set[int] = set()
    for at, front in enumerate(indexes):
        for back in indexes[at + 1 :]:
            if front in used or back in used or back - front < 2:
                continue
            found = _pair(trades, front, back)
            if found is not None:
                used |= {front, back}
                yield found


def _pair(trades: Sequence[Candidate], front: int, back: int) -> events_pb2.Sandwich | None:
    first, last = trades[front], trades[back]
    spent = first.spent_lamports + last.spent_lamports
    net = balances.combine(first.net, last.net)
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


def _victims(between: Sequence[Candidate], attackers: Sequence[str], pool: str, way: tuple[str, str]) -> Iterator[Transaction]:
    for trade in between:
        others = trade.tx.signers[0] not in attackers
        if others and pool in trade.tx.keys and trade.direction(pool) == way:
            yield trade.tx


def _event(legs: tuple[Candidate, Candidate], swap: Swap, victims: Sequence[Transaction], gain: tuple[str, int]) -> events_pb2.Sandwich:
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
    )
