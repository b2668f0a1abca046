"""Value types of the capture: decoded transactions and detected movements.

Amounts are integers in base units. Addresses and signatures are base58 text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mev.core.errors import InvalidInputError

SOL_MINT = "So11111111111111111111111111111111111111112"
SOL_DECIMALS = 9
U64_MAX = 2**64 - 1
LAST_BLOCK_TIME_S = (2**63 - 1) // 10**9
"""Last time whose nanoseconds fit a signed 64-bit integer."""


class BadInputError(InvalidInputError):
    """The capture input cannot be read."""

    code = "capture_input"

    def __init__(self, reason: str, *, place: str = "") -> None:
        super().__init__(f"{place}: {reason}" if place else reason, place=place)
        self.reason = reason
        self.place = place

    def within(self, outer: str) -> "BadInputError":
        """Return the same error with an outer place, such as a file or a line, in front."""
        return BadInputError(self.reason, place=f"{outer}: {self.place}" if self.place else outer)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, top-level or inner; ``height`` is 1 for top-level, 0 if unknown."""

    program: str
    accounts: Sequence[str]
    data: str
    parsed: Mapping[str, Any] | None
    height: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """One successful transaction, decoded as far as all detectors need.

    ``pre_tokens`` and ``post_tokens`` are the RPC's own objects: they are read once, and an object
    for each of the thousands in a block would dominate the cost. ``tokens_are_told`` is false if
    the answer omits them.
    """

    signature: str
    slot: int
    block_time_s: int
    keys: Sequence[str]
    signers: Sequence[str]
    fee_lamports: int
    pre_lamports: Sequence[int]
    post_lamports: Sequence[int]
    pre_tokens: Sequence[Mapping[str, Any]]
    post_tokens: Sequence[Mapping[str, Any]]
    outer: Sequence[Mapping[str, Any]]
    inner: Sequence[Mapping[str, Any]]
    compute_units: int
    tokens_are_told: bool = True


@dataclass(frozen=True, slots=True)
class Flow:
    """One token movement by a token program; a burn has no destination, a mint no source."""

    source: str
    destination: str
    mint: str
    amount: int


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap instruction on one pool, with the token movements it caused.

    ``mint_in`` and ``mint_out`` are from the trader's view, and empty if the movements do not show
    them, as for plain lamports. ``vaults`` are the pool's token accounts involved.
    """

    venue: str
    pool: str
    mint_in: str
    mint_out: str
    vaults: frozenset[str]
    known: bool = True
