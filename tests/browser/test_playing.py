"""Films play in Chromium, from the service's own links."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser

PLAY = """
async (url) => {
  const video = document.createElement("video");
  video.muted = true;
  video.src = url;
  document.body.append(video);
  const until = (name) => new Promise((done, fail) => {
    video.addEventListener(name, done, {once: true});
    video.addEventListener("error", () => fail(new Error(video.error.message)), {once: true});
  });
  const ended = until("ended");
  await video.play();
  await ended;
  return {
    width: video.videoWidth, height: video.videoHeight, duration: video.duration,
    frames: video.getVideoPlaybackQuality().totalVideoFrames,
  };
}
"""

SEEK = """
async ([url, second]) => {
  const video = document.createElement("video");
  video.src = url;
  document.body.append(video);
  await new Promise((done) => video.addEventListener("loadedmetadata", done, {once: true}));
  const sought = new Promise((done) => video.addEventListener("seeked", done, {once: true}));
  video.currentTime = second;
  await sought;
  return video.currentTime;
}
"""


@pytest.fixture(scope="module")
def film(stack):
    """A job that has succeeded."""
    return stack.succeeded(stack.order(prompt="A red ball rolls"))["result"]


@pytest.fixture
def at_home(page, stack):
    """The page, on a document of the service."""
    page.goto(f"{stack.url}/livez")
    return page


def test_a_film_plays_to_its_end(at_home, film):
    played = at_home.evaluate(PLAY, film["video_url"])
    assert (played["width"], played["height"]) == (film["width"], film["height"])
    assert played["duration"] == pytest.approx(film["duration_s"], abs=0.1)
    assert played["frames"] > 0


def test_a_film_can_be_sought_in(at_home, film):
    assert at_home.evaluate(SEEK, [film["video_url"], 0.5]) == pytest.approx(0.5, abs=0.05)


def test_a_thumbnail_is_shown(at_home, film):
    width = at_home.evaluate(
        "async (url) => { const i = new Image(); i.src = url; await i.decode(); return i.naturalWidth; }",
        film["thumbnail_url"],
    )
    assert width > 0
