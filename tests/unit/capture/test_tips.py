"""Tips to listed services and to accounts in no list, and payments that are none."""

from typing import cast

import pytest

from mev.capture import tip_accounts, tips, venues
from mev.capture.model import SOL_MINT
from mev.wire.pb import events_pb2
from tests.unit.capture import chain
from tests.unit.capture.capturing import Run
from tests.unit.capture.chain import BONK, RAYDIUM, USDC, WHIRLPOOL, Tx, pda, wallet

BOT, TIP_TAKER = wallet("bot"), wallet("tip taker in no list")
SERVICES = sorted(set(tip_accounts.SERVICES.values()))


def account_of(service: str) -> str:
    return min(account for account, name in tip_accounts.SERVICES.items() if name == service)


def sol_cycle(gain: int, volume: int = 1_000_000) -> Tx:
    tx = Tx([BOT])
    wsol, bonk = tx.token(SOL_MINT, BOT), tx.token(BONK, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (wsol, volume), (bonk, 5000), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (bonk, 5000), (wsol, volume + gain), height=1)
    return tx


def arbitrages(tx: Tx, encoding: str = "json") -> list[events_pb2.Arbitrage]:
    return cast("list[events_pb2.Arbitrage]", Run(tx.single(encoding)).events)


def told(event: events_pb2.Arbitrage) -> list[tuple[str, str, int]]:
    assert event.tip_lamports == sum(tip.lamports for tip in event.tips)
    return [(tip.account, tip.service, tip.lamports) for tip in event.tips]


@pytest.mark.parametrize("encoding", ["json", "jsonParsed", "base64"])
def test_tip_to_an_account_in_no_list_is_no_loss(encoding: str) -> None:
    tx = chain.arbitrage(profit=500)
    tx.transfer(BOT, TIP_TAKER, 93_640)
    (event,) = arbitrages(tx, encoding)
    assert (event.profit_mint, event.profit_amount) == (USDC, 500)
    assert told(event) == [(TIP_TAKER, tips.UNKNOWN, 93_640)]


def test_tip_may_name_more_accounts_and_carry_more_bytes() -> None:
    """The System program reads two accounts and twelve bytes of a transfer and ignores the rest."""
    tx = chain.arbitrage(profit=500)
    tx.transfer(BOT, TIP_TAKER, 93_640)
    transfer = tx.calls[-1]
    tx.calls[-1] = chain.Call(
        transfer.program, [*transfer.accounts, wallet("third")], transfer.data + b"\x07\x00"
    )
    (event,) = arbitrages(tx)
    assert told(event) == [(TIP_TAKER, tips.UNKNOWN, 93_640)]


@pytest.mark.parametrize("service", SERVICES)
def test_tip_to_a_listed_service_names_it(service: str) -> None:
    tx = chain.arbitrage()
    tx.transfer(BOT, account_of(service), 5_000_000_000)
    (event,) = arbitrages(tx)
    assert told(event) == [(account_of(service), service, 5_000_000_000)]


def test_tips_of_one_transaction_are_told_apart_by_account() -> None:
    tx = chain.arbitrage()
    for account, lamports in (
        (TIP_TAKER, 10_000),
        (account_of("Helius"), 20_000),
        (wallet("other"), 30_000),
        (TIP_TAKER, 5_000),
    ):
        tx.transfer(BOT, account, lamports)
    (event,) = arbitrages(tx)
    assert told(event) == [
        (account_of("Helius"), "Helius", 20_000),
        (TIP_TAKER, tips.UNKNOWN, 15_000),
        (wallet("other"), tips.UNKNOWN, 30_000),
    ]


@pytest.mark.parametrize(
    ("gain", "volume", "tip", "is_tip"),
    [
        (20_000, 1_000_000, 15_000, True),
        (20_000, 1_000_000, 30_000, True),
        (20_000_000, 1_000_000_000, 19_000_000, True),
        (20_000, 4_000_000_000, 39_000_000, True),
        (20_000, 1_000_000, 2_000_000, False),
        (20_000, 4_000_000_000, 1_000_000_000, False),
        (0, 4_000_000_000, 10_000, False),
    ],
)
def test_payment_of_a_sol_cycle_is_a_tip_when_small_against_it(
    gain: int, volume: int, tip: int, *, is_tip: bool
) -> None:
    tx = sol_cycle(gain, volume)
    tx.transfer(BOT, TIP_TAKER, tip)
    events = arbitrages(tx)
    assert [(event.profit_amount, told(event)) for event in events] == [
        (gain - tip - 5000, [(TIP_TAKER, tips.UNKNOWN, tip)]),
    ] * is_tip


@pytest.mark.parametrize(
    ("lamports", "is_tip"), [(9_000_000, True), (11_000_000, False), (1_000_000_000, False)]
)
def test_payment_of_a_token_cycle_without_sol_has_a_fixed_bound(
    lamports: int, *, is_tip: bool
) -> None:
    tx = chain.arbitrage()
    tx.transfer(BOT, TIP_TAKER, lamports)
    assert len(arbitrages(tx)) == is_tip


@pytest.mark.parametrize(("lamports", "is_tip"), [(400_000_000, True), (600_000_000, False)])
def test_payment_of_a_token_cycle_through_sol_is_judged_by_its_price(
    lamports: int, *, is_tip: bool
) -> None:
    """100 USDC buy 1 SOL, which sells for 150 USDC: the tip may cost the gained third of a SOL."""
    tx = Tx([BOT])
    usdc, wsol = tx.token(USDC, BOT), tx.token(SOL_MINT, BOT)
    tx.swap(RAYDIUM, pda("pool-a"), (usdc, 10_000_000), (wsol, 1_500_000_000), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (wsol, 1_500_000_000), (usdc, 15_000_000), height=1)
    tx.transfer(BOT, TIP_TAKER, lamports)
    assert len(arbitrages(tx)) == is_tip


def test_payments_are_judged_together() -> None:
    tx = chain.arbitrage()
    tx.transfer(BOT, TIP_TAKER, 6_000_000)
    tx.transfer(BOT, wallet("friend"), 6_000_000)
    assert arbitrages(tx) == []


@pytest.mark.parametrize(
    "how",
    ["passed on", "created", "token owner", "token account", "no instruction", "from another"],
)
def test_payment_that_is_no_plain_tip_is_a_loss(how: str) -> None:
    tx = chain.arbitrage()
    taker = tx.token(BONK, wallet("friend")) if how == "token account" else TIP_TAKER
    if how == "token owner":
        tx.token(BONK, TIP_TAKER)
    if how == "no instruction":
        tx.pay(BOT, -50_000)
        tx.pay(taker, 50_000)
    elif how == "from another":
        tx.transfer(wallet("friend"), taker, 50_000)
        tx.pay(BOT, -50_000)
    else:
        tx.transfer(BOT, taker, 50_000)
    if how == "passed on":
        tx.call(pda("other program"), [BOT, taker], b"use the lamports")
    if how == "created":
        tx.call(chain.SYSTEM, [taker], b"\x08\x00\x00\x00" + bytes(8))
    assert arbitrages(tx) == []


@pytest.mark.parametrize("program", [chain.PUMP_FUN, pda("unlisted launchpad")])
def test_lamports_paid_to_a_pool_are_no_tip(program: str) -> None:
    """A launchpad takes lamports, not a token; what it sells brings a gain over two pools."""
    tx = Tx([BOT])
    usdc, bonk, msol = tx.token(USDC, BOT), tx.token(BONK, BOT), tx.token(chain.MSOL, BOT)
    curve = pda("curve")
    tx.call(program, [pda("1"), pda("2"), pda("3"), curve, BOT], venues.anchor("buy") + bytes(16))
    tx.transfer(BOT, curve, 50_000, 2)
    tx.move(tx.token(BONK, curve), bonk, 5000, 2)
    tx.swap(RAYDIUM, pda("pool-a"), (bonk, 5000), (msol, 70), height=1)
    tx.swap(WHIRLPOOL, pda("pool-b"), (msol, 70), (usdc, 1000), height=1)
    assert arbitrages(tx) == []


def test_bot_program_that_routes_may_pay_the_tip_itself() -> None:
    tx = chain.arbitrage()
    tx.calls[0] = chain.Call(pda("bot program"), [BOT, TIP_TAKER], b"go")
    tx.transfer(BOT, TIP_TAKER, 50_000, 2)
    (event,) = arbitrages(tx)
    assert told(event) == [(TIP_TAKER, tips.UNKNOWN, 50_000)]


def test_program_that_only_pays_may_pay_the_tip() -> None:
    tx = chain.arbitrage()
    tx.call(pda("tip program"), [BOT, TIP_TAKER], b"tip")
    tx.transfer(BOT, TIP_TAKER, 50_000, 2)
    (event,) = arbitrages(tx)
    assert told(event) == [(TIP_TAKER, tips.UNKNOWN, 50_000)]


def test_sandwich_tells_the_tips_of_both_legs() -> None:
    def trade(who: str, *, is_buy: bool, gives: int, takes: int) -> Tx:
        signer = wallet(who)
        tx = Tx([signer])
        usdc, bonk = tx.token(USDC, signer), tx.token(BONK, signer)
        give, take = ((usdc, gives), (bonk, takes)) if is_buy else ((bonk, gives), (usdc, takes))
        tx.swap(RAYDIUM, pda("pool-a"), give, take, height=1)
        return tx

    front, back = (
        trade("bot", is_buy=True, gives=1000, takes=5000),
        trade("bot", is_buy=False, gives=5000, takes=1100),
    )
    front.transfer(BOT, account_of("Jito"), 1000)
    back.transfer(BOT, TIP_TAKER, 2000)
    (event,) = Run(
        chain.block(front, trade("victim", is_buy=True, gives=500, takes=2000), back)
    ).events
    assert isinstance(event, events_pb2.Sandwich)
    assert [(tip.service, tip.lamports) for tip in event.tips] == [
        ("Jito", 1000),
        (tips.UNKNOWN, 2000),
    ]
    assert event.tip_lamports == 3000


def test_every_listed_account_is_told_of_in_the_docs() -> None:
    text = chain.DOCS.joinpath("venues.md").read_text()
    assert [service for service in SERVICES if f"| {service} |" not in text] == []
