"""Files of finished and deleted jobs are removed, also those that arrive late in the storage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event

import pytest
from redis import Redis

from jobs.errors import JobNotFound, OutOfMemory, Unavailable
from jobs.maintenance import orphans, remove_due_files, remove_files, remove_files_of
from jobs.storage.base import Storage, open_storage
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import input_key, state_key, thumbnail_key, video_key
from jobs.store.maintenance import REMOVAL_LEASE_S
from tests.chaos import s3_proxy
from tests.chaos.s3_proxy import faulty_s3
from tests.jobs.examples import (
    LATE_UPLOAD_S,
    AwayStorage,
    CountingStorage,
    ExampleStore,
    SlowStorage,
    a_result,
    keys_of,
)
from tests.jobs.storage.test_storage import s3_settings
from tests.servers import S3Bucket
from tests.waiting import wait_until


def put(storage: Storage, key: str, tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    storage.put(key, path, "video/mp4")
    return key


class TestRemovedJobs:
    def test_deleted_job_leaves_no_file(self, store: ExampleStore, storage: FolderStorage, tmp_path: Path):
        job = store.submit()
        other = put(storage, video_key("other", 1), tmp_path)
        put(storage, input_key(job.id, "image.png"), tmp_path)
        put(storage, video_key(job.id, 1), tmp_path)
        store.client.delete(job.id)
        assert remove_files(store, storage) == 1
        assert list(storage.keys("jobs/")) == [other]
        assert store.due_file_removals == set()

    def test_expired_job_leaves_no_file(self, redis: Redis, storage: FolderStorage, tmp_path: Path):
        store = ExampleStore(redis, retention_s=1000)
        job = store.submit()
        put(storage, input_key(job.id, "image.png"), tmp_path)
        store.client.cancel(job.id)
        store.clock.advance(1000)
        assert remove_files(store, storage) == 0
        store.maintenance.sweep()
        assert remove_files(store, storage) == 1
        assert list(storage.keys("jobs/")) == []

    def test_files_that_could_not_be_removed_are_removed_later(
        self, store: ExampleStore, storage: FolderStorage, tmp_path: Path
    ):
        job = store.submit()
        put(storage, video_key(job.id, 1), tmp_path)
        store.client.delete(job.id)
        with pytest.raises(Unavailable):
            remove_files(store, AwayStorage(storage))
        assert remove_files(store, storage) == 1
        assert list(storage.keys("jobs/")) == []

    def test_files_that_arrive_after_removal_are_removed(
        self, store: ExampleStore, storage: FolderStorage, tmp_path: Path
    ):
        job, slow = store.submit(), SlowStorage(storage)
        with pytest.raises(Unavailable):
            put(slow, state_key(job.id, "s/s"), tmp_path)
        store.client.delete(job.id)
        assert remove_files(store, storage) == 1
        store.clock.advance(LATE_UPLOAD_S - 1)
        assert remove_files(store, storage) == 0
        slow.finish()
        store.clock.advance(1)
        assert remove_files(store, storage) == 1
        assert list(storage.keys("jobs/")) == []
        store.wait_for_late_uploads()
        assert remove_files(store, storage) == 0

    def test_files_of_other_owners_cannot_be_deleted(
        self, store: ExampleStore, storage: FolderStorage, tmp_path: Path
    ):
        claim = store.start(owner="me")
        kept = put(storage, video_key(claim.job.id, 1), tmp_path)
        store.holder.succeed(claim, a_result(claim), {})
        with pytest.raises(JobNotFound):
            store.client.for_owner("you").delete(claim.job.id)
        assert list(storage.keys("jobs/")) == [kept]


class TestEndedJobs:
    def test_inputs_and_the_result_stay_and_all_else_goes(
        self, store: ExampleStore, storage: FolderStorage, tmp_path: Path
    ):
        first = store.start()
        store.holder.requeue(first, crashed=True)
        claim = store.claim()
        job_id = claim.job.id
        kept = [
            put(storage, key, tmp_path)
            for key in (input_key(job_id, "image.png"), thumbnail_key(job_id, 2), video_key(job_id, 2))
        ]
        for key in (video_key(job_id, 1), state_key(job_id, "s/s"), state_key(job_id, "piece/piece.mp4")):
            put(storage, key, tmp_path)
        store.holder.succeed(claim, a_result(claim), {})
        assert remove_files(store, storage) == 1
        assert sorted(storage.keys(f"jobs/{job_id}/")) == sorted(kept)
        assert store.due_file_removals == set()

    def test_inputs_of_a_failed_job_stay(self, store: ExampleStore, storage: FolderStorage, tmp_path: Path):
        claim = store.start()
        kept = put(storage, input_key(claim.job.id, "image.png"), tmp_path)
        put(storage, video_key(claim.job.id, 1), tmp_path)
        store.holder.fail(claim, OutOfMemory("too large"), {})
        remove_files_of(claim.job.id, store, storage)
        assert list(storage.keys("jobs/")) == [kept]

    def test_checkpoint_that_arrives_after_the_end_is_removed(
        self, store: ExampleStore, storage: FolderStorage, tmp_path: Path
    ):
        claim, slow = store.start(), SlowStorage(storage)
        video = put(storage, video_key(claim.job.id, 1), tmp_path)
        with pytest.raises(Unavailable):
            put(slow, state_key(claim.job.id, "s/s"), tmp_path)
        store.holder.succeed(claim, a_result(claim), {})
        remove_files(store, storage)
        slow.finish()
        store.wait_for_late_uploads()
        assert remove_files(store, storage) == 1
        assert list(storage.keys("jobs/")) == [video]

    def test_checkpoint_completed_late_by_s3_is_removed(
        self, store: ExampleStore, s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        claim, may_go_on, num_slowed = store.start(), Event(), count()
        well = open_storage(s3_settings(s3_bucket))
        with faulty_s3(s3_bucket.server.endpoint_url) as proxy:
            proxy.health = "slow"

            def hold_the_first(_: float) -> None:
                if next(num_slowed):
                    raise ConnectionError
                may_go_on.wait(120)

            monkeypatch.setattr(s3_proxy, "sleep", hold_the_first)
            through = s3_settings(s3_bucket, s3_endpoint_url=proxy.url, s3_read_timeout_s=0.1)
            with pytest.raises(Unavailable):
                put(open_storage(through), state_key(claim.job.id, "s/s"), tmp_path)
            store.holder.confirm_cancel(claim)
            remove_files(store, well)
            assert list(well.keys("jobs/")) == []
            may_go_on.set()
            wait_until(lambda: list(well.keys("jobs/")))
        store.wait_for_late_uploads()
        assert remove_files(store, well) == 1
        assert list(well.keys("jobs/")) == []

    def test_late_file_is_removed_in_another_round(
        self, store: ExampleStore, storage: FolderStorage, tmp_path: Path
    ):
        claim = store.start()
        store.holder.confirm_cancel(claim)
        remove_files(store, storage)
        store.wait_for_late_uploads()
        remove_files(store, storage)
        put(storage, state_key(claim.job.id, "s/s"), tmp_path)  # by a holder that had been stopped
        store.maintenance.report_late_file(claim.job.id)
        assert remove_files(store, storage) == 1
        assert list(storage.keys("jobs/")) == []

    def test_job_that_never_started_needs_no_removal(self, store: ExampleStore):
        store.client.cancel(store.submit().id)
        assert store.due_file_removals == set()

    def test_job_deleted_during_removal_comes_up_again(self, store: ExampleStore):
        claim = store.start()
        store.holder.succeed(claim, a_result(claim), {})
        removal = store.maintenance.lease_file_removal()
        assert removal is not None
        store.clock.advance(1)
        store.client.delete(claim.job.id)
        store.maintenance.confirm_file_removal(removal)
        assert store.due_file_removals == {claim.job.id}

    def test_removal_is_retried_after_an_outage_of_the_storage(
        self, store: ExampleStore, storage: FolderStorage, tmp_path: Path
    ):
        claim = store.start()
        put(storage, state_key(claim.job.id, "s/s"), tmp_path)
        store.holder.confirm_cancel(claim)
        with pytest.raises(Unavailable):
            remove_files(store, AwayStorage(storage))
        remove_files(store, storage)
        assert list(storage.keys("jobs/")) == []


class TestOfSeveralProcesses:
    def test_one_of_them_removes_the_files_of_a_job(self, store: ExampleStore, storage: FolderStorage):
        for _ in range(20):
            store.holder.confirm_cancel(store.start())
        counted = CountingStorage(storage)
        with ThreadPoolExecutor(4) as processes:
            counts = processes.map(lambda _: remove_files(store, counted), range(4))
            assert sum(counts) == 20
        assert counted.num_removals == 20

    def test_removal_of_one_that_died_is_repeated(self, store: ExampleStore, storage: FolderStorage):
        store.holder.confirm_cancel(store.start())
        assert store.maintenance.lease_file_removal()
        assert remove_files(store, storage) == 0
        store.clock.advance(REMOVAL_LEASE_S)
        assert remove_files(store, storage) == 1

    def test_files_that_the_holder_removed_are_left_until_late_uploads_are_over(
        self, store: ExampleStore, storage: FolderStorage
    ):
        claim = store.start()
        store.holder.confirm_cancel(claim)
        remove_due_files(claim.job.id, store, storage)
        assert remove_files(store, storage) == 0
        store.wait_for_late_uploads()
        assert remove_files(store, storage) == 1


class TestOfRequestsThatWereBrokenOff:
    def test_inputs_of_a_job_that_was_never_submitted_are_removed(
        self, redis: Redis, store: ExampleStore, storage: FolderStorage, tmp_path: Path
    ):
        store.client.reserve("broken-off")
        slow = SlowStorage(storage)
        with pytest.raises(Unavailable):
            put(slow, input_key("broken-off", "image.png"), tmp_path)
        assert remove_files(store, storage) == 0
        store.wait_for_late_uploads()
        assert remove_files(store, storage) == 1
        slow.finish()
        store.wait_for_late_uploads()
        assert remove_files(store, storage) == 1
        assert list(storage.keys("jobs/")) == []
        assert keys_of(redis) == set()

    def test_inputs_of_a_submitted_job_stay(
        self, store: ExampleStore, storage: FolderStorage, tmp_path: Path
    ):
        store.client.reserve("abc")
        key = put(storage, input_key("abc", "image.png"), tmp_path)
        store.submit(id="abc")
        store.client.reserve("abc")
        store.clock.advance(3 * LATE_UPLOAD_S)
        assert remove_files(store, storage) == 0
        assert list(storage.keys("jobs/")) == [key]

    def test_renewed_reservation_does_not_run_out(self, store: ExampleStore):
        for _ in range(3):
            store.client.reserve("large")
            store.clock.advance(LATE_UPLOAD_S - 1)
        assert store.submit(id="large").status == "queued"

    def test_expired_reservation_cannot_be_used(self, store: ExampleStore):
        store.client.reserve("late")
        store.wait_for_late_uploads()
        with pytest.raises(JobNotFound):
            store.client.reserve("late")
        with pytest.raises(JobNotFound):
            store.submit(id="late")

    def test_reservations_of_a_batch_are_renewed_together_or_not_at_all(self, store: ExampleStore):
        store.client.reserve("late")
        store.wait_for_late_uploads()
        with pytest.raises(JobNotFound):
            store.client.reserve("new", "late")
        assert not store.maintenance.owns_files("new")


def test_orphans_are_the_files_that_no_job_accounts_for(
    store: ExampleStore, storage: FolderStorage, tmp_path: Path
):
    job = store.submit()
    put(storage, video_key(job.id, 1), tmp_path)
    deleted = store.submit()
    put(storage, video_key(deleted.id, 1), tmp_path)
    store.client.delete(deleted.id)
    store.client.reserve("reserved")
    put(storage, input_key("reserved", "image.png"), tmp_path)
    left_by_a_zombie = put(storage, video_key("nobodys", 1), tmp_path)
    put(storage, "notes/readme.txt", tmp_path)
    assert list(orphans(store, storage)) == [left_by_a_zombie]
