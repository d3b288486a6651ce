"""Fixtures: the real app with a real Redis and a storage folder, and a worker that the test controls."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from redis import Redis

from jobs.capability import Capability
from jobs.record import Result
from jobs.storage.base import Storage
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import thumbnail_key, timeline_key, video_key
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from model.media.sandbox import Sandbox
from model.spec.limits import Limits
from service.app import create_app
from service.http.protocol import server_options
from service.settings import Settings
from tests.pools import set_only_pool
from tests.servers import answers
from tests.waiting import wait_until

TASKS = ("text_to_video", "image_to_video", "video_continuation", "long_video", "refine")
LIMITS = Limits.from_json(
    {
        "buckets": {"small": {"0.67": [64, 96], "1.50": [96, 64]}, "large": {"0.67": [128, 192]}},
        "refine_buckets": {"0.67": [128, 192], "1.50": [192, 128]},
        "default_size": [64, 96],
        "min_side": 32,
        "max_pixels": 128 * 192,
        "default_num_frames": 17,
        "max_num_frames": 33,
        "max_num_segments": 4,
        "num_condition_frames": 5,
        "num_inference_steps": 4,
        "distilled_num_inference_steps": 2,
        "max_num_inference_steps": 60,
        "max_guidance_scale": 20.0,
        "max_prompt_characters": 200,
        "negative_prompt": "blurred",
    }
)
CAPABILITY = Capability(
    model="LongCat-Video",
    tasks=TASKS,
    limits=LIMITS.to_json(),
    loras=("cfg_step_lora", "refinement_lora"),
    device="cpu",
    dtype="float32",
)


def settings_for(redis_url: str, folder: Path, **changes: Any) -> Settings:
    """Return settings of a service that keeps all its data in `folder`."""
    given: dict[str, Any] = {"data_dir": folder, "fetch_private_hosts": True, "event_interval_s": 0.02}
    given |= {"webhook_private_hosts": True, "owner_requests_per_s": None}
    given["redis_patience_s"] = 60.0  # on a busy machine, Redis may take seconds
    given["webhook_threads"] = 0  # tests send webhooks themselves
    given["allowed_hosts"] = "testserver"  # the host name that TestClient uses
    return Settings(redis_url=redis_url, **given | changes)


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server() -> Iterator[None]:
    """Let all services of this process share a fork server: to start one takes longer than most tests."""
    with Sandbox() as shared, pytest.MonkeyPatch.context() as patch:

        class SharingSandbox(Sandbox):
            def _running_server(self):
                return shared._running_server()

        patch.setattr("service.backend.Sandbox", SharingSandbox)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_maintenance() -> Iterator[None]:
    """Run no maintenance in services: a round may come at any moment of a test. Tests run it themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.app.Maintenance", lambda *_, **__: nullcontext())
        yield


@pytest.fixture(scope="module")
def settings(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(redis_server, tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture(scope="module")
def running(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def no_worker_yet(running: TestClient, redis: Redis) -> TestClient:
    """Return a client of a service with which no worker has registered."""
    return running


@pytest.fixture
def client(no_worker_yet: TestClient, redis: Redis) -> TestClient:
    """Return a client of a service whose capability is known."""
    set_only_pool(redis, CAPABILITY)
    return no_worker_yet


@pytest.fixture
def live(listening: int, app: FastAPI, redis: Redis) -> Iterator[int]:
    """Yield the port of a service with a known capability that listens on a socket.

    Wait at the end until all requests are over. A request whose client has gone may otherwise read the fleet
    while the next test empties Redis, and the service then keeps an empty fleet.
    """
    set_only_pool(redis, CAPABILITY)
    yield listening
    assert answers(listening, "/livez")  # so the service has received all earlier requests
    wait_until(lambda: not app.state.requests_in_progress)


@pytest.fixture(scope="module")
def listening(app: FastAPI) -> Iterator[int]:
    """Serve the app on a socket and return its port."""
    with serving(app) as port:
        yield port


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[int]:
    """Serve an app as `python -m service` does and yield its port, by default a free one.

    The set `app.state.requests_in_progress` has a task for each request, until its response has ended.
    """
    options = server_options(app.state.backend.settings.connection_limits)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=1, **options)
    )
    app.state.requests_in_progress = server.server_state.tasks
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@dataclass(frozen=True)
class Worker:
    """Do what a worker does, step by step, without generating a video."""

    job_store: JobStore
    storage: Storage
    folder: Path

    def claim(self) -> Lease:
        lease = self.job_store.holder.claim("by hand", lease_s=600.0)
        assert lease is not None
        return lease

    def succeed(self, lease: Lease, video: bytes = b"a video", thumbnail: bytes = b"a thumbnail") -> None:
        keys = video_key(lease.job.id, lease.fence), thumbnail_key(lease.job.id, lease.fence)
        trace = json.dumps({"traceEvents": [{"name": "denoise", "args": {"job": lease.job.id}}]})
        files = {keys[0]: video, keys[1]: thumbnail, timeline_key(keys[0]): trace.encode()}
        for key, content in files.items():
            (self.folder / "upload").write_bytes(content)
            self.storage.put(key, self.folder / "upload", "")
        self.job_store.holder.begin_upload(lease)
        self.job_store.holder.succeed(lease, self.result(lease, video, *keys), {"denoise": 1.5})

    @staticmethod
    def result(lease: Lease, video: bytes, video_key: str, thumbnail_key: str) -> Result:
        order, plan = lease.job.order, lease.job.order.plan
        return Result(
            video_key=video_key,
            thumbnail_key=thumbnail_key,
            width=plan.width,
            height=plan.height,
            num_frames=plan.num_frames,
            fps=plan.fps,
            duration_s=plan.num_frames / plan.fps,
            size_bytes=len(video),
            sha256=hashlib.sha256(video).hexdigest(),
            seed=order.seed,
        )


@pytest.fixture
def worker(redis: Redis, settings: Settings, tmp_path: Path) -> Worker:
    return Worker(JobStore(redis), FolderStorage(Path(settings.storage_location)), tmp_path)


@pytest.fixture
def order(client: TestClient) -> Callable[..., dict[str, Any]]:
    """Return a function that requests a video and returns the job."""

    def post(**fields: Any) -> dict[str, Any]:
        answer = client.post("/generate", json={"prompt": "a red ball", **fields})
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    return post
