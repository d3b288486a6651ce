from __future__ import annotations

import threading

import pytest

from jobs.errors import DiskFull, Unavailable
from jobs.maintenance import remove_files
from tests.waiting import wait_until
from tests.worker.supervisor.backends import LocalBackends, write_checkpoint
from worker.supervisor.checkpoints import CheckpointUploader, fetch_checkpoint, stored_checkpoint


def upload(backends: LocalBackends, job, checkpoint) -> None:
    backends.checkpoints.submit(job, checkpoint)
    backends.checkpoints.flush(job, 30)


def resumed_from(backends: LocalBackends, job):
    """Return the checkpoint from which the next claim resumes."""
    backends.job_store.holder.requeue(job.lease, crashed=False)
    return stored_checkpoint(backends.claim().checkpoint)


def test_checkpoint_is_uploaded_and_recorded(backends):
    job = backends.claimed_job()
    checkpoint = write_checkpoint(job.folder, 3, segment=2)
    upload(backends, job, checkpoint)
    assert resumed_from(backends, job) == checkpoint
    assert len(backends.stored(job)) == 3


def test_another_machine_can_fetch_all_files(backends, tmp_path):
    job = backends.claimed_job()
    checkpoint = write_checkpoint(job.folder, 3, segment=2)
    upload(backends, job, checkpoint)
    backends.job_store.holder.requeue(job.lease, crashed=False)
    elsewhere = LocalBackends(backends.redis, tmp_path / "elsewhere")
    there = elsewhere.claimed_job(elsewhere.claim())
    fetch_checkpoint(checkpoint, there, backends.storage)
    assert [(there.folder / name).read_text() for name in checkpoint.files] == list(checkpoint.files)


def test_existing_files_are_not_fetched_again(backends):
    job = backends.claimed_job()
    checkpoint = write_checkpoint(job.folder, 3, segment=1)
    upload(backends, job, checkpoint)
    (job.folder / checkpoint.state).write_text("ours")
    fetch_checkpoint(checkpoint, job, backends.storage)
    assert (job.folder / checkpoint.state).read_text() == "ours"


def test_later_checkpoint_replaces_the_earlier_one_everywhere(backends):
    job = backends.claimed_job()
    early, late = write_checkpoint(job.folder, 1, segment=1), write_checkpoint(job.folder, 2, segment=1)
    upload(backends, job, early)
    upload(backends, job, late)
    assert not (job.folder / early.state).exists()
    assert not any(early.state in key for key in backends.stored(job))
    assert len(backends.stored(job)) == 2
    assert resumed_from(backends, job) == late


def test_segment_files_are_uploaded_once(backends, monkeypatch):
    job = backends.claimed_job()
    uploaded: list[str] = []
    put = backends.storage.put

    def put_and_note(key, path, media_type):
        assert media_type == "application/octet-stream"
        uploaded.append(path.name)
        put(key, path, media_type)

    monkeypatch.setattr(backends.storage, "put", put_and_note)
    upload(backends, job, write_checkpoint(job.folder, 1, segment=2))
    upload(backends, job, write_checkpoint(job.folder, 2, segment=3))
    assert sorted(uploaded) == sorted(
        [
            "state-2-denoise-1.safetensors",
            "state-3-denoise-2.safetensors",
            *(f"piece-00{i}.mp4" for i in range(3)),
        ]
    )


def test_only_the_latest_checkpoint_waits_for_the_storage(backends):
    job = backends.claimed_job()
    backends.storage.is_available = False
    kept = [write_checkpoint(job.folder, step) for step in (1, 2, 3)]
    for checkpoint in kept:
        backends.checkpoints.submit(job, checkpoint)
    assert backends.spool.checkpoint(job.job_id) == kept[-1]
    backends.storage.is_available = True
    backends.checkpoints.flush(job, 30)
    wait_until(lambda: job.checkpoint == kept[-1])
    assert resumed_from(backends, job) == kept[-1]


def test_state_of_a_replaced_checkpoint_is_removed_from_the_disk(backends):
    uploader = CheckpointUploader(backends.job_store, backends.storage, backends.spool)  # does not run
    job = backends.claimed_job()
    replaced, latest = (write_checkpoint(job.folder, step) for step in (1, 2))
    for checkpoint in (replaced, latest, latest):
        uploader.submit(job, checkpoint)
    assert [(job.folder / each.state).exists() for each in (replaced, latest)] == [False, True]


def test_upload_is_repeated_after_the_storage_was_unavailable(backends, monkeypatch):
    job, attempts, real = backends.claimed_job(), [], backends.storage.put

    def unavailable_at_first(*file):
        attempts.append(file)
        if len(attempts) == 1:
            raise Unavailable("away")
        real(*file)

    monkeypatch.setattr(backends.storage, "put", unavailable_at_first)
    checkpoint = write_checkpoint(job.folder, 1)
    backends.checkpoints.submit(job, checkpoint)
    wait_until(lambda: job.checkpoint == checkpoint)
    assert resumed_from(backends, job) == checkpoint


@pytest.mark.parametrize("error", [Unavailable("away"), DiskFull("full")])
def test_state_whose_upload_failed_stays_until_a_later_one_is_saved(backends, monkeypatch, error):
    job, failed, real = backends.claimed_job(), threading.Event(), backends.storage.put

    def fail(*_):
        failed.set()
        raise error

    monkeypatch.setattr(backends.storage, "put", fail)
    early = write_checkpoint(job.folder, 1)
    backends.checkpoints.submit(job, early)
    assert failed.wait(30)
    assert (job.folder / early.state).exists()
    monkeypatch.setattr(backends.storage, "put", real)
    upload(backends, job, late := write_checkpoint(job.folder, 2))
    wait_until(lambda: job.checkpoint == late)
    assert [path.name for path in job.folder.glob("state-*")] == [late.state]


def test_state_whose_upload_fails_after_a_later_one_was_saved_is_removed(backends, monkeypatch):
    job, real = backends.claimed_job(), backends.storage.put
    is_uploading, is_saved = threading.Event(), threading.Event()

    def fail_late(*file):
        monkeypatch.setattr(backends.storage, "put", real)
        is_uploading.set()
        assert is_saved.wait(30)
        raise DiskFull("full")

    monkeypatch.setattr(backends.storage, "put", fail_late)
    backends.checkpoints.submit(job, write_checkpoint(job.folder, 1))
    assert is_uploading.wait(30)
    backends.checkpoints.submit(job, late := write_checkpoint(job.folder, 2))
    is_saved.set()
    backends.checkpoints.flush(job, 30)
    assert [path.name for path in job.folder.glob("state-*")] == [late.state]


def test_local_copy_does_not_wait_for_the_storage(backends):
    job = backends.claimed_job()
    backends.storage.is_available = False
    checkpoint = write_checkpoint(job.folder, 1)
    backends.checkpoints.submit(job, checkpoint)
    assert backends.spool.checkpoint(job.job_id) == checkpoint


def test_discarded_job_uploads_nothing_more(backends):
    job = backends.claimed_job()
    backends.storage.is_available = False
    backends.checkpoints.submit(job, write_checkpoint(job.folder, 1))
    backends.checkpoints.discard(job, 30)
    backends.storage.is_available = True
    other = backends.claimed_job()
    upload(backends, other, write_checkpoint(other.folder, 1))  # by now the first would have been stored
    assert backends.stored(job) == []


def test_job_whose_lease_is_lost_records_no_checkpoint(backends):
    job = backends.claimed_job()
    early = write_checkpoint(job.folder, 1)
    upload(backends, job, early)
    taken = backends.claim_elsewhere(job)
    assert stored_checkpoint(taken.checkpoint) == early
    upload(backends, job, write_checkpoint(job.folder, 2))
    backends.job_store.holder.requeue(taken, crashed=False)
    assert stored_checkpoint(backends.claim().checkpoint) == early


def test_missing_file_does_not_end_the_thread(backends):
    job = backends.claimed_job()
    checkpoint = write_checkpoint(job.folder, 1)
    (job.folder / checkpoint.state).unlink()
    upload(backends, job, checkpoint)
    good = write_checkpoint(job.folder, 2)
    upload(backends, job, good)
    assert job.checkpoint == good


def test_nothing_is_uploaded_after_the_job_ended(backends):
    job = backends.claimed_job()
    backends.job_store.holder.confirm_cancel(job.lease)
    upload(backends, job, write_checkpoint(job.folder, 1, segment=2))
    assert backends.stored(job) == []


def test_file_that_arrives_after_the_job_ended_is_removed(backends, monkeypatch):
    job, real = backends.claimed_job(), backends.storage.put

    def put_late(*file) -> None:
        backends.job_store.holder.confirm_cancel(job.lease)
        backends.confirm_file_removals()
        real(*file)

    monkeypatch.setattr(backends.storage, "put", put_late)
    upload(backends, job, write_checkpoint(job.folder, 1))
    assert backends.stored(job) != []
    assert remove_files(backends.job_store, backends.storage) > 0
    assert backends.stored(job) == []


def test_late_file_is_reported_after_redis_was_unavailable(backends, monkeypatch):
    job = backends.claimed_job()
    report = backends.job_store.maintenance.report_late_file
    reported: list[str] = []

    def fail_once(job_id) -> None:
        reported.append(job_id)
        if len(reported) == 1:
            raise Unavailable("Redis is unavailable")
        report(job_id)

    monkeypatch.setattr(backends.job_store.maintenance, "report_late_file", fail_once)
    backends.job_store.holder.confirm_cancel(job.lease)
    backends.confirm_file_removals()
    upload(backends, job, write_checkpoint(job.folder, 1))
    assert reported == [job.job_id] * 2
    removal = backends.job_store.maintenance.lease_file_removal()
    assert removal is not None
    assert removal.job_id == job.job_id


def test_files_of_a_running_job_are_kept_after_a_lost_lease(backends):
    job = backends.claimed_job()
    backends.claim_elsewhere(job)
    upload(backends, job, write_checkpoint(job.folder, 1))
    assert remove_files(backends.job_store, backends.storage) == 0


@pytest.mark.parametrize("saved", [None, {}, {"version": 7}])
def test_checkpoint_of_another_version_is_ignored(saved):
    assert stored_checkpoint(saved) is None
