from __future__ import annotations

import pytest
from torch import Tensor

from model.parallel.mesh import SINGLE
from model.spec.plan import Refinement
from model.spec.stages import StageShape
from tests.orders import make_order
from tests.service.media import clip, encoded, picture
from tests.worker.examples import ORDER
from worker.messages import RunJob
from worker.rank import model_engine
from worker.rank.model_engine import build_request
from worker.settings import WorkerSettings


@pytest.fixture
def run(tmp_path):
    def of(inputs, **changes):
        for name, content in inputs.items():
            (tmp_path / name).write_bytes(content)
        order = make_order(ORDER, **changes)
        return RunJob(job_id="a", order=order, folder=tmp_path, inputs={name: name for name in inputs})

    return of


def shape(frames: Tensor | None) -> tuple[int, ...]:
    assert frames is not None
    return tuple(frames.shape)


def test_continuation_reads_only_the_last_frames_in_the_size_of_the_plan(run):
    order = run({"video": clip(30, 96, 128)}, task="video_continuation", num_condition_frames=5)
    assert shape(build_request(order, with_inputs=True).video) == (5, 64, 96, 3)


def test_refinement_reads_the_whole_clip_and_its_condition_frames(run):
    refinement = Refinement(
        height=128, width=192, num_inference_steps=2, t_thresh=0.5, spatial_only=True, num_held=3
    )
    videos = {"video": clip(9, 64, 96), "condition_video": clip(12, 32, 48)}
    request = build_request(run(videos, task="refine", refinement=refinement), with_inputs=True)
    assert shape(request.video) == (9, 64, 96, 3)
    assert shape(request.condition_video) == (3, 128, 192, 3)


def test_image_is_read_in_its_own_size(run):
    order = run({"image.png": encoded(picture())}, task="image_to_video")
    order = order.model_copy(update={"inputs": {"image": "image.png"}})
    assert shape(build_request(order, with_inputs=True).image) == (64, 96, 3)


def test_without_inputs_no_file_is_read(run):
    order = run({"video": b"none"}, task="video_continuation", num_condition_frames=5)
    assert build_request(order, with_inputs=False).video is None


def test_kernels_are_compiled_for_the_requests_that_the_checkpoint_and_the_memory_allow(
    tiny_checkpoint, tmp_path, monkeypatch, caplog
):
    warmed: list[StageShape] = []
    monkeypatch.setattr(model_engine, "fuse", lambda dit, wanted: True)
    monkeypatch.setattr(model_engine, "warm_up", lambda dit, shape, num_tokens, place: warmed.append(shape))
    requests = [
        {"num_frames": 9, "guidance_scale": 1},
        {"num_frames": 9, "no_option": 1},
        {"num_frames": 8},
        {"num_frames": 9, "height": 96, "width": 144},
        {"num_frames": 9, "task": "image_to_video"},
    ]
    settings = WorkerSettings(checkpoint=tiny_checkpoint, device="cpu", gpu_memory_gib=0.064)
    setup = settings.rank_setup(tmp_path / "socket").model_copy(update={"warm_up": tuple(requests)})
    model_engine.load_engine(setup, SINGLE)
    shapes = [(shape.num_condition, shape.num_frames, shape.num_texts) for shape in warmed]
    assert shapes == [(0, 3, 1), (1, 3, 2)]
    assert "no_option" in caplog.text
    assert "num_frames" in caplog.text
