"""An accepted request becomes a valid order; a refused one names its field."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from jobs.order import Order
from model.spec.geometry import Clip, Size
from model.spec.params import MAX_SEED, GenerationParams
from model.spec.plan import Plan
from model.spec.resolve import Inputs, resolve
from service.app import create_app
from service.jobs.bodies import GenerateRequest
from service.jobs.orders import prompt_warnings
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, LIMITS, TASKS, settings_for
from tests.service.media import clip, encoded, in_base64, picture

IMAGES = [{"base64": in_base64(encoded(picture(*size)))} for size in ((64, 96), (96, 64), (40, 400))]
CLIPS = [
    {"base64": in_base64(clip(frames, *size))}
    for frames, size in ((3, (64, 96)), (9, (96, 64)), (34, (48, 80)))
]

near = st.sampled_from  # values on both sides of a bound are what is worth trying
ANYTHING = st.fixed_dictionaries(
    {},
    optional={
        "task": near([*TASKS, "dance"]),
        "prompt": near(["a red ball", "", "x" * 200, "x" * 201]) | st.text(max_size=20),
        "prompts": st.lists(near(["one", "two", ""]), max_size=5),
        "negative_prompt": near(["", "blurred", "x" * 201]),
        "image": near(IMAGES),
        "video": near(CLIPS),
        "condition_video": near(CLIPS),
        "resolution": near(["small", "large", "720p"]),
        "height": near([16, 32, 48, 64, 128, 192, 1024]) | st.integers(-10, 2000),
        "width": near([16, 32, 48, 64, 128, 192, 1024]) | st.integers(-10, 2000),
        "num_frames": near([1, 5, 9, 17, 33, 37]) | st.integers(-1, 40),
        "num_segments": st.integers(0, 5),
        "num_condition_frames": near([1, 5, 9, 13, 17]) | st.integers(0, 40),
        "num_inference_steps": near([1, 50, 51, 60, 61]) | st.integers(-1, 70),
        "guidance_scale": near([0, 1, 1.0, 4.0, 20.0, 20.5])
        | st.floats(allow_nan=False, allow_infinity=False),
        "distilled": st.booleans(),
        "refine": st.booleans(),
        "t_thresh": near([0, 0.5, 1.0, 1.01]) | st.floats(-1, 2),
        "spatial_refine_only": st.booleans(),
        "condition_cache": st.booleans(),
        "enhance_hf": st.booleans(),
        "seed": near([0, MAX_SEED, MAX_SEED + 1, -1]) | st.integers(0, 1 << 32),
        "quality": near(["exact", "balanced", "best"]),
        "priority": near(["high", "normal", "low", "urgent"]),
        "metadata": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    },
)
LEGAL_TEXTS = near(
    [{"prompt": "a red ball"}, {"prompts": ["one", "two", "three"]}, {"prompt": "a", "num_segments": 4}]
)
LEGAL_INPUTS = near([{}, {"image": IMAGES[2]}, {"video": CLIPS[1]}])
LEGAL_EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "num_frames": near([9, 17, 33]),
        "num_inference_steps": st.integers(1, 50),
        "guidance_scale": st.floats(1.0, 20.0) | near([1.0]),
        "resolution": near(["small", "large"]),
        "condition_cache": st.booleans(),
        "seed": st.integers(0, MAX_SEED),
    },
)
LEGAL = st.builds(
    lambda *parts: {**parts[0], **parts[1], **parts[2]}, LEGAL_TEXTS, LEGAL_INPUTS, LEGAL_EXTRAS
)
NEARLY_LEGAL = st.builds(lambda legal, wild: {**legal, **dict(list(wild.items())[:2])}, LEGAL, ANYTHING)


def explicit_request(order: Order) -> tuple[GenerationParams, Inputs]:
    """Return the request that sets every option explicitly and resolves to this order."""
    plan = order.plan
    files = {"image": order.image, "video": order.video, "condition_video": order.condition_video}
    clips = {name: Clip(file.height, file.width, file.num_frames) for name, file in files.items() if file}
    inputs = Inputs(
        num_prompts=len(order.prompts),
        image=clips["image"].size if order.image else None,
        video=clips.get("video"),
        condition_video=clips.get("condition_video"),
    )
    options: dict[str, Any] = {
        "task": plan.task,
        "num_inference_steps": plan.num_inference_steps,
        "t_thresh": plan.refinement and plan.refinement.t_thresh,
        "spatial_refine_only": bool(plan.refinement and plan.refinement.spatial_only),
    }
    if plan.task != "refine":
        same = {"height", "width", "num_frames", "num_segments", "guidance_scale", "distilled"}
        options |= {name: getattr(plan, name) for name in same | {"condition_cache", "enhance_hf"}}
        options |= {"refine": plan.refinement is not None}
        options |= {"num_condition_frames": plan.num_condition_frames or None}
    elif order.condition_video:
        assert plan.refinement
        options |= {"num_condition_frames": plan.refinement.num_held}
    return GenerationParams(**options), inputs


def check_order(order: Order) -> None:
    """Check what the model relies on, independently of how the service resolved it."""
    plan = order.plan
    params, inputs = explicit_request(order)
    again = resolve(params, inputs, LIMITS)
    for name in Plan.model_fields.keys() - {"refinement"}:
        assert getattr(again, name) == getattr(plan, name), name
    assert (again.refinement is None) == (plan.refinement is None)
    assert len(order.prompts) in {1, plan.num_segments}
    assert all(1 <= len(prompt) <= LIMITS.max_prompt_characters for prompt in order.prompts)
    assert 0 <= order.seed <= MAX_SEED
    assert (order.negative_prompt is not None) == (plan.guidance_scale > 1)
    assert 1 <= plan.num_frames <= LIMITS.max_num_frames
    if plan.task != "refine":
        assert (plan.height % 16, plan.width % 16, plan.num_frames % 4) == (0, 0, 1)
        assert plan.height * plan.width <= LIMITS.max_pixels
        assert plan.num_condition_frames == 0 or plan.num_condition_frames % 4 == 1
    if plan.refinement:
        size = Size(plan.refinement.height, plan.refinement.width)
        assert size in LIMITS.refine_buckets.values()


@pytest.mark.parametrize("max_examples", [50, pytest.param(150, marks=pytest.mark.integration)])
def test_an_accepted_request_becomes_a_valid_order(client, worker, max_examples):
    @settings(max_examples=max_examples)
    @given(body=LEGAL | NEARLY_LEGAL | ANYTHING)
    def check(body):
        before = sum(worker.job_store.client.counts().values())
        answer = client.post("/generate", json=body)
        queued = sum(worker.job_store.client.counts().values()) - before
        event(f"answered {answer.status_code}")
        if answer.status_code == 202:
            assert queued == 1
            check_order(worker.job_store.client.get(answer.json()["id"]).order)
        else:
            assert (answer.status_code, queued) == (422, 0)
            assert answer.json()["error"]["field"].partition(".")[0] in GenerateRequest.model_fields

    check()


def without_job_ids(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request as a job shows it, but for the job that has its inputs."""
    inputs = {name: request[name] for name in ("image", "video", "condition_video") if request[name]}
    return request | {
        name: {fact: value for fact, value in shown.items() if fact != "job_id"}
        for name, shown in inputs.items()
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(body=LEGAL | NEARLY_LEGAL | ANYTHING)
def test_the_request_in_a_job_view_can_be_sent_again(client, body):
    answer = client.post("/generate", json=body)
    if answer.status_code != 202:
        return
    job = answer.json()
    for again in (
        client.post("/generate", json=job["request"]),
        client.post(f"/jobs/{job['id']}/retry"),
    ):
        assert again.status_code == 202, again.text
        assert without_job_ids(again.json()["request"]) == without_job_ids(job["request"])


class TestCheckpointWithoutLoras:
    @pytest.fixture
    def limited_client(self, client, redis):
        """A client of a service whose checkpoint has no LoRA and only some tasks."""
        set_only_pool(
            redis, CAPABILITY.model_copy(update={"loras": (), "tasks": ("text_to_video", "refine")})
        )
        return client

    @pytest.mark.parametrize(
        ("field", "change"),
        [
            ("distilled", {"distilled": True}),
            ("refine", {"refine": True}),
            ("task", {"task": "refine", "video": CLIPS[0]}),
            ("task", {"image": IMAGES[0]}),
            ("task", {"num_segments": 2}),
        ],
    )
    def test_refuses_requests_that_need_one(self, limited_client, field, change):
        answer = limited_client.post("/generate", json={"prompt": "a red ball", **change})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)

    def test_accepts_other_requests(self, limited_client):
        assert limited_client.post("/generate", json={"prompt": "a red ball"}).status_code == 202


def test_requests_are_accepted_while_all_workers_are_away(client):
    assert client.get("/readyz?workers=1").status_code == 503
    assert client.post("/generate", json={"prompt": "a red ball"}).status_code == 202


def test_requests_are_refused_before_the_first_worker_starts(no_worker_yet):
    answer = no_worker_yet.post("/generate", json={"prompt": "a red ball"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
    assert int(answer.headers["Retry-After"]) > 0
    assert no_worker_yet.get("/jobs").json()["jobs"] == []


def test_requests_are_accepted_against_the_configured_capability_before_the_first_worker_starts(
    redis_server, redis, tmp_path
):
    path = tmp_path / "capability.json"
    path.write_text(CAPABILITY.model_dump_json())
    app = create_app(settings_for(redis_server, tmp_path, capability_file=path, queue_without_group_s=0))
    with TestClient(app) as client:
        answer = client.post("/generate", json={"prompt": "a red ball"})
        assert (answer.status_code, answer.json()["waiting_for"]) == (202, "no live group can run this job")
        assert client.post("/generate", json={"prompt": "x", "model": "other"}).status_code == 422
        (pool,) = client.get("/capability").json()["pools"]
        assert (pool["num_groups"], pool["queued_jobs"]) == (0, 1)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_capability_file_that_cannot_be_read_is_refused_at_the_start(redis_server, tmp_path, content):
    path = tmp_path / "capability.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="must be a capability"):
        settings_for(redis_server, tmp_path, capability_file=path)


@pytest.mark.parametrize(
    ("prompt", "warning"),
    [
        ("a magenta ball", "the model does not know the word magenta"),
        ("a magenta ball wobbles", "the model does not know the words magenta, wobbles"),
    ],
)
def test_unknown_words_of_a_prompt_are_named(prompt, warning):
    plan = resolve(GenerationParams(task="text_to_video"), Inputs(num_prompts=1), LIMITS)
    order = Order(plan=plan, prompts=(prompt,), seed=1)
    assert prompt_warnings(order, ["a", "ball"]) == (f"prompt: {warning}",)
    assert prompt_warnings(order, prompt.split()) == ()
