from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from jobs.errors import DiskFull, JobNotFound, OutOfMemory, Unavailable
from jobs.maintenance import remove_files
from jobs.record import Job, JobError, Progress
from jobs.storage.keys import timeline_key
from jobs.store.holder import Lease
from tests.disks import BREAKS, mounted_disk
from tests.tickets import num_tickets
from tests.waiting import wait_until
from tests.worker.supervisor.backends import LocalBackends, write_checkpoint, write_video
from worker.supervisor import finalize
from worker.supervisor.finalize import Finalizer
from worker.supervisor.job import ClaimedJob, Completed, Failed, Outcome, Requeued, Stopped

DISK_FULL = Failed(JobError(code="disk_full", message="full", retryable=True))
ERROR = JobError(code="out_of_memory", message="too large", retryable=False)


class Scene:
    """A claimed job and its finalizer."""

    def __init__(
        self, backends: LocalBackends, job: ClaimedJob | None = None, upload_limit_s: float = 60.0
    ) -> None:
        self.backends = backends
        self.finalized = threading.Event()
        self.finalizer = Finalizer(
            job_store=backends.job_store,
            tickets=backends.tickets,
            storage=backends.storage,
            spool=backends.spool,
            checkpoints=backends.checkpoints,
            upload_limit_s=upload_limit_s,
            on_finalized=lambda _: self.finalized.set(),
        )
        self.job = job or backends.claimed_job()
        self.video = write_video(self.job.folder)

    def start(self, outcome: Outcome) -> None:
        self.finalizer.start(self.job, outcome)

    def wait(self) -> Job:
        """Wait until the job is finalized, and return its record."""
        assert self.finalized.wait(30)
        assert self.finalizer.join(30)
        return self.record

    def finalize(self, outcome: Outcome) -> Job:
        self.start(outcome)
        return self.wait()

    @property
    def record(self) -> Job:
        return self.backends.job_store.client.get(self.job.job_id)

    @property
    def is_spooled(self) -> bool:
        return self.job.job_id in self.backends.spool.job_ids


def error_of(record: Job) -> tuple[str, bool]:
    """Return the code of the error of a failed job, and whether it is retryable."""
    assert record.error is not None
    return record.error.code, record.error.retryable


@pytest.fixture
def scene(backends: LocalBackends) -> Iterator[Scene]:
    scene = Scene(backends)
    yield scene
    scene.finalizer.stop()
    assert scene.finalizer.join(30)


def test_completed_job_succeeds_with_its_video_stored(scene, backends):
    scene.job.timings_s = {"denoise": 2.0}
    record = scene.finalize(Completed(scene.video))
    assert record.status == "succeeded"
    assert b"".join(backends.storage.read(record.result.video_key)) == b"video"
    assert b"".join(backends.storage.read(record.result.thumbnail_key)) == b"thumbnail"
    assert (record.result.sha256, record.result.duration_s, record.result.seed) == ("5", 9 / 15, 1)
    assert record.timings_s.keys() == {"denoise", "upload"}


def test_success_leaves_only_the_result_files(scene, backends):
    backends.checkpoints.submit(scene.job, write_checkpoint(scene.job.folder, 1, segment=1))
    backends.checkpoints.flush(scene.job, 30)
    scene.finalize(Completed(scene.video))
    assert backends.stored(scene.job) == ["1/thumbnail.jpg", "1/timeline.json", "1/video.mp4"]
    assert not scene.is_spooled


def test_timeline_is_stored_beside_the_video(scene, backends):
    result = scene.finalize(Completed(scene.video)).result
    events = json.loads(b"".join(backends.storage.read(timeline_key(result.video_key))))["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert sorted(names) == ["load", "queued", "thumbnail", "upload", "video"]


def test_job_succeeds_if_its_timeline_cannot_be_stored(scene, backends, monkeypatch, caplog):
    put = backends.storage.put

    def put_others(key, path, media_type):
        if key.endswith("timeline.json"):
            raise Unavailable("the storage is away")
        put(key, path, media_type)

    monkeypatch.setattr(backends.storage, "put", put_others)
    assert scene.finalize(Completed(scene.video)).status == "succeeded"
    assert backends.stored(scene.job) == ["1/thumbnail.jpg", "1/video.mp4"]
    assert "has no timeline" in caplog.text


def test_job_is_uploading_while_the_storage_is_unavailable(scene, backends):
    backends.storage.is_available = False
    scene.start(Completed(scene.video))
    wait_until(lambda: scene.record.status == "uploading")
    backends.storage.is_available = True
    assert scene.wait().status == "succeeded"


def test_upload_is_the_reported_phase_before_the_first_file_is_stored(scene, backends, monkeypatch):
    put, reported = backends.storage.put, []

    def note_and_put(*file) -> None:
        reported.append((scene.record.status, scene.record.progress))
        put(*file)

    monkeypatch.setattr(backends.storage, "put", note_and_put)
    scene.finalize(Completed(scene.video))
    assert reported[0] == ("uploading", Progress(phase="upload"))


def test_upload_over_its_limit_fails_the_job(backends):
    scene = Scene(backends, upload_limit_s=0.0)
    backends.storage.is_available = False
    record = scene.finalize(Completed(scene.video))
    assert error_of(record) == ("upload_failed", True)


def test_full_storage_fails_the_job_with_disk_full(scene, backends, monkeypatch):
    def full(*_: object) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr(backends.storage, "put", full)
    assert scene.finalize(Completed(scene.video)).error.code == "disk_full"


def test_missing_video_file_fails_the_job(scene):
    (scene.job.folder / "video.mp4").unlink()
    assert scene.finalize(Completed(scene.video)).error.code == "internal"


def test_video_is_uploaded_even_if_its_note_cannot_be_written(scene, caplog):
    (scene.job.folder / "waiting.part").mkdir()
    assert scene.finalize(Completed(scene.video)).status == "succeeded"
    assert "would be made again if this supervisor died" in caplog.text


def test_failed_job_leaves_no_files(scene, backends):
    backends.checkpoints.submit(scene.job, write_checkpoint(scene.job.folder, 1))
    backends.checkpoints.flush(scene.job, 30)
    record = scene.finalize(Failed(ERROR))
    assert record.error == ERROR
    assert backends.stored(scene.job) == []
    assert not scene.is_spooled


def test_job_is_requeued_with_its_latest_checkpoint_if_the_spool_cannot_be_written(
    scene, backends, monkeypatch
):
    def refuse() -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(backends.spool, "check_writable", refuse)
    backends.checkpoints.submit(scene.job, write_checkpoint(scene.job.folder, 3))
    record = scene.finalize(DISK_FULL)
    assert (record.status, record.attempt, num_tickets(backends.redis)) == ("queued", 0, 1)
    assert backends.claim().checkpoint["step"] == 3


@pytest.mark.parametrize("break_disk", BREAKS.values(), ids=BREAKS)
def test_job_is_requeued_if_a_real_disk_cannot_be_written(redis, tmp_path, break_disk):
    with mounted_disk(tmp_path / "spool") as disk:
        scene = Scene(LocalBackends(redis, tmp_path))
        break_disk(disk)
        record = scene.finalize(DISK_FULL)
        assert (record.status, record.attempt) == ("queued", 0)


def test_job_that_filled_a_real_disk_fails(redis, tmp_path):
    with mounted_disk(tmp_path / "spool") as disk:
        scene = Scene(LocalBackends(redis, tmp_path))
        with suppress(OSError), (scene.job.folder / "segment-000.mp4").open("wb") as file:
            file.write(bytes(disk.size_bytes))
        with pytest.raises(OSError, match="No space left"):
            scene.backends.spool.check_writable()
        assert error_of(scene.finalize(DISK_FULL)) == ("disk_full", True)


def test_cancelled_job_leaves_no_files(scene, backends):
    backends.job_store.client.cancel(scene.job.job_id)
    assert scene.finalize(Stopped("cancel")).status == "cancelled"
    assert not scene.is_spooled


def test_deadline_fails_the_job_with_deadline_exceeded(scene):
    assert scene.finalize(Stopped("deadline")).error.code == "deadline_exceeded"


@pytest.mark.parametrize("call", ["begin_upload", "succeed"])
def test_upload_and_its_commit_survive_an_unavailable_redis(scene, backends, monkeypatch, call):
    real, calls = getattr(backends.job_store.holder, call), []

    def unavailable_at_first(*given):
        calls.append(given)
        if len(calls) == 1:
            raise Unavailable("away")
        return real(*given)

    monkeypatch.setattr(backends.job_store.holder, call, unavailable_at_first)
    assert scene.finalize(Completed(scene.video)).status == "succeeded"
    assert len(calls) == 2


def test_video_of_a_cancelled_job_is_not_uploaded(scene, backends, monkeypatch):
    uploaded: list[tuple] = []
    monkeypatch.setattr(backends.storage, "put", lambda *file: uploaded.append(file))
    backends.job_store.client.cancel(scene.job.job_id)
    scene.job.stop_request = "cancel"
    assert scene.finalize(Completed(scene.video)).status == "cancelled"
    assert uploaded == []


def test_job_cancelled_before_its_upload_never_succeeds(scene, backends):
    backends.job_store.client.cancel(scene.job.job_id)
    scene.job.stop_request = "cancel"
    assert scene.finalize(Completed(scene.video)).status == "cancelled"
    assert backends.stored(scene.job) == []


def test_job_cancelled_during_its_upload_never_succeeds(scene, backends):
    backends.storage.is_available = False
    scene.start(Completed(scene.video))
    wait_until(lambda: scene.record.status == "uploading")
    backends.job_store.client.cancel(scene.job.job_id)
    scene.job.stop_request = "cancel"
    assert scene.wait().status == "cancelled"


def test_cancel_that_the_worker_has_not_noticed_still_counts(scene, backends):
    backends.job_store.client.cancel(scene.job.job_id)
    assert scene.finalize(Completed(scene.video)).status == "cancelled"
    assert backends.stored(scene.job) == []


def test_deadline_does_not_stop_the_upload_of_a_finished_video(scene):
    scene.job.stop_request = "deadline"
    assert scene.finalize(Completed(scene.video)).status == "succeeded"


def test_job_whose_lease_is_lost_writes_no_result(scene, backends):
    taken = backends.claim_elsewhere(scene.job)
    record = scene.finalize(Completed(scene.video))
    assert (record.status, record.attempt, record.result) == ("running", 2, None)
    assert backends.stored(scene.job) == []
    assert backends.job_store.holder.renew_lease(taken) is None


def test_files_uploaded_while_the_lease_was_lost_are_removed_after_the_job_ended(
    scene, backends, monkeypatch
):
    real = backends.storage.put
    others: list[Lease] = []

    def put_late(*file) -> None:
        if not others:
            others.append(backends.claim_elsewhere(scene.job))
        real(*file)

    monkeypatch.setattr(backends.storage, "put", put_late)
    scene.finalize(Completed(scene.video))
    assert "1/video.mp4" in backends.stored(scene.job)
    backends.job_store.holder.fail(others[0], OutOfMemory("too large"), {})
    remove_files(backends.job_store, backends.storage)
    assert backends.stored(scene.job) == []


def test_result_is_kept_if_the_reply_to_its_commit_is_lost(scene, backends, monkeypatch):
    """When Redis is back, the lease of the job looks lost, because the job has ended."""
    succeed = backends.job_store.holder.succeed

    def succeed_unheard(*given):
        succeed(*given)
        scene.job.stop_request = backends.job_store.holder.renew_lease(scene.job.lease)
        raise Unavailable("away")

    monkeypatch.setattr(backends.job_store.holder, "succeed", succeed_unheard)
    assert scene.finalize(Completed(scene.video)).status == "succeeded"
    assert remove_files(backends.job_store, backends.storage) > 0
    assert "1/video.mp4" in backends.stored(scene.job)


def test_files_of_the_next_attempt_survive_a_lost_lease(scene, backends):
    taken = backends.claimed_job(backends.claim_elsewhere(scene.job))
    second = Scene(backends, taken)
    assert second.finalize(Completed(second.video)).status == "succeeded"
    scene.finalize(Completed(write_video(backends.spool.make_job_folder(taken.job_id))))
    assert backends.stored(taken) == ["2/thumbnail.jpg", "2/timeline.json", "2/video.mp4"]
    assert second.record.status == "succeeded"


def test_lost_lease_ends_an_upload_that_is_retried(scene, backends):
    backends.storage.is_available = False
    scene.start(Completed(scene.video))
    wait_until(lambda: scene.record.status == "uploading")
    taken = backends.claim_elsewhere(scene.job)
    scene.job.stop_request = "lease_lost"
    assert scene.finalized.wait(30)
    assert backends.job_store.holder.renew_lease(taken) is None


def test_deleted_job_leaves_no_files(scene, backends):
    backends.storage.put(f"jobs/{scene.job.job_id}/state/x/x", scene.job.folder / "video.mp4", "")
    backends.job_store.client.delete(scene.job.job_id)
    backends.job_store.holder.confirm_cancel(scene.job.lease)
    scene.start(Stopped("lease_lost"))
    assert scene.finalized.wait(30)
    remove_files(backends.job_store, backends.storage)
    assert backends.stored(scene.job) == []
    with pytest.raises(JobNotFound):
        scene.record  # noqa: B018


def test_requeue_without_crash_does_not_count_an_attempt_and_delivers_a_ticket(scene, backends):
    record = scene.finalize(Requeued(crashed=False))
    assert (record.status, record.attempt, num_tickets(backends.redis)) == ("queued", 0, 1)


def test_requeue_after_a_crash_counts_an_attempt(scene):
    record = scene.finalize(Requeued(crashed=True))
    assert (record.status, record.attempt) == ("queued", 1)


def test_crash_of_a_job_with_a_requested_cancel_cancels_it(scene, backends):
    backends.job_store.client.cancel(scene.job.job_id)
    assert scene.finalize(Requeued(crashed=True)).status == "cancelled"
    assert not scene.is_spooled


def test_last_allowed_crash_fails_the_job_and_leaves_no_files(scene, backends):
    scene.finalize(Requeued(crashed=True))
    last = Scene(backends, backends.claimed_job(backends.claim()))
    backends.checkpoints.submit(last.job, write_checkpoint(last.job.folder, 1))
    record = last.finalize(Requeued(crashed=True, reason="rank 1: ValueError: a bug"))
    assert (error_of(record), record.attempt) == (("worker_crashed", True), 2)
    assert record.error
    assert record.error.message.endswith("the last time: rank 1: ValueError: a bug")
    assert backends.stored(last.job) == []
    assert not last.is_spooled


def test_stopped_job_is_requeued_with_its_latest_checkpoint(scene, backends):
    save = write_checkpoint(scene.job.folder, 3)
    backends.checkpoints.submit(scene.job, save)
    scene.finalize(Stopped("drain"))
    assert backends.claim().checkpoint == save.model_dump(mode="json")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(Failed(ERROR), "failed"), (Requeued(crashed=False), "queued"), (Stopped("lease_lost"), "running")],
)
def test_checkpoint_whose_upload_hangs_does_not_delay_the_outcome(
    scene, backends, monkeypatch, outcome, status
):
    monkeypatch.setattr(finalize, "FLUSH_LIMIT_S", 0.01)
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        hangs.set()
        goes_on.wait(60)

    monkeypatch.setattr(backends.storage, "put", hang)
    backends.checkpoints.submit(scene.job, write_checkpoint(scene.job.folder, 1))
    assert hangs.wait(30)
    try:
        assert scene.finalize(outcome).status == status
    finally:
        goes_on.set()


def test_stopped_finalizer_does_not_wait_until_a_late_file_is_reported(scene, backends, monkeypatch):
    def unavailable(_: str) -> None:
        raise Unavailable("Redis is away")

    monkeypatch.setattr(backends.job_store.maintenance, "report_late_file", unavailable)
    scene.finalizer.stop()
    scene.start(Stopped("lease_lost"))
    assert scene.finalizer.join(30)


def test_interrupted_uploads_still_get_one_attempt(scene):
    scene.finalizer.interrupt_uploads()
    assert scene.finalize(Completed(scene.video)).status == "succeeded"


def test_interrupted_upload_requeues_the_job_and_keeps_its_video_in_the_spool(scene, backends):
    backends.storage.is_available = False
    scene.finalizer.interrupt_uploads()
    record = scene.finalize(Completed(scene.video))
    assert (record.status, record.attempt) == ("queued", 0)
    assert backends.spool.pending_upload(scene.job.job_id).video == scene.video
    backends.storage.is_available = True


def test_cancel_that_arrives_while_an_interrupted_upload_is_requeued_still_counts(
    scene, backends, monkeypatch
):
    backends.storage.is_available = False
    scene.finalizer.interrupt_uploads()
    requeue = backends.job_store.holder.requeue

    def cancel_and_requeue(lease, *, crashed, reason):
        backends.job_store.client.cancel(scene.job.job_id)
        return requeue(lease, crashed=crashed, reason=reason)

    monkeypatch.setattr(backends.job_store.holder, "requeue", cancel_and_requeue)
    assert scene.finalize(Completed(scene.video)).status == "cancelled"
    backends.storage.is_available = True


def test_job_ends_even_if_its_files_cannot_be_removed(scene, backends):
    backends.storage.put(f"jobs/{scene.job.job_id}/state/x/x", scene.job.folder / "video.mp4", "")
    backends.storage.is_available = False
    assert scene.finalize(Failed(ERROR)).status == "failed"
    backends.storage.is_available = True
    assert remove_files(backends.job_store, backends.storage) > 0
    assert backends.stored(scene.job) == []


def test_unexpected_error_leaves_the_job_to_its_lease(scene, backends, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(backends.storage, "put", broken)
    assert scene.finalize(Completed(scene.video)).status == "uploading"  # its lease will run out
