from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import psutil
import pytest
import torch
from PIL import Image

from model.spec.geometry import Size
from worker.rank.video_segments import VideoFormat, VideoSegments, concat

FORMAT = VideoFormat(Size(64, 96), fps=15, crf=18, preset="ultrafast")


def clip(first: int, count: int, size: Size = FORMAT.size) -> torch.Tensor:
    """Return frames with a moving edge, so that x264 reorders packets. Their greys encode their index."""
    frames = torch.zeros(count, *size, 3, dtype=torch.uint8)
    for i in range(count):
        frames[i] = 30 + (first + i) * 2 % 190
        frames[i, :16, (5 * (first + i)) % 80 :, :] = 255
    return frames


def write_video(folder: Path, lengths: list[int], preset: str = "medium") -> Path:
    """Write a video with segments of these lengths, and return its path."""
    folder.mkdir(exist_ok=True)
    segments = VideoSegments(folder, VideoFormat(FORMAT.size, 15, 18, preset))
    for i, length in enumerate(lengths):
        segments.write(clip(sum(lengths[:i]), length))
        segments.finish()
    segments.concat()
    return folder / "video.mp4"


def decoded(path: Path) -> list[tuple[float, torch.Tensor]]:
    """Return the time in seconds and the pixels of each frame."""
    frames: list[tuple[float, torch.Tensor]] = []
    with av.open(path) as container:
        for frame in container.decode(video=0):
            assert frame.time is not None
            frames.append((frame.time, torch.from_numpy(frame.to_ndarray(format="rgb24"))))
    return frames


@dataclass(frozen=True)
class PacketTimes:
    """The decoding and presentation times of a packet, in units of the stream."""

    dts: int
    pts: int
    duration: int
    is_keyframe: bool


def packet_times(path: Path) -> list[PacketTimes]:
    """Return the times of the packets in the order of the file."""
    times: list[PacketTimes] = []
    with av.open(path) as container:
        for packet in container.demux(video=0):
            if packet.dts is not None:  # the last one is empty
                assert packet.pts is not None
                assert packet.duration is not None
                times.append(PacketTimes(packet.dts, packet.pts, packet.duration, packet.is_keyframe))
    return times


@pytest.mark.parametrize("lengths", [[9], [17, 12, 12], [1, 1, 1], [2, 3, 1, 9], [1, 20], [93, 80]])
def test_video_has_every_frame_once_in_order_at_its_time(tmp_path, lengths):
    video = write_video(tmp_path, lengths)
    frames = decoded(video)
    assert [round(time * 15, 6) for time, _ in frames] == list(range(sum(lengths)))
    greys = [int(picture[40:, :, 1].float().mean()) for _, picture in frames]
    assert all(abs(grey - (30 + i * 2 % 190)) <= 3 for i, grey in enumerate(greys))
    with av.open(video) as container:
        stream = container.streams.video[0]
        assert stream.frames == sum(lengths)
        assert stream.average_rate == Fraction(15)
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == Fraction(sum(lengths), 15)


def test_concat_does_not_change_pixels(tmp_path):
    lengths = [17, 3, 12]
    video = write_video(tmp_path, lengths)
    apart = [picture for i in range(3) for _, picture in decoded(tmp_path / f"segment-00{i}.mp4")]
    assert all(torch.equal(one, other) for one, (_, other) in zip(apart, decoded(video), strict=True))


def test_packets_are_in_decoding_order_and_precede_their_presentation(tmp_path):
    packets = packet_times(write_video(tmp_path, [2, 3, 1, 20]))
    assert all(one.dts < other.dts for one, other in pairwise(packets))
    assert all(packet.dts <= packet.pts for packet in packets)


def test_each_segment_begins_with_a_key_frame(tmp_path):
    packets = packet_times(write_video(tmp_path, [9, 8, 8]))
    duration = packets[0].duration
    keys = {packet.pts for packet in packets if packet.is_keyframe}
    assert {0, 9 * duration, 17 * duration} <= keys


def test_index_precedes_the_frames_so_that_playback_can_start_early(tmp_path):
    content = write_video(tmp_path, [9, 8]).read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_video_resumed_from_its_segments_has_the_same_bytes(tmp_path):
    whole = write_video(tmp_path / "whole", [9, 8, 8], "ultrafast")
    (tmp_path / "later").mkdir()
    for name in ("segment-000.mp4", "segment-001.mp4"):
        (tmp_path / "whole" / name).rename(tmp_path / "later" / name)
    later = VideoSegments(tmp_path / "later", FORMAT, ("segment-000.mp4", "segment-001.mp4"))
    later.write(clip(17, 3))
    later.write(clip(20, 5))
    later.finish()
    later.concat()
    assert (tmp_path / "later" / "video.mp4").read_bytes() == whole.read_bytes()


def test_video_file_describes_the_files(tmp_path):
    segments = VideoSegments(tmp_path, FORMAT)
    segments.write(clip(0, 9))
    segments.finish()
    video = segments.concat()
    content = (tmp_path / video.video).read_bytes()
    assert (video.width, video.height, video.num_frames, video.fps) == (96, 64, 9, 15)
    assert (video.size_bytes, video.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with Image.open(tmp_path / video.thumbnail) as still:
        assert (still.format, still.size) == ("JPEG", (96, 64))


def test_thumbnail_of_a_large_video_is_scaled_down(tmp_path):
    size = Size(704, 1280)
    segments = VideoSegments(tmp_path, VideoFormat(size, 30, 30, "ultrafast"))
    segments.write(clip(0, 1, size))
    segments.finish()
    with Image.open(tmp_path / segments.concat().thumbnail) as still:
        assert still.size == (640, 352)


def test_aborted_segment_leaves_no_file(tmp_path):
    segments = VideoSegments(tmp_path, FORMAT)
    segments.write(clip(0, 9))
    segments.abort()
    assert (list(tmp_path.iterdir()), segments.names) == ([], ())


def test_segment_can_be_written_after_one_was_aborted(tmp_path):
    segments = VideoSegments(tmp_path, FORMAT)
    segments.write(clip(0, 9))
    segments.abort()
    segments.write(clip(0, 4))
    segments.finish()
    assert segments.concat().num_frames == 4


def test_full_disk_raises_no_space_left(tmp_path):
    (tmp_path / "part-segment.mp4").symlink_to("/dev/full")
    segments = VideoSegments(tmp_path, FORMAT)

    def write() -> None:
        segments.write(torch.randint(0, 256, (90, 64, 96, 3), dtype=torch.uint8))
        segments.finish()

    with pytest.raises(OSError, match="No space left"):
        write()


def test_concat_of_an_unreadable_file_fails(tmp_path):
    (tmp_path / "segment.mp4").write_bytes(b"not a video")
    with pytest.raises(av.FFmpegError):
        concat([tmp_path / "segment.mp4"], tmp_path / "video.mp4")


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    size, process = Size(256, 256), psutil.Process()
    segments = VideoSegments(tmp_path, VideoFormat(size, 15, 40, "ultrafast"))
    frames = clip(0, 4, size)

    def write(count: int) -> int:
        for _ in range(count // 4):
            segments.write(frames)
        return process.memory_info().rss

    before = write(200)
    after = write(600)  # 118 MB of frames
    segments.finish()
    assert after - before < 30e6


def test_unfinished_segment_that_cannot_be_removed_is_left(tmp_path):
    (tmp_path / "part-segment.mp4").mkdir()
    VideoSegments(tmp_path, FORMAT).abort()
    assert (tmp_path / "part-segment.mp4").exists()
