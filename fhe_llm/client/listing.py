"""What a proxy says it serves: ``GET /v1/models``, checked before use."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fhe_llm.errors import TransportError, UnknownModelError
from fhe_llm.evaluator.plan import MAX_FEATURES

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LayerName = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}$")]


class _Checked(BaseModel):
    # pydantic before 2.10 warns of fields named model_*; none of ours hides a method
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class PackedListing(_Checked):
    """A plan for groups of tokens that the proxy offers for a layer, and the scale of the weights under it."""

    tokens: int = Field(ge=2, le=4096)
    plan_id: Hex32
    log_weight_scale: float = Field(ge=0, le=60)


class LayerListing(_Checked):
    """One linear layer: its shape, the plan both sides must agree on, and the scale of its weights.

    ``packed`` are the plans for groups of tokens; a client uses those it knows.
    """

    name: LayerName
    in_features: int = Field(ge=1, le=MAX_FEATURES)
    out_features: int = Field(ge=1, le=MAX_FEATURES)
    plan_id: Hex32
    log_weight_scale: float = Field(ge=0, le=60)
    packed: tuple[PackedListing, ...] = Field(default=(), max_length=16)


class BundleListing(_Checked):
    """The client bundle: SHA-256 and bytes."""

    digest: Hex32
    size: int = Field(ge=1, le=1 << 36)


class ModelListing(_Checked):
    """One model."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._-]+$")
    model_digest: Hex32
    preset: str
    bundle: BundleListing
    context_length: int = Field(ge=1)
    layers: tuple[LayerListing, ...] = Field(min_length=1, max_length=100_000)


class ProxyLimits(_Checked):
    """What one request may hold; the defaults suit a proxy that does not say."""

    max_body_bytes: int = Field(default=32 << 20, ge=1 << 16)
    max_jobs: int = Field(default=64, ge=1)


class Listing(_Checked):
    """Everything a proxy serves."""

    models: tuple[ModelListing, ...]
    limits: ProxyLimits = ProxyLimits()

    def model(self, name: str) -> ModelListing:
        """The model of that name; raises :class:`ModelError` naming the ones there are."""
        for model in self.models:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in self.models) or "none"
        raise UnknownModelError(
            f"cannot use model {name!r}: the proxy does not serve it. It serves: {known}."
        )


def parse_listing(body: bytes) -> Listing:
    """Raises :class:`TransportError` for anything that is not a listing."""
    try:
        return Listing.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "answer"
        raise TransportError(
            f"cannot read the proxy's model list: {where}: {first['msg']}. "
            "Check that the URL leads to an fhe-llm proxy of a matching version."
        ) from None
