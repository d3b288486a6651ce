"""Whatever is ordered: an accepted order obeys the model's rules, a refused one names its field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from jobs.order import Order
from model.spec.shapes import Clip, GenerationParams, Size, resolve
from service.jobs.bodies import MAX_SEED, GenerateRequest
from tests.service.conftest import CAPABILITY, LIMITS, TASKS
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


def wish_of(order: Order) -> GenerationParams:
    """What somebody would have to ask for, saying everything, to get this order."""
    files = {name: getattr(order, name) for name in ("image", "video", "condition_video")}
    clips: dict[str, Any] = {
        name: Clip(file.height, file.width, file.num_frames) for name, file in files.items() if file
    }
    chosen: dict[str, Any] = {
        "num_inference_steps": order.num_inference_steps,
        "t_thresh": order.refinement and order.refinement.t_thresh,
        "spatial_refine_only": bool(order.refinement and order.refinement.spatial_only),
    }
    if order.task != "refine":
        chosen |= {
            name: getattr(order, name)
            for name in ("height", "width", "num_frames", "num_segments", "guidance_scale", "distilled")
        }
        chosen |= {"refine": order.refinement is not None, "condition_cache": order.condition_cache}
        chosen |= {"num_condition_frames": order.num_condition_frames or None, "enhance_hf": order.enhance_hf}
    elif order.condition_video:
        assert order.refinement
        chosen |= {"num_condition_frames": order.refinement.num_held}
    return GenerationParams(task=order.task, num_prompts=len(order.prompts), **clips, **chosen)


def check_order(order: Order) -> None:
    """What the model can rely on, said a second time and in other words than `settle` says it."""
    plan = resolve(wish_of(order), LIMITS)
    for name in (
        "task",
        "height",
        "width",
        "num_frames",
        "num_segments",
        "num_condition_frames",
        "guidance_scale",
    ):
        assert getattr(plan, name) == getattr(order, name), name
    assert plan.num_inference_steps == order.num_inference_steps
    assert (plan.refinement is None) == (order.refinement is None)
    assert len(order.prompts) in {1, order.num_segments}
    assert all(1 <= len(prompt) <= LIMITS.max_prompt_characters for prompt in order.prompts)
    assert 0 <= order.seed <= MAX_SEED
    assert (order.negative_prompt is not None) == (order.guidance_scale > 1)
    assert 1 <= order.num_frames <= LIMITS.max_num_frames
    if order.task != "refine":
        assert (order.height % 16, order.width % 16, order.num_frames % 4) == (0, 0, 1)
        assert order.height * order.width <= LIMITS.max_pixels
        assert order.num_condition_frames == 0 or order.num_condition_frames % 4 == 1
    if order.refinement:
        size = Size(order.refinement.height, order.refinement.width)
        assert size in LIMITS.refine_buckets.values()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(body=LEGAL | NEARLY_LEGAL | ANYTHING)
def test_an_accepted_request_is_an_order_that_the_model_accepts(client, worker, body):
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(body=LEGAL)
def test_an_order_can_be_ordered_again_from_what_is_shown(client, body):
    inputs = {name: body[name] for name in ("image", "video") if name in body}
    shown = client.post("/generate", json=body).json()["request"]
    settled = {name: value for name, value in shown.items() if name not in {"fps", "refinement"}}
    if not settled["num_condition_frames"]:
        del settled["num_condition_frames"]
    assert client.post("/generate", json=settled | inputs).json()["request"] == shown


class TestWhatACheckpointCannotDo:
    @pytest.fixture
    def poor(self, client, redis):
        """A client of a service whose worker has no LoRA, and makes videos of texts alone."""
        CAPABILITY.model_copy(update={"loras": (), "tasks": ("text_to_video", "refine")}).publish(redis)
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
    def test_is_refused(self, poor, field, change):
        answer = poor.post("/generate", json={"prompt": "a red ball", **change})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)

    def test_does_not_keep_it_from_the_rest(self, poor):
        assert poor.post("/generate", json={"prompt": "a red ball"}).status_code == 202


def test_what_may_be_ordered_stays_while_workers_are_away(client):
    assert client.get("/readyz").status_code == 503
    assert client.post("/generate", json={"prompt": "a red ball"}).status_code == 202


def test_before_any_worker_has_come_orders_are_refused_for_now(no_worker_yet):
    answer = no_worker_yet.post("/generate", json={"prompt": "a red ball"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
    assert int(answer.headers["Retry-After"]) > 0
    assert no_worker_yet.get("/jobs").json()["jobs"] == []
