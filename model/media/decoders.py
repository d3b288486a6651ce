"""Map the names of decoders in requests to functions, for the fork server."""

from __future__ import annotations

from model.media import clips, images

DECODERS = {
    "encode_png": images.encode_png,
    "read_pixels": images.read_pixels,
    "encode_frame": clips.encode_frame,
    "count_frames": clips.count_frames,
    "read_frames": clips.read_frames,
}
