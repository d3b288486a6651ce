from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.worker.examples import a_film, a_save
from worker.supervisor.spool import Spool, Waiting


@pytest.fixture
def spool(tmp_path) -> Spool:
    return Spool(tmp_path / "deep" / "spool")


def test_a_job_has_a_folder_of_its_own(spool):
    assert spool.folder("a") != spool.folder("b")
    assert spool.folder("a").is_dir()
    assert spool.job_ids == ["a", "b"]


def test_asking_where_a_folder_is_does_not_make_it(spool):
    assert not spool.path("a").exists()


def test_a_film_that_waits_is_found_by_the_next_supervisor(spool, tmp_path):
    waiting = Waiting(fence=3, film=a_film(spool.folder("a")), timings_s={"decode": 1.5})
    spool.keep_film("a", waiting)
    assert Spool(tmp_path / "deep" / "spool").waiting("a") == waiting


def test_no_film_waits_where_none_was_kept(spool):
    spool.folder("a")
    assert spool.waiting("a") is None
    assert spool.waiting("b") is None


def test_the_latest_save_is_found(spool):
    folder = spool.folder("a")
    spool.keep_save("a", a_save(folder, 1))
    later = a_save(folder, 2, segment=2)
    spool.keep_save("a", later)
    assert spool.saved("a") == later


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_save_of_which_a_file_is_gone_is_none(spool, missing):
    save = a_save(spool.folder("a"), 2, segment=2)
    spool.keep_save("a", save)
    (spool.folder("a") / save.files[missing]).unlink()
    assert spool.saved("a") is None


def test_a_dropped_state_is_gone_and_may_be_dropped_again(spool):
    save = a_save(spool.folder("a"), 1)
    spool.drop_state("a", save.state)
    spool.drop_state("a", save.state)
    assert list(spool.folder("a").iterdir()) == []


def test_nothing_remains_of_a_removed_job(spool):
    a_film(spool.folder("a"))
    spool.remove("a")
    spool.remove("a")
    assert spool.job_ids == []


def test_a_document_is_replaced_whole(spool):
    save = a_save(spool.folder("a"), 1)
    spool.keep_save("a", save)
    assert sorted(path.name for path in spool.folder("a").iterdir()) == ["saved.json", save.state]


def test_a_document_of_another_kind_is_not_taken_for_one(spool):
    (spool.folder("a") / "waiting.json").write_text("{}")
    with pytest.raises(ValidationError):
        spool.waiting("a")
