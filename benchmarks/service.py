"""What the service adds to a request, with the engine left out: `python -m benchmarks.service`.

Writes `benchmarks/service.{json,md}`. The service and an empty FastAPI app with the same two routes run side
by side, each in its own process, and are asked in turn, so that whatever else the machine does falls on both
alike. A worker that claims and finishes jobs at once, without ranks, stands for the engine.

`--beside FOLDER` runs the service of another checkout too, with a Redis and a worker of its own, and asks it
in the same turns. That checkout needs this module with `work(redis_url)` and `_capability(folder)`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
from fastapi import FastAPI

from benchmarks.machine import Machine, commit
from jobs.capability import Capability
from jobs.connect import connect
from jobs.record import Result
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from model.spec.limits import load_limits
from stack.demo import free_port
from stack.redis_server import RedisServer, find_redis
from worker.supervisor.consumer import Consumer

HERE = Path(__file__).parent
REQUESTS, WARM_UP = 1000, 100  # of each kind, one after the other
CLIENTS, JOBS_OF_EACH = 8, 62  # for jobs a second
STARTS = 100
MEASURES = ("p50", "p99", "cpu")
ROUNDS = 5  # of jobs a second, each installation in turn
ORDER = json.dumps({"prompt": "A red ball rolls across a wooden floor", "seed": 7})
BURN = "while True: sum(range(1_000_000))"
"""Load a core like a busy group."""


@dataclass(frozen=True)
class Server:
    """A process that answers on a port of this machine."""

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """Return the CPU seconds that the process has used."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def client(self) -> http.client.HTTPConnection:
        """Open a connection that stays open."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)


def ask(client: http.client.HTTPConnection, method: str, path: str) -> bytes:
    """Return the body of a successful response. A connection that was closed while idle is opened again."""
    body, headers = (ORDER, {"Content-Type": "application/json"}) if method == "POST" else (None, {})
    try:
        client.request(method, path, body, headers)
        answer = client.getresponse()
    except (http.client.RemoteDisconnected, BrokenPipeError):
        client.close()
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
def running(
    *arguments: str, checkout: Path = HERE.parent, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with the packages of a checkout as a process."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), **environment},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def answering(process: subprocess.Popen[bytes], port: int) -> Server:
    """Wait until a process responds on its port."""
    while not _answers(port):
        assert process.poll() is None, process.args
        time.sleep(0.1)
    return Server(port, psutil.Process(process.pid))


@dataclass(frozen=True)
class Installation:
    """The service of one checkout with a Redis of its own. Its worker starts when it is asked for."""

    checkout: Path
    redis_url: str
    server: Server

    @classmethod
    @contextmanager
    def start(cls, checkout: Path, folder: Path) -> Iterator[Installation]:
        """Start Redis and the service. Its files go to `folder`."""
        folder.mkdir()
        with RedisServer(folder / "redis", find_redis()) as redis:
            publish = (
                "import pathlib, redis; from benchmarks.service import _capability; "
                "from jobs.registration import GroupRegistration; "
                f"group = GroupRegistration(redis.Redis.from_url({redis.url!r}), 'benchmark'); "
                f"group.heartbeat('starting', 1, capability=_capability(pathlib.Path({str(folder)!r})))"
            )
            with running("-c", publish, checkout=checkout) as process:
                assert process.wait() == 0, publish
            port = free_port()
            settings = {
                "REDIS_URL": redis.url,
                "DATA_DIR": str(folder),
                "PORT": str(port),
                **dict.fromkeys(("OWNER_REQUESTS_PER_S", "OWNER_QUEUED_JOBS", "TOTAL_QUEUED_JOBS"), "none"),
            }
            environment = {f"LONGCAT_{name}": value for name, value in settings.items()}
            with running("-m", "service", checkout=checkout, **environment) as process:
                yield cls(checkout, redis.url, answering(process, port))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the worker without an engine."""
        code = f"from benchmarks.service import work; work({self.redis_url!r})"
        with running("-c", code, checkout=self.checkout):
            yield


def in_turn(servers: dict[str, Server], method: str, paths: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each server's answers: one of each after the other, over and over.

    `cpu` is the CPU time of the server's process for each, which depends less on what else the machine does.
    """
    clients = {name: server.client() for name, server in servers.items()}
    for _ in range(WARM_UP):
        for name, client in clients.items():
            ask(client, method, paths[name])
    times_ms: dict[str, list[float]] = {name: [] for name in servers}
    cpu_s = {name: -server.cpu_s() for name, server in servers.items()}
    for _ in range(REQUESTS):
        for name, client in clients.items():
            began = time.perf_counter()
            ask(client, method, paths[name])
            times_ms[name].append(1000 * (time.perf_counter() - began))
    return {
        name: percentiles(values) | {"cpu": 1000 * (cpu_s[name] + servers[name].cpu_s()) / REQUESTS}
        for name, values in times_ms.items()
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    cuts = quantiles(values, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


def submit(client: http.client.HTTPConnection) -> str:
    """Submit a job and return its ID."""
    return str(json.loads(ask(client, "POST", "/generate"))["id"])


def wait_for(client: http.client.HTTPConnection, job_id: str) -> dict[str, Any]:
    """Poll a job until it has succeeded, and return it."""
    while (job := json.loads(ask(client, "GET", f"/jobs/{job_id}")))["status"] != "succeeded":
        time.sleep(0.01)
    return dict(job)


def jobs_a_second(server: Server) -> float:
    """Return jobs a second, from the first order to the end of the last job, with several clients."""

    def submit_some(_: int) -> None:
        client = server.client()
        last = [submit(client) for _ in range(JOBS_OF_EACH)][-1]
        wait_for(client, last)

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(submit_some, range(CLIENTS)))
    return CLIENTS * JOBS_OF_EACH / (time.perf_counter() - began)


def starts_ms(server: Server) -> dict[str, float]:
    """Return the milliseconds from an order to its claim by a worker that waits, in Redis's time."""
    client, waits_ms = server.client(), []
    for _ in range(STARTS):
        job = wait_for(client, submit(client))
        created, started = (datetime.fromisoformat(job[name]) for name in ("created_at", "started_at"))
        waits_ms.append(1000 * (started - created).total_seconds())
    return percentiles(waits_ms)


def work(redis_url: str) -> None:
    """Run a worker without an engine, as the body of a process."""
    redis = connect(redis_url)
    holder = JobStore(redis).holder
    capability = _capability(Path())

    def finish(lease: Lease) -> None:
        holder.begin_upload(lease)
        holder.succeed(lease, _result(lease), {})
        consumer.request_claim()

    consumer = Consumer(
        redis,
        lambda: holder.claim("benchmark", 600.0),
        finish,
        lambda: holder.requirements(capability) or (),
    )
    consumer.request_claim()
    consumer.run()


def measure(folder: Path, before: Path | None) -> dict[str, Any]:
    """Measure everything: of this checkout, of an empty app, and of the checkout `before` if there is one."""
    checkouts = {"service": HERE.parent} | ({} if before is None else {"before": before})
    with ExitStack() as parts:
        installations = {
            name: parts.enter_context(Installation.start(checkout, folder / name))
            for name, checkout in checkouts.items()
        }
        port = free_port()
        serve = ("-m", "uvicorn", "benchmarks.service:empty", "--factory", "--no-access-log")
        servers = {name: installation.server for name, installation in installations.items()}
        servers["empty"] = answering(parts.enter_context(running(*serve, "--port", str(port))), port)
        found: dict[str, Any] = {"post_ms": in_turn(servers, "POST", dict.fromkeys(servers, "/generate"))}
        newest = {name: submit(server.client()) for name, server in servers.items()}
        jobs = {name: f"/jobs/{job_id}" for name, job_id in newest.items()}
        found["get_queued_ms"] = in_turn(servers, "GET", jobs)
        for installation in installations.values():
            parts.enter_context(installation.working())
        for name, installation in installations.items():
            wait_for(installation.server.client(), newest[name])
        found["get_ended_ms"] = in_turn(servers, "GET", jobs)
        with ExitStack() as burners:
            for _ in os.sched_getaffinity(0):
                burners.enter_context(running("-c", BURN))
            found["get_while_a_group_works_ms"] = in_turn(servers, "GET", jobs)
        rounds: dict[str, list[float]] = {name: [] for name in installations}
        for _ in range(ROUNDS):
            for name, speeds in rounds.items():
                speeds.append(jobs_a_second(servers[name]))
        found["jobs_a_second"] = {name: median(speeds) for name, speeds in rounds.items()}
        found["submit_to_start_ms"] = {name: starts_ms(servers[name]) for name in installations}
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
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        client.request("GET", "/livez")
        return client.getresponse().status > 0
    except OSError:
        return False


def _report(found: dict[str, Any], machine: Machine, before: str) -> str:
    names = {
        "post_ms": "`POST /generate`",
        "get_queued_ms": f"`GET /jobs/{{id}}`, the last of {REQUESTS + WARM_UP + 1} in the queue",
        "get_ended_ms": "`GET /jobs/{id}`, ended",
        "get_while_a_group_works_ms": "the same while every core computes",
    }
    compared = ["service", *(["before"] if before else []), "empty"]
    rows = "".join(
        f"| {text} | "
        + " | ".join(f"{found[name][who][p]:.2f}" for who in compared for p in MEASURES)
        + " |\n"
        for name, text in names.items()
    )
    titles = " | ".join(f"{who} {measure}" for who in compared for measure in MEASURES)
    throughput = "; ".join(f"{who}: {speed:.0f}" for who, speed in found["jobs_a_second"].items())
    starts = "; ".join(
        f"{who}: p50 {start['p50']:.1f} ms, p99 {start['p99']:.1f} ms"
        for who, start in found["submit_to_start_ms"].items()
    )
    explained = f" `before` is the service of commit {before}, in the same run." if before else ""
    return (
        "# What the service adds\n\n"
        "Milliseconds of an answer, over a connection that stays open, beside an empty FastAPI app in the "
        "same run; `cpu` is the CPU time of the server's process. The client is on the same machine. Redis "
        f"writes its log before it answers (`appendfsync always`).{explained}\n\n"
        f"| | {titles} |\n|---|{'---|' * len(MEASURES) * len(compared)}\n"
        f"{rows}\n"
        f"- Jobs a second, from order to end ({throughput}): {CLIENTS} clients, one API process, "
        f"one worker that finishes each at once, the median of {ROUNDS} rounds.\n"
        f"- From order to start with a worker that waits: {starts}.\n\n"
        f"{machine}\n\n`python -m benchmarks.service{' --beside FOLDER' if before else ''}`\n"
    )


def main() -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout to measure too")
    before: Path | None = parser.parse_args().beside
    machine = Machine.here()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), before and before.absolute())
    (HERE / "service.json").write_text(json.dumps({"machine": asdict(machine), **found}, indent=1) + "\n")
    (HERE / "service.md").write_text(_report(found, machine, commit(before) if before else ""))


if __name__ == "__main__":
    main()
