"""Finished videos, thumbnails and timelines over HTTP: whole, in part, unchanged, elsewhere, gone."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from jobs.storage.folder import FolderStorage

FILM = bytes(range(256)) * 5000  # several chunks


@pytest.fixture
def job(order, worker):
    job = order()
    worker.succeed(worker.claim(), film=FILM, still=b"a still")
    return job


@pytest.fixture
def video(job):
    return f"/jobs/{job['id']}/video"


def test_the_whole_film_is_what_the_worker_stored(client, job, video):
    answer = client.get(video)
    assert (answer.status_code, answer.content) == (200, FILM)
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.headers["Content-Length"] == str(len(FILM))
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"] == f'"{hashlib.sha256(FILM).hexdigest()}"'
    assert f"{job['id']}.mp4" in answer.headers["Content-Disposition"]


def test_the_result_points_to_it(client, job, video):
    result = client.get(f"/jobs/{job['id']}").json()["result"]
    assert (result["video_url"], result["size_bytes"]) == (video, len(FILM))
    assert result["sha256"] == hashlib.sha256(client.get(result["video_url"]).content).hexdigest()
    still = client.get(result["thumbnail_url"])
    assert (still.content, still.headers["Content-Type"]) == (b"a still", "image/jpeg")


def test_it_has_a_timeline(client, job):
    answer = client.get(f"/jobs/{job['id']}/timeline")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert [event["args"]["job"] for event in answer.json()["traceEvents"]] == [job["id"]]
    assert client.get(answer.url, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


def test_a_timeline_that_could_not_be_stored_takes_nothing_from_the_film(client, job, video, worker):
    (worker.storage._root / "jobs" / job["id"] / "1" / "timeline.json").unlink()
    answer = client.get(video.replace("video", "timeline"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "key_missing")
    assert client.get(video).status_code == 200


def test_a_range_may_be_all_of_it(client, video):
    answer = client.get(video, headers={"Range": "bytes=0-"})
    assert (answer.status_code, answer.content) == (206, FILM)
    assert answer.headers["Content-Range"] == f"bytes 0-{len(FILM) - 1}/{len(FILM)}"


def test_a_range_is_a_part_of_it(client, video):
    answer = client.get(video, headers={"Range": "bytes=1000000-1000009"})
    assert (answer.status_code, answer.content) == (206, FILM[1_000_000:1_000_010])
    assert answer.headers["Content-Range"] == f"bytes 1000000-1000009/{len(FILM)}"
    assert answer.headers["Content-Length"] == "10"


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", FILM[:1]),
        ("bytes=-7", FILM[-7:]),
        ("bytes=1279990-", FILM[1_279_990:]),
        ("bytes=1279990-9999999", FILM[1_279_990:]),
    ],
)
def test_ranges_of_every_form(client, video, header, part):
    answer = client.get(video, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, part)


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "lines=1-2", "bytes=5-1", "junk"])
def test_what_is_no_single_range_gets_the_whole(client, video, header):
    answer = client.get(video, headers={"Range": header})
    assert (answer.status_code, len(answer.content)) == (200, len(FILM))


def test_a_range_behind_the_end_says_how_long_the_film_is(client, video):
    answer = client.get(video, headers={"Range": f"bytes={len(FILM)}-"})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{len(FILM)}")
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


def test_a_range_of_another_film_gets_the_whole(client, video):
    etag = client.head(video).headers["ETag"]
    same = client.get(video, headers={"Range": "bytes=0-9", "If-Range": etag})
    other = client.get(video, headers={"Range": "bytes=0-9", "If-Range": '"another"'})
    assert (same.status_code, other.status_code) == (206, 200)


def test_a_film_that_the_client_has_is_not_sent_again(client, video):
    etag = client.get(video).headers["ETag"]
    for header in (etag, f'"another", {etag}', f"W/{etag}", "*"):
        answer = client.get(video, headers={"If-None-Match": header})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
    assert client.get(video, headers={"If-None-Match": '"another"'}).status_code == 200


def test_head_has_the_headers_and_no_film(client, video):
    whole, part = client.head(video), client.head(video, headers={"Range": "bytes=5-9"})
    assert (whole.status_code, whole.content, whole.headers["Content-Length"]) == (200, b"", str(len(FILM)))
    assert (part.status_code, part.content, part.headers["Content-Length"]) == (206, b"", "5")
    assert client.head(video.replace("video", "thumbnail")).headers["Content-Length"] == "7"


def test_a_job_without_a_film_says_so(client, order, worker):
    job = order()
    for act in (lambda: None, worker.claim, lambda: client.post(f"/jobs/{job['id']}/cancel")):
        act()
        for name in ("video", "thumbnail", "timeline"):
            answer = client.get(f"/jobs/{job['id']}/{name}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_not_ready")


def test_a_film_of_no_job_is_not_found(client):
    for name in ("nobody", "..%2f..%2fetc", "%00", "x" * 1000):
        assert client.get(f"/jobs/{name}/video").status_code == 404


def test_a_film_that_vanished_from_storage_is_gone(client, job, video, worker):
    worker.storage.delete_prefix(f"jobs/{job['id']}/")
    answer = client.get(video)
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "key_missing")


class TestInAnObjectStore:
    @pytest.fixture
    def linked(self, app, worker):
        """The same storage, which now has links as an object store does."""

        class Linked(FolderStorage):
            def link(self, key, expires_s):
                return f"https://store.example/{key}?expires={expires_s:g}"

        backend = app.state.backend
        app.state.backend = replace(backend, storage=Linked(worker.storage._root))
        yield
        app.state.backend = backend

    @pytest.mark.usefixtures("linked")
    def test_the_film_is_fetched_from_there(self, client, job, video):
        answer = client.get(video, follow_redirects=False)
        assert answer.status_code == 307
        assert (
            answer.headers["Location"] == f"https://store.example/jobs/{job['id']}/1/video.mp4?expires=3600"
        )

    @pytest.mark.usefixtures("linked")
    def test_head_is_answered_here(self, client, video):
        assert client.head(video, follow_redirects=False).headers["Content-Length"] == str(len(FILM))
