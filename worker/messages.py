"""What the supervisor of a group and rank 0 of it say to each other: typed messages, one JSON line each.

They speak over a unix socket in a folder that nobody else may enter. Down go orders and the wish to stop;
up come progress, saved states and the finished film. Neither side knows how the other does its work.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jobs.capability import Capability
from jobs.order import Order
from jobs.private_files import close_to_others, make_private_folder
from jobs.record import JobError, Progress
from jobs.store.holder import StopReason
from worker.stages import Stage

Timings = dict[str, float]  # phase: seconds


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Save(_Message):
    """Where a job stood when it was saved, as files of its folder.

    `step` steps of this stage of this segment are done; the segments before it lie finished in `pieces`.
    """

    segment: int
    stage: Literal["denoise", "refine"]
    step: int
    state: str
    pieces: tuple[str, ...] = ()
    timings_s: Timings = Field(default_factory=dict)

    @property
    def position(self) -> tuple[int, bool, int]:
        """Sorts saves of one job: the later one is greater."""
        return self.segment, self.stage == "refine", self.step

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are needed to go on from here."""
        return (self.state, *self.pieces)


class Film(_Message):
    """A finished film and its thumbnail, as files of the job's folder; size and hash are the film's.

    `dtype` is what the group multiplied in, as its capability says it.
    """

    video: str
    thumbnail: str
    width: int
    height: int
    num_frames: int
    fps: int
    size_bytes: int
    sha256: str
    dtype: str | None = None


class Run(_Message):
    """Do this order; `folder` is the job's own, `inputs` name the order's files in it.

    `timings_s` is what it took so far, earlier attempts included; `names` are what log lines about it carry,
    with W3C's `traceparent` of the request that ordered it.
    """

    type: Literal["run"] = "run"
    job_id: str
    order: Order
    folder: Path
    inputs: dict[str, str] = Field(default_factory=dict)
    resume: Save | None = None
    timings_s: Timings = Field(default_factory=dict)
    names: dict[str, str] = Field(default_factory=dict)


class Stop(_Message):
    """Leave this job at the next boundary; to drain, save it first."""

    type: Literal["stop"] = "stop"
    job_id: str
    why: StopReason


class Ready(_Message):
    """The model is loaded and warm on every rank; `pids` are the ranks' processes."""

    type: Literal["ready"] = "ready"
    capability: Capability
    pids: tuple[int, ...]


class Running(_Message):
    """All ranks have the order."""

    type: Literal["running"] = "running"
    job_id: str


class Report(_Message):
    """How far a job is; sent at every boundary."""

    type: Literal["report"] = "report"
    job_id: str
    progress: Progress
    timings_s: Timings


class Did(_Message):
    """Something was done for a job beside what its ranks do in step."""

    type: Literal["did"] = "did"
    job_id: str
    stage: Stage


class Decoding(_Message):
    """The last steps of a job are done: its ranks decode what is left of it, and are free then."""

    type: Literal["decoding"] = "decoding"
    job_id: str


class Saved(_Message):
    """A job can go on from here, on this group or on another."""

    type: Literal["saved"] = "saved"
    job_id: str
    save: Save


class Released(_Message):
    """The GPUs are free for the next order; this job's film is being finished."""

    type: Literal["released"] = "released"
    job_id: str


class Finished(_Message):
    """The film is whole."""

    type: Literal["finished"] = "finished"
    job_id: str
    film: Film
    timings_s: Timings


class Stopped(_Message):
    """The job was left as wished; the GPUs are free."""

    type: Literal["stopped"] = "stopped"
    job_id: str
    why: StopReason


class Failed(_Message):
    """The job cannot be done; the group is well. Before `Released` the GPUs are free with it."""

    type: Literal["failed"] = "failed"
    job_id: str
    error: JobError
    timings_s: Timings


class Broken(_Message):
    """The group is no longer sound and about to end."""

    type: Literal["broken"] = "broken"
    message: str


Word = Running | Report | Did | Decoding | Saved | Released | Finished | Stopped | Failed  # of one job
Message = Run | Stop | Ready | Word | Broken

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


class Line:
    """One end of a connection. Any thread may `say`; one thread may `hear`."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._incoming = connected.makefile("rb")
        self._one_speaker = threading.Lock()

    def say(self, message: Message) -> None:
        """Send. Raises OSError when the other side is gone."""
        with self._one_speaker:
            self._socket.sendall(message.model_dump_json().encode() + b"\n")

    def hear(self) -> Message | None:
        """Wait for a message; None when the other side is gone, even in the middle of one."""
        try:
            line = self._incoming.readline()
        except OSError:
            return None
        return _MESSAGE.validate_json(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        """Hang up; whoever hears on either end hears None."""
        with suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._incoming.close()
        self._socket.close()


def listen(path: Path) -> socket.socket:
    """A socket at `path` for one to call; its folder becomes this user's alone."""
    make_private_folder(path.parent)
    close_to_others(path.parent)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _Folder(path.parent) as folder:
        listening.bind(f"{folder}/{path.name}")
    listening.listen(1)
    return listening


def call(path: Path) -> Line:
    """Connect to whoever listens at `path`. Raises OSError."""
    calling = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _Folder(path.parent) as folder:
        calling.connect(f"{folder}/{path.name}")
    return Line(calling)


class _Folder:
    """A short name for a folder while it is open: a socket's address has 107 bytes at most."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._handle = os.open(self._path, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._handle}"

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
