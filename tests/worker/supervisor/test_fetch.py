from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from jobs.capability import Capability
from jobs.errors import DiskFull, KeyMissing, Unavailable
from jobs.order import InputFile
from jobs.record import Progress
from jobs.storage.base import open_storage
from jobs.storage.keys import input_key
from tests.chaos import s3_proxy
from tests.chaos.s3_proxy import faulty_s3
from tests.jobs.storage.test_storage import s3_settings
from tests.orders import make_order
from tests.waiting import wait_until
from tests.worker.examples import ORDER
from tests.worker.supervisor.backends import FRACTION, LocalBackends, write_checkpoint, write_video
from worker.messages import RunJob
from worker.supervisor.disk_space import DiskSpace
from worker.supervisor.fetch import InputFetcher
from worker.supervisor.job import ClaimedJob, Completed, Failed, Requeued, Stopped
from worker.supervisor.spool import PendingUpload


@pytest.fixture
def disk_space(backends: LocalBackends) -> DiskSpace:
    return DiskSpace([], 0, backends.spool.check_writable)


@pytest.fixture
def fetcher(backends: LocalBackends, disk_space: DiskSpace) -> InputFetcher:
    return InputFetcher(backends.job_store, backends.storage, backends.spool, disk_space, missing_limit_s=0.5)


@pytest.fixture
def with_image(backends: LocalBackends, tmp_path) -> ClaimedJob:
    """Return a claimed job with an image in storage."""
    (tmp_path / "upload").write_bytes(b"pixels")
    key = input_key("somewhere", "image.png")
    backends.storage.put(key, tmp_path / "upload", "image/png")
    image = InputFile(key=key, media_type="image/png", size_bytes=6, sha256="0", width=96, height=64)
    backends.submit(make_order(ORDER, task="image_to_video", image=image))
    return backends.claimed_job(backends.claim())


def in_thread(fetcher: InputFetcher, job: ClaimedJob) -> tuple[threading.Thread, list[object]]:
    made: list[object] = []
    thread = threading.Thread(target=lambda: made.append(fetcher.fetch(job)), daemon=True)
    thread.start()
    return thread, made


def test_order_without_files_can_run_at_once(backends, fetcher):
    job = backends.claimed_job()
    run = fetcher.fetch(job)
    assert isinstance(run, RunJob)
    assert (run.job_id, run.order, run.folder) == (job.job_id, ORDER, job.folder)
    assert (run.inputs, run.resume) == ({}, None)


def test_run_message_carries_the_log_context_of_the_job(backends, fetcher):
    job = backends.claimed_job()
    assert fetcher.fetch(job).log_context == {"job_id": job.job_id}


def test_inputs_are_fetched_under_the_name_of_their_field(fetcher, with_image):
    run = fetcher.fetch(with_image)
    assert run.inputs == {"image": "image.png"}
    assert (with_image.folder / "image.png").read_bytes() == b"pixels"
    assert run.timings_s["load"] > 0


def test_missing_input_fails_the_job(backends, fetcher, with_image):
    backends.storage.delete_prefix("jobs/somewhere/")
    failure = fetcher.fetch(with_image)
    assert isinstance(failure, Failed)
    assert failure.error.code == "invalid_input"


def test_input_that_the_store_shows_late_is_fetched(
    backends, disk_space, with_image, s3_bucket, tmp_path, monkeypatch
):
    image = with_image.lease.job.order.image
    monkeypatch.setattr(s3_proxy, "LATE_S", 3600.0)
    with faulty_s3(s3_bucket.server.endpoint_url) as proxy:
        proxy.health = "late"
        storage = open_storage(s3_settings(s3_bucket, s3_endpoint_url=proxy.url))
        storage.put(image.key, tmp_path / "upload", "image/png")
        with pytest.raises(KeyMissing):
            storage.fetch(image.key, tmp_path / "copy")
        monkeypatch.setattr(s3_proxy, "LATE_S", time.time() - proxy.stored_at + 1.0)
        run = InputFetcher(backends.job_store, storage, backends.spool, disk_space).fetch(with_image)
    assert isinstance(run, RunJob)
    assert (with_image.folder / "image.png").read_bytes() == b"pixels"


def test_fetch_waits_while_the_storage_is_unavailable(backends, fetcher, with_image):
    backends.storage.is_available = False
    thread, results = in_thread(fetcher, with_image)
    wait_until(lambda: backends.storage.num_refused > 1 or results)
    assert results == []
    backends.storage.is_available = True
    thread.join(30)
    assert isinstance(results[0], RunJob)


@pytest.mark.parametrize("reason", ["cancel", "deadline", "lease_lost", "preempt"])
def test_stop_request_ends_a_fetch_that_waits(backends, fetcher, with_image, reason):
    backends.storage.is_available = False
    thread, results = in_thread(fetcher, with_image)
    wait_until(lambda: backends.storage.num_refused or results)
    with_image.stop_request = reason
    thread.join(30)
    assert results == [Stopped(reason)]


def test_stopped_fetcher_requeues_a_job_whose_files_are_unavailable(backends, fetcher, with_image):
    backends.storage.is_available = False
    fetcher.stop()
    assert fetcher.fetch(with_image) == Requeued(crashed=False)


def test_stopped_fetcher_fetches_what_is_available(fetcher, with_image):
    fetcher.stop()
    assert isinstance(fetcher.fetch(with_image), RunJob)


def checkpointed_elsewhere(backends: LocalBackends, step: int, segment: int = 1) -> ClaimedJob:
    """Return a job with a stored checkpoint of another machine, whose files are missing on this one."""
    job = backends.claimed_job()
    checkpoint = write_checkpoint(job.folder, step, segment)
    backends.checkpoints.submit(job, checkpoint)
    backends.checkpoints.flush(job, 30)
    report = Progress(phase="denoise", segment=segment, num_segments=3, step=step + 1, fraction=0.9)
    backends.job_store.holder.renew_lease(job.lease, report)
    backends.job_store.holder.requeue(job.lease, crashed=False)
    backends.spool.remove(job.job_id)
    again = backends.claimed_job(backends.claim())
    assert again.job_id == job.job_id
    return again


def test_job_resumes_from_the_stored_checkpoint(backends, fetcher):
    job = checkpointed_elsewhere(backends, step=3)
    run = fetcher.fetch(job)
    assert (run.resume.segment, run.resume.step) == (1, 3)
    assert all((job.folder / name).exists() for name in run.resume.files)
    assert run.timings_s["denoise"] == 2.0
    assert job.checkpoint == run.resume


def test_job_begins_with_the_progress_that_its_checkpoint_has_saved(backends, fetcher):
    job = checkpointed_elsewhere(backends, step=3)
    assert job.progress == Progress(phase="load", segment=1, num_segments=3, fraction=FRACTION)
    fetcher.fetch(job)
    assert job.progress.fraction == FRACTION


def test_job_that_cannot_resume_loses_the_progress_that_was_saved(backends, fetcher):
    job = checkpointed_elsewhere(backends, step=3)
    backends.storage.delete_prefix(f"jobs/{job.job_id}/state/")
    assert fetcher.fetch(job).resume is None
    assert job.progress.fraction == 0.0


def test_later_local_checkpoint_is_preferred(backends, fetcher):
    job = checkpointed_elsewhere(backends, step=3)
    own = write_checkpoint(job.folder, 5, segment=1)
    backends.spool.write_checkpoint(job.job_id, own)
    assert fetcher.fetch(job).resume == own


def test_later_stored_checkpoint_is_preferred(backends, fetcher):
    job = checkpointed_elsewhere(backends, step=3)
    backends.spool.write_checkpoint(job.job_id, write_checkpoint(job.folder, 2, segment=1))
    assert fetcher.fetch(job).resume.step == 3


def test_job_starts_over_if_its_stored_checkpoint_is_gone(backends, fetcher):
    job = checkpointed_elsewhere(backends, step=3)
    backends.storage.delete_prefix(f"jobs/{job.job_id}/state/")
    run = fetcher.fetch(job)
    assert (run.resume, job.checkpoint) == (None, None)


@pytest.mark.parametrize("content", [b"", b"state-1-denoise", b"state-1-denoise-4.safetensors"])
@pytest.mark.parametrize("file", ["state-1-denoise-3.safetensors", "piece-000.mp4"])
def test_job_begins_again_and_says_so_if_its_stored_checkpoint_is_damaged(
    backends, fetcher, tmp_path, file, content
):
    job = checkpointed_elsewhere(backends, step=3)
    (key,) = (key for key in backends.storage.keys(f"jobs/{job.job_id}/state/") if key.endswith(file))
    (tmp_path / "damaged").write_bytes(content)
    backends.storage.put(key, tmp_path / "damaged", "")
    run = fetcher.fetch(job)
    assert (run.resume, job.checkpoint) == (None, None)
    assert list(job.folder.iterdir()) == []
    warnings = backends.job_store.client.get(job.job_id).warnings
    assert warnings == ("the job began again: its saved state was damaged",)


@pytest.mark.parametrize("state", ["a b.safetensors", "../state.safetensors", ""])
def test_job_begins_again_if_its_stored_checkpoint_names_no_file(backends, fetcher, state, caplog):
    job = checkpointed_elsewhere(backends, step=3)
    checkpoint = {**(job.lease.checkpoint or {}), "state": state, "digests": {}}
    job = dataclasses.replace(job, lease=dataclasses.replace(job.lease, checkpoint=checkpoint))
    run = fetcher.fetch(job)
    assert isinstance(run, RunJob)
    assert (run.resume, job.checkpoint) == (None, None)
    assert "passed over a document: the stored checkpoint" in caplog.text


def test_unexpected_error_requeues_the_job_as_crashed(backends, fetcher, monkeypatch, caplog):
    """It may be a fault of this worker or of the job, so both have a limited number of attempts."""
    job = backends.claimed_job()

    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(backends.spool, "checkpoint", broken)
    assert fetcher.fetch(job) == Requeued(crashed=True)
    assert "ValueError: a bug" in caplog.text


def test_checkpoint_with_a_file_without_digest_is_not_used(backends, fetcher):
    job = backends.claimed_job()
    checkpoint = write_checkpoint(job.folder, 5).model_copy(update={"digests": {}})
    backends.spool.write_checkpoint(job.job_id, checkpoint)
    assert fetcher.fetch(job).resume is None


def test_stored_checkpoint_is_used_if_the_local_one_is_damaged(backends, fetcher):
    job = checkpointed_elsewhere(backends, step=3)
    own = write_checkpoint(job.folder, 5, segment=1)
    backends.spool.write_checkpoint(job.job_id, own)
    (job.folder / own.state).write_text("damaged")
    assert fetcher.fetch(job).resume.step == 3
    assert not (job.folder / own.state).exists()


@pytest.mark.parametrize("call", ["save_checkpoint", "add_warning"])
def test_stop_request_ends_a_fetch_that_waits_for_redis(backends, fetcher, tmp_path, monkeypatch, call):
    job = checkpointed_elsewhere(backends, step=3)
    for key in backends.storage.keys(f"jobs/{job.job_id}/state/"):
        (tmp_path / "damaged").write_bytes(b"")
        backends.storage.put(key, tmp_path / "damaged", "")

    def unavailable(*_: object) -> None:
        raise Unavailable("Redis is away")

    monkeypatch.setattr(backends.job_store.holder, call, unavailable)
    job.stop_request = "cancel"
    assert fetcher.fetch(job) == Stopped("cancel")


def test_finished_video_in_the_spool_is_not_generated_again(backends, fetcher):
    job = backends.claimed_job()
    video = write_video(job.folder)
    backends.spool.write_pending_upload(
        job.job_id, PendingUpload(fence=1, video=video, timings_s={"decode": 3.0})
    )
    assert fetcher.fetch(job) == Completed(video)
    assert job.timings_s == {"decode": 3.0}


def replace_by_a_file(folder: Path) -> None:
    """Have every use of the folder raise OSError, also for root."""
    shutil.rmtree(folder)
    folder.touch()


def test_job_is_requeued_while_the_spool_cannot_be_written(backends, fetcher, disk_space):
    job = backends.claimed_job()
    replace_by_a_file(job.folder.parent)
    assert fetcher.fetch(job) == Requeued(crashed=False)
    assert not disk_space.is_enough
    job.folder.parent.unlink()
    assert disk_space.check()
    assert isinstance(fetcher.fetch(job), RunJob)


def test_full_disk_during_a_fetch_requeues_the_job(fetcher, disk_space, backends, with_image, monkeypatch):
    def full(*_: object) -> None:
        raise DiskFull("no space")

    monkeypatch.setattr(backends.storage, "fetch", full)
    monkeypatch.setattr(disk_space, "check", lambda: False)
    assert fetcher.fetch(with_image) == Requeued(crashed=False)


def test_fetch_that_waits_for_the_storage_ends_once_the_spool_cannot_be_written(
    backends, fetcher, with_image
):
    backends.storage.is_available = False
    thread, results = in_thread(fetcher, with_image)
    wait_until(lambda: backends.storage.num_refused or results)
    assert results == []
    replace_by_a_file(with_image.folder.parent)
    thread.join(30)
    assert results == [Requeued(crashed=False)]


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "internal")])
def test_disk_error_of_one_job_alone_fails_it(backends, fetcher, disk_space, monkeypatch, number, code):
    """Requeued, it would be claimed here again and again."""
    job = backends.claimed_job()

    def fail(_: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(backends.spool, "make_job_folder", fail)
    failure = fetcher.fetch(job)
    assert isinstance(failure, Failed)
    assert (failure.error.code, disk_space.is_enough) == (code, True)


def test_no_partial_file_is_left(backends, fetcher, with_image):
    fetcher.fetch(with_image)
    wait_until(lambda: sorted(path.name for path in with_image.folder.iterdir()) == ["image.png"])


class TestOtherWeights:
    """A checkpoint is resumed only with the weights and the data type that computed it."""

    CAPABILITY = Capability(
        model="m",
        tasks=("text_to_video",),
        limits={},
        device="cpu",
        dtype="float32",
        weights={"transformer": "aa", "cfg_step_lora": "bb"},
        loras=("cfg_step_lora",),
    )

    @pytest.fixture
    def resume(self, backends: LocalBackends, fetcher: InputFetcher):
        """Fetch a job with a local checkpoint, as a group with CAPABILITY; return the message and the job."""

        def resume(**origin: object):
            backends.submit()
            lease = dataclasses.replace(backends.claim(), capability=self.CAPABILITY)
            job = backends.claimed_job(lease)
            checkpoint = write_checkpoint(job.folder, 1).model_copy(update=origin)
            backends.spool.write_checkpoint(job.job_id, checkpoint)
            run = fetcher.fetch(job)
            assert isinstance(run, RunJob)
            return run, backends.job_store.client.get(job.job_id)

        return resume

    def test_same_weights_resume(self, resume):
        run, job = resume(weights={"transformer": "aa"}, dtype="float32")
        assert run.resume is not None
        assert job.warnings == ()

    @pytest.mark.parametrize(
        "origin",
        [
            {"weights": {"transformer": "cc"}, "dtype": "float32"},
            {"weights": {"transformer": "aa"}, "dtype": "bfloat16"},
            {},
        ],
    )
    def test_other_and_unknown_ones_begin_again_with_a_warning(self, resume, origin):
        run, job = resume(**origin)
        assert run.resume is None
        assert job.warnings == ("the job began again: its saved state was computed with other weights",)
        assert not list(run.folder.glob("*"))

    def test_job_accepted_for_other_weights_has_a_warning(self, backends, fetcher):
        backends.submit(make_order(ORDER, weights={"transformer": "cc"}))
        job = backends.claimed_job(dataclasses.replace(backends.claim(), capability=self.CAPABILITY))
        assert isinstance(fetcher.fetch(job), RunJob)
        found = backends.job_store.client.get(job.job_id)
        assert found.warnings == ("the weights of m changed after the job was accepted",)
