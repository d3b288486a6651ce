"""Run a rank of the real model that runs out of memory as a test asks, in place of `worker.rank.main`.

A prompt such as `denoise=1` names where, and on which rank or on `all`: while the prompt is encoded, while
weights are merged with a LoRA (`lora`), in the second denoising step, or while frames are decoded. Each place
raises the error of another library. With `denoise=<2`, all ranks do if they are fewer. `step_s=0.1` is added
to the duration of a step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import patch

import torch

from jobs.capability import Capability
from model.parallel.mesh import ContextParallel
from model.pipeline.events import Event
from model.transformer.lora import LoraMerger
from worker.messages import RunJob
from worker.rank import main as rank
from worker.rank.engine import InputsRead
from worker.rank.model_engine import ModelEngine, load_engine
from worker.settings import RankSetup

FREE_WRITES = 3  # weights that are merged with a LoRA before the device is full


class StarvingEngine:
    """The real engine, whose device has no memory where the prompt says so."""

    def __init__(self, engine: ModelEngine, parallel: ContextParallel) -> None:
        self._engine = engine
        self._parallel = parallel
        self._pipeline = engine._pipeline

    def on(self, parallel: ContextParallel) -> StarvingEngine:
        return StarvingEngine(self._engine.on(parallel), parallel)

    @property
    def capability(self) -> Capability:
        return self._engine.capability

    def generate(self, run: RunJob) -> Iterator[InputsRead | Event]:
        words = dict(word.partition("=")[::2] for word in run.order.prompts[0].split())
        with ExitStack() as faults:
            for place, ranks in words.items():
                if place == "step_s":
                    self._slow_down(float(ranks), faults)
                elif self._is_among(ranks):
                    self._starve(place, faults)
            yield from self._engine.generate(run)

    def release_memory(self) -> None:
        self._engine.release_memory()

    def _is_among(self, ranks: str) -> bool:
        if ranks.startswith("<"):
            return self._parallel.size < int(ranks[1:])
        return ranks in {"all", str(self._parallel.rank)}

    def _slow_down(self, step_s: float, faults: ExitStack) -> None:
        def wait(*_: object) -> None:
            time.sleep(step_s)

        faults.enter_context(self._pipeline.dit.blocks[0].register_forward_pre_hook(wait))

    def _starve(self, place: str, faults: ExitStack) -> None:
        match place:
            case "encode":
                assert self._pipeline.conditioner
                layer = self._pipeline.conditioner.text._encoder.encoder.block[1]
                error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
                faults.enter_context(layer.register_forward_pre_hook(after(0, error)))
            case "lora":
                accelerator_error = torch.AcceleratorError("CUDA error: out of memory")
                fail, write = after(FREE_WRITES, accelerator_error), LoraMerger._write

                def write_or_fail(merger: LoraMerger, module: str, tensors: dict[str, torch.Tensor]) -> None:
                    fail()
                    write(merger, module, tensors)

                faults.enter_context(patch.object(LoraMerger, "_write", write_or_fail))
            case "denoise":
                fail = after(1, torch.OutOfMemoryError("CUDA out of memory"))
                faults.enter_context(self._pipeline.dit.blocks[1].register_forward_pre_hook(fail))
            case "decode":
                fail = after(0, RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
                faults.enter_context(patch("model.vae.vae.decode_chunk", fail))


class after:  # noqa: N801 - reads as a function
    """Raise an error at each call after so many."""

    def __init__(self, calls: int, error: Exception) -> None:
        self._calls = calls
        self._error = error

    def __call__(self, *_: object) -> None:
        self._calls -= 1
        if self._calls < 0:
            raise self._error


def load(setup: RankSetup, parallel: ContextParallel) -> StarvingEngine:
    """Load the real engine."""
    engine = load_engine(setup, parallel)
    assert isinstance(engine, ModelEngine)
    return StarvingEngine(engine, parallel)


if __name__ == "__main__":
    rank.main(sys.argv[1], load)
