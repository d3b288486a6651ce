"""Requests are accepted if some group can run them, and go to a group that can."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from redis import Redis
from starlette.testclient import TestClient

from jobs.capability import Capability
from jobs.registration import POOLS_KEY, GroupRegistration, GroupState
from jobs.storage.keys import new_job_id
from model.spec.limits import Limits
from model.spec.memory import CheckpointSizes, MemoryBudget, Setup, memory_needed
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from service.app import create_app
from service.jobs.pools import choose_model
from tests.service.conftest import CAPABILITY, settings_for
from tests.waiting import wait_until

FULL = CAPABILITY.model_copy(update={"weights": {"transformer": "aaaa", "cfg_step_lora": "bbbb"}})
PLAIN = FULL.model_copy(
    update={"loras": (), "tasks": CAPABILITY.tasks[:-1], "weights": {"transformer": "aaaa"}}
)
CANARY = FULL.model_copy(update={"model": "canary", "weights": {"transformer": "cccc"}})
DISTILLED = {"prompt": "a red ball", "distilled": True}


@pytest.fixture
def register(redis: Redis):
    def register(group: str, capability, state: GroupState = "ready") -> GroupRegistration:
        registration = GroupRegistration(redis, group, ttl_s=600)
        registration.heartbeat(state, 1, None, capability)
        return registration

    return register


@pytest.fixture
def shared(redis_server: str, tmp_path: Path):
    """A service that gives a share of its jobs to the canary."""
    settings = settings_for(redis_server, tmp_path, model_shares="LongCat-Video=95,canary=5")
    with TestClient(create_app(settings)) as client:
        yield client


def test_request_is_accepted_if_one_of_several_pools_can_run_it(no_worker_yet, register):
    register("plain", PLAIN)
    register("full", FULL)
    assert no_worker_yet.post("/generate", json=DISTILLED).status_code == 202
    assert set(no_worker_yet.get("/capability").json()["loras"]) == set(FULL.loras)


def test_request_that_no_pool_can_run_is_refused(no_worker_yet, register):
    register("plain", PLAIN)
    answer = no_worker_yet.post("/generate", json=DISTILLED)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "distilled")


def test_group_claims_only_what_it_can_run(no_worker_yet, register, worker):
    register("plain", PLAIN)
    register("full", FULL)
    distilled = no_worker_yet.post("/generate", json=DISTILLED).json()["id"]
    plain = no_worker_yet.post("/generate", json={"prompt": "a red ball"}).json()["id"]
    claim = worker.job_store.holder.claim
    assert claim("plain", 60, PLAIN).job.id == plain
    assert claim("plain", 60, PLAIN) is None
    assert claim("full", 60, FULL).job.id == distilled


def test_job_whose_groups_have_gone_is_accepted_and_says_what_it_waits_for(no_worker_yet, register):
    register("plain", PLAIN)
    register("full", FULL).release()
    job = no_worker_yet.post("/generate", json=DISTILLED).json()
    assert job["waiting_for"] == "no live group can run this job"
    assert job["progress"] is None
    register("full", FULL)
    wait_until(lambda: no_worker_yet.get(f"/jobs/{job['id']}").json()["waiting_for"] is None)


def test_request_is_refused_if_its_groups_have_been_away_for_too_long(no_worker_yet, register, redis):
    register("plain", PLAIN)
    register("full", FULL).release()
    redis.zincrby(POOLS_KEY, -2 * 86400 * 1000, FULL.pool)
    answer = no_worker_yet.post("/generate", json=DISTILLED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_suitable_worker")
    assert "48.0 hours ago" in answer.json()["error"]["message"]
    assert no_worker_yet.post("/generate", json={"prompt": "a red ball"}).status_code == 202


class TestModel:
    def test_named_model_is_the_only_one_that_runs_the_job(self, no_worker_yet, register, worker):
        register("base", FULL)
        register("canary", CANARY)
        job = no_worker_yet.post("/generate", json={"prompt": "a red ball", "model": "canary"}).json()
        assert job["request"]["model"] == "canary"
        assert worker.job_store.holder.claim("base", 60, FULL) is None
        assert worker.job_store.holder.claim("canary", 60, CANARY).job.id == job["id"]

    def test_unknown_model_is_refused_with_the_known_ones(self, no_worker_yet, register):
        register("base", FULL)
        register("canary", CANARY)
        answer = no_worker_yet.post("/generate", json={"prompt": "a red ball", "model": "dog"})
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == "model: must be one of LongCat-Video, canary"

    def test_models_of_openai_are_accepted_and_others_are_not(self, no_worker_yet, register):
        register("base", FULL)
        made = no_worker_yet.post("/v1/videos", json={"prompt": "a red ball", "model": "sora-2"})
        assert (made.status_code, made.json()["model"]) == (200, "LongCat-Video")
        refused = no_worker_yet.post("/v1/videos", json={"prompt": "a red ball", "model": "dog"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")

    def test_job_of_any_model_is_claimed_by_every_group(self, no_worker_yet, register, worker):
        register("base", FULL)
        register("canary", CANARY)
        for _ in range(2):
            assert no_worker_yet.post("/generate", json={"prompt": "a"}).json()["request"]["model"] is None
        assert worker.job_store.holder.claim("canary", 60, CANARY)
        assert worker.job_store.holder.claim("base", 60, FULL)


class TestShares:
    def test_model_is_chosen_by_weight_and_job_id(self):
        shares = {"LongCat-Video": 95.0, "canary": 5.0}
        ids = [new_job_id() for _ in range(4000)]
        chosen = Counter(choose_model(shares, job_id) for job_id in ids)
        assert 0.03 < chosen["canary"] / len(ids) < 0.07
        assert choose_model(shares, ids[0]) == choose_model(shares, ids[0])

    def test_job_is_bound_to_the_model_that_was_chosen(self, shared, register, redis):
        register("base", FULL)
        register("canary", CANARY)
        jobs = [shared.post("/generate", json={"prompt": "a red ball"}).json() for _ in range(10)]
        expected = [choose_model({"LongCat-Video": 95, "canary": 5}, job["id"]) for job in jobs]
        assert [job["request"]["model"] for job in jobs] == expected

    def test_share_of_a_model_without_live_groups_goes_to_others(self, shared, register, redis):
        register("base", FULL)
        register("canary", CANARY).release()
        jobs = [shared.post("/generate", json={"prompt": "a red ball"}).json() for _ in range(30)]
        assert {job["request"]["model"] for job in jobs} == {"LongCat-Video"}

    def test_request_that_the_chosen_model_cannot_run_goes_to_another(self, shared, register, redis):
        register("base", FULL)
        register("canary", CANARY.model_copy(update={"loras": ()}))
        jobs = [shared.post("/generate", json=DISTILLED).json() for _ in range(30)]
        assert {job["request"]["model"] for job in jobs} == {"LongCat-Video"}


def test_capability_shows_pools_with_their_queues(no_worker_yet, register):
    register("plain", PLAIN)
    register("full", FULL)
    register("full-2", FULL)
    no_worker_yet.post("/generate", json=DISTILLED)
    no_worker_yet.post("/generate", json={"prompt": "a red ball"})
    pools = no_worker_yet.get("/capability").json()["pools"]
    assert [(pool["name"], pool["num_groups"], pool["queued_jobs"]) for pool in pools] == [
        (FULL.pool, 2, 2),
        (PLAIN.pool, 1, 1),
    ]
    assert pools[0]["weights"] == FULL.weights


def test_metrics_show_the_queue_of_each_pool(no_worker_yet, register):
    register("plain", PLAIN)
    register("full", FULL).release()
    no_worker_yet.post("/generate", json=DISTILLED)
    no_worker_yet.post("/generate", json={"prompt": "a red ball"})
    lines = no_worker_yet.get("/metrics").text.splitlines()
    assert f'longcat_pool_queued_jobs{{pool="{PLAIN.pool}"}} 1.0' in lines
    assert f'longcat_pool_groups{{pool="{PLAIN.pool}"}} 1.0' in lines
    assert "longcat_jobs_without_group 1.0" in lines


def test_broken_group_does_not_count_as_up(no_worker_yet, register):
    register("busy", FULL, "busy")
    register("broken", FULL, "broken")
    lines = no_worker_yet.get("/metrics").text.splitlines()
    assert f'longcat_pool_groups{{pool="{FULL.pool}"}} 1.0' in lines
    assert f'longcat_pool_busy_share{{pool="{FULL.pool}"}} 1.0' in lines
    assert [pool["num_groups"] for pool in no_worker_yet.get("/capability").json()["pools"]] == [1]


def test_position_counts_only_jobs_that_wait_for_the_same_groups(no_worker_yet, register):
    register("plain", PLAIN)
    register("full", FULL).release()
    for _ in range(3):
        no_worker_yet.post("/generate", json=DISTILLED)
    assert no_worker_yet.post("/generate", json={"prompt": "a red ball"}).json()["queue_position"] == 1


class TestMemory:
    """Sizes of the released checkpoint, for the small videos of the tests."""

    SIZES = CheckpointSizes(1000, 0, 1000, 1000, width=64, depth=2)

    def with_memory(self, num_bytes: int) -> Capability:
        return FULL.model_copy(update={"memory": MemoryBudget(num_bytes, self.SIZES)})

    def needed(self, **request) -> int:
        """Return what a request needs, in bytes."""
        plan = resolve(GenerationParams(**request), Inputs(), Limits.from_json(FULL.limits))
        return memory_needed(self.SIZES, plan, Setup()).total

    def test_request_that_fits_no_group_is_refused_with_what_would_fit(self, no_worker_yet, register):
        short = self.needed(num_frames=9)
        register("small", self.with_memory(short))
        answer = no_worker_yet.post("/generate", json={"prompt": "a red ball", "num_frames": 17})
        error = answer.json()["error"]
        assert (answer.status_code, error["field"]) == (422, "num_frames")
        assert error["message"].endswith("9 frames of this size fit")
        fits = no_worker_yet.post("/generate", json={"prompt": "a red ball", "num_frames": 9})
        assert fits.status_code == 202

    def test_request_without_any_length_that_fits_is_refused(self, no_worker_yet, register):
        register("tiny", self.with_memory(3000))
        answer = no_worker_yet.post("/generate", json={"prompt": "a red ball"})
        assert answer.status_code == 422
        assert "no length of this size fits" in answer.json()["error"]["message"]

    def test_only_a_group_with_enough_memory_claims_the_job(self, no_worker_yet, register, worker):
        small = self.with_memory(self.needed(num_frames=9))
        large = self.with_memory(self.needed(num_frames=17))
        register("small", small)
        register("large", large)
        long = no_worker_yet.post("/generate", json={"prompt": "a red ball", "num_frames": 17}).json()["id"]
        short = no_worker_yet.post("/generate", json={"prompt": "a red ball", "num_frames": 9}).json()["id"]
        claimed = [
            worker.job_store.holder.claim("g", 600.0, capability) for capability in (small, small, large)
        ]
        assert [lease and lease.job.id for lease in claimed] == [short, None, long]

    def test_capability_shows_the_memory(self, no_worker_yet, register):
        register("small", self.with_memory(5000))
        shown = no_worker_yet.get("/capability").json()
        assert shown["memory"]["available_bytes"] == shown["pools"][0]["memory"]["available_bytes"] == 5000
