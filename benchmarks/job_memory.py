"""Count the memory of whole jobs: load a checkpoint of full size and make a video, on the meta device.

The code of a real rank runs, from the files of the checkpoint to the last frame. Nothing is computed: ranks
exchange nothing, and the host gets frames without content. LoRAs are merged on the device. Whatever else
`benchmarks.peak_memory` says about its counts is true here, too.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.hollow_checkpoint import loading_on_meta
from benchmarks.peak_memory import META, Peak, as_on_cuda, encoding_on_meta, peak_of
from benchmarks.traffic import Ended, LiveTensors
from model import text as model_text
from model.io.checkpoint import load_module
from model.io.outgoing import PendingFrames
from model.parallel.mesh import ContextParallel
from model.pipeline import pipeline as model_pipeline
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.state import State
from model.spec.memory import Setup
from model.spec.plan import Plan
from model.transformer import fp8
from model.transformer.streamed_blocks import StreamedBlocks
from model.vae.vae import Vae

STEPS = 2  # with which a stage has its peak: the second begins with what the first leaves
DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class _Group:
    """Stands for a process group, seen from one of its ranks."""

    size: int
    rank: int


def job_peaks(
    checkpoint: Path,
    plan: Plan,
    setup: Setup,
    limit_bytes: int | None = None,
    earlier_plans: Sequence[Plan] = (),
) -> list[Peak]:
    """Return the peak of a job on the leader of a group and, if there is one, on the next rank.

    Raises OutOfMemoryError if a rank needs more than the limit.

    Args:
        checkpoint: the folder that `write_hollow` has written.
        plan: the plan of the job.
        setup: how the group runs the checkpoint.
        limit_bytes: memory of each GPU that weights and tensors may take.
        earlier_plans: plans of jobs that the group has run before.
    """
    messages: deque[bytes] = deque()
    return [
        _job_peak(checkpoint, [*earlier_plans, plan], setup, rank, messages, limit_bytes)
        for rank in range(min(2, setup.ranks))
    ]


def _job_peak(
    checkpoint: Path,
    plans: Sequence[Plan],
    setup: Setup,
    rank: int,
    messages: deque[bytes],
    limit_bytes: int | None,
) -> Peak:
    """Return the peak of the last job on one rank.

    The leader leaves its messages to the rank that runs after it.
    """
    alive = LiveTensors(META)
    with _on_meta(alive, setup), _group_of(rank, messages), alive:
        pipeline = Pipeline.load(
            checkpoint,
            DTYPES[setup.element_bytes],
            _rank_of_group(setup, rank),
            quantize=setup.quantize,
            text_encoder=setup.text_encoder,
            stream_weights=setup.stream_weights,
        )
        for plan in plans:
            alive.reset_peak()  # of loading, which counts modules without weights, or of an earlier job
            alive.limit_bytes = limit_bytes if plan is plans[-1] else None
            for _event in pipeline.generate(_short_request(plan)):
                pass
    return peak_of(alive)


def _short_request(plan: Plan) -> Request:
    """Return a request of few steps, with the inputs that the task has."""
    refinement = plan.refinement and plan.refinement.model_copy(update={"num_inference_steps": STEPS})
    changes = {"num_inference_steps": STEPS, "enhance_hf": False, "refinement": refinement}
    num_frames = {"video_continuation": plan.num_condition_frames, "refine": plan.num_frames}.get(plan.task)
    image = torch.zeros(plan.height, plan.width, 3, dtype=torch.uint8)
    return Request(
        plan.model_copy(update=changes),
        ("a prompt",),
        seed=0,
        image=image if plan.task == "image_to_video" else None,
        video=None if num_frames is None else image.expand(num_frames, -1, -1, -1),
    )


def _rank_of_group(setup: Setup, rank: int) -> ContextParallel:
    """Return a rank of a group, as `model.parallel.mesh.divide` does: an even number splits guidance."""
    group, cfg_branch = _group(setup.ranks, rank), None
    if setup.ranks % 2 == 0:
        half = setup.ranks // 2
        cfg_rank, rank_in_half = divmod(rank, half)
        branch, counterparts = _group(half, rank_in_half), _group(2, cfg_rank)
        cfg_branch = ContextParallel(
            META, half, rank_in_half, branch, cfg_rank=cfg_rank, cfg_group=counterparts
        )
    weights_group = group if setup.shard_weights else None
    return ContextParallel(META, setup.ranks, rank, group, cfg_branch=cfg_branch, weights_group=weights_group)


def _group(size: int, rank: int) -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, _Group(size, rank))


@contextmanager
def _on_meta(alive: LiveTensors, setup: Setup) -> Iterator[None]:
    """Run on the meta device what runs on a GPU, and do not count what is in the memory of the host."""
    with ExitStack() as stack:
        contexts: list[AbstractContextManager[object]] = [
            as_on_cuda(),
            encoding_on_meta(),
            loading_on_meta(),
            patch.object(Vae, "__init__", partialmethod(Vae.__init__, channels_last=True)),
            patch.object(fp8, "reference_product", fp8.fused_product),
            patch.object(State, "generator", lambda _: torch.Generator()),
            patch.object(Tensor, "cpu", _on_host),
            patch.object(torch, "equal", lambda x, y: x.shape == y.shape),  # all prompts are the same
            patch.object(model_pipeline, "start_copy", lambda frames: PendingFrames(_on_host(frames))),
            patch.multiple(StreamedBlocks, keep_copies=lambda _: None, _write=lambda *_: None),
        ]
        if setup.text_encoder == "offload":
            contexts.append(patch.object(model_text, "load_module", alive.paused()(load_module)))
        for context in contexts:
            stack.enter_context(context)
        yield


def _on_host(x: Tensor) -> Tensor:
    """Return a tensor of the host with the shape of one of the device, and any content."""
    return torch.empty(x.shape, dtype=x.dtype) if x.is_meta else x


@contextmanager
def _group_of(rank: int, messages: deque[bytes]) -> Iterator[None]:
    """Let broadcasts of objects give those of the leader, and other exchanges leave tensors as they are."""

    def broadcast_object_list(values: list[object], **_: object) -> None:
        if rank == 0:
            messages.append(pickle.dumps(values))
        else:
            values[:] = pickle.loads(messages.popleft())  # noqa: S301 - our own

    def gather(*_: object, **__: object) -> Ended:
        return Ended()

    with patch.multiple(
        dist,
        create=True,  # the name of one depends on the version
        broadcast=lambda *_, **__: None,
        broadcast_object_list=broadcast_object_list,
        all_gather_into_tensor=gather,
        all_gather_single=gather,
        get_world_size=lambda group: group.size,
        get_rank=lambda group: group.rank,
    ):
        yield
