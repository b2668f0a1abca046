"""One transaction under examination, each view of it worked out once and only when a detector asks."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from mev.capture import balances, decode, swaps
from mev.capture.balances import Net, TokenAccount
from mev.capture.model import Instruction, Swap, Transaction


class Candidate:
    """Holds a transaction and what was found out about it so far."""

    def __init__(self, tx: Transaction, tip_lamports: int) -> None:
        self.tx = tx
        self.tip_lamports = tip_lamports

    @property
    def spent_lamports(self) -> int:
        """Return the fee and the tip, which gains and losses are judged without."""
        return self.tx.fee_lamports + self.tip_lamports

    @cached_property
    def net(self) -> Net:
        """Return the signers' changes."""
        return balances.net(self.tx)

    @cached_property
    def instructions(self) -> Sequence[Instruction]:
        """Return all instructions in order of execution."""
        return decode.instructions(self.tx)

    @cached_property
    def accounts(self) -> Mapping[str, TokenAccount]:
        """Return the token accounts by address."""
        return balances.accounts(self.tx)

    @cached_property
    def route(self) -> swaps.Route:
        """Return the swaps and token movements."""
        return swaps.route(self.tx, self.instructions, self.accounts)

    @property
    def gained(self) -> bool:
        """Tell whether the signers have more of something and less of nothing."""
        net, spent = self.net, self.spent_lamports
        return not net.has_loss(spent) and bool(net.gains(spent))

    def direction(self, pool: str) -> tuple[str, str] | None:
        """Return the mints paid into and got from a pool, by the first swap on it."""
        for swap in self.swaps:
            if swap.pool == pool and swap.mint_in != swap.mint_out:
                return swap.mint_in, swap.mint_out
        return None

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """Return the swaps in order."""
        return self.route.swaps
