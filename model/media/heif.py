"""Read the still image of a HEIF file: HEIC, or AVIF. Runs in a confined child process.

FFmpeg decodes the coded images, as those of clips, and this module reads the boxes of ISO/IEC 23008-12 around
them. libheif cannot be used: its decoder of HEVC needs threads, which a confined process cannot start.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import av
from PIL import Image

from model.media.colors import BT709, SRGB, UNSPECIFIED, ColorSpace
from model.media.errors import UnusableMedia
from model.media.formats import CODECS
from model.media.frames import FrameReader, facts_of
from model.spec.geometry import Size

HEAD_BYTES = 32
"""How many bytes of a file tell its kind."""

_AVIF_SEQUENCE = b"avis"
_AVIF_BRANDS = frozenset({b"avif", _AVIF_SEQUENCE})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_DECODERS = {b"hvc1": ("hevc", b"hvcC"), b"av01": ("libdav1d", b"av1C")}
_PROFILES = frozenset({b"prof", b"rICC"})
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
_GAIN_MAP = (b"urn:com:apple:photo:2020:aux:hdrgainmap",)
_ROTATIONS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
_MIRRORINGS = (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_LEFT_RIGHT)
_BT601, _FULL_RANGE = 5, 2
_MAX_META_BYTES = 16 << 20


class Coding(NamedTuple):
    """The meaning of the values of an image, as codes of ITU-T H.273 (range: as FFmpeg's)."""

    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    matrix: int = UNSPECIFIED
    range: int = 0

    @property
    def space(self) -> ColorSpace:
        """Return primaries and transfer."""
        return ColorSpace(self.primaries, self.transfer)


_DATA = Coding(BT709, SRGB, _BT601, _FULL_RANGE)  # of alpha: values are used as they are


def is_heic(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is a HEIC image."""
    brands = _brands(head)
    return bool(brands & _HEIC_BRANDS) and not brands & _AVIF_BRANDS


def is_avif(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is an AVIF image."""
    return bool(_brands(head) & _AVIF_BRANDS)


def is_avif_sequence(head: bytes) -> bool:
    """Return whether a file that begins with these bytes has several AVIF images, usually an animation."""
    return _AVIF_SEQUENCE in _brands(head)


def _brands(head: bytes) -> set[bytes]:
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4]), len(head))
    return {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}


@dataclass
class _Item:
    kind: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)
    is_in_idat: bool = False
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    derived_from: list[int] = field(default_factory=list)
    auxiliary_of: list[int] = field(default_factory=list)
    is_premultiplied: bool = False

    def property(self, kind: bytes) -> bytes | None:
        """Return the content of the first property of this kind."""
        return next((content for name, content in self.properties if name == kind), None)


class HeifImage:
    """The primary image of a file. Raises UnusableMedia, or another exception if the file is damaged."""

    def __init__(self, source: BinaryIO, *, is_heic: bool) -> None:
        self._source = source
        self.is_heic = is_heic
        self._items: dict[int, _Item] = {}
        self._idat = b""
        self._primary = 0
        self._read_meta(_find_meta(source))

    @property
    def size(self) -> Size:
        """Return the size before it is turned."""
        width, height = struct.unpack_from(">II", _required(self._items[self._primary], b"ispe"), 4)
        return Size(height, width)

    @property
    def coding(self) -> Coding:
        """Return what the file says about the values of the image. The coded image may say more."""
        return self._coding(self._items[self._primary])

    @property
    def has_gain_map(self) -> bool:
        """Return whether another image of the file tells how to make HDR of this one, or SDR."""
        tone_maps = (item.derived_from for item in self._items.values() if item.kind == b"tmap")
        return any(self._primary in images for images in tone_maps) or bool(self._auxiliary(_GAIN_MAP))

    def decode(self, new_curve: int = SRGB) -> tuple[Image.Image, set[str]]:
        """Return the image upright, and the facts of `frames.facts_of`.

        It is in sRGB, except if it has an ICC profile in `info`. The mode is RGB or RGBA.
        """
        item = self._items[self._primary]
        profile = next((c[4:] for kind, c in item.properties if kind == b"colr" and c[:4] in _PROFILES), None)
        coding = self.coding
        if profile:  # it is used instead of primaries and transfer
            coding = coding._replace(primaries=BT709, transfer=SRGB)
        facts: set[str] = set()
        image = self._pixels(item, coding, FrameReader(new_curve), facts)
        alpha = self._auxiliary(_ALPHA)
        if alpha:
            mask = self._pixels(alpha, _DATA, FrameReader(), set()).convert("L")
            image.putalpha(mask if mask.size == image.size else mask.resize(image.size))
            if item.is_premultiplied:
                image = Image.frombytes("RGBa", image.size, image.tobytes()).convert("RGBA")
        image = _transformed(image, item.properties)
        if profile:
            image.info["icc_profile"] = profile
        return image, facts

    def _coding(self, item: _Item) -> Coding:
        for kind, content in item.properties:
            if kind == b"colr" and content[:4] == b"nclx":
                primaries, transfer, matrix, flags = struct.unpack_from(">HHHB", content, 4)
                return Coding(primaries, transfer, matrix, _FULL_RANGE if flags & 0x80 else 1)
        return Coding()

    def _auxiliary(self, kinds: Collection[bytes]) -> _Item | None:
        """Return the first image of these kinds that belongs to the primary one."""
        for item in self._items.values():
            kind = item.property(b"auxC") if self._primary in item.auxiliary_of else None
            if kind and kind[4:].split(b"\0")[0] in kinds:
                return item
        return None

    def _pixels(self, item: _Item, coding: Coding, reader: FrameReader, facts: set[str]) -> Image.Image:
        if item.kind != b"grid":
            return self._decode_coded(item, coding, reader, facts)
        size, rows, columns = _grid(self._content(item))
        if len(item.derived_from) != rows * columns:
            raise UnusableMedia("is damaged: tiles are missing")
        if size.height * size.width > self.size.height * self.size.width:
            raise UnusableMedia("is damaged: its size is contradictory")
        image = Image.new("RGB", (size.width, size.height))
        for index, identifier in enumerate(item.derived_from):
            tile = self._decode_coded(self._items[identifier], coding, reader, facts)
            image.paste(tile, (index % columns * tile.width, index // columns * tile.height))
        return image

    def _decode_coded(self, item: _Item, coding: Coding, reader: FrameReader, facts: set[str]) -> Image.Image:
        if item.kind not in _DECODERS:
            raise UnusableMedia(f"is a HEIF image of a kind that cannot be read ({item.kind!a})")
        codec, configuration = _DECODERS[item.kind]
        context = av.VideoCodecContext.create(codec, "r")
        assert isinstance(context, av.VideoCodecContext)
        context.thread_count = 1  # as a confined process has
        context.extradata = _required(item, configuration)
        size = self.size
        context.options = {
            "max_pixels": str(size.height * size.width * 2 + (1 << 20)),
            "codec_whitelist": CODECS,
        }
        packet = av.Packet(self._content(item))
        frames = [*context.decode(packet), *context.decode(None)]
        if not frames:
            raise UnusableMedia("is damaged: an image in it cannot be decoded")
        frame = frames[0]
        _apply(frame, coding)
        facts |= facts_of(frame)
        return reader.read(frame)

    def _content(self, item: _Item) -> bytes:
        parts = []
        for offset, length in item.extents:
            if item.is_in_idat:
                parts.append(self._idat[offset : offset + length])
            else:
                self._source.seek(offset)
                parts.append(self._source.read(length))
        return b"".join(parts)

    def _read_meta(self, meta: bytes) -> None:
        boxes = dict(_boxes(meta[4:]))
        self._idat = boxes.get(b"idat", b"")
        self._primary = int.from_bytes(boxes[b"pitm"][4:])
        self._read_kinds(boxes[b"iinf"])
        self._read_locations(boxes[b"iloc"])
        self._read_references(boxes.get(b"iref", b""))
        (_, properties), *associations = _boxes(boxes[b"iprp"])
        for _, association in associations:
            self._read_associations(association, [*_boxes(properties)])

    def _item(self, identifier: int) -> _Item:
        return self._items.setdefault(identifier, _Item())

    def _read_kinds(self, box: bytes) -> None:
        start = 6 if box[0] == 0 else 8
        for _, entry in _boxes(box[start:]):
            width = 2 if entry[0] == 2 else 4
            identifier = int.from_bytes(entry[4 : 4 + width])
            self._item(identifier).kind = entry[4 + width + 2 : 4 + width + 6]

    def _read_locations(self, box: bytes) -> None:
        version = box[0]
        reader = _Fields(box, 4)
        sizes = reader.take(2)
        offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        index_size = sizes & 15 if version else 0
        for _ in range(reader.take(2 if version < 2 else 4)):
            item = self._item(reader.take(2 if version < 2 else 4))
            item.is_in_idat = bool(version) and reader.take(2) & 15 == 1
            reader.take(2)  # 0: the data is in this file
            base = reader.take(base_size)
            for _ in range(reader.take(2)):
                reader.take(index_size)
                offset = base + reader.take(offset_size)
                item.extents.append((offset, reader.take(length_size)))

    def _read_references(self, box: bytes) -> None:
        for kind, content in _boxes(box[4:]):
            width = 2 if box[0] == 0 else 4
            reader = _Fields(content)
            item = self._item(reader.take(width))
            targets = [reader.take(width) for _ in range(reader.take(2))]
            if kind == b"dimg":
                item.derived_from = targets
            elif kind == b"auxl":
                item.auxiliary_of = targets
            elif kind == b"prem":
                item.is_premultiplied = True

    def _read_associations(self, box: bytes, properties: list[tuple[bytes, bytes]]) -> None:
        reader = _Fields(box, 4)
        is_long = box[3] & 1
        for _ in range(reader.take(4)):
            item = self._item(reader.take(2 if box[0] == 0 else 4))
            for _ in range(reader.take(1)):
                index = reader.take(2) & 0x7FFF if is_long else reader.take(1) & 0x7F
                if index:
                    item.properties.append(properties[index - 1])


class _Fields:
    """Reads unsigned numbers, one after the other."""

    def __init__(self, content: bytes, start: int = 0) -> None:
        self._content = content
        self._start = start

    def take(self, size: int) -> int:
        start, self._start = self._start, self._start + size
        if self._start > len(self._content):
            raise UnusableMedia("is damaged: a box in it is too short")
        return int.from_bytes(self._content[start : self._start])


def _find_meta(source: BinaryIO) -> bytes:
    """Return the content of the first `meta` box."""
    source.seek(0)
    while len(header := source.read(8)) == 8:
        size, kind = int.from_bytes(header[:4]), header[4:]
        if kind == b"meta" and 8 <= size <= _MAX_META_BYTES:
            return source.read(size - 8)
        if size < 8:  # 0: to the end of the file; 1: a size of 64 bits, which no box before `meta` needs
            break
        source.seek(size - 8, 1)
    raise UnusableMedia("is damaged: it has no list of images")


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start + 8 <= len(content):
        size = int.from_bytes(content[start : start + 4]) or len(content) - start
        if size < 8:
            raise UnusableMedia("is damaged: a box in it has a wrong size")
        yield content[start + 4 : start + 8], content[start + 8 : start + size]
        start += size


def _required(item: _Item, kind: bytes) -> bytes:
    content = item.property(kind)
    if content is None:
        raise UnusableMedia(f"is damaged: an image in it has no {kind.decode()}")
    return content


def _grid(content: bytes) -> tuple[Size, int, int]:
    """Return the size, and the number of rows and columns of tiles."""
    width, height = struct.unpack_from(">II" if content[1] & 1 else ">HH", content, 4)
    return Size(height, width), content[2] + 1, content[3] + 1


def _apply(frame: av.VideoFrame, coding: Coding) -> None:
    """Give the frame this coding. What it leaves open, the coded image says, or else the standard (MIAF)."""
    for name, value in (("color_primaries", coding.primaries), ("color_trc", coding.transfer)):
        if value != UNSPECIFIED:
            setattr(frame, name, value)
    if coding.range:
        frame.color_range = coding.range
    if coding.matrix != UNSPECIFIED:
        frame.colorspace = coding.matrix
    elif frame.colorspace == UNSPECIFIED:
        frame.colorspace = _BT601


def _transformed(image: Image.Image, properties: list[tuple[bytes, bytes]]) -> Image.Image:
    """Crop, rotate and mirror the image, in the order of the file."""
    for kind, content in properties:
        if kind == b"irot" and (rotation := _ROTATIONS[content[0] & 3]) is not None:
            image = image.transpose(rotation)
        elif kind == b"imir":
            image = image.transpose(_MIRRORINGS[content[0] & 1])
        elif kind == b"clap":
            image = image.crop(_clean_aperture(content, image.width, image.height))
    return image


def _clean_aperture(content: bytes, width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the part to show, inside of the image."""
    values = struct.unpack_from(">IIIIiIiI", content)
    new_width, new_height, x, y = (values[index] / values[index + 1] for index in range(0, 8, 2))
    left = round((width - new_width) / 2 + x)
    top = round((height - new_height) / 2 + y)
    box = left, top, left + round(new_width), top + round(new_height)
    if not (0 <= left < box[2] <= width and 0 <= top < box[3] <= height):
        raise UnusableMedia("is damaged: it is cropped to nothing")
    return box
