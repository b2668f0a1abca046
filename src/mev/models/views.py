"""Models as the API shows them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mev.core.errors import InvalidInputError
from mev.models.registry import Entry, Listing


class AliasIn(BaseModel):
    """What an alias is to name."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=64, description="The id of a model, or another alias of it.")


class ModelOut(BaseModel):
    """A registered model."""

    id: str
    created_at: str
    objective: str
    features: list[str]
    feature_schema: str
    feature_schema_hash: str
    trees: int
    forms: dict[str, str]
    """SHA-256 of the file in each form."""
    parity: dict[str, float]
    metrics: dict[str, Any]
    lineage: dict[str, Any]
    aliases: list[str]
    archived_at: str | None


class ModelsOut(BaseModel):
    """A page of models, newest first, and those whose manifest is refused, with the reason: the same on every page."""

    items: list[ModelOut]
    next_cursor: str | None
    refused: dict[str, str]


class SidesOut(BaseModel):
    """A value of both models; `difference` is that of `b` from `a`, where both are numbers."""

    a: Any
    b: Any
    difference: float | None = None


class ComparisonOut(BaseModel):
    """Two models side by side. The metrics can be compared only where `same_validation`; `caveats` say why they cannot."""

    a: ModelOut
    b: ModelOut
    same_validation: bool
    caveats: list[str]
    metrics: dict[str, SidesOut]
    parameters: dict[str, SidesOut]
    """Those that differ, of the training and of how trees are grown."""
    features: dict[str, list[str]]
    """``only_a`` and ``only_b``."""


def model(entry: Entry) -> ModelOut:
    """Return a model as the API shows it."""
    manifest = entry.manifest
    return ModelOut(
        id=manifest.model_id,
        created_at=manifest.created_at,
        objective=manifest.objective,
        features=list(manifest.features),
        feature_schema=manifest.feature_schema,
        feature_schema_hash=manifest.feature_schema_hash,
        trees=manifest.trees,
        forms={form: digest for form in ("ubj", "mevt", "so") if (digest := manifest.digest(form))},
        parity={"rows": manifest.parity.rows, "max_abs_diff": manifest.parity.max_abs_diff},
        metrics=dict(manifest.metrics),
        lineage=dict(manifest.lineage),
        aliases=list(entry.aliases),
        archived_at=entry.archived_at,
    )


def target(entry: Entry) -> str | None:
    """Return the column that a model has learned, where its lineage says so."""
    spec = entry.manifest.lineage.get("spec") or {}
    return spec.get("target")


def page(
    listing: Listing, *, archived: bool = True, alias: str | None = None, learned: str | None = None, limit: int, cursor: str | None
) -> ModelsOut:
    """Return those of all models that fit, up to `limit` after the one whose id is `cursor`.

    :raises InvalidInputError: when there is no such model: beginning again would look like more pages.
    """
    start = next((place + 1 for place, entry in enumerate(listing.entries) if entry.manifest.model_id == cursor), None if cursor else 0)
    if start is None:
        raise InvalidInputError("cursor: not one of this list; start again without it", parameter="cursor")
    found = [
        entry
        for entry in listing.entries[start:]
        if (archived or entry.archived_at is None)
        and (alias is None or alias in entry.aliases)
        and (learned is None or target(entry) == learned)
    ]
    shown = found[:limit]
    return ModelsOut(
        items=[model(entry) for entry in shown],
        next_cursor=shown[-1].manifest.model_id if len(found) > limit else None,
        refused=dict(listing.refused),
    )
