"""Start docker-compose.yml with Docker's own Compose on podman's socket, and generate videos through it."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stack.die_with_parent import dies_with_parent
from tests.decoded_video import decode
from tests.images.engine import ROOT, Engine
from tests.service.media import encoded, picture
from tests.waiting import wait_until

logger = logging.getLogger(__name__)

OVERRIDE = Path(__file__).with_name("compose.override.yml")
PROGRAM = "docker-compose"
PLUGIN_FOLDERS = (
    Path("/usr/libexec/docker/cli-plugins"),
    Path("/usr/lib/docker/cli-plugins"),
    Path("/usr/local/lib/docker/cli-plugins"),
)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEBIAN = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian trixie main\n"
URL = "http://127.0.0.1:8000"
PROMPT = "A big red ball bouncing on a gray background with stripes"
ENDED = {"succeeded", "failed", "cancelled"}
START_TIMEOUT_S = 300.0
JOB_TIMEOUT_S = 300.0
HEALTH_EVERY_S = 2.0

Job = dict[str, Any]


@dataclass(frozen=True)
class Project:
    """A copy of the compose file and of what it mounts, with secrets of its own."""

    program: Path
    folder: Path
    environment: Mapping[str, str]

    def run(self, *arguments: str) -> str:
        """Run Compose and return its output. Raises CalledProcessError."""
        files = (self.folder / "docker-compose.yml", OVERRIDE)
        command = [
            *(str(self.program), "--project-name", "longcat", "--project-directory", str(self.folder)),
            *(f"--file={file}" for file in files),
            *arguments,
        ]
        output = subprocess.PIPE
        done = subprocess.run(
            command,
            check=False,
            env=dict(self.environment),
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            logger.error("docker compose %s\n%s", " ".join(arguments), done.stdout[-20_000:])
            done.check_returncode()
        return done.stdout

    def up(self, workers: int) -> None:
        """Start what is not running yet."""
        logger.info("docker compose up with %d workers", workers)
        self.run("up", "--detach", "--no-build", "--pull", "never", "--scale", f"worker={workers}")


def check_compose(engine: Engine, program: Path, folder: Path) -> dict[str, Any]:
    """Generate one video with one worker, two with two workers; return figures of the videos.

    Raises:
        AssertionError: a job failed, a video is not what the job says, or something is left after `down`.
        TimeoutError: the service was not ready in time, or a job did not end.
        CalledProcessError: Compose failed.
    """
    with podman_service(engine, folder) as address, health_checks(engine):
        project = make_project(engine, program, folder / "project", address)
        project.run("--profile", "s3", "--profile", "monitoring", "config", "--quiet")
        try:
            headers = {"Authorization": f"Bearer {(project.folder / 'secrets' / 'api_key').read_text()}"}
            with httpx.Client(base_url=URL, headers=headers, timeout=60.0) as client:
                videos = generate_videos(project, client)
        except BaseException:
            logger.exception("the service's logs:\n%s", project.run("logs", "--no-color")[-50_000:])
            raise
        finally:
            project.run("down", "--volumes")
        left = engine.podman("ps", "--all", "--quiet") + engine.podman("volume", "ls", "--quiet")
        assert not left, f"left after docker compose down: {left}"
    return {"videos": videos}


def generate_videos(project: Project, client: httpx.Client) -> list[dict[str, Any]]:
    """Start the service with one worker, then with two, and generate videos; return their figures."""
    project.up(workers=1)
    wait_until(lambda: num_ready_groups(client) == 1, START_TIMEOUT_S, every_s=1.0)
    videos = [finished_video(client, submitted(client, json={"prompt": PROMPT, "seed": 7}))]
    project.up(workers=2)
    wait_until(lambda: num_ready_groups(client) == 2, START_TIMEOUT_S, every_s=1.0)
    jobs = [
        submitted(client, json={"prompt": PROMPT, "seed": 8}),
        submitted(client, data={"prompt": PROMPT}, files={"image": ("image.png", encoded(picture()))}),
    ]
    return videos + [finished_video(client, job) for job in jobs]


def num_ready_groups(client: httpx.Client) -> int:
    """Return the number of registered groups that take jobs, 0 while the API does not answer."""
    try:
        answer = client.get("/metrics")
    except httpx.HTTPError:
        return 0
    found = re.search(r'^longcat_groups{state="ready"} (\d+)', answer.text, re.MULTILINE)
    return int(found[1]) if found else 0


def submitted(client: httpx.Client, **content: Any) -> Job:
    """Submit a job and return it."""
    answer = client.post("/generate", **content)
    assert answer.status_code == 202, answer.text
    job: Job = answer.json()
    return job


def finished_video(client: httpx.Client, job: Job) -> dict[str, Any]:
    """Wait for the end of a job, check its video, and return the figures of it."""

    def ended() -> Job | None:
        now: Job = client.get(f"/jobs/{job['id']}").raise_for_status().json()
        return now if now["status"] in ENDED else None

    now = wait_until(ended, JOB_TIMEOUT_S, every_s=0.5)
    assert now["status"] == "succeeded", now
    result = now["result"]
    content = client.get(f"/jobs/{job['id']}/video", follow_redirects=True).raise_for_status().content
    video = decode(content)
    assert (*video.size, len(video.frames)) == (result["width"], result["height"], result["num_frames"])
    logger.info("%s: a video of %d frames", now["task"], len(video.frames))
    return {"task": now["task"], "num_frames": len(video.frames), "size_bytes": len(content)}


def make_project(engine: Engine, program: Path, folder: Path, address: str) -> Project:
    """Copy the files of a project into a new folder, and make its secrets."""
    folder.mkdir()
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "docker", folder / "docker")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    subprocess.run([folder / "docker" / "make-secrets.sh"], check=True, capture_output=True)
    settings = {"DOCKER_HOST": address, "LONGCAT_CHECKPOINT": str(ROOT / "pocket")}
    others = {name: value for name, value in engine.environment.items() if not name.startswith("LONGCAT_")}
    return Project(program, folder, {**others, **settings})


@contextmanager
def podman_service(engine: Engine, folder: Path) -> Iterator[str]:
    """Run podman's implementation of Docker's API, and yield its address."""
    socket = folder / "podman.sock"
    command = ["podman", "system", "service", "--time", "0", f"unix://{socket}"]
    with (
        (folder / "podman.log").open("wb") as log,
        subprocess.Popen(
            dies_with_parent(command), env=dict(engine.environment), stdout=log, stderr=log
        ) as process,
    ):
        try:
            wait_until(socket.exists)
            yield f"unix://{socket}"
        finally:
            process.terminate()


@contextmanager
def health_checks(engine: Engine) -> Iterator[None]:
    """Run the health checks of all containers again and again: podman leaves them to systemd."""
    stop = threading.Event()

    def check() -> None:
        while not stop.wait(HEALTH_EVERY_S):
            for container in engine.podman("ps", "--quiet").split():
                # an unhealthy container is an error; podman keeps the result for Compose
                command = ["podman", "healthcheck", "run", container]
                subprocess.run(command, check=False, env=dict(engine.environment), capture_output=True)

    thread = threading.Thread(target=check, name="health checks")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def find_compose(cache: Path, folder: Path) -> Path:
    """Return the path of Docker Compose: this machine's plugin, or else Debian's, downloaded once."""
    cached = cache / PROGRAM
    for program in (*(place / PROGRAM for place in PLUGIN_FOLDERS), cached):
        if program.exists():
            return program
    logger.info("downloading Docker Compose from Debian")
    apt = folder / "apt"
    for name in ("lists", "cache"):
        (apt / name / "partial").mkdir(parents=True)
    (apt / "sources.list").write_text(DEBIAN)
    options = {
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "root",  # the folder is open to root only
    }
    apt_get = ["apt-get", "--quiet=2", *(f"--option={name}={value}" for name, value in options.items())]
    subprocess.run([*apt_get, "update"], check=True)
    subprocess.run([*apt_get, "download", PROGRAM], check=True, cwd=apt)
    (package,) = apt.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, apt / "unpacked"], check=True)
    shutil.move(apt / "unpacked" / str(PLUGIN_FOLDERS[0]).lstrip("/") / PROGRAM, cached)
    return cached
