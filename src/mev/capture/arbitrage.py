"""Tell an atomic arbitrage from everything that looks like one.

An arbitrage goes through at least two distinct pools and leaves its signers with more of one token and less of none,
fee and tip aside. Whoever gains that way without trading round is refused: the withdrawal of liquidity, the keeper who
fills somebody's order, the transaction that another person's tokens paid for, the liquidation.
"""

from collections.abc import Iterable, Mapping, Sequence

from mev.capture import balances, venues
from mev.capture.balances import TokenAccount
from mev.capture.candidate import Candidate
from mev.capture.model import SOL_MINT, Flow, Instruction, Swap, Transaction
from mev.wire.pb import events_pb2

LEAST_POOLS = 2


def detect(candidate: Candidate) -> events_pb2.Arbitrage | None:
    """Return the event when the transaction is an atomic arbitrage."""
    if not candidate.gained:
        return None
    tx, route, instructions, accounts = candidate.tx, candidate.route, candidate.instructions, candidate.accounts
    used = _counted(route.swaps)
    if len({swap.pool for swap in used}) < LEAST_POOLS or route.liquidity:
        return None
    if any(each.program in venues.KEEPERS for each in instructions) or _paid_by_others(tx, accounts, route.vaults):
        return None
    gains = candidate.net.gains(candidate.spent_lamports)
    mint = _profit_mint(tx, gains, route.flows, accounts)
    return events_pb2.Arbitrage(
        signature=tx.signature,
        slot=tx.slot,
        block_time_ns=tx.block_time_s * 1_000_000_000,
        signer=tx.signers[0],
        venues=_unique(swap.venue for swap in used),
        pools=_unique(swap.pool for swap in used),
        profit_mint=mint,
        profit_amount=gains[mint],
        profit_decimals=balances.decimals(tx, mint),
        fee_lamports=tx.fee_lamports,
        tip_lamports=candidate.tip_lamports,
        aggregators=_unique(venues.AGGREGATORS[each.program] for each in instructions if each.program in venues.AGGREGATORS),
        unknown_programs=unknown_programs(instructions),
        compute_units=tx.compute_units,
    )


def unknown_programs(instructions: Iterable[Instruction]) -> list[str]:
    """Return the top-level programs that are in no list of ours."""
    return _unique(each.program for each in instructions if each.height == 1 and each.program not in venues.KNOWN_PROGRAMS)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _counted(found: Sequence[Swap]) -> list[Swap]:
    """Return the swaps on listed venues; the others only where these alone make no round trip.

    What an unlisted program did is inferred, so it never adds to a route that is already certain.
    """
    known = [swap for swap in found if swap.known]
    return known if len({swap.pool for swap in known}) >= LEAST_POOLS else list(found)


def _paid_by_others(tx: Transaction, accounts: Mapping[str, TokenAccount], vaults: frozenset[str]) -> bool:
    """Tell whether tokens came from an account that is neither the signers' nor a pool's: an order's escrow, a user's."""
    signers = frozenset(tx.signers)
    return any(
        account.change < 0 and account.owner and account.owner not in signers and address not in vaults
        for address, account in accounts.items()
    )


def _profit_mint(tx: Transaction, gains: Mapping[str, int], flows: Sequence[Flow], accounts: Mapping[str, TokenAccount]) -> str:
    """Return the gained token the route began with, else the one it ended with, else SOL, else the largest gain.

    Other gains are what rounding left behind.
    """
    if len(gains) == 1:
        return next(iter(gains))
    signers = frozenset(tx.signers)

    def is_mine(address: str) -> bool:
        account = accounts.get(address)
        return bool(address) and (account is None or account.owner in signers)

    paid = [flow.mint for flow in flows if is_mine(flow.source)]
    if paid and paid[0] in gains:
        return paid[0]
    got = [flow.mint for flow in flows if is_mine(flow.destination) and flow.mint in gains]
    if got:
        return got[-1]
    return SOL_MINT if SOL_MINT in gains else max(gains, key=lambda mint: gains[mint])
