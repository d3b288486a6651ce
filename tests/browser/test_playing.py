"""Generated videos play in Chromium from the links of the service."""

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
def video(stack):
    """Return the result of a finished job."""
    return stack.succeeded(stack.order(prompt="A red ball rolls"))["result"]


@pytest.fixture
def page_of_service(page, stack):
    """Return the page, opened on the service's origin."""
    page.goto(f"{stack.url}/livez")
    return page


def test_video_plays_to_its_end(page_of_service, video):
    played = page_of_service.evaluate(PLAY, video["video_url"])
    assert (played["width"], played["height"]) == (video["width"], video["height"])
    assert played["duration"] == pytest.approx(video["duration_s"], abs=0.1)
    assert played["frames"] > 0


def test_video_can_be_sought(page_of_service, video):
    assert page_of_service.evaluate(SEEK, [video["video_url"], 0.5]) == pytest.approx(0.5, abs=0.05)


def test_thumbnail_is_displayed(page_of_service, video):
    width = page_of_service.evaluate(
        "async (url) => { const i = new Image(); i.src = url; await i.decode(); return i.naturalWidth; }",
        video["thumbnail_url"],
    )
    assert width > 0
