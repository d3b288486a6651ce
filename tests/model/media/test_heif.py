"""HEIC and AVIF images."""

from __future__ import annotations

import contextlib
import io
import struct
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from model.media.errors import UnusableMedia
from model.media.formats import ImageLimits
from model.media.reading import check_image
from tests.model.media.test_colors import FULL, reference, to_rgb
from tests.service.media import HeifItem, coded_item, encoded, heif, nclx, picture, rgb_profile

LIBHEIF = Path(__file__).parent / "libheif.heic"
avif_item = partial(coded_item, pixel_format="yuv420p", codec="libsvtav1")
ALPHA = (b"auxC", bytes(4) + b"urn:mpeg:hevc:2015:auxid:1\0")
APPLE_GAIN_MAP = (b"auxC", bytes(4) + b"urn:com:apple:photo:2020:aux:hdrgainmap\0")
WIDE = "its colors outside of sRGB are clipped"


@pytest.fixture
def decoded(sandbox, tmp_path):
    """Return the pixels of an image file as the model gets them, and what is noted."""

    def run(content, **limits):
        (tmp_path / "received").write_bytes(content)
        notes = check_image(
            sandbox, tmp_path / "received", tmp_path / "image.png", ImageLimits(**limits)
        ).notes
        return np.asarray(Image.open(tmp_path / "image.png")).astype(int), notes

    return run


def flat_frame(yuv, pixel_format, size=64):
    """Return a frame of one color, Y′CbCr of 8 bits."""
    frame = av.VideoFrame(size, size, pixel_format)
    bits = frame.format.components[0].bits
    for plane, code in zip(frame.planes, yuv, strict=True):
        value = code << (bits - 8)
        content = bytes([value]) if bits == 8 else value.to_bytes(2, "little")
        plane.update(content * (plane.buffer_size // len(content)))
    return frame


def difference(found, expected):
    return np.abs(found - np.asarray(expected).astype(int)).max()


def test_image_of_another_writer_is_read(decoded):
    """The file was written by libheif 1.23 with x265: 96 × 64 pixels, 4:4:4, full range."""
    found, notes = decoded(LIBHEIF.read_bytes())
    assert difference(found, picture()) <= 3
    assert notes == ()


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ([], picture()),
        ([(b"irot", b"\1")], picture().rotate(90, expand=True)),
        ([(b"irot", b"\2")], picture().rotate(180)),
        ([(b"irot", b"\3")], picture().rotate(270, expand=True)),
        ([(b"imir", b"\0")], picture().transpose(Image.Transpose.FLIP_TOP_BOTTOM)),
        ([(b"imir", b"\1")], picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        (
            [(b"irot", b"\1"), (b"imir", b"\1")],
            picture().rotate(90, expand=True).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        ),
        (
            [(b"clap", struct.pack(">IIIIiIiI", 40, 1, 32, 1, 2, 1, -3, 1))],
            picture().crop((30, 13, 70, 45)),
        ),
    ],
    ids=["as it is", "90°", "180°", "270°", "top to bottom", "left to right", "turned, mirrored", "cropped"],
)
def test_image_is_upright(decoded, properties, expected):
    found, notes = decoded(heif(coded_item(picture(), *properties)))
    assert found.shape == np.asarray(expected).shape
    assert difference(found, expected) <= 3
    assert notes == ()


@pytest.mark.parametrize("properties", [[(b"irot", b"\1")], [(b"imir", b"\0")], [(b"imir", b"\1")]])
def test_orientation_is_that_of_pillow_for_avif(decoded, properties):
    content = heif(avif_item(picture(), *properties), brand=b"avif")
    by_pillow = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))).astype(int)
    ours, _ = decoded(content)
    assert ours.shape == by_pillow.shape
    assert np.abs(ours - by_pillow).mean() < 2


def test_avif_of_colors_that_only_pillow_knows_is_read(decoded):
    """The matrix is YCgCo, which FFmpeg does not convert."""
    content = heif(avif_item(picture(), nclx(1, 13, 8)), brand=b"avif")
    assert difference(decoded(content)[0], Image.open(io.BytesIO(content))) == 0


def test_damaged_avif_is_refused(decoded):
    content = heif(avif_item(picture()), brand=b"avif")
    with pytest.raises(UnusableMedia):
        decoded(content[:-400])


def test_tiles_are_joined_and_cut_to_the_size_of_the_image(decoded):
    whole = picture(120, 180)
    tiles = [whole.crop((x, y, x + 64, y + 64)) for y in (0, 64) for x in (0, 64, 128)]
    grid = HeifItem(
        b"grid",
        struct.pack(">BBBBHH", 0, 0, 1, 2, 180, 120),
        ((b"ispe", struct.pack(">III", 0, 180, 120)), nclx(is_full_range=False), (b"irot", b"\3")),
        derived_from=(2, 3, 4, 5, 6, 7),
    )
    found, _ = decoded(heif(grid, *map(coded_item, tiles)))
    assert difference(found, whole.rotate(270, expand=True)) <= 3


def test_tiles_must_be_complete(decoded):
    grid = HeifItem(
        b"grid",
        struct.pack(">BBBBHH", 0, 0, 1, 1, 128, 128),
        ((b"ispe", struct.pack(">III", 0, 128, 128)),),
        derived_from=(2,),
    )
    with pytest.raises(UnusableMedia, match="tiles are missing"):
        decoded(heif(grid, coded_item(picture(64, 64))))


def test_transparent_parts_become_white(decoded):
    mask = Image.new("L", (96, 64), 255)
    mask.paste(0, (0, 0, 48, 64))
    frame = av.VideoFrame.from_ndarray(np.asarray(mask), format="gray")
    alpha = coded_item(frame, ALPHA, pixel_format="gray", auxiliary_of=1)
    found, notes = decoded(heif(coded_item(picture()), alpha))
    expected = picture()
    expected.paste((255, 255, 255), (0, 0, 48, 64))
    assert difference(found, expected) <= 3
    assert notes == ("its transparent parts become white",)


@pytest.mark.parametrize("is_premultiplied", [False, True])
def test_half_transparent_avif_is_put_on_white(decoded, is_premultiplied):
    file = io.BytesIO()
    image = Image.new("RGBA", (64, 64), (200, 40, 80, 128))
    image.save(file, "AVIF", quality=100, subsampling="4:4:4", alpha_premultiplied=is_premultiplied)
    found, _ = decoded(file.getvalue())
    assert difference(found, np.full((64, 64, 3), (227, 147, 167))) <= 2


def tone_map(of):
    return HeifItem(b"tmap", bytes(62), derived_from=(of, 2))


def apple_gain_map(of):
    return coded_item(picture(), APPLE_GAIN_MAP, auxiliary_of=of)


@pytest.mark.parametrize("gain_map", [tone_map, apple_gain_map])
@pytest.mark.parametrize(("codec", "brand"), [("libx265", b"heic"), ("libsvtav1", b"avif")])
def test_gain_map_is_not_used_and_that_is_said(decoded, codec, brand, gain_map):
    image, other = (coded_item(picture(), nclx(), codec=codec, pixel_format="yuv420p") for _ in range(2))
    pixels, notes = decoded(heif(image, other, gain_map(of=1), brand=brand))
    assert notes == ("its gain map for HDR is not used, only the image without it",)
    assert difference(pixels, decoded(heif(image, brand=brand))[0]) == 0


@pytest.mark.parametrize("gain_map", [tone_map, apple_gain_map])
def test_gain_map_of_another_image_does_not_count(decoded, gain_map):
    image, other = (coded_item(picture(), nclx()) for _ in range(2))
    assert decoded(heif(image, other, gain_map(of=2)))[1] == ()


def test_icc_profile_is_obeyed(decoded):
    red = Image.new("RGB", (64, 64), (234, 51, 35))  # sRGB's red in Display P3
    found, notes = decoded(heif(coded_item(red, (b"colr", b"prof" + rgb_profile()))))
    assert difference(found, np.full((64, 64, 3), (255, 0, 0))) <= 12
    assert notes == ()


@pytest.mark.parametrize("is_full_range", [False, True])
@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize(
    ("item", "brand"), [(coded_item, b"heic"), (avif_item, b"avif")], ids=["HEIC", "AVIF"]
)
def test_matrix_and_range_are_obeyed(decoded, item, brand, matrix, is_full_range):
    color = (166, 68, 148)
    coding = nclx(1, 13, matrix, is_full_range=is_full_range)
    found, _ = decoded(heif(item(flat_frame(color, "yuv444p"), coding), brand=brand))
    assert difference(found[0, 0], np.multiply(255, to_rgb(color, matrix, 1 + is_full_range))) <= 1.5


@pytest.mark.parametrize(("codec", "brand"), [("libx265", b"heic"), ("libsvtav1", b"avif")])
@pytest.mark.parametrize(
    ("primaries", "transfer", "notes"),
    [(12, 13, (WIDE,)), (9, 16, ("its HDR is converted to SDR",)), (9, 18, ("its HDR is converted to SDR",))],
    ids=["Display P3", "PQ", "HLG"],
)
def test_wide_and_hdr_colors_become_srgb(decoded, codec, brand, primaries, transfer, notes):
    color = (120, 120, 140)
    frame = flat_frame(color, "yuv420p10le")
    item = coded_item(frame, nclx(primaries, transfer, 9), pixel_format="yuv420p10le", codec=codec)
    found, noted = decoded(heif(item, brand=brand))
    rgb = to_rgb([code * 4 * 255 / 1023 for code in color], 9, FULL)
    assert difference(found[32, 32], reference(rgb, primaries, transfer, curve=13)) <= 2
    assert noted == notes


@given(position=st.floats(0, 1, exclude_max=True), junk=st.binary(min_size=1, max_size=8))
def test_damage_is_refused_or_survived_and_nothing_else(sandbox, position, junk, tmp_path_factory):
    content = bytearray(LIBHEIF.read_bytes())
    start = int(position * len(content))
    content[start : start + len(junk)] = junk
    folder = tmp_path_factory.getbasetemp()
    (folder / "fuzzed").write_bytes(content)
    with contextlib.suppress(UnusableMedia):
        check_image(sandbox, folder / "fuzzed", folder / "fuzzed.png", ImageLimits())


@pytest.mark.parametrize("keep", [20, 100, 300])
def test_damaged_file_is_refused(decoded, keep):
    with pytest.raises(UnusableMedia):
        decoded(heif(coded_item(picture()))[:keep])


def test_unknown_kind_of_image_is_refused(decoded):
    item = HeifItem(b"jpeg", encoded(picture(), "JPEG"), ((b"ispe", struct.pack(">III", 0, 96, 64)),))
    with pytest.raises(UnusableMedia, match="of a kind that cannot be read"):
        decoded(heif(item))


def test_size_is_limited_before_anything_is_decoded(decoded):
    content = heif(coded_item(picture()))
    assert decoded(content, max_pixels=96 * 64)[0].shape == (64, 96, 3)
    with pytest.raises(UnusableMedia, match="more than 6143 pixels"):
        decoded(content, max_pixels=96 * 64 - 1)
    with pytest.raises(UnusableMedia, match="at least 65 pixels"):
        decoded(content, min_side=65)


def test_coded_image_larger_than_the_file_says_is_refused(decoded):
    item = coded_item(picture(1200, 1200))
    small = (b"ispe", struct.pack(">III", 0, 64, 64))
    lying = item._replace(properties=(item.properties[0], small))
    with pytest.raises(UnusableMedia):
        decoded(heif(lying))
