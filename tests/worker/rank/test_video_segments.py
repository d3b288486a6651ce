from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import av
import psutil
import pytest
import torch
from PIL import Image

from model.spec.geometry import Size
from worker.rank.video_segments import VideoFormat, VideoSegments, join

FORM = VideoFormat(Size(64, 96), fps=15, crf=18, preset="ultrafast")


def clip(first: int, count: int, size: Size = FORM.size) -> torch.Tensor:
    """Frames that drift, so that packets are reordered; each tells its index by its grey."""
    frames = torch.zeros(count, *size, 3, dtype=torch.uint8)
    for i in range(count):
        frames[i] = 30 + (first + i) * 2 % 190
        frames[i, :16, (5 * (first + i)) % 80 :, :] = 255
    return frames


def film_of(folder: Path, lengths: list[int], preset: str = "medium") -> Path:
    """A film of pieces of these lengths."""
    folder.mkdir(exist_ok=True)
    pieces = VideoSegments(folder, VideoFormat(FORM.size, 15, 18, preset))
    for i, length in enumerate(lengths):
        pieces.write(clip(sum(lengths[:i]), length))
        pieces.cut()
    pieces.join()
    return folder / "video.mp4"


def decoded(path: Path) -> list[tuple[float, torch.Tensor]]:
    """Times in seconds, and frames."""
    with av.open(path) as container:
        return [
            (float(frame.pts * frame.time_base), torch.from_numpy(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(video=0)
        ]


@pytest.mark.parametrize("lengths", [[9], [17, 12, 12], [1, 1, 1], [2, 3, 1, 9], [1, 20], [93, 80]])
def test_joined_pieces_have_every_frame_once_at_its_time(tmp_path, lengths):
    film = film_of(tmp_path, lengths)
    frames = decoded(film)
    assert [round(time * 15, 6) for time, _ in frames] == list(range(sum(lengths)))
    greys = [int(picture[40:, :, 1].float().mean()) for _, picture in frames]
    assert all(abs(grey - (30 + i * 2 % 190)) <= 3 for i, grey in enumerate(greys))
    with av.open(film) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (sum(lengths), 15)
        assert float(stream.duration * stream.time_base) == pytest.approx(sum(lengths) / 15)


def test_joining_changes_no_picture(tmp_path):
    lengths = [17, 3, 12]
    film = film_of(tmp_path, lengths)
    apart = [picture for i in range(3) for _, picture in decoded(tmp_path / f"piece-00{i}.mp4")]
    assert all(torch.equal(one, other) for one, (_, other) in zip(apart, decoded(film), strict=True))


def test_packets_of_a_joined_film_are_in_order_and_come_before_they_are_shown(tmp_path):
    with av.open(film_of(tmp_path, [2, 3, 1, 20])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.dts is not None]
    assert all(one.dts < other.dts for one, other in pairwise(packets))
    assert all(packet.dts <= packet.pts for packet in packets)


def test_each_piece_begins_with_a_picture_that_needs_no_other(tmp_path):
    with av.open(film_of(tmp_path, [9, 8, 8])) as container:
        keys = [
            packet.pts for packet in container.demux(video=0) if packet.is_keyframe and packet.pts is not None
        ]
    with av.open(tmp_path / "video.mp4") as container:
        unit = next(container.demux(video=0)).duration
    assert {0, 9 * unit, 17 * unit} <= set(keys)


def test_a_film_can_be_played_while_it_is_loaded(tmp_path):
    content = film_of(tmp_path, [9, 8]).read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_a_film_continued_from_its_pieces_is_the_same_to_the_bit(tmp_path):
    whole = film_of(tmp_path / "whole", [9, 8, 8], "ultrafast")
    (tmp_path / "later").mkdir()
    for name in ("piece-000.mp4", "piece-001.mp4"):
        (tmp_path / "whole" / name).rename(tmp_path / "later" / name)
    later = VideoSegments(tmp_path / "later", FORM, ("piece-000.mp4", "piece-001.mp4"))
    later.write(clip(17, 3))
    later.write(clip(20, 5))
    later.cut()
    later.join()
    assert (tmp_path / "later" / "video.mp4").read_bytes() == whole.read_bytes()


def test_what_is_told_of_a_film_is_true(tmp_path):
    pieces = VideoSegments(tmp_path, FORM)
    pieces.write(clip(0, 9))
    pieces.cut()
    film = pieces.join()
    content = (tmp_path / film.video).read_bytes()
    assert (film.width, film.height, film.num_frames, film.fps) == (96, 64, 9, 15)
    assert (film.size_bytes, film.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with Image.open(tmp_path / film.thumbnail) as still:
        assert (still.format, still.size) == ("JPEG", (96, 64))


def test_a_large_film_has_a_small_thumbnail(tmp_path):
    size = Size(704, 1280)
    pieces = VideoSegments(tmp_path, VideoFormat(size, 30, 30, "ultrafast"))
    pieces.write(clip(0, 1, size))
    pieces.cut()
    with Image.open(tmp_path / pieces.join().thumbnail) as still:
        assert still.size == (640, 352)


def test_a_dropped_piece_leaves_no_file(tmp_path):
    pieces = VideoSegments(tmp_path, FORM)
    pieces.write(clip(0, 9))
    pieces.drop()
    assert (list(tmp_path.iterdir()), pieces.names) == ([], ())


def test_after_a_piece_was_dropped_another_can_be_written(tmp_path):
    pieces = VideoSegments(tmp_path, FORM)
    pieces.write(clip(0, 9))
    pieces.drop()
    pieces.write(clip(0, 4))
    pieces.cut()
    assert pieces.join().num_frames == 4


def test_a_full_disk_is_an_error_that_says_so(tmp_path):
    (tmp_path / "part-piece.mp4").symlink_to("/dev/full")
    pieces = VideoSegments(tmp_path, FORM)

    def write() -> None:
        pieces.write(torch.randint(0, 256, (90, 64, 96, 3), dtype=torch.uint8))
        pieces.cut()

    with pytest.raises(OSError, match="No space left"):
        write()


def test_joining_what_is_no_film_is_an_error(tmp_path):
    (tmp_path / "piece.mp4").write_bytes(b"no film")
    with pytest.raises(av.FFmpegError):
        join([tmp_path / "piece.mp4"], tmp_path / "video.mp4")


def test_memory_does_not_grow_with_the_length(tmp_path):
    size, process = Size(256, 256), psutil.Process()
    pieces = VideoSegments(tmp_path, VideoFormat(size, 15, 40, "ultrafast"))
    frames = clip(0, 4, size)

    def write(count: int) -> int:
        for _ in range(count // 4):
            pieces.write(frames)
        return process.memory_info().rss

    before = write(200)
    after = write(1200)  # 236 MB of frames
    pieces.cut()
    assert after - before < 30e6
