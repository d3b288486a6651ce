"""`python -m stack demo`: start a stack, make two videos through its HTTP API, and stop it.

One video is made from a prompt, the other from a prompt and the image that it starts with.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TextIO

from PIL import Image, ImageDraw, ImageFilter

from jobs.private_files import close_to_others, make_private_folder, private_opener
from longcat_video_client import Client, Result
from service.cli.progress import ProgressBar
from stack.errors import StackError
from stack.settings import StackSettings
from stack.stack import running_stack

PROMPT = "A big red triangle growing on a gray background with stripes"
IMAGE_PROMPT = "A small yellow triangle moving slowly to the right on a plain black background"
SEED = 7


@dataclass(frozen=True)
class Video:
    """A video to make: where it is saved, its prompt, and the image that it starts with."""

    path: Path
    prompt: str
    image: Path | None = None


def run(settings: StackSettings, out: Path, screen: TextIO) -> int:
    """Make two videos in the folder `out` with a stack of its own, tell about it on `screen`, and return 0.

    Raises:
        StackError: The stack does not start, or `out` cannot be written.
        LongCatVideoError: A job failed, or its video did not arrive.
    """
    videos = prepare_videos(out)
    settings = settings.model_copy(update={"data_dir": settings.data_dir / "demo", "port": free_port()})
    make_private_folder(settings.data_dir)
    close_to_others(settings.data_dir)
    log = settings.data_dir.resolve() / "demo.log"
    print(
        "Starting Redis, the API and a worker. This may take a minute.",
        f"Their output goes to {log}",
        sep="\n",
        file=screen,
        flush=True,
    )
    started = time.monotonic()
    key = settings.api_key.get_secret_value() if settings.api_key else None
    with (
        open(log, "w", buffering=1, opener=private_opener) as lines,
        running_stack(settings, lambda name, line: print(name, "|", line, file=lines)) as stack,
        Client(stack.url, key) as client,
    ):
        print(f"Ready at {stack.url} after {time.monotonic() - started:.0f} s", file=screen, flush=True)
        make_videos(client, videos, screen)
    print("\nDone. The videos:", *(f"  {video.path.resolve()}" for video in videos), sep="\n", file=screen)
    print("Next: run `make serve` and make your own in the browser.", file=screen)
    return 0


def prepare_videos(out: Path) -> list[Video]:
    """Create the folder `out` with the image that the second video starts with, and return both videos.

    Raises:
        StackError: `out` cannot be written.
    """
    image = out / "image.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        image.write_bytes(sample_image())
    except OSError as error:
        raise StackError(f"cannot write to {out}: {error.strerror}") from None
    return [Video(out / "prompt.mp4", PROMPT), Video(out / "image.mp4", IMAGE_PROMPT, image)]


def make_videos(client: Client, videos: list[Video], screen: TextIO) -> None:
    """Submit all videos at once, then show the progress of each and save it.

    Raises:
        LongCatVideoError: A job failed, or its video did not arrive.
        StackError: A video cannot be written.
    """
    job_ids = [client.submit(video.prompt, image=video.image, seed=SEED).id for video in videos]
    for number, (video, job_id) in enumerate(zip(videos, job_ids, strict=True), start=1):
        source = f"the image {video.image}" if video.image else "a prompt"
        print(f"\nVideo {number} of {len(videos)}, from {source}: {video.prompt}", file=screen, flush=True)
        with ProgressBar(screen, screen.isatty()) as bar:
            job = client.jobs.wait(job_id, on_update=bar.show)
        result = job.result_or_raise()
        try:
            client.jobs.download(job, video.path)
        except OSError as error:
            raise StackError(f"cannot write {video.path}: {error.strerror}") from None
        print(f"{video.path}: {describe(result, job.timings_s)}", file=screen, flush=True)


def describe(result: Result, timings_s: Mapping[str, float]) -> str:
    """Return one line about a video and how long its phases took."""
    return (
        f"{result.num_frames} frames of {result.width}×{result.height} at {result.fps} fps"
        f" ({result.duration_s:.1f} s), {result.size_bytes:,} bytes, seed {result.seed},"
        f" made in {sum(timings_s.values()):.1f} s"
    )


def sample_image() -> bytes:
    """Return a PNG image of a small yellow triangle on black, with which the second video starts."""
    image = Image.new("RGB", (384, 256), (15, 15, 15))
    ImageDraw.Draw(image).polygon([(96, 68), (150, 161), (42, 161)], fill=(242, 230, 26))
    file = BytesIO()
    image.filter(ImageFilter.GaussianBlur(4)).save(file, "PNG")
    return file.getvalue()


def free_port() -> int:
    """Return a port of the loopback interface on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
