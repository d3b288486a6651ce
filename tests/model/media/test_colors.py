"""Colors are those of a plain reference: published formulas, one pixel at a time."""

from __future__ import annotations

import io
import math

import av
import numpy as np
import pytest

from model.io.video import read_clip
from model.media.errors import UnusableMedia
from model.media.formats import ClipLimits
from model.media.frames import FrameReader
from model.media.reading import check_clip
from model.spec.geometry import Clip

BT709, BT601_525, BT601_625, BT2020, DISPLAY_P3 = 1, 6, 5, 9, 12
LINEAR, SRGB, PQ, HLG = 8, 13, 16, 18
LIMITED, FULL = 1, 2

LUMA = {
    1: (0.2126, 0.7152, 0.0722),
    5: (0.299, 0.587, 0.114),
    6: (0.299, 0.587, 0.114),
    9: (0.2627, 0.678, 0.0593),
}
TO_BT709 = {  # published matrices between linear RGB; that of BT.2020 is in ITU-R BT.2407
    BT709: ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    BT601_525: ((0.93954, 0.05018, 0.01028), (0.01777, 0.96579, 0.01643), (-0.00162, -0.00437, 1.00599)),
    BT601_625: ((1.04404, -0.04404, 0), (0, 1, 0), (0, 0.01179, 0.98821)),
    BT2020: ((1.66049, -0.58764, -0.07285), (-0.12455, 1.13290, -0.00835), (-0.01815, -0.10058, 1.11873)),
    DISPLAY_P3: ((1.22494, -0.22494, 0), (-0.04206, 1.04206, 0), (-0.01964, -0.07864, 1.09827)),
}
PATCH = 16


def pq_to_nits(value):
    root = value ** (32 / 2523)
    return 10_000 * (max(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)


def nits_to_pq(nits):
    power = (nits / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg_to_nits(red, green, blue):
    """Return the light of a display with a peak of 1000 nits, by ITU-R BT.2100."""
    scene = [
        v * v / 3 if v <= 0.5 else (math.exp((v - 0.55991073) / 0.17883277) + 0.28466892) / 12
        for v in (red, green, blue)
    ]
    luminance = sum(weight * part for weight, part in zip(LUMA[BT2020], scene, strict=True))
    return [1000 * luminance**0.2 * part for part in scene]


def tone_mapped(nits):
    """Return light with white at 1: ITU-R BT.2390 from 1000 to 203 nits, for the largest channel."""
    largest = max(*nits, 1e-3)
    top = nits_to_pq(1000)
    white = nits_to_pq(203) / top
    knee = 1.5 * white - 0.5
    value = min(nits_to_pq(largest) / top, 1)
    if value >= knee:
        t = (value - knee) / (1 - knee)
        value = (
            (2 * t**3 - 3 * t**2 + 1) * knee
            + (t**3 - 2 * t**2 + t) * (1 - knee)
            + (3 * t**2 - 2 * t**3) * white
        )
    return [part / largest * pq_to_nits(value * top) / 203 for part in nits]


def reference(rgb, primaries, transfer, curve=BT709):
    """Return 8 bits with the primaries of BT.709, of encoded RGB from 0 to 1. `curve` is that of SDR."""
    if transfer == PQ:
        light = tone_mapped([min(pq_to_nits(part), 1000) for part in rgb])
    elif transfer == HLG:
        light = tone_mapped(hlg_to_nits(*rgb))
    else:
        light = [from_srgb(part) if curve == SRGB else part**2.4 for part in rgb]
    light = [sum(m * part for m, part in zip(row, light, strict=True)) for row in TO_BT709[primaries]]
    light = [min(max(part, 0), 1) for part in light]
    return [255 * (to_srgb(part) if curve == SRGB else part ** (1 / 2.4)) for part in light]


def from_srgb(value):
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def to_srgb(light):
    return light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def to_rgb(yuv, matrix, color_range):
    """Return encoded RGB from 0 to 1, of Y′CbCr of 8 bits (or with fractions, of more)."""
    red, green, blue = LUMA[matrix]
    if color_range == LIMITED:
        luma, cb, cr = (yuv[0] - 16) / 219, (yuv[1] - 128) / 224, (yuv[2] - 128) / 224
    else:
        luma, cb, cr = yuv[0] / 255, (yuv[1] - 128) / 255, (yuv[2] - 128) / 255
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    return [min(max(part, 0), 1) for part in (r, (luma - red * r - blue * b) / green, b)]


def patches(yuv, pixel_format, **tags):
    """Return a lossless clip of patches of these colors, Y′CbCr of 8 bits, side by side."""
    file = io.BytesIO()
    bits = 10 if "10" in pixel_format else 8
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=15)
        stream.width, stream.height, stream.pix_fmt = PATCH * len(yuv), PATCH, pixel_format
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for _ in range(5):
            frame = av.VideoFrame(PATCH * len(yuv), PATCH, pixel_format)
            for channel, plane in enumerate(frame.planes):
                codes = [color[channel] << (bits - 8) for color in yuv]
                content = np.zeros((plane.height, plane.line_size // dtype.itemsize), dtype)
                content[:, : plane.width] = np.repeat(codes, plane.width // len(yuv))
                plane.update(content.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def random_colors(number=12):
    """Return Y′CbCr of 8 bits that are inside of the RGB cube for every matrix and range."""
    random = np.random.default_rng(0)
    return [
        (int(y), int(cb), int(cr))
        for y, cb, cr in random.integers((80, 108, 108), (180, 148, 148), (number, 3))
    ]


@pytest.fixture
def shown(sandbox, tmp_path):
    """Return the colors of the patches of a clip as the model gets them, and what is noted."""

    def run(content, take=None):
        path = tmp_path / "clip"
        path.write_bytes(content)
        notes = check_clip(sandbox, path, ClipLimits(), fps=15).notes
        frames = read_clip(path, fps=15, take=take, sandbox=sandbox).numpy()
        return frames[-1, frames.shape[1] // 2, PATCH // 2 :: PATCH].astype(float), notes

    return run


@pytest.mark.parametrize("color_range", [LIMITED, FULL], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [BT709, BT601_625, BT601_525, BT2020])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv422p10le"])
def test_matrix_and_range_of_sdr_are_obeyed(shown, pixel_format, matrix, color_range):
    colors = random_colors()
    found, notes = shown(patches(colors, pixel_format, colorspace=matrix, color_range=color_range))
    expected = [[255 * part for part in to_rgb(color, matrix, color_range)] for color in colors]
    assert np.abs(found - expected).max() < 1.5
    assert notes == ()


@pytest.mark.parametrize("primaries", [BT601_525, BT601_625, BT2020, DISPLAY_P3])
def test_primaries_of_sdr_are_converted(shown, primaries):
    colors = random_colors()
    found, notes = shown(patches(colors, "yuv444p10le", colorspace=BT709, color_primaries=primaries))
    expected = [reference(to_rgb(color, BT709, LIMITED), primaries, BT709) for color in colors]
    assert np.abs(found - expected).max() < 1.5
    is_wide = primaries in {BT2020, DISPLAY_P3}
    assert notes == (("its colors outside of sRGB are clipped",) if is_wide else ())


def test_linear_light_gets_the_curve_of_bt1886(shown):
    colors = random_colors()
    found, notes = shown(patches(colors, "yuv444p10le", colorspace=BT709, color_trc=LINEAR))
    expected = [[255 * part ** (1 / 2.4) for part in to_rgb(color, BT709, LIMITED)] for color in colors]
    assert np.abs(found - expected).max() < 1.5
    assert notes == ()


@pytest.mark.parametrize("tags", [{"color_primaries": 10}, {"color_trc": 9}], ids=["XYZ", "logarithmic"])
def test_unknown_color_space_is_noted(shown, tags):
    _, notes = shown(patches(random_colors(), "yuv444p", colorspace=BT709, **tags))
    assert notes == ("its color space is unknown, so its colors may be wrong",)


@pytest.mark.parametrize("transfer", [PQ, HLG], ids=["PQ", "HLG"])
@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p"])
def test_hdr_is_tone_mapped(shown, pixel_format, transfer):
    colors = [(y, 128, 128) for y in (16, 30, 60, 90, 120, 150, 180, 210, 235)] + random_colors()
    tags = {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": transfer, "color_range": LIMITED}
    found, notes = shown(patches(colors, pixel_format, **tags))
    expected = [reference(to_rgb(color, BT2020, LIMITED), BT2020, transfer) for color in colors]
    assert np.abs(found - expected).max() < 1.5
    assert notes == ("its HDR is converted to SDR",)


@pytest.mark.parametrize("transfer", [PQ, HLG], ids=["PQ", "HLG"])
def test_reference_white_of_hdr_is_nearly_white(shown, transfer):
    """Diffuse white by BT.2408: 203 nits, 58 % of PQ and 75 % of HLG."""
    code = 16 + round(219 * {PQ: 0.58, HLG: 0.75}[transfer])
    tags = {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": transfer}
    found, _ = shown(patches([(code, 128, 128)], "yuv420p10le", **tags))
    assert (np.abs(found - 231) <= 3).all()


def test_hdr_clip_is_reduced_to_the_size_that_is_taken(shown):
    tags = {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": PQ}
    content = patches([(120, 128, 128)] * 4, "yuv420p10le", **tags)
    found, _ = shown(content, take=Clip(8, 32, 3))
    whole, _ = shown(content)
    assert np.abs(found - whole[0]).max() <= 1


def test_rgb_of_a_clip_is_kept(shown):
    colors = [(10, 200, 30), (250, 0, 128)]  # planes of gbrp: green, blue, red
    found, _ = shown(patches(colors, "gbrp10le", color_primaries=BT709))
    assert np.abs(found - [[30, 10, 200], [128, 250, 0]]).max() <= 1


def test_rgb_of_a_clip_with_wide_colors_is_converted(shown):
    colors = [(100, 120, 90), (180, 140, 160)]
    found, notes = shown(patches(colors, "gbrp10le", color_primaries=DISPLAY_P3))
    expected = [
        reference([r * 4 / 1023, g * 4 / 1023, b * 4 / 1023], DISPLAY_P3, BT709) for g, b, r in colors
    ]
    assert np.abs(found - expected).max() < 2
    assert notes == ("its colors outside of sRGB are clipped",)


def test_transparent_parts_of_a_clip_become_white(shown):
    red = (81, 90, 240)
    found, notes = shown(patches([(*red, 255), (*red, 0), (*red, 128)], "yuva420p", colorspace=BT601_625))
    assert np.abs(found - [(255, 0, 0), (255, 255, 255), (255, 127, 127)]).max() <= 2
    assert notes == ("its transparent parts become white",)


def test_transparent_parts_of_a_clip_with_wide_colors_become_white(shown):
    gray = (126, 128, 128)
    tags = {"colorspace": BT601_625, "color_primaries": DISPLAY_P3}
    found, notes = shown(patches([(*gray, 255), (*gray, 0), (*gray, 128)], "yuva420p", **tags))
    assert np.abs(found - [(128, 128, 128), (255, 255, 255), (191, 191, 191)]).max() <= 2
    assert "its transparent parts become white" in notes


def test_matrix_that_cannot_be_converted_is_refused(shown):
    ictcp = 14
    with pytest.raises(UnusableMedia, match="matrix 14"):
        shown(patches(random_colors(), "yuv420p10le", colorspace=ictcp))


@pytest.mark.parametrize(("side", "matrix"), [(704, BT601_625), (720, BT709)])
def test_frame_without_a_matrix_has_that_of_its_size(side, matrix):
    color = (120, 110, 150)
    frame = av.VideoFrame(side, side, "yuv420p")
    for plane, value in zip(frame.planes, color, strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    found = np.asarray(FrameReader().read(frame))[0, 0]
    assert np.abs(found - np.multiply(255, to_rgb(color, matrix, LIMITED))).max() < 1.5
