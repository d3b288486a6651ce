"""From a request to an order in which nothing is left open. Called by `service.jobs.routes`.

Rules of shape are `model.spec.shapes`' affair; here are those of texts, and the settling of seed and inputs.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from jobs.capability import Capability
from jobs.errors import InvalidRequest, QualityNotAllowed
from jobs.order import Order, Refinement
from model.spec.shapes import GenerationParams, InvalidParams, Limits, Plan, resolve
from service.inputs.body import FILES
from service.inputs.reader import CheckedInput
from service.jobs.bodies import GenerateRequest

_DRAWN_BELOW = 1 << 53  # every JSON reader keeps such a number whole
_OF_REQUEST = {field.name for field in fields(GenerationParams)} & set(GenerateRequest.model_fields)
_OF_ORDER = {field.name for field in fields(Plan)} & set(Order.model_fields) - {"refinement"}


def check_texts(request: GenerateRequest, limits: Limits) -> None:
    """Refuse what can be refused before any input is fetched. Raises InvalidRequest."""
    if request.prompt is None and request.prompts is None:
        raise _illegal("prompt", "is required, or prompts")
    if request.prompt is not None and request.prompts is not None:
        raise _illegal("prompts", "cannot stand beside prompt")
    field = "prompts" if request.prompt is None else "prompt"
    texts = [(field, text) for text in _prompts(request)]
    for name, text in [*texts, ("negative_prompt", request.negative_prompt or "")]:
        if len(text) > limits.max_prompt_characters:
            raise _illegal(name, f"must have at most {limits.max_prompt_characters} characters")


def step_cache_for(request: GenerateRequest, allowed: float | None) -> float | None:
    """What balanced means here: the operator's threshold, if there is one. Raises QualityNotAllowed."""
    if request.quality == "exact":
        return None
    if allowed is None:
        raise QualityNotAllowed("quality: this service makes exact videos only", "quality")
    return allowed


def settle_order(
    request: GenerateRequest, inputs: Mapping[str, CheckedInput], limits: Limits, step_cache: float | None
) -> Order:
    """Resolve a request against a checkpoint's limits. Raises InvalidRequest, naming the field."""
    plan = _settle(request, inputs, limits, step_cache)
    settled: dict[str, Any] = {name: getattr(plan, name) for name in _OF_ORDER}
    files: dict[str, Any] = {field: taken.file for field, taken in inputs.items()}
    return Order(
        prompts=_prompts(request),
        negative_prompt=_negative_prompt(request, plan, limits),
        seed=secrets.randbelow(_DRAWN_BELOW) if request.seed is None else request.seed,
        refinement=_refinement(plan),
        **settled,
        **files,
    )


def check_capability(order: Order, capability: Capability) -> None:
    """Refuse what this checkpoint lacks the weights for. Raises InvalidRequest."""
    if order.task not in capability.tasks:
        raise _illegal("task", f"this checkpoint makes {', '.join(capability.tasks)}")
    if order.distilled and "cfg_step_lora" not in capability.loras:
        raise _illegal("distilled", "this checkpoint has no cfg_step_lora")
    if order.refinement and "refinement_lora" not in capability.loras:
        raise _illegal(
            "task" if order.task == "refine" else "refine", "this checkpoint has no refinement_lora"
        )


def _prompts(request: GenerateRequest) -> tuple[str, ...]:
    return tuple(request.prompts or ()) if request.prompt is None else (request.prompt,)


def _settle(
    request: GenerateRequest, inputs: Mapping[str, CheckedInput], limits: Limits, step_cache: float | None
) -> Plan:
    given: dict[str, Any] = {name: getattr(request, name) for name in _OF_REQUEST - FILES}
    given |= {field: taken.clip for field, taken in inputs.items()}
    try:
        return resolve(
            GenerationParams(num_prompts=len(_prompts(request)), step_cache=step_cache, **given), limits
        )
    except InvalidParams as error:
        raise _illegal(error.field, error.rule) from error


def _check_capability(plan: Plan, capability: Capability) -> None:
    if plan.task not in capability.tasks:
        raise _illegal("task", f"this checkpoint makes {', '.join(capability.tasks)}")
    if plan.distilled and "cfg_step_lora" not in capability.loras:
        raise _illegal("distilled", "this checkpoint has no cfg_step_lora")
    if plan.refinement and "refinement_lora" not in capability.loras:
        raise _illegal(
            "task" if plan.task == "refine" else "refine", "this checkpoint has no refinement_lora"
        )


def _negative_prompt(request: GenerateRequest, plan: Plan, limits: Limits) -> str | None:
    if plan.guidance_scale > 1.0:
        return limits.negative_prompt if request.negative_prompt is None else request.negative_prompt
    if request.negative_prompt is not None:
        raise _illegal("negative_prompt", "needs a guidance_scale above 1")
    return None


def _refinement(plan: Plan) -> Refinement | None:
    if plan.refinement is None:
        return None
    return Refinement.model_validate(plan.refinement, from_attributes=True)


def _illegal(field: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {rule}", field)
