"""Run an installation of one release, and write down all that it stores and sends.

Jobs of every task are queued; one is running and has a checkpoint, one is being uploaded; others have
succeeded, failed and were cancelled. Then all processes are killed, so that nothing changes any more.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.chaos.s3_proxy import FaultyS3
from tests.golden import dump
from tests.golden.recording_rank import LOG, MODULE
from tests.skew.client import Client, Job
from tests.skew.installation import BUCKET, Installation, open_installation
from tests.skew.orders import Body, every_task, long_running
from tests.skew.release import Release
from tests.waiting import wait_until

PATIENCE_S = 300.0
OWNER = "alice"
SMALL = {"height": 32, "width": 32, "num_frames": 5}
LONG_VIDEO: Body = {
    **{name: value for name, value in long_running().items() if name != "prompt"},
    **SMALL,
    "prompts": ["a cat", "a dog", "a cow", "a bee"],
    "num_segments": 4,
    "num_condition_frames": 1,
}
DEAD_HOOK = {"webhook_url": "http://127.0.0.1:9/hook"}  # nobody listens there


def record(release: Release, folder: Path, work: Path) -> None:
    """Write the golden records of a release to `folder`. Temporary files go to `work`."""
    shutil.copy(Path(__file__).with_name(f"{MODULE}.py"), release.folder)
    checkpoint = work / "checkpoint"
    command = [sys.executable, "-m", "model.tiny", str(checkpoint)]
    subprocess.run(command, cwd=release.folder, check=True)
    folder.mkdir(parents=True)
    with open_installation(work, checkpoint, RANK_MODULE=MODULE) as installation:
        api_key = installation.command(release, "service.keys", "create", OWNER)
        client = Client(api_key)
        url = installation.start_api(release)
        client.urls = (url,)
        for worker in ("a", "b"):
            installation.start_worker(worker, release)
        wait_until(lambda: client.is_ready(url), PATIENCE_S)
        session = _open_session(client)
        jobs = _make_jobs(installation, client)
        for worker in ("a", "b"):
            installation.processes[worker].kill()
        views = {"jobs": client.jobs(), **_views(client, jobs["succeeded"])}
        _write(folder / "redis.json", dump.dump(installation.redis))
        _write(folder / "views.json", views)
        made = {"version": release.name, "api_key": api_key, "session": session, "jobs": jobs}
        _write(folder / "made.json", {**made, "time_ms": _time_ms(installation)})
        installation.processes[url].kill()
        _copy_spool(installation, folder / "spool")
        installation.s3.health = "well"
        time.sleep(1.0)  # requests of the killed processes may still be on their way
        _copy_storage(installation.s3, jobs, folder / "storage")
        client.close()
    _copy_messages(release.folder / LOG, folder / LOG)


def _make_jobs(installation: Installation, client: Client) -> dict[str, str]:
    """Return the id of a job in each state, and of a queued one of each task."""
    jobs: dict[str, str] = {}
    jobs["succeeded"] = client.submit({**every_task()["text_to_video"], **DEAD_HOOK})["id"]
    _wait_for(client, jobs["succeeded"], "succeeded")
    for group in ("a-0", "b-0"):
        (installation.checkpoint / f"fault-{group}").write_text("memory")
    jobs["failed"] = client.submit(long_running())["id"]
    _wait_for(client, jobs["failed"], "failed")
    for group in ("a-0", "b-0"):
        (installation.checkpoint / f"fault-{group}").unlink(missing_ok=True)
    jobs["cancelled"] = client.submit(long_running())["id"]
    wait_until(lambda: client.job(jobs["cancelled"])["status"] == "running", PATIENCE_S)
    client.request("POST", f"/jobs/{jobs['cancelled']}/cancel")
    _wait_for(client, jobs["cancelled"], "cancelled")

    jobs["running"] = client.submit({**LONG_VIDEO, **DEAD_HOOK})["id"]
    wait_until(lambda: _segment_of_checkpoint(installation, jobs["running"]) >= 1, PATIENCE_S)
    jobs["uploading"] = client.submit({**long_running(seed=2), **SMALL})["id"]
    wait_until(lambda: client.job(jobs["uploading"])["status"] == "running", PATIENCE_S)
    jobs["next"] = client.submit(long_running(seed=3))["id"]  # starts when the other one is uploaded
    for name, body in every_task().items():
        headers = {"Idempotency-Key": f"golden-{name}"}
        response = client.request("POST", "/generate", json=body, headers=headers)
        assert response.status_code == 202, response.text
        jobs[f"queued {name}"] = response.json()["id"]
    installation.s3.health = "down"
    _wait_for(client, jobs["uploading"], "uploading")
    return jobs


def _wait_for(client: Client, job_id: str, status: str) -> Job:
    def job() -> Job | None:
        shown = client.job(job_id)
        return shown if shown["status"] == status else None

    found = wait_until(job, PATIENCE_S)
    assert found
    return found


def _segment_of_checkpoint(installation: Installation, job_id: str) -> int:
    stored: Any = installation.redis.hget(f"longcat:job:{job_id}", "checkpoint")
    return int(json.loads(stored)["segment"]) if stored else -1


def _open_session(client: Client) -> str:
    """Sign in to the console, and return the value of the cookie."""
    response = client.request("POST", "/session")
    assert response.status_code == 204, response.text
    (value,) = response.cookies.values()
    return value


def _views(client: Client, with_webhooks: str) -> dict[str, Any]:
    attempts = client.request("GET", f"/jobs/{with_webhooks}/webhooks")
    capability = client.request("GET", "/capability")
    assert attempts.status_code == capability.status_code == 200
    return {"webhooks": attempts.json(), "capability": capability.json()}


def _time_ms(installation: Installation) -> int:
    seconds, microseconds = installation.redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def _copy_spool(installation: Installation, folder: Path) -> None:
    """Copy what the spools say of their jobs, and the files that this names."""
    for worker in ("a", "b"):
        for document in installation.spool(worker).glob("*/*.json"):
            job = folder / document.parent.name
            job.mkdir(parents=True, exist_ok=True)
            text = document.read_text()
            for file in document.parent.iterdir():
                if file == document or f'"{file.name}"' in text:
                    shutil.copy(file, job)


def _copy_storage(s3: FaultyS3, jobs: dict[str, str], folder: Path) -> None:
    """Copy inputs and checkpoints of the jobs that have not ended."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3.url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    for name, job_id in jobs.items():
        if name in {"succeeded", "failed", "cancelled"}:
            continue
        for found in client.list_objects_v2(Bucket=BUCKET, Prefix=f"jobs/{job_id}/").get("Contents", []):
            try:
                content = client.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read()
            except client.exceptions.NoSuchKey:  # the worker was removing it when it was killed
                continue
            path = folder / found["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    client.close()


def _copy_messages(log: Path, target: Path) -> None:
    """Keep the first three messages of each type."""
    kept: dict[str, list[str]] = {}
    for line in log.read_text().splitlines():
        kept.setdefault(json.loads(line)["type"], []).append(line)
    target.write_text("".join(f"{line}\n" for lines in kept.values() for line in lines[:3]))


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
