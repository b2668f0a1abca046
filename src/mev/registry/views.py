"""API schemas of models."""

from typing import Any

from pydantic import BaseModel, Field

from mev.core.body import Body
from mev.core.paging import page_of, rows_after
from mev.registry.registry import Listing, RegistryEntry


class AliasIn(Body):
    """New model of an alias."""

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
    """A page of models, newest first.

    `refused` maps models whose manifest is refused to the reason; it is the same on every page.
    """

    items: list[ModelOut]
    next_cursor: str | None
    refused: dict[str, str]


class SidesOut(BaseModel):
    """A value of both models; `difference` is `b` minus `a` where both are numbers."""

    a: Any
    b: Any
    difference: float | None = None


class ComparisonOut(BaseModel):
    """Comparison of two models.

    Metrics are comparable only where `same_validation` is true; `caveats` give the reasons
    otherwise.
    """

    a: ModelOut
    b: ModelOut
    same_validation: bool
    caveats: list[str]
    metrics: dict[str, SidesOut]
    parameters: dict[str, SidesOut]
    """Parameters of training and tree growing that differ."""
    features: dict[str, list[str]]
    """Features in one model alone: ``only_a`` and ``only_b``."""


def model(entry: RegistryEntry) -> ModelOut:
    """Return a model in the schema of the API."""
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


def target(entry: RegistryEntry) -> str | None:
    """Return the target column of a model, where its lineage has it."""
    spec = entry.manifest.lineage.get("spec") or {}
    return spec.get("target")


def page(
    listing: Listing,
    *,
    archived: bool = True,
    alias: str | None = None,
    learned: str | None = None,
    limit: int,
    cursor: str | None,
) -> ModelsOut:
    """Return the matching models, up to `limit` after the one whose id is `cursor`.

    :raises InvalidCursorError: when no such model is in the list.
    """
    found = [
        entry
        for entry in rows_after(listing.entries, cursor, _id_of)
        if (archived or entry.archived_at is None)
        and (alias is None or alias in entry.aliases)
        and (learned is None or target(entry) == learned)
    ]
    shown, following = page_of(found, limit, _id_of)
    return ModelsOut(
        items=[model(entry) for entry in shown],
        next_cursor=following,
        refused=dict(listing.refused),
    )


def _id_of(entry: RegistryEntry) -> str:
    return entry.manifest.model_id
