"""Known programs: exchanges, aggregators, keepers, lenders and infrastructure.

The entry of an exchange contains the first bytes of its swap instructions and the account position
of the pool. docs/venues.md lists the sources: published interfaces, and for closed programs public
adapters and transactions. Other instructions of an exchange (liquidity, fees, administration) are
not swaps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType

TOKEN_PROGRAMS = frozenset(
    {"TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA", "TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb"}
)
SYSTEM_PROGRAM = "11111111111111111111111111111111"
VOTE_PROGRAM = "Vote111111111111111111111111111111111111111"
METEORA_VAULT = "24Uqj9JCLxUeoC3hGfh5W3s9FM9uCHDS2SG3LYwBpyTi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """One exchange program.

    ``swaps`` maps the first bytes of a swap's data to the account positions of its pools.
    ``any_swap`` is the position for programs with undocumented data: an instruction that moves one
    token in and another out is a swap. ``settles`` are the instructions that pay out matched orders
    (order books).
    """

    name: str
    swaps: Mapping[bytes, tuple[int, ...]] = field(default_factory=dict)
    any_swap: int | None = None
    settles: tuple[bytes, ...] = ()

    def pools_at(self, data: bytes) -> tuple[int, ...]:
        """Return the pool positions if the data is that of a swap, else an empty tuple."""
        return (
            self.swaps.get(data[:8]) or self.swaps.get(data[:5]) or self.swaps.get(data[:1]) or ()
        )


def anchor(name: str) -> bytes:
    """Return Anchor's discriminator of an instruction."""
    return sha256(f"global:{name}".encode()).digest()[:8]


def _anchor(position: int, *names: str) -> dict[bytes, tuple[int, ...]]:
    return {anchor(name): (position,) for name in names}


def _tags(position: int, *tags: int) -> dict[bytes, tuple[int, ...]]:
    return {bytes([tag]): (position,) for tag in tags}


def _order_book(name: str) -> Venue:
    """Return the venue of a Serum program.

    Its data is a version byte and a 32-bit instruction number (10 new order v3, 13 send take).
    """
    swaps = {b"\x00" + number.to_bytes(4, "little"): (0,) for number in (1, 9, 10, 13)}
    return Venue(
        name=name,
        swaps=swaps,
        settles=(b"\x00\x05\x00\x00\x00", b"\x00\x03\x00\x00\x00", b"\x00\x02\x00\x00\x00"),
    )


def _token_swap(name: str) -> Venue:
    """Return the venue of a copy of SPL token-swap, where instruction 1 is the swap."""
    return Venue(name=name, swaps=_tags(0, 1))


_CONCENTRATED = _anchor(2, "swap", "swap_v2")
_WHIRLPOOL = {
    anchor("swap"): (2,),
    anchor("swap_v2"): (4,),
    anchor("two_hop_swap"): (2, 3),
    anchor("two_hop_swap_v2"): (0, 1),
}
_DLMM = _anchor(
    0,
    "swap",
    "swap2",
    "swap_exact_out",
    "swap_exact_out2",
    "swap_with_price_impact",
    "swap_with_price_impact2",
)
_CONSTANT_PRODUCT = _anchor(3, "swap_base_input", "swap_base_output")
_LAUNCH = _anchor(4, "buy_exact_in", "buy_exact_out", "sell_exact_in", "sell_exact_out")
# The second generation has the curve after both mints, their programs and the fee accounts.
_PUMP_FUN = _anchor(3, "buy", "sell", "buy_exact_sol_in") | _anchor(
    10, "buy_v2", "sell_v2", "buy_exact_quote_in_v2"
)
_OPEN_BOOK_V2 = (
    _anchor(2, "place_take_order") | _anchor(4, "place_order") | _anchor(3, "place_order_pegged")
)
_PHOENIX = _tags(2, 0, 1)
_STABBLE = _anchor(6, "swap") | _anchor(8, "swap_v2")
_FUSION = _anchor(4, "swap") | {anchor("two_hop_swap"): (0, 1)}
_GAMMA = _anchor(3, "swap_base_input", "swap_base_output", "oracle_based_swap_base_input")

VENUES: Mapping[str, Venue] = MappingProxyType(
    {
        "675kPX9MHTjS2zt1qfr1NYHuzeLXfQM9H24wFSUt1Mp8": Venue(
            name="RaydiumV4", swaps=_tags(1, 9, 11, 16, 17)
        ),
        "CAMMCzo5YL8w4VFF8KVHrK22GGUsp5VTaW7grrKgrWqK": Venue(
            name="RaydiumCLMM", swaps=_CONCENTRATED
        ),
        "CPMMoo8L3F4NbTegBCKVNunggL7H1ZpdTHKxQB5qKP1C": Venue(
            name="RaydiumCPMM", swaps=_CONSTANT_PRODUCT
        ),
        "LanMV9sAd7wArD4vJFi2qDdfnVhFxYSUg6eADduJ3uj": Venue(
            name="RaydiumLaunchLab", swaps=_LAUNCH
        ),
        "5quBtoiQqxF9Jv6KYKctB59NT3gtJD2Y65kdnB1Uev3h": Venue(
            name="RaydiumStable", swaps=_tags(1, 9, 10, 11)
        ),
        "DjVE6JNiYqPL2QXyCUUh8rNjHrbz9hXHNYt99MQ59qw1": _token_swap("OrcaV1"),
        "9W959DqEETiGZocYWCQPaJ6sBmUzgfxXfqGeTEdp3aQP": _token_swap("OrcaV2"),
        "whirLbMiicVdio4qvUfM5KAg6Ct8VwpYzGff3uctyCc": Venue(name="Whirlpool", swaps=_WHIRLPOOL),
        "LBUZKhRxPF3XUpBCjp4YzTKgLccjZhTSDM9YuVaPwxo": Venue(name="MeteoraDLMM", swaps=_DLMM),
        "Eo7WjKq67rjJQSZxS6z3YkapzY3eMj6Xy8X5EQVn5UaB": Venue(
            name="MeteoraDAMMv1", swaps=_anchor(0, "swap")
        ),
        "cpamdpZCGKUy5JxQXB4dcpGPiikHawvSWAd6mEn1sGG": Venue(
            name="MeteoraDAMMv2", swaps=_anchor(1, "swap", "swap2")
        ),
        "dbcij3LWUppWqq96dh6gJWwBifmcGfLSB5D4DuSMaqN": Venue(
            name="MeteoraDBC", swaps=_anchor(2, "swap", "swap2")
        ),
        "MERLuDFBMmsHnsBPZw2sDQZHvXFMwp8EdjudcU2HKky": Venue(name="Mercurial", swaps=_tags(0, 4)),
        "PhoeNiXZ8ByJGLkxNfZRnkUfjvmuYqLR89jjFHGqdXY": Venue(name="Phoenix", swaps=_PHOENIX),
        "EewxydAPCCVuNEyrVN68PuSYdQ7wKn27V9Gjeoi8dy3S": Venue(
            name="LifinityV1", swaps=_anchor(1, "swap")
        ),
        "2wT8Yq49kHgDzXuPxZSaeLaH1qbmGXtEyPy64bL7aD3c": Venue(
            name="LifinityV2", swaps=_anchor(1, "swap")
        ),
        "6EF8rrecthR5Dkzon8Nwu78hRvfCKubJ14M5uBEwF6P": Venue(name="PumpFun", swaps=_PUMP_FUN),
        "pAMMBay6oceH9fJKBRHGP5D4bD4sWpmSwMn52FMfXEA": Venue(
            name="PumpSwap", swaps=_anchor(0, "buy", "sell", "buy_exact_quote_in")
        ),
        "srmqPvymJeFKQ4zGQed1GFppgkRHL9kaELCbyksJtPX": _order_book("OpenBookV1"),
        "9xQeWvG816bUx9EPjHmaT23yvVM2ZWbrrpZb9PusVFin": _order_book("SerumV3"),
        "EUqojwWA2rd19FZrzeBncJsm38Jm1hEhE3zsmX3bRc2o": _order_book("SerumV2"),
        "opnb2LAfJYbRMAHHvqjCwQxanZn7ReEHp1k81EohpZb": Venue(
            name="OpenBookV2",
            swaps=_OPEN_BOOK_V2,
            settles=(anchor("settle_funds"), anchor("consume_events")),
        ),
        "SSwpkEEcbUqx4vtoEByFjSkhKdCT862DNVb52nZg1UZ": _token_swap("Saber"),
        "HyaB3W9q6XdA5xwpU4XnSZV94htfmbmqJXZcEbRaJutt": Venue(
            name="Invariant", swaps=_anchor(1, "swap")
        ),
        "SSwapUtytfBdBn1b9NUGG6foMVPtcWgpRU32HToDUZr": _token_swap("Saros"),
        "AMM55ShdkoGRB5jVYPjWziwk8m5MpwyDgsMWHaMSQWH6": Venue(
            name="AldrinV1", swaps=_anchor(0, "swap")
        ),
        "CURVGoZn8zycx6FXwwevgBTB2gVvdbGTEpvMJDbgs2t4": Venue(
            name="AldrinV2", swaps=_anchor(0, "swap")
        ),
        "FLUXubRmkEi2q6K3Y9kBPg9248ggaZVsoSFhtJHSrm1X": _token_swap("FluxBeam"),
        "SoLFiHG9TfgtdUXUjWAxi3LtvYuFyDLVhBWxdMZxyCe": Venue(name="SolFi", swaps=_tags(1, 7)),
        "SV2EYYJyRz2YhfXwXnhNAevDEui5Q6yrfyo13WtupPF": Venue(name="SolFiV2", any_swap=1),
        "ZERor4xhbUycZ6gb9ntrhqscUcZmAbQDjEAtCf4hbZY": Venue(
            name="ZeroFi", swaps=_tags(0, 6), any_swap=0
        ),
        "obriQD1zbpyLz95G5n7nJe6a4DPjpFwa5XYPoNm113y": Venue(
            name="Obric",
            swaps=_anchor(0, "swap", "swap2", "swap_x_to_y", "swap_y_to_x"),
            any_swap=0,
        ),
        "BSwp6bEBihVLdqJRKGgzjcGLHkcTuzmSo1TQkHepzH8p": Venue(
            name="Bonkswap", swaps=_anchor(1, "swap")
        ),
        "GFXsSL5sSaDfNFQUYsHekbWBW1TsFdjDYzACh62tEHxn": Venue(
            name="GooseFX", swaps=_anchor(0, "swap")
        ),
        "SwaPpA9LAaLfeLi3a68M4DjnLqgtticKg6CnyNwgAC8": _token_swap("TokenSwap"),
        "PSwapMdSai8tjrEXcxFeQth87xC4rRsa4VA5mhGhXkP": _token_swap("Penguin"),
        "DSwpgjMvXhtGn6BsbqmacdBZyfLj6jSWf3HJpdJtmg6N": _token_swap("DexLab"),
        "CTMAxxk34HjKWxQ3QLZK1HpaLXmBveao3ESePXbiyfzh": _token_swap("CropperLegacy"),
        "Dooar9JkhdZ7J3LHN3A7YCuoGRUggXhQaG4kijfLGU2j": _token_swap("StepN"),
        "HpNfyc2Saw7RKkQd8nEL4khUcuPhQ7WwY1B2qjx8jxFq": Venue(
            name="PancakeSwap", swaps=_CONCENTRATED
        ),
        "REALQqNEomY6cQGZJUGwywTBD2UmDT32rZcNnfxQ5N2": Venue(name="Byreal", swaps=_CONCENTRATED),
        "9H6tua7jkLhdm3w8BvgpTn5LZNU7g4ZynDmCiNN3q6Rp": Venue(name="HumidiFi", any_swap=1),
        "TessVdML9pBGgG9yGks7o4HewRaXVAMuoVj4x83GLQH": Venue(name="Tessera", any_swap=1),
        "goonERTdGsjnkZqWuVjs73BZ3Pb9qoCUdBUL17BnS5j": Venue(name="GoonFi", any_swap=1),
        "swapNyd8XiQwJ6ianp9snpu4brUqFxadzvHebnAXjJZ": Venue(name="StabbleStable", swaps=_STABBLE),
        "swapFpHZwjELNnjvThjajtiVmkz3yPQEHjLtka2fwHW": Venue(
            name="StabbleWeighted", swaps=_STABBLE
        ),
        "goonuddtQRrWqqn5nFyczVKaie28f3kDkHWkHtURSLE": Venue(
            name="GoonFiV2", swaps=_tags(1, 1), any_swap=1
        ),
        "ALPHAQmeA7bjrVuccPsYPiCvsi428SNwte66Srvs4pHA": Venue(
            name="AlphaQ", swaps=_tags(1, 12), any_swap=1
        ),
        "DEXYosS6oEGvk8uCDayvwEZz4qEyDJRf9nFgYCaqPMTm": Venue(
            name="1DEX", swaps=_anchor(1, "swap_exact_amount_in")
        ),
        "fUSioN9YKKSa3CUC2YUc4tPkHJ5Y6XW1yz8y6F7qWz9": Venue(name="DefiTunaFusion", swaps=_FUSION),
        "BiSoNHVpsVZW2F7rx2eQ59yQwKxzU5NvBcmKshCSUypi": Venue(
            name="BisonFi", swaps=_tags(1, 2, 7), any_swap=1
        ),
        "AQU1FRd7papthgdrwPTTq5JacJh8YtwEXaBfKU3bTz45": Venue(
            name="Aquifer", swaps=_tags(9, 1), any_swap=9
        ),
        "SCoRcH8c2dpjvcJD6FiPbCSQyQgu3PcUAWj2Xxx3mqn": Venue(
            name="Scorch", swaps=_tags(15, 1, 2), any_swap=15
        ),
        "GAMMA7meSFWaBXF25oSUgmGRwaW6sCMFLmBNiMSdbHVT": Venue(name="GooseFXGamma", swaps=_GAMMA),
        "HEAVENoP2qxoeuF8Dj2oT1GHEnu49U5mJYkdeC8BAX2o": Venue(
            name="Heaven", swaps=_anchor(4, "buy", "sell")
        ),
        "boop8hVGQGqehUK2iVEMEnMrL5RbjywRzHKBmBE7ry4": Venue(
            name="Boop", swaps=_anchor(1, "buy_token", "sell_token")
        ),
        "MoonCVVNZFSYkqNXP6bxHLPL6QQJiMagDL3qcqUQTrG": Venue(
            name="Moonit", swaps=_anchor(2, "buy", "sell")
        ),
        "MNFSTqtC93rEfYHB6hF82sKdZpUDFWkViLByLd1k1Ms": Venue(
            name="Manifest", swaps=_tags(1, 4) | _tags(2, 13)
        ),
    }
)

AGGREGATORS: Mapping[str, str] = MappingProxyType(
    {
        "JUP2jxvXaqu7NQY1GmNF4m1vodw12LVXYxbFL2uJvfo": "JupV2",
        "JUP3c2Uh3WA4Ng34tw6kPd2G4C5BB21Xo36Je1s32Ph": "JupV3",
        "JUP4Fb2cqiRUcaTHdrPC8h2gNsA2ETXiPDD33WcGuJB": "JupV4",
        "JUP5cHjnnCx2DppVsufsLrXs8EBZeEZzGtEK9Gdz6ow": "JupV5",
        "JUP6LkbZbjS1jKKwapdHNy74zcZ3tLUZoi5QNyVTaV4": "JupV6",
        "DF1ow4tspfHX9JwWJsAb9epbkA8hmpSEAtxXy1V27QBH": "DFlow",
        "BSfD6SHZigAfDWSjzD5Q41jw8LmKwtmjskPH9XW1mrRW": "Photon",
        "6m2CDdhRgxpH4WjvdzxAYbGxwdGUz5MziiL5jek2kBma": "OKX",
        "routeUGWgWzqBWFcrCfv8tritsqukccJPu3q5GPP3xS": "RaydiumRouter",
        "proVF4pMXVaYqmy4NjniPh4pqKNfMmsihgd4wdkCX3u": "OKX2",
        "T1TANpTeScyeqVzzgNViGDNrkQ6qHz9KrSBS4aNXvGT": "Titan",
        "NinafKYvKDCH26v6uEpfDjyuDjjpbdfhiPjrJV6FTFs": "Nina",
        "61DFfeTKM7trxYcPQCM78bJ794ddZprZpAwAnLiwTpYH": "JupOrderEngine",
    }
)

# Programs that fill other users' orders: the signer's gain is a fee or a rounding remainder.
KEEPERS: Mapping[str, str] = MappingProxyType(
    {
        "jupoNjAxXgZ4rjzxzPMP4oxduvQsQtZzyknqvzYNrNu": "JupLimitV1",
        "j1o2qRpjcyUwEvwtcfhEQefh773ZgjxcVRry7LDqg5X": "JupLimitV2",
        "DCA265Vj8a9CEuX1eb1LWRnDT7uK6q1xMipnNyatn23M": "JupDCA",
        "DCAK36VfExkPdAkYUQg6ewgxyinvcEyPLyHjRbmveKFw": "JupDCA",
        "VALaaymxQh2mNy2trH9jUqHT1mTow76wpTcGmSWSwJe": "JupVA",
    }
)

# Infrastructure programs, which are not reported as unknown.
_PLUMBING = frozenset(
    {
        SYSTEM_PROGRAM,
        VOTE_PROGRAM,
        METEORA_VAULT,
        "ComputeBudget111111111111111111111111111111",
        "AddressLookupTab1e1111111111111111111111111",
        "Stake11111111111111111111111111111111111111",
        "Ed25519SigVerify111111111111111111111111111",
        "KeccakSecp256k11111111111111111111111111111",
        "ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL",
        "MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr",
        "Memo1UhkJRfHyvLMcVucJwxXeuD728EqVDDwQDxFMNo",
        *TOKEN_PROGRAMS,
    }
)

LENDERS: Mapping[str, str] = MappingProxyType(
    {
        "MFv2hWf31Z9kbCa1snEPYctwafyhdvnV7FZnsebVacA": "MarginFi",
        "KLend2g3cP87fffoy8q1mQqGKjrxjC8boSyAYavgmjD": "Kamino",
        "So1endDq2YkqhipRh3WViPa8hdiSpxWy6z3Z6tMCpAo": "Solend",
    }
)

KNOWN_PROGRAMS = (
    frozenset(VENUES) | frozenset(AGGREGATORS) | frozenset(KEEPERS) | frozenset(LENDERS) | _PLUMBING
)
