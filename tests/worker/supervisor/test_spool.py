from __future__ import annotations

import errno
import json
import threading
from functools import partial
from pathlib import Path

import pytest

from jobs.errors import UnreadableRecord
from tests.waiting import wait_until
from tests.worker.supervisor.backends import LocalBackends, write_checkpoint, write_video
from worker.supervisor import spool as spool_module
from worker.supervisor.spool import PendingUpload, Spool, adopt, clean, keep_clean, lock_group_folder
from worker.supervisor.threads import StoppableThread


@pytest.fixture
def reported() -> list[UnreadableRecord]:
    """Collect what the spool reports as unreadable."""
    return []


@pytest.fixture
def spool(tmp_path, reported) -> Spool:
    return Spool(tmp_path / "deep" / "spool", reported.append)


def write_documents(spool: Spool) -> Path:
    """Write both documents of job `a`, and return its folder."""
    folder = spool.make_job_folder("a")
    spool.write_pending_upload("a", PendingUpload(fence=3, video=write_video(folder), timings_s={}))
    spool.write_checkpoint("a", write_checkpoint(folder, 1))
    return folder


def test_each_job_has_its_own_folder(spool):
    assert spool.make_job_folder("a") != spool.make_job_folder("b")
    assert spool.make_job_folder("a").is_dir()
    assert spool.job_ids == ["a", "b"]


def test_folder_of_a_job_is_not_created_by_asking_for_it(spool):
    assert not spool.job_folder("a").exists()


def test_next_supervisor_finds_a_pending_upload(spool, tmp_path):
    pending = PendingUpload(fence=3, video=write_video(spool.make_job_folder("a")), timings_s={"decode": 1.5})
    spool.write_pending_upload("a", pending)
    assert Spool(tmp_path / "deep" / "spool").pending_upload("a") == pending


def test_no_pending_upload_without_a_video(spool):
    spool.make_job_folder("a")
    assert spool.pending_upload("a") is None
    assert spool.pending_upload("b") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fence": "x"}', "\x00", '{"schema_version": 9}'])
def test_documents_that_cannot_be_read_are_reported_and_not_used(spool, reported, text):
    folder = write_documents(spool)
    for name in ("waiting.json", "saved.json"):
        (folder / name).write_text(text)
    assert spool.pending_upload("a") is None
    assert spool.checkpoint("a") is None
    assert len(reported) == 2


@pytest.mark.parametrize("name", ["waiting.json", "saved.json"])
def test_documents_of_a_later_version_are_not_used(spool, reported, name):
    folder = write_documents(spool)
    document = json.loads((folder / name).read_text()) | {"schema_version": 4}
    (folder / name).write_text(json.dumps(document))
    found = spool.pending_upload("a") if name == "waiting.json" else spool.checkpoint("a")
    assert found is None
    assert "version 4 is later than " in str(reported)


def test_latest_checkpoint_is_found(spool):
    folder = spool.make_job_folder("a")
    spool.write_checkpoint("a", write_checkpoint(folder, 1))
    later = write_checkpoint(folder, 2, segment=2)
    spool.write_checkpoint("a", later)
    assert spool.checkpoint("a") == later


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_checkpoint_with_a_missing_file_is_not_used(spool, missing):
    checkpoint = write_checkpoint(spool.make_job_folder("a"), 2, segment=2)
    spool.write_checkpoint("a", checkpoint)
    (spool.make_job_folder("a") / checkpoint.files[missing]).unlink()
    assert spool.checkpoint("a") is None


def test_state_can_be_removed_twice(spool):
    checkpoint = write_checkpoint(spool.make_job_folder("a"), 1)
    spool.remove_state("a", checkpoint.state)
    spool.remove_state("a", checkpoint.state)
    assert list(spool.make_job_folder("a").iterdir()) == []


def test_removed_job_leaves_no_files(spool):
    write_video(spool.make_job_folder("a"))
    spool.remove("a")
    spool.remove("a")
    assert spool.job_ids == []


def test_documents_are_replaced_atomically(spool):
    checkpoint = write_checkpoint(spool.make_job_folder("a"), 1)
    spool.write_checkpoint("a", checkpoint)
    files = {path.name for path in spool.job_folder("a").iterdir()}
    assert files == {"saved.json", checkpoint.state}


def test_check_of_the_disk_leaves_no_file(spool):
    spool.check_writable()
    assert spool.job_ids == []


def test_removed_folder_is_created_again_by_the_check_of_the_disk(spool):
    spool.job_folder("a").parent.rmdir()
    spool.check_writable()
    assert spool.make_job_folder("a").is_dir()


def test_spool_that_is_no_folder_cannot_be_written(spool):
    spool.job_folder("a").parent.rmdir()
    spool.job_folder("a").parent.touch()
    with pytest.raises(OSError, match="exists"):
        spool.check_writable()


def test_cleaning_continues_once_the_spool_can_be_read_again(backends: LocalBackends, monkeypatch):
    monkeypatch.setattr(spool_module, "CLEAN_EVERY_S", 0.01)
    write_video(backends.spool.make_job_folder("gone"))
    is_readable = threading.Event()
    real = spool_module.clean

    def clean_if_readable(*given) -> None:
        if not is_readable.is_set():
            is_readable.set()
            raise OSError(errno.EIO, "the disk is gone")
        real(*given)

    monkeypatch.setattr(spool_module, "clean", clean_if_readable)
    cleaning = StoppableThread(
        "spool", partial(keep_clean, backends.spool, backends.job_store, lambda _: False)
    )
    cleaning.start()
    wait_until(lambda: backends.spool.job_ids == [], 30)
    cleaning.stop()
    cleaning.join(30)
    assert not cleaning.is_alive()


def test_files_of_jobs_that_ended_or_are_gone_are_cleaned(backends: LocalBackends):
    ended, requeued, held = (backends.claimed_job() for _ in range(3))
    for job in (ended, requeued, held):
        write_video(job.folder)
    write_video(backends.spool.make_job_folder("gone"))
    backends.job_store.holder.confirm_cancel(ended.lease)
    backends.job_store.holder.requeue(requeued.lease, crashed=False)
    clean(backends.spool, backends.job_store, is_held=lambda _: False)
    assert set(backends.spool.job_ids) == {requeued.job_id, held.job_id}


@pytest.fixture
def former(tmp_path) -> Spool:
    """Return the spool of a group that the worker does not have any more."""
    return Spool(tmp_path / "worker" / "w-3" / "jobs")


def test_jobs_of_a_former_group_are_adopted_and_its_folder_is_removed(spool, former, tmp_path):
    folder = write_documents(former)
    found = former.pending_upload("a"), former.checkpoint("a")
    adopt(tmp_path / "worker" / "w-3", spool)
    assert (spool.pending_upload("a"), spool.checkpoint("a")) == found
    assert not folder.exists()
    assert list((tmp_path / "worker").iterdir()) == []


@pytest.mark.parametrize("owner", ["former", "own"])
def test_adoption_keeps_the_finished_video_of_a_job(spool, former, tmp_path, owner):
    finished, other = (former, spool) if owner == "former" else (spool, former)
    write_documents(finished)
    (finished.job_folder("a") / "mark").touch()
    other.write_checkpoint("a", write_checkpoint(other.make_job_folder("a"), 1))
    adopt(tmp_path / "worker" / "w-3", spool)
    assert (spool.job_folder("a") / "mark").exists()
    assert spool.pending_upload("a")


def test_state_that_cannot_be_removed_is_left(spool):
    (spool.make_job_folder("a") / "state-1").mkdir()
    spool.remove_state("a", "state-1")
    spool.remove_state("a", "gone")
    assert [path.name for path in spool.job_folder("a").iterdir()] == ["state-1"]


def test_folder_that_a_supervisor_has_locked_is_not_adopted(spool, former, tmp_path, caplog):
    write_documents(former)
    lock_group_folder(tmp_path / "worker" / "w-3")
    adopt(tmp_path / "worker" / "w-3", spool)
    assert (spool.job_ids, former.job_ids) == ([], ["a"])
    assert "stay there" in caplog.text


def test_files_of_a_held_job_are_kept_even_if_it_has_ended(backends: LocalBackends):
    job = backends.claimed_job()
    backends.job_store.holder.confirm_cancel(job.lease)
    clean(backends.spool, backends.job_store, is_held=lambda job_id: job_id == job.job_id)
    assert backends.spool.job_ids == [job.job_id]
