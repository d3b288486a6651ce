"""Stored orders are read by other releases."""

from __future__ import annotations

import json

import pytest

from jobs.order import Order
from tests.orders import make_order

ORDER = make_order(step_cache=0.1)


def stored(order: Order) -> dict:
    return json.loads(order.model_dump_json())


def test_a_stored_order_is_read_back_unchanged():
    assert Order.model_validate(stored(ORDER)) == ORDER


def test_fields_of_a_later_release_are_ignored():
    document = stored(ORDER)
    document["mood"] = document["plan"]["motion"] = "calm"
    assert Order.model_validate(document) == ORDER


def test_optional_fields_of_the_plan_default_when_missing():
    document = stored(ORDER)
    del document["plan"]["step_cache"], document["plan"]["refinement"]
    plan = Order.model_validate(document).plan
    assert (plan.step_cache, plan.refinement) == (None, None)


@pytest.mark.parametrize("name", ["prompts", "seed", "plan"])
def test_an_order_without_a_required_field_is_invalid(name):
    document = stored(ORDER)
    del document[name]
    with pytest.raises(ValueError, match=name):
        Order.model_validate(document)
