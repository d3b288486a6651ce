"""One sandbox for the tests that only decode."""

from __future__ import annotations

import pytest

from model.media.sandbox import Sandbox


@pytest.fixture(scope="package")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox
