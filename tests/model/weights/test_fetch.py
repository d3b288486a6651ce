"""Weights are fetched from an HTTP server: what is missing, once, and with the right content."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path

import pytest

from model.pipeline.pipeline import Pipeline
from model.sizes import read_sizes
from model.spec.errors import CheckpointError
from model.weights.__main__ import main
from model.weights.fetch import STATE_FOLDER, FetchOptions, fetch
from model.weights.http import HttpSource, retry_after_s
from model.weights.manifest import INCOMPLETE, MANIFEST, WeightsError, describe, hash_file, verify
from tests.model.weights.conftest import SIZES, flip_a_byte, write_files
from tests.model.weights.file_server import Fault
from tests.waiting import wait_until
from worker.rank.capability import capability_of
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[3]
LARGEST = "dit/diffusion_pytorch_model-00001-of-00002.safetensors"
SECOND = "dit/diffusion_pytorch_model-00002-of-00002.safetensors"
RANGE_BYTES = 65_536
QUICK = FetchOptions(connections=3, range_bytes=RANGE_BYTES, max_failures=4, first_pause_s=0.01)
VERIFYING = replace(QUICK, verify=True)
IN_RANGES = f"""
import sys
from pathlib import Path
from model.weights.fetch import FetchOptions, fetch
from model.weights.http import HttpSource
fetch(HttpSource(sys.argv[1], 1), Path(sys.argv[2]), FetchOptions(connections=1, range_bytes={RANGE_BYTES}))
"""


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """Let looking for an update take as long as a busy machine needs."""
    monkeypatch.setattr("model.weights.fetch.UPDATE_TIMEOUT_S", 60.0)


def fetch_from(url, folder, options=QUICK, read_timeout_s=30.0):
    with closing(HttpSource(url, options.connections, read_timeout_s)) as source:
        fetch(source, folder, options)


def start(*arguments, **more):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **more)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "fetched"


def test_fetched_folder_equals_the_source(server, folder, published):
    fetch_from(server.url, folder)
    assert {path: (folder / path).read_bytes() for path in SIZES} == {
        path: (published / path).read_bytes() for path in SIZES
    }
    assert verify(folder) == []
    assert server.sent_bytes[LARGEST] == SIZES[LARGEST]
    assert len(server.requests_for(LARGEST)) == 5  # ranges
    assert [path.name for path in (folder / STATE_FOLDER).iterdir()] == ["lock"]


def test_complete_folder_is_not_fetched_again(server, folder):
    fetch_from(server.url, folder)
    server.forget()
    fetch_from(server.url, folder)
    assert {request.path for request in server.requests} == {MANIFEST}


def test_only_changed_files_are_fetched(server, folder, published):
    fetch_from(server.url, folder)
    (folder / "notes").write_text("of the operator")
    write_files(published, {SECOND: SIZES[SECOND], "lora/new.safetensors": 5}, seed=1)
    (published / "LICENSE").unlink()
    describe(published).write(published)
    server.forget()
    fetch_from(server.url, folder)
    assert server.sent_bytes.keys() == {MANIFEST, SECOND, "lora/new.safetensors"}
    assert not (folder / "LICENSE").exists()
    assert verify(folder) == ["notes is not in weights.json"]


def test_files_that_were_copied_by_hand_are_not_fetched(server, folder, published):
    for path in SIZES:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((published / path).read_bytes())
    (folder / SECOND).write_bytes(bytes(SIZES[SECOND]))
    fetch_from(server.url, folder)
    assert server.sent_bytes.keys() == {MANIFEST, SECOND}
    assert verify(folder) == []


def test_interrupted_update_does_not_hide_a_file_of_another_version(server, folder, published):
    """The source goes back to the version that the folder's manifest describes, after an update began."""
    fetch_from(server.url, folder)
    first = (published / SECOND).read_bytes()
    write_files(published, {SECOND: SIZES[SECOND], LARGEST: SIZES[LARGEST]}, seed=1)
    describe(published).write(published)
    server.fault = lambda request, _: Fault(status=404) if request.path == LARGEST else None
    with pytest.raises(WeightsError, match="404"):
        fetch_from(server.url, folder, FetchOptions(connections=1))
    (folder / SECOND).write_bytes((published / SECOND).read_bytes())
    server.fault = lambda _request, _number: None
    write_files(published)
    describe(published).write(published)
    fetch_from(server.url, folder)
    assert (folder / SECOND).read_bytes() == (published / SECOND).read_bytes() == first
    assert verify(folder) == []


def test_damaged_file_is_repaired_by_one_command(server, folder, capsys):
    fetch_from(server.url, folder)
    flip_a_byte(folder / SECOND)
    assert main(["verify", str(folder)]) == 1
    assert f"{SECOND} has other content" in capsys.readouterr().err
    server.forget()
    assert main(["fetch", "--verify", server.url, str(folder)]) == 0
    assert server.sent_bytes.keys() == {MANIFEST, SECOND}
    assert server.sent_bytes[SECOND] == SIZES[SECOND]
    assert main(["verify", str(folder)]) == 0


def test_sound_folder_is_verified_without_a_download(server, folder, caplog):
    fetch_from(server.url, folder)
    server.forget()
    with caplog.at_level(logging.INFO):
        fetch_from(server.url, folder, VERIFYING)
    assert "nothing to fetch" in caplog.text
    assert server.sent_bytes.keys() == {MANIFEST}


def test_file_that_the_disk_cannot_read_is_fetched_again(server, folder, monkeypatch, caplog):
    """Also if a repair was interrupted, after which all files are hashed."""
    fetch_from(server.url, folder)

    def read_broken_disk(path, *arguments, **more):
        if path == folder / SECOND:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return hash_file(path, *arguments, **more)

    for module in ("fetch", "manifest"):
        monkeypatch.setattr(f"model.weights.{module}.hash_file", read_broken_disk)
    for mark_folder in (lambda: None, (folder / INCOMPLETE).touch):
        mark_folder()
        caplog.clear()
        server.forget()
        fetch_from(server.url, folder, VERIFYING)
        assert f"{SECOND} cannot be read: Input/output error" in caplog.text
        assert server.sent_bytes.keys() == {MANIFEST, SECOND}


def test_new_version_is_fetched_in_place_of_a_damaged_file(server, folder, published):
    fetch_from(server.url, folder)
    flip_a_byte(folder / SECOND)
    write_files(published, {SECOND: SIZES[SECOND]}, seed=1)
    describe(published).write(published)
    fetch_from(server.url, folder, VERIFYING)
    assert (folder / SECOND).read_bytes() == (published / SECOND).read_bytes()
    assert verify(folder) == []


def test_damaged_file_is_fetched_once_by_processes_that_start_together(server, folder):
    fetch_from(server.url, folder)
    flip_a_byte(folder / LARGEST)
    server.forget()
    server.fault = lambda request, _: Fault(hold_after_bytes=8192) if request.path == LARGEST else None
    first = start("-m", "model.weights", "fetch", "--verify", server.url, folder)
    wait_until(lambda: server.requests_for(LARGEST))
    second = start("-m", "model.weights", "fetch", "--verify", server.url, folder)
    assert "waiting" in second.stderr.readline()
    server.released.set()
    for process in (first, second):
        process.communicate()
        assert process.returncode == 0
    assert server.sent_bytes[LARGEST] == SIZES[LARGEST]
    assert verify(folder) == []


def test_sound_folder_is_verified_without_its_source(server, folder, caplog):
    fetch_from(server.url, folder)
    server.fault = lambda _request, _number: Fault(status=503)
    fetch_from(server.url, folder, VERIFYING)
    assert "is complete and stays as it is" in caplog.text


def test_damaged_folder_needs_its_source_to_be_repaired(server, folder, caplog):
    fetch_from(server.url, folder)
    flip_a_byte(folder / SECOND)
    server.forget()
    server.fault = lambda _request, _number: Fault(status=503)
    with pytest.raises(WeightsError, match="the server answers with 503"):
        fetch_from(server.url, folder, VERIFYING)
    assert f"{SECOND} has other content" in caplog.text
    assert len(server.requests_for(MANIFEST)) == 2 + QUICK.max_failures


def test_cut_connection_is_resumed_where_it_ended(server, folder):
    server.fault = lambda request, number: (
        Fault(cut_after_bytes=40_960) if (request.path, number) == (SECOND, 0) else None
    )
    fetch_from(server.url, folder)
    assert verify(folder) == []
    assert {request.start for request in server.requests_for(SECOND)} > {0, RANGE_BYTES}
    assert server.sent_bytes[SECOND] == SIZES[SECOND]


def test_overloaded_source_gets_the_pause_that_it_asks_for(server, folder):
    server.fault = lambda request, number: (
        Fault(status=503, headers={"Retry-After": "1"}) if (request.path, number) == (SECOND, 0) else None
    )
    started = time.monotonic()
    fetch_from(server.url, folder)
    assert time.monotonic() - started >= 1
    assert verify(folder) == []


def test_source_that_stays_unavailable_is_given_up(server, folder):
    server.fault = lambda request, _: Fault(status=503) if request.path == SECOND else None
    with pytest.raises(WeightsError, match=f"{SECOND}: the server answers with 503"):
        fetch_from(server.url, folder)
    assert len(server.requests_for(SECOND)) >= QUICK.max_failures
    assert (folder / INCOMPLETE).exists()


def test_complete_folder_needs_no_source(server, folder, caplog):
    fetch_from(server.url, folder)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert main(["fetch", f"http://user:secret@{address}/a?key=secret", str(folder)]) == 0
    (warning,) = (text for text in caplog.messages if "is complete and stays as it is" in text)
    assert f"http://{address} is unavailable ({MANIFEST}: ConnectError" in warning
    assert str(folder) in warning
    assert "secret" not in caplog.text
    assert verify(folder) == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503, headers={"Retry-After": "600"}),
        Fault(status=429),
        Fault(cut_after_bytes=0),
        Fault(hold_after_bytes=0),
    ],
    ids=["down", "overloaded", "cut", "stalled"],
)
def test_complete_folder_does_not_wait_long_for_its_source(server, folder, fault, monkeypatch):
    fetch_from(server.url, folder)
    monkeypatch.setattr("model.weights.fetch.UPDATE_TIMEOUT_S", 0.1)
    server.forget()
    server.fault = lambda _request, _number: fault
    fetch_from(server.url, folder, read_timeout_s=3600)
    wait_until(lambda: len(server.requests_for(MANIFEST)) == 2)  # the server may be slower than the limit


def test_complete_folder_is_updated_after_one_failure_of_its_source(server, folder, published):
    fetch_from(server.url, folder)
    write_files(published, {SECOND: SIZES[SECOND]}, seed=1)
    describe(published).write(published)
    server.forget()
    server.fault = lambda request, number: (
        Fault(status=503) if (request.path, number) == (MANIFEST, 0) else None
    )
    fetch_from(server.url, folder)
    assert (folder / SECOND).read_bytes() == (published / SECOND).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / INCOMPLETE).touch(),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text("{}"),
        lambda folder: (folder / LARGEST).unlink(),
        lambda folder: (folder / LARGEST).write_bytes(b"short"),
    ],
    ids=["marked", "not_described", "badly_described", "file_missing", "file_short"],
)
def test_folder_that_is_not_complete_needs_its_source(server, folder, damage):
    fetch_from(server.url, folder)
    damage(folder)
    server.forget()
    server.fault = lambda _request, _number: Fault(status=503)
    with pytest.raises(WeightsError, match="the server answers with 503"):
        fetch_from(server.url, folder)
    assert len(server.requests_for(MANIFEST)) == QUICK.max_failures


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_complete_folder_does_not_hide_that_its_source_refuses(server, folder, status):
    fetch_from(server.url, folder)
    server.forget()
    server.fault = lambda _request, _number: Fault(status=status)
    with pytest.raises(WeightsError, match=f"the server answers with {status}"):
        fetch_from(server.url, folder)
    assert len(server.requests_for(MANIFEST)) == 1


def test_processes_do_not_wait_for_an_unavailable_source_one_after_the_other(server, folder, caplog):
    fetch_from(server.url, folder)
    server.fault = lambda _request, _number: Fault(status=503)
    with (folder / STATE_FOLDER / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fetch_from(server.url, folder)
    assert "is complete and stays as it is" in caplog.text


def test_server_that_stalls_is_asked_again(server, folder):
    server.fault = lambda request, number: (
        Fault(hold_after_bytes=8192) if (request.path, number) == (SECOND, 0) else None
    )
    fetch_from(server.url, folder, replace(QUICK, max_failures=100), read_timeout_s=0.5)
    assert verify(folder) == []


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, 0.0), ("7", 7.0), ("soon", 0.0), ("-1", 0.0), ("1e9", 0.0)]
)
def test_retry_after_is_a_number_of_seconds(value, seconds):
    assert retry_after_s(value) == seconds


def test_retry_after_may_be_a_date():
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < retry_after_s(format_datetime(later, usegmt=True)) <= 100
    assert retry_after_s("Sun, 06 Nov 1994 08:49:37 GMT") == 0


def test_content_that_was_damaged_on_the_way_is_fetched_again(server, folder):
    server.fault = lambda request, number: (
        Fault(content=bytes(SIZES[SECOND])) if (request.path, number) == (SECOND, 1) else None
    )
    fetch_from(server.url, folder)
    assert verify(folder) == []


def test_wrong_content_never_gets_the_name_of_the_file(server, folder, published):
    (published / SECOND).write_bytes(bytes(SIZES[SECOND]))
    with pytest.raises(WeightsError, match=f"{SECOND}: the source has other content"):
        fetch_from(server.url, folder)
    assert not (folder / SECOND).exists()
    assert not (folder / MANIFEST).exists()
    assert server.sent_bytes[SECOND] == 2 * SIZES[SECOND]


def test_file_that_is_shorter_than_its_manifest_says_is_an_error(server, folder, published):
    (published / SECOND).write_bytes(b"short")
    with pytest.raises(WeightsError, match=SECOND):
        fetch_from(server.url, folder)
    assert not (folder / SECOND).exists()


def test_missing_file_is_an_error_at_once(server, folder, published):
    (published / SECOND).unlink()
    with pytest.raises(WeightsError, match=f"{SECOND}: the server answers with 404"):
        fetch_from(server.url, folder)
    assert len(server.requests_for(SECOND)) <= QUICK.connections


def test_compressed_response_is_refused(server, folder):
    server.fault = lambda request, _: (
        Fault(headers={"Content-Encoding": "gzip"}) if request.path == SECOND else None
    )
    with pytest.raises(WeightsError, match="compresses"):
        fetch_from(server.url, folder)


def test_another_range_than_asked_for_is_refused(server, folder):
    server.fault = lambda request, _: (
        Fault(headers={"Content-Range": "bytes 7-9/10"}) if request.path == SECOND else None
    )
    with pytest.raises(WeightsError, match="a different range"):
        fetch_from(server.url, folder)


def test_server_without_ranges_sends_each_file_once(server, folder):
    server.has_ranges = False
    fetch_from(server.url, folder)
    assert verify(folder) == []
    assert len(server.requests_for(LARGEST)) == 1


def test_server_without_ranges_may_cut_the_connection(server, folder):
    server.has_ranges = False
    server.fault = lambda request, number: (
        Fault(cut_after_bytes=40_960) if (request.path, number) == (LARGEST, 0) else None
    )
    fetch_from(server.url, folder)
    assert verify(folder) == []
    assert len(server.requests_for(LARGEST)) == 2


def test_source_without_manifest_is_an_error(server, folder, published):
    (published / MANIFEST).unlink()
    with pytest.raises(WeightsError, match=f"{MANIFEST}: the server answers with 404"):
        fetch_from(server.url, folder)


def test_hostile_manifest_writes_nothing(server, folder, published, tmp_path):
    document = json.loads((published / MANIFEST).read_text())
    document["files"][0]["path"] = "../stolen"
    (published / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="is not a relative path"):
        fetch_from(server.url, folder)
    assert not (tmp_path / "stolen").exists()
    assert not (folder / INCOMPLETE).exists()


def test_huge_manifest_is_refused_while_it_arrives(server, folder):
    server.fault = lambda request, _: Fault(content=b" " * (17 << 20)) if request.path == MANIFEST else None
    with pytest.raises(WeightsError, match="larger than 16 MiB"):
        fetch_from(server.url, folder)


def test_disk_space_is_checked_before_the_download(server, folder, published):
    document = json.loads((published / MANIFEST).read_text())
    document["files"].append({"path": "huge", "size_bytes": 1 << 50, "sha256": "0" * 64})
    (published / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="bytes more, but"):
        fetch_from(server.url, folder)
    assert {request.path for request in server.requests} == {MANIFEST}


def test_full_disk_is_an_error_from_which_the_next_fetch_resumes(server, folder):
    full = start("-m", "model.weights", "fetch", server.url, folder, preexec_fn=limit_file_size)
    assert "error:" in full.communicate()[1]
    assert full.returncode == 2
    assert (folder / INCOMPLETE).exists()
    fetch_from(server.url, folder)
    assert verify(folder) == []


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_killed_fetch_is_resumed_without_fetching_finished_ranges_again(server, folder):
    """One range at a time: the kill loses no more than the range that is on its way."""
    server.fault = lambda request, _: (
        Fault(hold_after_bytes=8192) if (request.path, request.start) == (LARGEST, 3 * RANGE_BYTES) else None
    )
    killed = start("-c", IN_RANGES, server.url, folder)
    wait_until(lambda: any(request.start == 3 * RANGE_BYTES for request in server.requests))
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert (folder / INCOMPLETE).exists()
    assert not (folder / LARGEST).exists()
    server.released.set()
    server.forget()
    fetch_from(server.url, folder, FetchOptions(connections=1, range_bytes=RANGE_BYTES))
    assert verify(folder) == []
    asked = [(request.start, request.end) for request in server.requests_for(LARGEST)]
    assert asked == [(3 * RANGE_BYTES, 4 * RANGE_BYTES), (4 * RANGE_BYTES, SIZES[LARGEST])]


def test_journal_that_is_wrong_after_a_loss_of_power_is_noticed(server, folder):
    server.fault = lambda request, _: Fault(status=404) if request.start == 3 * RANGE_BYTES else None
    one_by_one = FetchOptions(connections=1, range_bytes=RANGE_BYTES)
    with pytest.raises(WeightsError, match="404"):
        fetch_from(server.url, folder, one_by_one)
    journals = {path: path.read_text() for path in (folder / STATE_FOLDER).glob("*.ranges")}
    first_three = f"0\n{RANGE_BYTES}\n{2 * RANGE_BYTES}\n"
    (unfinished,) = (path for path, text in journals.items() if text.startswith(first_three))
    data = unfinished.with_suffix(".part")
    data.write_bytes(bytes(RANGE_BYTES))
    server.fault = lambda _request, _number: None
    fetch_from(server.url, folder, one_by_one)
    assert verify(folder) == []


def test_parts_of_another_version_are_removed(server, folder, published):
    server.fault = lambda request, _: Fault(status=404) if request.start == 3 * RANGE_BYTES else None
    with pytest.raises(WeightsError, match="404"):
        fetch_from(server.url, folder)
    write_files(published, seed=1)
    describe(published).write(published)
    server.fault = lambda _request, _number: None
    fetch_from(server.url, folder)
    assert verify(folder) == []
    assert [path.name for path in (folder / STATE_FOLDER).iterdir()] == ["lock"]


def test_processes_that_start_together_download_once(server, folder):
    server.fault = lambda request, _: Fault(hold_after_bytes=8192) if request.path == LARGEST else None
    processes = [start("-m", "model.weights", "fetch", server.url, folder) for _ in range(2)]
    wait_until(lambda: server.requests_for(LARGEST))
    waiting = start("-m", "model.weights", "fetch", server.url, folder)
    assert "waiting" in waiting.stderr.readline()
    server.released.set()
    for process in (*processes, waiting):
        process.communicate()
        assert process.returncode == 0
    assert {path: server.sent_bytes[path] for path in SIZES} == SIZES
    assert verify(folder) == []


def test_terminated_fetch_ends_and_leaves_the_folder_incomplete(server, folder):
    server.fault = lambda request, _: Fault(hold_after_bytes=8192) if request.path == LARGEST else None
    process = start("-m", "model.weights", "fetch", server.url, folder, "--connections", "1")
    wait_until(lambda: server.requests_for(LARGEST))
    process.send_signal(signal.SIGTERM)
    server.released.set()
    process.communicate()
    assert process.returncode == 130
    assert (folder / INCOMPLETE).exists()


def test_model_is_not_loaded_from_an_incomplete_folder(tiny_checkpoint, tmp_path):
    import torch

    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)

    def load():
        return Pipeline.load(tmp_path, torch.float32)

    readers: list[Callable[[], object]] = [
        load,
        partial(read_sizes, tmp_path),
        partial(capability_of, WorkerSettings(checkpoint=tmp_path)),
    ]
    for read in readers:
        read()
    (tmp_path / INCOMPLETE).touch()
    for read in readers:
        with pytest.raises(CheckpointError, match="is incomplete"):
            read()


def test_secrets_of_the_address_are_in_no_message(server, folder, caplog, capsys):
    server.fault = lambda request, number: Fault(status=503) if number == 0 else Fault(status=403)
    url = server.url.replace("http://", "http://user:secret@")
    with caplog.at_level(logging.DEBUG, "model.weights"):
        assert main(["fetch", url, str(folder)]) == 2
    captured = capsys.readouterr()
    assert "403" in captured.err
    assert "secret" not in captured.err + captured.out + caplog.text


@pytest.mark.parametrize("url", ["ftp://host/a", "/models", "s4://bucket"])
def test_other_kinds_of_sources_are_refused(url, folder, capsys):
    assert main(["fetch", url, str(folder)]) == 2
    assert "must begin with" in capsys.readouterr().err


def test_folder_that_cannot_be_written_is_an_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="file"):
        fetch_from(server.url, tmp_path / "file" / "folder")


def test_fetched_files_can_be_read_by_others(server, folder):
    before = os.umask(0o022)
    try:
        fetch_from(server.url, folder)
    finally:
        os.umask(before)
    assert (folder / LARGEST).stat().st_mode & 0o777 == 0o644
