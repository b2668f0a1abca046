"""Feature schemas: versioned lists of the numeric features of an opportunity.

A published list never changes; a new list gets a new version.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One number of a feature vector, known at decision time; NaN if missing."""

    name: str
    unit: str
    description: str


@dataclass(frozen=True, kw_only=True)
class FeatureSchema:
    """A list of features in the order of the vector."""

    name: str
    features: tuple[Feature, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The features' names, in order."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the schema's name and its features' names and units, in hexadecimal."""
        lines = [self.name, *(f"{feature.name} {feature.unit}" for feature in self.features)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _schema(name: str, *features: tuple[str, str, str]) -> FeatureSchema:
    return FeatureSchema(
        name=name,
        features=tuple(
            Feature(name=name, unit=unit, description=text) for name, unit, text in features
        ),
    )


OPPORTUNITY = _schema(
    "opportunity.v1",
    ("expected_profit_sol", "SOL", "Expected profit before fee and tip."),
    ("tip_share", "", "Tip as a share of the expected profit."),
    ("rivals", "", "Bots seen after the same opportunity."),
    ("latency_ms", "ms", "Usual time from the bot to the block engine."),
    ("route_length", "", "Swaps of the route."),
    ("pool_depth_sol", "SOL", "Liquidity of the shallowest pool of the route."),
    ("volatility_bps", "bps", "Movement of the price just before."),
    ("slot_elapsed", "", "Share of the slot that has passed."),
    ("leader_runs_jito", "", "1 when the leader takes bundles, else 0."),
    ("recent_land_rate", "", "Share of the bot's latest bundles that landed."),
    ("price_impact_bps", "bps", "What the route moves the price by."),
    ("fee_percentile", "", "Rank of the planned fee among recent ones, 0 to 1."),
)
FEATURE_SCHEMAS = {schema.name: schema for schema in (OPPORTUNITY,)}
