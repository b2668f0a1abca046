"""Balance changes of a transaction: signers and token accounts.

All signers count as one party (a bot may pay fees from one key and trade from another). Their SOL
is the lamports of their own accounts and of all token accounts they own, so that wrapped and native
SOL are the same, and rent of their accounts is neither loss nor gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mev.capture.model import SOL_DECIMALS, SOL_MINT, U64_MAX, Transaction


@dataclass(frozen=True, slots=True)
class Net:
    """Net changes of the signers: SOL after fee and tip, and all other changed tokens.

    ``owners_are_known`` is false for slots before mid-2021, where nodes omit the owner of token
    balances or the balances: then a loss of tokens cannot be excluded.
    """

    sol_lamports: int
    tokens: Mapping[str, int]
    owners_are_known: bool = True

    def gains(self, spent_lamports: int) -> dict[str, int]:
        """Return the gains; SOL counts as gained if it rose before fee and tip."""
        gains = {mint: amount for mint, amount in self.tokens.items() if amount > 0}
        if self.sol_lamports + spent_lamports > 0:
            gains[SOL_MINT] = self.sol_lamports
        return gains

    def has_loss(self, spent_lamports: int) -> bool:
        """Return whether any balance fell, apart from fee and tip."""
        return self.sol_lamports + spent_lamports < 0 or any(
            amount < 0 for amount in self.tokens.values()
        )


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """A token account in the transaction's balances."""

    mint: str
    owner: str
    change: int


def net(tx: Transaction) -> Net:
    """Return the net changes of the signers."""
    signers = set(tx.signers)
    mine = set(range(len(tx.signers)))
    tokens: dict[str, int] = {}
    owners_are_known = tx.tokens_are_told
    for sign, balances in ((-1, tx.pre_tokens), (1, tx.post_tokens)):
        for balance in balances:
            owner = balance.get("owner")
            if not owner:
                owners_are_known = False
            elif owner in signers:
                mine.add(balance["accountIndex"])
                mint = balance["mint"]
                tokens[mint] = tokens.get(mint, 0) + sign * _amount(
                    balance["uiTokenAmount"]["amount"]
                )
    tokens.pop(SOL_MINT, None)
    pre, post = tx.pre_lamports, tx.post_lamports
    sol = sum(post[index] - pre[index] for index in mine)
    return Net(sol, {mint: amount for mint, amount in tokens.items() if amount}, owners_are_known)


def _amount(text: str) -> int:
    # int() also accepts digits of other scripts, signs and underscores.
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"token amount {text} is not a whole number")
    amount = int(text)
    if amount > U64_MAX:
        raise ValueError(f"token amount {text} is out of range")
    return amount


def combine(first: Net, second: Net) -> Net:
    """Return the net changes of two transactions of the same signers."""
    tokens = dict(first.tokens)
    for mint, amount in second.tokens.items():
        tokens[mint] = tokens.get(mint, 0) + amount
    owners_are_known = first.owners_are_known and second.owners_are_known
    return Net(
        first.sol_lamports + second.sol_lamports,
        {mint: amount for mint, amount in tokens.items() if amount},
        owners_are_known,
    )


def accounts(tx: Transaction) -> dict[str, TokenAccount]:
    """Return the token accounts of the balances, by address."""
    found: dict[str, TokenAccount] = {}
    for sign, balances in ((-1, tx.pre_tokens), (1, tx.post_tokens)):
        for balance in balances:
            address = tx.keys[balance["accountIndex"]]
            known = found.get(address)
            change = sign * _amount(balance["uiTokenAmount"]["amount"]) + (
                known.change if known else 0
            )
            found[address] = TokenAccount(balance["mint"], balance.get("owner") or "", change)
    return found


def decimals(tx: Transaction, mint: str) -> int:
    """Return the decimals of a mint, from the balances."""
    if mint == SOL_MINT:
        return SOL_DECIMALS
    for balances in (tx.post_tokens, tx.pre_tokens):
        for balance in balances:
            if balance["mint"] == mint:
                found: int = balance["uiTokenAmount"]["decimals"]
                return found
    return 0
