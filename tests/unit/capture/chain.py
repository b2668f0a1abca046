"""Builder of transactions as Solana nodes return them, with balances kept by a small ledger."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from solders.hash import Hash
from solders.instruction import CompiledInstruction
from solders.message import Message
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from mev.capture import base58, venues
from mev.capture.model import SOL_MINT

TOKEN = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"
RAYDIUM = "675kPX9MHTjS2zt1qfr1NYHuzeLXfQM9H24wFSUt1Mp8"
WHIRLPOOL = "whirLbMiicVdio4qvUfM5KAg6Ct8VwpYzGff3uctyCc"
PHOENIX = "PhoeNiXZ8ByJGLkxNfZRnkUfjvmuYqLR89jjFHGqdXY"
PUMP_FUN = "6EF8rrecthR5Dkzon8Nwu78hRvfCKubJ14M5uBEwF6P"
OPEN_BOOK = "srmqPvymJeFKQ4zGQed1GFppgkRHL9kaELCbyksJtPX"
JUPITER = "JUP6LkbZbjS1jKKwapdHNy74zcZ3tLUZoi5QNyVTaV4"
MARGINFI = "MFv2hWf31Z9kbCa1snEPYctwafyhdvnV7FZnsebVacA"
KAMINO = "KLend2g3cP87fffoy8q1mQqGKjrxjC8boSyAYavgmjD"
SOLEND = "So1endDq2YkqhipRh3WViPa8hdiSpxWy6z3Z6tMCpAo"
MEMO = "MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr"
SYSTEM = "11111111111111111111111111111111"
RENT = 2_039_280
SLOT = 300_000_000
DOCS = Path(__file__).parents[3] / "docs"
DEEP = 10**15

_SWAP_DATA = {
    RAYDIUM: (b"\x09" + bytes(16), 1),
    WHIRLPOOL: (venues.anchor("swap") + bytes(34), 2),
    PHOENIX: (b"\x00\x02" + bytes(20), 2),
    PUMP_FUN: (venues.anchor("buy") + bytes(16), 3),
    OPEN_BOOK: (b"\x00\x0a\x00\x00\x00" + bytes(46), 0),
}


@cache
def _address(name: str, *, on_curve: bool) -> str:
    for number in range(1000):
        key = Pubkey.from_bytes(sha256(f"{name}{number}".encode()).digest())
        if key.is_on_curve() == on_curve:
            return str(key)
    raise AssertionError(name)


def wallet(name: str) -> str:
    """Return an address a person can sign for."""
    return _address(name, on_curve=True)


def pda(name: str) -> str:
    """Return an address only a program can sign for."""
    return _address(name, on_curve=False)


def authority(pool: str) -> str:
    """Return the owner of a pool's token accounts."""
    return pda(f"{pool}authority")


USDC, BONK, MSOL = pda("USDC"), pda("BONK"), pda("mSOL")


@dataclass
class Call:
    """One instruction; inner ones follow their parent with a greater depth."""

    program: str
    accounts: Sequence[str]
    data: bytes
    height: int = 1


@dataclass
class Balance:
    mint: str
    owner: str
    before: int | None
    after: int | None


@dataclass
class Tx:
    """One transaction being put together."""

    signers: Sequence[str]
    fee: int = 5000
    err: Any = None
    slot: int = SLOT
    calls: list[Call] = field(default_factory=list)
    tokens: dict[str, Balance] = field(default_factory=dict)
    lamports: dict[str, int] = field(default_factory=dict)

    @property
    def signature(self) -> str:
        seed = repr((self.signers, self.fee, self.calls, self.slot)).encode()
        return str(Signature.from_bytes(sha256(seed).digest() + sha256(seed[::-1]).digest()))

    def token(self, mint: str, owner: str, amount: int | None = 10**12) -> str:
        """Add a token account of an owner; ``None`` if it does not exist before the transaction."""
        address = pda(f"{mint}{owner}")
        if address not in self.tokens:
            self.tokens[address] = Balance(mint, owner, amount, amount)
        return address

    def move(self, source: str, destination: str, amount: int, height: int) -> None:
        """Transfer tokens by an inner instruction."""
        mint = self.tokens[source].mint
        for address, sign in ((source, -1), (destination, 1)):
            balance = self.tokens[address]
            balance.after = (balance.after or 0) + sign * amount
            if mint == SOL_MINT:
                self.pay(address, sign * amount)
        self.calls.append(
            Call(
                TOKEN, [source, destination, self.tokens[source].owner], _amount(3, amount), height
            )
        )

    def pay(self, address: str, change: int) -> None:
        """Change an account's lamports."""
        self.lamports[address] = self.lamports.get(address, 0) + change

    def transfer(self, source: str, destination: str, lamports: int, height: int = 1) -> None:
        """Transfer lamports by the System program."""
        self.pay(source, -lamports)
        self.pay(destination, lamports)
        self.call(
            SYSTEM,
            [source, destination],
            b"\x02\x00\x00\x00" + lamports.to_bytes(8, "little"),
            height,
        )

    def call(
        self, program: str, accounts: Sequence[str] = (), data: bytes = b"", height: int = 1
    ) -> None:
        self.calls.append(Call(program, accounts, data, height))

    def swap(
        self,
        program: str,
        pool: str,
        give: tuple[str, int],
        take: tuple[str, int],
        height: int = 2,
        *,
        out_first: bool = False,
    ) -> None:
        """Swap on a pool: ``give`` and ``take`` are the trader's accounts and amounts."""
        data, position = _SWAP_DATA[program]
        vaults = [
            self.token(self.tokens[account].mint, authority(pool), DEEP)
            for account, _ in (give, take)
        ]
        accounts = [pda(f"filler{number}") for number in range(position)] + [
            pool,
            *vaults,
            give[0],
            take[0],
        ]
        self.call(program, accounts, data, height)
        moves = [(give[0], vaults[0], give[1]), (vaults[1], take[0], take[1])]
        for source, destination, amount in reversed(moves) if out_first else moves:
            self.move(source, destination, amount, height + 1)

    def json(self, encoding: str = "json") -> dict[str, Any]:
        """Return the transaction as a member of a block."""
        keys = self._keys()
        inner = self._inner(keys, encoding)
        meta = {
            "err": self.err,
            "fee": self.fee,
            "preBalances": [10**11] * len(keys),
            "postBalances": [
                10**11 + self.lamports.get(key, 0) - (self.fee if key == self.signers[0] else 0)
                for key in keys
            ],
            "preTokenBalances": self._balances(keys, "before"),
            "postTokenBalances": self._balances(keys, "after"),
            "innerInstructions": inner,
            "loadedAddresses": {"writable": [], "readonly": []},
            "computeUnitsConsumed": 1234,
        }
        return {"transaction": self._body(keys, encoding), "meta": meta, "version": "legacy"}

    def single(self, encoding: str = "json") -> dict[str, Any]:
        """Return the transaction as ``getTransaction`` answers."""
        return {"slot": self.slot, "blockTime": 1_700_000_000, **self.json(encoding)}

    def _keys(self) -> list[str]:
        named = [key for call in self.calls for key in (*call.accounts, call.program)]
        return list(dict.fromkeys([*self.signers, *self.tokens, *self.lamports, *named]))

    def _balances(self, keys: list[str], side: str) -> list[dict[str, Any]]:
        return [
            {
                "accountIndex": keys.index(address),
                "mint": balance.mint,
                "owner": balance.owner,
                "uiTokenAmount": {
                    "amount": str(getattr(balance, side)),
                    "decimals": 9 if balance.mint == SOL_MINT else 6,
                },
            }
            for address, balance in self.tokens.items()
            if getattr(balance, side) is not None
        ]

    def _inner(self, keys: list[str], encoding: str) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = []
        outer = -1
        for call in self.calls:
            if call.height == 1:
                outer += 1
                groups.append({"index": outer, "instructions": []})
            else:
                groups[-1]["instructions"].append(
                    {**_instruction(call, keys, encoding), "stackHeight": call.height}
                )
        return [group for group in groups if group["instructions"]]

    def _body(self, keys: list[str], encoding: str) -> Any:
        outer = [call for call in self.calls if call.height == 1]
        if encoding == "base64":
            return [b64encode(bytes(self._wire(keys, outer))).decode(), "base64"]
        parsed = encoding == "jsonParsed"
        accounts = (
            [{"pubkey": key, "signer": key in self.signers, "writable": True} for key in keys]
            if parsed
            else keys
        )
        message: dict[str, Any] = {
            "accountKeys": accounts,
            "instructions": [_instruction(call, keys, encoding) for call in outer],
        }
        if not parsed:
            message["header"] = {"numRequiredSignatures": len(self.signers)}
        return {"signatures": [self.signature], "message": message}

    def _wire(self, keys: list[str], outer: list[Call]) -> VersionedTransaction:
        compiled = [
            CompiledInstruction(
                keys.index(call.program), call.data, bytes(map(keys.index, call.accounts))
            )
            for call in outer
        ]
        pubkeys = [Pubkey.from_string(key) for key in keys]
        message = Message.new_with_compiled_instructions(
            len(self.signers), 0, 0, pubkeys, Hash.default(), compiled
        )
        signatures = [Signature.from_string(self.signature)] + [Signature.default()] * (
            len(self.signers) - 1
        )
        return VersionedTransaction.populate(message, signatures)


def _instruction(call: Call, keys: list[str], encoding: str) -> dict[str, Any]:
    if encoding != "jsonParsed":
        accounts = [keys.index(key) for key in call.accounts]
        return {
            "programIdIndex": keys.index(call.program),
            "accounts": accounts,
            "data": base58.encode(call.data),
        }
    if call.program == SYSTEM and len(call.data) == 12:
        source, destination = call.accounts
        amount = int.from_bytes(call.data[4:], "little")
        info: dict[str, Any] = {"source": source, "destination": destination, "lamports": amount}
        return {
            "programId": SYSTEM,
            "program": "system",
            "parsed": {"type": "transfer", "info": info},
        }
    if call.program != TOKEN:
        return {
            "programId": call.program,
            "accounts": list(call.accounts),
            "data": base58.encode(call.data),
        }
    source, destination, authority = call.accounts
    info = {
        "source": source,
        "destination": destination,
        "authority": authority,
        "amount": str(int.from_bytes(call.data[1:9], "little")),
    }
    return {
        "programId": TOKEN,
        "program": "spl-token",
        "parsed": {"type": "transfer", "info": info},
    }


def _amount(tag: int, amount: int) -> bytes:
    return bytes([tag]) + amount.to_bytes(8, "little")


def block(*transactions: Tx, slot: int = SLOT) -> dict[str, Any]:
    """Return a block as ``getBlock`` answers."""
    return {
        "parentSlot": slot - 1,
        "blockTime": 1_700_000_000,
        "transactions": [tx.json() for tx in transactions],
    }


def arbitrage(bot: str = "bot", *, profit: int = 500, spend: int = 1_000_000) -> Tx:
    """Return USDC to BONK on one pool and back on another, with a profit in USDC."""
    signer = wallet(bot)
    tx = Tx([signer])
    usdc, bonk = tx.token(USDC, signer), tx.token(BONK, signer)
    tx.call(JUPITER)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, spend), (bonk, 7_000_000))
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 7_000_000), (usdc, spend + profit))
    return tx
