"""Read what each release stored and sent, with the code of today; in `make skew` also what HEAD does."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from jobs.capability import Capability
from jobs.fleet import read_fleet
from jobs.queue import TicketQueue, consume
from jobs.record import Job, Progress
from jobs.registration import live_groups
from jobs.storage.folder import FolderStorage
from jobs.store.holder import Lease
from jobs.store.idempotency import IdempotencyKeys
from jobs.store.listing import JobFilter
from jobs.store.metrics import counters
from jobs.store.outbox import Attempt, Outbox
from model.pipeline.state import State
from service.jobs.views import JobView
from service.keys.api_keys import ApiKeys
from service.keys.sessions import Sessions
from service.webhooks.signing import Signer
from tests.golden import dump
from tests.golden.record import record
from tests.jobs.examples import LEASE_S, ExampleStore, a_result
from tests.skew.release import check_out
from worker.messages import parse
from worker.supervisor.checkpoints import fetch_checkpoint, stored_checkpoint
from worker.supervisor.job import ClaimedJob
from worker.supervisor.spool import Spool

RELEASES = sorted(path.parent for path in Path(__file__).parent.glob("*/redis.json"))


@dataclass(frozen=True)
class Golden:
    """The records of a release, loaded into Redis; `store` has the clock of their recording."""

    folder: Path
    redis: Redis
    store: ExampleStore
    made: dict[str, Any]
    views: dict[str, Any]

    def job_id(self, name: str) -> str:
        return str(self.made["jobs"][name])

    def job(self, name: str) -> Job:
        return self.store.client.get(self.job_id(name))

    def lease(self, name: str) -> Lease:
        """Return the lease under which the release's worker held a job when it was killed."""
        fence: Any = self.redis.hget(f"longcat:job:{self.job_id(name)}", "fence")
        return Lease(self.job(name), int(fence), LEASE_S)

    def has_stored(self, job_id: str, document: dict[str, Any]) -> bool:
        """Return whether the storage has all files of a job's checkpoint."""
        checkpoint, folder = stored_checkpoint(document), self.folder / "storage" / "jobs" / job_id
        return checkpoint is not None and all(any(folder.rglob(name)) for name in checkpoint.files)

    @property
    def queued(self) -> list[str]:
        """The ids of the queued jobs."""
        return [job_id for name, job_id in self.made["jobs"].items() if name.startswith("queued ")]


@pytest.fixture(scope="session")
def records_of_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record HEAD: the tests must read the next release, too."""
    folder = tmp_path_factory.mktemp("head")
    record(check_out("HEAD", "HEAD", folder / "release"), folder / "records", folder)
    return folder / "records"


@pytest.fixture(
    params=[
        *(pytest.param(folder, id=folder.name) for folder in RELEASES),
        pytest.param(None, id="HEAD", marks=pytest.mark.skew),
    ]
)
def golden(request: pytest.FixtureRequest, redis: Redis) -> Golden:
    folder: Path = request.param or request.getfixturevalue("records_of_head")
    dump.load(redis, json.loads((folder / "redis.json").read_text()))
    made, views = (json.loads((folder / f"{name}.json").read_text()) for name in ("made", "views"))
    store = ExampleStore(redis)
    store.clock.now_ms = made["time_ms"]
    return Golden(folder, redis, store, made, views)


@pytest.fixture(autouse=True)
def _nothing_is_unreadable(golden: Golden):
    """Check after each test that nothing was passed over or has a default in place of its value."""
    yield
    assert not [label for name, label in counters(golden.redis) if name == "unreadable_records"]


def contains(new: Any, old: Any) -> bool:
    """Check that every value of a JSON document is still there; new fields may have come."""
    if isinstance(old, Mapping):
        return isinstance(new, Mapping) and all(
            name in new and contains(new[name], value) for name, value in old.items()
        )
    if isinstance(old, list):
        return len(new) == len(old) and all(map(contains, new, old))
    return bool(new == old)


def test_every_release_has_golden_records():
    assert RELEASES


def test_clients_see_each_job_as_before(golden: Golden):
    for shown in golden.views["jobs"]:
        job = golden.store.client.get(shown["id"])
        is_queued = job.status == "queued"
        view = JobView.of(job, golden.store.position(job.id) if is_queued else None).model_dump(mode="json")
        shown.pop("predicted_finish_at", None)  # an estimate
        if is_queued:  # the service shows an estimate as its progress
            view["progress"] = shown["progress"]
        assert contains(view, shown), (view, shown)


def test_lists_contain_the_same_jobs(golden: Golden):
    client = golden.store.client.for_owner("alice")
    assert [job.id for job in client.list_jobs(limit=50)] == [job["id"] for job in golden.views["jobs"]]
    for status, count in client.counts().items():
        wanted = [job["id"] for job in golden.views["jobs"] if job["status"] == status]
        assert [job.id for job in client.page(JobFilter((status,)), 20).jobs] == wanted
        assert count == len(wanted)


def test_queued_jobs_are_claimed_in_order_and_end(golden: Golden):
    store = golden.store
    for number, job_id in enumerate(sorted(golden.queued, key=store.position)):
        lease = store.claim()
        assert (lease.job.id, lease.fence, lease.checkpoint) == (job_id, 1, None)
        assert store.holder.renew_lease(lease, Progress(phase="denoise")) is None
        if number % 2:
            assert store.holder.succeed(lease, a_result(lease), {"denoise": 1.0}) == "succeeded"
        else:
            assert store.holder.requeue(lease, crashed=False) == "queued"
            assert store.claim().job.id == job_id
    assert store.holder.claim("a", LEASE_S) is None


def test_running_job_resumes_from_its_checkpoint(golden: Golden, tmp_path: Path):
    held = golden.lease("running")
    record: Any = golden.redis.hget(f"longcat:job:{held.job.id}", "checkpoint")
    assert stored_checkpoint(json.loads(record))
    # The worker was killed before it named its latest checkpoint in the record, or before it stored that.
    latest_checkpoint = json.loads((golden.folder / "spool" / held.job.id / "saved.json").read_text())
    if golden.has_stored(held.job.id, latest_checkpoint):
        golden.store.holder.save_checkpoint(held, latest_checkpoint)
    assert golden.store.holder.requeue(held, crashed=False) == "queued"
    lease = golden.store.claim()
    assert lease.job.id == held.job.id
    checkpoint = stored_checkpoint(lease.checkpoint)
    assert checkpoint
    job = ClaimedJob(lease, tmp_path / "job")
    job.folder.mkdir()
    storage = FolderStorage(shutil.copytree(golden.folder / "storage", tmp_path / "storage"))
    fetch_checkpoint(checkpoint, job, storage)
    state = State.load(job.folder / checkpoint.state)
    saved = (checkpoint.segment, checkpoint.stage, checkpoint.step)
    assert (state.segment, state.stage, state.step) == saved


@pytest.mark.parametrize("name", ["running", "uploading"])
def test_local_checkpoint_is_complete(golden: Golden, tmp_path: Path, name: str):
    spool = Spool(shutil.copytree(golden.folder / "spool", tmp_path / "spool"))
    checkpoint = spool.checkpoint(golden.job_id(name))
    assert checkpoint
    state = State.load(spool.job_folder(golden.job_id(name)) / checkpoint.state)
    saved = (checkpoint.segment, checkpoint.stage, checkpoint.step)
    assert (state.segment, state.stage, state.step) == saved


def test_finished_video_in_the_spool_is_uploaded(golden: Golden, tmp_path: Path):
    spool = Spool(shutil.copytree(golden.folder / "spool", tmp_path / "spool"))
    lease = golden.lease("uploading")
    pending = spool.pending_upload(lease.job.id)
    assert pending
    assert pending.fence == lease.fence
    assert (spool.job_folder(lease.job.id) / pending.video.video).stat().st_size == pending.video.size_bytes
    assert golden.store.holder.renew_lease(lease) is None
    assert golden.store.holder.succeed(lease, a_result(lease), pending.timings_s) == "succeeded"


def test_leases_run_out(golden: Golden):
    held = {golden.job_id(name) for name in ("running", "uploading", "next")}
    for _ in range(8):
        golden.store.clock.advance(15)
        golden.store.maintenance.sweep()
    assert {golden.store.client.get(job_id).status for job_id in held} == {"queued"}


def test_jobs_are_cancelled_and_deleted(golden: Golden):
    client = golden.store.client
    assert client.cancel(golden.queued[0]).status == "cancelled"
    assert client.cancel(golden.job_id("running")).cancel_requested
    assert golden.store.holder.renew_lease(golden.lease("running")) == "cancel"
    for name in ("succeeded", "failed", "cancelled"):
        assert client.delete(golden.job_id(name))
    assert len(client.list_jobs(limit=50)) == len(golden.views["jobs"]) - 3


def test_ended_jobs_expire(golden: Golden):
    golden.store.clock.advance(8 * 86400)
    expired = golden.store.maintenance.sweep().expired
    assert set(expired) == {golden.job_id(name) for name in ("succeeded", "failed", "cancelled")}


def test_events_are_streamed(golden: Golden):
    events = golden.store.client.events(golden.job_id("succeeded"))
    statuses = [event.status for event in events]
    assert (statuses[0], statuses[-1]) == ("queued", "succeeded")


def test_idempotency_key_still_belongs_to_its_job(golden: Golden):
    keys = IdempotencyKeys(golden.redis, golden.store.clock)
    name: Any = golden.redis.hget(f"longcat:job:{golden.job_id('queued text_to_video')}", "idempotency_key")
    fingerprint: Any = golden.redis.hget(name, "fingerprint")
    reservation = keys.reserve("alice", "golden-text_to_video", fingerprint.decode())
    assert reservation.job
    assert reservation.job.id == golden.job_id("queued text_to_video")


def test_webhooks_are_delivered(golden: Golden):
    outbox = Outbox(golden.redis, golden.store.clock)
    golden.store.clock.advance(3600)
    delivered = []
    while delivery := outbox.take(60.0):
        assert delivery.attempt > 1
        outbox.settle(
            delivery,
            Attempt(event=delivery.event, attempt=delivery.attempt, outcome="delivered", status_code=200),
            None,
        )
        delivered.append((delivery.job.id, delivery.event, delivery.job.status))
    succeeded, running = golden.job_id("succeeded"), golden.job_id("running")
    assert sorted(delivered) == sorted(
        [
            (running, "started", "running"),
            (succeeded, "started", "running"),
            (succeeded, "succeeded", "succeeded"),
        ]
    )
    log = outbox.log(succeeded)
    assert [attempt.outcome for attempt in log[-2:]] == ["delivered", "delivered"]
    assert len(log) > 2


def test_groups_and_capability_are_read(golden: Golden):
    assert {group.group: group.state for group in live_groups(golden.redis)} == {"a-0": "busy", "b-0": "busy"}
    capability = read_fleet(golden.redis).first().capability.model_dump(mode="json")
    shown = golden.views["capability"]  # the service adds what is not published
    assert contains(capability, {name: shown[name] for name in Capability.model_fields if name in shown})


def test_estimates_use_recent_runs(golden: Golden):
    estimate = golden.store.client.estimate(golden.queued[0])
    assert estimate
    assert estimate.eta_s


def test_api_key_and_session_are_valid(golden: Golden, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.keys.sessions.time.time", lambda: golden.made["time_ms"] / 1000)
    keys = ApiKeys(golden.redis)
    caller = keys.authenticate(golden.made["api_key"])
    assert caller
    assert caller.owner == "alice"
    assert Sessions(golden.redis, keys, 3600.0).authenticate(golden.made["session"]) == caller
    assert Signer(golden.redis, None).secret_of("alice").startswith("whsec_")


def test_tickets_are_consumed(golden: Golden):
    jobs = [golden.store.client.get(job_id) for job_id in golden.made["jobs"].values()]
    requirements = {job.requirement or "" for job in jobs}
    tickets, taken = TicketQueue(golden.redis), []
    num_tickets = sum(tickets.count(requirement) for requirement in requirements)
    stopping = threading.Event()

    def on_ticket() -> None:
        taken.append(1)
        if len(taken) == num_tickets:
            stopping.set()

    consume(golden.redis, on_ticket, stopping.is_set, lambda: requirements)
    assert num_tickets == len(golden.queued) + 1  # and one that nobody needed


def test_messages_are_read(golden: Golden):
    lines = (golden.folder / "messages.jsonl").read_bytes().splitlines()
    for line in lines:
        assert contains(json.loads(parse(line).model_dump_json()), json.loads(line))
    assert len({json.loads(line)["type"] for line in lines}) > 8


def test_queued_jobs_need_tickets(golden: Golden):
    assert sum(golden.store.maintenance.num_tickets_needed().values()) == len(golden.queued)
