"""What the checkpoint that comes with us makes of orders: films that show what their prompts say."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch

from jobs.settings import POCKET
from service.cli.client import ServiceClient
from stack.demo import IMAGE_PROMPT, PROMPT, make_videos, prepare_videos
from tests.films import decode
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
    """A stack of two ranks on the pocket checkpoint."""
    with run_stack(tmp_path_factory.mktemp("stack"), POCKET, ranks=2) as stack:
        yield stack


@pytest.fixture(scope="module")
def demo(stack, tmp_path_factory):
    """The folder with the demo's videos."""
    out = tmp_path_factory.mktemp("out")
    with ServiceClient.connect(stack.url, None, patience_s=60.0) as client:
        make_videos(client, prepare_videos(out), io.StringIO())
    return out


def wrong(content: bytes, told: str) -> list[str]:
    """What a film does not show, though it was told to."""
    film = decode(content)
    frames = torch.from_numpy(film.frames).float() / 255
    right = compare(parse_caption(told), recognise(frames, int(film.fps)))
    return [name for name, is_right in right.items() if not is_right]


@pytest.mark.parametrize(("name", "told"), [("prompt", PROMPT), ("image", IMAGE_PROMPT)])
def test_the_demos_films_show_what_they_were_told(demo, name, told):
    assert wrong((demo / f"{name}.mp4").read_bytes(), told) == []


@pytest.mark.parametrize("fields", [{"distilled": True}, {"refine": True}])
def test_so_do_films_made_in_other_ways(stack, fields):
    job = stack.succeeded(stack.order(prompt=PROMPT, seed=1, **fields))
    assert wrong(stack.film(job), PROMPT) == []


def test_a_clip_goes_on_as_it_began(stack, demo):
    clip = (demo / "image.mp4").read_bytes()
    answer = stack.client.post("/generate", data={"prompt": IMAGE_PROMPT}, files={"video": clip})
    job = stack.succeeded(answer.json())
    assert wrong(stack.film(job), IMAGE_PROMPT) == []


def test_eight_seconds_are_one_film_of_one_thing(stack):
    job = stack.succeeded(stack.order(prompt=IMAGE_PROMPT, num_segments=10, seed=1))
    assert job["result"]["duration_s"] > 8
    assert wrong(stack.film(job), IMAGE_PROMPT) in ([], ["motion"])  # which wavers over so many segments
