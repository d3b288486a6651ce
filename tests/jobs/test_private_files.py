"""Files and folders for one user."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from jobs.private_files import close_to_others, make_private_folder, private_opener
from jobs.settings import SharedSettings
from jobs.storage.base import open_storage


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folder_and_its_missing_parents_are_private(tmp_path):
    tmp_path.chmod(0o755)
    make_private_folder(tmp_path / "a" / "b")
    assert (mode(tmp_path / "a" / "b"), mode(tmp_path / "a"), mode(tmp_path)) == (0o700, 0o700, 0o755)


def test_file_opened_privately_is_private(tmp_path):
    with open(tmp_path / "file", "w", opener=private_opener) as file:
        file.write("secret")
    assert mode(tmp_path / "file") == 0o600
    assert (tmp_path / "file").read_text() == "secret"


def test_others_lose_their_rights_and_the_owner_keeps_his(tmp_path):
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o754)
    close_to_others(path)
    assert mode(path) == 0o700


def test_missing_and_foreign_files_stay_unchanged(tmp_path, monkeypatch):
    close_to_others(tmp_path / "missing")
    tmp_path.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    close_to_others(tmp_path)
    assert mode(tmp_path) == 0o755


def test_the_storage_under_the_data_folder_is_closed_and_a_named_one_is_not(tmp_path):
    own, named = tmp_path / "storage", tmp_path / "named"
    for folder in (own, named):
        folder.mkdir()
        folder.chmod(0o755)
    open_storage(SharedSettings(data_dir=tmp_path))
    open_storage(SharedSettings(data_dir=tmp_path, storage=str(named)))
    assert (mode(own), mode(named)) == (0o700, 0o755)
