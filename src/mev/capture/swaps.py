"""Detection of the swaps of a transaction: instructions, pools and directions.

An instruction belongs to the swap that called it, by depth: a deposit of Meteora's pools into their
vaults, or a Raydium order on a market, is part of the swap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from solders.pubkey import Pubkey

from mev.capture import base58, tokens, venues
from mev.capture.balances import TokenAccount
from mev.capture.model import Flow, Instruction, Swap, Transaction


@dataclass(frozen=True, slots=True)
class Route:
    """Swaps and token movements of one transaction.

    ``vaults`` are the accounts of all pools that took part. ``liquidity`` is true when an exchange
    moved tokens outside of any swap: a withdrawal, a deposit, a fee claim. ``spans`` are the first
    instruction and the one after the last, of each swap and of each other action of an exchange.
    ``passed`` are the accounts that tokens only passed through.
    """

    swaps: tuple[Swap, ...]
    flows: tuple[Flow, ...]
    vaults: frozenset[str]
    liquidity: bool
    spans: tuple[tuple[int, int], ...]
    passed: frozenset[str]


def route(
    tx: Transaction, instructions: Sequence[Instruction], accounts: Mapping[str, TokenAccount]
) -> Route:
    """Return the token movements of a transaction and its swaps in order.

    Swaps of unlisted programs are included.
    """
    reader = _Reader(tx, instructions, accounts)
    reader.read()
    vaults = reader.settled.union(*(swap.vaults for swap in reader.swaps))
    return Route(
        tuple(reader.swaps),
        tuple(reader.flows),
        vaults,
        reader.liquidity,
        tuple(reader.spans),
        reader.passed,
    )


def ends(instructions: Sequence[Instruction], index: int) -> int:
    """Return the index after the last instruction called by the one at ``index``.

    For old blocks without depths, infrastructure programs count as called by the exchange before
    them.
    """
    height = instructions[index].height
    at = index + 1
    while at < len(instructions):
        each = instructions[at]
        if height and each.height:
            if each.height <= height:
                break
        elif each.height == 1 or each.program not in _CALLED_BY_EXCHANGES:
            break
        at += 1
    return at


@lru_cache(maxsize=4096)
def is_wallet(owner: str) -> bool:
    """Return whether an owner can be a wallet: addresses of programs are off the curve."""
    return not owner or Pubkey.from_string(owner).is_on_curve()


# Exchanges and lenders move tokens themselves: their caller is not an exchange.
_NEVER_IN_A_SWAP = frozenset(venues.VENUES) | frozenset(venues.LENDERS)
# An instruction that moves one token in and another out calls at least two others.
_LEAST_OF_A_SWAP = 3
_MOST_DUST = 16
_DUST_SHARE = 1000
# Programs call each other less deeply than that; what claims to be deeper is not followed.
_DEEPEST = 16
_CALLED_BY_EXCHANGES = venues.TOKEN_PROGRAMS | {venues.SYSTEM_PROGRAM, venues.METEORA_VAULT}


class _Reader:
    """Reads the instructions of one transaction once."""

    def __init__(
        self,
        tx: Transaction,
        instructions: Sequence[Instruction],
        accounts: Mapping[str, TokenAccount],
    ) -> None:
        self._signers = frozenset(tx.signers)
        self._instructions = instructions
        self._accounts = accounts
        self._flow_at = [
            tokens.flow(each, accounts) if each.program in venues.TOKEN_PROGRAMS else None
            for each in instructions
        ]
        self.flows = [flow for flow in self._flow_at if flow is not None]
        self.passed = _passed(self.flows, accounts)
        self.swaps: list[Swap] = []
        self.spans: list[tuple[int, int]] = []
        self._depth = 0
        self.settled: frozenset[str] = frozenset()
        self.liquidity = False

    def read(self) -> None:
        self._read(0, len(self._instructions))

    def _read(self, start: int, end: int) -> None:
        """Read a range of instructions, each with the instructions it called."""
        at = start
        while at < end:
            venue = venues.VENUES.get(self._instructions[at].program)
            at = self._venue(at, venue) if venue is not None else self._other(at)

    def _flows(self, start: int, end: int) -> list[Flow]:
        return [flow for flow in self._flow_at[start:end] if flow is not None and flow.amount]

    def _venue(self, at: int, venue: venues.Venue) -> int:
        instruction = self._instructions[at]
        end = ends(self._instructions, at)
        self.spans.append((at, end))
        flows = self._flows(at + 1, end)
        data = base58.decode(instruction.data)
        positions = venue.pools_at(data)
        if not positions and venue.any_swap is not None and self._is_trade(flows):
            positions = (venue.any_swap,)
        for position in positions:
            # An order without a match moves no token and uses no pool.
            if flows and position < len(instruction.accounts):
                self.swaps.append(self._swap(venue, instruction.accounts[position], flows))
        if not positions and flows and venue.any_swap is None:
            self._settle(instruction, flows, is_settlement=data.startswith(venue.settles))
        return end

    def _settle(
        self, instruction: Instruction, flows: Sequence[Flow], *, is_settlement: bool
    ) -> None:
        """Record a payment outside of a swap: proceeds of a swap, or another operation."""
        pools = {swap.pool for swap in self.swaps}
        if is_settlement and not pools.isdisjoint(instruction.accounts):
            self.settled |= self._vaults(flows)
        else:
            self.liquidity = True

    def _other(self, at: int) -> int:
        """Detect a swap of an unlisted program.

        One token moves in and another out, both in accounts of programs. Its calls are examined
        first: a program that calls other exchanges is a router.
        """
        instruction = self._instructions[at]
        end = ends(self._instructions, at)
        if (
            instruction.program in venues.KNOWN_PROGRAMS
            or end - at < _LEAST_OF_A_SWAP
            or self._depth == _DEEPEST
        ):
            return at + 1
        swaps = len(self.swaps)
        self._depth += 1
        self._read(at + 1, end)
        self._depth -= 1
        if len(self.swaps) == swaps and self._is_exchange(at, end):
            self.spans.append((at, end))
        return end

    def _is_exchange(self, at: int, end: int) -> bool:
        """Record the swap of an unlisted program; return whether there is one."""
        flows = self._flows(at + 1, end)
        calls_others = any(
            each.program in _NEVER_IN_A_SWAP for each in self._instructions[at + 1 : end]
        )
        if calls_others or not self._is_trade(flows):
            return False
        vaults = self._vaults(flows)
        if not vaults:
            return False
        into, out = self._legs(flows)
        program = self._instructions[at].program
        self.swaps.append(
            Swap(program, self._pool(program, vaults), into, out, vaults, known=False)
        )
        return True

    def _pool(self, program: str, vaults: frozenset[str]) -> str:
        """Return the name of an unlisted pool: the owner of its accounts.

        If the owner has accounts of other pools too, it is one of the accounts.
        """
        owners = {self._accounts[vault].owner for vault in vaults}
        owner = min(owners)
        is_shared = len(owners) > 1 or any(
            swap.venue == program
            and swap.vaults.isdisjoint(vaults)
            and owner in {self._accounts[vault].owner for vault in swap.vaults}
            for swap in self.swaps
        )
        return min(vaults) if is_shared else owner

    def _swap(self, venue: venues.Venue, pool: str, flows: Sequence[Flow]) -> Swap:
        into, out = self._legs(flows)
        return Swap(venue.name, pool, into, out, self._vaults(flows))

    def _is_trade(self, flows: Sequence[Flow]) -> bool:
        into, out = self._legs(flows)
        return bool(into and out and into != out)

    def _legs(self, flows: Sequence[Flow]) -> tuple[str, str]:
        """Return the mints that the trader paid and received; ambiguous transfers do not count."""
        into = out = ""
        for flow in flows:
            if not flow.source or not flow.destination:
                continue
            paid, got = self._is_trader(flow.source), self._is_trader(flow.destination)
            if paid and not got:
                into = into or flow.mint
            elif got and not paid:
                out = flow.mint
        return into, out

    def _vaults(self, flows: Sequence[Flow]) -> frozenset[str]:
        """Return the pool's accounts: those involved, except the trader's and third parties'."""
        inside = {
            end
            for flow in flows
            for end in (flow.source, flow.destination)
            if end in self._accounts and not self._is_trader(end)
        }
        pool = {
            self._accounts[flow.source].owner
            for flow in flows
            if flow.source in inside and flow.destination not in inside
        }
        payers = {
            flow.source for flow in flows if flow.source in inside and self._pays_in(flow, pool)
        }
        return frozenset(end for end in inside - payers if not is_wallet(self._accounts[end].owner))

    def _pays_in(self, flow: Flow, pool: set[str]) -> bool:
        """Return whether a third party pays the pool from an account of another owner."""
        destination = self._accounts.get(flow.destination)
        return (
            destination is not None
            and destination.owner in pool
            and self._accounts[flow.source].owner not in pool
        )

    def _is_trader(self, address: str) -> bool:
        """Return whether an account is the trader's: a signer's, or one with no net change.

        The latter belong to intermediaries such as aggregators.
        """
        account = self._accounts.get(address)
        return account is None or address in self.passed or account.owner in self._signers


def _passed(flows: Sequence[Flow], accounts: Mapping[str, TokenAccount]) -> frozenset[str]:
    """Return the accounts that tokens only passed through.

    A few units may stay in them when an amount was divided between pools.
    """
    into: dict[str, int] = {}
    for flow in flows:
        into[flow.destination] = into.get(flow.destination, 0) + flow.amount
    return frozenset(
        address
        for address, account in accounts.items()
        if account.change == 0
        or (
            abs(account.change) <= _MOST_DUST
            and into.get(address, 0) >= _DUST_SHARE * abs(account.change)
        )
    )
