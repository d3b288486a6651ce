"""The Triton kernel against the plain definition: on a GPU where there is one, and interpreted on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.transformer.block_sparse import block_sparse_attention, reference_attention
from model.transformer.block_sparse_bricks import Bricks, select_bricks
from tests.model.transformer.block_sparse_cases import CASES, CUBE, QKV, SHARED_BYTES, Case, changed

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

COMPILE = """
import sys
from benchmarks.kernels.block_sparse import compile_attention

kernel = compile_attention(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
print(kernel.metadata.shared, "wgmma" in kernel.asm["ptx"], "cp.async" in kernel.asm["ptx"])
"""


def run_python(*arguments: str, **settings: str) -> str:
    finished = subprocess.run(
        [sys.executable, *arguments], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the interpreted kernel makes of every case."""
    path = tmp_path_factory.mktemp("triton") / "out.safetensors"
    run_python("-m", "tests.model.transformer.block_sparse_cases", str(path), TRITON_INTERPRET="1")
    return load_file(path)


@pytest.mark.parametrize("name", CASES)
def test_the_interpreted_kernel_computes_the_definition(interpreted: dict[str, Tensor], name: str) -> None:
    case = CASES[name]
    expected = reference_attention(*case.tokens(), bricks=case.bricks)
    atol = 2e-3 if case.dtype == torch.float16 else 2e-6
    torch.testing.assert_close(interpreted[name], expected, atol=atol, rtol=0)


def listed_by_definition(case: Case) -> list[list[int]]:
    """The entries of each head and pair, from the definition's selection."""
    q, k = case.tied()
    kept = torch.zeros(len(q), q.shape[1] + q.shape[1] % 2, k.shape[1], dtype=torch.bool)
    for region in case.bricks.regions():
        selection = select_bricks(q[:, region.queries], k[:, : region.num_keys], region, case.bricks)
        mask = selection.kept_mask()
        marks = torch.ones_like(selection.bricks, dtype=torch.bool) if mask is None else mask
        kept[:, region.queries].scatter_(2, selection.bricks, marks)
    keepers = (kept[:, ::2].int() + 2 * kept[:, 1::2].int()).flatten(0, 1).tolist()
    return [[4 * key + by for key, by in enumerate(row) if by] for row in keepers]


@pytest.mark.parametrize("name", CASES)
def test_the_interpreted_kernel_lists_the_best_key_bricks_and_of_equal_ones_the_first(
    interpreted: dict[str, Tensor], name: str
) -> None:
    entries, lengths = (
        interpreted[f"{name}: {part}"].flatten(0, 1).tolist() for part in ("entries", "lengths")
    )
    listed = [row[:length] for row, length in zip(entries, lengths, strict=True)]
    assert listed == listed_by_definition(CASES[name])


def compiled(capability: int, dtype: str, cache: Path) -> list[str]:
    limit = str(SHARED_BYTES[capability])
    return run_python("-c", COMPILE, str(capability), limit, dtype, TRITON_CACHE_DIR=str(cache)).split()


def test_the_kernel_compiles_for_hopper_with_tensor_cores_and_tiles_fetched_ahead(tmp_path: Path) -> None:
    shared, tensor_cores, ahead = compiled(90, "bf16", tmp_path)
    assert (tensor_cores, ahead) == ("True", "True")
    query, tile = 128 * 128 * 2, 64 * 128 * 2
    assert query + 2 * 2 * tile <= int(shared) <= 227 * 1024  # two tiles or more of keys and of values


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("capability", [80, 89, 90])
def test_the_compiled_kernel_fits_the_shared_memory(capability: int, dtype: str, tmp_path: Path) -> None:
    assert int(compiled(capability, dtype, tmp_path)[0]) <= SHARED_BYTES[capability]


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_computes_the_definition_on_a_gpu(dtype: torch.dtype) -> None:
    for name, case in CASES.items():
        tokens = changed(Tensor.cuda, case._replace(dtype=dtype).tokens())
        expected = reference_attention(*changed(Tensor.double, tokens), bricks=case.bricks)
        away = (_kernel(tokens, case.bricks) - expected).abs().max()
        assert away <= (2e-5 if dtype == torch.float32 else 2e-2), name


@needs_gpu
def test_on_a_gpu_the_kernel_is_what_attends() -> None:
    case = Case(Bricks((4, 8, 8), (4, 4, 4), (4, 4, 4), sparsity=0.5), 64, heads=2, dtype=torch.bfloat16)
    tokens = changed(Tensor.cuda, case.tokens())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        block_sparse_attention(*tokens, bricks=case.bricks)
    assert any("_attend_pairs" in event.key for event in profile.key_averages())


@needs_gpu
def test_unequal_bricks_are_reordered_before_the_kernel() -> None:
    case = Case(replace(CASES["larger key bricks"].bricks, chunk_q=CUBE), 64, dtype=torch.float32)
    tokens = case.tokens()
    expected = block_sparse_attention(*tokens, bricks=case.bricks)
    out = block_sparse_attention(*changed(Tensor.cuda, tokens), bricks=case.bricks)
    torch.testing.assert_close(out.cpu(), expected, atol=2e-5, rtol=0)


def _kernel(tokens: QKV, bricks: Bricks) -> Tensor:
    from model.transformer.block_sparse_triton import attend  # only where Triton is

    return attend(*tokens, bricks=bricks)
