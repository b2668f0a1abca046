"""What a transaction did to its signers' wealth and to every token account it touched.

The signers count as one party (a bot may pay fees from one key and trade from another). Their SOL is the lamports of
their own accounts and of all token accounts they own: so wrapped and native SOL are one, and rent put into an account
of theirs, or got back from it, is neither loss nor gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mev.capture.model import SOL_DECIMALS, SOL_MINT, U64_MAX, Transaction


@dataclass(frozen=True, slots=True)
class Net:
    """The signers' changes: SOL after fee and tip, then every other token that changed."""

    sol_lamports: int
    tokens: Mapping[str, int]

    def gains(self, spent_lamports: int) -> dict[str, int]:
        """Return what went up, SOL judged with what was spent on fee and tip added back."""
        gains = {mint: amount for mint, amount in self.tokens.items() if amount > 0}
        if self.sol_lamports + spent_lamports > 0:
            gains[SOL_MINT] = self.sol_lamports
        return gains

    def has_loss(self, spent_lamports: int) -> bool:
        """Tell whether anything went down, fee and tip aside."""
        return self.sol_lamports + spent_lamports < 0 or any(amount < 0 for amount in self.tokens.values())


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """One token account as the transaction's balances show it."""

    mint: str
    owner: str
    change: int


def net(tx: Transaction) -> Net:
    """Return the signers' net changes."""
    signers = set(tx.signers)
    mine = set(range(len(tx.signers)))
    tokens: dict[str, int] = {}
    for sign, balances in ((-1, tx.pre_tokens), (1, tx.post_tokens)):
        for balance in balances:
            if balance.get("owner") in signers:
                mine.add(balance["accountIndex"])
                mint = balance["mint"]
                tokens[mint] = tokens.get(mint, 0) + sign * _amount(balance["uiTokenAmount"]["amount"])
    tokens.pop(SOL_MINT, None)
    pre, post = tx.pre_lamports, tx.post_lamports
    sol = sum(post[index] - pre[index] for index in mine)
    return Net(sol, {mint: amount for mint, amount in tokens.items() if amount})


def _amount(text: str) -> int:
    amount = int(str(text))  # a number where text belongs may be infinite, and must not become a wrong amount
    if not 0 <= amount <= U64_MAX:
        raise ValueError(f"token amount {text} is out of range")
    return amount


def combine(first: Net, second: Net) -> Net:
    """Return the change over two transactions of the same signers."""
    tokens = dict(first.tokens)
    for mint, amount in second.tokens.items():
        tokens[mint] = tokens.get(mint, 0) + amount
    return Net(first.sol_lamports + second.sol_lamports, {mint: amount for mint, amount in tokens.items() if amount})


def accounts(tx: Transaction) -> dict[str, TokenAccount]:
    """Return every token account that the balances name, by its address."""
    found: dict[str, TokenAccount] = {}
    for sign, balances in ((-1, tx.pre_tokens), (1, tx.post_tokens)):
        for balance in balances:
            address = tx.keys[balance["accountIndex"]]
            known = found.get(address)
            change = sign * _amount(balance["uiTokenAmount"]["amount"]) + (known.change if known else 0)
            found[address] = TokenAccount(balance["mint"], balance.get("owner") or "", change)
    return found


def decimals(tx: Transaction, mint: str) -> int:
    """Return a mint's decimals as the balances state them."""
    if mint == SOL_MINT:
        return SOL_DECIMALS
    for balances in (tx.post_tokens, tx.pre_tokens):
        for balance in balances:
            if balance["mint"] == mint:
                found: int = balance["uiTokenAmount"]["decimals"]
                return found
    return 0
