"""Text that people see."""

import pytest

from mev.core.text import figure, label, sol


@pytest.mark.parametrize(
    ("lamports", "text"),
    [
        (0, "0.000 SOL"),
        (1, "0.000000001 SOL"),
        (5_000, "0.000005 SOL"),
        (50_000_000, "0.050 SOL"),
        (-2_188_730, "-0.00219 SOL"),
        (999_999_999, "1.000 SOL"),
        (1_234_567_891, "1.235 SOL"),
        (-1_234_567_891_234, "-1,234.568 SOL"),
    ],
)
def test_lamports_are_shown_in_sol(lamports: int, text: str) -> None:
    assert sol(lamports) == text


@pytest.mark.parametrize(
    ("lamports", "text"),
    [
        (0, "0 SOL"),
        (1_234_567, "0.001234567 SOL"),
        (5e6, "0.005 SOL"),
        (100_000_000_000, "100 SOL"),
    ],
)
def test_limits_are_shown_without_loss(lamports: float, text: str) -> None:
    assert sol(lamports, exact=True) == text


def test_a_figure_is_money_by_its_name() -> None:
    assert [figure(name, 2_500_000_000) for name in ("best_profit_lamports", "rows")] == [
        "2.500 SOL",
        "2.5e+09",
    ]
    assert [label(name) for name in ("best_profit_lamports", "rows")] == ["best_profit", "rows"]
