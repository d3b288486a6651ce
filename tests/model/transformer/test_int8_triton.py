"""The kernel that multiplies by weights in int8: interpreted on the CPU, and chosen where it is faster."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from model.transformer.int8 import Int8Linear

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CASES = (
    "one row",
    "smaller than a tile",
    "whole tiles",
    "odd sizes",
    "an incomplete group of tiles",
    "the output projection of a frame",
)
HALF_A_STEP = 2.0**-11  # of fp16, relative
SHAPES = [torch.Size([48, 32]), torch.Size([32, 48])]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("triton") / "out.json"
    finished = subprocess.run(
        [sys.executable, "-m", "tests.model.transformer.int8_cases", str(path)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", CASES)
def test_the_interpreted_kernel_is_off_by_the_rounding_of_its_result_alone(
    interpreted: dict[str, object], name: str
) -> None:
    error = interpreted[name]
    assert isinstance(error, float)
    assert error < 1.01 * HALF_A_STEP


def test_a_layer_is_one_operation_of_a_graph_and_keeps_the_shape_of_its_input(
    interpreted: dict[str, object],
) -> None:
    assert interpreted["in graphs"] == [2, 3, 7, 80]
    assert interpreted["of a transposed input"]
    assert isinstance(interpreted["checks"], dict)
    assert set(interpreted["checks"].values()) == {"SUCCESS"}


class Kernel:
    """Stands in for the kernel, which needs a GPU: multiplies in PyTorch, and its times are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from model.transformer import int8_triton  # only where Triton is

        self._module = int8_triton
        self._times_ms = {"kernel": 1.0, "copies": 2.0}
        monkeypatch.setattr(int8_triton, "fused_product", self.product)
        monkeypatch.setattr(int8_triton, "do_bench", self._time)
        self.factor = 1.0
        self.error: Exception | None = None

    def product(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        if self.error:
            raise self.error
        return self.factor * torch.nn.functional.linear(x.float(), weight * scale, bias).to(x.dtype)

    def takes(self, kernel_ms: float, copies_ms: float) -> None:
        self._times_ms = {"kernel": kernel_ms, "copies": copies_ms}

    def _time(self, work: object) -> float:
        return self._times_ms["kernel" if getattr(work, "func", None) == self.product else "copies"]

    def is_faster(self) -> bool:
        return self._module.is_faster(SHAPES, 8, CPU)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def test_the_faster_way_is_chosen_and_a_line_says_how_long_both_take(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert kernel.is_faster()
    assert [record.getMessage() for record in caplog.records] == [
        "int8 products of a block: 2.0 ms in the kernel, 4.0 with copies"
    ]
    kernel.takes(2.0, 2.0)
    assert not kernel.is_faster()


@pytest.mark.parametrize("factor", [0.0, 1.05, float("nan")])
def test_a_kernel_that_computes_another_product_is_not_used(
    kernel: Kernel, caplog: pytest.LogCaptureFixture, factor: float
) -> None:
    kernel.factor = factor
    assert not kernel.is_faster()
    assert "computed another one" in caplog.text


def test_a_kernel_that_cannot_be_compiled_is_not_used(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.error = subprocess.CalledProcessError(1, ["gcc"])
    assert not kernel.is_faster()
    assert "the kernel failed: Command '['gcc']'" in caplog.text


@needs_gpu
@pytest.mark.parametrize("width", [96, 201])
def test_the_kernel_computes_the_product_on_a_gpu(width: int) -> None:
    from model.transformer.int8_triton import FusedInt8Linear

    linear = torch.nn.Linear(width, 257, dtype=torch.bfloat16, device="cuda").requires_grad_(False)
    x = torch.randn(2, 129, width, dtype=torch.bfloat16, device="cuda")
    expected = Int8Linear(linear.float())(x.float())
    found = FusedInt8Linear(linear.bfloat16())(x)
    assert (found - expected).norm() / expected.norm() < 2**-8
