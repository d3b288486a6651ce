"""The parity checkpoint, and ranks that are started once for a run; shapes are checked at every call."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import diffusers.models.autoencoders.autoencoder_kl_wan  # noqa: F401 before the hook, see below
import jaxtyping
import pytest
import transformers.models.umt5.modeling_umt5  # noqa: F401 before the hook, see below

import tests.model.typecheck  # noqa: F401 the hook looks it up by name

# Import libraries first: Python ignores their bytecode while the hook imports a module of `model`.
jaxtyping.install_import_hook("model", "tests.model.typecheck.checked")

from tests.model.parity_cases import PARITY  # noqa: E402 after the hook, which sees only what is imported later
from tests.model.ranks import Ranks  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Threads only wait for one another over tensors this small."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parity_checkpoint() -> Path:
    """The checkpoint that the published code computed the expected values with; never write to it."""
    return PARITY / "checkpoint"


@pytest.fixture(scope="session")
def parity_pipeline(parity_checkpoint):
    """That checkpoint, loaded in fp32 on one device."""
    import torch

    from model.pipeline.pipeline import Pipeline

    return Pipeline.load(parity_checkpoint, torch.float32)


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_checkpoint):
    """The tiny checkpoint, loaded in fp32 on one device."""
    import torch

    from model.pipeline.pipeline import Pipeline

    return Pipeline.load(tiny_checkpoint, torch.float32)


@pytest.fixture(scope="session")
def five_block_checkpoint(tmp_path_factory):
    """The tiny checkpoint with five blocks: each slot is used again, and some of them are quantised."""
    from model.tiny import DIT, write_tiny

    folder = tmp_path_factory.mktemp("five_blocks")
    write_tiny(folder, config=dataclasses.replace(DIT, depth=5))
    return folder


@pytest.fixture
def weight_memory():
    """Memory for weights that other processes can open."""
    from model.transformer.lora import WeightMemory

    descriptor = os.memfd_create("test")
    yield WeightMemory(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), 1 << 30, fingerprint="weights")
    os.close(descriptor)


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four processes on gloo that stay until the end of the run."""
    with Ranks(4, tmp_path_factory.mktemp("ranks")) as started:
        yield started
