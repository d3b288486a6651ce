"""What the service adds to a request, with the engine left out: `python -m benchmarks.service`.

Writes `benchmarks/service.{json,md}`. The service and an empty FastAPI app with the same two routes run side
by side, each in its own process, and are asked in turn, so that whatever else the machine does falls on both
alike. A worker that claims and finishes jobs at once, through `jobs` alone, stands for the engine.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import quantiles
from typing import Any

from fastapi import FastAPI
from redis import Redis

from benchmarks.machine import Machine
from jobs.capability import Capability
from jobs.connect import connect
from jobs.queue import consume
from jobs.record import Result
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from model.spec.limits import load_limits
from stack.demo import free_port
from stack.redis_server import RedisServer, find_redis

HERE = Path(__file__).parent
REQUESTS, WARM_UP = 1000, 100  # of each kind, one after the other
CLIENTS, JOBS_OF_EACH = 8, 62  # for jobs a second
STARTS = 100
ORDER = json.dumps({"prompt": "A red ball rolls across a wooden floor", "seed": 7})
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Server:
    """Somebody who answers on a port of this machine, over one connection for each client."""

    port: int

    def client(self) -> http.client.HTTPConnection:
        """Open a connection that stays open."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)


def ask(client: http.client.HTTPConnection, method: str, path: str) -> bytes:
    """Return the body of a successful response."""
    body, headers = (ORDER, {"Content-Type": "application/json"}) if method == "POST" else (None, {})
    client.request(method, path, body, headers)
    answer = client.getresponse()
    content = answer.read()
    assert answer.status < 300, content
    return content


def empty() -> FastAPI:
    """Return an app that does nothing, for comparison."""
    app = FastAPI()

    @app.post("/generate")
    def generate() -> dict[str, str]:
        return {"id": "x"}

    @app.get("/jobs/{job_id}")
    def get_job(job_id: str) -> dict[str, str]:
        return {"id": job_id}

    return app


@contextmanager
def served(*command: str, port: int, **environment: str) -> Iterator[Server]:
    """Start a server as a process, and yield it once it responds."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env={**os.environ, **environment}, stderr=subprocess.DEVNULL
    )
    try:
        while not _answers(port):
            assert process.poll() is None, command
            time.sleep(0.1)
        yield Server(port)
    finally:
        process.terminate()
        process.wait()


def in_turn(servers: dict[str, Server], method: str, paths: dict[str, str]) -> dict[str, dict[str, float]]:
    """Milliseconds of each server's answers: one of each after the other, over and over."""
    clients = {name: server.client() for name, server in servers.items()}
    times_ms: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(WARM_UP + REQUESTS):
        for name, client in clients.items():
            began = time.perf_counter()
            ask(client, method, paths[name])
            if number >= WARM_UP:
                times_ms[name].append(1000 * (time.perf_counter() - began))
    found = {name: percentiles(values) for name, values in times_ms.items()}
    return found | {"added": {p: found["service"][p] - found["empty"][p] for p in ("p50", "p99")}}


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    cuts = quantiles(values, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


def jobs_a_second(server: Server, job_store: JobStore) -> float:
    """From the first of many orders to the end of the last job, with several clients at a time."""
    count, before = CLIENTS * JOBS_OF_EACH, job_store.client.counts().get("succeeded", 0)

    def order_some(_: int) -> None:
        client = server.client()
        for _ in range(JOBS_OF_EACH):
            ask(client, "POST", "/generate")

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(order_some, range(CLIENTS)))
    while job_store.client.counts().get("succeeded", 0) < before + count:
        time.sleep(0.01)
    return count / (time.perf_counter() - began)


def starts_ms(server: Server, job_store: JobStore) -> dict[str, float]:
    """From the order of a job to its claim by a worker that waits, in Redis's time."""
    client, waits_ms = server.client(), []
    for _ in range(STARTS):
        job_id = json.loads(ask(client, "POST", "/generate"))["id"]
        while (job := job_store.client.get(job_id)).started_at is None:
            time.sleep(0.005)
        waits_ms.append(1000 * (job.started_at - job.created_at).total_seconds())
    return percentiles(waits_ms)


def work(redis_url: str) -> None:
    """Run a worker without an engine, as the body of a process."""
    redis = connect(redis_url)
    job_store = JobStore(redis)

    def finish_one() -> None:
        if claim := job_store.holder.claim("benchmark", 600.0):
            job_store.holder.begin_upload(claim)
            job_store.holder.succeed(claim, _result(claim), {})

    consume(redis, finish_one, lambda: False)


def burn() -> None:
    """Load the cores like a busy group, as the body of a process."""
    while True:
        sum(range(1_000_000))


@contextmanager
def beside(body: Callable[..., None], *arguments: str, count: int = 1) -> Iterator[None]:
    """So many processes that do this meanwhile."""
    processes: list[SpawnProcess] = [
        SPAWN.Process(target=body, args=arguments, daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def measure(folder: Path) -> dict[str, Any]:
    """Everything, in milliseconds."""
    with ExitStack() as parts:
        redis_url = parts.enter_context(RedisServer(folder / "redis", find_redis())).url
        redis = parts.enter_context(Redis.from_url(redis_url))
        _capability(folder).publish(redis)
        job_store, ports = JobStore(redis), (free_port(), free_port())
        settings = {
            "REDIS_URL": redis_url,
            "DATA_DIR": str(folder),
            "PORT": str(ports[0]),
            **dict.fromkeys(("OWNER_REQUESTS_PER_S", "OWNER_QUEUED_JOBS", "TOTAL_QUEUED_JOBS"), "none"),
        }
        ours = {f"LONGCAT_{name}": value for name, value in settings.items()}
        factory = (
            "uvicorn",
            "benchmarks.service:empty",
            "--factory",
            "--no-access-log",
            "--port",
            str(ports[1]),
        )
        servers = {
            "service": parts.enter_context(served("service", port=ports[0], **ours)),
            "empty": parts.enter_context(served(*factory, port=ports[1])),
        }
        found: dict[str, Any] = {"post_ms": in_turn(servers, "POST", dict.fromkeys(servers, "/generate"))}
        newest = job_store.client.page(limit=1)[0].id
        jobs = dict.fromkeys(servers, f"/jobs/{newest}")
        found["get_queued_ms"] = in_turn(servers, "GET", jobs)
        with beside(work, redis_url):
            while job_store.client.counts().get("queued", 0):
                time.sleep(0.1)
            found["get_ended_ms"] = in_turn(servers, "GET", jobs)
            with beside(burn, count=len(os.sched_getaffinity(0))):
                found["get_while_a_group_works_ms"] = in_turn(servers, "GET", jobs)
            found["jobs_a_second"] = jobs_a_second(servers["service"], job_store)
            found["submit_to_start_ms"] = starts_ms(servers["service"], job_store)
    return found


def _capability(folder: Path) -> Capability:
    tasks = ("text_to_video", "image_to_video", "video_continuation", "long_video")
    limits = load_limits(folder).to_json()
    return Capability(model="LongCat-Video", tasks=tasks, limits=limits, device="cpu", dtype="float32")


def _result(claim: Lease) -> Result:
    order, plan = claim.job.order, claim.job.order.plan
    return Result(
        video_key=f"jobs/{claim.job.id}/1/video.mp4",
        thumbnail_key=f"jobs/{claim.job.id}/1/thumbnail.jpg",
        width=plan.width,
        height=plan.height,
        num_frames=plan.num_frames,
        fps=plan.fps,
        duration_s=plan.num_frames / plan.fps,
        size_bytes=1,
        sha256="0" * 64,
        seed=order.seed,
    )


def _answers(port: int) -> bool:
    try:
        client = Server(port).client()
        client.request("GET", "/livez")
        return client.getresponse().status > 0
    except OSError:
        return False


def _report(found: dict[str, Any], machine: Machine) -> str:
    names = {
        "post_ms": "`POST /generate`",
        "get_queued_ms": f"`GET /jobs/{{id}}`, the last of {REQUESTS + WARM_UP} in the queue",
        "get_ended_ms": "`GET /jobs/{id}`, ended",
        "get_while_a_group_works_ms": "the same while every core computes",
    }
    rows = "".join(
        f"| {text} | "
        + " | ".join(
            f"{found[name][who][p]:.2f}" for who in ("service", "empty", "added") for p in ("p50", "p99")
        )
        + " |\n"
        for name, text in names.items()
    )
    start = found["submit_to_start_ms"]
    return (
        "# What the service adds\n\n"
        "Milliseconds of an answer, over a connection that stays open, beside an empty FastAPI app in the "
        "same run. The client is on the same machine. Redis writes its log before it answers "
        "(`appendfsync always`).\n\n"
        "| | p50 | p99 | empty p50 | empty p99 | added p50 | added p99 |\n|---|---|---|---|---|---|---|\n"
        f"{rows}\n"
        f"- {found['jobs_a_second']:.0f} jobs a second, from order to end: {CLIENTS} clients, one API "
        "process, one worker that finishes each at once.\n"
        f"- From order to start with a worker that waits: p50 {start['p50']:.1f} ms, p99 {start['p99']:.1f} "
        "ms.\n\n"
        f"{machine}\n\n`python -m benchmarks.service`\n"
    )


def main() -> None:
    """Measure and write both files."""
    machine = Machine.here()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    (HERE / "service.json").write_text(json.dumps({"machine": asdict(machine), **found}, indent=1) + "\n")
    (HERE / "service.md").write_text(_report(found, machine))


if __name__ == "__main__":
    main()
