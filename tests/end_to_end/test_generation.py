"""Generate videos from prompts and images over HTTP, with Redis and two ranks that share the transformer."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from tests.decoded_video import SAME_VIDEO_DB, boxes, decode, psnr
from tests.rights import open_to_others
from tests.running_stack import JOB_TIMEOUT_S, run_stack
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

PHASES = ["load", "encode", "denoise", "refine", "decode", "upload"]


@pytest.fixture(scope="module")
def prompted(stack):
    """Return a finished job of a prompt, and its video."""
    job = stack.succeeded(stack.order(prompt="A red ball rolls", seed=7))
    return job, stack.video(job)


def test_video_of_a_prompt_matches_the_result_of_its_job(prompted):
    job, content = prompted
    result, video = job["result"], decode(content)
    assert video.size == (result["width"], result["height"]) == (96, 64)
    assert len(video.frames) == result["num_frames"] == 17
    assert video.fps == result["fps"] == 15
    assert result["duration_s"] == pytest.approx(17 / 15)
    assert (len(content), hashlib.sha256(content).hexdigest()) == (result["size_bytes"], result["sha256"])
    assert result["seed"] == job["request"]["seed"] == 7


def test_video_is_h264_and_can_be_played_while_it_loads(prompted):
    _, content = prompted
    video = decode(content)
    assert (video.codec, video.pixel_format) == ("h264", "yuv420p")
    assert boxes(content).index("moov") < boxes(content).index("mdat")


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_reports_no_error(prompted, tmp_path):
    (tmp_path / "video.mp4").write_bytes(prompted[1])
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", "video.mp4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (stream,) = json.loads(done.stdout)["streams"]
    assert done.stderr == ""
    assert (stream["codec_name"], stream["pix_fmt"], stream["nb_read_frames"]) == ("h264", "yuv420p", "17")


def test_frames_differ(prompted):
    frames = decode(prompted[1]).frames.astype(int)
    assert frames.std() > 1
    assert np.abs(frames[1:] - frames[:-1]).mean() > 0.1


def test_range_request_returns_part_of_the_video(stack, prompted):
    job, content = prompted
    answer = stack.client.get(job["result"]["video_url"], headers={"Range": "bytes=100-299"})
    assert (answer.status_code, answer.content) == (206, content[100:300])


def test_thumbnail_has_the_proportions_of_the_video(stack, prompted):
    answer = stack.client.get(prompted[0]["result"]["thumbnail_url"])
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.format == "JPEG"
        assert image.width / image.height == pytest.approx(96 / 64, rel=0.02)


def test_timings_are_given_for_each_phase(prompted):
    timings = prompted[0]["timings_s"]
    assert {"encode", "denoise", "decode"} <= set(timings) <= set(PHASES)
    assert all(seconds >= 0 for seconds in timings.values())


def test_timeline_shows_all_stages_in_order(stack, prompted):
    events = stack.client.get(f"/jobs/{prompted[0]['id']}/timeline").json()["traceEvents"]
    done = {event["name"]: event for event in events if event["ph"] == "X"}
    wanted = ["queued", "fetch", "wait", "encode", "denoise", "decode", "join", "video", "thumbnail"]
    assert sorted(wanted, key=lambda name: done[name]["ts"]) == wanted
    assert (
        sum(event["name"].startswith("step ") for event in events)
        == prompted[0]["request"]["num_inference_steps"]
    )


def test_spans_of_a_job_form_one_trace(prompted, collector):
    (ran,) = wait_until(lambda: [span for span in collector.of(prompted[0]["id"]) if span.name == "run"])
    spans = [span for span in collector.spans if span.trace_id == ran.trace_id]
    below = {span.name: span.parent_id for span in spans}
    beside = {"fetch", "wait", "x264, the rest", "join", "video", "thumbnail"}
    assert {"POST /generate", "queue", "run", *PHASES, *beside} - {"refine", "save"} == set(below) - {"save"}
    (post,) = [span for span in spans if span.name == "POST /generate"]
    assert (below["queue"], below["run"]) == (post.span_id, post.span_id)
    assert {below[phase] for phase in PHASES if phase in below} == {ran.span_id}
    assert {span.process for span in spans} == {"longcat-service", "longcat-worker"}


def test_same_request_gives_the_same_video(stack, prompted):
    again = stack.succeeded(stack.order(prompt="A red ball rolls", seed=7))
    assert again["result"]["sha256"] == prompted[0]["result"]["sha256"]


def test_another_seed_gives_another_video(stack, prompted):
    other = stack.succeeded(stack.order(prompt="A red ball rolls", seed=8))
    assert other["result"]["sha256"] != prompted[0]["result"]["sha256"]


@pytest.mark.soak
def test_one_rank_generates_the_same_video_as_two(prompted, tiny_checkpoint, tmp_path):
    with run_stack(tmp_path, tiny_checkpoint, ranks=1) as alone:
        content = alone.video(alone.succeeded(alone.order(prompt="A red ball rolls", seed=7)))
        other = alone.video(alone.succeeded(alone.order(prompt="A red ball rolls", seed=8)))
    expected = decode(prompted[1]).frames
    assert psnr(decode(content).frames, expected) > SAME_VIDEO_DB
    assert psnr(decode(other).frames, expected) < SAME_VIDEO_DB - 10


@pytest.fixture(params=["multipart", "base64", "url"])
def job_with_image(request, stack, picture, image_url):
    """Submit a job with the image, sent in each of the three ways."""
    if request.param == "multipart":
        answer = stack.client.post(
            "/generate", data={"prompt": "a cat", "seed": "3"}, files={"image": picture}
        )
        assert answer.status_code == 202, answer.text
        return answer.json()
    source = base64.b64encode(picture).decode() if request.param == "base64" else image_url
    return stack.order(image={request.param: source}, seed=3)


@pytest.fixture(scope="module")
def image_url(picture):
    """Serve the image over HTTP, and return its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/picture.png"
        server.shutdown()
        thread.join()


def test_image_gives_the_same_video_however_it_is_sent(stack, job_with_image, digests_of_videos):
    job = stack.succeeded(job_with_image)
    assert job["task"] == "image_to_video"
    content = stack.video(job)
    assert decode(content).size == (96, 64)
    digests_of_videos.add(job["result"]["sha256"])
    assert len(digests_of_videos) == 1


@pytest.fixture(scope="module")
def digests_of_videos():
    """Collect the digests of the videos, one for each way to send the image."""
    return set()


def test_progress_never_decreases_and_phases_follow_their_order(stack):
    steps = 40
    job = stack.order(
        num_inference_steps=steps, num_frames=33, num_segments=3
    )  # longer than a few heartbeats
    seen = []

    def watched():
        now = stack.job(job)
        seen.append(now)
        return now["status"] == "succeeded"

    wait_until(watched, JOB_TIMEOUT_S)
    progress = [now["progress"] for now in seen if now["progress"]]
    fractions = [point["fraction"] for point in progress]
    phases = [(point["segment"], PHASES.index(point["phase"])) for point in progress]
    assert fractions == sorted(fractions)
    assert phases == sorted(phases)
    assert len(set(fractions)) >= 5
    assert all(point["step"] <= point["num_steps"] for point in progress)
    denoised = [point for point in progress if point["phase"] == "denoise" and point["step"]]
    assert {point["num_steps"] for point in denoised if point["segment"] == 0} == {steps}


@pytest.fixture
def occupied(stack):
    """Keep the group busy with a long job until the test cancels it, and return the job."""
    job = stack.order(num_inference_steps=50, num_frames=33, num_segments=3)
    wait_until(lambda: (stack.job(job)["progress"] or {}).get("step", 0) > 1)
    return job


def cancel(stack, job):
    answer = stack.client.post(f"/jobs/{job['id']}/cancel")
    assert answer.status_code == 200
    return answer.json()


def test_second_job_is_queued_while_the_first_runs(stack, occupied):
    second = stack.order()
    waiting = stack.job(second)
    assert (waiting["status"], waiting["started_at"], waiting["queue_position"]) == ("queued", None, 1)
    cancel(stack, occupied)
    stack.succeeded(second)


def test_simultaneous_jobs_run_in_order_and_give_different_videos(stack):
    ordered = [stack.order(prompt=f"video {number}", seed=number) for number in range(6)]
    ended = [stack.succeeded(job) for job in ordered]
    starts = [job["started_at"] for job in ended]
    assert starts == sorted(starts)
    assert len({job["result"]["sha256"] for job in ended}) == len(ended)


def test_high_priority_job_starts_before_waiting_jobs(stack, occupied):
    waits, urgent = stack.order(), stack.order(priority="high")
    cancel(stack, occupied)
    assert stack.succeeded(urgent)["started_at"] < stack.succeeded(waits)["started_at"]


def test_group_runs_other_jobs_after_a_running_job_is_cancelled(stack, occupied):
    cancel(stack, occupied)
    ended = stack.ended(occupied)
    assert (ended["status"], ended["result"]) == ("cancelled", None)
    assert stack.succeeded(stack.order())["attempt"] == 1


def test_cancelled_queued_job_never_runs(stack, occupied):
    queued = stack.order()
    cancelled = cancel(stack, queued)
    assert (cancelled["status"], cancelled["started_at"]) == ("cancelled", None)
    cancel(stack, occupied)
    stack.ended(occupied)
    assert stack.job(queued)["status"] == "cancelled"


def test_files_in_the_data_folder_are_closed_to_other_users(stack, prompted):
    assert open_to_others(stack.log.parent / "data") == []


def test_invalid_request_is_refused_and_not_queued(stack):
    before = stack.client.get("/jobs").json()
    answer = stack.client.post("/generate", json={"prompt": "a cat", "num_frames": 18})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "num_frames")
    assert stack.client.get("/jobs").json() == before
