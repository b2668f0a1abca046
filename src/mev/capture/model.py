"""Value types of the capture: what a transaction is once its encoding is forgotten, and what is found in it.

Amounts are integers in base units. Addresses and signatures are base58 text, as the chain's own interfaces give them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mev.core.errors import InvalidInputError

SOL_MINT = "So11111111111111111111111111111111111111112"
SOL_DECIMALS = 9
U64_MAX = 2**64 - 1


class BadInputError(InvalidInputError):
    """The capture input cannot be read."""

    code = "capture_input"

    def __init__(self, reason: str, *, place: str = "") -> None:
        super().__init__(f"{place}: {reason}" if place else reason, place=place)
        self.reason = reason
        self.place = place

    def within(self, outer: str) -> "BadInputError":
        """Return the same error with its place seen from outside, such as a file or a line."""
        return BadInputError(self.reason, place=f"{outer}: {self.place}" if self.place else outer)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, top-level or inner, in order of execution; ``height`` is 1 for top-level, 0 when unknown."""

    program: str
    accounts: Sequence[str]
    data: str
    parsed: Mapping[str, Any] | None
    height: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """One successful transaction, its JSON encoding undone as far as every detector needs.

    ``pre_tokens`` and ``post_tokens`` are the RPC's own token balance objects: they are read once, by the ledger, and
    building an object for each of the thousands in a block would cost more than everything else.
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


@dataclass(frozen=True, slots=True)
class Flow:
    """One movement of tokens by a token program; a burn has no destination and a mint no source."""

    source: str
    destination: str
    mint: str
    amount: int


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap instruction on one pool, with the token movements it caused.

    ``mint_in`` and ``mint_out`` are seen from the trader and empty when the movements do not say, as for plain lamports. ``vaults`` are the
    pool's token accounts that took part.
    """

    venue: str
    pool: str
    mint_in: str
    mint_out: str
    vaults: frozenset[str]
    known: bool = True
