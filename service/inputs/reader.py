"""Read the images and clips of a request: from an upload, base64, a URL or an earlier job.

What comes from an earlier job is copied like an upload, so that the job may be deleted meanwhile. The limits
for uploaded clips do not apply to it: the service made it, or has accepted it before.

Each input is written to a temporary file, decoded in a sandbox to check it, and measured.
"""

from __future__ import annotations

import binascii
import hashlib
import string
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from jobs.errors import InvalidInput, JobNotFound, JobNotReady, KeyMissing, Unavailable, UnreadableRecord
from jobs.order import InputFile
from jobs.record import Job, Result
from jobs.storage.base import Storage
from jobs.storage.keys import input_key
from jobs.store.client import JobClient
from model.media.errors import SandboxUnavailable, UnusableMedia
from model.media.formats import CHECKED_CLIP
from model.media.reading import check_clip, check_frame, check_image
from model.media.sandbox import Sandbox
from model.spec.geometry import Clip
from service.errors import UnusableInput
from service.inputs.fetch import fetch
from service.jobs.bodies import ImageSource, Source
from service.settings import Settings

_CHUNK_BYTES = 1 << 20
_SUFFIXES = {"image/png": "png", "video/mp4": "mp4", "video/webm": "webm"}

InputSource = Source | BinaryIO
"""A reference from the request's JSON, or an uploaded file."""


@dataclass(frozen=True)
class CheckedInput:
    """An input that was decoded without errors.

    Attributes:
        file: what is stored of it.
        path: its temporary file.
        notes: what is lost of it, for people.
    """

    file: InputFile
    path: Path
    notes: tuple[str, ...]

    @property
    def clip(self) -> Clip:
        """Return the size and the number of frames."""
        return Clip(self.file.height, self.file.width, self.file.num_frames)


def jobs_of(sources: Iterable[InputSource], jobs: JobClient) -> dict[str, Job]:
    """Return the jobs that sources refer to, by id, without those that do not exist. Raise Unavailable."""
    found = {}
    references = [(source.job, source.job_id) for source in sources if isinstance(source, Source)]
    for job_id in {job_id for pair in references for job_id in pair if job_id is not None}:
        with suppress(JobNotFound, UnreadableRecord):
            found[job_id] = jobs.get(job_id)
    return found


@dataclass(frozen=True)
class InputReader:
    """Reads the inputs of one job into `folder`, which the caller removes.

    Attributes:
        jobs: the jobs whose videos and inputs the request uses, by id; those that do not exist are absent.
        fps: the frame rate of the model.
    """

    job_id: str
    folder: Path
    settings: Settings
    sandbox: Sandbox
    jobs: Mapping[str, Job]
    storage: Storage
    fps: int

    def read_all(self, sources: Mapping[str, InputSource]) -> dict[str, CheckedInput]:
        """Read and check all inputs, by field.

        Raises InvalidInput with the field's name, JobNotReady for a job without a video, and Unavailable.
        """
        return {field: self._read(field, source) for field, source in sources.items()}

    def _read(self, field: str, source: InputSource) -> CheckedInput:
        try:
            return self._read_image(source) if field == "image" else self._read_clip(field, source)
        except (UnusableInput, UnusableMedia) as error:
            raise InvalidInput(f"{field}: {error}", field) from error
        except SandboxUnavailable as error:
            raise Unavailable(f"{field} cannot be decoded now: {error}; try again soon") from error

    def _read_image(self, source: InputSource) -> CheckedInput:
        path = self.folder / "image.png"
        if isinstance(source, ImageSource) and source.job is not None:
            frame = -1 if source.frame is None else source.frame
            received = self._fetch_video_with_frame(source.job, frame)
            image = check_frame(self.sandbox, received, path, CHECKED_CLIP, frame)
        else:
            received = self._receive("image", source, self.settings.max_image_bytes)
            image = check_image(self.sandbox, received, path, self.settings.image_limits)
        received.unlink()
        facts = self._facts("image", source, path, "image/png", Clip(*image.size, num_frames=1))
        return CheckedInput(facts, path, image.notes)

    def _read_clip(self, field: str, source: InputSource) -> CheckedInput:
        path = self._receive(field, source, self.settings.max_video_bytes)
        is_of_job = isinstance(source, Source) and (source.job is not None or source.job_id is not None)
        limits = CHECKED_CLIP if is_of_job else self.settings.clip_limits
        checked = check_clip(self.sandbox, path, limits, self.fps)
        facts = self._facts(field, source, path, checked.media_type, checked.clip)
        return CheckedInput(facts, path, checked.notes)

    def _receive(self, field: str, source: InputSource, max_bytes: int) -> Path:
        path = self.folder / f"{field}.received"
        if isinstance(source, Source) and source.job is not None:
            return self._fetch_video(field, self._result_of(field, source.job), path)
        if isinstance(source, Source) and source.job_id is not None:
            self._fetch_stored(field, source.job_id, source.facts(), path)
            return path
        with path.open("wb") as target:
            if not isinstance(source, Source):
                _save(iter(lambda: source.read(_CHUNK_BYTES), b""), target, max_bytes)
            elif source.url is not None and not source.url.startswith("data:"):
                fetch(source.url, target, max_bytes, self.settings.fetch_limits)
            else:
                target.write(_decode_base64(source, max_bytes))
        return path

    def _fetch_video_with_frame(self, job_id: str, frame: int) -> Path:
        """Fetch the video of a job that has this frame. Raise InvalidInput if it does not."""
        result = self._result_of("image", job_id)
        if not -result.num_frames <= frame < result.num_frames:
            rule = f"must be from {-result.num_frames} to {result.num_frames - 1} for this job"
            raise InvalidInput(f"image.frame: {rule}", "image.frame")
        return self._fetch_video("image", result, self.folder / "image.received")

    def _result_of(self, field: str, job_id: str) -> Result:
        """Return the result of a job. Raise InvalidInput if there is no such job, JobNotReady."""
        field = f"{field}.job"
        job = self.jobs.get(job_id)
        if job is None:
            raise InvalidInput(f"{field}: there is no such job", field)
        if job.result is None:
            raise JobNotReady(f"{field}: the job is {job.status} and has no video", field)
        return job.result

    def _fetch_video(self, field: str, result: Result, path: Path) -> Path:
        try:
            self.storage.fetch(result.video_key, path)
        except KeyMissing as error:
            raise UnusableInput("the video of that job is no longer stored") from error
        return path

    def _fetch_stored(self, field: str, job_id: str, facts: Mapping[str, object], path: Path) -> None:
        """Fetch the input that another job has in this field. Raise UnusableInput, Unavailable, DiskFull."""
        job = self.jobs.get(job_id)
        if job is None:
            raise UnusableInput("there is no job with this job_id")
        file: InputFile | None = getattr(job.order, field)
        if file is None:
            raise UnusableInput(f"that job has no {field}")
        for name, value in facts.items():
            if value != getattr(file, name):
                raise UnusableInput(f"{name} is not that of the job's {field}")
        try:
            self.storage.fetch(file.key, path)
        except KeyMissing as error:
            raise UnusableInput(f"the {field} of that job is no longer stored") from error

    def _facts(self, field: str, source: InputSource, path: Path, media_type: str, clip: Clip) -> InputFile:
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        source_job_id, source_frame = self._origin(field, source)
        return InputFile(
            key=input_key(self.job_id, f"{field}-{sha256[:16]}.{_SUFFIXES[media_type]}"),
            media_type=media_type,
            size_bytes=path.stat().st_size,
            sha256=sha256,
            **clip._asdict(),
            source_job_id=source_job_id,
            source_frame=source_frame,
        )

    def _origin(self, field: str, source: InputSource) -> tuple[str | None, int | None]:
        """Return the job whose video an input is, or is from, and the frame that an image is of it."""
        if isinstance(source, Source) and source.job_id is not None:
            file: InputFile = getattr(self.jobs[source.job_id].order, field)
            return file.source_job_id, file.source_frame
        if not isinstance(source, Source) or source.job is None:
            return None, None
        if not isinstance(source, ImageSource):
            return source.job, None
        num_frames = self._result_of(field, source.job).num_frames
        return source.job, (-1 if source.frame is None else source.frame) % num_frames


def _save(chunks: Iterable[bytes], target: BinaryIO, max_bytes: int) -> None:
    size_bytes = 0
    for chunk in chunks:
        size_bytes += len(chunk)
        _check_size(size_bytes, max_bytes)
        target.write(chunk)


def _decode_base64(source: Source, max_bytes: int) -> bytes:
    text = source.base64 if source.base64 is not None else _base64_of_data_url(source.url or "")
    num_digits = len(text) - sum(map(text.count, string.whitespace))
    _check_size(num_digits * 3 // 4 - 2, max_bytes)  # a lower bound: refuse before decoding
    try:
        digits = text.encode("ascii").translate(None, string.whitespace.encode())
        content = binascii.a2b_base64(digits, strict_mode=True)
    except ValueError as error:
        raise UnusableInput("is not base64") from error
    _check_size(len(content), max_bytes)
    return content


def _base64_of_data_url(url: str) -> str:
    header, comma, data = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise UnusableInput("a data URL must contain base64")
    return unquote_to_bytes(data).decode("latin-1")


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise UnusableInput(f"is larger than {max_bytes} bytes")
