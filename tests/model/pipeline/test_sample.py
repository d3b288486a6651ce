"""The denoising loop alone: its steps, its caches, and that it does not wait for the device."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.parallel.mesh import SINGLE, ContextParallel
from model.pipeline import sample
from model.pipeline.sample import Conditioning, denoise
from model.pipeline.schedule import standard
from model.transformer.config import BrickConfig, DitConfig
from model.transformer.dit import Dit
from model.transformer.token_layout import build_layout
from tests.model.parity_cases import load_dit

STEPS = 3


@pytest.fixture(scope="module")
def dit(parity_checkpoint):
    return load_dit(parity_checkpoint)


@pytest.fixture
def conditioning(dit) -> Conditioning:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    timesteps, sigmas = standard(STEPS, 12.0)
    return Conditioning(
        start=drawn(1, 16, 3, 4, 6),
        clean=drawn(1, 16, 2, 4, 6),
        text=drawn(2, 5, dit.config.caption_channels),
        mask=torch.ones(2, 5, dtype=torch.long),
        timesteps=timesteps,
        sigmas=sigmas,
        guidance_scale=4.0,
    )


def unguided(conditioning: Conditioning, **changes) -> Conditioning:
    return dataclasses.replace(
        conditioning, text=conditioning.text[1:], mask=conditioning.mask[1:], **changes
    )


def run(dit, conditioning: Conditioning) -> list[torch.Tensor]:
    return list(denoise(dit, conditioning, SINGLE))


def test_each_step_yields_latents(dit, conditioning):
    steps = run(dit, conditioning)
    assert [x.shape for x in steps] == [conditioning.start.shape] * STEPS
    assert all(x.dtype == torch.float32 for x in steps)


def test_inputs_and_yielded_latents_are_never_modified(dit, conditioning):
    kept = {name: x.clone() for name, x in vars(conditioning).items() if isinstance(x, torch.Tensor)}
    loop = denoise(dit, conditioning, SINGLE)
    first = next(loop)
    copy = first.clone()
    list(loop)
    assert torch.equal(first, copy)
    assert all(torch.equal(getattr(conditioning, name), x) for name, x in kept.items())


def test_resumed_loop_equals_uninterrupted_loop(dit, conditioning):
    steps = run(dit, conditioning)
    resumed = run(dit, dataclasses.replace(conditioning, start=steps[0], first_step=1))
    assert len(resumed) == STEPS - 1
    assert torch.equal(resumed[-1], steps[-1])


def test_no_remaining_steps_yield_nothing(dit, conditioning):
    assert run(dit, dataclasses.replace(conditioning, first_step=STEPS)) == []


def test_the_condition_cache_changes_nothing_without_guidance(dit, conditioning):
    plain = run(dit, unguided(conditioning))[-1]
    cached = run(dit, unguided(conditioning, cache_condition=True))[-1]
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-4)


def test_with_guidance_condition_frames_count_unless_cached(dit, conditioning):
    plain = run(dit, conditioning)[-1]
    cached = run(dit, dataclasses.replace(conditioning, cache_condition=True))[-1]
    assert not torch.allclose(cached, plain, atol=1e-3)


def test_clean_frames_affect_the_result(dit, conditioning):
    other = dataclasses.replace(conditioning, clean=-conditioning.clean)
    assert not torch.allclose(run(dit, other)[-1], run(dit, conditioning)[-1], atol=1e-3)


def test_no_clean_frames_need_no_cache(dit, conditioning):
    without = unguided(conditioning, clean=conditioning.clean[:, :, :0])
    cached = dataclasses.replace(without, cache_condition=True)
    assert torch.equal(run(dit, without)[-1], run(dit, cached)[-1])


class ConstantVelocity(torch.nn.Module):
    """A transformer that predicts the same velocity for every frame at every step."""

    def __init__(self, config: DitConfig, velocity: float) -> None:
        super().__init__()
        self.config = config
        self.velocity = velocity

    def text_kv(self, hidden, mask):
        return ()

    def forward(self, latents, timesteps, layout, text_kv, condition_kv, step_cache):
        return torch.full_like(latents, self.velocity)


def test_each_step_moves_the_latents_by_one_euler_update(dit, conditioning):
    """With a constant velocity, the latents after each step follow from the noise levels alone."""
    loop = inspect.unwrap(denoise)  # without the check of types, which the stand-in does not pass
    sigmas = conditioning.sigmas
    for given in (conditioning, unguided(conditioning)):
        steps = list(loop(ConstantVelocity(dit.config, 0.5), given, SINGLE, project_text=lambda *_: ()))
        assert len(steps) == STEPS
        for number, latents in enumerate(steps, start=1):
            expected = given.start - 0.5 * (sigmas[number] - sigmas[0])
            torch.testing.assert_close(latents, expected, rtol=0, atol=1e-6)


class VelocityOfText(ConstantVelocity):
    """Predicts one velocity for the negative prompt, which comes first, and twice that for the prompt."""

    def forward(self, latents, timesteps, layout, text_kv, condition_kv, step_cache):
        of_texts = torch.tensor([self.velocity, 2 * self.velocity]).view(-1, 1, 1, 1, 1)
        return of_texts.expand_as(latents)


def test_guidance_leads_from_the_negative_prompt_to_the_prompt(dit, conditioning):
    """The prediction for the prompt is a multiple of the other, so it is the guided one at any scale."""
    loop = inspect.unwrap(denoise)
    dit = VelocityOfText(dit.config, 0.5)
    *_, latents = loop(dit, conditioning, SINGLE, project_text=lambda *_: ())
    expected = conditioning.start - 1.0 * (conditioning.sigmas[-1] - conditioning.sigmas[0])
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


KINDS = [
    {},
    {"cache_condition": True},
    {"block_sparse": True, "lora": "refinement_lora"},
]


class ReadBack(TorchDispatchMode):
    """Notes each operation that makes the host wait for a value of the device."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITING or any(is_mask(index) for index in indices(name, args)):
            self.waited.append(name)
        return func(*args, **(kwargs or {}))


def indices(name: str, args) -> list:
    return list(args[1]) if name in ("index", "index_put", "index_put_") else []


def is_mask(index) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


@pytest.fixture(scope="module")
def small() -> DitConfig:
    return DitConfig(
        hidden_size=48,
        depth=2,
        num_heads=2,
        caption_channels=8,
        adaln_tembed_dim=8,
        frequency_embedding_size=8,
        bsa_params=BrickConfig(sparsity=0.5, chunk_3d_shape_q=(2, 2, 2), chunk_3d_shape_k=(2, 2, 2)),
    )


def conditioning_on(device: str, **changes) -> Conditioning:
    """Four noise frames after two clean ones; block-sparse attention goes without guidance."""
    num_texts = 1 if changes.get("block_sparse") else 2
    timesteps, sigmas = (x.to(device) for x in standard(STEPS, 12.0))
    return Conditioning(
        start=torch.zeros(1, 16, 4, 8, 8, device=device),
        clean=torch.zeros(1, 16, 2, 8, 8, device=device),
        text=torch.zeros(num_texts, 5, 8, device=device),
        mask=torch.ones(num_texts, 5, dtype=torch.long, device=device),
        timesteps=timesteps,
        sigmas=sigmas,
        guidance_scale=4.0,
        **changes,
    )


def test_operations_that_wait_for_the_device_are_detected():
    x = torch.arange(3.0)
    for read_back in (lambda: float(x[0]), x.nonzero, lambda: x[x > 1], lambda: bool(x.sum() > 0)):
        with ReadBack() as mode:
            read_back()
        assert mode.waited


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_the_device(small, kind):
    """Every second step: the first one may still set things up."""
    dit = Dit(small, torch.float32).requires_grad_(False)
    for parameter in dit.parameters():
        parameter.data = torch.zeros_like(parameter)
    steps = denoise(dit, conditioning_on("cpu", **kind), SINGLE)
    next(steps)
    with ReadBack() as mode:
        next(steps)
    assert mode.waited == []


@pytest.mark.parametrize("kind", KINDS)
def test_all_steps_run_on_a_device_whose_values_nobody_can_read(small, kind):
    """Meta tensors have no values, and do not mix with those of the CPU."""
    with torch.device("meta"):
        dit = Dit(small, torch.bfloat16)
    conditioning = conditioning_on("meta", **kind)
    for x in denoise(dit, conditioning, ContextParallel(torch.device("meta"))):
        assert (x.device.type, x.dtype, x.shape) == ("meta", torch.float32, conditioning.start.shape)


def test_tensor_left_on_the_cpu_is_detected(small):
    """The test above can fail: a timestep that was left behind on the CPU does not fit."""
    with torch.device("meta"):
        dit = Dit(small, torch.float32)
    left = dataclasses.replace(conditioning_on("meta"), timesteps=standard(STEPS, 12.0).timesteps)
    with pytest.raises(RuntimeError, match="device"):
        next(denoise(dit, left, ContextParallel(torch.device("meta"))))


def test_layouts_are_built_once_for_all_steps(dit, conditioning, monkeypatch):
    windows = []

    def counted(config, window, parallel, *, sparse):
        windows.append(window)
        return build_layout(config, window, parallel, sparse=sparse)

    monkeypatch.setattr(sample, "build_layout", counted)
    list(denoise(dit, conditioning, SINGLE))
    assert len(windows) == 1
    list(denoise(dit, dataclasses.replace(conditioning, cache_condition=True), SINGLE))
    assert len(windows) == 3
