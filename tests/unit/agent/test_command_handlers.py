"""Tests of agent commands: actions, configuration and policies, with the reference strategy."""

from typing import Any

import pytest

from mev.agent.level import Level
from mev.agent.policy import Policies
from mev.agent.strategies.arbitrage import Arbitrage
from mev.agent.strategy import StrategyContext
from mev.simulate.model import Market
from mev.wire.pb.control_pb2 import ModuleAction, PolicyRule, SetConfig, SetPolicy
from mev.wire.pb.events_pb2 import Bundle, Opportunity, RouteStep
from tests.unit.agent.plane import MODULE, Bench, Clock


def action(bench: Bench, name: str, params: str = "{}") -> list[str]:
    return bench.send(
        bench.plane.command(ModuleAction(module=MODULE, action=name, params_json=params))
    )


def policy(**fields: object) -> SetPolicy:
    values: Any = fields
    return SetPolicy(policy_id="p", policy_type="risk", enabled=True, **values)


@pytest.mark.parametrize(
    ("name", "params", "code"),
    [
        ("set_min_profit", '{"lamports": 5}', ""),
        ("unheard_of", "{}", "unknown_action"),
        ("set_min_profit", "{}", "bad_params"),
        ("set_min_profit", '{"lamports": -1}', "bad_params"),
        ("set_min_profit", '{"lamports": 1.5}', "bad_params"),
        ("set_min_profit", '{"lamports": true}', "bad_params"),
        ("set_min_profit", '{"lamports": 1, "more": 2}', "bad_params"),
        ("set_min_profit", "[]", "bad_params"),
        ("set_min_profit", "{", "bad_params"),
        ("cancel_all", "", ""),
        ("enter", "{}", "level_forbids"),
    ],
)
def test_an_action_is_done_when_it_was_declared_so(
    bench: Bench, name: str, params: str, code: str
) -> None:
    assert action(bench, name, params) == [code]
    assert len(bench.strategy.done) == (code == "")


def test_a_refused_action_can_be_ordered_again(bench: Bench) -> None:
    """A refused action stores no version."""
    command = bench.plane.command(ModuleAction(module=MODULE, action="enter"))
    assert bench.send(command) == ["level_forbids"]
    bench.activate()
    assert bench.send(command) == [""]


def test_an_action_that_fails_is_answered_and_ends_nothing(bench: Bench) -> None:
    bench.strategy.fails = True
    assert action(bench, "cancel_all") == ["failed"]
    assert "ZeroDivisionError" in bench.reports[-1][1].detail
    bench.strategy.fails = False
    assert action(bench, "cancel_all") == [""]


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("pace", "2", ""),
        ("pace", "11", "bad_params"),
        ("pace", "NaN", "bad_params"),
        ("pace", '"fast"', "bad_params"),
        ("pace", "", "bad_params"),
        ("batch_window_ms", "20", "unsupported_config"),
    ],
)
def test_configuration_is_checked(bench: Bench, key: str, value: str, code: str) -> None:
    assert bench.send(
        bench.plane.command(SetConfig(config_key=key, config_value_json=value, hot_reload=True))
    ) == [code]
    assert bench.strategy.configured == ([(key, 2)] if not code else [])


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (SetPolicy(policy_id="p", policy_type="other"), "unknown_policy_type"),
        (SetPolicy(policy_type="risk"), "bad_policy"),
        (policy(thresholds={"profit_lamports": 1}), "bad_policy"),
        (policy(thresholds={"min_unheard_of": 1}), "bad_policy"),
        (policy(thresholds={"min_kind": 1}), "bad_policy"),
        (policy(thresholds={"min_slot": float("nan")}), "bad_policy"),
        (policy(rules=[PolicyRule(field="slot", operator="~", value="1")]), "bad_policy"),
        (policy(rules=[PolicyRule(field="slot", operator=">", value="many")]), "bad_policy"),
        (policy(rules=[PolicyRule(field="probability", operator=">", value="nan")]), "bad_policy"),
        (policy(rules=[PolicyRule(field="kind", operator=">", value="a")]), "bad_policy"),
        (policy(rules=[PolicyRule(field="simulated", operator="==", value="yes")]), "bad_policy"),
        (policy(rules=[PolicyRule(field="features", operator=">", value="1")]), "bad_policy"),
        (policy(rules=[PolicyRule(field="route", operator="==", value="1")]), "bad_policy"),
        (
            policy(rules=[PolicyRule(field="route.dex.name", operator="==", value="1")]),
            "bad_policy",
        ),
        (policy(rules=[PolicyRule(field="", operator="==", value="1")]), "bad_policy"),
    ],
)
def test_a_policy_that_cannot_be_applied_is_refused(
    bench: Bench, wrong: SetPolicy, code: str
) -> None:
    assert bench.send(bench.plane.command(wrong)) == [code]
    assert not bench.processor.state.accepted


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        ([("kind", "==", "arbitrage")], True),
        ([("kind", "!=", "arbitrage")], False),
        ([("simulated", "==", "true")], False),
        ([("slot", ">=", "18446744073709551615")], True),
        ([("slot", "<", "18446744073709551615")], False),
        ([("probability", "<=", "0.5")], True),
        ([("probability", "<", "0.5"), ("kind", "==", "arbitrage")], False),
        ([("route.dex", "==", "Orca")], False),
        ([("route.dex", "!=", "Phoenix")], True),
        ([("route.amount_in", ">", "5")], True),
    ],
)
def test_rules_hold_of_every_field(rules: list[tuple[str, str, str]], passes: bool) -> None:
    opportunity = Opportunity(
        kind="arbitrage",
        slot=2**64 - 1,
        probability=0.5,
        route=[RouteStep(dex="Orca", amount_in=6), RouteStep(dex="Raydium", amount_in=7)],
    )
    compiled = Policies(
        [
            policy(
                rules=[
                    PolicyRule(field=field, operator=operator, value=value)
                    for field, operator, value in rules
                ]
            )
        ]
    )
    assert (compiled.refusal(opportunity) is None) is passes


def test_thresholds_name_what_refuses() -> None:
    limits = Policies([policy(thresholds={"min_profit_lamports": 100, "max_tip_lamports": 10})])
    assert limits.refusal(Opportunity(expected_profit_lamports=100, tip_lamports=10)) is None
    assert limits.refusal(Opportunity(expected_profit_lamports=99)) == "p: min_profit_lamports 100"
    assert (
        limits.refusal(Opportunity(expected_profit_lamports=100, tip_lamports=11))
        == "p: max_tip_lamports 10"
    )


def test_a_policy_that_is_off_refuses_nothing() -> None:
    off = policy(thresholds={"min_profit_lamports": 100})
    off.enabled = False
    assert Policies([off]).refusal(Opportunity()) is None


def started(level: Level = Level.ACTIVE) -> Arbitrage:
    strategy = Arbitrage()
    strategy.on_start(StrategyContext("a1", Clock(), lambda: level))
    return strategy


def bundles(strategy: Arbitrage, count: int = 300) -> list[Bundle]:
    market = Market(1, 100.0)
    decisions = [
        decision
        for _ in range(count)
        for decision in strategy.on_opportunity(market.step()[1], None)
    ]
    return [decision.event for decision in decisions if isinstance(decision.event, Bundle)]


def test_arbitrage_makes_the_same_paper_bundles_of_the_same_opportunities() -> None:
    made = bundles(started())
    assert made == bundles(started())
    assert 0 < sum(bundle.landed for bundle in made) < len(made)
    assert all(
        bundle.simulated and bundle.agent_id == "a1" and bool(bundle.error) is not bundle.landed
        for bundle in made
    )
    assert all(bundle.profit_lamports >= 0 for bundle in made if bundle.landed)


def test_arbitrage_takes_less_when_more_is_asked() -> None:
    strategy = started()
    everything = len(bundles(strategy))
    assert strategy.on_action("set_min_profit", {"lamports": 10_000_000})
    assert 0 < len(bundles(strategy)) < everything
    assert (
        strategy.on_action("reset_counters", {})
        == f"had seen 600 and taken {everything + strategy_taken(everything, strategy)}"
    )
    strategy.on_config("min_profit_lamports", 0)
    strategy.on_policies(Policies([policy(thresholds={"min_probability": 2})]))
    assert bundles(strategy) == []


def strategy_taken(everything: int, strategy: Arbitrage) -> int:
    again = started()
    again.on_action("set_min_profit", {"lamports": strategy.min_profit_lamports})
    return len(bundles(again))


def test_arbitrage_lets_late_and_unallowed_ones_go() -> None:
    late = Opportunity(id="o", deadline_ns=1, expected_profit_lamports=10)
    assert not list(started().on_opportunity(late, None))
    good = Opportunity(id="o", expected_profit_lamports=10)
    assert list(started().on_opportunity(good, None))
    assert not list(started(Level.NO_NEW).on_opportunity(good, None))
    assert started().on_action("cancel_all", {})


def test_arbitrage_takes_what_is_scored_enough_and_with_a_bar_nothing_that_is_not() -> None:
    strategy, good = started(), Opportunity(id="o", expected_profit_lamports=10)
    assert [len(list(strategy.on_opportunity(good, score))) for score in (None, 0.0, 0.9)] == [
        1,
        1,
        1,
    ]
    strategy.on_config("min_score", 0.5)
    assert [
        len(list(strategy.on_opportunity(good, score))) for score in (None, 0.0, 0.49, 0.5, 0.9)
    ] == [0, 0, 0, 1, 1]
    strategy.on_config("min_profit_lamports", 11)
    assert strategy.min_score == 0.5
    assert not list(strategy.on_opportunity(good, 0.9))
    strategy.on_config("min_profit_lamports", 0)
    strategy.on_config("min_score", 0)
    assert list(strategy.on_opportunity(good, None))


def test_arbitrage_on_paper_pays_for_failures_what_they_cost_on_chain() -> None:
    strategy, bundles = started(), list[Bundle]()
    for number in range(400):
        seen = Opportunity(
            id=f"o{number}",
            expected_profit_lamports=100,
            fee_lamports=3,
            tip_lamports=40,
            probability=0.3,
        )
        (decision,) = strategy.on_opportunity(seen, None)
        assert isinstance(decision.event, Bundle)
        bundles.append(decision.event)
    assert {(one.profit_lamports, one.tip_lamports) for one in bundles if one.landed} == {(57, 40)}
    assert {(one.profit_lamports, one.tip_lamports) for one in bundles if not one.landed} == {
        (0, 0),
        (-3, 0),
        (-43, 40),
    }


def test_arbitrage_says_that_a_bar_without_a_model_blocks_everything() -> None:
    strategy = started()
    assert strategy.blocked_by(has_model=False) == ()
    strategy.on_config("min_score", 0.5)
    assert (strategy.blocked_by(has_model=False), strategy.blocked_by(has_model=True)) == (
        ("min_score_without_model",),
        (),
    )
