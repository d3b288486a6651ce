"""Build the request of `POST /generate` from keyword arguments: JSON, or a form if there are files."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal, TypedDict, Union

from longcat_video_client.models import Job


@dataclass(frozen=True)
class JobVideo:
    """The video of a finished job, which the service has already.

    Attributes:
        job_id: the job.
        frame: for an image: the frame, counted from 0, or from the end if it is negative. None is the last.
    """

    job_id: str
    frame: int | None = None

    def source(self) -> dict[str, Any]:
        """Return what stands for it in a request."""
        return {"job": self.job_id} | ({} if self.frame is None else {"frame": self.frame})


Input = Union[str, "os.PathLike[str]", bytes, IO[bytes], Job, JobVideo]
"""An image or a clip: a path, a URL (`http:`, `https:` or `data:`), bytes, a file opened for reading, or a
finished job. Of a job, its video is used; as an image, its last frame, or the one that `JobVideo` names.
"""

INPUTS = ("image", "video", "condition_video")
_URL_SCHEMES = ("http:", "https:", "data:")


class Options(TypedDict, total=False):
    """The options of a video. Those that are absent or None have the service's defaults.

    The service checks the values: its limits depend on the checkpoint (`capability`). Its API guide explains
    each option.
    """

    task: Literal["text_to_video", "image_to_video", "video_continuation", "long_video", "refine"] | None
    negative_prompt: str | None
    image: Input | None
    video: Input | None
    condition_video: Input | None
    resolution: str | None
    height: int | None
    width: int | None
    num_frames: int | None
    num_segments: int | None
    num_condition_frames: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    distilled: bool | None
    quality: Literal["exact", "balanced"] | None
    refine: bool | None
    t_thresh: float | None
    spatial_refine_only: bool | None
    condition_cache: bool | None
    enhance_hf: bool | None
    seed: int | None
    num_videos: int | None
    model: str | None
    priority: Literal["high", "normal", "low"] | None
    deadline_s: float | None
    refuse_if_late: bool | None
    webhook_url: str | None
    webhook_events: Sequence[Literal["started", "succeeded", "failed", "cancelled"]] | None
    metadata: Mapping[str, str] | None


class GenerateBody:
    """The body of a request for a video, which can be sent several times.

    Args:
        prompt: what the video should show; a sequence has one for each segment.
        options: as in `Options`.
        extra: fields that a newer service knows and `Options` does not. They take precedence.

    Raises:
        TypeError: an option is unknown, or a file was opened as text.
        OSError: a file cannot be read.
    """

    def __init__(
        self, prompt: str | Sequence[str] | None, options: Mapping[str, Any], extra: Mapping[str, Any] | None
    ) -> None:
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            raise TypeError(
                f"unknown options: {', '.join(unknown)}; pass options of newer services as `extra`"
            )
        given = {name: value for name, value in options.items() if value is not None}
        if prompt is not None:
            given |= {"prompt": prompt} if isinstance(prompt, str) else {"prompts": list(prompt)}
        inputs = {name: _Input(given.pop(name)) for name in INPUTS if name in given}
        self._files = {name: item for name, item in inputs.items() if item.source is None}
        self._fields = given | {name: item.source for name, item in inputs.items() if item.source}
        self._fields |= extra or {}

    @contextmanager
    def open(self) -> Iterator[dict[str, Any]]:
        """Yield the arguments of httpx that send the body. Files are open while the context is."""
        if not self._files:
            yield {"json": self._fields}
            return
        with ExitStack() as stack:
            files = [(name, (name, stack.enter_context(item.open()))) for name, item in self._files.items()]
            texts = [
                (name, (None, text)) for name, value in self._fields.items() for text in _texts(name, value)
            ]
            yield {"files": [*texts, *files]}


def check_single(options: Mapping[str, Any]) -> None:
    """Raise TypeError if several videos are requested."""
    if (options.get("num_videos") or 1) > 1:
        raise TypeError("generate makes one video; use submit and jobs.wait_all for several")


def new_idempotency_key() -> str:
    """Return a key that no other request has."""
    return uuid.uuid4().hex


class _Input:
    """An image or a clip: what the request says of it, or None if it is a file that can be opened."""

    def __init__(self, source: Input) -> None:
        self.source: dict[str, Any] | None = None
        self._path: Path | None = None
        self._file: IO[bytes] | None = None
        if isinstance(source, Job):
            self.source = JobVideo(source.id).source()
        elif isinstance(source, JobVideo):
            self.source = source.source()
        elif isinstance(source, str) and source.startswith(_URL_SCHEMES):
            self.source = {"url": source}
        elif isinstance(source, (str, os.PathLike)):
            self._path = Path(source)
            self._path.open("rb").close()  # raises before anything is sent
        elif isinstance(source, (bytes, bytearray, memoryview)):
            self._file = BytesIO(source)
        elif source.seekable() and source.tell() == 0:
            self._file = source
        else:  # httpx sends files from their start, again for each attempt
            self._file = BytesIO(source.read())

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        if self._path:
            with self._path.open("rb") as file:
                yield file
            return
        assert self._file
        yield self._file


def _texts(name: str, value: object) -> list[str]:
    """Return a value as form fields: `prompts` repeated, texts as they are, all else as JSON."""
    if name == "prompts" and isinstance(value, list):
        return value
    return [value if isinstance(value, str) else json.dumps(value)]
