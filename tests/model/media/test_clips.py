"""Clips are decoded to their end before they are believed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from model.io.pixels import resized
from model.io.video import read_clip
from model.media.errors import UnusableMedia
from model.media.formats import ClipLimits
from model.media.reading import check_clip, check_frame
from model.media.sandbox import Sandbox
from model.spec.errors import InputError
from model.spec.geometry import Clip, Size
from tests.model.media.test_heif import LIBHEIF
from tests.service.media import (
    animation,
    clip,
    clip_with_sound,
    encoded,
    interlaced_clip,
    picture,
    pictures,
    sound,
    transparent_webm,
    turned_clip,
    uneven_clip,
)


@pytest.fixture
def probed(sandbox, tmp_path):
    def run(content, **limits):
        path = tmp_path / "clip"
        path.write_bytes(content)
        return check_clip(sandbox, path, ClipLimits(**limits), fps=15)[:2]

    return run


@pytest.mark.parametrize(
    ("codec", "kind", "media_type"),
    [
        ("libx264", "mp4", "video/mp4"),
        ("libx264", "mov", "video/mp4"),
        ("mpeg4", "mp4", "video/mp4"),
        ("libvpx", "webm", "video/webm"),
        ("libvpx-vp9", "webm", "video/webm"),
        ("libx264", "matroska", "video/webm"),
    ],
)
def test_frames_and_size_are_counted(probed, codec, kind, media_type):
    assert probed(clip(9, 48, 80, codec, kind)) == (Clip(48, 80, 9), media_type)


def test_the_limits_are_exact(probed):
    assert probed(clip(9), max_frames=9, max_pixels=9 * 64 * 96)[0].num_frames == 9
    with pytest.raises(UnusableMedia, match="more than 8 frames"):
        probed(clip(9), max_frames=8)
    with pytest.raises(UnusableMedia, match="pixels in all"):
        probed(clip(9), max_pixels=9 * 64 * 96 - 1)


def test_a_clip_that_takes_too_long_is_refused(probed):
    with pytest.raises(UnusableMedia, match="longer than 0 s"):
        probed(clip(), timeout_s=0.0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "damaged"),
        (b"hello", "damaged"),
        (b"\0" * 10_000, "damaged"),
        (clip()[:-500], "damaged"),
        (encoded(picture()), "damaged"),
        (encoded(picture(), "GIF"), "damaged"),
        (LIBHEIF.read_bytes(), "is an image, not a clip"),
        (encoded(picture(), "AVIF"), "is an image, not a clip"),
        (animation("AVIF"), "is an image, not a clip"),
        (clip(codec="mpeg4", kind="avi"), "damaged"),
        (sound(), "no video"),
        (turned_clip(30), "turned by -29"),
    ],
    ids=[
        "empty",
        "text",
        "zeros",
        "breaks off",
        "png",
        "gif",
        "heic",
        "avif",
        "avifs",
        "avi",
        "sound",
        "turned",
    ],
)
def test_what_is_no_usable_clip_is_refused(probed, content, problem):
    with pytest.raises(UnusableMedia, match=problem):
        probed(content)


@pytest.mark.parametrize(
    ("codec", "pixel_format"), [("png", "rgb24"), ("qtrle", "rgb24"), ("rawvideo", "yuv420p")]
)
def test_codec_that_is_not_on_the_list_is_never_opened(probed, tmp_path, codec, pixel_format):
    with pytest.raises(UnusableMedia):
        probed(clip(3, codec=codec, kind="mov", pixel_format=pixel_format))
    with pytest.raises(InputError):
        read_clip(tmp_path / "clip")


def test_small_file_of_large_frames_needs_too_much_memory(tmp_path):
    (tmp_path / "clip").write_bytes(clip(3, 2304, 4096))
    with Sandbox(memory_bytes=24 << 20) as sandbox, pytest.raises(UnusableMedia, match="needs more than 24"):
        check_clip(sandbox, tmp_path / "clip", ClipLimits(), fps=15)


def test_frames_larger_than_the_limit_are_refused(probed):
    with pytest.raises(UnusableMedia, match="larger than 4096"):
        probed(clip(1, 2320, 4096))


@pytest.mark.parametrize(
    ("aspect", "size"),
    [("4/3", (64, 128)), ("1/2", (128, 96)), ("1/1", (64, 96)), ("16/15", (64, 102))],
)
def test_pixels_that_are_not_square_count_as_they_are_shown(probed, aspect, size):
    found, _ = probed(clip(3, sample_aspect_ratio=Fraction(aspect)))
    assert found.size == size


def test_pixels_of_an_extreme_shape_are_refused(probed):
    with pytest.raises(UnusableMedia, match="extreme shape"):
        probed(clip(3, sample_aspect_ratio=Fraction(9, 2)))


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (clip(17), ()),
        (clip(34, rate=30), ("one of 2 frames is used, because the model makes 15 a second",)),
        (
            clip(34, rate=24),
            (
                "one of 2 frames is used, because the model makes 15 a second",
                "its motion becomes 1.25 times as fast, because the model makes 15 frames a second",
            ),
        ),
        (
            clip(9, rate=10),
            ("its motion becomes 1.5 times as fast, because the model makes 15 frames a second",),
        ),
        (clip_with_sound(), ("its sound is not used",)),
        (
            clip(3, sample_aspect_ratio=Fraction(4, 3)),
            ("its pixels are not square; they are made square",),
        ),
        (
            uneven_clip(),
            ("its frame rate varies; it is resampled by the times of its frames",),
        ),
        (
            interlaced_clip(),
            ("is interlaced: only one of the two fields of each frame is used",),
        ),
        (transparent_webm(), ("its transparency is not used",)),
    ],
    ids=[
        "plain",
        "twice the rate",
        "film",
        "slow",
        "sound",
        "pixel aspect",
        "uneven",
        "interlaced",
        "transparent",
    ],
)
def test_what_is_lost_is_noted(sandbox, tmp_path, content, notes):
    (tmp_path / "clip").write_bytes(content)
    assert check_clip(sandbox, tmp_path / "clip", ClipLimits(), fps=15).notes == notes


def test_fields_of_an_interlaced_clip_are_not_mixed(sandbox, tmp_path):
    """Even rows are white and odd ones are black, as of something that moves fast."""
    (tmp_path / "clip.mp4").write_bytes(interlaced_clip())
    frames = read_clip(tmp_path / "clip.mp4", fps=15, sandbox=sandbox).numpy()
    assert frames.shape[1:3] == (64, 96)
    assert frames.min() > 240


class TestOrientation:
    @pytest.mark.parametrize("mirrored", [False, True])
    @pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
    def test_frames_are_shown_upright_and_mirrored_as_the_container_says(
        self, sandbox, tmp_path, clockwise, mirrored
    ):
        path = tmp_path / "clip.mp4"
        path.write_bytes(turned_clip(clockwise, pictures(picture()), mirrored=mirrored))
        shown = read_clip(path, fps=15, sandbox=sandbox)[0].numpy()
        expected = picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture()
        expected = expected.rotate(-clockwise, expand=True)
        assert shown.shape == np.asarray(expected).shape
        assert np.abs(shown.astype(int) - np.asarray(expected)).mean() < 8


class TestFramesTaken:
    """The last frames, resized while they are decoded."""

    @pytest.fixture
    def read(self, sandbox, tmp_path):
        def run(content, take=None):
            path = tmp_path / "clip.mp4"
            path.write_bytes(content)
            return read_clip(path, fps=15, take=take, sandbox=sandbox)

        return run

    @pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
    def test_equal_frames_that_are_resized_afterwards(self, read, clockwise):
        content = turned_clip(clockwise, clip(17, rate=30))
        every = read(content)
        taken = read(content, take=Clip(32, 80, 3))
        assert torch.equal(taken, resized(every[-3:], Size(32, 80)))

    def test_keep_their_pixels_at_their_own_size(self, read):
        content = clip(9)
        assert torch.equal(read(content, take=Clip(64, 96, 9)), read(content))

    def test_must_be_there(self, read):
        with pytest.raises(InputError, match="has 9 frames, not 10"):
            read(clip(9), take=Clip(64, 96, 10))


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{path}'\n",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>{path}</BaseURL></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_a_list_that_points_to_other_files_is_never_followed(probed, tmp_path, playlist):
    (tmp_path / "secret.mp4").write_bytes(clip())
    with pytest.raises(UnusableMedia):
        probed(playlist.format(path=tmp_path / "secret.mp4").encode())


@pytest.fixture
def both(sandbox, tmp_path):
    """A clip as the service counts it, and as the model takes it."""

    def run(content):
        path = tmp_path / "clip.mp4"
        path.write_bytes(content)
        counted = check_clip(sandbox, path, ClipLimits(), fps=15).clip
        return counted, read_clip(path, fps=15, sandbox=sandbox).numpy()

    return run


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotated_clip_is_turned_upright(both, clockwise):
    upright = picture(64, 96)
    stored = upright.rotate(clockwise, expand=True)  # counterclockwise, to be turned back when it is shown
    counted, frames = both(turned_clip(clockwise, pictures(stored)))
    assert counted == Clip(64, 96, 5) == Clip(frames.shape[1], frames.shape[2], len(frames))
    corners = np.asarray(upright.resize((2, 2), Image.Resampling.BOX)).astype(int)
    seen = Image.fromarray(frames[-1]).resize((2, 2), Image.Resampling.BOX)
    assert np.abs(np.asarray(seen).astype(int) - corners).max() < 24


@pytest.mark.parametrize(
    ("rate", "num_frames", "taken"),
    [
        (15, 17, 17),
        (10, 17, 17),
        (24, 25, 13),
        (25, 9, 5),
        (30, 34, 17),
        (30, 33, 17),
        (60, 65, 17),
        (30, 1, 1),
    ],
)
def test_a_clip_is_brought_to_the_models_frame_rate(both, rate, num_frames, taken):
    counted, frames = both(clip(num_frames, rate=rate))
    assert counted.num_frames == len(frames) == taken


def test_the_last_frame_is_always_among_those_that_are_taken(both, tmp_path):
    _, frames = both(clip(34, rate=30))
    every = read_clip(tmp_path / "clip.mp4").numpy()
    assert np.array_equal(frames, every[1::2])
    assert frames[0].mean() < frames[-1].mean()


class TestVaryingFrameRate:
    """Frames of such a clip are taken by their times, as many a second as the model makes."""

    def test_frame_that_is_shown_for_longer_is_taken_more_often(self, both):
        counted, frames = both(uneven_clip([0, 1, 2, 6, 8], rate=15))
        assert counted.num_frames == len(frames) == 9
        assert brightness_steps(frames, 5) == [0, 1, 2, 2, 2, 2, 3, 3, 4]

    def test_frames_between_the_moments_of_the_model_are_left_out(self, both):
        counted, frames = both(uneven_clip([0, 1, 2, 3, 5, 8, 10, 11, 12], rate=30))
        assert counted.num_frames == len(frames) == 7
        assert brightness_steps(frames, 9) == [0, 2, 3, 4, 5, 6, 8]

    def test_last_frames_are_taken_as_all_are(self, both, tmp_path):
        _, frames = both(uneven_clip([0, 1, 2, 6, 8], rate=15))
        last = read_clip(tmp_path / "clip.mp4", fps=15, take=Clip(64, 96, 4))
        assert np.array_equal(last.numpy(), frames[-4:])

    @pytest.mark.parametrize(
        ("limits", "problem"),
        [
            ({"max_frames": 600}, "lasts longer than 600 frames at 15 a second"),
            ({"max_pixels": 600 * 64 * 96}, "pixels in all"),
        ],
    )
    def test_long_pause_counts_as_the_frames_that_fill_it(self, probed, limits, problem):
        assert probed(uneven_clip([0, 1, 600], rate=15))[0].num_frames == 601
        with pytest.raises(UnusableMedia, match=problem):
            probed(uneven_clip([0, 1, 600], rate=15), **limits)

    def test_clip_is_read_whole_if_no_rate_is_asked_for(self, sandbox, tmp_path):
        (tmp_path / "clip.mp4").write_bytes(uneven_clip([0, 1, 2, 6, 8], rate=15))
        assert len(read_clip(tmp_path / "clip.mp4", sandbox=sandbox)) == 5


def brightness_steps(frames, num_frames):
    """Return which frames of a clip that gets brighter these are."""
    return [round(float(frame.mean()) * num_frames / 255) for frame in frames]


class TestFrameAsImage:
    """`check_frame` writes one frame of a clip to a PNG file."""

    @pytest.fixture
    def frame(self, sandbox, tmp_path):
        def run(content, index, **limits):
            source, target = tmp_path / "clip", tmp_path / "frame.png"
            source.write_bytes(content)
            checked = check_frame(sandbox, source, target, ClipLimits(**limits), index)
            with Image.open(target) as image:
                assert (image.format, image.size) == ("PNG", checked.size[::-1])
                return np.asarray(image)

        return run

    @pytest.mark.parametrize(("index", "position"), [(0, 0), (4, 4), (8, 8), (-1, 8), (-9, 0)])
    def test_index_counts_from_either_end(self, frame, index, position):
        assert abs(frame(clip(9), index).mean() - position * 255 // 9) < 4

    def test_every_frame_counts_whatever_the_frame_rate(self, frame):
        assert abs(frame(clip(20, rate=60), 1).mean() - 255 // 20) < 4

    def test_shows_the_colors_of_the_clip(self, frame):
        shown = frame(pictures(picture()), 2).astype(int)
        assert np.abs(shown - np.asarray(picture()))[::63, ::95].max() < 12

    def test_turned_clip_gives_an_upright_image(self, frame):
        assert frame(turned_clip(90), 0).shape == (96, 64, 3)

    @pytest.mark.parametrize("index", [9, -10])
    def test_missing_frame_is_refused(self, frame, index):
        with pytest.raises(UnusableMedia, match=f"has 9 frames, and none at {index}"):
            frame(clip(9), index)

    def test_clip_beyond_the_limits_is_refused(self, frame):
        with pytest.raises(UnusableMedia, match="more than 8 frames"):
            frame(clip(9), 0, max_frames=8)
