"""List the models that can be requested, as OpenAI's API does."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from service.backend import Backend, CurrentBackend
from service.errors import ModelNotFound
from service.openai.errors import openai_error_responses

router = APIRouter(prefix="/v1/models", tags=["OpenAI"])


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Model(_View):
    """A model that a request may name."""

    id: str = Field(description="The name for `model`.")
    object: Literal["model"] = "model"
    created: int = Field(0, description="Not known: always 0.")
    owned_by: str = "longcat-video"


class ModelList(_View):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("", responses=openai_error_responses(503))
def list_models(backend: CurrentBackend) -> ModelList:
    """List the models that workers have. The list is empty before the first worker has started."""
    return ModelList(data=[Model(id=name) for name in _names(backend)])


@router.get("/{model:path}", responses=openai_error_responses(404, 503))
def retrieve_model(model: str, backend: CurrentBackend) -> Model:
    """Return a model."""
    if model not in _names(backend):
        raise ModelNotFound(f"there is no model {model[:100]}", "model")
    return Model(id=model)


def _names(backend: Backend) -> list[str]:
    return sorted({pool.capability.model for pool in backend.fleet().pools})
