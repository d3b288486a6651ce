"""Real parts for all tests, started once for a run: Redis, an S3 server, a tiny checkpoint."""

from __future__ import annotations

import gc
import os
import re
import shutil
import uuid
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import httpx
import pytest
from _pytest.mark.expression import Expression
from coverage import Coverage
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, sync_playwright
from redis import Redis
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from stack.redis_server import RedisServer
from tests.servers import S3Bucket, S3Server, create_bucket, redis_program, run_s3_server

ROOT = Path(__file__).parents[1]
RANKS_FOLDER = "tests/model/parallel/"
BROWSER_TIMEOUT_MS = 120_000  # of each wait: only a failing test waits so long
CHROMIUM_NAMES = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"]
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
]

# The machine may be busy.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep garbage collection away from all that is imported here: it lives until the process ends."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore files without any marker of `-m EXPRESSION`, if it selects only tests with markers.

    To import all files takes longer than many of the selected tests.
    """
    expression = config.option.markexpr
    if collection_path.suffix != ".py" or not expression:
        return None
    if Expression.compile(expression).evaluate(lambda *_, **__: False):  # it selects tests without markers
        return None
    markers = set(re.findall(r"\w+", expression)) - {"and", "or", "not"}
    text = collection_path.read_text()
    return None if any(f"mark.{marker}" in text for marker in markers) else True


class RanksTogether(LoadFileScheduling):
    """Distribute tests by file, but those that share ranks as one: only one process starts them."""

    def _split_scope(self, nodeid: str) -> str:
        return RANKS_FOLDER if nodeid.startswith(RANKS_FOLDER) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Schedule `--dist loadfile`."""
    return RanksTogether(config, log) if config.option.dist == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Save the coverage of this process, if it is measured, while its controller still waits for it.

    pytest-xdist kills a process that takes more than 10 s to exit, and with it what coverage would save then.
    """
    if coverage := Coverage.current():
        coverage.stop()
        coverage.save()


@pytest.fixture(scope="session", autouse=True)
def _default_settings() -> Iterator[None]:
    """Remove every setting of the shell except LONGCAT_REDIS_SERVER, which names the Redis to test with."""
    with pytest.MonkeyPatch.context() as environment:
        for name in os.environ.keys() - {"LONGCAT_REDIS_SERVER"}:
            if name.startswith("LONGCAT_"):
                environment.delenv(name)
        # processes that tests start find the client as the tests do, even if it is not installed
        paths = [str(ROOT / "client" / "src"), os.environ.get("PYTHONPATH", "")]
        environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_tls_context() -> Iterator[None]:
    """Let all HTTP clients share a TLS context: to read the root certificates takes longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", cache(httpx.create_ssl_context))
        yield


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a private Redis."""
    with RedisServer(tmp_path_factory.mktemp("redis"), redis_program()) as server:
        with Redis.from_url(server.url) as client:
            client.config_set(
                "appendonly", "no"
            )  # nothing here has to survive a crash, and each sync costs time
        yield server.url


@pytest.fixture
def redis(redis_server: str) -> Iterator[Redis]:
    """A client of an empty Redis."""
    # By default, redis-py sends a command again if the reply takes more than 5 s. It may then count twice.
    with Redis.from_url(redis_server, socket_timeout=None) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A local server that speaks S3."""
    with run_s3_server(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> S3Bucket:
    """An empty bucket."""
    bucket = S3Bucket(s3_server, f"bucket-{uuid.uuid4().hex}")
    create_bucket(s3_server, bucket.name)
    return bucket


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in the released layout; read it, never write to it."""
    from model.tiny import write_tiny  # imports torch, diffusers and transformers

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium; tests that need it are skipped where it is not installed."""
    found = [path for name in CHROMIUM_NAMES if (path := shutil.which(name))]
    if not found:
        pytest.skip("Chromium is not installed")
    return found[0]


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """A running Chromium: one per session, because Playwright keeps its event loop in this thread."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(
            executable_path=chromium, args=CHROMIUM_FLAGS, timeout=BROWSER_TIMEOUT_MS
        ) as browser,
    ):
        yield browser
