"""Derived data of one transaction, computed on demand and cached."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from mev.capture import balances, decode, swaps, tips, venues
from mev.capture.balances import Net, TokenAccount
from mev.capture.model import SOL_MINT, Instruction, Swap, Transaction
from mev.capture.tips import Tip


class AnalysedTransaction:
    """A transaction with its derived data."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.listed_tips = tips.listed(tx)

    @cached_property
    def tips(self) -> tuple[Tip, ...]:
        """Tips to listed services, then small payments to other accounts."""
        return *self.listed_tips, *self._unlisted_tips

    @property
    def tip_lamports(self) -> int:
        """Sum of all tips."""
        return sum(tip.lamports for tip in self.tips)

    @property
    def spent_lamports(self) -> int:
        """Fee plus tips, which are excluded from gains and losses."""
        return self.tx.fee_lamports + self.tip_lamports

    @cached_property
    def net(self) -> Net:
        """Net changes of the signers."""
        return balances.net(self.tx)

    @cached_property
    def instructions(self) -> Sequence[Instruction]:
        """All instructions in order of execution."""
        return decode.instructions(self.tx)

    @cached_property
    def accounts(self) -> Mapping[str, TokenAccount]:
        """Token accounts by address."""
        return balances.accounts(self.tx)

    @cached_property
    def route(self) -> swaps.Route:
        """Swaps and token movements."""
        return swaps.route(self.tx, self.instructions, self.accounts)

    @property
    def gained(self) -> bool:
        """Return whether the signers gained some token and lost none."""
        net = self.net
        if any(amount < 0 for amount in net.tokens.values()):
            return False
        spent = (
            self.spent_lamports
            if net.sol_lamports < 0
            else self.tx.fee_lamports + _sum(self.listed_tips)
        )
        return not net.has_loss(spent) and bool(net.gains(spent))

    def direction(self, pool: str) -> tuple[str, str] | None:
        """Return the mints paid into and received from a pool, by its first swap."""
        for swap in self.swaps:
            if swap.pool == pool and swap.mint_in != swap.mint_out:
                return swap.mint_in, swap.mint_out
        return None

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """The swaps in order."""
        return self.route.swaps

    @cached_property
    def _unlisted_tips(self) -> tuple[Tip, ...]:
        # A trade uses pools, which have token accounts.
        if not self.tx.pre_tokens or venues.SYSTEM_PROGRAM not in self.tx.keys:
            return ()
        found = tips.unlisted(self.tx, self.instructions, self.accounts, self.route.spans)
        if not found:
            return ()
        spent = self.tx.fee_lamports + _sum(self.listed_tips) + _sum(found)
        gains = {mint: amount for mint, amount in self.net.gains(spent).items() if mint != SOL_MINT}
        if self.net.sol_lamports + spent > 0:
            gains[SOL_MINT] = self.net.sol_lamports + spent
        return found if _sum(found) <= tips.most_lamports(self.route.flows, gains) else ()


def _sum(found: Sequence[Tip]) -> int:
    return sum(tip.lamports for tip in found)
