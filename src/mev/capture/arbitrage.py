"""Detection of atomic arbitrages.

An arbitrage uses at least two distinct pools and leaves its signers with more of one token and less
of none, apart from fee and tip. Other gains are excluded: liquidity withdrawals, keepers that fill
orders, transactions paid with third parties' tokens, and liquidations.
"""

from collections.abc import Iterable, Mapping, Sequence

from mev.capture import balances, venues
from mev.capture.analysed_transaction import AnalysedTransaction
from mev.capture.balances import TokenAccount
from mev.capture.model import SOL_MINT, Flow, Instruction, Transaction
from mev.capture.swaps import Route
from mev.capture.tips import Tip
from mev.wire.pb import events_pb2

LEAST_POOLS = 2


def detect(analysed: AnalysedTransaction) -> events_pb2.Arbitrage | None:
    """Return the event if the transaction is an atomic arbitrage, else None."""
    # Pools have token accounts: without any, the node omitted the balances.
    if not (analysed.net.owners_are_known and analysed.accounts and analysed.gained):
        return None
    tx, route, instructions, accounts = (
        analysed.tx,
        analysed.route,
        analysed.instructions,
        analysed.accounts,
    )
    used = route.swaps
    if len({swap.pool for swap in used}) < LEAST_POOLS or route.liquidity:
        return None
    if any(each.program in venues.KEEPERS for each in instructions) or _paid_by_others(
        tx, accounts, route.vaults | route.passed
    ):
        return None
    gains = analysed.net.gains(analysed.spent_lamports)
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
        tip_lamports=analysed.tip_lamports,
        aggregators=_unique(
            venues.AGGREGATORS[each.program]
            for each in instructions
            if each.program in venues.AGGREGATORS
        ),
        unknown_programs=unknown_programs(instructions, route),
        compute_units=tx.compute_units,
        tips=[event_tip(tip) for tip in analysed.tips],
    )


def event_tip(tip: Tip) -> events_pb2.Tip:
    """Return a tip as a protocol message."""
    return events_pb2.Tip(account=tip.account, service=tip.service, lamports=tip.lamports)


def unknown_programs(instructions: Sequence[Instruction], route: Route) -> list[str]:
    """Return the unlisted programs, except those called by a listed exchange."""
    known = [
        (start, end) for start, end in route.spans if instructions[start].program in venues.VENUES
    ]
    below = {index for start, end in known for index in range(start, end)}
    programs = (each.program for index, each in enumerate(instructions) if index not in below)
    return _unique(program for program in programs if program not in venues.KNOWN_PROGRAMS)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _paid_by_others(
    tx: Transaction, accounts: Mapping[str, TokenAccount], others: frozenset[str]
) -> bool:
    """Return whether tokens came from an account of neither a signer, a pool nor a router.

    Such an account is the escrow of an order or belongs to another user.
    """
    signers = frozenset(tx.signers)
    return any(
        account.change < 0
        and account.owner
        and account.owner not in signers
        and address not in others
        for address, account in accounts.items()
    )


def _profit_mint(
    tx: Transaction,
    gains: Mapping[str, int],
    flows: Sequence[Flow],
    accounts: Mapping[str, TokenAccount],
) -> str:
    """Return the profit token: the route's first token if gained, else its last gained token.

    Otherwise SOL, otherwise the largest gain. Other gains are rounding remainders.
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
