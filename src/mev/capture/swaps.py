"""Find the swaps of a transaction: which instructions are swaps, on which pools, and which way they went.

An instruction belongs to the swap above it, found by depth: the deposit that Meteora's pools make into their vaults,
or the order Raydium places on a market, is part of the swap and not a second one.
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
    """Everything the instructions of one transaction say about trading.

    ``vaults`` are the accounts of all pools that took part. ``liquidity`` tells that an exchange moved tokens outside of
    any swap: a withdrawal, a deposit, a fee claim.
    """

    swaps: tuple[Swap, ...]
    flows: tuple[Flow, ...]
    vaults: frozenset[str]
    liquidity: bool


def route(tx: Transaction, instructions: Sequence[Instruction], accounts: Mapping[str, TokenAccount]) -> Route:
    """Return the swaps of a transaction in order, those of unlisted programs included, and its token movements."""
    reader = _Reader(tx, instructions, accounts)
    reader.read()
    vaults = reader.settled.union(*(swap.vaults for swap in reader.swaps))
    return Route(tuple(reader.swaps), tuple(reader.flows), vaults, reader.liquidity)


def ends(instructions: Sequence[Instruction], index: int) -> int:
    """Return the index after the last instruction that the one at ``index`` called.

    Where an old block has no depths, plumbing programs are taken to be called by the last exchange before them.
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
    """Tell whether an owner can be a person's key: addresses that programs sign for lie off the curve."""
    return not owner or Pubkey.from_string(owner).is_on_curve()


_CALLED_BY_EXCHANGES = venues.TOKEN_PROGRAMS | {venues.SYSTEM_PROGRAM, venues.METEORA_VAULT}


class _Reader:
    """Walks the instructions once; lives for one transaction."""

    def __init__(self, tx: Transaction, instructions: Sequence[Instruction], accounts: Mapping[str, TokenAccount]) -> None:
        self._signers = frozenset(tx.signers)
        self._instructions = instructions
        self._accounts = accounts
        self._flow_at = [tokens.flow(each, accounts) if each.program in venues.TOKEN_PROGRAMS else None for each in instructions]
        self.flows = [flow for flow in self._flow_at if flow is not None]
        self.swaps: list[Swap] = []
        self.settled: frozenset[str] = frozenset()
        self.liquidity = False

    def read(self) -> None:
        at = 0
        while at < len(self._instructions):
            venue = venues.VENUES.get(self._instructions[at].program)
            at = self._venue(at, venue) if venue is not None else self._other(at)

    def _flows(self, start: int, end: int) -> list[Flow]:
        return [flow for flow in self._flow_at[start:end] if flow is not None and flow.amount]

    def _venue(self, at: int, venue: venues.Venue) -> int:
        instruction = self._instructions[at]
        end = ends(self._instructions, at)
        flows = self._flows(at + 1, end)
        data = base58.decode(instruction.data)
        positions = venue.pools_at(data)
        if not positions and venue.any_swap is not None and self._is_trade(flows):
            positions = (venue.any_swap,)
        for position in positions:
            # An order that nothing matched moves no token and goes through no pool.
            if flows and position < len(instruction.accounts):
                self.swaps.append(self._swap(venue, instruction.accounts[position], flows))
        if not positions and flows and venue.any_swap is None:
            self._settle(instruction, flows, is_settlement=data.startswith(venue.settles))
        return end

    def _settle(self, instruction: Instruction, flows: Sequence[Flow], *, is_settlement: bool) -> None:
        """Note what an exchange paid outside of a swap: proceeds of a swap on the same market, or something else."""
        pools = {swap.pool for swap in self.swaps}
        if is_settlement and not pools.isdisjoint(instruction.accounts):
            self.settled |= self._vaults(flows)
        else:
            self.liquidity = True

    def _other(self, at: int) -> int:
        """Look for the swap of a program in no list: one token in and another out, both kept by accounts of programs."""
        instruction = self._instructions[at]
        end = ends(self._instructions, at)
        if instruction.program in venues.KNOWN_PROGRAMS or end - at < 3:
            return at + 1
        if any(each.program in venues.VENUES for each in self._instructions[at + 1 : end]):
            return at + 1
        flows = self._flows(at + 1, end)
        if not self._is_trade(flows):
            return at + 1
        vaults = self._vaults(flows)
        owners = {self._accounts[vault].owner for vault in vaults}
        if not owners:
            return at + 1
        into, out = self._legs(flows)
        pool = owners.pop() if len(owners) == 1 else min(vaults)
        self.swaps.append(Swap(instruction.program, pool, into, out, vaults, known=False))
        return end

    def _swap(self, venue: venues.Venue, pool: str, flows: Sequence[Flow]) -> Swap:
        into, out = self._legs(flows)
        return Swap(venue.name, pool, into, out, self._vaults(flows))

    def _is_trade(self, flows: Sequence[Flow]) -> bool:
        into, out = self._legs(flows)
        return bool(into and out and into != out)

    def _legs(self, flows: Sequence[Flow]) -> tuple[str, str]:
        """Return the mint the trader paid and the mint it got; a transfer nobody can place counts for neither."""
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
        """Return the pool's accounts: all that took part, without the trader's and those of others who paid in."""
        inside = {end for flow in flows for end in (flow.source, flow.destination) if end in self._accounts and not self._is_trader(end)}
        pool = {self._accounts[flow.source].owner for flow in flows if flow.source in inside and flow.destination not in inside}
        payers = {flow.source for flow in flows if flow.source in inside and self._pays_in(flow, pool)}
        return frozenset(end for end in inside - payers if not is_wallet(self._accounts[end].owner))

    def _pays_in(self, flow: Flow, pool: set[str]) -> bool:
        """Tell a third party's payment: into an account of the pool's owner, from one that is not the owner's."""
        destination = self._accounts.get(flow.destination)
        return destination is not None and destination.owner in pool and self._accounts[flow.source].owner not in pool

    def _is_trader(self, address: str) -> bool:
        """Tell the trader's side: a signer's account, or one the route only passes through, such as an aggregator's."""
        account = self._accounts.get(address)
        return account is None or account.change == 0 or account.owner in self._signers
