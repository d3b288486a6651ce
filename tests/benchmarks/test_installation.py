"""The installation that benchmarks measure."""

from __future__ import annotations

import pytest

from benchmarks import eta, overlap
from benchmarks.installation import client_of_stack

pytestmark = pytest.mark.integration


def test_requests_of_the_benchmarks_are_accepted():
    with client_of_stack() as client:
        for request in (overlap.REQUEST, *eta.requests(30)):
            answer = client.post("/generate", json=request)
            assert answer.status_code == 202, answer.text
