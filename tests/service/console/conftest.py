"""Fixtures: the console in a browser, many jobs, and axe-core."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from redis import Redis

from jobs.store.scripts import decoded
from tests.conftest import BROWSER_TIMEOUT_MS
from tests.service.conftest import Worker
from tests.service.media import clip, encoded, picture

AXE = "axe-core@4.14.1"


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Yield a page of its own browser profile. The test fails if a script on it raises an error."""
    expect.set_options(timeout=BROWSER_TIMEOUT_MS)
    with browser.new_context(**options) as context:
        context.set_default_timeout(BROWSER_TIMEOUT_MS)
        page = context.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        yield page
        assert problems == []


def hold_time(page: Page) -> None:
    """Let timers of the page fire only when the test runs its clock, so that what is shown briefly stays."""
    page.clock.install()
    page.clock.pause_at(datetime.now(UTC) + timedelta(hours=1))  # a time that has not passed yet


def finish(worker: Worker, **video: Any) -> None:
    """Claim a job and end it with a video."""
    worker.succeed(worker.claim(), video=clip(**video), thumbnail=encoded(picture(), "JPEG"))


@pytest.fixture
def page(live: int, browser: Browser) -> Iterator[Page]:
    """Return a page with the console, which may use the clipboard."""
    permissions = ["clipboard-read", "clipboard-write"]
    with opened(browser, f"http://127.0.0.1:{live}/", permissions=permissions) as page:
        yield page


@pytest.fixture
def copy_job(redis: Redis) -> Callable[[str, int], list[str]]:
    """Return a function that adds records like that of a job to Redis, newer than all others.

    Submitting a thousand jobs takes long. The copies are listed, but not in the queue.
    """

    def copy(job_id: str, count: int) -> list[str]:
        record: dict[Any, Any] = {**decoded(redis.hgetall(f"longcat:job:{job_id}").items())}
        seconds, microseconds = redis.time()
        now_ms = 1000 * seconds + microseconds // 1000
        last = redis.incrby("longcat:submitted", count)
        ids = []
        with redis.pipeline(transaction=False) as pipeline:
            for number in range(last - count + 1, last + 1):
                ids.append(f"{number:032x}")
                pipeline.hset(
                    f"longcat:job:{ids[-1]}",
                    mapping={**record, "id": ids[-1], "number": number, "created_ms": now_ms},
                )
                for index in ("all", record["status"]):
                    for owner in ("", f":{record.get('owner', '')}"):
                        pipeline.zadd(f"longcat:index:{index}{owner}", {ids[-1]: number})
            pipeline.execute()
        return ids[::-1]

    return copy


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the script of axe-core, which the npm client fetches; skip the test without one."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: axe-core cannot be fetched")
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(
        [npm, "pack", "--silent", AXE], cwd=folder, capture_output=True, text=True, check=False
    )
    if packed.returncode:
        pytest.skip(f"npm cannot fetch {AXE}: {packed.stderr[-300:]}")
    with tarfile.open(folder / packed.stdout.strip()) as archive:
        archive.extract("package/axe.min.js", folder, filter="data")
    return Path(folder, "package", "axe.min.js").read_text()
