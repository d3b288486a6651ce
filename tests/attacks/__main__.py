"""`python -m tests.attacks`: attack a running service in every known way at once; exit with 1 if it suffers.

As root the service and its attacker are in two network namespaces, and the service listens on all addresses
of its own. Otherwise both are on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.attacks.namespaces import Namespace, can_make_namespaces, joined_namespaces
from tests.servers import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
LONGEST_GET_S = 0.5  # at the median, for another owner
LONGEST_LIVEZ_S = 0.1  # at the median
MOST_MEMORY_BYTES = 1 << 30  # of the API process
TENANTS = [f"mallory-{number}" for number in range(12)]  # one for each attack
START_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Service:
    """A running stack, in its namespace."""

    namespace: Namespace
    url: str
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]

    @property
    def processes(self) -> list[psutil.Process]:
        """Return every process of the stack."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    @property
    def api(self) -> psutil.Process:
        """Return the API's process."""
        return next(p for p in self.processes if p.cmdline()[1:3] == ["-m", "service"])

    def make_key(self, owner: str) -> str:
        """Make an API key for this owner."""
        command = [sys.executable, "-m", "service.keys", "create", owner]
        made = subprocess.run(command, env=dict(self.environment), capture_output=True, text=True, check=True)
        return next(word for word in made.stdout.split() if word.startswith("lc_"))

    def ask(self, key: str, path: str, **body: Any) -> Any:
        """Send a request from inside the namespace, as JSON if it has a body; return the JSON answer."""
        script = (
            "import httpx, json, sys; url, key, body = sys.argv[1:];"
            "send = (lambda **o: httpx.post(url, json=json.loads(body), **o)) if body else "
            "(lambda **o: httpx.get(url, **o));"
            "print(send(headers={'Authorization': f'Bearer {key}'}, timeout=60).text)"
        )
        arguments = [f"{self.url}{path}", key, json.dumps(body) if body else ""]
        command = self.namespace.command(sys.executable, "-c", script, *arguments)
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    """Run the campaign and print its report."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the attacks last")
    parser.add_argument(
        "--out", type=Path, default=Path("out/attacks.json"), help="where the figures are written"
    )
    parser.add_argument(
        "--check-delays", action="store_true", help="fail on slow answers, too: only sound on a quiet machine"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that everything below is removed
    with ExitStack() as parts:
        if can_make_namespaces():
            inside, outside = parts.enter_context(joined_namespaces())
            host = "0.0.0.0"  # of a namespace that nobody else is in
        else:
            print("not root, or no `ip`: attacking on loopback only")
            inside = outside = Namespace("", "127.0.0.1")
            host = "127.0.0.1"
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="longcat-attacks-")))
        service = parts.enter_context(run_service(folder, inside, host))
        figures = attack(service, outside, options.seconds)
    figures["problems"] = problems_of(figures) + (delays_of(figures) if options.check_delays else [])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    return 1 if figures["problems"] else 0


@contextmanager
def run_service(folder: Path, namespace: Namespace, host: str) -> Iterator[Service]:
    """Run the whole stack with one rank inside `namespace`, listening on `host`; end it at the end."""
    port = free_port()
    settings = {
        "DATA_DIR": folder / "data",
        "HOST": host,
        "PORT": port,
        "DEVICE": "cpu",
        "RANKS": 2,
        "REDIS_PATIENCE_S": 30,  # on a busy machine, Redis may take seconds
        "API_KEY": "attacks-campaign-operator",
        "FETCH_PRIVATE_HOSTS": "true",  # the attacker's hosts have private addresses
        "WEBHOOK_PRIVATE_HOSTS": "true",
    }
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LONGCAT_")},
        **{f"LONGCAT_{name}": str(value) for name, value in settings.items()},
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "stack.log"
    with log.open("wb") as output:
        command = namespace.command(sys.executable, "-m", "stack", "serve")
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: b"ready at" in log.read_bytes() or process.poll() is not None, START_TIMEOUT_S)
        if process.poll() is not None:
            sys.exit(log.read_text())
        redis_url = f"unix://{folder / 'data' / 'redis' / 'redis.sock'}"
        own = {**environment, "LONGCAT_REDIS_URL": redis_url}
        yield Service(namespace, f"http://{namespace.address}:{port}", process, own)
    except BaseException:
        print(log.read_text()[-20_000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def attack(service: Service, outside: Namespace, seconds: float) -> dict[str, Any]:
    """Attack from `outside` while another owner polls its job; return everything that was measured."""
    friendly, *hostile = (service.make_key(owner) for owner in ("alice", *TENANTS))
    job = service.ask(friendly, "/generate", prompt="A red ball")
    exposed = exposed_ports(service)
    reachable = [port for port in exposed if can_connect(outside, service.namespace.address, port)]
    with ExitStack() as running:
        bystander = running.enter_context(
            _talking(service.namespace, "tests.attacks.bystander", service.url, friendly, job["id"])
        )
        attacker = running.enter_context(
            _talking(outside, "tests.attacks.attacker", service.url, outside.address, *hostile)
        )
        assert attacker.stdout
        attacker.stdout.readline()  # it has prepared its bombs and is attacking
        memory_bytes = _watch_memory(service, seconds)
        polled = json.loads(_end(bystander))
        answers = json.loads(_end(attacker))
    after = service.ask(friendly, f"/jobs/{job['id']}")
    return {
        "seconds": seconds,
        "listening_beyond_loopback": exposed,
        "reachable_from_outside": reachable,
        "answers": answers,
        "bystander": {path: _summary(found) for path, found in polled.items()},
        "api_memory_mib": {name: round(value / 2**20) for name, value in memory_bytes.items()},
        "job_of_bystander": after["status"],
        "port": int(service.url.rpartition(":")[2]),
    }


def problems_of(figures: Mapping[str, Any]) -> list[str]:
    """Return what the service did not stand, in words."""
    job, livez = figures["bystander"]["job"], figures["bystander"]["livez"]
    peak_bytes = figures["api_memory_mib"]["peak"] * 2**20
    of_foreign_page = figures["answers"].get("foreign page", ())
    broken = {
        "more than the API's port is reachable": set(figures["listening_beyond_loopback"])
        - {figures["port"]},
        "another owner was refused": set(job["statuses"]) != {"200"} or set(livez["statuses"]) != {"200"},
        "the API took more than 1 GiB": peak_bytes > MOST_MEMORY_BYTES,
        "another owner's job failed": figures["job_of_bystander"] in {"failed", "cancelled"},
        "a page of another origin was served": {one for one in of_foreign_page if one.isdigit()} - {"403"},
    }
    answered_500 = [name for name, answers in figures["answers"].items() if "500" in answers]
    return [problem for problem, is_so in broken.items() if is_so] + [f"{name}: 500" for name in answered_500]


def delays_of(figures: Mapping[str, Any]) -> list[str]:
    """Return which answers took too long at the median, in words."""
    longest_s = {"job": LONGEST_GET_S, "livez": LONGEST_LIVEZ_S}
    return [
        f"{name}: {figures['bystander'][name]['median_s']} s at the median, of at most {limit_s} s"
        for name, limit_s in longest_s.items()
        if figures["bystander"][name]["median_s"] > limit_s
    ]


def exposed_ports(service: Service) -> list[int]:
    """Return the ports on which processes of the stack listen beyond loopback."""
    pids = [str(process.pid) for process in service.processes]
    command = service.namespace.command(sys.executable, "-m", "tests.attacks.sockets", *pids)
    ports: list[int] = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    return ports


def can_connect(namespace: Namespace, address: str, port: int) -> bool:
    """Check that a TCP connection from `namespace` is accepted."""
    script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()"
    command = namespace.command(sys.executable, "-c", script, address, str(port))
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextmanager
def _talking(namespace: Namespace, module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = namespace.command(sys.executable, "-m", module, *arguments)
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _end(process: subprocess.Popen[bytes]) -> bytes:
    return process.communicate()[0]


def _watch_memory(service: Service, seconds: float) -> dict[str, int]:
    api = service.api
    seen = [api.memory_info().rss]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen.append(api.memory_info().rss)
        time.sleep(0.05)
    return {"before": seen[0], "peak": max(seen)}


def _summary(found: Sequence[Sequence[float]]) -> dict[str, Any]:
    seconds = [taken for _, taken in found]
    statuses = [str(int(status)) for status, _ in found]
    return {
        "count": len(found),
        "median_s": round(statistics.median(seconds), 3),
        "worst_s": round(max(seconds), 3),
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
    }


if __name__ == "__main__":
    sys.exit(main())
