from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.capability import Capability
from jobs.record import JobError, Progress
from tests.waiting import wait_until
from tests.worker.examples import ORDER
from worker.channel import Channel, call, listen
from worker.messages import (
    Checkpoint,
    CheckpointSaved,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobStarted,
    JobStopped,
    LastDecode,
    ProgressReport,
    Ready,
    RunJob,
    StageDone,
    StopJob,
    VideoDone,
    VideoFile,
)
from worker.telemetry import Stage

SAVE = Checkpoint(
    segment=1, stage="refine", step=3, state="state.safetensors", segment_files=("piece-000.mp4",)
)
FILM = VideoFile(
    video="v.mp4", thumbnail="t.jpg", width=96, height=64, num_frames=9, fps=15, size_bytes=1, sha256="f"
)
MESSAGES = [
    RunJob(job_id="j", order=ORDER, folder=Path("/spool/j"), inputs={"image": "image.png"}, resume=SAVE),
    StopJob(job_id="j", reason="deadline"),
    Ready(
        capability=Capability(
            model="m", tasks=("refine",), limits={"fps": 15}, device="cpu", dtype="float32"
        ),
        pids=(1, 2),
    ),
    JobStarted(job_id="j"),
    ProgressReport(
        job_id="j", progress=Progress(phase="denoise", step=1, num_steps=4), timings_s={"denoise": 0.5}
    ),
    StageDone(job_id="j", stage=Stage(name="x264", lane="video", began_s=1.5, ended_s=2.0, detail=True)),
    LastDecode(job_id="j"),
    CheckpointSaved(job_id="j", save=SAVE),
    GpusReleased(job_id="j"),
    VideoDone(job_id="j", video=FILM, timings_s={}),
    JobStopped(job_id="j", reason="drain"),
    JobFailed(job_id="j", error=JobError(code="c", message="ü\n", retryable=False), timings_s={}),
    GroupFailed(message="two\nlines"),
]


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    with closing(Channel(one)) as here, closing(Channel(other)) as there:
        yield here, there


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Channel]]:
    """An end on which anything can be sent."""
    one, other = socket.socketpair()
    with one, closing(Channel(other)) as there:
        yield one, there


@contextmanager
def connected(path: Path) -> Iterator[tuple[Channel, Channel]]:
    """Somebody who listened at the path, and who called."""
    with closing(listen(path)) as listening, closing(call(path)) as caller:
        accepted, _ = listening.accept()
        with closing(Channel(accepted)) as listener:
            yield listener, caller


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_what_is_said_is_heard(ends, message):
    here, there = ends
    here.send(message)
    assert there.recv() == message


def test_messages_keep_their_order_in_both_directions(ends):
    here, there = ends
    for message in MESSAGES:
        here.send(message)
        there.send(message)
    assert [there.recv() for _ in MESSAGES] == MESSAGES
    assert [here.recv() for _ in MESSAGES] == MESSAGES


def test_many_threads_speak_without_mixing_their_lines(ends):
    here, there = ends
    long = GroupFailed(message="x" * 10_000)
    speakers = [threading.Thread(target=lambda: [here.send(long) for _ in range(20)]) for _ in range(4)]
    for speaker in speakers:
        speaker.start()
    assert all(there.recv() == long for _ in range(80))
    for speaker in speakers:
        speaker.join()


def test_when_one_end_hangs_up_the_other_hears_none(ends):
    here, there = ends
    here.send(MESSAGES[0])
    here.close()
    assert there.recv() == MESSAGES[0]
    assert there.recv() is None


def test_half_a_message_is_none(raw):
    here, there = raw
    here.sendall(b'{"type": "running"')
    here.close()
    assert there.recv() is None


def test_a_thread_that_hears_is_woken_by_closing_its_own_end(ends):
    here, _ = ends
    heard: list[object] = []
    listener = threading.Thread(target=lambda: heard.append(here.recv()))
    listener.start()
    here.close()
    listener.join()
    assert heard == [None]


def test_what_is_no_message_is_refused(raw):
    here, there = raw
    here.sendall(b'{"type": "shutdown"}\n')
    with pytest.raises(ValidationError):
        there.recv()


def test_speaking_to_nobody_is_an_error(ends):
    here, there = ends
    there.close()
    with pytest.raises(OSError, match="Broken pipe"):
        wait_until(lambda: here.send(MESSAGES[0]))


def test_a_folder_deeper_than_a_socket_address_may_be_long_is_no_hindrance(tmp_path):
    with connected(tmp_path / ("d" * 100) / ("e" * 100) / "rank-0.sock") as (listener, caller):
        caller.send(MESSAGES[3])
        assert listener.recv() == MESSAGES[3]


def test_nobody_else_may_enter_the_socket_s_folder(tmp_path):
    folder = tmp_path / "group"
    folder.mkdir(mode=0o755)
    listen(folder / "rank-0.sock").close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_socket_that_a_dead_process_left_is_replaced(tmp_path):
    path = tmp_path / "rank-0.sock"
    listen(path).close()
    with connected(path) as (listener, caller):
        listener.send(MESSAGES[1])
        assert caller.recv() == MESSAGES[1]


def test_the_later_save_is_greater():
    def at(segment: int, stage: str, step: int) -> tuple[int, bool, int]:
        return SAVE.model_copy(update={"segment": segment, "stage": stage, "step": step}).position

    assert at(0, "denoise", 3) < at(0, "refine", 1) < at(0, "refine", 2) < at(1, "denoise", 0)
