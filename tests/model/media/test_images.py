"""Images of every kind become upright RGB; what is none, or too much, is refused."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from model.media import images
from model.media.errors import UnusableMedia
from model.media.formats import IMAGE_FORMATS, ImageLimits
from model.media.reading import check_image
from model.media.sandbox import Sandbox
from tests.model.media.test_colors import DISPLAY_P3, TO_BT709, reference, to_srgb
from tests.service.media import (
    P3_COLORANTS,
    SRGB_COLORANTS,
    animation,
    encoded,
    gray_profile,
    picture,
    png,
    png_that_says,
    rgb_profile,
)

MAX_PIXELS = 1_000_000
SRGB = ImageCms.createProfile("sRGB")
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def normalised(sandbox, tmp_path):
    def run(content, max_pixels=MAX_PIXELS):
        (tmp_path / "received").write_bytes(content)
        limits = ImageLimits(max_pixels=max_pixels)
        size = check_image(sandbox, tmp_path / "received", tmp_path / "image.png", limits).size
        image = Image.open(io.BytesIO((tmp_path / "image.png").read_bytes()))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (size.width, size.height))
        return image

    return run


def corners(image):
    """The colours of the four quarters, row by row."""
    width, height = image.size
    return [
        image.getpixel((x, y)) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)
    ]


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_kind_of_file_is_read(normalised, kind):
    image = normalised(encoded(picture(), kind))
    assert image.size == (96, 64)
    assert np.abs(np.subtract(corners(image), [RED, GREEN, BLUE, WHITE])).max() < 80  # some kinds lose colour


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pixels_stay_as_they_are(normalised, kind):
    image = normalised(encoded(picture(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(np.asarray(image), np.asarray(picture()))


@pytest.mark.parametrize(
    ("orientation", "seen"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (4, [BLUE, WHITE, RED, GREEN]),
        (5, [RED, BLUE, GREEN, WHITE]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (7, [WHITE, GREEN, BLUE, RED]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_the_orientation_that_a_camera_noted_is_obeyed(normalised, orientation, seen):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = normalised(encoded(picture(), "PNG", exif=exif))
    assert corners(image) == seen
    assert image.size == ((96, 64) if orientation < 5 else (64, 96))
    assert not image.getexif()


def profile_chunk(profile):
    return b"a\0\0" + zlib.compress(profile)


def chromaticities(*xy):
    """Return a chunk of white, red, green and blue."""
    return struct.pack(">8I", *(round(value * 100_000) for value in xy))


D65, ADOBE = (0.3127, 0.329), (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
LINEAR = (100_000).to_bytes(4)
GAMMA_2_2 = (45_455).to_bytes(4)
CLIPPED, HDR = "its colors outside of sRGB are clipped", "its HDR is converted to SDR"
UNKNOWN = "its color space is unknown, so its colors may be wrong"
P3_PROFILE = profile_chunk(rgb_profile(P3_COLORANTS))


def of_code(primaries, transfer):
    """Return the colors that a slow reference gives codes of H.273."""
    return lambda pixel: reference(pixel, primaries, transfer, curve=13)


def of_light(light, to_bt709=((1, 0, 0), (0, 1, 0), (0, 0, 1))):
    """Return the colors of pixels whose light is this power of their values."""
    return lambda pixel: [255 * to_srgb(min(max(part, 0), 1)) for part in np.array(to_bt709) @ pixel**light]


def as_they_are(pixel):
    return pixel * 255


ADOBE_TO_BT709 = np.array([[1.39836, -0.39836, 0], [0, 1, 0], [0, -0.04294, 1.04294]])
P3_TO_BT709 = np.array(TO_BT709[DISPLAY_P3])
SAYS_P3, SAYS_SRGB, SAYS_NOTHING_KNOWN = bytes([12, 13, 0, 1]), bytes([1, 13, 0, 1]), bytes([1, 9, 0, 1])


@pytest.mark.parametrize(
    ("chunks", "expected", "note"),
    [
        ({"cICP": SAYS_P3}, of_code(12, 13), CLIPPED),
        ({"cICP": bytes([9, 16, 0, 1])}, of_code(9, 16), HDR),
        ({"cICP": bytes([1, 8, 0, 1])}, of_light(1), None),
        ({"cICP": SAYS_SRGB}, as_they_are, None),
        ({"cICP": SAYS_SRGB, "iCCP": P3_PROFILE}, as_they_are, None),
        ({"cICP": SAYS_NOTHING_KNOWN, "iCCP": P3_PROFILE}, of_light(2.2, P3_TO_BT709), None),
        ({"cICP": SAYS_NOTHING_KNOWN}, as_they_are, UNKNOWN),
        ({"iCCP": P3_PROFILE, "gAMA": LINEAR}, of_light(2.2, P3_TO_BT709), None),
        ({"sRGB": b"\0", "gAMA": LINEAR}, as_they_are, None),
        ({"gAMA": LINEAR}, of_light(1), None),
        ({"gAMA": (55_556).to_bytes(4)}, of_light(1.8), None),
        ({"gAMA": GAMMA_2_2}, as_they_are, None),
        ({"gAMA": bytes(4)}, as_they_are, None),
        ({"gAMA": LINEAR, "cHRM": chromaticities(*D65, *ADOBE)}, of_light(1, ADOBE_TO_BT709), CLIPPED),
        (
            {"gAMA": GAMMA_2_2, "cHRM": chromaticities(*D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)},
            as_they_are,
            None,
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["8 bits", "16 bits"])
def test_png_has_the_colors_that_its_first_statement_means(sandbox, tmp_path, chunks, expected, note, dtype):
    largest = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(largest // 4, largest // 2, (20, 20, 3), dtype)
    assert notes(sandbox, tmp_path, png(pixels, **chunks)) == ((note,) if note else ())
    with Image.open(tmp_path / "image.png") as image:
        found = np.asarray(image).reshape(-1, 3)
    for pixel, shown in zip(pixels.reshape(-1, 3) / largest, found, strict=True):
        assert np.abs(shown - expected(pixel)).max() <= 2


def test_deep_grey_has_the_light_that_it_states(normalised):
    shades = np.linspace(0, 65535, 64).astype(np.uint16)
    image = normalised(png(np.tile(shades, (16, 1)), gAMA=LINEAR))
    expected = [255 * to_srgb(shade / 65535) for shade in shades]
    assert np.abs(np.asarray(image)[8] - np.transpose([expected] * 3)).max() <= 1


def test_deep_colors_are_turned_upright_whole(normalised):
    """Colors between which 8 bits do not differ show a mistake in the lower 8 of 16."""
    pixels = np.linspace(0, 4000, 24 * 16 * 3).astype(np.uint16).reshape(24, 16, 3)
    turned = Image.Exif()
    turned[0x0112] = 6
    upright, image = (
        normalised(png(pixels, gAMA=LINEAR, **more))
        for more in ({}, {"eXIf": turned.tobytes().removeprefix(b"Exif\0\0")})
    )
    assert np.array_equal(np.asarray(image), np.asarray(upright.transpose(Image.Transpose.ROTATE_270)))
    assert len(np.unique(np.asarray(upright))) > 50


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["8 bits", "16 bits"])
def test_narrow_range_is_widened(sandbox, tmp_path, dtype):
    shift = 8 * (dtype == np.uint16)
    levels = np.array([0, 16, 100, 125, 235, 255])
    pixels = np.tile((levels << shift).astype(dtype)[:, None, None], (4, 16, 3))
    assert notes(sandbox, tmp_path, png(pixels, cICP=bytes([1, 13, 0, 0]))) == ()
    with Image.open(tmp_path / "image.png") as image:
        found = np.asarray(image)[:6, 0, 0]
    assert np.abs(found - np.clip((levels - 16) * 255 / 219, 0, 255)).max() <= 1


def test_half_transparent_colors_are_converted_before_they_are_mixed_with_white(normalised):
    pixels = np.full((16, 16, 4), 128, np.uint8)
    pixels[..., :3] = 0
    image = normalised(png(pixels, gAMA=LINEAR))
    assert np.abs(np.asarray(image).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("chunks", [{}, {"gAMA": LINEAR}, {"sRGB": b"\0"}], ids="-".join)
@pytest.mark.parametrize("is_grey", [False, True])
def test_transparent_color_of_sixteen_bits_becomes_white(sandbox, tmp_path, chunks, is_grey):
    pixels = np.full((16, 16) if is_grey else (16, 16, 3), 0x1234, np.uint16)
    pixels[8:] += 1  # differs in the lower byte
    transparent = b"\x12\x34" * (1 if is_grey else 3)
    turned = Image.Exif()
    turned[0x0112] = 3
    more = {"eXIf": turned.tobytes().removeprefix(b"Exif\0\0")}
    found = notes(sandbox, tmp_path, png(pixels, **chunks, tRNS=transparent, **more))
    assert found == ("its transparent parts become white",)
    with Image.open(tmp_path / "image.png") as image:
        assert image.getpixel((4, 12)) == WHITE
        assert np.asarray(image)[:8].max() < 128


def test_white_of_another_light_stays_white(normalised):
    d50 = (0.3457, 0.3585)
    image = normalised(
        png(np.full((16, 16, 3), 200, np.uint8), gAMA=LINEAR, cHRM=chromaticities(*d50, *ADOBE))
    )
    assert np.ptp(np.asarray(image)) <= 1


@pytest.mark.parametrize(
    ("tags", "is_adobe"),
    [
        ({0xA005: {1: "R03"}, 0xA001: 0xFFFF}, True),
        ({0xA001: 2}, True),
        ({0xA005: {1: "R98"}, 0xA001: 1}, False),
        ({0xA001: 0xFFFF}, False),
    ],
)
def test_photo_that_says_by_exif_that_it_is_adobe_rgb_is_converted(sandbox, tmp_path, tags, is_adobe):
    exif = Image.Exif()
    exif.get_ifd(0x8769).update(tags)
    content = encoded(Image.new("RGB", (16, 16), (60, 140, 120)), "JPEG", exif=exif, quality=100)
    assert notes(sandbox, tmp_path, content) == ((CLIPPED,) if is_adobe else ())
    with Image.open(tmp_path / "image.png") as image:
        found = np.asarray(image)[8, 8]
    pixel = np.array((60, 140, 120)) / 255
    expected = of_light(2.2, ADOBE_TO_BT709)(pixel) if is_adobe else pixel * 255
    assert np.abs(found - np.array(expected)).max() <= 2


def test_cmyk_without_a_profile_is_noted(sandbox, tmp_path):
    content = encoded(picture().convert("CMYK"), "JPEG")
    assert notes(sandbox, tmp_path, content) == ("its CMYK has no color profile, so its colors may be wrong",)


ULTRA_HDR = b'<x:xmpmeta xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"/>'
APPLE_HDR = b'<x:xmpmeta AuxiliaryImageType="urn:com:apple:photo:2020:aux:hdrgainmap"/>'


@pytest.mark.parametrize(
    ("of_image", "of_second", "found"),
    [
        (ULTRA_HDR, b"", ("its gain map for HDR is not used, only the image without it",)),
        (b"", APPLE_HDR, ("its gain map for HDR is not used, only the image without it",)),
        (b"", b"", ()),
    ],
    ids=["Ultra HDR", "Apple", "another view"],
)
def test_jpeg_with_a_gain_map_is_its_sdr_image(sandbox, tmp_path, of_image, of_second, found):
    content = encoded(picture(), "MPO", save_all=True, append_images=[picture(32, 48)], xmp=of_image)
    content += encoded(Image.new("L", (48, 32), 128), "JPEG", xmp=of_second)
    assert notes(sandbox, tmp_path, content) == found
    with Image.open(tmp_path / "image.png") as image:
        assert np.abs(np.subtract(corners(image), [RED, GREEN, BLUE, WHITE])).max() < 80


class TestColorProfile:
    """A profile whose red is sRGB's blue, and so on, makes a wrong conversion visible."""

    SWAPPED = rgb_profile(SRGB_COLORANTS[::-1])

    def near(self, image, expected, tolerance=8):
        return np.abs(np.subtract(image.getpixel((1, 1)), expected)).max() <= tolerance

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
    def test_display_p3_becomes_srgb(self, normalised, kind):
        red = Image.new("RGB", (32, 32), (234, 51, 35))  # sRGB's red in Display P3
        options = {"subsampling": "4:4:4", "quality": 95} if kind in {"JPEG", "AVIF"} else {}
        image = normalised(encoded(red, kind, icc_profile=rgb_profile(), **options))
        assert self.near(image, RED, 12)
        assert "icc_profile" not in image.info

    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    @pytest.mark.parametrize(
        ("color", "found"),
        [
            ((234, 51, 35), ()),
            ((200, 180, 160), ()),
            ((255, 0, 0), ("its colors outside of sRGB are clipped",)),
        ],
        ids=["sRGB's red", "skin", "red of Display P3"],
    )
    def test_colors_outside_of_srgb_are_noted(self, sandbox, tmp_path, mode, color, found):
        image = Image.new(mode, (32, 32), (200, 180, 160))
        image.paste(color, (8, 8, 16, 16))
        assert notes(sandbox, tmp_path, encoded(image, icc_profile=rgb_profile())) == found

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["8 bits", "16 bits"])
    def test_colors_are_those_of_a_slow_reference(self, normalised, dtype):
        """Matrices and curves in floating point, one pixel at a time."""
        largest = np.iinfo(dtype).max
        pixels = np.random.default_rng(0).integers(0, largest, (32, 32, 3), dtype, endpoint=True)
        profile = b"P3\0\0" + zlib.compress(rgb_profile())
        found = np.asarray(normalised(png(pixels, iCCP=profile)))
        to_srgb = np.linalg.inv(np.transpose(SRGB_COLORANTS)) @ np.transpose(P3_COLORANTS)
        for pixel, shown in zip(pixels.reshape(-1, 3), found.reshape(-1, 3), strict=True):
            light = np.clip(to_srgb @ (pixel / largest) ** 2.2, 0, 1)
            encoded_light = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
            assert np.abs(shown - 255 * encoded_light).max() <= 2

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
    def test_each_mode_is_converted(self, normalised, mode):
        image = Image.new("RGB", (32, 32), (200, 100, 0)).convert(mode)
        assert self.near(normalised(encoded(image, icc_profile=self.SWAPPED)), (0, 100, 200))

    def test_transparent_parts_stay_white(self, normalised):
        image = Image.new("RGBA", (32, 32), (255, 0, 0, 51))
        assert self.near(normalised(encoded(image, icc_profile=self.SWAPPED)), (204, 204, 255))

    @pytest.mark.parametrize("mode", ["L", "I;16"])
    def test_grays_are_converted(self, normalised, mode):
        shade = 128 * 257 if mode == "I;16" else 128
        image = normalised(encoded(Image.new(mode, (32, 32), shade), icc_profile=gray_profile(1.0)))
        assert self.near(image, (188, 188, 188))  # half the light

    def test_srgb_stays_as_it_is(self, normalised):
        image = normalised(encoded(picture(), icc_profile=ImageCms.ImageCmsProfile(SRGB).tobytes()))
        assert np.abs(np.asarray(image).astype(int) - np.asarray(picture())).max() <= 1

    def test_orientation_is_obeyed_as_well(self, normalised):
        exif = Image.Exif()
        exif[0x0112] = 2
        image = normalised(encoded(picture(), "JPEG", exif=exif, icc_profile=self.SWAPPED, quality=95))
        assert np.abs(np.subtract(corners(image), [GREEN, BLUE, WHITE, RED])).max() < 30

    @pytest.mark.parametrize("profile", [b"not a profile", rgb_profile()[:200], gray_profile(1.0)])
    def test_unusable_profile_is_ignored_and_noted(self, sandbox, tmp_path, profile):
        content = encoded(Image.new("RGB", (32, 32), (200, 100, 0)), icc_profile=profile)
        assert notes(sandbox, tmp_path, content) == (
            "its color profile cannot be used, so its colors may be wrong",
        )
        assert Image.open(tmp_path / "image.png").getpixel((1, 1)) == (200, 100, 0)


def notes(sandbox, folder, content):
    (folder / "received").write_bytes(content)
    return check_image(sandbox, folder / "received", folder / "image.png", ImageLimits()).notes


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animation_is_noted(sandbox, tmp_path, kind):
    found = notes(sandbox, tmp_path, animation(kind))
    assert found == ("only the first frame of the animation is used",)


def test_still_image_has_no_notes(sandbox, tmp_path):
    several = encoded(picture(), "MPO", save_all=True, append_images=[picture(32, 32)])
    for content in (several, *(encoded(picture(), kind) for kind in IMAGE_FORMATS)):
        assert notes(sandbox, tmp_path, content) == ()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("is_opaque", [True, False])
def test_transparent_parts_are_noted(sandbox, tmp_path, mode, is_opaque):
    if mode == "P":
        image, options = Image.new("P", (32, 32), 0), {"transparency": 1 if is_opaque else 0}
    else:
        image, options = Image.new(mode, (32, 32), "white"), {}
        image.putalpha(255 if is_opaque else 254)
    found = notes(sandbox, tmp_path, encoded(image, "PNG", **options))
    assert found == (() if is_opaque else ("its transparent parts become white",))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(normalised, mode):
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG", "PA": "WEBP"}.get(mode, "PNG")
    image = picture().convert("L").convert("I;16") if mode == "I;16" else picture().convert(mode)
    normalised(encoded(image, kind))


def test_sixteen_bits_of_grey_keep_their_shades(normalised):
    shades = [0, 257, 128 * 257, 65535]
    image = Image.fromarray(np.tile(np.repeat(np.array(shades, np.uint16), 8), (32, 1)))
    grey = normalised(encoded(image))
    assert [grey.getpixel((4 + 8 * column, 5)) for column in range(4)] == [
        (v, v, v) for v in (0, 1, 128, 255)
    ]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(normalised, mode):
    if mode == "P":
        image, options = Image.new("P", (32, 32), 0), {"transparency": 0}
    else:
        image, options = Image.new(mode, (32, 32), (0,) * len(mode)), {}
    assert normalised(encoded(image, "PNG", **options)).getpixel((1, 1)) == WHITE


def test_what_is_half_transparent_is_mixed_with_white(normalised):
    assert normalised(encoded(Image.new("RGBA", (32, 32), (255, 0, 0, 51)))).getpixel((1, 1)) == (
        255,
        204,
        204,
    )


def test_the_first_frame_of_an_animation_counts(normalised):
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert normalised(animation).getpixel((1, 1)) == (255, 0, 0)


def test_a_photo_of_several_pictures_is_the_first_of_them(normalised):
    photo = encoded(picture(), "MPO", save_all=True, append_images=[picture(32, 32)])
    assert normalised(photo).size == (96, 64)


def test_the_name_of_the_kind_does_not_matter(normalised):
    assert normalised(encoded(picture(), "BMP")).size == (96, 64)


class TestLargeImages:
    """They are reduced to what the model can use; a small limit stands for the real one."""

    @pytest.fixture(autouse=True)
    def _small_limit(self, monkeypatch):
        monkeypatch.setattr(images, "MAX_KEPT_PIXELS", 60 * 40)

    @pytest.fixture
    def decoded(self, tmp_path):
        return partial(self._decoded, tmp_path / "received")

    def _decoded(self, path, image, **options):
        path.write_bytes(encoded(image, "PNG", **options))
        with path.open("rb") as file:
            output = images.encode_png(file, 16, MAX_PIXELS)
        content = Image.open(io.BytesIO(b"".join(output.chunks)))
        assert (content.width, content.height) == (output.facts["width"], output.facts["height"])
        return content

    def test_image_at_the_limit_is_kept_exactly(self, decoded):
        pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
        assert np.array_equal(decoded(Image.fromarray(pixels)), pixels)

    def test_larger_image_is_reduced_and_keeps_its_ratio(self, decoded):
        image = decoded(picture(400, 600))
        assert image.size == (60, 40)
        assert corners(image) == [RED, GREEN, BLUE, WHITE]

    def test_orientation_is_obeyed_before_the_image_is_reduced(self, decoded):
        exif = Image.Exif()
        exif[0x0112] = 6
        assert decoded(picture(400, 600), exif=exif).size == (40, 60)

    def test_image_of_extreme_shape_keeps_a_row(self, decoded):
        assert decoded(picture(16, 50_000)).height == 1


@pytest.fixture(scope="module")
def little_memory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    with Sandbox(memory_bytes=64 << 20) as sandbox:

        def run(content):
            (folder / "received").write_bytes(content)
            return check_image(sandbox, folder / "received", folder / "image.png", ImageLimits()).size

        yield run


class TestBombs:
    """In a sandbox with 64 MiB for each image."""

    @pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
    def test_small_file_of_many_pixels_needs_too_much_memory(self, little_memory, kind):
        content = encoded(Image.new("L", (5000, 5000)), kind)
        assert len(content) < 1 << 20
        with pytest.raises(UnusableMedia, match="needs more than 64 MiB"):
            little_memory(content)
        assert little_memory(encoded(picture())) == (64, 96)

    @pytest.mark.parametrize("chunk", [b"zTXt", b"iCCP", b"iTXt"])
    def test_compressed_text_is_not_unpacked_beyond_the_limit(self, little_memory, chunk):
        header = b"a\0\0" if chunk != b"iTXt" else b"a\0\1\0\0\0"
        data = header + zlib.compress(bytes(200 << 20))
        bomb = struct.pack(">I", len(data)) + chunk + data + struct.pack(">I", zlib.crc32(chunk + data))
        content = encoded(picture())
        with contextlib.suppress(UnusableMedia):
            assert little_memory(content[:33] + bomb + content[33:]) == (64, 96)
        assert little_memory(content) == (64, 96)


class TestRefused:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"hello",
            b"GIF89a",
            b"\x89PNG\r\n\x1a\n",
            b"%PDF-1.7\n",
            b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>",
            b"II*\x00\x08\x00\x00\x00",
            struct.pack("<4sI4s", b"RIFF", 4, b"WEBP"),
        ],
    )
    def test_what_is_no_image(self, normalised, content):
        with pytest.raises(UnusableMedia):
            normalised(content)

    @pytest.mark.parametrize("kind", ["TIFF", "ICO", "TGA", "PPM", "PDF"])
    def test_kinds_that_are_not_on_the_list(self, normalised, kind):
        with pytest.raises(UnusableMedia, match="one of PNG"):
            normalised(encoded(picture(), kind))

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_an_image_that_breaks_off(self, normalised, kind):
        content = encoded(picture(256, 256), kind)
        with pytest.raises(UnusableMedia):
            normalised(content[: len(content) // 2])

    @pytest.mark.parametrize(
        ("height", "width"), [(1001, 1000), (9500, 9500), (30_000, 30_000), (2**31 - 1, 1)]
    )
    def test_a_bomb_before_it_is_unpacked(self, normalised, height, width):
        with pytest.raises(UnusableMedia):
            normalised(png_that_says(height, width))

    def test_one_pixel_too_many_by_what_the_setting_says(self, normalised):
        content = encoded(picture(32, 32))
        assert normalised(content, max_pixels=1024)
        with pytest.raises(UnusableMedia, match="more than 1023 pixels"):
            normalised(content, max_pixels=1023)

    @pytest.mark.parametrize("size", [(15, 64), (64, 15)])
    def test_an_image_too_small_to_be_of_use(self, normalised, size):
        with pytest.raises(UnusableMedia, match="at least 16"):
            normalised(encoded(picture(*size)))


@given(
    kind=st.sampled_from(IMAGE_FORMATS),
    position=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=16),
)
def test_damage_is_refused_or_survived_and_nothing_else(sandbox, kind, position, junk, tmp_path_factory):
    content = bytearray(encoded(picture(), kind))
    start = int(position * len(content))
    content[start : start + len(junk)] = junk
    folder = tmp_path_factory.getbasetemp()
    (folder / "fuzzed").write_bytes(content)
    with contextlib.suppress(UnusableMedia):
        check_image(sandbox, folder / "fuzzed", folder / "fuzzed.png", ImageLimits(max_pixels=MAX_PIXELS))
