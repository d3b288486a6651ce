"""What the tests of several modules have ranks do: functions for `tests.model.ranks.Ranks.run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from model.io.checkpoint import open_safetensors
from model.parallel.mesh import ContextParallel
from model.pipeline.events import Frames, Latents, Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.sample import Conditioning, denoise
from model.spec.memory import Quantize
from model.transformer.compile import fuse
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.token_layout import Window, build_layout
from tests.model import parity_cases
from tests.model.random_dit import random_dit

CPU = torch.device("cpu")


def velocity(parallel: ContextParallel, case: str) -> torch.Tensor:
    return parity_cases.velocity(case, parallel)[0]


@dataclasses.dataclass(frozen=True)
class Forward:
    """A forward of a random transformer over noise frames and, in one of two ways, clean ones before them.

    With a `backend`, the blocks' parts are compiled by it.
    """

    config: DitConfig
    window: Window
    num_cached: int = 0
    sparse: bool = False
    backend: str | None = None

    def __call__(self, parallel: ContextParallel) -> torch.Tensor:
        """The velocity, on this rank."""
        dit, window = random_dit(self.config), self.window
        if self.backend is not None:
            compile_blocks(dit, self.backend)
        draw = torch.Generator().manual_seed(3)
        clean, latents = (
            torch.randn(b, 16, frames, window.height, window.width, generator=draw)
            for b, frames in ((1, self.num_cached), (2, window.num_frames))
        )
        condition_kv = None
        if self.num_cached:
            clean_window = Window(self.num_cached, window.height, window.width)
            condition_kv = dit.condition_kv(
                clean, build_layout(self.config, clean_window, parallel, sparse=False)
            )
            window = window._replace(first=self.num_cached)
        text = dit.text_kv(
            torch.randn(2, 5, self.config.caption_channels, generator=draw),
            torch.ones(2, 5, dtype=torch.long),
        )
        timesteps = torch.full((2, window.num_frames), 700.0)
        timesteps[:, : window.num_condition] = 0
        layout = build_layout(self.config, window, parallel, sparse=self.sparse)
        return dit(latents, timesteps, layout, text, condition_kv)


def compiled_velocity(parallel: ContextParallel, case: str, backend: str) -> torch.Tensor:
    """The same with the blocks' parts compiled by a backend."""
    dit = parity_cases.dit_for(case)
    compile_blocks(dit, backend)
    return parity_cases.velocity(case, parallel, dit)[0]


def compile_blocks(dit: Dit, backend: str) -> None:
    """Have the blocks' parts compiled by a backend. A part that it cannot compile is an error."""

    def fail(part: str) -> None:
        raise AssertionError(f"{part} is not compiled")

    with patch("model.transformer.compile.torch.compile", partial(torch.compile, backend=backend)):
        fuse(dit, "on", fail)


def guided(
    parallel: ContextParallel, checkpoint: Path, conditioning: Conditioning, split: bool
) -> tuple[torch.Tensor, int]:
    """Where a guided loop ends, and how many elements this rank traded for it in attention."""
    parallel = parallel if split else dataclasses.replace(parallel, cfg_branch=None)
    sent = []
    exchange = dist.all_to_all_single

    def counted(received, given, *arguments, **options):
        size = dist.get_world_size(options["group"])
        sent.append(given.numel() // size * (size - 1))
        return exchange(received, given, *arguments, **options)

    with patch.object(dist, "all_to_all_single", counted):
        *_, last = denoise(parity_cases.load_dit(checkpoint), conditioning, parallel)
    return last, sum(sent)


def generate(parallel: ContextParallel, checkpoint: Path, request: Request, resume=None) -> dict[str, object]:
    """A job's events by their kind, latents and frames; followers are not given the inputs."""
    if not parallel.is_leader:
        request = dataclasses.replace(request, image=None, video=None, condition_video=None)
        resume = None
    events = list(Pipeline.load(checkpoint, torch.float32, parallel).generate(request, resume))
    frames = [event.frames for event in events if isinstance(event, Frames) and event.frames is not None]
    return {
        "kinds": [type(event).__name__ for event in events],
        "latents": [event.latents for event in events if isinstance(event, Latents)],
        "states": [event.state for event in events if isinstance(event, Stepped)]
        if parallel.is_leader
        else [],
        "frames": torch.cat(frames) if frames else None,
    }


def sharded(parallel: ContextParallel) -> ContextParallel:
    """The same ranks, which share the weights of the blocks."""
    return dataclasses.replace(parallel, weights_group=parallel.group)


def latents_of(pipeline: Pipeline, requests: list[Request]) -> list[list[torch.Tensor]]:
    """The latents of each stage of each request; the frames are not waited for."""
    results = []
    for request in requests:
        last = "refine" if request.plan.refinement else "denoise"
        stages = []
        for event in pipeline.generate(request):
            if isinstance(event, Latents):
                stages.append(event.latents)
                if event.stage == last and event.segment == request.plan.num_segments - 1:
                    break
        results.append(stages)
    return results


def with_and_without_sharding(
    parallel: ContextParallel,
    checkpoint: Path,
    requests: list[Request],
    dtype: torch.dtype,
    quantize: Quantize,
) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """The latents of requests, one after the other, without sharing weights and with it."""
    if not parallel.is_leader:
        requests = [dataclasses.replace(request, image=None, video=None) for request in requests]
    whole = Pipeline.load(checkpoint, dtype, parallel, quantize=quantize)
    for parameter in whole.dit.parameters():
        # Weights in the dtype of the file are views of it. Products on a CPU round by the alignment of their
        # factors, so give the weights the one of an allocation.
        parameter.data = parameter.data.clone()
    shards = Pipeline.load(checkpoint, dtype, sharded(parallel), quantize=quantize)
    return list(zip(latents_of(whole, requests), latents_of(shards, requests), strict=True))


@contextmanager
def recorded_reads() -> Iterator[list[str]]:
    """Collect the names of the tensors that are read from checkpoints."""
    read: list[str] = []

    @contextmanager
    def recording(path: Path, device: torch.device | str = "cpu") -> Iterator[object]:
        with open_safetensors(path, device) as file:
            yield Recorded(file)

    class Recorded:
        def __init__(self, file) -> None:
            self.keys, self.get_slice, self._file = file.keys, file.get_slice, file

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self._file.get_tensor(name)

    with patch("model.io.checkpoint.open_safetensors", recording):
        yield read


class CountedWork:
    """A collective under way, and whether it was waited for."""

    def __init__(self, work: dist.Work) -> None:
        self._work = work
        self.waited = False

    def wait(self) -> None:
        self._work.wait()
        self.waited = True
