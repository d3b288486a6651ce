"""Build orders for tests."""

from __future__ import annotations

from typing import Any

from jobs.order import Order
from model.spec.plan import Plan

_PLAN = Plan(
    task="text_to_video",
    height=480,
    width=832,
    num_frames=93,
    num_segments=1,
    num_condition_frames=0,
    num_inference_steps=50,
    guidance_scale=4.0,
    distilled=False,
    condition_cache=True,
    enhance_hf=True,
    fps=15,
)
_ORDER = Order(plan=_PLAN, prompts=("a red ball rolls — «über» 球",), negative_prompt="blurry", seed=7)


def make_order(order: Order = _ORDER, **changes: Any) -> Order:
    """Return a copy of an order with other values of its fields or of its plan's fields."""
    of_plan = {name: changes.pop(name) for name in Plan.model_fields.keys() & changes.keys()}
    plan = order.plan.model_copy(update=of_plan)
    return order.model_copy(update={"plan": plan, **changes})
