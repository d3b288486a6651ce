"""The compiled parts of a block give what the plain ones give, and are compiled once for all blocks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.parallel.mesh import SINGLE
from model.transformer.compile import MAX_SHAPES, fuse
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.token_layout import Window, build_layout

SMALL = DitConfig(hidden_size=24, num_heads=2, depth=2, caption_channels=8, adaln_tembed_dim=16)
ROUNDING = {"float32": 1e-5, "bfloat16": 2e-2}
QUANTISED_ROUNDING = {"fp8": 2e-2, "int8": 1e-5}  # in fp8 also of values that lie between two of e4m3
PARTS = 3


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory):
    """Traced as for the compiler, but run by PyTorch's own kernels: quick."""
    return compiled(tmp_path_factory.mktemp("traced"), "aot_eager")


def compiled(folder: Path, backend: str):
    out = folder / "out.json"
    command = [sys.executable, "-m", "tests.model.transformer.compiled_cases", backend, str(out)]
    finished = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "is not compiled" not in finished.stderr
    return json.loads(out.read_text())


@pytest.fixture
def dit():
    """Small, of no particular weights."""
    dit = Dit(SMALL, torch.float32).requires_grad_(False)
    for parameter in dit.parameters():
        parameter.fill_(0.1)
    return dit


def velocity(dit: Dit):
    window = Window(2, 4, 4)
    text = dit.text_kv(torch.ones(1, 3, 8), torch.ones(1, 3, dtype=torch.long))
    layout = build_layout(SMALL, window, SINGLE, sparse=False)
    return dit(torch.ones(1, 16, *window[:3]), torch.full((1, 2), 500.0), layout, text)


@pytest.mark.integration
@pytest.mark.parametrize("dtype", ROUNDING)
def test_parts_are_traced_whole_and_give_the_plain_result(traced, dtype):
    assert max(traced[dtype]["differences"].values()) <= ROUNDING[dtype]


@pytest.mark.integration
@pytest.mark.parametrize("quantize", QUANTISED_ROUNDING)
def test_parts_are_traced_with_quantised_weights_and_beside_a_step_cache(traced, quantize):
    assert traced[quantize].keys() == {"whole", "in part"}
    assert max(traced[quantize].values()) <= QUANTISED_ROUNDING[quantize]


@pytest.mark.integration
def test_a_part_is_compiled_once_for_all_blocks_and_for_each_shape(traced):
    """An image's tokens begin as those of a text alone do; a continuation runs its clean frames first."""
    assert traced["bfloat16"]["graphs"] == PARTS
    text, image, clean_frames, continuation = PARTS, PARTS - 1, PARTS, PARTS
    assert traced["float32"]["graphs"] == text + image + clean_frames + continuation


@pytest.mark.integration
def test_warming_compiles_the_batch_that_was_not_met_yet(traced):
    counts = traced["float32"]
    assert counts["graphs after warming both batches"] == counts["graphs"] + PARTS


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ROUNDING)
def test_kernels_of_the_compiler_give_the_plain_result(tmp_path: Path, dtype: str):
    differences = compiled(tmp_path, "inductor")[dtype]["differences"]
    assert max(differences.values()) <= ROUNDING[dtype]


@pytest.mark.parametrize("wanted", ["auto", "off"])
def test_on_a_cpu_nothing_is_compiled_unless_asked_for(dit, wanted):
    assert not fuse(dit, wanted)
    assert not any("before_attention" in vars(block) for block in dit.blocks)


def test_asked_for_it_is_compiled_anywhere_for_many_shapes(dit):
    with torch._dynamo.config.patch(recompile_limit=8):
        assert fuse(dit, "on")
        assert torch._dynamo.config.recompile_limit == MAX_SHAPES
    assert all(
        {"before_attention", "between_attentions", "after_attentions"} <= set(vars(block))
        for block in dit.blocks
    )


def test_without_a_compiler_the_plain_code_runs_and_a_line_says_so(dit, monkeypatch, caplog):
    def no_compiler(part, **_):
        def run(*_):
            raise torch._dynamo.exc.BackendCompilerFailed(no_compiler, RuntimeError("no gcc"), None)

        return run

    expected = velocity(dit)
    monkeypatch.setattr(torch, "compile", no_compiler)
    fuse(dit, "on")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(velocity(dit), expected)
        assert torch.equal(velocity(dit), expected)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == PARTS  # once for each part and shape, not for each block and step
    assert all("is not compiled" in line and "no gcc" in line for line in lines)


def test_an_error_of_the_part_itself_is_raised(dit, monkeypatch):
    def broken(part, **_):
        def run(*_):
            raise torch.OutOfMemoryError("no memory")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    fuse(dit, "on")
    with pytest.raises(torch.OutOfMemoryError):
        velocity(dit)
