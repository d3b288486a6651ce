"""A folder and an S3 store keep the same promises."""

from __future__ import annotations

import errno
import os
import resource
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from jobs.errors import DiskFull, KeyMissing, Unavailable
from jobs.settings import SharedSettings
from jobs.storage.base import Storage, open_storage
from jobs.storage.folder import CHUNK_BYTES, FolderStorage, write_atomically
from jobs.storage.keys import job_prefix, thumbnail_key, video_key
from tests.servers import S3Bucket

KEY = video_key("abc", 1)
LARGE_BYTES = 20 * (1 << 20)  # several parts of an S3 upload


def s3_settings(bucket: S3Bucket, **changes: Any) -> SharedSettings:
    values: dict[str, Any] = {
        "storage": f"{bucket.url}/some/prefix",
        "s3_endpoint_url": bucket.server.endpoint_url,
        "s3_region": bucket.server.region,
        "s3_access_key_id": bucket.server.access_key_id,
        "s3_secret_access_key": bucket.server.secret_access_key,
        **changes,
    }
    return SharedSettings(**values)


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(SharedSettings(storage=str(tmp_path / "storage")))
    return open_storage(s3_settings(request.getfixturevalue("s3_bucket")))


@pytest.fixture
def put(storage: Storage, tmp_path: Path):
    """Stores bytes under a key."""

    def put(key: str, content: bytes) -> None:
        path = tmp_path / "source"
        path.write_bytes(content)
        storage.put(key, path, "video/mp4")

    return put


class TestEveryStorage:
    def test_check_accepts_a_new_storage(self, storage: Storage):
        storage.check()

    def test_stored_file_is_read_back(self, storage: Storage, put):
        put(KEY, b"some bytes")
        assert b"".join(storage.read(KEY)) == b"some bytes"
        assert storage.size_bytes(KEY) == 10

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, 4, b"some"),
            (5, None, b"bytes"),
            (5, 10, b"bytes"),
            (5, 99, b"bytes"),
            (9, 10, b"s"),
            (3, 3, b""),
        ],
    )
    def test_range_excludes_its_end(self, storage: Storage, put, start, end, expected):
        put(KEY, b"some bytes")
        assert b"".join(storage.read(KEY, start, end)) == expected

    def test_behind_the_end_there_is_nothing(self, storage: Storage, put):
        put(KEY, b"some bytes")
        assert list(storage.read(KEY, 10)) == []

    def test_empty_file_can_be_stored(self, storage: Storage, put, tmp_path: Path):
        put(KEY, b"")
        assert storage.size_bytes(KEY) == 0
        assert list(storage.read(KEY)) == []
        storage.fetch(KEY, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b""

    def test_large_file_is_copied_in_chunks(self, storage: Storage, put, tmp_path: Path):
        content = bytes(range(256)) * (LARGE_BYTES // 256)
        put(KEY, content)
        sizes = [len(chunk) for chunk in storage.read(KEY)]
        assert max(sizes) <= 256 << 10  # a download that its client does not read holds one in memory
        assert sum(sizes) == LARGE_BYTES
        storage.fetch(KEY, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content

    def test_putting_again_replaces(self, storage: Storage, put):
        put(KEY, b"first")
        put(KEY, b"second")
        assert b"".join(storage.read(KEY)) == b"second"

    def test_missing_file_is_reported_at_once(self, storage: Storage, tmp_path: Path):
        with pytest.raises(KeyMissing):
            storage.read(KEY)
        with pytest.raises(KeyMissing):
            storage.size_bytes(KEY)
        with pytest.raises(KeyMissing):
            storage.fetch(KEY, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_prefix_is_not_a_file(self, storage: Storage, put):
        put(KEY, b"bytes")
        with pytest.raises(KeyMissing):
            storage.read("jobs/abc")

    def test_removing_a_prefix_removes_only_files_under_it(self, storage: Storage, put):
        others = [video_key("abcd", 1), video_key("ab", 1)]
        for key in (KEY, video_key("abc", 2), thumbnail_key("abc", 1), *others):
            put(key, b"bytes")
        storage.delete_prefix(job_prefix("abc"))
        assert sorted(storage.keys("jobs/")) == sorted(others)

    def test_kept_prefixes_survive_removal(self, storage: Storage, put):
        kept = [thumbnail_key("abc", 2), video_key("abc", 2)]
        for key in (*kept, KEY, video_key("abc", 22)):
            put(key, b"bytes")
        storage.delete_prefix(job_prefix("abc"), keep=("jobs/abc/2/", "jobs/abc/inputs/"))
        assert sorted(storage.keys("jobs/")) == kept

    def test_removing_nothing_is_no_error(self, storage: Storage):
        storage.delete_prefix(job_prefix("nothing"))
        assert list(storage.keys("jobs/")) == []

    def test_keys_are_listed_under_a_prefix(self, storage: Storage, put):
        put(KEY, b"bytes")
        put(thumbnail_key("abc", 1), b"bytes")
        put(video_key("other", 1), b"bytes")
        assert sorted(storage.keys(job_prefix("abc"))) == [thumbnail_key("abc", 1), KEY]

    @pytest.mark.parametrize(
        "key",
        ["../secret", "jobs/../../secret", "/etc/passwd", "jobs//x", "jobs/.hidden", "", "jobs/x/", "a\nb"],
    )
    def test_no_key_leaves_the_storage(self, storage: Storage, tmp_path: Path, key: str):
        (tmp_path / "secret").write_text("secret")
        for refused in (
            lambda: storage.read(key),
            lambda: storage.size_bytes(key),
            lambda: storage.fetch(key, tmp_path / "copy"),
            lambda: storage.put(key, tmp_path / "secret", "text/plain"),
            lambda: storage.link(key, 60),
        ):
            with pytest.raises(ValueError, match="not a storage key"):
                refused()

    @pytest.mark.parametrize("prefix", ["", "/", "jobs", "../", "jobs/../../", "./"])
    def test_no_prefix_leaves_the_storage(self, storage: Storage, prefix: str):
        with pytest.raises(ValueError, match="not a storage prefix"):
            storage.delete_prefix(prefix)
        with pytest.raises(ValueError, match="not a storage prefix"):
            list(storage.keys(prefix))


class TestFolder:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "storage"

    def test_it_has_no_links(self, root: Path):
        assert FolderStorage(root).link(KEY, 60) is None

    def test_without_a_setting_it_lies_in_the_data_folder(self, tmp_path: Path):
        storage = open_storage(SharedSettings(data_dir=tmp_path))
        (tmp_path / "source").write_bytes(b"bytes")
        storage.put(KEY, tmp_path / "source", "video/mp4")
        assert (tmp_path / "storage" / KEY).read_bytes() == b"bytes"

    def test_file_appears_when_it_is_complete(self, tmp_path: Path):
        path = tmp_path / "folder" / "video.mp4"

        def chunks() -> Iterator[bytes]:
            yield b"first "
            assert not path.exists()
            yield b"second"

        write_atomically(path, chunks())
        assert path.read_bytes() == b"first second"
        assert list(path.parent.iterdir()) == [path]

    def test_broken_off_copy_leaves_no_file(self, tmp_path: Path):
        def chunks() -> Iterator[bytes]:
            yield b"first "
            raise Unavailable("the store went away")

        with pytest.raises(Unavailable):
            write_atomically(tmp_path / "copies" / "video.mp4", chunks())
        assert list((tmp_path / "copies").iterdir()) == []

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_full_disk_is_reported_and_keeps_existing_files(self, tmp_path: Path, number: int):
        path = tmp_path / "copies" / "video.mp4"
        write_atomically(path, [b"old"])

        def chunks() -> Iterator[bytes]:
            yield b"new"
            raise OSError(number, "full")

        with pytest.raises(DiskFull):
            write_atomically(path, chunks())
        assert path.read_bytes() == b"old"
        assert list(path.parent.iterdir()) == [path]

    def test_file_size_limit_counts_as_a_full_disk(self, tmp_path: Path):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK_BYTES, hard))
        try:
            with pytest.raises(DiskFull):
                write_atomically(tmp_path / "copies" / "video.mp4", [bytes(CHUNK_BYTES), b"one too many"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list((tmp_path / "copies").iterdir()) == []

    def test_unusable_folder_is_unavailable(self, tmp_path: Path, root: Path):
        root.write_text("a file where the folder should be")
        with pytest.raises(Unavailable):
            FolderStorage(root).put(KEY, root, "video/mp4")
        with pytest.raises(KeyMissing):
            FolderStorage(root).size_bytes(KEY)

    def test_unfinished_files_are_no_keys_and_go_with_the_job(self, root: Path):
        part = root / job_prefix("abc") / ".part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"half")
        storage = FolderStorage(root)
        assert list(storage.keys("jobs/")) == []
        storage.delete_prefix(job_prefix("abc"))
        assert not part.parent.exists()

    def test_unfinished_files_go_from_among_those_that_are_kept(self, root: Path):
        part = root / job_prefix("abc") / "1/.part"
        for path in (part, root / KEY):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"bytes")
        storage = FolderStorage(root)
        storage.delete_prefix(job_prefix("abc"), keep=("jobs/abc/1/",))
        assert list(storage.keys("jobs/")) == [KEY]
        assert not part.exists()

    def test_file_that_is_removed_while_it_is_read_is_read_to_its_end(self, root: Path):
        storage = FolderStorage(root)
        write_atomically(root / KEY, [b"some ", b"bytes"])
        chunks = storage.read(KEY)
        storage.delete_prefix(job_prefix("abc"))
        assert b"".join(chunks) == b"some bytes"

    def test_unlistable_folder_is_unavailable(self, root: Path):
        root.mkdir()
        (root / "jobs").write_text("a file where the folder should be")
        with pytest.raises(Unavailable):
            FolderStorage(root).delete_prefix(job_prefix("abc"))

    def test_folders_that_go_while_they_are_listed_are_no_error(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ):
        going, staying = root / "jobs/abc/state", root / KEY
        for path in (going, staying.parent):
            path.mkdir(parents=True)
        staying.write_bytes(b"video")
        scan = os.scandir

        def scan_late(path: Any) -> Any:
            if Path(path) == going:
                going.rmdir()
            return scan(path)

        monkeypatch.setattr(os, "scandir", scan_late)
        assert list(FolderStorage(root).keys("jobs/")) == [KEY]

    def test_removing_a_prefix_twice_at_once_is_no_error(self, root: Path):
        storage = FolderStorage(root)
        for index in range(200):
            write_atomically(root / job_prefix("abc") / "state" / str(index), [b"bytes"])
        failures: list[BaseException] = []

        def remove() -> None:
            try:
                storage.delete_prefix(job_prefix("abc"))
            except BaseException as error:  # noqa: BLE001 it is handed to the test
                failures.append(error)

        threads = [threading.Thread(target=remove) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert list(storage.keys("jobs/")) == []


class BreaksOff(BaseHTTPRequestHandler):
    """Promises a hundred bytes and hangs up after ten."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(bytes(10))

    def log_message(self, *args: object) -> None:
        """Be quiet."""


class Refuses(BreaksOff):
    """Has no time for uploads."""

    def do_PUT(self) -> None:
        self.send_error(503)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server that handles its requests so."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestS3:
    def test_keys_lie_under_the_prefix_of_the_setting(self, s3_bucket: S3Bucket, tmp_path: Path):
        (tmp_path / "source").write_bytes(b"bytes")
        open_storage(s3_settings(s3_bucket)).put(KEY, tmp_path / "source", "video/mp4")
        whole_bucket = open_storage(s3_settings(s3_bucket, storage=s3_bucket.url))
        assert list(whole_bucket.keys("some/")) == [f"some/prefix/{KEY}"]

    def test_anyone_with_the_link_reads_the_file(self, s3_bucket: S3Bucket, tmp_path: Path):
        (tmp_path / "source").write_bytes(b"bytes")
        storage = open_storage(s3_settings(s3_bucket))
        storage.put(KEY, tmp_path / "source", "video/mp4")
        link = storage.link(KEY, 60)
        assert link is not None
        with urllib.request.urlopen(link) as answer:
            assert answer.read() == b"bytes"
            assert answer.headers["Content-Type"] == "video/mp4"

    def test_link_uses_the_public_address_and_expires(self, s3_bucket: S3Bucket):
        settings = s3_settings(s3_bucket, s3_public_endpoint_url="https://videos.example.com")
        link = open_storage(settings).link(KEY, 90)
        assert link is not None
        assert link.startswith(f"https://videos.example.com/{s3_bucket.name}/some/prefix/{KEY}?")
        assert "X-Amz-Expires=90" in link

    def test_uploads_that_were_broken_off_go_with_the_job(self, s3_bucket: S3Bucket):
        storage = open_storage(s3_settings(s3_bucket))
        client = storage._client  # type: ignore[attr-defined]
        for job_id in ("abc", "other"):
            client.create_multipart_upload(Bucket=s3_bucket.name, Key=f"some/prefix/{video_key(job_id, 1)}")
        storage.delete_prefix(job_prefix("abc"))
        left = client.list_multipart_uploads(Bucket=s3_bucket.name)["Uploads"]
        assert [upload["Key"] for upload in left] == [f"some/prefix/{video_key('other', 1)}"]

    def test_uploads_that_were_broken_off_go_also_where_files_are_kept(self, s3_bucket: S3Bucket):
        storage = open_storage(s3_settings(s3_bucket))
        client = storage._client  # type: ignore[attr-defined]
        client.create_multipart_upload(Bucket=s3_bucket.name, Key=f"some/prefix/{KEY}")
        storage.delete_prefix(job_prefix("abc"), keep=("jobs/abc/1/",))
        assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_bucket.name)

    def test_unreachable_store_is_unavailable(self, s3_bucket: S3Bucket, tmp_path: Path):
        (tmp_path / "source").write_bytes(b"bytes")
        storage = open_storage(s3_settings(s3_bucket, s3_endpoint_url="http://127.0.0.1:1"))
        for refused in (
            lambda: storage.put(KEY, tmp_path / "source", "video/mp4"),
            lambda: storage.read(KEY),
            lambda: storage.delete_prefix(job_prefix("abc")),
            lambda: list(storage.keys("jobs/")),
        ):
            with pytest.raises(Unavailable):
                refused()

    def test_hanging_store_is_unavailable_after_the_timeout(self, s3_bucket: S3Bucket):
        with create_server(("127.0.0.1", 0)) as silent:
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            settings = s3_settings(s3_bucket, s3_endpoint_url=address, s3_read_timeout_s=0.1)
            with pytest.raises(Unavailable):
                open_storage(settings).size_bytes(KEY)

    def test_broken_off_response_is_unavailable_and_leaves_no_file(self, s3_bucket: S3Bucket, tmp_path: Path):
        with serving(BreaksOff) as address:
            storage = open_storage(s3_settings(s3_bucket, s3_endpoint_url=address))
            with pytest.raises(Unavailable):
                storage.fetch(KEY, tmp_path / "copies" / "video.mp4")
        assert list((tmp_path / "copies").iterdir()) == []

    def test_refusing_store_is_unavailable(self, s3_bucket: S3Bucket, tmp_path: Path):
        (tmp_path / "source").write_bytes(b"bytes")
        with serving(Refuses) as address:
            storage = open_storage(s3_settings(s3_bucket, s3_endpoint_url=address))
            with pytest.raises(Unavailable):
                storage.put(KEY, tmp_path / "source", "video/mp4")

    def test_missing_bucket_is_unavailable_rather_than_empty(self, s3_bucket: S3Bucket):
        storage = open_storage(s3_settings(s3_bucket, storage="s3://no-such-bucket"))
        with pytest.raises(Unavailable):
            list(storage.keys("jobs/"))

    def test_without_the_signature_the_link_is_of_no_use_for_writing(self, s3_bucket: S3Bucket):
        link = open_storage(s3_settings(s3_bucket)).link(KEY, 60)
        assert link is not None
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(link)


def test_check_refuses_a_bucket_that_does_not_exist(s3_bucket: S3Bucket):
    storage = open_storage(s3_settings(s3_bucket, storage="s3://no-such-bucket"))
    with pytest.raises(Unavailable):
        storage.check()


def test_check_refuses_a_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "storage").write_text("")
    with pytest.raises(Unavailable):
        FolderStorage(tmp_path / "storage").check()
