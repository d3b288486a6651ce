from __future__ import annotations

import pytest

from jobs.errors import Unavailable
from jobs.maintenance import remove_files
from tests.waiting import wait_until
from tests.worker.examples import Desk, a_save
from worker.supervisor.checkpoints import fetch_save, stored_save


def keep(desk: Desk, held, save) -> None:
    desk.saves.keep(held, save)
    desk.saves.flush(held, 30)


def remembered(desk: Desk, held):
    """What the next holder is given."""
    desk.job_store.holder.requeue(held.claim, crashed=False)
    return stored_save(desk.claim().saved)


def test_a_save_is_stored_and_remembered(desk):
    held = desk.hold()
    save = a_save(held.folder, 3, segment=2)
    keep(desk, held, save)
    assert remembered(desk, held) == save
    assert len(desk.stored(held)) == 3


def test_another_machine_fetches_all_files_of_it(desk, tmp_path):
    held = desk.hold()
    save = a_save(held.folder, 3, segment=2)
    keep(desk, held, save)
    desk.job_store.holder.requeue(held.claim, crashed=False)
    elsewhere = Desk(desk.redis, tmp_path / "elsewhere")
    there = elsewhere.hold(elsewhere.claim())
    fetch_save(save, there, desk.storage)
    assert [(there.folder / name).read_text() for name in save.files] == list(save.files)


def test_what_is_there_is_not_fetched_again(desk):
    held = desk.hold()
    save = a_save(held.folder, 3, segment=1)
    keep(desk, held, save)
    (held.folder / save.state).write_text("ours")
    fetch_save(save, held, desk.storage)
    assert (held.folder / save.state).read_text() == "ours"


def test_a_later_save_replaces_an_earlier_one_everywhere(desk):
    held = desk.hold()
    early, late = a_save(held.folder, 1, segment=1), a_save(held.folder, 2, segment=1)
    keep(desk, held, early)
    keep(desk, held, late)
    assert not (held.folder / early.state).exists()
    assert not any(early.state in key for key in desk.stored(held))
    assert len(desk.stored(held)) == 2
    assert remembered(desk, held) == late


def test_pieces_are_stored_once(desk, monkeypatch):
    held, put = desk.hold(), []
    real = desk.storage.put
    monkeypatch.setattr(
        desk.storage, "put", lambda key, path, kind: (put.append(path.name), real(key, path, kind))
    )
    keep(desk, held, a_save(held.folder, 1, segment=2))
    keep(desk, held, a_save(held.folder, 2, segment=3))
    assert sorted(put) == sorted(
        [
            "state-2-denoise-1.safetensors",
            "state-3-denoise-2.safetensors",
            *(f"piece-00{i}.mp4" for i in range(3)),
        ]
    )


def test_while_the_storage_is_away_only_the_latest_waits(desk):
    held = desk.hold()
    desk.storage.is_away = True
    kept = [a_save(held.folder, step) for step in (1, 2, 3)]
    for save in kept:
        desk.saves.keep(held, save)
    assert desk.spool.saved(held.job_id) == kept[-1]
    desk.storage.is_away = False
    desk.saves.flush(held, 30)
    wait_until(lambda: held.save == kept[-1])
    assert remembered(desk, held) == kept[-1]


def test_this_machine_s_own_copy_does_not_wait_for_the_storage(desk):
    held = desk.hold()
    desk.storage.is_away = True
    save = a_save(held.folder, 1)
    desk.saves.keep(held, save)
    assert desk.spool.saved(held.job_id) == save


def test_of_a_job_that_is_over_nothing_is_stored(desk):
    held = desk.hold()
    desk.storage.is_away = True
    desk.saves.keep(held, a_save(held.folder, 1))
    desk.saves.forget(held, 30)
    desk.storage.is_away = False
    other = desk.hold()
    keep(desk, other, a_save(other.folder, 1))  # by now the first would have been stored
    assert desk.stored(held) == []


def test_who_lost_the_job_does_not_change_what_is_remembered(desk):
    held = desk.hold()
    early = a_save(held.folder, 1)
    keep(desk, held, early)
    taken = desk.take_over(held)
    assert stored_save(taken.saved) == early
    keep(desk, held, a_save(held.folder, 2))
    desk.job_store.holder.requeue(taken, crashed=False)
    assert stored_save(desk.claim().saved) == early


def test_a_disk_that_is_full_does_not_end_the_thread(desk):
    held = desk.hold()
    save = a_save(held.folder, 1)
    (held.folder / save.state).unlink()
    keep(desk, held, save)
    good = a_save(held.folder, 2)
    keep(desk, held, good)
    assert held.save == good


def test_nothing_is_stored_any_more_after_the_job_ended(desk):
    held = desk.hold()
    desk.job_store.holder.confirm_cancel(held.claim)
    keep(desk, held, a_save(held.folder, 1, segment=2))
    assert desk.stored(held) == []


def test_what_was_on_its_way_when_the_job_ended_is_removed_by_a_sweep(desk, monkeypatch):
    held, real = desk.hold(), desk.storage.put

    def put_late(*file) -> None:
        desk.job_store.holder.confirm_cancel(held.claim)
        desk.forget_files()
        real(*file)

    monkeypatch.setattr(desk.storage, "put", put_late)
    keep(desk, held, a_save(held.folder, 1))
    assert desk.stored(held) != []
    assert remove_files(desk.job_store, desk.storage) == 1
    assert desk.stored(held) == []


def test_while_redis_is_away_it_is_not_forgotten_that_something_came_late(desk, monkeypatch):
    held, say, told = desk.hold(), desk.job_store.maintenance.report_late_file, []

    def away_at_first(job_id) -> None:
        told.append(job_id)
        if len(told) == 1:
            raise Unavailable("away")
        say(job_id)

    monkeypatch.setattr(desk.job_store, "stored_late", away_at_first)
    desk.job_store.holder.confirm_cancel(held.claim)
    desk.forget_files()
    keep(desk, held, a_save(held.folder, 1))
    assert told == [held.job_id] * 2
    assert desk.job_store.maintenance.due_file_removals().keys() == {held.job_id}


def test_what_is_stored_by_who_lost_the_job_may_be_of_use(desk):
    held = desk.hold()
    desk.take_over(held)
    keep(desk, held, a_save(held.folder, 1))
    assert remove_files(desk.job_store, desk.storage) == 0


@pytest.mark.parametrize("saved", [None, {}, {"version": 7}])
def test_what_another_version_remembered_is_left(saved):
    assert stored_save(saved) is None
