"""Simulated market: the same seed and start give the same events, byte for byte.

A logistic model decides whether a bundle lands, from its tip against the competition, latency, time
left in the slot and leader: the features of an opportunity predict its outcome, but not with
certainty. A failed bundle costs what :mod:`mev.core.failures` defines. All events are marked
``simulated``.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf.message import Message

from mev.core.failures import draw_failure
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.events_pb2 import Bundle, Opportunity, RouteStep, Tick

EPOCH_NS = 1_735_689_600_000_000_000  # 2025-01-01T00:00:00Z
_FIRST_SLOT = 310_000_000
_SLOT_NS = 400_000_000
_LAMPORTS = 1_000_000_000
_MISSING_SHARE = 0.02
_SOL = "So11111111111111111111111111111111111111112"
_MARKETS = {
    "orca:SOL-USDC": ("EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", 160.0),
    "raydium:SOL-USDT": ("Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB", 160.1),
    "meteora:JUP-SOL": ("JUPyiwrYJFskUPiHa7hkeR8VUtAeFoSYbKedZNsDvCN", 0.0052),
    "orca:BONK-SOL": ("DezXAZ8z7PnrnRJjz3wXBoRgixCa6xjnB7YaB1pPB263", 1.4e-7),
    "phoenix:mSOL-SOL": ("mSoLzYCxHdYgdzU16g5QSh3i5K3z3KZK7ytfqcJm7So", 1.25),
}
_VENUES = ("Raydium V4", "Raydium CLMM", "Orca Whirlpool", "Meteora DLMM", "Phoenix")
_KINDS = ("arbitrage", "arbitrage", "arbitrage", "liquidation", "sandwich")


@dataclass(slots=True)
class Market:
    """A simulated market from `start_ns` on, with `rate_per_s` opportunities a second."""

    seed: int
    rate_per_s: float
    start_ns: int = EPOCH_NS
    agents: int = 8
    _random: random.Random = field(init=False)
    _run: str = field(init=False)
    """Prefix of all ids: different between runs, the same for a repeated run."""
    _count: int = 0
    _land_rate: float = 0.4
    _prices: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - a simulation, not a secret
        run = f"{self.seed} {self.rate_per_s} {self.start_ns} {self.agents}"
        self._run = hashlib.sha256(run.encode()).hexdigest()[:12]
        self._prices = {market: price for market, (_, price) in _MARKETS.items()}

    def __iter__(self) -> Iterator[tuple[Message, Message, Message]]:
        """Yield a tick, an opportunity and its bundle, endlessly."""
        while True:
            yield self.step()

    def step(self) -> tuple[Tick, Opportunity, Bundle]:
        """Return the next tick, opportunity and bundle."""
        now_ns = self.start_ns + round(self._count * 1e9 / self.rate_per_s)
        slot = _FIRST_SLOT + (now_ns - EPOCH_NS) // _SLOT_NS
        elapsed = (now_ns % _SLOT_NS) / _SLOT_NS
        tick = self._tick(now_ns)
        features = self._features(elapsed)
        opportunity = self._opportunity(features, now_ns, slot)
        bundle = self._bundle(opportunity, features)
        self._count += 1
        return tick, opportunity, bundle

    def _tick(self, now_ns: int) -> Tick:
        draw = self._random
        market = draw.choice(tuple(self._prices))
        price = self._prices[market] = self._prices[market] * math.exp(draw.gauss(0, 2e-4))
        half_spread = price * draw.uniform(1e-4, 8e-4)
        return Tick(
            market_id=market,
            timestamp_ns=now_ns,
            bid_price=price - half_spread,
            ask_price=price + half_spread,
            bid_size=draw.lognormvariate(3, 1),
            ask_size=draw.lognormvariate(3, 1),
            last_price=price + draw.uniform(-half_spread, half_spread),
            simulated=True,
        )

    def _features(self, elapsed: float) -> dict[str, float]:
        draw = self._random
        return {
            "expected_profit_sol": draw.lognormvariate(-4, 1.2),
            "tip_share": draw.betavariate(2, 3),
            "rivals": float(min(12, int(draw.expovariate(0.4)))),
            "latency_ms": draw.lognormvariate(2.3, 0.6),
            "route_length": float(draw.choice((2, 2, 2, 3, 3, 4))),
            "pool_depth_sol": draw.lognormvariate(6, 1.5),
            "volatility_bps": draw.expovariate(1 / 12),
            "slot_elapsed": elapsed,
            "leader_runs_jito": float(draw.random() < 0.9),
            "recent_land_rate": self._land_rate,
            "price_impact_bps": draw.expovariate(1 / 8),
            "fee_percentile": draw.random(),
        }

    def _opportunity(self, features: dict[str, float], now_ns: int, slot: int) -> Opportunity:
        draw = self._random
        profit = round(features["expected_profit_sol"] * _LAMPORTS)
        return Opportunity(
            id=f"sim-{self._run}-{self._count}",
            slot=slot,
            detected_at_ns=now_ns,
            kind=draw.choice(_KINDS),
            route=self._route(int(features["route_length"]), profit),
            expected_profit_lamports=profit,
            probability=min(0.99, max(0.01, _landing_probability(features) + draw.gauss(0, 0.15))),
            fee_lamports=5000 + round(features["fee_percentile"] * 40_000),
            tip_lamports=round(profit * features["tip_share"]),
            deadline_ns=now_ns + 2 * _SLOT_NS,
            features=[
                math.nan if draw.random() < _MISSING_SHARE else value for value in features.values()
            ],
            feature_schema=OPPORTUNITY.name,
            agent_id=f"sim-agent-{draw.randrange(self.agents)}",
            simulated=True,
        )

    def _route(self, length: int, profit: int) -> list[RouteStep]:
        draw = self._random
        mint = draw.choice(tuple(_MARKETS.values()))[0]
        tokens = [_SOL, *[mint] * (length - 1), _SOL]
        amount = draw.randrange(_LAMPORTS, 50 * _LAMPORTS)
        amounts = [amount, *[amount] * (length - 1), amount + profit]
        return [
            RouteStep(
                dex=draw.choice(_VENUES),
                pool=f"simulated-pool-{draw.randrange(64)}",
                token_in=tokens[step],
                token_out=tokens[step + 1],
                amount_in=amounts[step],
                amount_out=amounts[step + 1],
            )
            for step in range(length)
        ]

    def _bundle(self, opportunity: Opportunity, features: dict[str, float]) -> Bundle:
        draw = self._random
        landed = draw.random() < _landing_probability(features)
        self._land_rate += 0.01 * (landed - self._land_rate)
        earned = round(opportunity.expected_profit_lamports * (1 - abs(draw.gauss(0, 0.1))))
        fee, tip = opportunity.fee_lamports, opportunity.tip_lamports
        failure = (
            None
            if landed
            else draw_failure(draw, leader_runs_jito=bool(features["leader_runs_jito"]))
        )
        return Bundle(
            bundle_id=f"{opportunity.id}-bundle",
            opportunity_id=opportunity.id,
            agent_id=opportunity.agent_id,
            slot=opportunity.slot + 1 + draw.randrange(2),
            landed=landed,
            profit_lamports=failure.profit_lamports(fee, tip) if failure else earned - fee - tip,
            tip_lamports=failure.tip_paid_lamports(tip) if failure else tip,
            latency_ns=round(features["latency_ms"] * 1e6),
            error=failure.error if failure else "",
            simulated=True,
        )


def _landing_probability(features: dict[str, float]) -> float:
    """Return the probability that a bundle lands; the tip weighs more with more rivals."""
    rivals = features["rivals"]
    score = (
        1.6
        + 7.0 * (features["tip_share"] - 0.3) * (1 + 0.15 * rivals)
        - 0.55 * rivals
        - 0.09 * (features["latency_ms"] - 10)
        - 1.8 * features["slot_elapsed"]
        + 0.25 * math.log(features["expected_profit_sol"] / 0.02)
        - 0.02 * features["price_impact_bps"]
        - 2.5 * (1 - features["leader_runs_jito"])
    )
    return 1 / (1 + math.exp(-score))
