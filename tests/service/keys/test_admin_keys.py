"""The key of an admin: it shows and changes the jobs of all owners."""

from __future__ import annotations

import re

import pytest

from service.keys.api_keys import ApiKeys

OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def bearer(client, redis):
    """Return the headers of a new key."""

    def headers(owner: str, *, admin: bool = False) -> dict[str, str]:
        return {"Authorization": f"Bearer {ApiKeys(redis).create(owner, admin=admin)}"}

    return headers


@pytest.fixture
def admin(bearer):
    return bearer("ops", admin=True)


@pytest.fixture
def alice(bearer):
    return bearer("alice")


@pytest.fixture
def bob(bearer):
    return bearer("bob")


def order(client, headers) -> str:
    return client.post("/generate", json={"prompt": "a ball"}, headers=headers).json()["id"]


def listed(client, headers, **query) -> list[str]:
    return [job["id"] for job in client.get("/jobs", params=query, headers=headers).json()["jobs"]]


def test_admin_lists_the_jobs_of_all_owners_or_of_one(client, admin, alice, bob):
    first, second, own = (order(client, whose) for whose in (alice, bob, admin))
    assert listed(client, admin) == [own, second, first]
    assert listed(client, admin, owner="alice") == [first]
    assert listed(client, admin, owner="ops") == [own]
    assert listed(client, admin, owner="nobody") == []
    jobs = client.get("/jobs", headers=admin).json()["jobs"]
    assert [job["owner"] for job in jobs] == ["ops", "bob", "alice"]


def test_others_list_their_own_jobs_only(client, admin, alice, bob):
    order(client, admin)
    own = order(client, alice)
    assert listed(client, alice) == listed(client, alice, owner="alice") == [own]
    answer = client.get("/jobs", params={"owner": "bob"}, headers=alice)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "owner")


def test_every_route_shows_an_admin_the_jobs_of_others(client, worker, admin, alice):
    job_id = order(client, alice)
    worker.succeed(worker.claim())
    routes = [
        re.sub(r"{(job|video)_id}", job_id, path)
        for path, operations in client.app.openapi()["paths"].items()
        if "get" in operations and ("{job_id}" in path or "{video_id}" in path)
    ]
    assert len(routes) >= 6
    for url in routes:
        assert client.get(url, headers=admin).status_code == 200, url


def test_admin_cancels_and_deletes_the_jobs_of_others(client, admin, alice):
    url = f"/jobs/{order(client, alice)}"
    assert client.post(f"{url}/cancel", headers=admin).json()["status"] == "cancelled"
    assert client.delete(url, headers=admin).status_code == 204
    assert client.get(url, headers=alice).status_code == 404


def test_job_of_an_admin_belongs_to_the_admin(client, worker, admin, alice):
    job_id = order(client, alice)
    worker.succeed(worker.claim())
    again = client.post(f"/jobs/{job_id}/retry", headers=admin).json()
    assert again["owner"] == "ops"
    assert listed(client, alice) == [job_id]


def test_idempotency_keys_and_presets_of_an_admin_are_its_own(client, admin, alice):
    body = {"json": {"prompt": "a ball"}}
    ids = [
        client.post("/generate", **body, headers={**whose, "Idempotency-Key": "k"}).json()["id"]
        for whose in (alice, admin, admin)
    ]
    assert ids[0] != ids[1] == ids[2]
    client.put("/presets/mine", json={"seed": 1}, headers=alice)
    assert client.get("/presets", headers=admin).json()["presets"] == []


def test_session_of_an_admin_has_its_rights(client, admin, alice):
    job_id = order(client, alice)
    answer = client.post("/session", headers=admin | OURS)
    cookie = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    assert client.get("/session", headers=cookie).json() == {
        "owner": "ops",
        "high_priority_allowed": False,
        "is_admin": True,
    }
    assert listed(client, cookie) == [job_id]


def test_revoked_key_of_an_admin_shows_nothing(client, redis, admin, alice):
    keys = ApiKeys(redis)
    assert client.get("/jobs", headers=admin).status_code == 200
    (key,) = (key for key in keys.all() if key.admin)
    keys.revoke(key.id)
    assert client.get("/jobs", headers=admin).status_code == 401


def test_key_that_an_earlier_release_stored_is_no_admin(redis):
    keys = ApiKeys(redis)
    key = keys.create("me")
    (document,) = redis.hvals("longcat:keys")
    redis.hset("longcat:keys", key.split("_")[1], document.replace(b', "admin": false', b""))
    caller = keys.authenticate(key)
    assert caller is not None
    assert not caller.is_admin
