"""Sandwiches, and pairs of trades that are none."""

import pytest

from mev.capture import venues
from mev.capture.model import SOL_MINT
from mev.wire.pb import events_pb2
from tests.unit.capture import chain
from tests.unit.capture.capturing import Run
from tests.unit.capture.chain import BONK, RAYDIUM, WHIRLPOOL, Tx, pda, wallet

POOL = pda("pool-a")
ATTACKER, VICTIM = wallet("attacker"), wallet("victim")


def trade(
    who: str, sol: int, bonk: int, *, pool: str = POOL, program: str = RAYDIUM, fee: int = 5000
) -> Tx:
    """Swap SOL for BONK, or back where the amounts are negative."""
    tx = Tx([who], fee=fee)
    accounts = tx.token(SOL_MINT, who), tx.token(BONK, who)
    give, take = (
        ((accounts[0], sol), (accounts[1], bonk))
        if sol > 0
        else ((accounts[1], -bonk), (accounts[0], -sol))
    )
    tx.call(chain.JUPITER)
    tx.swap(program, pool, give, take)
    return tx


FRONT, BACK = trade(ATTACKER, 1_000_000, 5000), trade(ATTACKER, -1_030_000, -5000, fee=6000)
HIT = trade(VICTIM, 2_000_000, 9000)


def sandwiches(*transactions: Tx) -> list[events_pb2.Sandwich]:
    return [
        event
        for event in Run(chain.block(*transactions)).events
        if isinstance(event, events_pb2.Sandwich)
    ]


def test_both_legs_and_the_victims_are_named() -> None:
    second = trade(wallet("second victim"), 10, 40)
    bystander = trade(wallet("bystander"), 10, 40, pool=pda("pool-z"))
    (event,) = sandwiches(FRONT, HIT, bystander, second, BACK)
    assert event == events_pb2.Sandwich(
        signature=FRONT.signature,
        slot=chain.SLOT,
        block_time_ns=1_700_000_000_000_000_000,
        signer=ATTACKER,
        venues=["RaydiumV4"],
        pools=[POOL],
        profit_mint=SOL_MINT,
        profit_amount=30_000 - 11_000,
        profit_decimals=9,
        fee_lamports=11_000,
        back_signature=BACK.signature,
        victim_signatures=[HIT.signature, second.signature],
        victims=[VICTIM, wallet("second victim")],
    )


def test_nobody_in_between() -> None:
    assert sandwiches(FRONT, BACK, HIT) == []


def test_a_swap_the_other_way_is_no_victim() -> None:
    assert sandwiches(FRONT, trade(VICTIM, -2_000_000, -9000), BACK) == []


def test_another_pool_is_no_victim() -> None:
    assert sandwiches(FRONT, trade(VICTIM, 2_000_000, 9000, pool=pda("pool-z")), BACK) == []


def test_the_attacker_is_not_its_own_victim() -> None:
    bystander = trade(wallet("bystander"), 10, 40, pool=pda("pool-z"))
    assert sandwiches(FRONT, trade(ATTACKER, 2_000_000, 9000), bystander, BACK) == []


def test_legs_of_different_signers() -> None:
    assert sandwiches(FRONT, HIT, trade(wallet("other"), -1_030_000, -5000)) == []


def test_legs_in_the_same_direction() -> None:
    assert sandwiches(FRONT, HIT, trade(ATTACKER, 1_000_000, 4000)) == []


def test_two_arbitrages_through_one_pool() -> None:
    """Both gain and others trade in between, but neither undoes the other."""
    first, second = chain.arbitrage(profit=100), chain.arbitrage(profit=200)
    for tx in (first, second):
        tx.signers = [wallet("bot")]
    victim = chain.arbitrage("victim", profit=-50)
    found = Run(chain.block(first, victim, second))
    assert (found.summary.arbitrages, found.summary.sandwiches) == (2, 0)


def test_a_loss_over_both_legs() -> None:
    assert sandwiches(FRONT, HIT, trade(ATTACKER, -990_000, -5000)) == []


def test_tokens_sold_that_were_not_bought() -> None:
    assert sandwiches(FRONT, HIT, trade(ATTACKER, -2_000_000, -9000)) == []


def test_a_failed_victim_was_not_hit() -> None:
    failed = trade(VICTIM, 2_000_000, 9000)
    failed.err = "AccountInUse"
    assert sandwiches(FRONT, failed, BACK) == []


def test_each_transaction_is_a_leg_once() -> None:
    again = trade(ATTACKER, -1_030_000, -5000, fee=7000)
    assert len(sandwiches(FRONT, HIT, BACK, again)) == 1
    assert len(sandwiches(FRONT, trade(ATTACKER, 1_000_000, 5000, fee=8000), HIT, BACK)) == 1


@pytest.mark.parametrize("out_first", [False, True])
def test_a_victim_that_trades_through_an_aggregators_accounts(*, out_first: bool) -> None:
    victim = Tx([VICTIM])
    mine = victim.token(SOL_MINT, VICTIM), victim.token(BONK, VICTIM)
    shared = victim.token(SOL_MINT, pda("aggregator")), victim.token(BONK, pda("aggregator"))
    victim.call(chain.JUPITER)
    victim.move(mine[0], shared[0], 2_000_000, 2)
    victim.swap(RAYDIUM, POOL, (shared[0], 2_000_000), (shared[1], 9000), out_first=out_first)
    victim.move(shared[1], mine[1], 9000, 2)
    assert [list(event.victims) for event in sandwiches(FRONT, victim, BACK)] == [[VICTIM]]


def test_two_sandwiches_of_one_attacker() -> None:
    pool = pda("pool-b")
    legs = [
        trade(who, sol, bonk, pool=pool, program=WHIRLPOOL)
        for who, sol, bonk in ((ATTACKER, 100, 10), (VICTIM, 50, 5), (ATTACKER, -130, -10))
    ]
    found = sandwiches(FRONT, HIT, BACK, *legs)
    assert [list(event.pools) for event in found] == [[POOL], [pool]]


def test_single_transactions_of_one_slot_are_a_block() -> None:
    run = Run(FRONT.single(), HIT.single(), BACK.single())
    assert run.summary.sandwiches == 1


def test_slots_are_kept_apart() -> None:
    later = trade(ATTACKER, -1_030_000, -5000)
    later.slot = chain.SLOT + 1
    assert Run(FRONT.single(), HIT.single(), later.single()).summary.sandwiches == 0


def test_a_bonding_curve_that_moves_plain_lamports() -> None:
    """Pump.fun pays and takes SOL without any token transfer, so only the token's leg is seen."""

    def curve(who: str, sol: int, bonk: int) -> Tx:
        tx = Tx([who])
        account, vault = tx.token(BONK, who), tx.token(BONK, pda("curve"))
        tx.call(
            chain.PUMP_FUN,
            [pda("1"), pda("2"), pda("3"), pda("curve"), vault, account],
            venues.anchor("buy" if sol > 0 else "sell"),
        )
        tx.move(*((vault, account, bonk) if sol > 0 else (account, vault, -bonk)), 2)
        tx.pay(who, -sol)
        tx.pay(pda("curve"), sol)
        return tx

    (event,) = sandwiches(
        curve(ATTACKER, 1000, 50), curve(VICTIM, 1000, 40), curve(ATTACKER, -1200, -50)
    )
    assert (event.profit_mint, event.profit_amount, event.venues[0]) == (
        SOL_MINT,
        200 - 10_000,
        "PumpFun",
    )
