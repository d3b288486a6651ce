"""Run orders on the loaded pipeline: the `Engine` of a real rank."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from pydantic import ValidationError

from jobs.capability import Capability
from model.io.fingerprint import fingerprints
from model.io.host_memory import host_memory_bytes
from model.io.loading import measured
from model.io.video import DECODE_MEMORY_BYTES, read_clip, read_image
from model.media.sandbox import Sandbox
from model.parallel.device import free_gpu_bytes, smallest_gpu_bytes
from model.parallel.mesh import ContextParallel
from model.pipeline.events import Event, Frames
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.state import State
from model.pipeline.warm_up import stage_shapes, warm_up
from model.sizes import check_weights_fit, read_sizes
from model.spec.errors import InvalidParams
from model.spec.memory import GIB, MemoryBudget, Setup, host_needed
from model.spec.params import GenerationParams
from model.spec.resolve import resolve
from model.spec.typical import typical_inputs
from model.text import MAX_TOKENS
from model.transformer.compile import fuse
from model.transformer.lora import WeightMemory
from worker.messages import RunJob
from worker.rank.capability import (
    ORDER_VERSIONS,
    QUANTISED_DTYPES,
    choose_dtype,
    plan_memory,
    setup_of,
    tasks_with,
)
from worker.rank.engine import Engine, InputsRead
from worker.settings import Options, RankSetup

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelEngine:
    """Generate videos with the pipeline of one rank."""

    def __init__(
        self,
        pipeline: Pipeline,
        dtype: str,
        model_id: str = "LongCat-Video",
        weights: Mapping[str, str] | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._dtype = dtype
        self._model_id = model_id
        self._weights = dict(weights or {})
        self._memory = memory

    def on(self, parallel: ContextParallel) -> ModelEngine:
        """Return an engine with the same weights that generates with other ranks. Raises GroupError."""
        pipeline = self._pipeline.on(parallel)
        return ModelEngine(pipeline, self._dtype, self._model_id, self._weights, self._memory)

    @property
    def capability(self) -> Capability:
        """Return what the loaded checkpoint can generate. The first rank of a node knows the weights."""
        parallel = self._pipeline.parallel
        gpu = torch.cuda.get_device_properties(parallel.device) if self._on_cuda else None
        return Capability(
            model=self._model_id,
            weights=self._weights,
            order_versions=ORDER_VERSIONS,
            gpu=gpu and gpu.name,
            gpu_memory_gib=gpu and gpu.total_memory // GIB,
            tasks=tasks_with(self._pipeline.lora.names),
            loras=tuple(sorted(self._pipeline.lora.names)),
            limits=self._pipeline.limits.to_json(),
            known_words=self._pipeline.limits.known_words,
            context_parallel=parallel.size,
            device=parallel.device.type,
            dtype=self._dtype,
            memory=self._memory,
        )

    def generate(self, run: RunJob) -> Iterator[InputsRead | Event]:
        """Yield the events of one job. Only the leader reads its files."""
        is_leader = self._pipeline.parallel.is_leader
        request = build_request(run, with_inputs=is_leader)
        resume = State.load(run.folder / run.resume.state) if is_leader and run.resume else None
        yield InputsRead()
        for event in self._pipeline.generate(request, resume):
            if not isinstance(event, Frames):  # those are on the CPU, and the device decodes the next ones
                self._synchronize()
            yield event

    def release_memory(self) -> None:
        """Release what a job that did not end regularly left. Raises if its error broke the device."""
        self._synchronize()
        gc.collect()
        if self._on_cuda:
            torch.cuda.empty_cache()

    @property
    def _on_cuda(self) -> bool:
        return self._pipeline.parallel.device.type == "cuda"

    def _synchronize(self) -> None:
        """Wait for the device, which runs behind the CPU, so that events report finished work."""
        if self._on_cuda:
            torch.cuda.synchronize()


def load_engine(setup: RankSetup, parallel: ContextParallel) -> Engine:
    """Load the checkpoint onto this rank's device. Raises ModelError."""
    dtype_name = choose_dtype(setup.dtype, parallel.device.type)
    smallest = smallest_gpu_bytes(parallel.device)
    needs, memory = plan_memory(
        setup.checkpoint,
        setup_of(setup, parallel.size, dtype_name),
        setup.text_encoder,
        setup.gpu_memory_gib,
        None if smallest is None else smallest // GIB,
        widest=setup.num_ranks,
    )
    if (free_bytes := free_gpu_bytes(parallel.device)) is not None:
        check_weights_fit(setup.checkpoint, needs, free_bytes, is_leader=parallel.is_leader)
    weights = fingerprints(setup.checkpoint)
    memory_of_host = _weight_memory(setup, needs, repr(weights))
    pipeline, cost = measured(
        lambda: Pipeline.load(
            setup.checkpoint,
            DTYPES[dtype_name],
            parallel,
            quantize=setup.quantize,
            text_encoder=needs.text_encoder,
            stream_weights=setup.stream_weights,
            memory=memory_of_host,
        ),
        parallel.device,
    )
    logger.info("loaded %s %s, text encoder: %s", setup.checkpoint, cost, needs.text_encoder)
    if fuse(pipeline.dit, setup.compile):
        _warm_up(pipeline, setup.warm_up, memory)
    is_first_of_node = dist.get_node_local_rank(fallback_rank=0) == 0
    known = weights if is_first_of_node else {}
    matrix_dtype = QUANTISED_DTYPES.get(setup.quantize, dtype_name)
    return ModelEngine(pipeline, matrix_dtype, setup.model_id, known, memory)


def _warm_up(pipeline: Pipeline, requests: Sequence[Options], memory: MemoryBudget | None) -> None:
    """Compile for these requests, with each number of ranks that a job may have and that they fit into."""
    parallel, num_heads = pipeline.parallel, pipeline.dit.config.num_heads
    groups = [group for group in (parallel, *parallel.wider) if group.divides(num_heads)]
    for request in requests:
        try:
            params = GenerationParams.model_validate(request)
            inputs = typical_inputs(params, pipeline.limits)
            plan = resolve(params, inputs, pipeline.limits)
        except (ValidationError, InvalidParams) as error:
            logger.warning("kernels for a request of WARM_UP are not compiled: %s", error)
            continue
        for group in groups:
            if memory is None or memory.with_ranks(group.size).fits(plan):
                for shape in stage_shapes(plan, inputs):
                    warm_up(pipeline.dit, shape, MAX_TOKENS, group)


def _weight_memory(setup: RankSetup, needs: Setup, fingerprint: str) -> WeightMemory | None:
    """Return the memory for weights that the ranks of this machine share, if they have one."""
    if setup.weight_memory is None:
        return None
    need = host_needed(
        read_sizes(setup.checkpoint),
        needs,
        num_ranks=setup.num_groups * setup.ranks_per_node,
        num_leaders=setup.num_groups if setup.node_rank == 0 else 0,
    )
    max_bytes = need.shared_limit(host_memory_bytes(), setup.lora_memory_gib)
    return WeightMemory(setup.weight_memory, max_bytes, fingerprint)


def build_request(run: RunJob, *, with_inputs: bool) -> Request:
    """Return the pipeline's request for an order. `with_inputs` reads its files. Raises InputError."""
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
