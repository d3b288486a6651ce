"""Temporary folders are removed with their request, or when the next process starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from service.inputs.uploads import remove_abandoned_folders, upload_folder

DIES_IN_A_REQUEST = """
import os, pathlib, signal, sys
from service.inputs.uploads import upload_folder
with upload_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "clip.received").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folder_is_removed_after_its_request(tmp_path):
    with upload_folder(tmp_path) as folder:
        (folder / "clip.received").write_bytes(b"clip")
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_folder_is_removed_after_a_failed_request(tmp_path):
    with pytest.raises(ZeroDivisionError), upload_folder(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_dead_processes_are_removed(tmp_path):
    subprocess.run([sys.executable, "-c", DIES_IN_A_REQUEST, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with upload_folder(tmp_path) as folder:
        remove_abandoned_folders(tmp_path)
        assert list(tmp_path.iterdir()) == [folder]


def test_other_files_in_the_parent_folder_are_kept(tmp_path):
    (tmp_path / "longcat-notes").mkdir()
    (tmp_path / "longcat-upload-notes.txt").write_text("no folder")
    remove_abandoned_folders(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_of_other_users_are_left_alone(tmp_path, monkeypatch):
    folder, ours = tmp_path / "longcat-upload-theirs", tmp_path / "ours.txt"
    ours.write_text("ours")
    folder.mkdir()
    (folder / ".lock").symlink_to(ours)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    remove_abandoned_folders(tmp_path)
    assert ours.read_text() == "ours"
    assert folder.exists()


def test_missing_parent_folder_is_no_error(tmp_path):
    remove_abandoned_folders(tmp_path / "not-there")
