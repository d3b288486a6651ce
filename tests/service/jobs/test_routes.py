"""Read, list, cancel and delete jobs."""

from __future__ import annotations

import json

import pytest

from jobs.errors import OutOfMemory
from jobs.record import Progress
from jobs.registration import GroupRegistration
from jobs.store.outbox import Outbox
from service.webhooks.sender import Payload
from tests.service.conftest import CAPABILITY
from tests.service.media import encoded, in_base64, picture
from tests.service.working import backend_of_request, tidy


def events(stream):
    return [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]


def ids(page):
    return [job["id"] for job in page["jobs"]]


def test_job_shows_each_status_and_its_progress(client, order, worker):
    url = f"/jobs/{order(seed=3)['id']}"
    claim = worker.claim()
    assert client.get(url).json()["status"] == "running"
    worker.job_store.holder.renew_lease(
        claim, Progress(phase="denoise", step=1, num_steps=4, fraction=0.25, eta_s=3.0)
    )
    shown = client.get(url).json()
    assert (shown["attempt"], shown["queue_position"]) == (1, None)
    step = {"phase": "denoise", "step": 1, "num_steps": 4, "segment": 0, "num_segments": 1}
    assert shown["progress"] == {**step, "fraction": 0.25, "eta_s": 3.0}
    worker.succeed(claim)
    shown = client.get(url).json()
    assert (shown["status"], shown["timings_s"], shown["error"]) == ("succeeded", {"denoise": 1.5}, None)
    assert shown["created_at"] <= shown["started_at"] <= shown["finished_at"] < shown["expires_at"]
    assert shown["result"].keys() == {
        *("video_url", "thumbnail_url", "width", "height", "num_frames", "fps", "duration_s"),
        *("size_bytes", "sha256", "seed", "dtype", "model", "weights"),
    }
    assert shown["result"]["seed"] == 3


@pytest.mark.parametrize("estimated", [True, False])
def test_job_that_is_queued_again_shows_the_progress_that_is_saved(client, order, worker, redis, estimated):
    if estimated:
        redis.lpush("longcat:recent_runs", "text_to_video 1 60000")
        GroupRegistration(redis, "a", ttl_s=600).heartbeat("ready", 1, capability=CAPABILITY)
    url = f"/jobs/{order()['id']}"
    claim = worker.claim()
    worker.job_store.holder.save_checkpoint(claim, {"fraction": 0.25})
    worker.job_store.holder.renew_lease(claim, Progress(phase="denoise", step=2, num_steps=4, fraction=0.5))
    worker.job_store.holder.requeue(claim, crashed=True)
    shown = client.get(url).json()
    assert (shown["status"], shown["queue_position"]) == ("queued", 1)
    assert (shown["progress"]["phase"], shown["progress"]["fraction"]) == ("load", 0.25)
    assert (shown["progress"]["eta_s"] is not None) == estimated


def test_failed_job_is_answered_200_with_its_error(client, order, worker):
    url = f"/jobs/{order()['id']}"
    worker.job_store.holder.fail(worker.claim(), OutOfMemory("does not fit"), {})
    answer = client.get(url)
    assert answer.status_code == 200
    assert answer.json()["error"] == {"code": "out_of_memory", "message": "does not fit", "retryable": False}


def test_queue_positions_follow_priority_and_submission(client, order):
    jobs = [order(priority=priority) for priority in ("low", "normal", "high", "normal")]
    places = [client.get(f"/jobs/{job['id']}").json()["queue_position"] for job in jobs]
    assert places == [4, 2, 1, 3]


def test_capability_is_that_of_the_last_group_while_there_is_none(client):
    shown = client.get("/capability").json()
    (pool,) = shown.pop("pools")
    of_the_service = {"qualities": ["exact"], "default_t_thresh": 0.5, "max_num_videos": 16}
    assert {name: shown.pop(name) for name in of_the_service} == of_the_service
    assert shown == CAPABILITY.model_dump(mode="json")
    assert (pool["model"], pool["num_groups"]) == ("LongCat-Video", 0)


def test_job_whose_metadata_cannot_be_encoded_is_shown(client, order, worker, redis):
    """Release 0.3.0 took half characters into metadata, from forms in UTF-7."""
    job = order(webhook_url="http://127.0.0.1:9/")
    order()
    redis.hset(f"longcat:job:{job['id']}", "metadata", json.dumps({"film": "\ud800"}))
    worker.succeed(worker.claim())
    url, shown = f"/jobs/{job['id']}", {"film": "\ufffd"}
    assert client.get(url).json()["metadata"] == shown
    assert [listed["metadata"] for listed in client.get("/jobs").json()["jobs"]] == [{}, shown]
    assert client.get(f"/v1/videos/{job['id']}").status_code == client.get("/v1/videos").status_code == 200
    assert json.loads(events(client.get(f"{url}/events").text)[-1])["metadata"] == shown
    delivery = Outbox(redis).take(60)
    assert delivery
    assert json.loads(Payload.of(delivery, "").model_dump_json())["data"]["metadata"] == shown
    assert client.post(f"{url}/retry").json()["metadata"] == shown


class TestList:
    def test_is_empty_at_first(self, client):
        assert client.get("/jobs").json() == {"jobs": [], "next": None, "previous": None}

    def test_starts_with_the_newest_job(self, client, order):
        made = [order()["id"] for _ in range(3)]
        assert ids(client.get("/jobs").json()) == made[::-1]

    @pytest.mark.parametrize("limit", [1, 2, 3, 5, 7, 100])
    def test_pages_contain_every_job_once(self, client, order, limit):
        made = [order()["id"] for _ in range(7)]
        seen, after = [], None
        while True:
            page = client.get("/jobs", params={"limit": limit} | ({"after": after} if after else {})).json()
            assert len(page["jobs"]) <= limit
            seen += ids(page)
            after = page["next"]
            if after is None:
                break
        assert seen == made[::-1]

    def test_jobs_submitted_between_pages_do_not_shift_them(self, client, order):
        made = [order()["id"] for _ in range(4)]
        first = client.get("/jobs?limit=2").json()
        order()
        second = client.get("/jobs", params={"limit": 2, "after": first["next"]}).json()
        assert ids(first) + ids(second) == made[::-1]

    def test_filters_by_status(self, client, order, worker):
        made = [order()["id"] for _ in range(3)]
        worker.succeed(worker.claim())
        worker.claim()
        for status, job_id in zip(("succeeded", "running", "queued"), made, strict=True):
            assert ids(client.get(f"/jobs?status={status}").json()) == [job_id]
        assert ids(client.get("/jobs?status=failed").json()) == []

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=x", "limit"),
            ("status=gone", "status"),
            ("after=" + "x" * 151, "after"),
            ("task=film", "task"),
            ("created_after=yesterday", "created_after"),
            ("created_after=2020", "created_after"),
            ("created_after=1795879669", "created_after"),
            ("created_after=2020-01-01", "created_after"),
            ("created_before=2026-13-01T00:00:00Z", "created_before"),
            ("created_before=2026-11-28T15:15:30", "created_before"),  # without a time zone
            ("after=a&before=b", "before"),
            ("batch=", "batch"),
        ],
    )
    def test_invalid_queries_are_refused(self, client, query, field):
        answer = client.get(f"/jobs?{query}")
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)

    def test_filters_by_task_and_time(self, client, order):
        made = [order(), order(task="long_video", num_segments=2), order()]
        assert ids(client.get("/jobs?task=long_video").json()) == [made[1]["id"]]
        created = [job["created_at"] for job in made]
        query = {"created_after": created[1], "created_before": created[2]}
        expected = [job["id"] for job in made if created[1] <= job["created_at"] < created[2]]
        assert ids(client.get("/jobs", params=query).json()) == expected[::-1]

    def test_several_statuses_are_listed_together(self, client, order, worker):
        first, second, third = (order()["id"] for _ in range(3))
        worker.claim()
        client.post(f"/jobs/{second}/cancel")
        page = client.get("/jobs?status=queued&status=running")
        assert (ids(page.json()), page.headers["X-Total-Count"]) == ([third, first], "2")
        refused = client.get("/jobs?status=queued&status=gone")
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "status")

    @pytest.mark.parametrize("separator", ["T", "t", "%20"])
    @pytest.mark.parametrize("zone", ["Z", "%2B02:00", "+02:00", "-02:00"])
    def test_time_has_a_zone_whose_plus_need_not_be_escaped(self, client, order, separator, zone):
        job_id = order()["id"]
        for year, found in (("2020", [job_id]), ("2999", [])):
            answer = client.get(f"/jobs?created_after={year}-01-01{separator}00:00:00{zone}").json()
            assert ids(answer) == found

    def test_pages_lead_back(self, client, order):
        made = [order()["id"] for _ in range(4)][::-1]
        first = client.get("/jobs?limit=2").json()
        second = client.get("/jobs", params={"limit": 2, "after": first["next"]}).json()
        assert (ids(second), first["previous"], second["next"]) == (made[2:], None, None)
        back = client.get("/jobs", params={"limit": 2, "before": second["previous"]}).json()
        assert (ids(back), back["previous"]) == (made[:2], None)

    def test_header_counts_the_jobs_on_all_pages(self, client, order):
        first, second, _ = (order() for _ in range(3))
        client.post(f"/jobs/{first['id']}/cancel")

        def count(query):
            return client.get(f"/jobs?limit=1&{query}").headers.get("X-Total-Count")

        assert [count(""), count(f"after={second['id']}"), count("status=cancelled")] == ["3", "3", "1"]
        year = "2020-01-01T00:00:00Z"
        assert [count(f"created_before={year}"), count(f"created_after={year}")] == ["0", "3"]
        assert [count("text=a"), count("task=refine"), count("owner=somebody")] == [None, None, "0"]

    def test_page_after_a_deleted_job_continues_at_its_place(self, client, order):
        made = [order()["id"] for _ in range(3)][::-1]
        page = client.get("/jobs?limit=1").json()
        client.delete(f"/jobs/{made[0]}")
        assert ids(client.get("/jobs", params={"after": page["next"]}).json()) == made[1:]

    def test_owner_is_a_filter_for_those_who_see_all_jobs(self, client, app):
        keys = app.state.backend.authenticator.keys
        backend = app.state.backend
        made = {}
        for owner in ("alice", "bob"):
            headers = {"Authorization": f"Bearer {keys.create(owner)}"}
            made[owner] = client.post("/generate", json={"prompt": "x"}, headers=headers).json()["id"]
            assert ids(client.get(f"/jobs?owner={owner}", headers=headers).json()) == [made[owner]]
            answer = client.get("/jobs?owner=nobody", headers=headers)
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, "owner")
        assert [job.id for job in backend_of_request(backend).jobs_of("bob").list_jobs()] == [made["bob"]]
        backend.redis.delete("longcat:keys")  # now everybody sees all jobs
        assert len(ids(client.get("/jobs").json())) == 2
        assert ids(client.get("/jobs?owner=bob").json()) == [made["bob"]]

    @pytest.mark.parametrize("field", ["after", "before"])
    def test_page_beside_an_unknown_job_is_not_found(self, client, field):
        answer = client.get(f"/jobs?{field}=nobody")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["field"]) == (404, "job_not_found", field)


class TestCancel:
    def test_queued_job_is_cancelled_immediately(self, client, order, worker):
        answer = client.post(f"/jobs/{order()['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert worker.job_store.holder.claim("by hand", 30.0) is None

    def test_holder_of_a_running_job_is_told_to_stop(self, client, order, worker):
        url = f"/jobs/{order()['id']}"
        claim = worker.claim()
        assert client.post(f"{url}/cancel").json()["status"] == "running"
        assert worker.job_store.holder.renew_lease(claim) == "cancel"
        worker.job_store.holder.confirm_cancel(claim)
        assert client.get(url).json()["status"] == "cancelled"

    def test_cancelling_twice_changes_nothing(self, client, order):
        url = f"/jobs/{order()['id']}/cancel"
        assert [client.post(url).status_code for _ in range(2)] == [200, 200]

    def test_succeeded_job_cannot_be_cancelled(self, client, order, worker):
        url = f"/jobs/{order()['id']}"
        worker.succeed(worker.claim())
        answer = client.post(f"{url}/cancel")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_ended")
        assert client.get(url).json()["status"] == "succeeded"

    def test_unknown_job_is_not_found(self, client):
        assert client.post("/jobs/nobody/cancel").status_code == 404


class TestDelete:
    def test_removes_record_and_files(self, client, order, worker):
        job = order(image={"base64": in_base64(encoded(picture()))})
        worker.succeed(worker.claim())
        assert list(worker.storage.keys(f"jobs/{job['id']}/"))
        answer = client.delete(f"/jobs/{job['id']}")
        assert (answer.status_code, answer.content) == (204, b"")
        assert list(worker.storage.keys(f"jobs/{job['id']}/")) == []
        assert client.get(f"/jobs/{job['id']}").status_code == 404
        assert client.delete(f"/jobs/{job['id']}").status_code == 404

    def test_removes_files_while_another_process_removes_unneeded_ones(self, client, order, worker):
        job = order()
        worker.succeed(worker.claim())
        assert worker.job_store.maintenance.lease_file_removal(job["id"])
        assert client.delete(f"/jobs/{job['id']}").status_code == 204
        assert list(worker.storage.keys(f"jobs/{job['id']}/")) == []

    def test_queued_job_leaves_the_queue(self, client, order, worker):
        client.delete(f"/jobs/{order()['id']}")
        assert worker.job_store.holder.claim("by hand", 30.0) is None

    def test_running_job_is_removed_once_its_holder_has_stopped(self, client, order, worker, app):
        job = order(image={"base64": in_base64(encoded(picture()))})
        claim = worker.claim()
        assert client.delete(f"/jobs/{job['id']}").status_code == 202
        assert worker.job_store.holder.renew_lease(claim) == "cancel"
        worker.job_store.holder.confirm_cancel(claim)
        assert client.get(f"/jobs/{job['id']}").status_code == 404
        tidy(app.state.backend)
        assert list(worker.storage.keys(f"jobs/{job['id']}/")) == []

    def test_unknown_job_is_not_found(self, client):
        assert client.delete("/jobs/nobody").status_code == 404
