"""No file outlives what refers to it, whatever arrives late in the storage and whoever dies."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
from redis import Redis

from jobs.errors import JobNotFound, OutOfMemory, Unavailable
from jobs.maintenance import orphans, remove_files, remove_files_of
from jobs.storage.base import Storage, open_storage
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import input_key, state_key, thumbnail_key, video_key
from tests.chaos import s3_proxy
from tests.chaos.s3_proxy import faulty_s3
from tests.jobs.examples import LATE_UPLOAD_S, AwayStorage, Desk, SlowStorage, a_result, keys_of
from tests.jobs.test_storage import s3_settings
from tests.servers import S3Bucket
from tests.waiting import wait_until


def store(storage: Storage, key: str, tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    storage.put(key, path, "video/mp4")
    return key


class TestOfJobsThatAreGone:
    def test_a_deleted_job_leaves_no_file(self, desk: Desk, storage: FolderStorage, tmp_path: Path):
        job = desk.submit()
        other = store(storage, video_key("other", 1), tmp_path)
        store(storage, input_key(job.id, "image.png"), tmp_path)
        store(storage, video_key(job.id, 1), tmp_path)
        desk.job_store.client.delete(job.id)
        assert remove_files(desk.job_store, storage) == 1
        assert list(storage.keys("jobs/")) == [other]
        assert desk.job_store.maintenance.due_file_removals() == {}

    def test_an_expired_job_leaves_no_file(self, redis: Redis, storage: FolderStorage, tmp_path: Path):
        desk = Desk.open(redis, retention_s=1000)
        job = desk.submit()
        store(storage, input_key(job.id, "image.png"), tmp_path)
        desk.job_store.client.cancel(job.id)
        desk.clock.advance(1000)
        assert remove_files(desk.job_store, storage) == 0
        desk.job_store.maintenance.sweep()
        assert remove_files(desk.job_store, storage) == 1
        assert list(storage.keys("jobs/")) == []

    def test_files_that_could_not_be_removed_are_removed_later(
        self, desk: Desk, storage: FolderStorage, tmp_path: Path
    ):
        job = desk.submit()
        store(storage, video_key(job.id, 1), tmp_path)
        desk.job_store.client.delete(job.id)
        with pytest.raises(Unavailable):
            remove_files(desk.job_store, AwayStorage(storage))
        assert remove_files(desk.job_store, storage) == 1
        assert list(storage.keys("jobs/")) == []

    def test_what_arrives_behind_the_removal_is_removed_as_well(
        self, desk: Desk, storage: FolderStorage, tmp_path: Path
    ):
        job, slow = desk.submit(), SlowStorage(storage)
        with pytest.raises(Unavailable):
            store(slow, state_key(job.id, "s/s"), tmp_path)
        desk.job_store.client.delete(job.id)
        assert remove_files(desk.job_store, storage) == 1
        desk.clock.advance(LATE_UPLOAD_S - 1)
        assert remove_files(desk.job_store, storage) == 0
        slow.finish()
        desk.clock.advance(1)
        assert remove_files(desk.job_store, storage) == 1
        assert list(storage.keys("jobs/")) == []
        desk.settle()
        assert remove_files(desk.job_store, storage) == 0

    def test_nobody_removes_files_by_deleting_the_ended_job_of_another(
        self, desk: Desk, storage: FolderStorage, tmp_path: Path
    ):
        claim = desk.start(owner="me")
        kept = store(storage, video_key(claim.job.id, 1), tmp_path)
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        with pytest.raises(JobNotFound):
            desk.job_store.for_owner("you").client.delete(claim.job.id)
        assert list(storage.keys("jobs/")) == [kept]


class TestOfJobsThatEnded:
    def test_inputs_and_the_result_stay_and_all_else_goes(
        self, desk: Desk, storage: FolderStorage, tmp_path: Path
    ):
        first = desk.start()
        desk.job_store.holder.requeue(first, crashed=True)
        claim = desk.claim()
        job_id = claim.job.id
        kept = [
            store(storage, key, tmp_path)
            for key in (input_key(job_id, "image.png"), thumbnail_key(job_id, 2), video_key(job_id, 2))
        ]
        for key in (video_key(job_id, 1), state_key(job_id, "s/s"), state_key(job_id, "piece/piece.mp4")):
            store(storage, key, tmp_path)
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert remove_files(desk.job_store, storage) == 1
        assert sorted(storage.keys(f"jobs/{job_id}/")) == sorted(kept)
        assert desk.job_store.maintenance.due_file_removals() == {}

    def test_of_a_failed_job_the_inputs_stay(self, desk: Desk, storage: FolderStorage, tmp_path: Path):
        claim = desk.start()
        kept = store(storage, input_key(claim.job.id, "image.png"), tmp_path)
        store(storage, video_key(claim.job.id, 1), tmp_path)
        desk.job_store.holder.fail(claim, OutOfMemory("too large"), {})
        remove_files_of(claim.job.id, desk.job_store, storage)
        assert list(storage.keys("jobs/")) == [kept]

    def test_a_state_that_arrives_behind_the_end_is_removed(
        self, desk: Desk, storage: FolderStorage, tmp_path: Path
    ):
        claim, slow = desk.start(), SlowStorage(storage)
        film = store(storage, video_key(claim.job.id, 1), tmp_path)
        with pytest.raises(Unavailable):
            store(slow, state_key(claim.job.id, "s/s"), tmp_path)
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        remove_files(desk.job_store, storage)
        slow.finish()
        desk.settle()
        assert remove_files(desk.job_store, storage) == 1
        assert list(storage.keys("jobs/")) == [film]

    def test_a_state_that_an_s3_store_finishes_behind_the_end_is_removed(
        self, desk: Desk, s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        claim, may_go_on = desk.start(), Event()
        well = open_storage(s3_settings(s3_bucket))
        with faulty_s3(s3_bucket.server.endpoint_url) as proxy:
            proxy.health = "slow"

            def hold_the_first(_: float) -> None:
                if len(proxy.slowed) > 1:
                    raise ConnectionError
                may_go_on.wait(30)

            monkeypatch.setattr(s3_proxy, "sleep", hold_the_first)
            through = s3_settings(s3_bucket, s3_endpoint_url=proxy.url, s3_read_timeout_s=0.1)
            with pytest.raises(Unavailable):
                store(open_storage(through), state_key(claim.job.id, "s/s"), tmp_path)
            desk.job_store.holder.confirm_cancel(claim)
            remove_files(desk.job_store, well)
            assert list(well.keys("jobs/")) == []
            may_go_on.set()
            wait_until(lambda: list(well.keys("jobs/")))
        desk.settle()
        assert remove_files(desk.job_store, well) == 1
        assert list(well.keys("jobs/")) == []

    def test_what_is_stored_after_all_was_looked_through_is_looked_for_again(
        self, desk: Desk, storage: FolderStorage, tmp_path: Path
    ):
        claim = desk.start()
        desk.job_store.holder.confirm_cancel(claim)
        remove_files(desk.job_store, storage)
        desk.settle()
        remove_files(desk.job_store, storage)
        store(storage, state_key(claim.job.id, "s/s"), tmp_path)  # by a holder that had been stopped
        desk.job_store.maintenance.report_late_file(claim.job.id)
        assert remove_files(desk.job_store, storage) == 1
        assert list(storage.keys("jobs/")) == []

    def test_a_job_that_was_never_begun_has_none_to_be_looked_for(self, desk: Desk):
        desk.job_store.client.cancel(desk.submit().id)
        assert desk.job_store.maintenance.due_file_removals() == {}

    def test_a_job_that_goes_while_it_is_looked_through_is_not_forgotten(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        seen = desk.job_store.maintenance.due_file_removals()
        desk.clock.advance(1)
        desk.job_store.client.delete(claim.job.id)
        desk.job_store.maintenance.confirm_file_removal(claim.job.id, seen[claim.job.id])
        assert desk.job_store.maintenance.due_file_removals().keys() == {claim.job.id}

    def test_a_storage_that_is_away_is_asked_again(self, desk: Desk, storage: FolderStorage, tmp_path: Path):
        claim = desk.start()
        store(storage, state_key(claim.job.id, "s/s"), tmp_path)
        desk.job_store.holder.confirm_cancel(claim)
        with pytest.raises(Unavailable):
            remove_files(desk.job_store, AwayStorage(storage))
        remove_files(desk.job_store, storage)
        assert list(storage.keys("jobs/")) == []


class TestOfRequestsThatWereBrokenOff:
    def test_inputs_of_a_job_that_was_never_submitted_are_removed(
        self, redis: Redis, desk: Desk, storage: FolderStorage, tmp_path: Path
    ):
        desk.job_store.client.reserve("broken-off")
        slow = SlowStorage(storage)
        with pytest.raises(Unavailable):
            store(slow, input_key("broken-off", "image.png"), tmp_path)
        assert remove_files(desk.job_store, storage) == 0
        desk.settle()
        assert remove_files(desk.job_store, storage) == 1
        slow.finish()
        desk.settle()
        assert remove_files(desk.job_store, storage) == 1
        assert list(storage.keys("jobs/")) == []
        assert keys_of(redis) == set()

    def test_inputs_of_a_submitted_job_stay(self, desk: Desk, storage: FolderStorage, tmp_path: Path):
        desk.job_store.client.reserve("abc")
        key = store(storage, input_key("abc", "image.png"), tmp_path)
        desk.submit(id="abc")
        desk.job_store.client.reserve("abc")
        desk.clock.advance(3 * LATE_UPLOAD_S)
        assert remove_files(desk.job_store, storage) == 0
        assert list(storage.keys("jobs/")) == [key]

    def test_a_reservation_that_is_renewed_does_not_run_out(self, desk: Desk):
        for _ in range(3):
            desk.job_store.client.reserve("large")
            desk.clock.advance(LATE_UPLOAD_S - 1)
        assert desk.submit(id="large").status == "queued"

    def test_with_a_reservation_that_ran_out_nothing_more_is_stored_or_submitted(self, desk: Desk):
        desk.job_store.client.reserve("late")
        desk.settle()
        with pytest.raises(JobNotFound):
            desk.job_store.client.reserve("late")
        with pytest.raises(JobNotFound):
            desk.submit(id="late")


def test_orphans_are_the_files_that_no_job_accounts_for(desk: Desk, storage: FolderStorage, tmp_path: Path):
    job = desk.submit()
    store(storage, video_key(job.id, 1), tmp_path)
    deleted = desk.submit()
    store(storage, video_key(deleted.id, 1), tmp_path)
    desk.job_store.client.delete(deleted.id)
    desk.job_store.client.reserve("reserved")
    store(storage, input_key("reserved", "image.png"), tmp_path)
    left_by_a_zombie = store(storage, video_key("nobodys", 1), tmp_path)
    store(storage, "notes/readme.txt", tmp_path)
    assert list(orphans(desk.job_store, storage)) == [left_by_a_zombie]
