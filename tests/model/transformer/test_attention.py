"""Dense attention: who attends to whom, which kernel is asked, and that nothing is copied for its order."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend

from model.transformer import attention
from model.transformer.attention import KERNELS, TextKV, attend, attend_to_text

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def by_token(*shape: int) -> torch.Tensor:
    """Heads before tokens, as a projection leaves them: token by token in memory."""
    b, a, n, d = shape
    return torch.randn(b, n, a, d, generator=torch.Generator().manual_seed(n)).transpose(1, 2)


def softmax_attention(q, k, v, mask=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def test_every_token_attends_to_all():
    q, k, v = by_token(2, 3, 6, 8), by_token(2, 3, 9, 8), by_token(2, 3, 9, 8)
    torch.testing.assert_close(attend(q, k, v), softmax_attention(q, k, v))


def test_condition_tokens_attend_to_one_another_alone():
    q, k, v = (by_token(1, 2, 6, 8) for _ in range(3))
    out = attend(q, k, v, num_condition=2)
    among = softmax_attention(q[:, :, :2], k[:, :, :2], v[:, :, :2])
    torch.testing.assert_close(out[:, :, :2], among)
    torch.testing.assert_close(out[:, :, 2:], softmax_attention(q, k, v)[:, :, 2:])


@pytest.mark.parametrize("num_condition", [0, 2])
def test_results_lie_token_by_token(num_condition):
    q, k, v = (by_token(2, 3, 6, 8) for _ in range(3))
    out = attend(q, k, v, num_condition)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_attend_to_the_text_that_is_not_masked(masked):
    q = torch.randn(2, 3, 4, 2, 8)
    k, v = by_token(2, 2, 5, 8), by_token(2, 2, 5, 8)
    mask = torch.tensor([1, 1, 1, 0, 0]).bool().expand(2, 1, 1, 5) if masked else None
    expected = softmax_attention(q.flatten(1, 2).transpose(1, 2), k, v, mask)
    out = attend_to_text(q, TextKV(k, v, mask))
    assert out.shape == q.shape
    torch.testing.assert_close(out.flatten(1, 2).transpose(1, 2), expected)


def test_cudnn_is_asked_first_and_there_is_always_a_kernel():
    assert KERNELS[0] == SDPBackend.CUDNN_ATTENTION
    assert KERNELS[-1] == SDPBackend.MATH


@needs_gpu
def test_on_a_gpu_cudnn_attends():
    q, k, v = (by_token(1, 4, 256, 128).bfloat16().cuda() for _ in range(3))
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        attention.attend(q, k, v)
    assert any("cudnn" in event.key for event in profile.key_averages())
