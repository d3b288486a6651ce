"""Run each image with as few rights as possible, and check that its process works, is not root, and stops."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.images.bases import REDIS
from tests.images.build import inspect, tag_of
from tests.images.engine import ROOT, Engine
from tests.waiting import wait_until

logger = logging.getLogger(__name__)

HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--network", "host"),  # the namespace of this process
)
API_URL = "http://127.0.0.1:8000"
WORKER_URL = "http://127.0.0.1:8001"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30  # what Kubernetes leaves a container
WRITE = """
import errno, sys
try:
    open("/written", "w")
except OSError as error:
    sys.exit(error.errno != errno.EROFS)
sys.exit("the root file system can be written")
"""
WRITE_AT_HOME = "import pathlib; (pathlib.Path.home() / 'written').write_text('')"
HAS_TORCH = "import importlib.util; print(importlib.util.find_spec('torch') is not None)"


def check_images(engine: Engine) -> None:
    """Run Redis, the API and a worker with the small checkpoint. Raise AssertionError or TimeoutError."""
    for name in ("api", "worker"):
        user = inspect(engine, name)["User"]
        assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user), (
            f"{name}: the user {user!r} is not a number but root's"
        )
    redis_url = ("--env", "LONGCAT_REDIS_URL=redis://127.0.0.1:6379/0")
    api_key = (
        "--env",
        "LONGCAT_API_KEY=of-this-check-alone",
    )  # the API listens on all addresses only with one
    on_cpu = ("--env", "LONGCAT_DEVICE=cpu", "--volume", f"{ROOT / 'pocket'}:/checkpoint:ro")
    with (
        running(engine, "--user", "redis", REDIS, "redis-server", "--save", ""),
        running(engine, *redis_url, *api_key, tag_of("api")) as api,
        running(engine, *redis_url, *on_cpu, "--volume", "/var/lib/longcat", tag_of("worker")) as worker,
    ):
        wait_for(engine, api, f"{API_URL}/livez")
        wait_for(engine, worker, f"{WORKER_URL}/readyz")
        for container in (api, worker):
            engine.podman("healthcheck", "run", container)  # the HEALTHCHECK of the image
            check_rights(engine, container)
        engine.podman("exec", worker, "python", "-c", WRITE_AT_HOME)  # Triton compiles into this folder
        assert engine.podman("exec", api, "python", "-c", HAS_TORCH).strip() == "False", "the API has torch"
        for container in (api, worker):
            engine.podman("stop", "--time", str(STOP_TIMEOUT_S), container)
            status = engine.podman("inspect", "--format", "{{.State.ExitCode}}", container).strip()
            assert status == "0", f"status {status} after SIGTERM:\n{engine.podman('logs', container)}"
    for name in ("api", "worker"):
        check_stop_at_start(engine, name)
    logger.info("both images run without rights and stop")


def check_stop_at_start(engine: Engine, name: str) -> None:
    """Raise AssertionError if a container that is stopped as soon as it runs has to be killed."""
    with running(engine, tag_of(name)) as container:
        engine.podman("stop", "--time", str(STOP_TIMEOUT_S), container)
        status = engine.podman("inspect", "--format", "{{.State.ExitCode}}", container).strip()
    assert status in {"0", "143"}, f"{name}: status {status} after SIGTERM at its start"


@contextmanager
def running(engine: Engine, *arguments: str) -> Iterator[str]:
    """Start a container with few rights, yield its id, and remove it with its volumes."""
    container = engine.podman("create", *HARDENED, *arguments).strip()
    try:
        engine.podman("start", container)
        yield container
    finally:
        engine.podman("rm", "--force", "--volumes", "--time", "10", container)


def wait_for(engine: Engine, container: str, url: str) -> None:
    """Wait until a URL is answered with 200. Raise AssertionError if the container has ended."""

    def answers() -> bool:
        state = json.loads(engine.podman("inspect", container))[0]["State"]
        assert state["Running"], f"{url}: the container ended:\n{engine.podman('logs', container)}"
        try:
            return httpx.get(url, timeout=10.0).status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(answers, START_TIMEOUT_S, every_s=0.5)
    logger.info("%s answers", url)


def check_rights(engine: Engine, container: str) -> None:
    """Raise AssertionError unless the main process is not root, has no capabilities, and can gain none."""
    lines = engine.podman("exec", container, "cat", "/proc/1/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert "0" not in status["Uid"].split(), status["Uid"]
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0, f"{capabilities} {status[capabilities]}"
    assert status["NoNewPrivs"] == "1"
    engine.podman("exec", container, "python", "-c", WRITE)
