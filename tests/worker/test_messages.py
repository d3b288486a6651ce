from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from jobs.capability import Capability
from jobs.record import JobError, Progress
from tests.worker.examples import ORDER
from worker.messages import (
    PROTOCOL_VERSION,
    Checkpoint,
    CheckpointSaved,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobMessage,
    JobPaused,
    JobStarted,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    RankConnected,
    Ready,
    RunJob,
    StageDone,
    StopJob,
    VideoDone,
    VideoFile,
    parse,
)
from worker.telemetry import Interval

CHECKPOINT = Checkpoint(
    segment=1, stage="refine", step=3, state="state.safetensors", segment_files=("segment-000.mp4",)
)
VIDEO = VideoFile(
    video="v.mp4", thumbnail="t.jpg", width=96, height=64, num_frames=9, fps=15, size_bytes=1, sha256="f"
)
MESSAGES: list[Message] = [
    RunJob(
        job_id="j",
        order=ORDER,
        folder=Path("/spool/j"),
        inputs={"image": "image.png"},
        resume=CHECKPOINT,
        log_context={"job_id": "j"},
    ),
    StopJob(job_id="j", reason="deadline"),
    Ready(
        capability=Capability(
            model="m", tasks=("refine",), limits={"fps": 15}, device="cpu", dtype="float32"
        ),
        pids=(1, 2),
    ),
    RankConnected(rank=3),
    JobStarted(job_id="j", width=2),
    JobPaused(job_id="j"),
    ProgressReport(
        job_id="j", progress=Progress(phase="denoise", step=1, num_steps=4), timings_s={"denoise": 0.5}
    ),
    StageDone(job_id="j", stage=Interval(name="x264", lane="video", began_s=1.5, ended_s=2.0, detail=True)),
    LastDecode(job_id="j"),
    CheckpointSaved(job_id="j", checkpoint=CHECKPOINT),
    GpusReleased(job_id="j"),
    VideoDone(job_id="j", video=VIDEO, timings_s={}),
    JobStopped(job_id="j", reason="drain"),
    JobFailed(job_id="j", error=JobError(code="c", message="ü\n", retryable=False), timings_s={}),
    GroupFailed(message="two\nlines"),
]


def test_examples_cover_every_message():
    assert {type(message) for message in MESSAGES} == set(get_args(Message)) | set(get_args(JobMessage))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_message_is_one_line_and_is_read_as_it_was_written(message):
    line = message.model_dump_json().encode()
    assert b"\n" not in line
    assert parse(line) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_unknown_fields_of_a_message_are_ignored(message):
    values = json.loads(message.model_dump_json())
    assert parse(json.dumps({**values, "field_of_a_later_release": 1}).encode()) == message


def test_ready_names_the_version_of_the_protocol():
    (ready,) = (message for message in MESSAGES if isinstance(message, Ready))
    assert json.loads(ready.model_dump_json())["protocol_version"] == PROTOCOL_VERSION


def test_later_checkpoint_has_the_greater_position():
    def position(segment: int, stage: str, step: int) -> tuple[int, bool, int]:
        return CHECKPOINT.model_copy(update={"segment": segment, "stage": stage, "step": step}).position

    assert (
        position(0, "denoise", 3)
        < position(0, "refine", 1)
        < position(0, "refine", 2)
        < position(1, "denoise", 0)
    )


@pytest.mark.parametrize("segment_files", [[], ["segment-000.mp4"], ["segment-000.mp4"] * 3])
def test_checkpoint_without_a_file_for_each_earlier_segment_is_refused(segment_files):
    with pytest.raises(ValidationError, match="segment 2 cannot resume"):
        Checkpoint(segment=2, stage="denoise", step=3, state="s", segment_files=segment_files)


@pytest.mark.parametrize("name", ["", ".", "..", "../s", "a/s", "/s", "a b", "s\n", ".s"])
def test_checkpoint_names_only_files_in_the_folder_of_its_job(name):
    for names in ({"state": name}, {"segment_files": ("s0", name)}):
        with pytest.raises(ValidationError, match="not "):
            Checkpoint(
                **{
                    "segment": 2,
                    "stage": "denoise",
                    "step": 3,
                    "state": "s",
                    "segment_files": ("s0", "s1"),
                    **names,
                }
            )


def test_checkpoint_has_no_digests_of_other_files():
    with pytest.raises(ValidationError, match="do not belong"):
        Checkpoint(segment=0, stage="denoise", step=3, state="s", digests={"s": "1", "other": "2"})
