"""Tests of arbitrage detection, including transactions that only look like one."""

from typing import Any

import pytest

from mev.capture import base58, venues
from mev.capture.model import SOL_MINT
from mev.capture.service import Event
from mev.capture.tips import TIP_ACCOUNTS
from mev.wire.pb import events_pb2
from tests.unit.capture import chain
from tests.unit.capture.capturing import Run
from tests.unit.capture.chain import BONK, RAYDIUM, USDC, WHIRLPOOL, Tx, pda, wallet

BOT = wallet("bot")
TIP = min(TIP_ACCOUNTS)


def found(tx: Tx) -> list[Event]:
    return Run(tx.single()).events


def only(tx: Tx) -> events_pb2.Arbitrage:
    (event,) = found(tx)
    assert isinstance(event, events_pb2.Arbitrage)
    return event


@pytest.mark.parametrize("encoding", ["json", "jsonParsed", "base64"])
def test_a_round_trip_with_a_gain(encoding: str) -> None:
    tx = chain.arbitrage(profit=500)
    (event,) = Run(tx.single(encoding)).events
    assert event == events_pb2.Arbitrage(
        signature=tx.signature,
        slot=chain.SLOT,
        block_time_ns=1_700_000_000_000_000_000,
        signer=BOT,
        venues=["RaydiumV4", "Whirlpool"],
        pools=[pda("pool-a"), pda("pool-b")],
        profit_mint=USDC,
        profit_amount=500,
        profit_decimals=6,
        fee_lamports=5000,
        aggregators=["JupV6"],
        compute_units=1234,
    )


def test_no_gain() -> None:
    assert found(chain.arbitrage(profit=0)) == []


def test_a_loss_in_another_token() -> None:
    tx = chain.arbitrage()
    tx.tokens[tx.token(BONK, BOT)].after = 10**12 - 1
    assert found(tx) == []


def test_a_second_gain_is_a_residue() -> None:
    tx = chain.arbitrage(profit=500)
    tx.tokens[tx.token(BONK, BOT)].after = 10**12 + 10_000
    event = only(tx)
    assert (event.profit_mint, event.profit_amount) == (USDC, 500)


def test_a_residue_is_not_the_profit_though_it_comes_last() -> None:
    tx = chain.arbitrage(profit=500)
    bonk = tx.token(BONK, BOT)
    tx.move(tx.token(BONK, chain.authority(pda("pool-b"))), bonk, 90_000, 3)
    event = only(tx)
    assert (event.profit_mint, event.profit_amount) == (USDC, 500)


def test_the_same_pool_twice() -> None:
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1000), (bonk, 5000), height=1)
    tx.swap(RAYDIUM, pda("pool-a"), (bonk, 5000), (usdc, 1001), height=1)
    assert found(tx) == []


def test_an_order_that_nothing_matched_is_no_pool() -> None:
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    tx.call(chain.PHOENIX, [pda("1"), pda("2"), pda("market")], b"\x00\x02" + bytes(20))
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1000), (bonk, 5000), height=1)
    tx.swap(RAYDIUM, pda("pool-a"), (bonk, 5000), (usdc, 1001), height=1)
    assert found(tx) == []


def test_a_failed_transaction() -> None:
    tx = chain.arbitrage()
    tx.err = {"InstructionError": [0, {"Custom": 1}]}
    run = Run(tx.single())
    assert (run.events, run.summary.failed) == ([], 1)


def test_a_liquidity_withdrawal_between_swaps() -> None:
    tx = chain.arbitrage()
    tx.call(RAYDIUM, [pda("pool-c")], b"\x04" + bytes(8))
    tx.move(tx.token(USDC, chain.authority(pda("pool-c"))), tx.token(USDC, BOT), 10_000, 2)
    assert found(tx) == []


def test_a_withdrawal_from_a_pool_of_the_route() -> None:
    tx = chain.arbitrage(profit=0)
    tx.call(RAYDIUM, [pda("pool-a")], b"\x04" + bytes(8))
    tx.move(tx.token(USDC, chain.authority(pda("pool-a"))), tx.token(USDC, BOT), 10_000, 2)
    assert found(tx) == []


def test_two_withdrawals_and_no_swap() -> None:
    tx = Tx([BOT])
    for pool, mint in (("pool-a", USDC), ("pool-b", BONK)):
        tx.call(RAYDIUM, [pda("x"), pda(pool)], b"\x04" + bytes(8))
        tx.move(tx.token(mint, chain.authority(pda(pool))), tx.token(mint, BOT), 10_000, 2)
    assert found(tx) == []


def keeper_fill(program: str) -> Tx:
    """Fill an order: escrow in, proceeds to its owner, rounding remainder to the keeper."""
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    escrow, maker = tx.token(USDC, pda("order")), tx.token(BONK, wallet("maker"))
    tx.call(program, [], b"flash fill")
    tx.move(escrow, usdc, 1_000_000, 2)
    mid = tx.token(chain.MSOL, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1_000_000), (mid, 900), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (mid, 900), (bonk, 7_000_000), height=1)
    tx.call(program, [], b"settle")
    tx.move(bonk, maker, 6_999_000, 2)
    return tx


@pytest.mark.parametrize("program", [next(iter(venues.KEEPERS)), pda("a keeper in no list")])
def test_a_keeper_filling_an_order(program: str) -> None:
    assert found(keeper_fill(program)) == []


@pytest.mark.parametrize("program", [next(iter(venues.KEEPERS)), pda("a keeper in no list")])
def test_an_order_that_pays_the_pool_directly(program: str) -> None:
    tx = Tx([BOT])
    escrow, mid, mine = tx.token(USDC, pda("order")), tx.token(chain.MSOL, BOT), tx.token(BONK, BOT)
    tx.call(program, [], b"fill")
    tx.swap(RAYDIUM, pda("pool-a"), (escrow, 1_000_000), (mid, 900))
    tx.swap(WHIRLPOOL, pda("pool-b"), (mid, 900), (mine, 7_000_000))
    assert found(tx) == []


def test_a_listed_keeper_that_pays_first() -> None:
    """Nothing but the program tells this from an arbitrage: the keeper's own tokens went round."""
    tx = chain.arbitrage()
    assert found(tx)
    tx.call(next(iter(venues.KEEPERS)), [], b"fill")
    assert found(tx) == []


def test_a_wallet_that_pays_the_route_directly() -> None:
    """The swap debits the maker's own account by delegation; the signer keeps a remainder."""
    tx = Tx([BOT])
    theirs, mid, mine = (
        tx.token(USDC, wallet("maker")),
        tx.token(chain.MSOL, BOT),
        tx.token(BONK, BOT),
    )
    tx.swap(RAYDIUM, pda("pool-a"), (theirs, 1_000_000), (mid, 900), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (mid, 900), (mine, 7_000_000), height=1)
    assert found(tx) == []


def test_a_flash_loan() -> None:
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT, 0), tx.token(BONK, BOT, 0)
    reserve = tx.token(USDC, pda("reserve"))
    tx.call(chain.KAMINO, [], venues.anchor("flash_borrow_reserve_liquidity"))
    tx.move(reserve, usdc, 1_000_000, 2)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1_000_000), (bonk, 7_000_000), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 7_000_000), (usdc, 1_002_000), height=1)
    tx.call(chain.KAMINO, [], venues.anchor("flash_repay_reserve_liquidity"))
    tx.move(usdc, reserve, 1_000_900, 2)
    event = only(tx)
    assert (event.profit_mint, event.profit_amount) == (USDC, 1100)


def test_wrapped_sol_opened_and_closed() -> None:
    """A temporary account is in neither list of balances; its profit comes home as lamports."""
    tx = Tx([BOT])
    bonk = tx.token(BONK, BOT)
    wsol = tx.token(SOL_MINT, BOT, None)
    tx.swap(RAYDIUM, pda("pool-a"), (wsol, 1_000_000), (bonk, 5000), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 5000), (wsol, 1_020_000), height=1)
    tx.tokens[wsol].after = None
    tx.lamports[wsol] = 0
    tx.pay(BOT, 20_000)
    event = only(tx)
    assert (event.profit_mint, event.profit_amount, event.profit_decimals) == (SOL_MINT, 15_000, 9)


def test_rent_of_the_signers_own_accounts_is_neutral() -> None:
    tx = chain.arbitrage()
    opened = tx.token(chain.MSOL, BOT, None)
    tx.tokens[opened].after = 0
    tx.pay(opened, chain.RENT)
    tx.pay(BOT, -chain.RENT)
    assert only(tx).profit_amount == 500


def test_rent_of_somebody_elses_account_is_a_loss() -> None:
    tx = chain.arbitrage()
    opened = tx.token(chain.MSOL, wallet("stranger"), None)
    tx.tokens[opened].after = 0
    tx.pay(opened, chain.RENT)
    tx.pay(BOT, -chain.RENT)
    assert found(tx) == []


@pytest.mark.parametrize(("gain", "is_found"), [(20_000, True), (0, False)])
def test_sol_is_judged_before_fee_and_tip_and_reported_after(gain: int, *, is_found: bool) -> None:
    tx = Tx([BOT])
    wsol, bonk = tx.token(SOL_MINT, BOT), tx.token(BONK, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (wsol, 1_000_000), (bonk, 5000), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 5000), (wsol, 1_000_000 + gain), height=1)
    tx.call(chain.SYSTEM, [BOT, TIP])
    tx.pay(BOT, -30_000)
    tx.pay(TIP, 30_000)
    events = found(tx)
    assert len(events) == is_found
    for event in events:
        assert (event.profit_amount, event.tip_lamports) == (gain - 35_000, 30_000)


def test_one_signer_pays_the_fee_and_another_trades() -> None:
    trader = wallet("trader")
    tx = Tx([BOT, trader])
    usdc, bonk = tx.token(USDC, trader), tx.token(BONK, trader)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1000), (bonk, 5000), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 5000), (usdc, 1100), height=1)
    event = only(tx)
    assert (event.signer, event.profit_amount) == (BOT, 100)


def test_one_signer_gains_what_another_loses() -> None:
    trader = wallet("trader")
    tx = Tx([BOT, trader])
    usdc, bonk, mine = tx.token(USDC, trader), tx.token(BONK, trader), tx.token(USDC, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1000), (bonk, 5000), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 5000), (mine, 900), height=1)
    assert found(tx) == []


def test_lamports_of_every_signer_count() -> None:
    partner = wallet("partner")
    tx = chain.arbitrage()
    tx.signers = [BOT, partner]
    tx.pay(partner, -1000)
    assert found(tx) == []


def test_an_order_book_that_pays_on_settlement() -> None:
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    market, vault = pda("market"), pda("market vaults")
    base, quote = tx.token(BONK, vault), tx.token(USDC, vault)
    tx.call(chain.OPEN_BOOK, [market, base, quote], b"\x00\x0a\x00\x00\x00" + bytes(46))
    tx.move(usdc, quote, 1000, 2)
    tx.call(chain.OPEN_BOOK, [market, base, quote], b"\x00\x05\x00\x00\x00")
    tx.move(base, bonk, 5000, 2)
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 5000), (usdc, 1100), height=1)
    event = only(tx)
    assert list(event.venues) == ["OpenBookV1", "Whirlpool"]


def test_proceeds_of_earlier_orders_are_no_gain_of_the_route() -> None:
    tx = chain.arbitrage()
    tx.call(chain.OPEN_BOOK, [pda("market")], b"\x00\x05\x00\x00\x00")
    tx.move(tx.token(USDC, pda("market vaults")), tx.token(USDC, BOT), 5000, 2)
    assert found(tx) == []


def test_a_pool_that_pays_out_before_it_is_paid() -> None:
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    tx.swap(chain.PHOENIX, pda("market"), (usdc, 1000), (bonk, 5000), height=1, out_first=True)
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 5000), (usdc, 1100), height=1)
    assert list(only(tx).venues) == ["Phoenix", "Whirlpool"]


def test_a_pool_that_sets_its_fee_aside() -> None:
    tx = chain.arbitrage()
    owner = chain.authority(pda("pool-b"))
    fees = pda("fees of pool-b")
    tx.tokens[fees] = chain.Balance(USDC, owner, 0, 0)
    tx.move(tx.token(USDC, owner), fees, 30, 3)
    assert only(tx).profit_amount == 500


def unlisted_swap(
    tx: Tx,
    program: str,
    authority: str,
    give: tuple[str, int],
    take: tuple[str, int],
    height: int = 1,
) -> None:
    vaults = [tx.token(tx.tokens[account].mint, authority) for account, _ in (give, take)]
    tx.call(program, vaults, b"swap", height)
    tx.move(give[0], vaults[0], give[1], height + 1)
    tx.move(vaults[1], take[0], take[1], height + 1)


def test_a_program_in_no_list_completes_a_route() -> None:
    program = pda("unlisted exchange")
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1000), (bonk, 5000), height=1)
    unlisted_swap(tx, program, pda("pool-u"), (bonk, 5000), (usdc, 1100))
    event = only(tx)
    assert list(event.venues) == ["RaydiumV4", program]
    assert list(event.pools) == [pda("pool-a"), pda("pool-u")]
    assert list(event.unknown_programs) == [program]


def test_a_person_is_no_pool() -> None:
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1000), (bonk, 5000), height=1)
    unlisted_swap(tx, pda("escrow program"), wallet("buyer"), (bonk, 5000), (usdc, 1100))
    assert found(tx) == []


def test_unlisted_leg_beside_listed_ones_is_reported() -> None:
    program = pda("unlisted exchange")
    tx = chain.arbitrage(profit=0)
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    unlisted_swap(tx, program, pda("pool-u"), (bonk, 5000), (usdc, 1100))
    tx.tokens[bonk].after = 10**12
    event = only(tx)
    assert list(event.pools) == [pda("pool-a"), pda("pool-b"), pda("pool-u")]
    assert list(event.venues) == ["RaydiumV4", "Whirlpool", program]
    assert list(event.unknown_programs) == [program]


@pytest.mark.parametrize(
    "routers",
    [[], [chain.JUPITER], [pda("router")], [chain.JUPITER, pda("router"), pda("router 2")]],
)
def test_unlisted_leg_is_found_at_any_depth_and_its_routers_are_no_venues(
    routers: list[str],
) -> None:
    program = pda("unlisted exchange")
    tx = Tx([BOT])
    usdc, bonk, msol = tx.token(USDC, BOT), tx.token(BONK, BOT), tx.token(chain.MSOL, BOT)
    for height, router in enumerate(routers, 1):
        tx.call(router, [BOT], b"route", height)
    depth = len(routers) + 1
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1000), (bonk, 5000), height=depth)
    unlisted_swap(tx, program, pda("pool-u"), (bonk, 5000), (msol, 70), depth)
    unlisted_swap(tx, program, pda("pool-v"), (msol, 70), (usdc, 1100), depth)
    event = only(tx)
    assert list(event.venues) == ["RaydiumV4", program]
    assert list(event.pools) == [pda("pool-a"), pda("pool-u"), pda("pool-v")]
    assert list(event.unknown_programs) == [
        *(each for each in routers if each != chain.JUPITER),
        program,
    ]


def test_router_that_moves_the_tokens_between_its_legs_is_no_venue() -> None:
    """The router takes the tokens into its own accounts, and gives back what the last leg paid."""
    router, program = pda("router"), pda("unlisted exchange")
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    own_usdc, own_bonk = (
        tx.token(USDC, pda("router authority"), 0),
        tx.token(BONK, pda("router authority"), 0),
    )
    tx.call(router, [BOT], b"route")
    tx.move(usdc, own_usdc, 1000, 2)
    unlisted_swap(tx, program, pda("pool-u"), (own_usdc, 1000), (own_bonk, 5000), 2)
    tx.move(own_bonk, bonk, 5000, 2)
    tx.swap(RAYDIUM, pda("pool-a"), (bonk, 5000), (usdc, 1100), height=1)
    event = only(tx)
    assert list(event.venues) == [program, "RaydiumV4"]
    assert list(event.pools) == [pda("pool-u"), pda("pool-a")]


@pytest.mark.parametrize(
    "program", [pda("unlisted exchange"), "9H6tua7jkLhdm3w8BvgpTn5LZNU7g4ZynDmCiNN3q6Rp"]
)
@pytest.mark.parametrize("left", [0, 3, -2])
def test_units_left_with_a_router_hide_no_leg(program: str, left: int) -> None:
    """A router's accounts keep the rest of a division or spend an earlier one; no swap list."""
    tx = Tx([BOT])
    usdc = tx.token(USDC, BOT)
    own_usdc, own_bonk = (
        tx.token(USDC, pda("router authority"), 5),
        tx.token(BONK, pda("router authority"), 5),
    )
    tx.call(chain.JUPITER, [BOT], b"route")
    tx.move(usdc, own_usdc, 10_000, 2)
    unlisted_swap(tx, program, pda("pool-u"), (own_usdc, 10_000 - left), (own_bonk, 50_000), 2)
    tx.swap(RAYDIUM, pda("pool-a"), (own_bonk, 50_000 - left), (own_usdc, 11_000))
    tx.move(own_usdc, usdc, 11_000, 2)
    event = only(tx)
    assert len(event.venues) == len(event.pools) == 2
    assert event.pools[1] == pda("pool-a")


def test_pools_of_an_unlisted_program_with_one_authority_are_distinct() -> None:
    program, authority = pda("unlisted exchange"), pda("authority of all pools")
    tx = Tx([BOT])
    usdc, bonk, msol = tx.token(USDC, BOT), tx.token(BONK, BOT), tx.token(chain.MSOL, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1000), (bonk, 5000), height=1)
    for give, take in (((bonk, 5000), (msol, 70)), ((msol, 70), (usdc, 1100))):
        vaults = [pda(f"{tx.tokens[give[0]].mint}{tx.tokens[take[0]].mint}{side}") for side in "ab"]
        for vault, account in zip(vaults, (give[0], take[0]), strict=True):
            tx.tokens[vault] = chain.Balance(
                tx.tokens[account].mint, authority, chain.DEEP, chain.DEEP
            )
        tx.call(program, vaults, b"swap")
        tx.move(give[0], vaults[0], give[1], 2)
        tx.move(vaults[1], take[0], take[1], 2)
    assert len(only(tx).pools) == 3


@pytest.mark.parametrize(
    ("program", "data", "position", "name"),
    [
        ("swapNyd8XiQwJ6ianp9snpu4brUqFxadzvHebnAXjJZ", venues.anchor("swap"), 6, "StabbleStable"),
        (
            "swapNyd8XiQwJ6ianp9snpu4brUqFxadzvHebnAXjJZ",
            venues.anchor("swap_v2"),
            8,
            "StabbleStable",
        ),
        (
            "swapFpHZwjELNnjvThjajtiVmkz3yPQEHjLtka2fwHW",
            venues.anchor("swap"),
            6,
            "StabbleWeighted",
        ),
        (
            "swapFpHZwjELNnjvThjajtiVmkz3yPQEHjLtka2fwHW",
            venues.anchor("swap_v2"),
            8,
            "StabbleWeighted",
        ),
        ("goonuddtQRrWqqn5nFyczVKaie28f3kDkHWkHtURSLE", b"\x01", 1, "GoonFiV2"),
        ("ALPHAQmeA7bjrVuccPsYPiCvsi428SNwte66Srvs4pHA", b"\x0c", 1, "AlphaQ"),
        (
            "DEXYosS6oEGvk8uCDayvwEZz4qEyDJRf9nFgYCaqPMTm",
            venues.anchor("swap_exact_amount_in"),
            1,
            "1DEX",
        ),
        ("fUSioN9YKKSa3CUC2YUc4tPkHJ5Y6XW1yz8y6F7qWz9", venues.anchor("swap"), 4, "DefiTunaFusion"),
        ("BiSoNHVpsVZW2F7rx2eQ59yQwKxzU5NvBcmKshCSUypi", b"\x02", 1, "BisonFi"),
        ("BiSoNHVpsVZW2F7rx2eQ59yQwKxzU5NvBcmKshCSUypi", b"\x07", 1, "BisonFi"),
        ("AQU1FRd7papthgdrwPTTq5JacJh8YtwEXaBfKU3bTz45", b"\x01", 9, "Aquifer"),
        ("SCoRcH8c2dpjvcJD6FiPbCSQyQgu3PcUAWj2Xxx3mqn", b"\x02", 15, "Scorch"),
        (
            "GAMMA7meSFWaBXF25oSUgmGRwaW6sCMFLmBNiMSdbHVT",
            venues.anchor("swap_base_input"),
            3,
            "GooseFXGamma",
        ),
        (
            "GAMMA7meSFWaBXF25oSUgmGRwaW6sCMFLmBNiMSdbHVT",
            venues.anchor("oracle_based_swap_base_input"),
            3,
            "GooseFXGamma",
        ),
        ("HEAVENoP2qxoeuF8Dj2oT1GHEnu49U5mJYkdeC8BAX2o", venues.anchor("sell"), 4, "Heaven"),
        ("boop8hVGQGqehUK2iVEMEnMrL5RbjywRzHKBmBE7ry4", venues.anchor("sell_token"), 1, "Boop"),
        ("MoonCVVNZFSYkqNXP6bxHLPL6QQJiMagDL3qcqUQTrG", venues.anchor("buy"), 2, "Moonit"),
    ],
)
@pytest.mark.parametrize("height", [1, 2])
def test_pool_is_read_where_the_program_has_it(
    program: str, data: bytes, position: int, name: str, height: int
) -> None:
    tx = Tx([BOT])
    usdc, bonk = tx.token(USDC, BOT), tx.token(BONK, BOT)
    tx.call(chain.JUPITER, [BOT], b"route")
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 1000), (bonk, 5000), height=2)
    vaults = [tx.token(mint, pda("authority")) for mint in (BONK, USDC)]
    accounts = [pda(f"account {index}") for index in range(position)] + [pda("pool-b"), *vaults]
    tx.call(program, accounts, data + bytes(16), height)
    tx.move(bonk, vaults[0], 5000, height + 1)
    tx.move(vaults[1], usdc, 1100, height + 1)
    event = only(tx)
    assert list(event.venues) == ["RaydiumV4", name]
    assert list(event.pools) == [pda("pool-a"), pda("pool-b")]


def test_stabble_withdrawal_is_no_swap() -> None:
    tx = chain.arbitrage()
    pool, vault = pda("stabble"), tx.token(USDC, pda("stabble vault"))
    tx.call(
        "swapNyd8XiQwJ6ianp9snpu4brUqFxadzvHebnAXjJZ",
        [pda(str(index)) for index in range(8)] + [pool],
        venues.anchor("withdraw"),
    )
    tx.move(vault, tx.token(USDC, BOT), 10_000, 2)
    assert found(tx) == []


@pytest.mark.parametrize("encoding", ["json", "jsonParsed"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_balances_without_owners_claim_nothing(encoding: str, kept: float) -> None:
    value = chain.arbitrage().single(encoding)
    for side in ("preTokenBalances", "postTokenBalances"):
        balances = value["meta"][side]
        for balance in balances[int(len(balances) * kept) :]:
            del balance["owner"]
    run = Run(value)
    assert (run.events, run.errors, run.summary.without_owners) == ([], [], 1)


BOTH = ("preTokenBalances", "postTokenBalances")


@pytest.mark.parametrize(
    ("left_out", "is_told"),
    [((BOTH[0],), False), ((BOTH[1],), False), (BOTH, False), ((), True)],
    ids=["before", "after", "both", "empty"],
)
def test_balances_left_out_claim_nothing(left_out: tuple[str, ...], *, is_told: bool) -> None:
    """Nodes without token balances yet, and an answer without any; the gain is in SOL."""
    tx = Tx([BOT])
    wsol, bonk = tx.token(SOL_MINT, BOT), tx.token(BONK, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (wsol, 1000), (bonk, 5000), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 5000), (wsol, 20_000), height=1)
    tx.pay(BOT, 19_000)
    value = tx.single()
    assert len(Run(value).events) == 1
    for side in left_out:
        value["meta"][side] = None
    if is_told:
        value["meta"] |= {BOTH[0]: [], BOTH[1]: []}
    run = Run(value)
    assert (run.events, run.errors, run.summary.without_owners) == ([], [], 0 if is_told else 1)


def batched(value: dict[str, Any], *, parsed: bool) -> dict[str, Any]:
    """Put adjacent token instructions into one batch instruction of the new token program."""
    for group in value["meta"]["innerInstructions"]:
        packed: list[dict[str, Any]] = []
        for each in group["instructions"]:
            last = packed[-1] if packed else None
            is_token = each.get("programId") == chain.TOKEN or (
                "data" in each and len(each["accounts"]) == 3
            )
            if not is_token or last is None or last.get("stackHeight") != each["stackHeight"]:
                packed.append(each)
            elif parsed:
                before = last["parsed"]
                inner = before["info"]["instructions"] if before["type"] == "batch" else [before]
                last["parsed"] = {
                    "type": "batch",
                    "info": {"instructions": [*inner, each["parsed"]]},
                }
            else:
                data = base58.decode(last["data"])
                start = data if data[0] == 255 else b"\xff" + bytes([3, len(data)]) + data
                more = base58.decode(each["data"])
                last["data"] = base58.encode(start + bytes([3, len(more)]) + more)
                last["accounts"] = [*last["accounts"], *each["accounts"]]
        group["instructions"] = packed
    return value


@pytest.mark.parametrize("encoding", ["json", "jsonParsed"])
def test_batched_token_instructions_are_read_one_by_one(encoding: str) -> None:
    tx = chain.arbitrage()
    value = batched(tx.single(encoding), parsed=encoding == "jsonParsed")
    assert str(value).count("batch") == 2 * (encoding == "jsonParsed")
    (event,) = Run(value).events
    assert event == Run(tx.single(encoding)).events[0]


def test_a_pools_own_vault_calls_are_part_of_its_swap() -> None:
    """Meteora's pools deposit into and withdraw from vaults of another program inside a swap."""
    tx = chain.arbitrage()
    at = next(index for index, call in enumerate(tx.calls) if call.program == WHIRLPOOL)
    tx.calls.insert(at + 1, chain.Call(venues.METEORA_VAULT, [], b"deposit", 3))
    assert len(only(tx).pools) == 2


def test_depths_may_be_missing_in_old_blocks() -> None:
    value: dict[str, Any] = chain.arbitrage().single()
    for group in value["meta"]["innerInstructions"]:
        for instruction in group["instructions"]:
            instruction["stackHeight"] = None
    (event,) = Run(value).events
    assert len(event.pools) == 2


def test_a_repeated_transaction_is_published_once() -> None:
    tx = chain.arbitrage()
    run = Run(tx.single(), tx.single())
    assert (len(run.events), run.summary.repeats) == (1, 1)


def test_a_tip_account_being_emptied_is_no_tip() -> None:
    tx = Tx([BOT])
    first, second = sorted(TIP_ACCOUNTS)[:2]
    tx.pay(first, 700)
    tx.pay(second, -500)
    run = Run(tx.single())
    assert (run.summary.tips, run.summary.tip_lamports) == (1, 700)
