"""Causes and costs of failed bundles, for the simulator and for paper trading.

A bundle that the leader never includes costs nothing, not even its tip. A transaction that is
included and fails still pays its base and priority fee
(https://solana.com/docs/core/fees/fee-structure), but no tip from its own instructions. A tip in a
separate transaction is paid even if the trade failed, when the bundle was split on the way to the
leader.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Cause of a bundle's failure, and the costs it incurred."""

    error: str
    pays_fee: bool = False
    pays_tip: bool = False

    def profit_lamports(self, fee_lamports: int, tip_lamports: int) -> int:
        """Return the bundle's profit: zero, or the costs as a loss."""
        return -(fee_lamports * self.pays_fee + self.tip_paid_lamports(tip_lamports))

    def tip_paid_lamports(self, tip_lamports: int) -> int:
        """Return the tip paid."""
        return tip_lamports * self.pays_tip


_OUTBID = Failure(error="outbid")
_EXPIRED = Failure(error="expired")
_REFUSED = Failure(error="simulation failed")
_LOCKED = Failure(error="account in use")
_REVERTED = Failure(error="reverted on chain", pays_fee=True)
_SPLIT = Failure(
    error="reverted on chain, its tip apart from it was paid", pays_fee=True, pays_tip=True
)
_THROUGH_JITO = {_OUTBID: 40, _EXPIRED: 20, _REFUSED: 15, _LOCKED: 10, _REVERTED: 12, _SPLIT: 3}
_WITHOUT_JITO = {_EXPIRED: 50, _REVERTED: 50}  # an ordinary transaction that includes its tip


def draw_failure(draw: random.Random, *, leader_runs_jito: bool) -> Failure:
    """Return a failure cause, drawn from assumed shares."""
    shares = _THROUGH_JITO if leader_runs_jito else _WITHOUT_JITO
    return draw.choices(list(shares), list(shares.values()))[0]
