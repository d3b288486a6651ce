"""Bodies of OpenAI's videos API are refused in the words of that API."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.errors import InvalidRequest
from service.inputs.body import Body
from service.openai.bodies import new_video, read_request
from tests.service.conftest import LIMITS


def test_impossible_size_is_answered_with_the_possible_ones():
    body = Body({"prompt": "a red ball", "size": "128x64"}, {})
    with pytest.raises(InvalidRequest) as refused:
        new_video(read_request(body), body, replace(LIMITS, only_buckets=True))
    assert refused.value.message == "size: must be one of 96x64, 64x96, 192x128"


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("size", "1280X720", "must be width x height in pixels, as in 1280x720"),
        ("seconds", "-1", "must be a number of seconds above 0, as in 8 or 6.2"),
        ("quality", "high", "must be 'exact' or 'balanced'"),
    ],
)
def test_rules_are_plain(field, value, rule):
    with pytest.raises(InvalidRequest) as refused:
        read_request(Body({"prompt": "a red ball", field: value}, {}))
    assert (refused.value.field, refused.value.message) == (field, f"{field}: {rule}")
