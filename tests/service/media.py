"""Generate images and clips for tests."""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image


def picture(height: int = 64, width: int = 96) -> Image.Image:
    """Return a picture with a red, green, blue and white quarter, row by row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def clip(
    num_frames: int = 17,
    height: int = 64,
    width: int = 96,
    codec: str = "libx264",
    kind: str = "mp4",
    rate: int = 15,
    pixel_format: str = "yuv420p",
    **options: Any,
) -> bytes:
    """Return a clip as the bytes of a file. It gets brighter from frame to frame.

    `options` are attributes of the codec, such as `sample_aspect_ratio`.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        for index in range(num_frames):
            pixels = np.full((height, width, 3), index * 255 // num_frames, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def turned_clip(clockwise: int = 90, content: bytes | None = None, *, mirrored: bool = False) -> bytes:
    """Return a clip with a rotation in its container, as telephones write it, perhaps mirrored before."""
    content = clip() if content is None else content
    cos, sin = (round(part(math.radians(clockwise)) * 0x10000) for part in (math.cos, math.sin))
    sign = -1 if mirrored else 1
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", sign * cos, sign * sin, 0, -sin, cos, 0, 0, 0, 0x40000000)
    track = content.index(b"tkhd")
    return content[:track] + content[track:].replace(upright, turned, 1)


def pictures(image: Image.Image, num_frames: int = 5) -> bytes:
    """Return a clip of a single picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=15, options={"crf": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = image.width, image.height, "yuv420p"
        for _ in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return file.getvalue()


def uneven_clip(times: Sequence[int] = (0, 1, 2, 3, 4, 8, 12), rate: int = 15) -> bytes:
    """Return a clip whose frames begin at these times, in 1/`rate` s. Each is brighter than the last."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index, time in enumerate(times):
            pixels = np.full((64, 96, 3), index * 255 // len(times), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def interlaced_clip() -> bytes:
    """Return an interlaced clip, of which the first field is white and the second black."""
    file = io.BytesIO()
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[::2] = 255
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=15, options={"x264-params": "tff=1", "crf": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def transparent_webm() -> bytes:
    """Return a VP9 clip that says that it has an alpha channel."""
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=15)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuva420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(picture()).reformat(format="yuva420p")))
        container.mux(stream.encode())
    return file.getvalue()


def sound() -> bytes:
    """Return an MP4 without a video track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


SRGB_COLORANTS = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
P3_COLORANTS = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def rgb_profile(colorants: tuple[tuple[float, ...], ...] = P3_COLORANTS) -> bytes:
    """Return an ICC profile with these colorants (XYZ at D50) and gamma 2.2."""

    def fixed(values: tuple[float, ...]) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    white = (0.9642, 1.0, 0.8249)
    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(2.2 * 256))
    tags = [(b"wtpt", b"XYZ " + bytes(4) + fixed(white))]
    for name, colorant in zip((b"r", b"g", b"b"), colorants, strict=True):
        tags += [(name + b"XYZ", b"XYZ " + bytes(4) + fixed(colorant)), (name + b"TRC", curve)]
    return _profile(b"RGB ", tags)


def gray_profile(gamma: float) -> bytes:
    """Return an ICC profile of grays with this gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    white = struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    return _profile(b"GRAY", [(b"wtpt", b"XYZ " + bytes(4) + white), (b"kTRC", curve)])


def _profile(space: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    offset = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content
    header = struct.pack(">I4sI4s4s4s", offset + len(data), b"test", 0x02400000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + table + data


def animation(kind: str = "GIF") -> bytes:
    """Return an animation of two frames, the first red."""
    frames = [Image.new("RGB", (96, 64), color) for color in ((255, 0, 0), (0, 0, 255))]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)


def clip_with_sound() -> bytes:
    """Return an MP4 with a picture and a silent sound track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=15)
        audio = container.add_stream("aac", rate=44100)
        assert isinstance(video, av.VideoStream)
        assert isinstance(audio, av.AudioStream)
        video.width, video.height, video.pix_fmt, audio.layout = 96, 64, "yuv420p", "mono"
        for _ in range(17):
            container.mux(video.encode(av.VideoFrame.from_image(picture())))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        for stream, frame in ((audio, sound), (audio, None), (video, None)):
            container.mux(stream.encode(frame))  # type: ignore[arg-type]
    return file.getvalue()


class HeifItem(NamedTuple):
    """An image in a HEIF file, or how it is made of others, with its properties."""

    kind: bytes
    content: bytes
    properties: tuple[tuple[bytes, bytes], ...] = ()
    derived_from: tuple[int, ...] = ()
    auxiliary_of: int | None = None


def coded_item(
    image: Image.Image | av.VideoFrame,
    *properties: tuple[bytes, bytes],
    pixel_format: str = "yuv444p",
    codec: str = "libx265",
    auxiliary_of: int | None = None,
) -> HeifItem:
    """Return an image as an item of a HEIF file, coded without loss by HEVC or with little loss by AV1."""
    frame = av.VideoFrame.from_image(image) if isinstance(image, Image.Image) else image
    kind, name = (b"hvc1", b"hvcC") if codec == "libx265" else (b"av01", b"av1C")
    coding = _hevc if codec == "libx265" else _av1
    configuration, content = coding(frame, pixel_format)
    size = struct.pack(">III", 0, frame.width, frame.height)
    bits = bytes([frame.format.components[0].bits])
    needed = ((name, configuration), (b"ispe", size), (b"pixi", bytes(4) + b"\3" + 3 * bits))
    return HeifItem(kind, content, (*needed, *properties), auxiliary_of=auxiliary_of)


def _hevc(frame: av.VideoFrame, pixel_format: str) -> tuple[bytes, bytes]:
    """Return the configuration (`hvcC`) and the coded frame, whose units begin with their lengths."""
    context = av.VideoCodecContext.create("libx265", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = frame.width, frame.height, pixel_format
    context.time_base = Fraction(1)
    context.options = {"x265-params": "lossless=1:log-level=none"}
    stream = b"".join(map(bytes, [*context.encode(frame), *context.encode(None)]))
    units = [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1")[1:]]
    parameters = [unit for unit in units if unit[0] >> 1 in {32, 33, 34}]  # VPS, SPS, PPS
    arrays = [struct.pack(">BHH", one[0] >> 1, 1, len(one)) + one for one in parameters]
    configuration = b"\1" + bytes(20) + b"\3" + bytes([len(arrays)]) + b"".join(arrays)
    return configuration, b"".join(struct.pack(">I", len(one)) + one for one in units if one[0] >> 1 < 32)


def _av1(frame: av.VideoFrame, pixel_format: str) -> tuple[bytes, bytes]:
    """Return the configuration (`av1C`) and the coded frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libsvtav1", rate=1, options={"crf": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixel_format
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as coded:
        content = bytes(next(coded.demux(video=0)))
        configuration = coded.streams.video[0].codec_context.extradata
    assert configuration is not None
    return configuration, content


def heif(*items: HeifItem, brand: bytes = b"heic") -> bytes:
    """Return a HEIF file. The first item is its image; items are numbered from 1."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return struct.pack(">I4s", len(content) + 8, kind) + content

    def meta(first_offset: int) -> bytes:
        properties: list[bytes] = []
        entries, places, references, associations = [], [], [], []
        offset = first_offset
        for number, item in enumerate(items, 1):
            entries.append(box(b"infe", struct.pack(">IHH4sx", 2 << 24, number, 0, item.kind)))
            places.append(struct.pack(">HHHII", number, 0, 1, offset, len(item.content)))
            offset += len(item.content)
            for kind, targets in (
                (b"dimg", item.derived_from),
                (b"auxl", (item.auxiliary_of,) if item.auxiliary_of else ()),
            ):
                if targets:
                    count = len(targets)
                    references.append(box(kind, struct.pack(f">HH{count}H", number, count, *targets)))
            own = [box(kind, content) for kind, content in item.properties]
            properties += [one for one in own if one not in properties]
            essential = bytes(0x80 | properties.index(one) + 1 for one in own)
            associations.append(struct.pack(">HB", number, len(own)) + essential)
        count = len(items)
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), struct.pack(">H", 1)),
            box(b"iloc", bytes(4), struct.pack(">HH", 0x4400, count), *places),
            box(b"iinf", bytes(4), struct.pack(">H", count), *entries),
            box(b"iref", bytes(4), *references),
            box(
                b"iprp",
                box(b"ipco", *properties),
                box(b"ipma", bytes(4), struct.pack(">I", count), *associations),
            ),
        )

    start = box(b"ftyp", brand, bytes(4), b"mif1", brand)
    data_start = len(start) + len(meta(0)) + 8
    return start + meta(data_start) + box(b"mdat", *(item.content for item in items))


def nclx(
    primaries: int = 1, transfer: int = 13, matrix: int = 6, *, is_full_range: bool = True
) -> tuple[bytes, bytes]:
    """Return the property of a HEIF item that tells its color space, in codes of ITU-T H.273."""
    return b"colr", b"nclx" + struct.pack(">HHHB", primaries, transfer, matrix, 0x80 * is_full_range)


def png_that_says(height: int, width: int) -> bytes:
    """Return a PNG of a few bytes whose header declares this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _png_of([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")])


def png(pixels: np.ndarray[Any, Any], **chunks: bytes) -> bytes:
    """Return a PNG of RGB, RGBA or grey with 8 or 16 bits, and with these chunks before the pixels."""
    height, width, *colors = pixels.shape
    kind = {(): 0, (3,): 2, (4,): 6}[tuple(colors)]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, kind, 0, 0, 0)
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1)
    content = b"".join(b"\0" + row.tobytes() for row in rows)  # each row begins with the number of a filter
    given = [(name.encode(), chunk) for name, chunk in chunks.items()]
    return _png_of([(b"IHDR", header), *given, (b"IDAT", zlib.compress(content)), (b"IEND", b"")])


def _png_of(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def in_base64(content: bytes) -> str:
    """Return content in base64."""
    return base64.b64encode(content).decode()
