"""Read the settings of the worker: the only module in which its processes read the environment.

The launcher and the supervisors read `WorkerSettings`. Ranks get a `RankSetup` on their command line.
"""

from __future__ import annotations

import glob
import os
import socket
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, Json, JsonValue, model_validator

from jobs.logs import LogFormat
from jobs.settings import POCKET, SharedSettings

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16"]
CompileName = Literal["auto", "on", "off"]
QuantizeName = Literal["none", "fp8", "int8"]
TextEncoderName = Literal["auto", "device", "offload", "cpu"]

Options = dict[str, JsonValue]
"""Options of a request, as in the body of `POST /generate`."""

END_S = 8.0
"""How long a worker may take to end after `DRAIN_S`: 5 s to requeue its jobs, and to stop its processes."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VideoSettings(_Frozen):
    """Settings of the video that rank 0 writes, and of its checkpoints."""

    checkpoint_s: float
    crf: int
    preset: str
    buffer_bytes: int


class Endpoint(_Frozen):
    """A TCP address."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Return the endpoint of `host:port` or `[address]:port`. Raises ValueError."""
        parts = urlsplit(f"//{text}")
        if not parts.hostname or not parts.port or text != parts.netloc or "@" in text:
            raise ValueError(f"{text} is not of the form host:port")
        return cls(host=parts.hostname, port=parts.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RankSetup(_Frozen):
    """The settings of a rank. Times in seconds. Those with a default belong to one start, which adds them.

    Attributes:
        num_ranks: number of ranks of the group, on all nodes together.
        rendezvous_file: where the ranks of one node meet; None for the address that torchrun names.
        rendezvous: where the ranks of several nodes meet.
        failure_file: where a rank of this machine writes why it failed (`worker.first_failure`).
        weight_memory: a file in memory where the ranks of this machine share weights.
        lora_memory_gib: how much of it they may use, besides what copies of streamed blocks would take;
            None for half of what other weights leave.
        num_groups: groups of the worker on this machine.
        round_id: names one start of a group of several nodes.
        elastic: the ranks are a world: a job has some of them, and its number changes.
        ring_degree: ranks that pass keys and values around; the others of a group divide the heads.
    """

    socket: Path
    num_ranks: int
    elastic: bool
    ring_degree: int
    nodes: int
    node_rank: int
    node_timeout_s: float
    rendezvous: Endpoint | None
    checkpoint: Path
    model_id: str
    device: DeviceName
    dtype: DtypeName
    compile: CompileName
    warm_up: tuple[Options, ...]
    quantize: QuantizeName
    text_encoder: TextEncoderName
    shard_weights: bool
    stream_weights: bool
    gpu_memory_gib: float | None
    lora_memory_gib: float | None
    num_groups: int
    collective_timeout_s: float
    error_grace_s: float
    video: VideoSettings
    log_format: LogFormat
    round_id: str | None = None
    weight_memory: Path | None = None
    rendezvous_file: Path | None = None
    failure_file: Path | None = None

    @property
    def ranks_per_node(self) -> int:
        """Return the number of ranks of the group on each machine."""
        return self.num_ranks // self.nodes


class WorkerSettings(SharedSettings):
    """The settings `LONGCAT_<NAME>` of a worker. Times in seconds."""

    checkpoint: Path = Field(default=POCKET, description="folder with the model weights")
    model_id: str = Field(
        default="LongCat-Video",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="name of the model in CHECKPOINT, which requests may ask for; two fine-tunes that run "
        "side by side need different names",
    )
    ranks: int = Field(
        default=1, ge=1, description="number of rank processes on this machine, one for each GPU"
    )
    context_parallel: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="ranks that generate one video together; default: all. `auto`: each of the RANKS can run "
        "a job of its own, and those that are idle join running jobs, by load and deadline",
    )
    ring_degree: int = Field(
        default=1,
        ge=1,
        description="parts into which a group divides the tokens in attention. The ranks of a part divide "
        "the attention heads, and keys and values are passed around a ring of the parts, so a group may have "
        "more ranks than heads; the number of NODES is a good value; must divide CONTEXT_PARALLEL",
    )
    nodes: int = Field(
        default=1,
        ge=1,
        description="machines whose ranks form one group; each of them runs a worker with as many RANKS",
    )
    node_rank: int = Field(
        default=0, ge=0, description="number of this machine among NODES; 0 is the one that claims jobs"
    )
    rendezvous: str | None = Field(
        default=None,
        description="`host:port` of node 0, on which it listens for the other nodes; needed if NODES is "
        "greater than 1. Nobody else may reach this network",
    )
    node_timeout_s: float = Field(
        default=10.0, ge=3, description="a node that shows no sign of life for this long is lost"
    )
    device: DeviceName = Field(
        default="auto",
        description="cuda, cpu, or auto: cuda, or cpu if no GPU can be used and the checkpoint is small",
    )
    dtype: DtypeName = Field(default="auto", description="auto: bfloat16 on cuda, float32 on cpu")
    compile: CompileName = Field(
        default="auto", description="compile parts of the transformer: auto (on cuda), on or off"
    )
    compile_cache_dir: Path | None = Field(
        default=None,
        description="folder that keeps compiled kernels when the worker restarts; workers may share it; "
        "default: the folders of Inductor and Triton",
    )
    warm_up: Json[tuple[Options, ...]] = Field(
        default='[{}, {"guidance_scale": 1}]',
        validate_default=True,
        description="requests, as JSON, for which kernels are compiled before a group takes jobs: options of "
        "POST /generate, without prompts and inputs",
    )
    quantize: QuantizeName = Field(
        default="none",
        description="store the large matrices of most blocks in one byte for each element, which is less "
        "exact: fp8, which also multiplies in it and is faster; int8, for GPUs before Ada, which cannot; or "
        "none",
    )
    text_encoder: TextEncoderName = Field(
        default="auto",
        description="where rank 0 keeps the text encoder: device; offload: in host memory, from which it "
        "runs on the device layer by layer, with the same result; cpu: in host memory, where it also runs, "
        "which takes longer and rounds differently; auto: device if all typical videos fit with it, else "
        "offload",
    )
    shard_weights: bool = Field(
        default=False,
        description="divide the weights of the transformer's blocks among the ranks of a group, which needs "
        "less memory and gives the same videos; needs groups of at least two ranks",
    )
    stream_weights: bool = Field(
        default=False,
        description="keep the weights of the transformer's blocks in host memory, once for all ranks of this "
        "machine, and copy each block to the device while the one before computes; gives the same videos",
    )
    gpu_memory_gib: float | None = Field(
        default=None,
        gt=0,
        description="memory of each GPU that the model may take, for the prediction of what fits; default: "
        "all but 2 GiB on cuda, no limit on cpu",
    )
    lora_memory_gib: float | None = Field(
        default=None,
        ge=0,
        description="host memory in which the ranks of this machine together keep the weights that LoRAs "
        "change, merged with each of them, so that a change of LoRA reads no files; if they need more, "
        "nothing is kept; with STREAM_WEIGHTS, what shared weights may take beyond a copy of the blocks for "
        "each rank; default: half of the memory that other weights leave",
    )
    worker_name: str = Field(
        default_factory=socket.gethostname, description="name of this worker, unique among running workers"
    )

    checkpoint_s: float = Field(default=60.0, ge=0, description="time between checkpoints of a running job")
    x264_crf: int = Field(
        default=18, ge=0, le=51, description="x264's constant rate factor: lower is better quality"
    )
    x264_preset: str = Field(default="medium", description="x264's speed preset")
    video_buffer_bytes: int = Field(default=1 << 30, gt=0, description="memory for frames that wait for x264")

    start_limit_s: float = Field(default=1800.0, gt=0, description="longest time to load the model")
    stall_s: float = Field(
        default=600.0, gt=0, description="a group that sends nothing for this long has hung"
    )
    step_stall_s: float = Field(
        default=120.0, gt=0, description="the same between two denoising steps, if 5 steps take less"
    )
    error_grace_s: float = Field(
        default=5.0, gt=0, description="ranks that fail within this time count as one failure"
    )
    max_failed_starts: int = Field(
        default=3, ge=1, description="failed starts in a row after which a group counts as broken"
    )
    longest_pause_s: float = Field(default=60.0, gt=0, description="longest pause between failed starts")
    preempt_after_s: float | None = Field(
        default=None,
        ge=0,
        description="preempt a low-priority job once a high-priority one has waited so long; default: never",
    )
    drain_s: float = Field(default=20.0, gt=0, description="time to save and requeue jobs after SIGTERM")
    termination_grace_s: float | None = Field(
        default=None,
        gt=0,
        description="time between SIGTERM and SIGKILL, if the worker is stopped with such a limit; the "
        "worker does not start if DRAIN_S and 8 s do not fit into it",
    )

    health_host: str = Field(
        default="127.0.0.1", description="the address that HEALTH_PORT listens on; kubelet needs 0.0.0.0"
    )
    health_port: int | None = Field(
        default=None, ge=1, le=65535, description="a port for `/livez` and `/readyz` of this worker"
    )
    stuck_s: float = Field(
        default=60.0,
        gt=0,
        description="a supervisor whose event loop stands still for this long is not alive",
    )

    upload_limit_s: float = Field(
        default=6 * 3600.0, gt=0, description="how long the storage may be unavailable before a job fails"
    )
    max_claimed_jobs: int = Field(
        default=4,
        ge=1,
        description="jobs of a group that may be running, being written or uploaded at a time",
    )
    min_free_bytes: int = Field(
        default=1 << 30, ge=0, description="free disk space below which a worker claims no job"
    )
    rank_module: str = Field(default="worker.rank.main", description="module that runs on each GPU")

    @model_validator(mode="after")
    def _check_ranks(self) -> WorkerSettings:
        all_ranks = self.nodes * self.ranks
        if self.nodes > 1 and self.ranks_per_group != all_ranks:
            raise ValueError(
                f"CONTEXT_PARALLEL ({self.context_parallel}) must be absent or NODES × RANKS ({all_ranks}): "
                "the ranks of all nodes make one video"
            )
        if all_ranks % self.ranks_per_group:
            raise ValueError(
                f"RANKS ({self.ranks}) must be a multiple of CONTEXT_PARALLEL ({self.context_parallel})"
            )
        self._check_elastic()
        if self.ranks_per_group % self.ring_degree:
            raise ValueError(
                f"RING_DEGREE ({self.ring_degree}) must divide the ranks of a group ({self.ranks_per_group})"
            )
        if self.shard_weights and self.ranks_per_group == 1:
            raise ValueError("SHARD_WEIGHTS needs groups of at least two ranks: see RANKS, CONTEXT_PARALLEL")
        if self.shard_weights and self.stream_weights:
            raise ValueError("STREAM_WEIGHTS cannot be combined with SHARD_WEIGHTS")
        visible = visible_devices()
        if self.device != "cpu" and visible and len(visible) < self.ranks:
            raise ValueError(
                f"RANKS is {self.ranks}, but CUDA_VISIBLE_DEVICES names fewer GPUs: {','.join(visible)}"
            )
        return self

    def _check_elastic(self) -> None:
        if not self.is_elastic:
            return
        if self.ranks not in {2, 4, 8, 16}:
            raise ValueError(f"CONTEXT_PARALLEL=auto needs RANKS ({self.ranks}) to be 2, 4, 8 or 16")
        if self.shard_weights:
            raise ValueError("CONTEXT_PARALLEL=auto cannot be combined with SHARD_WEIGHTS")
        if self.ring_degree > 1:
            raise ValueError("CONTEXT_PARALLEL=auto cannot be combined with RING_DEGREE")

    @model_validator(mode="after")
    def _check_nodes(self) -> WorkerSettings:
        if self.node_rank >= self.nodes:
            raise ValueError(f"NODE_RANK ({self.node_rank}) must be less than NODES ({self.nodes})")
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(f"NODES is {self.nodes}, so RENDEZVOUS must name host:port of node 0")
        if self.rendezvous is not None:
            try:
                Endpoint.parse(self.rendezvous)
            except ValueError as error:
                raise ValueError(f"RENDEZVOUS: {error}") from error
        return self

    @model_validator(mode="after")
    def _check_grace(self) -> WorkerSettings:
        grace_s = self.termination_grace_s
        if grace_s is not None and self.drain_s + END_S > grace_s:
            raise ValueError(
                f"DRAIN_S ({self.drain_s:g}) must be at least {END_S:g} s less than "
                f"TERMINATION_GRACE_S ({grace_s:g})"
            )
        return self

    @property
    def is_elastic(self) -> bool:
        """Return whether the ranks are one world, in which jobs change their number of ranks."""
        return self.context_parallel == "auto"

    @property
    def ranks_per_group(self) -> int:
        """Return the number of ranks that generate one video together. In a world, each is a group."""
        if self.context_parallel == "auto":
            return 1
        return self.context_parallel or self.nodes * self.ranks

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the numbers of ranks that can generate a video together."""
        if not self.is_elastic:
            return (self.ranks_per_group,)
        return tuple(2**n for n in range(self.ranks.bit_length()))

    @property
    def ranks_per_world(self) -> int:
        """Return the number of ranks that are started together, on all machines."""
        return self.ranks if self.is_elastic else self.ranks_per_group

    @property
    def local_ranks_per_world(self) -> int:
        """Return the number of ranks that are started together on this machine."""
        return self.ranks_per_world // self.nodes

    @property
    def local_ranks_per_group(self) -> int:
        """Return the number of ranks of a group that run on this machine."""
        return self.ranks_per_group // self.nodes

    @property
    def num_groups(self) -> int:
        """Return the number of GPU groups, which run jobs independently."""
        return self.ranks // self.local_ranks_per_group

    @property
    def num_supervisors(self) -> int:
        """Return the number of supervisor processes: one for each group, or one for all of a world."""
        return 1 if self.is_elastic else self.num_groups

    def group_name(self, index: int) -> str:
        """Return the group's name, unique in Redis."""
        return f"{self.worker_name}-{index}"

    def group_folder(self, index: int) -> Path:
        """Return the folder of a group's socket and spool."""
        return self.data_dir.absolute() / "worker" / self.group_name(index)

    def former_group_folders(self, num_groups: int) -> list[Path]:
        """Return the folders of groups from `num_groups` on, which this worker had with other settings."""
        prefix = f"{self.worker_name}-"
        folders = self.group_folder(0).parent.glob(f"{glob.escape(prefix)}*")
        indices = sorted(path.name.removeprefix(prefix) for path in folders)
        return [
            self.group_folder(int(each)) for each in indices if each.isdecimal() and int(each) >= num_groups
        ]

    @property
    def disks(self) -> list[Path]:
        """Return the folders whose disks must have space: the spool, and the storage if it is a folder."""
        return [self.data_dir.absolute(), *([self.storage_folder.absolute()] if self.storage_folder else [])]

    def rank_setup(self, connect_to: Path) -> RankSetup:
        """Return the settings of the ranks. Rank 0 connects to the socket `connect_to`."""
        return RankSetup(
            socket=connect_to,
            num_ranks=self.ranks_per_world,
            elastic=self.is_elastic,
            ring_degree=self.ring_degree,
            nodes=self.nodes,
            node_rank=self.node_rank,
            node_timeout_s=self.node_timeout_s,
            rendezvous=Endpoint.parse(self.rendezvous) if self.rendezvous and self.nodes > 1 else None,
            checkpoint=self.checkpoint.absolute(),
            model_id=self.model_id,
            device=self.device,
            dtype=self.dtype,
            compile=self.compile,
            warm_up=self.warm_up,
            quantize=self.quantize,
            text_encoder=self.text_encoder,
            shard_weights=self.shard_weights,
            stream_weights=self.stream_weights,
            gpu_memory_gib=self.gpu_memory_gib,
            lora_memory_gib=self.lora_memory_gib,
            num_groups=self.num_groups,
            collective_timeout_s=max(self.stall_s, self.start_limit_s),
            error_grace_s=self.error_grace_s,
            log_format=self.log_format,
            video=VideoSettings(
                checkpoint_s=self.checkpoint_s,
                crf=self.x264_crf,
                preset=self.x264_preset,
                buffer_bytes=self.video_buffer_bytes,
            ),
        )


_RANK_VARIABLES = frozenset(
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
_RANK_PREFIXES = (
    *("LC_", "CUDA_", "CUDNN_", "CUBLAS_", "NCCL_", "GLOO_", "TRITON_"),
    *("TORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "PYTORCH_"),
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "MALLOC_"),
)


def visible_devices() -> list[str] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, by number or UUID; None if it leaves all visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]


def group_environment(settings: WorkerSettings, index: int) -> dict[str, str]:
    """Return the environment of torchrun and the ranks of a group.

    It contains the group's share of the GPUs, each rank's share of the CPU cores, and only those variables of
    this process that Python, torch and its libraries use. None of them is secret: no `LONGCAT_*`, no `AWS_*`.

    One core of a rank's share is left to x264: torch's threads wait for each other in every operation, so
    each of them is slowed down by anything that shares its core.
    """
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    threads = max(1, len(os.sched_getaffinity(0)) // settings.ranks - 1)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **{name: value for name, value in os.environ.items() if _is_for_ranks(name)},
        # If all ranks of a group are on one machine, nothing needs to listen on a network.
        **(loopback if settings.nodes == 1 else {}),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # Ranks stop on a message, not on a signal, so torchrun need not wait for them after a crash.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1",
    }
    if cache := settings.compile_cache_dir:
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.absolute() / "inductor"))
        environment.setdefault("TRITON_CACHE_DIR", str(cache.absolute() / "triton"))
    size = settings.local_ranks_per_world
    if settings.device != "cpu":
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible is not None else [str(i) for i in range(settings.ranks)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[index * size : (index + 1) * size])
    return environment


def use_interface(name: str) -> None:
    """Have the ranks that this process starts use a network interface, unless the operator named another."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without "=", also those whose names begin so


def _is_for_ranks(name: str) -> bool:
    return name in _RANK_VARIABLES or name.startswith(_RANK_PREFIXES)
