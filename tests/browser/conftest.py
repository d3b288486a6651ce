"""Fixtures: a browser page, and a stack that generates videos to play."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.running_stack import RunningStack, run_stack
from tests.service.console.conftest import opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Return an empty page. The test fails if a script on it raises an error."""
    with opened(browser, "about:blank") as page:
        yield page


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[RunningStack]:
    """Run a stack with one rank."""
    with run_stack(tmp_path_factory.mktemp("stack"), tiny_checkpoint, ranks=1) as stack:
        yield stack
