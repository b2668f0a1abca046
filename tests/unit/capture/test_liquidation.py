"""Liquidations on the three lending protocols."""

import pytest

from mev.capture import venues
from mev.capture.model import SOL_MINT
from mev.wire.pb import events_pb2
from tests.unit.capture import chain
from tests.unit.capture.capturing import Run
from tests.unit.capture.chain import MSOL, USDC, Tx, pda, wallet

BOT, LOAN = wallet("bot"), pda("loan")
KAMINO_DATA = venues.anchor("liquidate_obligation_and_redeem_reserve_collateral") + bytes(24)


def liquidation(program: str, data: bytes, position: int) -> Tx:
    """Repay 1000 USDC, receive a receipt for collateral, redeem it for 5 mSOL."""
    tx = Tx([BOT])
    usdc, msol = tx.token(USDC, BOT), tx.token(MSOL, BOT)
    receipt, receipts = tx.token(pda("receipt"), BOT, 0), tx.token(pda("receipt"), pda("reserve"))
    debt, collateral = tx.token(USDC, pda("reserve")), tx.token(MSOL, pda("reserve"))
    tx.call(
        program,
        [pda(f"account {index}") for index in range(position)] + [LOAN, debt, collateral],
        data,
    )
    tx.move(usdc, debt, 1000, 2)
    tx.move(receipts, receipt, 77, 2)
    tx.move(receipt, receipts, 77, 2)
    tx.move(collateral, msol, 5, 2)
    return tx


@pytest.mark.parametrize(
    ("program", "data", "position", "name"),
    [
        (chain.KAMINO, KAMINO_DATA, 1, "Kamino"),
        (
            chain.KAMINO,
            venues.anchor("liquidate_obligation_and_redeem_reserve_collateral_v2") + bytes(24),
            1,
            "Kamino",
        ),
        (chain.SOLEND, b"\x0c" + bytes(8), 6, "Solend"),
        (chain.SOLEND, b"\x11" + bytes(8), 10, "Solend"),
    ],
)
@pytest.mark.parametrize("encoding", ["json", "jsonParsed"])
def test_what_was_repaid_and_seized(
    program: str, data: bytes, position: int, name: str, encoding: str
) -> None:
    tx = liquidation(program, data, position)
    (event,) = Run(tx.single(encoding)).events
    assert event == events_pb2.Liquidation(
        signature=tx.signature,
        slot=chain.SLOT,
        block_time_ns=1_700_000_000_000_000_000,
        signer=BOT,
        venues=[name],
        profit_mint=MSOL,
        profit_amount=5,
        profit_decimals=6,
        fee_lamports=5000,
        protocol=name,
        borrower=LOAN,
        repaid_mint=USDC,
        repaid_amount=1000,
        seized_mint=MSOL,
        seized_amount=5,
    )


def test_marginfi_settles_in_its_books() -> None:
    tx = Tx([BOT])
    tx.call(
        chain.MARGINFI,
        [pda(f"account {index}") for index in range(5)] + [LOAN],
        venues.anchor("lending_account_liquidate") + bytes(8),
    )
    (event,) = Run(tx.single()).events
    assert isinstance(event, events_pb2.Liquidation)
    assert (event.protocol, event.borrower) == ("MarginFi", LOAN)
    assert (event.repaid_mint, event.seized_mint, event.profit_mint) == ("", "", "")


def test_a_liquidation_that_trades_is_no_arbitrage_too() -> None:
    tx = chain.arbitrage()
    tx.call(
        chain.MARGINFI,
        [pda(f"account {index}") for index in range(5)] + [LOAN],
        venues.anchor("lending_account_liquidate"),
    )
    (event,) = Run(tx.single()).events
    assert isinstance(event, events_pb2.Liquidation)
    assert list(event.venues) == ["MarginFi", "RaydiumV4", "Whirlpool"]
    assert list(event.pools) == [pda("pool-a"), pda("pool-b")]
    assert (event.profit_mint, event.profit_amount) == (USDC, 500)


def test_a_call_from_another_program_counts() -> None:
    tx = liquidation(chain.KAMINO, KAMINO_DATA, 1)
    for call in tx.calls:
        call.height += 1
    tx.calls.insert(0, chain.Call(pda("liquidator program"), [], b"go"))
    assert Run(tx.single()).summary.liquidations == 1


def test_several_gains_leave_the_profit_open() -> None:
    tx = liquidation(chain.KAMINO, KAMINO_DATA, 1)
    tx.move(tx.token(SOL_MINT, pda("reserve")), tx.token(SOL_MINT, BOT), 9, 2)
    (event,) = Run(tx.single()).events
    assert isinstance(event, events_pb2.Liquidation)
    assert (event.profit_mint, event.profit_amount, event.seized_mint) == ("", 0, "")


def test_a_failed_liquidation() -> None:
    tx = liquidation(chain.KAMINO, KAMINO_DATA, 1)
    tx.err = {"InstructionError": [0, "InvalidAccountData"]}
    assert Run(tx.single()).events == []


def test_other_instructions_of_a_lender() -> None:
    assert (
        Run(
            liquidation(chain.KAMINO, venues.anchor("deposit_reserve_liquidity"), 1).single()
        ).events
        == []
    )
    assert Run(liquidation(chain.SOLEND, b"\x03", 6).single()).events == []


def receivership(*, is_ended: bool = True) -> Tx:
    """Take over a MarginFi account, withdraw 5 mSOL, sell them, repay 1000 USDC, return it."""
    tx = Tx([BOT])
    usdc, msol = tx.token(USDC, BOT), tx.token(MSOL, BOT)
    debt, collateral = tx.token(USDC, pda("bank")), tx.token(MSOL, pda("bank"))
    tx.call(chain.MARGINFI, [LOAN, pda("record"), BOT], venues.anchor("start_liquidation"))
    tx.call(
        chain.MARGINFI, [pda("group"), LOAN], venues.anchor("lending_account_withdraw") + bytes(8)
    )
    tx.move(collateral, msol, 5, 2)
    tx.swap(chain.RAYDIUM, pda("pool"), (msol, 5), (usdc, 1030), height=1)
    tx.call(chain.MARGINFI, [pda("group"), LOAN], venues.anchor("lending_account_repay") + bytes(8))
    tx.move(usdc, debt, 1000, 2)
    if is_ended:
        tx.call(chain.MARGINFI, [LOAN, pda("record"), BOT], venues.anchor("end_liquidation"))
    return tx


@pytest.mark.parametrize("encoding", ["json", "jsonParsed"])
def test_marginfi_receivership_is_one_liquidation(encoding: str) -> None:
    (event,) = Run(receivership().single(encoding)).events
    assert isinstance(event, events_pb2.Liquidation)
    assert (event.protocol, event.borrower, list(event.venues)) == (
        "MarginFi",
        LOAN,
        ["MarginFi", "RaydiumV4"],
    )
    assert (event.repaid_mint, event.repaid_amount, event.seized_mint, event.seized_amount) == (
        USDC,
        1000,
        MSOL,
        5,
    )
    assert (event.profit_mint, event.profit_amount) == (USDC, 30)


def test_receivership_without_its_end_is_none() -> None:
    assert not any(
        isinstance(event, events_pb2.Liquidation)
        for event in Run(receivership(is_ended=False).single()).events
    )
