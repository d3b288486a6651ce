"""Capacities refuse requests over their limits and release what requests used."""

from __future__ import annotations

from contextlib import suppress

import pytest

from jobs.errors import LimitReached
from service.errors import Busy
from service.http.capacity import Capacity


def test_owner_cannot_exceed_its_limit():
    capacity = Capacity("input_orders", total=10, per_owner=2)
    with capacity.share("mallory") as held, capacity.share("alice") as other:
        held.take(2)
        with pytest.raises(LimitReached) as refused:
            held.take(1)
        assert refused.value.limit == "owner_input_orders"
        other.take(2)


def test_owners_together_cannot_exceed_the_total():
    capacity = Capacity("input_orders", total=3, per_owner=2)
    with capacity.share("a") as first, capacity.share("b") as second:
        first.take(2)
        with pytest.raises(Busy):
            second.take(2)
        second.take(1)


def test_share_is_released_however_the_request_ends():
    capacity = Capacity("input_orders", total=1, per_owner=1)
    for _ in range(3):
        with suppress(ZeroDivisionError), capacity.share("a") as share:
            share.take(1)
            raise ZeroDivisionError


def test_refused_request_releases_only_its_own_share():
    capacity = Capacity("body_memory_bytes", total=10, per_owner=10)
    with capacity.share("a") as first:
        first.take(6)
        with capacity.share("a") as second:
            second.take(4)
            with pytest.raises(LimitReached):
                second.take(1)
        with capacity.share("a") as third, pytest.raises(LimitReached):
            third.take(5)
