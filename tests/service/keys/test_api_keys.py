"""API keys: creating, listing, verifying and revoking them, and what they give access to."""

from __future__ import annotations

import hmac
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from redis import Redis

from service.app import create_app
from service.keys.__main__ import main
from service.keys.api_keys import KEYS, LAST_USED, PRESET_OWNER, ApiKeys, Caller, InvalidOwner
from service.keys.authentication import ExposedWithoutKeys, check_exposure, is_exposed
from service.webhooks.signing import Signer
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.media import clip


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys(redis: Redis) -> ApiKeys:
    return ApiKeys(redis)


def owner_of(keys: ApiKeys, key: str) -> str | None:
    caller = keys.authenticate(key)
    return caller.owner if caller else None


class TestKey:
    def test_identifies_its_owner_until_revoked(self, keys):
        mine, yours = keys.create("me"), keys.create("you")
        assert (owner_of(keys, mine), owner_of(keys, yours)) == ("me", "you")
        assert keys.revoke(mine.split("_")[1])
        assert (owner_of(keys, mine), owner_of(keys, yours)) == (None, "you")

    def test_is_not_stored_in_redis(self, keys, redis):
        secret = keys.create("me").split("_", 2)[2]
        assert secret.encode() not in b"".join(redis.hgetall(KEYS).values())

    def test_owner_may_have_several_keys(self, keys):
        assert {owner_of(keys, keys.create("me")) for _ in range(3)} == {"me"}

    @pytest.mark.parametrize(
        "change",
        [
            lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
            lambda key: key + "A",
            lambda key: key[:-1],
            lambda key: key.upper(),
            lambda key: "lc_000000000000_" + key.split("_", 2)[2],
            lambda key: "",
            lambda key: "sk-something-else",
            lambda key: key + "\n",
            lambda key: "ключ",
        ],
    )
    def test_altered_key_is_not_valid(self, keys, change):
        assert owner_of(keys, change(keys.create("me"))) is None

    def test_is_compared_in_constant_time_even_if_unknown(self, keys, monkeypatch):
        compared = []
        real = hmac.compare_digest

        def compare_and_note(a, b):
            compared.append((a, b))
            return real(a, b)

        monkeypatch.setattr(hmac, "compare_digest", compare_and_note)
        owner_of(keys, keys.create("me"))
        owner_of(keys, "lc_000000000000_" + "A" * 43)
        assert [len(a) == len(b) for a, b in compared] == [True, True]

    @pytest.mark.parametrize("owner", ["", "a b", "a:b", "-a", "a" * 65, "ä", "a\n"])
    def test_invalid_owner_name_is_refused(self, keys, owner):
        with pytest.raises(InvalidOwner):
            keys.create(owner)
        assert not keys.any_exist()

    def test_key_from_the_settings_is_valid(self, redis):
        keys = ApiKeys(redis, SecretStr("a secret of mine"))
        assert keys.any_exist()
        assert owner_of(keys, "a secret of mine") == PRESET_OWNER
        assert owner_of(keys, "another") is None

    def test_revoked_key_stays_on_the_list(self, keys):
        for owner in ("me", "you"):
            keys.create(owner)
        keys.revoke(keys.all()[0].id)
        assert [(key.owner, key.revoked_at is None) for key in keys.all()] == [("me", False), ("you", True)]
        assert not keys.revoke("000000000000")
        assert keys.any_exist()


class TestExpiringKey:
    def test_is_valid_until_it_expires(self, keys):
        soon, past = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) - timedelta(seconds=1)
        assert owner_of(keys, keys.create("me", expires_at=soon)) == "me"
        assert owner_of(keys, keys.create("me", expires_at=past)) is None

    def test_expired_key_stays_on_the_list(self, keys):
        keys.create("me", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        assert [key.is_valid for key in keys.all()] == [False]
        assert keys.any_exist()

    def test_expiry_may_be_in_any_time_zone(self, keys):
        keys.create("me", expires_at=datetime.fromisoformat("2030-01-01T02:00:00+02:00"))
        assert keys.all()[0].expires_at == "2030-01-01T00:00:00.000000+00:00"


class TestLastUse:
    def test_is_recorded_at_most_once_a_minute(self, keys, redis):
        key = keys.create("me")
        assert keys.all()[0].last_used_at is None
        owner_of(keys, key)
        first = keys.all()[0].last_used_at
        assert datetime.now(UTC) - datetime.fromisoformat(first) < timedelta(minutes=1)
        owner_of(keys, key)
        assert keys.all()[0].last_used_at == first
        long_ago = datetime.now(UTC) - timedelta(seconds=61)
        redis.hset(LAST_USED, key.split("_")[1], long_ago.isoformat())
        owner_of(keys, key)
        assert keys.all()[0].last_used_at > first

    def test_is_not_recorded_for_an_invalid_key(self, keys):
        key = keys.create("me")
        owner_of(keys, key[:-4] + "AAAA")
        keys.revoke(key.split("_")[1])
        owner_of(keys, key)
        assert keys.all()[0].last_used_at is None

    def test_read_only_redis_still_authenticates(self, keys, redis):
        key = keys.create("me")
        redis.config_set("min-replicas-to-write", 1)
        try:
            assert owner_of(keys, key) == "me"
        finally:
            redis.config_set("min-replicas-to-write", 0)


class TestStoredKeys:
    def test_key_of_an_earlier_release_is_valid(self, keys, redis):
        key = keys.create("me")
        key_id = key.split("_")[1]
        new = json.loads(redis.hget(KEYS, key_id))
        old = {name: new[name] for name in ("id", "owner", "digest", "created_at", "revoked_at")}
        redis.hset(KEYS, key_id, json.dumps(old))
        assert keys.authenticate(key) == Caller("me", key_id, high_priority_allowed=False)

    def test_key_of_a_later_release_is_valid(self, keys, redis):
        key = keys.create("me")
        key_id = key.split("_")[1]
        redis.hset(KEYS, key_id, json.dumps(json.loads(redis.hget(KEYS, key_id)) | {"color": "blue"}))
        assert owner_of(keys, key) == "me"


HIGH = {"prompt": "a ball", "priority": "high"}


class TestHighPriority:
    @pytest.mark.parametrize("path", ["/generate", "/v1/videos"])
    def test_requires_a_key_that_allows_it(self, client, keys, path):
        answer = client.post(path, json=HIGH, headers=bearer(keys.create("me")))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (403, "priority_not_allowed")
        assert error.get("field", error.get("param")) == "priority"
        allowed = bearer(keys.create("me", high_priority=True))
        assert client.post(path, json=HIGH, headers=allowed).status_code in {200, 202}
        assert len(client.get("/jobs", headers=allowed).json()["jobs"]) == 1

    def test_is_refused_in_forms_and_extensions_too(self, client, worker, keys):
        headers = bearer(keys.create("me"))
        form = {"prompt": (None, "a ball"), "priority": (None, "high")}
        assert client.post("/generate", files=form, headers=headers).status_code == 403
        video = client.post("/v1/videos", json={"prompt": "a ball"}, headers=headers).json()
        worker.succeed(worker.claim(), video=clip())
        order = HIGH | {"video": {"id": video["id"]}, "seconds": "1"}
        answer = client.post("/v1/videos/extensions", json=order, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "priority_not_allowed")

    def test_is_allowed_for_everybody_while_no_key_exists(self, client):
        assert client.post("/generate", json=HIGH).status_code == 202

    def test_is_allowed_for_the_key_from_the_settings(self, redis_server, redis, tmp_path):
        set_only_pool(redis, CAPABILITY)
        client = TestClient(create_app(settings_for(redis_server, tmp_path, api_key="operator")))
        assert client.post("/generate", json=HIGH, headers=bearer("operator")).status_code == 202


@dataclass(frozen=True)
class Finished:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(redis_server, redis, monkeypatch, capsys):
    """Return a function that runs `python -m service.keys` in this process."""
    monkeypatch.setenv("LONGCAT_REDIS_URL", redis_server)

    def command(*arguments: str) -> Finished:
        try:
            code = main(arguments)
        except SystemExit as invalid:
            code = int(invalid.code or 0)
        return Finished(code, *capsys.readouterr())

    return command


class TestCommand:
    def test_creates_lists_and_revokes_keys(self, run, keys):
        key = run("create", "me").out.strip()
        assert owner_of(keys, key) == "me"
        key_id = key.split("_")[1]
        listed = run("list").out
        assert key_id in listed
        assert "me" in listed
        assert key not in listed
        assert run("revoke", key_id).code == 0
        assert owner_of(keys, key) is None
        assert "revoked" in run("list").out

    def test_creates_keys_with_expiry_and_high_priority(self, run, keys):
        run("create", "me", "--expires-in", "90d", "--allow-high")
        run("create", "you", "--expires-at", "2020-01-01T00:00:00Z")
        mine, yours = keys.all()
        days = (datetime.fromisoformat(mine.expires_at) - datetime.now(UTC)) / timedelta(days=1)
        assert 89.9 < days < 90
        assert (mine.high_priority, yours.high_priority) == (True, False)
        first, second = run("list").out.splitlines()
        assert f"expires {mine.expires_at}  never used  valid  high priority" in first
        assert second.endswith("never used  expired")

    def test_creates_keys_of_admins(self, run, keys):
        run("create", "ops", "--admin")
        run("create", "me")
        assert [key.admin for key in keys.all()] == [True, False]
        first, second = run("list").out.splitlines()
        assert first.endswith("valid  admin")
        assert second.endswith("valid")

    @pytest.mark.parametrize("expiry", ["--expires-in=soon", "--expires-at=2030-01-01", "--expires-at=x"])
    def test_invalid_time_is_refused(self, run, keys, expiry):
        assert run("create", "me", expiry).code == 2
        assert keys.all() == []

    def test_reports_errors(self, run):
        done = run("revoke", "nothing")
        assert (done.code, done.err) == (1, "error: there is no key nothing\n")
        done = run("create", "a b")
        assert done.code == 1
        assert done.err.startswith("error: an owner must match")
        assert run().code == 2

    def test_prints_the_webhook_secret(self, run, redis):
        assert run("webhook-secret", "me").out.strip() == Signer(redis, None).secret_of("me")

    def test_rotates_the_webhook_secret(self, run, redis):
        signer = Signer(redis, None)
        old = signer.secret_of("me")
        rotated = run("rotate-webhook-secret", "me", "--overlap", "1h").out.strip()
        assert rotated == signer.secret_of("me") != old
        assert len(signer.headers("me", "msg_1", 1_700_000_000, "{}")["webhook-signature"].split()) == 2

    def test_runs_as_a_module(self, redis_server, redis, keys):
        done = subprocess.run(
            [sys.executable, "-m", "service.keys", "create", "me"],
            env={**os.environ, "LONGCAT_REDIS_URL": redis_server},
            check=True,
            capture_output=True,
            text=True,
        )
        assert owner_of(keys, done.stdout.strip()) == "me"


class TestWithoutAnyKeys:
    def test_everybody_is_served_whatever_key_is_sent(self, client):
        assert client.get("/jobs").status_code == 200
        assert client.get("/jobs", headers=bearer("sk-something")).status_code == 200

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
    def test_service_listens_on_loopback(self, redis_server, tmp_path, keys, host):
        settings = settings_for(redis_server, tmp_path, host=host)
        assert not is_exposed(settings)
        check_exposure(settings, keys)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
    def test_service_refuses_to_listen_to_other_machines(self, redis_server, tmp_path, keys, host):
        settings = settings_for(redis_server, tmp_path, host=host)
        with pytest.raises(ExposedWithoutKeys, match=r"service\.keys create"):
            check_exposure(settings, keys)
        check_exposure(settings_for(redis_server, tmp_path, host=host, allow_no_keys=True), keys)
        keys.create("me")
        check_exposure(settings, keys)

    def test_process_exits_with_a_clear_error(self, redis_server, redis):
        done = subprocess.run(
            [sys.executable, "-m", "service"],
            env={**os.environ, "LONGCAT_REDIS_URL": redis_server, "LONGCAT_HOST": "0.0.0.0"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        last_line = done.stderr.splitlines()[-1]  # others may warn, for instance of how Redis is configured
        assert last_line.startswith("error: LONGCAT_HOST is 0.0.0.0")

    def test_exposed_service_requires_a_key_anyway(self, redis_server, redis, tmp_path):
        with TestClient(create_app(settings_for(redis_server, tmp_path, host="0.0.0.0"))) as client:
            assert client.get("/jobs").status_code == 401


class TestWithKeys:
    @pytest.fixture
    def mine(self, client, keys):
        return bearer(keys.create("me"))

    @pytest.fixture
    def yours(self, client, keys):
        return bearer(keys.create("you"))

    @pytest.mark.parametrize("given", [{}, bearer("x"), {"Authorization": "Basic eDp5"}])
    def test_request_without_a_key_is_refused_before_its_body_is_read(self, client, mine, given):
        for method, path in [
            *[("GET", "/jobs"), ("GET", "/jobs/x"), ("DELETE", "/jobs/x"), ("POST", "/jobs/x/cancel")],
            *[("GET", "/jobs/x/video"), ("GET", "/jobs/x/thumbnail"), ("GET", "/jobs/x/events")],
            ("GET", "/jobs/x/timeline"),
            ("POST", "/generate"),
        ]:
            answer = client.request(method, path, headers=given)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), path
            assert answer.headers["WWW-Authenticate"] == "Bearer"

    def test_pages_and_probes_need_no_key(self, client, mine):
        for path in ("/", "/livez", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 200

    def test_revoked_key_is_refused_immediately(self, client, keys, mine):
        assert client.get("/jobs", headers=mine).status_code == 200
        keys.revoke(keys.all()[0].id)
        assert client.get("/jobs", headers=mine).status_code == 401
        assert client.get("/jobs").status_code == 401

    def test_owner_sees_only_its_own_jobs(self, client, worker, mine, yours):
        job = client.post("/generate", json={"prompt": "a ball"}, headers=mine).json()
        worker.succeed(worker.claim())
        url = f"/jobs/{job['id']}"
        for path in (url, *(f"{url}/{part}" for part in ("video", "thumbnail", "timeline", "events"))):
            assert client.get(path, headers=mine).status_code == 200, path
            assert client.get(path, headers=yours).json()["error"]["code"] == "job_not_found", path
        assert [job["id"] for job in client.get("/jobs", headers=mine).json()["jobs"]] == [job["id"]]
        assert client.get("/jobs", headers=yours).json()["jobs"] == []
        assert client.get("/jobs", params={"after": job["id"]}, headers=yours).status_code == 404

    def test_every_route_hides_the_jobs_of_other_owners(self, client, worker, mine, yours):
        job_id = client.post("/generate", json={"prompt": "a ball"}, headers=mine).json()["id"]
        worker.succeed(worker.claim())
        routes = [
            (method, re.sub(r"{(job|video)_id}", job_id, path))
            for path, operations in client.app.openapi()["paths"].items()
            for method in operations
            if "{job_id}" in path or "{video_id}" in path
        ]
        assert len(routes) >= 11
        for method, url in routes:
            assert client.request(method, url, headers=yours).status_code == 404, (method, url)
        for url in ("/jobs", "/v1/videos"):
            assert client.get(url, params={"after": job_id}, headers=yours).status_code == 404, url
        extension = {"prompt": "go on", "seconds": "1", "video": {"id": job_id}}
        assert client.post("/v1/videos/extensions", json=extension, headers=yours).status_code == 404
        assert client.post("/v1/videos/extensions", json=extension, headers=mine).status_code != 404

    def test_owner_cannot_change_jobs_of_others(self, client, mine, yours):
        url = f"/jobs/{client.post('/generate', json={'prompt': 'a ball'}, headers=mine).json()['id']}"
        assert client.post(f"{url}/cancel", headers=yours).status_code == 404
        assert client.delete(url, headers=yours).status_code == 404
        assert client.get(url, headers=mine).json()["status"] == "queued"
        assert client.delete(url, headers=mine).status_code == 204

    def test_idempotency_keys_of_owners_are_separate(self, client, mine, yours):
        order = {"json": {"prompt": "a ball", "seed": 1}}
        made = [
            client.post("/generate", **order, headers={**whose, "Idempotency-Key": "k"}).json()["id"]
            for whose in (mine, yours, mine)
        ]
        assert made[0] == made[2] != made[1]

    def test_openai_routes_require_a_key(self, client, mine, yours):
        answer = client.get("/v1/videos")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        client.post("/generate", json={"prompt": "a ball"}, headers=mine)
        assert len(client.get("/v1/videos", headers=mine).json()["data"]) == 1
        assert client.get("/v1/videos", headers=yours).json()["data"] == []


class TestLimits:
    @pytest.fixture
    def limited(self, redis_server, redis, tmp_path):
        def open_app(**limits) -> TestClient:
            set_only_pool(redis, CAPABILITY)
            return TestClient(create_app(settings_for(redis_server, tmp_path, **limits)))

        return open_app

    def test_submission_to_a_full_queue_is_refused(self, limited):
        client = limited(total_queued_jobs=1)
        assert client.post("/generate", json={"prompt": "a ball"}).status_code == 202
        answer = client.post("/generate", json={"prompt": "a ball"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "limit_reached")
        assert answer.headers["X-Limit"] == "total_queued_jobs"
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["error"]["message"].startswith("total_queued_jobs: at most 1")

    def test_requests_over_the_rate_limit_are_refused(self, limited):
        client = limited(owner_requests_per_s=0.001)
        assert client.get("/jobs").status_code == 200
        answer = client.get("/jobs")
        assert (answer.status_code, answer.headers["X-Limit"]) == (429, "owner_requests_per_s")
        assert 900 < int(answer.headers["Retry-After"]) <= 1000
        assert client.get("/livez").status_code == 200

    def test_one_request_counts_once(self, limited):
        client = limited(owner_requests_per_s=2)
        assert client.post("/generate", json={"prompt": "a ball"}).status_code == 202
        assert client.get("/jobs").status_code == 200

    def test_queue_is_limited_by_default(self, redis_server, tmp_path):
        assert settings_for(redis_server, tmp_path).total_queued_jobs
