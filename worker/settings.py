"""The worker's settings: the one place where its processes read the environment.

The parent and the supervisors read `WorkerSettings`; the ranks are told theirs (`RankSetup`).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.logs import LogFormat
from jobs.settings import POCKET, SharedSettings

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16"]
CompileName = Literal["auto", "on", "off"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VideoSettings(_Frozen):
    """How the leader writes and saves. Times in seconds."""

    checkpoint_s: float
    crf: int
    preset: str
    buffer_bytes: int


class RankSetup(_Frozen):
    """What a rank is told when it is started. Times in seconds."""

    socket: Path
    num_ranks: int
    checkpoint: Path
    device: DeviceName
    dtype: DtypeName
    compile: CompileName = "auto"
    fp8: bool = False
    collective_timeout_s: float
    error_grace_s: float
    film: VideoSettings
    log_format: LogFormat = "text"
    rendezvous_file: Path | None = None
    """Where the ranks of a group meet; None: at the address that torchrun names."""


class WorkerSettings(SharedSettings):
    """Every setting is `LONGCAT_<NAME>`; times in seconds."""

    checkpoint: Path = Field(default=POCKET, description="the folder with the weights")
    ranks: int = Field(default=1, ge=1, description="processes in all, one for each GPU")
    context_parallel: int | None = Field(
        default=None, ge=1, description="ranks that share a video: default all"
    )
    device: DeviceName = Field(default="auto", description="auto, cpu or cuda")
    dtype: DtypeName = Field(default="auto", description="auto: bfloat16 on cuda, float32 on cpu")
    compile: CompileName = Field(
        default="auto", description="whether parts of the transformer are compiled; auto: on cuda"
    )
    fp8: bool = Field(
        default=False,
        description="on: the blocks' large matrices are multiplied in fp8, less exactly, in every job",
    )
    worker_name: str = Field(
        default_factory=socket.gethostname, description="names its groups; one worker at a time may have it"
    )

    checkpoint_s: float = Field(default=60.0, ge=0, description="how often a running job is saved")
    x264_crf: int = Field(default=18, ge=0, le=51, description="quality of the film, lower is better")
    x264_preset: str = Field(default="medium", description="how hard x264 tries")
    film_buffer_bytes: int = Field(default=1 << 30, gt=0, description="frames that may wait for x264")

    start_limit_s: float = Field(default=1800.0, gt=0, description="how long loading the model may take")
    stall_s: float = Field(default=600.0, gt=0, description="silence of a group that counts as a hang")
    step_stall_s: float = Field(
        default=120.0, gt=0, description="the same between two steps, if 5 steps take less"
    )
    error_grace_s: float = Field(default=5.0, gt=0, description="how far apart ranks may fail with one error")
    max_failed_starts: int = Field(default=3, ge=1, description="after these a group counts as broken")
    longest_pause_s: float = Field(default=60.0, gt=0, description="between failed starts")
    preempt_after_s: float | None = Field(
        default=None, ge=0, description="a high job that waits for so long has a low one make way"
    )
    drain_s: float = Field(default=25.0, gt=0, description="how long a worker that was asked to end may take")

    upload_limit_s: float = Field(default=6 * 3600.0, gt=0, description="how long storage may be away")
    max_films_behind: int = Field(default=4, ge=1, description="films being finished or stored beside a job")
    min_free_bytes: int = Field(
        default=1 << 30, ge=0, description="with less room on its disk a worker takes no job"
    )
    rank_module: str = Field(default="worker.rank.main", description="what runs on each GPU")

    @model_validator(mode="after")
    def _groups_are_whole(self) -> WorkerSettings:
        if self.ranks % self.ranks_per_group:
            raise ValueError(
                f"RANKS ({self.ranks}) must be a multiple of CONTEXT_PARALLEL ({self.context_parallel})"
            )
        return self

    @property
    def ranks_per_group(self) -> int:
        """Ranks that share one video."""
        return self.context_parallel or self.ranks

    @property
    def num_groups(self) -> int:
        """Groups that take jobs independently."""
        return self.ranks // self.ranks_per_group

    def group_name(self, index: int) -> str:
        """The group's name, as Redis knows it."""
        return f"{self.worker_name}-{index}"

    def group_folder(self, index: int) -> Path:
        """Where a group keeps its socket and its jobs' files."""
        return self.data_dir.absolute() / "worker" / self.group_name(index)

    @property
    def disks(self) -> list[Path]:
        """Folders whose disks need room for a job's files: its own, and the storage if that is one."""
        return [self.data_dir.absolute(), *([self.storage_folder.absolute()] if self.storage_folder else [])]

    def rank_setup(self, connect_to: Path) -> RankSetup:
        """What the ranks of a group are told."""
        return RankSetup(
            socket=connect_to,
            num_ranks=self.ranks_per_group,
            checkpoint=self.checkpoint.absolute(),
            device=self.device,
            dtype=self.dtype,
            compile=self.compile,
            fp8=self.fp8,
            collective_timeout_s=max(self.stall_s, self.start_limit_s),
            error_grace_s=self.error_grace_s,
            log_format=self.log_format,
            film=VideoSettings(
                checkpoint_s=self.checkpoint_s,
                crf=self.x264_crf,
                preset=self.x264_preset,
                buffer_bytes=self.film_buffer_bytes,
            ),
        )


_GROUP_VARIABLES = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "XDG_CACHE_HOME"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "CC", "CXX"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "PYTHONHASHSEED"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONNOUSERSITE", "PYTHONSAFEPATH"),
        *("PYTHONUTF8", "PYTHONIOENCODING", "PYTHONWARNINGS"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM"),
        "NVIDIA_TF32_OVERRIDE",  # not NVIDIA_*: NVIDIA_API_KEY is a secret
    )
)
_GROUP_PREFIXES = (
    *("LC_", "CUDA_", "CUDNN_", "CUBLAS_", "NCCL_", "GLOO_", "TRITON_"),
    *("TORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "PYTORCH_"),
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "MALLOC_"),
)


def group_environment(settings: WorkerSettings, index: int) -> dict[str, str]:
    """Return the environment of torchrun and the ranks of a group.

    It has the group's share of the GPUs, each rank's share of the cores, and from this process's environment
    only what Python, torch and its libraries use. Nothing secret is among that: no `LONGCAT_*`, no `AWS_*`.

    One core of a rank's share is left for films: threads that wait for each other in every operation of torch
    suffer most from others beside them.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // settings.ranks - 1)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **{name: value for name, value in os.environ.items() if _is_for_groups(name)},
        # A group lives on one machine, so nothing of it listens on a network, whatever the environment says.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # Ranks are asked to end by a message; after a crash torchrun need not wait for them.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1",
    }
    size = settings.ranks_per_group
    if settings.device != "cpu":
        named = environment.get("CUDA_VISIBLE_DEVICES")
        devices = named.split(",") if named else [str(i) for i in range(settings.ranks)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[index * size : (index + 1) * size])
    return environment


def _is_for_groups(name: str) -> bool:
    return name in _GROUP_VARIABLES or name.startswith(_GROUP_PREFIXES)
