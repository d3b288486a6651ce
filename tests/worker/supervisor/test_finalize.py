from __future__ import annotations

import json
import threading

import pytest

from jobs.errors import DiskFull, JobNotFound, OutOfMemory, Unavailable
from jobs.maintenance import remove_files
from jobs.record import Job, JobError
from jobs.storage.keys import timeline_key
from tests.waiting import wait_until
from tests.worker.examples import Desk, a_film, a_save
from worker.supervisor.finalize import Finalizer
from worker.supervisor.job import Abandoned, ClaimedJob, Completed, Ending, Errored, Requeued

ERROR = JobError(code="out_of_memory", message="too large", retryable=False)


class Scene:
    """A held job and who closes it."""

    def __init__(self, desk: Desk, held: ClaimedJob | None = None, upload_limit_s: float = 60.0) -> None:
        self.desk = desk
        self.over = threading.Event()
        self.closer = Finalizer(desk.places, upload_limit_s, lambda _: self.over.set())
        self.held = held or desk.hold()
        self.film = a_film(self.held.folder)

    def begin(self, ending: Ending) -> None:
        self.closer.close(self.held, ending)

    def close(self, ending: Ending) -> Job:
        """Close the job; as it stands then."""
        self.begin(ending)
        assert self.over.wait(30)
        return self.job

    @property
    def job(self) -> Job:
        return self.desk.job_store.client.get(self.held.job_id)

    @property
    def spooled(self) -> bool:
        return self.held.job_id in self.desk.spool.job_ids


@pytest.fixture
def scene(desk: Desk) -> Scene:
    return Scene(desk)


def test_a_film_is_stored_and_the_job_succeeds(scene, desk):
    scene.held.timings_s = {"denoise": 2.0}
    job = scene.close(Completed(scene.film))
    assert job.status == "succeeded"
    assert b"".join(desk.storage.read(job.result.video_key)) == b"film"
    assert b"".join(desk.storage.read(job.result.thumbnail_key)) == b"still"
    assert (job.result.sha256, job.result.duration_s, job.result.seed) == ("5", 9 / 15, 1)
    assert job.timings_s.keys() == {"denoise", "upload"}


def test_after_success_only_the_result_remains(scene, desk):
    desk.saves.keep(scene.held, a_save(scene.held.folder, 1, segment=1))
    desk.saves.flush(scene.held, 30)
    scene.close(Completed(scene.film))
    assert desk.stored(scene.held) == ["1/thumbnail.jpg", "1/timeline.json", "1/video.mp4"]
    assert not scene.spooled


def test_how_it_went_is_stored_beside_the_film(scene, desk):
    result = scene.close(Completed(scene.film)).result
    events = json.loads(b"".join(desk.storage.read(timeline_key(result.video_key))))["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert sorted(names) == ["load", "queued", "thumbnail", "upload", "video"]


def test_a_job_succeeds_without_its_timeline(scene, desk, monkeypatch, caplog):
    put = desk.storage.put

    def put_others(key, path, media_type):
        if key.endswith("timeline.json"):
            raise Unavailable("the storage is away")
        put(key, path, media_type)

    monkeypatch.setattr(desk.storage, "put", put_others)
    assert scene.close(Completed(scene.film)).status == "succeeded"
    assert desk.stored(scene.held) == ["1/thumbnail.jpg", "1/video.mp4"]
    assert "has no timeline" in caplog.text


def test_while_it_is_stored_the_job_is_uploading(scene, desk):
    desk.storage.is_away = True
    scene.begin(Completed(scene.film))
    wait_until(lambda: scene.job.status == "uploading")
    wait_until(lambda: scene.job.progress and scene.job.progress.phase == "upload")
    desk.storage.is_away = False
    assert scene.over.wait(30)
    assert scene.job.status == "succeeded"


def test_a_film_that_cannot_be_stored_in_time_fails_the_job(desk):
    scene = Scene(desk, upload_limit_s=0.0)
    desk.storage.is_away = True
    job = scene.close(Completed(scene.film))
    assert (job.error.code, job.error.retryable) == ("upload_failed", True)


def test_a_full_storage_fails_the_job_clearly(scene, desk, monkeypatch):
    def full(*_: object) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr(desk.storage, "put", full)
    assert scene.close(Completed(scene.film)).error.code == "disk_full"


def test_a_film_that_is_gone_from_the_disk_fails_the_job(scene):
    (scene.held.folder / "video.mp4").unlink()
    assert scene.close(Completed(scene.film)).error.code == "disk_full"


def test_a_failed_job_leaves_no_files(scene, desk):
    desk.saves.keep(scene.held, a_save(scene.held.folder, 1))
    desk.saves.flush(scene.held, 30)
    job = scene.close(Errored(ERROR))
    assert job.error == ERROR
    assert desk.stored(scene.held) == []
    assert not scene.spooled


def test_a_cancelled_job_leaves_no_files(scene, desk):
    desk.job_store.client.cancel(scene.held.job_id)
    assert scene.close(Abandoned("cancel")).status == "cancelled"
    assert not scene.spooled


def test_a_job_that_ran_too_long_says_so(scene):
    assert scene.close(Abandoned("deadline")).error.code == "deadline_exceeded"


def test_a_job_cancelled_before_its_film_is_stored_never_succeeds(scene, desk):
    desk.job_store.client.cancel(scene.held.job_id)
    scene.held.verdict = "cancel"
    assert scene.close(Completed(scene.film)).status == "cancelled"
    assert desk.stored(scene.held) == []


def test_a_job_cancelled_while_its_film_waits_never_succeeds(scene, desk):
    desk.storage.is_away = True
    scene.begin(Completed(scene.film))
    wait_until(lambda: scene.job.status == "uploading")
    desk.job_store.client.cancel(scene.held.job_id)
    scene.held.verdict = "cancel"
    assert scene.over.wait(30)
    assert scene.job.status == "cancelled"


def test_a_cancel_that_nobody_here_heard_of_still_counts(scene, desk):
    desk.job_store.client.cancel(scene.held.job_id)
    assert scene.close(Completed(scene.film)).status == "cancelled"
    assert desk.stored(scene.held) == []


def test_a_deadline_no_longer_counts_when_the_film_is_there(scene):
    scene.held.verdict = "deadline"
    assert scene.close(Completed(scene.film)).status == "succeeded"


def test_who_lost_the_lease_writes_no_result(scene, desk):
    taken = desk.take_over(scene.held)
    job = scene.close(Completed(scene.film))
    assert (job.status, job.attempt, job.result) == ("running", 2, None)
    assert desk.stored(scene.held) == []
    assert desk.job_store.holder.renew_lease(taken) == "go"


def test_what_was_on_its_way_when_the_lease_was_lost_goes_when_the_job_has_ended(scene, desk, monkeypatch):
    real, others = desk.storage.put, []

    def put_late(*file) -> None:
        if not others:
            others.append(desk.take_over(scene.held))
        real(*file)

    monkeypatch.setattr(desk.storage, "put", put_late)
    scene.close(Completed(scene.film))
    assert "1/video.mp4" in desk.stored(scene.held)
    desk.job_store.holder.fail(others[0], OutOfMemory("too large"), {})
    remove_files(desk.job_store, desk.storage)
    assert desk.stored(scene.held) == []


def test_a_result_stays_of_whose_commitment_no_answer_came(scene, desk, monkeypatch):
    """Redis took it and went away; when it is back, the lease of what ended seems to be lost."""
    succeed = desk.job_store.holder.succeed

    def succeed_unheard(*given):
        succeed(*given)
        scene.held.verdict = desk.job_store.holder.renew_lease(scene.held.claim)
        raise Unavailable("away")

    monkeypatch.setattr(desk.job_store, "succeed", succeed_unheard)
    assert scene.close(Completed(scene.film)).status == "succeeded"
    assert remove_files(desk.job_store, desk.storage) == 1
    assert "1/video.mp4" in desk.stored(scene.held)


def test_what_who_lost_the_lease_made_is_not_taken_from_the_next_holder(scene, desk):
    taken = desk.hold(desk.take_over(scene.held))
    second = Scene(desk, taken)
    assert second.close(Completed(second.film)).status == "succeeded"
    scene.close(Completed(a_film(desk.spool.folder(taken.job_id))))
    assert desk.stored(taken) == ["2/thumbnail.jpg", "2/timeline.json", "2/video.mp4"]
    assert second.job.status == "succeeded"


def test_a_lost_lease_that_was_told_ends_an_upload(scene, desk):
    desk.storage.is_away = True
    scene.begin(Completed(scene.film))
    wait_until(lambda: scene.job.status == "uploading")
    taken = desk.take_over(scene.held)
    scene.held.verdict = "lease_lost"
    assert scene.over.wait(30)
    assert desk.job_store.holder.renew_lease(taken) == "go"


def test_of_a_job_that_was_deleted_nothing_is_left(scene, desk):
    desk.storage.put(f"jobs/{scene.held.job_id}/state/x/x", scene.held.folder / "video.mp4", "")
    desk.job_store.client.delete(scene.held.job_id)
    desk.job_store.holder.confirm_cancel(scene.held.claim)
    scene.begin(Abandoned("lease_lost"))
    assert scene.over.wait(30)
    remove_files(desk.job_store, desk.storage)
    assert desk.stored(scene.held) == []
    with pytest.raises(JobNotFound):
        scene.job  # noqa: B018


def test_a_job_given_back_is_delivered_again_with_its_attempt(scene, desk):
    job = scene.close(Requeued(crashed=False))
    assert (job.status, job.attempt, desk.tickets.count()) == ("queued", 0, 1)


def test_a_crash_counts(scene):
    job = scene.close(Requeued(crashed=True))
    assert (job.status, job.attempt) == ("queued", 1)


def test_a_crash_under_a_job_that_was_to_be_cancelled_cancels_it(scene, desk):
    desk.job_store.client.cancel(scene.held.job_id)
    assert scene.close(Requeued(crashed=True)).status == "cancelled"
    assert not scene.spooled


def test_the_last_crash_that_is_allowed_ends_the_job_and_leaves_no_files(scene, desk):
    scene.close(Requeued(crashed=True))
    last = Scene(desk, desk.hold(desk.claim()))
    desk.saves.keep(last.held, a_save(last.held.folder, 1))
    job = last.close(Requeued(crashed=True))
    assert (job.error.code, job.attempt) == ("worker_crashed", 2)
    assert desk.stored(last.held) == []
    assert not last.spooled


def test_a_job_goes_back_with_its_latest_state_stored(scene, desk):
    save = a_save(scene.held.folder, 3)
    desk.saves.keep(scene.held, save)
    scene.close(Abandoned("drain"))
    assert desk.claim().saved == save.model_dump(mode="json")


def test_hurried_it_stores_what_can_be_stored_at_once(scene):
    scene.closer.hurry()
    assert scene.close(Completed(scene.film)).status == "succeeded"


def test_hurried_it_gives_back_what_cannot_and_keeps_the_film(scene, desk):
    desk.storage.is_away = True
    scene.closer.hurry()
    job = scene.close(Completed(scene.film))
    assert (job.status, job.attempt) == ("queued", 0)
    assert desk.spool.waiting(scene.held.job_id).film == scene.film
    desk.storage.is_away = False


def test_files_that_cannot_be_removed_do_not_hold_up_the_end(scene, desk):
    desk.storage.put(f"jobs/{scene.held.job_id}/state/x/x", scene.held.folder / "video.mp4", "")
    desk.storage.is_away = True
    assert scene.close(Errored(ERROR)).status == "failed"
    desk.storage.is_away = False
    assert remove_files(desk.job_store, desk.storage) == 1
    assert desk.stored(scene.held) == []


def test_an_error_that_nobody_thought_of_is_over_too(scene, desk, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(desk.storage, "put", broken)
    assert scene.close(Completed(scene.film)).status == "uploading"  # its lease will run out
