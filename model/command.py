"""Generate the videos that the options of `python -m model` request.

Under `torchrun` all ranks generate one video together or, with `--context-parallel P`, each group of P ranks
generates some of the prompts. Invalid input and checkpoints end with a one-line message and exit code 2.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Never

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from model.io.host_memory import host_memory_bytes
from model.io.loading import measured
from model.io.video import DECODE_MEMORY_BYTES, VideoWriter, measure_clip, read_clip, read_image
from model.media.sandbox import Sandbox
from model.parallel.device import choose_device, configure_allocator, free_gpu_bytes, smallest_gpu_bytes
from model.parallel.machine import share_file
from model.parallel.mesh import ContextParallel, join, leave
from model.pipeline.events import Encoded, Event, Frames, Latents, Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.sizes import check_weights_fit, read_sizes
from model.spec.arguments import options_of
from model.spec.errors import InputError, InvalidParams, ModelError
from model.spec.geometry import SIDE_MULTIPLE, Size
from model.spec.limits import Limits, load_limits
from model.spec.memory import Setup, available_bytes, choose_text_encoder, host_needed
from model.spec.params import GenerationParams
from model.spec.plan import Plan, count_lora_changes
from model.spec.resolve import Inputs, resolve
from model.transformer.compile import fuse
from model.transformer.lora import WeightMemory

WAIT_FOR_RANKS_S = 3600.0  # limit on waiting for another rank; decoding on a CPU is slow
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(options: argparse.Namespace) -> int:
    """Generate the videos, and return the exit code."""
    logging.basicConfig(format="%(message)s")
    configure_allocator()
    try:
        _generate(options)
    except (ModelError, InvalidParams) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        leave()
    return 0


def _generate(options: argparse.Namespace) -> None:
    """Generate the videos. Raises InvalidParams and ModelError."""
    requests = _requests(options)
    device = choose_device(options.device, options.checkpoint)
    parallel = join(
        device,
        options.context_parallel,
        WAIT_FOR_RANKS_S,
        split_guidance=options.guidance_split,
        shard_weights=options.shard_weights,
        ring_degree=options.ring_degree,
    )
    if parallel.is_leader:
        logging.getLogger("model").setLevel(logging.INFO)
        _check_folder("output", options.output)
        _check_folder("save_latents", options.save_latents)
    dtype = DTYPES[options.dtype or ("bfloat16" if device == "cuda" else "float32")]
    setup = Setup(
        parallel.size,
        dtype.itemsize,
        options.quantize,
        shard_weights=options.shard_weights,
        stream_weights=options.stream_weights,
    )
    plans = [request.plan for request in requests]
    placement = choose_text_encoder(
        options.text_encoder,
        read_sizes(options.checkpoint),
        setup,
        plans,
        available_bytes(smallest_gpu_bytes(parallel.device), None),
    )
    setup = replace(setup, text_encoder=placement)
    if (free_bytes := free_gpu_bytes(parallel.device)) is not None:
        check_weights_fit(options.checkpoint, setup, free_bytes, is_leader=parallel.is_leader)
    memory = _weight_memory(options.checkpoint, setup, parallel, plans[:: parallel.num_replicas])
    pipeline, cost = measured(
        lambda: Pipeline.load(
            options.checkpoint,
            dtype,
            parallel,
            quantize=options.quantize,
            text_encoder=placement,
            stream_weights=options.stream_weights,
            memory=memory,
            loras={name for plan in plans for name in plan.loras},
        ),
        parallel.device,
    )
    if parallel.is_leader:
        print(f"loaded {options.checkpoint} {cost}", file=sys.stderr)
    fuse(pipeline.dit, options.compile)
    for index, request in enumerate(requests):
        if index % parallel.num_replicas == parallel.replica:
            number = None if len(requests) == 1 else index
            outputs = Outputs(_numbered(options.output, number), _numbered(options.save_latents, number))
            _write(pipeline.generate(request), request.plan, outputs, parallel)


def _check_folder(option: str, path: Path | None) -> None:
    """Raise InputError if the folder of an output cannot be written, before a video is made for nothing."""
    if path is not None and not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise InputError(option, f"the folder {path.absolute().parent} is missing or cannot be written")


def _weight_memory(
    checkpoint: Path, setup: Setup, parallel: ContextParallel, plans: Sequence[Plan]
) -> WeightMemory | None:
    """Return memory for weights that the ranks of this machine share, None if it would save nothing.

    All ranks call this together, with the plans of the group that has most of them. A LoRA that is merged
    once is read once in any case.
    """
    if not setup.stream_weights and count_lora_changes(plans) < 2:
        return None
    machine = share_file(parallel)
    if machine.shared_file is None:
        return None
    need = host_needed(read_sizes(checkpoint), setup, machine.num_ranks, machine.num_leaders)
    max_bytes = need.shared_limit(host_memory_bytes(), None)
    return WeightMemory(machine.shared_file, max_bytes, fingerprint=str(checkpoint))


@dataclass(frozen=True)
class Outputs:
    """The files for the video and the latents, if they are written."""

    video: Path | None
    latents: Path | None


def _write(events: Iterator[Event], plan: Plan, outputs: Outputs, parallel: ContextParallel) -> None:
    """Run a job to its end. The leader writes the outputs."""
    if outputs.video is None:
        events = _without_decoding(events, plan)
    if not parallel.is_leader:
        for _ in events:
            pass
        return
    latents: dict[int, Tensor] = {}
    video = VideoWriter(outputs.video, plan.output_size, plan.output_fps) if outputs.video else None
    for event in _with_progress(events, plan):
        if isinstance(event, Latents):
            latents[event.segment] = event.latents.float().cpu()  # the last stage replaces the first
        elif isinstance(event, Frames) and video and event.frames is not None:
            video.add(event.frames)
    if video:
        video.close()
    if outputs.latents:
        names = {i: "latents" if plan.num_segments == 1 else f"latents.{i}" for i in latents}
        save_file({names[i]: x.contiguous() for i, x in latents.items()}, outputs.latents)


def _without_decoding(events: Iterable[Event], plan: Plan) -> Iterator[Event]:
    """Yield events up to the last latents, so that no rank decodes frames that nobody needs."""
    stage = "refine" if plan.refinement else "denoise"
    for event in events:
        yield event
        if isinstance(event, Latents) and (event.stage, event.segment) == (stage, plan.num_segments - 1):
            return


def _with_progress(events: Iterable[Event], plan: Plan) -> Iterator[Event]:
    """Yield events, and show a progress bar for each stage on stderr."""
    bar: tqdm[Never] | None = None
    for event in events:
        if isinstance(event, Encoded):
            bar = tqdm(desc=f"segment {event.segment + 1}/{plan.num_segments} {event.stage}", unit="step")
        elif isinstance(event, Stepped) and bar is not None:
            bar.total = event.num_steps
            bar.update(event.step - bar.n)
        elif isinstance(event, Latents) and bar is not None:
            bar.close()
        yield event


def _requests(options: argparse.Namespace) -> list[Request]:
    """Return one request, or one for each prompt if the prompts are not segments of one video."""
    with Sandbox(memory_bytes=DECODE_MEMORY_BYTES) as sandbox:
        return _read_requests(options, sandbox)


def _read_requests(options: argparse.Namespace, sandbox: Sandbox) -> list[Request]:
    limits = _limits(options.checkpoint)
    image = options.image and read_image(options.image, "image", sandbox)
    separate = options.task not in (None, "long_video")
    prompts = [(prompt,) for prompt in options.prompt] if separate else [tuple(options.prompt)]
    params = GenerationParams.parse(options_of(options))
    inputs = Inputs(
        num_prompts=len(prompts[0]),
        image=None if image is None else Size(*image.shape[:2]),
        video=options.video and measure_clip(options.video, "video", limits.fps, sandbox),
        condition_video=options.condition_video
        and measure_clip(options.condition_video, "condition_video", limits.fps, sandbox),
    )
    plan = resolve(params, inputs, limits, step_cache=options.step_cache)
    request = Request(
        plan=plan,
        prompts=prompts[0],
        seed=params.seed or 0,
        negative_prompt=params.negative_prompt,
        image=image,
        video=options.video and read_clip(options.video, "video", limits.fps, plan.video_taken, sandbox),
        condition_video=options.condition_video
        and read_clip(
            options.condition_video, "condition_video", limits.fps, plan.condition_video_taken, sandbox
        ),
        exact_handover=options.exact_handover,
    )
    return [replace(request, prompts=each) for each in prompts]


def _limits(checkpoint: Path) -> Limits:
    """Return the limits of the checkpoint, without the default minimum of the sides if it has none."""
    limits = load_limits(checkpoint)
    has_limits = (checkpoint / "limits.json").exists()
    return limits if has_limits else replace(limits, min_side=SIDE_MULTIPLE)


def _numbered(path: Path | None, number: int | None) -> Path | None:
    """Return `out.0.mp4` for `out.mp4`, if there are several outputs."""
    if path is None or number is None:
        return path
    return path.with_name(f"{path.stem}.{number}{path.suffix}")
