"""From a prompt or an image to a film: over HTTP, Redis and two ranks that share the transformer."""

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

from tests.films import boxes, decode
from tests.rights import open_to_others
from tests.running_stack import run_stack
from tests.waiting import wait_until

PHASES = ["load", "encode", "denoise", "refine", "decode", "upload"]


@pytest.fixture(scope="module")
def prompted(stack):
    """A job that was ordered by a prompt, and its film."""
    job = stack.succeeded(stack.order(prompt="A red ball rolls", seed=7))
    return job, stack.film(job)


def test_a_prompt_becomes_a_film_that_is_what_the_job_says(prompted):
    job, content = prompted
    result, film = job["result"], decode(content)
    assert film.size == (result["width"], result["height"]) == (96, 64)
    assert len(film.frames) == result["num_frames"] == 17
    assert film.fps == result["fps"] == 15
    assert result["duration_s"] == pytest.approx(17 / 15)
    assert (len(content), hashlib.sha256(content).hexdigest()) == (result["size_bytes"], result["sha256"])
    assert result["seed"] == job["request"]["seed"] == 7


def test_every_player_can_play_it_while_it_arrives(prompted):
    _, content = prompted
    film = decode(content)
    assert (film.codec, film.pixel_format) == ("h264", "yuv420p")
    assert boxes(content).index("moov") < boxes(content).index("mdat")


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_finds_nothing_wrong_with_it(prompted, tmp_path):
    (tmp_path / "film.mp4").write_bytes(prompted[1])
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", "film.mp4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (stream,) = json.loads(done.stdout)["streams"]
    assert done.stderr == ""
    assert (stream["codec_name"], stream["pix_fmt"], stream["nb_read_frames"]) == ("h264", "yuv420p", "17")


def test_its_frames_are_not_all_the_same(prompted):
    frames = decode(prompted[1]).frames.astype(int)
    assert frames.std() > 1
    assert np.abs(frames[1:] - frames[:-1]).mean() > 0.1


def test_it_comes_in_parts_if_asked_for_a_part(stack, prompted):
    job, content = prompted
    answer = stack.client.get(job["result"]["video_url"], headers={"Range": "bytes=100-299"})
    assert (answer.status_code, answer.content) == (206, content[100:300])


def test_it_has_a_thumbnail(stack, prompted):
    answer = stack.client.get(prompted[0]["result"]["thumbnail_url"])
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.format == "JPEG"
        assert image.width / image.height == pytest.approx(96 / 64, rel=0.02)


def test_what_it_took_is_said_phase_by_phase(prompted):
    timings = prompted[0]["timings_s"]
    assert {"encode", "denoise", "decode"} <= set(timings) <= set(PHASES)
    assert all(seconds >= 0 for seconds in timings.values())


def test_its_timeline_shows_all_that_was_done_in_order(stack, prompted):
    events = stack.client.get(f"/jobs/{prompted[0]['id']}/timeline").json()["traceEvents"]
    done = {event["name"]: event for event in events if event["ph"] == "X"}
    wanted = ["queued", "fetch", "wait", "encode", "denoise", "decode", "join", "video", "thumbnail"]
    assert sorted(wanted, key=lambda name: done[name]["ts"]) == wanted
    assert (
        sum(event["name"].startswith("step ") for event in events)
        == prompted[0]["request"]["num_inference_steps"]
    )


def test_all_that_was_done_for_it_is_one_trace(prompted, collector):
    (ran,) = wait_until(lambda: [span for span in collector.of(prompted[0]["id"]) if span.name == "run"])
    spans = [span for span in collector.spans if span.trace_id == ran.trace_id]
    below = {span.name: span.parent_id for span in spans}
    beside = {"fetch", "wait", "x264, the rest", "join", "video", "thumbnail"}
    assert {"POST /generate", "queue", "run", *PHASES, *beside} - {"refine", "save"} == set(below) - {"save"}
    (post,) = [span for span in spans if span.name == "POST /generate"]
    assert (below["queue"], below["run"]) == (post.span_id, post.span_id)
    assert {below[phase] for phase in PHASES if phase in below} == {ran.span_id}
    assert {span.process for span in spans} == {"longcat-service", "longcat-worker"}


def test_the_same_order_gives_the_same_film(stack, prompted):
    again = stack.succeeded(stack.order(prompt="A red ball rolls", seed=7))
    assert again["result"]["sha256"] == prompted[0]["result"]["sha256"]


def test_another_seed_gives_another_film(stack, prompted):
    other = stack.succeeded(stack.order(prompt="A red ball rolls", seed=8))
    assert other["result"]["sha256"] != prompted[0]["result"]["sha256"]


def test_one_rank_makes_the_same_film_as_two(prompted, tiny_checkpoint, tmp_path):
    with run_stack(tmp_path, tiny_checkpoint, ranks=1) as alone:
        content = alone.film(alone.succeeded(alone.order(prompt="A red ball rolls", seed=7)))
    difference = decode(content).frames.astype(int) - decode(prompted[1]).frames
    assert np.abs(difference).max() <= 2


@pytest.fixture(params=["multipart", "base64", "url"])
def begun_with_a_picture(request, stack, picture, pictures_on_the_web):
    """A job that begins with the picture, given in each way."""
    if request.param == "multipart":
        answer = stack.client.post(
            "/generate", data={"prompt": "a cat", "seed": "3"}, files={"image": picture}
        )
        assert answer.status_code == 202, answer.text
        return answer.json()
    source = base64.b64encode(picture).decode() if request.param == "base64" else pictures_on_the_web
    return stack.order(image={request.param: source}, seed=3)


@pytest.fixture(scope="module")
def pictures_on_the_web(picture):
    """A URL of the picture, on a server of this machine."""

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


def test_an_image_becomes_a_film_that_begins_with_it(stack, begun_with_a_picture, films_of_the_picture):
    job = stack.succeeded(begun_with_a_picture)
    assert job["task"] == "image_to_video"
    content = stack.film(job)
    assert decode(content).size == (96, 64)
    films_of_the_picture.add(job["result"]["sha256"])
    assert len(films_of_the_picture) == 1, "however it is given, it is the same image"


@pytest.fixture(scope="module")
def films_of_the_picture():
    """What became of the picture, by digest."""
    return set()


def test_progress_goes_forward_and_phases_come_in_order(stack):
    steps = 40
    job = stack.order(
        num_inference_steps=steps, num_frames=33, num_segments=3
    )  # longer than a few heartbeats
    seen = []

    def watched():
        now = stack.job(job)
        seen.append(now)
        return now["status"] == "succeeded"

    wait_until(watched, timeout_s=300)
    progress = [now["progress"] for now in seen if now["progress"]]
    fractions = [point["fraction"] for point in progress]
    phases = [(point["segment"], PHASES.index(point["phase"])) for point in progress]
    assert fractions == sorted(fractions)
    assert phases == sorted(phases)
    assert len(set(fractions)) >= 5
    assert all(point["step"] <= point["num_steps"] for point in progress)
    denoised = [point for point in progress if point["phase"] == "denoise"]
    assert {point["num_steps"] for point in denoised if point["segment"] == 0} == {steps}


def test_a_job_runs_only_when_a_worker_has_it(stack):
    first, second = stack.order(num_inference_steps=30), stack.order()
    waiting = wait_until(lambda: stack.job(first)["status"] == "running" and stack.job(second))
    assert (waiting["status"], waiting["started_at"], waiting["queue_position"]) == ("queued", None, 1)
    stack.succeeded(second)


def test_jobs_sent_at_once_run_in_order_and_each_has_its_own_film(stack):
    ordered = [stack.order(prompt=f"film {number}", seed=number) for number in range(6)]
    ended = [stack.succeeded(job) for job in ordered]
    starts = [job["started_at"] for job in ended]
    assert starts == sorted(starts)
    assert len({job["result"]["sha256"] for job in ended}) == len(ended)


def test_a_high_priority_job_goes_before_those_that_wait(stack):
    stack.order(num_inference_steps=30)
    waits = stack.order()
    urgent = stack.order(priority="high")
    assert stack.succeeded(urgent)["started_at"] < stack.succeeded(waits)["started_at"]


def test_a_running_job_is_cancelled_and_the_group_goes_on(stack):
    job = stack.order(num_inference_steps=50, num_frames=33)
    wait_until(lambda: (stack.job(job)["progress"] or {}).get("step", 0) > 1)
    assert stack.client.post(f"/jobs/{job['id']}/cancel").status_code == 200
    ended = stack.ended(job)
    assert (ended["status"], ended["result"]) == ("cancelled", None)
    assert stack.succeeded(stack.order())["attempt"] == 1


def test_a_queued_job_is_cancelled_at_once_and_never_runs(stack):
    running, queued = stack.order(num_inference_steps=30), stack.order()
    answer = stack.client.post(f"/jobs/{queued['id']}/cancel").json()
    assert (answer["status"], answer["started_at"]) == ("cancelled", None)
    stack.succeeded(running)
    assert stack.job(queued)["status"] == "cancelled"


def test_no_other_user_may_open_anything_in_the_data_folder(stack, prompted):
    assert open_to_others(stack.log.parent / "data") == []


def test_a_bad_request_is_refused_and_nothing_is_queued(stack):
    before = stack.client.get("/jobs").json()
    answer = stack.client.post("/generate", json={"prompt": "a cat", "num_frames": 18})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "num_frames")
    assert stack.client.get("/jobs").json() == before
