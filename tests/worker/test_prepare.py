from __future__ import annotations

import threading

import pytest

from jobs.order import InputFile
from jobs.storage.keys import input_key
from tests.orders import make_order
from tests.waiting import wait_until
from tests.worker.examples import ORDER, Desk, a_film, a_save
from worker.messages import RunJob
from worker.supervisor.fetch import InputFetcher
from worker.supervisor.job import Abandoned, ClaimedJob, Completed, Errored, Requeued
from worker.supervisor.spool import Waiting


@pytest.fixture
def preparation(desk: Desk) -> InputFetcher:
    return InputFetcher(desk.storage, desk.spool)


@pytest.fixture
def with_image(desk: Desk, tmp_path) -> ClaimedJob:
    """A claimed job with an image in storage."""
    (tmp_path / "upload").write_bytes(b"pixels")
    key = input_key("somewhere", "image.png")
    desk.storage.put(key, tmp_path / "upload", "image/png")
    image = InputFile(key=key, media_type="image/png", size_bytes=6, sha256="0", width=96, height=64)
    desk.submit(make_order(ORDER, task="image_to_video", image=image))
    return desk.hold(desk.claim())


def in_thread(preparation: InputFetcher, held: ClaimedJob) -> tuple[threading.Thread, list[object]]:
    made: list[object] = []
    thread = threading.Thread(target=lambda: made.append(preparation.prepare(held)))
    thread.start()
    return thread, made


def test_an_order_without_files_is_ready_at_once(desk, preparation):
    held = desk.hold()
    run = preparation.prepare(held)
    assert isinstance(run, RunJob)
    assert (run.job_id, run.order, run.folder) == (held.job_id, ORDER, held.folder)
    assert (run.inputs, run.resume) == ({}, None)


def test_an_order_brings_the_names_that_its_log_lines_carry(desk, preparation):
    held = desk.hold()
    assert preparation.prepare(held).names == {"job_id": held.job_id}


def test_inputs_are_fetched_under_their_field_s_name(preparation, with_image):
    run = preparation.prepare(with_image)
    assert run.inputs == {"image": "image.png"}
    assert (with_image.folder / "image.png").read_bytes() == b"pixels"
    assert run.timings_s["load"] > 0


def test_an_input_that_is_gone_fails_the_job_and_names_the_field(desk, preparation, with_image):
    desk.storage.delete_prefix("jobs/somewhere/")
    failure = preparation.prepare(with_image)
    assert isinstance(failure, Errored)
    assert failure.error.code == "invalid_input"


def test_while_the_storage_is_away_it_waits(desk, preparation, with_image):
    desk.storage.is_away = True
    thread, made = in_thread(preparation, with_image)
    thread.join(0.3)
    assert made == []
    desk.storage.is_away = False
    thread.join(30)
    assert isinstance(made[0], RunJob)


@pytest.mark.parametrize(
    ("verdict", "why"),
    [("cancel", "cancel"), ("deadline", "deadline"), ("lease_lost", "lease_lost"), ("preempt", "drain")],
)
def test_a_job_that_is_to_be_left_is_not_waited_for(desk, preparation, with_image, verdict, why):
    desk.storage.is_away = True
    thread, made = in_thread(preparation, with_image)
    with_image.verdict = verdict
    thread.join(30)
    assert made == [Abandoned(why)]


def test_stopped_it_gives_back_what_cannot_be_fetched(desk, preparation, with_image):
    desk.storage.is_away = True
    preparation.stop()
    assert preparation.prepare(with_image) == Requeued(crashed=False)


def test_stopped_it_still_prepares_what_can_be_had_at_once(preparation, with_image):
    preparation.stop()
    assert isinstance(preparation.prepare(with_image), RunJob)


def saved_elsewhere(desk: Desk, step: int, segment: int = 1) -> ClaimedJob:
    """A job of which another machine stored a save; this one has no file of it."""
    held = desk.hold()
    save = a_save(held.folder, step, segment)
    desk.saves.keep(held, save)
    desk.saves.flush(held, 30)
    desk.job_store.holder.requeue(held.claim, crashed=False)
    desk.spool.remove(held.job_id)
    again = desk.hold(desk.claim())
    assert again.job_id == held.job_id
    return again


def test_a_job_goes_on_from_what_is_stored(desk, preparation):
    held = saved_elsewhere(desk, step=3)
    run = preparation.prepare(held)
    assert (run.resume.segment, run.resume.step) == (1, 3)
    assert all((held.folder / name).exists() for name in run.resume.files)
    assert run.timings_s["denoise"] == 2.0
    assert held.save == run.resume


def test_this_machine_s_own_save_is_taken_where_it_is_later(desk, preparation):
    held = saved_elsewhere(desk, step=3)
    own = a_save(held.folder, 5, segment=1)
    desk.spool.keep_save(held.job_id, own)
    assert preparation.prepare(held).resume == own


def test_the_stored_save_is_taken_where_it_is_later(desk, preparation):
    held = saved_elsewhere(desk, step=3)
    desk.spool.keep_save(held.job_id, a_save(held.folder, 2, segment=1))
    assert preparation.prepare(held).resume.step == 3


def test_a_job_whose_stored_save_is_gone_begins_anew(desk, preparation):
    held = saved_elsewhere(desk, step=3)
    desk.storage.delete_prefix(f"jobs/{held.job_id}/state/")
    run = preparation.prepare(held)
    assert (run.resume, held.save) == (None, None)


def test_a_film_that_lies_here_is_not_made_again(desk, preparation):
    held = desk.hold()
    film = a_film(held.folder)
    desk.spool.keep_film(held.job_id, Waiting(fence=1, film=film, timings_s={"decode": 3.0}))
    assert preparation.prepare(held) == Completed(film)
    assert held.timings_s == {"decode": 3.0}


def test_a_disk_that_takes_no_folder_fails_the_job_clearly(desk, preparation):
    held = desk.hold()
    desk.spool.remove(held.job_id)
    desk.spool.path(held.job_id).touch()
    failure = preparation.prepare(held)
    assert isinstance(failure, Errored)
    assert failure.error.code == "disk_full"


def test_nothing_is_left_half_fetched(desk, preparation, with_image):
    preparation.prepare(with_image)
    wait_until(lambda: sorted(path.name for path in with_image.folder.iterdir()) == ["image.png"])
