"""Videos of the pocket checkpoint show what their prompts describe."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch

from jobs.settings import POCKET
from longcat_video_client import Client
from stack.demo import IMAGE_PROMPT, PROMPT, make_videos, prepare_videos
from tests.decoded_video import decode
from tests.running_stack import RunningStack, run_stack
from training.captions import parse_caption
from training.evaluation import compare
from training.recognition import recognise

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not POCKET.exists(), reason="there is no pocket checkpoint here"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Run a stack of two ranks on the pocket checkpoint."""
    with run_stack(tmp_path_factory.mktemp("stack"), POCKET, ranks=2) as stack:
        yield stack


@pytest.fixture(scope="module")
def demo(stack, tmp_path_factory):
    """Return the folder with the videos of the demo."""
    out = tmp_path_factory.mktemp("out")
    with Client(stack.url) as client:
        make_videos(client, prepare_videos(out), io.StringIO())
    return out


def missing_properties(content: bytes, prompt: str) -> list[str]:
    """Return the properties of the prompt that the video does not show."""
    video = decode(content)
    frames = torch.from_numpy(video.frames).float() / 255
    right = compare(parse_caption(prompt), recognise(frames, int(video.fps)))
    return [name for name, is_right in right.items() if not is_right]


@pytest.mark.parametrize(("name", "prompt"), [("prompt", PROMPT), ("image", IMAGE_PROMPT)])
def test_videos_of_the_demo_show_their_prompts(demo, name, prompt):
    assert missing_properties((demo / f"{name}.mp4").read_bytes(), prompt) == []


@pytest.mark.parametrize("fields", [{"distilled": True}, {"refine": True}])
def test_distilled_and_refined_videos_show_their_prompts(stack, fields):
    job = stack.succeeded(stack.order(prompt=PROMPT, seed=1, **fields))
    assert missing_properties(stack.video(job), PROMPT) == []


def test_continued_video_shows_its_prompt(stack, demo):
    clip = (demo / "image.mp4").read_bytes()
    answer = stack.client.post("/generate", data={"prompt": IMAGE_PROMPT}, files={"video": clip})
    job = stack.succeeded(answer.json())
    assert missing_properties(stack.video(job), IMAGE_PROMPT) == []


def test_long_video_shows_its_prompt(stack):
    job = stack.succeeded(stack.order(prompt=IMAGE_PROMPT, num_segments=10, seed=1))
    assert job["result"]["duration_s"] > 8
    assert missing_properties(stack.video(job), IMAGE_PROMPT) in (
        [],
        ["motion"],
    )  # the motion may waver over so many segments
