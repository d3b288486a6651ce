"""The engine of a real rank: the loaded pipeline, and an order turned into what it is asked for.

`worker.rank.main` loads one and keeps it warm. It knows nothing of queues, leases and films.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import get_args

import torch

from jobs.capability import Capability
from model.io.loading import measured
from model.io.video import DECODE_MEMORY_BYTES, read_clip, read_image
from model.media.sandbox import Sandbox
from model.parallel.mesh import ContextParallel
from model.pipeline.conditioning import REFINEMENT_LORA
from model.pipeline.events import Event, Frames
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.state import State
from model.spec.params import GenerationParams, Task
from model.spec.resolve import Inputs, resolve
from model.text import MAX_TOKENS
from model.transformer.compile import fuse, warm
from model.transformer.fp8 import E4M3
from worker.messages import RunJob
from worker.rank.engine import Begun, Engine
from worker.settings import RankSetup

logger = logging.getLogger(__name__)

TASKS = get_args(Task)  # the last one needs the refinement's LoRA
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelEngine:
    """The loaded pipeline of one rank."""

    def __init__(self, pipeline: Pipeline, dtype: torch.dtype) -> None:
        self._pipeline = pipeline
        self._dtype = dtype

    @property
    def capability(self) -> Capability:
        """See `Engine`."""
        parallel = self._pipeline.parallel
        return Capability(
            model="LongCat-Video",
            tasks=TASKS if REFINEMENT_LORA in self._pipeline.loras else TASKS[:-1],
            loras=tuple(sorted(self._pipeline.loras)),
            limits=self._pipeline.limits.to_json(),
            context_parallel=parallel.size,
            device=parallel.device.type,
            dtype=str(self._dtype).removeprefix("torch."),
        )

    def generate(self, run: RunJob) -> Iterator[Begun | Event]:
        """See `Engine`. The leader alone reads the files."""
        leads = self._pipeline.parallel.is_leader
        request = request_of(run, with_inputs=leads)
        resume = State.load(run.folder / run.resume.state) if leads and run.resume else None
        yield Begun()
        for event in self._pipeline.generate(request, resume):
            if not isinstance(event, Frames):  # they are here, and the device works on the next
                self._settle()
            yield event

    def tidy(self) -> None:
        """See `Engine`. A device that an error left unusable raises here, and the group has to go."""
        self._settle()
        gc.collect()
        if self._on_cuda:
            torch.cuda.empty_cache()

    @property
    def _on_cuda(self) -> bool:
        return self._pipeline.parallel.device.type == "cuda"

    def _settle(self) -> None:
        """Wait for the device: it is given work ahead, and progress is to be what has been done."""
        if self._on_cuda:
            torch.cuda.synchronize()


def load_engine(setup: RankSetup, parallel: ContextParallel) -> Engine:
    """Load the checkpoint onto this rank's device. Raises ModelError."""
    automatic = "bfloat16" if parallel.device.type == "cuda" else "float32"
    dtype = DTYPES[automatic if setup.dtype == "auto" else setup.dtype]
    pipeline, cost = measured(
        lambda: Pipeline.load(setup.checkpoint, dtype, parallel, fp8=setup.fp8), parallel.device
    )
    logger.info("loaded %s %s", setup.checkpoint, cost)
    if fuse(pipeline.dit, setup.compile):
        warm(pipeline.dit, resolve(GenerationParams(), Inputs(), pipeline.limits), MAX_TOKENS, parallel)
    return ModelEngine(pipeline, E4M3 if setup.fp8 else dtype)


def request_of(run: RunJob, *, with_inputs: bool) -> Request:
    """The model's request for an order, with the files that were fetched. Raises InputError."""
    order, plan = run.order, run.order.plan
    paths = {name: run.folder / file for name, file in run.inputs.items()} if with_inputs else {}
    video, condition = paths.get("video"), paths.get("condition_video")
    with Sandbox(memory_bytes=DECODE_MEMORY_BYTES) as sandbox:
        return Request(
            plan=plan,
            prompts=order.prompts,
            seed=order.seed,
            negative_prompt=order.negative_prompt,
            image=read_image(paths["image"], sandbox=sandbox) if "image" in paths else None,
            video=read_clip(video, "video", plan.fps, plan.video_taken, sandbox) if video else None,
            condition_video=read_clip(
                condition, "condition_video", plan.fps, plan.condition_video_taken, sandbox
            )
            if condition
            else None,
        )
