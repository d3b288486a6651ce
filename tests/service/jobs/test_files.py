"""Videos, thumbnails and timelines over HTTP: whole, ranges, caching, redirects, missing files."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from jobs.storage.folder import FolderStorage

VIDEO = bytes(range(256)) * 5000  # several chunks


@pytest.fixture
def job(order, worker):
    job = order()
    worker.succeed(worker.claim(), video=VIDEO, thumbnail=b"a thumbnail")
    return job


@pytest.fixture
def video(job):
    return f"/jobs/{job['id']}/video"


def test_video_is_served_as_the_worker_stored_it(client, job, video):
    answer = client.get(video)
    assert (answer.status_code, answer.content) == (200, VIDEO)
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.headers["Content-Length"] == str(len(VIDEO))
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"] == f'"{hashlib.sha256(VIDEO).hexdigest()}"'
    assert f"{job['id']}.mp4" in answer.headers["Content-Disposition"]


def test_result_links_to_video_and_thumbnail(client, job, video):
    result = client.get(f"/jobs/{job['id']}").json()["result"]
    assert (result["video_url"], result["size_bytes"]) == (video, len(VIDEO))
    assert result["sha256"] == hashlib.sha256(client.get(result["video_url"]).content).hexdigest()
    thumbnail = client.get(result["thumbnail_url"])
    assert (thumbnail.content, thumbnail.headers["Content-Type"]) == (b"a thumbnail", "image/jpeg")


def test_timeline_is_served(client, job):
    answer = client.get(f"/jobs/{job['id']}/timeline")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert [event["args"]["job"] for event in answer.json()["traceEvents"]] == [job["id"]]
    assert client.get(answer.url, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


def test_missing_timeline_is_gone_while_the_video_is_served(client, job, video, worker):
    (worker.storage._root / "jobs" / job["id"] / "1" / "timeline.json").unlink()
    answer = client.get(video.replace("video", "timeline"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "key_missing")
    assert client.get(video).status_code == 200


def test_range_of_the_whole_file_is_answered_206(client, video):
    answer = client.get(video, headers={"Range": "bytes=0-"})
    assert (answer.status_code, answer.content) == (206, VIDEO)
    assert answer.headers["Content-Range"] == f"bytes 0-{len(VIDEO) - 1}/{len(VIDEO)}"


def test_range_returns_its_bytes(client, video):
    answer = client.get(video, headers={"Range": "bytes=1000000-1000009"})
    assert (answer.status_code, answer.content) == (206, VIDEO[1_000_000:1_000_010])
    assert answer.headers["Content-Range"] == f"bytes 1000000-1000009/{len(VIDEO)}"
    assert answer.headers["Content-Length"] == "10"


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", VIDEO[:1]),
        ("bytes=-7", VIDEO[-7:]),
        ("bytes=1279990-", VIDEO[1_279_990:]),
        ("bytes=1279990-9999999", VIDEO[1_279_990:]),
    ],
)
def test_every_form_of_a_single_range_is_supported(client, video, header, part):
    answer = client.get(video, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, part)


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "lines=1-2", "bytes=5-1", "junk"])
def test_malformed_and_multiple_ranges_return_the_whole_file(client, video, header):
    answer = client.get(video, headers={"Range": header})
    assert (answer.status_code, len(answer.content)) == (200, len(VIDEO))


def test_range_after_the_end_is_refused_with_the_size(client, video):
    answer = client.get(video, headers={"Range": f"bytes={len(VIDEO)}-"})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{len(VIDEO)}")
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


def test_range_of_another_version_returns_the_whole_file(client, video):
    etag = client.head(video).headers["ETag"]
    same = client.get(video, headers={"Range": "bytes=0-9", "If-Range": etag})
    other = client.get(video, headers={"Range": "bytes=0-9", "If-Range": '"another"'})
    assert (same.status_code, other.status_code) == (206, 200)


def test_cached_video_is_answered_304(client, video):
    etag = client.get(video).headers["ETag"]
    for header in (etag, f'"another", {etag}', f"W/{etag}", "*"):
        answer = client.get(video, headers={"If-None-Match": header})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
    assert client.get(video, headers={"If-None-Match": '"another"'}).status_code == 200


def test_if_match_names_the_version_that_the_client_expects(client, video):
    etag = client.head(video).headers["ETag"]
    for header in (etag, f'"another", {etag}', "*"):
        assert client.get(video, headers={"If-Match": header}).status_code == 200
    for header in ('"another"', f"W/{etag}", etag.strip('"'), ""):
        for method in ("GET", "HEAD"):
            answer = client.request(method, video, headers={"If-Match": header, "Range": "bytes=0-9"})
            assert answer.status_code == 412
    error = client.get(video, headers={"If-Match": '"another"', "If-None-Match": etag}).json()["error"]
    assert (error["code"], error["field"]) == ("precondition_failed", "If-Match")


def test_head_returns_headers_without_content(client, video):
    whole, part = client.head(video), client.head(video, headers={"Range": "bytes=5-9"})
    assert (whole.status_code, whole.content, whole.headers["Content-Length"]) == (200, b"", str(len(VIDEO)))
    assert (part.status_code, part.content, part.headers["Content-Length"]) == (206, b"", "5")
    assert client.head(video.replace("video", "thumbnail")).headers["Content-Length"] == "11"


def test_files_of_an_unfinished_job_are_a_conflict(client, order, worker):
    job = order()
    for act in (lambda: None, worker.claim, lambda: client.post(f"/jobs/{job['id']}/cancel")):
        act()
        for name in ("video", "thumbnail", "timeline"):
            answer = client.get(f"/jobs/{job['id']}/{name}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_not_ready")
            assert answer.json()["error"]["message"].endswith(f" and has no {name}")


def test_video_of_an_unknown_job_is_not_found(client):
    for name in ("nobody", "..%2f..%2fetc", "%00", "x" * 1000):
        assert client.get(f"/jobs/{name}/video").status_code == 404


def test_video_missing_from_storage_is_gone(client, job, video, worker):
    worker.storage.delete_prefix(f"jobs/{job['id']}/")
    answer = client.get(video)
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "key_missing")


class TestObjectStore:
    @pytest.fixture
    def linked(self, app, worker):
        """Replace the storage by one with presigned links, like an object store."""

        class Linked(FolderStorage):
            def link(self, key, expires_s):
                return f"https://store.example/{key}?expires={expires_s:g}"

        backend = app.state.backend
        app.state.backend = replace(backend, storage=Linked(worker.storage._root))
        yield
        app.state.backend = backend

    @pytest.mark.usefixtures("linked")
    def test_get_redirects_to_the_presigned_url(self, client, job, video):
        answer = client.get(video, follow_redirects=False)
        assert answer.status_code == 307
        assert (
            answer.headers["Location"] == f"https://store.example/jobs/{job['id']}/1/video.mp4?expires=3600"
        )

    @pytest.mark.usefixtures("linked")
    def test_head_is_answered_without_a_redirect(self, client, video):
        assert client.head(video, follow_redirects=False).headers["Content-Length"] == str(len(VIDEO))
